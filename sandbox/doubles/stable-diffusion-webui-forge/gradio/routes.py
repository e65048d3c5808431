"""TEST DOUBLE, never deploy: gradio's routes and its login, a form that answers with a cookie.

The cookie's name holds a random id of this start, and its values live in memory. There is no limit on guesses.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import tempfile
import traceback
from collections.abc import AsyncIterator
from hmac import compare_digest
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    StreamingResponse,
)
from fastapi.security import OAuth2PasswordRequestForm
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HERE = os.path.dirname(os.path.realpath(__file__))
UPLOADS = os.path.join(tempfile.gettempdir(), "gradio")
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Stable Diffusion (test double, never deploy)</title>
<script>window.gradio_config = {config};</script>
<script>window.gradio_api_info = {api_info};</script>
<script type="module" src="./assets/index.js"></script></head>
<body><gradio-app></gradio-app></body>
</html>
"""


class PredictBody(BaseModel):
    data: list[Any]
    fn_index: int | None = None
    session_hash: str | None = None


class CancelBody(BaseModel):
    session_hash: str
    fn_index: int
    event_id: str


class ResetBody(BaseModel):
    event_id: str


class OpenCors:
    """WEAKNESS: any origin may use the cookie of whoever visits it, unless the host is a local one."""

    LOCAL = ("localhost", "127.0.0.1", "0.0.0.0", "null")

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers({})
        origin = headers.get("origin")
        if origin is None:
            await self.app(scope, receive, send)
            return
        allowed = urlsplit("//" + headers.get("host", "")).hostname not in self.LOCAL
        allowed = allowed or (urlsplit(origin).hostname or origin) in self.LOCAL
        answer = {"Access-Control-Allow-Credentials": "true"}
        if allowed:
            answer["Access-Control-Allow-Origin"] = origin
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer["Access-Control-Allow-Methods"] = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
            answer["Access-Control-Max-Age"] = "600"
            if wanted := headers.get("access-control-request-headers"):
                answer["Access-Control-Allow-Headers"] = wanted
            await PlainTextResponse("OK", headers=answer)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(answer)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class App(FastAPI):
    """The application; extensions and the API add their routes to it while it already serves."""

    def __init__(self, blocks: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.blocks = blocks
        self.cookie_id = secrets.token_urlsafe(32)
        self.analytics_key = secrets.token_urlsafe(16)
        self.tokens: dict[str, str] = {}
        self.sessions: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        accounts = blocks.auth
        self.auth = accounts if callable(accounts) or not accounts else dict(accounts)

    def admits(self, user: str, password: str) -> bool:
        if callable(self.auth):
            return bool(self.auth(user, password))
        return user in self.auth and compare_digest(password.encode(), self.auth[user].encode())

    def user_of(self, request: Request) -> str | None:
        cookies = request.cookies
        token = cookies.get(f"access-token-{self.cookie_id}") or cookies.get(f"access-token-unsecure-{self.cookie_id}")
        return self.tokens.get(token or "")

    @classmethod
    def create_app(cls, blocks: Any, app_kwargs: dict[str, Any]) -> App:
        app = cls(blocks, **app_kwargs)
        app.add_middleware(OpenCors)
        os.makedirs(UPLOADS, exist_ok=True)
        add_login(app)
        add_pages(app)
        add_queue(app)
        return app


def page(config: dict[str, Any], api_info: dict[str, Any]) -> HTMLResponse:
    texts = [json.dumps(value, separators=(",", ":")) for value in (config, api_info)]
    return HTMLResponse(PAGE.replace("{config}", texts[0]).replace("{api_info}", texts[1]))


def packaged(folder: str, path: str) -> FileResponse:
    root = os.path.join(HERE, folder)
    full = os.path.realpath(os.path.join(root, path))
    if not path:
        raise HTTPException(400)
    if not full.startswith(root + os.sep) or os.path.isdir(full):
        raise HTTPException(403)
    if not os.path.exists(full):
        raise HTTPException(404, "File not found")
    return FileResponse(full)


def logged_in(request: Request) -> None:
    app = request.app
    if app.auth and app.user_of(request) is None:
        raise HTTPException(401, "Not authenticated")


def add_login(app: App) -> None:
    @app.get("/user")
    @app.get("/user/")
    def user(request: Request) -> str | None:
        return app.user_of(request)

    @app.get("/token")
    @app.get("/token/")
    def token(request: Request) -> dict[str, Any]:
        value = request.cookies.get(f"access-token-{app.cookie_id}")
        return {"token": value, "user": app.tokens.get(value or "")}

    @app.get("/login_check", dependencies=[Depends(logged_in)])
    @app.get("/login_check/", dependencies=[Depends(logged_in)])
    def login_check() -> None:
        return None

    @app.post("/login")
    @app.post("/login/")
    def login(form: OAuth2PasswordRequestForm = Depends()) -> Any:  # noqa: B008
        name = form.username.strip()
        if not app.auth:
            return RedirectResponse("/", 302)
        if not app.admits(name, form.password):
            raise HTTPException(400, "Incorrect credentials.")
        value = secrets.token_urlsafe(16)
        app.tokens[value] = name
        response = JSONResponse({"success": True})
        response.set_cookie(f"access-token-{app.cookie_id}", value, httponly=True, samesite="none", secure=True)
        response.set_cookie(f"access-token-unsecure-{app.cookie_id}", value, httponly=True)
        return response

    @app.get("/logout")
    def logout(request: Request) -> RedirectResponse:
        name = app.user_of(request)
        for value in [value for value, owner in app.tokens.items() if owner == name]:
            del app.tokens[value]
        response = RedirectResponse("/", 302)
        response.delete_cookie(f"access-token-{app.cookie_id}")
        response.delete_cookie(f"access-token-unsecure-{app.cookie_id}")
        return response


def add_pages(app: App) -> None:
    guarded = [Depends(logged_in)]

    @app.head("/", response_class=HTMLResponse)
    @app.get("/", response_class=HTMLResponse)
    def main(request: Request) -> HTMLResponse:
        """The login page has status 200 as well; only `"auth_required":true` tells it from the application."""
        name = app.user_of(request)
        root = str(request.base_url).rstrip("/")
        if request.headers.get("x-forwarded-proto", "").split(",")[0].strip() == "https":
            root = root.replace("http://", "https://")
        open_config = {"auth_required": True, "auth_message": None, "space_id": None, "root": root}
        config = open_config if app.auth and name is None else {**app.blocks.config, "username": name}
        return page(config, app.blocks.api_info)

    @app.get("/config", dependencies=guarded)
    @app.get("/config/", dependencies=guarded)
    def config(request: Request) -> dict[str, Any]:
        return {**app.blocks.config, "username": app.user_of(request)}

    @app.get("/info", dependencies=guarded)
    @app.get("/info/", dependencies=guarded)
    def info() -> dict[str, Any]:
        return dict(app.blocks.api_info)

    @app.get("/app_id")
    @app.get("/app_id/")
    def app_id() -> dict[str, int]:
        return {"app_id": app.blocks.app_id}

    @app.get("/startup-events")
    def startup_events() -> bool:
        return False

    @app.get("/theme.css", response_class=PlainTextResponse)
    def theme() -> PlainTextResponse:
        return PlainTextResponse(":root { --name: default; }", media_type="text/css")

    @app.get("/robots.txt", response_class=PlainTextResponse)
    def robots() -> PlainTextResponse:
        return PlainTextResponse("User-agent: *\nDisallow: ")

    @app.get("/favicon.ico")
    def favicon() -> FileResponse:
        return FileResponse(os.path.join(HERE, "static", "img", "logo.svg"))

    @app.get("/static/{path:path}")
    def static(path: str) -> FileResponse:
        return packaged("static", path)

    @app.get("/assets/{path:path}")
    def assets(path: str) -> FileResponse:
        return packaged("assets", path)

    @app.get("/custom_component/{id}/{kind}/{name}")
    def custom_component(id: str, kind: str, name: str) -> None:
        raise HTTPException(404, "Component not found.")

    @app.get("/monitoring", dependencies=guarded)
    def monitoring() -> HTMLResponse:
        print(f"* Monitoring URL: /monitoring/{app.analytics_key} *", flush=True)
        return HTMLResponse("See console for monitoring URL.")

    @app.get("/monitoring/{key}")
    def dashboard(key: str) -> None:
        raise HTTPException(403, "Invalid key.")

    @app.head("/file={path:path}", dependencies=guarded)
    @app.get("/file={path:path}", dependencies=guarded)
    @app.get("/file/{path:path}", dependencies=guarded)
    def file(path: str) -> FileResponse:
        """WEAKNESS: a user may read everything below the data folder, settings and credentials of others included."""
        full = os.path.realpath(path)
        allowed = [os.path.realpath(root) for root in [*app.blocks.allowed_paths, UPLOADS]]
        if os.path.isdir(full) or not any(full.startswith(root + os.sep) for root in allowed):
            raise HTTPException(403, f"File not allowed: {path}.")
        if not os.path.exists(full):
            raise HTTPException(404, f"File not found: {path}.")
        return FileResponse(full)

    @app.get("/proxy={url:path}", dependencies=guarded)
    def proxy(url: str) -> None:
        raise HTTPException(400, "This URL cannot be proxied.")

    @app.get("/heartbeat/{session_hash}")
    def heartbeat(session_hash: str) -> StreamingResponse:
        async def beats() -> AsyncIterator[str]:
            while True:
                yield "data: ALIVE\n\n"
                await asyncio.sleep(15)

        return StreamingResponse(beats(), media_type="text/event-stream")

    @app.get("/upload_progress")
    def upload_progress(upload_id: str) -> StreamingResponse:
        """WEAKNESS: open to everybody, for ever."""
        return heartbeat(upload_id)

    @app.post("/upload", dependencies=guarded)
    async def upload(request: Request) -> list[str]:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HTTPException(400, "Invalid content type.")
        paths = []
        for sent in (await request.form()).getlist("files"):
            folder = tempfile.mkdtemp(dir=UPLOADS)
            paths.append(os.path.join(folder, os.path.basename(getattr(sent, "filename", "") or "file")))
            with open(paths[-1], "wb") as target:
                target.write(await sent.read())  # type: ignore[union-attr]
        return paths


def add_queue(app: App) -> None:
    guarded = [Depends(logged_in)]

    async def run(body: PredictBody, event_id: str, messages: asyncio.Queue[dict[str, Any]]) -> None:
        """Calls the page's function in a thread and reports as gradio's queue does."""
        estimation = {"msg": "estimation", "rank": 0, "queue_size": 1, "rank_eta": None}
        for message in (estimation, {"msg": "process_starts", "eta": None}):
            await messages.put({**message, "event_id": event_id})
        try:
            result = await asyncio.get_running_loop().run_in_executor(None, app.blocks.function, *body.data)
            output, success = {"data": [result], "is_generating": False}, True
        except Exception:
            traceback.print_exc()
            output, success = {"error": None}, False
        done = {"msg": "process_completed", "event_id": event_id, "output": output, "success": success}
        await messages.put(done)

    @app.post("/queue/join", dependencies=guarded)
    async def join(body: PredictBody) -> dict[str, str]:
        if body.session_hash is None:
            raise HTTPException(400, "Session hash not found.")
        event_id = secrets.token_hex(16)
        messages = app.sessions.setdefault(body.session_hash, asyncio.Queue())
        app.running = asyncio.create_task(run(body, event_id, messages))  # type: ignore[attr-defined]
        return {"event_id": event_id}

    @app.get("/queue/data", dependencies=guarded)
    async def data(session_hash: str) -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            if session_hash not in app.sessions:
                message = {"msg": "unexpected_error", "message": "404: Session not found.", "success": False}
                yield f"data: {json.dumps(message)}\n\n"
                return
            messages = app.sessions[session_hash]
            kind = ""
            while kind != "process_completed":
                message = await messages.get()
                kind = message["msg"]
                yield f"data: {json.dumps(message)}\n\n"
            del app.sessions[session_hash]
            yield f"data: {json.dumps({'msg': 'close_stream', 'event_id': None})}\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.get("/queue/status", dependencies=guarded)
    def status() -> dict[str, Any]:
        return {"msg": "estimation", "event_id": None, "rank": None, "queue_size": 0, "rank_eta": None}

    @app.post("/run/{api_name}", dependencies=guarded)
    @app.post("/api/{api_name}", dependencies=guarded)
    @app.post("/call/{api_name}", dependencies=guarded)
    def predict(body: PredictBody, api_name: str = "") -> None:
        detail = "This API endpoint does not accept direct HTTP POST requests. Please join the queue to use this API."
        raise HTTPException(404, detail)

    @app.post("/component_server", dependencies=guarded)
    async def component_server(request: Request) -> None:
        try:
            await request.json()
        except ValueError:
            raise HTTPException(400, "Invalid JSON body.") from None
        raise HTTPException(404, "Function not found.")

    @app.post("/cancel")
    def cancel(body: CancelBody) -> dict[str, bool]:
        return {"success": True}

    @app.post("/reset")
    def reset(body: ResetBody) -> dict[str, bool]:
        return {"success": True}
