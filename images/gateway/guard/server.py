"""The guard's server: a thin shell that Caddy asks about every request, on a socket that only Caddy can reach.

Caddy says in `X-Atelier-Purpose` what it wants: `judge` (forward_auth; a 2xx lets the request pass), `serve` (the guard
itself answers a login page or a login), `health` (`/healthz` of one application) or `alive` (the container's health).
Caddy sets these headers itself and drops what a caller sent under their names.
"""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from guard.admission import Admission, OverloadedError, PasswordCheck, caller
from guard.answers import RETRY_SECONDS, cookie_end, hardened, not_served, preflight, readable_from, refusal
from guard.attempts import Attempts, Limits, TooManyAttemptsError
from guard.client import Client, read_client
from guard.config import Application, Config
from guard.conversation import Answer, Conversation, ConversationError
from guard.decide import (
    Ask,
    Open,
    Preflight,
    Refuse,
    Request,
    declared_origin,
    issued_cookies,
    judge,
    own_cookies,
    shuts_out,
)
from guard.guessing import LockOut
from guard.pages import Bounds, Delivery, Places, TooManyPagesError
from guard.watch import PATIENCE, AnswersStrangersError, Watch, prove_closed

FORM_LIMIT = 64 * 1024  # bytes of a login form
HEADER_LIMIT = 32 * 1024  # bytes of a header line or the request line; Caddy's own limit is lower
BACKLOG = 4096  # connections that wait to be taken; a full Unix socket refuses at once, which Caddy reports as 502
# What Caddy says with each purpose; without it there is nobody to judge.
NEEDED = {
    "judge": ("X-Atelier-Application", "X-Atelier-Peer", "X-Forwarded-Method", "X-Forwarded-Uri"),
    "serve": ("X-Atelier-Application", "X-Atelier-Peer"),
    "health": ("X-Atelier-Application",),
}
PAGE_HEADERS = frozenset({"content-type", "set-cookie", "location", "etag", "last-modified", "cache-control"})


