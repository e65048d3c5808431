"""What to do about a host's GPU: adopt the driver that is there, install one, or refuse with every reason. Pure."""

from dataclasses import dataclass
from typing import Literal

from atelier.errors import Finding
from atelier.gpu.facts import Flavour
from atelier.hostfacts import HostFacts
from atelier.settings import Settings
from atelier.tree import File

Torch = Literal["cpu", "cu126", "cu130"]


@dataclass(frozen=True)
class Repository:
    """An apt repository. `fingerprint` is that of its signing key; `key_url` where the host fetches it."""

    name: str
    key_url: str
    fingerprint: str
    keyring: str
    source: File


@dataclass(frozen=True)
class Driver:
    """A driver to install, in the order of the fields."""

    route: Literal["ubuntu-archive", "nvidia-repository"]
    branch: str
    flavour: Flavour
    repository: Repository | None
    remove: tuple[str, ...]
    """Installed packages that must go first."""
    headers: tuple[str, ...]
    pins: tuple[str, ...]
    """Packages that pin the branch: installed before the others."""
    packages: tuple[str, ...]


@dataclass(frozen=True)
class GpuPlan:
    """The decision about one host."""

    action: Literal["none", "adopt", "install", "refuse"]
    """none: profile cpu."""
    torch: Torch
    """The torch/CUDA variant of the images that fits driver and compute capability."""
    reasons: tuple[str, ...] = ()
    """Why, in sentences."""
    notes: tuple[str, ...] = ()
    """What an operator should know and need not do."""
    refusals: tuple[Finding, ...] = ()
    driver: Driver | None = None
    load: bool = False
    """The module is on disk and not loaded: try modprobe before a reboot."""
    reboot: str = ""
    """Why the host must be restarted; empty where it need not be."""
    toolkit: tuple[str, ...] = ()
    """The container toolkit's packages, each with its version: `name=version`."""
    toolkit_repository: Repository | None = None
    files: tuple[File, ...] = ()
    """Settings of the host that keep it so: nouveau and unattended-upgrades blacklists."""
    holds: tuple[str, ...] = ()
    """Packages that apt must not replace under a running kernel."""
    services: tuple[str, ...] = ()
    """Units that must run: persistence, fabric manager."""
    gpus: dict[str, str] | None = None
    """UUID by service; None until the driver runs and can tell."""


def plan_gpu(facts: HostFacts, settings: Settings) -> GpuPlan:
    """The decision for one host."""
    raise NotImplementedError
