"""What sandboxes share with this computer: synthetic weights, and built images so that a second sandbox builds nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import yaml

from sandbox import machine, weights
from sandbox.doubles import weights as double_weights

REPOSITORY = "atelier/synthetic"
"""Where the lock of synthetic weights says that they come from: no hub has it."""
GUEST_FOLDER = "/var/cache/atelier"
SET, QWEN_SET = "synthetic", "synthetic-qwen"
DOUBLE_WEIGHTS = {
    "checkpoints/sd_xl_turbo_1.0_fp16.safetensors": "sdxl-checkpoint",
    "diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors": "qwen-diffusion",
    "text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors": "qwen-text-encoder",
    "vae/qwen_image_vae.safetensors": "vae",
}
"""The names of the real weights, so that the same workflows run."""
QWEN = {name for name in DOUBLE_WEIGHTS if not name.startswith("checkpoints/")}
"""For the real applications these are in a set of their own: 9 GB (1.3 GB on disk) that want 16 GB of memory."""


def folder() -> Path:
    """The folder on this computer that every guest sees as `/var/cache/atelier`."""
    return machine.folder() / "shared"


def binds() -> list[machine.Bind]:
    """The mounts that a sandbox is booted with."""
    (folder() / "images").mkdir(parents=True, exist_ok=True)
    (folder() / "weights").mkdir(parents=True, exist_ok=True)
    return [(str(folder()), GUEST_FOLDER, False)]


def mirror(mode: str) -> str:
    """The URL by which a guest fetches the synthetic weights of a mode (`double`, `upstream`)."""
    return f"file://{GUEST_FOLDER}/weights/{mode}"


def default_sets(mode: str) -> list[str]:
    """The sets that a sandbox has where nobody says otherwise."""
    return [SET, QWEN_SET] if mode == "double" else [SET]


def write_weights(mode: str, sets: Collection[str]) -> Path:
    """Have synthetic weights for doubles or for the real applications, and the lock file that names them; returns the lock.

    sets: those of the real applications' that are written where they are missing.
    """
    root = folder() / "weights" / mode
    if mode == "double":
        for name, kind in DOUBLE_WEIGHTS.items():
            double_weights.write(root / name, kind)
    else:
        list(weights.write_store(root, [name for name in weights.STORE if _set_of(name) in sets]))
    lock = root / "models.yml"
    if not _is_newest(lock):
        files = [_entry(root, path) for path in sorted(root.glob("*/*.safetensors"))]
        part = lock.with_suffix(f".{os.getpid()}.part")
        part.write_text(yaml.safe_dump({"files": files}, sort_keys=False), encoding="utf-8")
        part.rename(lock)
    return lock


def _is_newest(lock: Path) -> bool:
    """Whether nothing was written, added or removed since the lock was: gigabytes are not hashed at every verify."""
    weights = [*lock.parent.glob("*/"), *lock.parent.glob("*/*.safetensors")]
    made_from = [Path(__file__), *(path for path in weights if path != lock)]
    return lock.exists() and all(path.stat().st_mtime_ns < lock.stat().st_mtime_ns for path in made_from)


def _set_of(name: str) -> str:
    return QWEN_SET if name in QWEN else SET


def _entry(root: Path, path: Path) -> dict[str, object]:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return {
        "repository": REPOSITORY,
        "revision": "main",
        "path": path.name,
        "bytes": path.stat().st_size,
        "sha256": digest.hexdigest(),
        "directory": path.parent.name,
        "sets": [_set_of(f"{path.parent.name}/{path.name}")],
        "used_by": [],
        "licence": "none: random numbers",
    }
