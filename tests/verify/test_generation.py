"""Group generation: an image counts when it is this run's own. Fresh seed and prefix, success in the finished history,
nothing from the cache, a file on the host newer than the request and equal to what `/view` gives, with this run's seed in
it, decoded and looked at; another seed makes another image, and the first seed makes the first image again.

What cannot be asked of random weights (a sandbox's, for the real applications): that the image is a picture.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest
from stack import Stack, fresh_prefix, fresh_seed

from atelier import comfyui, imagecheck, pace, safetensors, workflows
from atelier.comfyui import Generation, StillQueuedError, Workflow, prepare
from atelier.errors import AtelierError
from atelier.forge import ForgeTimeoutError

PROMPT = "a red fox in the snow, photograph"
EDIT_PROMPT = "make it winter"
SAMPLER = "Euler a"
SEEDED = ("KSampler", "SamplerCustom")
DECISIVE = (*SEEDED, "EmptyImage", "VAEDecode", "SaveImage")
"""Classes of nodes that have to be executed for an image to be this run's; what does not depend on the seed may stay
loaded."""
FP8 = "torch.float8_e4m3fn"
LOG_SECONDS = 10
"""How long the log's last line may take to reach the host's disk."""
GPU_SECONDS = 1.0
ELSEWHERE = "it saves its images somewhere else: compare the container's mounts with the settings"
SEED_IGNORED = "what decides about the image is not the seed that was sent: something answers in the place of the model"
REMEDIES = {
    "is black": "a number beyond what the precision holds (NaN): look for flags such as --fp16-vae, and damaged weights: "
    "`make verify DEEP=1`",
    "is flat": "nothing was drawn: damaged weights (`make verify DEEP=1`), or another model than the workflow is for",
    "noise": "nothing was taken out of the noise: damaged weights (`make verify DEEP=1`), or a sampler that did no step",
    "grid": "the autoencoder does not fit the model, or is damaged: `make verify DEEP=1`",
}
"""What to do, by what is wrong with an image."""
NOT_ITS_OWN = "it was not made by this request: something hands out images that were made before"

SEEDS = {1: "a seed", 2: "another seed", 3: "the first seed again"}
"""What each image of a check is, by its number."""

Step = tuple[str, int, int]


class Made:
    """An image of ComfyUI's that is proven to be this run's."""

    def __init__(self, generation: Generation, data: bytes, steps: list[Step]) -> None:
        self.generation, self.data, self.steps = generation, data, steps


def must(check, expected: str, observed: object, holds: bool, hint: str = "") -> None:
    """Told only where it does not hold: what is asked of every image is told in one line for each."""
    if not holds:
        check(expected, observed, False, hint)


def comfyui_image(stack: Stack, check, workflow: Workflow, prefix: str) -> Made:
    """Run a workflow; returns the image, proven to be this run's."""
    before, steps = stack.clock(), []
    try:
        generation = stack.comfyui.generate(workflow, stack.generation_seconds, lambda *step: steps.append(step))
    except StillQueuedError as error:
        pytest.skip(f"{error.message}: {error.hint}")
    count = len(generation.images)
    must(check, "one image, as success in the finished history", f"{count} images", count == 1)
    remembered = [node for node in generation.cached if workflow[node]["class_type"] in DECISIVE]
    must(
        check,
        "no node that matters is answered from the cache",
        "; ".join(f"node {node} ({workflow[node]['class_type']}) came from the cache" for node in remembered),
        not remembered,
        "ComfyUI gave a cached answer; `make restart SERVICE=comfyui`, and look for a changed cache",
    )
    image = generation.images[0]
    path = f"{image.subfolder}/{image.filename}"
    must(check, f"an image under the name asked for, {prefix}", path, path.startswith(prefix), NOT_ITS_OWN)
    data = stack.comfyui.view(image)
    same_file(stack, check, f"{stack.outputs('comfyui')}/{path}", data, before)
    return Made(generation, data, steps)


def same_file(stack: Stack, check, path: str, data: bytes, before: float) -> None:
    """The host's own file is what the service handed out, and newer than the request."""
    file = stack.file(path)
    must(check, "a file in the declared directory", f"{path} is missing", file is not None, ELSEWHERE)
    age, equal = file.changed - before, file.content == data
    must(check, "newer than the request, by the host's clock", f"made {age:+.1f} s after it", age > -0.05, NOT_ITS_OWN)
    sizes = f"{len(file.content)} in the file, {len(data)} handed out"
    between = "look at what lies between: /view, the gateway"
    must(check, "the file equals what the service handed out", f"other bytes: {sizes}", equal, between)
    owner = stack.settings.service_uid
    must(check, f"a file that belongs to {owner}", f"{file.owner}", file.owner == owner)
    check(
        "executed, not remembered; saved after the request in the declared directory; the bytes that are handed out",
        f"{path}, {age:+.1f} s, {len(data)} bytes",
        True,
    )


