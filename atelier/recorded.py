"""What a host has recorded of itself: where its data lies, what runs, and everything on it that is ours. Pure.

The anchor is a file in a fixed place, so that the record is found on a host whose settings name other directories by now.
Documents are texts by name, as `script` prints and `documents` reads them:
`anchor`, `unit`, `place`, `instance`, `credentials`, `schema`, `deployed`, `manifest`, and of schema 1 also `env` and `owner`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from atelier.errors import Finding
from atelier.settings import Settings
from atelier.tree import Entry

ANCHOR_DIRECTORY = "/etc/atelier"
ANCHOR = f"{ANCHOR_DIRECTORY}/host.json"
UNIT = "/etc/systemd/system/atelier-weights.service"
"""In a fixed place since the first schema, and names store and state."""

Documents = Mapping[str, str]


@dataclass(frozen=True)
class Roots:
    """The directories of one host: those of its settings, or those that it has recorded."""

    config_root: str
    data_root: str
    models_dir: str
    outputs_dir: str

    def state(self) -> str:
        """Where the host records what it carries."""
        return f"{self.data_root}/state"

    def users(self) -> str:
        """Where the folders of all services' users lie."""
        return f"{self.data_root}/users"

    def differing(self, other: "Roots") -> dict[str, tuple[str, str]]:
        """By name of the setting, this one's and the other's directory, where they differ."""
        raise NotImplementedError


@dataclass(frozen=True)
class Service:
    """One service as the last deploy left it. port: of the host, none of the gateway or where it is not recorded."""

    container: str
    config: str
    port: int | None = None


@dataclass(frozen=True)
class Recorded:
    """What a host has recorded, in the present schema whatever it was written in."""

    schema: int = 0
    """That it was written in; 0 where nothing is recorded."""
    release: str = ""
    """That wrote it."""
    instance: str = ""
    fingerprint: str = ""
    """Of the credentials that it was given last."""
    roots: Roots | None = None
    """None where nothing is recorded."""
    place: str = ""
    """The directory in which the state was found: that of the roots, or of the settings where a move was interrupted."""
    service_user: str = ""
    service_uid: int | None = None
    bind_address: str = ""
    services: Mapping[str, Service] = field(default_factory=dict)
    """By name: `comfyui`, `forge`, `gateway`."""
    created: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The manifest: everything of ours on the host, by kind."""
    found: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """What of `created` was there before we first declared it, by kind; `packages` are all that were installed before the
    first deploy, each `name=version`. A kind that is missing was not recorded: the host is of schema 1."""
    wrote: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By path of a file of ours the sha256 of what we wrote there last, and of what we wrote before that: a killed deploy may
    have left either. A file that is missing here is the host's own work (a unit's link, a log), or was recorded by schema 1."""
    deployed: Mapping[str, Any] = field(default_factory=dict)
    """state/deployed.json as a whole; empty before the first deploy has ended."""
    damaged: tuple[str, ...] = ()
    """The documents that are there and cannot be read."""

    def ours(self, kind: str) -> frozenset[str]:
        """What of a kind is ours and was not there before."""
        raise NotImplementedError

    def refusal(self) -> Finding | None:
        """Why this release must not touch the host: a later one wrote its state."""
        raise NotImplementedError

    def elsewhere(self, settings: Settings) -> list[Finding]:
        """One finding for each directory that the settings name otherwise than the host has it."""
        raise NotImplementedError


def roots_of(settings: Settings) -> Roots:
    """The directories that the settings name."""
    raise NotImplementedError


def anchor(settings: Settings, instance: str) -> tuple[Entry, ...]:
    """The anchor and its directory, as files of the host."""
    raise NotImplementedError


def script(settings: Settings, root: str = "", *, whole: bool = True) -> str:
    """A POSIX shell script that prints the documents, and changes nothing.

    whole: the manifest as well. root: where /etc and all else lie, for tests.
    """
    raise NotImplementedError


def documents(output: str) -> dict[str, str]:
    """The documents from what `script` printed, among whatever else there is; those that are missing on the host are missing."""
    raise NotImplementedError


def parse(texts: Documents) -> Recorded:
    """What the documents say, after `migrate`. Of a later schema only schema, release, instance and fingerprint are read."""
    raise NotImplementedError


def migrate(texts: Documents) -> dict[str, str]:
    """The documents as this release would have written them. Those of this schema or of a later one stay as they are."""
    raise NotImplementedError


def _to_2(texts: Documents) -> dict[str, str]:
    """Schema 2 has an anchor, and in deployed.json the layout and the ports."""
    raise NotImplementedError


MIGRATIONS: Mapping[int, Callable[[Documents], dict[str, str]]] = {1: _to_2}
"""By schema, what makes the next one of it."""
