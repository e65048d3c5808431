"""The synthetic weights: numbers as the formats define them, files as safetensors defines them."""

import json
import math
import struct
from pathlib import Path

import pytest

from sandbox import weights
from sandbox.weights import comfyui
from sandbox.weights.comfyui import Tensor


@pytest.mark.parametrize(
    ("value", "code"),
    [(0, 0x00), (1, 0x38), (-1, 0xB8), (448, 0x7E), (1000, 0x7E), (-1000, 0xFE), (2**-9, 0x01), (2**-11, 0x00), (1.06, 0x38), (1.07, 0x39)],
)  # fmt: skip
def test_fp8_numbers_are_rounded_to_the_nearest(value: float, code: int) -> None:
    assert comfyui.encode(value, "F8_E4M3") == bytes([code])


def test_bf16_and_f16_numbers() -> None:
    assert comfyui.encode(1.0, "BF16") == b"\x80\x3f"
    assert comfyui.encode(1.0, "F16") == b"\x00\x3c"


def test_a_file_holds_what_its_header_says(tmp_path: Path) -> None:
    tensors = [
        Tensor("hole", (1000, 1000), "F32"),
        Tensor("ones", (3,), "F16", value=1),
        Tensor("noise", (300, 300), "F32", 0.5),
        Tensor("rows", (10, 2), "F32", 1.0, rows=(range(2, 3), range(9, 10))),
        Tensor("scalar", (), "F32", value=2),
    ]
    comfyui.write_tensors(tensors, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])

    def values(name: str, code: str) -> tuple[float, ...]:
        begin, end = (8 + length + offset for offset in header[name]["data_offsets"])
        return tuple(number for (number,) in struct.iter_unpack(f"<{code}", data[begin:end]))

    assert len(data) == 8 + length + header["scalar"]["data_offsets"][1]
    assert not any(values("hole", "f"))
    assert values("ones", "e") == (1, 1, 1)
    assert values("scalar", "f") == (2,)
    assert [bool(value) for value in values("rows", "f")[::2]] == [False, False, True, *[False] * 6, True]
    noise = values("noise", "f")
    assert math.isclose(math.sqrt(sum(value * value for value in noise) / len(noise)), 0.5, rel_tol=0.02)
    assert (tmp_path / "x").stat().st_blocks * 512 < 1_000_000


def test_a_store_is_written_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(path: Path) -> None:
        written.append(path.name)
        path.touch()

    monkeypatch.setattr(weights, "STORE", {"vae/a.safetensors": write})
    names = ["vae/a.safetensors"]
    assert list(weights.write_store(tmp_path, names)) == [tmp_path / "vae" / "a.safetensors"]
    assert [path.name for path in (tmp_path / "vae").iterdir()] == ["a.safetensors"]
    list(weights.write_store(tmp_path, names))
    assert written == ["a.part"]