def of_this_prompt(check, data: bytes, asked: Workflow) -> None:
    """The workflow that ComfyUI wrote into the image is the one that was sent, seed included."""
    try:
        told = json.loads(imagecheck.metadata(data).get("prompt", "null"))
    except ValueError:
        told = None
    wrong = comfyui.changed_inputs(asked, told) if isinstance(told, dict) else ["no workflow in the image"]
    must(check, "the image carries the workflow that was sent", "; ".join(wrong), not wrong, NOT_ITS_OWN)


def picture(stack: Stack, check, data: bytes, size: tuple[int, int]) -> None:
    """It has the right size, and looks like what the weights can make."""
    problems = imagecheck.problems(data, size, trained=stack.trained)
    hint = next((hint for words, hint in REMEDIES.items() if words in "; ".join(problems)), "")
    kind = "a picture: not flat, no noise, no grid" if stack.trained else "not flat"
    told = "; ".join(problems) or f"as expected ({imagecheck.pixel_hash(data)[:12]})"
    check(f"a whole image of {size[0]}x{size[1]}, {kind}", told, not problems, hint)


def depends_on_the_seed(check, make: Callable[[int], bytes]) -> None:
    """Makes three images: one seed, another, the first again."""
    seed, other_seed = fresh_seed(), fresh_seed()
    first, other, again = (imagecheck.pixel_hash(make(seed)) for seed in (seed, other_seed, seed))
    differs = f"{first[:12]} and {other[:12]}" if first != other else "the same image"
    check("another seed makes another image", differs, first != other, SEED_IGNORED)
    same = f"{again[:12]} again" if first == again else "other pixels"
    varied = (
        "what decides about the image is more than its seed: generations mix, or the model changes (same seed twice)"
    )
    check("the same seed makes the same pixels again", same, first == again, varied)


def log_during(stack: Stack, check, generation: Generation, since: float) -> list[str]:
    """What ComfyUI logged while it was at work on a generation."""
    container, deadline = stack.containers["comfyui"], time.monotonic() + LOG_SECONDS
    while True:
        lines = comfyui.log_of(
            stack.output(f"docker logs --timestamps --since {since:.3f} {container} 2>&1"), generation
        )
        if lines is not None or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    ended = lines is not None
    must(check, "ComfyUI's log of the generation", "no end of it", ended, "see `make logs SERVICE=comfyui`")
    return lines


def whole_model(check, lines: list[str]) -> None:
    """ComfyUI goes on when a file lacks a tensor, or is that of another model, and says so in its log alone."""
    hint = "the weight file is not the one that the model needs, or damaged: `make verify DEEP=1`, then `make deploy`"
    missing = comfyui.missing_tensors(lines)
    check("the model was loaded whole", "; ".join(missing) or "no tensor missing in the log", not missing, hint)
    check.warn("the model uses every tensor in the file", comfyui.unused_tensors(lines), hint)


@contextlib.contextmanager
def gpu_watched(stack: Stack, service: str, measure) -> Iterator[None]:
    """Records how much memory and power the service's GPU needed meanwhile, where it has one."""
    gpu, rows, over = stack.deployed["gpus"].get(service), [], threading.Event()
    if gpu is None:
        yield
        return

    def watch() -> None:
        while not over.is_set():
            query = f"timeout 10 nvidia-smi -i {gpu} --query-gpu={pace.USAGE} --format=csv,noheader,nounits"
            with contextlib.suppress(AtelierError):  # one look fewer
                rows.extend(stack.ssh.run(query, timeout=30).stdout.splitlines())
            over.wait(GPU_SECONDS)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    for unit, most in pace.usage(rows).items():
        what = "memory" if unit == "MiB" else "power"
        measure(f"{service}.gpu.{what}", most, unit, f"most {what} of the GPU in use")


