"""Ways to hand out images that were not made as asked. They change the doubles' own programs, so they need doubles."""

from textwrap import dedent

from sabotage.sabotage import COMFYUI, FORGE, Sabotage, patched, restored

SMOKE, CHECKPOINT, EDIT = (f"generation.comfyui.{name}" for name in ("smoke", "checkpoint", "edit"))
TXT2IMG = "generation.forge.txt2img"
UNET = '"$MODELS/diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors"'
ASIDE = '"$MODELS/.incoming/sabotage"'
"""On the weights' own file system, so that what is moved there stays the file that was hashed."""


def rewritten(container: str, path: str, code: str) -> str:
    """A script that adds Python to the end of a program, in which it can name anew what was defined before."""
    script = patched(container, path, f"cat >>\"$FILE\" <<'X'\n\n{dedent(code).strip()}\nX")
    return f"{script}settle\n"


def comfyui(id: str, does: str, path: str, code: str, expects: tuple[str, ...], names: str) -> Sabotage:
    """ComfyUI's program is another one."""
    breaks, undoes = rewritten(COMFYUI, f"/opt/comfyui/{path}", code), restored(COMFYUI) + "settle\n"
    return Sabotage(f"generation.{id}", does, breaks, undoes, expects, names, needs="doubles", slow=True)


def forge(id: str, does: str, path: str, code: str, names: str) -> Sabotage:
    """Forge's program is another one."""
    breaks, undoes = rewritten(FORGE, f"/opt/forge/{path}", code), restored(FORGE) + "settle\n"
    title = f"Forge: {does}"
    return Sabotage(f"generation.forge-{id}", title, breaks, undoes, (TXT2IMG,), names, needs="doubles", slow=True)


def another_unet(id: str, does: str, edit: str, names: str) -> Sabotage:
    """Another file in the place of the diffusion model. edit: Python that changes `header`, a safetensors header."""
    write = f"""
        python3 -I - "$OLD" {UNET} <<'X'
        import json, struct, sys
        data = open(sys.argv[1], "rb").read()
        size = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:size])
        {edit}
        text = json.dumps(header).encode()
        open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + data[size:])
        X
        chmod 444 {UNET}
        """
    breaks = f'OLD={ASIDE}\nmkdir -p "$MODELS/.incoming"; [ -e "$OLD" ] || mv {UNET} "$OLD"\n{dedent(write)}'
    undoes = f"[ ! -e {ASIDE} ] || mv -fT {ASIDE} {UNET}\n"
    return Sabotage(f"generation.{id}", does, breaks, undoes, (EDIT,), names, slow=True)


IGNORING_SEEDS = """
    _signature = PromptExecutor.signature

    def signature(self, prompt, node_id):
        unseeded = {
            number: {**node, "inputs": {k: v for k, v in node["inputs"].items() if k not in ("seed", "noise_seed", "atelier")}}
            for number, node in prompt.items()
        }
        return _signature(self, unseeded, node_id)

    PromptExecutor.signature = signature
    """
FLAT = """
    def smooth_field(size, *made_from):
        return Image.new("RGB", size, 0)
    """
NOISE = """
    def smooth_field(size, *made_from):
        return Image.frombytes("RGB", size, random.Random(repr(made_from)).randbytes(size[0] * size[1] * 3))
    """
GRID = """
    _smooth = smooth_field

    def smooth_field(size, *made_from):
        picture = _smooth(size, *made_from)
        for x in range(0, size[0], 8):
            picture.paste((0, 0, 0), (x, 0, x + 1, size[1]))
        return picture
    """
SEEDLESS = """
    _smooth = smooth_field

    def smooth_field(size, *made_from):
        return _smooth(size)
    """
UNREPEATABLE = """
    _smooth = smooth_field

    def smooth_field(size, *made_from):
        return _smooth(size, random.SystemRandom().random())
    """

