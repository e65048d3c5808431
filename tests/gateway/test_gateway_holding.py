"""Strangers that hold on to what they are given: pages never read, forms never finished. The limits are shortened."""

import resource
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway_harness import Gateway, wait_until

PAGE = b"GET /assets/large.js HTTP/1.1\r\nHost: x\r\n\r\n"
FORM = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\na"
READERS, PLACES = 60, 5


def guard_of(gateway: Gateway) -> Path:
    """The guard in /proc."""
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
    (guard,) = (Path("/proc", pid) for pid in children if b"\0guard\0" in Path("/proc", pid, "cmdline").read_bytes())
    return guard


def held(guard: Path) -> int:
    """Its memory, in MB."""
    (line,) = (line for line in (guard / "status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1000


def connections(guard: Path) -> int:
    return len(list((guard / "fd").iterdir()))


def send(gateway: Gateway, kind: str, request: bytes) -> socket.socket:
    """A connection with that request on it, of which little fits on the way back."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(20)
    raw.connect(("127.0.0.1", gateway.ports[kind]))
    raw.sendall(request)
    return raw


def test_pages_that_nobody_reads_take_no_memory(gateway: Gateway) -> None:
    guard = guard_of(gateway)
    before, idle = held(guard), connections(guard)
    readers = [send(gateway, "forge", PAGE) for _ in range(READERS)]
    try:
        wait_until(lambda: connections(guard) >= idle + READERS, 10, "all readers at the guard")
        wait_until(lambda: all(reader.recv(1, socket.MSG_PEEK) for reader in readers), 20, "all pages under way")
        assert held(guard) - before < READERS  # each copy has 4 MB
    finally:
        for reader in readers:
            reader.close()


def test_a_page_comes_whole(gateway: Gateway) -> None:
    answer = gateway.ask("forge", "GET", "/assets/large.js")
    assert (answer.status, len(answer.body), set(answer.body)) == (200, 4_000_000, {ord("x")})
    assert answer.headers["Content-Length"] == "4000000"
    assert gateway.ask("forge", "HEAD", "/assets/large.js").status == 200


def test_pages_that_nobody_reads_end_and_are_few(
    own_gateway: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_PAGE_SECONDS", "3")
    monkeypatch.setenv("GATEWAY_PAGES", str(PLACES))
    gateway = own_gateway()
    guard = guard_of(gateway)
    idle = connections(guard)
    readers = [send(gateway, "forge", PAGE) for _ in range(PLACES)]
    wait_until(lambda: all(reader.recv(1, socket.MSG_PEEK) for reader in readers), 20, "all pages under way")
    refused = gateway.ask("forge", "GET", "/assets/large.js")
    assert (refused.status, refused.headers["Retry-After"]) == (429, "2")
    assert gateway.login("forge", username="nobody", password="wrong").status == 400
    wait_until(lambda: gateway.ask("forge", "GET", "/assets/large.js").status == 200, 10, "a place for the next")
    wait_until(lambda: connections(guard) <= idle + 2, 10, "the end of what nobody took")
    for reader in readers:
        reader.close()


def test_half_a_form_is_not_waited_for(own_gateway: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_FORM_SECONDS", "1")
    gateway = own_gateway()
    guard = guard_of(gateway)
    idle = connections(guard)
    halves = [send(gateway, kind, FORM) for kind in ("comfyui", "forge") for _ in range(10)]
    time.sleep(0.5)
    wait_until(lambda: connections(guard) <= idle + 2, 5, "the end of half a form at the guard")
    for half in halves:
        assert half.recv(65536).startswith(b"HTTP/1.1 408 ")
        half.close()


def test_the_guard_has_as_many_connections_as_the_host_gives(own_gateway: Callable[..., Gateway]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        gateway = own_gateway()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(int(guard_of(gateway).name), resource.RLIMIT_NOFILE) == (hard, hard)


def test_who_asks_for_a_go_ahead_and_goes_away_leaves_no_trace(own_gateway: Callable[..., Gateway]) -> None:
    gateway = own_gateway()
    head = "POST {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    for number in range(400):
        with socket.create_connection(("127.0.0.1", gateway.ports["comfyui"]), timeout=5) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.sendall(head.format(("/login", "/queue")[number % 2]).encode())
            time.sleep(number % 20 / 4000)
    form = {"Content-Type": "application/x-www-form-urlencoded", "Expect": "100-continue"}
    body = f"password={gateway.accounts['comfyui']['password']}".encode()
    assert gateway.ask("comfyui", "POST", "/login", form, body).status == 302
    assert "Traceback" not in gateway.output.read_text()