def timed(stack: Stack, check, measure, name: str, times: Sequence[float | None]) -> None:
    """Records the time of one image, and warns when the host is much slower than it was. times: as `pace.unhindered`."""
    seconds = pace.unhindered(times)
    if seconds is None:
        check("the time of one image", "not measured: others were at work, too", True)
        return
    measure(name, seconds, "s", "one image, the model loaded before")
    check.warn(
        "as fast as this host was before",
        pace.slower(name, seconds, stack.context["history"].get(name, [])),
        "look for another program on the GPU, its temperature and clocks (`nvidia-smi -q -d PERFORMANCE`), a fuller memory",
    )


@pytest.mark.check("generation.comfyui.smoke")
def test_workflow_without_weights(stack, check, keep):
    for seed in (fresh_seed(), fresh_seed()):
        prefix = fresh_prefix()
        workflow = prepare(workflows.load("smoke"), seed=seed, prefix=prefix)
        data = comfyui_image(stack, check, workflow, prefix).data
        colour = tuple((seed & 0xFFFFFF).to_bytes(3, "big"))
        size = imagecheck.decode(data).size
        right = size == (96, 64) and imagecheck.filled_with(data, colour)
        check(
            f"96x64, every pixel {colour}", f"{size[0]}x{size[1]}, {'as expected' if right else 'other pixels'}", right
        )
    keep("comfyui-smoke", data, "one colour, that of its seed")


@pytest.mark.check("generation.comfyui.checkpoint")
def test_workflow_with_a_checkpoint(stack, check, keep, note, measure):
    workflow = workflows.text_to_image(stack.comfyui.object_info())
    loader = next(number for number, node in workflow.items() if node["class_type"] == "CheckpointLoaderSimple")
    before, made = stack.clock(), []

    def make(seed: int) -> bytes:
        prefix, anew = fresh_prefix(), uuid.uuid4().hex
        graph = prepare(workflow, seed=seed, prefix=prefix, prompt=PROMPT, size=stack.size)
        image = comfyui_image(stack, check, comfyui.never_cached(graph, SEEDED, anew), prefix)
        of_this_prompt(check, image.data, graph)
        picture(stack, check, image.data, stack.size)
        made.append(image)
        keep(f"comfyui-checkpoint-{len(made)}", image.data, SEEDS[len(made)])
        return image.data

    with gpu_watched(stack, "comfyui", measure):
        depends_on_the_seed(check, make)
    whole_model(check, log_during(stack, check, made[0].generation, before))
    live_progress(check, made)
    timed(stack, check, measure, "comfyui.checkpoint.seconds", [image.generation.seconds for image in made])
    note("checkpoint", workflow[loader]["inputs"]["ckpt_name"])
    note("ComfyUI", str(stack.comfyui.system_stats()["system"].get("comfyui_version")))


def live_progress(check, made: list[Made]) -> None:
    """Every generation told of its sampler's steps while it was at work."""
    silent = [f"image {number}: none" for number, image in enumerate(made, 1) if not image.steps]
    hint = "the WebSocket opens and says nothing of the work: see `make logs SERVICE=gateway`, and ComfyUI's own"
    steps = ", ".join(f"{len(image.steps)} steps" for image in made)
    check("live progress over the WebSocket", "; ".join(silent) or steps, not silent, hint)