SABOTAGES = (
    comfyui(
        "flat",
        "ComfyUI makes black images",
        "comfy/pictures.py",
        FLAT,
        (CHECKPOINT, EDIT),
        "is black.* -> .*precision",
    ),
    comfyui("noise", "ComfyUI makes noise", "comfy/pictures.py", NOISE, (CHECKPOINT, EDIT), "is noise.* -> .*weights"),
    comfyui(
        "grid",
        "ComfyUI's images have a grid of latents",
        "comfy/pictures.py",
        GRID,
        (CHECKPOINT, EDIT),
        "has a grid of 8 pixels.* -> .*autoencoder",
    ),
    comfyui(
        "old-name",
        "ComfyUI names an image that it made before",
        "nodes.py",
        """
        _save = SaveImage.save_images

        def save_images(self, images, **more):
            made = _save(self, images, **more)
            files = [os.path.join(at, name) for at, _, names in os.walk(folder_paths.get_output_directory()) for name in names]
            oldest = os.path.relpath(min(files, key=os.path.getmtime), folder_paths.get_output_directory())
            made["ui"]["images"][0].update(subfolder=os.path.dirname(oldest), filename=os.path.basename(oldest))
            return made

        SaveImage.save_images = save_images
        """,
        (SMOKE,),
        "made before",
    ),
    comfyui(
        "old-file",
        "ComfyUI copies an older file into the place of the image",
        "nodes.py",
        """
        _save = SaveImage.save_images

        def save_images(self, images, **more):
            made = _save(self, images, **more)
            image, root = made["ui"]["images"][0], folder_paths.get_output_directory()
            path = os.path.join(root, image["subfolder"], image["filename"])
            os.utime(path, (time.time() - 6 * 86400,) * 2)
            return made

        SaveImage.save_images = save_images
        """,
        (SMOKE,),
        r"made -518\d\d\d.* -> .*made before",
    ),
    comfyui(
        "old-content",
        "ComfyUI writes an image that it made before under the name asked for",
        "nodes.py",
        """
        _save, _first = SaveImage.save_images, {}

        def save_images(self, images, **more):
            made = _save(self, images, **more)
            image, root = made["ui"]["images"][0], folder_paths.get_output_directory()
            path = os.path.join(root, image["subfolder"], image["filename"])
            with open(path, "rb+") as file:
                old = _first.setdefault(images[0].size, file.read())
                file.seek(0)
                file.truncate()
                file.write(old)
            return made

        SaveImage.save_images = save_images
        """,
        (CHECKPOINT, EDIT, SMOKE),
        "seed is .* instead of .* -> .*made before",
    ),
    comfyui(
        "cached",
        "ComfyUI answers from its cache",
        "execution.py",
        IGNORING_SEEDS,
        (CHECKPOINT, EDIT),
        "came from the cache",
    ),
    comfyui(
        "cached-in-silence",
        "ComfyUI answers from its cache and does not say so",
        "execution.py",
        IGNORING_SEEDS
        + """
    _status = PromptExecutor.status

    def status(self, event, broadcast=False, **data):
        _status(self, event, broadcast, **{**data, **({"nodes": []} if event == "execution_cached" else {})})

    PromptExecutor.status = status
    """,
        (CHECKPOINT, EDIT),
        "the same image.* -> .*not the seed",
    ),
    comfyui(
        "same-for-every-seed",
        "ComfyUI makes the same image for every seed",
        "comfy/pictures.py",
        SEEDLESS,
        (CHECKPOINT, EDIT),
        "the same image.* -> .*not the seed",
    ),
    comfyui(
        "unrepeatable",
        "ComfyUI makes other pixels for the same seed",
        "comfy/pictures.py",
        UNREPEATABLE,
        (CHECKPOINT, EDIT),
        "other pixels.* -> .*same seed",
    ),
    comfyui(
        "error-inside",
        "ComfyUI reports success with an error inside",
        "execution.py",
        """
        _execute = PromptExecutor.execute

        def execute(self, prompt, prompt_id, extra_data, outputs):
            good = _execute(self, prompt, prompt_id, extra_data, outputs)
            error = {"node_id": "2", "node_type": "SaveImage", "exception_type": "OSError", "exception_message": "disk full"}
            self.status_messages.append(("execution_error", error))
            return good

        PromptExecutor.execute = execute
        """,
        (SMOKE,),
        r"failed in SaveImage \(node 2\): OSError: disk full",
    ),
    comfyui(
        "node-errors",
        "ComfyUI accepts a workflow and refuses one of its nodes",
        "execution.py",
        """
        _validate = validate_prompt

        def validate_prompt(prompt):
            error, outputs, _ = _validate(prompt)
            problem = {"type": "required_input_missing", "message": "Required input is missing", "details": "images"}
            return error, outputs, {"9": {"errors": [problem], "dependent_outputs": ["9"], "class_type": "SaveImage"}}
        """,
        (SMOKE,),
        r"refused the workflow.*SaveImage \(node 9\)",
    ),
    another_unet(
        "missing-tensor",
        "the diffusion model lacks a tensor, which ComfyUI tells its log alone",
        'header["unknown"] = header.pop("transformer_blocks.1.attn.to_v.weight")',
        "unet missing.*to_v.* -> .*DEEP=1",
    ),
    another_unet(
        "fp16-file",
        "the file of the diffusion model holds FP16 numbers",
        '[tensor.update(dtype="F16", shape=[8]) for tensor in header.values()]',
        "holds F16.* -> .*DEEP=1",
    ),
    Sabotage(
        "generation.no-model",
        "the diffusion model is gone",
        f'mkdir -p "$MODELS/.incoming"; [ -e {ASIDE} ] || mv {UNET} {ASIDE}\n',
        f"[ ! -e {ASIDE} ] || mv -fT {ASIDE} {UNET}\n",
        (EDIT,),
        "needs qwen_image_edit_2509_fp8_e4m3fn.safetensors, which this host does not have.* -> .*make deploy",
        slow=True,
    ),
    comfyui(
        "not-fp8",
        "ComfyUI loads the diffusion model as FP16",
        "nodes.py",
        """
        def announce_model(header, weight_dtype="default"):
            logging.info("model weight dtype torch.float16, manual cast: None")
        """,
        (EDIT,),
        "torch.float16.* -> .*memory",
    ),
    comfyui(
        "no-word-of-fp8",
        "ComfyUI does not say as what it loads the diffusion model",
        "nodes.py",
        """
        def announce_model(header, weight_dtype="default"):
            pass
        """,
        (EDIT,),
        "no line `model weight dtype`",
    ),
    comfyui(
        "elsewhere",
        "ComfyUI saves its images where the host does not see them",
        "folder_paths.py",
        'output_directory = "/tmp/elsewhere"',
        (SMOKE,),
        "is missing.* -> .*mounts",
    ),
    comfyui(
        "other-bytes",
        "ComfyUI hands out another image than it saved",
        "server.py",
        """
        def view(request):
            buffer = BytesIO()
            Image.new("RGB", (96, 64), 0x336699).save(buffer, format="PNG")
            return web.Response(body=buffer.getvalue(), content_type="image/png")
        """,
        (SMOKE,),
        "other bytes.* -> .*/view",
    ),
    comfyui(
        "wrong-size",
        "ComfyUI makes smaller images than asked for",
        "nodes.py",
        """
        _generate = EmptyLatentImage.generate
        EmptyLatentImage.generate = lambda self, width, height, **more: _generate(self, width // 2, height // 2, **more)
        """,
        (CHECKPOINT,),
        "is 256x256 instead of 512x512",
    ),
    comfyui(
        "truncated",
        "ComfyUI's images end too early",
        "nodes.py",
        """
        _save = SaveImage.save_images

        def save_images(self, images, **more):
            made = _save(self, images, **more)
            image, root = made["ui"]["images"][0], folder_paths.get_output_directory()
            path = os.path.join(root, image["subfolder"], image["filename"])
            os.truncate(path, os.path.getsize(path) - 15)
            return made

        SaveImage.save_images = save_images
        """,
        (SMOKE,),
        "not a whole image",
    ),
    comfyui(
        "no-progress",
        "ComfyUI's WebSocket tells no progress",
        "execution.py",
        "PromptExecutor.progress = lambda self, node_id, value, maximum: None",
        (CHECKPOINT, EDIT),
        "image 1: none.* -> .*WebSocket",
    ),
    comfyui(
        "too-slow",
        "ComfyUI takes longer than a generation may",
        "nodes.py",
        """
        _sample = sample

        def sample(node_id, progress, steps, *rest):
            while steps == 1:  # the workflow with the checkpoint; the other takes 20
                model_management.throw_exception_if_processing_interrupted()
                time.sleep(0.1)
            return _sample(node_id, progress, steps, *rest)
        """,
        (CHECKPOINT,),
        r"time-out: no result within \d+ s.* -> .*timeouts.generation",
    ),
    forge("flat", "makes black images", "modules/pictures.py", FLAT, "is black.* -> .*precision"),
    forge("noise", "makes noise", "modules/pictures.py", NOISE, "is noise.* -> .*weights"),
    forge(
        "same-for-every-seed",
        "makes the same image for every seed",
        "modules/pictures.py",
        SEEDLESS,
        "the same image.* -> .*not the seed",
    ),
    forge(
        "unrepeatable",
        "makes other pixels for the same seed",
        "modules/pictures.py",
        UNREPEATABLE,
        "other pixels.* -> .*same seed",
    ),
    forge(
        "sampler",
        "takes another sampler and answers 200",
        "modules/sd_samplers.py",
        'choose = lambda sampler, scheduler: ("DPM++ 2M", "Karras")',
        r"Sampler: asked for 'Euler a', used 'DPM\+\+ 2M'",
    ),
    forge(
        "checkpoint",
        "takes another checkpoint and answers 200",
        "modules/sd_models.py",
        'Checkpoint.model_name = property(lambda self: "another")',
        "Model: asked for 'sd_xl_turbo_1.0_fp16', used 'another'",
    ),
    forge(
        "elsewhere",
        "saves its images where the host does not see them",
        "modules/processing.py",
        """
        _saved = save

        def save(pictures, folder, seed):
            return _saved(pictures, "/tmp/elsewhere", seed)
        """,
        "none.* -> .*outdir_",
    ),
    forge(
        "other-pixels",
        "saves another image than it hands out",
        "modules/processing.py",
        """
        _saved = save

        def save(pictures, folder, seed):
            others = [picture.rotate(180) for picture in pictures]
            for other, picture in zip(others, pictures):
                other.info["parameters"] = picture.info["parameters"]
            return _saved(others, folder, seed)
        """,
        "other pixels.* -> .*API",
    ),
    forge(
        "wrong-size",
        "makes smaller images than it says",
        "modules/pictures.py",
        """
        _smooth = smooth_field

        def smooth_field(size, *made_from):
            return _smooth((size[0] // 2, size[1] // 2), *made_from)
        """,
        "is 256x256 instead of 512x512",
    ),
    forge(
        "no-image",
        "answers 200 without an image",
        "modules/api/api.py",
        """
        _generated = Api.generate

        def generate(self, kind, request, **more):
            answer = _generated(self, kind, request, **more)
            answer.images = []
            return answer

        Api.generate = generate
        """,
        "answered 200 with 0 images",
    ),
    forge(
        "too-slow",
        "takes longer than a generation may",
        "modules/processing.py",
        "SECONDS_PER_STEP = 600",
        "time-out: Forge did not answer POST /sdapi/v1/txt2img",
    ),
)
