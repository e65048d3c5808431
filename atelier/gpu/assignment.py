"""Which service gets which GPU, and whether the cards can carry what the settings ask for."""

from collections.abc import Mapping, Sequence

from atelier.errors import AtelierError, Finding
from atelier.gpu import devices
from atelier.gpu.cards import Capability, capability, expected_capability, title
from atelier.gpu.devices import Gpu
from atelier.gpu.facts import GpuFacts, PciGpu
from atelier.settings import ServiceSettings

ALL = "all"
"""The one CDI device that the toolkit makes under WSL2 (NVIDIA/OpenShell 441): it knows no UUID there."""


def chosen(gpus: Sequence[Gpu], services: Mapping[str, ServiceSettings]) -> tuple[dict[str, Gpu], list[Finding]]:
    """The GPU of each service, and what is wrong with the settings of those that have none."""
    found, findings = dict[str, Gpu](), list[Finding]()
    for name, service in services.items():
        try:
            found[name] = devices.choose(gpus, service.gpu, f"services.{name}.gpu")
        except AtelierError as error:
            findings.append(Finding(error.message, f"name one of them by its UUID; {error.hint}"))
    return found, findings


def chosen_cards(
    cards: Sequence[PciGpu], services: Mapping[str, ServiceSettings]
) -> tuple[dict[str, PciGpu], list[Finding]]:
    """The same before a driver runs: an index or nothing can be looked up among the cards, a UUID or a name cannot."""
    ordered = sorted(cards, key=lambda card: card.address)
    listed = "; ".join(f"{index}: {title(card)}" for index, card in enumerate(ordered))
    found, findings = dict[str, PciGpu](), list[Finding]()
    for name, service in services.items():
        if service.gpu is None and len(ordered) == 1:
            found[name] = ordered[0]
        elif service.gpu is None:
            problem = f"services.{name}.gpu: is unset and this host has {len(ordered)} GPUs"
            findings.append(Finding(problem, f"set it to one index of: {listed}"))
        elif devices.is_index(service.gpu) and int(service.gpu) < len(ordered):
            found[name] = ordered[int(service.gpu)]
        elif devices.is_index(service.gpu):
            problem = f"services.{name}.gpu: {service.gpu} is no GPU of this host"
            findings.append(Finding(problem, f"set it to one index of: {listed}"))
    return found, findings


def capability_of(gpu: Gpu, cards: Sequence[PciGpu]) -> Capability | None:
    """Its compute capability, from its device id where nvidia-smi is too old to tell; None where neither tells."""
    card = next((card for card in cards if card.address == gpu.address), None)
    return capability(gpu.capability) or (expected_capability(card) if card else None)


def sharing_notes(gpus: Mapping[str, Gpu]) -> list[str]:
    """Services that share a card: allowed, and worth knowing."""
    return [f"{' and '.join(names)} share {gpu.name} {gpu.uuid}" for gpu, names in _by_gpu(gpus) if len(names) > 1]


def memory_findings(gpus: Mapping[str, Gpu], services: Mapping[str, ServiceSettings]) -> list[Finding]:
    """Cards that have less memory than their services need together. Settings count in 10^9 bytes, nvidia-smi in MiB."""
    found = []
    for gpu, names in _by_gpu(gpus):
        needed, there = sum(services[name].gpu_memory_gb or 0 for name in names), gpu.memory * (1 << 20) / 1e9
        if needed > there:
            problem = f"{' and '.join(names)} need {needed:g} GB of GPU memory; {gpu.name} {gpu.uuid} has {there:.1f}"
            keys = ", ".join(f"services.{name}.gpu" for name in names)
            found.append(Finding(problem, f"give one of them another card ({keys}), or lower gpu_memory_gb"))
    return found


def _by_gpu(gpus: Mapping[str, Gpu]) -> list[tuple[Gpu, list[str]]]:
    return [(gpu, [name for name in gpus if gpus[name] == gpu]) for gpu in dict.fromkeys(gpus.values())]


def mig_findings(gpus: Mapping[str, Gpu], facts: GpuFacts) -> list[Finding]:
    """A card in MIG mode has no CDI device of its own, only its slices have; services get whole cards."""
    sliced = any("MIG-" in device or ":" in device for device in facts.cdi_devices)
    return [
        Finding(
            f"services.{name}.gpu: {gpu.name} {gpu.uuid} is cut into MIG slices, and services get whole cards",
            f"nvidia-smi -i {gpu.uuid} -mig 0, or choose another card",
        )
        for name, gpu in gpus.items()
        if sliced and devices.cdi_device(gpu.uuid) not in facts.cdi_devices
    ]


def wsl_findings(facts: GpuFacts) -> list[Finding]:
    """Under WSL2 a container gets every card or none."""
    if facts.container != "wsl" or len(facts.devices) < 2:
        return []
    return [
        Finding(
            f"under WSL2 a container gets every GPU or none, and this host has {len(facts.devices)}",
            "use a machine with Linux on it, or one with a single GPU",
        )
    ]
