"""What a command is aimed at: a host given by address, hosts of hosts.yml, or the sandbox."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atelier import paths
from atelier.errors import AtelierError
from atelier.settings import Layer, Settings, build_settings, read_group, read_hosts
from atelier.ssh import Destination, Ssh

SANDBOX = "sandbox"
SANDBOX_GROUPS = ("sandbox-gpu", "sandbox-qwen")
"""Sandboxes of these names, and `<name>-<anything>`, have the settings of the group of that name besides."""


@dataclass(frozen=True)
class Target:
    """One host with its validated settings. `name` names its folders in .secrets, reports and outputs."""

    name: str
    kind: Literal["sandbox", "host"]
    destination: Destination
    settings: Settings
    argument: str = ""
    """What names it on make's command line, such as `HOST=user@address`; empty for what make takes without a word."""

    def ssh(self) -> Ssh:
        """A connection to it; `ACCEPT_NEW_HOST_KEY=1` accepts an unknown (never a changed) host key."""
        accept = self.kind == "sandbox" or os.environ.get("ACCEPT_NEW_HOST_KEY") == "1"
        return Ssh(self.destination, accept_new_host_key=accept)

    def command(self, name: str) -> str:
        """A make command as it is typed for this target."""
        return f"make {name} {self.argument}".strip()

    def headline(self) -> str:
        """The first line that every command prints."""
        if self.kind == "sandbox":
            gpu = ", with a simulated GPU" if self.settings.profile == "gpu-simulated" else ""
            return f"Target: {self.name} (a throw-away machine on this computer{gpu})"
        where = f"{self.destination.user}@" if self.destination.user else ""
        port = f":{self.destination.port}" if self.destination.port else ""
        return f"Target: {self.name} ({where}{self.destination.host}{port})"


def resolve(host: str, limit: str, project: Path = paths.PROJECT) -> list[Target]:
    """The targets that HOST and LIMIT name, with settings validated; nothing is contacted.

    Neither given: the sandbox, unless a hosts.yml exists, which needs LIMIT. Raises AtelierError.
    """
    hosts_file = project / "hosts.yml"
    if host and limit:
        raise AtelierError("HOST and LIMIT were both given", "HOST= is an address; LIMIT= picks names from hosts.yml")
    if host == SANDBOX or (not host and not limit and not hosts_file.exists()):
        return [sandbox_target(SANDBOX, project, "HOST=sandbox" if hosts_file.exists() else "")]
    if re.fullmatch(rf"{SANDBOX}-[a-z0-9-]+", host):
        return [sandbox_target(host, project, f"HOST={host}")]
    if host:
        destination = Destination.parse(host)
        layers = [read_group(project / "group_data", "all", required=False)]
        return [_host(destination.host, destination, layers, f"HOST={host}")]
    if not hosts_file.exists():
        raise AtelierError(
            f"LIMIT={limit} needs a hosts.yml", "copy hosts.example.yml to hosts.yml, or use HOST=user@address"
        )
    hosts = read_hosts(hosts_file)
    if not limit:
        raise AtelierError(
            "hosts.yml exists, so say which host", f"LIMIT=all, LIMIT={','.join(hosts)}, or HOST=sandbox"
        )
    names = list(hosts) if limit == "all" else limit.split(",")
    unknown = [name for name in names if name not in hosts]
    if unknown:
        raise AtelierError(f"LIMIT: hosts.yml has no {', '.join(unknown)}", f"its hosts are: {', '.join(hosts)}")
    targets = []
    for name in names:
        layers = [read_group(project / "group_data", "all", required=False)]
        layers += [read_group(project / "group_data", group, required=True) for group in hosts[name].groups]
        layers.append((f"hosts.yml: hosts.{name}.settings", hosts[name].settings))
        destination = Destination.parse(hosts[name].address)
        targets.append(_host(name, destination, layers, f"LIMIT={name}"))
    return targets


def default_settings(project: Path = paths.PROJECT) -> Settings:
    """The settings of a host that nothing more is said of."""
    return build_settings([read_group(project / "group_data", "all", required=False)])


def _host(name: str, destination: Destination, layers: list[Layer], argument: str) -> Target:
    settings = build_settings(layers)
    if settings.profile == "gpu-simulated":
        raise AtelierError(f"{name}: profile gpu-simulated is for the sandbox only", "set profile: gpu, or cpu")
    return Target(name, "host", destination, settings, argument)


def sandbox_target(name: str, project: Path, argument: str = "") -> Target:
    """A sandbox by name (`sandbox`, or `sandbox-<anything>`). Its connection is known once it is up.

    `sandbox-gpu` and `sandbox-gpu-<anything>` have a simulated GPU, `sandbox-qwen` and `sandbox-qwen-<anything>` weights
    of Qwen-Image-Edit for the real ComfyUI.
    """
    layers: list[Layer] = [
        read_group(project / "group_data", "all", required=False),
        read_group(project / "group_data", SANDBOX, required=True),
    ]
    for group in SANDBOX_GROUPS:
        if f"{name}-".startswith(f"{group}-"):
            layers.append(read_group(project / "group_data", group, required=True))
    state = paths.cache_dir() / "sandbox" / name
    return Target(name, "sandbox", Destination(name, config=state / "ssh" / "config"), build_settings(layers), argument)
