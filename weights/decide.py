"""What to do next with a file, decided from what came of the last attempt. Pure: no clock, no disk, no network."""

import urllib.parse
from dataclasses import dataclass, replace

from weights.aria2 import (
    Cut,
    DiskFull,
    Fetched,
    Missing,
    NoRanges,
    Outcome,
    Refused,
    Stopped,
    Throttled,
    TooSlow,
    Unreachable,
)

WAITS_FOR_SPACE = "waiting for space"
"""What is told of a file while it waits for it."""


@dataclass(frozen=True)
class Source:
    """One address of a file, and what it has shown in this run."""

    url: str
    failures: int = 0  # in a row, without a new byte
    ready_at: float = 0.0
    slow: bool = False
    ranges: bool = True
    joins: bool = False  # may send beside others, once pieces are known


@dataclass(frozen=True)
class WrongPiece:
    """A source sent a piece that is not as listed.

    as_before: all the wrong pieces came again just as they were, so what was hashed as a whole is its own file.
    """

    index: int
    found: str
    expected: str
    as_before: bool = False


@dataclass(frozen=True)
class Dropped:
    """A source that is not asked again for this file in this run."""

    url: str
    why: str
    refused: bool = False
    piece: WrongPiece | None = None  # for which it was dropped


@dataclass(frozen=True)
class WrongBytes:
    """All bytes are there, and they are wrong.

    contributors: who sent them, an earlier run among them. pieces: those that are not as listed; None without a list.
    """

    found: str
    expected: str
    contributors: tuple[str, ...]
    pieces: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Repaired:
    """Every piece is as listed now. liars: who else had sent to the part, and sends a wrong piece."""

    liars: tuple[tuple[str, WrongPiece], ...] = ()


@dataclass(frozen=True)
class Transfer:
    """Where one file's transfer stands."""

    sources: tuple[Source, ...]
    dropped: tuple[Dropped, ...] = ()
    pauses: int = 0  # in a row, for want of space
    alone: str | None = None  # the one source that may send, after a mixture was wrong
    pieces: str | None = None  # who told the sha256 of the pieces
    wrong: WrongBytes | None = None  # what is being repaired, piece by piece
    repairs: int = 0


@dataclass(frozen=True)
class Patience:
    """How long to try."""

    failures: int = 10  # of one source, in a row
    silence: float = 60.0  # of a server that has never answered in this run
    repairs: int = 3  # of one file: a disk may spoil what was right
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_retry_after: float = 900.0
    space_wait: float = 10.0
    space_pauses: int = 360


@dataclass(frozen=True)
class Fetch:
    """Ask this source, from its first hop, after so many seconds; afresh: drop the part first; beside: these too."""

    url: str
    wait: float = 0.0
    afresh: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Repair:
    """Ask this source for the wrong pieces; then these for one of them, to learn who sent it."""

    url: str
    wait: float = 0.0
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """Hash the part."""


@dataclass(frozen=True)
class PauseForSpace:
    """Wait for space, then go on."""

    wait: float


@dataclass(frozen=True)
class GiveUp:
    """No source is left that could deliver, or there was no space for too long."""

    why: str
    refused: str | None = None  # the source that wants a token


@dataclass(frozen=True)
class End:
    """We were asked to end."""


Happening = Outcome | WrongBytes | WrongPiece | Repaired
Action = Fetch | Repair | Check | PauseForSpace | GiveUp | End


def without_query(url: str) -> str:
    """An address as it may be shown: a query may be a signature."""
    return url.partition("?")[0]


