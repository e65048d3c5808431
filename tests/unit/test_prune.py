"""Prune: what no set needs is listed with its size and goes only when told; what a set needs never goes."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from weights import prune as prune_module
from weights.prune import garbage, prune_aloud, remove
from weights.store import File, Store, StoreError
from weights.verify import verify


def file_of(content: bytes, name: str) -> File:
    return File(name, len(content), hashlib.sha256(content).hexdigest())


NEEDED = file_of(b"needed" * 9, "vae/needed")
DROPPED = file_of(b"dropped" * 9, "loras/dropped")


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(params=["state beside", "state inside"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    root = tmp_path / "models"
    store = Store(root, root / ".state" if request.param == "state inside" else tmp_path / "state")
    put(store.path(NEEDED), b"needed" * 9)
    put(store.path(DROPPED), b"dropped" * 9)
    verify(store, [NEEDED, DROPPED], deep=True)
    with store.lock():
        return store


def everything(store: Store) -> set[Path]:
    return {path for top in (store.root, store.state) for path in top.rglob("*") if not path.is_dir()}


def test_a_store_that_is_all_needed_has_no_garbage(store: Store) -> None:
    assert garbage(store, [NEEDED, DROPPED]) == []


def test_a_dropped_file_goes_with_its_record_and_pieces_and_only_when_told(store: Store) -> None:
    old_record = put(store.state / DROPPED.sha256, b"1 2 3\n")
    before = everything(store)
    items = garbage(store, [NEEDED])
    expected = {
        store.path(DROPPED),
        store.state / f"{DROPPED.sha256}.json",
        store.state / f"{DROPPED.sha256}.pieces.json",
        old_record,
    }
    assert {item.path for item in items} == expected
    assert [item.bytes for item in items] == sorted((path.stat().st_size for path in expected), reverse=True)
    assert everything(store) == before
    assert remove(items) == sum(item.bytes for item in items)
    assert everything(store) == before - expected
    assert store.known_good(NEEDED)
    assert garbage(store, [NEEDED]) == []


def test_parts_are_kept_for_what_is_still_awaited(store: Store) -> None:
    awaited = File("vae/awaited", 10, "a" * 64)
    kept = [put(store.root / ".incoming" / f"{awaited.sha256}{end}", b"x") for end in (".part", ".part.aria2", ".json")]
    gone = [
        put(store.incoming(NEEDED), b"is published"),
        put(store.root / ".incoming" / f"{'b' * 64}.part", b"no set"),
        put(store.root / ".incoming" / "adopted", b"killed"),
    ]
    items = garbage(store, [NEEDED, DROPPED, awaited])
    assert {item.path for item in items} == set(gone)
    remove(items)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


def test_a_file_set_aside_is_listed_as_such(store: Store) -> None:
    aside = store.set_aside(DROPPED)
    (item,) = garbage(store, [NEEDED, DROPPED])
    assert (item.path, item.bytes) == (aside, DROPPED.bytes)
    assert "set aside" in item.why


def test_an_unhashed_or_wrong_file_of_a_needed_name_stays(store: Store) -> None:
    store.forget(NEEDED)
    store.path(NEEDED).unlink()
    put(store.path(NEEDED), b"something else")
    assert store.path(NEEDED) not in {item.path for item in garbage(store, [NEEDED, DROPPED])}


def test_a_link_to_nowhere_under_a_needed_name_stays(store: Store) -> None:
    store.path(NEEDED).unlink()
    store.path(NEEDED).symlink_to("nowhere")
    assert garbage(store, [NEEDED, DROPPED]) == []


def test_symbolic_links_go_not_what_they_lead_to(store: Store, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "x", b"x")
    (store.root / "linked").symlink_to(outside.parent)
    (store.root / "vae" / "link").symlink_to(outside)
    items = garbage(store, [NEEDED, DROPPED])
    assert {item.path for item in items} == {store.root / "linked", store.root / "vae" / "link"}
    remove(items)
    assert outside.exists()


def test_the_way_to_a_needed_file_stays_where_a_link_is_part_of_it(store: Store) -> None:
    (store.root / "vae").rename(store.root / "real")
    (store.root / "vae").symlink_to("real")
    assert garbage(store, [NEEDED, DROPPED]) == []
    assert store.known_good(NEEDED)


def test_a_second_name_of_a_needed_file_frees_nothing_and_stays(store: Store) -> None:
    os.link(store.path(NEEDED), store.root / "vae" / "second")
    assert garbage(store, [NEEDED, DROPPED]) == []


def test_what_is_not_of_the_store_in_the_state_directory_stays(store: Store) -> None:
    other = put(store.state / "manifest.json", b"{}")
    assert other not in {item.path for item in garbage(store, [])}


def test_a_directory_that_cannot_be_listed_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(top: Path, onerror: object) -> list[object]:
        onerror(PermissionError(13, "Permission denied", str(top)))
        return []

    monkeypatch.setattr(prune_module.os, "walk", refuse)
    with pytest.raises(StoreError, match="cannot be listed"):
        garbage(store, [NEEDED])


def test_a_store_that_does_not_exist_has_no_garbage(tmp_path: Path) -> None:
    assert garbage(Store(tmp_path / "no", tmp_path / "no"), [NEEDED]) == []


def test_nothing_is_removed_from_a_store_that_somebody_uses(store: Store) -> None:
    heard: list[str] = []
    waits = threading.Event()

    def say(text: str) -> None:
        heard.append(text)
        waits.set()

    pruning = threading.Thread(target=prune_aloud, args=(store, [NEEDED], True, say))
    with store.lock():
        pruning.start()
        waits.wait(10)
        assert len(heard) == 1 and "is in use by process" in heard[0]
        assert store.path(DROPPED).exists()
    pruning.join(10)
    assert not store.path(DROPPED).exists()


def test_what_a_person_hears(store: Store) -> None:
    aside = put(store.root / "vae/needed.wrong-20260101T000000Z", b"x")
    records = sorted(store.state.glob("*.json"))
    heard: list[str] = []
    with store.lock():  # a list waits for nobody
        prune_aloud(store, [NEEDED], False, heard.append)
    dropped = store.path(DROPPED)
    listed = [
        f"{dropped}: 0.00 GB: no set needs it",
        f"{aside}: 0.00 GB: set aside: had a wanted name and wrong bytes",
        f"{store.state}: 2 records of files that no set needs",
    ]
    assert heard == [*listed, "not needed: 0.00 GB, and nothing was removed: YES=1 (--yes) does it"]
    assert dropped.exists() and aside.exists() and sorted(store.state.glob("*.json")) == records
    heard.clear()
    prune_aloud(store, [NEEDED], True, heard.append)
    assert heard == [*listed, "removed: 0.00 GB; all that is needed stays"]
    assert not dropped.exists() and not aside.exists() and store.path(NEEDED).exists() and store.known_good(NEEDED)
    heard.clear()
    prune_aloud(store, [NEEDED], False, heard.append)
    assert heard == ["not needed: nothing"]
