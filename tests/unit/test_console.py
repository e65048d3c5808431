"""What a run says of a step that is at work."""

import io
import time

import pytest
from rich.console import Console

from atelier import console
from atelier.console import Narrator

WAITING = "waiting for the host's package manager: {} holds its lock"


def test_whom_a_step_waits_for_is_said_once_and_other_output_never() -> None:
    log = io.StringIO()
    narrator = Narrator(Console(file=log, width=80))
    narrator.begin("Host", "Install packages")
    for line in (WAITING.format("dpkg"), "", WAITING.format("dpkg"), WAITING.format("apt"), "a secret", "  "):
        narrator.output(line + "\n")
    narrator.end(changed=False)
    assert log.getvalue().splitlines() == ["Host", *(f"    ... {WAITING.format(who)}" for who in ("dpkg", "apt"))]


def test_a_long_step_says_that_it_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "HEARTBEAT", 0.1)
    log = io.StringIO()
    with Narrator(Console(file=log, width=80)) as narrator:
        narrator.begin("Host", "Install packages")
        narrator.output("a secret")
        time.sleep(0.5)
        narrator.end(changed=False)
    assert "    ... Install packages: 0 s so far\n" in log.getvalue() and "secret" not in log.getvalue()
