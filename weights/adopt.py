"""Take what is already on this machine into the store: found by size, proved by sha256, linked rather than copied."""

import errno
import fcntl
import os
import signal
import stat
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from weights.store import INCOMING, File, Identity, Store, StoreError, Wrong, identity, protect, sha256_of

T = TypeVar("T")
How = Literal["reflinked", "linked", "renamed", "copied"]
_FICLONE = 0x40049409
# No files of anybody's: kernel interfaces, where a read may block or never end.
_INTERFACES = {"proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf"}
_NO_LINKS_HERE = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
# For each wanted file, in one run. Anybody can make files of the right size, and each costs as much as a right one.
_HASHED = 3
_ENOUGH = f"for each missing file, {_HASHED} of its size are hashed, those of its name or sha256 first"
_BROUGHT = "adopted"


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
    sparse: bool = False


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

    def note(text: str) -> None:
        settled.notes.append(text)
        if say:
            say(text)

    def settle(file: File, heed: Callable[[int], None]) -> bool:
        try:
            wrong = store.settle(file, heed)
        except (OSError, StoreError) as error:
            note(f"{file.name}: {error}")
            return True
        if wrong:
            settled.set_aside.append(wrong)
            note(wrong.text)
        return store.known_good(file)

    done = each_at_once(files, settle)
    missing = [file for file in files if not done[file.name]]
    adoption = take(store, missing, search, copy, say, needed=files)
    return Adoption(adoption.taken, settled.set_aside, [*settled.notes, *adoption.notes])


def each_at_once(files: Sequence[File], work: Callable[[File, Callable[[int], None]], T]) -> dict[str, T]:
    """What work comes to, by name: on all cores, but files of the same bytes, which share a record, one after the other.

    work is given what it calls while it hashes, so that it ends when we are ended.
    """
    same: dict[str, list[File]] = {}
    for file in files:
        same.setdefault(file.sha256, []).append(file)
    stop = threading.Event()

    def heed(_: int) -> None:
        if stop.is_set():
            raise _StoppedError

    def of(group: list[File]) -> dict[str, T]:
        return {file.name: work(file, heed) for file in group}

    # Threads: reading and hashing both run outside the interpreter's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        try:
            return {name: result for found in workers.map(of, same.values()) for name, result in found.items()}
        except BaseException:
            stop.set()
            workers.shutdown(wait=False, cancel_futures=True)
            raise


def take(
    store: Store,
    files: Sequence[File],
    search: Sequence[Path],
    copy: bool = False,
    say: Callable[[str], None] | None = None,
    needed: Sequence[File] = (),
) -> Adoption:
    """Bring into the store what lies in it or in the search directories; the names of the files are free.

    A file on another file system is copied only when copy is set, otherwise noted; so is one that somebody may be
    writing to. The originals stay, a linked one as root's own and read-only. Where the file system knows no links they
    are moved, unless theirs is the name of a needed file. The caller holds the store's lock.
    """
    adoption, missing = Adoption(), list(files)
    skipped: set[tuple[int, str]] = set()

    def note(text: str) -> None:
        adoption.notes.append(text)
        if say:
            say(text)

    def skip(candidate: Candidate, why: str) -> None:
        if (candidate.bytes, why) not in skipped:
            note(f"{candidate.path}, and whatever else is like it, was not looked at: {why}")
        skipped.add((candidate.bytes, why))

    if not missing:
        return adoption
    candidates = find([store.root, *search], {file.bytes for file in missing}, note)
    keep = {Path(os.path.realpath(store.path(file))) for file in needed}
    left = Counter(file.bytes for file in missing for _ in range(_HASHED))
    waiting: dict[int, deque[Candidate]] = {}
    passed_over: list[tuple[Candidate, str]] = []
    for candidate in sorted(candidates, key=lambda candidate: _unlikely(candidate, missing)):
        if candidate.sparse:
            passed_over.append((candidate, "most of it was never written"))
        elif not left[candidate.bytes]:
            passed_over.append((candidate, _ENOUGH))
        else:
            left[candidate.bytes] -= 1
            waiting.setdefault(candidate.bytes, deque()).append(candidate)
    _clear(store)
    wanted = Wanted(missing)

    def use(candidate: Candidate) -> None:
        try:
            taken = _take(store, candidate, wanted, copy, keep, note)
        except (OSError, StoreError) as error:
            note(f"{candidate.path}: not used: {error}")
            return
        if taken:
            with wanted.settled:
                adoption.taken.append(taken)
                if say:
                    say(f"{taken.file.name}: {taken.how} from {taken.source}")

    _at_once(waiting, wanted, use)
    for candidate, why in passed_over:
        if wanted.of_size(candidate.bytes):
            skip(candidate, why)
    return adoption


