"""TEST DOUBLE, never deploy: who may in, decided by a middleware on ComfyUI's own application.

Everything happens at import, as in the plugin it stands for: when any line here raises, ComfyUI serves without a login.
The weaknesses are wanted. Each is marked with the word WEAKNESS, and the gateway and the entry script must close it.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import bcrypt
import folder_paths
import server
from aiohttp import web
from aiohttp_session import Session, get_session, setup
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from comfy.cli_args import args
from jinja2 import Environment, FileSystemLoader, select_autoescape

HERE = os.path.dirname(__file__)
LOGIN_FOLDER = os.path.join(os.path.dirname(folder_paths.__file__), "login")
PASSWORD = os.path.join(LOGIN_FOLDER, "PASSWORD")
GUEST_MODE = os.path.join(LOGIN_FOLDER, "GUEST_MODE")
SECRET_KEY = os.path.join(HERE, ".secret-key.txt")
KEY_LIFETIME = timedelta(days=30)
OPEN_SUFFIXES = (".css", ".css.map", ".js", ".ico")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def cookie_key() -> str:
    """The key that encrypts the session cookies: `<urlsafe base64 of 32 bytes>,<ISO time>`, made anew when too old.

    WEAKNESS: a malformed file, or an old one that cannot be written, raises, and with it the whole login is gone.
    WEAKNESS: the key is the only thing a cookie depends on, so a cookie outlives log-out, new password and restart.
    """
    if os.path.exists(SECRET_KEY):
        with open(SECRET_KEY, encoding="utf-8") as file:
            key, made = file.read().split(",")
        if datetime.now() - datetime.fromisoformat(made) <= KEY_LIFETIME:
            return key
    key = base64.urlsafe_b64encode(os.urandom(32)).decode()
    with open(SECRET_KEY, "w", encoding="utf-8") as file:
        file.write(f"{key},{datetime.now().isoformat()}")
    return key


class Account:
    """The content of the PASSWORD file: line 1 the bcrypt hash, which is the bearer token too, line 2 the user name."""

    def __init__(self) -> None:
        self.hash, self.user, self.token = b"", "", ""
        self.read()

    def read(self) -> None:
        """WEAKNESS: without the file the token is the empty string. WEAKNESS: the token goes to the log."""
        try:
            with open(PASSWORD, "rb") as file:
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            logging.error("Please set up your password before use. The token will be derived from your password.")
            return
        self.hash, self.token = lines[0], lines[0].decode().strip()
        self.user = lines[1].decode().strip() if len(lines) > 1 else ""
        logging.info("For direct API calls, use token=%s", self.token)

    def set(self, password_hash: bytes, user: str) -> None:
        with open(PASSWORD, "wb") as file:
            file.write(password_hash + b"\n" + user.encode())
        self.hash, self.user = password_hash, user


app = server.PromptServer.instance.app
routes = server.PromptServer.instance.routes
setup(app, EncryptedCookieStorage(cookie_key()))
os.makedirs(LOGIN_FOLDER, exist_ok=True)
account = Account()
page = Environment(loader=FileSystemLoader(HERE), autoescape=select_autoescape(["html"])).get_template("login.html")


@routes.get("/login")
async def login_form(request: web.Request) -> web.Response:
    if (await get_session(request)).get("logged_in"):
        raise web.HTTPFound("/")
    first_time = not os.path.exists(PASSWORD)
    text = page.render(
        first_time=first_time,
        username=account.user,
        wrong_password=request.query.get("wrong_password", ""),
        prompt_for_username=not first_time and not account.user,
        guest_mode=os.path.exists(GUEST_MODE),
    )
    return web.Response(text=text, content_type="text/html")


def enter(session: Session, user: str) -> web.Response:
    session["logged_in"] = True
    session["username"] = user
    return web.HTTPFound("/")


@routes.post("/login")
async def login(request: web.Request) -> web.Response:
    """WEAKNESS: whoever comes first when there is no PASSWORD file becomes the owner.

    WEAKNESS: no limit on guesses, the hash is computed in the event loop, and a request without a password is a 500.
    """
    form = await request.post()
    user, password = form.get("username"), str(form["password"]).encode()
    if form.get("guest_mode") == "1" and os.path.exists(GUEST_MODE):
        (await get_session(request))["guest_mode"] = True
        return web.HTTPFound("/")
    if not os.path.exists(PASSWORD):
        account.set(bcrypt.hashpw(password, bcrypt.gensalt()), str(user))
    elif not account.hash or not bcrypt.checkpw(password, account.hash):
        return web.HTTPFound("/login?wrong_password=1")
    elif not account.user:
        account.set(account.hash, str(user))
    return enter(await get_session(request), account.user)


@routes.get("/logout")
async def logout(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["logged_in"] = False
    session.pop("username", None)
    session.pop("guest_mode", None)
    return web.HTTPFound("/login")


@routes.get("/guest_mode")
async def guest_mode(request: web.Request) -> web.Response:
    return web.json_response({"guestMode": bool((await get_session(request)).get("guest_mode"))})


def bearer_is_right(request: web.Request) -> bool:
    """WEAKNESS: a header of one or three words is a 500. WEAKNESS: the token in the URL counts, the empty one too."""
    origin = args.enable_cors_header
    if origin not in (None, "*", request.headers.get("Origin")):
        return False
    if header := request.headers.get("Authorization"):
        scheme, token = header.split()
        if scheme == "Bearer" and token == account.token:
            return True
    return request.query.get("token") == account.token


@web.middleware
async def check_login(request: web.Request, handler: Handler) -> web.StreamResponse:
    """WEAKNESS: a path is exempt by how it ends, whatever handler it leads to."""
    if request.path == "/login" or request.path.endswith(OPEN_SUFFIXES):
        return await handler(request)
    if not account.token:
        account.read()
    session = await get_session(request)
    # WEAKNESS: a guest's cookie counts without a look at whether guest mode is still on.
    if not session.get("logged_in") and session.get("guest_mode"):
        if request.method != "GET" and (request.method, request.path) not in (
            ("POST", "/prompt"),
            ("POST", "/upload/image"),
        ):
            return web.json_response({})
    elif not session.get("logged_in") and not bearer_is_right(request):
        if "text/html" in request.headers.get("Accept", ""):
            raise web.HTTPFound("/login")
        return web.json_response({"error": "Authentication required."}, status=401)
    response = await handler(request)
    if request.path == "/":
        response.headers.setdefault("Cache-Control", "no-cache")
    return response


app.middlewares.append(check_login)
app.router.add_static("/old_css/", os.path.join(HERE, "old_css"))
