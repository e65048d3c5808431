"""Tries credentials that nobody has confirmed yet, under the limits of guessing.py."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine

from guard.client import Client
from guard.guessing import ACCOUNT, ADDRESS, SESSIONS, Counts, Locked, LockOut, Verdict, for_address, strictest
from guard.memory import Answers, Seen


class TooManyAttemptsError(Exception):
    """The attempt is refused without a look at the credential."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = math.ceil(seconds)


class Limits:
    """The counts of all addresses and accounts of the gateway."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.clock, self.pause = clock, pause
        self.addresses, self.sessions, self.accounts = Counts(ADDRESS), Counts(SESSIONS), Counts(ACCOUNT)


class Attempts:
    """The attempts to enter one application. `on_lock_out` hears of each lock-out, and whose address it is if it is one.

    An address's lock refuses that address, at all applications. The account's lock refuses what names the account from
    an address that is shared or made a part of the guesses itself; to other addresses it is a delay, to those that
    showed a right credential nothing.
    """

    def __init__(self, account: str, limits: Limits, on_lock_out: Callable[[LockOut, Client | None], None]) -> None:
        self._account, self._limits, self._on_lock_out = account, limits, on_lock_out
        self._wrong = Seen()
        self._entered = Seen()
        self._running = Answers(0)

    async def are_right(
        self,
        credential: tuple[str, ...],
        client: Client,
        check: Callable[[], Coroutine[None, None, bool]],
        *,
        is_session: bool = False,
    ) -> bool:
        """What `check` says of a credential; it is not asked about one that was wrong before.

        A session names no account and cannot be guessed: wrong ones are browsers whose session ended, of which many may
        share an address, so they are counted by themselves. Raises TooManyAttemptsError.
        """
        if credential in self._wrong:
            return False
        # Shown many times at once, as a page's requests do, it is one attempt.
        counts = self._counts(client, is_session)
        return await self._running.recall(
            (client.name, *credential), lambda: self._attempt(credential, client, counts, check)
        )

    def entered(self, client: Client) -> None:
        """Note an address that showed a right credential: what others do to the account no longer concerns it."""
        if client.counted_as:
            self._entered.add(client.counted_as)

    def forget_wrong(self) -> None:
        """Forget which credentials were wrong: another process may see some of them otherwise."""
        self._wrong.clear()

    async def _attempt(
        self,
        credential: tuple[str, ...],
        client: Client,
        counts: list[tuple[Counts, str]],
        check: Callable[[], Coroutine[None, None, bool]],
    ) -> bool:
        limits = self._limits
        verdict = strictest([self._decide(count, of, client) for count, of in counts])
        if isinstance(verdict, Locked):
            raise TooManyAttemptsError(verdict.seconds)
        for count, of in counts:
            count.begin(of, limits.clock())
        wrong = False
        try:
            if verdict.seconds:
                await limits.pause(verdict.seconds)
            wrong = not await check()
        finally:
            for count, of in counts:
                if lock_out := count.end(of, limits.clock(), wrong=wrong):
                    self._on_lock_out(lock_out, None if count is limits.accounts else client)
        if wrong:
            self._wrong.add(*credential)
        else:
            self.entered(client)
        return not wrong

    def _decide(self, count: Counts, of: str, client: Client) -> Verdict:
        limits, now = self._limits, self._limits.clock()
        verdict = count.decide(of, now)
        if count is not limits.accounts or client.counted_as is None:
            return verdict
        return for_address(verdict, limits.addresses.count(client.counted_as, now))

    def _counts(self, client: Client, is_session: bool) -> list[tuple[Counts, str]]:
        limits, address = self._limits, client.counted_as
        by_address = [] if address is None else [(limits.sessions if is_session else limits.addresses, address)]
        entered = address is not None and (address,) in self._entered
        return by_address if entered or is_session else [*by_address, (limits.accounts, self._account)]
