"""Random-weight files that ComfyUI loads and samples on a CPU through its true graphs. Standard library only.

    python -m sandbox.weights.comfyui sd3|qwen-diffusion|qwen-text-encoder|qwen-vae PATH

sd3                CheckpointLoaderSimple: an SD3-type transformer (depth 2), CLIP-L, a TAESD-type autoencoder; 132 MB
qwen-diffusion     UNETLoader: Qwen-Image-Edit in FP8 with one transformer block; 380 MB
qwen-text-encoder  CLIPLoader: Qwen2.5-VL 7B in scaled FP8, one layer of each tower random; 8.3 GB, 0.5 GB on disk
qwen-vae           VAELoader: the Qwen-Image autoencoder; 254 MB

ComfyUI has every width in its own source and takes only the number of the diffusion model's blocks from the file.
Sampling the Qwen graph at 64x64 takes about 11 GB of memory.
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

DType = Literal["F8_E4M3", "BF16", "F16", "F32"]
Kind = Literal["sd3", "qwen-diffusion", "qwen-text-encoder", "qwen-vae"]

SIZES: dict[DType, int] = {"F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4}
E4M3 = sorted({math.ldexp(8 + m, e - 10) if e else math.ldexp(m, -9) for e in range(16) for m in range(8)} - {480.0})
"""The values of an FP8 number without its sign, in the order of their codes."""
POOL = 65521
"""Random values, used again and again; a prime, so that the rows of a matrix never line up."""
VOCABULARY, SPECIAL = 32768, range(151640, 151700)
"""The token rows that English text and the chat template need; the others are a hole."""


@dataclass(frozen=True)
class Tensor:
    """`deviation` of random values, or else a constant `value`; with neither, a hole of zeros."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    deviation: float = 0.0
    value: float = 0.0
    rows: tuple[range, ...] = ()
    """Where given, only these rows are random."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * SIZES[self.dtype]


def encode(value: float, dtype: DType) -> bytes:
    """One number in little-endian bytes; FP8 is rounded to the nearest value it has."""
    if dtype == "F8_E4M3":
        code = bisect.bisect_left(E4M3, abs(value))
        if code == len(E4M3) or (code and abs(value) - E4M3[code - 1] < E4M3[code] - abs(value)):
            code -= 1
        return bytes([code | (0x80 if value < 0 else 0)])
    if dtype == "BF16":
        return struct.pack("<f", value)[2:]
    return struct.pack("<e" if dtype == "F16" else "<f", value)


def write_tensors(tensors: Iterable[Tensor], path: Path, seed: int = 0) -> None:
    """Write a safetensors file whose zeros are holes."""
    source = random.Random(seed)  # noqa: S311 - weights, not secrets
    pool = [source.gauss(0, 1) for _ in range(POOL)]
    encoded: dict[tuple[float, DType], bytes] = {}
    header: dict[str, object] = {"__metadata__": {"format": "pt", "note": "synthetic random weights"}}
    placed, offset = [], 0
    for tensor in tensors:
        placed.append((offset, tensor))
        offsets = [offset, offset + tensor.size]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        offset += tensor.size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    start = 8 + len(head)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(start + offset)
        for number, (offset, tensor) in enumerate(placed):
            if tensor.value:
                file.seek(start + offset)
                file.write(encode(tensor.value, tensor.dtype) * math.prod(tensor.shape))
            elif tensor.deviation:
                key = (tensor.deviation, tensor.dtype)
                if key not in encoded:
                    encoded[key] = b"".join(encode(value * tensor.deviation, tensor.dtype) for value in pool)
                row = tensor.size // tensor.shape[0]
                for rows in tensor.rows or (range(tensor.shape[0]),):
                    file.seek(start + offset + rows.start * row)
                    _repeat(file, encoded[key], len(rows) * row, number * 997 * SIZES[tensor.dtype])


def _repeat(file: BinaryIO, data: bytes, left: int, phase: int) -> None:
    position = phase % len(data)
    while left:
        left -= file.write(data[position : position + left])
        position = 0


def linear(
    name: str, outputs: int, inputs: int, dtype: DType, *, bias: DType | None, gain: float = 1.0, empty: bool = False
) -> Iterator[Tensor]:
    """A fully connected layer; `empty` makes it a hole."""
    yield Tensor(f"{name}.weight", (outputs, inputs), dtype, 0.0 if empty else gain / math.sqrt(inputs))
    if bias:
        yield Tensor(f"{name}.bias", (outputs,), bias, 0.0 if empty else 0.02)


def qwen_diffusion() -> Iterator[Tensor]:
    """Qwen-Image-Edit's transformer with one block, all FP8."""
    width, text, head, latent = 3072, 3584, 128, 64

    def layer(name: str, outputs: int, inputs: int, gain: float = 1.0) -> Iterator[Tensor]:
        yield from linear(name, outputs, inputs, "F8_E4M3", bias="F8_E4M3", gain=gain)

    yield from layer("img_in", width, latent)
    yield from layer("txt_in", width, text)
    yield Tensor("txt_norm.weight", (text,), "F8_E4M3", value=1)
    yield from layer("time_text_embed.timestep_embedder.linear_1", width, 256)
    yield from layer("time_text_embed.timestep_embedder.linear_2", width, width)
    block = "transformer_blocks.0."
    for part in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        yield Tensor(f"{block}attn.{part}.weight", (head,), "F8_E4M3", value=1)
    for part in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
        yield from layer(f"{block}attn.{part}", width, width)
    for part in ("img", "txt"):
        yield from layer(f"{block}{part}_mod.1", 6 * width, width, gain=0.5)
        yield from layer(f"{block}{part}_mlp.net.0.proj", 4 * width, width)
        yield from layer(f"{block}{part}_mlp.net.2", width, 4 * width)
    yield from layer("norm_out.linear", 2 * width, width, gain=0.5)
    yield from layer("proj_out", latent, width)


