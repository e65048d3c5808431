"""Servers of the tests' own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer


@contextmanager
def at_work(server: BaseServer) -> Iterator[None]:
    """The server answers in the background; it looks often for its end, since each test waits for that."""
    threading.Thread(target=server.serve_forever, args=(0.002,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
