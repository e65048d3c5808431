"""What each tls.mode makes of the gateway's project and network; the certificates themselves: test_certificates.py."""

import pytest
from test_deployment import CREDENTIALS, IMAGES, compose, settings

from atelier import render
from atelier.certificates import Certificate
from atelier.render import Project
from atelier.settings import Settings
from atelier.tree import Directory, File

MODES = {
    "off": {},
    "internal": {"mode": "internal"},
    "files": {"mode": "files", "certificate": "a", "key": "b"},
    "acme": {"mode": "acme", "domain": "gpu.example.org"},
}


def chosen(mode: str, **tls: object) -> Settings:
    bind = "127.0.0.1" if mode == "off" else "192.0.2.7"
    return settings(bind_address=bind, tls={**MODES[mode], **tls})


def gateway(of: Settings, certificate: Certificate | None = None, roots: str = "") -> Project:
    return render.projects(of, CREDENTIALS, IMAGES, frozenset(), {}, certificate, roots)[-1]


def text(project: Project, name: str) -> str:
    (found,) = (entry for entry in project.entries if isinstance(entry, File) and entry.path.endswith(f"/{name}"))
    return found.content.decode()


@pytest.mark.parametrize("mode", MODES)
def test_only_a_gateway_that_fetches_certificates_has_a_way_out_ports_and_a_place_for_them(mode: str) -> None:
    of = chosen(mode)
    project, acme = gateway(of), mode == "acme"
    out = [network.name for network in render.networks(of) if network.options().get(MASQUERADE) == "true"]
    assert out == (["atelier-gateway"] if acme else [])
    container = compose(project)
    assert len(container["ports"]) == (4 if acme else 2)
    assert (
        ("${BIND_ADDRESS}:80:8080" in container["ports"]) == ("${BIND_ADDRESS}:443:8443" in container["ports"]) == acme
    )
    writable = [volume["target"] for volume in container["volumes"] if not volume.get("read_only")]
    assert writable == (["/var/lib/acme"] if acme else [])
    kept = Directory("/srv/atelier/state/acme", 0o700, "atelier")
    assert (kept in project.entries) == acme
    assert container.get("environment") == ({"GATEWAY_DOMAIN": "gpu.example.org"} if acme else None)
    assert ('ACME_DIR="/srv/atelier/state/acme"' in text(project, ".env")) == acme


MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"


def test_an_acme_server_of_ones_own() -> None:
    of = chosen("acme", email="ops@example.org", acme_directory="https://acme.lan/dir", acme_root="roots.pem")
    project = gateway(of, roots="the roots")
    assert text(project, "acme-roots.crt") == "the roots"
    lines = [line.strip() for line in text(project, "Caddyfile").splitlines()]
    for line in ("dir https://acme.lan/dir", "email ops@example.org"):
        assert line in lines
    assert any(line.startswith("trusted_roots ") and line.endswith("/acme-roots.crt") for line in lines)
    plain = text(gateway(chosen("acme")), "Caddyfile")
    assert "trusted_roots" not in plain and "dir " not in plain and "email" not in plain


def test_another_certificate_concerns_the_gateway_alone() -> None:
    of = chosen("internal")
    first, second = (
        render.projects(of, CREDENTIALS, IMAGES, frozenset(), {}, Certificate("chain", key)) for key in ("a", "b")
    )
    assert [one.service for one, other in zip(first, second, strict=True) if one.config != other.config] == ["gateway"]
    assert gateway(chosen("acme"), roots="a").config != gateway(chosen("acme"), roots="b").config


def test_the_certificate_and_its_key_are_the_service_users_alone() -> None:
    files = render.secret_files(chosen("internal"), CREDENTIALS, Certificate("chain", "key"))["gateway"]
    found = {entry.path: (entry.content, entry.mode, entry.owner) for entry in files if isinstance(entry, File)}
    assert found["/opt/atelier/secrets/gateway/tls.crt"] == (b"chain", 0o400, "atelier")
    assert found["/opt/atelier/secrets/gateway/tls.key"] == (b"key", 0o400, "atelier")
    assert not any("ca." in path for path in found), "the authority stays with the operator"
