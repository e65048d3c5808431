"""Past verifications of one host, as reports/<host>/<stamp>/report.json tells of them, and what a run learns from them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from atelier.report.model import CheckVerdict, Report, Verdict

STAMP = re.compile(r"\d{8}T\d{6}Z")
"""The name of a run's folder."""
READ = 200
"""How many runs are read at most, the newest, and as many measured ones before them; a thousand would take seconds."""
QUICK_IMAGES = 1
"""How many images a quick run makes, which measures nothing."""
SAMPLES = 20
"""How many values of one measure are kept, the newest."""


class _Lenient(BaseModel):
    """Reports of older and of newer releases are read alike: what they lack has a default, what they add is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PastCheck(_Lenient):
    """What a check saw then."""

    id: str
    title: str = ""
    verdict: CheckVerdict


class PastMetric(_Lenient):
    """A number measured then."""

    check: str
    name: str
    value: FiniteFloat
    unit: str = ""


class PastReport(_Lenient):
    """What a run is compared with, of an earlier one. `name` is that of its folder."""

    name: str
    finished: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    verdict: Verdict
    doubles: bool
    checks: list[PastCheck]
    versions: dict[str, str] = {}
    metrics: list[PastMetric] = []


def past_reports(directory: Path) -> list[PastReport]:
    """The runs kept in a host's folder, oldest first: the newest, and the newest measured ones before them.

    A host that is verified each hour has so many quick runs that none of the newest measured anything. Those that cannot
    be read are left out.
    """
    folders = sorted(
        folder for folder in directory.glob("*") if STAMP.fullmatch(folder.name) and not folder.is_symlink()
    )
    measured = [folder for folder in folders[:-READ] if len(list(folder.glob("*.png"))) > QUICK_IMAGES]
    found = [_read(folder) for folder in (*measured[-READ:], *folders[-READ:])]
    return [report for report in found if report]


def _read(folder: Path) -> PastReport | None:
    try:
        document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return PastReport.model_validate({**document, "name": folder.name})
    except (OSError, ValueError, TypeError, RecursionError):  # pydantic's own is a ValueError
        return None


def comparable(past: Iterable[PastReport], doubles: bool, versions: Mapping[str, object]) -> list[PastReport]:
    """Those of the same kind: with the same stand-ins, if any, and under the same profile."""
    kind = (doubles, *(versions.get(name) for name in ("sources", "profile")))
    return [
        report
        for report in past
        if (report.doubles, *(report.versions.get(name) for name in ("sources", "profile"))) == kind
    ]


def measured(past: Sequence[PastReport]) -> dict[str, list[float]]:
    """By name, the values that were measured while their check passed, oldest first, the newest SAMPLES of them."""
    values: dict[str, list[float]] = {}
    for report in past:
        passed = {check.id for check in report.checks if check.verdict == "passed"}
        for metric in report.metrics:
            if metric.check in passed:
                values.setdefault(metric.name, []).append(metric.value)
    return {name: found[-SAMPLES:] for name, found in values.items()}


@dataclass(frozen=True)
class Moved:
    """A check that ended otherwise than when it last ran, which was `then`."""

    id: str
    title: str
    before: CheckVerdict
    now: CheckVerdict
    then: str


@dataclass(frozen=True)
class Changes:
    """What differs from earlier runs of the same kind.

    since: the last of them. moved: against the last time that check ran, which may have been earlier. red_since: by id
    of a failed check, when it failed first, where it has failed ever since. versions: name to the one seen before.
    """

    since: PastReport
    moved: list[Moved]
    added: list[PastCheck]
    gone: list[PastCheck]
    versions: dict[str, str]
    red_since: dict[str, str]

    def newly(self, verdict: CheckVerdict) -> list[Moved]:
        """The checks that turned to a verdict."""
        return [moved for moved in self.moved if moved.now == verdict]

    def none(self) -> bool:
        """Whether nothing differs."""
        return not (self.moved or self.added or self.gone or self.versions)


def changes(report: Report, past: Sequence[PastReport]) -> Changes | None:
    """What differs between a run and comparable earlier ones, oldest first; None where there are none."""
    if not past:
        return None
    before, here = {check.id for check in past[-1].checks}, {check.id for check in report.checks}
    seen: dict[str, list[tuple[str, CheckVerdict]]] = {}
    for run in past:
        for old in run.checks:
            if old.verdict != "skipped":
                seen.setdefault(old.id, []).append((run.finished, old.verdict))
    moved = []
    red_since = {}
    for check in report.checks:
        ran = seen.get(check.id, [])
        if check.verdict != "skipped" and ran and ran[-1][1] != check.verdict:
            then, verdict = ran[-1]
            moved.append(Moved(check.id, check.title, verdict, check.verdict, then))
        streak = list(takewhile(lambda one: one[1] == "failed", reversed(ran)))
        if check.verdict == "failed" and streak:
            red_since[check.id] = streak[-1][0]
    seen_versions = {name: version for run in past for name, version in run.versions.items()}
    return Changes(
        since=past[-1],
        moved=moved,
        added=[PastCheck.model_validate(check.model_dump()) for check in report.checks if check.id not in before],
        gone=[check for check in past[-1].checks if check.id not in here],
        versions={
            name: seen_versions[name]
            for name, version in report.versions.items()
            if seen_versions.get(name, version) != version
        },
        red_since=red_since,
    )
