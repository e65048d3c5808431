"""The table of what to do next."""

from dataclasses import replace

import pytest

from weights.aria2 import (
    Cut,
    DiskFull,
    Fetched,
    Missing,
    NoRanges,
    Refused,
    Stopped,
    Throttled,
    TooSlow,
    Unreachable,
)
from weights.decide import (
    Action,
    Check,
    Dropped,
    End,
    Fetch,
    GiveUp,
    Happening,
    Patience,
    PauseForSpace,
    Repair,
    Repaired,
    Source,
    Transfer,
    WrongBytes,
    WrongPiece,
    choose,
    decide,
    server_of,
    told,
)

A, B = "http://a/f", "http://b/f?key=secret"
BOTH, ONE = Transfer((Source(A), Source(B))), Transfer((Source(A),))
PATIENCE = Patience(failures=3)
LISTED = Transfer((Source(A, joins=True), Source(B, joins=True)), pieces="http://a/f.pieces.json")
LISTED_ONE = replace(LISTED, sources=LISTED.sources[:1])
WRONG = WrongBytes("1", "2", (A, B), (4,))
REPAIRING, REPAIRING_ONE = replace(LISTED, wrong=WRONG), replace(LISTED_ONE, wrong=WRONG)
PIECE = WrongPiece(4, "bad", "good", as_before=True)


@pytest.mark.parametrize(
    ("transfer", "outcome", "action"),
    [
        (BOTH, Fetched(), Check()),
        (BOTH, Stopped(), End()),
        (BOTH, Cut("x", progressed=True), Fetch(A)),
        (BOTH, Cut("x"), Fetch(B)),
        (ONE, Cut("x"), Fetch(A, wait=1.0)),
        (Transfer((Source(A, failures=1),)), Cut("x"), Fetch(A, wait=2.0)),
        (Transfer((Source(A, failures=2),)), Cut("x"), GiveUp("http://a: x, 3 times in a row")),
        (Transfer((Source(A, failures=2),)), Cut("x", progressed=True), Fetch(A)),
        (BOTH, Throttled(503, 7.0), Fetch(B)),
        (ONE, Throttled(503, 7.0), Fetch(A, wait=7.0)),
        (ONE, Throttled(429), Fetch(A, wait=1.0)),
        (ONE, Throttled(429, 1e9), Fetch(A, wait=PATIENCE.longest_retry_after)),
        (BOTH, TooSlow(progressed=True), Fetch(B)),
        (ONE, TooSlow(progressed=True), Fetch(A)),
        (BOTH, Missing("gone"), Fetch(B)),
        (ONE, Missing("gone"), GiveUp("http://a: gone")),
        (ONE, Refused(401), GiveUp("http://a: it answers 401", refused=A)),
        (BOTH, NoRanges(), Fetch(B)),
        (ONE, NoRanges(), Fetch(A, afresh=True)),
        (Transfer((Source(A, ranges=False),)), Cut("x", progressed=True), Fetch(A, wait=1.0, afresh=True)),
        (BOTH, WrongBytes("1", "2", (A,)), Fetch(B, afresh=True)),
        (BOTH, WrongBytes("1", "2", (A, B)), Fetch(A, afresh=True)),
        (ONE, WrongBytes("1", "2", (A,)), GiveUp("http://a: sha256 1, expected 2")),
        (ONE, WrongBytes("1", "2", ("an earlier run", A)), Fetch(A, afresh=True)),
        (ONE, Unreachable("no route", 59.0), Fetch(A, wait=1.0)),
        (ONE, Unreachable("no route", 60.0), GiveUp("http://a: no route, tried for 60 s")),
        (BOTH, Unreachable("no route", 60.0), Fetch(B)),
        (Transfer((Source(A, failures=2),)), Unreachable("x"), GiveUp("http://a: x, 3 times in a row")),
        (ONE, DiskFull(), PauseForSpace(10.0)),
        (LISTED, Cut("x", progressed=True), Fetch(A, beside=(B,))),
        (LISTED, Cut("x"), Fetch(B)),
        (LISTED, TooSlow(progressed=True), Fetch(B)),
        (LISTED, NoRanges(), Fetch(B)),
        (LISTED, WRONG, Repair(A, suspects=(B,))),
        (LISTED, replace(WRONG, contributors=(A,)), Repair(A)),
        (LISTED, replace(WRONG, pieces=()), Fetch(A, afresh=True)),
        (LISTED, replace(WRONG, pieces=(), contributors=(A,)), Fetch(B, afresh=True)),
        (replace(LISTED, repairs=3), WRONG, Fetch(A, afresh=True)),
        (REPAIRING, Repaired(), Check()),
        (REPAIRING, Repaired(((B, PIECE),)), Check()),
        (REPAIRING, Cut("x"), Repair(B, suspects=(A,))),
        (REPAIRING, Cut("x", progressed=True), Repair(A, suspects=(B,))),
        (REPAIRING, Throttled(503, 7.0), Repair(B, suspects=(A,))),
        (REPAIRING_ONE, Throttled(503, 7.0), Repair(A, wait=7.0)),
        (REPAIRING_ONE, NoRanges(), Fetch(A, afresh=True)),
        (REPAIRING_ONE, Missing("gone"), GiveUp("sha256 1, expected 2: http://a: gone")),
        (REPAIRING, PIECE, Repair(B)),
        (
            REPAIRING_ONE,
            PIECE,
            GiveUp("sha256 1, expected 2: http://a: its piece 5 of 16 MiB has sha256 bad, expected good"),
        ),
        (REPAIRING_ONE, replace(PIECE, as_before=False), Fetch(A, afresh=True)),
        (Transfer((Source(A),), pauses=360), DiskFull(), GiveUp("no space on the disk")),
    ],
)
def test_action(transfer: Transfer, outcome: Happening, action: Action) -> None:
    assert decide(transfer, A, outcome, 0.0, PATIENCE)[1] == action


