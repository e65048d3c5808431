"""Credentials: the freshly hashed secrets, each in exactly the container's directory that needs it."""

import shlex
from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation

from atelier.deployment import Deployment
from atelier.tree import Directory
from stages.operations import Lines, entries


@operation()
def _nothing_else(directories: tuple[str, ...], declared: frozenset[str]) -> Iterator[StringCommand]:
    """These directories are ours alone: what an earlier deploy needed and this one does not goes."""
    places = " ".join(shlex.quote(directory) for directory in directories)
    present = host.get_fact(Lines, script=f"find {places} -mindepth 1 -depth")
    stale = [path for path in present if path not in declared]
    if stale:
        yield StringCommand("rm -d -- " + " ".join(shlex.quote(path) for path in stale))


@deploy("Credentials")
def secrets(deployment: Deployment) -> None:
    """Secret files of the service user, 0400, written without a moment in which others could read them."""
    declared = deployment.secrets()
    entries(name="Put the secret files in place", entries=declared)
    _nothing_else(
        name="Remove secrets that nothing needs any more",
        directories=tuple(entry.path for entry in declared if isinstance(entry, Directory)),
        declared=frozenset(entry.path for entry in declared),
    )
