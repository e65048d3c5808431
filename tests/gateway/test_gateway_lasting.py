"""What takes long: silent WebSockets, generations, streams; and what must not: slow headers, and an end of the gateway.

The Caddyfile's times are shortened so that whatever they would cut is cut within the test.
"""

import http.client
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_harness import MARKER, Gateway, end_gateway, make_gateway, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

SHORT = 1  # seconds
LONG = 3


def shorten(directory: Path) -> None:
    """Every time in the Caddyfile becomes SHORT."""
    caddyfile = directory / "config" / "Caddyfile"
    text = caddyfile.read_text()
    for timer in ("read_header 10s", "idle 5m"):
        assert text.count(timer) == 1
        text = text.replace(timer, f"{timer.split()[0]} {SHORT}s")
    caddyfile.write_text(text)


@pytest.fixture(scope="module")
def hurried(
    tmp_path_factory: pytest.TempPathFactory, gateway_python: str, accounts: dict[str, dict[str, str]]
) -> Iterator[Gateway]:
    running = make_gateway(tmp_path_factory.mktemp("hurried"), gateway_python, accounts, edit=shorten)
    yield running
    end_gateway(running)


def websocket(gateway: Gateway) -> connect:
    url = f"ws://127.0.0.1:{gateway.ports['comfyui']}/ws"
    headers = {"Authorization": gateway.authorization("comfyui")}
    return connect(url, additional_headers=headers, ping_interval=None)


def test_a_silent_websocket_lives_and_is_one_line_of_the_log(hurried: Gateway) -> None:
    with websocket(hurried) as talk:
        assert talk.response is not None
        request_id = talk.response.headers["X-Request-Id"]
        time.sleep(LONG)
        talk.send("still there")
        assert talk.recv() == f"{MARKER.decode()} still there"

    def lines() -> list[dict[str, object]]:
        handled = [line for line in hurried.log_lines() if line.get("msg") == "handled request"]
        return [line for line in handled if line["request"]["uri"] == "/ws"]

    wait_until(lambda: len(lines()) > 0, 5, "the line of the WebSocket")
    (line,) = lines()
    assert str(line["user_id"]).startswith("bearer:")
    assert line["resp_headers"]["X-Request-Id"] == [request_id]
    assert float(line["duration"]) > LONG


def test_a_generation_may_take_its_time(hurried: Gateway) -> None:
    headers = {"Authorization": hurried.authorization("comfyui")}
    assert hurried.ask("comfyui", "GET", f"/slow?seconds={LONG}", headers).body == MARKER


def test_a_slow_upload_is_taken(hurried: Gateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", hurried.ports["comfyui"], timeout=30)
    connection.putrequest("POST", "/upload/image")
    connection.putheader("Authorization", hurried.authorization("comfyui"))
    connection.putheader("Content-Length", str(LONG))
    connection.endheaders()
    for _ in range(LONG):
        time.sleep(SHORT)
        connection.send(b"x")
    assert connection.getresponse().read().endswith(f" {LONG}".encode())


def test_events_come_when_they_are_sent(hurried: Gateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", hurried.ports["comfyui"], timeout=30)
    connection.request("GET", f"/events?seconds={SHORT}", headers={"Authorization": hurried.authorization("comfyui")})
    answer = connection.getresponse()
    for _ in range(LONG):
        assert MARKER in answer.readline() + answer.readline()
    connection.close()


def test_slow_headers_are_cut_off(hurried: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", hurried.ports["comfyui"]), timeout=LONG * 5) as raw:
        raw.sendall(b"GET /prompt HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        answer = raw.recv(65536)
        assert not answer or answer.startswith(b"HTTP/1.1 408") or b"400 Bad Request" in answer
        assert raw.recv(1) == b""


def test_the_end_of_the_gateway_waits_for_nobody(own_gateway: Callable[..., Gateway]) -> None:
    """What a rotation or a changed setting costs: an open stream must not hold the old gateway up."""
    gateway = own_gateway()
    connection = http.client.HTTPConnection("127.0.0.1", gateway.ports["comfyui"], timeout=30)
    connection.request("GET", "/events?seconds=0.1", headers={"Authorization": gateway.authorization("comfyui")})
    answer = connection.getresponse()
    with websocket(gateway) as talk:
        started = time.monotonic()
        gateway.process.terminate()
        assert gateway.process.wait(15) == 0
        assert time.monotonic() - started < 9  # at 10 s it would have been killed
        with pytest.raises(ConnectionClosed):
            talk.recv()
    with pytest.raises((http.client.HTTPException, OSError)):
        answer.read()
    connection.close()
