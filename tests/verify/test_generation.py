"""Group generation: an image counts when it is this run's own. Fresh seed and prefix, success in the finished history,
nothing from the cache, a file on the host newer than the request and equal to what `/view` gives, decoded and looked at.
"""

import pytest
from stack import Stack, fresh_prefix, fresh_seed

from atelier import imagecheck, workflows
from atelier.comfyui import Workflow, prepare

PROMPT = "a red fox in the snow, photograph"
SAMPLER = "Euler a"


def comfyui_image(
    stack: Stack, check, workflow: Workflow, cached_allowed: tuple[str, ...] = (), progress=None
) -> tuple[bytes, str]:
    """Run a workflow; returns the image and its path on the host, both proven to be this run's."""
    before = stack.clock()
    generation = stack.comfyui.generate(workflow, stack.settings.timeouts.generation, progress)
    check(
        "one image, as success in the finished history", f"{len(generation.images)} images", len(generation.images) == 1
    )
    stale = [
        f"node {node} ({workflow[node]['class_type']})" for node in generation.cached if node not in cached_allowed
    ]
    check.none(
        "no node that matters came from the cache", stale, "another workflow with this seed ran before: run again"
    )
    image = generation.images[0]
    path = f"{stack.outputs('comfyui')}/{image.subfolder}/{image.filename}"
    data = stack.comfyui.view(image)
    same_file(stack, check, path, data, before)
    return data, path


def same_file(stack: Stack, check, path: str, data: bytes, before: float) -> None:
    """The host's own file is what the service handed out, and newer than the request."""
    file = stack.file(path)
    elsewhere = "it saves its images somewhere else: compare the container's mounts with the settings"
    check("a file in the declared directory", path if file else f"{path} is missing", file is not None, elsewhere)
    age = file.changed - before
    check("newer than the request, by the host's clock", f"{age:+.1f} s", age > -0.05)
    check("equal to what the service handed out", f"{len(file.content)} and {len(data)} bytes", file.content == data)
    check(f"owned by {stack.settings.service_uid}", file.owner, file.owner == stack.settings.service_uid)


@pytest.mark.check("generation.comfyui.smoke")
def test_workflow_without_weights(stack, check, keep):
    for seed in (fresh_seed(), fresh_seed()):
        workflow = prepare(workflows.load("smoke"), seed=seed, prefix=fresh_prefix())
        data, _ = comfyui_image(stack, check, workflow)
        colour = tuple((seed & 0xFFFFFF).to_bytes(3, "big"))
        size = imagecheck.decode(data).size
        right = size == (96, 64) and imagecheck.filled_with(data, colour)
        check(f"96x64, every pixel {colour}", f"{size[0]}x{size[1]}, {'so' if right else 'other pixels'}", right)
    keep("comfyui-smoke", data)


@pytest.mark.check("generation.comfyui.checkpoint")
def test_workflow_with_a_checkpoint(stack, check, keep, note):
    workflow = workflows.text_to_image(stack.comfyui.object_info())
    loader = next(number for number, node in workflow.items() if node["class_type"] == "CheckpointLoaderSimple")
    # What does not depend on the seed may stay loaded.
    steady = tuple(
        number
        for number, node in workflow.items()
        if node["class_type"] not in ("KSampler", "SamplerCustom", "VAEDecode", "SaveImage")
    )
    hashes, steps = set(), []
    for number in (1, 2):
        graph = prepare(workflow, seed=fresh_seed(), prefix=fresh_prefix(), prompt=PROMPT, size=stack.size)
        data, _ = comfyui_image(stack, check, graph, steady, lambda node, step, of: steps.append(f"{node} {step}/{of}"))
        check.none(
            f"a whole image of {stack.size[0]}x{stack.size[1]}, {'a picture' if stack.trained else 'not flat'}",
            imagecheck.problems(data, stack.size, trained=stack.trained),
        )
        hashes.add(imagecheck.pixel_hash(data))
        keep(f"comfyui-checkpoint-{number}", data)
    check("another seed makes another image", f"{len(hashes)} images", len(hashes) == 2)
    check("live progress over the WebSocket", steps[-1] if steps else "none", bool(steps))
    note("checkpoint", workflow[loader]["inputs"]["ckpt_name"])
    note("ComfyUI", str(stack.comfyui.system_stats()["system"].get("comfyui_version")))


@pytest.mark.check("generation.forge.txt2img")
def test_forge_text_to_image(stack, check, keep, note):
    checkpoints = stack.forge.checkpoints()
    check("a checkpoint", ", ".join(checkpoints) or "none", bool(checkpoints))
    checkpoint = workflows.preferred(checkpoints)
    hashes = set()
    for number in (1, 2):
        before, seed = stack.clock(), fresh_seed()
        images = stack.forge.txt2img(
            PROMPT,
            checkpoint=checkpoint,
            timeout=stack.settings.timeouts.generation,
            seed=seed,
            width=stack.size[0],
            height=stack.size[1],
            steps=1,
            cfg_scale=1,
            sampler_name=SAMPLER,
            save_images=True,
        )
        check("one image, with sampler, checkpoint, seed and size as asked", images[0].used, len(images) == 1)
        check.none(
            f"a whole image of {stack.size[0]}x{stack.size[1]}, {'a picture' if stack.trained else 'not flat'}",
            imagecheck.problems(images[0].data, stack.size, trained=stack.trained),
        )
        names = stack.output(f"find {stack.outputs('forge')} -type f -name '*{seed}*.png'").splitlines()
        elsewhere = "Forge saves its images somewhere else: compare its `outdir_*` settings with what is mounted"
        check(
            "one file with this seed in the declared directory", ", ".join(names) or "none", len(names) == 1, elsewhere
        )
        file = stack.file(names[0])
        check(
            "newer than the request, by the host's clock",
            f"{file.changed - before:+.1f} s",
            file.changed > before - 0.05,
        )
        check("the same pixels", len(file.content), imagecheck.pixels_equal(file.content, images[0].data))
        hashes.add(imagecheck.pixel_hash(images[0].data))
        keep(f"forge-{number}", images[0].data)
    check("another seed makes another image", f"{len(hashes)} images", len(hashes) == 2)
    note("Forge", images[0].used.get("Version", "unknown"))
