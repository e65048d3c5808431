"""Past verifications of one host, as reports/<host>/<stamp>/report.json tells of them, and what a run learns from them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat

from atelier.report import CheckVerdict, Verdict

STAMP = re.compile(r"\d{8}T\d{6}Z")
"""The name of a run's folder."""
READ = 200
"""How many runs are read at most, the newest; a thousand would take seconds."""
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
    finished: str
    verdict: Verdict
    doubles: bool
    checks: list[PastCheck]
    versions: dict[str, str] = {}
    metrics: list[PastMetric] = []


def past_reports(directory: Path) -> list[PastReport]:
    """The runs kept in a host's folder, oldest first. Those that cannot be read are left out."""
    folders = sorted(
        folder for folder in directory.glob("*") if STAMP.fullmatch(folder.name) and not folder.is_symlink()
    )
    found = [_read(folder) for folder in folders[-READ:]]
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
