"""The store: a final name exists only with right bytes, whatever is killed when, and nothing is hashed twice."""

import fcntl
import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import killed_before

from weights import store as store_module
from weights.store import File, Store, StoreError, identity, sha256_and_pieces, sha256_of

GOOD = b"the right bytes" * 1000
WRONG = b"the wrong bytes" * 1000
FILE = File("vae/model.safetensors", len(GOOD), hashlib.sha256(GOOD).hexdigest())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "state")


def part_of(store: Store, content: bytes = GOOD) -> Path:
    part = store.incoming(FILE)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    return part


def place(store: Store, content: bytes) -> Path:
    final = store.path(FILE)
    final.parent.mkdir(parents=True, exist_ok=True)
    final.write_bytes(content)
    return final


def all_contents(store: Store) -> list[bytes]:
    return [path.read_bytes() for path in store.root.rglob("*") if path.is_file() and not path.is_symlink()]


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "vae/../x", "vae//x", "vae/.hidden", ".incoming/x", "", "vae/", "vae/a b", "vae/x\n"],
)
def test_a_name_that_leaves_the_store_is_refused(name: str) -> None:
    with pytest.raises(StoreError, match="no place in a store"):
        File(name, 1, "0" * 64)


@pytest.mark.parametrize(("size", "sha256"), [(0, "0" * 64), (-1, "0" * 64), (1, "0" * 63), (1, "A" * 64), (1, "")])
def test_a_file_without_size_or_hash_is_refused(size: int, sha256: str) -> None:
    with pytest.raises(StoreError):
        File("vae/x", size, sha256)


def test_published_is_known_good_read_only_and_alone(store: Store) -> None:
    part = part_of(store)
    assert not store.known_good(FILE)
    store.publish(part, FILE)
    final = store.path(FILE)
    assert final.read_bytes() == GOOD
    assert final.stat().st_mode & 0o7777 == 0o444
    assert final.stat().st_uid == os.geteuid()
    assert not part.exists()
    assert sorted(path.name for path in store.state.iterdir()) == sorted([f"{FILE.sha256}.json", "changed"])
    assert store.known_good(FILE)


def test_known_good_reads_no_byte_of_the_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.publish(part_of(store), FILE)
    monkeypatch.setattr(store_module, "sha256_of", lambda *_: pytest.fail("hashed"))
    monkeypatch.setattr(store_module, "_hashed", lambda *_: pytest.fail("hashed"))
    assert store.known_good(FILE)
    assert store.settle(FILE) is None


def longer(final: Path) -> None:
    final.chmod(0o644)
    with final.open("ab") as file:
        file.write(b"x")


def touched(final: Path) -> None:
    before = final.stat()
    os.utime(final, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def another_inode(final: Path) -> None:
    before = final.stat()
    copy = final.with_name("copy")
    copy.write_bytes(final.read_bytes())
    copy.replace(final)
    os.utime(final, ns=(before.st_atime_ns, before.st_mtime_ns))


def linked_symbolically(final: Path) -> None:
    elsewhere = final.rename(final.with_name("elsewhere"))
    final.symlink_to(elsewhere)


@pytest.mark.parametrize("change", [longer, touched, another_inode, linked_symbolically, Path.unlink])
def test_what_changed_is_not_known_good(store: Store, change: Callable[[Path], None]) -> None:
    store.publish(part_of(store), FILE)
    change(store.path(FILE))
    assert not store.known_good(FILE)


@pytest.mark.parametrize("change", [longer, linked_symbolically])
def test_a_record_does_not_make_good_what_cannot_be(store: Store, change: Callable[[Path], None]) -> None:
    store.publish(part_of(store), FILE)
    change(store.path(FILE))
    store.record(FILE, identity(store.path(FILE).lstat()))
    assert not store.known_good(FILE)


def test_a_link_as_long_as_the_file_is_not_known_good(store: Store) -> None:
    final = store.path(FILE)
    final.parent.mkdir(parents=True)
    final.symlink_to("x" * 100)
    linked = File(FILE.name, 100, FILE.sha256)
    store.record(linked, identity(final.lstat()))
    assert not store.known_good(linked)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"bytes": 1}', "null", "7"])
def test_a_broken_record_means_not_known(store: Store, text: str) -> None:
    store.publish(part_of(store), FILE)
    (store.state / f"{FILE.sha256}.json").write_text(text)
    assert not store.known_good(FILE)


