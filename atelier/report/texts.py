"""report.md and junit.xml."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from atelier.history import PastReport, changes
from atelier.report.judgement import caveats, headline, not_run, roots
from atelier.report.model import ACCESS_PAGE, CheckResult, Report
from atelier.report.redaction import printable

ACTIVE = re.compile(r"(<|(?<=\])[(\[])")
"""Where Markdown begins a tag, and the address of a link or an image."""


def as_markdown(report: Report, past: Sequence[PastReport] = ()) -> str:
    """report.md: the verdict and what matters first, what changed, what is not green, then everything.

    past: comparable earlier runs, oldest first.
    """
    text = [f"# {_plain(report.host)}: {report.verdict}", "", _plain(headline(report)), ""]
    for sentence in caveats(report):
        text += [f"**{sentence}**", ""]
    text += [f"{report.started} to {report.finished}", "", *_changed(report, past)]
    failed = [check for check in report.checks if check.verdict == "failed"]
    causes = roots(failed)
    warned = [check for check in report.checks if check.verdict == "warning"]
    for check in [*causes, *(check for check in failed if check not in causes), *warned, *not_run(report)]:
        text += _task(check)
    text += ["## Checks", "", "| check | verdict | seconds | expected | observed |", "|---|---|---|---|---|"]
    for check in report.checks:
        cells = (_cell(check.expected), _cell(check.observed))
        text.append(f"| `{check.id}` | {check.verdict} | {check.seconds:.2f} | {' | '.join(cells)} |")
    if report.metrics:
        text += ["", "## Measures", ""]
        text += [f"- {_plain(metric.name)}: {metric.value:g} {_plain(metric.unit)}" for metric in report.metrics]
    versions = sorted(report.versions.items())
    text += ["", "## Versions", "", *(f"- {_plain(name)}: {_plain(version)}" for name, version in versions), ""]
    if report.matrices:
        text += ["## Access matrix: who can reach what", "", f"[{ACCESS_PAGE}]({ACCESS_PAGE})", ""]
    if report.images:
        text += ["## Images", ""]
        text += [f"![{image.check}, {image.width}x{image.height}]({image.file})" for image in report.images]
    return "\n".join(text) + "\n"


def _task(check: CheckResult) -> list[str]:
    word = "not run" if check.verdict == "skipped" else check.verdict
    lines = [f"## {word}: {_plain(check.title)}", "", f"- check: `{check.id}`"]
    lines += [f"- expected: {_plain(check.expected)}"] if check.expected else []
    lines += [f"- observed: {_plain(check.observed)}"]
    return [*lines, *([f"- what to do: {_plain(check.hint)}"] if check.hint else []), ""]


def _changed(report: Report, past: Sequence[PastReport]) -> list[str]:
    found = changes(report, past)
    if found is None:
        return []
    lines = [f"- {moved.now}, {moved.before} before: `{moved.id}`" for moved in found.moved]
    lines += [f"- new: `{check.id}`" for check in found.added]
    lines += [f"- gone: `{_plain(check.id)}`" for check in found.gone]
    lines += [
        f"- {_plain(name)}: {_plain(before)} before, now {_plain(report.versions[name])}"
        for name, before in found.versions.items()
    ]
    return [f"## Changes since {found.since.finished}", "", *(lines or ["None."]), ""]


def _plain(text: str) -> str:
    """Text as one line, in which nothing is a tag, a link or an image."""
    return ACTIVE.sub(r"\\\1", " ".join(printable(text).split()))


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def as_junit(report: Report) -> str:
    """junit.xml, from the report itself: pytest's own would hold tracebacks with whatever a test had in its hands."""
    suite = ElementTree.Element("testsuite", name=f"atelier verify {report.host}", tests=str(len(report.checks)))
    failed = any(check.verdict == "failed" for check in report.checks)
    # Readers of junit.xml look at cases alone, and take a skipped one for a good one.
    unsaid = report.verdict != "passed" and not failed
    for verdict, attribute in (("failed", "failures"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(check.verdict == verdict for check in report.checks)))
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("verdict", report.verdict), *(("caveat", text) for text in caveats(report))):
        ElementTree.SubElement(properties, "property", name=name, value=value)
    if unsaid:
        suite.set("tests", str(len(report.checks) + 1))
        suite.set("errors", "1")
        case = ElementTree.SubElement(suite, "testcase", classname="verify", name="verdict", time="0")
        ElementTree.SubElement(case, "error", message=printable(f"{report.verdict}: {headline(report)}"))
    for check in report.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=check.group, name=check.id, time=f"{check.seconds:.3f}"
        )
        if check.verdict in ("failed", "skipped"):
            kind = "failure" if check.verdict == "failed" else "skipped"
            detail = ElementTree.SubElement(case, kind, message=printable(check.observed))
            detail.text = printable(f"expected: {check.expected}\nobserved: {check.observed}\n{check.hint}")
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
