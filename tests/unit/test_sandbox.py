"""The sandbox's pure parts, and its proxy against a server on loopback."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from loopback import at_work

from sandbox import base, boot, cgroup, internet, machine, network, proxy, sources, supervisor, tools

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
  contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://vendor.example/apt bookworm main extra # why
deb-src http://source.example/debian bookworm main
deb http://plain.example/debian/ bookworm main
"""


def test_deb822_gives_one_entry_for_each_suite() -> None:
    found = list(sources.parse_deb822(DEB822))
    assert [(entry.uri, entry.suite) for entry in found] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://mirror.example/debian-security", "bookworm-security"),
    ]
    assert found[0].components == ("main", "contrib")


def test_one_line_entries_with_options_and_comments() -> None:
    assert list(sources.parse_one_line(ONE_LINE)) == [
        sources.AptSource("https://vendor.example/apt", "bookworm", ("main", "extra"), "/k.gpg"),
        sources.AptSource("http://plain.example/debian/", "bookworm", ("main",)),
    ]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (list(sources.parse_deb822(DEB822)), ("http://mirror.example/debian", "http://mirror.example/debian-security")),
        # A third party with Debian's suite name, listed first.
        (list(sources.parse_one_line(ONE_LINE)), ("http://plain.example/debian", "")),
        ([sources.AptSource("https://vendor.example/apt", "bookworm", ("main",))], None),
        ([sources.AptSource("http://u.example/ubuntu", "noble", ("main",))], None),
        ([sources.AptSource("file:/srv/debian", "bookworm", ("main",))], None),
        ([], None),
    ],
)
def test_debian_archive(entries: list[sources.AptSource], expected: tuple[str, str] | None) -> None:
    assert sources.debian_archive(entries) == (expected and sources.DebianArchive(*expected))


@pytest.mark.parametrize(
    ("security", "main", "expected"),
    [
        ("http://s.example/sec", "http://m.example/debian", "http://s.example/sec"),
        ("", "http://m.example/debian", "http://m.example/debian-security"),
        ("", "http://m.example/mirror", None),
    ],
)
def test_guest_gets_the_security_suite_from_the_same_mirror(security: str, main: str, expected: str | None) -> None:
    entries = list(sources.parse_deb822(base.guest_sources(sources.DebianArchive(main, security))))
    uris = {entry.uri for entry in entries if entry.suite == "trixie-security"}
    assert uris == ({expected} if expected else set())
    assert {entry.suite for entry in entries if entry.uri == main} >= {"trixie", "trixie-updates"}


def test_base_image_changes_its_name_with_the_mirror() -> None:
    assert base.image_name("a") == base.image_name("a") != base.image_name("b")
    assert base.guest_sources(None) == ""


@pytest.mark.parametrize(
    ("environment", "files", "expected"),
    [
        ({}, [], ("", (), ())),
        ({}, ["[global]\nindex-url = http://a.example/simple\n"], ("http://a.example/simple", (), ())),
        ({}, ["[global]\nindex-url = http://a/\n", "[install]\nindex-url = http://b/\n"], ("http://b/", (), ())),
        ({"PIP_INDEX_URL": "http://c/"}, ["[global]\nindex-url = http://a/\n"], ("http://c/", (), ())),
        ({"PIP_EXTRA_INDEX_URL": "http://d/ file:///e"}, [], ("", ("http://d/", "file:///e"), ())),
        ({}, ["[global]\nextra-index-url =\n  http://f/\n  http://g/\n"], ("", ("http://f/", "http://g/"), ())),
        ({"PIP_FIND_LINKS": "/srv/wheels http://h/"}, [], ("", (), ("/srv/wheels", "http://h/"))),
    ],
)
def test_pip_indexes(environment: dict[str, str], files: list[str], expected: tuple[str, ...]) -> None:
    assert sources.pip_indexes(environment, files) == sources.PipIndexes(*expected)  # type: ignore[arg-type]