def qwen_text_encoder() -> Iterator[Tensor]:
    """Qwen2.5-VL 7B in the scaled FP8 layout; the first layer of the text and of the vision tower is random."""
    width, inner, queries, keys = 3584, 18944, 28 * 128, 512
    vision, vision_inner = 1280, 3420

    def layer(name: str, outputs: int, inputs: int, empty: bool, bias: bool = False) -> Iterator[Tensor]:
        weight, *rest = linear(name, outputs, inputs, "F8_E4M3", bias="BF16" if bias else None, empty=empty)
        yield from (weight, Tensor(f"{name}.scale_weight", (), "F32", value=1), *rest)

    def norm(name: str, channels: int) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (channels,), "BF16", value=1)

    yield Tensor("scaled_fp8", (0,), "F8_E4M3")
    yield Tensor("model.embed_tokens.weight", (152064, width), "BF16", 1.0, rows=(range(VOCABULARY), SPECIAL))
    for index in range(28):
        name, empty = f"model.layers.{index}.", index > 0
        yield from layer(f"{name}self_attn.q_proj", queries, width, empty, bias=True)
        yield from layer(f"{name}self_attn.k_proj", keys, width, empty, bias=True)
        yield from layer(f"{name}self_attn.v_proj", keys, width, empty, bias=True)
        yield from layer(f"{name}self_attn.o_proj", width, queries, empty)
        yield from layer(f"{name}mlp.gate_proj", inner, width, empty)
        yield from layer(f"{name}mlp.up_proj", inner, width, empty)
        yield from layer(f"{name}mlp.down_proj", width, inner, empty)
        yield from norm(f"{name}input_layernorm", width)
        yield from norm(f"{name}post_attention_layernorm", width)
    yield from norm("model.norm", width)
    yield Tensor("visual.patch_embed.proj.weight", (vision, 3, 2, 14, 14), "BF16", 0.03)
    for index in range(32):
        name, empty = f"visual.blocks.{index}.", index > 0
        yield from norm(f"{name}norm1", vision)
        yield from norm(f"{name}norm2", vision)
        yield from layer(f"{name}attn.qkv", 3 * vision, vision, empty, bias=True)
        yield from layer(f"{name}attn.proj", vision, vision, empty, bias=True)
        yield from layer(f"{name}mlp.gate_proj", vision_inner, vision, empty, bias=True)
        yield from layer(f"{name}mlp.up_proj", vision_inner, vision, empty, bias=True)
        yield from layer(f"{name}mlp.down_proj", vision, vision_inner, empty, bias=True)
    yield from norm("visual.merger.ln_q", vision)
    yield from layer("visual.merger.mlp.0", 4 * vision, 4 * vision, False, bias=True)
    yield from layer("visual.merger.mlp.2", width, 4 * vision, False, bias=True)


