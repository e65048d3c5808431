"""The watch, its conversations and who is admitted, against small servers that behave as applications do."""

import asyncio
import base64
import ipaddress
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import bcrypt
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "images" / "gateway"))

from guard import admission as admission_module  # noqa: E402
from guard import guessing, watch  # noqa: E402
from guard.admission import Admission, OverloadedError, PasswordCheck  # noqa: E402
from guard.attempts import Attempts, Limits, TooManyAttemptsError  # noqa: E402
from guard.client import Client  # noqa: E402
from guard.config import Account, Application  # noqa: E402
from guard.conversation import Conversation, ConversationError  # noqa: E402
from guard.decide import Credential  # noqa: E402
from guard.policy import COMFYUI, FORGE, Policy  # noqa: E402
from guard.watch import AnswersStrangersError, Watch  # noqa: E402

CLOSED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"
HERE = Client(ipaddress.ip_address("203.0.113.5"), False, False)
ELSEWHERE = Client(ipaddress.ip_address("203.0.113.6"), False, False)
OPEN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Server:
    """Answers by path and credentials; `answer` may be changed while it runs."""

    def __init__(self) -> None:
        self.answer: Callable[[str, bool], bytes] = lambda path, shown: CLOSED
        self.answer_head: Callable[[str, bool], bytes] | None = None
        self.silent = "\0"  # what no answer comes to
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        for writer in self.writers:
            writer.close()
        self.writers.clear()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                path = head.split()[1]
                self.asked.append(path)
                self.heads.append(head)
                shown = "cookie:" in head or "authorization:" in head
                if self.silent not in head:
                    writer.write(self.answer_head(head, shown) if self.answer_head else self.answer(path, shown))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def application(self, policy: Policy = COMFYUI) -> Application:
        return Application("app", policy, "127.0.0.1", self.port, False, Account("owner", "$2b$12$" + "a" * 53))


def admission_to(server: Server, policy: Policy = COMFYUI) -> Admission:
    attempts = Attempts("app", Limits(), lambda lock_out, client: None)
    return Admission(server.application(policy), PasswordCheck(), attempts)


def run(scenario: Callable[[Server], Awaitable[None]]) -> None:
    async def main() -> None:
        server = Server()
        await server.start()
        try:
            await asyncio.wait_for(scenario(server), 20)
        finally:
            await server.stop()

    asyncio.run(main())


async def until(condition: Callable[[], bool], seconds: float = 2) -> None:
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


def test_served_after_the_first_good_probe_and_not_before() -> None:
    async def scenario(server: Server) -> None:
        said: list[str | None] = []
        watched = Watch(server.application(), said.append)
        assert watched.refusal is not None
        task = asyncio.create_task(watched.run())
        await until(lambda: watched.refusal is None)
        assert server.asked[0] == "/prompt"
        assert said == [None]
        task.cancel()

    run(scenario)


def test_forge_is_probed_on_both_its_doors() -> None:
    async def scenario(server: Server) -> None:
        server.answer = lambda path, shown: OPEN if path.startswith("/sdapi") else CLOSED
        watched = Watch(server.application(FORGE), lambda refusal: None)
        task = asyncio.create_task(watched.run())
        await until(lambda: "/sdapi/v1/samplers answered 200" in str(watched.refusal))
        task.cancel()

    run(scenario)


def test_an_application_that_ends_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the next probe: the time between is what a restarted, open application would be served."""
    monkeypatch.setattr(watch, "INTERVAL", 5.0)

    async def scenario(server: Server) -> None:
        watched = Watch(server.application(), lambda refusal: None)
        task = asyncio.create_task(watched.run())
        await until(lambda: watched.refusal is None)
        server.answer = lambda path, shown: OPEN
        await server.stop()
        await server.start()
        await until(lambda: watched.refusal is not None, seconds=0.2)
        task.cancel()

    run(scenario)


def test_probes_go_on_and_on_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch.INTERVAL < 1, "the contract: at most a second apart"
    monkeypatch.setattr(watch, "INTERVAL", 0.02)

    async def scenario(server: Server) -> None:
        task = asyncio.create_task(Watch(server.application(), lambda refusal: None).run())
        await until(lambda: len(server.asked) >= 5)
        task.cancel()
        assert len(server.writers) == 1

    run(scenario)


def cookie_admitted(answer: Callable[[str, bool], bytes]) -> bool:
    result: list[bool] = []

    async def scenario(server: Server) -> None:
        server.answer = answer
        result.append(await admission_to(server).admits(Credential("cookie", "AIOHTTP_SESSION=s"), HERE))

    run(scenario)
    return result[0]


def json_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    ("guest_mode", "admitted"),
    [
        (json_answer(b'{"guestMode": false}'), True),
        (json_answer(b'{"guestMode": true}'), False),
        (json_answer(b"{}"), False),
        (json_answer(b"nonsense"), False),
        (CLOSED, False),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", True),
    ],
)
def test_session_of_owner_and_of_guest(guest_mode: bytes, admitted: bool) -> None:
    def answer(path: str, shown: bool) -> bytes:
        if not shown:
            return CLOSED
        return guest_mode if path == "/guest_mode" else OPEN

    assert cookie_admitted(answer) is admitted


def test_an_application_that_confirms_anything_confirms_nothing() -> None:
    with pytest.raises(AnswersStrangersError):
        cookie_admitted(lambda path, shown: json_answer(b'{"guestMode": false}'))


def sessions(*right: str) -> Callable[[str, bool], bytes]:
    """Forge's answers, where `right` cookies are sessions."""

    def answer(head: str, shown: bool) -> bytes:
        return OPEN if any(cookie in head for cookie in right) else CLOSED

    return answer