class Gate:
    """Everything the guard does for one application."""

    def __init__(
        self, application: Application, config: Config, check_password: PasswordCheck, limits: Limits, bounds: Bounds
    ) -> None:
        self.application = application
        self._config = config
        self.admission = Admission(application, check_password, Attempts(application.name, limits, self._on_lock_out))
        self.watch = Watch(application, self._on_change)
        self._form_seconds = bounds.form_seconds
        self._places, self._delivery = Places(bounds), Delivery(bounds)
        self._fetches = asyncio.Semaphore(bounds.fetches)

    async def judge(self, request: web.Request) -> web.Response:
        """Let a request pass to the application, to the guard's own pages, or not at all."""
        headers = tuple(request.headers.items())
        client = self._client(request)
        asked = Request(
            request.headers["X-Forwarded-Method"], request.headers["X-Forwarded-Uri"], headers, client.scheme
        )
        return await self._answer(asked, self._verdict(asked, client))

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer in the application's place what is open to strangers."""
        client = self._client(request)
        asked = Request(request.method, request.raw_path, tuple(request.headers.items()), client.scheme)
        verdict = self._judge(asked)
        if isinstance(verdict, Ask):
            verdict = verdict.otherwise
        if isinstance(verdict, Preflight):
            return self._readable(asked, preflight())
        if not isinstance(verdict, Open):
            return refusal(Refuse(403, "not a part of the login page"))
        if verdict.login:
            return await self._answer(asked, self._login(request, client))
        try:
            with self._places.taken_by(client.counted_as):
                page = await self._answer(asked, self._open_page(request, client))
                return await self._delivery.send(request, page)
        except TooManyPagesError:
            reason = "too many pages are being sent; try again"
            return self._readable(asked, refusal(Refuse(429, reason, retry_after=RETRY_SECONDS)))

    def health(self) -> web.Response:
        """Up or down, and nothing else."""
        up = self.watch.refusal is None
        return web.Response(status=200 if up else 503, text="up\n" if up else "down\n")

    def _client(self, request: web.Request) -> Client:
        forwarded = [request.headers.get(f"X-Atelier-Forwarded-{what}", "") for what in ("For", "Proto")]
        return read_client(request.headers["X-Atelier-Peer"], forwarded[0], forwarded[1], self._config.surroundings)

    async def _verdict(self, asked: Request, client: Client) -> web.Response:
        verdict = self._judge(asked)
        if isinstance(verdict, Ask):
            try:
                admitted = await self.admission.admits(verdict.credential, client)
            except TooManyAttemptsError:
                if shuts_out(verdict.otherwise):
                    raise
                admitted = False
            if admitted:
                return self._pass_on(asked, verdict, client)
            self._log_failure(asked.value("x-request-id"), client, verdict.credential.scheme)
            verdict = verdict.otherwise
        if isinstance(verdict, Open | Preflight):
            return web.Response(headers={"X-Atelier-Route": "guard", "X-Atelier-Who": "", "X-Atelier-Cookie": ""})
        return refusal(verdict)

    async def _open_page(self, request: web.Request, client: Client) -> web.Response:
        async with self._fetches:
            return await self._fetch(request, client, request.raw_path)

    async def _login(self, request: web.Request, client: Client) -> web.Response:
        try:
            form = await asyncio.wait_for(_read_form(request), self._form_seconds)
        except asyncio.TimeoutError:
            late = refusal(Refuse(408, "the login form did not come in time; try again"))
            late.force_close()
            return late
        user, password = form.get("username"), form.get("password")
        is_comfyui = self.application.policy.kind == "comfyui"
        # ComfyUI's form has no user field once the account exists, and its handler does not compare the name.
        named = None if is_comfyui or not isinstance(user, str) else user
        if not isinstance(password, str) or (named is None and not is_comfyui):
            return refusal(Refuse(422, "a login needs its form fields"))
        if not await self.admission.login_is_right(named, password, client):
            self._log_failure(request.headers.get("X-Request-Id", ""), client, "login")
            if is_comfyui:
                return refusal(Refuse(302, "wrong password", location="/login?wrong_password=1"))
            return refusal(Refuse(400, "wrong user name or password"), detail="Incorrect credentials.")
        fields = {"username": self.application.account.user, "password": password}
        answer = await self._fetch(request, client, "/login", urlencode(fields).encode())
        self.admission.expect(issued_cookies(answer.headers.getall("Set-Cookie", []), self.application.policy))
        return answer

    async def _fetch(self, request: web.Request, client: Client, target: str, form: bytes = b"") -> web.Response:
        application = self.application
        kept = ("X-Forwarded-Host", "If-None-Match")
        headers = [(name, request.headers[name]) for name in kept if name in request.headers]
        headers.append(("X-Forwarded-Proto", client.scheme))
        if form:
            headers.append(("Content-Type", "application/x-www-form-urlencoded"))
        talk = await Conversation.open(application.host, application.port, patience=PATIENCE)
        try:
            answer = await talk.ask(
                target, headers, patience=PATIENCE, method=request.method, host=request.host, body=form
            )
            # The same process must refuse a stranger, else this may be more than a login page.
            await prove_closed(talk, application.policy.stranger_paths[:1])
        finally:
            talk.close()
        return _passed_on(answer, client)

    def _pass_on(self, asked: Request, verdict: Ask, client: Client) -> web.Response:
        policy, other_site = self.application.policy, declared_origin(asked, self._config.cors_origins)
        return web.Response(
            headers={
                "X-Atelier-Route": "application",
                "X-Atelier-Who": caller(verdict.credential, self.application),
                "X-Atelier-Client": str(client.address),
                "X-Atelier-Proto": client.scheme,
                "X-Atelier-Body": "upload" if verdict.uploads else "small",
                "X-Atelier-Origin": other_site or "",
                "X-Atelier-Cookie": "" if other_site else own_cookies(asked.values("cookie"), policy),
                "X-Atelier-Cookie-End": cookie_end(secure=client.secure),
            }
        )

    def _judge(self, asked: Request) -> Refuse | Open | Ask | Preflight:
        return judge(
            asked,
            self.application.policy,
            allow_query_token=self.application.allow_query_token,
            declared_origins=self._config.cors_origins,
        )

    async def _answer(self, asked: Request, work: Coroutine[None, None, web.Response]) -> web.Response:
        refused = self.watch.refusal
        if refused is None:
            return self._readable(asked, await self._guarded(asked, work))
        work.close()
        return self._readable(asked, self._not_served(asked, refused))

    async def _guarded(self, asked: Request, work: Coroutine[None, None, web.Response]) -> web.Response:
        try:
            return await work
        except AnswersStrangersError as error:
            self.watch.distrust(str(error))
            return self._not_served(asked, str(error))
        except ConversationError as error:
            return self._not_served(asked, str(error))
        except OverloadedError:
            return refusal(Refuse(429, "too many logins are being checked; try again", retry_after=RETRY_SECONDS))
        except TooManyAttemptsError as error:
            reason = f"too many wrong credentials; try again in {error.seconds} s"
            return refusal(Refuse(429, reason, retry_after=error.seconds))

    def _not_served(self, asked: Request, reason: str) -> web.Response:
        return not_served(self.application.policy.title, reason, as_page=asked.wants_page)

    def _readable(self, asked: Request, answer: web.Response) -> web.Response:
        other_site = declared_origin(asked, self._config.cors_origins)
        return readable_from(answer, other_site) if other_site else answer

    def _on_change(self, refusal: str | None) -> None:
        self.admission.forget()
        if refusal is None:
            log("served", application=self.application.name)
        else:
            log("not served", application=self.application.name, reason=refusal)

    def _on_lock_out(self, lock_out: LockOut, client: Client | None) -> None:
        whose = {"account": self.application.name} if client is None else {"address": client.name}
        log("locked out", **whose, failures=lock_out.failures, seconds=lock_out.seconds)

    def _log_failure(self, request_id: str, client: Client, scheme: str) -> None:
        log(
            "credential refused",
            application=self.application.name,
            scheme=scheme,
            address=client.name,
            request_id=request_id,
        )


