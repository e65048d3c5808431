"""Open pages on their way to strangers: few at a time, each body held once, and none that is not taken for long."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

from aiohttp import web

PIECE = 128 * 1024  # bytes; aiohttp waits for the other side only after more than 64 KiB


class TooManyPagesError(Exception):
    """As many pages as may be are on their way already."""


@dataclass(frozen=True)
class Bounds:
    """What strangers may hold of the guard; `pages_each` is for one address, where it is known."""

    form_seconds: float = 10
    page_seconds: float = 30  # for each piece
    pages: int = 128
    pages_each: int = 32
    fetches: int = 8


def read_bounds(environment: Mapping[str, str]) -> Bounds:
    """The bounds, some of which tests make smaller."""
    return Bounds(
        form_seconds=float(environment.get("GATEWAY_FORM_SECONDS", Bounds.form_seconds)),
        page_seconds=float(environment.get("GATEWAY_PAGE_SECONDS", Bounds.page_seconds)),
        pages=int(environment.get("GATEWAY_PAGES", Bounds.pages)),
    )


class Places:
    """How many pages are on their way, in all and to each address."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._taken: Counter[str | None] = Counter()

    @contextmanager
    def taken_by(self, address: str | None) -> Iterator[None]:
        """A place for one page. Raises TooManyPagesError."""
        full = self._taken.total() >= self._bounds.pages
        if full or (address is not None and self._taken[address] >= self._bounds.pages_each):
            raise TooManyPagesError
        self._taken[address] += 1
        try:
            yield
        finally:
            self._taken[address] -= 1
            if not self._taken[address]:
                del self._taken[address]


class _Body:
    """A page's bytes, which can be held weakly."""

    def __init__(self, content: bytes) -> None:
        self.content = content


class Delivery:
    """Sends pages; equal bodies that are on their way at the same time are one in memory.

    They are compared by content and not by name, so that nobody is ever sent what is no longer there.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._patience = bounds.page_seconds
        self._bodies: WeakValueDictionary[bytes, _Body] = WeakValueDictionary()

    async def send(self, request: web.Request, page: web.Response) -> web.StreamResponse:
        """Send a page; end the connection when a piece of it is not taken in time."""
        content = page.body
        if not isinstance(content, bytes) or len(content) <= PIECE:
            return page
        body = self._bodies.setdefault(content, _Body(content))
        page.body = content = None
        stream = web.StreamResponse(status=page.status, headers=page.headers)
        stream.content_length = len(body.content)
        with suppress(ConnectionError):
            await stream.prepare(request)
            await self._write(request, stream, body.content)
        return stream

    async def _write(self, request: web.Request, stream: web.StreamResponse, content: bytes) -> None:
        for start in range(0, len(content), PIECE):
            try:
                await asyncio.wait_for(stream.write(content[start : start + PIECE]), self._patience)
            except asyncio.TimeoutError:
                if request.transport:
                    request.transport.abort()
                return
