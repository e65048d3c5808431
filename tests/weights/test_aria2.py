"""What aria2c's end means."""

import pytest

from weights.aria2 import Cut, DiskFull, Fetched, Outcome, Stopped, TooSlow, judge_exit


@pytest.mark.parametrize(
    ("code", "slow", "stopped", "full", "expected"),
    [
        (0, False, False, False, Fetched()),
        (0, True, True, True, Fetched()),
        (7, True, True, False, Stopped()),
        (7, True, False, False, TooSlow(True)),
        (5, False, False, False, TooSlow(True)),
        (9, False, False, False, DiskFull()),
        (-25, False, False, False, DiskFull()),
        (1, False, False, True, DiskFull()),
        (1, False, False, False, Cut("aria2c ended with status 1", True)),
    ],
)
def test_how_aria2c_ended(code: int, slow: bool, stopped: bool, full: bool, expected: Outcome) -> None:
    assert judge_exit(code, True, slow, stopped, full) == expected
