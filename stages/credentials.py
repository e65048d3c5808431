"""Credentials: the freshly hashed secrets, each in exactly the container's directory that needs it."""

import shlex
from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation

from atelier.deployment import Deployment
from stages.operations import Lines, entries


@operation()
def _nothing_else(root: str, declared: frozenset[str]) -> Iterator[StringCommand]:
    """The directory of secrets is ours alone: what an earlier deploy needed and this one does not goes."""
    present = host.get_fact(Lines, script=f"find {shlex.quote(root)} -mindepth 1 -depth")
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
        root=f"{deployment.settings.config_root}/secrets",
        declared=frozenset(entry.path for entry in declared),
    )
