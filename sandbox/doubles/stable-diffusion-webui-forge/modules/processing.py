"""TEST DOUBLE, never deploy: a request becomes pictures, their description, and files."""

from __future__ import annotations

import json
import math
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

from modules import sd_models, sd_samplers, shared
from modules.pictures import smooth_field
from modules_forge import forge_version
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SECONDS_PER_STEP = 0.02  # slow enough to show progress and to be interrupted, fast enough for tests


@dataclass
class Job:
    """What txt2img and img2img have in common; `init_images` is empty for the first."""

    kind: str
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    sampler_name: str | None = None
    scheduler: str | None = None
    batch_size: int = 1
    n_iter: int = 1
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool = True
    denoising_strength: float = 0.75
    init_images: list[Image.Image] = field(default_factory=list)
    save: bool = False


@dataclass
class Processed:
    images: list[Image.Image]
    info: dict[str, Any]

    def js(self) -> str:
        return json.dumps(self.info)


def process_images(job: Job) -> Processed:
    """Makes the pictures; ValueError, KeyError or URLError as the real one raises them."""
    settings = dict(job.override_settings or {})
    for name in settings:
        shared.opts.defaults[name]
    loaded = sd_models.load(settings.get("sd_model_checkpoint"))
    if settings and not job.override_settings_restore_afterwards:
        shared.opts.set({**settings, "sd_model_checkpoint": loaded.checkpoint.title})
    sampler, scheduler = sd_samplers.choose(job.sampler_name, job.scheduler)
    seed = random.randrange(2**32) if job.seed in (-1, None) else job.seed
    count = job.batch_size * job.n_iter
    shared.state.begin(f"scripts_{job.kind}", job.n_iter, job.steps)
    try:
        pictures = [paint(job, loaded, sampler, scheduler, seed + index) for index in range(count)]
        sd_models.need_preview_decoder(loaded)
    finally:
        shared.state.end()
    texts = [infotext(job, loaded, sampler, scheduler, seed + index) for index in range(count)]
    for picture, text in zip(pictures, texts, strict=True):
        picture.info["parameters"] = text
    if job.save:
        save(pictures, shared.opts.data[f"outdir_{job.kind}_samples"], seed)
    if count > 1 and shared.opts.data["return_grid"]:
        pictures.insert(0, grid(pictures))
        texts.insert(0, texts[0])
        pictures[0].info["parameters"] = texts[0]
        if job.save:
            save(pictures[:1], shared.opts.data[f"outdir_{job.kind}_grids"], None)
    info = {
        "prompt": job.prompt,
        "all_prompts": [job.prompt] * count,
        "negative_prompt": job.negative_prompt,
        "seed": seed,
        "all_seeds": [seed + index for index in range(count)],
        "width": job.width,
        "height": job.height,
        "sampler_name": sampler,
        "cfg_scale": job.cfg_scale,
        "steps": job.steps,
        "batch_size": job.batch_size,
        "sd_model_name": loaded.checkpoint.model_name,
        "sd_model_hash": loaded.checkpoint.hash,
        "index_of_first_image": len(pictures) - count,
        "infotexts": texts,
        "job_timestamp": shared.state.job_timestamp,
        "version": forge_version.tag,
    }
    return Processed(pictures, info)


def paint(job: Job, loaded: sd_models.Loaded, sampler: str, scheduler: str, seed: int) -> Image.Image:
    for step in range(job.steps):
        if shared.state.interrupted:
            break
        shared.state.sampling_step = step + 1
        time.sleep(SECONDS_PER_STEP)
    recipe = (loaded.checkpoint.sha256, job.prompt, job.negative_prompt, seed, job.steps, job.cfg_scale)
    picture = smooth_field((job.width, job.height), *recipe, sampler, scheduler)
    if job.init_images:
        before = job.init_images[0].convert("RGB").resize(picture.size)
        picture = Image.blend(before, picture, job.denoising_strength)
    shared.state.job_no += 1
    return picture


def infotext(job: Job, loaded: sd_models.Loaded, sampler: str, scheduler: str, seed: int) -> str:
    facts = {
        "Steps": job.steps,
        "Sampler": sampler,
        "Schedule type": scheduler,
        "CFG scale": job.cfg_scale,
        "Seed": seed,
        "Size": f"{job.width}x{job.height}",
        "Model hash": loaded.checkpoint.hash,
        "Model": loaded.checkpoint.model_name,
        **({"Denoising strength": job.denoising_strength} if job.init_images else {}),
        "Version": forge_version.tag,
    }
    negative = f"Negative prompt: {job.negative_prompt}\n" if job.negative_prompt else ""
    return f"{job.prompt}\n{negative}" + ", ".join(f"{name}: {value}" for name, value in facts.items())


def grid(pictures: list[Image.Image]) -> Image.Image:
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * columns, height * math.ceil(len(pictures) / columns)))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet


def png_info(picture: Image.Image) -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", picture.info["parameters"])
    return info


def save(pictures: list[Image.Image], folder: str, seed: int | None) -> list[str]:
    """Writes `<folder>/<date>/<number>-<seed>.png`, or `grid-<number>.png` without a seed; returns the paths."""
    folder = os.path.join(folder, time.strftime("%Y-%m-%d"))
    os.makedirs(folder, exist_ok=True)
    first = len(os.listdir(folder))
    paths = []
    for index, picture in enumerate(pictures):
        name = f"grid-{first:04}.png" if seed is None else f"{first + index:05}-{seed + index}.png"
        paths.append(os.path.join(folder, name))
        picture.save(paths[-1], pnginfo=png_info(picture))
    return paths
