"""Who is admitted: the guard's own check of passwords and tokens first, then the application's word."""

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import bcrypt

from guard.config import Application
from guard.conversation import Conversation
from guard.decide import Credential, read_basic
from guard.watch import PATIENCE, prove_closed

CONFIRMED_SECONDS = 5.0
PASSWORD_SECONDS = 600.0  # a right password stays right until the gateway restarts with another hash
REMEMBERED = 1024  # answers
QUESTIONS = 8  # conversations with one application at a time
GUESSES = 16  # password checks that may wait; one takes about 0.25 s


class OverloadedError(Exception):
    """Too many password checks are waiting."""


class Memory:
    """Answers remembered for some seconds, bounded, keyed by an HMAC so that no credential is kept."""

    def __init__(self, seconds: float, size: int = REMEMBERED, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._size, self._clock = seconds, size, clock
        self._key = secrets.token_bytes(32)
        self._answers: OrderedDict[bytes, tuple[float, bool]] = OrderedDict()
        self._finding: dict[bytes, asyncio.Task[bool]] = {}

    async def recall(self, question: tuple[str, ...], find: Callable[[], Coroutine[None, None, bool]]) -> bool:
        """The remembered answer, else what `find` says; asked many times at once, it is found once."""
        key = hmac.digest(self._key, "\0".join(question).encode(errors="surrogateescape"), "sha256")
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


class PasswordCheck:
    """Compares passwords with hashes, one at a time for the whole gateway, so that guesses cannot take the computer.

    The place where failures will be counted per address and account.
    """

    def __init__(self) -> None:
        self._memory = Memory(PASSWORD_SECONDS)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bcrypt")
        self._waiting = 0

    async def __call__(self, password: str, password_bcrypt: str) -> bool:
        """Whether the password is the one hashed. Raises OverloadedError when too many checks are waiting."""
        raw = password.encode(errors="surrogateescape")
        if not raw or len(raw) > 72 or b"\0" in raw:  # what bcrypt would cut off or refuse
            return False
        return await self._memory.recall((password, password_bcrypt), lambda: self._compare(raw, password_bcrypt))

    async def _compare(self, password: bytes, password_bcrypt: str) -> bool:
        if self._waiting >= GUESSES:
            raise OverloadedError
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, bcrypt.checkpw, password, password_bcrypt.encode())
        finally:
            self._waiting -= 1


class Admission:
    """Decides about the credentials that callers show to one application."""

    def __init__(self, application: Application, check_password: PasswordCheck) -> None:
        self._application = application
        self._check_password = check_password
        self._memory = Memory(CONFIRMED_SECONDS)
        self._questions = asyncio.Semaphore(QUESTIONS)

    async def admits(self, credential: Credential) -> bool:
        """Whether the credential is right and the application confirms it.

        Raises ConversationError or AnswersStrangersError when the application cannot be trusted with the answer,
        OverloadedError when too many passwords are being checked.
        """
        if not await self._is_right(credential):
            return False
        return await self._memory.recall((credential.scheme, credential.value), lambda: self._ask(credential))

    async def login_is_right(self, user: str | None, password: str) -> bool:
        """Whether a login form's fields are the account's; without a user name the password decides alone."""
        account = self._application.account
        if user is not None and not hmac.compare_digest(user.strip().encode(), account.user.encode()):
            return False
        return await self._check_password(password, account.password_bcrypt)

    def forget(self) -> None:
        """Forget what the application confirmed; a new process has to confirm it again."""
        self._memory.forget()

    async def _is_right(self, credential: Credential) -> bool:
        # Only right secrets reach an application. A session only the application itself can read.
        account = self._application.account
        if credential.scheme in ("bearer", "query"):
            given = credential.value.encode(errors="surrogateescape")
            return hmac.compare_digest(given, account.password_bcrypt.encode())
        if credential.scheme == "basic":
            pair = read_basic(credential.value)
            return pair is not None and await self.login_is_right(*pair)
        return True

    async def _ask(self, credential: Credential) -> bool:
        application = self._application
        async with self._questions:
            talk = await Conversation.open(application.host, application.port, patience=PATIENCE)
            try:
                confirmed = await confirms(talk, application, credential)
                # The same question without the credential, to the same process: an open one confirms anything.
                await prove_closed(talk, [application.policy.confirm_paths[credential.scheme]])
                return confirmed
            finally:
                talk.close()


async def confirms(talk: Conversation, application: Application, credential: Credential) -> bool:
    """Whether the application answers the credential's owner, and not a guest."""
    policy = application.policy
    target = policy.confirm_paths[credential.scheme]
    headers: tuple[tuple[str, str], ...] = ()
    if credential.scheme == "query":
        target = f"{target}?token={quote(credential.value, safe='')}"
    elif credential.scheme == "cookie":
        headers = (("Cookie", credential.value),)
    else:
        headers = (("Authorization", f"{policy.scheme} {credential.value}"),)
    answer = await talk.ask(target, headers, patience=PATIENCE)
    if answer.status != 200 or credential.scheme != "cookie" or policy.denies_guest is None:
        return answer.status == 200
    guest = await talk.ask(policy.denies_guest, headers, patience=PATIENCE)
    if guest.status == 404:  # a login without a guest mode
        return True
    try:
        return guest.status == 200 and json.loads(guest.body)["guestMode"] is False
    except (ValueError, KeyError, TypeError):
        return False


def caller(credential: Credential, application: Application) -> str:
    """Who it is, for logs: a user's name or a fingerprint, never anything that admits."""
    if credential.scheme == "basic":
        return f"basic:{application.account.user}"
    return f"{credential.scheme}:{fingerprint(credential.value)}"


def fingerprint(value: str) -> str:
    """The first 16 hex digits of the SHA-256, as everywhere in this project. For confirmed, unguessable values only."""
    return hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:16]
