"""report.md and junit.xml."""

import xml.etree.ElementTree as ElementTree

from atelier.report.judgement import headline, stand_ins
from atelier.report.model import ACCESS_PAGE, Report
from atelier.report.printable import printable


def as_markdown(report: Report) -> str:
    """report.md: the verdict and what matters first, what is not green next, then everything."""
    text = [f"# {report.host}: {report.verdict}", "", headline(report), ""]
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
            detail = ElementTree.SubElement(case, kind, message=printable(check.observed))
            detail.text = printable(f"expected: {check.expected}\nobserved: {check.observed}\n{check.hint}")
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
