"""Hashing while aria2 fetches: what it saves, and that nothing is published but what was hashed."""

import hashlib
import random
import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer

from weights import aria2, hashing
from weights.fetch import Job, run
from weights.hashing import PartHash
from weights.store import File

MIB = 1 << 20
PIECE = 2 * MIB
CONTENT = random.Random(5).randbytes(24 * MIB + 12345)
SHA = hashlib.sha256(CONTENT).hexdigest()


def notes(done: set[int], size: int = len(CONTENT), piece: int = PIECE) -> bytes:
    """A control file of aria2 with these pieces done and none under way."""
    bits = bytearray(-(-size // piece) // 8 + 1)
    for index in done:
        bits[index // 8] |= 0x80 >> index % 8
    return struct.pack(">HII", 1, 0, 0) + struct.pack(">IQQI", piece, size, 0, len(bits)) + bits + bytes(4)


@pytest.mark.parametrize(
    ("done", "front"),
    [
        (set(), 0),
        ({0}, PIECE),
        ({0, 1, 2}, 3 * PIECE),
        ({0, 1, 3, 4}, 2 * PIECE),
        ({1, 2, 3}, 0),
        (set(range(9)), 9 * PIECE),
        (set(range(12)), 12 * PIECE),
        (set(range(13)), len(CONTENT)),
    ],
)
def test_the_front_is_what_is_done_without_a_gap(done: set[int], front: int) -> None:
    assert aria2.noted_front(notes(done)) == front


def test_notes_that_are_cut_off_cannot_be_read() -> None:
    for length in (0, 5, 20, 34):
        with pytest.raises((struct.error, IndexError)):
            aria2.noted_front(notes({0})[:length])


@pytest.fixture
def part(tmp_path: Path) -> Path:
    path = tmp_path / "a.part"
    path.write_bytes(CONTENT)
    return path


def note(part: Path, text: bytes) -> None:
    """As aria2 does it: beside, then renamed."""
    beside = part.with_name("notes")
    beside.write_bytes(text)
    beside.replace(aria2.control_path(part))


def wait_for(hashed: PartHash, done: int) -> None:
    until = time.monotonic() + 5
    while hashed.done != done and time.monotonic() < until:
        time.sleep(0.01)
    assert hashed.done == done


def heed(_: int) -> None:
    pass


@pytest.fixture
def no_second_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise AssertionError("hashed a second time")

    monkeypatch.setattr(hashing, "sha256_of", refuse)


@pytest.mark.usefixtures("no_second_hashing")
def test_what_is_done_is_hashed_before_the_end_and_never_again(part: Path) -> None:
    hashed = PartHash(part, len(CONTENT))
    with hashed.following():
        note(part, notes({0, 1, 5}))
        wait_for(hashed, 2 * PIECE)
        note(part, notes(set(range(9))))
        wait_for(hashed, 9 * PIECE)
        aria2.control_path(part).unlink()
        time.sleep(0.3)
    assert hashed.done == 9 * PIECE
    assert hashed.sha256(SHA, heed) == SHA


def test_what_an_earlier_aria2_noted_is_not_hashed(part: Path) -> None:
    note(part, notes(set(range(9))))
    hashed = PartHash(part, len(CONTENT))
    with hashed.following():
        time.sleep(0.4)
        assert hashed.done == 0
        note(part, notes(set(range(3))))
        wait_for(hashed, 3 * PIECE)


@pytest.mark.parametrize("text", [notes({0}), notes(set()), b"", notes(set(range(9)))[:20]])
def test_fewer_pieces_or_damaged_notes_begin_the_hash_again(part: Path, text: bytes) -> None:
    hashed = PartHash(part, len(CONTENT))
    with hashed.following():
        note(part, notes(set(range(9))))
        wait_for(hashed, 9 * PIECE)
        note(part, text)
        wait_for(hashed, 0)
        with part.open("r+b") as file:
            file.write(b"other")
    assert hashed.sha256(SHA, heed) == hashlib.sha256(part.read_bytes()).hexdigest() != SHA


def test_another_part_begins_the_hash_again(part: Path) -> None:
    hashed = PartHash(part, len(CONTENT))
    with hashed.following():
        note(part, notes(set(range(9))))
        wait_for(hashed, 9 * PIECE)
    other = part.with_name("other")
    other.write_bytes(b"other" + CONTENT[5:])
    other.replace(part)
    assert hashed.sha256(SHA, heed) == hashlib.sha256(part.read_bytes()).hexdigest() != SHA


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_part_of_another_size_is_hashed_whole(part: Path, size: int) -> None:
    hashed = PartHash(part, size)
    assert hashed.sha256("0" * 64, heed) == SHA


def test_a_hash_taken_on_the_way_is_not_enough_to_call_a_part_wrong(part: Path) -> None:
    with part.open("r+b") as file:
        file.write(b"other")
    hashed = PartHash(part, len(CONTENT))
    with hashed.following():
        note(part, notes(set(range(9))))
        wait_for(hashed, 9 * PIECE)
    with part.open("r+b") as file:
        file.write(CONTENT[:5])
    assert hashed.sha256(SHA, heed) == SHA


@pytest.fixture
def servers() -> Iterator[tuple[FaultServer, FaultServer]]:
    both = FaultServer({"a": CONTENT}), FaultServer({"a": CONTENT})
    yield both
    for server in both:
        server.stop()


def job_for(tmp_path: Path, *servers: FaultServer) -> Job:
    file = File("vae/a.safetensors", len(CONTENT), SHA, tuple(server.url("a") for server in servers))
    return Job((file,), tmp_path / "store", tmp_path / "state", aria2.Limits(connections=4, patience=2.0), reserve=0)


needs_aria2 = pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2c is not installed")


@needs_aria2
@pytest.mark.usefixtures("no_second_hashing")
def test_most_is_hashed_when_the_last_byte_comes(
    tmp_path: Path, servers: tuple[FaultServer, FaultServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    when_complete: list[int] = []
    sha256 = PartHash.sha256

    def noticed(self: PartHash, *arguments: Any) -> str:
        when_complete.append(self.done)
        return sha256(self, *arguments)

    monkeypatch.setattr(PartHash, "sha256", noticed)
    servers[0].faults.rate = 6e6
    assert run(job_for(tmp_path, servers[0])).ready
    assert when_complete[0] > 14 * MIB


@needs_aria2
def test_a_front_that_was_fetched_again_after_it_was_hashed_is_not_published(
    tmp_path: Path, servers: tuple[FaultServer, FaultServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = servers
    good.faults.signed_bytes, good.faults.rate = 18 * MIB, 8e6
    bad.faults.flip = MIB
    job = job_for(tmp_path, good, bad)
    fetched, starts = aria2.run, []

    def damaged_after_the_first(part: Path, *arguments: Any) -> aria2.Outcome:
        outcome = fetched(part, *arguments)
        if not starts:
            good.faults.status["a"] = 404
            assert aria2.noted_front(aria2.control_path(part).read_bytes()) >= 4 * MIB
            note(part, notes(set()))
        starts.append(outcome)
        return outcome

    monkeypatch.setattr(aria2, "run", damaged_after_the_first)
    result = run(job)
    assert len(starts) > 1
    assert not result.ready
    assert not (job.store / "vae/a.safetensors").exists()


class ForgetfulServer(FaultServer):
    """Forgets the requests that come while it answers another."""

    def _handler(self) -> Any:
        class Handler(super()._handler()):  # type: ignore[misc]
            def handle_one_request(self) -> None:
                super().handle_one_request()
                self.rfile.close()
                self.connection.setblocking(False)
                with suppress(OSError):
                    self.connection.recv(65536)
                self.connection.setblocking(True)
                self.rfile = self.connection.makefile("rb")

        return Handler


@needs_aria2
def test_a_server_that_forgets_requests_sent_ahead_gets_no_more_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ForgetfulServer({"a": CONTENT})
    job = job_for(tmp_path, server)
    fetched, ahead = aria2.run, []

    def noticed(part: Path, size: int, answers: Any, limits: aria2.Limits, *others: Any) -> aria2.Outcome:
        ahead.append(limits.in_order)
        return fetched(part, size, answers, limits, *others)

    monkeypatch.setattr(aria2, "run", noticed)
    assert run(replace(job, limits=replace(job.limits, patience=1.0))).ready
    server.stop()
    assert ahead == [True, False]
    assert server.sent < len(CONTENT) + 16 * MIB