def test_the_record_of_another_file_is_not_this_ones(store: Store) -> None:
    store.publish(part_of(store), FILE)
    assert not store.known_good(File(FILE.name, FILE.bytes, "0" * 64))


def first_release_record(store: Store, final: Path, seconds_off: int = 0) -> Path:
    found = final.stat()
    store.state.mkdir(parents=True, exist_ok=True)
    record = store.state / FILE.sha256
    record.write_text(f"{found.st_size} {int(found.st_mtime) + seconds_off} {found.st_ino}\n")
    return record


def test_the_first_releases_record_is_honoured(store: Store) -> None:
    first_release_record(store, place(store, GOOD))
    assert store.known_good(FILE)


def test_the_first_releases_record_of_another_time_is_not(store: Store) -> None:
    first_release_record(store, place(store, GOOD), seconds_off=1)
    assert not store.known_good(FILE)


def test_an_own_record_overrules_the_first_releases(store: Store) -> None:
    final = place(store, GOOD)
    first_release_record(store, final)
    (store.state / f"{FILE.sha256}.json").write_text(json.dumps({"bytes": 1, "mtime_ns": 1, "inode": 1}))
    assert not store.known_good(FILE)


def test_a_record_replaces_the_first_releases(store: Store) -> None:
    final = place(store, GOOD)
    old = first_release_record(store, final, seconds_off=1)
    assert store.settle(FILE) is None
    assert not old.exists()
    assert store.known_good(FILE)


def test_a_part_of_the_wrong_size_is_never_published(store: Store) -> None:
    part = part_of(store, GOOD[:-1])
    with pytest.raises(StoreError, match="expected"):
        store.publish(part, FILE)
    assert not store.path(FILE).exists()
    assert part.exists()


def test_a_symbolic_link_is_never_published(store: Store) -> None:
    target = store.root / "target"
    part = part_of(store)
    part.rename(target)
    part.symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        store.publish(part, FILE)
    assert not os.path.lexists(store.path(FILE))


def test_publish_sets_aside_what_has_the_name(store: Store) -> None:
    place(store, WRONG)
    store.publish(part_of(store), FILE)
    assert store.path(FILE).read_bytes() == GOOD
    (aside,) = store.path(FILE).parent.glob("*.wrong-*")
    assert aside.read_bytes() == WRONG


def test_publish_keeps_right_bytes_that_are_there_already(store: Store) -> None:
    store.publish(part_of(store), FILE)
    inode = store.path(FILE).stat().st_ino
    store.publish(part_of(store), FILE)
    assert store.path(FILE).stat().st_ino == inode
    assert all_contents(store) == [GOOD]
    assert store.known_good(FILE)


def test_set_aside_never_overwrites(store: Store) -> None:
    asides = []
    for content in (b"a", b"b", b"c"):
        place(store, content)
        asides.append(store.set_aside(FILE))
    assert [aside.read_bytes() for aside in asides] == [b"a", b"b", b"c"]
    assert asides[0].name.startswith("model.safetensors.wrong-2")
    assert not store.path(FILE).exists()


def test_settle_records_right_bytes(store: Store) -> None:
    place(store, GOOD)
    heard: list[int] = []
    assert store.settle(FILE, heard.append) is None
    assert store.known_good(FILE)
    assert heard[-1] == FILE.bytes
    assert store.path(FILE).stat().st_mode & 0o7777 == 0o444


@pytest.mark.parametrize(("content", "hashed"), [(WRONG, True), (GOOD[:-1], False), (GOOD + b"x", False), (b"", False)])
def test_settle_sets_aside_and_names_wrong_bytes(store: Store, content: bytes, hashed: bool) -> None:
    first_release_record(store, place(store, content), seconds_off=1)
    wrong = store.settle(FILE)
    assert wrong is not None
    assert wrong.path.read_bytes() == content
    assert wrong.bytes == len(content)
    assert wrong.sha256 == (hashlib.sha256(content).hexdigest() if hashed else None)
    assert not os.path.lexists(store.path(FILE))
    assert list(store.state.iterdir()) == []


def test_settle_sets_aside_a_directory_and_a_symbolic_link(store: Store, tmp_path: Path) -> None:
    store.path(FILE).mkdir(parents=True)
    assert store.settle(FILE) is not None
    (tmp_path / "good").write_bytes(GOOD)
    store.path(FILE).symlink_to(tmp_path / "good")
    assert store.settle(FILE) is not None
    assert not os.path.lexists(store.path(FILE))
    assert (tmp_path / "good").read_bytes() == GOOD


