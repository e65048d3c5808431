"""Asks the gateway what the table asks, sent exactly as written there, and compares the answer."""

import http.client
import json
import ssl
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

from access_table import Cell, Headers, Shown

READ_BYTES = 64 * 1024
"""More of an answer than this is not waited for: a page of Forge has 4 MB, a heartbeat never ends."""
GATEWAYS = (502, 503, 504)
"""Only a gateway says these; to browsers it says them with a page, which does not name its author."""
CALLERS = 4
SECONDS = 30


@dataclass(frozen=True)
class Answer:
    """What came back. by_gateway: the gateway says that the answer is its own; unknown where there is no body."""

    status: int
    by_gateway: bool | None = False

    @property
    def told(self) -> str:
        """As the report shows it."""
        author = {True: "/gateway", False: "/application", None: ""}[self.by_gateway]
        return f"{self.status}{author}" if self.status else "nothing"


NO_ANSWER = Answer(0)


def as_expected(cell: Cell, answer: Answer) -> bool:
    """Whether this is what the table says; a guess may also be refused unseen, where there were too many."""
    if cell.guesses and answer == Answer(429, by_gateway=True):
        return True
    if cell.admitted:
        own = answer.status != 0 and answer.status not in GATEWAYS and not answer.by_gateway
        return own and (not cell.own or str(answer.status) in cell.own)
    if cell.final == "page":  # of another version of the application it may have no such part
        return answer.status in (200, 404) and not answer.by_gateway
    if cell.final == "login":  # no form was sent
        return answer == Answer(422, by_gateway=True)
    return str(answer.status) == cell.final and answer.by_gateway is not False


class Caller:
    """One kept connection to a service."""

    def __init__(self, url: str, trust: ssl.SSLContext | bool) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        if parts.scheme == "https":
            context = trust if isinstance(trust, ssl.SSLContext) else ssl.create_default_context()
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=SECONDS, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=SECONDS)

    def ask(self, method: str, target: str, headers: Headers) -> Answer:
        """The answer to one request without a body, its target as given; once more where a kept connection had ended."""
        for last in (False, True):
            kept = self._connection.sock is not None
            try:
                return self._ask(method, target, headers)
            except (http.client.HTTPException, OSError):
                self.close()
                if last or not kept:
                    break
        return NO_ANSWER

    def _ask(self, method: str, target: str, headers: Headers) -> Answer:
        connection = self._connection
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        if method in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", "0")
        connection.endheaders()
        response = connection.getresponse()
        if response.length is not None and response.length <= READ_BYTES:
            body = response.read()
        else:
            body = response.read1(READ_BYTES)
            self.close()
        if response.status in GATEWAYS:
            return Answer(response.status, by_gateway=True)
        return Answer(response.status, None if method == "HEAD" else by_gateway(body))

    def close(self) -> None:
        """End the connection; the next request makes another."""
        self._connection.close()


def by_gateway(body: bytes) -> bool:
    """Whether an answer names the gateway as its author."""
    try:
        answer = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("by") == "gateway"


def sample(guesses: Iterable[Cell], of_each: int) -> list[Cell]:
    """So many of the cells of each column, spread over all."""
    by_column: dict[str, list[Cell]] = {}
    for cell in guesses:
        by_column.setdefault(cell.column, []).append(cell)
    return [cell for found in by_column.values() for cell in found[:: -(-len(found) // of_each)]]


def observe(
    cells: Iterable[Cell], shown: Shown, url: str, trust: ssl.SSLContext | bool, callers: int = CALLERS
) -> list[tuple[Cell, Answer]]:
    """Each cell with its answer, several asked at a time, the cells of one row one after the other."""
    rows = [list(row) for _, row in groupby(cells, key=lambda cell: (cell.kind, cell.method, cell.target, cell.effect))]
    own = threading.local()
    opened: list[Caller] = []

    def ask(row: list[Cell]) -> list[tuple[Cell, Answer]]:
        if not hasattr(own, "caller"):
            own.caller = Caller(url, trust)
            opened.append(own.caller)
        return [(cell, own.caller.ask(cell.method, *shown.request(cell))) for cell in row]

    try:
        with ThreadPoolExecutor(callers) as pool:
            return [pair for row in pool.map(ask, rows) for pair in row]
    finally:
        for caller in opened:
            caller.close()


def as_report(every: Iterable[Cell], seen: Mapping[Cell, Answer], wrong: Mapping[Cell, Answer]) -> dict[str, Any]:
    """The table with what was seen, as `atelier.report.AccessMatrix` has it."""
    columns: list[str] = []
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in every:
        if cell.column not in columns:
            columns.append(cell.column)
        answer = wrong.get(cell) or seen.get(cell)
        rows.setdefault((cell.row, cell.effect), []).append(_told(cell, answer, cell in wrong))
    return {"columns": columns, "rows": [{"request": row, "cells": ", ".join(told)} for (row, _), told in rows.items()]}


def _told(cell: Cell, answer: Answer | None, wrong: bool) -> str:
    if answer is None:
        return f"{cell.wanted} -"
    return f"{cell.wanted} {'!' if wrong else ''}{answer.told}"
