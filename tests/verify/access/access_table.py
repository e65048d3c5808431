"""Reads access.txt, the table of who gets what, and makes its requests."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

TABLE = Path(__file__).with_name("access.txt")
Headers = list[tuple[str, str]]

UPGRADE = [
    *(("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]


@dataclass(frozen=True)
class Cell:
    """One request and what must come of it.

    outcome: as the table has it. own: the application's own status to this caller, where one is declared. effect: what
    the request does beyond reading: `writes` changes something for its owner, `socket` opens a WebSocket.
    """

    kind: str
    method: str
    target: str
    column: str
    outcome: str
    own: tuple[str, ...] = ()
    effect: str = "-"

    @property
    def admitted(self) -> bool:
        """Whether the request must reach the application."""
        return self.outcome == "in"

    @property
    def expected(self) -> str:
        """The guard's verdict before anybody was asked: `page`, `login`, `ask`, or the status of a refusal."""
        return "ask" if self.admitted or self.guesses else self.outcome

    @property
    def final(self) -> str:
        """As `outcome`, once the application has not confirmed what it was asked about."""
        return self.outcome.removeprefix("?")

    @property
    def guesses(self) -> bool:
        """Whether it shows a well-formed credential that is wrong, which a gateway counts."""
        return self.outcome.startswith("?")

    @property
    def wanted(self) -> str:
        """The outcome with the application's own status, as the table writes it."""
        return self.outcome + (":" + "/".join(self.own) if self.own else "")

    @property
    def row(self) -> str:
        """The request, without who makes it."""
        return f"{self.method} {self.target}" + (" (WebSocket)" if self.effect == "socket" else "")

    def __str__(self) -> str:
        return f"{self.kind} {self.row} [{self.column}]"


@dataclass(frozen=True)
class Shown:
    """What the callers of the columns show: right credentials, by kind, and a session of each application.

    More, by column and kind: headers to show instead of made-up ones, such as a session that really has ended.
    """

    authorization: dict[str, str]
    sessions: dict[str, str]
    token: str
    more: dict[tuple[str, str], Headers] = field(default_factory=dict)

    def request(self, cell: Cell) -> tuple[str, Headers]:
        """Target and headers of one cell's request."""
        separator = "&" if "?" in cell.target else "?"
        target = cell.target + (f"{separator}token={self.token}" if cell.column == "query" else "")
        headers = self.more.get((cell.column, cell.kind)) or self._columns[cell.kind][cell.column]
        return target, [*headers, *(UPGRADE if cell.effect == "socket" else [])]

    @cached_property
    def _columns(self) -> dict[str, dict[str, Headers]]:
        return {"comfyui": self._shown("comfyui", "forge"), "forge": self._shown("forge", "comfyui")}

    def _shown(self, kind: str, other: str) -> dict[str, Headers]:
        right, session = self.authorization[kind], self.sessions[kind]
        scheme = right.split()[0]
        wrong, old = {
            "comfyui": (f"Bearer {self.token[::-1]}", f"Bearer {self.token[:-4]}gone"),
            "forge": (basic("forge-owner:wrong"), basic("forge-owner:of-before")),
        }[kind]
        ended = session.partition("=")[0] + "=" + session.partition("=")[2][::-1]
        guest = {"comfyui": ("Cookie", "AIOHTTP_SESSION=gAAAA-guest"), "forge": ("Authorization", basic("guest:guest"))}
        return {
            "stranger": [],
            "browser": [("Accept", "text/html,*/*")],
            "empty": [("Authorization", ""), ("Cookie", session.partition("=")[0] + "=")],
            "bare": [("Authorization", scheme)],
            "malformed": [("Authorization", f"{right} x")],
            "wrong": [("Authorization", wrong)],
            "old": [("Authorization", old)],
            "other's": [("Authorization", self.authorization[other])],
            "ended": [("Cookie", ended)],
            "guest": [guest[kind]],
            "stray": [("Cookie", f"theme=dark; {self.sessions[other]}")],
            "twice": [("Authorization", right), ("Authorization", right)],
            "right": [("Authorization", right)],
            "session": [("Cookie", f"theme=dark; {session}; {self.sessions[other]}")],
            "query": [],
            "foreign": [("Authorization", right), ("Origin", "https://evil.example")],
        }


def basic(pair: str) -> str:
    """An Authorization header of HTTP Basic from `user:password`."""
    return "Basic " + base64.b64encode(pair.encode()).decode()


def cells(allow_query_token: bool = False) -> Iterator[Cell]:
    """Every cell of the table, row by row, as the setting of that name has it."""
    columns: list[str] = []
    outcomes: dict[tuple[str, str], list[str]] = {}
    part = ""
    for line in TABLE.read_text().splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "application":
            part, columns = words[1], columns or words[2:]
        elif part == "class":
            outcomes[words[0], words[1]] = words[2:]
        else:
            row = dict(zip(columns, outcomes[words[0], words[2]], strict=True))
            if allow_query_token and words[0] == "comfyui" and row["right"] in ("in", "login"):
                row["query"] = "in"
            yield from _row(words, row)


def _row(words: list[str], outcomes: dict[str, str]) -> Iterator[Cell]:
    kind, method, _, target, header, session, *effect = words
    for column, outcome in outcomes.items():
        outcome, _, own = outcome.partition(":")
        if outcome == "in":
            own = own or (session if column == "session" else header)
        answers = () if own in ("", "*", "-") else tuple(own.split("/"))
        yield Cell(kind, method, target, column, outcome, answers, *effect)
