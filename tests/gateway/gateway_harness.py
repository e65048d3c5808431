"""The gateway as its container runs it, on this computer's loopback: real Caddy, real guard, fake applications."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = ROOT / "images" / "gateway"
MARKER = b"APPLICATION BYTES"
BODY_LIMIT_MB = 8
DEFAULTS = {
    "tls": {"mode": "off", "hsts": False},
    "trusted_proxies": [],
    "cors_origins": [],
    "max_body_mb": BODY_LIMIT_MB,
}


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass
class FakeApplication:
    """One fake application as a process of its own, so that it can die and come back."""

    kind: str
    account: dict[str, str]
    log: Path
    python: str
    port: int = field(default_factory=lambda: free_port())
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, is_open: bool = False) -> None:
        arguments = [self.kind, str(self.port), json.dumps(self.account), str(self.log)]
        command = [self.python, str(Path(__file__).with_name("fakes.py")), *arguments]
        self.process = subprocess.Popen([*command, "open"] if is_open else command)

    def toggle(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def requests(self, since: int = 0) -> list[dict[str, Any]]:
        """What it was asked, from that size of the log on."""
        return [json.loads(line) for line in self.log.read_bytes()[since:].splitlines()] if self.log.exists() else []


@dataclass
class Gateway:
    """The running gateway, with its applications by kind."""

    ports: dict[str, int]
    applications: dict[str, FakeApplication]
    accounts: dict[str, dict[str, str]]
    process: subprocess.Popen[bytes]
    health_port: int
    output: Path

    def ask(
        self,
        kind: str,
        method: str,
        target: str,
        headers: dict[str, str] | list[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> Answer:
        """One request, its target and headers sent exactly as given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[kind], timeout=30)
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in dict(headers).items() if isinstance(headers, dict) else headers:
                connection.putheader(name, value)
            if body or method in ("POST", "PUT", "PATCH"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def authorization(self, kind: str) -> str:
        """The right Authorization header of an application."""
        account = self.accounts[kind]
        if kind == "comfyui":
            return "Bearer " + account["password_bcrypt"]
        return "Basic " + base64.b64encode(f"{account['user']}:{account['password']}".encode()).decode()

    def login(self, kind: str, **fields: str) -> Answer:
        form = "&".join(f"{key}={value}" for key, value in fields.items())
        return self.ask(kind, "POST", "/login", {"Content-Type": "application/x-www-form-urlencoded"}, form.encode())

    def session(self, kind: str) -> str:
        """A cookie from a real login through the gateway."""
        account = self.accounts[kind]
        answer = self.login(kind, username=account["user"], password=account["password"])
        return answer.headers["Set-Cookie"].partition(";")[0]

    def wait(self, kind: str, status: int, seconds: float = 10) -> None:
        wait_until(lambda: self.ask(kind, "GET", "/healthz").status == status, seconds, f"{kind} /healthz {status}")

    def log_lines(self) -> list[dict[str, object]]:
        lines = self.output.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.05)


def write_config(
    directory: Path,
    accounts: dict[str, dict[str, str]],
    upstreams: dict[str, int],
    ports: dict[str, int],
    *,
    query: bool = False,
    **settings: Any,
) -> None:
    """Render the real templates and the credentials file into `directory`; `settings` are the gateway's."""
    templates = jinja2.Environment(  # noqa: S701 - not HTML
        loader=jinja2.FileSystemLoader(ROOT / "templates" / "services" / "gateway" / "config"),
        undefined=jinja2.StrictUndefined,
    )
    names = {"comfyui": "comfyui-qwen", "forge": "forge-turbo"}
    applications = [
        {
            "name": names[kind],
            "kind": kind,
            "upstream": f"127.0.0.1:{port}",
            "port": ports[kind],
            "allow_query_token": query,
        }
        for kind, port in upstreams.items()
    ]
    gateway = DEFAULTS | {"applications": applications} | settings
    (directory / "config").mkdir(exist_ok=True)
    (directory / "secrets").mkdir(exist_ok=True)
    for name in ("Caddyfile", "guard.json"):
        (directory / "config" / name).write_text(templates.get_template(f"{name}.j2").render(gateway=gateway))
    credentials = {
        kind: {"user": account["user"], "password_bcrypt": account["password_bcrypt"]}
        for kind, account in accounts.items()
    }
    (directory / "secrets" / "credentials.json").write_text(json.dumps(credentials))


def start_entrypoint(directory: Path, python: str, health_port: int, output: Path) -> subprocess.Popen[bytes]:
    """Start images/gateway/entrypoint.py as the container does."""
    (directory / "run").mkdir(exist_ok=True)
    environment = os.environ | {
        "GATEWAY_CONFIG": str(directory / "config"),
        "GATEWAY_SECRETS": str(directory / "secrets"),
        "GATEWAY_RUN": str(directory / "run"),
        "GATEWAY_HEALTH_PORT": str(health_port),
    }
    with output.open("ab") as stream:
        return subprocess.Popen(
            [python, str(GATEWAY / "entrypoint.py")], env=environment, stdout=stream, stderr=subprocess.STDOUT
        )


def make_gateway(
    directory: Path,
    python: str,
    accounts: dict[str, dict[str, str]],
    *,
    serve: bool = True,
    edit: Callable[[Path], None] = lambda directory: None,
    **settings: Any,
) -> Gateway:
    """A running gateway; `settings` as in write_config, `edit` changes the written files before it starts."""
    applications = {
        kind: FakeApplication(kind, account, directory / f"{kind}.log", python) for kind, account in accounts.items()
    }
    ports = {kind: free_port() for kind in accounts}
    write_config(directory, accounts, {kind: app.port for kind, app in applications.items()}, ports, **settings)
    edit(directory)
    health_port = free_port()
    output = directory / "output.log"
    process = start_entrypoint(directory, python, health_port, output)
    gateway = Gateway(ports, applications, accounts, process, health_port, output)
    if serve:
        for kind, application in applications.items():
            application.start()
            gateway.wait(kind, 200, 20)
    return gateway


def end_gateway(gateway: Gateway) -> None:
    for application in gateway.applications.values():
        if application.process and application.process.poll() is None:
            application.kill()
    if gateway.process.poll() is None:
        gateway.process.terminate()
        gateway.process.wait(20)
