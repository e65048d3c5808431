"""What a host goes through to be as the settings say by now: what moves, steps aside, goes and stays. Pure.

`atelier/reprovision.py` carries it out. Nothing is removed that the host has not recorded as ours, and nothing before the
services have passed.
"""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

from atelier import render
from atelier import deployment as decide
from atelier.deployment import Deployment
from atelier.errors import Finding
from atelier.recorded import ANCHOR_DIRECTORY, Recorded, Roots, roots_of
from atelier.remains import Container as Attached
from atelier.remains import Remains
from atelier.tree import PART
from atelier.uninstall import UNITS
from atelier.uninstall_packages import Kept, named
from relocation.job import Move
from relocation.plan import Plan as Relocation
from relocation.plan import Planned

ASIDE = ".previous"
"""How the name ends of a container that stepped aside."""
TITLES = {"comfyui": "ComfyUI", "forge": "Forge", "gateway": "the gateway"}
OWN_UNITS = f"{UNITS}atelier-"


@dataclass(frozen=True)
class Container:
    """A container on the host, whoever made it. ours: it carries our label; restart: its policy, as `docker update` takes it."""

    id: str
    name: str
    ours: bool
    restart: str
    running: bool


@dataclass(frozen=True)
class Displaced:
    """A container that makes room: stopped and renamed, and back again where what follows it fails."""

    id: str
    name: str
    restart: str
    running: bool
    ours: bool
    why: str


@dataclass(frozen=True)
class Adoption:
    """What is taken over from a stack that was here before. bytes: what that copies; none for a link or what is only read."""

    what: str
    source: str
    target: str
    bytes: int = 0


class Repair(Protocol):
    """Something about the host that is mended before anything else, or that is left alone. Its lines are for people."""

    @property
    def asks(self) -> bool:
        """Whether it takes something away, and so needs a yes."""

    def lines(self) -> Sequence[str]:
        """What it does, or why it does not and what a person has to do."""


@dataclass(frozen=True)
class Journal:
    """What a reorganisation that is under way has in mind, in a fixed place on the host until it is over."""

    before: Roots | None
    after: Roots
    moves: tuple[Move, ...] = ()
    displaced: tuple[Displaced, ...] = ()
    owner: tuple[int, int] | None = None
    """The id of the service user, and the one that it had."""
    switching: bool = False
    """Directories and containers may have changed places: what was begun with these settings ends with them."""


@dataclass(frozen=True)
class Found:
    """What was found on a host. previous: what of a stack that was here before makes room; adoptions: what is taken of it."""

    remains: Remains = field(default_factory=Remains)
    containers: tuple[Container, ...] = ()
    relocation: Relocation = field(default_factory=lambda: Relocation((), (), ()))
    previous: tuple[Displaced, ...] = ()
    adoptions: tuple[Adoption, ...] = ()
    repairs: tuple[Repair, ...] = ()
    diffs: tuple[str, ...] = ()
    """Lines that show what was edited by hand and is put back."""
    fetches: int = 0
    """Bytes of weights that the host has nowhere."""


@dataclass(frozen=True)
class Reorganisation:
    """All of it. removals: by kind, only after the services have passed."""

    moves: tuple[Planned, ...] = ()
    owner: tuple[int, int] | None = None
    adoptions: tuple[Adoption, ...] = ()
    displaced: tuple[Displaced, ...] = ()
    removals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kept: tuple[Kept, ...] = ()
    repairs: tuple[Repair, ...] = ()
    diffs: tuple[str, ...] = ()
    needs: Mapping[str, int] = field(default_factory=dict)
    """Bytes by mount point."""
    fetches: int = 0
    downtime: str = ""
    obstacles: tuple[Finding, ...] = ()

    def is_empty(self) -> bool:
        """Whether a deploy is all that there is to do."""
        return not (self.pending() or self.owner or self.adoptions or self.displaced or self.removals or self.repairs)

    def needs_consent(self) -> bool:
        """Whether anything moves, makes room or goes."""
        moving = self.pending() or self.owner or self.displaced or self.removals
        return bool(moving) or any(repair.asks for repair in self.repairs)

    def pending(self) -> tuple[Planned, ...]:
        """The moves of which something is left to do."""
        return tuple(move for move in self.moves if move.how != "nothing")

    def stops_services(self) -> bool:
        """Whether the services must not write while the directories change places; one that is renamed whole takes them along."""
        return any(move.how in ("copy", "merge") for move in self.moves)

    def lines(self) -> list[str]:
        """The whole plan, for people."""
        sections = {
            "Repairs": [line for repair in self.repairs for line in repair.lines()],
            "Puts back": self.diffs,
            "Moves": [*map(_move_line, self.pending()), *_owner_line(self.owner)],
            "Adopts": [f"{each.what}: {each.source} -> {each.target}" for each in self.adoptions],
            "Steps aside": [f"{each.name}: {each.why}" for each in self.displaced],
            "Removes, once the services have passed": [
                f"{kind:<12} {named(names)}" for kind, names in self.removals.items()
            ],
            "Keeps": [f"{kept.what}: {kept.why}" for kept in self.kept],
            "Needs": [f"{amount(size)} on {mount}" for mount, size in self.needs.items()],
            "Fetches": [f"{amount(self.fetches)} of weights"] if self.fetches else [],
            "Downtime": [self.downtime] if self.downtime else [],
        }
        return [line for title, rows in sections.items() if rows for line in (title, *(f"  {row}" for row in rows))]


def amount(size: int) -> str:
    """A number of bytes, for people."""
    if size >= 10**8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 10**5 else f"{size} bytes"


def moves(before: Roots | None, after: Roots) -> tuple[Move, ...]:
    """Which directories of data are to lie elsewhere."""
    if before is None:
        return ()
    raise NotImplementedError


def reorganise(
    recorded: Recorded, deployment: Deployment, found: Found, journal: Journal | None = None, *, purge: bool = False
) -> Reorganisation:
    """What has to be done to a host that recorded this. journal: of a reorganisation that was not finished."""
    raise NotImplementedError
