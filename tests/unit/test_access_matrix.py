"""How an answer is compared with the table of who gets what, and how the report shows it."""

import json
import re
from dataclasses import replace

import pytest
from access_table import Cell, cells
from observe import NO_ANSWER, Answer, as_expected, as_report, by_gateway, sample

from atelier.report import AccessMatrix, Report
from atelier.report.access_page import as_access_page
from atelier.report.publication import publish

REFUSED, ADMITTED = Cell("forge", "GET", "/config", "stranger", "401"), Cell("forge", "GET", "/config", "session", "in")
OWN = replace(ADMITTED, own=("200", "404"))
GUESS, PAGE = replace(REFUSED, column="wrong", outcome="?401"), Cell("forge", "GET", "/", "stranger", "page")
LOGIN = Cell("forge", "POST", "/login", "stranger", "login")


@pytest.mark.parametrize(
    ("cell", "answer", "good"),
    [
        (REFUSED, Answer(401, by_gateway=True), True),
        (REFUSED, Answer(401, by_gateway=None), True),  # HEAD has no body
        (REFUSED, Answer(401), False),  # the application saw it
        (REFUSED, Answer(200), False),
        (REFUSED, Answer(403, by_gateway=True), False),
        (REFUSED, Answer(429, by_gateway=True), False),
        (REFUSED, NO_ANSWER, False),
        (GUESS, Answer(401, by_gateway=True), True),
        (GUESS, Answer(429, by_gateway=True), True),
        (GUESS, Answer(429), False),
        (GUESS, Answer(200), False),
        (ADMITTED, Answer(200), True),
        (ADMITTED, Answer(401), True),  # the application's own opinion of the path
        (ADMITTED, Answer(401, by_gateway=True), False),
        (ADMITTED, Answer(429, by_gateway=True), False),
        (ADMITTED, Answer(502), False),
        (ADMITTED, NO_ANSWER, False),
        (OWN, Answer(404), True),
        (OWN, Answer(500), False),
        (PAGE, Answer(200), True),
        (PAGE, Answer(404), True),
        (PAGE, Answer(401, by_gateway=True), False),
        (PAGE, Answer(302), False),
        (replace(PAGE, outcome="?page"), Answer(200), True),
        (LOGIN, Answer(422, by_gateway=True), True),
        (LOGIN, Answer(422), False),
        (LOGIN, Answer(200), False),
    ],
)
def test_an_answer_against_the_table(cell: Cell, answer: Answer, good: bool) -> None:
    assert as_expected(cell, answer) is good


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"error": "no valid credential", "by": "gateway"}', True),
        (b'{"error": "Authentication required."}', False),
        (b'["by", "gateway"]', False),
        (b"<title>gateway</title>", False),
        (b"\xff", False),
        (b"", False),
    ],
)
def test_who_refused(body: bytes, named: bool) -> None:
    assert by_gateway(body) is named


def test_a_sample_has_every_kind_and_is_spread() -> None:
    guesses = [cell for cell in cells() if cell.kind == "forge" and cell.guesses]
    chosen = sample(guesses, 2)
    assert len(chosen) == 8 and {cell.column for cell in chosen} == {"wrong", "old", "ended", "guest"}
    assert len({cell.target for cell in chosen}) > 1


def report(*matrices: AccessMatrix) -> Report:
    moment = "2026-11-22T08:00:00Z"
    fields = {"checks": [], "versions": {"sources": "double"}, "images": [], "matrices": list(matrices)}
    return Report(host="gpu1", started=moment, finished=moment, verdict="failed", doubles=True, **fields)


def test_the_report_shows_each_cell(tmp_path) -> None:
    unasked = replace(REFUSED, target="/<script>")
    seen = {REFUSED: Answer(200), OWN: Answer(200)}
    shown = as_report([REFUSED, OWN, unasked], seen, {REFUSED: Answer(200)})
    assert shown == {
        "columns": ["stranger", "session"],
        "rows": [
            {"request": "GET /config", "cells": "401 !200/application, in:200/404 200/application"},
            {"request": "GET /<script>", "cells": "401 -"},
        ],
    }
    matrix = AccessMatrix(check="access.forge.matrix", **shown)
    page = as_access_page(report(matrix))
    assert re.findall(r'<td class="([a-z-]+)" title="wanted ([^"]+)">([^<]+)</td>', page) == [
        ("wrong", "401", "200 app &ne; 401"),
        ("let-in", "in:200/404", "200"),
        ("unasked", "401", "&ndash;"),
    ]
    assert "<script>" not in page and "Doubles stand in" in page and "no credential" in page
    place = publish(report(matrix), tmp_path, [])
    assert (place / "access.html").read_text() == page
    assert "[access.html](access.html)" in (place / "report.md").read_text()
    assert json.loads((place / "report.json").read_text())["matrices"][0]["rows"][1]["cells"] == "401 -"


def test_without_a_table_there_is_no_page(tmp_path) -> None:
    place = publish(report(), tmp_path, [])
    assert not (place / "access.html").exists() and "access.html" not in (place / "report.md").read_text()


@pytest.mark.parametrize(
    ("cell", "style"),
    [
        ("401 401/gateway", "refused"),
        ("302 302/gateway", "refused"),
        ("401 401", "refused"),
        ("page 200", "let-in"),
        ("?401 429/gateway", "refused"),
        ("login 422/gateway", "refused"),
        ("in:401 401/application", "let-in"),
        ("?page 200/application", "let-in"),
        ("in !401/gateway", "wrong"),
        ("in !nothing", "wrong"),
        ("in -", "unasked"),
    ],
)
def test_the_colour_of_a_cell(cell: str, style: str) -> None:
    matrix = AccessMatrix(check="a.b", columns=["right"], rows=[{"request": "GET /", "cells": cell}])
    assert re.findall(r'<td class="([a-z-]+)"', as_access_page(report(matrix))) == [style]
