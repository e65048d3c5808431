"""The sha256 of a part, taken while aria2 fetches it: 30 GB hashed afterwards are 20 s and more.

Read is, from the front on, only what this very aria2 has noted as done: it has written that, and does not write it again.
What an earlier one noted may be judged otherwise and fetched again, so each aria2 has a hash of its own.
"""

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weights import aria2
from weights.store import Identity, identity, sha256_of

_CHUNK = 1024 * 1024
_LOOK = 0.1  # seconds between two looks at what has come


class PartHash:
    """The hash of one part that one aria2 fetches."""

    def __init__(self, part: Path, size: int) -> None:
        self.part, self.size = part, size
        self._hash, self.done = hashlib.sha256(), 0
        self._inode: int | None = None
        self._notes = self._notes_found()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Hash what aria2 has done, and bring it to the disk, for as long as the context lasts."""
        stop = threading.Event()
        helpers = [threading.Thread(target=work, args=(stop,), daemon=True) for work in (self._follow, self._flush)]
        for helper in helpers:
            helper.start()
        try:
            yield
        finally:
            stop.set()
            for helper in helpers:
                helper.join()

    def sha256(self, expected: str, heed: Callable[[int], None]) -> str:
        """The hash of the part, which is complete now. Taken again from the whole part before it is called wrong."""
        if self._hash_to(self.size, heed) and self._hash.hexdigest() == expected:
            return expected
        return sha256_of(self.part, heed)

    def _follow(self, stop: threading.Event) -> None:
        def heed(_: int) -> None:
            if stop.is_set():
                raise _StoppedError

        with suppress(_StoppedError):
            while not stop.wait(_LOOK):
                notes = self._notes_found()
                if notes is None or notes == self._notes:
                    continue
                self._notes = notes
                if not self._hash_to(self._noted(), heed):
                    self._hash, self.done = hashlib.sha256(), 0

    def _notes_found(self) -> Identity | None:
        try:
            return identity(aria2.control_path(self.part).stat())
        except FileNotFoundError:
            return None

    def _noted(self) -> int:
        try:
            return aria2.noted_front(aria2.control_path(self.part).read_bytes())
        except (OSError, struct.error, IndexError, ZeroDivisionError):
            return 0

    def _hash_to(self, end: int, heed: Callable[[int], None]) -> bool:
        """Hash on; false where this is not the part of before, or less of it is done than was hashed."""
        with suppress(OSError), self.part.open("rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            if found.st_size != self.size or self._inode not in (None, found.st_ino):
                return False
            self._inode = found.st_ino
            file.seek(self.done)
            buffer = memoryview(bytearray(_CHUNK))
            while self.done < end and (read := file.readinto(buffer[: end - self.done])):
                self._hash.update(buffer[:read])
                self.done += read
                heed(self.done)
            return self.done == end
        return False

    def _flush(self, stop: threading.Event) -> None:
        """Little by little: otherwise all of it is waited for at the end, and by aria2 each time it notes."""
        while not stop.wait(_LOOK):
            with suppress(OSError):
                descriptor = os.open(self.part, os.O_RDONLY)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)


class _StoppedError(Exception):
    pass
