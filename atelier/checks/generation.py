"""Images, made now and looked at."""

from atelier.checks.check import LOGS, Check

CHECKS: tuple[Check, ...] = (
    Check(
        "generation.comfyui.smoke",
        "ComfyUI: a workflow without weights makes exactly the image asked for",
        "a generation counts when its own fresh image is seen",
        LOGS.format(service="comfyui"),
        service="comfyui",
        depends=("containers.running",),
    ),
    Check(
        "generation.comfyui.checkpoint",
        "ComfyUI: text to image with a checkpoint",
        "the weights load and sample",
        "see `make logs SERVICE=comfyui`; a missing weight: `make deploy`",
        service="comfyui",
        quick=False,
        depends=("generation.comfyui.smoke", "weights.present", "weights.seen", "weights.deep"),
    ),
    Check(
        "generation.comfyui.edit",
        "ComfyUI: Qwen-Image-Edit changes a reference image, in FP8",
        "the model that this host is for loads as FP8 and samples",
        "see `make logs SERVICE=comfyui`; a missing weight: `make deploy`",
        service="comfyui",
        weights=(
            "qwen_image_edit_2509_fp8_e4m3fn.safetensors",
            "qwen_2.5_vl_7b_fp8_scaled.safetensors",
            "qwen_image_vae.safetensors",
        ),
        quick=False,
        depends=("generation.comfyui.smoke", "weights.present", "weights.seen", "weights.deep"),
    ),
    Check(
        "generation.forge.txt2img",
        "Forge: text to image with the sampler and checkpoint asked for",
        "a 200 proves nothing",
        "see `make logs SERVICE=forge`; a missing weight: `make deploy`",
        service="forge",
        quick=False,
        depends=("containers.running", "weights.present", "weights.seen", "weights.deep"),
    ),
)
