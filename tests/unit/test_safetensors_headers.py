"""The numbers of weight files: what the host's Python reads, and what is said of it."""

import json
import subprocess
import sys

import pytest

from atelier import safetensors
from sandbox.doubles import weights


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"F8_E4M3": 100}, None),
        ({"F8_E4M3": 60, "BF16": 40, "F32": 8}, None),
        ({"F8_E4M3": 40, "BF16": 60}, "x holds BF16"),
        ({"F16": 100}, "x holds F16"),
        ({}, "x holds nothing"),
        ("cannot be read: No such file or directory", "x cannot be read: No such file"),
    ],
)
def test_files_that_are_not_fp8(sizes, words):
    found = safetensors.not_fp8({"x": sizes})
    assert found == [] if words is None else [words in line for line in found] == [True]


def test_headers_are_read(tmp_path):
    files = {name: tmp_path / name for name in ("fp8", "fp16", "cut", "none")}
    files["fp8"].write_bytes(weights.model("qwen-diffusion"))
    files["fp16"].write_bytes(weights.model("sdxl-checkpoint"))
    files["cut"].write_bytes(weights.model("vae")[:40])
    command = [sys.executable, "-", *map(str, files.values())]
    told = json.loads(
        subprocess.run(command, input=safetensors.READ, text=True, capture_output=True, check=True).stdout
    )
    assert set(told[str(files["fp8"])]) == {"F8_E4M3"} and set(told[str(files["fp16"])]) == {"F16"}
    wrong = safetensors.not_fp8(told)
    assert [line.partition(" ")[2] for line in wrong] == [
        "holds F16",
        "cannot be read: it has no header of a safetensors file",
        "cannot be read: No such file or directory",
    ]
