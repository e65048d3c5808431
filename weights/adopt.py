"""Take what is already on this machine into the store: found by size, proved by sha256, linked rather than copied."""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from weights.store import INCOMING, File, Store, StoreError, Wrong, identity, sha256_of

How = Literal["reflinked", "linked", "renamed", "copied"]
_FICLONE = 0x40049409
# No files of anybody's: kernel interfaces, where a read may block or never end.
_INTERFACES = {"proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf"}
_NO_LINKS_HERE = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


@dataclass(frozen=True)
class Taken:
    """A file that needs no download any more, and where its bytes came from."""

    file: File
    source: Path
    how: How


@dataclass(frozen=True)
class Candidate:
    """A file on this machine that has the size of a wanted one."""

    path: Path
    bytes: int
    device: int
    inode: int


@dataclass
class Adoption:
    """What was taken, what wrong file had a wanted name, and what a person should know."""

    taken: list[Taken] = field(default_factory=list)
    set_aside: list[Wrong] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def adopt(
    store: Store,
    files: Sequence[File],
    search: Sequence[Path],
    copy: bool = False,
    say: Callable[[str], None] | None = None,
) -> Adoption:
    """Settle what has the names of the files, then take the rest. The caller holds the store's lock."""
    settled = Adoption()
    missing: list[File] = []

    def note(text: str) -> None:
        settled.notes.append(text)
        if say:
            say(text)

    for file in files:
        try:
            wrong = store.settle(file)
        except (OSError, StoreError) as error:
            note(f"{file.name}: {error}")
            continue
        if wrong:
            settled.set_aside.append(wrong)
            note(wrong.text)
        if not store.known_good(file):
            missing.append(file)
    adoption = take(store, missing, search, copy, say)
    return Adoption(adoption.taken, settled.set_aside, [*settled.notes, *adoption.notes])


def take(
    store: Store,
    files: Sequence[File],
    search: Sequence[Path],
    copy: bool = False,
    say: Callable[[str], None] | None = None,
) -> Adoption:
    """Bring into the store what lies in it or in the search directories; the names of the files are free.

    A file on another file system is copied only when copy is set, otherwise noted. The originals stay, except where
    the file system knows no links: there they are moved. The caller holds the store's lock.
    """
    adoption, missing = Adoption(), list(files)

    def note(text: str) -> None:
        adoption.notes.append(text)
        if say:
            say(text)

    if not missing:
        return adoption
    candidates = find([store.root, *search], {file.bytes for file in missing}, note)
    for candidate in sorted(candidates, key=lambda candidate: _unlikely(candidate, missing)):
        wanted = [file for file in missing if file.bytes == candidate.bytes]
        if not wanted:
            continue
        try:
            taken = _take(store, candidate, wanted, copy, note)
        except (OSError, StoreError) as error:
            note(f"{candidate.path}: not used: {error}")
            continue
        if taken:
            adoption.taken.append(taken)
            missing.remove(taken.file)
            if say:
                say(f"{taken.file.name}: {taken.how} from {taken.source}")
    return adoption


def _unlikely(candidate: Candidate, files: Sequence[File]) -> int:
    """Order in which to hash: the hub's cache names a file by its sha256; then those of the right name; then the rest."""
    same_size = [file for file in files if file.bytes == candidate.bytes]
    if candidate.path.name in {file.sha256 for file in same_size}:
        return 0
    return 1 if candidate.path.name in {Path(file.name).name for file in same_size} else 2


def find(roots: Sequence[Path], sizes: set[int], note: Callable[[str], None]) -> list[Candidate]:
    """Regular files of the given sizes below the roots, each once however many names it has.

    A symbolic link counts where what it leads to lies below one of the roots; others are noted, not followed.
    """
    tops = list(dict.fromkeys(Path(os.path.realpath(root)) for root in roots))
    interfaces = _interface_mounts()
    found: dict[tuple[int, int], Candidate] = {}
    seen: set[tuple[int, int]] = set()
    for top in tops:
        for path, entry_stat in _files(top, tops, sizes, interfaces, seen, note):
            key = (entry_stat.st_dev, entry_stat.st_ino)
            found.setdefault(key, Candidate(path, entry_stat.st_size, *key))
    return list(found.values())


