"""TEST DOUBLE, never deploy: the nodes that Atelier's workflows use, and ComfyUI's loader of custom nodes.

Names, inputs, defaults and limits are the real ones, so a workflow that validates here validates there. What flows
along the links is a description instead of a tensor; the samplers turn it into a picture.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import sys
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any

import folder_paths
from comfy import model_management, weights
from comfy.cli_args import args
from comfy.pictures import smooth_field
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

MAX_RESOLUTION = 16384
MAX_SEED = 0xFFFFFFFFFFFFFFFF
SECONDS_PER_STEP = 0.02  # slow enough to be interrupted and to show progress, fast enough for tests
SAMPLERS = [
    "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral", "dpmpp_sde",
    "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "ddpm", "lcm", "res_multistep", "er_sde", "ddim", "uni_pc",
]  # fmt: skip
SCHEDULERS = ["simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic"]
CLIP_TYPES = ["stable_diffusion", "stable_cascade", "sd3", "lumina2", "wan", "omnigen2", "qwen_image", "flux2"]

Types = dict[str, dict[str, tuple[Any, ...]]]
interrupt_processing = model_management.interrupt_current_processing


@dataclass(frozen=True)
class Weights:
    """A loaded MODEL, CLIP or VAE: the file it came from and the patches applied since."""

    source: str
    patches: tuple[object, ...] = ()


@dataclass(frozen=True)
class Conditioning:
    text: str
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Latent:
    """`pixels` is empty for an empty latent, and otherwise the batch that was encoded or sampled."""

    width: int
    height: int
    batch: int = 1
    pixels: tuple[Image.Image, ...] = ()


def load(folder: str, name: str) -> tuple[str, dict[str, Any]]:
    path = folder_paths.get_full_path_or_raise(folder, name)
    return path, weights.read_header(path)


def could_not_detect(path: str) -> RuntimeError:
    return RuntimeError(f"ERROR: Could not detect model type of: {path}")


def announce_model(header: dict[str, Any], weight_dtype: str = "default") -> None:
    """The log lines in which the real one says what it loaded; on a CPU only a wish for fp8 keeps fp8."""
    fp8 = {"fp8_e4m3fn": "float8_e4m3fn", "fp8_e4m3fn_fast": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
    dtype = fp8.get(weight_dtype, "float32")
    cast = "None" if dtype == "float32" else "torch.float32"
    logging.info("model weight dtype torch.%s, manual cast: %s", dtype, cast)
    weights.log_missing(header)


def sample(node_id: str, progress: Any, steps: int, latent: Latent, denoise: float, *made_from: object) -> Latent:
    """Steps through `steps`, reporting and yielding to interruption, and paints one picture for each of the batch."""
    for step in range(1, steps + 1):
        model_management.throw_exception_if_processing_interrupted()
        time.sleep(SECONDS_PER_STEP)
        progress(node_id, step, steps)
    size = (latent.width, latent.height)
    pictures = tuple(smooth_field(size, index, *made_from) for index in range(latent.batch))
    if latent.pixels:
        # An edit keeps the composition of what it edits, even at full denoise (the reference image is in the prompt).
        share = 0.25 + 0.5 * denoise
        pictures = tuple(
            Image.blend(before, after, share) for before, after in zip(latent.pixels, pictures, strict=True)
        )
    return replace(latent, pixels=pictures)


class CheckpointLoaderSimple:
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load_checkpoint"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {"required": {"ckpt_name": (folder_paths.get_filename_list("checkpoints"), {})}}

    def load_checkpoint(self, ckpt_name: str) -> tuple[Weights | None, ...]:
        path, header = load("checkpoints", ckpt_name)
        if not any(name.startswith("model.diffusion_model.") for name in header):
            if not any("blocks." in name for name in header):
                raise could_not_detect(path)
            logging.warning("Warning, This is not a checkpoint file, trying to load it as a diffusion model only.")
        announce_model(header)
        parts = {"CLIP": ("text_encoders.", "conditioner.", "cond_stage_model."), "VAE": ("first_stage_model.", "vae.")}
        found = {kind: any(name.startswith(prefixes) for name in header) for kind, prefixes in parts.items()}
        return Weights(path), Weights(path) if found["CLIP"] else None, Weights(path) if found["VAE"] else None


class UNETLoader:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {
            "required": {
                "unet_name": (folder_paths.get_filename_list("diffusion_models"),),
                "weight_dtype": (["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"], {"advanced": True}),
            }
        }

    def load_unet(self, unet_name: str, weight_dtype: str) -> tuple[Weights]:
        path, header = load("diffusion_models", unet_name)
        if not any("blocks." in name for name in header):
            logging.error("ERROR UNSUPPORTED DIFFUSION MODEL %s", path)
            raise could_not_detect(path)
        announce_model(header, weight_dtype)
        return (Weights(path, (weight_dtype,)),)


class CLIPLoader:
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {
            "required": {"clip_name": (folder_paths.get_filename_list("text_encoders"),), "type": (CLIP_TYPES,)},
            "optional": {"device": (["default", "cpu"], {"advanced": True})},
        }

    def load_clip(self, clip_name: str, type: str = "stable_diffusion", device: str = "default") -> tuple[Weights]:
        path, _ = load("text_encoders", clip_name)
        logging.info(
            "CLIP/text encoder model load device: cpu, offload device: cpu, current: cpu, dtype: torch.float16"
        )
        return (Weights(path, (type,)),)


class VAELoader:
    RETURN_TYPES = ("VAE",)
    FUNCTION = "load_vae"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {"required": {"vae_name": ([*folder_paths.get_filename_list("vae"), "pixel_space"],)}}

    def load_vae(self, vae_name: str) -> tuple[Weights]:
        if vae_name == "pixel_space":
            return (Weights(vae_name),)
        path, _ = load("vae", vae_name)
        logging.info("VAE load device: cpu, offload device: cpu, dtype: torch.float32")
        return (Weights(path),)


class LoraLoaderModelOnly:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_lora_model_only"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {
            "required": {
                "model": ("MODEL",),
                "lora_name": (folder_paths.get_filename_list("loras"),),
                "strength_model": ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}),
            }
        }

    def load_lora_model_only(self, model: Weights, lora_name: str, strength_model: float) -> tuple[Weights]:
        path, _ = load("loras", lora_name)
        return (replace(model, patches=(*model.patches, path, strength_model)),)


class ModelSamplingAuraFlow:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model/patch"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        shift = ("FLOAT", {"default": 1.73, "min": 0.0, "max": 100.0, "step": 0.01})
        return {"required": {"model": ("MODEL",), "shift": shift}}

    def patch(self, model: Weights, shift: float) -> tuple[Weights]:
        return (replace(model, patches=(*model.patches, "shift", shift)),)


class CFGNorm:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "advanced/guidance"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {
            "required": {
                "model": ("MODEL",),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.01}),
            },
            "optional": {"pre_cfg": ("BOOLEAN", {"default": False})},
        }

    def patch(self, model: Weights, strength: float, pre_cfg: bool = False) -> tuple[Weights]:
        return (replace(model, patches=(*model.patches, "cfg_norm", strength, pre_cfg)),)


class CLIPTextEncode:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {"required": {"text": ("STRING", {"multiline": True, "dynamicPrompts": True}), "clip": ("CLIP", {})}}

    def encode(self, clip: Weights | None, text: str) -> tuple[Conditioning]:
        if clip is None:
            raise RuntimeError(
                "ERROR: clip input is invalid: None\n\nIf the clip is from a checkpoint loader node your checkpoint "
                "does not contain a valid clip or text encoder model."
            )
        return (Conditioning(text),)


class TextEncodeQwenImageEditPlus:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning/qwen image"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {
            "required": {"clip": ("CLIP",), "prompt": ("STRING", {"multiline": True, "dynamicPrompts": True})},
            "optional": {"vae": ("VAE",), "image1": ("IMAGE",), "image2": ("IMAGE",), "image3": ("IMAGE",)},
        }

    def encode(self, clip: Weights, prompt: str, vae: Weights | None = None, **images: Any) -> tuple[Conditioning]:
        return (Conditioning(prompt, tuple(images[name][0] for name in sorted(images))),)


class ConditioningZeroOut:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "zero_out"
    CATEGORY = "model/conditioning"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def zero_out(self, conditioning: Conditioning) -> tuple[Conditioning]:
        return (Conditioning(""),)


class EmptyLatentImage:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "generate"
    CATEGORY = "model/latent"
    DEFAULT, STEP = 512, 8

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        side = ("INT", {"default": cls.DEFAULT, "min": 16, "max": MAX_RESOLUTION, "step": cls.STEP})
        batch = ("INT", {"default": 1, "min": 1, "max": 4096})
        return {"required": {"width": side, "height": side, "batch_size": batch}}

    def generate(self, width: int, height: int, batch_size: int = 1) -> tuple[Latent]:
        return (Latent(width // 8 * 8, height // 8 * 8, batch_size),)


class EmptySD3LatentImage(EmptyLatentImage):
    CATEGORY = "model/latent/stable diffusion"
    DEFAULT, STEP = 1024, 16


class VAEEncode:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def encode(self, pixels: tuple[Image.Image, ...], vae: Weights) -> tuple[Latent]:
        width, height = (side // 8 * 8 for side in pixels[0].size)
        return (
            Latent(width, height, len(pixels), tuple(ImageOps.fit(picture, (width, height)) for picture in pixels)),
        )


class VAEDecode:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {"required": {"samples": ("LATENT", {}), "vae": ("VAE", {})}}

    def decode(self, samples: Latent, vae: Weights | None) -> tuple[tuple[Image.Image, ...]]:
        if vae is None:
            raise RuntimeError("ERROR: VAE is invalid: None\n\nIf the VAE is from a checkpoint loader node your "
                               "checkpoint does not contain a valid VAE.")  # fmt: skip
        return (samples.pixels or (Image.new("RGB", (samples.width, samples.height), 0x808080),) * samples.batch,)


class KSampler:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    CATEGORY = "model/sampling"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {
            "required": {
                "model": ("MODEL", {}),
                "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
                "sampler_name": (SAMPLERS, {}),
                "scheduler": (SCHEDULERS, {}),
                "positive": ("CONDITIONING", {}),
                "negative": ("CONDITIONING", {}),
                "latent_image": ("LATENT", {}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            },
            "hidden": {"unique_id": "UNIQUE_ID", "progress": "PROGRESS"},
        }

    def sample(
        self,
        model: Weights,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        denoise: float,
        unique_id: str,
        progress: Any,
    ) -> tuple[Latent]:
        recipe = (model.source, model.patches, seed, steps, cfg, sampler_name, scheduler, positive.text, negative.text)
        return (sample(unique_id, progress, steps, latent_image, denoise, *recipe),)


class KSamplerSelect:
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "model/sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {"required": {"sampler_name": (SAMPLERS,)}}

    def get_sampler(self, sampler_name: str) -> tuple[str]:
        return (sampler_name,)


class SDTurboScheduler:
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = "model/sampling/schedulers"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {
            "required": {
                "model": ("MODEL",),
                "steps": ("INT", {"default": 1, "min": 1, "max": 10}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0, "max": 1.0, "step": 0.01}),
            }
        }

    def get_sigmas(self, model: Weights, steps: int, denoise: float) -> tuple[tuple[int, float]]:
        return ((steps, denoise),)


class SamplerCustom:
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("output", "denoised_output")
    FUNCTION = "sample"
    CATEGORY = "model/sampling/custom"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {
            "required": {
                "model": ("MODEL",),
                "add_noise": ("BOOLEAN", {"default": True, "advanced": True}),
                "noise_seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}),
                "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "sampler": ("SAMPLER",),
                "sigmas": ("SIGMAS",),
                "latent_image": ("LATENT",),
            },
            "hidden": {"unique_id": "UNIQUE_ID", "progress": "PROGRESS"},
        }

    def sample(
        self,
        model: Weights,
        add_noise: bool,
        noise_seed: int,
        cfg: float,
        positive: Conditioning,
        negative: Conditioning,
        sampler: str,
        sigmas: tuple[int, float],
        latent_image: Latent,
        unique_id: str,
        progress: Any,
    ) -> tuple[Latent, Latent]:
        steps, denoise = sigmas
        recipe = (model.source, model.patches, noise_seed, steps, cfg, sampler, positive.text, negative.text)
        result = sample(unique_id, progress, steps, latent_image, denoise, *recipe)
        return result, result


class EmptyImage:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "generate"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        side = ("INT", {"default": 512, "min": 1, "max": MAX_RESOLUTION, "step": 1})
        color = ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"})
        batch = ("INT", {"default": 1, "min": 1, "max": 4096})
        return {"required": {"width": side, "height": side, "batch_size": batch, "color": color}}

    def generate(self, width: int, height: int, batch_size: int, color: int) -> tuple[tuple[Image.Image, ...]]:
        rgb = (color >> 16, color >> 8 & 0xFF, color & 0xFF)
        return (tuple(Image.new("RGB", (width, height), rgb) for _ in range(batch_size)),)


class LoadImage:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        folder = folder_paths.get_input_directory()
        files = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        return {"required": {"image": (files, {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        return os.path.exists(folder_paths.get_annotated_filepath(image)) or f"Invalid image file: {image}"

    @classmethod
    def IS_CHANGED(cls, image: str) -> float:
        return os.path.getmtime(folder_paths.get_annotated_filepath(image))

    def load_image(self, image: str) -> tuple[tuple[Image.Image, ...], None]:
        with Image.open(folder_paths.get_annotated_filepath(image)) as file:
            return (ImageOps.exif_transpose(file).convert("RGB"),), None


class FluxKontextImageScale:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"
    CATEGORY = "model/conditioning/flux"
    SIDES = (
        (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
        (1024, 1024),
    )  # fmt: skip

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {"required": {"image": ("IMAGE",)}}

    def scale(self, image: tuple[Image.Image, ...]) -> tuple[tuple[Image.Image, ...]]:
        aspect = image[0].width / image[0].height
        sizes = {*self.SIDES, *((height, width) for width, height in self.SIDES)}
        size = min(sizes, key=lambda side: abs(aspect - side[0] / side[1]))
        return (tuple(ImageOps.fit(picture, size, Image.Resampling.LANCZOS) for picture in image),)


class ImageScaleToTotalPixels:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (["nearest-exact", "bilinear", "area", "bicubic", "lanczos"],),
                "megapixels": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0, "step": 0.01}),
            },
            "optional": {"resolution_steps": ("INT", {"default": 1, "min": 1, "max": 256})},
        }

    def upscale(
        self, image: tuple[Image.Image, ...], upscale_method: str, megapixels: float, resolution_steps: int = 1
    ) -> tuple[tuple[Image.Image, ...]]:
        factor = math.sqrt(megapixels * 1024 * 1024 / (image[0].width * image[0].height))
        size = tuple(round(side * factor / resolution_steps) * resolution_steps for side in image[0].size)
        return (tuple(picture.resize(size, Image.Resampling.LANCZOS) for picture in image),)  # type: ignore[arg-type]


class SaveImage:
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "save_images"
    CATEGORY = "image"
    DESCRIPTION = "Saves the input images to your ComfyUI output directory."
    OUTPUT_NODE = True
    TYPE = "output"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {
            "required": {"images": ("IMAGE", {}), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},  # type: ignore[dict-item]
        }

    def save_images(
        self,
        images: tuple[Image.Image, ...],
        filename_prefix: str = "ComfyUI",
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        root = str(folder_paths.get_directory_by_type(self.TYPE))
        folder, stem, counter, subfolder = folder_paths.get_save_image_path(filename_prefix, root)
        metadata = None
        if not args.disable_metadata:
            metadata = PngInfo()
            for key, value in {"prompt": prompt, **(extra_pnginfo or {})}.items():
                metadata.add_text(key, json.dumps(value))
        saved = []
        for number, picture in enumerate(images, counter):
            name = f"{stem}_{number:05}_.png"
            picture.save(os.path.join(folder, name), pnginfo=metadata, compress_level=4)
            saved.append({"filename": name, "subfolder": subfolder, "type": self.TYPE})
        return {"ui": {"images": saved}, "result": (images,)}


class PreviewImage(SaveImage):
    RETURN_TYPES = ()  # type: ignore[assignment]
    RETURN_NAMES = ()  # type: ignore[assignment]
    TYPE = "temp"

    @classmethod
    def INPUT_TYPES(cls) -> Types:
        return {**SaveImage.INPUT_TYPES(), "required": {"images": ("IMAGE", {})}}


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node.__name__: node
    for node in (
        CheckpointLoaderSimple, UNETLoader, CLIPLoader, VAELoader, LoraLoaderModelOnly, ModelSamplingAuraFlow, CFGNorm,
        CLIPTextEncode, TextEncodeQwenImageEditPlus, ConditioningZeroOut, EmptyLatentImage, EmptySD3LatentImage,
        VAEEncode, VAEDecode, KSampler, KSamplerSelect, SDTurboScheduler, SamplerCustom, EmptyImage, LoadImage,
        FluxKontextImageScale, ImageScaleToTotalPixels, SaveImage, PreviewImage,
    )
}  # fmt: skip
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
EXTENSION_WEB_DIRS: dict[str, str] = {}


def load_custom_node(module_path: str) -> bool:
    """Imports one custom node; a failure is logged and survived, which is how a login plugin fails open."""
    name = os.path.splitext(os.path.basename(module_path))[0]
    source = module_path if os.path.isfile(module_path) else os.path.join(module_path, "__init__.py")
    sys_name = module_path.replace(".", "_x_")
    try:
        spec = importlib.util.spec_from_file_location(sys_name, source)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[sys_name] = module
        spec.loader.exec_module(module)
    except Exception as error:
        logging.warning(traceback.format_exc())
        logging.warning("Cannot import %s module for custom nodes: %s", module_path, error)
        return False
    web_dir = os.path.join(module_path, getattr(module, "WEB_DIRECTORY", None) or "")
    if getattr(module, "WEB_DIRECTORY", None) and os.path.isdir(web_dir):
        EXTENSION_WEB_DIRS[name] = os.path.abspath(web_dir)
    if not hasattr(module, "NODE_CLASS_MAPPINGS"):
        logging.warning("Skip %s module for custom nodes due to the lack of NODE_CLASS_MAPPINGS.", module_path)
        return False
    for class_name, node in module.NODE_CLASS_MAPPINGS.items():
        if class_name not in NODE_CLASS_MAPPINGS:
            node.RELATIVE_PYTHON_MODULE = f"custom_nodes.{name}"
            NODE_CLASS_MAPPINGS[class_name] = node
    NODE_DISPLAY_NAME_MAPPINGS.update(getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", {}))
    return True


def init_external_custom_nodes() -> None:
    imported: list[tuple[float, str, bool]] = []
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        for entry in os.listdir(folder):
            path = os.path.join(folder, entry)
            if entry == "__pycache__" or path.endswith(".disabled"):
                continue
            if os.path.isfile(path) and not path.endswith(".py"):
                continue
            if args.disable_all_custom_nodes and entry not in args.whitelist_custom_nodes:
                logging.info("Skipping %s due to disable_all_custom_nodes and whitelist_custom_nodes", entry)
                continue
            started = time.perf_counter()
            success = load_custom_node(path)
            imported.append((time.perf_counter() - started, path, success))
    if imported:
        logging.info("\nImport times for custom nodes:")
        for seconds, path, success in sorted(imported):
            logging.info("%6.1f seconds%s: %s", seconds, "" if success else " (IMPORT FAILED)", path)
        logging.info("")
