"""report.html: one page that needs nothing else, for people."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

from markupsafe import Markup
from PIL import Image

from atelier.checks import explained
from atelier.errors import AtelierError
from atelier.history import Changes, PastReport, changes, measured
from atelier.imagecheck import decode
from atelier.pace import is_slower
from atelier.report.judgement import caveats, counted, lead, not_run, roots, shorten
from atelier.report.model import ACCESS_PAGE, NOT_CHOSEN, REPORT_PAGE, CheckResult, Metric, Report, Step
from atelier.report.plot import plot
from atelier.report.templates import TEMPLATES

SHOWN = 512
"""Pixels of an image's longer side on the page; the whole one lies beside the report."""
MOST_NAMED = 8
"""How many checks are named in the command that runs the red ones again; with more, all run again."""

GROUPS = {
    "host": "Host",
    "gpu": "GPU",
    "containers": "Containers",
    "drift": "Drift: is the host as the settings say?",
    "access": "Access: who can reach what",
    "secrets": "Secrets",
    "weights": "Weights",
    "storage": "Storage",
    "generation": "Generation",
    "survival": "Survival of restarts",
}
WORDS = {"passed": "passed", "warning": "warning", "failed": "failed", "skipped": "not run"}


@dataclass(frozen=True)
class Task:
    """Something to do: a check that is not green. `follows`: the titles of failed checks that explain it."""

    check: CheckResult
    since: str
    follows: list[str]


@dataclass(frozen=True)
class Shown:
    """An image on the page. `data` is empty where it cannot be shown."""

    title: str
    caption: str
    file: str
    width: int
    height: int
    sha256: str
    data: str


@dataclass(frozen=True)
class Measure:
    """A metric beside those of earlier runs."""

    title: str
    name: str
    now: str
    earlier: str
    slow: bool
    drawing: Markup | None


def as_page(report: Report, past: Sequence[PastReport], images: Path | None) -> str:
    """report.html. past: comparable earlier runs, oldest first. images: the folder that holds the report's images."""
    differs = changes(report, past)
    failed = [check for check in report.checks if check.verdict == "failed"]
    return TEMPLATES.get_template(f"{REPORT_PAGE}.j2").render(
        report=report,
        lead=lead(report),
        shorten=shorten,
        counts=_counts(report.checks),
        unselected=sum(check.observed == NOT_CHOSEN for check in report.checks),
        took=took(report.started, report.finished),
        caveats=caveats(report),
        changes=differs,
        tasks=_tasks(report, failed, differs),
        missing=_missing(report),
        again=_again(report, failed),
        groups=[
            (GROUPS.get(group, group.capitalize()), group, checks, _counts(checks))
            for group, checks in _grouped(report.checks).items()
        ],
        images=[_shown(report, number, images) for number in range(len(report.images))] if images else [],
        measures=_measures(report, measured(past)),
        words=WORDS,
        compared=compared,
        moment=moment,
        access_page=ACCESS_PAGE if report.matrices else "",
    )


def compared(check: CheckResult) -> list[Step]:
    """What a check compared: each expectation once, with all that was observed of it."""
    found: dict[str, list[str]] = {}
    for step in check.steps or [Step(expected=check.expected, observed=check.observed)]:
        found.setdefault(step.expected, []).append(step.observed)
    return [Step(expected=expected, observed=_together(observed)) for expected, observed in found.items()]


def _together(observed: Sequence[str]) -> str:
    """Several observations as one text; equal ones once, with how often."""
    return "; ".join(text if count == 1 else f"{text} ({count} times)" for text, count in Counter(observed).items())


def moment(stamp: str) -> str:
    """21 November 2026, 20:44 UTC."""
    found = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")
    return f"{found.day} {found:%B %Y, %H:%M} UTC"


