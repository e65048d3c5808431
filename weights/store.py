"""The store on disk: a final name exists only with right bytes, and what was hashed once is remembered.

Killed between any two steps, the next run finds either the part or the published file, and never a wrong one.
"""

import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PIECE = 16 * 1024 * 1024
INCOMING = ".incoming"
PIECES = ".pieces.json"
"""What a list of pieces is named after its file's name, or its sha256."""
CHANGED = "changed"
_CHUNK = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class StoreError(Exception):
    """What is wrong with the store, and what to do about it."""


@dataclass(frozen=True)
class File:
    """One wanted file: its place in the store, its size, and the sha256 that decides."""

    name: str
    bytes: int
    sha256: str
    urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise StoreError(f"{self.name!r} is no place in a store: <directory>/<file>, nothing hidden, no '..'")
        if not _SHA256.fullmatch(self.sha256):
            raise StoreError(f"{self.name}: {self.sha256!r} is no sha256")
        if self.bytes <= 0:
            raise StoreError(f"{self.name}: {self.bytes} is no size")


@dataclass(frozen=True)
class Identity:
    """What tells, without reading it, that a file is still the one that was hashed."""

    bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Wrong:
    """Something else that had a wanted file's name, and where it lies now. No sha256: not a file, or of another size."""

    file: File
    path: Path
    bytes: int
    sha256: str | None

    @property
    def text(self) -> str:
        """One line for a person."""
        found = f"sha256 {self.sha256}" if self.sha256 else f"{self.bytes} bytes"
        expected = f"sha256 {self.file.sha256}" if self.sha256 else f"{self.file.bytes} bytes"
        return f"{self.file.name}: another file had this name ({found}, expected {expected}); set aside as {self.path}"


def identity(found: os.stat_result) -> Identity:
    """The identity of a file by its stat."""
    return Identity(found.st_size, found.st_mtime_ns, found.st_ino)


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hash a whole file; progress hears the bytes so far."""
    return _hashed(path, progress, None)


def sha256_and_pieces(path: Path, progress: Callable[[int], None] | None = None) -> tuple[str, list[str]]:
    """Hash a whole file and each of its 16 MiB pieces. Costs twice the CPU of sha256_of."""
    pieces: list[str] = []
    return _hashed(path, progress, pieces), pieces


def _hashed(path: Path, progress: Callable[[int], None] | None, pieces: list[str] | None) -> str:
    whole, piece, done = hashlib.sha256(), hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            # Never over a piece's end, whatever the length of the reads.
            first = min(read, PIECE - done % PIECE)
            whole.update(buffer[:read])
            if pieces is not None:
                piece.update(buffer[:first])
                if (done + first) % PIECE == 0:
                    pieces.append(piece.hexdigest())
                    piece = hashlib.sha256(buffer[first:read])
            done += read
            if progress:
                progress(done)
    if pieces is not None and done % PIECE:
        pieces.append(piece.hexdigest())
    return whole.hexdigest()


def _record(file: File, found: Identity) -> str:
    facts = {"bytes": found.bytes, "mtime_ns": found.mtime_ns, "inode": found.inode, "sha256": file.sha256}
    return json.dumps(facts)


def write_durably(path: Path, text: str) -> None:
    """Write a file so that its name has the old text or the new, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_directory(path.parent)