def test_pauses_for_space_count_in_a_row_only() -> None:
    transfer, _ = decide(replace(ONE, pauses=359), A, Cut("x", progressed=True), 0.0, PATIENCE)
    assert transfer.pauses == 0


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
    assert action == GiveUp("http://b: gone")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://m:8765/x/vae/a?signature=s", "http://m:8765"),
        ("https://user:word@m/vae/a", "https://m"),
        ("file:///m/vae/a", "file:///m/vae/a"),
        ("nowhere", "nowhere"),
    ],
)
def test_a_source_is_told_by_its_server_alone(url: str, expected: str) -> None:
    assert server_of(url) == expected


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (GiveUp("http://a: gone"), "http://a: gone"),
        (
            GiveUp("https://hub: it answers 401", refused="https://hub/owner/model/resolve/main/f?x=y"),
            "https://hub: it answers 401. Accept the licence at https://hub/owner/model and give a token of that account "
            "(models.token_file; HF_TOKEN or --token-file for a fetch here)",
        ),
        (
            GiveUp("http://m: it answers 401", refused="http://m/vae/a"),
            "http://m: it answers 401. It asks for a login, and none is sent to mirrors",
        ),
    ],
)
def test_why_a_file_was_given_up(action: GiveUp, expected: str) -> None:
    assert told(action) == expected


def test_who_may_send_beside_others() -> None:
    sources = (
        Source(A, joins=True),
        Source(B, joins=True),
        Source("http://resting/f", joins=True, ready_at=9.0),
        Source("http://slow/f", joins=True, slow=True),
        Source("http://whole/f", joins=True, ranges=False),
        Source("http://hub/f"),
    )
    assert choose(Transfer(sources, pieces="x"), 0.0) == Fetch(A, beside=(B,))
    assert choose(Transfer(sources), 0.0) == Fetch(A)
    assert choose(Transfer(sources, pieces="x", alone=A), 0.0) == Fetch(A)
    assert choose(Transfer((*sources[-1:], *sources[:2]), pieces="x"), 0.0) == Fetch("http://hub/f")


def test_who_sends_a_wrong_piece_is_dropped_and_told() -> None:
    transfer, _ = decide(REPAIRING, A, PIECE, 0.0, PATIENCE)
    assert transfer.dropped == (Dropped(A, "its piece 5 of 16 MiB has sha256 bad, expected good", piece=PIECE),)
    transfer, _ = decide(REPAIRING, A, Repaired(((B, PIECE),)), 0.0, PATIENCE)
    assert [gone.url for gone in transfer.dropped] == [B]
    assert transfer.wrong is None


def test_two_sources_that_agree_are_believed_rather_than_the_list() -> None:
    transfer, action = decide(REPAIRING, A, PIECE, 0.0, PATIENCE)
    assert action == Repair(B)
    transfer, action = decide(transfer, B, replace(PIECE, as_before=False), 0.0, PATIENCE)
    assert action == Fetch(A, afresh=True)
    assert transfer == Transfer((Source(A), Source(B)), alone=A, repairs=transfer.repairs)


def test_two_sources_that_send_each_its_own_wrong_piece_are_both_dropped() -> None:
    transfer, _ = decide(REPAIRING, A, PIECE, 0.0, PATIENCE)
    worse = WrongPiece(4, "worse", "good", as_before=True)
    transfer, action = decide(transfer, B, worse, 0.0, PATIENCE)
    assert isinstance(action, GiveUp)
    assert [gone.url for gone in transfer.dropped] == [A, B]
