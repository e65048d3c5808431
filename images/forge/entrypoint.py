"""Start Forge, but let nobody in before both of its logins are proven to be in force.

Forge's own options take passwords in clear text, split them at commas and colons, and print them. So this script gives
Forge two checks of its own, for the Gradio login and for the API's HTTP Basic, both against one bcrypt hash. Gradio opens
the port before Forge adds the API: until the assembled application has refused a stranger and admitted a known credential
on both ways, a gate in front of it refuses every request.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import bcrypt
import httpx

SOURCE = Path("/opt/forge")
CREDENTIAL = Path("/run/secrets/atelier/auth.json")
HEALTH = Path("/run/atelier/health")
USERS = Path("/users")

ARGUMENTS = [
    "--listen",
    "--port=7860",
    "--api",
    f"--data-dir={USERS}",
    "--ckpt-dir=/models/checkpoints",
    "--vae-dir=/models/vae",
    "--lora-dir=/models/loras",
    "--text-encoder-dir=/models/text_encoders",
    # The UI's own scripts, which gradio refuses to serve from outside the data directory.
    f"--gradio-allowed-path={SOURCE}",
    # Everything was installed when the image was built.
    "--skip-prepare-environment",
    "--skip-install",
]

EX_CONFIG = 78


def refuse(reason: str) -> NoReturn:
    """End the process from any thread, with the exit status that sysexits.h gives to a configuration error."""
    print(f"atelier: Forge was not started: {reason}", file=sys.stderr, flush=True)
    os._exit(EX_CONFIG)


class Credentials:
    """The owner's credential (a hash), and one of this process's own that its health check uses."""

    def __init__(self, user: str, password_bcrypt: str) -> None:
        self.user = user
        self.password_bcrypt = password_bcrypt.encode()
        self.health = ("health", secrets.token_urlsafe(32))
        # A bcrypt check costs 230 ms: the one right password is recognised again by a keyed hash.
        self._key = secrets.token_bytes(32)
        self._right: bytes | None = None

    @classmethod
    def read(cls, path: Path) -> Credentials:
        """Read {"user": ..., "password_bcrypt": ...}; end the process when it is not exactly that."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            user, password_bcrypt = document["user"], document["password_bcrypt"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            refuse(f"{path} cannot be read: {error!r}")
        if not isinstance(user, str) or not user.strip() or user == "health":
            refuse(f"{path}: `user` must be a name, and not `health`")
        if not isinstance(password_bcrypt, str) or not re.fullmatch(r"\$2b\$\d\d\$[./A-Za-z0-9]{53}", password_bcrypt):
            refuse(f"{path}: `password_bcrypt` must be a bcrypt hash of 60 characters")
        return cls(user, password_bcrypt)

    def admits(self, user: str, password: str) -> bool:
        """Whether this is the owner or the health check."""
        if not user or not password:
            return False  # The gateway asks as a stranger twice a second; bcrypt would keep half a core busy.
        given = hmac.new(self._key, json.dumps([user, password]).encode(), hashlib.sha256).digest()
        if hmac.compare_digest(given, hmac.new(self._key, json.dumps(self.health).encode(), hashlib.sha256).digest()):
            return True
        if self._right and hmac.compare_digest(given, self._right):
            return True
        secret = password.encode()
        # bcrypt takes 72 bytes at most, and the user's name must not be told by the time that an answer takes.
        right = bcrypt.checkpw(secret[:72], self.password_bcrypt) and len(secret) <= 72 and user == self.user
        if right:
            self._right = given
        return right


class Gate:
    """The application as uvicorn sees it: refuses every request until it is opened."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.open = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI. Gradio itself asks for /startup-events, which carries nothing, and takes 401 as "is listening"."""
        if self.open or scope["type"] == "lifespan" or scope["path"] == "/startup-events":
            await self.application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})


