"""The fetch against servers that mean harm, or are beyond what a fault explains: the good mirror gets its turn."""

import base64
import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer
from fetching import MIB, NAME, ROOT, assert_published, in_background, job_for

from weights.aria2 import Limits, retry_after
from weights.decide import Patience
from weights.fetch import Job, Result, run
from weights.store import File, Store, StoreError

needs_aria2 = pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2c is not installed")

SMALL = random.Random(2).randbytes(MIB + 123)
SMALL_SHA = sha256(SMALL).hexdigest()
Answer = Callable[[socket.socket, str], None]


class RawServer:
    """Answers every request as told, byte for byte; lists of pieces it does not know."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.sent, self.requests = answer, 0, 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self) -> str:
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}/a"

    def stop(self) -> None:
        self.listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as told:
                asked = told.readline().decode("latin-1")
                headers = {}
                while (line := told.readline().strip()) and b":" in line:
                    key, _, value = line.decode("latin-1").partition(":")
                    headers[key.lower()] = value.strip()
                self.requests += 1
                if ".pieces.json" in asked:
                    connection.sendall(b"HTTP/1.1 404 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                elif asked:
                    self.answer(connection, headers.get("range", ""))
        except OSError:
            pass


@pytest.fixture
def raw() -> Iterator[Callable[[Answer], RawServer]]:
    servers: list[RawServer] = []

    def serve(answer: Answer) -> RawServer:
        servers.append(RawServer(answer))
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
def good() -> Iterator[FaultServer]:
    server = FaultServer({"a": SMALL}, "127.0.0.2")
    yield server
    server.stop()


def small_job(tmp_path: Path, *urls: str) -> Job:
    return replace(
        job_for(tmp_path),
        files=(File(NAME, len(SMALL), SMALL_SHA, urls),),
        limits=Limits(connections=2, patience=2.0),
        patience=Patience(failures=2, first_wait=0.05, space_wait=0.2, silence=2.0, longest_retry_after=0.1),
        say=False,
    )


def answering(*lines: str) -> Answer:
    return lambda connection, _: connection.sendall(
        ("HTTP/1.1 " + "\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode("latin-1")
    )


@needs_aria2
@pytest.mark.parametrize(
    "answer",
    [
        answering("503 x", "Retry-After: \xb2", "Content-Length: 0"),
        answering("503 x", f"Retry-After: {'9' * 5000}", "Content-Length: 0"),
        answering("200 OK", "Content-Length: \xb2"),
        answering("206 x", f"Content-Range: bytes 0-0/{'9' * 5000}", "Content-Length: 1"),
        answering("302 x", "Location: http://[::1", "Content-Length: 0"),
        answering("302 x", "Location: http://127.0.0.1:99999/x", "Content-Length: 0"),
    ],
)
def test_a_malformed_header_costs_its_sender_only(
    tmp_path: Path, raw: Callable[[Answer], RawServer], good: FaultServer, answer: Answer
) -> None:
    job = small_job(tmp_path, raw(answer).url(), good.url("a"))
    assert run(job).ready
    assert_published(job)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("7", 7.0), (" 7 ", 7.0), ("\xb2", None), ("9" * 5000, None), ("soon", None), ("-1", None)],
)
def test_only_plain_numbers_are_waits(told: str, seconds: float | None) -> None:
    assert retry_after(told, 0.0) == seconds


@needs_aria2
def test_a_failure_nobody_thought_of_is_one_files(
    tmp_path: Path, good: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    good.content["b"] = b"other"
    job = small_job(tmp_path, good.url("a"))
    bad = File("vae/b.bin", 5, sha256(b"other").hexdigest(), (good.url("b"),))
    publish = Store.publish

    def failing(store: Store, part: Path, file: File, *more: Any, **options: Any) -> None:
        if file == bad:
            raise LookupError("nobody thought of this")
        publish(store, part, file, *more, **options)

    monkeypatch.setattr(Store, "publish", failing)
    result = run(replace(job, files=(bad, *job.files)))
    assert [(file.ready, file.why) for file in result.files] == [
        (False, "LookupError: nobody thought of this"),
        (True, ""),
    ]


def endlessly(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
    while True:
        connection.sendall(b"40000\r\n" + bytes(0x40000) + b"\r\n")
        time.sleep(0.002)


def huge_later(connection: socket.socket, span: str) -> None:
    """As wanted where it is asked for a byte, of a terabyte for whoever fetches."""
    if span == "bytes=0-0":
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(SMALL)}\r\nConnection: close\r\n\r\n".encode())
        return
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\nConnection: close\r\n\r\n")
    while True:
        connection.sendall(bytes(0x40000))
        time.sleep(0.002)


@needs_aria2
@pytest.mark.parametrize("answer", [endlessly, huge_later])
def test_who_sends_too_much_is_cut_off(
    tmp_path: Path, raw: Callable[[Answer], RawServer], good: FaultServer, answer: Answer
) -> None:
    job = small_job(tmp_path, raw(answer).url(), good.url("a"))
    taken: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            with suppress(FileNotFoundError):
                taken.extend(path.stat().st_blocks * 512 for path in (job.store / ".incoming").glob("*.part"))

    threading.Thread(target=watch, daemon=True).start()
    thread, results = in_background(job)
    thread.join(20)
    ended.set()
    assert results and results[0].ready
    (gone,) = results[0].files[0].dropped
    assert gone.why == f"it sends more than its {len(SMALL)} bytes"
    assert max(taken) <= len(SMALL) + 2 * MIB
    assert_published(job)


def drip(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 206 Partial\r\nX: ")
    while True:
        connection.sendall(b"a")
        time.sleep(0.1)


@needs_aria2
def test_who_drips_its_header_is_not_waited_for(
    tmp_path: Path, raw: Callable[[Answer], RawServer], good: FaultServer
) -> None:
    job = small_job(tmp_path, raw(drip).url(), good.url("a"))
    thread, results = in_background(job)
    thread.join(15)
    assert results and results[0].ready
    assert_published(job)


@needs_aria2
def test_we_end_while_a_header_drips(tmp_path: Path, raw: Callable[[Answer], RawServer]) -> None:
    dripping, stop = raw(drip), threading.Event()
    job = replace(small_job(tmp_path, dripping.url()), limits=Limits(patience=60.0))
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run(job, stop)), daemon=True)
    thread.start()
    until = time.monotonic() + 5
    while not dripping.requests and time.monotonic() < until:
        time.sleep(0.01)
    stop.set()
    thread.join(3)
    assert results and results[0].ended


@needs_aria2
def test_a_name_that_cannot_be_looked_at_costs_its_file_only(tmp_path: Path, good: FaultServer) -> None:
    job = small_job(tmp_path, good.url("a"))
    bad = File("vae/b.bin", 5, sha256(b"other").hexdigest())
    job.store.mkdir()
    (job.store / "vae").symlink_to("vae")
    result = run(replace(job, files=(bad, *job.files)))
    assert [(file.name, file.ready) for file in result.files] == [(bad.name, False), (NAME, True)]
    assert result.files[0].why == f"{job.store / bad.name}: Too many levels of symbolic links"
    assert_published(job)


@needs_aria2
def test_a_file_that_changes_while_it_is_read_costs_itself_only(
    tmp_path: Path, good: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(tmp_path, good.url("a"))
    bad = File("vae/b.bin", 5, sha256(b"other").hexdigest())
    settle = Store.settle

    def changing(store: Store, file: File, heard: Callable[[int], None] | None = None) -> object:
        if file == bad:
            raise StoreError("vae/b.bin: changed while it was read")
        return settle(store, file, heard)

    monkeypatch.setattr(Store, "settle", changing)
    result = run(replace(job, files=(bad, *job.files)))
    assert [(file.ready, file.why) for file in result.files] == [
        (False, "vae/b.bin: changed while it was read"),
        (True, ""),
    ]
    assert_published(job)


@needs_aria2
@pytest.mark.parametrize("search", [(), ("elsewhere",)])
def test_two_names_of_one_file_where_links_are_refused(
    tmp_path: Path, good: FaultServer, monkeypatch: pytest.MonkeyPatch, search: tuple[str, ...]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    job = small_job(tmp_path, good.url("a"))
    (file,) = job.files
    twin = replace(file, name="vae/b.safetensors")
    job = replace(job, files=(file, twin), search=tuple(tmp_path / name for name in search))
    for _ in range(3):
        result = run(job)
        assert result.ready
        assert [(job.store / one.name).read_bytes() == SMALL for one in job.files] == [True, True]
    (job.store / twin.name).unlink()
    assert run(job).ready
    assert [(job.store / one.name).read_bytes() == SMALL for one in job.files] == [True, True]
    assert not list(job.store.rglob("*.wrong-*"))


@needs_aria2
def test_what_went_away_meanwhile_is_not_ready(
    tmp_path: Path, good: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    good.content["b"] = b"other"
    job = small_job(tmp_path, good.url("a"))
    other = File("vae/b.bin", 5, sha256(b"other").hexdigest(), (good.url("b"),))
    assert run(job).ready
    publish = Store.publish

    def removing(store: Store, part: Path, file: File, *more: Any, **options: Any) -> None:
        publish(store, part, file, *more, **options)
        store.path(job.files[0]).unlink()

    monkeypatch.setattr(Store, "publish", removing)
    result = run(replace(job, files=(*job.files, other)))
    assert [file.ready for file in result.files] == [False, True]
    assert result.files[0].why == f"{job.store / NAME} is not there any more; run again"


def lying_digest(connection: socket.socket, span: str) -> None:
    low, _, high = span.removeprefix("bytes=").partition("-")
    first, last = int(low or 0), int(high) if high else len(SMALL) - 1
    body = SMALL[first : last + 1]
    lie = base64.b64encode(bytes(32)).decode()
    lines = (
        "HTTP/1.1 206 Partial Content",
        f"Content-Range: bytes {first}-{last}/{len(SMALL)}",
        f"Content-Length: {len(body)}",
        f"Digest: SHA-256={lie}",
        "Connection: close",
    )
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


@needs_aria2
def test_a_lie_about_the_digest_spoils_no_right_bytes(tmp_path: Path, raw: Callable[[Answer], RawServer]) -> None:
    lying = raw(lying_digest)
    job = small_job(tmp_path, lying.url())
    result = run(job)
    assert result.ready, result
    assert_published(job)
    assert lying.requests < 6


@needs_aria2
def test_a_name_that_is_no_utf8_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / os.fsdecode(b"\xff\x1b[2J.safetensors")).write_bytes(SMALL)
    path = tmp_path / "job.json"
    described = {
        "files": [{"name": NAME, "bytes": len(SMALL), "sha256": SMALL_SHA, "urls": []}],
        "store": str(tmp_path / "store"),
        "state": str(tmp_path / "state"),
        "search": [str(tmp_path / "elsewhere")],
        "reserve_bytes": 0,
    }
    path.write_text(json.dumps(described))
    command = [sys.executable, "-m", "weights", "fetch", str(path)]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    ended = subprocess.run(command, cwd=ROOT, env=strict, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert b"elsewhere/??[2J.safetensors" in ended.stdout
    assert (tmp_path / "store" / NAME).read_bytes() == SMALL
