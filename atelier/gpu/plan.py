"""What to do about a host's GPU: adopt the driver that is there, install one, or refuse with every reason. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from atelier.errors import Finding
from atelier.gpu import driver as routes
from atelier.gpu import services as assignment
from atelier.gpu import toolkit
from atelier.gpu.cards import (
    SUPPORTED_DRIVER,
    VARIANTS,
    Torch,
    best_flavour,
    dark,
    expected_capability,
    modules,
    title,
    torch_variant,
    version,
)
from atelier.gpu.devices import Gpu
from atelier.gpu.driver import Driver, Repository
from atelier.gpu.facts import Flavour, GpuFacts, PciGpu
from atelier.hostfacts import HostFacts
from atelier.settings import Settings
from atelier.tree import File

__all__ = ["Driver", "GpuPlan", "Repository", "Torch", "plan_gpu"]

DOCTOR = "restart the host; if that does not help: make doctor"
FLOOR = "580.65.06"


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


@dataclass(frozen=True)
class Cards:
    """The cards that this host can use, and those that the services will."""

    usable: tuple[PciGpu, ...]
    gpus: dict[str, Gpu]
    """By service, once a driver runs."""
    wanted: dict[str, PciGpu]
    """By service, as far as known."""
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def variant(self, driver: str) -> Torch | None:
        """The variant of PyTorch that fits a driver and the cards that the services use."""
        if self.gpus:
            known = [assignment.capability_of(gpu, self.usable) for gpu in self.gpus.values()]
            return torch_variant(version(driver), [each for each in known if each])
        used = list(self.wanted.values()) or [card for card in self.usable if modules(card)]
        expected = [expected_capability(card) for card in used]
        return torch_variant(version(driver), expected)


@dataclass(frozen=True)
class Outcome:
    """What is decided about the driver alone."""

    reasons: tuple[str, ...]
    version: str = FLOOR
    """That which will run."""
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    driver: Driver | None = None
    load: bool = False
    reboot: str = ""


def plan_gpu(facts: HostFacts, settings: Settings) -> GpuPlan:
    """The decision for one host."""
    if settings.profile == "cpu":
        return GpuPlan("none", "cpu", reasons=("the profile is cpu",))
    gpu = facts.gpu
    cards = _cards(facts, settings)
    if not cards.usable and not gpu.devices:
        return GpuPlan("refuse", "cu130", notes=cards.notes, refusals=cards.findings)
    outcome = _with_fabric_manager(facts, settings, _driver(facts, settings, cards))
    findings = (*cards.findings, *outcome.findings, *toolkit.refusals(gpu), *_docker_findings(facts))
    notes = (*cards.notes, *outcome.notes, *_driver_notes(facts, outcome), *toolkit.notes(gpu), *_docker_notes(facts))
    torch = cards.variant(outcome.version) or "cu130"
    if findings:
        return GpuPlan("refuse", torch, outcome.reasons, notes, findings)
    names = _package_names(gpu, outcome.driver)
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
        files=(routes.NOUVEAU_BLACKLIST, routes.upgrade_blacklist(names)) if names else (),
        holds=routes.holds(names),
        services=_services(gpu, names),
        gpus=_uuids(gpu, cards),
    )


def _cards(facts: HostFacts, settings: Settings) -> Cards:
    gpu, services = facts.gpu, settings.enabled()
    usable = tuple(card for card in gpu.pci if card.driver != "vfio-pci" and card.answers)
    findings, notes = _hardware_findings(gpu, usable), _hardware_notes(gpu, usable)
    gpus, wanted = dict[str, Gpu](), dict[str, PciGpu]()
    if gpu.devices:
        gpus, problems = assignment.chosen(gpu.devices, services)
        problems += assignment.memory_findings(gpus, services)
        problems += assignment.mig_findings(gpus, gpu) + assignment.wsl_findings(gpu)
        by_address = {card.address: card for card in usable}
        wanted = {name: by_address[each.address] for name, each in gpus.items() if each.address in by_address}
        notes += assignment.sharing_notes(gpus)
    elif usable:
        wanted, problems = assignment.chosen_cards(usable, services)
    else:
        problems = []
    return Cards(usable, gpus, wanted, (*findings, *problems), tuple(notes))


def _hardware_findings(gpu: GpuFacts, usable: Sequence[PciGpu]) -> list[Finding]:
    if not gpu.pci and not gpu.devices:
        return [
            Finding(
                "this host has no NVIDIA GPU",
                "check the card and, in a virtual machine, its passthrough; for a machine without one set profile: cpu",
            )
        ]
    found = [
        Finding(
            f"the GPU at {title(card)} has fallen off the bus: it no longer answers on PCI Express",
            "switch the host's power off and on; if it comes back, check power supply, cables, cooling and the card",
        )
        for card in gpu.pci
        if not card.answers
    ]
    if gpu.devices and gpu.smi_error and len(gpu.devices) < len(usable):
        found.append(
            Finding(
                f"nvidia-smi lists {len(gpu.devices)} of {len(usable)} GPUs and says: {gpu.smi_error}",
                "switch the host's power off and on; if that does not help, check power supply, cables and the card",
            )
        )
    if gpu.pci and not gpu.devices and all(card.driver == "vfio-pci" for card in gpu.pci):
        found.append(
            Finding(
                "every GPU of this host is bound to vfio-pci: it is set aside for a virtual machine",
                "deploy to that virtual machine, or remove the card from vfio-pci (modprobe.d, kernel command line) and restart",
            )
        )
    return found


def _hardware_notes(gpu: GpuFacts, usable: Sequence[PciGpu]) -> list[str]:
    passed = [f"{title(card)} is bound to vfio-pci and not used here" for card in gpu.pci if card.driver == "vfio-pci"]
    tried = ["arm64: the images' locks were made on amd64 and have not been tried here"]
    return passed if usable or gpu.devices else []


def _driver(facts: HostFacts, settings: Settings, cards: Cards) -> Outcome:
    gpu = facts.gpu
    untouchable = _untouchable(facts)
    kept = _keep(gpu, cards)
    if untouchable:
        return kept or _adopt_as_it_is(gpu, cards, untouchable) or _refuse_untouchable(gpu, cards, untouchable)
    if kept:
        return kept
    installed = _install(facts, settings, cards)
    if installed.findings and (adopted := _adopt_as_it_is(gpu, cards, installed.findings[0])):
        return adopted
    return installed
