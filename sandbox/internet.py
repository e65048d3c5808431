"""A fake internet: every address answers on the usual ports, so that a test of "no way out" can fail.

It speaks DNS (any name has an address) and, on every other port, one recognisable page.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

BODY = b"atelier fake internet\n"
ANSWER_ADDRESS = "198.51.100.1"  # RFC 5737, for documentation: what every name resolves to
TCP_PORTS = (21, 22, 25, 80, 443, 465, 587, 853, 3128, 5000, 8000, 8080, 8443, 9418, 11371)
DNS_PORT = 53
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - in a namespace that holds nothing else
IP_PKTINFO = 8  # linux/in.h; the socket module has no name for it before Python 3.14
CLONE_NEWNET = 0x40000000
TYPE_A, TYPE_TXT = 1, 16

Made = TypeVar("Made")


def in_namespace(namespace: str, make: Callable[[], Made]) -> Made:
    """Calls ``make`` in the network namespace and returns its result: a socket stays where it was created.

    In a thread of its own, because a thread's namespace can be changed without touching the others'.
    """
    results: list[Made] = []
    errors: list[BaseException] = []

    def enter_and_make() -> None:
        try:
            handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {namespace}")
            finally:
                os.close(handle)
            results.append(make())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter_and_make)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def listen(address: str, port: int) -> socket.socket:
    """A listening TCP socket."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(128)
    listener.setblocking(False)
    return listener


def dns_answer(query: bytes) -> bytes | None:
    """The answer to a DNS query: an address for type A, a sentence for TXT, else no data; None if malformed."""
    if len(query) < 12 or query[2] & 0x80 or query[4:6] != b"\0\1":
        return None
    end = 12
    while end < len(query) and query[end]:
        end += query[end] + 1
    question = query[12 : end + 5]
    if len(query) < end + 5:
        return None
    kind = struct.unpack("!H", question[-4:-2])[0]
    data = b""
    if kind == TYPE_A:
        data = socket.inet_aton(ANSWER_ADDRESS)
    elif kind == TYPE_TXT:
        data = bytes([len(BODY) - 1]) + BODY[:-1]
    records = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(data)) + data if data else b""
    flags = 0x8180 | (query[2] & 1) << 8  # a response, recursion available
    return query[:2] + struct.pack("!HHHHH", flags, 1, bool(data), 0, 0) + question + records


async def _page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        with contextlib.suppress(asyncio.TimeoutError):  # a client that waits for the server to speak first
            await asyncio.wait_for(reader.read(4096), 1)
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(BODY)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + BODY)
        await writer.drain()
    writer.close()


async def _dns_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
        while True:
            size = struct.unpack("!H", await asyncio.wait_for(reader.readexactly(2), 10))[0]
            answer = dns_answer(await reader.readexactly(size))
            if answer is None:
                break
            writer.write(struct.pack("!H", len(answer)) + answer)
            await writer.drain()
    writer.close()


def _dns_socket() -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    server.bind((ANY_ADDRESS, DNS_PORT))
    server.setblocking(False)
    return server


def _dns_datagram(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        query, ancillary, _, client = server.recvmsg(4096, socket.CMSG_SPACE(12))
        answer = dns_answer(query)
        if answer is None:
            return
        # The answer must come from the address that was asked, whichever that was.
        asked = next(data[8:12] for _, kind, data in ancillary if kind == IP_PKTINFO)
        source = struct.pack("@I", 0) + asked + b"\0" * 4
        server.sendmsg([answer], [(socket.IPPROTO_IP, IP_PKTINFO, source)], 0, client)


class Internet:
    """The fake internet of one namespace; it answers from ``start`` to ``stop``."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._servers: list[asyncio.AbstractServer] = []
        self._datagrams: socket.socket | None = None

    async def start(self) -> None:
        """Opens every port in the namespace."""
        listeners = in_namespace(self._namespace, lambda: [listen(ANY_ADDRESS, port) for port in TCP_PORTS])
        self._servers = [await asyncio.start_server(_page, sock=listener) for listener in listeners]
        names = in_namespace(self._namespace, lambda: listen(ANY_ADDRESS, DNS_PORT))
        self._servers.append(await asyncio.start_server(_dns_stream, sock=names))
        self._datagrams = in_namespace(self._namespace, _dns_socket)
        asyncio.get_running_loop().add_reader(self._datagrams, _dns_datagram, self._datagrams)

    async def stop(self) -> None:
        """Closes every port."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._datagrams is not None:
            asyncio.get_running_loop().remove_reader(self._datagrams)
            self._datagrams.close()
            self._datagrams = None
