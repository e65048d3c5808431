"""What PyTorch in a container must say of its GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atelier.gpu import torch_probe

GOOD = {
    "torch": "2.13.0",
    "available": True,
    "devices": 1,
    "capability": [8, 9],
    "architectures": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
    "error": 0.03,
}


def test_a_gpu_that_works_has_no_problems() -> None:
    assert torch_probe.problems(GOOD) == []


@pytest.mark.parametrize(
    "change,expected",
    [
        ({"available": False}, "sees no GPU"),
        ({"devices": 2}, "sees 2 GPUs"),
        ({"capability": [6, 1]}, "no code for compute capability 6.1"),
        ({"error": 12.0}, "differs"),
        ({"error": float("nan")}, "differs"),
    ],
)
def test_each_trouble_is_named(change: dict, expected: str) -> None:
    (problem,) = torch_probe.problems({**GOOD, **change})
    assert expected in problem


@pytest.mark.parametrize(
    "capability,architectures,covered",
    [
        ((8, 9), ["sm_86"], True),
        ((8, 0), ["sm_86"], False),
        ((12, 1), ["sm_120"], True),
        ((12, 0), ["sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((7, 5), ["compute_90"], False),
        ((9, 0), ["sm_90a"], True),
        ((6, 1), ["sm_50", "sm_60"], True),
    ],
)
def test_machine_code_and_ptx(capability: tuple, architectures: list, covered: bool) -> None:
    assert torch_probe.compiled_for(capability, architectures) is covered


FAKE = """
import types
__version__ = "2.13.0"
class Matrix:
    def __init__(self, value): self.value = value
    def cuda(self): return Matrix(self.value + DRIFT / 2)
    def __matmul__(self, other): return Matrix(self.value + other.value)
    def cpu(self): return self
    def sub(self, other): return Matrix(self.value - other.value)
    def abs(self): return Matrix(abs(self.value))
    def max(self): return self.value
DRIFT = 0.25
def fail(text): raise RuntimeError(text)
def rand(*shape): return Matrix(1.0)
cuda = types.SimpleNamespace(is_available=lambda: AVAILABLE, device_count=lambda: 1,
    get_device_capability=lambda index: (8, 9), get_arch_list=lambda: ["sm_86"])
"""


@pytest.mark.parametrize("available", [True, False])
def test_the_script_answers_in_json(tmp_path: Path, available: bool) -> None:
    (tmp_path / "torch.py").write_text(f"AVAILABLE = {available}\n{FAKE}")
    done = subprocess.run(
        [sys.executable, "-"], input=torch_probe.SCRIPT, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["available"] is available and ("error" in answer) is available
    assert not available or answer["error"] == 0.25


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 MiB.\nSee more",
            "CUDA out of memory. Tried to allocate 2.00 MiB.",
        ),
        ("CUDA error: out of memory", "CUDA error: out of memory"),
        ("CUDA error: no kernel image is available for execution on the device", None),
    ],
)
def test_a_full_card_is_no_fault_of_the_image(tmp_path: Path, text: str, told: str | None) -> None:
    fake = FAKE.replace("def cuda(self): return Matrix(self.value + DRIFT / 2)", f"def cuda(self): fail({text!r})")
    assert fake != FAKE
    (tmp_path / "torch.py").write_text(f"AVAILABLE = True\n{fake}")
    done = subprocess.run([sys.executable, "-"], input=torch_probe.SCRIPT, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) is (told is not None)
    assert told is None or json.loads(done.stdout)["full"] == told
