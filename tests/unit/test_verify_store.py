"""Verify: from the records in no time, deep by every byte, and a wrong file is named with both hashes."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from weights import store as store_module
from weights import verify as verify_module
from weights.store import PIECE, File, Store
from weights.verify import Finding, Status, recorded_pieces, summary, verify

GOOD = b"the right bytes" * 1000
WRONG = b"the wrong bytes" * 1000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "state")


def file_of(content: bytes, name: str = "vae/a.safetensors") -> File:
    return File(name, len(content), hashlib.sha256(content).hexdigest())


def place(store: Store, file: File, content: bytes) -> Path:
    final = store.path(file)
    final.parent.mkdir(parents=True, exist_ok=True)
    final.write_bytes(content)
    return final


def flip_a_byte_behind_the_records_back(path: Path) -> None:
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("content", "shallow", "deep"),
    [
        (GOOD, "unchecked", "good"),
        (WRONG, "unchecked", "wrong"),
        (GOOD[:-1], "wrong", "wrong"),
        (b"", "wrong", "wrong"),
        (None, "missing", "missing"),
    ],
)
def test_the_status_of_what_was_never_hashed(store: Store, content: bytes | None, shallow: str, deep: str) -> None:
    file = file_of(GOOD)
    if content is not None:
        place(store, file, content)
    assert [finding.status for finding in verify(store, [file])] == [shallow]
    assert [finding.status for finding in verify(store, [file], deep=True)] == [deep]


def test_deep_names_the_wrong_file_with_both_hashes_and_the_record_goes(store: Store) -> None:
    file = file_of(GOOD)
    final = place(store, file, GOOD)
    assert store.settle(file) is None
    flip_a_byte_behind_the_records_back(final)
    assert verify(store, [file])[0].status == "good"
    said: list[str] = []
    (finding,) = verify(store, [file], deep=True, say=said.append)
    found = hashlib.sha256(final.read_bytes()).hexdigest()
    assert (finding.status, finding.found_sha256) == ("wrong", found)
    assert said == [finding.text]
    assert all(part in finding.text for part in (file.name, file.sha256, found))
    (after,) = verify(store, [file])
    assert after.text == f"{file.name}: not known good; a fetch or a deep verify checks it"
    assert final.exists()
    assert recorded_pieces(store, file) is None


def test_deep_records_what_is_right_so_that_shallow_knows_it(store: Store) -> None:
    file = file_of(GOOD)
    place(store, file, GOOD)
    verify(store, [file], deep=True)
    assert verify(store, [file]) == [Finding(file, "good")]


def test_shallow_reads_no_byte(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(GOOD)
    place(store, file, GOOD)
    verify(store, [file], deep=True)
    monkeypatch.setattr(store_module, "_hashed", lambda *_: pytest.fail("hashed"))
    assert verify(store, [file])[0].status == "good"


def test_findings_come_in_the_order_given_and_the_largest_is_hashed_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [file_of(b"a" * size, f"vae/{size}") for size in (3, 1, 5, 2)]
    for file in files:
        place(store, file, b"a" * file.bytes)
    hashed: list[str] = []
    original = verify_module.sha256_and_pieces

    def watch(path: Path, progress: object) -> tuple[str, list[str]]:
        hashed.append(path.name)
        return original(path)

    monkeypatch.setattr(verify_module, "sha256_and_pieces", watch)
    findings = verify(store, files, deep=True, jobs=1)
    assert [finding.file for finding in findings] == files
    assert hashed == ["5", "3", "2", "1"]


def test_pieces_are_recorded_once_and_fit_the_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"p" * (PIECE + 7)
    file = file_of(content)
    place(store, file, content)
    assert recorded_pieces(store, file) is None
    verify(store, [file], deep=True)
    expected = [hashlib.sha256(content[:PIECE]).hexdigest(), hashlib.sha256(content[PIECE:]).hexdigest()]
    assert recorded_pieces(store, file) == expected
    assert json.loads((store.state / f"{file.sha256}.pieces.json").read_text())["piece"] == PIECE
    monkeypatch.setattr(verify_module, "sha256_and_pieces", lambda *_: pytest.fail("pieces hashed again"))
    assert verify(store, [file], deep=True)[0].status == "good"


def test_a_store_that_nobody_serves_is_hashed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(GOOD)
    place(store, file, GOOD)
    monkeypatch.setattr(verify_module, "sha256_and_pieces", lambda *_: pytest.fail("pieces hashed"))
    assert verify(store, [file], deep=True, pieces=False)[0].status == "good"
    assert store.known_good(file)
    assert recorded_pieces(store, file) is None


@pytest.mark.parametrize(
    "change", [{"sha256": "0" * 64}, {"bytes": 1}, {"piece": 1}, {"pieces": []}, {"pieces": ["a", "b"]}, {"pieces": 7}]
)
def test_pieces_that_do_not_fit_are_not_used(store: Store, change: dict[str, object]) -> None:
    file = file_of(GOOD)
    place(store, file, GOOD)
    verify(store, [file], deep=True)
    path = store.pieces_path(file)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert recorded_pieces(store, file) is None


def test_a_file_that_changes_meanwhile_is_not_called_good(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(GOOD)
    final = place(store, file, GOOD)
    original = verify_module.sha256_and_pieces

    def change(path: Path, progress: object) -> tuple[str, list[str]]:
        os.utime(path, ns=(1, 1))
        return original(path)

    monkeypatch.setattr(verify_module, "sha256_and_pieces", change)
    (finding,) = verify(store, [file], deep=True)
    assert (finding.status, finding.reason) == ("unreadable", "changed while it was read")
    assert final.exists()
    assert not store.known_good(file)


def test_a_link_or_a_directory_is_wrong(store: Store, tmp_path: Path) -> None:
    file = file_of(GOOD)
    (tmp_path / "good").write_bytes(GOOD)
    store.path(file).parent.mkdir(parents=True)
    store.path(file).symlink_to(tmp_path / "good")
    assert verify(store, [file], deep=True)[0].text.endswith("wrong: not a regular file")


def test_one_unreadable_file_does_not_end_the_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of different content: the pieces of one are the pieces of all that are the same.
    files = [file_of(GOOD, "vae/a"), file_of(b"other", "vae/b")]
    for file, content in zip(files, (GOOD, b"other"), strict=True):
        place(store, file, content)
    original = verify_module.sha256_and_pieces

    def broken_disk(path: Path, progress: object) -> tuple[str, list[str]]:
        if path.name == "a":
            raise OSError(5, "Input/output error")
        return original(path)

    monkeypatch.setattr(verify_module, "sha256_and_pieces", broken_disk)
    assert [finding.status for finding in verify(store, files, deep=True)] == ["unreadable", "good"]


def test_an_interrupted_deep_verify_stops_hashing(store: Store) -> None:
    file = File("vae/big", 64 * 2**30, "0" * 64)
    small = file_of(GOOD, "vae/small")
    place(store, file, b"")
    os.truncate(store.path(file), file.bytes)
    place(store, small, GOOD)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        verify(store, [small, file], deep=True, jobs=2, say=interrupt)
    assert time.monotonic() - started < 5


def test_nothing_is_read_of_37_gb_that_are_known(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [File(f"vae/{index}", 37 * 10**9 // 8, f"{index:064x}") for index in range(8)]
    for file in files:
        final = place(store, file, b"")
        os.truncate(final, file.bytes)
        found = final.stat()
        store.record(file, store_module.identity(found))
    monkeypatch.setattr(store_module, "_hashed", lambda *_: pytest.fail("a file was read"))
    assert {finding.status for finding in verify(store, files)} == {"good"}


@pytest.mark.parametrize(
    ("statuses", "size", "deep", "seconds", "text"),
    [
        (["good", "good"], 8_000_000_000, False, 0.0021, "2 of 2 files are good, by their records"),
        (["good", "missing", "unchecked"], 8_000_000_000, False, 0.2, "1 of 3 files are good, by their records"),
        (
            ["good", "wrong", "missing"],
            8_000_000_000,
            True,
            20.0,
            "1 of 3 files are good; 16.0 GB hashed in 20.0 s, 0.80 GB/s",
        ),
        (["good", "wrong"], 1000, True, 0.001, "1 of 2 files are good, by every byte"),
        (["missing"], 8_000_000_000, True, 0.0, "0 of 1 files are good; nothing was there to hash"),
    ],
)
def test_a_verify_is_summed_up_in_a_line(
    statuses: list[Status], size: int, deep: bool, seconds: float, text: str
) -> None:
    file = File("vae/a", size, "a" * 64)
    found = {"good": ("a" * 64, file.bytes), "wrong": ("b" * 64, file.bytes)} if deep else {}
    findings = [Finding(file, status, *reversed(found.get(status, (None, None)))) for status in statuses]
    assert summary(findings, seconds, deep) == text
