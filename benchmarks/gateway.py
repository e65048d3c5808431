"""The gateway beside the application alone, on this computer's loopback, in one run: `make bench`.

`.venv/bin/python -m benchmarks.gateway [SECTION ...]` runs these sections, or all: latency, transfers, sockets,
guesses. Real Caddy and guard as in the container, without TLS, before the doubles of ComfyUI and Forge
(ATELIER_COMFYUI_SOURCE names a real ComfyUI). Clients, gateway and applications share the cores, so what else the
machine does comes on top: each section says the load it saw.
"""

import asyncio
import base64
import gc
import importlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import bcrypt

from atelier import paths
from benchmarks.weights import load
from sandbox.doubles import local

sys.path.append(str(paths.PROJECT / "tests" / "gateway"))
harness = importlib.import_module("gateway_harness")

MB = 1000 * 1000
CLIENTS, RATE = 32, 300  # requests a second of all clients together
ROUNDS, SECONDS = 5, 4
DOWNLOAD, UPLOAD = 100 * MB, 500 * MB
SOCKETS = 500
GUESSERS, WATCHED = 100, 8
USER, PASSWORD = "owner", "Bench-pass-123"
PING, PONG = b"\x89\x80\x00\x00\x00\x00", b"\x8a\x00"


@dataclass(frozen=True)
class Bench:
    """The running gateway and what is behind it."""

    direct: int
    gateway: int
    forge_gateway: int
    token: str
    session: str
    output: Path
    processes: dict[str, int]

    @property
    def ways(self) -> dict[str, int]:
        """The two ways to ComfyUI, as ports."""
        return {"direct": self.direct, "gateway": self.gateway}

    @property
    def owner(self) -> bytes:
        """The owner's header."""
        return f"Authorization: Bearer {self.token}\r\n".encode()


