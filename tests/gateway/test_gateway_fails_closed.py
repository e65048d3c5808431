"""What happens when something breaks: nothing is served that should not be, and the log says why."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import (
    MARKER,
    FakeApplication,
    Gateway,
    end_gateway,
    free_port,
    make_gateway,
    start_entrypoint,
    wait_until,
    write_config,
)

RESTARTS = 20

BROKEN_CREDENTIALS = {
    "missing": (None, "No such file"),
    "empty": ("", "not JSON"),
    "a list": ("[]", "not a JSON object"),
    "no account": ("{}", "comfyui: needs exactly"),
    "empty hash": ('{"comfyui": {"user": "a", "password_bcrypt": ""}}', "not a 60-character"),
    "plain password": ('{"comfyui": {"user": "a", "password_bcrypt": "SENTINEL"}}', "not a 60-character"),
    "empty user": (json.dumps({"comfyui": {"user": "", "password_bcrypt": "$2b$12$" + "a" * 53}}), "must be a name"),
}


def children(pid: int) -> dict[str, int]:
    """Process ids of the entrypoint's two children by name."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {Path(f"/proc/{child}/comm").read_text().strip(): int(child) for child in found}


def probes_of_open(application: FakeApplication, since: int = 0) -> list[dict[str, Any]]:
    """What the application was asked while it was open; only the guard's own probes may be among it."""
    return [request for request in application.requests(since) if request["open"]]


@pytest.mark.parametrize("how", BROKEN_CREDENTIALS)
def test_does_not_start_without_credentials(tmp_path: Path, gateway_python: str, accounts, how: str) -> None:
    content, message = BROKEN_CREDENTIALS[how]
    port = free_port()
    write_config(tmp_path, accounts, {"comfyui": free_port()}, {"comfyui": port})
    credentials = tmp_path / "secrets" / "credentials.json"
    credentials.unlink()
    if content is not None:
        credentials.write_text(content)
    output = tmp_path / "output.log"
    assert start_entrypoint(tmp_path, gateway_python, free_port(), output).wait(10) == 1
    (line,) = output.read_text().splitlines()  # and so Caddy was never started
    assert message in line
    assert "SENTINEL" not in line
    assert socket.socket().connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("name", ["guard.json", "Caddyfile"])
@pytest.mark.parametrize("content", [None, "", "nonsense {"])
def test_does_not_start_without_configuration(
    tmp_path: Path, gateway_python: str, accounts, name: str, content: str | None
) -> None:
    write_config(tmp_path, accounts, {"comfyui": free_port()}, {"comfyui": free_port()})
    (tmp_path / "config" / name).unlink()
    if content is not None:
        (tmp_path / "config" / name).write_text(content)
    output = tmp_path / "output.log"
    assert start_entrypoint(tmp_path, gateway_python, free_port(), output).wait(20) == 1
    assert output.read_text()


@pytest.mark.parametrize("victim", ["caddy", "guard"])
def test_ends_when_either_ends(own_gateway: Callable[..., Gateway], victim: str) -> None:
    gateway = own_gateway(serve=False)
    wait_until(lambda: "caddy" in children(gateway.process.pid), 10, "both children run")
    running = children(gateway.process.pid)
    pid = running.pop("caddy")
    (other,) = running.values()
    os.kill(pid if victim == "caddy" else other, signal.SIGKILL)
    assert gateway.process.wait(15) == 1
    for child in (pid, other):
        assert not Path(f"/proc/{child}").exists()


def test_sigterm_ends_it_cleanly(own_gateway: Callable[..., Gateway]) -> None:
    gateway = own_gateway()
    running = children(gateway.process.pid)
    started = time.monotonic()
    gateway.process.terminate()
    assert gateway.process.wait(15) == 0
    assert time.monotonic() - started < 10
    assert not any(Path(f"/proc/{child}").exists() for child in running.values())


def test_undeclared_application_is_not_routed(tmp_path: Path, gateway_python: str, accounts) -> None:
    gateway = make_gateway(tmp_path, gateway_python, {"comfyui": accounts["comfyui"]})
    try:
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
        caddy = f"pid={children(gateway.process.pid)['caddy']},"
        ports = {int(line.split()[3].rpartition(":")[2]) for line in listening.splitlines() if caddy in line}
        assert ports == {gateway.ports["comfyui"], gateway.health_port}
    finally:
        end_gateway(gateway)


@pytest.mark.parametrize("kind", ["comfyui", "forge"])
def test_open_application_is_never_served(own_gateway: Callable[..., Gateway], kind: str) -> None:
    gateway = own_gateway(serve=False)
    application = gateway.applications[kind]
    application.start(is_open=True)
    reason = "answered 200 to a stranger, 401 expected"
    wait_until(lambda: reason in gateway.output.read_text(), 10, "the log says why")
    for target in ("/", "/prompt", "/login", "/sdapi/v1/samplers", "/config"):
        answer = gateway.ask(kind, "GET", target, {"Authorization": gateway.authorization(kind)})
        assert answer.status == 503
        assert reason.encode() in answer.body
    assert gateway.ask(kind, "GET", "/prompt").status == 503
    assert gateway.ask(kind, "GET", "/healthz").body == b"down\n"
    assert not [request for request in application.requests() if request["X-Forwarded-For"]]