def _files(
    top: Path,
    tops: Sequence[Path],
    sizes: set[int],
    interfaces: set[Path],
    seen: set[tuple[int, int]],
    note: Callable[[str], None],
) -> Iterator[tuple[Path, os.stat_result]]:
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        if any(folder == mount or mount in folder.parents for mount in interfaces) or folder.name == INCOMING:
            continue
        try:
            here = folder.stat()
            if (here.st_dev, here.st_ino) in seen:
                continue
            seen.add((here.st_dev, here.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            note(f"{folder}: not searched: {error.strerror}")
            continue
        for entry in entries:
            path = Path(entry.path)
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                    continue
                found = entry.stat()
                target = Path(os.path.realpath(path, strict=True)) if entry.is_symlink() else path
            except OSError:
                continue  # a link to nowhere or in circles, or a file that has just gone
            inside = any(top == target or top in target.parents for top in tops)
            if stat.S_ISDIR(found.st_mode) and not inside:
                note(f"{path}: leads out of the searched directories; search {target} too if weights lie there")
            if not stat.S_ISREG(found.st_mode) or found.st_size not in sizes:
                continue
            if inside:
                yield target, found
            else:
                note(f"{path}: leads out of the searched directories, not used; search {target.parent} too")


def _interface_mounts() -> set[Path]:
    try:
        rows = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {Path("/proc"), Path("/sys"), Path("/dev")}
    return {Path(row[1]) for row in rows if row[2] in _INTERFACES}


def _take(
    store: Store, candidate: Candidate, wanted: Sequence[File], copy: bool, note: Callable[[str], None]
) -> Taken | None:
    """Prove the candidate's bytes and publish them under the name that they belong to. None: they belong to none."""
    brought = store.root / INCOMING / "adopted"
    brought.parent.mkdir(parents=True, exist_ok=True)
    # What a killed run left is a second name or a copy, never the only one.
    brought.unlink(missing_ok=True)
    try:
        # First a name of our own, then the hash: nobody can put another file in its place in between.
        how = _bring(candidate.path, brought)
        file = _proved(brought if how else candidate.path, wanted)
        if file is None:
            return None
        if how is None and candidate.device == brought.parent.stat().st_dev:
            store.publish(candidate.path, file)
            return Taken(file, candidate.path, "renamed")
        if how is None and not copy:
            note(f"{file.name}: lies at {candidate.path} on another file system; not copied without being told to")
            return None
        if how is None:
            how = "copied"
            shutil.copyfile(candidate.path, brought)
            if _proved(brought, [file]) is None:
                raise StoreError("the copy has other bytes than the original")
        store.publish(brought, file)
        return Taken(file, candidate.path, how)
    finally:
        brought.unlink(missing_ok=True)


def _proved(path: Path, wanted: Sequence[File]) -> File | None:
    before = identity(path.lstat())
    sha256 = sha256_of(path)
    if identity(path.lstat()) != before:
        raise StoreError("it changed while it was read")
    return next((file for file in wanted if (file.sha256, file.bytes) == (sha256, before.bytes)), None)


def _bring(source: Path, brought: Path) -> How | None:
    """Give the bytes a name in the store's own folder without copying them. None: this file system cannot."""
    if _reflinked(source, brought):
        return "reflinked"
    try:
        os.link(source, brought, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EXDEV or error.errno in _NO_LINKS_HERE:
            return None
        raise
    return "linked"


def _reflinked(source: Path, brought: Path) -> bool:
    """A reflink is better than a link: its owner can write to the original without touching ours."""
    with source.open("rb") as original, brought.open("xb") as ours:
        try:
            fcntl.ioctl(ours.fileno(), _FICLONE, original.fileno())
            return True
        except OSError:
            brought.unlink()
            return False