def cookie(value: str) -> Credential:
    return Credential("cookie", f"access-token-a={value}")


async def use_up_the_address(admission: Admission) -> None:
    for guess in range(guessing.ADDRESS.most):
        assert not await admission.admits(Credential("bearer", f"guess-{guess}"), HERE)
    with pytest.raises(TooManyAttemptsError):
        await admission.admits(Credential("bearer", "one-more"), HERE)


def test_others_failures_concern_no_session_token_or_password_that_was_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """All from one address, as behind a company's NAT, or behind a loopback bind."""
    monkeypatch.setattr(guessing, "LONGEST_DELAY", 0.0)
    right = Account("owner", bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode())

    async def scenario(server: Server) -> None:
        server.answer_head = sessions("=s", "=issued", "=from-before", "authorization:")
        forge = replace(server.application(FORGE), account=right)
        admission = Admission(forge, PasswordCheck(), Attempts("app", Limits(), lambda lock_out, client: None))
        basic = Credential("basic", base64.b64encode(b"owner:right").decode())
        assert await admission.admits(cookie("s"), HERE)
        assert await admission.admits(basic, HERE)
        await use_up_the_address(admission)
        assert await admission.admits(cookie("s"), HERE)
        assert await admission.admits(basic, HERE)
        assert await admission.login_is_right("owner", "right", HERE)
        admission.expect("access-token-a=issued")  # by that login
        assert await admission.admits(cookie("issued"), HERE)
        assert await admission.admits(cookie("from-before"), HERE)  # which this process has not seen yet
        with pytest.raises(TooManyAttemptsError):
            await admission.login_is_right("owner", "wrong", HERE)
        assert await admission.login_is_right("owner", "right", ELSEWHERE)

    run(scenario)


def test_others_failures_do_not_concern_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "LONGEST_DELAY", 0.0)

    async def scenario(server: Server) -> None:
        server.answer = lambda path, shown: OPEN if shown else CLOSED
        admission = admission_to(server)
        for guess in range(guessing.ADDRESS.most):
            assert not await admission.admits(Credential("bearer", str(guess)), HERE)
        with pytest.raises(TooManyAttemptsError):
            await admission.admits(Credential("query", "one more"), HERE)
        asked = len(server.asked)
        assert await admission.admits(Credential("bearer", "$2b$12$" + "a" * 53), HERE)
        assert len(server.asked) == asked + 2, "a wrong token asked the application"

    run(scenario)


def test_a_wrong_credential_asks_no_application_twice() -> None:
    async def scenario(server: Server) -> None:
        admission = admission_to(server, FORGE)
        for _ in range(3):
            assert not await admission.admits(cookie("ended"), HERE)
        assert server.asked.count("/login_check") == 2  # the second is the stranger's
        admission.forget()
        assert not await admission.admits(cookie("ended"), HERE)
        assert server.asked.count("/login_check") == 4

    run(scenario)


def test_an_ended_session_is_one_attempt() -> None:
    async def scenario(server: Server) -> None:
        server.answer_head = sessions("=s")
        admission = admission_to(server, FORGE)
        assert await admission.admits(cookie("s"), HERE)
        server.answer_head = sessions()
        admission.forget()
        assert not await admission.admits(cookie("s"), HERE)
        assert not await admission.admits(cookie("s"), HERE)
        asked = len(server.asked)
        assert not await admission.admits(cookie("s"), HERE)
        assert len(server.asked) == asked

    run(scenario)


def test_an_application_s_failure_says_nothing_of_a_credential() -> None:
    async def scenario(server: Server) -> None:
        server.answer_head = lambda head, shown: FAILED if shown else CLOSED
        admission = admission_to(server, FORGE)
        with pytest.raises(ConversationError):
            await admission.admits(cookie("s"), HERE)
        server.answer_head = sessions("=s")
        assert await admission.admits(cookie("s"), HERE)

    run(scenario)


def test_unknown_sessions_do_not_crowd_out_known_ones() -> None:
    async def scenario(server: Server) -> None:
        server.answer_head = sessions("=s")
        admission = admission_to(server, FORGE)
        assert await admission.admits(cookie("s"), HERE)
        admission.forget()
        server.silent = "=guess"
        clients = [Client(ipaddress.ip_address(f"192.0.2.{number}"), False, False) for number in range(100)]
        guesses = [asyncio.create_task(admission.admits(cookie(f"guess-{c.name}"), c)) for c in clients]
        await until(lambda: sum(guess.done() for guess in guesses) > 0)
        assert await admission.admits(cookie("s"), HERE)
        turned_away = [guess for guess in guesses if guess.done()]
        assert {type(guess.exception()) for guess in turned_away} <= {OverloadedError, TooManyAttemptsError}
        assert sum("=guess" in head for head in server.heads) <= admission_module.DOUBTS
        for guess in guesses:
            guess.cancel()

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_not_an_answer(answer: bytes) -> None:
    async def scenario(server: Server) -> None:
        server.answer = lambda path, shown: answer
        talk = await Conversation.open("127.0.0.1", server.port, patience=1)
        with pytest.raises(ConversationError):
            await talk.ask("/", patience=0.3)
        with pytest.raises(ConversationError):
            await talk.ask("/", patience=0.3)

    run(scenario)


def test_nobody_listens() -> None:
    async def scenario(server: Server) -> None:
        await server.stop()
        with pytest.raises(ConversationError):
            await Conversation.open("127.0.0.1", server.port, patience=1)
        await server.start()

    run(scenario)
