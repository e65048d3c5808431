"""The filter that docs/authentication.md gives to operators, on lines as the guard writes them and Docker keeps them."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "images" / "gateway"))

from guard.server import log  # noqa: E402

PAGE = (ROOT / "docs" / "authentication.md").read_text("utf-8")
ADDRESS = r"(?P<address>[0-9A-Fa-f:.]+)"
"""What fail2ban puts in the place of <ADDR>, near enough."""


def banned(line: str) -> str | None:
    """The address that the filter finds in a line of the gateway's output."""
    kept = json.dumps(
        {"log": f"{line}\n", "stream": "stderr", "time": "2026-11-22T07:59:52.123456789Z"}, separators=(",", ":")
    )
    expression = re.search(r"^failregex = (.+)$", PAGE, re.MULTILINE)
    assert expression
    found = re.search(expression[1].replace("<ADDR>", ADDRESS), kept)
    return found["address"] if found else None


@pytest.mark.parametrize("address", ["203.0.113.66", "2001:db8::1"])
def test_an_address_that_was_locked_out_is_banned(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    log("locked out", address=address, failures=20, seconds=300)
    assert banned(capsys.readouterr().err.strip()) == address


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("locked out", {"account": "forge-turbo", "failures": 60, "seconds": 300}),
        ("locked out", {"address": "shared", "failures": 20, "seconds": 300}),
        ("credential refused", {"application": "forge-turbo", "scheme": "basic", "address": "203.0.113.66"}),
    ],
)
def test_nothing_else_bans_anybody(
    event: str, fields: dict[str, str | int], capsys: pytest.CaptureFixture[str]
) -> None:
    log(event, **fields)
    assert banned(capsys.readouterr().err.strip()) is None


def test_no_path_in_the_access_log_bans_anybody() -> None:
    told = '{"ts": 1.0, "logger": "guard", "event": "locked out", "address": "203.0.113.66", '
    assert banned(told + '"failures": 20}') == "203.0.113.66"
    assert banned(json.dumps({"logger": "http.log.access", "uri": f"/{told}"})) is None
