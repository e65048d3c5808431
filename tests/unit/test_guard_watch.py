"""The watch and its conversations, against small servers that behave as applications do when they end or turn open."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "images" / "gateway"))

from guard import watch  # noqa: E402
from guard.admission import Admission, PasswordCheck  # noqa: E402
from guard.config import Account, Application  # noqa: E402
from guard.conversation import Conversation, ConversationError  # noqa: E402
from guard.decide import Credential  # noqa: E402
from guard.policy import COMFYUI, FORGE, Policy  # noqa: E402
from guard.watch import AnswersStrangersError, Watch  # noqa: E402

CLOSED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"
OPEN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Server:
    """Answers by path and credentials; `answer` may be changed while it runs."""

    def __init__(self) -> None:
        self.answer: Callable[[str, bool], bytes] = lambda path, shown: CLOSED
        self.asked: list[str] = []
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
                writer.write(self.answer(path, "cookie:" in head or "authorization:" in head))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def application(self, policy: Policy = COMFYUI) -> Application:
        return Application("app", policy, "127.0.0.1", self.port, False, Account("owner", "$2b$12$" + "a" * 53))


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
        admission = Admission(server.application(), PasswordCheck())
        result.append(await admission.admits(Credential("cookie", "AIOHTTP_SESSION=s")))

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
