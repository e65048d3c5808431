"""The guest's only way to packages: an HTTP proxy that passes on to the hosts this computer is configured for.

It listens inside the guest's namespace and connects from this computer's. ``.deb`` files fetched over plain HTTP are
kept, so that the second sandbox does not fetch them again; the guest's apt checks their signatures either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

PORT = 3128
CHUNK = 256 * 1024
HEAD_LIMIT = 64 * 1024
DEB_MAGIC = b"!<arch>\n"
HOP_BY_HOP = frozenset(("connection", "proxy-connection", "keep-alive", "proxy-authorization", "te", "upgrade"))


def upstream(environment: Mapping[str, str], scheme: str, host: str) -> tuple[str, int] | None:
    """The proxy that this computer must use for a host (``http_proxy``, ``https_proxy``, ``no_proxy``), or None."""
    excluded = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    for pattern in filter(None, (item.strip().lstrip(".") for item in excluded.split(","))):
        if pattern == "*" or host == pattern or host.endswith("." + pattern):
            return None
    name = f"{scheme}_proxy"
    # HTTP_PROXY in capitals is not read: a CGI script's caller could set it (curl's rule).
    address = environment.get(name) or (environment.get(name.upper()) if scheme == "https" else None)
    if not address:
        return None
    parts = urlsplit(address if "//" in address else f"//{address}")
    return (parts.hostname, parts.port or 3128) if parts.hostname else None


def is_cacheable(method: str, url: str, headers: Mapping[str, str]) -> bool:
    """Whether a response may be kept for ever: a package, whose name carries its version, asked for as a whole."""
    return method == "GET" and urlsplit(url).path.endswith(".deb") and "range" not in headers


class Proxy:
    """An HTTP proxy: ``CONNECT``, and requests in absolute form.

    ``allowed`` None means any host (used while the base image is built, by this computer's own tool). ``route`` gives
    the proxy to go through for a scheme and a host, or None; without it, this process's environment decides.
    """

    def __init__(
        self,
        allowed: frozenset[str] | None,
        cache: Path,
        log: Callable[[str], None],
        route: Callable[[str, str], tuple[str, int] | None] | None = None,
    ) -> None:
        self._allowed = allowed
        self._cache = cache
        self._log = log
        self._route = route or functools.partial(upstream, os.environ)
        self._server: asyncio.AbstractServer | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serves on the socket until ``stop``."""
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=HEAD_LIMIT)

    async def stop(self) -> None:
        """Takes no more connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one_request(reader, writer):
                pass
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self._log(f"proxy: {type(error).__name__}: {error}")
        finally:
            writer.close()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; True when the connection may carry another."""
        head = await _read_head(reader)
        if head is None:
            return False
        start, headers = head
        method, target, _ = start.split(" ", 2)
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host = parts.hostname
        if host is None:
            await _answer(writer, "400 Bad Request", "This is a proxy: ask for an absolute address.")
            return False
        if self._allowed is not None and host not in self._allowed:
            self._log(f"proxy: refused {method} {host}")
            known = ", ".join(sorted(self._allowed)) or "none"
            await _answer(
                writer,
                "403 Forbidden",
                f"The sandbox's proxy does not pass on to {host}. It passes on only to the package archives that this "
                f"computer's own apt and pip are configured for: {known}.",
            )
            return False
        if method == "CONNECT":
            await self._tunnel(host, parts.port or 443, reader, writer)
            return False
        if parts.scheme != "http":
            await _answer(writer, "400 Bad Request", f"Ask for {parts.scheme} addresses with CONNECT.")
            return False
        return await self._forward(method, target, headers, reader, writer)

    async def _connect(
        self, scheme: str, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        """A connection towards the host, and whether it ends at another proxy."""
        through = self._route(scheme, host)
        reader, writer = await asyncio.open_connection(*(through or (host, port)), limit=HEAD_LIMIT)
        return reader, writer, through is not None

    async def _tunnel(self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer, proxied = await self._connect("https", host, port)
        except OSError as error:
            self._log(f"proxy: {host}:{port}: {error}")
            await _answer(writer, "502 Bad Gateway", f"{host}:{port} cannot be reached from this computer: {error}")
            return
        if proxied:
            far_writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            head = await _read_head(far_reader)
            if head is None or head[0].split()[1] != "200":
                far_writer.close()
                await _answer(writer, "502 Bad Gateway", f"this computer's own proxy refused {host}:{port}")
                return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))

    async def _forward(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        cacheable = is_cacheable(method, url, headers)
        kept = self._cache / hashlib.sha256(url.encode()).hexdigest()
        if cacheable and kept.is_file():
            with kept.open("rb") as file:
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {kept.stat().st_size}\r\n\r\n".encode())
                while chunk := file.read(CHUNK):
                    writer.write(chunk)
                    await writer.drain()
            return True

        parts = urlsplit(url)
        host = parts.hostname or ""
        try:
            far_reader, far_writer, proxied = await self._connect("http", host, parts.port or 80)
        except OSError as error:
            self._log(f"proxy: {host}: {error}")
            await _answer(writer, "502 Bad Gateway", f"{host} cannot be reached from this computer: {error}")
            return False
        try:
            path = parts.path or "/"
            target = url if proxied else f"{path}?{parts.query}" if parts.query else path
            kept_headers = {key: value for key, value in headers.items() if key not in HOP_BY_HOP}
            kept_headers["connection"] = "close"
            lines = [f"{method} {target} HTTP/1.1", *(f"{key}: {value}" for key, value in kept_headers.items())]
            far_writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            remaining = int(headers.get("content-length", 0))
            while remaining:
                chunk = await reader.read(min(CHUNK, remaining))
                if not chunk:
                    return False
                remaining -= len(chunk)
                far_writer.write(chunk)
                await far_writer.drain()
            return await self._respond(method, far_reader, writer, kept if cacheable else None)
        finally:
            far_writer.close()

    async def _respond(
        self, method: str, far_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep_as: Path | None
    ) -> bool:
        """Passes a response on; the connection lives on when its end is known from its length."""
        head = await _read_head(far_reader)
        if head is None:
            await _answer(writer, "502 Bad Gateway", "the archive closed the connection without an answer")
            return False
        start, headers = head
        status = start.split()[1]
        bodiless = method == "HEAD" or status in ("204", "304")
        length = None if "content-length" not in headers else int(headers["content-length"])
        reusable = bodiless or (length is not None and "transfer-encoding" not in headers)
        for name in HOP_BY_HOP:
            headers.pop(name, None)
        headers["connection"] = "keep-alive" if reusable else "close"
        lines = [start, *(f"{key}: {value}" for key, value in headers.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        if bodiless:
            await writer.drain()
            return True
        if length is None or not reusable:
            while chunk := await far_reader.read(CHUNK):
                writer.write(chunk)
                await writer.drain()
            return False
        if keep_as is None or status != "200":
            return await _copy(far_reader, writer, length, None)
        keep_as.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=keep_as.parent, prefix="part-") as part:
            whole = await _copy(far_reader, writer, length, part.file.write)
            part.seek(0)
            if whole and part.read(len(DEB_MAGIC)) == DEB_MAGIC:  # not a login page with status 200
                # Linked, not renamed: two guests may fetch one package at once, and the first wins.
                with contextlib.suppress(FileExistsError):
                    os.link(part.name, keep_as)
        return whole


@contextlib.contextmanager
def in_background(proxy: Proxy, listener: socket.socket) -> Iterator[None]:
    """Serves the socket from a thread while the block runs."""
    loop = asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        await proxy.start(listener)
        await done.wait()
        await proxy.stop()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0))  # the cancelled connections end
        loop.close()


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int, also: Callable[[bytes], object] | None
) -> bool:
    """Copies ``length`` bytes; False when the source ended before."""
    while length:
        chunk = await reader.read(min(CHUNK, length))
        if not chunk:
            return False
        length -= len(chunk)
        if also is not None:
            also(chunk)
        writer.write(chunk)
        await writer.drain()
    return True


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    """``(first line, headers)`` with the headers' names in lower case; None at the end of the stream."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    start, *lines = text[:-4].split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        headers[key.strip().lower()] = value.strip()
    return start, headers


async def _answer(writer: asyncio.StreamWriter, status: str, text: str) -> None:
    body = f"{text}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        if writer.can_write_eof():
            writer.write_eof()
