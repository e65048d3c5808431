"""What to do next with a file, decided from what came of the last attempt. Pure: no clock, no disk, no network."""

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
)


@dataclass(frozen=True)
class Source:
    """One address of a file, and what it has shown in this run."""

    url: str
    failures: int = 0  # in a row, without a new byte
    ready_at: float = 0.0
    slow: bool = False
    ranges: bool = True


@dataclass(frozen=True)
class Dropped:
    """A source that is not asked again for this file in this run."""

    url: str
    why: str
    refused: bool = False


@dataclass(frozen=True)
class Transfer:
    """Where one file's transfer stands."""

    sources: tuple[Source, ...]
    dropped: tuple[Dropped, ...] = ()
    pauses: int = 0  # in a row, for want of space
    alone: str | None = None  # the one source that may send, after a mixture was wrong


@dataclass(frozen=True)
class WrongBytes:
    """All bytes are there, and they are wrong. contributors: who sent them, an earlier run among them."""

    found: str
    expected: str
    contributors: tuple[str, ...]


@dataclass(frozen=True)
class Patience:
    """How long to try."""

    failures: int = 10  # of one source, in a row
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_retry_after: float = 900.0
    space_wait: float = 10.0
    space_pauses: int = 360


@dataclass(frozen=True)
class Fetch:
    """Ask this source, from its first hop, after so many seconds; afresh: drop the part first."""

    url: str
    wait: float = 0.0
    afresh: bool = False


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


Action = Fetch | Check | PauseForSpace | GiveUp | End


def without_query(url: str) -> str:
    """An address as it may be shown: a query may be a signature."""
    return url.partition("?")[0]


def choose(transfer: Transfer, now: float, afresh: bool = False) -> Action:
    """The source to ask next: rested before resting, fast before slow, as listed; without ranges only as the last."""
    if not transfer.sources:
        reasons = "; ".join(f"{without_query(gone.url)}: {gone.why}" for gone in transfer.dropped)
        refused = next((gone.url for gone in transfer.dropped if gone.refused), None)
        return GiveUp(reasons or "no source is known", refused)
    candidates = [source for source in transfer.sources if source.ranges] or list(transfer.sources)
    candidates = [source for source in transfer.sources if source.url == transfer.alone] or candidates
    best = min(candidates, key=lambda source: (max(source.ready_at, now), source.slow))
    return Fetch(best.url, max(0.0, best.ready_at - now), afresh or not best.ranges)


def decide(
    transfer: Transfer, url: str, outcome: Outcome | WrongBytes, now: float, patience: Patience
) -> tuple[Transfer, Action]:
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
        return _after_wrong_bytes(transfer, outcome, now)
    if isinstance(outcome, Refused):
        transfer = _drop(transfer, Dropped(url, f"it answers {outcome.status}", refused=True))
    elif isinstance(outcome, Missing):
        transfer = _drop(transfer, Dropped(url, outcome.why))
    else:
        transfer = _after_trouble(transfer, url, outcome, now, patience)
    return _next(transfer, now)


def _next(transfer: Transfer, now: float, afresh: bool = False) -> tuple[Transfer, Action]:
    """The next source. Where only one may send, another one begins afresh."""
    if transfer.alone is None:
        return transfer, choose(transfer, now, afresh)
    stays = any(source.url == transfer.alone for source in transfer.sources)
    action = choose(transfer, now, afresh or not stays)
    return replace(transfer, alone=action.url if isinstance(action, Fetch) else None), action


def _after_wrong_bytes(transfer: Transfer, outcome: WrongBytes, now: float) -> tuple[Transfer, Action]:
    """Blame a source only for a file that it alone sent; else begin again, so that the next wrong file has one sender."""
    if len(outcome.contributors) == 1:
        why = f"sha256 {outcome.found}, expected {outcome.expected}"
        transfer = _drop(transfer, Dropped(outcome.contributors[0], why))
        return _next(transfer, now, afresh=True)
    return _next(replace(transfer, alone=""), now, afresh=True)


def _after_trouble(
    transfer: Transfer,
    url: str,
    outcome: Cut | TooSlow | Throttled | NoRanges,
    now: float,
    patience: Patience,
) -> Transfer:
    source = next(source for source in transfer.sources if source.url == url)
    if isinstance(outcome, NoRanges):
        return _put(transfer, replace(source, ranges=False))
    if isinstance(outcome, (Cut, TooSlow)) and outcome.progressed and source.ranges:
        slow = source.slow or isinstance(outcome, TooSlow)
        return _put(transfer, replace(source, failures=0, ready_at=now, slow=slow))
    failures = source.failures + 1
    if failures >= patience.failures:
        return _drop(transfer, Dropped(url, f"{_told(outcome)}, {failures} times in a row"))
    wait = min(patience.longest_wait, patience.first_wait * 2.0 ** (failures - 1))
    if isinstance(outcome, Throttled) and outcome.retry_after is not None:
        wait = max(wait, min(outcome.retry_after, patience.longest_retry_after))
    slow = source.slow or isinstance(outcome, TooSlow)
    return _put(transfer, replace(source, failures=failures, ready_at=now + wait, slow=slow))


def _told(outcome: Cut | TooSlow | Throttled) -> str:
    if isinstance(outcome, Cut):
        return outcome.why
    return "too slow" if isinstance(outcome, TooSlow) else f"it answers {outcome.status}"


def _put(transfer: Transfer, changed: Source) -> Transfer:
    return replace(
        transfer, sources=tuple(changed if source.url == changed.url else source for source in transfer.sources)
    )


def _drop(transfer: Transfer, gone: Dropped) -> Transfer:
    rest = tuple(source for source in transfer.sources if source.url != gone.url)
    return replace(transfer, sources=rest, dropped=(*transfer.dropped, gone))