def server_of(url: str) -> str:
    """A source as it is told beside a file's name: its server, without a login; a folder's file as it is."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file" or not parts.netloc:
        return without_query(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def told(action: GiveUp) -> str:
    """Why a file is given up, and what to do about it where a source wants a login."""
    if not action.refused:
        return action.why
    page, of_the_hub, _ = without_query(action.refused).partition("/resolve/")
    if not of_the_hub:
        return f"{action.why}. It asks for a login, and none is sent to mirrors"
    return (
        f"{action.why}. Accept the licence at {page} and give a token of that account "
        "(models.token_file; HF_TOKEN or --token-file for a fetch here)"
    )


def choose(transfer: Transfer, now: float, afresh: bool = False) -> Action:
    """The source to ask next: rested before resting, fast before slow, as listed; without ranges only as the last."""
    if not transfer.sources:
        return _give_up(transfer)
    ranged = [source for source in transfer.sources if source.ranges]
    candidates = [source for source in transfer.sources if source.url == transfer.alone] or ranged
    best = min(candidates or transfer.sources, key=lambda source: (max(source.ready_at, now), source.slow))
    wait = max(0.0, best.ready_at - now)
    if transfer.wrong and ranged:
        return Repair(best.url, wait, _suspects(transfer, transfer.wrong, best))
    beside = _beside(transfer, best, now) if transfer.pieces and transfer.alone is None else ()
    return Fetch(best.url, wait, afresh or not best.ranges, beside)


def _give_up(transfer: Transfer) -> GiveUp:
    reasons = "; ".join(f"{server_of(gone.url)}: {gone.why}" for gone in transfer.dropped) or "no source is known"
    if transfer.wrong:
        reasons = f"sha256 {transfer.wrong.found}, expected {transfer.wrong.expected}: {reasons}"
    return GiveUp(reasons, next((gone.url for gone in transfer.dropped if gone.refused), None))


def _beside(transfer: Transfer, best: Source, now: float) -> tuple[str, ...]:
    """Who sends at the same time: whoever could be asked now as well, and is not slow."""
    fit = [source for source in transfer.sources if source.joins and source.ranges and not source.slow]
    return tuple(source.url for source in fit if source != best and source.ready_at <= now) if best in fit else ()


def _suspects(transfer: Transfer, wrong: WrongBytes, asked: Source) -> tuple[str, ...]:
    if any(gone.piece for gone in transfer.dropped):
        return ()
    others = (source.url for source in transfer.sources if source.ranges and source != asked)
    return tuple(url for url in others if url in wrong.contributors)


def decide(transfer: Transfer, url: str, outcome: Happening, now: float, patience: Patience) -> tuple[Transfer, Action]:
    """Where the transfer stands after what came of asking url, and what to do next."""
    if isinstance(outcome, Stopped):
        return transfer, End()
    if isinstance(outcome, Fetched):
        return transfer, Check()
    if isinstance(outcome, DiskFull):
        if transfer.pauses >= patience.space_pauses:
            return transfer, GiveUp("no space on the disk")
        return replace(transfer, pauses=transfer.pauses + 1), PauseForSpace(patience.space_wait)
    transfer = replace(transfer, pauses=0)
    if isinstance(outcome, WrongBytes):
        return _after_wrong_bytes(transfer, outcome, now, patience)
    if isinstance(outcome, WrongPiece):
        return _after_wrong_piece(transfer, url, outcome, now)
    if isinstance(outcome, Repaired):
        for liar, piece in outcome.liars:
            transfer = _drop(transfer, _told_wrong_piece(liar, piece))
        return replace(transfer, wrong=None), Check()
    if isinstance(outcome, Refused):
        transfer = _drop(transfer, Dropped(url, f"it answers {outcome.status}", refused=True))
    elif isinstance(outcome, Missing):
        transfer = _drop(transfer, Dropped(url, outcome.why))
    else:
        transfer = _after_trouble(transfer, url, outcome, now, patience)
    return _next(transfer, now)


def _next(transfer: Transfer, now: float, afresh: bool = False) -> tuple[Transfer, Action]:
    """The next source. Where only one may send, another one begins afresh."""
    if transfer.wrong and not any(source.ranges for source in transfer.sources) and transfer.sources:
        transfer, afresh = replace(transfer, wrong=None), True
    if transfer.alone is None:
        return transfer, choose(transfer, now, afresh)
    stays = any(source.url == transfer.alone for source in transfer.sources)
    action = choose(transfer, now, afresh or not stays)
    return replace(transfer, alone=action.url if isinstance(action, Fetch) else None), action


def _after_wrong_bytes(
    transfer: Transfer, outcome: WrongBytes, now: float, patience: Patience
) -> tuple[Transfer, Action]:
    """Repair what the list shows. Where all is as listed, the list is wrong, and who sent all of the file alone."""
    if outcome.pieces and transfer.repairs < patience.repairs:
        return _next(replace(transfer, wrong=outcome, repairs=transfer.repairs + 1), now)
    transfer = replace(transfer, pieces=None)
    if len(outcome.contributors) == 1:
        why = f"sha256 {outcome.found}, expected {outcome.expected}"
        transfer = _drop(transfer, Dropped(outcome.contributors[0], why))
        return _next(transfer, now, afresh=True)
    # Begun again, so that the next wrong file has one sender.
    return _next(replace(transfer, alone=""), now, afresh=True)


def _after_wrong_piece(transfer: Transfer, url: str, wrong: WrongPiece, now: float) -> tuple[Transfer, Action]:
    """Drop who sent it, unless it is the list that is wrong: two sources agree against it, or the last one left is not proved wrong."""
    earlier = [gone.piece for gone in transfer.dropped if gone.piece]
    agreed = any((piece.index, piece.found) == (wrong.index, wrong.found) for piece in earlier)
    transfer = _drop(transfer, _told_wrong_piece(url, wrong))
    if not agreed and (transfer.sources or wrong.as_before):
        return _next(transfer, now)
    again = tuple(Source(gone.url) for gone in transfer.dropped if gone.piece)
    dropped = tuple(gone for gone in transfer.dropped if not gone.piece)
    transfer = replace(
        transfer, sources=(*again, *transfer.sources), dropped=dropped, pieces=None, wrong=None, alone=""
    )
    return _next(transfer, now, afresh=True)


def _told_wrong_piece(url: str, wrong: WrongPiece) -> Dropped:
    why = f"its piece {wrong.index + 1} of 16 MiB has sha256 {wrong.found}, expected {wrong.expected}"
    return Dropped(url, why, piece=wrong)


def _after_trouble(
    transfer: Transfer,
    url: str,
    outcome: Cut | Unreachable | TooSlow | Throttled | NoRanges,
    now: float,
    patience: Patience,
) -> Transfer:
    source = next(source for source in transfer.sources if source.url == url)
    if isinstance(outcome, NoRanges):
        return _put(transfer, replace(source, ranges=False))
    if isinstance(outcome, (Cut, TooSlow)) and outcome.progressed and source.ranges:
        slow = source.slow or isinstance(outcome, TooSlow)
        return _put(transfer, replace(source, failures=0, ready_at=now, slow=slow))
    if isinstance(outcome, Unreachable) and outcome.silent_for >= patience.silence:
        return _drop(transfer, Dropped(url, f"{outcome.why}, tried for {outcome.silent_for:.0f} s"))
    failures = source.failures + 1
    if failures >= patience.failures:
        return _drop(transfer, Dropped(url, f"{_told(outcome)}, {failures} times in a row"))
    wait = min(patience.longest_wait, patience.first_wait * 2.0 ** (failures - 1))
    if isinstance(outcome, Throttled) and outcome.retry_after is not None:
        wait = max(wait, min(outcome.retry_after, patience.longest_retry_after))
    slow = source.slow or isinstance(outcome, TooSlow)
    return _put(transfer, replace(source, failures=failures, ready_at=now + wait, slow=slow))


def _told(outcome: Cut | Unreachable | TooSlow | Throttled) -> str:
    if isinstance(outcome, (Cut, Unreachable)):
        return outcome.why
    return "too slow" if isinstance(outcome, TooSlow) else f"it answers {outcome.status}"


def _put(transfer: Transfer, changed: Source) -> Transfer:
    return replace(
        transfer, sources=tuple(changed if source.url == changed.url else source for source in transfer.sources)
    )


def _drop(transfer: Transfer, gone: Dropped) -> Transfer:
    rest = tuple(source for source in transfer.sources if source.url != gone.url)
    return replace(transfer, sources=rest, dropped=(*transfer.dropped, gone))
