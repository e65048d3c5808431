"""The last report in a few lines, for `make status`."""

import json
from datetime import datetime, timezone
from pathlib import Path

from atelier.report.judgement import caveats, counted, headline
from atelier.report.model import NOT_CHOSEN, Report

STEPS = ((86400, "day"), (3600, "hour"), (60, "minute"))


def last_report(directory: Path) -> Report | None:
    """What `latest` points to in a host's folder of reports; None where there is none that can be read."""
    try:
        document = json.loads((directory / "latest" / "report.json").read_text(encoding="utf-8"))
        return Report.model_validate(document, extra="ignore")  # a newer release may have written it
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def in_short(report: Report, now: datetime, changed: str) -> list[str]:
    """Verdict and age, the line that matters, what to know of both, and what was left out.

    changed: when the host was last changed, or empty.
    """
    stale = ", before the last change" if changed > report.finished else ""
    unchosen = sum(check.observed == NOT_CHOSEN for check in report.checks)
    left_out = [f"{counted(unchosen, 'further check')} not part of that run"] if unchosen else []
    return [f"{report.verdict}, {ago(report.finished, now)}{stale}", headline(report), *caveats(report), *left_out]


def ago(stamp: str, now: datetime) -> str:
    """`3 hours ago`."""
    then = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    seconds = (now - then).total_seconds()
    for length, name in STEPS:
        if seconds >= length:
            return f"{counted(int(seconds // length), name)} ago"
    return "just now"
