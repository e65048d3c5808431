"""From what a host told to what is wrong with it: pure, and careful to keep old trouble apart from present trouble."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from atelier.doctor.collect import DAY, Kind, Source
from atelier.doctor.conditions import conditions
from atelier.doctor.signatures import TABLE, Signature
from atelier.hostfacts import HostFacts
from atelier.settings import Settings

RETRIES = 300  # seconds before the last start that belong to it, where Docker has tried several times
ACCESS_LOG = '"logger":"http.log.access'
"""Marks lines of the gateway in which strangers' words stand: they must not be able to make up a failure."""
QUOTE = 300  # characters of an evidence line


@dataclass(frozen=True)
class Line:
    """One line of a source, without its time stamp."""

    text: str
    when: float | None = None


@dataclass(frozen=True)
class Evidence:
    """The last of the lines of one source that show one failure."""

    source: str
    line: str
    when: float | None
    count: int


@dataclass(frozen=True)
class Recognised:
    """A failure with its evidence, the newest line of each source."""

    signature: Signature
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Container:
    """One of our containers, as Docker sees it."""

    name: str
    status: str = "missing"
    exit_code: int = 0
    health: str = "none"
    restarts: int = 0
    started: float = 0
    error: str = ""

    @property
    def healthy(self) -> bool:
        """Runs, and its own check of its login passes."""
        return self.status == "running" and self.health == "healthy"

    def describe(self) -> str:
        """Its state in a few words."""
        words = [f"{self.name}: {self.status}"]
        words += [f"({self.health})"] if self.status == "running" else []
        words += [f"with exit status {self.exit_code}"] if self.status in ("exited", "dead", "restarting") else []
        words += [f"restarted {self.restarts} times"] if self.restarts else []
        words += [f"- {self.error}"] if self.error else []
        return " ".join(words)


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong now, what was, and what could not be looked at."""

    present: tuple[Recognised, ...]
    over: tuple[Recognised, ...]
    unhealthy: tuple[str, ...]
    unreadable: tuple[str, ...]

    @property
    def well(self) -> bool:
        """Nothing recognised, nothing unhealthy, nothing hidden from view."""
        return not (self.present or self.unhealthy or self.unreadable)

    @property
    def unknown(self) -> bool:
        """Something is unhealthy and nothing says why."""
        return bool(self.unhealthy) and not self.present


def diagnose(
    sources: Sequence[Source], settings: Settings, local_time: float, facts: HostFacts | None = None
) -> Diagnosis:
    """Recognise what the sources show. local_time: this computer's clock when the host was asked.

    facts: of a host with a GPU.
    """
    text = {source.name: source.text for source in sources}
    names = [*(service.container for service in settings.enabled().values()), settings.gateway_container]
    containers = read_containers(text.get("container-states", ""), names)
    clock = _clock(text.get("machine", ""))
    judged = Source("state of the host", "state", "now", "\n".join(conditions(text, clock.now, local_time, facts)))
    seen = [
        (signature, source, _matches(signature, source, clock)) for source in (*sources, judged) for signature in TABLE
    ]
    seen = [(signature, source, lines) for signature, source, lines in seen if lines and signature.reads(source)]
    explained = {source.name for _, source, _ in seen}
    gpu_works = not any(source.kind == "gpu" for _, source, _ in seen)
    settled = _settled(containers) if gpu_works else 0.0
    present: dict[str, list[Evidence]] = {}
    over: dict[str, list[Evidence]] = {}
    for signature, source, lines in seen:
        current = [line for line in lines if not _is_over(signature, source, line, settled, clock.now, containers)]
        if current:
            present.setdefault(signature.id, []).append(_evidence(source, current))
        else:
            over.setdefault(signature.id, []).append(_evidence(source, lines))
    return Diagnosis(
        present=_report(present),
        over=_report({id_: evidence for id_, evidence in over.items() if id_ not in present}),
        unhealthy=tuple(_unhealthy(containers, text, settings)),
        unreadable=tuple(f"{s.name}: {s.problem}" for s in sources if s.problem and s.name not in explained),
    )


def recognise(text: str, kind: Kind) -> tuple[str, ...]:
    """The ids that a text of one kind shows, vaguer ones left out: what the recorded samples are tested with."""
    lines = read_lines(text, 0)
    found = {s.id: s for s in TABLE if kind in s.kinds and _undisturbed(s, lines)}
    return tuple(id_ for id_ in found if not any(id_ in other.hides for other in found.values()))


@dataclass(frozen=True)
class _Clock:
    now: float
    boot: float
    offset: int


def _clock(machine: str) -> _Clock:
    now = re.search(r"^now (\d+) ([+-])(\d\d)(\d\d)$", machine, re.M)
    boot = re.search(r"^boot (\d+)$", machine, re.M)
    offset = (int(now[3]) * 3600 + int(now[4]) * 60) * (-1 if now[2] == "-" else 1) if now else 0
    return _Clock(float(now[1]) if now else 0.0, float(boot[1]) if boot else 0.0, offset)


TIMES = re.compile(
    r"(?P<unix>\d{10}\.\d+) "
    r"|(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:[.,]\d+)?(?P<zone>Z|[+-]\d\d:?\d\d) "
    r"|(?P<local>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ "
    r"|Start-Date: (?P<apt>\d{4}-\d\d-\d\d  \d\d:\d\d:\d\d)"
)


def read_lines(text: str, utc_offset: int) -> list[Line]:
    """Lines with their times; one without a time of its own has that of the line before. utc_offset: of local times."""
    lines: list[Line] = []
    when: float | None = None
    for raw in text.splitlines():
        stamp = TIMES.match(raw)
        if stamp:
            when = _time(stamp, utc_offset)
        lines.append(Line(raw[stamp.end() :] if stamp else raw, when))
    return lines


def _time(stamp: re.Match[str], utc_offset: int) -> float:
    if stamp["unix"]:
        return float(stamp["unix"])
    local = timezone(timedelta(seconds=utc_offset))
    if stamp["iso"]:
        return datetime.fromisoformat(stamp["iso"] + stamp["zone"].replace("Z", "+00:00")).timestamp()
    return datetime.fromisoformat(" ".join((stamp["local"] or stamp["apt"]).split())).replace(tzinfo=local).timestamp()


def _undisturbed(signature: Signature, lines: Sequence[Line]) -> list[Line]:
    """The lines that show a signature, but for those that a later line declares over."""
    open_lines: list[tuple[Line, re.Match[str]]] = []
    for line in lines:
        if ACCESS_LOG in line.text:
            continue
        found = signature.match(line.text)
        if found:
            open_lines.append((line, found))
        elif signature.over_by and open_lines:
            open_lines = [(old, match) for old, match in open_lines if not _ends(signature, match, line)]
    return [line for line, _ in open_lines]


def _ends(signature: Signature, found: re.Match[str], line: Line) -> bool:
    groups = {name: re.escape(value or "") for name, value in found.groupdict().items()}
    pattern = signature.over_by
    for name, value in groups.items():
        pattern = pattern.replace(f"{{{name}}}", value)
    return re.search(pattern, line.text) is not None


def _matches(signature: Signature, source: Source, clock: _Clock) -> list[Line]:
    lines = _undisturbed(signature, read_lines(source.text, clock.offset))
    return [line for line in lines if line.when is None or line.when >= clock.boot]


def _is_over(
    signature: Signature, source: Source, line: Line, settled: float, now: float, containers: Sequence[Container]
) -> bool:
    if line.when is None or signature.lasting:
        return False
    if source.kind == "service":
        healthy = any(c.healthy and source.name == f"log-{c.name}" for c in containers)
        return healthy and line.when < now - DAY
    return line.when < settled


def _settled(containers: Sequence[Container]) -> float:
    """From when on a host's trouble is present: older lines did not keep our containers from coming up.

    That is the start of the last one where all are well, else of the first of those that are not.
    """
    if all(container.healthy for container in containers):
        return max((container.started for container in containers), default=0.0)
    return min(c.started - (RETRIES if c.restarts else 0) for c in containers if not c.healthy)


def _evidence(source: Source, lines: Sequence[Line]) -> Evidence:
    last = lines[-1]
    return Evidence(source.name, last.text.strip()[:QUOTE], last.when, len(lines))


def _report(found: dict[str, list[Evidence]]) -> tuple[Recognised, ...]:
    hidden = {vague for signature in TABLE if signature.id in found for vague in signature.hides}
    return tuple(
        Recognised(signature, tuple(found[signature.id]))
        for signature in TABLE
        if signature.id in found and signature.id not in hidden
    )


STATE = re.compile(
    r"^/(?P<name>\S+) status=(?P<status>\S*) exit=(?P<exit>-?\d+) oom=\S+ health=(?P<health>\S*) "
    r"restarts=(?P<restarts>\d+) started=(?P<started>\S+) finished=\S+ error=\"(?P<error>.*)\"$",
    re.M,
)


def read_containers(text: str, names: Sequence[str]) -> tuple[Container, ...]:
    """Our containers; one that Docker does not know is missing."""
    known = {}
    for match in STATE.finditer(text):
        started = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", match["started"])
        instant = datetime.fromisoformat(started[1]).replace(tzinfo=timezone.utc) if started else None
        known[match["name"]] = Container(
            name=match["name"],
            status=match["status"],
            exit_code=int(match["exit"]),
            health=match["health"],
            restarts=int(match["restarts"]),
            started=instant.timestamp() if instant and instant.year > 1 else 0,
            error=match["error"],
        )
    return tuple(known.get(name, Container(name)) for name in names)


def _unhealthy(containers: Sequence[Container], text: dict[str, str], settings: Settings) -> list[str]:
    found = [container.describe() for container in containers if not container.healthy]
    if settings.profile != "cpu" and "nvidia-smi is not installed" in text.get("nvidia-smi", ""):
        found.append("nvidia-smi is not installed, and the profile asks for a GPU")
    ours = re.compile(r"^(docker|containerd|nvidia\S*|atelier\S*)\.(service|path)\b", re.M)
    return found + [f"{match[0]}: this unit has failed" for match in ours.finditer(text.get("failed-units", ""))]
