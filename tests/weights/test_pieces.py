"""What known pieces are good for: several mirrors at once, and a wrong byte costs a piece instead of the file."""

import hashlib
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fault_server import FaultServer
from fetching import ALLOWED, MIB, NAME, assert_published, in_background, job_for, wait_until_sent

from atelier.models_serve import serving
from weights import pieces
from weights.fetch import Job, run
from weights.store import PIECE, File, Store
from weights.verify import verify

pytestmark = pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2c is not installed")

CONTENT = random.Random(4).randbytes(64 * MIB + 54321)
SIZE, SHA = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
HASHES = [hashlib.sha256(CONTENT[at : at + PIECE]).hexdigest() for at in range(0, SIZE, PIECE)]
FACTS = {"sha256": SHA, "bytes": SIZE, "piece": PIECE, "pieces": HASHES}
LIST = "a.pieces.json"


def told(**changes: object) -> bytes:
    return json.dumps({**FACTS, **changes}).encode()


@pytest.fixture
def one() -> Iterator[FaultServer]:
    server = FaultServer({"a": CONTENT, LIST: told()}, "127.0.0.2")
    yield server
    server.stop()


@pytest.fixture
def two() -> Iterator[FaultServer]:
    server = FaultServer({"a": CONTENT}, "127.0.0.3")
    yield server
    server.stop()


def job_of(tmp_path: Path, *servers: FaultServer) -> Job:
    job = job_for(tmp_path)
    return replace(job, files=(File(NAME, SIZE, SHA, tuple(server.url("a") for server in servers)),))


def lying() -> bytes:
    return told(pieces=[HASHES[0], "0" * 64, *HASHES[2:]])


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        (told(), True),
        (told(sha256="0" * 64), False),
        (told(bytes=SIZE + 1), False),
        (told(piece=PIECE // 2), False),
        (told(pieces=HASHES[1:]), False),
        (told(pieces=[*HASHES, HASHES[0]]), False),
        (told(pieces=[*HASHES[1:], "X" * 64]), False),
        (told(pieces=[*HASHES[1:], 5]), False),
        (told(pieces="".join(HASHES)), False),
        (told(pieces=None), False),
        (b"[]", False),
        (b"7", False),
        (b"", False),
        (b"\xff\x00", False),
        (b"[" * 100_000, False),
        (told()[:-1], False),
    ],
)
def test_only_a_list_of_this_very_file_is_taken(body: bytes, fits: bool) -> None:
    assert pieces.read(body, File(NAME, SIZE, SHA)) == (tuple(HASHES) if fits else None)


