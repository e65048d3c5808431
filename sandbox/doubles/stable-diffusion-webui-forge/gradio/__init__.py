"""TEST DOUBLE, never deploy: the part of gradio 4.40.0 through which Forge shows its page and asks for its login.

A package of this name lies beside the double's source, so that a start script can patch `gradio.Blocks.launch` and
`gradio.http_server.start_server` as it does in the real one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import httpx

from gradio import http_server
from gradio.routes import App

__version__ = "4.40.0"


class Blocks:
    """A page with one function behind it. `choices` are the lists that its API description shows."""

    def __init__(self, title: str, function: Callable[..., Any], choices: dict[str, list[str]]) -> None:
        self.app_id = secrets.randbits(63)
        self.function = function
        self.config = {"version": __version__, "mode": "blocks", "app_id": self.app_id, "title": title}
        self.api_info = {
            "named_endpoints": {f"/{function.__name__}": {"parameters": [], "choices": choices}},
            "unnamed_endpoints": {},
        }
        self.allowed_paths: list[str] = []
        self.auth: Any = None

    def launch(
        self,
        *,
        server_name: str | None = None,
        server_port: int | None = None,
        auth: Any = None,
        allowed_paths: list[str] | None = None,
        app_kwargs: dict[str, Any] | None = None,
        prevent_thread_lock: bool = False,
    ) -> tuple[App, str, None]:
        """Opens the port and returns. `auth` is a list of (user, password), or a function that judges them."""
        if auth and not callable(auth):
            if any(not account[0] for account in auth):
                raise ValueError("You have provided an empty username in `auth`. Please provide a valid username.")
            if any(not account[1] for account in auth):
                raise ValueError("You have provided an empty password in `auth`. Please provide a valid password.")
        self.auth = auth
        self.allowed_paths = allowed_paths or []
        self.app = App.create_app(self, app_kwargs or {})
        name, port, local_url, self.server = http_server.start_server(
            app=self.app, server_name=server_name, server_port=server_port
        )
        print(f"Running on local URL:  http://{name}:{port}", flush=True)
        httpx.get(f"{local_url}startup-events", timeout=None)
        return self.app, local_url, None
