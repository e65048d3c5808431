"""A random-weight, single-file checkpoint that Forge recognises as SD1.5 or SDXL. Standard library only.

Forge takes the UNet's depth and width multipliers from the file, but has fixed
  * the UNet's base width (320), its context widths (768; 2048 + 2816) and for SDXL the depths [0, 0, 2, 2, 10, 10];
  * the VAE and the CLIP text encoders.
So only the UNet shrinks. `--sparse` leaves the text encoders' matrices and the VAE's encoder as holes.

    python -m sandbox.weights.forge sdxl OUT.safetensors [--sparse] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Fill = Literal["random", "one", "zero"]

BLOCK = 1 << 16
"""Values in one block of random numbers, which is written again and again."""


@dataclass(frozen=True)
class Tensor:
    """One tensor to write, in F16. Random values have the deviation 1 / sqrt(inputs); zeros are holes."""

    name: str
    shape: tuple[int, ...]
    fill: Fill
    inputs: int = 1

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * 2


class Checkpoint:
    """The tensors of a file, and the layers that they are made of."""

    def __init__(self, seed: int) -> None:
        self.tensors: list[Tensor] = []
        self._random = random.Random(seed)  # noqa: S311 - weights, not secrets
        self._blocks: dict[float, bytes] = {}

    def add(self, name: str, shape: tuple[int, ...], fill: Fill = "random", inputs: int = 1) -> None:
        """One tensor."""
        self.tensors.append(Tensor(name, shape, fill, inputs))

    def linear(self, name: str, outputs: int, inputs: int, bias: bool = True, fill: Fill = "random") -> None:
        """A fully connected layer."""
        self.add(f"{name}.weight", (outputs, inputs), fill, inputs)
        if bias:
            self.add(f"{name}.bias", (outputs,), "zero")

    def conv(self, name: str, outputs: int, inputs: int, kernel: int, fill: Fill = "random") -> None:
        """A convolution."""
        self.add(f"{name}.weight", (outputs, inputs, kernel, kernel), fill, inputs * kernel * kernel)
        self.add(f"{name}.bias", (outputs,), "zero")

    def norm(self, name: str, channels: int) -> None:
        """A normalisation."""
        self.add(f"{name}.weight", (channels,), "one")
        self.add(f"{name}.bias", (channels,), "zero")

    def write(self, path: Path) -> None:
        """Write the file as safetensors."""
        header: dict[str, object] = {"__metadata__": {"format": "pt", "note": "synthetic random weights"}}
        offset = 0
        for tensor in self.tensors:
            offsets = [offset, offset + tensor.size]
            header[tensor.name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": offsets}
            offset += tensor.size
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        ones = struct.pack("<e", 1.0) * BLOCK
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            for tensor in self.tensors:
                left = tensor.size
                if tensor.fill == "zero":
                    file.seek(left, os.SEEK_CUR)
                    continue
                block = ones if tensor.fill == "one" else self._block(1 / math.sqrt(tensor.inputs))
                while left:
                    left -= file.write(block[:left])
            file.truncate(8 + len(head) + offset)

    def _block(self, deviation: float) -> bytes:
        key = round(deviation, 6)
        if key not in self._blocks:
            values = (self._random.gauss(0, deviation) for _ in range(BLOCK))
            self._blocks[key] = struct.pack(f"<{BLOCK}e", *values)
        return self._blocks[key]


def unet(file: Checkpoint, prefix: str, xl: bool) -> None:
    """The diffusion model, as narrow and shallow as Forge allows."""
    width, context = 320, (2048 if xl else 768)
    embedding = width * 4
    multipliers = [1, 1, 1] if xl else [1, 1]
    blocks = [2, 2, 2] if xl else [1, 1]
    depths = [0, 0, 2, 2, 10, 10] if xl else [1, 0]

    def residual(name: str, inputs: int, outputs: int) -> None:
        file.norm(f"{name}.in_layers.0", inputs)
        file.conv(f"{name}.in_layers.2", outputs, inputs, 3)
        file.linear(f"{name}.emb_layers.1", outputs, embedding)
        file.norm(f"{name}.out_layers.0", outputs)
        file.conv(f"{name}.out_layers.3", outputs, outputs, 3)
        if inputs != outputs:
            file.conv(f"{name}.skip_connection", outputs, inputs, 1)

    def projection(name: str, channels: int) -> None:
        if xl:
            file.linear(name, channels, channels)
        else:
            file.conv(name, channels, channels, 1)

    def transformer(name: str, channels: int, depth: int) -> None:
        file.norm(f"{name}.norm", channels)
        projection(f"{name}.proj_in", channels)
        for index in range(depth):
            block = f"{name}.transformer_blocks.{index}"
            for attention, keys in (("attn1", channels), ("attn2", context)):
                file.linear(f"{block}.{attention}.to_q", channels, channels, bias=False)
                file.linear(f"{block}.{attention}.to_k", channels, keys, bias=False)
                file.linear(f"{block}.{attention}.to_v", channels, keys, bias=False)
                file.linear(f"{block}.{attention}.to_out.0", channels, channels)
            file.linear(f"{block}.ff.net.0.proj", channels * 8, channels)
            file.linear(f"{block}.ff.net.2", channels, channels * 4)
            for number in (1, 2, 3):
                file.norm(f"{block}.norm{number}", channels)
        projection(f"{name}.proj_out", channels)

    file.linear(f"{prefix}time_embed.0", embedding, width)
    file.linear(f"{prefix}time_embed.2", embedding, embedding)
    if xl:
        file.linear(f"{prefix}label_emb.0.0", embedding, 2816)
        file.linear(f"{prefix}label_emb.0.2", embedding, embedding)
    file.conv(f"{prefix}input_blocks.0.0", width, 4, 3)
    channels, skips, index = width, [width], 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks[level]):
            residual(f"{prefix}input_blocks.{index}.0", channels, multiplier * width)
            channels = multiplier * width
            if depth := depths.pop(0):
                transformer(f"{prefix}input_blocks.{index}.1", channels, depth)
            skips.append(channels)
            index += 1
        if level < len(multipliers) - 1:
            file.conv(f"{prefix}input_blocks.{index}.0.op", channels, channels, 3)
            skips.append(channels)
            index += 1
    residual(f"{prefix}middle_block.0", channels, channels)
    transformer(f"{prefix}middle_block.1", channels, 1)
    residual(f"{prefix}middle_block.2", channels, channels)
    index = 0
    for level in reversed(range(len(multipliers))):
        for number in range(blocks[level] + 1):
            residual(f"{prefix}output_blocks.{index}.0", channels + skips.pop(), width * multipliers[level])
            channels = width * multipliers[level]
            if level and number == blocks[level]:
                file.conv(f"{prefix}output_blocks.{index}.1.conv", channels, channels, 3)
            index += 1
    file.norm(f"{prefix}out.0", channels)
    file.conv(f"{prefix}out.2", 4, channels, 3)


def vae(file: Checkpoint, prefix: str, encoder_fill: Fill) -> None:
    """The autoencoder, in its full size."""

    def residual(name: str, inputs: int, outputs: int, fill: Fill) -> None:
        file.norm(f"{name}.norm1", inputs)
        file.conv(f"{name}.conv1", outputs, inputs, 3, fill)
        file.norm(f"{name}.norm2", outputs)
        file.conv(f"{name}.conv2", outputs, outputs, 3, fill)
        if inputs != outputs:
            file.conv(f"{name}.nin_shortcut", outputs, inputs, 1, fill)

    def middle(name: str, channels: int, fill: Fill) -> None:
        residual(f"{name}.mid.block_1", channels, channels, fill)
        file.norm(f"{name}.mid.attn_1.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            file.conv(f"{name}.mid.attn_1.{part}", channels, channels, 1, fill)
        residual(f"{name}.mid.block_2", channels, channels, fill)

    widths = [128, 256, 512, 512]
    encoder, decoder = f"{prefix}encoder", f"{prefix}decoder"
    file.conv(f"{encoder}.conv_in", 128, 3, 3, encoder_fill)
    channels = 128
    for level, width in enumerate(widths):
        for block in range(2):
            residual(f"{encoder}.down.{level}.block.{block}", channels, width, encoder_fill)
            channels = width
        if level < 3:
            file.conv(f"{encoder}.down.{level}.downsample.conv", channels, channels, 3, encoder_fill)
    middle(encoder, channels, encoder_fill)
    file.norm(f"{encoder}.norm_out", channels)
    file.conv(f"{encoder}.conv_out", 8, channels, 3, encoder_fill)
    channels = 512
    file.conv(f"{decoder}.conv_in", channels, 4, 3)
    middle(decoder, channels, "random")
    for level in reversed(range(4)):
        for block in range(3):
            residual(f"{decoder}.up.{level}.block.{block}", channels, widths[level], "random")
            channels = widths[level]
        if level:
            file.conv(f"{decoder}.up.{level}.upsample.conv", channels, channels, 3)
    file.norm(f"{decoder}.norm_out", channels)
    file.conv(f"{decoder}.conv_out", 3, channels, 3)
    file.conv(f"{prefix}quant_conv", 8, 8, 1)
    file.conv(f"{prefix}post_quant_conv", 4, 4, 1)


# The position embeddings are random even where everything else is a hole: an encoder that answers with nothing but zeros
# makes Forge divide by zero when it weighs the prompt, and the image is black.


def clip_l(file: Checkpoint, prefix: str, fill: Fill) -> None:
    """The text encoder that both families have."""
    text = f"{prefix}transformer.text_model."
    file.add(f"{text}embeddings.token_embedding.weight", (49408, 768), fill, 768)
    file.add(f"{text}embeddings.position_embedding.weight", (77, 768), "random", 768)
    for index in range(12):
        layer = f"{text}encoder.layers.{index}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            file.linear(f"{layer}self_attn.{part}", 768, 768, fill=fill)
        file.norm(f"{layer}layer_norm1", 768)
        file.norm(f"{layer}layer_norm2", 768)
        file.linear(f"{layer}mlp.fc1", 3072, 768, fill=fill)
        file.linear(f"{layer}mlp.fc2", 768, 3072, fill=fill)
    file.norm(f"{text}final_layer_norm", 768)


def clip_g(file: Checkpoint, prefix: str, fill: Fill) -> None:
    """SDXL's second text encoder, in the layout of open_clip as in single-file checkpoints."""
    width = 1280
    file.add(f"{prefix}token_embedding.weight", (49408, width), fill, width)
    file.add(f"{prefix}positional_embedding", (77, width), "random", width)
    file.add(f"{prefix}text_projection", (width, width), fill, width)
    for index in range(32):
        block = f"{prefix}transformer.resblocks.{index}."
        file.norm(f"{block}ln_1", width)
        file.norm(f"{block}ln_2", width)
        file.add(f"{block}attn.in_proj_weight", (3 * width, width), fill, width)
        file.add(f"{block}attn.in_proj_bias", (3 * width,), "zero")
        file.linear(f"{block}attn.out_proj", width, width, fill=fill)
        file.linear(f"{block}mlp.c_fc", 4 * width, width, fill=fill)
        file.linear(f"{block}mlp.c_proj", width, 4 * width, fill=fill)
    file.norm(f"{prefix}ln_final", width)


def write(family: Literal["sd15", "sdxl"], path: Path, *, sparse: bool, seed: int = 1) -> None:
    """Write a checkpoint: 477 MB (162 MB on disk when sparse) for SD1.5, 2082 MB (379 MB) for SDXL."""
    file, xl = Checkpoint(seed), family == "sdxl"
    fill: Fill = "zero" if sparse else "random"
    unet(file, "model.diffusion_model.", xl)
    vae(file, "first_stage_model.", fill)
    if xl:
        clip_l(file, "conditioner.embedders.0.", fill)
        clip_g(file, "conditioner.embedders.1.model.", fill)
    else:
        clip_l(file, "cond_stage_model.", fill)
    file.write(path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["sd15", "sdxl"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    write(options.family, options.path, sparse=options.sparse, seed=options.seed)
    status = options.path.stat()
    sizes = f"{status.st_size / 1e6:.0f} MB, {status.st_blocks * 512 / 1e6:.0f} MB on disk"
    print(f"{options.path}: {sizes}, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
