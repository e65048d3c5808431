"""A real HTTP server with the faults that real ones have. Counts the bytes it sends, at a capped rate."""

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

CHUNK = 64 * 1024
IP_FREEBIND = 15  # linux/in.h: an address that this computer does not have yet


@dataclass
class Faults:
    """What is wrong with the server now; changed by tests while it runs."""

    ranges: bool = True
    rate: float = 200e6  # bytes a second, of all connections together
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # answers to the next requests
    status: dict[str, int] = field(default_factory=dict)  # by path, always
    cuts: list[int] = field(default_factory=list)  # the next connections end after so many bytes
    flip: int | None = None  # the byte that is wrong
    short: int | None = None  # the file ends here
    short_hidden: bool = False  # ... though its length is told as if it did not
    length_off: int = 0
    signed_bytes: int | None = None  # redirect to a signature, good for so many bytes
    wanted_token: str | None = None
    pieces_wait: float = 0.0  # before a list of pieces is answered


class FaultServer:
    """On loopback, or on another address of this computer, which need not be there yet."""

    def __init__(
        self, content: dict[str, bytes], address: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        self.content, self.faults, self.address, self.tls = content, Faults(), address, tls
        self.sent, self.requests, self.tokens_at_store = 0, 0, 0
        self.sent_of: Counter[str] = Counter()  # bytes by path
        self.asked: Counter[str] = Counter()  # requests by path
        self.credentials: set[str] = set()  # every Authorization that came
        self.signatures: dict[str, int] = {}
        self._lock, self._next = threading.Lock(), time.monotonic()
        self._server: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()
        self.port = 0
        self.start()

    def url(self, path: str) -> str:
        return f"http://{self.address}:{self.port}/{path}"

    def start(self) -> None:
        self._server = _Server((self.address, self.port), self._handler())
        if self.tls:
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        assert self._server
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """Count from zero again."""
        with self._lock:
            self.sent = self.requests = 0
            self.sent_of.clear()
            self.asked.clear()

    def pay(self, path: str, size: int) -> None:
        """Wait so that all connections together stay below the rate."""
        with self._lock:
            self.sent += size
            self.sent_of[path] += size
            self._next = max(self._next, time.monotonic()) + size / self.faults.rate
            wait = self._next - time.monotonic()
        if wait > 0:
            time.sleep(wait)

    def _handler(self) -> Callable[..., BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
                with outer._lock:
                    outer._connections.add(self.connection)

            def finish(self) -> None:
                with outer._lock:
                    outer._connections.discard(self.connection)
                super().finish()

            def log_message(self, *args: object) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True

            def refuse(self, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(key, value)
                self.end_headers()

            def do_GET(self) -> None:
                faults, parts = outer.faults, urlsplit(self.path)
                path, query = parts.path.lstrip("/"), parse_qs(parts.query)
                with outer._lock:
                    outer.requests += 1
                    outer.asked[path] += 1
                    outer.credentials |= {self.headers["Authorization"]} - {None}
                if path.endswith(".pieces.json"):
                    return self.send_pieces(path)
                with outer._lock:
                    refusal = faults.refusals.pop(0) if faults.refusals else None
                if refusal:
                    return self.refuse(*refusal)
                if path in faults.status:
                    return self.refuse(faults.status[path], {})
                signature = query.get("signature", [""])[0]
                if signature:
                    outer.tokens_at_store += "Authorization" in self.headers
                    if outer.signatures.get(signature, 0) <= 0:
                        return self.refuse(403, {})
                elif faults.wanted_token and self.headers.get("Authorization") != f"Bearer {faults.wanted_token}":
                    return self.refuse(401, {})
                elif faults.signed_bytes is not None:
                    with outer._lock:
                        signature = str(len(outer.signatures) + 1)
                        outer.signatures[signature] = faults.signed_bytes
                    # another host name: a token must not travel there
                    where = f"http://localhost:{outer.port}/{path}?signature={signature}"
                    return self.refuse(302, {"Location": where})
                if path not in outer.content:
                    return self.refuse(404, {})
                return self.send_file(path, signature)

            def send_pieces(self, path: str) -> None:
                """Without the faults of the file itself."""
                time.sleep(outer.faults.pieces_wait)
                if path not in outer.content:
                    self.refuse(404, {})
                    return
                body = outer.content[path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                for at in range(0, len(body), CHUNK):
                    outer.pay(path, len(body[at : at + CHUNK]))
                    self.wfile.write(body[at : at + CHUNK])

            def send_file(self, path: str, signature: str) -> None:
                faults, body = outer.faults, outer.content[path]
                size = len(body) if faults.short is None or faults.short_hidden else faults.short
                first, last, asked = 0, size - 1, self.headers.get("Range")
                if asked and faults.ranges:
                    low, _, high = asked.removeprefix("bytes=").partition("-")
                    first, last = int(low), min(int(high) if high else size - 1, size - 1)
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{last}/{size + faults.length_off}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(last - first + 1 + faults.length_off))
                self.end_headers()
                end = last + 1 if faults.short is None else min(last + 1, faults.short)
                cut = None
                if last - first > 0:  # a question for one byte is not worth a cut
                    with outer._lock:
                        cut = faults.cuts.pop(0) if faults.cuts else None
                at = first
                while at < end:
                    stop = min(at + CHUNK, end, first + cut if cut is not None else end)
                    piece = bytearray(body[at:stop])
                    if faults.flip is not None and at <= faults.flip < stop:
                        piece[faults.flip - at] ^= 1
                    outer.pay(path, len(piece))
                    if signature:
                        with outer._lock:
                            outer.signatures[signature] -= len(piece)
                            expired = outer.signatures[signature] < 0
                        if expired:
                            break
                    self.wfile.write(piece)
                    at = stop
                    if cut is not None and at >= first + cut:
                        break
                if at < last + 1 + faults.length_off:
                    self.close_connection = True

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        pass
