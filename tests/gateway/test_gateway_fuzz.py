"""100,000 hostile requests over real sockets: none gets a byte of an application but its login page's.

`FUZZ_SEED=...` repeats a run's requests, `FUZZ_ANSWERS=...` sets how many answers it takes.
"""

import asyncio
import os
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from access_table import cells
from gateway_harness import MARKER, Gateway
from hostile import Hostile, Secrets

ANSWERS = int(os.environ.get("FUZZ_ANSWERS", "100000"))
SEED = os.environ.get("FUZZ_SEED") or secrets.token_hex(4)
CONNECTIONS = 48
KINDS = ("comfyui", "forge")
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SILENCE = 0.25  # seconds without an answer after which we say that we have no more to send
PATIENCE = 30.0

ANSWER = re.compile(rb"(?=HTTP/1\.[01] [0-9]{3}[ \r])")
PAGES = (
    b"",
    b"up\n",
    b"a part of the login page",
    b"<title>ComfyUI Login</title>",
    b'<script>{"auth_required":true}</script>',
)
# What the guard itself asks an application for: parts of the login page, which may come with the address of whoever
# wants them, and questions as a stranger or to confirm a credential.
GUARDS_PAGES = {
    "comfyui": re.compile(r"(GET|HEAD) (/login(\?(wrong_password=1)?)?|/old_css/style\.css\??)"),
    "forge": re.compile(
        r"(GET|HEAD) (/(\?(__theme=(light|dark|system))?)?|/theme\.css(\?(v=([0-9a-f]*|undefined))?)?"
        r"|/favicon\.ico\??|/assets/.*|/static/img/.*)"
    ),
}
GUARDS_QUESTIONS = {
    "comfyui": {"GET /prompt", "GET /guest_mode"},
    "forge": {"GET /config", "GET /sdapi/v1/samplers", "GET /login_check"},
}


@dataclass
class Findings:
    """What came of it all; `leaks` are the requests that got what they must not."""

    statuses: Counter[int] = field(default_factory=Counter)
    judged: int = 0
    leaks: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    owners: Counter[str] = field(default_factory=Counter)

    def take(self, sent: bytes, received: bytes) -> None:
        """Judge all answers on one connection."""
        if MARKER in received:
            self.leaks.append(f"{sent!r} -> {received!r}")
        for answer in ANSWER.split(received):
            if not answer:
                continue
            if not answer.startswith(b"HTTP/1."):
                self.leaks.append(f"{sent!r} -> not an answer: {answer!r}")
                continue
            status = int(answer[9:12])
            self.statuses[status] += 1
            self.judged += b'{"error": ' in answer
            if status == 101 or (status < 300 and answer.partition(b"\r\n\r\n")[2] not in PAGES and status != 100):
                self.leaks.append(f"{sent!r} -> {answer!r}")
            # 502 too, for a body that ends in the middle or is none, on its way to the guard.
            elif status >= 500 and status not in (501, 502, 505):
                self.broken.append(f"{sent!r} -> {answer!r}")


