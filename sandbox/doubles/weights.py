"""Tiny weight files that the doubles take for models: a true safetensors header over a few zero bytes.

The names of the tensors are the ones by which the real applications recognise a kind of model.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

TENSORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sdxl-checkpoint": (
        "F16",
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
            "conditioner.embedders.1.model.token_embedding.weight",
            "first_stage_model.decoder.conv_in.weight",
        ),
    ),
    "sd15-checkpoint": (
        "F16",
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
            "first_stage_model.decoder.conv_in.weight",
        ),
    ),
    "qwen-diffusion": (
        "F8_E4M3",
        tuple(f"transformer_blocks.{block}.attn.to_{name}.weight" for block in range(3) for name in "qkv"),
    ),
    "qwen-text-encoder": (
        "F8_E4M3",
        tuple(f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(2) for name in "qkv"),
    ),
    "vae": ("BF16", ("encoder.conv1.weight", "decoder.conv1.weight")),
    "lora": ("BF16", ("transformer_blocks.0.attn.to_q.lora_down.weight",)),
}
BYTES_PER_TENSOR = 16


def safetensors(dtype: str, names: tuple[str, ...], padding: int = 0) -> bytes:
    """A safetensors file with one small tensor of zeros for each name; `padding` zeros more make it another file."""
    bytes_each = {"F8_E4M3": 1}.get(dtype, 2)
    header = {
        name: {
            "dtype": dtype,
            "shape": [BYTES_PER_TENSOR // bytes_each],
            "data_offsets": [index * BYTES_PER_TENSOR, (index + 1) * BYTES_PER_TENSOR],
        }
        for index, name in enumerate(names)
    }
    text = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + bytes(BYTES_PER_TENSOR * len(names))


def model(kind: str) -> bytes:
    """The content of a weight file of one of the kinds in TENSORS."""
    return safetensors(*TENSORS[kind])


def write(path: Path, kind: str) -> None:
    """Write such a file, and the folders above it, where it is not there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = model(kind)
    if not path.exists() or path.read_bytes() != content:
        part = path.with_suffix(f".{os.getpid()}.part")  # another sandbox may be reading, or writing the same
        part.write_bytes(content)
        part.rename(path)
