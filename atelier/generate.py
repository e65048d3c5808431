"""`make generate`: one image from the command line, saved on this computer."""

import secrets
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from atelier import credentials, imagecheck, paths, workflows
from atelier.comfyui import ComfyUI, Progress, prepare
from atelier.errors import AtelierError
from atelier.forge import Forge
from atelier.target import Target
from atelier.verify import read_deployed, services, trust

Say = Callable[[str], object]

FORGE_PARAMETERS = {"steps": 1, "cfg_scale": 1, "sampler_name": "Euler a"}
"""SDXL Turbo's; a checkpoint of another kind is for the browser."""
EDIT_DENOISING = 0.6
PROGRESS_SECONDS = 2


def generate(target: Target, prompt: str, image: Path | None, service: str, say: Say) -> Path:
    """Make an image and save it in outputs/<host>/; returns its path.

    image: a picture to change. service: `comfyui` (Qwen-Image-Edit with an image, SDXL Turbo without) or `forge`.
    Raises AtelierError that says what the host lacks, or why the generation failed.
    """
    if service not in target.settings.enabled():
        raise AtelierError(
            f"SERVICE={service} is not on this host", f"its services: {', '.join(target.settings.enabled())}"
        )
    reference = _read(image) if image else None
    known = credentials.load(paths.secrets_dir(target.name))
    if known is None:
        raise AtelierError(
            f"no credentials of {target.name} on this computer", "run `make deploy`, or copy `.secrets/`"
        )
    ssh = target.ssh()
    ssh.connect()
    if read_deployed(ssh, target.settings)["sources"] == "double":
        say("Doubles stand in for ComfyUI and Forge: the image is a test pattern, no model made it.")
    elif target.kind == "sandbox":
        say("The weights are random numbers: the image will show nothing.")
    size = (512, 512) if target.settings.profile == "gpu" else (64, 64)
    timeout = target.settings.timeouts.generation
    with services(target, ssh) as reach:
        url, verify = reach.urls[service], trust(reach.anchor)
        if service == "comfyui":
            with ComfyUI(url, known.comfyui.password_bcrypt, verify=verify) as comfyui:
                data = _with_comfyui(comfyui, prompt, reference, size, timeout, say)
        else:
            with Forge(url, known.forge.user, known.forge.password or "", verify=verify) as forge:
                data = _with_forge(forge, prompt, reference, size, timeout)
    imagecheck.decode(data)
    folder = paths.outputs_dir(target.name)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{service}-{secrets.token_hex(2)}.png"
    part = folder / f".{name}.part"
    part.write_bytes(data)
    part.replace(folder / name)
    return folder / name


def _read(image: Path) -> bytes:
    try:
        data = image.read_bytes()
    except OSError as error:
        raise AtelierError(f"IMAGE={image}: {error.strerror}", "name a picture on this computer") from None
    try:
        imagecheck.decode(data)
    except AtelierError as error:
        raise AtelierError(f"IMAGE={image}: {error.message}", "use a PNG, JPEG or WebP file") from None
    return data


def _seed() -> int:
    return secrets.randbelow(2**32)


def _progress(say: Say) -> Progress:
    """Tells every last step, and of the others one in PROGRESS_SECONDS."""
    told = time.monotonic()

    def tell(node: str, step: int, of: int) -> None:
        nonlocal told
        if step == of or time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            say(f"  {node}: step {step} of {of}")

    return tell


def _with_comfyui(
    client: ComfyUI, prompt: str, reference: bytes | None, size: tuple[int, int], timeout: float, say: Say
) -> bytes:
    prefix = f"generate/{secrets.token_hex(8)}"
    offered = client.object_info()
    if reference:
        workflow = workflows.edit(offered)
        name = client.upload_image(f"{secrets.token_hex(8)}.png", reference)
        graph = prepare(workflow, seed=_seed(), prefix=prefix, prompt=prompt, image=name)
    else:
        workflow = workflows.text_to_image(offered)
        graph = prepare(workflow, seed=_seed(), prefix=prefix, prompt=prompt, size=size)
    waiting = sum(len(ids) for ids in client.queue().values())
    if waiting:
        say(f"ComfyUI is at work; {waiting} generation(s) come first.")
    return client.view(client.generate(graph, timeout, _progress(say)).images[0])


def _with_forge(client: Forge, prompt: str, reference: bytes | None, size: tuple[int, int], timeout: float) -> bytes:
    parameters = {**FORGE_PARAMETERS, "width": size[0], "height": size[1], "seed": _seed(), "save_images": True}
    checkpoint = workflows.preferred(client.checkpoints())
    if reference:
        # One step at full strength would keep nothing of the picture: Turbo needs steps times strength of 1 at least.
        changed = {**parameters, "steps": 4, "denoising_strength": EDIT_DENOISING}
        return client.img2img(prompt, [reference], checkpoint=checkpoint, timeout=timeout, **changed)[0].data
    return client.txt2img(prompt, checkpoint=checkpoint, timeout=timeout, **parameters)[0].data