def test_the_list_of_a_terabyte_may_be_read() -> None:
    size = 10**12
    facts = {"sha256": SHA, "bytes": size, "piece": PIECE, "pieces": ["0" * 64] * -(-size // PIECE)}
    assert len(json.dumps(facts)) < pieces.longest(size) < 8 * MIB


def test_two_mirrors_send_at_once(tmp_path: Path, one: FaultServer, two: FaultServer) -> None:
    one.faults.rate = two.faults.rate = 20e6
    job = job_of(tmp_path, one, two)
    assert run(job).ready
    assert_published(job)
    assert min(one.sent_of["a"], two.sent_of["a"]) > SIZE / 10
    assert one.sent + two.sent < SIZE + ALLOWED


def test_without_a_list_one_mirror_sends_at_a_time(tmp_path: Path, one: FaultServer, two: FaultServer) -> None:
    del one.content[LIST]
    job = job_of(tmp_path, one, two)
    assert run(job).ready
    assert two.sent == 0


def test_a_list_recorded_on_this_machine_will_do(tmp_path: Path, one: FaultServer, two: FaultServer) -> None:
    del one.content[LIST]
    one.faults.rate = two.faults.rate = 20e6
    job = job_of(tmp_path, one, two)
    path = Store(job.store, job.state).pieces_path(job.files[0])
    path.parent.mkdir()
    path.write_bytes(told())
    assert run(job).ready
    assert min(one.sent_of["a"], two.sent_of["a"]) > SIZE / 10
    assert one.asked[LIST] == two.asked[LIST] == 0


def test_the_hub_is_not_asked_for_a_list_and_sends_beside_nobody(
    tmp_path: Path, one: FaultServer, two: FaultServer
) -> None:
    job = replace(job_of(tmp_path, one, two), token_hosts=(two.address,), token="hf_secret")
    assert run(job).ready
    assert two.requests == 0


@pytest.mark.parametrize("liar", [0, 1])
def test_one_of_two_flips_a_byte(tmp_path: Path, one: FaultServer, two: FaultServer, liar: int) -> None:
    one.faults.rate = two.faults.rate = 20e6
    servers = (one, two)
    # In every piece: whoever sends it, the mirror has a wrong byte in what it sends.
    content = bytearray(CONTENT)
    for at in range(liar * MIB, SIZE, 2 * MIB):
        content[at] ^= 1
    servers[liar].content["a"] = bytes(content)
    job = job_of(tmp_path, one, two)
    result = run(job)
    assert result.ready
    assert_published(job)
    (gone,) = result.files[0].dropped
    assert gone.url == servers[liar].url("a")
    assert servers[liar].sent_of["a"] < SIZE  # its share, and a piece that showed it
    index = int(gone.why.split()[2]) - 1
    assert f"expected {HASHES[index]}" in gone.why
    assert hashlib.sha256(content[index * PIECE : (index + 1) * PIECE]).hexdigest() in gone.why


@pytest.mark.parametrize("liar", [0, 1])
def test_one_flipped_byte_of_one_of_two_costs_two_pieces(
    tmp_path: Path, one: FaultServer, two: FaultServer, liar: int
) -> None:
    one.faults.rate = two.faults.rate = 20e6
    servers = (one, two)
    # aria2 gives the first MiB to one, and each following share to the other.
    servers[liar].faults.flip = 1000 if liar == 0 else SIZE - 1000
    job = job_of(tmp_path, one, two)
    result = run(job)
    assert result.ready
    assert_published(job)
    assert [gone.url for gone in result.files[0].dropped] == [servers[liar].url("a")]
    assert one.sent + two.sent < SIZE + 2 * PIECE + 16 * MIB


def test_a_flipped_byte_of_the_only_mirror_costs_a_piece(tmp_path: Path, one: FaultServer) -> None:
    one.faults.flip = 20 * MIB
    job = job_of(tmp_path, one)
    result = run(job)
    assert not result.ready
    assert f"expected {SHA}" in result.files[0].why
    assert f"piece 2 of 16 MiB has sha256 {hashed_with_flip(20 * MIB)}, expected {HASHES[1]}" in result.files[0].why
    assert not (job.store / NAME).exists()
    one.faults.flip = None
    one.forget()
    assert run(job).ready
    assert_published(job)
    assert one.sent < PIECE + MIB


def hashed_with_flip(at: int) -> str:
    piece = bytearray(CONTENT[at // PIECE * PIECE : (at // PIECE + 1) * PIECE])
    piece[at % PIECE] ^= 1
    return hashlib.sha256(piece).hexdigest()


def test_a_byte_that_flips_once_costs_a_piece_and_nobody_is_blamed(tmp_path: Path, one: FaultServer) -> None:
    one.faults.flip, one.faults.rate = 20 * MIB, 30e6
    job = replace(job_of(tmp_path, one), progress=tmp_path / "progress.json")
    thread, results = in_background(job)
    until = time.monotonic() + 20
    while one.sent_of["a"] < SIZE - MIB and time.monotonic() < until:
        time.sleep(0.01)
    one.faults.flip = None
    thread.join()
    assert results[0].ready
    assert results[0].files[0].dropped == ()
    assert_published(job)
    assert PIECE < one.sent - SIZE < PIECE + ALLOWED
    assert json.loads(job.progress.read_text())["fetched"] == SIZE + PIECE


def test_wrong_pieces_of_an_earlier_run_are_fetched_again(tmp_path: Path, one: FaultServer) -> None:
    job = job_of(tmp_path, one)
    part = Store(job.store, job.state).incoming(job.files[0])
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[: 3 * PIECE] + bytes(SIZE - 3 * PIECE))
    assert run(job).ready
    assert_published(job)
    assert one.sent_of["a"] == SIZE - 3 * PIECE


def test_a_list_that_lies_costs_nothing_while_the_bytes_are_right(
    tmp_path: Path, one: FaultServer, two: FaultServer
) -> None:
    one.content[LIST] = lying()
    job = job_of(tmp_path, one, two)
    result = run(job)
    assert result.ready
    assert result.files[0].dropped == ()
    assert one.sent + two.sent < SIZE + ALLOWED


def test_a_list_that_lies_is_named_and_a_flipped_byte_found_all_the_same(
    tmp_path: Path, one: FaultServer, two: FaultServer, capfd: pytest.CaptureFixture[str]
) -> None:
    one.content[LIST] = lying()
    two.faults.flip = SIZE - 1000
    job = job_of(tmp_path, one, two)
    result = run(job)
    assert result.ready
    assert_published(job)
    assert f"the sha256 of its pieces by {one.url(LIST)} are wrong" in capfd.readouterr().out
    assert one.url("a") not in {gone.url for gone in result.files[0].dropped}


@pytest.mark.parametrize("at", [PIECE, 2 * PIECE])
def test_the_only_mirror_offers_a_list_that_lies_and_a_byte_flips_once(
    tmp_path: Path, one: FaultServer, at: int
) -> None:
    one.content[LIST] = lying()
    job = job_of(tmp_path, one)
    part = Store(job.store, job.state).incoming(job.files[0])
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[: at + 5] + b"?" + CONTENT[at + 6 :])
    assert run(job).ready
    assert_published(job)


def test_all_is_as_listed_and_the_whole_is_wrong(
    tmp_path: Path, one: FaultServer, two: FaultServer, capfd: pytest.CaptureFixture[str]
) -> None:
    rotten = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    one.content["a"] = rotten
    one.content[LIST] = told(pieces=[*HASHES[:-1], hashlib.sha256(rotten[4 * PIECE :]).hexdigest()])
    job = job_of(tmp_path, one, two)
    part = Store(job.store, job.state).incoming(job.files[0])
    part.parent.mkdir(parents=True)
    part.write_bytes(rotten)
    result = run(job)
    assert result.ready
    assert_published(job)
    assert f"the sha256 of its pieces by {one.url(LIST)} are wrong" in capfd.readouterr().out
    assert [gone.url for gone in result.files[0].dropped] == [one.url("a")]


@pytest.mark.parametrize("rate", [5e3, 1e5])
def test_a_slow_mirror_beside_a_fast_one(tmp_path: Path, one: FaultServer, two: FaultServer, rate: float) -> None:
    one.faults.rate, two.faults.rate = rate, 6e6
    job = job_of(tmp_path, one, two)
    begun = time.monotonic()
    assert run(job).ready
    assert time.monotonic() - begun < 2 * SIZE / 6e6
    assert_published(job)
    assert one.sent + two.sent < SIZE + ALLOWED


def test_one_of_two_dies_in_the_middle(tmp_path: Path, one: FaultServer, two: FaultServer) -> None:
    one.faults.rate = two.faults.rate = 15e6
    thread, results = in_background(job := job_of(tmp_path, one, two))
    wait_until_sent(one, 12 * MIB)
    assert two.sent > 4 * MIB
    one.stop()
    thread.join()
    assert results[0].ready
    assert_published(job)
    assert one.sent + two.sent < SIZE + ALLOWED


def test_one_of_two_knows_no_ranges(tmp_path: Path, one: FaultServer, two: FaultServer) -> None:
    two.faults.ranges = False
    job = job_of(tmp_path, one, two)
    assert run(job).ready
    assert_published(job)
    assert one.sent_of["a"] >= SIZE
    assert two.asked["a"] == 1


def test_pieces_come_from_who_knows_ranges(tmp_path: Path, one: FaultServer, two: FaultServer) -> None:
    one.faults.ranges = False
    job = job_of(tmp_path, one, two)
    part = Store(job.store, job.state).incoming(job.files[0])
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(PIECE) + CONTENT[PIECE:])
    result = run(job)
    assert result.ready
    assert result.files[0].dropped == ()
    assert_published(job)
    assert two.sent_of["a"] == PIECE
    assert one.sent_of["a"] < 8 * MIB


@pytest.mark.parametrize("refusal", [404, 401, 503])
def test_one_of_two_refuses(tmp_path: Path, one: FaultServer, two: FaultServer, refusal: int) -> None:
    two.faults.status["a"] = refusal
    job = job_of(tmp_path, one, two)
    assert run(job).ready
    assert_published(job)
    assert two.asked["a"] == 1


def test_no_list_that_never_ends_is_read(tmp_path: Path, one: FaultServer) -> None:
    one.content[LIST] = bytes(200 * MIB)
    one.faults.rate = 2e9
    job = job_of(tmp_path, one)
    assert run(job).ready
    assert one.sent_of[LIST] < 8 * MIB


@pytest.mark.parametrize("body", [b"<html>not here</html>", told(bytes=1, pieces=["0" * 64])])
def test_a_list_of_nothing_that_is_wanted(tmp_path: Path, one: FaultServer, two: FaultServer, body: bytes) -> None:
    one.content[LIST] = body
    job = job_of(tmp_path, one, two)
    assert run(job).ready
    assert_published(job)
    assert two.sent == 0


def test_a_mirror_that_takes_long_to_offer_a_list(tmp_path: Path, one: FaultServer, two: FaultServer) -> None:
    one.faults.pieces_wait = 30
    job = job_of(tmp_path, one, two)
    begun = time.monotonic()
    assert run(job).ready
    assert time.monotonic() - begun < 8
    assert_published(job)


def test_a_server_that_keeps_silent_costs_one_wait_a_run(tmp_path: Path, one: FaultServer, two: FaultServer) -> None:
    one.faults.pieces_wait = 30
    job = job_of(tmp_path, one, two)
    others = tuple(
        File(f"vae/{count}", SIZE, SHA[:-1] + str(count), (two.url("a"), one.url("a"))) for count in range(3)
    )
    begun = time.monotonic()
    assert not run(replace(job, files=(*job.files, *others), jobs=1)).ready
    assert one.asked[LIST] == 1
    assert time.monotonic() - begun < 15


def test_a_list_from_the_second_mirror_is_used_at_once(tmp_path: Path, one: FaultServer, two: FaultServer) -> None:
    one.content[LIST], two.content[LIST] = b"", told()
    one.faults.pieces_wait = 30
    job, begun = job_of(tmp_path, one, two), time.monotonic()
    assert run(job).ready
    assert time.monotonic() - begun < 3
    assert min(one.sent_of["a"], two.sent_of["a"]) > SIZE / 8
    assert_published(job)


def test_a_small_file_needs_no_list(tmp_path: Path, one: FaultServer) -> None:
    one.content["b"] = b"small"
    small = File("vae/b", 5, hashlib.sha256(b"small").hexdigest(), (one.url("b"),))
    assert run(replace(job_for(tmp_path), files=(small,))).ready
    assert set(one.asked) == {"b"}


def test_stopping_in_the_middle_of_a_repair_leaves_what_the_next_run_takes(tmp_path: Path, one: FaultServer) -> None:
    job, stop = job_of(tmp_path, one), threading.Event()
    part = Store(job.store, job.state).incoming(job.files[0])
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(3 * PIECE) + CONTENT[3 * PIECE :])
    one.faults.rate = 4e6
    thread = threading.Thread(target=run, args=(job, stop))
    thread.start()
    wait_until_sent(one, PIECE + PIECE // 2)
    stop.set()
    thread.join(3)
    assert not thread.is_alive()
    assert not (job.store / NAME).exists()
    one.forget()
    assert run(job).ready
    assert_published(job)
    assert one.sent_of["a"] < 2 * PIECE + MIB


def test_what_models_serve_offers_is_understood(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = job_of(tmp_path)
    offered, file = Store(tmp_path / "offered", tmp_path / "offered" / ".state"), job.files[0]
    offered.path(file).parent.mkdir(parents=True)
    offered.path(file).write_bytes(CONTENT)
    verify(offered, [file], deep=True)
    part = Store(job.store, job.state).incoming(file)
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:PIECE] + b"?" + CONTENT[PIECE + 1 :])
    with serving(offered, [file], port=0) as port:
        assert run(replace(job, files=(replace(file, urls=(f"http://127.0.0.1:{port}/{NAME}",)),))).ready
    assert_published(job)
    assert "1 of 5 pieces are fetched again: 2" in capfd.readouterr().out
