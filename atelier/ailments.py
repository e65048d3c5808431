"""What may be wrong with a host that is half dead: shell that asks, and its answers. Pure; nothing is changed by asking."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from atelier.apt import Repository


@dataclass(frozen=True)
class FileSystem:
    """A file system that something of ours lies on, or will. free: bytes; inodes: free names, None where it counts none."""

    mount: str
    free: int
    inodes: int | None = None
    read_only: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Docker:
    """Docker's daemon. load, active, result: as systemd has them. invalid: dockerd's own words about daemon.json."""

    load: str = ""
    active: str = ""
    result: str = ""
    answers: bool = False
    invalid: str = ""
    said: str = ""
    """The last line of its journal that names an error."""
    keeps_containers: bool = False
    """Its settings let containers run on while it restarts."""
    settings_are_ours: bool = False
    """There were none before the first deploy."""
    settings_before: bool = False
    """A copy of its settings of before the last merge lies there."""


@dataclass(frozen=True)
class Container:
    """A container that does not stay up. declared: it is one of this deployment's."""

    name: str
    ours: bool
    declared: bool
    restarts: int
    exit_code: int
    dead: bool = False


@dataclass(frozen=True)
class Packages:
    """The package manager. unfinished: packages that were not installed to the end. broken: apt's words."""

    holder: str = ""
    unfinished: tuple[str, ...] = ()
    reinstall: tuple[str, ...] = ()
    """Packages that dpkg wants to be installed anew."""
    available: frozenset[str] = frozenset()
    """Of those, the ones that apt can have."""
    broken: str = ""
    removals: tuple[str, ...] = ()
    """What apt would remove to mend itself."""


@dataclass(frozen=True)
class Key:
    """A repository that apt refuses because its key has expired."""

    url: str
    why: str
    file: str = ""
    """That names the repository."""
    ours: Repository | None = None


@dataclass(frozen=True)
class Ailments:
    """A host as it is, beside what this computer wants of it."""

    clock_off: float = 0.0
    """Seconds that its clock is before ours; negative: behind."""
    file_systems: tuple[FileSystem, ...] = ()
    lacking: Mapping[str, int] = field(default_factory=dict)
    """By mount point the bytes that are missing for what is to be done."""
    largest: Mapping[str, int] = field(default_factory=dict)
    """By path the bytes of what takes most of a file system that lacks space."""
    images: Mapping[str, int] = field(default_factory=dict)
    """By tag the bytes of images of ours that no container is of and this deployment does not want."""
    image_mount: str = ""
    """The file system that they are on."""
    build_cache: int = 0
    """Its bytes, where nobody else has images; 0 where it cannot be told apart."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """By path the bytes of begun transfers of weights that nothing asks for."""
    parts_mount: str = ""
    docker: Docker = Docker()
    containers: tuple[Container, ...] = ()
    packages: Packages = Packages()
    keys: tuple[Key, ...] = ()
