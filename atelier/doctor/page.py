"""`python -m atelier.doctor.page` writes the table of docs/troubleshooting.md from the signatures."""

from atelier.doctor.signatures import TABLE, Signature
from atelier.paths import PROJECT
from atelier.settings import Settings

PAGE = PROJECT / "docs" / "troubleshooting.md"
HEADER = "| id | what | why | first thing to type |\n|---|---|---|---|\n"


def render() -> str:
    """The page: as it is written by hand, with the table that ends it made anew."""
    by_hand, header, _ = PAGE.read_text(encoding="utf-8").partition(HEADER)
    return by_hand + header + "".join(map(_row, TABLE))


def _row(signature: Signature) -> str:
    step = signature.steps[0]
    where = "on the host: " if step.where == "host" else ""
    command = step.typed("", Settings()).replace("   # ", "`, ", 1) + ("" if "   # " in step.command else "`")
    cells = (f"`{signature.id}`", signature.title, signature.why, f"{where}`{command}")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
