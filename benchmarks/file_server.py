"""One file over HTTP on loopback, with sendfile, in a process of its own; and as much of the hub's protocol as `hf` asks.

delay stands for a round trip: a connection's first request waits for two of them (the handshake and the request itself),
each further one for one. cap is how many bytes a second one connection gets, however many there are. Not imitated: TLS,
TCP's slow start, loss.
"""

import multiprocessing
import select
import socket
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

REPOSITORY, REVISION = "bench/weights", "1" * 40
_SLICE = 0.02  # seconds: a capped connection gets its bytes in portions of this length


class FileServer:
    """Serves the file at root/<name> and at root/bench/weights/resolve/<revision>/<name>; sent counts the bytes."""

    def __init__(self, file: Path, sha256: str, delay: float = 0.0, cap: float | None = None) -> None:
        self.name, self.size = file.name, file.stat().st_size
        self._sent = multiprocessing.Value("Q", 0)
        ours, theirs = multiprocessing.Pipe()
        arguments = (file, sha256, delay, cap, self._sent, theirs)
        self._process = multiprocessing.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        self.root = f"http://127.0.0.1:{ours.recv()}"
        self.url = f"{self.root}/{file.name}"

    @property
    def sent(self) -> int:
        """Bytes of the file sent so far, to all."""
        with self._sent.get_lock():
            return int(self._sent.value)

    def __enter__(self) -> "FileServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # who is asked may go away at any time


def _serve(file: Path, sha256: str, delay: float, cap: float | None, sent, told: Connection) -> None:  # type: ignore[no-untyped-def]
    size = file.stat().st_size
    hub = {
        "ETag": f'"{sha256}"',
        "X-Repo-Commit": REVISION,
        "X-Linked-ETag": f'"{sha256}"',
        "X-Linked-Size": str(size),
        "Accept-Ranges": "bytes",
    }
    paths = {f"/{file.name}", f"/{REPOSITORY}/resolve/{REVISION}/{file.name}"}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        trips = 2

        def handle_one_request(self) -> None:
            super().handle_one_request()
            # A request that lies here already was under way while the one before was answered.
            self.trips = 0 if select.select([self.connection], [], [], 0)[0] else 1

        def setup(self) -> None:
            super().setup()
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if cap:  # what lies between sender and receiver shall not count as sent
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._headers()

        def do_GET(self) -> None:
            span = self._headers()
            if span:
                with suppress(ConnectionError), file.open("rb") as opened:
                    self.wfile.flush()
                    self._send(opened, *span)

        def _headers(self) -> tuple[int, int] | None:
            time.sleep(delay * self.trips)
            if self.path not in paths:
                self.send_error(404)
                return None
            first, last = 0, size - 1
            low, _, high = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            if low:
                first, last = int(low), min(int(high or last), last)
            self.send_response(206 if low else 200)
            if low:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            for key, value in {**hub, "Content-Length": str(last - first + 1)}.items():
                self.send_header(key, value)
            self.end_headers()
            return first, last + 1

        def _send(self, opened, at: int, end: int) -> None:  # type: ignore[no-untyped-def]
            portion = int(cap * _SLICE) if cap else 1 << 30
            due = time.monotonic()
            while at < end:
                # A socket with a time limit would not block in sendfile.
                gone = self.connection.sendfile(opened, at, min(portion, end - at))
                at += gone
                with sent.get_lock():
                    sent.value += gone
                if cap:
                    due = max(due, time.monotonic() - _SLICE) + gone / cap
                    time.sleep(max(0.0, due - time.monotonic()))

    server = _Server(("127.0.0.1", 0), Handler)
    told.send(server.server_address[1])
    server.serve_forever()
