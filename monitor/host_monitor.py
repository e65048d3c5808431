"""Looks at a deployed host from itself, once: `python3 host_monitor.py CONFIG`, by a timer. The standard library alone.

What it sees goes into a state file (JSON) and into metrics (Prometheus' text format); a change of state runs one command.
Every answer is one of three: a thing is as it should be (`up`), it is not (`down`), or it could not be asked (`unknown`),
which is taken for neither: it ends no state and begins none. Decisions are functions of what was seen; the shell is at the end.
"""

import concurrent.futures
import contextlib
import ctypes
import fcntl
import functools
import http.client
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

State = Literal["up", "down", "unknown"]
Activity = Literal["busy", "idle", "unknown"]
STATES: tuple[State, ...] = ("up", "down", "unknown")
ACTIVITIES: tuple[Activity, ...] = ("busy", "idle", "unknown")
SCHEMA = 1

QUESTION = 8.0
"""Seconds for one question."""
ROUND = 10.0
"""Seconds for all questions that are asked at once; there are two rounds."""
ENDING = 8.0
"""Seconds that the command's unit may take to end beyond the command's own limit."""
SETTLING = 600.0
"""Seconds after a boot in which a clock that is not in sync may yet come to be."""
FEW_FILES = 1000


# --- What was seen -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """One answer, and why."""

    state: State
    why: str = ""


@dataclass(frozen=True)
class Answer:
    """What a command or a server said. status: none where there was no answer, and then `text` says why."""

    status: int | None
    text: str = ""
    late: bool = False
    """Whether it was given up."""


NOT_ASKED = Answer(None, "not asked")


def plain(text: str, length: int = 200) -> str:
    """Text that fits into one line of anything."""
    words = " ".join("".join(c if c.isascii() and c.isprintable() else " " for c in text).split())
    return words if len(words) <= length else words[: length - 3] + "..."


def docker_seen(unit: Answer, inspected: Answer) -> Seen:
    """Docker, from its unit's ActiveState and from asking it for our containers.

    It is never asked while its unit is down: its socket would start it.
    """
    if unit.status != 0:
        return Seen("unknown", plain(f"systemd does not say: {unit.text}"))
    if unit.text.strip() not in ("active", "reloading"):
        return Seen("down", f"its unit is {plain(unit.text) or 'not there'}")
    if inspected.late:
        return Seen("down", "it does not answer")
    if inspected.status is None:
        return Seen("unknown", plain(inspected.text))
    if containers(inspected) is None:
        return Seen("down", plain(inspected.text))
    return Seen("up")


def containers(inspected: Answer) -> dict[str, dict[str, Any]] | None:
    """`docker inspect` by name, from its output and then its errors; None where Docker did not answer.

    It ends with 1 where one of them does not exist, and where it reached no Docker.
    """
    output, _, errors = inspected.text.partition("\n::\n")
    unknown = all("no such " in line.lower() for line in errors.splitlines() if line.strip())
    if inspected.status not in (0, 1) or not unknown:
        return None
    try:
        return {str(item["Name"]).lstrip("/"): item for item in json.loads(output)}
    except (ValueError, KeyError, TypeError):
        return None


