"""A store served as a mirror: what the lock names and the store knows to be good, and nothing else."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from atelier import models_serve
from atelier.errors import AtelierError
from atelier.models_serve import serve_models, serving, usage
from atelier.settings import read_hosts
from atelier.ssh import Destination
from weights.store import File, Store
from weights.verify import verify

BIG = os.urandom(2**18)
LARGE = os.urandom(17 * 2**20)
SMALL = b"a small file of weights"


def file(name: str, content: bytes) -> File:
    return File(name, len(content), hashlib.sha256(content).hexdigest())


CONTENTS = {"checkpoints/big.safetensors": BIG, "vae/small.safetensors": SMALL}
FILES = [file(name, content) for name, content in CONTENTS.items()]
OF_TWO_PIECES = file("checkpoints/large.safetensors", LARGE)


class Mirror:
    """A verified store that is being served."""

    def __init__(self, root: Path, contents: dict[str, bytes]) -> None:
        self.store = Store(root, root / ".state")
        self.files = [file(name, content) for name, content in contents.items()]
        for wanted in self.files:
            self.store.path(wanted).parent.mkdir(parents=True)
            self.store.path(wanted).write_bytes(contents[wanted.name])
        verify(self.store, self.files, deep=True)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=headers, trust_env=False)

    def raw(self, request: str) -> bytes:
        """Bytes as written: clients tidy a path up before they send it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    served = Mirror(tmp_path / "store", CONTENTS)
    with serving(served.store, served.files, port=0) as served.port:
        yield served


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Mirror]:
    served = Mirror(tmp_path / "store", {OF_TWO_PIECES.name: LARGE})
    with serving(served.store, served.files, port=0) as served.port:
        yield served


def test_whole_files_and_the_list(mirror: Mirror) -> None:
    assert mirror.get("/").text.split() == ["checkpoints/big.safetensors", "vae/small.safetensors"]
    answer = mirror.get("/checkpoints/big.safetensors")
    assert answer.content == BIG and answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"


RANGES = {
    "bytes=0-3": (206, SMALL[:4]),
    "bytes=4-": (206, SMALL[4:]),
    "bytes=-5": (206, SMALL[-5:]),
    "bytes=2-9999": (206, SMALL[2:]),
    f"bytes={len(SMALL)}-": (416, None),
}


@pytest.mark.parametrize(("asked", "expected"), RANGES.items(), ids=RANGES)
def test_ranges(mirror: Mirror, asked: str, expected: tuple[int, bytes | None]) -> None:
    answer = mirror.get("/vae/small.safetensors", range=asked)
    assert answer.status_code == expected[0]
    if expected[1] is None:
        assert answer.headers["content-range"] == f"bytes */{len(SMALL)}"
    else:
        start = SMALL.index(expected[1])
        assert answer.content == expected[1]
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(expected[1]) - 1}/{len(SMALL)}"


def test_head_has_the_size_and_no_body(mirror: Mirror) -> None:
    answer = mirror.raw("HEAD /checkpoints/big.safetensors")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and f"content-length: {len(BIG)}".encode() in head.lower() and body == b""


def test_pieces_are_offered_where_a_deep_verify_recorded_them(large: Mirror) -> None:
    facts = large.get(f"/{OF_TWO_PIECES.name}.pieces.json").json()
    size = facts["piece"]
    assert facts["pieces"] == [hashlib.sha256(LARGE[at : at + size]).hexdigest() for at in range(0, len(LARGE), size)]
    assert (facts["sha256"], facts["bytes"], len(facts["pieces"])) == (OF_TWO_PIECES.sha256, len(LARGE), 2)
    large.store.pieces_path(OF_TWO_PIECES).unlink()
    assert large.get(f"/{OF_TWO_PIECES.name}.pieces.json").status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(mirror: Mirror, method: str) -> None:
    assert mirror.raw(f"{method} /vae/small.safetensors").startswith(b"HTTP/1.1 405")


