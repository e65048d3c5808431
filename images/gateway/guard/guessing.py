"""How many wrong credentials an address and an account may bring: a table of decisions, and a bounded memory of counts.

A wrong credential counts once, however often it is repeated: an open page with an ended session is nobody's guess. An
attempt counts from its beginning, so that a hundred at once are not each the first.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace

FORGOTTEN = 900.0  # seconds after the last wrong one
LOCK_SECONDS = 300.0  # of the first lock-out; each further one is twice as long
LONGEST_LOCK = 3600.0
LONGEST_DELAY = 8.0
BUSY_SECONDS = 2.0  # when to come back after attempts that are still being decided
REMEMBERED = 4096  # addresses
SLIPS = 3  # from which wrong credential on an address is taken for one of those that guess: people mistype


@dataclass(frozen=True)
class Limits:
    """From which wrong credential on attempts are delayed, and from which on they are refused."""

    free: int
    most: int


ADDRESS = Limits(free=10, most=20)
SESSIONS = Limits(free=100, most=200)  # of an address
ACCOUNT = Limits(free=20, most=60)  # from many addresses, or from one that everybody shares


@dataclass(frozen=True)
class Count:
    """What one address, or one account, has brought."""

    failures: int = 0
    pending: int = 0
    last_failure: float = 0.0
    locks: int = 0
    locked_until: float = 0.0


@dataclass(frozen=True)
class Delay:
    """Check the credential after some seconds; 0 is at once."""

    seconds: float


@dataclass(frozen=True)
class Locked:
    """Refuse without a look at it."""

    seconds: float


Verdict = Delay | Locked


def decide(count: Count, limits: Limits, now: float) -> Verdict:
    """What becomes of one more attempt."""
    if now < count.locked_until:
        return Locked(count.locked_until - now)
    tried = count.failures + count.pending
    if tried >= limits.most:
        return Locked(BUSY_SECONDS)
    if tried >= limits.free:
        return Delay(min(2.0 ** (tried - limits.free), LONGEST_DELAY))
    return Delay(0)


def strictest(verdicts: list[Verdict]) -> Verdict:
    """The one that keeps a caller waiting longest, where a lock counts as longer than any delay."""
    return max(verdicts, key=lambda verdict: (isinstance(verdict, Locked), verdict.seconds), default=Delay(0))


def for_address(account: Verdict, address: Count) -> Verdict:
    """What an account's verdict is to an address of that count: strangers' guesses delay its owner and no more."""
    if isinstance(account, Locked) and address.failures + address.pending < SLIPS:
        return Delay(LONGEST_DELAY)
    return account


def after_failure(count: Count, limits: Limits, now: float) -> Count:
    """The count with one wrong credential more; after a lock-out attempts go on delayed."""
    failures = count.failures + 1
    if failures < limits.most:
        return replace(count, failures=failures, last_failure=now)
    seconds = min(LOCK_SECONDS * 2.0**count.locks, LONGEST_LOCK)
    return replace(count, failures=limits.free, last_failure=now, locks=count.locks + 1, locked_until=now + seconds)


def after_time(count: Count, now: float) -> Count:
    """The count as it is now: forgotten when nothing wrong came for long, and no lock-out is in force."""
    if now < max(count.locked_until, count.last_failure) + FORGOTTEN:
        return count
    return Count(pending=count.pending)


@dataclass(frozen=True)
class LockOut:
    """An address or an account that has just been locked out."""

    failures: int
    seconds: int


class Counts:
    """The counts of addresses, or of accounts; the least recent are forgotten first."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._counts: OrderedDict[Hashable, Count] = OrderedDict()

    def decide(self, of: Hashable, now: float) -> Verdict:
        """What becomes of one more attempt."""
        return decide(self.count(of, now), self._limits, now)

    def count(self, of: Hashable, now: float) -> Count:
        """What it has brought."""
        return after_time(self._counts.get(of, Count()), now)

    def begin(self, of: Hashable, now: float) -> None:
        """Note an attempt whose end is open."""
        count = self.count(of, now)
        self._keep(of, replace(count, pending=count.pending + 1))

    def end(self, of: Hashable, now: float, *, wrong: bool) -> LockOut | None:
        """Note how it ended; the lock-out that it brought about, if it did."""
        before = self.count(of, now)
        before = replace(before, pending=max(before.pending - 1, 0))
        after = after_failure(before, self._limits, now) if wrong else before
        self._keep(of, after)
        if after.locks == before.locks:
            return None
        return LockOut(before.failures + 1, round(after.locked_until - now))

    def _keep(self, of: Hashable, count: Count) -> None:
        if count == Count():
            self._counts.pop(of, None)
            return
        self._counts[of] = count
        self._counts.move_to_end(of)
        while len(self._counts) > REMEMBERED:
            self._counts.popitem(last=False)
