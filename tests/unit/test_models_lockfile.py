"""locks/models.yml says what is on public record, and names truly who loads each file."""

import re

import pytest

from atelier import paths, workflows
from atelier.comfyui import weights_of
from atelier.models import Weight, read_lock, weights_for
from atelier.settings import Settings

LOCK = paths.PROJECT / "locks" / "models.yml"
WORKFLOWS = sorted(path.stem for path in (paths.PROJECT / "workflows").glob("*.json"))
FORGE = "forge"

TABLE = """
diffusion_models split_files/diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors
    20430698424 318568f61951ab9da21100c7b896e3c1da67f0d2efad6421545e022cfaa2b2b4
    Comfy-Org/Qwen-Image-Edit_ComfyUI main Apache-2.0 qwen-edit-2509
text_encoders split_files/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors
    9384670680 cb5636d852a0ea6a9075ab1bef496c0db7aef13c02350571e388aea959c5c0b4
    Comfy-Org/Qwen-Image_ComfyUI 7beb7b647f04469fbe64ba8adc2bb0d7e5e9f73f Apache-2.0 qwen-edit-2509,qwen-edit-2511
vae split_files/vae/qwen_image_vae.safetensors
    253806246 a70580f0213e67967ee9c95f05bb400e8fb08307e017a924bf3441223e023d1f
    Comfy-Org/Qwen-Image_ComfyUI 7beb7b647f04469fbe64ba8adc2bb0d7e5e9f73f Apache-2.0 qwen-edit-2509,qwen-edit-2511
loras Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors
    849608296 2a32ce938ec71db2b49a817b4844ae86995569518dea56ee0ddc209cbe8e1377
    lightx2v/Qwen-Image-Lightning 21e79ba3c2cb6454834051ea973ffcd04ff1993f Apache-2.0 lightning
checkpoints sd_xl_turbo_1.0_fp16.safetensors
    6938081905 e869ac7d6942cb327d68d5ed83a40447aadf20e0c3358d98b2cc9e270db0da26
    stabilityai/sdxl-turbo 71153311d3dbb46851df1931d3ca6e939de83304 Stability~AI~Community~License sdxl-turbo
checkpoints sdxl_lightning_4step.safetensors
    6938040682 e0d996ee0013e79d9d3561f50fcafb9a17e3ff07b780358e3b66d67932c4d490
    ByteDance/SDXL-Lightning c9a24f48e1c025556787b0c58dd67a091ece2e44 CreativeML~Open~RAIL++-M lightning
vae_approx taesdxl_decoder.safetensors
    4895612 f6013131e7eb412ef20113f1acc2ea7d3e47e53196ca0530fa65d9b61d814b61
    madebyollin/taesdxl b20258aaef75ef61e659c1e0f14f251cf0ad153e MIT previews
diffusion_models split_files/diffusion_models/qwen_image_edit_2511_fp8mixed.safetensors
    20533762817 c9fdc158e46d3b61ef75f21ae866ca2fe808bf4a53643120d1c1e87c19280a4e
    Comfy-Org/Qwen-Image-Edit_ComfyUI 4c7c4ea236326cbae56d403d22a03c6cd86ad9a0 Apache-2.0 qwen-edit-2511
loras Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors
    849608296 22226e8d05d354bb356627d428809f5afd7819399b077238a2b70a82883a904f
    lightx2v/Qwen-Image-Edit-2511-Lightning d74eba145674fd7e31b949324e148e21e7118abd Apache-2.0 lightning
"""
"""Public record, copied by hand a second time: directory, path, bytes, sha256, repository, revision, licence, sets."""


def _row(weight: Weight) -> tuple[str, ...]:
    return (
        weight.directory,
        weight.path,
        str(weight.bytes),
        weight.sha256,
        weight.repository,
        weight.revision,
        weight.licence.replace(" ", "~"),
        ",".join(weight.sets),
    )


def loads(name: str) -> set[str]:
    """The files that a workflow loads."""
    return {file for _, _, file in weights_of(workflows.load(name))}


def test_the_lock_says_what_is_on_record() -> None:
    record = [tuple(entry.split()) for entry in re.split(r"\n(?=\S)", TABLE.strip())]
    assert sorted(map(_row, read_lock(LOCK).files)) == sorted(record)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_a_workflow_loads_is_in_the_lock_and_names_it(name: str) -> None:
    assert loads(name) == {weight.name for weight in read_lock(LOCK).files if name in weight.used_by}


@pytest.mark.parametrize("weight", read_lock(LOCK).files, ids=lambda weight: weight.name)
def test_used_by_names_workflows_and_forge_where_it_offers_the_file(weight: Weight) -> None:
    assert set(weight.used_by) <= {*WORKFLOWS, FORGE}
    assert (FORGE in weight.used_by) == (weight.directory == "checkpoints")


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if loads(name)])
def test_the_set_of_a_workflow_holds_all_that_it_loads(name: str) -> None:
    assert loads(name) <= {weight.name for weight in read_lock(LOCK).wanted([name])}


def test_a_host_without_a_gpu_is_spared_what_only_a_gpu_can_use() -> None:
    names = {
        profile: {weight.name for weight in weights_for(Settings.model_validate({"profile": profile}), paths.PROJECT)}
        for profile in ("gpu", "cpu")
    }
    assert names["cpu"] == {"sd_xl_turbo_1.0_fp16.safetensors"}
    assert "qwen_image_edit_2509_fp8_e4m3fn.safetensors" in names["gpu"] > names["cpu"]
