"""The two routes to a driver: Ubuntu's archive with its signed modules, NVIDIA's repository with DKMS on Debian."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from atelier import paths, sources
from atelier.apt import Repository
from atelier.gpu.facts import Flavour, GpuFacts
from atelier.hostfacts import HostFacts
from atelier.settings import AptRepositorySettings, Settings
from atelier.tree import File

NVIDIA = "https://developer.download.nvidia.com/compute/cuda/repos"
# Both files hold the same key; apt of Debian 13 refuses the SHA-1 self-signature in the older one.
DEBIAN = {"bookworm": ("debian12", "3bf863cc.pub"), "trixie": ("debian13", "8793F200.pub")}
UBUNTU = {"jammy": ("22.04", "5.15"), "noble": ("24.04", "6.8")}
"""Release number and series of the kernel that it came with, by codename."""

DRIVER_PACKAGE = re.compile(
    r"(nvidia-(?!container|docker|fabricmanager|driver-pinning|cud|vaapi|support$|installer-cleanup$)"
    r"|libnvidia-(?!container)|linux-(modules|objects|signatures)-nvidia-|cuda-drivers|libcuda1$"
    r"|xserver-xorg-video-nvidia|firmware-nvidia)"
)
COMPANIONS = ("nvidia-driver-pinning-", "nvidia-fabricmanager")
"""Packages that go with a driver, and are none."""
USERLAND = re.compile(r"nvidia-(smi|driver-cuda)$|nvidia-utils-")
NOUVEAU_BLACKLIST = File("/etc/modprobe.d/atelier-nouveau.conf", b"blacklist nouveau\noptions nouveau modeset=0\n")


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
    unhold: tuple[str, ...] = ()
    """Packages of the driver that is there which apt holds: they have to move with the others."""


@cache
def lock() -> sources.Nvidia:
    """NVIDIA's versions and key fingerprints."""
    return sources.read_lock(paths.PROJECT / sources.LOCK).nvidia


def repository(name: str, url: str, key_url: str, fingerprint: str, more: tuple[str, ...] = ()) -> Repository:
    """A flat repository that trusts one key. `more`: further lines of its source file."""
    keyring = f"/etc/apt/keyrings/atelier-{name}.asc"
    lines = (f"deb [signed-by={keyring}] {url.rstrip('/')}/ /", *more)
    source = File(f"/etc/apt/sources.list.d/atelier-{name}.list", "".join(f"{line}\n" for line in lines).encode())
    return Repository(name, key_url, fingerprint, keyring, source)


def mirrored(name: str, mirror: AptRepositorySettings, more: tuple[str, ...] = ()) -> Repository:
    """The repository that settings name in the place of NVIDIA's."""
    return repository(name, mirror.url, mirror.key_url, mirror.fingerprint, more)


def enabled(gpu: GpuFacts, url: str) -> bool:
    """apt has this repository already; a second entry for it with another key file would be an error to apt."""
    return url in {source.rstrip("/") for source in gpu.sources}


def installed_packages(gpu: GpuFacts) -> tuple[str, ...]:
    """The packages of the driver that is there, without those that only pin or serve it."""
    return tuple(sorted(name for name in gpu.packages if DRIVER_PACKAGE.match(name)))


def _from_nvidia(gpu: GpuFacts, name: str) -> bool:
    return "nvidia.com" in gpu.packages[name].maintainer.lower()


def has_userland(gpu: GpuFacts) -> bool:
    """nvidia-smi and the CUDA library are there, not the module alone."""
    return any(USERLAND.match(name) for name in gpu.packages)


def kernel_flavour(kernel: str) -> str:
    """What follows version and ABI number in a kernel's release: amd64, cloud-amd64, generic, aws."""
    found = re.fullmatch(r"\d[^-]*(?:-\d+)?-(.+)", kernel)
    return found[1] if found else ""


def debian_headers(kernel: str) -> tuple[str, ...]:
    """Headers of the running kernel, and the metapackage that brings those of the next; Debian has none for a foreign kernel."""
    flavour = kernel_flavour(kernel)
    known = re.fullmatch(r"((cloud|rt)-)?amd64", flavour)
    return (f"linux-headers-{kernel}", *((f"linux-headers-{flavour}",) if known else ()))