@pytest.mark.parametrize("kind", ["comfyui", "forge"])
def test_application_that_turns_open_is_refused_within_a_second(own_gateway: Callable[..., Gateway], kind: str) -> None:
    gateway = own_gateway()
    right = {"Authorization": gateway.authorization(kind)}
    assert MARKER in gateway.ask(kind, "GET", "/sdapi/v1/samplers", right).body
    gateway.applications[kind].toggle()
    turned = time.monotonic()
    wait_until(lambda: gateway.ask(kind, "GET", "/sdapi/v1/samplers", right).status == 503, 1, "refused")
    assert time.monotonic() - turned < 1
    gateway.applications[kind].toggle()
    gateway.wait(kind, 200, 3)
    assert MARKER in gateway.ask(kind, "GET", "/sdapi/v1/samplers", right).body


@pytest.mark.parametrize("kind", ["comfyui", "forge"])
@pytest.mark.parametrize("asked", ["login page", "made-up session"])
def test_strangers_get_nothing_while_it_turns_open(own_gateway: Callable[..., Gateway], kind: str, asked: str) -> None:
    """An open application confirms everything and its login page is the application: not for a moment, either."""
    gateway = own_gateway()
    statuses: Counter[int] = Counter()
    for _ in range(3):
        gateway.applications[kind].toggle()
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            if asked == "login page":
                answer = gateway.ask(kind, "GET", "/login" if kind == "comfyui" else "/")
            else:
                made_up = {"Cookie": f"AIOHTTP_SESSION={time.monotonic()}; access-token-a={time.monotonic()}"}
                answer = gateway.ask(kind, "GET", "/sdapi/v1/samplers", made_up)
            assert MARKER not in answer.body
            statuses[answer.status] += 1
        gateway.applications[kind].toggle()
        gateway.wait(kind, 200, 3)
    assert set(statuses) <= {200, 401, 503}
    assert statuses[503], "it was never open"


@pytest.mark.parametrize("kind", ["comfyui", "forge"])
def test_application_that_comes_back_open_serves_nobody(own_gateway: Callable[..., Gateway], kind: str) -> None:
    """Killed and restarted open under load: no request gets to the open process, the owner's neither."""
    gateway = own_gateway()
    application = gateway.applications[kind]
    right = {"Authorization": gateway.authorization(kind)}
    callers = {
        "owner": right,
        "owner's session": {"Cookie": gateway.session(kind)},
        "stranger": {},
        "wrong": {"Authorization": right["Authorization"][:-4] + "AAAA"},
        "made-up session": {"Cookie": "AIOHTTP_SESSION=made-up; access-token-made=up"},
    }
    statuses: dict[str, Counter[int]] = {name: Counter() for name in callers}
    leaked: list[str] = []
    stop = threading.Event()

    def load(name: str, headers: dict[str, str]) -> None:
        while not stop.is_set():
            answer = gateway.ask(kind, "GET", "/sdapi/v1/samplers", headers)
            statuses[name][answer.status] += 1
            if MARKER in answer.body and not name.startswith("owner"):
                leaked.append(name)
            time.sleep(0.01)  # for the processes that restart

    threads = [threading.Thread(target=load, args=caller) for caller in callers.items()]
    for thread in threads:
        thread.start()
    try:
        for _ in range(RESTARTS):
            application.kill()
            before = application.log.stat().st_size
            application.start(is_open=True)
            wait_until(
                lambda b=before: len(probes_of_open(application, b)) >= 2, 20, "the open process is probed twice"
            )
            application.kill()
            application.start()
            gateway.wait(kind, 200)
            served = statuses["owner"][200]
            wait_until(lambda s=served: statuses["owner"][200] > s + 1, 10, "the owner is served again")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert leaked == []
    assert statuses["owner"][200] > 20, statuses
    assert statuses["stranger"][401] > 20, statuses
    assert [request for request in probes_of_open(application) if request["X-Forwarded-For"]] == []


def test_frozen_application_is_not_an_open_one(own_gateway: Callable[..., Gateway]) -> None:
    """An application busy for seconds stays in service: its process is the one that was proved."""
    gateway = own_gateway()
    process = gateway.applications["comfyui"].process
    assert process
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(2)
        assert gateway.ask("comfyui", "GET", "/healthz").status == 200
    finally:
        process.send_signal(signal.SIGCONT)
    right = {"Authorization": gateway.authorization("comfyui")}
    assert MARKER in gateway.ask("comfyui", "GET", "/queue", right).body
