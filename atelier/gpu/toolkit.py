"""The container toolkit: four packages, one version, not below the safe floor."""

from collections.abc import Mapping

from atelier.apt import Repository
from atelier.errors import Finding
from atelier.gpu.cards import version
from atelier.gpu.facts import GpuFacts
from atelier.gpu.routes import enabled, lock, mirrored, repository
from atelier.hostfacts import HostFacts
from atelier.settings import Settings

PACKAGES = (
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
)
FLOOR = (1, 19, 1)
"""Below it a container can take over the host: CVE-2026-24260, and CVE-2025-23266 below 1.17.8."""
NVIDIA = "https://nvidia.github.io/libnvidia-container"


def installed_versions(gpu: GpuFacts) -> dict[str, str]:
    """Version by name of those of the four packages that are there."""
    return {name: gpu.packages[name].version for name in PACKAGES if name in gpu.packages}


def is_safe(installed: Mapping[str, str]) -> bool:
    """The four packages are there, at one version, which is not below the floor."""
    versions = {installed.get(name, "") for name in PACKAGES}
    return len(versions) == 1 and version(min(versions)) >= FLOOR


def wanted_version(gpu: GpuFacts) -> str:
    """What is there where it is safe, and never an older one; else the lock's."""
    installed = installed_versions(gpu)
    if is_safe(installed):
        return installed[PACKAGES[0]]
    return max([*installed.values(), lock().container_toolkit], key=version)


def packages(gpu: GpuFacts) -> tuple[str, ...]:
    """The four packages at one version: `name=version`."""
    return tuple(f"{name}={wanted_version(gpu)}" for name in PACKAGES)


def is_there(gpu: GpuFacts) -> bool:
    """The four packages are installed as wanted."""
    return installed_versions(gpu) == dict.fromkeys(PACKAGES, wanted_version(gpu))


def toolkit_repository(facts: HostFacts, settings: Settings) -> Repository | None:
    """Where the packages come from; None where nothing is to be installed, or apt has the repository already."""
    url = f"{NVIDIA}/stable/deb/{facts.architecture}"
    if is_there(facts.gpu):
        return None
    if settings.gpu.toolkit_repository:
        return mirrored("nvidia-toolkit", settings.gpu.toolkit_repository)
    if enabled(facts.gpu, url):
        return None
    return repository("nvidia-toolkit", url, f"{NVIDIA}/gpgkey", lock().toolkit_key)


def notes(gpu: GpuFacts) -> list[str]:
    """What becomes of the toolkit that is there."""
    found, wanted = installed_versions(gpu), wanted_version(gpu)
    if not found or is_there(gpu):
        return []
    state = ", ".join(f"{name} {there}" for name, there in found.items())
    floor = ".".join(map(str, FLOOR))
    if min(map(version, found.values())) < FLOOR:
        return [f"the container toolkit is below {floor} (CVE-2026-24260) and becomes {wanted}: {state}"]
    return [f"the container toolkit is not whole or of mixed versions and becomes {wanted}: {state}"]


def refusals(gpu: GpuFacts) -> list[Finding]:
    """Old lists of nvidia-docker name the same packages under another key: apt then stops altogether."""
    if is_there(gpu) or not any("nvidia.github.io/nvidia-docker" in source for source in gpu.sources):
        return []
    return [
        Finding(
            "apt has the old nvidia-docker list, which contradicts the container toolkit's repository",
            "remove it: rm /etc/apt/sources.list.d/nvidia-docker.list && apt-get update",
        )
    ]