@pytest.mark.check("generation.comfyui.edit")
def test_editing_a_reference_image_in_fp8(stack, check, keep, note, measure):
    workflow = workflows.edit(stack.comfyui.object_info())
    as_a_whole = stack.computes_on_gpu or stack.doubles
    reference = imagecheck.drawn((96, 64), fresh_seed())
    size = workflows.MEGAPIXEL_OF_3_TO_2 if as_a_whole else (96, 64)
    if not as_a_whole:
        workflow = workflows.small(workflow)
    files = " ".join(f"{stack.settings.models_path()}/{file}" for file in workflows.fp8_files(workflow))
    read = stack.ssh.run(f"python3 - {files}", stdin=safetensors.READ.encode(), timeout=30, check=True).stdout
    hint = "another file lies in its place: `make verify DEEP=1` says which; then `make deploy`"
    wrong = safetensors.not_fp8(json.loads(read))
    check("the files of the model hold FP8 numbers", "; ".join(wrong) or safetensors.FP8, not wrong, hint)
    made, name = [], f"verify-{uuid.uuid4().hex}.png"
    before, run = stack.clock(), uuid.uuid4().hex

    def make(seed: int) -> bytes:
        prefix = fresh_prefix()
        graph = prepare(workflow, seed=seed, prefix=prefix, prompt=EDIT_PROMPT, image=name)
        fresh = comfyui.never_cached(graph, SEEDED, uuid.uuid4().hex)
        # One load in this run, in the first generation: its log line is the proof of what was loaded.
        image = comfyui_image(stack, check, comfyui.never_cached(fresh, ("UNETLoader",), run), prefix)
        of_this_prompt(check, image.data, graph)
        picture(stack, check, image.data, size)
        made.append(image)
        keep(f"comfyui-edit-{len(made)}", image.data, SEEDS[len(made)])
        return image.data

    try:
        if not stack.in_use:  # else the models and results of whoever works there would go
            stack.comfyui.free()
        name = stack.comfyui.upload_image(name, reference)
        with gpu_watched(stack, "comfyui", measure):
            depends_on_the_seed(check, make)
    finally:
        stack.output(f"rm -f {stack.settings.users_path('comfyui')}/input/{name}")
    keep("comfyui-edit-reference", reference, "the reference image, drawn for this run")
    lines = log_during(stack, check, made[0].generation, before)
    loaded = comfyui.weight_types(lines)
    hint = "the workflow or ComfyUI's flags ask for other numbers: more memory, and not what this host is sized for"
    told = ", ".join(loaded) or "no line `model weight dtype`"
    check(f"loaded as {FP8}", told, set(loaded) == {FP8}, hint)
    whole_model(check, lines)
    live_progress(check, made)
    measure("comfyui.edit.load.seconds", made[0].generation.seconds, "s", "the first image, with loading the model")
    timed(stack, check, measure, "comfyui.edit.seconds", [image.generation.seconds for image in made])
    note("edit", next(node["inputs"]["unet_name"] for node in workflow.values() if "unet_name" in node["inputs"]))


@pytest.mark.check("generation.forge.txt2img")
def test_forge_text_to_image(stack, check, keep, note, measure):
    checkpoints = stack.forge.checkpoints()
    check("a checkpoint", ", ".join(checkpoints) or "none", bool(checkpoints))
    checkpoint, made, times = workflows.preferred(checkpoints), [], []

    def make(seed: int) -> bytes:
        others, before, began = stack.forge.jobs(), stack.clock(), time.monotonic()
        try:
            images = stack.forge.txt2img(
                PROMPT,
                checkpoint=checkpoint,
                timeout=stack.generation_seconds,
                seed=seed,
                width=stack.size[0],
                height=stack.size[1],
                steps=1,
                cfg_scale=1,
                sampler_name=SAMPLER,
                save_images=True,
            )
        except ForgeTimeoutError as error:
            if others:
                pytest.skip(f"{error.message}, which others use: run again when they are done")
            raise
        times.append(None if others else time.monotonic() - began)
        must(check, "one image", f"{len(images)} images", len(images) == 1)
        used = ", ".join(images[0].used[name] for name in ("Model", "Sampler", "Seed", "Size"))
        check("checkpoint, sampler, seed and size as asked, by Forge's own account", used, True)
        picture(stack, check, images[0].data, stack.size)
        saved_by_forge(stack, check, images[0].data, seed, before)
        made.append(images[0])
        keep(f"forge-{len(made)}", images[0].data, SEEDS[len(made)])
        return images[0].data

    with gpu_watched(stack, "forge", measure):
        depends_on_the_seed(check, make)
    timed(stack, check, measure, "forge.seconds", times)
    note("Forge", made[0].used.get("Version", "unknown"))


def saved_by_forge(stack: Stack, check, data: bytes, seed: int, before: float) -> None:
    """The image is in the declared directory, under its seed, and was written after the request."""
    names = stack.output(f"find {stack.outputs('forge')} -type f -newermt @{before - 0.05:.3f} -name '*{seed}*.png'")
    found = names.splitlines()
    elsewhere = "Forge saves its images somewhere else: compare its `outdir_*` settings with what is mounted"
    one = "one file with this seed in the declared directory, newer than the request"
    check(one, ", ".join(found) or "none", len(found) == 1, elsewhere)
    file = stack.file(found[0])
    equal = imagecheck.pixels_equal(file.content, data)
    hint = "look at what lies between: Forge's API, the gateway"
    must(check, "the file has the pixels that were handed out", "other pixels", equal, hint)
    told = imagecheck.metadata(file.content).get("parameters", "")
    must(check, f"the file names the seed {seed}", told[-200:] or "nothing", f"Seed: {seed}," in told, NOT_ITS_OWN)