async def _read_form(request: web.Request) -> Mapping[str, object]:
    """A form's fields; none of a form that cannot be read."""
    try:
        form = await request.post()
        "".join(value for value in form.values() if isinstance(value, str)).encode()  # some character sets make no text
        return form
    except web.HTTPException:  # too large
        raise
    except Exception:  # aiohttp has a dozen kinds for broken boundaries, encodings, character sets
        return {}


def _passed_on(answer: Answer, client: Client) -> web.Response:
    headers = [
        (name, hardened(value, secure=client.secure) if name.lower() == "set-cookie" else value)
        for name, value in answer.headers
        if name.lower() in PAGE_HEADERS
    ]
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def log(event: str, **fields: str | int) -> None:
    """One JSON line on stderr, in one write: Caddy writes there as well."""
    sys.stderr.write(json.dumps({"ts": round(time.time(), 3), "logger": "guard", "event": event, **fields}) + "\n")


def build(config: Config, bounds: Bounds) -> web.Application:
    """The guard as an aiohttp application."""
    check_password, limits = PasswordCheck(), Limits()
    gates = {
        name: Gate(application, config, check_password, limits, bounds)
        for name, application in config.applications.items()
    }

    async def handle(request: web.Request) -> web.StreamResponse:
        purpose = request.headers.get("X-Atelier-Purpose")
        if purpose == "alive":
            return web.Response(text="alive\n")
        if purpose not in NEEDED or any(name not in request.headers for name in NEEDED[purpose]):
            return refusal(Refuse(400, "the gateway's own headers are missing"))
        gate = gates[request.headers["X-Atelier-Application"]]
        if purpose == "health":
            return gate.health()
        return await (gate.judge(request) if purpose == "judge" else gate.serve(request))

    async def watching(_: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(gate.watch.run()) for gate in gates.values()]
        for task in tasks:
            task.add_done_callback(_end_when_broken)
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app = web.Application(client_max_size=FORM_LIMIT)
    app.router.add_route("*", "/{tail:.*}", handle)
    app.cleanup_ctx.append(watching)
    return app


def _end_when_broken(task: asyncio.Task[None]) -> None:
    # Without its watch an application would stay served whatever it becomes.
    if not task.cancelled() and (error := task.exception()):
        log("watch broken", reason=repr(error))
        os._exit(1)


def _is_readable(record: logging.LogRecord) -> bool:
    # What cannot be read is refused, and in Caddy's access log; aiohttp would show its first line, credentials and all.
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError))


def run(config: Config, socket: Path, bounds: Bounds) -> None:
    """Serve on a Unix socket until SIGTERM."""
    logging.getLogger("aiohttp.server").addFilter(_is_readable)
    web.run_app(
        build(config, bounds),
        path=str(socket),
        access_log=None,
        print=None,
        backlog=BACKLOG,
        keepalive_timeout=3600,
        shutdown_timeout=1,
        lingering_time=1,
        max_line_size=HEADER_LIMIT,
        max_field_size=HEADER_LIMIT,
    )
