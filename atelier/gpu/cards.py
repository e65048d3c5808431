"""What NVIDIA's cards need: by PCI device id before a driver runs, by compute capability afterwards."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from atelier.gpu.facts import Flavour, PciGpu

Torch = Literal["cpu", "cu126", "cu130"]
Version = tuple[int, ...]
Capability = tuple[int, int]

# PCI device ids rise with the generations, without an exception in pci.ids.
MAXWELL, TURING, BLACKWELL, UNKNOWN = 0x1340, 0x1E00, 0x2900, 0x3200


@dataclass(frozen=True)
class Variant:
    """A build of PyTorch: the driver that its CUDA needs, and the compute capabilities that its wheels hold."""

    name: Torch
    driver: Version
    lowest: Capability
    highest: Capability


VARIANTS = (
    # Seen in the wheel: machine code up to 12.0, which runs on 12.x, and no PTX for later cards.
    Variant("cu130", (580, 65, 6), (7, 5), (12, 9)),
    Variant("cu126", (525, 60, 13), (5, 0), (9, 0)),
)
FLOOR = "580.65.06"
"""The oldest driver of a branch that NVIDIA still maintains."""


def version(text: str) -> Version:
    """The numbers of a driver's or a package's version, for comparison: 580.95.05-0ubuntu1 is (580, 95, 5)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[-~+]", text)[0]))


def capability(text: str) -> Capability | None:
    """(8, 9) for 8.9; None where nvidia-smi does not tell."""
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def expected_capability(card: PciGpu) -> Capability:
    """A compute capability of the card's generation, near enough to choose a variant of PyTorch."""
    device = int(card.device, 16)
    return (6, 0) if device < TURING else (8, 0) if device < BLACKWELL else (12, 0)


def modules(card: PciGpu) -> frozenset[Flavour]:
    """The flavours of NVIDIA's kernel modules, branch 580, that drive a card. None: too old."""
    device = int(card.device, 16)
    if device < MAXWELL:
        return frozenset()
    if device < TURING:
        return frozenset({"proprietary"})
    return frozenset({"open", "proprietary"} if device < BLACKWELL else {"open"})


def best_flavour(cards: Iterable[PciGpu]) -> Flavour:
    """The flavour that drives all cards, open before proprietary; open where none does (Pascal beside Blackwell)."""
    common = frozenset({"open", "proprietary"}).intersection(*(modules(card) for card in cards if modules(card)))
    return "proprietary" if common == {"proprietary"} else "open"


def undriven(cards: Iterable[PciGpu], flavour: Flavour) -> tuple[PciGpu, ...]:
    """The cards that a driver of this flavour does not drive; none where the flavour is unknown."""
    return tuple(card for card in cards if not modules(card) or (flavour and flavour not in modules(card)))


def torch_variant(driver: Version, capabilities: Sequence[Capability]) -> Torch | None:
    """The variant that fits the driver and every card; None where none does."""
    for variant in VARIANTS:
        if driver >= variant.driver and all(variant.lowest <= each <= variant.highest for each in capabilities):
            return variant.name
    return None


def title(card: PciGpu) -> str:
    """A card as a message names it."""
    return f"{card.address} (device id {card.device})"
