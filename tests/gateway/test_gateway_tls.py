"""TLS of the gateway: a certificate of an own authority, and one that Caddy fetches from a real ACME server (pebble)."""

import datetime
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import AuthorityInformationAccessOID
from gateway_harness import GATEWAY, Gateway, end_gateway, make_gateway, start_entrypoint, wait_until

from atelier import certificates
from atelier.certificates import NONE, Anchor, Internal
from atelier.settings import TlsSettings
from atelier.verify import trust

NOW = datetime.datetime.now(datetime.timezone.utc)
NAMES = ("gpu.example.test", *certificates.OWN_NAMES)
DOMAIN = "gateway.test"


def issued(names: tuple[str, ...] = NAMES) -> Internal:
    return certificates.up_to_date(Internal(NONE, NONE), "test", names, NOW)


def asked(port: int, context: ssl.SSLContext, name: str, request: str = "GET /healthz") -> str:
    """The whole answer to a request over TLS. Raises SSLError."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        secured.sendall(f"{request} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := secured.recv(65536):
            answer += part
    return answer.decode()


def told_at_handshake(port: int, context: ssl.SSLContext, name: str) -> str:
    with pytest.raises(ssl.SSLError) as raised:
        asked(port, context, name)
    return getattr(raised.value, "verify_message", "") or str(raised.value)


@pytest.fixture(scope="module")
def own_authority(
    tmp_path_factory: pytest.TempPathFactory, gateway_python: str, accounts: dict[str, dict[str, str]]
) -> Iterator[tuple[Gateway, Internal]]:
    directory, internal = tmp_path_factory.mktemp("internal"), issued()
    (directory / "secrets").mkdir()
    (directory / "secrets" / "tls.crt").write_text(internal.gateway.chain)
    (directory / "secrets" / "tls.key").write_text(internal.gateway.key)
    running = make_gateway(
        directory, gateway_python, accounts, serve=False, tls=TlsSettings(mode="internal").model_dump()
    )
    context = trust(Anchor(internal.authority.chain, ""))
    for kind, application in running.applications.items():
        application.start()
        port = running.ports[kind]
        wait_until(lambda port=port: " 200 " in asked(port, context, "localhost")[:15], 20, f"{kind} is served")
    yield running, internal
    end_gateway(running)


@pytest.mark.parametrize("kind", ["comfyui", "forge"])
@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_served_under_the_own_authority(
    own_authority: tuple[Gateway, Internal], kind: str, name: str
) -> None:
    gateway, internal = own_authority
    context = ssl.create_default_context(cadata=internal.authority.chain)
    assert asked(gateway.ports[kind], context, name).startswith("HTTP/1.1 200")
    assert asked(gateway.ports[kind], context, name, "GET /queue").startswith("HTTP/1.1 401")
    assert "Hostname mismatch" in told_at_handshake(gateway.ports[kind], context, "other.example.test")
    another = ssl.create_default_context(cadata=issued().authority.chain)
    assert "unable to get local issuer" in told_at_handshake(gateway.ports[kind], another, name)


def test_nothing_is_served_without_tls_or_under_old_versions(own_authority: tuple[Gateway, Internal]) -> None:
    gateway, internal = own_authority
    plain = gateway.ask("comfyui", "GET", "/healthz")
    assert plain.status == 400 and plain.body == b"Client sent an HTTP request to an HTTPS server.\n"
    old = ssl.create_default_context(cadata=internal.authority.chain)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    assert "protocol version" in told_at_handshake(gateway.ports["comfyui"], old, "localhost")


def test_only_http_1_is_spoken(own_authority: tuple[Gateway, Internal]) -> None:
    gateway, internal = own_authority
    context = ssl.create_default_context(cadata=internal.authority.chain)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", gateway.ports["forge"]), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert secured.selected_alpn_protocol() == "http/1.1"
    assert "alt-svc" not in asked(gateway.ports["forge"], context, "localhost").lower()


def with_responder(internal: Internal, url: str) -> str:
    """The gateway's certificate as a public issuer would write it: naming who says whether it was revoked."""
    leaf, issuer = (
        x509.load_pem_x509_certificate(text.encode()) for text in (internal.gateway.chain, internal.authority.chain)
    )
    access = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(url))
    lifetime = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    builder = x509.CertificateBuilder(issuer.subject, leaf.subject, leaf.public_key(), 7, *lifetime)
    for extension in (
        *leaf.extensions,
        x509.Extension(x509.AuthorityInformationAccess.oid, False, x509.AuthorityInformationAccess([access])),
    ):
        builder = builder.add_extension(extension.value, extension.critical)
    signer = serialization.load_pem_private_key(internal.authority.key.encode(), None)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_a_gateway_without_a_way_out_asks_no_issuer(
    tmp_path: Path, gateway_python: str, accounts: dict[str, dict[str, str]]
) -> None:
    internal = issued()
    with socket.create_server(("127.0.0.1", 0)) as responder:
        chain = with_responder(internal, f"http://127.0.0.1:{responder.getsockname()[1]}/")
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "tls.crt").write_text(chain + internal.authority.chain)
        (tmp_path / "secrets" / "tls.key").write_text(internal.gateway.key)
        running = make_gateway(
            tmp_path,
            gateway_python,
            accounts,
            serve=False,
            tls=TlsSettings(mode="files", certificate="a", key="b").model_dump(),
        )
        try:
            context = trust(Anchor(internal.authority.chain, "localhost"))
            wait_until(lambda: "503" in asked(running.ports["forge"], context, ""), 20, "it serves")
            responder.setblocking(False)
            with pytest.raises(BlockingIOError):
                responder.accept()
        finally:
            end_gateway(running)


