"""The report of a verification: its schema, its verdict, and its publication. docs/report.md documents the fields."""

import base64
import json
import os
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import jinja2
from pydantic import BaseModel, ConfigDict, Field

from atelier import paths

Verdict = Literal["passed", "failed", "incomplete"]
CheckVerdict = Literal["passed", "warning", "failed", "skipped"]

ACCESS_PAGE = "access.html"
ACCESS_TABLE = paths.PROJECT / "tests" / "verify" / "access" / "access.txt"
REMOVED = "[secret]"
SHORTEST_SECRET = 6
"""Shorter strings are not searched for: they would be found everywhere. Passwords have 8 characters at least."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class CheckResult(_Model):
    """What one check saw."""

    id: str
    group: str
    title: str
    verdict: CheckVerdict
    seconds: float
    expected: str
    observed: str
    hint: str
    requirement: str = ""


class Metric(_Model):
    """A number that a check measured, to be compared with those of earlier runs on the same host.

    name: `comfyui.checkpoint.seconds`. unit: `s`, `MB`, `W`.
    """

    check: str
    name: str
    value: float
    unit: str


class ReportImage(_Model):
    """An image that a check had made. `file` lies beside the report; `sha256` is that of size and pixels."""

    check: str
    file: str
    width: int
    height: int
    sha256: str


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
    """One verification of one host. Times are UTC, as 2026-11-21T20:44:00Z."""

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


def judge(checks: Sequence[CheckResult], required: Collection[str], *, crashed: bool = False) -> Verdict:
    """The verdict: any failure fails; a required check that did not pass or warn leaves it incomplete.

    A run that crashed, or in which no check ran, has failed.
    """
    ran = {check.id for check in checks if check.verdict in ("passed", "warning")}
    if crashed or any(check.verdict == "failed" for check in checks):
        return "failed"
    if set(required) - ran:
        return "incomplete"
    return "passed" if ran else "failed"


def headline(report: Report, required: Collection[str]) -> str:
    """The one line that matters: the first failure with its remedy, else what is missing, else how much passed."""
    count = {
        verdict: sum(check.verdict == verdict for check in report.checks) for verdict in ("passed", "failed", "warning")
    }
    if report.verdict == "failed":
        first = next((check for check in report.checks if check.verdict == "failed"), None)
        if first is None:
            return "no check ran"
        others = f" (and {count['failed'] - 1} more)" if count["failed"] > 1 else ""
        return f"{first.id}{others}: {first.observed} -> {first.hint}"
    if report.verdict == "incomplete":
        missing = [check for check in report.checks if check.verdict == "skipped" and check.id in required]
        return f"{len(missing)} required checks did not run" + (
            f", first {missing[0].id}: {missing[0].observed}" if missing else ""
        )
    warnings = f", {count['warning']} warnings" if count["warning"] else ""
    return f"{count['passed']} checks passed{warnings}"


def redact(value: Any, secrets: Iterable[str]) -> Any:
    """The same structure with every secret replaced, plain, percent-encoded, JSON-escaped or as base64 of itself."""
    forms: set[str] = set()
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            plain = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
            forms |= plain | {base64.b64encode(secret.encode()).decode()}
    return _redact(value, sorted(forms, key=len, reverse=True))


def _redact(value: Any, forms: list[str]) -> Any:
    if isinstance(value, str):
        for form in forms:
            value = value.replace(form, REMOVED)
        return value
    if isinstance(value, dict):
        return {_redact(key, forms): _redact(item, forms) for key, item in value.items()}
    return [_redact(item, forms) for item in value] if isinstance(value, list) else value


def stand_ins(deployed: Mapping[str, object]) -> list[str]:
    """A sentence for each thing that is not the real one, by what was deployed; empty where all is real."""
    found = {
        "Doubles stand in for ComfyUI and Forge: this proves the deployment, not the applications.": (
            deployed.get("sources") == "double"
        ),
        "The GPU is simulated: this proves how it is given to containers; nothing is computed on it.": (
            deployed.get("profile") == "gpu-simulated"
        ),
    }
    return [sentence for sentence, stands_in in found.items() if stands_in]


def as_json(report: Report) -> str:
    """report.json."""
    return json.dumps(report.model_dump(by_alias=True), indent=2, ensure_ascii=False) + "\n"


def as_markdown(report: Report, line: str) -> str:
    """report.md: the verdict and what matters first, what is not green next, then everything. line: the headline."""
    text = [f"# {report.host}: {report.verdict}", "", line, ""]
    for sentence in stand_ins(report.versions):
        text += [f"**{sentence}**", ""]
    text += [f"{report.started} to {report.finished}", ""]
    attention = [check for check in report.checks if check.verdict in ("failed", "warning")]
    for check in attention:
        text += [f"## {check.verdict}: {check.title}", "", f"- check: `{check.id}`", f"- expected: {check.expected}"]
        text += [f"- observed: {check.observed}", f"- what to do: {check.hint}", ""]
    text += ["## Checks", "", "| check | verdict | seconds | expected | observed |", "|---|---|---|---|---|"]
    for check in report.checks:
        cells = (f"`{check.id}`", check.verdict, f"{check.seconds:.2f}", check.expected, check.observed)
        text.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    text += ["", "## Versions", "", *(f"- {name}: {version}" for name, version in sorted(report.versions.items())), ""]
    if report.matrices:
        text += ["## Who gets what", "", f"[{ACCESS_PAGE}]({ACCESS_PAGE})", ""]
    if report.images:
        text += ["## Images", ""]
        text += [f"![{image.check}, {image.width}x{image.height}]({image.file})" for image in report.images]
    return "\n".join(text) + "\n"


def as_junit(report: Report) -> str:
    """junit.xml, from the report itself: pytest's own would hold tracebacks with whatever a test had in its hands."""
    suite = ElementTree.Element("testsuite", name=f"atelier verify {report.host}", tests=str(len(report.checks)))
    for verdict, attribute in (("failed", "failures"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(check.verdict == verdict for check in report.checks)))
    for check in report.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=check.group, name=check.id, time=f"{check.seconds:.3f}"
        )
        if check.verdict in ("failed", "skipped"):
            kind = "failure" if check.verdict == "failed" else "skipped"
            detail = ElementTree.SubElement(case, kind, message=_printable(check.observed))
            detail.text = _printable(f"expected: {check.expected}\nobserved: {check.observed}\n{check.hint}")
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def as_access_page(report: Report) -> str:
    """access.html: the tables of who gets what, for people."""
    loader = jinja2.FileSystemLoader(paths.PROJECT / "templates" / "report")
    templates = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    tables = [
        (matrix, [(row.request, [_cell(cell) for cell in row.cells.split(", ")]) for row in matrix.rows])
        for matrix in report.matrices
    ]
    lines = ACCESS_TABLE.read_text(encoding="utf-8").splitlines()
    legend = "\n".join(line[2:] for line in takewhile(lambda line: line.startswith("#"), lines))
    return templates.get_template(f"{ACCESS_PAGE}.j2").render(report=report, tables=tables, legend=legend)


