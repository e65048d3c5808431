"""Ways to break a deployed sandbox, and whether verify notices each: what a sabotage is, and what it is given."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atelier import paths
from atelier.errors import AtelierError
from atelier.settings import Settings
from atelier.ssh import Ssh
from atelier.target import Target

FUNCTIONS = r"""
recreate() { (cd "$CONFIG/services/$1" && docker compose up -d --force-recreate --remove-orphans) 2>&1; }
overridden() {
  mkdir -p /run/atelier-sabotage && cat >"/run/atelier-sabotage/$1.yaml"
  (cd "$CONFIG/services/$1" && docker compose -f compose.yaml -f "/run/atelier-sabotage/$1.yaml" up -d) 2>&1
}
root_of() {
  merged=$(docker inspect -f '{{with .GraphDriver}}{{.Data.MergedDir}}{{end}}' "$1" 2>/dev/null) || merged=
  case $merged in /*) ;; *) merged=/var/lib/docker/rootfs/overlayfs/$(docker inspect -f '{{.Id}}' "$1") ;; esac
  [ -d "$merged/etc" ] && printf '%s' "$merged" || { echo "no root of $1 on the host" >&2; return 1; }
}
"""
"""What every script may call.

`recreate CONTAINER`: anew from its compose file. `overridden CONTAINER <<X`: with a further compose file, on standard
input. `root_of CONTAINER`: the folder on the host that is a running container's root file system, writable.
"""


class Guest:
    """The sandbox that is broken, for the scripts and callables of a sabotage."""

    def __init__(self, target: Target, ssh: Ssh) -> None:
        self.target, self.ssh = target, ssh

    @property
    def settings(self) -> Settings:
        """The settings that the sandbox was deployed with."""
        return self.target.settings

    @property
    def secrets_dir(self) -> Path:
        """The credentials of the sandbox on this computer."""
        return paths.secrets_dir(self.target.name)

    def root(self, script: str, stdin: bytes = b"") -> str:
        """Run a shell script (POSIX) as root in the guest, ended by the first command that fails.

        Returns what it printed. Raises AtelierError where it fails.
        """
        settings = self.settings
        names = {"CONFIG": settings.config_root, "DATA": settings.data_root, "UID_": str(settings.service_uid)}
        names |= {kind.upper(): service.container for kind, service in settings.enabled().items()}
        names["GATEWAY"] = settings.gateway_container
        variables = "".join(f"{name}={shlex.quote(value)}\n" for name, value in names.items())
        answer = self.ssh.run(f"set -e\n{variables}{FUNCTIONS}\n{script}", stdin=stdin, timeout=300)
        if answer.status != 0:
            raise AtelierError(f"ended with {answer.status}: {(answer.stderr or answer.stdout).strip()[-600:]}")
        return answer.stdout


Deed = str | Callable[[Guest], object]
"""A shell script that runs as root in the guest, or a callable."""


@dataclass(frozen=True)
class Sabotage:
    """One way to break a deployed sandbox.

    id: its group and what is broken, such as `containers.published-port`. does: one line for the table.
    breaks, undoes: see `Guest.root` for the variables and functions of a script; undoes works after half a `breaks` too.
    expects: ids of the checks that must turn red. names: what the first of them must say (a regular expression, searched
    in observed and hint): the cause. also: ids, or beginnings of ids, that may be red besides, beyond what `depends` of
    the catalogue explains. groups: groups to verify besides those of `expects`.
    needs: nothing but a sandbox, one with a simulated GPU, or one with TLS. slow: more than about 10 s with its verify.
    """

    id: str
    does: str
    breaks: Deed
    undoes: Deed
    expects: tuple[str, ...]
    names: str
    also: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    needs: Literal["", "gpu", "tls"] = ""
    slow: bool = False
