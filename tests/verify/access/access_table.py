"""Reads access.txt, the table of who gets what, and makes its requests."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("access.txt")
Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Cell:
    """One request and what must come of it."""

    kind: str
    method: str
    target: str
    column: str
    expected: str

    def __str__(self) -> str:
        return f"{self.kind} {self.method} {self.target} [{self.column}]"


@dataclass(frozen=True)
class Shown:
    """What the callers of the columns show: right credentials, by kind, and a session of each application."""

    authorization: dict[str, str]
    sessions: dict[str, str]
    token: str

    def request(self, cell: Cell) -> tuple[str, Headers]:
        """Target and headers of one cell's request."""
        kind, other = cell.kind, "forge" if cell.kind == "comfyui" else "comfyui"
        wrong_basic = "Basic " + base64.b64encode(b"forge-owner:wrong").decode()
        right, session = self.authorization[kind], self.sessions[kind]
        headers: dict[str, Headers] = {
            "stranger": [],
            "browser": [("Accept", "text/html,*/*")],
            "bare": [("Authorization", right.split()[0])],
            "wrong": [("Authorization", "Bearer " + self.token[::-1] if kind == "comfyui" else wrong_basic)],
            "other's": [("Authorization", self.authorization[other])],
            "stray": [("Cookie", f"theme=dark; {self.sessions[other]}")],
            "twice": [("Authorization", right), ("Authorization", right)],
            "right": [("Authorization", right)],
            "session": [("Cookie", f"theme=dark; {session}; {self.sessions[other]}")],
            "query": [],
            "foreign": [("Authorization", right), ("Origin", "https://evil.example")],
        }
        separator = "&" if "?" in cell.target else "?"
        return cell.target + (f"{separator}token={self.token}" if cell.column == "query" else ""), headers[cell.column]


def cells() -> Iterator[Cell]:
    """Every cell of the table."""
    columns: list[str] = []
    for line in TABLE.read_text().splitlines():
        words = line.split()
        if not words or words[0] == "#":
            continue
        if words[0] == "application":
            columns = words[3:]
            continue
        kind, method, target, *expected = words
        assert len(expected) == len(columns), line
        for column, value in zip(columns, expected, strict=True):
            yield Cell(kind, method, target, column, value)
