"""What follows from what lies in source and target and from the journal: for each name of the source, where it goes."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from relocation.files import Entry
from relocation.job import Kind, moved
from relocation.journal import Known, Line

_LONGEST = 255
"""Bytes of a name, on every file system that a host keeps such things on."""
_DERIVED = "weights/"
"""What of the state is told by the weights themselves; our own programs take away what is outdated of it."""
HAND_OVER = ".lock"
"""What of a store tells only who is at work in it."""


@dataclass(frozen=True)
class Destiny:
    """Where a name of the source goes: put there, already there, or to be compared with what is there."""

    action: Literal["put", "done", "compare"]
    into: str


def candidates(name: str, time: int) -> Iterator[str]:
    """The names that it may get in the target, its own first."""
    yield name
    above, _, last = name.rpartition("/")
    count = 0
    while True:
        count += 1
        suffix = f".from-{time}" + (f"-{count}" if count > 1 else "")
        kept = os.fsdecode(os.fsencode(last)[: _LONGEST - len(suffix)])
        yield f"{above}/{kept}{suffix}" if above else f"{kept}{suffix}"


def destiny(entry: Entry, name: str, present: Mapping[str, Entry], known: Known, time: int) -> Destiny:
    """Where an entry goes that is to be called name. present: the target; time: when the move began."""
    for candidate in candidates(name, time):
        found = present.get(candidate)
        if found is None:
            return Destiny("put", candidate)
        verdict = known.verdict(entry.stamp, found.identity)
        if entry.sort == found.sort == "directory" or verdict in ("copied", "same"):
            return Destiny("done", candidate)
        if verdict is None and _may_be_same(entry, found):
            return Destiny("compare", candidate)
    raise AssertionError("the candidates never end")


def _may_be_same(entry: Entry, found: Entry) -> bool:
    if entry.sort != found.sort:
        return False
    return entry.sort == "link" or (entry.sort == "file" and entry.stamp.bytes == found.stamp.bytes)


def outdated(known: Known, source: Mapping[str, Entry], present: Mapping[str, Entry]) -> list[Line]:
    """The copies of ours whose original was written to or removed since. Meant for the time before the switch is over."""
    copies = (line for line in known.lines if line.verdict == "copied")
    gone = {
        line.into: line
        for line in copies
        if (line.name not in source or source[line.name].stamp != line.source)
        and line.into in present
        and present[line.into].identity == line.found
    }
    kept = {
        line.into
        for line in known.lines
        if line.verdict != "different" and line.name in source and source[line.name].stamp == line.source
    }
    return [line for into, line in gone.items() if into not in kept]


def stays(kind: Kind, entry: Entry, known: Known, present: Mapping[str, Entry], switched_ns: int) -> str | None:
    """Why what lies in the source has to stay there now that the services have passed. None: its copy is good.

    What the services use is theirs to change from the switch on. Nobody writes to weights.
    """
    moved = known.moved(entry.name)
    if not moved:
        return "it was not moved"
    line = moved[-1]
    if line.source != entry.stamp and not (entry.identity in known.removing and line.source[:3] == entry.identity):
        return "it was written to after it was moved"
    found = present.get(line.into)
    if found is None and kind == "state" and line.into.startswith(_DERIVED):
        return None
    if found is None:
        return f"its copy {line.into} is gone"
    if found.identity == line.found:
        return None
    if kind != "models" and found.sort == entry.sort and found.stamp.mtime_ns >= switched_ns:
        return None
    return f"its copy {line.into} is another file now"


def is_hand_over(kind: Kind, entry: Entry) -> bool:
    """Whether it tells nothing but who was at work in the store."""
    return kind == "models" and entry.name == HAND_OVER and entry.sort == "file"


def is_skeleton(kind: Kind, tree: Iterable[Entry]) -> bool:
    """Whether a tree holds nothing that anybody would miss."""
    return all(entry.sort == "directory" or is_hand_over(kind, entry) for entry in tree)


def aimed(text: str, pairs: list[tuple[str, str]]) -> str:
    """What a symbolic link says once the directories lie elsewhere. A relative one is right within what moves as a whole."""
    return moved(text, pairs) if text.startswith("/") else text