@dataclass
class Acme:
    """Pebble, Let's Encrypt's own ACME server for tests, on loopback."""

    directory_url: str
    management_url: str
    log: Path
    root: str
    http_port: int
    tls_port: int

    def orders(self) -> int:
        """How many certificates it issued."""
        return self.log.read_text().count("Issued certificate serial")

    def issuer(self) -> str:
        """The root of what it issues (PEM); made anew at each of its starts."""
        context = ssl.create_default_context(cadata=self.root)
        host, port = self.management_url.removeprefix("https://").split(":")
        answer = ""
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            secured.sendall(f"GET /roots/0 HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            while part := secured.recv(65536):
                answer += part.decode()
        return answer.partition("\r\n\r\n")[2]


def lasting_port() -> int:
    """A free port that no outgoing connection takes meanwhile: below those that the system gives away."""
    while True:
        port = random.randrange(20000, 32000)
        with suppress(OSError), socket.create_server(("", port)):
            return port


@contextmanager
def pebble(folder: Path, *, closed: str = "") -> Iterator[Acme]:
    """A running pebble. closed: the way (`http` or `tls`) on which it does not reach the gateway."""
    if shutil.which("pebble") is None and os.environ.get("REQUIRE_SANDBOX") != "1":
        pytest.skip("pebble is not installed (apt install pebble)")
    own = issued(certificates.OWN_NAMES)
    (folder / "cert.pem").write_text(own.gateway.chain)
    (folder / "key.pem").write_text(own.gateway.key)
    port, management, http, tls, dns = (lasting_port() for _ in range(5))
    settings = {
        "listenAddress": f"127.0.0.1:{port}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(folder / "cert.pem"),
        "privateKey": str(folder / "key.pem"),
        "httpPort": lasting_port() if closed == "http" else http,
        "tlsPort": lasting_port() if closed == "tls" else tls,
    }
    (folder / "config.json").write_text(json.dumps({"pebble": settings}))
    names = ["pebble-challtestsrv", "-dns01", f"127.0.0.1:{dns}", "-defaultIPv6", ""]
    names += ["-http01", "", "-https01", "", "-tlsalpn01", "", "-management", f"127.0.0.1:{lasting_port()}"]
    server = ["pebble", "-config", str(folder / "config.json"), "-dnsserver", f"127.0.0.1:{dns}"]
    quick = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    with ExitStack() as running:
        for command in (names, server):
            output = running.enter_context((folder / f"{command[0]}.log").open("wb"))
            process = subprocess.Popen(command, env=quick, stdout=output, stderr=subprocess.STDOUT)
            running.callback(process.wait)
            running.callback(process.terminate)
        directory, console = f"https://127.0.0.1:{port}/dir", f"https://127.0.0.1:{management}"
        found = Acme(directory, console, folder / "pebble.log", own.authority.chain, http, tls)
        wait_until(lambda: "BEGIN CERTIFICATE" in found.issuer(), 20, "pebble answers")
        yield found


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Acme]:
    with pebble(tmp_path_factory.mktemp("pebble")) as running:
        yield running


