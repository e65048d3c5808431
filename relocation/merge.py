"""Bring what lies in one tree into another, name by name: by rename where one leads there, else by a copy that is verified.

Nothing is overwritten. Copied, the source stays as it is; `finish` removes it.
"""

import errno
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from relocation.decide import Destiny, aimed, destiny, is_hand_over, outdated
from relocation.files import (
    Entry,
    Files,
    Identity,
    Place,
    Stamp,
    data_bytes,
    extents,
    hashed,
    look,
    read_link,
    reading,
    scan,
)
from relocation.job import Job, Move, RelocationError, pairs
from relocation.journal import Header, Journal, Line, Verdict
from weights.progress import Progress

_CHUNK = 1024 * 1024
_NO_LINKS_HERE = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
"""What opening says where somebody took a name away, or a directory on the way to it, since we looked."""
_RECORD = re.compile(r"([0-9a-f]{64})(\.json)?")
_ZEROS = memoryview(bytes(_CHUNK))


class ChangedError(Exception):
    """A source that is written to while it is copied: the switch takes it, when nobody does so any more."""


class FullError(Exception):
    """A file system that has no room left."""


class Records:
    """The sha256 of weights by what tells that they are still those that were hashed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._found: dict[tuple[int, int, int], str] = {}
        for place in folders:
            for path in place.iterdir() if place.is_dir() else ():
                if match := _RECORD.fullmatch(path.name):
                    self._read(path, match[1])

    def _read(self, path: Path, sha256: str) -> None:
        try:
            text = path.read_text(encoding="ascii")
            told = json.loads(text) if path.suffix else None
            if told:
                self._found[told["inode"], told["bytes"], told["mtime_ns"]] = sha256
            else:
                size, seconds, inode = map(int, text.split())
                self._found[inode, size, seconds] = sha256
        except (OSError, ValueError, KeyError, TypeError):
            return

    def sha256(self, stamp: Stamp) -> str | None:
        """What a file was found to be, if it is known."""
        exact = (stamp.inode, stamp.bytes, stamp.mtime_ns)
        return self._found.get(exact) or self._found.get((*exact[:2], stamp.mtime_ns // 10**9))


@dataclass(frozen=True)
class Copy:
    """Bytes in the target that were verified."""

    place: Place
    identity: Identity
    sha256: str


@dataclass
class Done:
    """What a move did. aside: what got another name, as nothing is overwritten; waits: what only the switch can take."""

    renamed_files: int = 0
    renamed_bytes: int = 0
    copied_files: int = 0
    copied_bytes: int = 0
    same_files: int = 0
    aside: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)

    def add(self, other: "Done") -> None:
        """What was done later on."""
        for name in ("renamed_files", "renamed_bytes", "copied_files", "copied_bytes", "same_files"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.aside |= other.aside
        self.left |= other.left


class Merge:
    """One move under way."""

    def __init__(self, job: Job, move: Move, files: Files, records: Records, progress: Progress) -> None:
        self.job, self.move, self.files, self.records, self.progress = job, move, files, records, progress
        self.joined = files.are_joined(move.source, move.target)
        self.journal = Journal(move.target, files)
        self.source, self.present = scan(move.source), scan(move.target)
        self.done = Done()
        self._header = self.journal.header or Header(move.source, self.source[""].stamp.inode, int(time.time()))
        self._pairs = pairs(job.moves)
        self._into: dict[str, str] = {"": ""}  # the directories of the source under their names in the target
        self._lock = threading.Lock()
        self._began = False
        self._unsettled: list[list[Entry]] | None = None

    # What is to be done

    def units(self) -> list[list[Entry]]:
        """What is no directory, all names of one file together, the largest first."""
        by_inode: dict[int, list[Entry]] = {}
        for one in self.source.values():
            if one.sort == "directory" or is_hand_over(self.move.kind, one):
                continue
            if one.sort == "special" and not self.joined:
                self.done.left[one.name] = "it is no file (a socket, a pipe or a device)"
                continue
            by_inode.setdefault(one.stamp.inode, []).append(one)
        return sorted(by_inode.values(), key=lambda names: -names[0].blocks)

    def destiny(self, one: Entry) -> Destiny:
        """Where an entry goes, by what is known now."""
        above, _, last = one.name.rpartition("/")
        into = self._into.get(above, above)
        name = f"{into}/{last}" if into else last
        return destiny(one, name, self.present, self.journal.known, self._header.time)

    def to_copy(self) -> int:
        """The bytes that a copy still needs in the target, where none of what is to be compared differs."""
        if self.joined:
            return 0
        return sum(
            data_bytes(Place(self.move.source, names[0].name), names[0])
            for names in (self.units() if self._unsettled is None else self._unsettled)
            if any(self.destiny(one).action == "put" for one in names) and not self._copy_of(names[0])
        )

    # Directories

    def clear_outdated(self) -> None:
        """Take back the copies whose original was changed or removed since."""
        for line in outdated(self.journal.known, self.source, self.present):
            place = Place(self.move.target, line.into)
            found = look(place)
            if found and found.identity == line.found:
                self.files.unlink(place)
                del self.present[line.into]

    def make_directories(self) -> None:
        """All directories of the source: renamed as they are where nothing has their name, else made, or found there."""
        if "" not in self.present:
            self._make_top()
        renamed: list[str] = []
        for one in [one for one in self.source.values() if one.sort == "directory" and one.name]:
            if one.name.startswith(tuple(renamed)):
                continue
            destiny = self.destiny(one)
            self._into[one.name] = destiny.into
            self._note(one, destiny)
            if destiny.action != "put":
                continue
            if self.joined and self._renamed(one, destiny.into):
                renamed.append(f"{one.name}/")
            else:
                self._make(one, destiny.into)
        if renamed:
            self.source = {name: one for name, one in self.source.items() if not name.startswith(tuple(renamed))}

    def _make_top(self) -> None:
        # Dressed under another name first: whoever is killed in between leaves none that only looks right.
        target, top = self.move.target, self.source[""]
        make_parents(self.files, target)
        beside = Place(f"{target}.relocating", "")
        self.files.make_directory(beside, top, Place(self.move.source, ""))
        self.files.rename(beside, Place(target, ""))
        self.present = scan(target)

    def _make(self, one: Entry, into: str) -> None:
        self.begin()
        beside = self.journal.folder_part(one.stamp)
        self.files.make_directory(beside, one, Place(self.move.source, one.name))
        self.files.rename(beside, Place(self.move.target, into))
        self.present[into] = one

    def _renamed(self, one: Entry, into: str) -> bool:
        try:
            self.files.rename(Place(self.move.source, one.name), Place(self.move.target, into))
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
        inside = [found for name, found in self.source.items() if name.startswith(f"{one.name}/")]
        self._count_renamed(inside)
        self.present[into] = one
        return True

    # Files

    def settle(self) -> None:
        """Find out of what has the same name whether it is the same; afterwards it is known what is to be brought."""
        self._unsettled = self._not_done(self.units())

        def compare(names: list[Entry]) -> None:
            for one in names:
                while (found := self.destiny(one)).action == "compare":
                    self._compare(one, found.into)

        self._each(compare, self._unsettled)
        self._unsettled = self._not_done(self._unsettled)

    def put(self) -> None:
        """Bring what is not there."""
        self._each(self._put_unit, self._unsettled or [])

    def _not_done(self, units: list[list[Entry]]) -> list[list[Entry]]:
        open_ones = []
        for names in units:
            found = [(one, self.destiny(one)) for one in names]
            for one, its in found:
                self._note(one, its)
            if any(its.action != "done" for _, its in found):
                open_ones.append(names)
        return open_ones

    def _each(self, work: Callable[[list[Entry]], None], units: list[list[Entry]]) -> None:
        if self.job.jobs < 2 or self.joined:
            for names in units:
                self._take(work, names)
            return
        with ThreadPoolExecutor(self.job.jobs) as workers:
            running = [workers.submit(self._take, work, names) for names in units]
            try:
                for future in running:
                    future.result()
            except BaseException:
                workers.shutdown(wait=False, cancel_futures=True)
                raise

    def _take(self, work: Callable[[list[Entry]], None], names: list[Entry]) -> None:
        place = Place(self.move.source, names[0].name)
        try:
            work(names)
        except ChangedError:
            self._wait(names)
        except OSError as error:
            if error.errno in _GONE:
                self._wait(names)
                return
            if error.errno in _FULL:
                raise FullError from error
            if error.errno == errno.EPERM:
                raise RelocationError(
                    f"{place.path} cannot be moved ({error.strerror}): where `lsattr` shows an i or an a, "
                    "take it off with `chattr -ia`, then run again"
                ) from error
            raise RelocationError(f"{place.path}: {error.strerror}; mend that, then run again") from error

    def _wait(self, names: list[Entry]) -> None:
        with self._lock:
            self.done.waits.extend(one.name for one in names)

    def _put_unit(self, names: list[Entry]) -> None:
        for one in names:
            while (found := self.destiny(one)).action != "done":
                if found.action == "compare":
                    self._compare(one, found.into)
                    continue
                try:
                    self._put(one, found.into, is_last=one is names[-1])
                except FileExistsError:
                    if not self._look_again(found.into):
                        raise
                else:
                    self._note(one, found)
                    break
        if self.joined and len(names) > 1:
            self._wait_for_changed(names)

    def _wait_for_changed(self, names: list[Entry]) -> None:
        """A rename of one name changes the file's time of change: what was found of those that stay holds no more."""
        stay = [one for one in names if look(Place(self.move.source, one.name))]
        if len(stay) < len(names):
            self._wait(stay)

    def _look_again(self, into: str) -> bool:
        """What has the name: ours, or one that came meanwhile, or one whose name means the same to the file system."""
        found = look(Place(self.move.target, into))
        if found:
            with self._lock:
                self.present[into] = found
        return bool(found)

    def _note(self, one: Entry, found: Destiny) -> None:
        if found.action == "compare":
            return
        above = one.name.rpartition("/")[0]
        own = f"{self._into.get(above, above)}/{one.name.rpartition('/')[2]}".lstrip("/")
        if found.into != own:
            with self._lock:
                self.done.aside[one.name] = found.into

    def begin(self) -> None:
        """Have a journal."""
        with self._lock:
            if not self._began:
                self._header = self.journal.begin(self._header)
                self._began = True

    def _put(self, one: Entry, into: str, is_last: bool) -> None:
        source, target = Place(self.move.source, one.name), Place(self.move.target, into)
        if self.joined:
            try:
                self.files.rename(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            else:
                self._count_renamed([one])
                self.present[into] = one
                return
        self.begin()
        copy, part = self._copy_of(one) or self._copied(one), self.journal.part(one.stamp)
        if copy.place != part or not is_last:
            self._tell(one, into, copy)
            try:
                self.files.link(copy.place, target)
            except OSError as error:
                if error.errno not in _NO_LINKS_HERE:
                    raise
                if copy.place != part:
                    copy = self._copied(one)
            else:
                self._look_again(into)
                return
        self._tell(one, into, copy)
        self.files.rename(part, target)
        self._look_again(into)

    def _tell(self, one: Entry, into: str, copy: Copy) -> None:
        """Before the name is given: whoever is killed in between finds the part, and that it was verified."""
        self.journal.add([Line(one.name, into, one.stamp, copy.identity, "copied", copy.sha256)])

    def _copy_of(self, one: Entry) -> Copy | None:
        """A verified copy that lies in the target already: put together and not named yet, or under another name."""
        part = self.journal.part(one.stamp)
        for line in self.journal.known.brought(one.stamp):
            for place in (part, Place(self.move.target, line.into)):
                found = look(place)
                if found and found.identity == line.found:
                    return Copy(place, line.found, line.sha256)
        return None

    # Bytes

    def _compare(self, one: Entry, into: str) -> None:
        source, target = Place(self.move.source, one.name), Place(self.move.target, into)
        found = look(target)
        if not found:
            self.present.pop(into, None)
            return
        ours, theirs = self._digest(source, one, known=True), self._digest(target, found, known=False)
        self.begin()
        verdict: Verdict = "same" if ours == theirs else "different"
        self.journal.add([Line(one.name, into, one.stamp, found.identity, verdict, ours)])
        with self._lock:
            self.present[into] = found
            if verdict == "same":
                self.done.same_files += 1

    def _digest(self, place: Place, found: Entry, known: bool) -> str:
        if found.sort == "link":
            text = read_link(place)
            return _text_digest(aimed(text, self._pairs) if known else text)
        if known and (sha256 := self.records.sha256(found.stamp)):
            return sha256
        with reading(place) as descriptor:
            sha256 = hashed(descriptor)
            _must_be(descriptor, found)
        return sha256

    def _copied(self, one: Entry) -> Copy:
        """A part with the bytes of the source, proved by what the disk gives back."""
        source, part = Place(self.move.source, one.name), self.journal.part(one.stamp)
        if one.sort == "link":
            identity, sha256 = self._link_copied(one, source, part)
        else:
            recorded = self.records.sha256(one.stamp)
            with reading(source) as original:
                _must_be(original, one)
                with self.files.part(part) as copy:
                    read = self._write(original, copy, one.stamp.bytes, recorded)
                    identity = self.files.finish_part(copy, one, source)
                    os.posix_fadvise(copy, 0, 0, os.POSIX_FADV_DONTNEED)
                with reading(part) as copy:
                    sha256 = hashed(copy)
                _must_be(original, one)
                if read != sha256 and recorded and hashed(original) == sha256:
                    self.progress.note(f"{source.path} is not what its record says; the next deploy checks it")
                elif read != sha256:
                    self.files.unlink(part)
                    raise RelocationError(
                        f"{source.path}: its copy on {self.move.target} reads back otherwise than it was written; look at "
                        "that disk (`dmesg`, `smartctl -a`), then run again; the original is untouched"
                    )
        with self._lock:
            self.done.copied_files += 1
            self.done.copied_bytes += one.stamp.bytes if one.sort == "file" else 0
        return Copy(part, identity, sha256)

    def _link_copied(self, one: Entry, source: Place, part: Place) -> tuple[Identity, str]:
        text = aimed(read_link(source), self._pairs)
        if look(part):
            self.files.unlink(part)
        self.files.make_link(text, part, one)
        found = look(part)
        if not found:
            raise ChangedError
        return found.identity, _text_digest(text)

    def _write(self, original: int, copy: int, size: int, recorded: str | None) -> str:
        """Write what the source has, holes left out. Returns its sha256: the recorded one, or as it was read."""
        whole, end = hashlib.sha256(), 0
        buffer = memoryview(bytearray(_CHUNK))
        for start, stop in extents(original, size):
            if not recorded:
                _hash_zeros(whole, start - end)
            while start < stop:
                read = os.preadv(original, [buffer[: stop - start]], start)
                if not read:
                    raise ChangedError
                if not recorded:
                    whole.update(buffer[:read])
                self.files.write(copy, buffer[:read], start)
                start += read
                self._heard(read)
            end = stop
        if recorded:
            return recorded
        _hash_zeros(whole, size - end)
        return whole.hexdigest()

    def _heard(self, read: int) -> None:
        with self._lock:
            self.progress.heard(self.move.source, self.progress.files[self.move.source].done + read)

    def _count_renamed(self, entries: Sequence[Entry]) -> None:
        count(self.done, entries)

    # To the disk

    def sync(self) -> None:
        """Have every name in the target survive a power cut."""
        for name in sorted(set(self._into.values())):
            self.files.sync_folder(self.move.target, name)
        self.files.sync_above(self.move.target)


def count(done: Done, entries: Sequence[Entry]) -> None:
    """Count what a rename took along; a file with two names once."""
    by_inode = {one.stamp.inode: one for one in entries if one.sort != "directory"}
    done.renamed_files += len(by_inode)
    done.renamed_bytes += sum(one.blocks for one in by_inode.values())


def make_parents(files: Files, target: str) -> None:
    """Make the directories above a target that are not there."""
    above = str(Path(target).parent)
    if not Path(above).is_dir():
        make_parents(files, above)
        files.make_directory(Place(above, ""), None, None)


def _must_be(descriptor: int, one: Entry) -> None:
    found = os.fstat(descriptor)
    if Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) != one.stamp:
        raise ChangedError


def _text_digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _hash_zeros(whole: "hashlib._Hash", size: int) -> None:
    while size > 0:
        whole.update(_ZEROS[:size])
        size -= len(_ZEROS)
