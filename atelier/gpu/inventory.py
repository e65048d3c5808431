"""The cards of a host: which can be used, and which the services will use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atelier.errors import Finding
from atelier.gpu import assignment
from atelier.gpu.cards import Torch, expected_capability, modules, title, torch_variant, version
from atelier.gpu.devices import Gpu
from atelier.gpu.facts import GpuFacts, PciGpu
from atelier.hostfacts import HostFacts
from atelier.settings import Settings

POWER_CYCLE = "switch the host's power off and on; if that does not help, check power supply, cables, cooling and card"


@dataclass(frozen=True)
class Cards:
    """What the host has, and what the services want of it."""

    usable: tuple[PciGpu, ...]
    gpus: Mapping[str, Gpu]
    """By service, once a driver runs."""
    wanted: Mapping[str, PciGpu]
    """By service, as far as known."""
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def variant(self, driver: str) -> Torch | None:
        """The variant of PyTorch that fits a driver and the cards that the services use."""
        if self.gpus:
            known = [assignment.capability_of(gpu, self.usable) for gpu in self.gpus.values()]
            return torch_variant(version(driver), [each for each in known if each])
        used = list(self.wanted.values()) or [card for card in self.usable if modules(card)]
        return torch_variant(version(driver), [expected_capability(card) for card in used])

    def names(self) -> str:
        """The cards in use, as a message names them."""
        if self.gpus:
            used = (f"{gpu.name} (compute capability {gpu.capability or 'unknown'})" for gpu in self.gpus.values())
        else:
            used = (title(card) for card in (*self.wanted.values(), *(() if self.wanted else self.usable)))
        return ", ".join(dict.fromkeys(used))


def read(facts: HostFacts, settings: Settings) -> Cards:
    """The inventory, with everything that is wrong with it."""
    gpu, services = facts.gpu, settings.enabled()
    usable = tuple(card for card in gpu.pci if card.driver != "vfio-pci" and card.answers)
    findings, notes = _hardware_findings(gpu, usable), _hardware_notes(facts, usable)
    gpus, wanted = dict[str, Gpu](), dict[str, PciGpu]()
    if gpu.devices:
        gpus, problems = assignment.chosen(gpu.devices, services)
        findings += problems + assignment.memory_findings(gpus, services)
        findings += assignment.mig_findings(gpus, gpu) + assignment.wsl_findings(gpu)
        by_address = {card.address: card for card in usable}
        wanted = {name: by_address[each.address] for name, each in gpus.items() if each.address in by_address}
        notes += assignment.sharing_notes(gpus)
    elif usable:
        wanted, problems = assignment.chosen_cards(usable, services)
        findings += problems
    return Cards(usable, gpus, wanted, tuple(findings), tuple(notes))


def _hardware_findings(gpu: GpuFacts, usable: Sequence[PciGpu]) -> list[Finding]:
    found = [
        Finding(f"the GPU at {title(card)} has fallen off the bus: it does not answer on PCI Express", POWER_CYCLE)
        for card in gpu.pci
        if not card.answers
    ]
    if gpu.devices and gpu.smi_error and len(gpu.devices) < len(usable):
        lists = f"nvidia-smi lists {len(gpu.devices)} of {len(usable)} GPUs and says: {gpu.smi_error}"
        found.append(Finding(lists, POWER_CYCLE))
    if gpu.devices or usable or found:
        return found
    if gpu.pci:
        return [
            Finding(
                "every GPU of this host is bound to vfio-pci: set aside for a virtual machine",
                "deploy to that virtual machine, or take the card from vfio-pci (modprobe.d, kernel command line), restart",
            )
        ]
    return [
        Finding(
            "this host has no NVIDIA GPU",
            "check the card and, in a virtual machine or container, its passthrough; without one set profile: cpu",
        )
    ]


def _hardware_notes(facts: HostFacts, usable: Sequence[PciGpu]) -> list[str]:
    gpu = facts.gpu
    notes = [f"{title(card)} is bound to vfio-pci and not used" for card in gpu.pci if card.driver == "vfio-pci"]
    if gpu.container == "wsl":
        notes.append("under WSL2 containers are given nvidia.com/gpu=all: the toolkit knows no UUID there")
    elif gpu.container:
        notes.append(f"inside {gpu.container}, Docker may be forbidden to hand on devices: see its host's settings")
    return notes if usable or gpu.devices else []
