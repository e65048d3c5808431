"""Facts about a host's GPUs and their driver: part of `atelier.hostfacts`, in the same round trip."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from atelier.gpu.devices import Gpu

STRICT = ConfigDict(extra="forbid")
"""A facts file is written by people too: a misspelt field must not pass for a missing one."""

Flavour = Literal["", "open", "proprietary"]


@dataclass(frozen=True)
class PciGpu:
    """An NVIDIA display controller in sysfs (vendor 0x10de, class 0x0300xx or 0x0302xx)."""

    __pydantic_config__ = STRICT
    address: str
    """As in 0000:01:00.0."""
    device: str
    """PCI device id, as in 0x2684."""
    driver: str = ""
    """The kernel driver bound to it: nvidia, nouveau, vfio-pci, or none."""
    answers: bool = True
    """False where its configuration space reads as ones: the card has fallen off the bus."""


@dataclass(frozen=True)
class KernelModule:
    """The kernel module `nvidia`, as loaded or as installed for the running kernel."""

    __pydantic_config__ = STRICT
    version: str = ""
    flavour: Flavour = ""


@dataclass(frozen=True)
class Package:
    """An installed package; its maintainer tells Debian's, Ubuntu's and NVIDIA's own apart."""

    __pydantic_config__ = STRICT
    version: str
    maintainer: str = ""


@dataclass(frozen=True)
class GpuFacts:
    """What the plan for driver, container toolkit and CDI rests on."""

    __pydantic_config__ = STRICT
    pci: tuple[PciGpu, ...] = ()
    """NVIDIA's display controllers in sysfs, whatever drives them."""
    devices: tuple[Gpu, ...] = ()
    """What nvidia-smi lists."""
    smi_error: str = ""
    """What nvidia-smi said instead; empty where it works or is not installed."""
    loaded: KernelModule = KernelModule()
    """The loaded kernel module (/sys/module/nvidia/version, /proc/driver/nvidia/version)."""
    installed: KernelModule = KernelModule()
    """The module on disk for the running kernel (modinfo)."""
    runfile: bool = False
    """The driver came from NVIDIA's .run installer: nvidia-uninstall is there and belongs to no package."""
    packages: dict[str, Package] = field(default_factory=dict)
    """Installed packages of driver, CUDA, container toolkit, fabric manager and kernel headers, by name."""
    held: frozenset[str] = frozenset()
    """Packages that apt holds."""
    available: dict[str, str] = field(default_factory=dict)
    """Candidate version by name, for the packages that a plan may name and apt knows already."""
    sources: frozenset[str] = frozenset()
    """URIs of apt's enabled sources."""
    kernel: str = ""
    """The running kernel's release, as in 6.12.41+deb13-amd64."""
    headers: Literal["", "available", "installed"] = ""
    """Headers for exactly the running kernel."""
    nouveau: bool = False
    """The module nouveau is loaded."""
    secure_boot: bool = False
    mok_enrolled: bool = False
    """The key that DKMS signs modules with (/var/lib/dkms/mok.pub) is enrolled in the firmware."""
    container: str = ""
    """What systemd-detect-virt calls the container this is: lxc, wsl, docker; empty on a machine."""
    vgpu: bool = False
    """A guest that was given a slice of a GPU, whose driver comes from the hypervisor's vendor."""
    nvswitches: int = 0
    fabric_manager: bool = False
    """nvidia-fabricmanager.service is active."""
    cdi_devices: frozenset[str] = frozenset()
    """What `nvidia-ctk cdi list` knows."""
    reboot_required: bool = False
    """/run/reboot-required exists."""
