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
    monkeypatch.setattr(console, "TICK", 0.01)
    monkeypatch.setattr(console, "HEARTBEAT", 0.05)
    log = io.StringIO()
    with Narrator(Console(file=log, width=80)) as narrator:
        narrator.begin("Host", "Install packages")
        narrator.output("a secret")
        for _ in range(500):
            if "so far" in log.getvalue():
                break
            time.sleep(0.01)
        narrator.end(changed=False)
    assert "    ... Install packages: 0 s so far\n" in log.getvalue() and "secret" not in log.getvalue()


def test_what_a_step_tells_of_its_progress_takes_the_place_of_the_time() -> None:
    log = io.StringIO()
    narrator = Narrator(Console(file=log, width=40))
    narrator.begin("Weights", "Bring 2 weights")
    begun = time.monotonic()
    for percent in range(12):
        narrator.output(f"{console.PROGRESS}{percent} of 12 GB, 0:01:00 left\n")
        narrator._tell("Bring 2 weights", begun + 0.27 * percent * console.PROGRESS_EVERY)
    narrator.output("a secret")
    narrator.end(changed=False)
    narrator.begin("Images", "Build")
    narrator._tell("Build", begun + console.HEARTBEAT - 1)
    assert log.getvalue().splitlines() == [
        "Weights",
        *(f"    ... {percent} of 12 GB, 0:01:00 left" for percent in (4, 8)),
        "Images",
    ], "the next step has a progress of its own"


def test_a_note_is_a_line_of_its_own_with_and_without_a_terminal() -> None:
    for terminal in (False, True):
        log = io.StringIO()
        narrator = Narrator(Console(file=log, width=20, force_terminal=terminal, color_system=None))
        narrator.begin("Weights", "Bring 2 weights")
        narrator.output(f"{console.NOTE}vae/a.safetensors: linked from [bold]/home/x/a.safetensors")
        narrator.output(f"{console.PROGRESS}1 of 2")
        assert log.getvalue().splitlines() == [
            "Weights",
            "    vae/a.safetensors: linked from [bold]/home/x/a.safetensors",
        ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_shows_how_far_a_step_is_in_one_line(width: int) -> None:
    narrator = Narrator(Console(file=io.StringIO(), width=width, force_terminal=True))
    narrator.begin("Weights", "Bring 4 of 4 files, 37.0 GB")
    narrator.output("what it printed " * 20)
    assert narrator._moving(narrator._step, "(12 s)").startswith("Bring 4 of 4 files, 37.0 GB (12 s) what it")
    narrator.output(
        f"{console.PROGRESS}1 of 4 files, 0.25 of 37.01 GB, 105.0 MB/s, 0:05:50 left; vae/a: checking its sha256"
    )
    moving = narrator._moving(narrator._step, "(12 s)")
    assert moving.startswith("1 of 4 files, 0.25 of 37.01 GB, 105.0 MB/s") and moving.endswith(" (12 s)")
    assert len(moving) + len("⠋ ") <= width
    assert width < 80 or "0:05:50 left" in moving
