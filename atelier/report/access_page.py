"""access.html: the tables of who gets what, for people."""

from itertools import takewhile

from atelier import paths
from atelier.report.judgement import caveats
from atelier.report.model import ACCESS_PAGE, Report
from atelier.report.templates import TEMPLATES

ACCESS_TABLE = paths.PROJECT / "tests" / "verify" / "access" / "access.txt"


def as_access_page(report: Report) -> str:
    """access.html: the tables of who gets what, for people."""
    tables = [
        (matrix, [(row.request, [_cell(cell) for cell in row.cells.split(", ")]) for row in matrix.rows])
        for matrix in report.matrices
    ]
    lines = ACCESS_TABLE.read_text(encoding="utf-8").splitlines()
    legend = "\n".join(line[2:] for line in takewhile(lambda line: line.startswith("#"), lines))
    return TEMPLATES.get_template(f"{ACCESS_PAGE}.j2").render(
        report=report, caveats=caveats(report), tables=tables, legend=legend
    )


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