def _cell(text: str) -> dict[str, str]:
    """One cell for the page: what was seen, what was wanted, and the class of style."""
    wanted, seen = text.split(" ")
    status, _, author = seen.lstrip("!").partition("/")
    if seen.startswith("!"):
        style, status = "wrong", f"{status} app" if author == "application" else status
    elif seen == "-":
        style = "unasked"
    else:  # of HEAD the author is unknown
        let_in = author == "application" or (not author and wanted.startswith(("in", "page", "?page")))
        style = "let-in" if let_in else "refused"
    return {"wanted": wanted.removeprefix("?"), "seen": status, "style": style}


def _printable(text: str) -> str:
    """XML 1.0 cannot hold most control characters, not even escaped."""
    return "".join(character if character.isprintable() or character in "\n\t" else "?" for character in text)


def timestamp(moment: datetime) -> str:
    """2026-11-21T20:44:00Z."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def publish(
    report: Report,
    directory: Path,
    secrets: Iterable[str],
    required: Collection[str],
    images: Path | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> Path:
    """Write the report into `directory`/<UTC stamp>, whole or not at all, and point `latest` to it.

    secrets: never to appear in any of it. images: the folder that holds the report's images.
    """
    clean = Report.model_validate(redact(report.model_dump(by_alias=True), list(secrets)))
    directory.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=directory, prefix=".draft-"))
    try:
        (draft / "report.json").write_text(as_json(clean), encoding="utf-8")
        (draft / "report.md").write_text(as_markdown(clean, headline(clean, required)), encoding="utf-8")
        (draft / "junit.xml").write_text(as_junit(clean), encoding="utf-8")
        if clean.matrices:
            (draft / ACCESS_PAGE).write_text(as_access_page(clean), encoding="utf-8")
        for image in clean.images if images else []:
            shutil.copyfile(images / image.file, draft / image.file)  # type: ignore[operator]
        draft.chmod(0o755)
        return _place(draft, directory, now())
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _place(draft: Path, directory: Path, moment: datetime) -> Path:
    while True:
        final = directory / moment.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        try:
            draft.rename(final)
        except OSError:
            if not final.exists():
                raise
            moment += timedelta(seconds=1)  # two runs within one second
            continue
        link = directory / f".latest-{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        link.replace(directory / "latest")
        return final
