"""Copy what somebody else has into directories of ours: verified, in the service's own name, and the originals stay.

No final name exists before its bytes were read back. Nothing is overwritten: a name that the target has with other bytes
leaves this file the next free one. So it may run again at any time, and a second run copies what came since.
"""

import fnmatch
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from relocation.files import OURS, Entry, Files, Place, hashed, listed, look, reading, scan
from relocation.job import JOBS, RelocationError
from weights.progress import Progress

_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Adoption:
    """Files of one directory to have in another. base: the directory of ours that holds the target, which exists.

    without: names below the source that are not meant. owner: user and group of the copies.
    """

    source: str
    base: str
    into: str
    owner: int
    pattern: str = "*"
    without: tuple[str, ...] = ()


@dataclass
class Adopted:
    """What came of it. same: was there already. renamed: what has another name, by path; left: what is no file, or went."""

    files: int = 0
    bytes: int = 0
    same: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def read_adoptions(path: Path) -> list[Adoption]:
    """Those that a job file names."""
    try:
        told = json.loads(path.read_bytes())["adopt"]
        found = [Adoption(**{**one, "without": tuple(one.get("without", ()))}) for one in told]
    except (KeyError, TypeError, ValueError) as error:
        raise RelocationError(f"{path} describes no adoption: {type(error).__name__}: {error}") from error
    for one in found:
        if not Path(one.base).is_dir():
            raise RelocationError(f"{one.base} is not there: deploy first, which makes it")
    return [replace(one, source=os.path.realpath(one.source), base=os.path.realpath(one.base)) for one in found]


def adopt(adoptions: list[Adoption], reserve: int, files: Files, progress: Progress) -> Adopted:
    """Have all of them. Raises RelocationError where they do not fit, before a byte is copied."""
    runs = [_Run(one, files, progress) for one in adoptions]
    for run in runs:
        run.compare()
        progress.add(run.adoption.source, sum(one.stamp.bytes for one in run.missing))
    _require_space(runs, reserve, files)
    done = Adopted()
    for run in runs:
        progress.state(run.adoption.source, "copying")
        run.copy()
        progress.state(run.adoption.source, "ready")
        done.files, done.bytes, done.same = (
            done.files + run.done.files,
            done.bytes + run.done.bytes,
            done.same + run.done.same,
        )
        done.renamed |= run.done.renamed
        done.left |= run.done.left
    return done


def _require_space(runs: list["_Run"], reserve: int, files: Files) -> None:
    needed: dict[str, int] = {}
    for run in runs:
        mount = files.mount_point(run.adoption.base)
        needed[mount] = needed.get(mount, 0) + sum(one.stamp.bytes for one in run.missing)
    for mount, bytes_ in needed.items():
        lacking = bytes_ + reserve - files.free(mount)
        if bytes_ and lacking > 0:
            raise RelocationError(
                f"{mount}: {bytes_ / 1e9:.2f} GB are to be copied there and {reserve / 1e9:.2f} GB are to stay free: "
                f"make room for {lacking / 1e9:.2f} GB, then run again"
            )


