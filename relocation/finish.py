"""Remove what was copied from its old place, once the services have passed. Each file goes only while its copy is good."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from relocation.decide import is_hand_over, stays
from relocation.files import Entry, Files, Place, look, scan
from relocation.job import Job, Move, RelocationError
from relocation.journal import Journal


@dataclass
class Removed:
    """What went from a source, and what stays there and why."""

    files: int = 0
    bytes: int = 0
    left: dict[str, str] = field(default_factory=dict)


def finish(job: Job, files: Files) -> dict[str, Removed]:
    """Remove the sources of all moves. By source."""
    for move in job.moves:
        journal = Journal(move.target, files)
        if journal.header and journal.switched_ns is None:
            raise RelocationError(
                f"the move from {move.source} to {move.target} is not over: `switch` comes before `finish`"
            )
    return {move.source: _finished(move, files) for move in job.moves if move.source != move.target}


def _finished(move: Move, files: Files) -> Removed:
    removed = Removed()
    journal = Journal(move.target, files)
    source = scan(move.source)
    if source:
        _remove_files(move, files, journal, source, removed)
        _remove_directories(move, files, source.values())
    journal.remove()
    if Path(move.told).is_symlink() and not Path(move.told).exists():
        files.unlink(Place(move.told, ""))
    return removed


def _remove_files(move: Move, files: Files, journal: Journal, source: dict[str, Entry], removed: Removed) -> None:
    present, switched_ns = scan(move.target), journal.switched_ns or 0
    for one in source.values():
        if one.sort == "directory" or is_hand_over(move.kind, one):
            continue
        why = "it is no file" if one.sort == "special" else stays(move.kind, one, journal.known, present, switched_ns)
        if why is None:
            why = _remove(Place(move.source, one.name), one, files, journal)
        if why:
            removed.left[one.name] = why
        else:
            removed.files += 1
            removed.bytes += one.blocks // one.links
    lock = source.get(".lock")
    if lock and is_hand_over(move.kind, lock):
        files.unlink(Place(move.source, lock.name))


def _remove(place: Place, one: Entry, files: Files, journal: Journal) -> str | None:
    """Take the name away, if it still is what was judged. Returns why it stays."""
    found = look(place)
    if not found or found.identity != one.identity:
        return "it was written to after it was moved"
    if one.links > 1 and one.identity not in journal.known.removing:
        journal.add_removing(one.identity)
    try:
        files.unlink(place)
    except PermissionError as error:
        return f"it cannot be removed ({error.strerror}): `chattr -ia` takes away what keeps it"
    return None


def _remove_directories(move: Move, files: Files, source: Iterable[Entry]) -> None:
    for one in reversed([one for one in source if one.sort == "directory"]):
        files.remove_directory(Place(move.source, one.name))
    above = Path(move.source).parent
    if above.is_dir():
        files.sync_folder(str(above), "")
