"""Adopt: what lies on the machine is found by size, proved by sha256, and taken without copying."""

import errno
import hashlib
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from killing import killed_before

from weights import adopt as adopt_module
from weights import store as store_module
from weights.adopt import Adoption, adopt, find
from weights.job import _found
from weights.store import File, Store, StoreError, identity, sha256_of
from weights.verify import verify

GOOD = b"the right bytes" * 1000
SAME_SIZE = b"the other bytes" * 1000
FILE = File("vae/model.safetensors", len(GOOD), hashlib.sha256(GOOD).hexdigest())
OTHER = File("loras/other.safetensors", len(SAME_SIZE), hashlib.sha256(SAME_SIZE).hexdigest())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "state")


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    tree = tmp_path / "ComfyUI" / "models"
    (tree / "vae").mkdir(parents=True)
    return tree


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes of what was hashed, in order."""
    inodes: list[int] = []

    def watch(path: Path, *more: object) -> str:
        inodes.append(path.stat().st_ino)
        return sha256_of(path)

    monkeypatch.setattr(adopt_module, "sha256_of", watch)
    return inodes


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def no_reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt_module, "_reflinked", lambda source, brought: False)


def no_links(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    no_reflinks(monkeypatch)
    monkeypatch.setattr(os, "link", refuse)


def another_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    no_links(monkeypatch, errno.EXDEV)


def is_in_place(store: Store, file: File = FILE) -> bool:
    return store.known_good(file) and sha256_of(store.path(file)) == file.sha256


def leftovers(store: Store) -> list[Path]:
    return list((store.root / ".incoming").iterdir())


def test_a_file_of_any_name_is_linked_and_the_original_stays(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflinks(monkeypatch)
    original = put(comfyui / "vae" / "renamed.bin", GOOD)
    said: list[str] = []
    adoption = adopt(store, [FILE], [comfyui], say=said.append)
    assert [(taken.source, taken.how) for taken in adoption.taken] == [(original, "linked")]
    assert is_in_place(store)
    assert original.stat().st_ino == store.path(FILE).stat().st_ino
    assert leftovers(store) == []
    assert said == [f"{FILE.name}: linked from {original}"]


def test_what_is_known_good_is_neither_searched_for_nor_hashed(
    store: Store, comfyui: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(comfyui / "vae" / "x", GOOD)
    adopt(store, [FILE], [comfyui])
    del hashed[:]
    monkeypatch.setattr(adopt_module, "find", lambda *_: pytest.fail("searched"))
    assert adopt(store, [FILE], [comfyui]) == Adoption()
    assert hashed == []


def test_only_files_of_a_wanted_size_are_hashed(store: Store, comfyui: Path, hashed: list[int]) -> None:
    put(comfyui / "vae" / "longer", GOOD + b"x")
    put(comfyui / "vae" / "shorter", GOOD[:-1])
    assert adopt(store, [FILE], [comfyui]).taken == []
    assert hashed == []


def test_right_bytes_in_the_store_are_recorded_not_searched(store: Store, comfyui: Path) -> None:
    put(store.path(FILE), GOOD)
    assert adopt(store, [FILE], [comfyui]) == Adoption()
    assert is_in_place(store)


def test_two_files_of_one_size_each_get_their_own_bytes(store: Store, comfyui: Path, hashed: list[int]) -> None:
    put(comfyui / "vae" / "other.safetensors", GOOD)
    put(comfyui / "vae" / "model.safetensors", SAME_SIZE)
    adoption = adopt(store, [FILE, OTHER], [comfyui])
    assert {taken.file for taken in adoption.taken} == {FILE, OTHER}
    assert is_in_place(store, FILE)
    assert is_in_place(store, OTHER)
    assert len(hashed) == 2


def test_two_files_swapped_in_the_store_are_put_right(store: Store) -> None:
    put(store.path(FILE), SAME_SIZE)
    put(store.path(OTHER), GOOD)
    adoption = adopt(store, [FILE, OTHER], [])
    assert len(adoption.set_aside) == 2
    assert is_in_place(store, FILE)
    assert is_in_place(store, OTHER)


def test_a_wrong_file_with_the_right_name_is_set_aside_named_and_never_used(store: Store, comfyui: Path) -> None:
    put(store.path(FILE), SAME_SIZE)
    put(comfyui / "vae" / "model.safetensors", SAME_SIZE)
    adoption = adopt(store, [FILE], [comfyui])
    (wrong,) = adoption.set_aside
    assert wrong.file == FILE
    assert wrong.path.read_bytes() == SAME_SIZE
    (text,) = adoption.notes
    assert all(part in text for part in (FILE.name, FILE.sha256, OTHER.sha256, str(wrong.path)))
    assert adoption.taken == []
    assert not os.path.lexists(store.path(FILE))
    assert (comfyui / "vae" / "model.safetensors").read_bytes() == SAME_SIZE
    assert leftovers(store) == []


def hub_cache(home: Path, content: bytes) -> tuple[Path, Path]:
    repository = home / "hub" / "models--Comfy-Org--Qwen"
    blob = put(repository / "blobs" / hashlib.sha256(content).hexdigest(), content)
    link = repository / "snapshots" / ("7" * 40) / "split_files" / "vae" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return blob, link


def test_the_hubs_cache_gives_the_blob_behind_its_symlinks_and_keeps_it(
    store: Store, tmp_path: Path, hashed: list[int]
) -> None:
    blob, link = hub_cache(tmp_path / "cache", GOOD)
    adoption = adopt(store, [FILE], [tmp_path / "cache"])
    assert [taken.source for taken in adoption.taken] == [blob]
    assert is_in_place(store)
    assert not store.path(FILE).is_symlink()
    assert link.read_bytes() == GOOD
    assert len(hashed) == 1


def test_the_likely_ones_are_hashed_first(store: Store, comfyui: Path, tmp_path: Path, hashed: list[int]) -> None:
    put(comfyui / "a", SAME_SIZE)
    named = put(comfyui / "model.safetensors", SAME_SIZE)
    blob, _ = hub_cache(tmp_path / "cache", GOOD)
    adopt(store, [FILE], [comfyui, tmp_path / "cache"])
    assert len(hashed) == 1
    assert is_in_place(store)
    blob.unlink()
    store.path(FILE).unlink()
    del hashed[:]
    adopt(store, [FILE], [comfyui])
    assert hashed == [named.stat().st_ino, (comfyui / "a").stat().st_ino]
    assert [taken.path for taken in find([comfyui], {FILE.bytes}, print)] == [comfyui / "a", named]


def test_a_link_out_of_the_searched_directories_is_noted_not_used(store: Store, comfyui: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "elsewhere" / "x", GOOD)
    (comfyui / "vae" / "link").symlink_to(outside)
    (comfyui / "vae" / "of no wanted size").symlink_to(put(tmp_path / "elsewhere" / "y", b"y"))
    (comfyui / "loras").symlink_to(outside.parent)
    adoption = adopt(store, [FILE], [comfyui])
    assert adoption.taken == []
    assert len(adoption.notes) == 2
    assert all(str(outside.parent) in note for note in adoption.notes)
    assert [taken.source for taken in adopt(store, [FILE], [comfyui, outside.parent]).taken] == [outside]


def test_links_in_circles_and_to_nowhere_end(comfyui: Path) -> None:
    put(comfyui / "vae" / "x", GOOD)
    (comfyui / "vae" / "up").symlink_to(comfyui)
    (comfyui / "self").symlink_to(comfyui / "self")
    (comfyui / "gone").symlink_to(comfyui / "nowhere")
    os.mkfifo(comfyui / "fifo")
    notes: list[str] = []
    found = find([comfyui, comfyui / "vae", comfyui], {FILE.bytes, 0}, notes.append)
    assert [candidate.path for candidate in found] == [comfyui / "vae" / "x"]
    assert notes == []


def test_a_file_of_two_names_is_hashed_once(store: Store, comfyui: Path, hashed: list[int]) -> None:
    os.link(put(comfyui / "vae" / "x", SAME_SIZE), comfyui / "vae" / "y")
    assert adopt(store, [FILE], [comfyui]).taken == []
    assert len(hashed) == 1


@pytest.mark.parametrize("root", ["/proc", "/proc/self", "/sys"])
def test_kernel_interfaces_are_never_entered(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(root)
    scanned: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(str(path)) or scandir(path))
    assert find([Path(root), tmp_path], {0, 4096}, lambda text: None) == []
    assert scanned == [str(tmp_path)]


def test_a_directory_that_cannot_be_read_is_named_and_the_rest_goes_on(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(comfyui / "vae" / "x", GOOD)
    closed = comfyui / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    adoption = adopt(store, [FILE], [comfyui, closed])
    assert adoption.notes == [f"{closed}: not searched: Permission denied"]
    assert is_in_place(store)


def test_a_search_directory_that_is_not_there_is_no_news(store: Store, tmp_path: Path) -> None:
    assert adopt(store, [FILE], [tmp_path / "nowhere"]) == Adoption()


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_where_there_are_no_links_the_file_is_moved(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    no_links(monkeypatch, error)
    right, wrong = put(comfyui / "vae" / "right", GOOD), put(comfyui / "vae" / "wrong", SAME_SIZE)
    assert [taken.how for taken in adopt(store, [FILE], [comfyui]).taken] == ["renamed"]
    assert is_in_place(store)
    assert not right.exists()
    assert wrong.read_bytes() == SAME_SIZE


@pytest.mark.parametrize("copy", [False, True])
def test_from_another_file_system_only_a_copy_that_was_asked_for(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch, copy: bool
) -> None:
    another_file_system(monkeypatch)
    original = put(comfyui / "vae" / "x", GOOD)
    adoption = adopt(store, [FILE], [comfyui], copy=copy)
    assert [taken.how for taken in adoption.taken] == (["copied"] if copy else [])
    assert is_in_place(store) == copy
    assert original.read_bytes() == GOOD
    assert any("not copied" in note for note in adoption.notes) == (not copy)
    assert leftovers(store) == []


def test_a_copy_that_went_wrong_is_not_published(store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another_file_system(monkeypatch)
    put(comfyui / "vae" / "x", GOOD)
    monkeypatch.setattr(adopt_module, "_copied", lambda original, target, size: target.write_bytes(SAME_SIZE))
    adoption = adopt(store, [FILE], [comfyui], copy=True)
    assert "the copy has other bytes" in adoption.notes[0]
    assert not os.path.lexists(store.path(FILE))
    assert leftovers(store) == []


def test_a_file_that_changes_while_it_is_read_is_not_taken(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflinks(monkeypatch)
    original = put(comfyui / "vae" / "x", GOOD)

    def written_to(path: Path, *more: object) -> str:
        found = sha256_of(path)
        os.utime(original, ns=(1, 1))
        return found

    monkeypatch.setattr(adopt_module, "sha256_of", written_to)
    adoption = adopt(store, [FILE], [comfyui])
    assert "changed while it was read" in adoption.notes[0]
    assert not os.path.lexists(store.path(FILE))


def test_what_a_killed_run_left_does_not_stop_the_next(store: Store, comfyui: Path) -> None:
    put(comfyui / "vae" / "x", GOOD)
    put(store.root / ".incoming" / "adopted", b"half a copy")
    adopt(store, [FILE], [comfyui])
    assert is_in_place(store)
    assert leftovers(store) == []


def test_a_part_that_is_being_fetched_is_not_a_candidate(store: Store) -> None:
    put(store.incoming(FILE), GOOD)
    assert adopt(store, [FILE], [store.root]).taken == []
    assert store.incoming(FILE).read_bytes() == GOOD


def test_a_file_under_another_name_in_the_store_is_linked(store: Store, hashed: list[int]) -> None:
    elsewhere = put(store.root / "checkpoints" / "model.safetensors", GOOD)
    assert [taken.source for taken in adopt(store, [FILE], []).taken] == [elsewhere]
    assert verify(store, [FILE])[0].status == "good"


@pytest.mark.parametrize("way", ["linked", "renamed", "copied"])
def test_adopt_killed_at_any_step_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "linked":
        no_reflinks(monkeypatch)
    elif way == "renamed":
        no_links(monkeypatch, errno.EPERM)
    else:
        another_file_system(monkeypatch)
    step, cut = 0, True
    while cut:
        step += 1
        folder = tmp_path / str(step)
        store, tree = Store(folder / "models", folder / "state"), folder / "tree"
        original = put(tree / "x", GOOD)
        put(tree / "y", SAME_SIZE)
        cut = killed_before(step, lambda store=store, tree=tree: adopt(store, [FILE], [tree], copy=True))
        final = store.path(FILE)
        assert not final.exists() or final.read_bytes() == GOOD
        assert final.exists() or original.read_bytes() == GOOD
        adopt(store, [FILE], [tree], copy=True)
        assert is_in_place(store)
        assert (tree / "y").read_bytes() == SAME_SIZE
    assert step > 8


def after_hashing(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """What somebody does as soon as we have hashed a file."""

    def hash_then_act(path: Path, *more: object) -> str:
        found = sha256_of(path)
        act()
        return found

    monkeypatch.setattr(adopt_module, "sha256_of", hash_then_act)


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The file as its owner has it mapped, its first page written to: further writes to that move no time."""
    descriptor = os.open(path, os.O_RDWR)
    with mmap.mmap(descriptor, 0) as memory:
        os.close(descriptor)
        memory[0:1] = memory[0:1]
        yield memory


