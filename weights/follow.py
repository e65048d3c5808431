"""Follow the unit that runs a job, for somebody who watches: start it where it is not at work on this very job, tell how
far it is, and say how it ended.

The unit goes on whatever becomes of the follower: a second's silence never comes about, so that one whom nobody hears any
more ends by SIGPIPE.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from weights.decide import server_of
from weights.fetch import FetchError
from weights.progress import FETCHED, NOTE, PROGRESS, Snapshot, later, line, plain, read_snapshot

UNIT = "atelier-weights.service"
PAUSE = 1.0  # seconds between two looks
_PATIENCE = 10.0  # seconds in which a program that has just begun says what it works on
_FIELDS = {
    "ActiveState": "active",
    "SubState": "sub",
    "InvocationID": "run",
    "Result": "result",
    "ExecMainStatus": "status",
    "NeedDaemonReload": "reload",
}


@dataclass(frozen=True)
class Unit:
    """What systemd says of the unit. run: its id of the unit's present or last run."""

    active: str = ""
    sub: str = ""
    run: str = ""
    result: str = ""
    status: str = ""
    reload: str = ""

    @property
    def over(self) -> bool:
        """Whether it neither runs nor is about to."""
        return self.active in ("inactive", "failed")


@dataclass(frozen=True)
class Ending:
    """How a run ended: ready, or what a person should know."""

    ready: bool
    why: tuple[str, ...] = ()


def attach(unit: Unit, told: Snapshot | None, job: str) -> Literal["start", "restart", "wait", "follow"]:
    """What to do so that the unit works on this job."""
    if unit.over:
        return "start"
    if unit.active != "active":  # about to start, and it reads the job then; or about to end
        return "follow" if unit.active == "activating" else "wait"
    if told is None or told.run != unit.run:
        return "wait"
    return "follow" if told.job == job else "restart"


def conclude(unit: Unit, result: dict[str, Any] | None, job: str, runs: set[str]) -> Ending | None:
    """How the unit's run ended. None: it says nothing of it, so that the journal has to.

    A result counts when it is of this job and of a run that was seen; another one is older.
    """
    fresh = result is not None and result["job"] == job and result["run"] in runs
    if result is not None and fresh and not result["ended"]:
        return Ending(True) if result["ready"] else Ending(False, tuple(reasons(result)))
    if unit.result == "success":
        return Ending(False, (f"{UNIT} was stopped before it was done",))
    return None


def reasons(result: dict[str, Any]) -> Iterator[str]:
    """Why a run's result is red: each file that could not be had, with what each of its sources did."""
    if result["error"]:
        yield str(result["error"])
    for file in result["files"]:
        if file["ready"]:
            continue
        yield f"{file['name']}: {file['why']}"
        for source in file["dropped"]:
            if source["why"] not in file["why"]:
                yield f"{file['name']}: {server_of(source['url'])}: {source['why']}"


def follow(path: Path) -> int:
    """Have the unit work on the job and tell how far it is until it ends. 0: every file is there."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    text = path.read_bytes()
    try:
        files = json.loads(text)
        progress, result = Path(files["progress"]), Path(files["result"])
    except (KeyError, TypeError, ValueError) as error:
        raise FetchError(f"{path} describes no job to follow: {error}") from error
    ending = _follow(hashlib.sha256(text).hexdigest(), progress, result, lambda line: print(line, flush=True))
    if not ending.ready:
        print("\n".join(map(plain, ending.why)), file=sys.stderr)
    return 0 if ending.ready else 1


def _follow(job: str, progress: Path, result: Path, say: Callable[[str], None]) -> Ending:
    if refused := _begin(job, progress):
        return Ending(False, (*refused, *_journal()))
    say(f"{NOTE}{UNIT} fetches them and goes on without us; on the host, `systemctl stop {UNIT}` ends it")
    runs: set[str] = set()
    killed: set[str] = set()
    seen: dict[str, int] = {}
    fetched: dict[str, int] = {}
    while True:
        # First the unit, then what it told: what it tells last is there when it is over.
        unit, told = _unit(), _told(progress)
        runs |= {unit.run} - {""}
        if told and told.run in runs:
            fetched[told.run] = told.fetched
            for note in later(told.notes, told.run, seen):
                say(NOTE + plain(note))
        if unit.over:
            break
        if unit.sub.startswith("auto-restart"):
            if unit.run not in killed:
                say(
                    f"{NOTE}the program on the host was killed ({unit.result}); systemd starts it again, and it continues"
                )
                killed.add(unit.run)
            say(f"{PROGRESS}starting again")
        elif told and told.run == unit.run and told.files:
            say(PROGRESS + plain(line(told)))
        else:
            say(f"{PROGRESS}starting")
        time.sleep(PAUSE)
    say(f"{FETCHED}{sum(fetched.values())}")
    return conclude(unit, _read(result), job, runs) or Ending(
        False, (f"{UNIT} ended without a word ({unit.result}, status {unit.status}); its journal:", *_journal())
    )


def _begin(job: str, progress: Path) -> list[str]:
    """Have the unit work on this job; what systemd says where it cannot."""
    patience = time.monotonic() + _PATIENCE
    while True:
        unit = _unit()
        if unit.reload == "yes":
            _systemctl("daemon-reload")
        action = attach(unit, _told(progress), job)
        if action == "follow":
            return []
        if action == "wait" and time.monotonic() < patience:
            time.sleep(0.3)
            continue
        done = _systemctl("start" if action == "start" else "restart", UNIT)
        return done.stderr.splitlines() if done.returncode else []


def _systemctl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True)


def _unit() -> Unit:
    told = _systemctl("show", UNIT, "--property", ",".join(_FIELDS)).stdout
    values = dict(row.partition("=")[::2] for row in told.splitlines())
    return Unit(**{_FIELDS[name]: value for name, value in values.items() if name in _FIELDS})


def _journal() -> list[str]:
    command = ["journalctl", "--unit", UNIT, "--lines", "10", "--output", "cat", "--no-pager"]
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


def _told(path: Path) -> Snapshot | None:
    told = _read(path)
    try:
        return read_snapshot(told) if told else None
    except (KeyError, TypeError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
