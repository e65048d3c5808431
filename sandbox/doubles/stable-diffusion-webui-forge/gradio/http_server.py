"""TEST DOUBLE, never deploy: uvicorn in a thread."""

from __future__ import annotations

import threading
import time
from typing import Any

import uvicorn

INITIAL_PORT_VALUE = 7860


def start_server(
    app: Any, server_name: str | None = None, server_port: int | None = None
) -> tuple[str, int, str, uvicorn.Server]:
    """Returns the name, the port, the local URL and the server, once it listens; RuntimeError when it cannot."""
    name, port = server_name or "127.0.0.1", server_port or INITIAL_PORT_VALUE
    server = uvicorn.Server(uvicorn.Config(app, host=name, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("Server failed to start. Please check that the port is available.")
        time.sleep(0.001)
    return name, port, f"http://{'localhost' if name == '0.0.0.0' else name}:{port}/", server
