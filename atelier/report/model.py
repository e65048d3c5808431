"""The form of a report. docs/report.md explains the fields; docs/report.schema.json is made from these classes."""

import json
from datetime import datetime, timezone
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Verdict = Literal["passed", "failed", "incomplete"]
CheckVerdict = Literal["passed", "warning", "failed", "skipped"]

ACCESS_PAGE = "access.html"
REPORT_PAGE = "report.html"
NOT_CHOSEN = "not part of this run (QUICK, FULL, DEEP, GROUP or CHECK)"
"""What is observed of a check that exists and that nobody asked for."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Step(_Model):
    """One of the things that a check compared."""

    expected: str
    observed: str


class CheckResult(_Model):
    """What one check saw. `required`: without it this run is incomplete. `steps`: one by one, where there were several."""

    id: str
    group: str
    title: str
    verdict: CheckVerdict
    seconds: FiniteFloat
    expected: str
    observed: str
    hint: str
    requirement: str = ""
    required: bool = False
    steps: list[Step] = []


class Metric(_Model):
    """A number that a check measured, to be compared with those of earlier runs on the same host.

    name: `comfyui.checkpoint.seconds`. unit: `s`, `MB`, `W`. caption: what it is, in a few words.
    """

    check: str
    name: str
    value: FiniteFloat
    unit: str
    caption: str = ""


class ReportImage(_Model):
    """An image that a check had made. `file` lies beside the report; `sha256` is that of size and pixels.

    caption: what it is, in a few words.
    """

    check: str
    file: str
    width: int
    height: int
    sha256: str
    caption: str = ""


class AccessRow(_Model):
    """One request, and per kind of caller `<wanted> <seen>`, separated by commas.

    Seen: a status and `/` who answered, `!` before it where that was not wanted, `-` where it was not asked.
    docs/report.md explains what is wanted.
    """

    request: str
    cells: str


class AccessMatrix(_Model):
    """The table of who gets what, as one check saw it. `columns` are the kinds of callers."""

    check: str
    columns: list[str]
    rows: list[AccessRow]


class Report(_Model):
    """One verification of one host. Times are UTC, as 2026-11-21T20:44:00Z.

    `command` verifies that host again. `broke_off`: why the run ended before its end, else empty. `deploying`: who had a
    deploy at work on the host meanwhile, else empty.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    host: str
    started: str
    finished: str
    verdict: Verdict
    doubles: bool
    checks: list[CheckResult]
    versions: dict[str, str]
    images: list[ReportImage]
    matrices: list[AccessMatrix] = []
    metrics: list[Metric] = []
    command: str = ""
    broke_off: str = ""
    deploying: str = ""


def timestamp(moment: datetime) -> str:
    """2026-11-21T20:44:00Z."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def as_json(report: Report) -> str:
    """report.json."""
    return json.dumps(report.model_dump(by_alias=True), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
