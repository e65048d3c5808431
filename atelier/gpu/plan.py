"""What to do about a host's GPU: adopt the driver that is there, install one, or refuse with every reason. Pure."""

from dataclasses import dataclass
from typing import Literal

from atelier.apt import Repository
from atelier.errors import Finding
from atelier.gpu import fabric, inventory, routes, toolkit
from atelier.gpu.assignment import ALL
from atelier.gpu.cards import Torch, version
from atelier.gpu.driver import CUDA_REPOSITORY, DriverDecision, decide
from atelier.gpu.facts import GpuFacts
from atelier.gpu.inventory import Cards
from atelier.gpu.routes import Driver
from atelier.hostfacts import HostFacts
from atelier.settings import Settings
from atelier.tree import File

__all__ = ["Driver", "GpuPlan", "Torch", "plan_gpu"]


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
    """UUID by service; None until the driver runs and can tell. Under WSL2 `all`, which is what CDI offers there."""


def plan_gpu(facts: HostFacts, settings: Settings) -> GpuPlan:
    """The decision for one host."""
    if settings.profile == "cpu":
        return GpuPlan("none", "cpu", reasons=("the profile is cpu",))
    gpu, cards = facts.gpu, inventory.read(facts, settings)
    present = bool(cards.usable or gpu.devices)
    outcome = fabric.complete(facts, settings, decide(facts, settings, cards)) if present else DriverDecision()
    torch = cards.variant(outcome.runs) or "cu130"
    notes = (*cards.notes, *outcome.notes, *_repository_notes(gpu, outcome), *toolkit.notes(gpu))
    refusals = (
        *cards.findings,
        *outcome.findings,
        *toolkit.refusals(gpu),
        *_docker_refusals(facts),
        *host_refusals(facts),
    )
    if refusals:
        return GpuPlan("refuse", torch, outcome.reasons, notes, refusals)
    names = _driver_packages(gpu, outcome.driver)
    return GpuPlan(
        "install" if outcome.driver else "adopt",
        torch,
        outcome.reasons,
        notes,
        driver=outcome.driver,
        load=outcome.load,
        reboot=outcome.reboot,
        toolkit=toolkit.packages(gpu),
        toolkit_repository=toolkit.toolkit_repository(facts, settings),
        files=(routes.NOUVEAU_BLACKLIST, routes.UPGRADE_BLACKLIST) if names else (),
        holds=routes.holds(names),
        services=_services(facts, names),
        gpus=_uuids(gpu, cards),
    )


def _uuids(gpu: GpuFacts, cards: Cards) -> dict[str, str] | None:
    if not cards.gpus:
        return None
    return {name: ALL if gpu.container == "wsl" else each.uuid for name, each in cards.gpus.items()}


def _driver_packages(gpu: GpuFacts, driver: Driver | None) -> tuple[str, ...]:
    """The driver's packages as they will be, pins and fabric manager with them."""
    names = {*routes.installed_packages(gpu), *(name for name in gpu.packages if name.startswith(routes.COMPANIONS))}
    if driver:
        planned = (name.partition("=")[0] for name in (*driver.pins, *driver.packages))
        names = (names - set(driver.remove)) | {*planned}
    return tuple(sorted(names))


def _services(facts: HostFacts, names: tuple[str, ...]) -> tuple[str, ...]:
    persistence = any(
        name.startswith(("nvidia-persistenced", "nvidia-compute-utils", "nvidia-headless")) for name in names
    )
    units = ["nvidia-persistenced.service"] if persistence and not facts.gpu.container else []
    if fabric.needed(facts.gpu):
        units.append("nvidia-fabricmanager.service")
    return tuple(units)


def _repository_notes(gpu: GpuFacts, outcome: DriverDecision) -> list[str]:
    if outcome.findings or not any(CUDA_REPOSITORY in source for source in gpu.sources):
        return []
    return ["NVIDIA's CUDA repository is enabled; its driver is held at what is installed"]


def _docker(facts: HostFacts) -> tuple[str, str]:
    """The Docker that this deploy keeps: package and version."""
    if "docker-ce" in facts.packages:
        return "docker-ce", facts.packages["docker-ce"].rpartition(":")[2]
    if facts.os_codename == "trixie" and "docker.io" in facts.packages:
        return "docker.io", facts.packages["docker.io"]
    return "", ""


def host_refusals(facts: HostFacts) -> list[Finding]:
    """What nothing about a GPU can make good. No architecture: a file of facts that leaves it out."""
    found = []
    if facts.architecture not in ("", "amd64"):
        problem = f"architecture {facts.architecture} is not supported: the images are made of wheels for amd64"
        found.append(Finding(problem, "use a machine with amd64"))
    if facts.snap_docker:
        found.append(
            Finding(
                "Docker is installed as a snap, which cannot give GPUs to containers",
                "on the host: snap remove docker (its containers and images go with it), then deploy again",
            )
        )
    return found


def _docker_refusals(facts: HostFacts) -> list[Finding]:
    name, installed = _docker(facts)
    if not name or version(installed) >= (25,):
        return []
    return [
        Finding(
            f"Docker {installed} cannot give GPUs to containers: it is older than 25 and has no CDI",
            f"upgrade it: apt-get install {name} docker-ce-cli containerd.io",
        )
    ]
