"""Adopt: what lies on the machine is found by size, proved by sha256, and taken without copying."""

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from killing import killed_before

from weights import adopt as adopt_module
from weights.adopt import Adoption, adopt, find
from weights.store import File, Store, sha256_of
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

    def watch(path: Path) -> str:
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
    monkeypatch.setattr(
        adopt_module, "find", lambda *arguments: [replace(found, device=-1) for found in find(*arguments)]
    )


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
    monkeypatch.setattr("shutil.copyfile", lambda source, target: target.write_bytes(SAME_SIZE))
    adoption = adopt(store, [FILE], [comfyui], copy=True)
    assert "the copy has other bytes" in adoption.notes[0]
    assert not os.path.lexists(store.path(FILE))
    assert leftovers(store) == []


def test_a_file_that_changes_while_it_is_read_is_not_taken(
    store: Store, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflinks(monkeypatch)
    original = put(comfyui / "vae" / "x", GOOD)

    def written_to(path: Path) -> str:
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
