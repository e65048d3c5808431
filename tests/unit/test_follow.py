"""Following the unit that fetches weights: what to do about it, how its run ended, and the program with a told systemd."""

import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from weights import __main__ as program
from weights import follow
from weights.follow import UNIT, Ending, Unit, attach, conclude
from weights.progress import FETCHED, NOTE, PROGRESS, FileProgress, Note, Snapshot, later, plain

ROOT = Path(__file__).parents[2]
PAUSE = 0.02  # seconds between two looks of the follower
ACTIVE = Unit(active="active", sub="running", run="r2", result="success")
TOLD = Snapshot((FileProgress("vae/a", 10, 5, "fetching"),), 5, 10, 0.0, None, (), "this job", "r2")

ATTACH = {
    "never ran": (Unit(active="inactive"), None, "start"),
    "was done": (Unit(active="inactive", run="r2"), TOLD, "start"),
    "failed": (Unit(active="failed", run="r2"), TOLD, "start"),
    "works on this job": (ACTIVE, TOLD, "follow"),
    "works on an older job": (ACTIVE, replace(TOLD, job="older"), "restart"),
    "has just begun, and what is told is an earlier run's": (ACTIVE, replace(TOLD, run="r1"), "wait"),
    "has just begun, and nothing was ever told": (ACTIVE, None, "wait"),
    "is started again after a kill": (replace(ACTIVE, active="activating", sub="auto-restart"), TOLD, "follow"),
    "is about to end": (replace(ACTIVE, active="deactivating", sub="stop-sigterm"), TOLD, "wait"),
}


@pytest.mark.parametrize("case", ATTACH)
def test_what_makes_the_unit_work_on_the_job(case: str) -> None:
    unit, told, expected = ATTACH[case]
    assert attach(unit, told, "this job") == expected


def result(**changed: object) -> dict[str, object]:
    return {"job": "this job", "run": "r2", "ready": True, "ended": False, "error": "", "files": [], **changed}


WRONG = "http://m: sha256 ff, expected aa"
FAILED = [
    {
        "name": "vae/a",
        "ready": False,
        "why": WRONG,
        "dropped": [{"url": "http://m/vae/a", "why": "sha256 ff, expected aa"}],
    },
    {"name": "vae/b", "ready": True, "why": "", "dropped": [{"url": "http://m/vae/b", "why": "it answers 404"}]},
    {
        "name": "vae/c",
        "ready": False,
        "why": "no space on the disk",
        "dropped": [{"url": "http://m/vae/c?signature=x", "why": "it answers 404"}],
    },
]
OVER = Unit(active="inactive", sub="dead", run="r2", result="success", status="0")
RED = replace(OVER, active="failed", result="exit-code", status="1")
STOPPED = Ending(False, (f"{UNIT} was stopped before it was done",))
CONCLUDE = {
    "all there": (OVER, result(), Ending(True)),
    "some could not be had": (
        RED,
        result(ready=False, files=FAILED),
        Ending(False, (f"vae/a: {WRONG}", "vae/c: no space on the disk", "vae/c: http://m: it answers 404")),
    ),
    "could not begin": (RED, result(ready=False, error="only 1 GB is free"), Ending(False, ("only 1 GB is free",))),
    "stopped": (OVER, None, STOPPED),
    "stopped, and it said so": (OVER, result(ready=False, ended=True), STOPPED),
    "stopped, with an earlier run's result": (OVER, result(run="r1"), STOPPED),
    "crashed, with an earlier run's result": (RED, result(run="r1"), None),
    "crashed, with an older job's result": (RED, result(job="older"), None),
    "crashed": (RED, None, None),
}


@pytest.mark.parametrize("case", CONCLUDE)
def test_how_a_run_ended(case: str) -> None:
    unit, told, expected = CONCLUDE[case]
    assert conclude(unit, told, "this job", {"r2"}) == expected


def test_each_note_of_each_run_is_told_once() -> None:
    seen: dict[str, int] = {}
    first, second, third = Note(1, "a"), Note(2, "b"), Note(3, "c")
    assert later((first, second), "r1", seen) == ["a", "b"]
    assert later((second, third), "r1", seen) == ["c"]
    assert later((), "r2", seen) == []
    assert later((first,), "r2", seen) == ["a"]


def test_a_file_s_name_moves_no_cursor() -> None:
    assert plain("a\x1b[2Jb\nc\rd é") == "a?[2Jb?c?d é"


class Machine:
    """A machine whose systemd is a script: it starts, at once, what the test says, and writes down what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.job = folder / "job.json"
        self.job.write_text(
            json.dumps({"progress": str(folder / "progress.json"), "result": str(folder / "result.json")})
        )
        self.id = hashlib.sha256(self.job.read_bytes()).hexdigest()
        self.program("journalctl", "echo 'the journal says: boom'")
        self.unit("inactive", run="r1")
        self.on_start("true")

    def program(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\ncd {self.folder}\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def show(self, active: str, run: str = "r2", result: str = "success", sub: str = "x") -> str:
        return (
            f"ActiveState={active}\\nSubState={sub}\\nInvocationID={run}\\nResult={result}\\nExecMainStatus=0\\n"
            "NeedDaemonReload=no\\n"
        )

    def unit(self, active: str, **more: str) -> None:
        (self.folder / "unit").write_text(self.show(active, **more).replace("\\n", "\n"))

    def on_start(self, script: str) -> None:
        self.program(
            "systemctl",
            f"""case $1 in show) cat unit; echo >>looks;; *) echo "$@" >>asked;; esac
