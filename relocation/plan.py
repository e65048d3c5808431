"""Look at the moves of a job before anything is changed: what there is to do, what it needs, what is in its way."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relocation.decide import is_skeleton
from relocation.files import OURS, Entry, Files, Mount, Place, existing, is_immutable, mount_of, scan
from relocation.job import Job, Move, RelocationError, refusals
from relocation.journal import Journal
from relocation.merge import Merge, Records
from weights.progress import Progress

How = Literal["rename", "merge", "copy", "switched", "nothing"]


@dataclass(frozen=True)
class Planned:
    """One move. merge: by rename, name by name, as the target holds something. switched: what is left is to finish.

    bytes: what the source takes on its disk; copy_bytes: what has yet to be copied; collisions: the names that the
    target has too; foreign: what is no file and stays where a copy is needed.
    """

    kind: str
    source: str
    target: str
    how: How
    files: int = 0
    bytes: int = 0
    copy_bytes: int = 0
    target_mount: str = ""
    collisions: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True)
class Space:
    """What is to be copied to one file system, and what fits there. missing: what has to be freed first."""

    mount: str
    needed: int
    free: int
    missing: int


@dataclass(frozen=True)
class Plan:
    """All moves of a job. obstacles: why nothing of it is begun."""

    moves: tuple[Planned, ...]
    space: tuple[Space, ...]
    obstacles: tuple[str, ...]


def plan(job: Job, files: Files) -> Plan:
    """What the job comes to. Changes nothing."""
    obstacles, moves = list(obvious(job, files)), []
    records = Records(record_folders(job))
    for move in job.moves:
        try:
            planned, found = _planned(job, move, files, records)
        except RelocationError as error:
            obstacles.append(str(error))
            continue
        except OSError as error:
            obstacles.append(f"{move.source} or {move.target} cannot be read: {error.filename}: {error.strerror}")
            continue
        moves.append(planned)
        obstacles += found
    needs = space(moves, job.reserve, files)
    return Plan(tuple(moves), needs, (*obstacles, *map(lacking, filter(lambda one: one.missing, needs))))


def obvious(job: Job, files: Files) -> Iterator[str]:
    """What is in the way and is seen without looking into the directories."""
    yield from refusals(job.moves)
    mounts = files.mounts()
    for move in job.moves:
        if move.source == move.target:
            continue
        yield from inner_mounts(move, mounts)
        above = existing(move.target)
        if not Path(above).is_dir():
            yield f"{above} is no directory, and {move.target} cannot be made: move it away, then run again"
            continue
        where = mount_of(above, mounts).path
        if move.target_mount not in (None, where):
            yield f"{move.target} was to lie on what is mounted at {move.target_mount}, and lies on {where}: mount it again"
        if os.path.lexists(f"{move.source}/{OURS}"):
            yield f"{move.source} is itself the target of a move that is not over: finish that one first"
        yield from _other_move(move, Journal(move.target, files))


def inner_mounts(move: Move, mounts: Sequence[Mount]) -> Iterator[str]:
    """The mount points inside a directory that is to move, or inside the one that it moves to."""
    for mount in mounts:
        for directory in (move.source, move.target):
            if mount.path.startswith(f"{directory}/"):
                yield f"{mount.path} is a mount point inside {directory}: unmount it (`umount {mount.path}`), then run again"


def _other_move(move: Move, journal: Journal) -> Iterator[str]:
    """A journal of another move, or of one whose source is another directory now."""
    header = journal.header
    if not header or journal.switched_ns is not None:
        return
    if header.source != move.source:
        yield (
            f"{move.target}/{OURS} belongs to a move from {header.source}: finish that one first, "
            "or remove this folder if it was given up"
        )
        return
    try:
        inode = Path(move.source).stat().st_ino
    except FileNotFoundError:
        inode = 0
    if inode != header.inode:
        yield f"{move.source} is gone, or another one than when its copy was begun: mount its file system again"


def is_free(move: Move) -> bool:
    """Whether the target is a name for the source to get as a whole."""
    return not os.path.lexists(f"{move.target}/{OURS}") and is_skeleton(move.kind, scan(move.target).values())


def record_folders(job: Job) -> list[Path]:
    """Where records lie now: where they are to be, and where they come from."""
    if not job.records:
        return []
    places = [job.records]
    for move in job.moves:
        if job.records.is_relative_to(move.target):
            places.append(Path(move.source) / job.records.relative_to(move.target))
    return places


def _planned(job: Job, move: Move, files: Files, records: Records) -> tuple[Planned, list[str]]:
    about = (move.kind, move.source, move.target)
    mount = files.mount_point(move.target)
    if move.source != move.target and Journal(move.target, files).switched_ns is not None:
        return Planned(*about, "switched", target_mount=mount), []
    if move.source == move.target or not os.path.lexists(move.source):
        return Planned(*about, "nothing", target_mount=mount), []
    merge = Merge(job, move, files, records, Progress())
    how: How = "copy" if not merge.joined else "rename" if is_free(move) else "merge"
    inodes = {one.stamp.inode: one for one in merge.source.values() if one.sort != "directory"}
    into = {one.name: merge.destiny(one) for one in merge.source.values() if one.sort != "directory"}
    collisions = (name for name, found in into.items() if found.action == "compare" or found.into != name)
    planned = Planned(
        *about,
        how,
        len(inodes),
        sum(one.blocks for one in inodes.values()),
        merge.to_copy(),
        mount,
        tuple(collisions) if how != "rename" else (),
        tuple(one.name for one in merge.source.values() if one.sort == "special"),
    )
    return planned, list(_immutable(move, merge.source))


def _immutable(move: Move, source: Mapping[str, Entry]) -> Iterator[str]:
    for one in source.values():
        place = Place(move.source, one.name)
        if is_immutable(place, one):
            yield f"{place.path} is immutable or append-only: `chattr -ia` it, then run again"


def space(moves: Sequence[Planned], reserve: int, files: Files) -> tuple[Space, ...]:
    """What the copies need on each file system."""
    needed: dict[str, int] = defaultdict(int)
    for move in moves:
        if move.copy_bytes:
            needed[move.target_mount] += move.copy_bytes
    return tuple(_space(mount, size, reserve, files.free(mount)) for mount, size in needed.items())


def _space(mount: str, needed: int, reserve: int, free: int) -> Space:
    return Space(mount, needed, free, max(0, needed + reserve - free))


def lacking(space: Space) -> str:
    """What a person has to do where room is missing."""
    return (
        f"{space.mount}: {_size(space.needed)} are to be copied there and {_size(space.free)} are free: "
        f"free {_size(space.missing)}, then run again"
    )


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**9 else f"{-(-size // 10**5) / 10:.1f} MB"
