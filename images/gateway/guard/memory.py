"""What the guard remembers of credentials: bounded, and by an HMAC under a key of its own, so that none is kept."""

import asyncio
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine

REMEMBERED = 4096


class _Digests:
    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def of(self, words: tuple[str, ...]) -> bytes:
        return hmac.digest(self._key, "\0".join(words).encode(errors="surrogateescape"), "sha256")


class Seen:
    """Credentials that were seen before; the least recently met are forgotten first."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        self._digests = _Digests()
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, words: tuple[str, ...]) -> bool:
        digest = self._digests.of(words)
        if digest not in self._seen:
            return False
        self._seen.move_to_end(digest)
        return True

    def add(self, *words: str) -> None:
        """Remember it."""
        digest = self._digests.of(words)
        self._seen[digest] = None
        self._seen.move_to_end(digest)
        while len(self._seen) > self._size:
            self._seen.popitem(last=False)

    def discard(self, *words: str) -> None:
        """Forget it."""
        self._seen.pop(self._digests.of(words), None)

    def clear(self) -> None:
        """Forget everything."""
        self._seen.clear()


class Answers:
    """Answers that hold for some seconds; a question asked many times at once is put once."""

    def __init__(self, seconds: float, size: int = REMEMBERED, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._size, self._clock = seconds, size, clock
        self._digests = _Digests()
        self._answers: OrderedDict[bytes, tuple[float, bool]] = OrderedDict()
        self._finding: dict[bytes, asyncio.Task[bool]] = {}

    async def recall(self, question: tuple[str, ...], find: Callable[[], Coroutine[None, None, bool]]) -> bool:
        """The remembered answer, else what `find` says."""
        key = self._digests.of(question)
        expires, answer = self._answers.get(key, (0.0, False))
        if self._clock() < expires:
            return answer
        task = self._finding.get(key)
        if task is None:
            task = self._finding[key] = asyncio.create_task(self._find(key, find))
        return await asyncio.shield(task)

    def forget(self) -> None:
        """Forget everything."""
        self._answers.clear()

    async def _find(self, key: bytes, find: Callable[[], Coroutine[None, None, bool]]) -> bool:
        try:
            answer = await find()
        finally:
            del self._finding[key]
        self._answers[key] = (self._clock() + self._seconds, answer)
        self._answers.move_to_end(key)
        while len(self._answers) > self._size:
            self._answers.popitem(last=False)
        return answer
