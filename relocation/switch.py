"""The change of places, made while nobody writes: renames, and copies of what changed since `copy`."""

import errno
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from relocation.copy import bring
from relocation.decide import aimed, is_hand_over
from relocation.files import Files, Place, read_link, scan
from relocation.job import Job, Move, RelocationError, pairs
from relocation.journal import Journal
from relocation.merge import Done, Merge, Records, count, make_parents
from relocation.plan import is_free, obvious, record_folders
from weights.progress import Progress
from weights.store import File, Store
from weights.store import Identity as Recorded

_AGAIN = 3
_NOT_AS_A_WHOLE = {errno.EXDEV, errno.EBUSY, errno.ENOTEMPTY, errno.EEXIST}


def switch(job: Job, files: Files, progress: Progress) -> dict[str, Done]:
    """Have everything at its target. By source, what was done; the caller has stopped whoever writes there."""
    if why := list(obvious(job, files)):
        raise RelocationError("\n".join(why))
    records = Records(record_folders(job))
    done: dict[str, Done] = {}
    with ExitStack() as held:
        for move in job.moves:
            held.enter_context(nobody_fetches(move, progress))
        for move in job.moves:
            done[move.source] = _switched(job, move, files, records, progress)
        for move in job.moves:
            journal = Journal(move.target, files)
            if journal.header and journal.switched_ns is None:
                journal.sync()
                journal.mark_switched(time.time_ns())
        # From here on the target may change: what the records say of the copies comes now.
        _record_weights(job, files, records)
    return done


@contextmanager
def nobody_fetches(move: Move, progress: Progress) -> Iterator[None]:
    """Keep a fetch of weights from beginning in a store that moves; one that is under way is waited for."""
    if move.kind != "models" or not Path(move.source).is_dir():
        yield
        return
    with Store(Path(move.source), Path(move.source)).lock(waiting=progress.note):
        yield


def _switched(job: Job, move: Move, files: Files, records: Records, progress: Progress) -> Done:
    if move.source == move.target or Journal(move.target, files).switched_ns is not None:
        return Done()
    done, joined = Done(), True
    if Path(move.source).exists():
        joined = files.are_joined(move.source, move.target)
        if not joined or not is_free(move) or not _renamed_whole(move, files, done):
            done = _merged(job, move, files, records, progress)
    # A copy of a link is aimed when it is made.
    if joined and Path(move.target).is_dir():
        aim_links(job, move, files)
    return done


def _renamed_whole(move: Move, files: Files, done: Done) -> bool:
    """One rename for all of it, where nothing but empty directories has the target's name."""
    skeleton = scan(move.target)
    make_parents(files, move.target)
    for one in reversed(skeleton.values()):
        place = Place(move.target, one.name)
        if is_hand_over(move.kind, one):
            files.unlink(place)
        elif one.name and not files.remove_directory(place):
            return False
    moved = list(scan(move.source).values())
    try:
        files.rename_onto_empty(move.source, move.target)
    except OSError as error:
        if error.errno in _NOT_AS_A_WHOLE:
            return False
        if error.errno == errno.EPERM:
            raise RelocationError(
                f"{move.source} is immutable or append-only: `chattr -ia` it, then run again"
            ) from error
        raise
    files.sync_above(move.target)
    files.sync_folder(str(Path(move.source).parent), "")
    count(done, moved)
    return True


def _merged(job: Job, move: Move, files: Files, records: Records, progress: Progress) -> Done:
    total = Done()
    for _ in range(_AGAIN):
        merge = Merge(job, move, files, records, progress)
        bring(job, [merge], files, progress)
        total.add(merge.done)
        if not merge.done.waits:
            merge.sync()
            if not merge.joined:
                merge.begin()
            return total
    raise RelocationError(
        f"{move.source}/{merge.done.waits[0]} changes while it is moved: end what writes there, then run again"
    )


def aim_links(job: Job, move: Move, files: Files) -> None:
    """Have the symbolic links in a target lead to where things are now, those that were renamed along."""
    told = pairs(job.moves)
    for one in scan(move.target).values():
        if one.sort == "link":
            place = Place(move.target, one.name)
            text = read_link(place)
            if aimed(text, told) != text:
                files.replace_link(aimed(text, told), place, one)


def _record_weights(job: Job, files: Files, records: Records) -> None:
    """Write down for each weight that was copied that its copy was hashed, so that nobody hashes it again."""
    if not job.records:
        return
    for move in job.moves:
        if move.kind != "models":
            continue
        store = Store(Path(move.target), job.records)
        for line in Journal(move.target, files).known.lines:
            if line.verdict != "different" and records.sha256(line.source) == line.sha256:
                files.step()
                inode, size, mtime_ns = line.found
                store.record(File(line.sha256, size, line.sha256), Recorded(size, mtime_ns, inode))