def qwen_vae() -> Iterator[Tensor]:
    """The Qwen-Image (Wan 2.1) autoencoder in its full size."""
    base, latent, multipliers, blocks = 96, 16, [1, 2, 4, 4], 2

    def conv(name: str, outputs: int, inputs: int, *kernel: int, gain: float = 1.0) -> Iterator[Tensor]:
        deviation = gain / math.sqrt(inputs * math.prod(kernel))
        yield Tensor(f"{name}.weight", (outputs, inputs, *kernel), "BF16", deviation)
        yield Tensor(f"{name}.bias", (outputs,), "BF16", 0.02)

    def residual(name: str, inputs: int, outputs: int) -> Iterator[Tensor]:
        yield Tensor(f"{name}.residual.0.gamma", (inputs, 1, 1, 1), "BF16", value=1)
        yield from conv(f"{name}.residual.2", outputs, inputs, 3, 3, 3)
        yield Tensor(f"{name}.residual.3.gamma", (outputs, 1, 1, 1), "BF16", value=1)
        yield from conv(f"{name}.residual.6", outputs, outputs, 3, 3, 3, gain=0.3)
        if inputs != outputs:
            yield from conv(f"{name}.shortcut", outputs, inputs, 1, 1, 1)

    def middle(name: str, channels: int) -> Iterator[Tensor]:
        yield from residual(f"{name}.0", channels, channels)
        yield Tensor(f"{name}.1.norm.gamma", (channels, 1, 1), "BF16", value=1)
        yield from conv(f"{name}.1.to_qkv", 3 * channels, channels, 1, 1)
        yield from conv(f"{name}.1.proj", channels, channels, 1, 1, gain=0.3)
        yield from residual(f"{name}.2", channels, channels)

    widths = [base * multiplier for multiplier in [1, *multipliers]]
    yield from conv("encoder.conv1", widths[0], 3, 3, 3, 3)
    index = 0
    for level, width in enumerate(widths[1:]):
        inputs = widths[level]
        for _ in range(blocks):
            yield from residual(f"encoder.downsamples.{index}", inputs, width)
            inputs, index = width, index + 1
        if level < len(multipliers) - 1:
            yield from conv(f"encoder.downsamples.{index}.resample.1", width, width, 3, 3)
            if level:
                yield from conv(f"encoder.downsamples.{index}.time_conv", width, width, 3, 1, 1)
            index += 1
    yield from middle("encoder.middle", widths[-1])
    yield Tensor("encoder.head.0.gamma", (widths[-1], 1, 1, 1), "BF16", value=1)
    yield from conv("encoder.head.2", 2 * latent, widths[-1], 3, 3, 3)
    yield from conv("conv1", 2 * latent, 2 * latent, 1, 1, 1)
    yield from conv("conv2", latent, latent, 1, 1, 1)
    widths = [base * multiplier for multiplier in [multipliers[-1], *reversed(multipliers)]]
    yield from conv("decoder.conv1", widths[0], latent, 3, 3, 3)
    yield from middle("decoder.middle", widths[0])
    index = 0
    for level, width in enumerate(widths[1:]):
        # Each upsampling but the last halves the channels.
        inputs = widths[level] // 2 if level else widths[level]
        for _ in range(blocks + 1):
            yield from residual(f"decoder.upsamples.{index}", inputs, width)
            inputs, index = width, index + 1
        if level < len(multipliers) - 1:
            yield from conv(f"decoder.upsamples.{index}.resample.1", width // 2, width, 3, 3)
            if level < 2:
                yield from conv(f"decoder.upsamples.{index}.time_conv", 2 * width, width, 3, 1, 1)
            index += 1
    yield Tensor("decoder.head.0.gamma", (widths[-1], 1, 1, 1), "BF16", value=1)
    yield from conv("decoder.head.2", 3, widths[-1], 3, 3, 3)


def sd3() -> Iterator[Tensor]:
    """An SD3-type single-file checkpoint."""
    depth = 2
    width = 64 * depth
    model = "model.diffusion_model."

    def layer(name: str, outputs: int, inputs: int, gain: float = 1.0) -> Iterator[Tensor]:
        yield from linear(f"{model}{name}", outputs, inputs, "F16", bias="F16", gain=gain)

    yield Tensor(f"{model}x_embedder.proj.weight", (width, 16, 2, 2), "F16", 0.12)
    yield Tensor(f"{model}x_embedder.proj.bias", (width,), "F16", 0.02)
    for name, inputs in (("t_embedder", 256), ("y_embedder", 2048)):
        yield from layer(f"{name}.mlp.0", width, inputs)
        yield from layer(f"{name}.mlp.2", width, width)
    yield from layer("context_embedder", width, 4096)
    for index in range(depth):
        for stream in ("context_block", "x_block"):
            block, last = f"joint_blocks.{index}.{stream}.", stream == "context_block" and index == depth - 1
            yield from layer(f"{block}attn.qkv", 3 * width, width)
            yield from layer(f"{block}adaLN_modulation.1", (2 if last else 6) * width, width, gain=0.5)
            if not last:
                yield from layer(f"{block}attn.proj", width, width)
                yield from layer(f"{block}mlp.fc1", 4 * width, width)
                yield from layer(f"{block}mlp.fc2", width, 4 * width)
    yield from layer("final_layer.linear", 64, width)
    yield from layer("final_layer.adaLN_modulation.1", 2 * width, width, gain=0.5)
    yield from _sd3_text_encoder()
    yield from _sd3_autoencoder()


def _sd3_text_encoder() -> Iterator[Tensor]:
    """CLIP-L, stored as FP8; its first layer is random."""
    root = "text_encoders.clip_l.transformer."
    text = f"{root}text_model."

    def norm(name: str) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (768,), "F8_E4M3", value=1)
        yield Tensor(f"{name}.bias", (768,), "F8_E4M3")

    yield Tensor(f"{text}embeddings.token_embedding.weight", (49408, 768), "F8_E4M3", 0.5)
    yield Tensor(f"{text}embeddings.position_embedding.weight", (77, 768), "F8_E4M3", 0.1)
    for index in range(12):
        name, empty = f"{text}encoder.layers.{index}.", index > 0
        for part in ("layer_norm1", "layer_norm2"):
            yield from norm(f"{name}{part}")
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{name}self_attn.{part}", 768, 768, "F8_E4M3", bias="F8_E4M3", empty=empty)
        yield from linear(f"{name}mlp.fc1", 3072, 768, "F8_E4M3", bias="F8_E4M3", empty=empty)
        yield from linear(f"{name}mlp.fc2", 768, 3072, "F8_E4M3", bias="F8_E4M3", empty=empty)
    yield from norm(f"{text}final_layer_norm")
    yield from linear(f"{root}text_projection", 768, 768, "F8_E4M3", bias=None)