class Wanted:
    """The files that are missing, for those who look for them at once. A file is claimed by who has its bytes in hand."""

    def __init__(self, files: Sequence[File]) -> None:
        self.missing, self.claimed = list(files), list[File]()
        self.settled = threading.Condition()
        self.stop = False

    def of_size(self, size: int) -> list[File]:
        """Those of a size, claimed ones among them: a claim may fail."""
        with self.settled:
            return [file for file in self.missing if file.bytes == size]

    @contextmanager
    def claim(self, sha256: str, size: int) -> Iterator[File | None]:
        """The file that these bytes are, if it is missing. Who has them too waits until it is settled who brings them."""

        def matching() -> list[File]:
            return [file for file in self.missing if (file.sha256, file.bytes) == (sha256, size)]

        with self.settled:
            self.settled.wait_for(lambda: not (all_ := matching()) or any(file not in self.claimed for file in all_))
            file = next((file for file in matching() if file not in self.claimed), None)
            if file:
                self.claimed.append(file)
        try:
            yield file
        finally:
            with self.settled:
                if file:
                    self.claimed.remove(file)
                self.settled.notify_all()

    def have(self, file: File) -> None:
        """It is in the store."""
        with self.settled:
            self.missing.remove(file)


class _StoppedError(Exception):
    pass


def _at_once(waiting: Mapping[int, deque[Candidate]], wanted: Wanted, use: Callable[[Candidate], None]) -> None:
    """Look at candidates on all cores, the largest first. Of one size never more than files of it are missing at that moment:
    so nothing is hashed that would not have been, one after the other.
    """
    running: dict[Future[None], int] = {}
    # Threads: reading and hashing both run outside the interpreter's lock.
    workers = ThreadPoolExecutor(cores := len(os.sched_getaffinity(0)))
    try:
        while True:
            for size in sorted(waiting, reverse=True):
                busy = Counter(running.values())
                while waiting[size] and len(running) < cores and busy[size] < len(wanted.of_size(size)):
                    running[workers.submit(use, waiting[size].popleft())] = size
                    busy[size] += 1
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                del running[done]
                done.result()
    finally:
        wanted.stop = True
        workers.shutdown(cancel_futures=True)


def _clear(store: Store) -> None:
    """What a killed run left is a second name or a copy, never the only one."""
    for left in (store.root / INCOMING).glob(f"{_BROUGHT}*"):
        left.unlink()


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
            found.setdefault(key, Candidate(path, entry_stat.st_size, *key, _is_decoy(entry_stat)))
    return list(found.values())


def _is_decoy(found: os.stat_result) -> bool:
    """Whether most of it is holes, which cost whoever made it nothing. Root and we ourselves may have reasons."""
    return found.st_blocks * 512 * 2 < found.st_size and found.st_uid not in (0, os.geteuid())


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
    store: Store,
    candidate: Candidate,
    wanted: Wanted,
    copy: bool,
    keep: set[Path],
    note: Callable[[str], None],
) -> Taken | None:
    """Prove the candidate's bytes and publish them under the name that they belong to. None: they belong to none."""
    brought = store.root / INCOMING / f"{_BROUGHT}-{candidate.device}-{candidate.inode}"
    brought.parent.mkdir(parents=True, exist_ok=True)
    original = _open(candidate)
    try:
        if _reflinked(original, brought):
            found, hashed = _proved(brought, candidate.bytes, wanted)
            with wanted.claim(found, candidate.bytes) as file:
                if file:
                    store.publish(brought, file, hashed)
                    wanted.have(file)
                return Taken(file, candidate.path, "reflinked") if file else None
        hindrance = _lease(original)
        found, hashed = _proved(_again(original), candidate.bytes, wanted)
        with wanted.claim(found, candidate.bytes) as file:
            if file is None:
                return None
            how: How | None = None
            if not hindrance:
                how = _linked(original, brought)
                if how is None:
                    hindrance = "is on another file system"
                elif how == "renamed" and candidate.path in keep:
                    hindrance = "is a file that is needed there"
                elif not _made_ours(original):
                    hindrance = "was opened for writing meanwhile"
            if how and not hindrance:
                store.publish(brought if how == "linked" else candidate.path, file, hashed)
            elif copy:
                how = "copied"
                brought.unlink(missing_ok=True)
                _copied(original, brought, file.bytes)
                same, hashed = _proved(brought, file.bytes, wanted)
                if same != file.sha256:
                    raise StoreError("the copy has other bytes than the original")
                store.publish(brought, file, hashed)
            else:
                note(f"{file.name}: {candidate.path} {hindrance}; not copied without being told to")
                return None
            wanted.have(file)
            return Taken(file, candidate.path, how)
    finally:
        os.close(original)
        brought.unlink(missing_ok=True)