@pytest.mark.parametrize("copy", [False, True])
def test_a_file_that_its_owner_has_mapped_is_copied_not_linked(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch, copy: bool
) -> None:
    no_reflinks(monkeypatch)
    original = put(comfyui / "x", GOOD)
    with mapped(original) as memory:
        adoption = adopt(store, [FILE], [comfyui], copy=copy)
        memory[0:1] = b"X"
    assert [taken.how for taken in adoption.taken] == (["copied"] if copy else [])
    assert is_in_place(store) == copy
    assert copy or "open for writing" in adoption.notes[0]
    assert original.stat().st_mode & 0o200


def test_bytes_that_change_behind_our_reading_are_never_published(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflinks(monkeypatch)
    original = put(comfyui / "x", GOOD)
    with mapped(original) as memory:
        after_hashing(monkeypatch, lambda: memory.__setitem__(slice(0, 1), b"X"))
        adopt(store, [FILE], [comfyui], copy=True)
    assert not os.path.lexists(store.path(FILE)) or is_in_place(store)


@pytest.mark.parametrize("error", [None, errno.EPERM])
def test_a_file_that_is_opened_for_writing_after_it_was_hashed_is_copied(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    no_links(monkeypatch, error) if error else no_reflinks(monkeypatch)
    original = put(comfyui / "x", GOOD)
    original.chmod(0o640)
    after_hashing(monkeypatch, lambda: _open_for_writing(original))
    adoption = adopt(store, [FILE], [comfyui], copy=True)
    assert [taken.how for taken in adoption.taken] == ["copied"]
    assert is_in_place(store)
    assert original.stat().st_ino != store.path(FILE).stat().st_ino
    assert original.stat().st_mode & 0o777 == 0o640


def _open_for_writing(path: Path) -> None:
    code = "import os, sys; os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)"
    subprocess.run([sys.executable, "-c", code, str(path)], stderr=subprocess.DEVNULL, check=False)


def test_where_nobody_tells_who_writes_a_file_is_copied_not_linked(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflinks(monkeypatch)
    monkeypatch.setattr(adopt_module.fcntl, "fcntl", lambda *_: (_ for _ in ()).throw(OSError(errno.EINVAL, "Invalid")))
    original = put(comfyui / "x", GOOD)
    assert "cannot be kept from being written to" in adopt(store, [FILE], [comfyui]).notes[0]
    assert [taken.how for taken in adopt(store, [FILE], [comfyui], copy=True).taken] == ["copied"]
    assert is_in_place(store)
    assert original.stat().st_nlink == 1


def test_a_linked_original_cannot_be_opened_for_writing_any_more(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflinks(monkeypatch)
    original = put(comfyui / "x", GOOD)
    if os.geteuid() == 0:
        os.chown(original, 1000, 1000)
    assert [taken.how for taken in adopt(store, [FILE], [comfyui]).taken] == ["linked"]
    assert (original.stat().st_mode & 0o777, original.stat().st_uid) == (0o444, os.geteuid())


@pytest.mark.parametrize("links", [True, False])
def test_a_file_swapped_after_it_was_hashed_is_not_published(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    no_reflinks(monkeypatch) if links else no_links(monkeypatch, errno.EPERM)
    original, other = put(comfyui / "x", GOOD), put(comfyui / "y", SAME_SIZE + b"x")
    os.truncate(other, FILE.bytes)
    publish = Store.publish

    def swap_first(self: Store, *arguments: object) -> None:
        if other.exists():
            other.replace(original)
        publish(self, *arguments)

    monkeypatch.setattr(Store, "publish", swap_first)
    adopt(store, [FILE], [comfyui])
    assert not os.path.lexists(store.path(FILE)) or is_in_place(store)
    assert original.read_bytes() == SAME_SIZE


def test_a_candidate_that_became_a_fifo_holds_nothing_up(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped = put(comfyui / "x", GOOD)

    def find_then_swap(*arguments: object) -> object:
        found = find(*arguments)
        swapped.unlink()
        os.mkfifo(swapped)
        return found

    monkeypatch.setattr(adopt_module, "find", find_then_swap)
    code = os.fork()
    if code == 0:
        signal.alarm(5)
        notes = adopt(store, [FILE], [comfyui]).notes
        os._exit(0 if "another file is in its place" in notes[0] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(code, 0)[1]) == 0


def test_a_file_that_grows_is_not_read_for_ever(store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = put(comfyui / "x", GOOD)
    monkeypatch.setattr(adopt_module, "_open", lambda candidate: os.open(candidate.path, os.O_RDONLY))
    monkeypatch.setattr(
        adopt_module,
        "find",
        lambda *arguments: [found for found in find(*arguments) if not os.truncate(original, 2**30)],
    )
    assert "grew while it was read" in adopt(store, [FILE], [comfyui]).notes[0]


@pytest.mark.parametrize("copy", [False, True])
def test_a_needed_file_of_the_same_bytes_keeps_its_name_where_there_are_no_links(
    store: Store, monkeypatch: pytest.MonkeyPatch, copy: bool
) -> None:
    no_links(monkeypatch, errno.EPERM)
    twin = File("vae/twin.safetensors", FILE.bytes, FILE.sha256)
    put(store.path(FILE), GOOD)
    adoption = adopt(store, [FILE, twin], [], copy=copy)
    assert [taken.how for taken in adoption.taken] == (["copied"] if copy else [])
    assert store.path(FILE).read_bytes() == GOOD
    assert store.path(twin).exists() == copy
    assert copy or "is a file that is needed there" in adoption.notes[0]


def test_three_candidates_are_hashed_for_each_missing_file_and_no_more(
    store: Store, comfyui: Path, hashed: list[int]
) -> None:
    for number in range(9):
        put(comfyui / str(number), bytes([number]) * FILE.bytes)
    adoption = adopt(store, [FILE], [comfyui])
    assert len(hashed) == 3
    (note,) = adoption.notes
    assert str(comfyui / "3") in note and "3 of its size are hashed" in note
    put(comfyui / "model.safetensors", GOOD)
    assert len(adopt(store, [FILE], [comfyui]).taken) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user")
def test_what_another_user_never_wrote_is_not_hashed(store: Store, comfyui: Path, hashed: list[int]) -> None:
    wanted = File("vae/large.safetensors", 2**20, hashlib.sha256(b"\0" * 2**20).hexdigest())
    for name in ("a", "b"):
        put(comfyui / name, b"")
        os.truncate(comfyui / name, wanted.bytes)
        os.chown(comfyui / name, 1000, 1000)
    (note,) = adopt(store, [wanted], [comfyui]).notes
    assert str(comfyui / "a") in note and "never written" in note
    assert hashed == []
    os.chown(comfyui / "b", 0, 0)
    assert [taken.source for taken in adopt(store, [wanted], [comfyui]).taken] == [comfyui / "b"]


@pytest.mark.skipif(os.geteuid() != 0, reason="makes links of another user")
@pytest.mark.parametrize(("owner", "counts"), [(0, True), (1000, False)])
@pytest.mark.parametrize("linked", ["ana/y/models", "ana/y", "ana"])
def test_a_link_below_a_pattern_counts_only_when_it_is_roots(
    tmp_path: Path, owner: int, counts: bool, linked: str
) -> None:
    target, link = tmp_path / "elsewhere", tmp_path / "home" / linked
    (target / "y" / "models").mkdir(parents=True)
    (target / "models").mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    os.chown(link, owner, owner, follow_symlinks=False)
    hit = tmp_path / "home" / "ana" / "y" / "models"
    assert _found([f"{tmp_path}/home/*/*/models"]) == ((hit,) if counts else ())
    assert _found([str(hit)]) == (hit,)


def test_what_changed_after_it_was_hashed_is_not_published(store: Store, tmp_path: Path) -> None:
    part = put(store.incoming(FILE), GOOD)
    hashed = identity(part.stat())
    os.utime(part, ns=(1, 1))
    with pytest.raises(StoreError, match="changed after it was hashed"):
        store.publish(part, FILE, hashed)
    assert not os.path.lexists(store.path(FILE))


def two_at_once(monkeypatch: pytest.MonkeyPatch, where: object) -> None:
    """Hashing waits until two are at it, and fails where the second never comes."""
    both = threading.Barrier(2, timeout=10)

    def hash_together(path: Path, *more: object) -> str:
        both.wait()
        return sha256_of(path)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(where, "sha256_of", hash_together)


@pytest.mark.parametrize("lies", ["elsewhere", "under its name"])
def test_files_are_hashed_on_all_cores(store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch, lies: str) -> None:
    no_reflinks(monkeypatch)
    for file, content in ((FILE, GOOD), (OTHER, SAME_SIZE)):
        put(comfyui / file.sha256 if lies == "elsewhere" else store.path(file), content)
    two_at_once(monkeypatch, adopt_module if lies == "elsewhere" else store_module)
    adoption = adopt(store, [FILE, OTHER], [comfyui])
    assert adoption.notes == [] and is_in_place(store, FILE) and is_in_place(store, OTHER)


def test_no_more_are_hashed_at_once_than_files_of_their_size_are_missing(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int]
) -> None:
    no_reflinks(monkeypatch)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    right = put(comfyui / "model.safetensors", GOOD)
    for number in range(2):
        put(comfyui / f"{number}.bin", SAME_SIZE)
    assert [taken.source for taken in adopt(store, [FILE], [comfyui]).taken] == [right]
    assert hashed == [right.stat().st_ino]


def test_a_second_file_of_the_same_bytes_comes_in_where_the_first_failed(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_file_system(monkeypatch)
    for name in ("a.bin", "b.bin"):
        put(comfyui / name, GOOD)
    two_at_once(monkeypatch, adopt_module)
    begun: list[int] = []
    copied = adopt_module._copied

    def fail_first(original: int, brought: Path, size: int) -> None:
        begun.append(original)
        time.sleep(0.05)  # until the other has its bytes as well
        if len(begun) == 1:
            monkeypatch.setattr(adopt_module, "sha256_of", sha256_of)
            raise OSError(errno.EIO, "broken sector")
        copied(original, brought, size)

    monkeypatch.setattr(adopt_module, "_copied", fail_first)
    missing = File("loras/third.safetensors", len(GOOD), "0" * 64)
    adoption = adopt(store, [FILE, missing], [comfyui], copy=True)
    assert [taken.file for taken in adoption.taken] == [FILE] and len(begun) == 2
    assert is_in_place(store) and "broken sector" in adoption.notes[0]


@pytest.mark.parametrize("lies", ["elsewhere", "under its name"])
def test_who_ends_us_does_not_wait_for_what_is_being_hashed(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch, lies: str
) -> None:
    no_reflinks(monkeypatch)
    put(comfyui / "a.bin" if lies == "elsewhere" else store.path(FILE), GOOD)
    hashing, ended = threading.Event(), threading.Event()

    def endless(path: Path, heed: Callable[[int], None]) -> str:
        hashing.set()
        while not ended.wait(0.001):
            heed(0)
        return ""

    def interrupt(*_: object, **__: object) -> None:
        hashing.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(adopt_module if lies == "elsewhere" else store_module, "sha256_of", endless)
    # Where it waits for its threads.
    monkeypatch.setattr(*((adopt_module, "wait") if lies == "elsewhere" else (Future, "result")), interrupt)
    guard = threading.Timer(10, ended.set)
    guard.start()
    with pytest.raises(KeyboardInterrupt):
        adopt(store, [FILE], [comfyui])
    assert not ended.is_set()
    guard.cancel()
