"""What lies in a store and no set needs: listed always, removed only when told."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weights.store import INCOMING, File, Store, StoreError

_SHA256_FIRST = re.compile(r"([0-9a-f]{64})(?:\.|$)")
_SET_ASIDE = re.compile(r"\.wrong-\d{8}T\d{6}Z(-\d+)?$")


@dataclass(frozen=True)
class Garbage:
    """One file that may go."""

    path: Path
    bytes: int
    why: str


def garbage(store: Store, needed: Sequence[File]) -> list[Garbage]:
    """All that none of the needed files is made of, the largest first. Removes nothing.

    The part of a needed file that is not there yet is kept, and so is whatever shares its bytes with a needed file:
    removing that would free nothing.
    """
    found = [*_published(store, needed), *_incoming(store, needed), *_state(store, needed)]
    return sorted(found, key=lambda item: (-item.bytes, item.path))


def remove(items: Sequence[Garbage]) -> int:
    """Remove what was found since the store's lock is held. Returns the bytes removed."""
    for item in items:
        item.path.unlink()
    return sum(item.bytes for item in items)


def prune_aloud(store: Store, needed: Sequence[File], yes: bool, say: Callable[[str], None]) -> None:
    """Prune for a person: a line for each file that no set needs, one for what is known of such files, and the sum."""
    if not yes:
        items = garbage(store, needed)
        _list(store, items, say)
        size = sum(item.bytes for item in items) / 1e9
        more = f"{size:.2f} GB, and nothing was removed: YES=1 (--yes) does it" if items else "nothing"
        say(f"not needed: {more}")
        return
    with store.lock(waiting=say):
        items = garbage(store, needed)
        _list(store, items, say)
        removed = remove(items)
    say(f"removed: {removed / 1e9:.2f} GB; all that is needed stays")


def _list(store: Store, items: Sequence[Garbage], say: Callable[[str], None]) -> None:
    records = [item for item in items if store.state in item.path.parents]
    for item in items:
        if item not in records:
            say(f"{item.path}: {item.bytes / 1e9:.2f} GB: {item.why}")
    if records:
        say(f"{store.state}: {len(records)} records of files that no set needs")


def _published(store: Store, needed: Sequence[File]) -> Iterator[Garbage]:
    kept = {_inode(store.path(file)) for file in needed} - {None}
    ways = {parent for file in needed for parent in store.path(file).parents}
    names = {store.path(file) for file in needed}
    apart = {store.root / INCOMING, store.state}
    for path in _files(store.root, apart):
        if path in names or path in ways or path == store.root / ".lock" or _inode(path) in kept:
            continue
        why = "set aside: had a wanted name and wrong bytes" if _SET_ASIDE.search(path.name) else "no set needs it"
        yield Garbage(path, path.lstat().st_size, why)


def _incoming(store: Store, needed: Sequence[File]) -> Iterator[Garbage]:
    awaited = {file.sha256 for file in needed if not store.known_good(file)}
    for path in _files(store.root / INCOMING, set()):
        if _sha256(path) not in awaited:
            yield Garbage(path, path.lstat().st_size, "part of a transfer that no set waits for")


def _state(store: Store, needed: Sequence[File]) -> Iterator[Garbage]:
    known = {file.sha256 for file in needed}
    for path in _files(store.state, set()):
        sha256 = _sha256(path)
        if sha256 and sha256 not in known:
            yield Garbage(path, path.lstat().st_size, "what is known of a file that no set needs")


def _sha256(path: Path) -> str | None:
    match = _SHA256_FIRST.match(path.name)
    return match[1] if match else None


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _files(top: Path, apart: set[Path]) -> Iterator[Path]:
    """Whatever is no directory below top. Symbolic links are not followed: they are what is listed."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise StoreError(f"{error.filename}: cannot be listed: {error.strerror}")

    for folder, directories, names in os.walk(top, onerror=refuse):
        here = Path(folder)
        links = [name for name in directories if (here / name).is_symlink()]
        directories[:] = [name for name in directories if here / name not in apart]
        yield from (here / name for name in sorted([*names, *links]))
