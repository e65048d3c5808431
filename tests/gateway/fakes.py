"""Small programs with the protocol and the documented weaknesses of ComfyUI with ComfyUI-Login, and of Forge.

    python fakes.py comfyui|forge PORT ACCOUNT_JSON REQUEST_LOG [open]

`open` starts it without its login, as the real ones do when the plugin fails to import or the auth file is empty;
SIGUSR1 opens and closes a running one. Every answer but the login page's holds the marker, every request is logged.
"""

import asyncio
import base64
import json
import secrets
import signal
import sys
from pathlib import Path

from aiohttp import web

MARKER = "APPLICATION BYTES"
SUFFIXES = (".js", ".css", ".css.map", ".ico")
SESSION, GUEST = "gAAAA-good", "gAAAA-guest"


class Fake:
    def __init__(self, account: dict[str, str], log: Path, is_open: bool) -> None:
        self.account, self.is_open = account, is_open
        self.log = log.open("a")
        self.session_name = "access-token-" + secrets.token_urlsafe(4).replace("-", "_")
        self.sessions: set[str] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        names = ("Authorization", "Cookie", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Uri", "X-Atelier-Who")
        names += ("X-Real-IP", "Forwarded", "Origin", "Sec-Fetch-Site")
        shown = {name: request.headers.get(name) for name in names}
        self.log.write(
            json.dumps({"method": request.method, "target": request.raw_path, "open": self.is_open, **shown}) + "\n"
        )
        self.log.flush()
        return await self.answer(request)

    async def served(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(f"{MARKER} {message.data}")
            return socket
        if request.path == "/view":
            return web.Response(body=MARKER.encode() + b"x" * int(request.query.get("bytes", "0")))
        if request.path == "/slow":
            await asyncio.sleep(float(request.query["seconds"]))
            return web.Response(text=MARKER)
        if request.path == "/events":
            stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await stream.prepare(request)
            while True:
                await stream.write(f"data: {MARKER}\n\n".encode())
                await asyncio.sleep(float(request.query["seconds"]))
        if request.path == "/cookies":
            cookies = [("Set-Cookie", cookie) for cookie in request.headers.getall("X-Set-Cookie")]
            return web.Response(text=MARKER, headers=cookies)
        body = await request.read()
        headers = {"Server": "Fake/1.0", "Access-Control-Allow-Origin": "https://evil.example"}
        headers |= {
            "Access-Control-Allow-Credentials": "true",
            "Vary": "Accept",
            "X-Powered-By": "Fake",
            "Via": "1.1 fake",
        }
        headers |= {"Content-Security-Policy": "default-src 'self'", "X-Frame-Options": "ALLOWALL"}
        return web.Response(text=f"{MARKER} {request.method} {request.raw_path} {len(body)}", headers=headers)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError


class ComfyUI(Fake):
    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.is_open:
            return await self.known(request)
        if request.path == "/login":
            if request.method == "POST":
                form = await request.post()
                if form["password"] != self.account["password"]:  # a missing field is a 500, as upstream's
                    return web.Response(status=302, headers={"Location": "/login?wrong_password=1"})
                answer = web.Response(status=302, headers={"Location": "/"})
                answer.set_cookie("AIOHTTP_SESSION", GUEST if form.get("guest_mode") == "1" else SESSION, httponly=True)
                answer.set_cookie("theme", "dark", samesite="None", secure=True)
                return answer
            return web.Response(text="<title>ComfyUI Login</title>", content_type="text/html")
        if request.path == "/old_css/style.css":
            return web.Response(text="a part of the login page")
        session = request.cookies.get("AIOHTTP_SESSION")
        authorization = request.headers.get("Authorization")
        if request.path.endswith(SUFFIXES) or session == SESSION:
            return await self.known(request)
        if session == GUEST:
            return await self.known(request, guest=True) if request.method == "GET" else web.json_response({})
        if authorization:
            scheme, token = authorization.split()  # a bare `Bearer` is a 500, as upstream's
            if scheme == "Bearer" and token == self.account["password_bcrypt"]:
                return await self.known(request)
        if request.query.get("token") == self.account["password_bcrypt"]:
            return await self.known(request)
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(status=302, headers={"Location": "/login"})
        return web.json_response({"error": "Authentication required."}, status=401)

    async def known(self, request: web.Request, guest: bool = False) -> web.StreamResponse:
        if request.path == "/guest_mode":
            return web.json_response({"guestMode": guest, "marker": MARKER})
        if request.path == "/internal/logs":
            return web.Response(text=f"{MARKER} For direct API calls, use token={self.account['password_bcrypt']}")
        return await self.served(request)


class Forge(Fake):
    OPEN_TO_ALL = ("/internal/", "/sd_extra_networks/", "/sdapi/v1/loras", "/controlnet/", "/docs", "/app_id", "/token")
    LOGIN_PAGE = ("/assets/", "/static/", "/theme.css", "/favicon.ico")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/login" and request.method == "POST":
            form = await request.post()
            if (form["username"], form["password"]) != (self.account["user"], self.account["password"]):
                return web.json_response({"detail": "Incorrect credentials."}, status=400)
            token = secrets.token_urlsafe(16)
            self.sessions.add(token)
            answer = web.json_response({"success": True})
            answer.set_cookie(self.session_name, token, httponly=True)
            return answer
        if path == "/assets/large.js":
            return web.Response(body=b"x" * 4_000_000, content_type="text/javascript")
        if path.startswith(self.LOGIN_PAGE):
            return web.Response(text="a part of the login page")
        logged_in = request.cookies.get(self.session_name) in self.sessions
        if path == "/" and not logged_in and not self.is_open:
            return web.Response(text='<script>{"auth_required":true}</script>', content_type="text/html")
        if path == "/login_check":
            return web.json_response("ok") if logged_in or self.is_open else web.Response(status=401)
        if path == "/sdapi/v1/cmd-flags":
            return web.Response(text=f"{MARKER} --gradio-auth {self.account['password']}")
        if self.is_open or path.startswith(self.OPEN_TO_ALL):
            return await self.served(request)
        right = base64.b64encode(f"{self.account['user']}:{self.account['password']}".encode()).decode()
        is_api = path.startswith("/sdapi/")
        if (request.headers.get("Authorization") == f"Basic {right}") if is_api else logged_in:
            return await self.served(request)
        return web.json_response({"detail": "Not authenticated"}, status=401)


async def main() -> None:
    kind, port, account, log, *rest = sys.argv[1:]
    fake = {"comfyui": ComfyUI, "forge": Forge}[kind](json.loads(account), Path(log), rest == ["open"])

    def toggle() -> None:
        fake.is_open = not fake.is_open

    app = web.Application(client_max_size=1024**3)
    app.router.add_route("*", "/{tail:.*}", fake.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(port), reuse_address=True).start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, toggle)
    await asyncio.Event().wait()


asyncio.run(main())