case $1 in start|restart) {script};; esac""",
        )

    def becomes(self, active: str, **more: str) -> str:
        return f"printf '{self.show(active, **more)}' >unit.tmp; mv unit.tmp unit"

    def tells(self, name: str, value: object) -> str:
        return f"printf '%s' '{json.dumps(value)}' >{name}.tmp; mv {name}.tmp {name}"

    def looked(self) -> str:
        """Shell that waits until the follower has looked at the unit twice."""
        return ': >looks; until [ "$(wc -l <looks)" -ge 2 ]; do sleep 0.01; done'

    def asked(self) -> list[str]:
        asked = self.folder / "asked"
        return asked.read_text().splitlines() if asked.exists() else []

    def started(self) -> subprocess.Popen[str]:
        hurried = f"import runpy; from weights import follow; follow.PAUSE = {PAUSE}; runpy.run_module('weights', {{}}, '__main__')"
        command = [sys.executable, "-c", hurried, "follow", str(self.job)]
        environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def follow(self) -> tuple[int, list[str], list[str]]:
        """The program in this process: one of its own spends most of its time on imports."""
        out, err = io.StringIO(), io.StringIO()
        pipe = signal.getsignal(signal.SIGPIPE)
        signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it does not end"))
        signal.alarm(30)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(follow, "PAUSE", PAUSE)
            patch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
            patch.setattr(sys, "argv", ["weights", "follow", str(self.job)])
            try:
                status = program.main()
            finally:
                signal.alarm(0)
                signal.signal(signal.SIGPIPE, pipe)
        return status, out.getvalue().splitlines(), err.getvalue().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_unit_that_does_nothing_is_started_and_followed_to_its_end(machine: Machine) -> None:
    told = asdict(replace(TOLD, job=machine.id, notes=(Note(1, "linked from /root/a"),), fetched=7))
    end = f"{machine.tells('result.json', result(job=machine.id))}; {machine.becomes('inactive')}"
    machine.on_start(
        f"{machine.tells('progress.json', told)}; {machine.becomes('active')}; ({machine.looked()}; {end}) >/dev/null 2>&1 &"
    )
    status, out, err = machine.follow()
    assert (status, err, machine.asked()) == (0, [], [f"start {UNIT}"])
    assert out.count(f"{NOTE}linked from /root/a") == 1
    assert f"{PROGRESS}0 of 1 files, 0.00 of 0.00 GB" in out
    assert out[-1] == f"{FETCHED}7"


@pytest.mark.parametrize(("job", "asked"), [("this", []), ("older", [f"restart {UNIT}"])])
def test_a_unit_at_work_is_restarted_only_for_another_job(machine: Machine, job: str, asked: list[str]) -> None:
    machine.unit("active")
    (machine.folder / "progress.json").write_text(
        json.dumps(asdict(replace(TOLD, job=machine.id if job == "this" else job)))
    )
    machine.on_start(machine.becomes("active", run="r3"))
    with machine.started() as process:
        assert process.stdout
        assert process.stdout.readline().startswith(NOTE)
        assert process.stdout.readline().startswith(PROGRESS)
        run = "r2" if job == "this" else "r3"
        (machine.folder / "result.json").write_text(json.dumps(result(job=machine.id, run=run)))
        machine.unit("inactive", run=run)
        assert process.wait(timeout=20) == 0
    assert machine.asked() == asked


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            lambda machine: (
                f"{machine.tells('result.json', result(job=machine.id, ready=False, files=FAILED))}; "
                f"{machine.becomes('failed', result='exit-code')}"
            ),
            [f"vae/a: {WRONG}", "vae/c: no space on the disk", "vae/c: http://m: it answers 404"],
        ),
        (lambda machine: machine.becomes("inactive"), [f"{UNIT} was stopped before it was done"]),
        (
            lambda machine: machine.becomes("failed", result="exit-code"),
            [f"{UNIT} ended without a word (exit-code, status 0); its journal:", "the journal says: boom"],
        ),
        (lambda machine: "echo 'Unit not found.' >&2; exit 5", ["Unit not found.", "the journal says: boom"]),
    ],
    ids=["failed files", "stopped", "crashed", "cannot start"],
)
def test_a_red_end_says_why(machine: Machine, script: Callable[[Machine], str], said: list[str]) -> None:
    machine.on_start(script(machine))
    status, _, err = machine.follow()
    assert (status, err) == (1, said)


def test_a_program_that_was_killed_is_followed_on(machine: Machine) -> None:
    again = machine.becomes("activating", sub="auto-restart", result="signal")
    end = f"{machine.tells('result.json', result(job=machine.id, run='r3'))}; {machine.becomes('inactive', run='r3')}"
    runs = machine.becomes("active", run="r3")
    first, second = (
        machine.tells("progress.json", asdict(replace(TOLD, job=machine.id, run=run, fetched=size)))
        for run, size in (("r2", 7), ("r3", 5))
    )
    machine.on_start(
        f"{first}; {again}; ({machine.looked()}; {second}; {runs}; {machine.looked()}; {end}) >/dev/null 2>&1 &"
    )
    status, out, _ = machine.follow()
    assert status == 0
    assert out[-1] == f"{FETCHED}12", "of both runs"
    assert len([line for line in out if line.startswith(NOTE) and "was killed (signal)" in line]) == 1


def test_a_follower_that_nobody_hears_ends_and_leaves_the_unit(machine: Machine) -> None:
    machine.on_start(machine.becomes("active"))
    with machine.started() as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=10) != 0
    assert machine.asked() == [f"start {UNIT}"], "it was not stopped"


def test_a_file_that_is_no_job_is_named(machine: Machine) -> None:
    machine.job.write_text("{}")
    status, _, err = machine.follow()
    assert status == 1 and str(machine.job) in err[0]