def _sd3_autoencoder() -> Iterator[Tensor]:
    """A TAESD-type autoencoder with 16 channels."""
    root = "first_stage_model."

    def conv(name: str, outputs: int, inputs: int, bias: bool = True) -> Iterator[Tensor]:
        yield Tensor(f"{root}{name}.weight", (outputs, inputs, 3, 3), "F16", 1.2 / math.sqrt(inputs * 9))
        if bias:
            yield Tensor(f"{root}{name}.bias", (outputs,), "F16", 0.05)

    def block(name: str) -> Iterator[Tensor]:
        for part in (0, 2, 4):
            yield from conv(f"{name}.conv.{part}", 64, 64)

    yield from conv("taesd_encoder.0", 64, 3)
    yield from block("taesd_encoder.1")
    index = 2
    for _ in range(3):
        yield from conv(f"taesd_encoder.{index}", 64, 64, bias=False)
        for number in range(index + 1, index + 4):
            yield from block(f"taesd_encoder.{number}")
        index += 4
    yield from conv(f"taesd_encoder.{index}", 16, 64)
    yield from conv("taesd_decoder.1", 64, 16)
    index = 3
    for _ in range(3):
        for number in range(index, index + 3):
            yield from block(f"taesd_decoder.{number}")
        yield from conv(f"taesd_decoder.{index + 4}", 64, 64, bias=False)
        index += 5
    yield from block(f"taesd_decoder.{index}")
    yield from conv(f"taesd_decoder.{index + 1}", 3, 64)
    yield Tensor(f"{root}vae_scale", (), "F16", value=1)
    yield Tensor(f"{root}vae_shift", (), "F16")


KINDS: dict[Kind, Callable[[], Iterator[Tensor]]] = {
    "sd3": sd3,
    "qwen-diffusion": qwen_diffusion,
    "qwen-text-encoder": qwen_text_encoder,
    "qwen-vae": qwen_vae,
}


def write(kind: Kind, path: Path) -> None:
    """Write one of the files that the head of this module lists."""
    write_tensors(KINDS[kind](), path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    write(options.kind, options.path)
    status = options.path.stat()
    print(f"{options.path}: {status.st_size / 1e6:.0f} MB, {status.st_blocks * 512 / 1e6:.0f} MB on disk")


if __name__ == "__main__":
    main()