def debian_driver(facts: HostFacts, settings: Settings, branch: str, flavour: Flavour) -> Driver:
    """NVIDIA's repository: modules built by DKMS for the running kernel, CUDA without the desktop."""
    gpu = facts.gpu
    dkms = "nvidia-kernel-open-dkms" if flavour == "open" else "nvidia-kernel-dkms"
    other = "nvidia-kernel-dkms" if flavour == "open" else "nvidia-kernel-open-dkms"
    foreign = (name for name in installed_packages(gpu) if not _from_nvidia(gpu, name))
    return Driver(
        "nvidia-repository",
        branch,
        flavour,
        debian_repository(facts, settings),
        remove=tuple(sorted({*foreign, *({other} & set(gpu.packages))})),
        headers=debian_headers(gpu.kernel),
        pins=(f"nvidia-driver-pinning-{branch}",),
        packages=("nvidia-driver-cuda", dkms, "nvidia-persistenced"),
    )


def debian_repository(facts: HostFacts, settings: Settings) -> Repository | None:
    """NVIDIA's repository for this release; None where apt has it already."""
    # NVIDIA's packages for Debian depend on some of contrib (NVIDIA's driver installation guide).
    contrib = facts.gpu.contrib
    if settings.gpu.driver_repository:
        return mirrored("nvidia-driver", settings.gpu.driver_repository, contrib)
    release, key = DEBIAN[facts.os_codename]
    url = f"{NVIDIA}/{release}/x86_64"
    if enabled(facts.gpu, url):
        return None
    return repository("nvidia-driver", url, f"{url}/{key}", lock().driver_key, contrib)


def ubuntu_driver(facts: HostFacts, branch: str, flavour: Flavour) -> Driver:
    """Ubuntu's archive: modules that Canonical built and signed, so no compiler, no headers, and Secure Boot may be on."""
    stack = f"{branch}-server" + ("-open" if flavour == "open" else "")
    packages = (*ubuntu_modules(facts, stack), f"nvidia-headless-no-dkms-{stack}", f"nvidia-utils-{branch}-server")
    return Driver(
        "ubuntu-archive",
        branch,
        flavour,
        None,
        remove=tuple(
            name
            for name in installed_packages(facts.gpu)
            if _from_nvidia(facts.gpu, name) or not _belongs(name, branch, flavour)
        ),
        headers=(),
        pins=(),
        packages=packages,
    )


def _belongs(name: str, branch: str, flavour: Flavour) -> bool:
    """An installed package can stay beside the server driver of a branch and flavour."""
    if not re.search(rf"-{branch}-server(-|$)|^linux-signatures-nvidia-|^nvidia-firmware-{branch}-server-", name):
        return not re.search(r"-\d{3}(-|$)", name)
    kernel_part = re.match(r"linux-(modules|objects)-nvidia-|nvidia-(dkms|driver|headless|kernel-source)", name)
    return not kernel_part or (f"-{branch}-server-open" in name) == (flavour == "open")


def ubuntu_modules(facts: HostFacts, stack: str) -> tuple[str, ...]:
    """The signed modules for the running kernel, and the metapackage that brings those for the kernels after it.

    The archive drops modules for kernels that it has replaced: then the metapackage alone, with its own kernel. None where
    apt knows neither.
    """
    gpu = facts.gpu
    exact, following = f"linux-modules-nvidia-{stack}-{gpu.kernel}", f"linux-modules-nvidia-{stack}-{_series(facts)}"
    if gpu.available and exact not in gpu.available:
        return (following,) if following in gpu.available else ()
    linked = (f"linux-objects-nvidia-{stack}-{gpu.kernel}", f"linux-signatures-nvidia-{gpu.kernel}")
    return (exact, *(() if stack.endswith("-open") else linked), following)


def _series(facts: HostFacts) -> str:
    """The line of kernels that the host follows: generic, generic-hwe-22.04, aws."""
    flavour = kernel_flavour(facts.gpu.kernel)
    release, original = UBUNTU[facts.os_codename]
    hardware_enablement = flavour in ("generic", "lowlatency") and not facts.gpu.kernel.startswith(f"{original}.")
    return f"{flavour}-hwe-{release}" if hardware_enablement else flavour


UPGRADE_BLACKLIST = File(
    "/etc/apt/apt.conf.d/91atelier-gpu",
    b"""// The driver is not replaced under a running kernel, and no kernel comes that the driver has no module for: Ubuntu's
// signed modules belong to one kernel each, and what DKMS builds may not build for the next one.
Unattended-Upgrade::Package-Blacklist {
  "nvidia-";
  "libnvidia-";
  "linux-modules-nvidia-";
  "cuda-";
  "linux-image-";
  "linux-headers-";
};
""",
)


def holds(names: tuple[str, ...]) -> tuple[str, ...]:
    """What apt must hold.

    Not the metapackage of Ubuntu's modules: held, it would let a kernel come without them.
    """
    following = re.compile(r"linux-modules-nvidia-(?!.*-\d+\.\d+\.\d+-\d+-)")
    return tuple(sorted({name.partition("=")[0] for name in names if not following.match(name)}))
