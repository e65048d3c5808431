"""TLS end to end: a gateway open to the network under an own authority, the operator's certificate, and an ACME server.

The tests share one deployed sandbox and run in their order.
"""

import datetime
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from harness import ROOT, UNCHANGED, Sandbox, changes, copy_checkout

from atelier import certificates
from atelier.certificates import NONE, Internal
from sandbox import machine

pytestmark = pytest.mark.sandbox
NOW = datetime.datetime.now(datetime.timezone.utc)
NAME, DOMAIN = "gpu.example.test", "gateway.example.test"
ACME_ADDRESS = "203.0.113.10"  # RFC 5737; the sandbox's internet answers at every address
DEFAULTS = (ROOT / "group_data" / "sandbox.py").read_text()


def configure(sandbox: Sandbox, tls: dict[str, object], bind: str = "0.0.0.0") -> None:
    lines = f"bind_address = {bind!r}\ntls = {tls!r}\n"
    (sandbox.checkout / "group_data" / "sandbox.py").write_text(DEFAULTS + lines)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    found = Sandbox(f"sandbox-tls-{os.getpid()}")
    with found.running():
        yield replace(found, checkout=copy_checkout(tmp_path_factory.mktemp("tls")))


def address(sandbox: Sandbox) -> str:
    running = machine.get(sandbox.name)
    assert running is not None
    return str(running.address)


