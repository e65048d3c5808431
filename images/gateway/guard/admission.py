"""Who is admitted: the guard's own check of passwords and tokens first, then the application's word."""

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from urllib.parse import quote

import bcrypt

from guard.attempts import Attempts
from guard.client import Client
from guard.config import Application
from guard.conversation import Conversation, ConversationError
from guard.decide import Credential, read_basic
from guard.memory import Answers, Seen
from guard.watch import PATIENCE, prove_closed

CONFIRMED_SECONDS = 5.0
QUESTIONS = 8  # conversations with one application at a time
DOUBTS = 2  # conversations about sessions that it never confirmed
WAITING = 16  # checks that may wait: of passwords (one takes about 0.25 s), of unknown sessions


class OverloadedError(Exception):
    """Too many checks are waiting."""


class Turns:
    """Lets so many work at a time and so many wait; the rest is turned away."""

    def __init__(self, at_work: int, waiting: int = WAITING) -> None:
        self._turns = asyncio.Semaphore(at_work)
        self._room = at_work + waiting

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        """A turn. Raises OverloadedError."""
        if not self._room:
            raise OverloadedError
        self._room -= 1
        try:
            async with self._turns:
                yield
        finally:
            self._room += 1


class PasswordCheck:
    """Compares passwords with hashes, one at a time for the whole gateway and after all other work of the computer."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bcrypt", initializer=_step_back)
        self._turns = Turns(1)

    async def __call__(self, password: str, password_bcrypt: str) -> bool:
        """Whether the password is the one hashed. Raises OverloadedError when too many checks are waiting."""
        raw = password.encode(errors="surrogateescape")
        if not raw or len(raw) > 72 or b"\0" in raw:  # what bcrypt would cut off or refuse
            return False
        async with self._turns():
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, bcrypt.checkpw, raw, password_bcrypt.encode())


def _step_back() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, 19)  # on Linux, of this thread


class Admission:
    """Decides about the credentials that callers show to one application.

    A right token, a session that the application confirmed once and a password that was right once from the same
    address are not attempts: no limit that others' wrong credentials run into holds for them. A session that it has
    not confirmed yet names no account: only its address's count and the few questions about such sessions limit it.
    """

    def __init__(self, application: Application, check_password: PasswordCheck, attempts: Attempts) -> None:
        self._application = application
        self._check_password = check_password
        self._attempts = attempts
        self._logins = Seen()
        self._sessions = Seen()
        self._confirmed = Answers(CONFIRMED_SECONDS)
        self._questions = asyncio.Semaphore(QUESTIONS)
        self._doubts = Turns(DOUBTS)

    async def admits(self, credential: Credential, client: Client) -> bool:
        """Whether the credential is right and the application confirms it.

        Raises ConversationError or AnswersStrangersError when the application cannot be trusted with the answer,
        TooManyAttemptsError or OverloadedError when nothing was checked.
        """
        if credential.scheme == "cookie":
            admitted = await self._session_is_right(credential, client)
        else:
            admitted = await self._secret_is_right(credential, client) and await self._confirms(credential)
        if admitted:
            self._attempts.entered(client)
        return admitted

    async def login_is_right(self, user: str | None, password: str, client: Client) -> bool:
        """Whether a login form's fields are the account's; without a user name the password decides alone.

        Raises TooManyAttemptsError or OverloadedError.
        """
        account = self._application.account
        named = account.user if user is None else user.strip()
        login = (client.counted_as or "", named, password)
        if login in self._logins:
            return True

        async def check() -> bool:
            is_owner = hmac.compare_digest(named.encode(errors="surrogateescape"), account.user.encode())
            # For whatever user: the time of the answer must not tell who there is.
            return await self._check_password(password, account.password_bcrypt) and is_owner

        right = await self._attempts.are_right(("password", named, password), client, check)
        if right:
            self._logins.add(*login)
        return right

    def expect(self, cookies: str) -> None:
        """Note the session that a right login brought."""
        for pair in cookies.split("; "):
            self._sessions.add(pair)

    def forget(self) -> None:
        """Forget what the application said; a new process has to say it again."""
        self._confirmed.forget()
        self._attempts.forget_wrong()

    async def _secret_is_right(self, credential: Credential, client: Client) -> bool:
        # Only right secrets reach an application. A session only the application itself can read.
        if credential.scheme == "basic":
            pair = read_basic(credential.value)
            return pair is not None and await self.login_is_right(*pair, client)
        given = credential.value.encode(errors="surrogateescape")
        if hmac.compare_digest(given, self._application.account.password_bcrypt.encode()):
            return True
        return await self._attempts.are_right(("token", credential.value), client, _never)

    async def _session_is_right(self, credential: Credential, client: Client) -> bool:
        pairs = credential.value.split("; ")
        if any((pair,) in self._sessions for pair in pairs):
            if await self._confirms(credential):
                return True
            for pair in pairs:
                self._sessions.discard(pair)
            return False
        if not await self._attempts.are_right(
            ("cookie", *pairs), client, lambda: self._doubt(credential), is_session=True
        ):
            return False
        self.expect(credential.value)
        return True

    async def _confirms(self, credential: Credential) -> bool:
        return await self._confirmed.recall((credential.scheme, credential.value), lambda: self._ask(credential))

    async def _doubt(self, credential: Credential) -> bool:
        async with self._doubts():
            return await self._converse(credential)

    async def _ask(self, credential: Credential) -> bool:
        async with self._questions:
            return await self._converse(credential)

    async def _converse(self, credential: Credential) -> bool:
        application = self._application
        talk = await Conversation.open(application.host, application.port, patience=PATIENCE)
        try:
            confirmed = await confirms(talk, application, credential)
            # The same question without the credential, to the same process: an open one confirms anything.
            await prove_closed(talk, [application.policy.confirm_paths[credential.scheme]])
            return confirmed
        finally:
            talk.close()


async def _never() -> bool:
    return False


async def confirms(talk: Conversation, application: Application, credential: Credential) -> bool:
    """Whether the application answers the credential's owner, and not a guest.

    Raises ConversationError when it says neither yes nor no.
    """
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
    if answer.status not in (200, 401):
        raise ConversationError(f"GET {policy.confirm_paths[credential.scheme]} answered {answer.status}")
    if answer.status == 401 or credential.scheme != "cookie" or policy.denies_guest is None:
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
