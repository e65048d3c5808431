"""The project's own clients and workflows get from the doubles what they would get from the real applications."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest
from PIL import Image

from atelier import comfyui, forge, imagecheck, paths, workflows
from sandbox.doubles import local, weights
from sandbox.shared import DOUBLE_WEIGHTS

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="the doubles' locks are for Python 3.11 and newer")

TOKEN = bcrypt.hashpw(b"geheim", bcrypt.gensalt(4)).decode()
CHECKPOINT = "sd_xl_turbo_1.0_fp16.safetensors"


@pytest.fixture(scope="module")
def comfyui_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[comfyui.ComfyUI]:
    folder = tmp_path_factory.mktemp("comfyui")
    local.lay_out_comfyui(folder, f"{TOKEN}\nalice")
    for name, kind in DOUBLE_WEIGHTS.items():
        weights.write(folder / "models" / name, kind)
    running = lambda: local.start_comfyui(folder)  # noqa: E731
    with local.stopping(running) as started, comfyui.ComfyUI(started.url, TOKEN) as client:
        yield client


@pytest.mark.parametrize("name", sorted(path.stem for path in (paths.PROJECT / "workflows").glob("*.json")))
def test_every_workflow_runs(comfyui_client: comfyui.ComfyUI, name: str) -> None:
    workflow = workflows.load(name)
    assert comfyui.missing_weights(workflow, comfyui_client.object_info()) == []
    image = None
    if any(node["class_type"] == "LoadImage" for node in workflow.values()):
        buffer = io.BytesIO()
        Image.linear_gradient("L").save(buffer, format="PNG")
        image = comfyui_client.upload_image("reference.png", buffer.getvalue())
    steps: list[tuple[str, int, int]] = []
    prepared = comfyui.prepare(workflow, seed=5, prefix="clients/x", image=image)
    generation = comfyui_client.generate(prepared, 30, lambda *step: steps.append(step))
    (saved,) = generation.images
    data = comfyui_client.view(saved)
    sampled = any(node["class_type"].startswith(("KSampler", "SamplerCustom")) for node in workflow.values())
    if sampled:
        assert imagecheck.problems(data, imagecheck.decode(data).size, trained=True) == []
    assert bool(steps) is sampled
    assert generation.cached == []


def test_a_seed_is_sampled_again_where_the_cache_knows_it(comfyui_client: comfyui.ComfyUI) -> None:
    workflow = workflows.load("sdxl-turbo")
    made = []
    for number, (seed, mark) in enumerate([(6, ""), (7, ""), (6, ""), (6, "x")]):
        graph = comfyui.prepare(workflow, seed=seed, prefix=f"clients/{number}", size=(64, 64))
        graph = comfyui.never_cached(graph, ("SamplerCustom",), mark) if mark else graph
        generation = comfyui_client.generate(graph, 30)
        made.append((generation.cached, imagecheck.pixel_hash(comfyui_client.view(generation.images[0]))))
    sampled = [not {"7", "8"} & set(cached) for cached, _ in made]
    assert sampled == [True, True, False, True]
    assert made[0][1] == made[2][1] == made[3][1] != made[1][1]
    assert 0 < generation.seconds < 30


def test_what_waits_for_others_is_not_called_slow(comfyui_client: comfyui.ComfyUI) -> None:
    theirs = next(workflows.load(path.stem) for path in (paths.PROJECT / "workflows").glob("qwen*.json"))
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, format="PNG")
    image = comfyui_client.upload_image("theirs.png", buffer.getvalue())
    theirs = comfyui.prepare(theirs, seed=8, prefix="clients/theirs", image=image)
    sampler = next(node["inputs"] for node in theirs.values() if node["class_type"] == "KSampler")
    sampler["steps"] = 80  # of 0.02 s
    own = comfyui.prepare(workflows.load("smoke"), seed=9, prefix="clients/own")
    other = comfyui_client.submit(theirs)
    with pytest.raises(comfyui.StillQueuedError, match="not begun within 0 s: 1 others"):
        comfyui_client.generate(own, 0.4)
    assert comfyui_client.queue()["pending"] == [], "it was taken back"
    assert comfyui_client.generate(own, 30).images and comfyui_client.history(other)


def test_a_refused_workflow_names_the_node(comfyui_client: comfyui.ComfyUI) -> None:
    workflow = workflows.load("sdxl-turbo")
    workflow["1"]["inputs"]["ckpt_name"] = "absent.safetensors"
    with pytest.raises(comfyui.ComfyUIError, match=r"CheckpointLoaderSimple \(node 1\): Value not in list"):
        comfyui_client.submit(workflow)


def test_forge_makes_what_it_is_asked_for(tmp_path: Path) -> None:
    local.lay_out_forge(tmp_path)
    (tmp_path / "data" / "config.json").write_text('{"show_progress_type": "Approx cheap"}')
    weights.write(tmp_path / "checkpoints" / CHECKPOINT, "sdxl-checkpoint")
    arguments = ["--api", "--gradio-auth=alice:geheim", "--api-auth=alice:geheim"]
    with (
        local.stopping(lambda: local.start_forge(tmp_path, *arguments)) as running,
        forge.Forge(running.url, "alice", "geheim") as client,
    ):
        running.wait_for("Startup time")
        assert client.login() and client.status("/config") == 200
        assert client.checkpoints() == [CHECKPOINT]
        wish = {"seed": 3, "width": 512, "height": 512, "steps": 1, "cfg_scale": 1, "sampler_name": "Euler a"}
        (image,) = client.txt2img("a cat", checkpoint=CHECKPOINT, timeout=30, **wish)
        assert imagecheck.problems(image.data, (512, 512), trained=True) == []
        with pytest.raises(forge.ForgeError, match="Sampler: asked for 'nonsense', used"):
            client.txt2img("a cat", checkpoint=CHECKPOINT, timeout=30, **{**wish, "sampler_name": "nonsense"})
        with pytest.raises(forge.ForgeError, match="Model: asked for 'absent', used"):
            client.txt2img("a cat", checkpoint="absent.safetensors", timeout=30, **wish)
