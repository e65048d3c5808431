"""The file system. What lies below a root is reached without following a link: others may write there while we work.

Every change is a method of Files and begins with a step, so that a test can end the program between any two.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from relocation.job import RelocationError

Sort = Literal["file", "directory", "link", "special"]
OURS = ".relocating"
"""What a target holds while a move is under way: parts and the journal."""
_SORTS: dict[int, Sort] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
_OF_THE_DISK = "lost+found"
"""A directory at the top of some file systems, which belongs to them."""
_BESIDE = ".relocating-link"
_CHUNK = 1024 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_GETFLAGS = 0x80086601
_KEPT_AS_IT_IS = 0x10 | 0x20  # immutable, append-only
_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Identity(NamedTuple):
    """What tells, without reading it, that a copy is still the one that was verified."""

    inode: int
    bytes: int
    mtime_ns: int


class Stamp(NamedTuple):
    """What tells that a source was not touched: the time of change cannot be set back."""

    inode: int
    bytes: int
    mtime_ns: int
    ctime_ns: int


class Place(NamedTuple):
    """A name below a root; the empty one is the root itself."""

    root: str
    name: str

    @property
    def path(self) -> str:
        """All of it, for people."""
        return f"{self.root}/{self.name}" if self.name else self.root


@dataclass(frozen=True)
class Entry:
    """What has a name in a tree. links: how many names it has; blocks: what it takes on the disk, in bytes."""

    name: str
    sort: Sort
    stamp: Stamp
    mode: int
    uid: int
    gid: int
    links: int
    blocks: int

    @property
    def identity(self) -> Identity:
        """What tells it from another that gets its name."""
        return Identity(*self.stamp[:3])


def entry(name: str, found: os.stat_result) -> Entry:
    """What a stat says."""
    stamp = Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    sort = _SORTS.get(stat.S_IFMT(found.st_mode), "special")
    mode = stat.S_IMODE(found.st_mode)
    return Entry(name, sort, stamp, mode, found.st_uid, found.st_gid, found.st_nlink, found.st_blocks * 512)


@contextmanager
def folder(root: str, name: str) -> Iterator[int]:
    """A descriptor of a directory below a root."""
    descriptor = os.open(root, _DIRECTORY)
    try:
        for part in name.split("/") if name else ():
            inner = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def holder(place: Place) -> Iterator[tuple[int, str]]:
    """A descriptor of the directory that holds it, and its name in there."""
    if not place.name:
        parent, name = os.path.split(place.root)
        with folder(parent, "") as descriptor:
            yield descriptor, name
    else:
        above, _, name = place.name.rpartition("/")
        with folder(place.root, above) as descriptor:
            yield descriptor, name


@contextmanager
def reading(place: Place) -> Iterator[int]:
    """A descriptor by which a regular file is read."""
    with holder(place) as (directory, name):
        descriptor = os.open(name, _READ, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def look(place: Place) -> Entry | None:
    """What has this name now."""
    try:
        with holder(place) as (directory, name):
            return entry(place.name, os.stat(name, dir_fd=directory, follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return None


def scan(root: str) -> dict[str, Entry]:
    """Everything in a tree by name, a directory before what it holds; what is ours of a move under way left out."""
    try:
        top = entry("", Path(root).lstat())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if top.sort != "directory":
        raise RelocationError(f"{root} is no directory: move it away, then run again")
    found, waiting = {"": top}, [""]
    while waiting:
        above = waiting.pop()
        for one in sorted(listed(root, above), key=lambda one: one.name):
            if one.name not in (OURS, _OF_THE_DISK):
                found[one.name] = one
                if one.sort == "directory":
                    waiting.append(one.name)
    return found


def listed(root: str, above: str) -> Iterator[Entry]:
    """What lies in a directory below a root."""
    try:
        with folder(root, above) as descriptor:
            device = os.fstat(descriptor).st_dev
            for name in [one.name for one in os.scandir(descriptor)]:
                with suppress(FileNotFoundError):
                    found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode) and found.st_dev != device:
                        raise RelocationError(
                            f"{root}/{above}/{name}".replace("//", "/")
                            + " is a file system of its own: unmount it, or "
                            "move the subvolume away, then run again"
                        )
                    yield entry(f"{above}/{name}" if above else name, found)
    except FileNotFoundError:
        # A directory that went since it was listed. The root never does so unnoticed: it would look empty.
        if not above:
            raise


def read_link(place: Place) -> str:
    """Where a symbolic link leads."""
    with holder(place) as (directory, name):
        return os.readlink(name, dir_fd=directory)


def extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has bytes, from and to; between them are holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:  # no bytes from there on, or none any more
                return
            raise
        if start >= size:
            return
        yield start, end


def data_bytes(place: Place, found: Entry) -> int:
    """What a copy of it takes on a disk."""
    if found.sort != "file" or found.blocks >= found.stamp.bytes:
        return found.stamp.bytes if found.sort == "file" else 0
    try:
        with reading(place) as descriptor:
            return sum(end - start for start, end in extents(descriptor, found.stamp.bytes))
    except FileNotFoundError:
        return 0


def is_immutable(place: Place, found: Entry) -> bool:
    """Whether it can neither be removed nor renamed, also by root."""
    if found.sort not in ("file", "directory"):
        return False
    flags = bytearray(8)
    try:
        with reading(place) as descriptor:
            fcntl.ioctl(descriptor, _GETFLAGS, flags)
    except OSError:  # gone, or a file system without such flags
        return False
    return bool(struct.unpack("Q", flags)[0] & _KEPT_AS_IT_IS)


def hashed(descriptor: int) -> str:
    """The sha256 of a file from its first byte on."""
    whole, buffer, done = hashlib.sha256(), memoryview(bytearray(_CHUNK)), 0
    while read := os.preadv(descriptor, [buffer], done):
        whole.update(buffer[:read])
        done += read
    return whole.hexdigest()


@dataclass(frozen=True)
class Mount:
    """What is mounted where."""

    id: str
    path: str


def read_mounts(mountinfo: str) -> list[Mount]:
    """What /proc/self/mountinfo tells."""
    rows = (line.split(" ") for line in mountinfo.splitlines())
    return [Mount(row[0], re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), row[4])) for row in rows]


def mount_of(path: str, mounts: list[Mount]) -> Mount:
    """Where a path lies. Of two at one place the later one hides the other."""
    above = [mount for mount in mounts if mount.path == "/" or path == mount.path or path.startswith(f"{mount.path}/")]
    return max(enumerate(above), key=lambda numbered: (len(numbered[1].path), numbered[0]))[1]


def existing(path: str) -> str:
    """The path, or what there is of it."""
    return path if os.path.lexists(path) else existing(str(Path(path).parent))


class Files:
    """Every change of a file system that a move makes."""

    def step(self) -> None:
        """Called before each of them."""

    def mounts(self) -> list[Mount]:
        """What is mounted now."""
        return read_mounts(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))

    def are_joined(self, source: str, target: str) -> bool:
        """Whether a rename leads from one to the other: one file system, reached through one mount."""
        mounts, target = self.mounts(), existing(target)
        return (
            Path(source).stat().st_dev == Path(target).stat().st_dev
            and mount_of(source, mounts).id == mount_of(target, mounts).id
        )

    def mount_point(self, path: str) -> str:
        """Where the file system is mounted on which a path lies or would lie."""
        return mount_of(existing(path), self.mounts()).path

    def free(self, path: str) -> int:
        """Bytes that fit on the file system where a path lies or would lie."""
        found = os.statvfs(existing(path))
        return found.f_bavail * found.f_frsize

    def rename(self, source: Place, target: Place) -> None:
        """Give it another name. FileExistsError where something has that."""
        self.step()
        with holder(source) as (old, name), holder(target) as (new, other):
            if not _libc.renameat2(old, os.fsencode(name), new, os.fsencode(other), _NOREPLACE):
                return
            number = ctypes.get_errno()
            if number not in (errno.EINVAL, errno.ENOSYS):
                raise OSError(number, os.strerror(number), name)
            # A file system that cannot refuse to replace, or a directory into itself, which fails below as well.
            if look(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), other)
            os.rename(name, other, src_dir_fd=old, dst_dir_fd=new)

    def rename_onto_empty(self, source: str, target: str) -> None:
        """Put a directory in the place of an empty one, or where there is none. OSError where it is not empty."""
        self.step()
        Path(source).rename(target)

    def link(self, source: Place, target: Place) -> None:
        """Give it one more name."""
        self.step()
        with holder(source) as (old, name), holder(target) as (new, other):
            os.link(name, other, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)

    def unlink(self, place: Place) -> None:
        """Take a name away."""
        self.step()
        with holder(place) as (directory, name):
            os.unlink(name, dir_fd=directory)

    def remove_directory(self, place: Place) -> bool:
        """Remove a directory, if it is empty and nothing is mounted on it."""
        self.step()
        try:
            with holder(place) as (directory, name):
                os.rmdir(name, dir_fd=directory)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EBUSY, errno.ENOENT):
                return error.errno == errno.ENOENT
            raise
        return True

    def make_directory(self, place: Place, like: Entry | None, model: Place | None) -> None:
        """Make a directory, or leave alone the one that is there."""
        self.step()
        with holder(place) as (directory, name):
            with suppress(FileExistsError):
                os.mkdir(name, 0o755 if like is None else 0o700, dir_fd=directory)
            if like is None:
                return
            self.step()
            descriptor = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                self._dress(descriptor, like, model)
            finally:
                os.close(descriptor)

    def make_link(self, text: str, place: Place, like: Entry) -> None:
        """Make a symbolic link."""
        self.step()
        with holder(place) as (directory, name):
            os.symlink(text, name, dir_fd=directory)
            self.step()
            os.chown(name, like.uid, like.gid, dir_fd=directory, follow_symlinks=False)
            times = (like.stamp.mtime_ns, like.stamp.mtime_ns)
            os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)

    def replace_link(self, text: str, place: Place, like: Entry) -> None:
        """Aim a symbolic link elsewhere. It leads to one of both at every moment."""
        above = place.name.rpartition("/")[0]
        beside = Place(place.root, f"{above}/{_BESIDE}".lstrip("/"))
        if look(beside):
            self.unlink(beside)
        self.make_link(text, beside, like)
        self.step()
        with holder(place) as (directory, name):
            os.rename(_BESIDE, name, src_dir_fd=directory, dst_dir_fd=directory)

    @contextmanager
    def part(self, place: Place) -> Iterator[int]:
        """A fresh file for a copy, for nobody but us until it is dressed."""
        if look(place):
            self.unlink(place)
        self.step()
        with holder(place) as (directory, name):
            descriptor = os.open(name, _WRITE, 0o600, dir_fd=directory)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def write(self, descriptor: int, data: memoryview, offset: int) -> None:
        """Write all of it."""
        self.step()
        while data:
            written = os.pwrite(descriptor, data, offset)
            data, offset = data[written:], offset + written

    def finish_part(self, descriptor: int, like: Entry, source: Place | None) -> Identity:
        """Give a part its size, its owner, mode and times, what else is attached to a source, and bring it to the disk."""
        self.step()
        os.ftruncate(descriptor, like.stamp.bytes)
        self._dress(descriptor, like, source)
        os.utime(descriptor, ns=(like.stamp.mtime_ns, like.stamp.mtime_ns))
        self.sync(descriptor)
        return entry("", os.fstat(descriptor)).identity

    def sync(self, descriptor: int) -> None:
        """Bring a file or a directory to the disk."""
        self.step()
        os.fsync(descriptor)

    def sync_folder(self, root: str, name: str) -> None:
        """Make the names in a directory survive a power cut."""
        with folder(root, name) as descriptor:
            self.sync(descriptor)

    def sync_above(self, path: str) -> None:
        """Have a directory and those that were made above it survive a power cut: all of its file system."""
        device = Path(path).stat().st_dev
        for above in Path(path).parents:
            if above.stat().st_dev == device:
                self.sync_folder(str(above), "")

    def append(self, path: Path, text: bytes) -> None:
        """Add to a file of ours."""
        self.step()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(text)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)

    def _dress(self, descriptor: int, like: Entry, model: Place | None) -> None:
        """Owner, then mode, which a change of owner cuts down; then what else is attached, such as access lists."""
        os.fchown(descriptor, like.uid, like.gid)
        os.fchmod(descriptor, like.mode)
        if model:
            with suppress(OSError), reading(model) as original:
                for name in os.listxattr(original):
                    with suppress(OSError):
                        os.setxattr(descriptor, name, os.getxattr(original, name))
