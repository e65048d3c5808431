"""Many callers at once: everybody gets what is theirs, and nothing takes another way than past the guard."""

import asyncio
import base64
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway_harness import MARKER, Gateway

CALLERS, TURNS = 600, 3
SOCKETS = 500
HANDSHAKE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    + base64.b64encode(bytes(16))
    + b"\r\n"
)


async def call(port: int, caller: int, header: bytes, seen: Counter[str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for turn in range(2):
        target = b"/queue?caller=%d.%d" % (caller, turn)
        writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (target, header))
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(lengths[0]) if lengths else b""
        own = body == MARKER + b" GET " + target + b" 0"
        seen[f"{'owner' if header else 'stranger'} {head[9:12].decode()} {'its own' if own else 'nothing'}"] += 1
    writer.transport.abort()


def test_crowds_are_all_judged(own_gateway: Any) -> None:
    """Owners and strangers by the hundred, on connections of their own: the ones get theirs, the others nothing."""
    gateway: Gateway = own_gateway()
    owner = f"Authorization: {gateway.authorization('comfyui')}\r\n".encode()
    seen: Counter[str] = Counter()

    async def crowd() -> None:
        headers = (b"" if caller % 4 == 0 else owner for caller in range(CALLERS))
        port = gateway.ports["comfyui"]
        await asyncio.gather(*(call(port, caller, header, seen) for caller, header in enumerate(headers)))

    for _ in range(TURNS):
        asyncio.run(crowd())
    assert seen == {
        "owner 200 its own": CALLERS * 2 * TURNS * 3 // 4,
        "stranger 401 nothing": CALLERS * 2 * TURNS // 4,
    }
    passed_on = [request for request in gateway.applications["comfyui"].requests() if request["X-Forwarded-For"]]
    assert len(passed_on) == seen["owner 200 its own"]
    assert {request["Authorization"] for request in passed_on} == {gateway.authorization("comfyui")}
    assert all(request["target"].startswith("/queue?caller=") for request in passed_on)


def handlers(config: Any) -> Iterator[dict[str, Any]]:
    """Every handler in Caddy's own form of its configuration."""
    if isinstance(config, list):
        for part in config:
            yield from handlers(part)
    elif isinstance(config, dict):
        if "handler" in config:
            yield config
        for part in config.values():
            yield from handlers(part)


def test_no_connection_is_kept_for_judging(gateway: Gateway) -> None:
    """The crowd meets the way past the guard that kept connections open only on a busy machine."""
    caddyfile = gateway.output.parent / "config" / "Caddyfile"
    adapted = subprocess.run(["caddy", "adapt", "--config", caddyfile], capture_output=True, check=True).stdout
    judging = [
        handler
        for handler in handlers(json.loads(adapted))
        if handler["handler"] == "reverse_proxy" and "judge" in json.dumps(handler.get("headers"))
    ]
    assert len(judging) == 2
    for handler in judging:
        assert handler["transport"] == {"protocol": "http", "keep_alive": {"enabled": False}}


def test_hundreds_of_websockets(gateway: Gateway) -> None:
    """All open at once, each answered under its own name; a stranger's is not."""
    owner = f"Authorization: {gateway.authorization('comfyui')}\r\n".encode()

    async def opened(number: int, header: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.ports["comfyui"])
        writer.write(b"GET /ws?clientId=%d HTTP/1.1\r\nHost: x\r\n%s%s\r\n" % (number, header, HANDSHAKE))
        return reader, writer, await reader.readuntil(b"\r\n\r\n")

    async def talks() -> tuple[int, bytes]:
        *_, refused = await opened(-1, b"")
        everybody = await asyncio.gather(*(opened(number, owner) for number in range(SOCKETS)))
        right = 0
        for number, (reader, writer, head) in enumerate(everybody):
            assert head.startswith(b"HTTP/1.1 101 ")
            said = b"I am %03d" % number
            writer.write(b"\x81" + bytes([0x80 | len(said)]) + bytes(4) + said)  # a text frame, masked with zeros
            right += await reader.readexactly(2 + len(MARKER) + 1 + len(said)) == (
                b"\x81" + bytes([len(MARKER) + 1 + len(said)]) + MARKER + b" " + said
            )
        for _, writer, _ in everybody:
            writer.transport.abort()
        return right, refused

    right, refused = asyncio.run(talks())
    assert right == SOCKETS
    assert refused.startswith(b"HTTP/1.1 401 ")


def test_large_transfers_take_no_memory(gateway: Gateway) -> None:
    """What passes through is not collected on the way."""

    def held() -> int:
        pids = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
        lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1000

    before, size = held(), 300 * 1000 * 1000
    header = {"Authorization": gateway.authorization("comfyui")}
    assert len(gateway.ask("comfyui", "GET", f"/view?bytes={size}", header).body) == len(MARKER) + size
    assert held() - before < 60
