"""The stack that somebody put together by hand before this project: what of it lies on a host, and what is taken over.

Two questions to the host: which containers are there (`script`), and what lies in the directories that those lead to
(`survey_script`). Everything between is pure. Compose files and `.env` are read for what they mount, and never run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from atelier.displacement import Displaced
from atelier.errors import Finding
from atelier.importing import Imported
from atelier.settings import Settings
from atelier.ssh import Ssh


@dataclass(frozen=True)
class Source:
    """Files that are copied: a directory of the host, or one that only a container has.

    directory: on the host. container, inside: its id and the directory in it. without: directories below that are not meant.
    target: where the copies go.
    """

    service: str
    target: str
    directory: str = ""
    container: str = ""
    inside: str = ""
    without: tuple[str, ...] = ()
    pattern: str = "*"
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Found:
    """What a host has of a previous stack.

    containers: those that step aside. roots: the directories that it was put together in. search: directories on the
    host in which weights lie. token_files: those on the host that hold credentials. obstacles: what has to be settled by a
    person first. notes: what a person should know.
    """

    containers: tuple[Displaced, ...] = ()
    roots: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    outputs: tuple[Source, ...] = ()
    workflows: tuple[Source, ...] = ()
    token_files: tuple[str, ...] = ()
    obstacles: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to take over or to displace."""
        return bool(self.containers or self.search or self.outputs or self.workflows)


def look(ssh: Ssh, settings: Settings, root: str = "") -> Found:
    """What the host has of a previous stack, in two round trips. root: what FROM names. Raises AtelierError."""
    raise NotImplementedError


def with_search(settings: Settings, found: Found) -> Settings:
    """The settings for one run, in which weights are looked for in the previous stack's directories as well."""
    raise NotImplementedError


@dataclass(frozen=True)
class Brought:
    """What was copied. there: names that hold other bytes already, which stay as they are."""

    files: int = 0
    bytes: int = 0
    same: int = 0
    there: tuple[str, ...] = ()


def bring(ssh: Ssh, settings: Settings, found: Found, say: Callable[[str], None]) -> Brought:
    """Copy outputs and workflows, verified; what is there already costs a look. The originals stay.

    For while the old containers run, and once more after they were stopped. Raises AtelierError.
    """
    raise NotImplementedError


def credentials(ssh: Ssh, found: Found, environment: Mapping[str, str]) -> Imported:
    """Credentials with the token of the previous stack, read on the host and written nowhere. Raises AtelierError."""
    raise NotImplementedError
