"""A job in a JSON file, and what of it cannot be done whatever the disks hold."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["models", "outputs", "users", "state"]
RUN = Path("/run/atelier-relocation")
JOBS = 4  # files at work at once: while one is on its way to the disk, another is hashed


class RelocationError(Exception):
    """What is wrong with a move, and what to do about it."""


@dataclass(frozen=True)
class Move:
    """What lies in one directory is to lie in another. Both are free of symbolic links; told is the source as declared.

    target_mount: where the target's file system has to be mounted, where somebody looked at it before.
    """

    kind: Kind
    source: str
    target: str
    told: str
    target_mount: str | None = None


@dataclass(frozen=True)
class Job:
    """The moves of one reorganisation. records: where the weights' records lie once all is moved."""

    moves: tuple[Move, ...]
    records: Path | None = None
    reserve: int = 0
    jobs: int = JOBS
    progress: Path = RUN / "progress.json"
    result: Path = RUN / "result.json"


def read_job(path: Path) -> Job:
    """The job that a file describes."""
    try:
        told = json.loads(path.read_bytes())
        moves = tuple(_move(**one) for one in told["moves"])
        usual = Job(moves)
        return Job(
            moves,
            _records(Path(told["records"]), moves) if told.get("records") else None,
            int(told.get("reserve_bytes", usual.reserve)),
            int(told.get("jobs", usual.jobs)),
            Path(told.get("progress", usual.progress)),
            Path(told.get("result", usual.result)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RelocationError(f"{path} describes no job: {type(error).__name__}: {error}") from error


def _move(kind: Kind, source: str, target: str, target_mount: str | None = None) -> Move:
    if kind not in get_args(Kind):
        raise ValueError(f"{kind!r} is none of {', '.join(get_args(Kind))}")
    for path in (source, target):
        if not path.startswith("/"):
            raise ValueError(f"{path!r} is no absolute path")
    return Move(kind, os.path.realpath(source), os.path.realpath(target), os.path.normpath(source), target_mount)


def _records(records: Path, moves: Sequence[Move]) -> Path:
    return Path(moved(os.path.realpath(records), [(move.source, move.target) for move in moves]))


def moved(path: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Where a path leads once each first directory lies in the place of its second. The same: none of them holds it."""
    for source, target in pairs:
        if path == source or path.startswith(f"{source}/"):
            return target + path[len(source) :]
    return path


def pairs(moves: Sequence[Move]) -> list[tuple[str, str]]:
    """The directories of the moves under each of their names, old and new."""
    return [pair for move in moves for pair in ((move.source, move.target), (move.told, move.target))]


def refusals(moves: Sequence[Move]) -> Iterator[str]:
    """Why these moves cannot be made together, whatever lies in the directories."""
    for number, move in enumerate(moves):
        if move.source == move.target:
            continue
        if _holds(move.source, move.target) or _holds(move.target, move.source):
            yield f"{move.source} cannot move to {move.target}: one lies in the other"
        for other in moves[number + 1 :]:
            for one, two in (
                (move.source, other.source),
                (move.source, other.target),
                (move.target, other.source),
                (move.target, other.target),
            ):
                if other.source != other.target and (one == two or _holds(one, two) or _holds(two, one)):
                    yield (
                        f"the moves of {move.kind} and {other.kind} get in each other's way ({one}, {two}): "
                        "make them one after the other, with a reprovision between them"
                    )


def _holds(outer: str, inner: str) -> bool:
    return inner.startswith(f"{outer.rstrip('/')}/")