async def prove_logins(application: Any, credentials: Credentials) -> None:
    """Ask the assembled application itself, on both ways, as a stranger, with a wrong password and with a right one."""
    wrong = (credentials.user, secrets.token_urlsafe())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=application), base_url="http://proof", timeout=60
    ) as client:

        async def sdapi(auth: tuple[str, str] | None) -> int:
            return (await client.get("/sdapi/v1/samplers", auth=auth)).status_code

        async def login(auth: tuple[str, str]) -> int:
            return (await client.post("/login", data={"username": auth[0], "password": auth[1]})).status_code

        answers = {
            "the UI to a stranger": ((await client.get("/config")).status_code, 401),
            "the UI's login to a wrong password": (await login(wrong), 400),
            "the UI's login to a right password": (await login(credentials.health), 200),
            "the API to a stranger": (await sdapi(None), 401),
            "the API to a wrong password": (await sdapi(wrong), 401),
            "the API to a right password": (await sdapi(credentials.health), 200),
        }
    for what, (status, expected) in answers.items():
        if status != expected:
            refuse(f"the logins are not in force: {what} answers {status}, not {expected}")


def basic_auth(header: str | None) -> tuple[str, str]:
    """User and password of an Authorization header. FastAPI's own parser takes ASCII only."""
    scheme, _, encoded = (header or "").partition(" ")
    try:
        user, separator, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return (user, password) if scheme.lower() == "basic" and separator else ("", "")


def install(credentials: Credentials) -> None:
    """Put the checks and the gate into the loaded, not yet started Forge."""
    import gradio
    import gradio.http_server
    from fastapi import HTTPException, Request
    from modules import script_callbacks, shared_cmd_options
    from modules.api import api

    launch = gradio.Blocks.launch
    start_server = gradio.http_server.start_server
    app_started = script_callbacks.app_started_callback
    gates: list[Gate] = []

    def launch_with_login(blocks: Any, *args: Any, **kwargs: Any) -> Any:
        return launch(blocks, *args, **{**kwargs, "auth": credentials.admits})

    def start_behind_gate(app: Any, *args: Any, **kwargs: Any) -> Any:
        gates.append(Gate(app))
        return start_server(gates[-1], *args, **kwargs)

    def open_when_proven(demo: Any, app: Any) -> None:
        app_started(demo, app)
        asyncio.run(prove_logins(app, credentials))
        print("atelier: the logins are in force", flush=True)
        gates[-1].open = True

    def api_login(self: Any, request: Request) -> None:
        if not credentials.admits(*basic_auth(request.headers.get("Authorization"))):
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    # The annotation is read by FastAPI, which does not find a name that was imported in a function.
    api_login.__annotations__ = {"request": Request}
    gradio.Blocks.launch = launch_with_login
    gradio.http_server.start_server = start_behind_gate
    script_callbacks.app_started_callback = open_when_proven
    api.Api.auth = api_login
    # Only makes Forge attach the check to each route; as a credential it opens nothing.
    shared_cmd_options.cmd_opts.api_auth = f"unused:{secrets.token_hex()}"


def end_with_traceback(failure: threading.ExceptHookArgs) -> None:
    """Forge works in threads and would live on, deaf, when one of them dies at start."""
    sys.__excepthook__(failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    os._exit(1)


def main() -> None:
    """What Forge's launch.py does, with the two logins put in."""
    credentials = Credentials.read(CREDENTIAL)
    HEALTH.touch(mode=0o600)
    HEALTH.write_text(json.dumps(credentials.health), encoding="ascii")
    settings = USERS / "config.json"
    if not settings.exists():
        # Forge's default preview fetches a decoder from the internet at the first SDXL generation.
        settings.write_text(json.dumps({"show_progress_type": "Approx cheap"}), encoding="utf-8")

    os.chdir(SOURCE)
    sys.path.insert(0, str(SOURCE))
    sys.argv = ["launch.py", *ARGUMENTS, *sys.argv[1:]]
    import webui
    from modules_forge import main_thread

    install(credentials)
    threading.excepthook = end_with_traceback
    webui.webui()
    main_thread.loop()


if __name__ == "__main__":
    main()
