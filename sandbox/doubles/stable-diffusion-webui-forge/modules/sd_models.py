"""TEST DOUBLE, never deploy: which checkpoints there are, and which one is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import urllib.error
from dataclasses import dataclass

from huggingface_guess import guess
from modules import shared
from modules.paths_internal import models_path, script_path
from modules.shared_cmd_options import cmd_opts

FOLDER = cmd_opts.ckpt_dir or os.path.join(models_path, "Stable-diffusion")
MAX_HEADER_BYTES = 100_000_000


@dataclass
class Checkpoint:
    filename: str
    sha256: str | None = None

    @property
    def title(self) -> str:
        return os.path.relpath(self.filename, FOLDER)

    @property
    def model_name(self) -> str:
        return os.path.splitext(self.title)[0]

    @property
    def hash(self) -> str | None:
        return self.sha256[:10] if self.sha256 else None


@dataclass(frozen=True)
class Loaded:
    checkpoint: Checkpoint
    kind: str


checkpoints: dict[str, Checkpoint] = {}
_loaded: Loaded | None = None


def list_models() -> None:
    """Reads the folder anew; the first checkpoint is chosen when none was."""
    found = []
    for parent, _, names in os.walk(FOLDER, followlinks=True):
        found += [os.path.join(parent, name) for name in names if name.endswith((".safetensors", ".ckpt"))]
    known = {checkpoint.filename: checkpoint for checkpoint in checkpoints.values()}
    checkpoints.clear()
    for filename in sorted(found):
        checkpoint = known.get(filename) or Checkpoint(filename)
        checkpoints[checkpoint.title] = checkpoint
    if shared.opts.data["sd_model_checkpoint"] is None and checkpoints:
        shared.opts.data["sd_model_checkpoint"] = next(iter(checkpoints))


def find(name: str | None) -> Checkpoint | None:
    """A checkpoint by its file name, with or without extension, or by its hash."""
    for checkpoint in checkpoints.values():
        if name and name in (checkpoint.title, checkpoint.model_name, checkpoint.filename, checkpoint.hash):
            return checkpoint
    return None


def tensor_names(path: str) -> list[str]:
    """The names in a safetensors header; none for any other file."""
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER_BYTES
        if length >= MAX_HEADER_BYTES:
            return []
        try:
            return list(json.loads(file.read(length)))
        except ValueError:
            return []


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def load(name: str | None) -> Loaded:
    """The model to generate with. WEAKNESS: an unknown name silently means the one that is chosen in the settings."""
    global _loaded
    checkpoint = find(name) or find(shared.opts.data["sd_model_checkpoint"]) or next(iter(checkpoints.values()), None)
    if checkpoint is None:
        raise ValueError("You do not have any model! Please download at least one model in [models/Stable-diffusion].")
    if _loaded is None or _loaded.checkpoint is not checkpoint:
        kind = guess(tensor_names(checkpoint.filename))
        if kind is None:
            raise ValueError("Failed to recognize model type!")
        checkpoint.sha256 = sha256(checkpoint.filename)
        print(f"Model loaded: {checkpoint.title}", flush=True)
        _loaded = Loaded(checkpoint, kind)
    return _loaded


def unload() -> None:
    global _loaded
    _loaded = None


def need_preview_decoder(loaded: Loaded) -> None:
    """WEAKNESS: previews of SDXL want a file that is fetched at the first generation, which fails offline."""
    name = os.path.join("VAE-approx", "vaeapprox-sdxl.pt")
    places = (os.path.join(models_path, name), os.path.join(script_path, "models", name))
    wanted = shared.opts.data["live_previews_enable"] and shared.opts.data["show_progress_type"] == "Approx NN"
    if loaded.kind == "sdxl" and wanted and not any(map(os.path.exists, places)):
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))