def test_folders_of_this_computer_stay_out_of_the_guest() -> None:
    assert boot.pip_configuration(sources.PipIndexes("", ("file:///srv/simple",), ("/srv/wheels",))) == ""
    assert sources.hosts_of(["file:///srv/simple", "https://user:pw@i.example:8443/simple"]) == {"i.example"}
    here = sources.PipIndexes(
        "https://i.example/s", ("file:///srv", "https://j.example/s"), ("/w", "https://k.example/")
    )
    there = sources.PipIndexes("https://i.example/s", ("https://j.example/s",), ("https://k.example/",))
    assert sources.pip_indexes({}, [boot.pip_configuration(here)]) == there


def test_pip_knows_its_own_default_hosts() -> None:
    assert len(sources.pip_default_hosts()) == 2


def test_an_index_of_the_operator_replaces_the_default_one(tmp_path: Path) -> None:
    hosts = sources.allowed_hosts(
        {"PIP_INDEX_URL": "https://i.example/simple", "PIP_CONFIG_FILE": "/dev/null"}, tmp_path
    )
    assert "i.example" in hosts
    assert not hosts & (sources.pip_default_hosts() - sources.hosts_of(s.uri for s in sources.apt_sources()))


def test_addresses_follow_the_name_and_avoid_collisions() -> None:
    first = network.plan("sandbox", [])
    assert network.plan("sandbox", []) == first
    assert network.plan("other", []).outer_address != first.outer_address
    moved = network.plan("sandbox", [f"{first.outer_address}/30"])
    assert moved.outer_address != first.outer_address
    assert moved.guest_namespace == first.guest_namespace
    assert len(first.outer_link) <= 15  # IFNAMSIZ
    with pytest.raises(RuntimeError, match="no free /30"):
        network.plan("sandbox", [str(network.SSH_RANGE)])