@dataclass
class FromAcme:
    """A gateway whose certificate comes from pebble, with its folder, to start it again."""

    gateway: Gateway
    directory: Path
    environment: dict[str, str]
    python: str

    def health(self) -> subprocess.CompletedProcess[str]:
        """The container's own health check."""
        environment = {**os.environ, **self.environment, "GATEWAY_HEALTH_PORT": str(self.gateway.health_port)}
        command = [sys.executable, str(GATEWAY / "health.py")]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def wait_until_healthy(self) -> None:
        def healthy() -> bool:
            assert self.gateway.process.poll() is None, self.gateway.output.read_text()
            return self.health().returncode == 0

        wait_until(healthy, 60, "healthy, so with a certificate")

    def start_again(self) -> None:
        self.gateway.process.terminate()
        self.gateway.process.wait(20)
        shutil.rmtree(self.directory / "run")  # a container made anew has an empty one
        self.gateway.process = start_entrypoint(
            self.directory, self.python, self.gateway.health_port, self.gateway.output
        )


@pytest.fixture
def from_acme(
    tmp_path: Path, gateway_python: str, accounts: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., FromAcme]]:
    made: list[Gateway] = []

    def make(acme: Acme, roots: str = "") -> FromAcme:
        environment = {
            "GATEWAY_HTTP_PORT": str(acme.http_port),
            "GATEWAY_HTTPS_PORT": str(acme.tls_port),
            "GATEWAY_ACME": str(tmp_path / "kept"),
            "GATEWAY_DOMAIN": DOMAIN,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "acme-roots.crt").write_text(roots or acme.root)
        tls = TlsSettings(
            mode="acme",
            domain=DOMAIN,
            email="a@example.org",
            acme_root="given",
            acme_directory=acme.directory_url,
        )
        made.append(make_gateway(tmp_path, gateway_python, accounts, serve=False, tls=tls.model_dump()))
        return FromAcme(made[-1], tmp_path, environment, gateway_python)

    yield make
    for gateway in made:
        end_gateway(gateway)


def serial(port: int) -> str:
    return subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", DOMAIN],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    ).stdout.partition("-----END")[0]


def test_a_certificate_is_fetched_served_and_kept(acme: Acme, from_acme: Callable[..., FromAcme]) -> None:
    before = acme.orders()
    started = from_acme(acme)
    started.wait_until_healthy()
    assert acme.orders() == before + 1
    context = trust(Anchor(acme.issuer(), DOMAIN))
    for kind in ("comfyui", "forge"):
        # The applications are not up: the gateway's own refusal, under the certificate of the domain.
        assert asked(started.gateway.ports[kind], context, "127.0.0.1").startswith("HTTP/1.1 503")
    begins, ends = certificates.lifetime(ssl.get_server_certificate(("127.0.0.1", started.gateway.ports["forge"])))
    assert begins < datetime.datetime.now(datetime.timezone.utc) < ends
    kept = serial(started.gateway.ports["comfyui"])
    started.start_again()
    started.wait_until_healthy()
    assert serial(started.gateway.ports["comfyui"]) == kept != "" and acme.orders() == before + 1
    modes = {path.stat().st_mode & 0o077 for path in (started.directory / "kept").rglob("*.key")}
    assert modes == {0}


@pytest.mark.parametrize("closed", ["http", "tls"])
def test_one_of_its_two_ways_to_the_gateway_is_enough(
    tmp_path_factory: pytest.TempPathFactory, from_acme: Callable[..., FromAcme], closed: str
) -> None:
    with pebble(tmp_path_factory.mktemp("pebble"), closed=closed) as acme:
        started = from_acme(acme)
        started.wait_until_healthy()
        assert acme.orders() == 1


def test_beside_the_acme_server_nobody_finds_anything_there(acme: Acme, from_acme: Callable[..., FromAcme]) -> None:
    started = from_acme(acme)
    started.wait_until_healthy()
    context = trust(Anchor(acme.issuer(), DOMAIN))
    for target in ("/", "/queue", "/.well-known/acme-challenge/x"):
        answer = asked(acme.tls_port, context, DOMAIN, f"GET {target}")
        assert answer.startswith("HTTP/1.1 404") and "caddy" not in answer.lower()
        with socket.create_connection(("127.0.0.1", acme.http_port), timeout=10) as plain:
            plain.sendall(f"GET {target} HTTP/1.0\r\nHost: anything\r\n\r\n".encode())
            answer = plain.recv(65536).decode()
        assert answer.startswith("HTTP/1.0 404") and "caddy" not in answer.lower()


def test_without_a_certificate_the_gateway_is_not_healthy_and_says_why(
    acme: Acme, from_acme: Callable[..., FromAcme]
) -> None:
    before = acme.orders()
    started = from_acme(acme, issued().authority.chain)  # not the server's root
    wait_until(lambda: "unknown authority" in started.gateway.output.read_text(), 60, "the log names the reason")
    health = started.health()
    assert health.returncode == 1 and "gateway:" in health.stderr
    assert acme.orders() == before