def test_what_the_lock_does_not_name_is_not_served(mirror: Mirror) -> None:
    (mirror.store.root / "vae" / "private.txt").write_text("mine")
    for path in ("/vae/private.txt", "/vae/absent.safetensors", "/vae/", "/vae", "/.lock", "/.state/x.json"):
        assert mirror.get(path).status_code == 404, path


TRAVERSALS = [
    "../secret",
    "vae/../../secret",
    "%2e%2e/secret",
    "..%2fsecret",
    "vae/..%2f..%2fsecret",
    "vae%2f../secret",
    "/secret",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out_of_the_store(mirror: Mirror, path: str) -> None:
    (mirror.store.root.parent / "secret").write_text("SECRET")
    answer = mirror.raw(f"GET /{path}")
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")) and b"SECRET" not in answer


def link_the_file(path: Path, outside: Path) -> None:
    shutil.copy2(path, outside)
    path.unlink()
    path.symlink_to(outside)


def link_the_directory(path: Path, outside: Path) -> None:
    path.parent.rename(outside)
    path.parent.symlink_to(outside)


@pytest.mark.parametrize("link", [link_the_file, link_the_directory])
def test_links_out_of_the_store_are_not_followed(
    mirror: Mirror, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    link(mirror.store.path(FILES[1]), tmp_path / "outside")
    answer = mirror.get("/vae/small.safetensors")
    assert answer.status_code == 404 and "a link leads to" in answer.text


@pytest.mark.parametrize("content", [SMALL[:-1], SMALL[:-1] + b"X", SMALL + b"more"], ids=["short", "flipped", "long"])
def test_a_file_that_is_wrong_now_is_not_served(mirror: Mirror, content: bytes) -> None:
    path = mirror.store.path(FILES[1])
    assert mirror.get("/vae/small.safetensors").status_code == 200
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, (1, 1))
    for asked in ("/vae/small.safetensors", "/vae/small.safetensors.pieces.json"):
        answer = mirror.get(asked)
        assert answer.status_code == 404 and "vae/small.safetensors: " in answer.text
    assert mirror.get("/").text.split() == ["checkpoints/big.safetensors"]


def test_a_link_to_itself_is_not_served(mirror: Mirror) -> None:
    path = mirror.store.path(FILES[1])
    path.unlink()
    path.symlink_to(path.name)
    assert mirror.get("/vae/small.safetensors").status_code == 404


def test_a_file_that_was_never_hashed_is_not_served(mirror: Mirror) -> None:
    mirror.store.forget(FILES[1])
    assert mirror.get("/vae/small.safetensors").status_code == 404


def test_a_compressed_neighbour_is_never_sent_instead(mirror: Mirror) -> None:
    path = mirror.store.path(FILES[1])
    path.with_name(path.name + ".gz").write_bytes(b"\x1f\x8bnobody checked this")
    answer = mirror.raw("GET /vae/small.safetensors HTTP/1.1\r\nAccept-Encoding: gzip, br\r\nX:")
    assert answer.endswith(b"\r\n\r\n" + SMALL)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_fetches_and_resumes(large: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "got"
    target.write_bytes(LARGE[: 5 * 2**20])
    subprocess.run(
        ["curl", "-fsS", "--noproxy", "*", "-C", "-", "-o", target, f"{large.url}/{OF_TWO_PIECES.name}"],
        check=True,
    )
    assert target.read_bytes() == LARGE


@pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2 is not installed")
def test_aria2_fetches_over_several_connections(large: Mirror, tmp_path: Path) -> None:
    command = [
        "aria2c",
        "-q",
        "--no-conf",
        "--all-proxy=",
        "-x4",
        "-s4",
        "-k1M",
        "--http-accept-gzip=true",
        "-d",
        tmp_path,
    ]
    subprocess.run([*command, "-o", "got", f"{large.url}/{OF_TWO_PIECES.name}"], check=True)
    assert (tmp_path / "got").read_bytes() == LARGE


def test_only_loopback_listens_by_default(mirror: Mirror) -> None:
    listening = Path("/proc/net/tcp").read_text().splitlines()
    places = {
        line.split()[1]
        for line in listening
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{mirror.port:04X}")
    }
    assert places == {f"0100007F:{mirror.port:04X}"}


def test_a_port_that_is_taken_is_named(mirror: Mirror) -> None:
    with (
        pytest.raises(AtelierError, match=f"cannot listen on 127.0.0.1:{mirror.port}"),
        serving(mirror.store, FILES, port=mirror.port),
    ):
        pass


def lock_file(folder: Path) -> Path:
    lock = folder / "models.yml"
    more = {"repository": "a/b", "revision": "main", "sets": ["s"], "used_by": [], "licence": "none"}
    entries = [
        {
            **more,
            "path": entry.name.split("/")[1],
            "directory": entry.name.split("/")[0],
            "bytes": entry.bytes,
            "sha256": entry.sha256,
        }
        for entry in FILES
    ]
    lock.write_text(yaml.safe_dump({"files": entries}))
    return lock


def test_the_command_says_what_is_served_and_what_not(mirror: Mirror, tmp_path: Path) -> None:
    mirror.store.forget(FILES[1])
    said: list[str] = []
    (own,) = [thread for thread in threading.enumerate() if thread.name == "models-serve"]

    def hear(line: str) -> None:
        said.append(line)
        if line == "Ctrl-C ends it.":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve_models(mirror.store.root, lock_file(tmp_path), port=0, say=hear)
    port = said[1].rpartition(":")[2].rstrip("/")
    assert said[0].startswith("vae/small.safetensors: not ") and said[1].startswith("1 of 2 files of models.yml")
    assert f"  ssh -N -R 127.0.0.1:{port}:127.0.0.1:{port} user@host" in said
    assert f'      models: {{mirrors: ["http://127.0.0.1:{port}"]}}' in said
    assert [thread for thread in threading.enumerate() if thread.name == "models-serve"] == [own]


class Connection:
    """A connection to a host through which a port leads back until it ends."""

    destination = Destination("gpu1")

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.checks = [True, False]

    @contextlib.contextmanager
    def reverse(self, port: int) -> Iterator[Callable[[], bool]]:
        self.ports.append(port)
        yield lambda: self.checks.pop(0)


def test_a_host_is_served_through_its_connection_until_that_ends(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_serve, "LOOK", 0.01)
    said: list[str] = []
    connection = Connection()
    with pytest.raises(AtelierError, match="the SSH connection ended"):
        serve_models(mirror.store.root, lock_file(tmp_path), port=0, ssh=connection, say=said.append)
    (port,) = connection.ports
    assert said[1].startswith("gpu1 reaches it") and f'["http://127.0.0.1:{port}"]' in said[3]
    assert connection.checks == []
    with pytest.raises(AtelierError, match="do not go together"):
        serve_models(mirror.store.root, lock_file(tmp_path), "0.0.0.0", ssh=connection)


def test_an_empty_store_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match=r"no file of models\.yml that is known good") as caught:
        serve_models(tmp_path, lock_file(tmp_path), port=0)
    assert "make models-fetch DEST=" in caught.value.hint and "make models-verify DEEP=1 DEST=" in caught.value.hint


@pytest.mark.parametrize(
    ("bind", "host", "expected"),
    [
        ("127.0.0.1", None, "http://127.0.0.1:8765"),
        ("127.0.0.1", "gpu1", "http://127.0.0.1:8765"),
        ("192.0.2.7", None, "http://192.0.2.7:8765"),
        ("0.0.0.0", None, "http://<address of this computer>:8765"),
        ("2001:db8::7", None, "http://[2001:db8::7]:8765"),
    ],
)
def test_usage_names_the_mirror_that_a_host_is_given(
    bind: str, host: str | None, expected: str, tmp_path: Path
) -> None:
    lines = usage(bind, 8765, host)
    pasted = [line for line in lines if re.match(r" +(settings|models):", line)]
    (tmp_path / "hosts.yml").write_text("\n".join(["hosts:", "  box:", "    address: box", *pasted]))
    assert read_hosts(tmp_path / "hosts.yml")["box"].settings == {"models": {"mirrors": [expected]}}
    assert any("ssh -N -R" in line for line in lines) == (bind.startswith("127.") and not host)
