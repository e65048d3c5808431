"""HTTP over one TCP connection that we can tell the end of, so that all its answers come from one process."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import h11

ANSWER_LIMIT = 16 * 1024 * 1024  # bytes; gradio's largest script has 3.8 MB


class ConversationError(Exception):
    """The connection was refused, ended, fell silent, or did not speak HTTP."""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Conversation(asyncio.Protocol):
    """Questions put to an application one after another on one connection.

    A process that dies closes its connections, so a conversation that is not lost is still with the process that gave
    its first answer. That is how the guard knows, without waiting for the next probe, that an application restarted.
    """

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        self._http = h11.Connection(h11.CLIENT)
        self._events = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    @classmethod
    async def open(
        cls, host: str, port: int, *, patience: float, on_lost: Callable[[], None] = lambda: None
    ) -> "Conversation":
        """Connect within `patience` seconds. Raises ConversationError."""
        connecting = asyncio.get_running_loop().create_connection(lambda: cls(on_lost), host, port)
        try:
            _, talk = await asyncio.wait_for(connecting, patience)
        except (OSError, asyncio.TimeoutError) as error:
            raise ConversationError(f"no connection ({type(error).__name__})") from error
        return talk

    async def ask(
        self,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        *,
        patience: float,
        method: str = "GET",
        host: str = "gateway",
        body: bytes = b"",
    ) -> Answer:
        """Put one question and wait at most `patience` seconds for the whole answer. Raises ConversationError."""
        sent = [("Host", host), *headers]
        if body:
            sent.append(("Content-Length", str(len(body))))
        try:
            return await asyncio.wait_for(self._ask(method, target, sent, body), patience)
        except asyncio.TimeoutError as error:
            self.close()
            raise ConversationError(f"no answer within {patience:g} s") from error
        except h11.ProtocolError as error:
            self.close()
            raise ConversationError("connection ended" if self.lost.is_set() else "not an HTTP answer") from error

    def close(self) -> None:
        """End the connection."""
        if self._transport:
            self._transport.abort()

    async def _ask(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        self._send(h11.Request(method=method, target=target, headers=headers))
        if body:
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        response: h11.Response | None = None
        content = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                await self._more()
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                content += event.data
                if len(content) > ANSWER_LIMIT:
                    self.close()
                    raise ConversationError("answer too long")
            elif isinstance(event, h11.EndOfMessage) and response:
                pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers)
                return Answer(response.status_code, tuple(pairs), bytes(content))
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                raise ConversationError("connection ended")

    def _send(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        if self.lost.is_set() or not self._transport:
            raise ConversationError("connection ended")
        self._transport.write(self._http.send(event) or b"")

    async def _more(self) -> None:
        await self._events.wait()
        self._events.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport (asyncio calls this)."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what create_connection gives
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take bytes in (asyncio calls this)."""
        self._http.receive_data(data)
        self._events.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end at once (asyncio calls this)."""
        self.lost.set()
        self._on_lost()
        if self._http.their_state not in (h11.CLOSED, h11.ERROR):
            self._http.receive_data(b"")
        self._events.set()