def container_seen(container: Mapping[str, Any] | None, image: str | None, before: Mapping[str, Any] | None) -> Seen:
    """One container, from its part of `docker inspect`, and from its id and restarts when it was looked at before.

    image: the id that was deployed; None where the record does not say.
    """
    if container is None:
        return Seen("down", "there is no such container")
    try:
        state, restarts = container["State"], int(container["RestartCount"])
        status, health = str(state["Status"]), str((state.get("Health") or {}).get("Status", ""))
        runs = str(container["Image"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return Seen("unknown", "Docker says nothing that can be read")
    if status == "restarting":
        return Seen("down", f"it is in a restart loop ({restarts} restarts)")
    if status != "running":
        return Seen("down", f"it is {status} (exit status {state.get('ExitCode', '?')})")
    if before and before.get("id") == container.get("Id") and restarts > int(before["restarts"]):
        return Seen("down", f"it was restarted {restarts - int(before['restarts'])} times since the last look")
    if image and runs != image:
        return Seen("down", f"it runs image {runs[7:19]}, deployed was {image[7:19]}")
    if health == "unhealthy":
        return Seen("down", "it is unhealthy")
    if health != "healthy":
        return Seen("unknown", f"its health is {health or 'not checked'}")
    if not image:
        return Seen("unknown", "which image was deployed is not known")
    return Seen("up")


def health_seen(answer: Answer) -> Seen:
    """A service as everybody may ask for it: `/healthz` of the gateway."""
    if answer.status is None:
        return Seen("down", f"/healthz: {plain(answer.text)}")
    if (answer.status, answer.text.strip()) == (200, "up"):
        return Seen("up")
    return Seen("down", f"/healthz answers {answer.status} {plain(answer.text, 40)}".rstrip())


def strangers_seen(answer: Answer) -> Seen:
    """Whether a stranger is refused. An answer that neither refuses nor serves says nothing of it."""
    if answer.status == 401:
        return Seen("up")
    if answer.status is None or answer.status >= 500:
        return Seen("unknown", plain(f"cannot tell whether strangers are refused: {answer.status or ''} {answer.text}"))
    return Seen("down", f"a stranger was answered {answer.status}, 401 expected")


def listeners(table: str) -> list[tuple[str, int, int]]:
    """Address, port and owner of every listening socket of a /proc/net/tcp or tcp6."""
    found = []
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[3] == "0A":
            raw, _, port = words[1].partition(":")
            numbers = [bytes.fromhex(raw[at : at + 8])[::-1] for at in range(0, len(raw), 8)]
            address = ipaddress.ip_address(b"".join(numbers) if sys.byteorder == "little" else bytes.fromhex(raw))
            found.append((str(getattr(address, "ipv4_mapped", None) or address), int(port, 16), int(words[7])))
    return found


def listening_seen(tables: Sequence[str], ports: Iterable[int], addresses: Iterable[str], uid: int) -> Seen:
    """Whether the published ports listen where it was declared and nowhere else, and the service user nowhere.

    A port on which nothing listens is told by its service.
    """
    wanted, allowed = set(ports), set(addresses)
    try:
        found = [listener for table in tables for listener in listeners(table)]
    except ValueError:
        return Seen("unknown", "the table of sockets cannot be read")
    wrong = [f"{address} port {port}" for address, port, _ in found if port in wanted and address not in allowed]
    strays = [f"{address} port {port} (the service user's)" for address, port, owner in found if owner == uid]
    if wrong or strays:
        return Seen("down", plain("somebody listens on " + ", ".join(sorted({*wrong, *strays}))))
    return Seen("up")


def loopback_seen(answers: Sequence[Answer]) -> Seen:
    """The rules that keep others away from loopback and the gateway's own address, from `iptables -C` for each."""
    if any(answer.status == 1 for answer in answers):
        return Seen("down", "the rule that guards the services' addresses is missing")
    errors = [answer.text for answer in answers if answer.status != 0]
    return Seen("unknown", plain(errors[0])) if errors else Seen("up")


@dataclass(frozen=True)
class Disk:
    """A file system: free bytes, files that it can still hold, and those it can hold at all (0: no such limit)."""

    free: int
    files_free: int
    files: int


def disk_seen(disks: Mapping[str, Disk | None], least: float) -> Seen:
    """Whether every file system has room; None stands for one that did not answer."""
    short = [f"{path} has {disk.free / 1e9:.1f} GB left" for path, disk in disks.items() if disk and disk.free < least]
    short += [
        f"{path} can hold {disk.files_free} files more"
        for path, disk in disks.items()
        if disk and disk.files and disk.files_free < FEW_FILES
    ]
    if short:
        return Seen("down", plain("; ".join(short)))
    silent = [path for path, disk in disks.items() if disk is None]
    return Seen("unknown", plain(f"no answer from {', '.join(silent)}")) if silent else Seen("up")


def weights_seen(unit: Answer) -> Seen:
    """The unit that fetches the weights, from its ActiveState."""
    if unit.status != 0 or not unit.text.strip():
        return Seen("unknown", plain(f"systemd does not say: {unit.text}"))
    return Seen("down", "not all weights could be fetched") if unit.text.strip() == "failed" else Seen("up")


EVERY_GPU = "all"
"""What a service under WSL2 is given, where CDI knows no card by its UUID."""


def gpu_seen(answer: Answer, wanted: Iterable[str] | None) -> Seen:
    """The GPUs, from `nvidia-smi --query-gpu=uuid`; wanted: those that the services were given, where that is known."""
    if answer.late:
        return Seen("down", "nvidia-smi does not answer")
    if answer.status is None:
        return Seen("down", plain(answer.text))
    if answer.status != 0:
        return Seen("down", plain(f"nvidia-smi: {answer.text}"))
    if wanted is None:
        return Seen("unknown", "which GPUs were given to the services is not known")
    there = answer.text.split()
    missing = sorted(set(wanted) - set(there) - ({EVERY_GPU} if there else set()))
    return Seen("down", plain(f"no {', '.join(missing)}")) if missing else Seen("up")


def time_seen(services: Answer, in_sync: bool | None, uptime: float) -> Seen:
    """The clock, from `systemctl is-active` of all time services and the kernel's own word."""
    if services.status is None:
        return Seen("unknown", plain(services.text))
    if "active" not in services.text.split():
        return Seen("down", "no time service runs")
    if in_sync is None:
        return Seen("unknown", "the kernel does not say")
    if in_sync:
        return Seen("up")
    return Seen("unknown" if uptime < SETTLING else "down", "the clock is not in sync")


def record_seen(record: Mapping[str, Any] | None, services: Iterable[str]) -> Seen:
    """What the last deploy wrote down; None where it cannot be read."""
    if record is None:
        return Seen("down", "the record of the last deploy cannot be read")
    try:
        missing = sorted(service for service in services if not record["images"][service]["id"])
    except (KeyError, TypeError):
        return Seen("down", "the record of the last deploy is damaged")
    return Seen("down", f"the last deploy recorded no image of {', '.join(missing)}") if missing else Seen("up")


def activity_seen(answer: Answer) -> Activity:
    """Whether an application generates, from the one word that it was asked for. An error is never idle."""
    word = answer.text.strip()
    if answer.status == 0 and word == "busy":
        return "busy"
    return "idle" if answer.status == 0 and word == "idle" else "unknown"


def worst(states: Iterable[State]) -> State:
    """What several come to: down where one is, up only where all are."""
    present = set(states)
    if "down" in present:
        return "down"
    return "up" if present == {"up"} else "unknown"


def subjects(checks: Mapping[str, Seen]) -> dict[str, Seen]:
    """What the checks come to for each subject: the part of their ids before the dot."""
    found = {}
    for name in dict.fromkeys(check.partition(".")[0] for check in checks):
        mine = [seen for check, seen in checks.items() if check.partition(".")[0] == name]
        state = worst(seen.state for seen in mine)
        found[name] = Seen(
            state, "; ".join(dict.fromkeys(seen.why for seen in mine if seen.state == state and seen.why))
        )
    return found


# --- What is remembered --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """What is known of one subject: its state since when, and another one that was seen some times in a row."""

    known: State | None = None
    since: float = 0
    other: State | None = None
    times: int = 0


@dataclass(frozen=True)
class Change:
    """A change of a subject's state."""

    subject: str
    old: State
    new: State
    why: str = ""

    def text(self) -> str:
        """For people."""
        return f"{self.subject}: {self.old} -> {self.new}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class Notice:
    """A run of the command that is due. begun: it was started, and is never started again."""

    id: int
    old: State
    new: State
    changes: tuple[Change, ...]
    down: tuple[str, ...]
    begun: bool = False


@dataclass(frozen=True)
class Memory:
    """What one run leaves to the next."""

    subjects: dict[str, Subject] = field(default_factory=dict)
    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    due: tuple[Notice, ...] = ()
    notices: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


OUTCOMES = ("succeeded", "failed", "interrupted")


def settled(before: Subject, seen: State, confirmations: int, now: float) -> Subject:
    """What is known of a subject after one more look. `unknown` neither counts nor begins the count anew."""
    if seen == "unknown":
        return before
    if seen == before.known:
        return replace(before, other=None, times=0)
    times = before.times + 1 if before.other == seen else 1
    first_good = before.known is None and seen == "up"
    if times >= confirmations or first_good:
        return Subject(seen, now)
    return replace(before, other=seen, times=times)


def changed(name: str, before: Subject, after: Subject, why: str) -> Change | None:
    """The change that a look brought. That something is well when it is looked at first is none."""
    first_good = before.known is None and after.known == "up"
    if after.known is None or after.known == before.known or first_good:
        return None
    return Change(name, before.known or "unknown", after.known, why)


def overall(known: Mapping[str, Subject]) -> State:
    """The state of the host as a whole: of what is known, the worst."""
    return worst(subject.known for subject in known.values() if subject.known)


def remembered(before: Memory, seen: Mapping[str, Seen], confirmations: int, now: float) -> Memory:
    """The memory after a look, with a notice due where something changed."""
    empty = Subject()
    after = {name: settled(before.subjects.get(name, empty), it.state, confirmations, now) for name, it in seen.items()}
    found = [changed(name, before.subjects.get(name, empty), after[name], it.why) for name, it in seen.items()]
    changes = tuple(change for change in found if change)
    if not changes:
        return replace(before, subjects=after)
    down = tuple(name for name, subject in after.items() if subject.known == "down")
    number = before.notices + 1
    notice = Notice(number, overall(before.subjects), overall(after), changes, down)
    return replace(before, subjects=after, due=(*before.due, notice), notices=number)


def without_interrupted(before: Memory) -> Memory:
    """The memory without notices whose command was started by a run that was killed before its end: at most once."""
    lost = sum(notice.begun for notice in before.due)
    due = tuple(notice for notice in before.due if not notice.begun)
    return counted(replace(before, due=due), "interrupted", lost) if lost else before


def counted(memory: Memory, outcome: str, times: int = 1) -> Memory:
    """The memory with one more outcome of a command."""
    return replace(memory, outcomes={**memory.outcomes, outcome: memory.outcomes.get(outcome, 0) + times})


def parse_memory(text: str) -> Memory:
    """The memory in a state file. Raises ValueError where it is damaged."""
    try:
        document = json.loads(text)["memory"]
        return Memory(
            {name: Subject(**subject) for name, subject in document["subjects"].items()},
            dict(document["containers"]),
            tuple(
                Notice(
                    **{
                        **notice,
                        "changes": tuple(Change(**c) for c in notice["changes"]),
                        "down": tuple(notice["down"]),
                    }
                )
                for notice in document["due"]
            ),
            int(document["notices"]),
            dict(document["outcomes"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


# --- What is told --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """One look at the host, with when it was and how long it took."""

    time: float
    seconds: float
    checks: dict[str, Seen]
    activity: dict[str, Activity]
    record: Mapping[str, Any]


def document(look: Look, memory: Memory) -> str:
    """The state file."""
    told = {
        "schema": SCHEMA,
        "time": round(look.time, 3),
        "seconds": round(look.seconds, 3),
        "state": overall(memory.subjects),
        "subjects": {
            name: {
                "state": seen.state,
                "known": memory.subjects[name].known,
                "since": memory.subjects[name].since,
                "why": seen.why,
            }
            for name, seen in subjects(look.checks).items()
        },
        "activity": look.activity,
        "checks": {name: asdict(seen) for name, seen in look.checks.items()},
        "memory": asdict(memory),
    }
    return json.dumps(told, indent=1) + "\n"


def label(value: object) -> str:
    """A value in quotes, as Prometheus' text format has it."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def metrics(look: Look, memory: Memory) -> str:
    """All metrics in Prometheus' text format, each family whole and once. Of several states exactly one is 1."""
    lines: list[str] = []

    def family(name: str, kind: str, about: str, samples: Iterable[tuple[Mapping[str, object], float]]) -> None:
        rows = []
        for labels, value in samples:
            pairs = ",".join(f"{key}={label(text)}" for key, text in labels.items())
            rows.append(f"{name}{{{pairs}}} {value:.15g}" if pairs else f"{name} {value:.15g}")
        if rows:
            lines.extend([f"# HELP {name} {about}", f"# TYPE {name} {kind}", *rows])

    def one_of(key: str, values: Mapping[str, str], states: Sequence[str]) -> list[tuple[dict[str, object], float]]:
        return [({key: name, "state": s}, float(s == value)) for name, value in values.items() for s in states]

    seen = {name: it.state for name, it in subjects(look.checks).items()}
    known = {name: subject.known or "unknown" for name, subject in memory.subjects.items()}
    checks = {name: it.state for name, it in look.checks.items()}
    family(
        "atelier_subject_state",
        "gauge",
        "What was seen of a subject at the last look.",
        one_of("subject", seen, STATES),
    )
    family(
        "atelier_subject_known_state",
        "gauge",
        "The state that is known, as the command was told.",
        one_of("subject", known, STATES),
    )
    family("atelier_check_state", "gauge", "What each check saw at the last look.", one_of("check", checks, STATES))
    family(
        "atelier_service_activity",
        "gauge",
        "Whether a service generates.",
        one_of("service", look.activity, ACTIVITIES),
    )
    family(
        "atelier_container_restarts",
        "gauge",
        "Restarts of a container since it was made.",
        [({"container": name}, float(it["restarts"])) for name, it in memory.containers.items()],
    )
    told = {key: look.record[key] for key in ("release", "profile", "sources") if key in look.record}
    family("atelier_deployed_info", "gauge", "What the last deploy recorded.", [(told, 1)] if told else [])
    family("atelier_state_changes_total", "counter", "Looks that found a change of state.", [({}, memory.notices)])
    family(
        "atelier_commands_total",
        "counter",
        "Runs of the configured command by how they ended.",
        [({"outcome": name}, memory.outcomes.get(name, 0)) for name in OUTCOMES],
    )
    family("atelier_look_timestamp_seconds", "gauge", "When the host was last looked at.", [({}, round(look.time, 3))])
    family("atelier_look_duration_seconds", "gauge", "How long that took.", [({}, round(look.seconds, 3))])
    return "\n".join(lines) + "\n"


def environment_file(notice: Notice, host: str) -> str:
    """What the command is told, as systemd's EnvironmentFile= reads it."""
    values = {
        "ATELIER_HOST": host,
        "ATELIER_OLD_STATE": notice.old,
        "ATELIER_NEW_STATE": notice.new,
        "ATELIER_CHANGES": "; ".join(change.text() for change in notice.changes),
        "ATELIER_DOWN": " ".join(notice.down),
    }
    escaped = {
        name: "".join("\\" + c if c in '"\\$`' else c for c in plain(value, 2000)) for name, value in values.items()
    }
    return "".join(f'{name}="{value}"\n' for name, value in escaped.items())


# --- The shell -----------------------------------------------------------------------------------------------------------


def run(command: Sequence[str], seconds: float | None = None, *, errors: bool = False) -> Answer:
    """A command's exit status and output; with `errors`, its errors after a line `::`, else errors only where it failed.

    Neither a command that does not end nor one that cannot be killed is waited for longer.
    """
    seconds = seconds or QUESTION
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as told:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=told, start_new_session=True
            )
        except OSError as error:
            return Answer(None, f"{command[0]}: {error.strerror}")
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            return Answer(None, f"{command[0]} did not end within {seconds:.0f} s", late=True)
        output.seek(0)
        told.seek(0)
        said = output.read().decode(errors="replace")
        complaint = told.read().decode(errors="replace")
    if errors:
        return Answer(status, f"{said}\n::\n{complaint}")
    return Answer(status, said if status == 0 else complaint or said)


def get(url: str) -> Answer:
    """The answer to a GET without credentials, and the beginning of its text.

    No secret is sent, so it does not matter whom the certificate names; clients are who judges that.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        if parts.scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=QUESTION, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=QUESTION)
        with contextlib.closing(connection):
            connection.request("GET", parts.path, headers={"Accept": "*/*"})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(64).decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        return Answer(None, str(error) or type(error).__name__, late=isinstance(error, TimeoutError))


Question = Callable[[], Any]


def together(questions: Mapping[str, Question], seconds: float) -> dict[str, Any]:
    """The answers to all questions, asked at once; one that has no answer by then has none here and is left behind."""
    futures: dict[str, concurrent.futures.Future[Any]] = {}
    for name, question in questions.items():
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        threading.Thread(target=_answer, args=(future, question), name=name, daemon=True).start()
        futures[name] = future
    concurrent.futures.wait(futures.values(), seconds)
    found = {}
    for name, future in futures.items():
        if future.done():
            if error := future.exception():
                print(f"<4>{name}: {type(error).__name__}: {plain(str(error))}")
            else:
                found[name] = future.result()
    return found


def _answer(future: "concurrent.futures.Future[Any]", question: Question) -> None:
    try:
        future.set_result(question())
    except Exception as error:  # whatever it is, this one question has no answer, and the others have
        future.set_exception(error)


def _disk(path: str) -> Disk | str:
    try:
        found = os.statvfs(path)
    except FileNotFoundError:
        return "not there"
    return Disk(found.f_bavail * found.f_frsize, found.f_favail, found.f_files)


def _in_sync() -> bool | None:
    """Whether the kernel's clock is kept in sync: adjtimex(2), asked to change nothing."""
    buffer = ctypes.create_string_buffer(512)
    answer = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    return None if answer < 0 else answer != 5  # TIME_ERROR


def _docker(names: Sequence[str]) -> tuple[Answer, Answer]:
    unit = run(["systemctl", "show", "-p", "ActiveState", "--value", "docker.service"])
    if unit.status != 0 or unit.text.strip() not in ("active", "reloading"):
        return unit, NOT_ASKED
    return unit, run(["docker", "inspect", "--type", "container", *names], errors=True)


def _record(path: str) -> dict[str, Any] | None:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


COMFYUI_ACTIVITY = """
import json, urllib.request
from pathlib import Path
token = Path("/run/secrets/atelier/PASSWORD").read_text(encoding="utf-8").splitlines()[0]
wish = urllib.request.Request("http://127.0.0.1:8188/queue", headers={"Authorization": f"Bearer {token}"})
queue = json.load(urllib.request.urlopen(wish, timeout=4))
print("busy" if queue["queue_running"] or queue["queue_pending"] else "idle")
"""
FORGE_ACTIVITY = """
import base64, json, urllib.request
from pathlib import Path
pair = ":".join(json.loads(Path("/run/atelier/health").read_text(encoding="ascii")))
basic = {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
wish = urllib.request.Request("http://127.0.0.1:7860/sdapi/v1/progress?skip_current_image=true", headers=basic)
print("busy" if json.load(urllib.request.urlopen(wish, timeout=4))["state"]["job_count"] > 0 else "idle")
"""
ACTIVITY = {"comfyui": COMFYUI_ACTIVITY, "forge": FORGE_ACTIVITY}
"""Python that runs in an application's own container, where a credential is: none is read on the host."""


def questions(config: Mapping[str, Any]) -> dict[str, Question]:
    """Everything that is asked at once. Names: `what` or `what:which`."""
    asked: dict[str, Question] = {
        "docker": lambda: _docker(list(config["containers"].values())),
        "sockets": lambda: [Path(f"/proc/net/{name}").read_text(encoding="ascii") for name in ("tcp", "tcp6")],
        "loopback": lambda: [run(["iptables", "-w", "2", *rule]) for rule in config["rules"]],
        "weights": lambda: run(["systemctl", "show", "-p", "ActiveState", "--value", config["weights_unit"]]),
        "record": lambda: _record(config["record"]),
        "reboot": lambda: Path("/run/reboot-required").exists(),
    }
    for name, urls in config["urls"].items():
        for kind, url in urls.items():
            asked[f"{kind}:{name}"] = functools.partial(get, url)
    for path in config["disks"]:
        asked[f"disk:{path}"] = functools.partial(_disk, path)
    if config["gpu"]:
        asked["gpu"] = lambda: run(["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"])
    if config["time_services"]:
        asked["time"] = lambda: (
            run(["sh", "-c", 'systemctl is-active "$@" || :', "sh", *config["time_services"]]),
            _in_sync(),
            time.clock_gettime(time.CLOCK_BOOTTIME),
        )
    return asked


def judge(config: Mapping[str, Any], answers: Mapping[str, Any], before: Memory) -> dict[str, Seen]:
    """Every check, from the answers that came; where none did, it is unknown."""

    def seen(name: str, decide: Callable[[Any], Seen]) -> Seen:
        return decide(answers[name]) if name in answers else Seen("unknown", "no answer in time")

    record = answers.get("record")
    checks = {"docker": seen("docker", lambda answer: docker_seen(*answer))}
    there = containers(answers["docker"][1]) if "docker" in answers else None
    for service, name in config["containers"].items():
        if there is None:
            checks[f"{service}.container"] = Seen("unknown", "Docker cannot be asked")
        else:
            image = _image(record, service)
            checks[f"{service}.container"] = container_seen(there.get(name), image, before.containers.get(name))
    for service in config["urls"]:
        checks[f"{service}.health"] = seen(f"health:{service}", health_seen)
        checks[f"{service}.strangers"] = seen(f"strangers:{service}", strangers_seen)
    ports, addresses, uid = config["ports"], config["addresses"], config["uid"]
    checks["listening"] = seen("sockets", lambda tables: listening_seen(tables, ports, addresses, uid))
    checks["loopback"] = seen("loopback", loopback_seen)
    disks = {path: answers.get(f"disk:{path}") for path in config["disks"]}
    there_are = {path: disk for path, disk in disks.items() if disk != "not there"}
    checks["disk"] = disk_seen(there_are, config["least_free"])
    checks["weights"] = seen("weights", weights_seen)
    checks["record"] = seen("record", lambda record: record_seen(record, config["containers"]))
    if config["gpu"]:
        wanted = (record.get("gpus") or {}).values() if record else None
        checks["gpu"] = seen("gpu", lambda answer: gpu_seen(answer, wanted))
    if config["time_services"]:
        checks["time"] = seen("time", lambda answer: time_seen(*answer))
    checks["reboot"] = seen("reboot", lambda due: Seen("down", "a restart is pending") if due else Seen("up"))
    return checks


def _image(record: Mapping[str, Any] | None, service: str) -> str | None:
    try:
        return str(record["images"][service]["id"]) if record else None
    except (KeyError, TypeError):
        return None


def activities(config: Mapping[str, Any], there: Mapping[str, Mapping[str, Any]]) -> dict[str, Activity]:
    """Whether each application generates, asked where its container runs."""
    asked: dict[str, Question] = {}
    for service, script in ACTIVITY.items():
        name = config["containers"].get(service)
        if name and (there.get(name) or {}).get("State", {}).get("Status") == "running":
            asked[service] = functools.partial(run, ["docker", "exec", name, "python", "-P", "-c", script])
    answers = together(asked, ROUND)
    return {
        service: activity_seen(answers.get(service, NOT_ASKED))
        for service in ACTIVITY
        if service in config["containers"]
    }


def write(path: Path, text: str) -> None:
    """A file, whole or not at all, that everybody may read."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_memory(path: Path) -> Memory:
    """What the last run left; nothing where there was none. A damaged file is set aside."""
    try:
        return parse_memory(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Memory()
    except ValueError as error:
        print(f"<4>{path} is damaged and was set aside: {plain(str(error))}")
        path.replace(path.with_name(f"{path.name}.damaged"))
        return Memory()


def notify(config: Mapping[str, Any], notice: Notice) -> str:
    """Run the command, by its own unit, which goes on if this program is killed; returns its outcome."""
    environment = Path(config["runtime"]) / f"{notice.id}.env"
    environment.write_text(environment_file(notice, socket.gethostname()), encoding="ascii")
    unit = config["notice_unit"].format(id=notice.id)
    answer = run(["systemctl", "start", unit], config["command_seconds"] + ENDING)
    environment.unlink()
    if answer.status == 0:
        return "succeeded"
    print(f"<4>the command failed: see journalctl -u {unit}: {plain(answer.text)}")
    return "failed"


def look(config: Mapping[str, Any], before: Memory) -> tuple[Look, Memory]:
    """One look at the host, and the memory after it."""
    now, begun = time.time(), time.monotonic()
    answers = together(questions(config), ROUND)
    checks = judge(config, answers, before)
    there = containers(answers["docker"][1]) if "docker" in answers else None
    activity = activities(config, there or {})
    counts = {name: {"id": it.get("Id"), "restarts": it.get("RestartCount", 0)} for name, it in (there or {}).items()}
    found = Look(now, time.monotonic() - begun, checks, activity, answers.get("record") or {})
    after = remembered(before, subjects(checks), config["confirmations"], now)
    return found, replace(after, containers=counts if there is not None else before.containers)


def main(path: str) -> int:
    """One run. 0: it looked and wrote what it saw, whatever that is."""
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    ends = time.monotonic() + config["seconds"]
    state = Path(config["state"])
    with (state.parent / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("<5>another run is at work")
            return 0
        found, memory = look(config, without_interrupted(read_memory(state)))
        status = 0
        try:
            memory = tell(config, found, memory, ends)
        except OSError as error:
            # What cannot be remembered is not told: it would be told again and again.
            print(f"<3>{state} cannot be written, so no command runs: {error.strerror}")
            status = 1
        try:
            write_metrics(config, metrics(found, memory))
        except OSError as error:
            print(f"<3>the metrics cannot be written: {error.strerror}")
            status = 1
    return status


def tell(config: Mapping[str, Any], found: Look, memory: Memory, ends: float) -> Memory:
    """Write down what was seen, and run the command for each notice for which time is left.

    That it begins is on the disk before it does, so a notice is told at most once; one that was not begun is told by the
    next run. Returns the memory after that. Raises OSError where the state cannot be written.
    """
    state = Path(config["state"])
    write(state, document(found, memory))
    for notice in memory.due:
        print(f"<5>{'; '.join(change.text() for change in notice.changes)}")
        others = memory.due[1:]
        if config["notice_unit"]:
            if time.monotonic() + config["command_seconds"] + ENDING > ends:
                break
            write(state, document(found, replace(memory, due=(replace(notice, begun=True), *others))))
            memory = counted(memory, notify(config, notice))
        memory = replace(memory, due=others)
        write(state, document(found, memory))
    return memory


def write_metrics(config: Mapping[str, Any], text: str) -> None:
    """The metrics where node_exporter reads them, or beside the state where there is no such directory."""
    fallback = Path(config["state"]).with_name(config["metrics"])
    directory = Path(config["textfile_dir"])
    if directory.is_dir():
        write(directory / config["metrics"], text)
        fallback.unlink(missing_ok=True)
    else:
        write(fallback, text)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    status = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)  # a question that hangs is not waited for