def test_two_names_never_share_a_namespace() -> None:
    plans = [network.plan(name, []) for name in ("a", "a-internet", "internet", "internet-a")]
    names = [name for plan in plans for name in (plan.guest_namespace, plan.internet_namespace)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a.b", "a/b", "a" * 32, "../x", "a b"])
def test_names_that_cannot_be_a_host_are_refused(name: str) -> None:
    with pytest.raises(machine.SandboxError, match="cannot be a sandbox's name"):
        machine.checked_name(name)


def query(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + labels + b"\0" + struct.pack("!HH", kind, 1)


def test_dns_answers_any_name() -> None:
    answer = internet.dns_answer(query("no.such.example", internet.TYPE_A))
    assert answer is not None
    assert answer[:2] == b"\x12\x34"
    assert answer[-4:] == socket.inet_aton(internet.ANSWER_ADDRESS)
    ipv6 = internet.dns_answer(query("no.such.example", 28))
    assert ipv6 is not None
    assert ipv6[6:8] == b"\0\0"  # no records, and no error


@pytest.mark.parametrize("junk", [b"", b"\0" * 12, query("a.example", 1)[:-3], b"\xff" * 40])
def test_dns_ignores_junk(junk: bytes) -> None:
    assert internet.dns_answer(junk) is None


@pytest.mark.parametrize(
    ("environment", "scheme", "host", "expected"),
    [
        ({}, "http", "a.example", None),
        ({"http_proxy": "http://p.example:8080"}, "http", "a.example", ("p.example", 8080)),
        ({"http_proxy": "p.example:8080"}, "https", "a.example", None),
        ({"HTTPS_PROXY": "http://p.example"}, "https", "a.example", ("p.example", 3128)),
        ({"HTTP_PROXY": "http://p.example"}, "http", "a.example", None),
        ({"http_proxy": "http://p.example", "no_proxy": "b.example, .example"}, "http", "a.example", None),
        ({"http_proxy": "http://p.example", "no_proxy": "*"}, "http", "a.example", None),
        ({"http_proxy": "http://p.example", "no_proxy": "xample"}, "http", "a.example", ("p.example", 3128)),
    ],
)
def test_the_computers_own_proxy(
    environment: dict[str, str], scheme: str, host: str, expected: tuple[str, int] | None
) -> None:
    assert proxy.upstream(environment, scheme, host) == expected


BODY = b"package" * 1000


class Archive(BaseHTTPRequestHandler):
    """An archive on loopback that counts what it is asked for."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = b"!<arch>\n" + BODY[8:] if "pool" in self.path else BODY
        self.send_response(404 if "missing" in self.path else 200)
        self.send_header("Content-Length", str(len(body) + 10 if "cut" in self.path else len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = "cut" in self.path

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "12345")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def archive() -> Iterator[int]:
    Archive.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    with at_work(server):
        yield server.server_port


@pytest.fixture
def packages(tmp_path: Path) -> Iterator[tuple[int, list[str]]]:
    """A proxy that passes on to 127.0.0.1 only; yields its port and its log."""
    lines: list[str] = []
    listener = internet.listen("127.0.0.1", 0)
    server = proxy.Proxy(frozenset({"127.0.0.1"}), tmp_path / "cache", lines.append, lambda scheme, host: None)
    with proxy.in_background(server, listener):
        yield listener.getsockname()[1], lines


def test_proxy_passes_on_and_keeps_the_connection(archive: int, packages: tuple[int, list[str]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", packages[0], timeout=5)
    for path, status in (("/dists/Release", 200), ("/missing", 404), ("/dists/Release?x=1", 200)):
        connection.request("GET", f"http://127.0.0.1:{archive}{path}")
        response = connection.getresponse()
        assert (response.status, len(response.read())) == (status, 7000)
    connection.request("HEAD", f"http://127.0.0.1:{archive}/x")
    response = connection.getresponse()
    assert (response.status, response.getheader("content-length"), response.read()) == (200, "12345", b"")
    assert Archive.asked == ["/dists/Release", "/missing", "/dists/Release?x=1"]


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_proxy_refuses_an_unlisted_host_and_says_so(archive: int, packages: tuple[int, list[str]], method: str) -> None:
    port, lines = packages
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    target = f"localhost:{archive}" if method == "CONNECT" else f"http://localhost:{archive}/x"
    connection.request(method, target)
    response = connection.getresponse()
    assert response.status == 403
    assert "does not pass on to localhost" in response.read().decode()
    assert lines == [f"proxy: refused {method} localhost"]
    assert Archive.asked == []


def test_proxy_keeps_whole_packages_only(archive: int, packages: tuple[int, list[str]]) -> None:
    def fetch(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", packages[0], timeout=5)
        connection.request("GET", f"http://127.0.0.1:{archive}{path}")
        try:
            return len(connection.getresponse().read())
        except http.client.IncompleteRead:
            return -1
        finally:
            connection.close()

    assert [fetch("/pool/a_1.deb"), fetch("/pool/a_1.deb")] == [7000, 7000]
    assert [fetch("/pool/cut.deb"), fetch("/pool/cut.deb")] == [-1, -1]
    assert [fetch("/login-page.deb"), fetch("/login-page.deb")] == [7000, 7000]
    assert [fetch("/pool/missing.deb"), fetch("/dists/InRelease"), fetch("/dists/InRelease")] == [7000] * 3
    assert Archive.asked.count("/pool/a_1.deb") == 1
    assert Archive.asked.count("/pool/cut.deb") == 2
    assert Archive.asked.count("/login-page.deb") == 2
    assert Archive.asked.count("/dists/InRelease") == 2


def test_proxy_tunnels(archive: int, packages: tuple[int, list[str]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", packages[0], timeout=5)
    connection.set_tunnel("127.0.0.1", archive)
    connection.request("GET", "/through")
    assert connection.getresponse().read() == BODY


def test_proxy_goes_through_the_computers_own_proxy(
    archive: int, packages: tuple[int, list[str]], tmp_path: Path
) -> None:
    own, lines = packages
    refused: list[str] = []
    listener = internet.listen("127.0.0.1", 0)
    chained = proxy.Proxy(None, tmp_path / "chained", refused.append, lambda scheme, host: ("127.0.0.1", own))
    with proxy.in_background(chained, listener):
        port = listener.getsockname()[1]
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        plain.request("GET", f"http://127.0.0.1:{archive}/plain")
        assert plain.getresponse().read() == BODY
        tunnel = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        tunnel.set_tunnel("127.0.0.1", archive)
        tunnel.request("GET", "/tunnel")
        assert tunnel.getresponse().read() == BODY
        unlisted = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        unlisted.request("CONNECT", f"localhost:{archive}")
        assert unlisted.getresponse().status == 502
    assert lines == ["proxy: refused CONNECT localhost"]


def test_apt_has_a_proxy_of_its_own() -> None:
    apt = sources.apt_proxies('Acquire::http::Proxy "http://a.example:3142";\nAcquire::https::Proxy "DIRECT";\n')
    assert apt == {"http_proxy": "http://a.example:3142"}
    route = sources.route_of({"https_proxy": "http://p.example:1"}, apt, frozenset({"archive.example"}))
    assert route("http", "archive.example") == ("a.example", 3142)
    assert route("http", "index.example") is None
    assert route("https", "index.example") == ("p.example", 1)


def test_proxy_wants_absolute_addresses(packages: tuple[int, list[str]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", packages[0], timeout=5)
    connection.request("GET", "/etc/passwd")
    assert connection.getresponse().status == 400


SPEC = {"name": "box", "namespace": "atelier-box", "binds": [["/srv/a:b", "/mnt", True], ["/c", "/d", False]]}


def test_the_guest_has_no_power_over_clock_and_modules() -> None:
    command = boot.nspawn_command(SPEC, Path("/root"))
    assert "--drop-capability=CAP_SYS_TIME,CAP_SYS_MODULE" in command
    assert command.index("--capability=all") < command.index("--drop-capability=CAP_SYS_TIME,CAP_SYS_MODULE")
    assert boot.nspawn_environment({"SECRET": "x"}).keys().isdisjoint({"SECRET"})
    assert "--bind-ro=/srv/a\\:b:/mnt" in command
    assert "--bind=/c:/d" in command


def test_the_guests_uptime_starts_at_zero() -> None:
    command = supervisor.boot_command(Path("/state"), 1234)
    assert command[command.index("--boottime") + 1] == command[command.index("--monotonic") + 1] == "-1234"


def test_only_new_certificates_travel() -> None:
    one, two = (f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----" for text in ("one", "two"))
    assert boot.added_certificates(f"# x\n{one}\n{two}\n{two}\n", f"{one}\n") == [two]


def test_missing_tools_are_named_by_package() -> None:
    assert tools.missing_packages(lambda need: True) == []
    assert tools.missing_packages(lambda need: not need.startswith("ssh")) == ["openssh-client"]
    assert set(tools.missing_packages(lambda need: False)) == set(tools.NEEDED.values())


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_where_no_sandbox_can_work_a_real_machine_is_named(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr("sys.platform", system)
    with pytest.raises(tools.UnavailableError, match="HOST=user@address"):
        tools.require_linux()


def test_a_user_without_sudo_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(tools.UnavailableError, match=r"needs root.*HOST=user@address"):
        tools.sudo_prefix()


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "/sys/fs/cgroup"),
        (
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
            "/sys/fs/cgroup/unified",
        ),
    ],
)
def test_the_v2_hierarchy_is_found(mounts: str, expected: str) -> None:
    assert cgroup.unified_root(mounts) == Path(expected)


def test_a_state_folder_with_no_supervisor_is_no_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path))
    assert machine.get("box") is None
    state = tmp_path / "sandbox/box"
    state.mkdir(parents=True)
    (state / "supervisor.pid").write_text("1\n")  # the process 1 lives, but holds no lock
    (state / "machine.json").write_text(json.dumps({"name": "box", "address": "198.18.0.2"}))
    assert machine.get("box") is None
    assert machine.names() == ["box"]