def _open(candidate: Candidate) -> int:
    """The very file that was found. Its owner may have put anything in its place since, such as a FIFO."""
    descriptor = os.open(candidate.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    is_same = (found.st_dev, found.st_ino, found.st_size) == (candidate.device, candidate.inode, candidate.bytes)
    if not stat.S_ISREG(found.st_mode) or not is_same:
        os.close(descriptor)
        raise StoreError("another file is in its place since it was found")
    return descriptor


def _again(descriptor: int) -> Path:
    """A path by which the file behind a descriptor is reached, whatever has its name by now."""
    return Path(f"/proc/self/fd/{descriptor}")


def _proved(path: Path, size: int, wanted: "Wanted") -> tuple[str, Identity]:
    """The sha256 of these bytes, and the identity under which they were hashed."""

    def end(done: int) -> None:
        if wanted.stop:
            raise _StoppedError
        if done > size:
            raise StoreError("it grew while it was read")

    before = identity(path.stat())
    sha256 = sha256_of(path, end)
    if identity(path.stat()) != before:
        raise StoreError("it changed while it was read")
    return sha256, before


def _lease(original: int) -> str | None:
    """Hear of it when anybody opens the file for writing from now on. None: nobody has it open for that; else why not.

    The size and times of a file do not tell that it was written to: those of a mapping move once for many writes.
    """
    try:
        # The signal for a lease that ends is SIGIO, which would end this process; SIGURG is ignored.
        fcntl.fcntl(original, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(original, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return "is open for writing in another program"
    except OSError as error:
        return f"cannot be kept from being written to ({error.strerror})"
    return None


def _is_leased(original: int) -> bool:
    return fcntl.fcntl(original, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def _made_ours(original: int) -> bool:
    """Take the leased file from its owner. False: somebody came to write first, and the file is as it was."""
    if not _is_leased(original):
        return False
    before = os.fstat(original)
    protect(original)
    if _is_leased(original):
        return True
    if os.geteuid() == 0:
        os.fchown(original, before.st_uid, before.st_gid)
    os.fchmod(original, stat.S_IMODE(before.st_mode))
    return False


def _linked(original: int, brought: Path) -> Literal["linked", "renamed"] | None:
    """Give the bytes a name in the store's own folder, or say that they are to be renamed. None: they cannot come."""
    try:
        # Python follows the link in /proc only when it is given a directory too, which an absolute path leaves unused.
        os.link(_again(original), brought, src_dir_fd=original, follow_symlinks=True)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return None
        if error.errno in _NO_LINKS_HERE:
            return "renamed"
        raise
    return "linked"


def _reflinked(original: int, brought: Path) -> bool:
    """A reflink is better than a link: its owner can write to the original without touching ours."""
    with brought.open("xb") as ours:
        try:
            fcntl.ioctl(ours.fileno(), _FICLONE, original)
            return True
        except OSError:
            brought.unlink()
            return False


def _copied(original: int, brought: Path, size: int) -> None:
    with brought.open("xb") as ours:
        done = 0
        while done < size and (sent := os.sendfile(ours.fileno(), original, done, size - done)):
            done += sent
