"""The ComfyUI workflows of this repository (workflows/, API form), and which of them a host's weights allow."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from atelier import paths
from atelier.comfyui import Workflow, missing_weights, offered_values, weights_of
from atelier.errors import AtelierError

PREFERRED_CHECKPOINT = "sd_xl_turbo_1.0_fp16.safetensors"
EDIT = "qwen-edit-2509"
TEXT_TO_IMAGE = "sdxl-turbo"
SCALE_TO_A_MEGAPIXEL = "FluxKontextImageScale"
MEGAPIXEL_OF_3_TO_2 = (1248, 832)
"""What a reference image of three to two becomes there."""
SMALL_STEPS = 2
FETCH = "`make deploy` fetches what `models.sets` lists"


def load(name: str) -> Workflow:
    """A workflow by the name of its file."""
    workflow: Workflow = json.loads((paths.PROJECT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return workflow


def preferred(checkpoints: Sequence[str]) -> str:
    """SDXL Turbo where a host has it, else its first checkpoint (the sandbox has synthetic ones).

    Raises AtelierError where there is none.
    """
    if not checkpoints:
        raise AtelierError("this host has no checkpoint", FETCH)
    return PREFERRED_CHECKPOINT if PREFERRED_CHECKPOINT in checkpoints else sorted(checkpoints)[0]


def text_to_image(object_info: Mapping[str, Any]) -> Workflow:
    """SDXL Turbo's workflow with the preferred checkpoint of what ComfyUI (its `/object_info`) offers.

    Raises AtelierError naming what is missing.
    """
    workflow = copy.deepcopy(load(TEXT_TO_IMAGE))
    required = object_info.get("CheckpointLoaderSimple", {}).get("input", {}).get("required", {})
    offered = offered_values(required.get("ckpt_name"))
    for node in workflow.values():
        if node["class_type"] == "CheckpointLoaderSimple":
            node["inputs"]["ckpt_name"] = preferred(offered)
    return _complete(workflow, TEXT_TO_IMAGE, object_info)


def edit(object_info: Mapping[str, Any]) -> Workflow:
    """Qwen-Image-Edit's workflow. Raises AtelierError naming what is missing."""
    return _complete(load(EDIT), EDIT, object_info)


def fp8_files(workflow: Workflow) -> list[str]:
    """The weights of a workflow that have to be FP8, by their path in the store: all but the autoencoder."""
    folders = {"unet_name": "diffusion_models", "clip_name": "text_encoders"}
    return [f"{folders[name]}/{file}" for _, name, file in weights_of(workflow) if name in folders]


def small(workflow: Workflow) -> Workflow:
    """The same graph for a computer without a GPU: two steps, and the reference image in the size that it comes in."""
    graph = copy.deepcopy(workflow)
    scaled = {
        number: node["inputs"]["image"] for number, node in graph.items() if node["class_type"] == SCALE_TO_A_MEGAPIXEL
    }
    for number in scaled:
        del graph[number]
    for node in graph.values():
        inputs = node["inputs"]
        inputs.update({name: scaled[link[0]] for name, link in inputs.items() if _leads_to(scaled, link)})
        if "steps" in inputs:
            inputs["steps"] = min(inputs["steps"], SMALL_STEPS)
    return graph


def _leads_to(nodes: Mapping[str, Any], value: object) -> bool:
    return isinstance(value, list) and value[0] in nodes


def _complete(workflow: Workflow, name: str, object_info: Mapping[str, Any]) -> Workflow:
    missing = missing_weights(workflow, object_info)
    if missing:
        raise AtelierError(f"workflow {name} needs {', '.join(missing)}, which this host does not have", FETCH)
    return workflow