async def talk(port: int, sent: bytes, address: str, *, patience_to_end: float = PATIENCE) -> bytes:
    """Send everything on one connection and read until its end; say that this was all after so much silence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    received, more_to_say = bytearray(), True
    try:
        writer.write(sent)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                part = await asyncio.wait_for(reader.read(65536), patience_to_end if more_to_say else PATIENCE)
            except asyncio.TimeoutError:
                more_to_say = False
                with suppress(OSError):  # they may have ended it meanwhile
                    writer.write_eof()
                continue
            except ConnectionError:
                break
            if not part:
                break
            received += part
    finally:
        writer.transport.abort()
    return bytes(received)


async def attack(findings: Findings, hostile: dict[str, Hostile], ports: dict[str, int], seed: str) -> None:
    """One of the callers: connection after connection, each with up to 24 requests ahead of the answers."""
    dice = random.Random(seed)
    while sum(findings.statuses.values()) < ANSWERS:
        kind = dice.choice(KINDS)
        sent = b"".join((*hostile[kind].requests(), LAST))
        address = f"127.{dice.randrange(1, 255)}.{dice.randrange(256)}.{dice.randrange(1, 255)}"
        try:
            findings.take(sent, await talk(ports[kind], sent, address, patience_to_end=SILENCE))
        except OSError as error:
            findings.broken.append(f"{sent!r} -> {error!r}")


async def own(findings: Findings, port: int, credential: bytes, target: bytes) -> None:
    """The owner, who gets the answer to each request all the while."""
    number = 0
    while True:
        number += 1
        path = target + b"owner=%d" % number
        request = b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\nConnection: close\r\n\r\n" % (path, credential)
        answer = await talk(port, request, "127.0.0.1")
        if answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(MARKER + b" GET " + path + b" 0"):
            findings.owners[credential.decode()] += 1
        else:
            findings.broken.append(f"the owner's {path!r} -> {answer!r}")
        await asyncio.sleep(0.2)


async def run(
    findings: Findings, hostile: dict[str, Hostile], ports: dict[str, int], owner: list[tuple[str, str]]
) -> None:
    targets = {"comfyui": b"/queue?", "forge": b"/config?", "Basic": b"/sdapi/v1/options?"}
    owners = [
        asyncio.create_task(
            own(findings, ports[kind], credential.encode(), targets["Basic" if "Basic" in credential else kind])
        )
        for kind, credential in owner
    ]
    await asyncio.gather(*(attack(findings, hostile, ports, f"{SEED} {number}") for number in range(CONNECTIONS)))
    for task in owners:
        task.cancel()
    await asyncio.gather(*owners, return_exceptions=True)
    for task in owners:
        if not task.cancelled():
            raise AssertionError from task.exception()


def make_hostile(gateway: Gateway, sessions: dict[str, str]) -> dict[str, Hostile]:
    """The makers of requests to each application, each knowing what is right and must not be said."""
    authorization = {kind: gateway.authorization(kind).encode() for kind in KINDS}
    rows = {kind: [(cell.method, cell.target) for cell in cells() if cell.kind == kind] for kind in KINDS}
    made = {}
    for kind, other in (KINDS, KINDS[::-1]):
        right, session = authorization[kind].split()[1], sessions[kind].partition("=")[2].encode()
        misplaced = (
            (b"X-Authorization", authorization[kind]),
            (b"Proxy-Authorization", authorization[kind]),
            (b"WWW-Authenticate", authorization[kind]),
            (b"Authorization", right),
            (b"Authorization", authorization[kind].replace(b" ", b"  ")),
            (b"Authorization", authorization[kind] + b", " + authorization[kind]),
            (b"Authorization", authorization[kind] + b"\r\nAuthorization: " + authorization[kind]),
            (b"Authorization", b"Token " + right),
            (b"Authorization", b"Bearer " + session),
            (b"Cookie", b"token=" + right),
            (b"Cookie", b"AIOHTTP_SESSION=" + right + b"; access-token-x=" + right),
            (b"Cookie", b"session=" + session),
            (b"Referer", b"http://x/?token=" + right),
        )
        foreign = ((b"Authorization", authorization[other]), (b"Cookie", sessions[other].encode()))
        hidden = Secrets((b"Authorization", authorization[kind]), (right, session), foreign, misplaced)
        made[kind] = Hostile(rows[kind], hidden, gateway.ports[kind], f"{SEED} {kind}")
    return made


def strangers_requests(gateway: Gateway, kind: str) -> list[dict[str, Any]]:
    """What an application was asked by neither the guard nor the owner."""
    found = []
    for request in gateway.applications[kind].requests():
        line = f"{request['method']} {request['target']}"
        asked = line in GUARDS_QUESTIONS[kind] and not request["X-Forwarded-For"]
        fetched = bool(GUARDS_PAGES[kind].fullmatch(line))
        owners = bool(re.search(r"[?]owner=[0-9]+$", request["target"]))
        # Only what Caddy asks the guard about carries X-Forwarded-Uri.
        if not (asked or fetched or owners) or request["X-Forwarded-Uri"]:
            found.append(request)
    return found


def status_of(pid: int) -> str:
    return next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_no_hostile_request_gets_a_byte(own_gateway: Callable[..., Gateway], record_property: Any) -> None:
    gateway = own_gateway()
    sessions = {kind: gateway.session(kind) for kind in KINDS}
    owner = [(kind, f"Authorization: {gateway.authorization(kind)}") for kind in KINDS]
    owner += [(kind, f"Cookie: {session}") for kind, session in sessions.items()]
    gateway.applications["comfyui"].log.write_text("")
    gateway.applications["forge"].log.write_text("")
    silent = len(gateway.output.read_text())
    findings, before, started = Findings(), children(gateway.process.pid), time.monotonic()
    print(f"FUZZ_SEED={SEED}")
    asyncio.run(run(findings, make_hostile(gateway, sessions), gateway.ports, owner))
    print(
        f"{sum(findings.statuses.values())} answers in {time.monotonic() - started:.0f} s, {findings.judged} of the guard"
    )
    print(dict(findings.statuses))
    print(f"memory of guard and Caddy: {[status_of(child) for child in before]}")
    print(f"owner: {list(findings.owners.values())}")
    assert findings.leaks == []
    for kind in KINDS:
        assert strangers_requests(gateway, kind) == []
    assert findings.broken == []
    assert children(gateway.process.pid) == before
    assert len(findings.owners) == len(owner)
    output = gateway.output.read_text()[silent:]
    for trouble in ("Traceback", "panic", "not served", "watch broken", gateway.accounts["comfyui"]["password_bcrypt"]):
        assert trouble not in output, trouble