def protect(descriptor: int) -> None:
    """Make a file read-only, root's own where we are root, and bring it to the disk."""
    if os.geteuid() == 0:
        os.fchown(descriptor, 0, 0)
    os.fchmod(descriptor, 0o444)
    os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Store:
    """Published files below root; what is known of them in the directory state (a local store's is `<root>/.state`)."""

    def __init__(self, root: Path, state: Path) -> None:
        self.root, self.state = root, state

    def path(self, file: File) -> Path:
        """Where the file lies once it is published."""
        return self.root / file.name

    def incoming(self, file: File) -> Path:
        """Where the file is put together. Named by the hash: bytes of another version never mix in."""
        return self.root / INCOMING / f"{file.sha256}.part"

    def pieces_path(self, file: File) -> Path:
        """Where the hashes of its pieces are kept."""
        return self.state / f"{file.sha256}{PIECES}"

    def known_good(self, file: File) -> bool:
        """Whether the published file is the one that was hashed and found right. Reads no byte of it."""
        try:
            found = self.path(file).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == file.bytes and self._recorded(file, found)

    def _recorded(self, file: File, found: os.stat_result) -> bool:
        # As text: a deploy asks the same of a host in a shell.
        try:
            record = (self.state / f"{file.sha256}.json").read_bytes()
        except FileNotFoundError:
            return self._recorded_in_seconds(file, found)
        return record.rstrip(b"\n") == _record(file, identity(found)).encode()

    def _recorded_in_seconds(self, file: File, found: os.stat_result) -> bool:
        """By the record that the first release wrote: size, time in seconds, inode."""
        try:
            record = (self.state / file.sha256).read_bytes()
        except FileNotFoundError:
            return False
        return record.rstrip(b"\n") == f"{found.st_size} {found.st_mtime_ns // 10**9} {found.st_ino}".encode()

    def record(self, file: File, found: Identity) -> None:
        """Remember that the bytes under this identity were hashed and found right."""
        write_durably(self.state / f"{file.sha256}.json", _record(file, found) + "\n")
        (self.state / file.sha256).unlink(missing_ok=True)

    def forget(self, file: File) -> None:
        """Take back what was remembered: the bytes turned out wrong."""
        (self.state / file.sha256).unlink(missing_ok=True)
        (self.state / f"{file.sha256}.json").unlink(missing_ok=True)

    def publish(self, part: Path, file: File, hashed: Identity | None = None) -> None:
        """Give checked bytes their final name. The caller has hashed this very part; nothing is read here.

        Given the identity that was hashed, it refuses another.

        The record comes before the name, so that a file killed in between needs no second hashing. What else has
        the name is set aside; where the right bytes are already there, the part is dropped. That something changed is
        noted first, for programs that may know an older file by this name.
        """
        final = self.path(file)
        if part != final and self.known_good(file):
            part.unlink()
            return
        found = self._protect(part, file, hashed)
        self.record(file, found)
        final.parent.mkdir(parents=True, exist_ok=True)
        if part == final:
            sync_directory(final.parent)
            return
        (self.state / CHANGED).touch()
        sync_directory(self.state)
        if os.path.lexists(final):
            self.set_aside(file)
        part.rename(final)
        if identity(final.lstat()) != found:
            self.forget(file)
            raise StoreError(
                f"{file.name}: another file was put in the place of {part}; set aside as {self.set_aside(file)}"
            )
        sync_directory(final.parent)
        sync_directory(part.parent)

    def _protect(self, path: Path, file: File, hashed: Identity | None) -> Identity:
        """Read-only, root's own where we are root, and on the disk. Returns the identity of the very file."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size != file.bytes:
                raise StoreError(f"{file.name}: {path} has {found.st_size} bytes, expected {file.bytes}")
            if hashed and identity(found) != hashed:
                raise StoreError(f"{file.name}: {path} changed after it was hashed")
            protect(descriptor)
            now = identity(os.fstat(descriptor))
            if hashed and now != hashed:
                raise StoreError(f"{file.name}: {path} changed after it was hashed")
            return now
        finally:
            os.close(descriptor)

    def set_aside(self, file: File) -> Path:
        """Move what wrongly has the file's name out of the way. It is somebody's: never deleted, never overwritten."""
        final = self.path(file)
        aside = first = final.with_name(f"{final.name}.wrong-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        count = 1
        while os.path.lexists(aside):
            count += 1
            aside = first.with_name(f"{first.name}-{count}")
        final.rename(aside)
        sync_directory(final.parent)
        return aside

    def settle(self, file: File, progress: Callable[[int], None] | None = None) -> Wrong | None:
        """Look at what has the file's name and is not known good: record it when its bytes are right, else set it aside.

        Afterwards the name is free or known good. Returns what was set aside.
        """
        final = self.path(file)
        if self.known_good(file) or not os.path.lexists(final):
            return None
        before = final.lstat()
        sha256 = None
        if stat.S_ISREG(before.st_mode) and before.st_size == file.bytes:
            sha256 = sha256_of(final, progress)
            if identity(final.lstat()) != identity(before):
                raise StoreError(f"{file.name}: changed while it was read; end what writes to {final}, then run again")
            if sha256 == file.sha256:
                self.publish(final, file, identity(before))
                return None
        self.forget(file)
        return Wrong(file, self.set_aside(file), before.st_size, sha256)

    @contextmanager
    def lock(self, waiting: Callable[[str], None] | None = None) -> Iterator[int]:
        """Keep other processes from changing the store; where one does, waiting hears of it and we wait.

        Yields the descriptor that holds the lock: a child that is given it holds the lock for as long as it lives.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
                    waiting(f"{self.root} is in use by process {owner or 'unknown'}; waiting for it to end")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)
            yield descriptor
        finally:
            os.close(descriptor)
