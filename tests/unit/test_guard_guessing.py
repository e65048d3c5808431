"""Guessing: when wrong credentials are delayed and refused, whom that concerns and whom it does not."""

import asyncio
import ipaddress
import itertools
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "images" / "gateway"))

from guard import guessing  # noqa: E402
from guard.attempts import Attempts, Limits, TooManyAttemptsError  # noqa: E402
from guard.client import Client  # noqa: E402
from guard.guessing import (  # noqa: E402
    Count,
    Counts,
    Delay,
    Locked,
    LockOut,
    after_failure,
    after_time,
    decide,
    for_address,
    strictest,
)

FEW = guessing.Limits(free=3, most=6)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (Count(), Delay(0)),
        (Count(failures=2), Delay(0)),
        (Count(failures=3), Delay(1)),
        (Count(failures=4), Delay(2)),
        (Count(failures=5), Delay(4)),
        (Count(failures=6), Locked(guessing.BUSY_SECONDS)),
        # What is being decided counts as if it were wrong.
        (Count(pending=2), Delay(0)),
        (Count(failures=1, pending=2), Delay(1)),
        (Count(pending=6), Locked(guessing.BUSY_SECONDS)),
        (Count(locked_until=130.0), Locked(30.0)),
        (Count(locked_until=100.0), Delay(0)),
    ],
)
def test_decide(count: Count, expected: Delay | Locked) -> None:
    assert decide(count, FEW, now=100.0) == expected


def test_delays_have_an_end() -> None:
    assert decide(Count(failures=50), guessing.Limits(3, 60), 0.0) == Delay(guessing.LONGEST_DELAY)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], Delay(0)),
        ([Delay(1), Delay(4)], Delay(4)),
        ([Delay(8), Locked(1)], Locked(1)),
        ([Locked(5), Locked(60)], Locked(60)),
    ],
)
def test_strictest(verdicts: list[Delay | Locked], expected: Delay | Locked) -> None:
    assert strictest(verdicts) == expected


@pytest.mark.parametrize(
    ("account", "address", "expected"),
    [
        (Delay(0), Count(), Delay(0)),
        (Delay(4), Count(), Delay(4)),
        (Delay(4), Count(failures=5), Delay(4)),
        # Others locked it.
        (Locked(300), Count(), Delay(guessing.LONGEST_DELAY)),
        (Locked(300), Count(failures=2), Delay(guessing.LONGEST_DELAY)),
        (Locked(300), Count(failures=1, pending=1), Delay(guessing.LONGEST_DELAY)),
        # This address had a part in it, or may be about to.
        (Locked(300), Count(failures=3), Locked(300)),
        (Locked(300), Count(failures=2, pending=1), Locked(300)),
        (Locked(300), Count(pending=3), Locked(300)),
    ],
)
def test_what_an_account_s_lock_is_to_an_address(
    account: Delay | Locked, address: Count, expected: Delay | Locked
) -> None:
    assert for_address(account, address) == expected


def test_locks_grow_and_leave_the_delays_behind() -> None:
    count, seconds = Count(), []
    for _ in range(40):
        count = after_failure(count, FEW, now=1000.0)
        if count.failures == FEW.free and count.locks > len(seconds):
            seconds.append(count.locked_until - 1000.0)
    assert seconds[:5] == [300.0, 600.0, 1200.0, 2400.0, 3600.0]
    assert set(seconds[5:]) == {3600.0}
    assert count.locks == 12  # the first after 6, each other after 3


@pytest.mark.parametrize(
    ("count", "now", "forgotten"),
    [
        (Count(failures=2, last_failure=100.0), 999.0, False),
        (Count(failures=2, last_failure=100.0), 1000.0, True),
        (Count(failures=3, last_failure=100.0, locks=1, locked_until=400.0), 1299.0, False),
        (Count(failures=3, last_failure=100.0, locks=1, locked_until=400.0), 1300.0, True),
    ],
)
def test_counts_are_forgotten(count: Count, now: float, forgotten: bool) -> None:
    assert (after_time(count, now) == Count()) is forgotten


def test_the_limits_leave_room_for_people_and_their_tools() -> None:
    assert guessing.ADDRESS.free >= 10
    assert guessing.ACCOUNT.free >= 2 * guessing.ADDRESS.free
    assert guessing.ACCOUNT.most > guessing.ADDRESS.most


