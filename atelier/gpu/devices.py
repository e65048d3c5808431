"""Which GPU each service gets: settings name an index, a UUID or a part of the name; containers get the UUID through CDI.

nvidia-smi and CUDA may number GPUs differently, so nothing but the UUID leaves this module (failures.md, 16).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from atelier.errors import AtelierError


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi lists it. `memory` in MiB, `capability` as in 8.9, `address` as in 0000:01:00.0."""

    index: int
    uuid: str
    name: str
    memory: int
    capability: str = ""
    address: str = ""


QUERY = "nvidia-smi --query-gpu=index,uuid,name,memory.total,compute_cap,pci.bus_id --format=csv,noheader,nounits"


def parse(lines: Sequence[str]) -> tuple[Gpu, ...]:
    """The GPUs from the output of QUERY."""
    rows = [[field.strip() for field in line.split(",")] for line in lines if line.count(",") == QUERY.count(",") - 2]
    return tuple(
        # nvidia-smi writes the PCI domain with eight digits, sysfs with four.
        Gpu(int(row[0]), row[1], row[2], int(row[3]), row[4], row[5].lower()[-12:])
        for row in rows
        if row[0].isdigit() and row[3].isdigit()
    )


def choose(gpus: Sequence[Gpu], wanted: str | None, key: str) -> Gpu:
    """The one GPU that a setting names; unset means the only one. Raises AtelierError with the list when it is not one."""
    matches = [gpu for gpu in gpus if wanted is None or _names(wanted, gpu)]
    if len(matches) == 1:
        return matches[0]
    known = "; ".join(f"{gpu.index}: {gpu.name} {gpu.uuid}" for gpu in gpus) or "none"
    problem = (
        "is unset" if wanted is None else f"{wanted!r} names {'no GPU' if not matches else f'{len(matches)} GPUs'}"
    )
    raise AtelierError(f"{key}: {problem} on this host", f"it has: {known}")


def is_index(wanted: str) -> bool:
    """A number of one or two digits; 3090 is a part of a name."""
    return wanted.isdigit() and len(wanted) <= 2


def _names(wanted: str, gpu: Gpu) -> bool:
    if is_index(wanted):
        return int(wanted) == gpu.index
    return wanted == gpu.uuid or wanted.lower() in gpu.name.lower()


def cdi_device(uuid: str) -> str:
    """The CDI name by which Docker injects a GPU."""
    return f"nvidia.com/gpu={uuid}"
