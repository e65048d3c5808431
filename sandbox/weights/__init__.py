"""Random-weight files that the real, unmodified applications load and sample on a CPU. For the sandbox only.

`forge.py` writes SD1.5- and SDXL-shaped checkpoints (ComfyUI takes the SDXL-shaped one too), `comfyui.py` an SD3-shaped
checkpoint and the three files of Qwen-Image-Edit. Most of each file is holes: its apparent size is what the application
wants, its size on disk what is really random.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from sandbox.weights import comfyui, forge

STORE: dict[str, Callable[[Path], None]] = {
    "checkpoints/sd_xl_turbo_1.0_fp16.safetensors": partial(forge.write, "sdxl", sparse=True),
    "diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors": partial(comfyui.write, "qwen-diffusion"),
    "text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors": partial(comfyui.write, "qwen-text-encoder"),
    "vae/qwen_image_vae.safetensors": partial(comfyui.write, "qwen-vae"),
}
"""What writes each file, by its path in the store; the names are those of the real weights, so the same workflows run."""


def write_store(root: Path, names: Collection[str] = tuple(STORE)) -> Iterator[Path]:
    """Write those files that are missing (3 s, 1.6 GB on disk for all); each appears whole or not at all."""
    for name in names:
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            STORE[name](part)
            part.rename(path)
        yield path
