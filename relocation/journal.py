"""What is known of a move under way, kept in its target: which names were brought, and that the switch is over.

A line comes before the name it tells of, so that what was verified is known for it whenever we are killed.
"""

import json
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from relocation.files import OURS, Files, Identity, Place, Stamp, look
from weights.store import write_durably

Verdict = Literal["copied", "same", "different"]
SWITCHED = "switched"
"""The mark in OURS from which on the target counts."""
_REMOVING = "/removing"
"""No name begins with a slash."""


@dataclass(frozen=True)
class Line:
    """What was found out of one name of the source: what lies, or is about to lie, under a name of the target.

    copied: it is ours, and verified. same: it was there, with the same bytes. different: it was there, with others.
    """

    name: str
    into: str
    source: Stamp
    found: Identity
    verdict: Verdict
    sha256: str

    def text(self) -> bytes:
        """One line of the journal."""
        told = [self.name, self.into, self.source, self.found, self.verdict, self.sha256]
        return f"\n{json.dumps(told)}\n".encode()


@dataclass(frozen=True)
class Header:
    """Which move it is of. inode: that of the source's directory; time: what the names put aside are called after."""

    source: str
    inode: int
    time: int


@dataclass
class Known:
    """The lines, for those who ask."""

    lines: list[Line] = field(default_factory=list)
    removing: set[Identity] = field(default_factory=set)
    _verdicts: dict[tuple[Stamp, Identity], Verdict] = field(default_factory=dict)
    _by_source: dict[Stamp, list[Line]] = field(default_factory=dict)
    _by_name: dict[str, list[Line]] = field(default_factory=dict)

    def add(self, line: Line) -> None:
        """One more."""
        self.lines.append(line)
        self._verdicts[line.source, line.found] = line.verdict
        self._by_source.setdefault(line.source, []).append(line)
        self._by_name.setdefault(line.name, []).append(line)

    def verdict(self, source: Stamp, found: Identity) -> Verdict | None:
        """How what is in the target compares to what is in the source."""
        return self._verdicts.get((source, found))

    def brought(self, source: Stamp) -> list[Line]:
        """The names under which the bytes of a source lie, or lay, in the target."""
        return [line for line in self._by_source.get(source, ()) if line.verdict != "different"]

    def moved(self, name: str) -> list[Line]:
        """What became of a name of the source."""
        return [line for line in self._by_name.get(name, ()) if line.verdict != "different"]


def parse(text: bytes) -> Known:
    """The lines of a journal. One that a power cut damaged tells nothing, and what it told of is looked at again."""
    known = Known()
    for row in filter(None, text.decode("ascii", "replace").split("\n")):
        with suppress(ValueError, TypeError, LookupError):
            _add(known, json.loads(row))
    return known


def _add(known: Known, told: list[Any]) -> None:
    if told[0] == _REMOVING:
        known.removing.add(Identity(*told[1:]))
        return
    name, into, source, found, verdict, sha256 = told
    known.add(Line(name, into, Stamp(*source), Identity(*found), verdict, sha256))


class Journal:
    """The journal on the disk, in the folder that a target holds while its move is under way."""

    def __init__(self, target: str, files: Files) -> None:
        self.target, self.files = target, files
        self.folder = Path(target) / OURS
        self._lines, self._switched = self.folder / "journal", self.folder / SWITCHED
        self._begun = self.folder / "move"
        self._lock = threading.Lock()
        self.header: Header | None = None
        with suppress(FileNotFoundError, NotADirectoryError):
            self.header = Header(**json.loads(self._begun.read_bytes()))

    @cached_property
    def known(self) -> Known:
        """What its lines tell."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return parse(self._lines.read_bytes())
        return Known()

    @property
    def switched_ns(self) -> int | None:
        """When the switch was over; from then on the target is what counts. None: it is not."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return int(self._switched.read_text())
        return None

    def begin(self, header: Header) -> Header:
        """Begin, or go on with what was begun."""
        if not self.header:
            self.files.make_directory(Place(self.target, OURS), None, None)
            self.folder.chmod(0o700)
            self.files.step()
            write_durably(self._begun, json.dumps(header.__dict__) + "\n")
            self.header = header
        return self.header

    def add(self, lines: Iterable[Line]) -> None:
        """Tell of names that are about to be given."""
        with self._lock:
            for line in lines:
                self.files.append(self._lines, line.text())
                self.known.add(line)

    def add_removing(self, source: Identity) -> None:
        """Tell that the names of one file are about to go, one by one: each that goes changes the times of the others."""
        self.files.append(self._lines, f"\n{json.dumps([_REMOVING, *source])}\n".encode())
        self.known.removing.add(source)

    def sync(self) -> None:
        """Bring it to the disk."""
        if self._lines.exists():
            with self._lines.open("rb") as file:
                self.files.sync(file.fileno())

    def mark_switched(self, now_ns: int) -> None:
        """From now on the target is what counts."""
        self.files.step()
        write_durably(self._switched, f"{now_ns}\n")

    def part(self, source: Stamp) -> Place:
        """Where a copy is put together."""
        return Place(self.target, f"{OURS}/{source.inode}")

    def folder_part(self, source: Stamp) -> Place:
        """Where a directory is dressed. A file may get its inode once it is gone, and the other way round."""
        return Place(self.target, f"{OURS}/{source.inode}-directory")

    def remove(self) -> None:
        """The move is over. The mark goes last but one, so that what is left of a killed removal says so."""
        if not self.folder.is_dir():
            return
        last = (self._lines.name, self._begun.name, self._switched.name)
        names = sorted(path.name for path in self.folder.iterdir())
        for name in [name for name in names if name not in last] + [name for name in last if name in names]:
            place = Place(self.target, f"{OURS}/{name}")
            found = look(place)
            if found and found.sort == "directory":
                self.files.remove_directory(place)
            else:
                self.files.unlink(place)
        self.files.remove_directory(Place(self.target, OURS))