@contextmanager
def running() -> Iterator[Bench]:
    """Both doubles and the gateway before them."""
    token = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(12)).decode()
    account = {"user": USER, "password": PASSWORD, "password_bcrypt": token}
    with tempfile.TemporaryDirectory() as name, ExitStack() as ending:
        root = Path(name)
        for folder in ("comfyui", "forge", "gateway"):
            (root / folder).mkdir()
        local.lay_out_comfyui(root / "comfyui", f"{token}\n{USER}\n")
        limit = f"--max-upload-size={2 * UPLOAD // MB}"
        comfyui = ending.enter_context(local.stopping(lambda: local.start_comfyui(root / "comfyui", limit)))
        local.lay_out_forge(root / "forge")
        (root / "forge" / "auth").write_text(f"{USER}:{PASSWORD}\n")
        flags = ["--api", f"--gradio-auth-path={root / 'forge' / 'auth'}", f"--api-auth={USER}:{PASSWORD}"]
        forge = ending.enter_context(local.stopping(lambda: local.start_forge(root / "forge", *flags)))
        upstreams = {"comfyui": comfyui.port, "forge": forge.port}
        ports = {kind: harness.free_port() for kind in upstreams}
        where = root / "gateway"
        accounts = dict.fromkeys(upstreams, account)
        harness.write_config(where, accounts, upstreams, ports, max_body_mb=2 * UPLOAD // MB)
        output = where / "output.log"
        process = harness.start_entrypoint(where, sys.executable, harness.free_port(), output)
        ending.callback(process.wait, 20)
        ending.callback(process.terminate)
        served = harness.Gateway(ports, {}, accounts, process, 0, output)
        for kind in upstreams:
            served.wait(kind, 200, 60)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        processes = {"Caddy" if comm(int(pid)) == "caddy" else "guard": int(pid) for pid in children}
        session = served.session("comfyui")
        yield Bench(
            comfyui.port, ports["comfyui"], ports["forge"], token, session, root / "comfyui" / "output", processes
        )


def comm(pid: int) -> str:
    """A process's name."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def memory(bench: Bench, field: str = "VmRSS") -> str:
    """What the gateway's two processes hold, in MB; VmHWM: at most so far."""
    held = {}
    for name, pid in bench.processes.items():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        held[name] = next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1000
    return ", ".join(f"{name} {megabytes} MB" for name, megabytes in sorted(held.items()))


class Connection:
    """One kept connection, a request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, request: bytes) -> int:
        """The status of the answer, all of which is read."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0)
        await self._reader.readexactly(length)
        return int(head[9:12])

    def close(self) -> None:
        """Let it go."""
        self._writer.transport.abort()


def asking(header: bytes, target: bytes = b"/prompt", method: bytes = b"GET", body: bytes = b"") -> bytes:
    """One request."""
    framing = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n" % len(body) if body else b""
    return b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s%s\r\n%s" % (method, target, header, framing, body)


async def at_a_rate(port: int, request: bytes, seconds: float) -> list[float]:
    """Milliseconds from when each request was due to its answer, so that a late one makes those behind it late too."""
    connections = [await Connection.open(port) for _ in range(CLIENTS)]
    for connection in connections:
        assert await connection.ask(request) == 200
    taken: list[float] = []
    started = time.perf_counter() + 0.1

    async def client(number: int) -> None:
        for turn in count():
            due = started + (turn * CLIENTS + number) / RATE
            if due > started + seconds:
                return
            await asyncio.sleep(due - time.perf_counter())
            assert await connections[number].ask(request) == 200
            taken.append((time.perf_counter() - due) * 1000)

    await asyncio.gather(*map(client, range(CLIENTS)))
    for connection in connections:
        connection.close()
    return taken


def p99(values: list[float]) -> float:
    """What 99 of 100 stay under."""
    return statistics.quantiles(values, n=100)[98]


def latency(bench: Bench) -> None:
    """Added by the gateway at a fixed rate."""
    taken: dict[str, list[float]] = {way: [] for way in bench.ways}
    for _ in range(ROUNDS):
        for way, port in bench.ways.items():
            taken[way] += asyncio.run(at_a_rate(port, asking(bench.owner), SECONDS))
    for way, values in taken.items():
        print(f"  {way}: median {statistics.median(values):.2f} ms, p99 {p99(values):.2f} ms of {len(values)}")
    added = [find(taken["gateway"]) - find(taken["direct"]) for find in (statistics.median, p99)]
    print(f"  added: median {added[0]:.2f} ms (at most 2), p99 {added[1]:.2f} ms (at most 10)", flush=True)


def download(bench: Bench, port: int) -> float:
    """Seconds for the whole file."""
    request = asking(bench.owner + b"Connection: close\r\n", b"/view?filename=big.png&type=output")
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        buffer, received = bytearray(1 << 20), 0
        while got := connection.recv_into(buffer):
            if not received:
                assert buffer.startswith(b"HTTP/1.1 200 ")
            received += got
    assert received > DOWNLOAD
    return time.perf_counter() - started


def upload(bench: Bench, port: int, content: bytes) -> float:
    """Seconds until the application has the whole file."""
    name = b'Content-Disposition: form-data; name="%s"'
    before = (
        b"--b\r\n" + name % b"overwrite" + b"\r\n\r\n1\r\n--b\r\n" + name % b"image" + b'; filename="up.png"\r\n\r\n'
    )
    after = b"\r\n--b--\r\n"
    framing = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\nConnection: close\r\n"
    head = asking(bench.owner + framing % (len(before) + len(content) + len(after)), b"/upload/image", b"POST")
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for part in (head, before, content, after):
            connection.sendall(part)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
    return time.perf_counter() - started


def transfers(bench: Bench) -> None:
    """Large files both ways, in turn, and what the gateway held at most."""
    (bench.output / "big.png").write_bytes(os.urandom(DOWNLOAD))
    content = bytes(UPLOAD)
    for pid in bench.processes.values():
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM starts again
    before = memory(bench)
    jobs: list[tuple[str, int, int, Callable[[int], float]]] = [
        ("download /view", DOWNLOAD, 7, lambda port: download(bench, port)),
        ("upload /upload/image", UPLOAD, 3, lambda port: upload(bench, port, content)),
    ]
    for what, size, runs, move in jobs:
        times: dict[str, list[float]] = {way: [] for way in bench.ways}
        for _ in range(runs):
            for way, port in bench.ways.items():
                times[way].append(move(port))
        speeds = {way: size / MB / statistics.median(values) for way, values in times.items()}
        print(f"  {what}, {size // MB} MB: " + ", ".join(f"{way} {speed:.0f} MB/s" for way, speed in speeds.items()))
        print(f"    gateway / direct {speeds['gateway'] / speeds['direct']:.2f} (at least 0.8)", flush=True)
    print(f"  memory before: {before}; at most: {memory(bench, 'VmHWM')}", flush=True)


async def open_sockets(bench: Bench) -> None:
    """WebSockets by the hundred, each alive once all are open."""
    shake = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    shake += base64.b64encode(bytes(16)) + b"\r\n"
    before, started = memory(bench), time.perf_counter()

    async def one(number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.gateway)
        writer.write(asking(bench.owner + shake, b"/ws?clientId=%d" % number))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return reader, writer

    opened = await asyncio.gather(*map(one, range(SOCKETS)))
    seconds = time.perf_counter() - started
    for _, writer in opened:
        writer.write(PING)

    async def pong(reader: asyncio.StreamReader) -> bool:
        return bool(await asyncio.wait_for(reader.readuntil(PONG), 20))

    alive = sum(await asyncio.gather(*(pong(reader) for reader, _ in opened)))
    held = memory(bench)
    for _, writer in opened:
        writer.transport.abort()
    print(f"  {alive} of {SOCKETS} WebSockets open and answering; opened in {seconds:.1f} s")
    print(f"  memory before: {before}; with all: {held}", flush=True)


async def guess(port: int, make: Callable[[int], bytes], until: asyncio.Event, seen: Counter[int]) -> None:
    """Guess once a second, each on a connection of its own."""
    for number in count():
        if until.is_set():
            return
        connection = await Connection.open(port)
        began = time.perf_counter()
        seen[await connection.ask(make(number))] += 1
        connection.close()
        await asyncio.sleep(began + 1 - time.perf_counter())


async def watch_owner(bench: Bench, headers: list[bytes], seconds: float) -> list[float]:
    """Milliseconds of the owner's requests, 50 a second."""
    connection, started = await Connection.open(bench.gateway), time.perf_counter()
    taken: list[float] = []
    while time.perf_counter() < started + seconds:
        request = asking(headers[len(taken) % len(headers)])
        began = time.perf_counter()
        status = await connection.ask(request)
        assert status == 200, f"the owner got {status}"
        taken.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(began + 0.02 - time.perf_counter())
    connection.close()
    return taken


async def guessing(bench: Bench) -> None:
    """The owner's median while 100 others guess at once, by every scheme."""
    owner = [bench.owner, f"Cookie: {bench.session}\r\n".encode()]

    def basic(number: int) -> bytes:
        pair = base64.b64encode(f"{USER}:guess {os.urandom(8).hex()}".encode())
        return asking(b"Authorization: Basic " + pair + b"\r\n", b"/sdapi/v1/samplers")

    guesses: list[tuple[int, Callable[[int], bytes]]] = [
        (bench.gateway, lambda _: asking(b"", b"/login", b"POST", b"password=" + os.urandom(8).hex().encode())),
        (bench.forge_gateway, basic),
        (bench.gateway, lambda _: asking(b"Authorization: Bearer %s\r\n" % os.urandom(8).hex().encode())),
        (bench.gateway, lambda _: asking(b"Cookie: AIOHTTP_SESSION=%s\r\n" % os.urandom(8).hex().encode())),
    ]
    quiet = await watch_owner(bench, owner, WATCHED)
    until, seen = asyncio.Event(), Counter[int]()
    guessers = [asyncio.create_task(guess(*guesses[number % len(guesses)], until, seen)) for number in range(GUESSERS)]
    guessed = await watch_owner(bench, owner, WATCHED)
    until.set()
    await asyncio.gather(*guessers)
    quiet += await watch_owner(bench, owner, WATCHED / 2)
    medians = statistics.median(quiet), statistics.median(guessed)
    print(f"  owner: median {medians[0]:.2f} ms, {medians[1]:.2f} ms while {GUESSERS} guess each second; none refused")
    print(f"  ratio {medians[1] / medians[0]:.2f} (at most 2); p99 {p99(quiet):.2f} and {p99(guessed):.2f} ms")
    print(f"  the guesses got {json.dumps(dict(seen))}", flush=True)


SECTIONS: dict[str, Callable[[Bench], Coroutine[None, None, None] | None]] = {
    "latency": latency,
    "transfers": transfers,
    "sockets": open_sockets,
    "guesses": guessing,
}


def main(*names: str) -> None:
    """Measure and print."""
    gc.disable()  # in the clients, which are in the way of what they measure
    with running() as bench:
        for name in names or SECTIONS:
            print(f"gateway, {name}: {load()} before")
            work = SECTIONS[name](bench)
            if work is not None:
                asyncio.run(work)
            print(f"  {load()} after", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
