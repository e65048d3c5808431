"""The table of what to do next."""

import pytest

from weights.aria2 import Cut, DiskFull, Fetched, Missing, NoRanges, Outcome, Refused, Stopped, Throttled, TooSlow
from weights.decide import (
    Action,
    Check,
    Dropped,
    End,
    Fetch,
    GiveUp,
    Patience,
    PauseForSpace,
    Source,
    Transfer,
    WrongBytes,
    decide,
)

A, B = "http://a/f", "http://b/f?key=secret"
BOTH, ONE = Transfer((Source(A), Source(B))), Transfer((Source(A),))
PATIENCE = Patience(failures=3)


@pytest.mark.parametrize(
    ("transfer", "outcome", "action"),
    [
        (BOTH, Fetched(), Check()),
        (BOTH, Stopped(), End()),
        (BOTH, Cut("x", progressed=True), Fetch(A)),
        (BOTH, Cut("x"), Fetch(B)),
        (ONE, Cut("x"), Fetch(A, wait=1.0)),
        (Transfer((Source(A, failures=1),)), Cut("x"), Fetch(A, wait=2.0)),
        (Transfer((Source(A, failures=2),)), Cut("x"), GiveUp("http://a/f: x, 3 times in a row")),
        (Transfer((Source(A, failures=2),)), Cut("x", progressed=True), Fetch(A)),
        (BOTH, Throttled(503, 7.0), Fetch(B)),
        (ONE, Throttled(503, 7.0), Fetch(A, wait=7.0)),
        (ONE, Throttled(429), Fetch(A, wait=1.0)),
        (ONE, Throttled(429, 1e9), Fetch(A, wait=PATIENCE.longest_retry_after)),
        (BOTH, TooSlow(progressed=True), Fetch(B)),
        (ONE, TooSlow(progressed=True), Fetch(A)),
        (BOTH, Missing("gone"), Fetch(B)),
        (ONE, Missing("gone"), GiveUp("http://a/f: gone")),
        (ONE, Refused(401), GiveUp("http://a/f: it answers 401", refused=A)),
        (BOTH, NoRanges(), Fetch(B)),
        (ONE, NoRanges(), Fetch(A, afresh=True)),
        (Transfer((Source(A, ranges=False),)), Cut("x", progressed=True), Fetch(A, wait=1.0, afresh=True)),
        (BOTH, WrongBytes("1", "2", (A,)), Fetch(B, afresh=True)),
        (BOTH, WrongBytes("1", "2", (A, B)), Fetch(A, afresh=True)),
        (ONE, WrongBytes("1", "2", (A,)), GiveUp("http://a/f: sha256 1, expected 2")),
        (ONE, WrongBytes("1", "2", ("an earlier run", A)), Fetch(A, afresh=True)),
        (ONE, DiskFull(), PauseForSpace(10.0)),
        (Transfer((Source(A),), pauses=360), DiskFull(), GiveUp("no space on the disk")),
    ],
)
def test_action(transfer: Transfer, outcome: Outcome | WrongBytes, action: Action) -> None:
    assert decide(transfer, A, outcome, 0.0, PATIENCE)[1] == action


def test_a_resting_source_is_not_asked_before_its_retry_after() -> None:
    transfer, _ = decide(BOTH, A, Throttled(503, 30.0), 0.0, PATIENCE)
    _, action = decide(transfer, B, Cut("x"), 0.0, PATIENCE)
    assert action == Fetch(B, wait=1.0)


def test_after_a_wrong_mixture_only_one_source_sends() -> None:
    transfer, _ = decide(BOTH, A, WrongBytes("1", "2", (A, B)), 0.0, PATIENCE)
    transfer, action = decide(transfer, A, Cut("x"), 0.0, PATIENCE)
    assert action == Fetch(A, wait=1.0)
    transfer, action = decide(transfer, A, Missing("gone"), 0.0, PATIENCE)
    assert action == Fetch(B, afresh=True)
    assert transfer.dropped == (Dropped(A, "gone"),)


def test_reasons_show_no_signature() -> None:
    _, action = decide(Transfer((Source(B),)), B, Missing("gone"), 0.0, PATIENCE)
    assert action == GiveUp("http://b/f: gone")