def test_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "REMEMBERED", 3)
    counts = Counts(FEW)
    for address in "abcd":
        counts.begin(address, 0.0)
        counts.end(address, 0.0, wrong=True)
    counts.begin("right", 0.0)
    counts.end("right", 0.0, wrong=False)
    assert list(counts._counts) == ["c", "d"]


class Scene:
    """Attempts on a clock of the test's own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.paused: list[float] = []
        self.locked_out: list[tuple[LockOut, str]] = []
        self.checked = 0
        self.limits = Limits(lambda: self.now, self.pause)
        self.attempts = self.of("comfyui-qwen")
        self._guesses = itertools.count()

    def of(self, account: str) -> Attempts:
        return Attempts(
            account,
            self.limits,
            lambda lock, client: self.locked_out.append((lock, client.name if client else account)),
        )

    async def pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        await asyncio.sleep(0)

    async def attempt(self, client: Client, credential: str, *, right: bool, attempts: Attempts | None = None) -> bool:
        async def check() -> bool:
            self.checked += 1
            await asyncio.sleep(0)
            return right

        return await (attempts or self.attempts).are_right(("password", credential), client, check)

    async def guess(self, client: Client, times: int = 1, attempts: Attempts | None = None) -> None:
        for _ in range(times):
            assert not await self.attempt(client, f"guess {next(self._guesses)}", right=False, attempts=attempts)


def client(address: str) -> Client:
    parsed = ipaddress.ip_address(address)
    return Client(parsed, parsed.is_loopback, False)


ATTACKER, OWNER, SHARED = client("203.0.113.66"), client("198.51.100.1"), client("127.0.0.1")


def scene(act: Callable[[Scene], Awaitable[None]]) -> Scene:
    made = Scene()
    asyncio.run(act(made))
    return made


def test_an_address_is_delayed_then_locked_out_then_let_try_again() -> None:
    async def act(scene: Scene) -> None:
        await scene.guess(ATTACKER, 10)
        assert scene.paused == []
        await scene.guess(ATTACKER, 10)
        assert scene.paused == [1, 2, 4, 8, 8, 8, 8, 8, 8, 8]
        checked = scene.checked
        with pytest.raises(TooManyAttemptsError) as refused:
            await scene.guess(ATTACKER)
        assert (scene.checked, refused.value.seconds) == (checked, 300)
        with pytest.raises(TooManyAttemptsError):
            await scene.attempt(ATTACKER, "the right one", right=True)
        scene.now = 301.0
        assert await scene.attempt(ATTACKER, "the right one", right=True)
        await scene.attempt(OWNER, "another", right=True)

    assert scene(act).locked_out == [(LockOut(20, 300), "203.0.113.66")]


def test_an_address_is_locked_out_of_all_applications() -> None:
    async def act(scene: Scene) -> None:
        other = scene.of("forge-turbo")
        await scene.guess(ATTACKER, 10)
        await scene.guess(ATTACKER, 10, other)
        for attempts in (scene.attempts, other):
            with pytest.raises(TooManyAttemptsError):
                await scene.guess(ATTACKER, attempts=attempts)

    scene(act)


def test_neighbours_in_an_ipv6_network_are_one() -> None:
    async def act(scene: Scene) -> None:
        for host in range(1, 21):
            await scene.guess(client(f"2001:db8::{host:x}"))
        with pytest.raises(TooManyAttemptsError):
            await scene.guess(client("2001:db8::ffff:1"))
        await scene.guess(client("2001:db8:0:1::1"))

    assert scene(act).locked_out == [(LockOut(20, 300), "2001:db8::14")]


def test_the_same_wrong_credential_counts_once_and_is_checked_once() -> None:
    """A page left open with an ended session, and a script with an old password, must not shut their owner out."""

    async def act(scene: Scene) -> None:
        for _ in range(100):
            assert not await scene.attempt(OWNER, "old", right=False)
        await asyncio.gather(*(scene.attempt(OWNER, "older", right=False) for _ in range(100)))
        assert scene.checked == 2
        await scene.guess(OWNER, 8)
        assert scene.paused == []
        scene.attempts.forget_wrong()
        assert await scene.attempt(OWNER, "old", right=True)  # another process may know it

    scene(act)


def test_a_hundred_at_once_are_not_each_the_first() -> None:
    async def act(scene: Scene) -> None:
        async def guess(number: int) -> bool:
            try:
                return await scene.attempt(ATTACKER, f"guess {number}", right=False)
            except TooManyAttemptsError:
                return True

        answers = await asyncio.gather(*(guess(number) for number in range(100)))
        assert answers.count(False) == scene.checked == 20
        assert len(scene.paused) == 10

    scene(act)


def test_an_account_s_lock_refuses_guessers_and_delays_others_and_who_was_in_not_at_all() -> None:
    async def act(scene: Scene) -> None:
        assert await scene.attempt(OWNER, "right", right=True)
        for number in range(60):
            await scene.guess(client(f"203.0.113.{number // 4}"))
        with pytest.raises(TooManyAttemptsError):
            await scene.attempt(client("203.0.113.0"), "right", right=True)
        with pytest.raises(TooManyAttemptsError):
            await scene.attempt(SHARED, "right", right=True)
        scene.paused.clear()
        assert await scene.attempt(OWNER, "right", right=True)
        await scene.guess(OWNER)
        assert scene.paused == []
        # The owner somewhere else, after an ended session and a slip.
        away = client("192.0.2.1")
        await scene.guess(away, 2)
        assert await scene.attempt(away, "right", right=True)
        assert scene.paused == [8, 8, 8]
        assert await scene.attempt(away, "right", right=True)
        assert len(scene.paused) == 3
        # A guesser who comes from everywhere has few guesses from each address.
        elsewhere = client("192.0.2.2")
        await scene.guess(elsewhere, 3)
        with pytest.raises(TooManyAttemptsError):
            await scene.guess(elsewhere)
        assert await scene.attempt(client("192.0.2.3"), "right", right=True, attempts=scene.of("forge-turbo"))

    assert scene(act).locked_out == [(LockOut(60, 300), "comfyui-qwen")]


@pytest.mark.parametrize("where", ["192.0.2.1", "127.0.0.1"])
def test_what_names_no_account_is_no_concern_of_the_account(where: str) -> None:
    async def act(scene: Scene) -> None:
        async def check(*, right: bool) -> bool:
            await asyncio.sleep(0)
            return right

        async def show(session: str, *, right: bool, come_from: Client = SHARED) -> bool:
            return await scene.attempts.are_right(
                ("cookie", session), come_from, lambda: check(right=right), is_session=True
            )

        await scene.guess(SHARED, 60)
        scene.paused.clear()
        assert await show("valid", right=True, come_from=client(where))
        for number in range(100):
            assert not await show(f"guess {number}", right=False)
        assert await show("valid too", right=True, come_from=client(where))
        assert scene.paused == []
        # Ended sessions behind one address are nobody's guesses: only the flood of them ends, and no login is held up.
        for number in range(200):
            assert not await show(f"ended session {number}", right=False, come_from=ATTACKER)
        with pytest.raises(TooManyAttemptsError):
            await show("valid", right=True, come_from=ATTACKER)
        scene.paused.clear()
        assert await scene.attempt(ATTACKER, "right", right=True, attempts=scene.of("forge-turbo"))
        assert scene.paused == []

    assert scene(act).locked_out == [(LockOut(60, 300), "comfyui-qwen"), (LockOut(200, 300), "203.0.113.66")]


def test_where_all_share_an_address_the_account_alone_counts() -> None:
    async def act(scene: Scene) -> None:
        assert await scene.attempt(SHARED, "right", right=True)
        await scene.guess(SHARED, 20)
        assert scene.paused == []
        await scene.guess(SHARED, 40)
        with pytest.raises(TooManyAttemptsError):  # that somebody at this address was in says nothing of the others
            await scene.attempt(SHARED, "right", right=True)

    assert scene(act).locked_out == [(LockOut(60, 300), "comfyui-qwen")]


def test_what_was_not_decided_does_not_count() -> None:
    async def act(scene: Scene) -> None:
        async def broken() -> bool:
            raise ConnectionError

        for number in range(100):
            with pytest.raises(ConnectionError):
                await scene.attempts.are_right(("password", str(number)), ATTACKER, broken)
        await scene.guess(ATTACKER)
        assert scene.paused == []

    scene(act)
