"""Containers that step aside for ours, come back when ours fail, and go when ours have passed: shell, and what it prints. Pure.

A container is spoken of by its id, which nobody gives to another one, so that each script may run again after a kill
anywhere. Aside is a container that is stopped, does not start by itself and is called `<name>.previous`; its networks, its
volumes and its own files stay as they are.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atelier.errors import Finding
from atelier.gpu.facts import STRICT

SUFFIX = ".previous"
STOP = 10
"""Seconds that a container has to end by itself."""
START = 20
"""Seconds within which a container that came back has to be running."""


@dataclass(frozen=True)
class Displaced:
    """A container as it was before it stepped aside: all that brings it back."""

    __pydantic_config__ = STRICT
    id: str
    name: str
    policy: str = "no"
    """Its restart policy, as `docker update --restart` takes it."""
    running: bool = True
    why: str = ""
    """Why it steps aside, for people."""
    service: str = ""
    """`comfyui`, `forge`, `gateway`, or empty where that is not known."""
    ports: tuple[int, ...] = ()
    """Of the host, on which it answers."""
    networks: tuple[str, ...] = ()
    """Those that go with it where nobody else is in them."""
    keeps: str = ""
    """What is in it alone, for people: then it stays as `<name>.previous` whoever says yes."""

    @property
    def aside(self) -> str:
        """Its name while it is aside."""
        return f"{self.name}{SUFFIX}"


@dataclass(frozen=True)
class Outcome:
    """What a script came to, by id. gone: there was no such container any more."""

    done: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)
    networks: tuple[str, ...] = ()
    """Those that were removed."""

    def complete(self, displaced: Iterable[Displaced]) -> bool:
        """Whether everything was done for all of them."""
        return all(one.id in self.done for one in displaced)


def aside_script(displaced: Sequence[Displaced]) -> str:
    """Shell that has them step aside, all at once; what is aside already stays so."""
    raise NotImplementedError


def back_script(displaced: Sequence[Displaced]) -> str:
    """Shell that undoes it: names, restart policies, and those that were running run again. Their names must be free."""
    raise NotImplementedError


def remove_script(displaced: Sequence[Displaced]) -> str:
    """Shell that removes those that are aside, except what keeps something, and their networks when those are empty."""
    raise NotImplementedError


def parse(output: str) -> Outcome:
    """What a script printed."""
    raise NotImplementedError


def taken(displaced: Iterable[Displaced], ids: Mapping[str, str]) -> list[Finding]:
    """Why they cannot step aside: somebody else has the name. ids: of all containers on the host, by name."""
    raise NotImplementedError


def read(told: Mapping[str, Any]) -> Displaced:
    """One that was written as JSON of its `asdict`. Raises ValueError."""
    raise NotImplementedError