def test_settle_of_nothing_does_nothing(store: Store) -> None:
    assert store.settle(FILE) is None
    assert not store.root.exists()


def test_a_file_that_changes_while_it_is_read_is_neither_recorded_nor_moved(store: Store) -> None:
    final = place(store, GOOD)
    with pytest.raises(StoreError, match="changed while it was read"):
        store.settle(FILE, lambda done: touched(final))
    assert not store.known_good(FILE)
    assert final.exists()


@pytest.mark.parametrize("before", [None, WRONG, GOOD], ids=["free", "wrong", "right but unrecorded"])
def test_publish_killed_at_any_step_loses_nothing(tmp_path: Path, before: bytes | None) -> None:
    step, cut = 0, True
    while cut:
        step += 1
        store = Store(tmp_path / str(step) / "models", tmp_path / str(step) / "state")
        if before is not None:
            place(store, before)
        part = part_of(store)
        cut = killed_before(step, lambda store=store, part=part: store.publish(part, FILE))
        final = store.path(FILE)
        if final.exists():
            assert final.read_bytes() == GOOD or final.read_bytes() == before
            assert not store.known_good(FILE) or final.read_bytes() == GOOD
        assert GOOD in all_contents(store)
        if before is not None:
            assert before in all_contents(store)
        # The next run: what has the name is looked at, then the part, if it is still there.
        store.settle(FILE)
        if part.exists():
            assert sha256_of(part) == FILE.sha256
            store.publish(part, FILE)
        assert store.known_good(FILE)
        assert final.read_bytes() == GOOD
    assert step > 8


def test_settle_killed_at_any_step_loses_nothing(tmp_path: Path) -> None:
    for content in (GOOD, WRONG):
        step, cut = 0, True
        while cut:
            step += 1
            folder = tmp_path / f"{step}-{content == GOOD}"
            store = Store(folder / "models", folder / "state")
            place(store, content)
            cut = killed_before(step, lambda store=store: store.settle(FILE))
            assert all_contents(store) == [content]
            store.settle(FILE)
            assert store.known_good(FILE) == (content == GOOD)
            assert all_contents(store) == [content]
        assert step > 3


def test_a_second_process_waits_for_the_lock_and_says_so(store: Store) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with store.lock(said.append):
            order.append("second")

    with store.lock(said.append):
        assert said == []
        thread = threading.Thread(target=second)
        thread.start()
        for _ in range(500):
            if said:
                break
            time.sleep(0.01)
        order.append("first ends")
    thread.join(10)
    assert order == ["first ends", "second"]
    assert len(said) == 1
    assert f"process {os.getpid()}" in said[0]


def test_a_child_with_the_descriptor_keeps_the_lock(store: Store) -> None:
    with store.lock() as descriptor:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    probe = os.open(store.root / ".lock", os.O_RDWR)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.kill()
        child.wait()
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        child.kill()
        child.wait()
        os.close(probe)


@pytest.mark.parametrize("read", [1024, 4095], ids=["even reads", "reads across a piece's end"])
@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 2 * 4096 + 5])
def test_pieces_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, read: int) -> None:
    monkeypatch.setattr(store_module, "_CHUNK", read)
    monkeypatch.setattr(store_module, "PIECE", 4096)
    path = tmp_path / "file"
    content = os.urandom(size)
    path.write_bytes(content)
    whole, pieces = sha256_and_pieces(path)
    assert whole == sha256_of(path) == hashlib.sha256(content).hexdigest()
    assert pieces == [hashlib.sha256(content[at : at + 4096]).hexdigest() for at in range(0, size, 4096)]


def test_what_is_swapped_while_it_is_published_is_set_aside(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    part, other = part_of(store), store.root / "other"
    other.write_bytes(WRONG)

    def swap(_: Path) -> None:
        if other.exists() and (store.state / "changed").exists():
            other.replace(part)

    monkeypatch.setattr(store_module, "sync_directory", swap)
    with pytest.raises(StoreError, match="another file was put in the place"):
        store.publish(part, FILE, identity(part.stat()))
    assert not os.path.lexists(store.path(FILE))
    assert not store.known_good(FILE)
    assert all_contents(store) == [WRONG]