def took(started: str, finished: str) -> str:
    """`1 min 15 s`."""
    form = "%Y-%m-%dT%H:%M:%SZ"
    seconds = int((datetime.strptime(finished, form) - datetime.strptime(started, form)).total_seconds())
    return f"{seconds} s" if seconds < 60 else f"{seconds // 60} min {seconds % 60} s"


def _grouped(checks: Sequence[CheckResult]) -> dict[str, list[CheckResult]]:
    groups: dict[str, list[CheckResult]] = {}
    for check in checks:
        if check.observed != NOT_CHOSEN:
            groups.setdefault(check.group, []).append(check)
    return groups


def _counts(checks: Sequence[CheckResult]) -> dict[str, int]:
    """How many ended how, of those that were asked for; what is not there is not counted."""
    chosen = [check.verdict for check in checks if check.observed != NOT_CHOSEN]
    return {
        verdict: chosen.count(verdict) for verdict in ("failed", "warning", "skipped", "passed") if verdict in chosen
    }


def _tasks(report: Report, failed: Sequence[CheckResult], differs: Changes | None) -> list[Task]:
    """Causes first, then what follows from them, then warnings."""
    since = differs.red_since if differs else {}
    first = roots(failed)
    causes = [Task(check, since.get(check.id, ""), []) for check in first]
    consequences = [
        Task(check, since.get(check.id, ""), [cause.title for cause in failed if check.id in explained({cause.id})])
        for check in failed
        if check not in first
    ]
    warnings = [Task(check, "", []) for check in report.checks if check.verdict == "warning"]
    return [*causes, *consequences, *warnings]


def _missing(report: Report) -> dict[str, list[CheckResult]]:
    """The required checks that did not run, by the reason."""
    found: dict[str, list[CheckResult]] = {}
    for check in not_run(report):
        found.setdefault(check.observed, []).append(check)
    return found


def _again(report: Report, failed: Sequence[CheckResult]) -> str:
    named = [*failed, *not_run(report)]
    if not report.command or not 0 < len(named) <= MOST_NAMED:
        return report.command
    return f"{report.command} CHECK={','.join(check.id for check in named)}"


def _title(report: Report, id: str) -> str:
    return next((check.title for check in report.checks if check.id == id), id)


def _shown(report: Report, number: int, folder: Path) -> Shown:
    image = report.images[number]
    try:
        data = thumbnail((folder / image.file).read_bytes())
    except AtelierError:
        data = ""
    title = _title(report, image.check)
    return Shown(title, image.caption, image.file, image.width, image.height, image.sha256[:12], data)


def thumbnail(data: bytes) -> str:
    """The image as a data URI, no larger than is needed to look at it, and without what its file says besides.

    Raises AtelierError where the bytes are no image.
    """
    image = decode(data)
    exact = max(image.size) <= SHOWN // 2
    image.thumbnail((SHOWN, SHOWN))
    copy = Image.new("RGB", image.size)
    copy.paste(image)
    file = io.BytesIO()
    copy.save(file, "WEBP", lossless=exact, quality=75)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _measures(report: Report, earlier: Mapping[str, Sequence[float]]) -> list[Measure]:
    def title(metric: Metric) -> str:
        return ": ".join(part for part in (_title(report, metric.check), metric.caption) if part)

    return [_measure(metric, title(metric), earlier.get(metric.name, ())) for metric in report.metrics]


def _measure(metric: Metric, title: str, earlier: Sequence[float]) -> Measure:
    now = number(metric.value, metric.unit)
    if not earlier:
        return Measure(title, metric.name, now, "first measurement", False, None)
    middle = median(earlier)
    told = f"median of {counted(len(earlier), 'earlier run')}: {number(middle, metric.unit)}"
    slow = metric.unit == "s" and is_slower(metric.value, earlier)
    drawing = plot(earlier, metric.value, f"{title}, {metric.name}: {now} now, {told}")
    return Measure(title, metric.name, now, told, slow, drawing)


def number(value: float, unit: str) -> str:
    """Three digits that count, with the unit."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"