class _Run:
    """One adoption under way."""

    def __init__(self, adoption: Adoption, files: Files, progress: Progress) -> None:
        self.adoption, self.files, self.progress = adoption, files, progress
        self.done, self.missing = Adopted(), list[Entry]()
        self._made: set[str] = set()
        self._read = 0
        self._lock = threading.Lock()

    def compare(self) -> None:
        """Find out what the target has already: by size and time, as a copy of ours is called only when it is verified."""
        for one in scan(self.adoption.source).values():
            if one.sort == "directory" or not self._is_meant(one.name):
                continue
            if one.sort != "file":
                self.done.left[self._told(one)] = "it is no file (a link, a socket, a pipe or a device)"
            elif self._is_there(one):
                self.done.same += 1
            else:
                self.missing.append(one)

    def _is_meant(self, name: str) -> bool:
        path = PurePosixPath(name)
        above = {str(parent) for parent in (path, *path.parents)}
        return fnmatch.fnmatch(path.name, self.adoption.pattern) and not above & {*self.adoption.without}

    def _told(self, one: Entry) -> str:
        return f"{self.adoption.source}/{one.name}"

    def _is_there(self, one: Entry) -> bool:
        for name in self._candidates(one.name):
            there = look(self._place(name))
            if there is None:
                return False
            if there.sort == "file" and there.identity[1:] == one.identity[1:]:
                return True
        return False

    def _candidates(self, name: str) -> list[str]:
        path = PurePosixPath(name)
        others = [str(path.with_name(f"{path.stem}-{number}{path.suffix}")) for number in range(2, 100)]
        return [name, *others]

    def _place(self, name: str) -> Place:
        return Place(self.adoption.base, f"{self.adoption.into}/{name}")

    def copy(self) -> None:
        """Copy what is missing, and clear away what a run that was killed has left."""
        parts = Place(self.adoption.base, f"{self.adoption.into}/{OURS}")
        if not self.missing and look(parts) is None:
            return
        for name in ["", OURS, *sorted({str(PurePosixPath(one.name).parent) for one in self.missing} - {"."})]:
            self._directory(f"{self.adoption.into}/{name}".rstrip("/"))
        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(self._one, sorted(self.missing, key=lambda one: -one.stamp.bytes)))
        for name in sorted(self._made):
            self.files.sync_folder(self.adoption.base, name)
        # By the way from the base: all that is below it belongs to the service, which may put links there.
        for part in [*listed(self.adoption.base, parts.name)]:
            if part.sort != "directory":
                self.files.unlink(Place(self.adoption.base, part.name))
        self.files.remove_directory(parts)

    def _directory(self, name: str) -> None:
        """Make it and those above it, the service's own; one that is there stays as it is."""
        for path in (*reversed(PurePosixPath(name).parents), PurePosixPath(name)):
            if str(path) not in (".", *self._made):
                self._made.add(str(path))
                self._make(Place(self.adoption.base, str(path)))

    def _make(self, place: Place) -> None:
        found, top = look(place), look(Place(self.adoption.base, ""))
        # Made and not yet given away: of a run that was killed.
        half_made = found and (found.mode, found.uid) == (0o700, os.geteuid())
        if top and (half_made or not found):
            like = replace(top, uid=self.adoption.owner, gid=self.adoption.owner, mode=0o755)
            self.files.make_directory(place, like, None)

    def _one(self, one: Entry) -> None:
        try:
            self._copied(one)
        except FileNotFoundError:
            if look(Place(self.adoption.source, one.name)):
                raise
            self.done.left[self._told(one)] = "it went while it was copied"

    def _copied(self, one: Entry) -> None:
        source = Place(self.adoption.source, one.name)
        beside = hashlib.sha256(os.fsencode(one.name)).hexdigest()
        part = Place(self.adoption.base, f"{self.adoption.into}/{OURS}/{beside}")
        whole = hashlib.sha256()
        with reading(source) as original, self.files.part(part) as descriptor:
            done = 0
            while data := os.pread(original, _CHUNK, done):
                whole.update(data)
                self.files.write(descriptor, memoryview(data), done)
                done += len(data)
                with self._lock:
                    self._read += len(data)
                    self.progress.heard(self.adoption.source, self._read)
            owner = self.adoption.owner
            self.files.finish_part(descriptor, replace(one, uid=owner, gid=owner, mode=0o644), None)
        now = look(source)
        if now is None or now.stamp != one.stamp or done != one.stamp.bytes:
            self.files.unlink(part)
            self.done.left[self._told(one)] = "it is being written to; the next run takes it"
            return
        with reading(part) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if hashed(descriptor) != whole.hexdigest():
                raise RelocationError(f"{part.path}: the disk gives back other bytes than were written to it")
        self._named(one, part, whole.hexdigest())

    def _named(self, one: Entry, part: Place, sha256: str) -> None:
        with self._lock:
            for name in self._candidates(one.name):
                try:
                    self.files.rename(part, self._place(name))
                except FileExistsError:
                    if self._is_same(self._place(name), one, sha256):
                        self.files.unlink(part)
                        self.done.same += 1
                        return
                    continue
                self.done.files += 1
                self.done.bytes += one.stamp.bytes
                if name != one.name:
                    self.done.renamed[self._told(one)] = name
                return
            raise RelocationError(f"{self._place(one.name).path}: a hundred other files have that name already")

    def _is_same(self, place: Place, one: Entry, sha256: str) -> bool:
        there = look(place)
        if there is None or there.sort != "file" or there.stamp.bytes != one.stamp.bytes:
            return False
        with reading(place) as descriptor:
            return hashed(descriptor) == sha256
