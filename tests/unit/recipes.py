"""The recipes of the documents: what an operator types, and what is printed then, as the pages have it."""

import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("operations.md", "troubleshooting.md")
HOST = "user@gpu-host"
NUMBER, UNIT, FILES = r"\d[\d.]*", r"\b(?:bytes|MB|GB)\b", r"\bfiles?\b"


@dataclass(frozen=True)
class Recipe:
    """One of them. commands: line by line; printed: what they print of which the page tells, `...` for the rest."""

    page: str
    commands: tuple[str, ...]
    printed: tuple[str, ...]


def read() -> dict[str, Recipe]:
    """All of them by title."""
    found = {}
    for page in PAGES:
        text = (ROOT / "docs" / page).read_text("utf-8")
        for title, section in re.findall(r"^### Recipe: (.+)\n((?:(?!#{1,3} ).*\n?)*)", text, re.M):
            found[title] = Recipe(page, _lines(section, "sh"), _lines(section, "text"))
    return found


def _lines(section: str, language: str) -> tuple[str, ...]:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)
    return tuple(line.rstrip() for block in blocks for line in block.splitlines() if line.strip())


def replaced(text: str, places: Mapping[str, str]) -> str:
    """A text of a page with what one reader has in place of what it names as an example."""
    if not places:
        return text
    names = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
    return re.sub(names, lambda match: places[match[0]], text)


def words(command: str, checkout: Path) -> list[str]:
    """What `make` of a checkout calls our command line with."""
    arguments = shlex.split(command, comments=True)
    assert arguments[0] == "make", command
    done = subprocess.run(["make", "-n", "-C", checkout, *arguments[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    called = done.stdout.replace("\\\n", " ").partition("exec .venv/bin/atelier")[2]
    return shlex.split(called.partition("\n")[0])


def missing(printed: tuple[str, ...], output: str) -> list[str]:
    """The lines of a page that the commands did not print, numbers apart; in the order of the page."""
    left, lost = output, []
    for line in printed:
        if line.strip() == "...":
            continue
        found = re.search(_pattern(line), left)
        if found:
            left = left[found.end() :]
        else:
            lost.append(line)
    return lost


def _pattern(line: str) -> str:
    parts = re.split(rf"({NUMBER}|{UNIT}|{FILES}|\.\.\.|\s+)", line.strip())
    return "".join(map(_part, parts))


def _part(part: str) -> str:
    if part == "...":
        return ".*"
    for pattern, meant in ((NUMBER, r"[\d.]+"), (UNIT, UNIT), (FILES, FILES), (r"\s+", r"\s+")):
        if re.fullmatch(pattern, part):
            return meant
    return re.escape(part)