def curl(*arguments: str, expect: int = 0) -> str:
    """Curl from this computer, outside of the host; the answer's status and body."""
    command = ["curl", "-sS", "--noproxy", "*", "--max-time", "20", "-w", "%{http_code} ", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def seen(sandbox: Sandbox, check: str) -> dict[str, str]:
    report = json.loads((sandbox.checkout / "reports" / sandbox.name / "latest" / "report.json").read_text())
    return next(entry for entry in report["checks"] if entry["id"] == check)


def test_a_gateway_open_to_the_network_under_an_own_authority(sandbox: Sandbox) -> None:
    configure(sandbox, {"mode": "internal"})
    output = sandbox.deploy()
    authority = sandbox.checkout / ".secrets" / sandbox.name / "ca.crt"
    assert f"{authority}  (import it in browsers" in output
    assert seen(sandbox, "access.certificate")["verdict"] == "passed"
    place, trusting = f"https://{address(sandbox)}", ["--cacert", str(authority)]
    for port in (8188, 7860):
        assert curl(*trusting, f"{place}:{port}/healthz") == "up\n200 "
        assert curl(*trusting, "-o", "/dev/null", f"{place}:{port}/queue") == "401 "
        curl(f"{place}:{port}/healthz", expect=60)
    page = curl(*trusting, f"{place}:7860/")
    assert f'"root":"{place}:7860' in page.replace(": ", ":"), "what a page links to is under TLS too"
    command = next(line for line in sandbox.atelier("credentials").splitlines() if "curl" in line and "-H" in line)
    pasted = command.partition("program")[2].replace(f"https://{sandbox.name}:", f"{place}:")
    assert '"system"' in subprocess.run(["bash", "-c", pasted], capture_output=True, text=True).stdout


def test_a_second_deploy_changes_nothing_and_keeps_the_certificate(sandbox: Sandbox) -> None:
    folder = sandbox.checkout / ".secrets" / sandbox.name
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert re.search(UNCHANGED, sandbox.deploy())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_everything_works_through_it(sandbox: Sandbox) -> None:
    sandbox.atelier("verify")
    sandbox.atelier("generate", "--prompt", "a lighthouse", "--service", "forge")


def test_a_further_name_concerns_the_gateway_alone(sandbox: Sandbox) -> None:
    started = sandbox.root("docker inspect -f '{{.State.StartedAt}}' forge-turbo comfyui-qwen")
    configure(sandbox, {"mode": "internal", "names": [NAME]})
    output = sandbox.deploy()
    assert "ca.crt is made anew for" in output and "users import it again" in output
    assert changes(output) == [
        "Record what will be created",  # the sums of the files as well
        "Put the secret files in place",
        "Render the files of gateway",
        "Start gateway and wait until it is healthy",
        "Record what runs",
    ]
    assert sandbox.root("docker inspect -f '{{.State.StartedAt}}' forge-turbo comfyui-qwen") == started
    authority = sandbox.checkout / ".secrets" / sandbox.name / "ca.crt"
    resolved = ["--resolve", f"{NAME}:7860:{address(sandbox)}", f"https://{NAME}:7860/healthz"]
    assert curl("--cacert", str(authority), *resolved) == "up\n200 "


def test_an_own_certificate_that_ends_soon_is_a_warning_and_one_that_ended_is_refused(sandbox: Sandbox) -> None:
    def given(days_left: float) -> None:
        begins = NOW - datetime.timedelta(days=certificates.LEAF_DAYS - 1 - days_left)
        made = certificates.up_to_date(Internal(NONE, NONE), "own", (NAME,), begins)
        (sandbox.checkout / "own.crt").write_text(made.gateway.chain)
        (sandbox.checkout / "own.key").write_text(made.gateway.key)

    configure(sandbox, {"mode": "files", "certificate": "own.crt", "key": "own.key"})
    given(20)
    assert "ca.crt" not in sandbox.deploy()
    found = seen(sandbox, "access.certificate")
    assert found["verdict"] == "warning" and "tls.certificate" in found["hint"]
    given(-1)
    assert "own.crt is valid from" in sandbox.deploy(expect=1)
    given(40)
    output = sandbox.atelier("verify", "--check", "access.certificate", expect=1)
    assert "failed   access.certificate" in output, "the host still shows the one before"


@pytest.fixture
def acme(sandbox: Sandbox, tmp_path: Path) -> Iterator[Path]:
    """Pebble in the sandbox's internet; yields its log. Its roots lie in the checkout as roots.pem."""
    within = ["ip", "netns", "exec", f"atelier-{sandbox.name}.internet"]
    own = certificates.up_to_date(Internal(NONE, NONE), "pebble", (ACME_ADDRESS,), NOW)
    (tmp_path / "cert.pem").write_text(own.gateway.chain)
    (tmp_path / "key.pem").write_text(own.gateway.key)
    settings = {
        "listenAddress": f"{ACME_ADDRESS}:14000",
        "managementListenAddress": f"{ACME_ADDRESS}:15000",
        "certificate": str(tmp_path / "cert.pem"),
        "privateKey": str(tmp_path / "key.pem"),
        "httpPort": 80,
        "tlsPort": 443,
    }
    (tmp_path / "config.json").write_text(json.dumps({"pebble": settings}))
    names = ["pebble-challtestsrv", "-dns01", "127.0.0.1:8053", "-defaultIPv4", "10.213.0.2", "-defaultIPv6", ""]
    names += ["-http01", "", "-https01", "", "-tlsalpn01", "", "-management", "127.0.0.1:8055"]
    server = ["pebble", "-config", str(tmp_path / "config.json"), "-dnsserver", "127.0.0.1:8053"]
    log = tmp_path / "pebble.log"
    with ExitStack() as running:
        for command in (names, server):
            output = running.enter_context((tmp_path / f"{command[0]}.log").open("wb"))
            process = subprocess.Popen([*within, *command], stdout=output, stderr=subprocess.STDOUT)
            running.callback(process.wait)
            running.callback(process.terminate)
        deadline = time.monotonic() + 20
        ask = [*within, "curl", "-sSk", "--noproxy", "*", f"https://{ACME_ADDRESS}:15000/roots/0"]
        while "BEGIN CERTIFICATE" not in (issuer := subprocess.run(ask, capture_output=True, text=True).stdout):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        (sandbox.checkout / "roots.pem").write_text(own.authority.chain + issuer)
        yield log


def orders(log: Path) -> int:
    return log.read_text().count("Issued certificate serial")


def test_a_certificate_is_fetched_from_an_acme_server_once(sandbox: Sandbox, acme: Path) -> None:
    directory = f"https://{ACME_ADDRESS}:14000/dir"
    tls = {"mode": "acme", "domain": DOMAIN, "acme_directory": directory, "acme_root": "roots.pem"}
    configure(sandbox, tls)
    sandbox.deploy()
    assert orders(acme) == 1 and seen(sandbox, "access.certificate")["verdict"] == "passed"
    roots, place = sandbox.checkout / "roots.pem", address(sandbox)
    resolved = [part for port in (8188, 443) for part in ("--resolve", f"{DOMAIN}:{port}:{place}")]
    assert curl("--cacert", str(roots), *resolved, f"https://{DOMAIN}:8188/healthz") == "up\n200 "
    assert curl("--cacert", str(roots), *resolved, f"https://{DOMAIN}/") == "404 "
    assert curl(f"http://{place}/") == "404 "
    assert re.search(UNCHANGED, sandbox.deploy())
    sandbox.root("cd /opt/atelier/services/gateway && docker compose up -d --force-recreate --wait")
    sandbox.atelier("verify", "--group", "containers,host,access")
    assert orders(acme) == 1, "a container made anew uses what is kept"
    assert sandbox.root("stat -c '%a %U' /srv/atelier/state/acme") == "700 atelier"
    manifest = json.loads(sandbox.root("cat /srv/atelier/state/manifest.json"))
    assert "/srv/atelier/state/acme" in manifest["created"]["directories"]


def test_without_acme_the_gateway_has_no_way_out_again(sandbox: Sandbox) -> None:
    masquerade = "docker network inspect -f '{{index .Options \"com.docker.network.bridge.enable_ip_masquerade\"}}'"
    assert sandbox.root(f"{masquerade} atelier-gateway") == "true"
    configure(sandbox, {"mode": "off"}, bind="127.0.0.1")
    sandbox.deploy()
    assert sandbox.root(f"{masquerade} atelier-gateway") == "false"
    assert sandbox.root("ls /opt/atelier/secrets/gateway") == "credentials.json"
    roots = "/opt/atelier/services/gateway/config/acme-roots.crt"
    sandbox.root(f"test ! -e {roots}")
    assert roots not in sandbox.root("cat /srv/atelier/state/manifest.json")
    published = sandbox.root("docker port gateway")
    assert "8443" not in published and "8080/tcp" not in published
