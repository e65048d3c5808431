"""Whether PyTorch in a container can use the GPU it was given: available, compiled for it, and right in a small matmul."""

from collections.abc import Sequence
from typing import Any

SCRIPT = """
import json, torch
def multiply():
    left, right = torch.rand(256, 256), torch.rand(256, 256)
    return float((left.cuda() @ right.cuda()).cpu().sub(left @ right).abs().max())
answer = {"torch": torch.__version__, "available": torch.cuda.is_available(), "devices": torch.cuda.device_count()}
if answer["available"]:
    answer["capability"] = list(torch.cuda.get_device_capability(0))
    answer["architectures"] = torch.cuda.get_arch_list()
    try:
        answer["error"] = multiply()
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        answer["full"] = str(error).splitlines()[0]
print(json.dumps(answer))
"""
NEEDED_MIB = 2048
"""Memory that a card must have free for two of these programs at once: each brings a CUDA context of up to 0.6 GiB."""
TOLERANCE = 0.5
"""Largest difference to the CPU in a product of 256 by 256 numbers below 1, whose entries are about 64: TF32 keeps 10 bits."""


def problems(answer: dict[str, Any]) -> list[str]:
    """What is wrong with what SCRIPT printed; empty when all is well."""
    if not answer["available"]:
        return [f"torch {answer['torch']} sees no GPU"]
    found = [] if answer["devices"] == 1 else [f"torch sees {answer['devices']} GPUs, not one"]
    major, minor = answer["capability"]
    if not compiled_for((major, minor), answer["architectures"]):
        held = " ".join(answer["architectures"])
        found.append(f"torch {answer['torch']} holds no code for compute capability {major}.{minor}: {held}")
    # A comparison with NaN is false.
    if not answer["error"] <= TOLERANCE:
        found.append(f"a matrix product differs from the CPU's by {answer['error']:g}")
    return found


def compiled_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Machine code runs on later minors of its major (sm_80 on 8.6), PTX (compute_90) on everything later."""
    for name in architectures:
        kind, _, digits = name.partition("_")
        number = int("".join(filter(str.isdigit, digits)))
        compiled = divmod(number, 10)
        if compiled <= capability and (kind == "compute" or compiled[0] == capability[0]):
            return True
    return False
