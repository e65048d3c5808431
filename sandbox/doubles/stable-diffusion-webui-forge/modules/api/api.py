"""TEST DOUBLE, never deploy: /sdapi. `Api.auth` is where a start script puts a check of its own."""

from __future__ import annotations

import base64
import io
from secrets import compare_digest
from threading import Lock
from typing import Any

from fastapi import Body, Depends, FastAPI
from fastapi.exceptions import HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import processing, sd_models, sd_samplers, shared, sysinfo
from modules.api import models
from PIL import Image

JOB_FIELDS = (
    "prompt", "negative_prompt", "seed", "steps", "cfg_scale", "width", "height", "scheduler", "batch_size", "n_iter",
    "override_settings", "override_settings_restore_afterwards",
)  # fmt: skip
EMPTY_LISTS = (
    "extensions", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "sd-modules", "upscalers",
    "latent-upscale-modes", "script-info",
)  # fmt: skip


def encode(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=processing.png_info(picture))
    return base64.b64encode(buffer.getvalue()).decode()


def decode(text: str) -> Image.Image:
    if text.startswith("data:image/"):
        text = text.split(",", 1)[1]
    try:
        return Image.open(io.BytesIO(base64.b64decode(text)))
    except Exception as error:
        raise HTTPException(status_code=500, detail="Invalid encoded image") from error


class Api:
    def __init__(self, app: FastAPI, queue_lock: Lock) -> None:
        if shared.cmd_opts.api_auth:
            self.credentials = {}
            for auth in shared.cmd_opts.api_auth.split(","):
                # WEAKNESS: a colon in the password ends the thread here, and with it all of /sdapi.
                user, password = auth.split(":")
                self.credentials[user] = password
        self.app = app
        self.queue_lock = queue_lock
        get, post = ["GET"], ["POST"]
        self.add_api_route("txt2img", self.text2imgapi, post, models.ImagesResponse)
        self.add_api_route("img2img", self.img2imgapi, post, models.ImagesResponse)
        self.add_api_route("png-info", self.pnginfoapi, post)
        self.add_api_route("progress", self.progressapi, get)
        self.add_api_route("interrupt", self.interruptapi, post)
        self.add_api_route("skip", self.interruptapi, post)
        self.add_api_route("options", lambda: shared.opts.data, get)
        self.add_api_route("options", self.set_config, post)
        self.add_api_route("cmd-flags", lambda: vars(shared.cmd_opts), get, models.FlagsModel)
        self.add_api_route("samplers", self.get_samplers, get)
        self.add_api_route("schedulers", self.get_schedulers, get)
        self.add_api_route("sd-models", self.get_sd_models, get)
        self.add_api_route("embeddings", lambda: {"loaded": {}, "skipped": {}}, get)
        self.add_api_route("memory", lambda: {"ram": {}, "cuda": {"error": "unavailable"}}, get)
        self.add_api_route("scripts", lambda: {"txt2img": [], "img2img": []}, get)
        self.add_api_route("refresh-checkpoints", sd_models.list_models, post)
        self.add_api_route("refresh-vae", lambda: None, post)
        self.add_api_route("unload-checkpoint", self.unloadapi, post)
        self.add_api_route("reload-checkpoint", lambda: {}, post)
        for name in EMPTY_LISTS:
            self.add_api_route(name, lambda: [], get)

    def add_api_route(self, name: str, endpoint: Any, methods: list[str], response_model: Any = None) -> None:
        """WEAKNESS: without --api-auth the API is open, whatever the page's login."""
        dependencies = [Depends(self.auth)] if shared.cmd_opts.api_auth else []
        self.app.add_api_route(
            f"/sdapi/v1/{name}", endpoint, methods=methods, dependencies=dependencies, response_model=response_model
        )

    def auth(self, credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> bool:  # noqa: B008
        if credentials.username in self.credentials:  # noqa: SIM102
            if compare_digest(credentials.password, self.credentials[credentials.username]):
                return True
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    def generate(self, kind: str, request: models.TextToImageRequest, **more: Any) -> models.ImagesResponse:
        if request.script_name:
            raise HTTPException(status_code=422, detail=f"Script '{request.script_name}' not found")
        fields = {name: getattr(request, name) for name in JOB_FIELDS}
        sampler = request.sampler_name or request.sampler_index
        job = processing.Job(kind, **fields, sampler_name=sampler, save=request.save_images, **more)
        with self.queue_lock:
            done = processing.process_images(job)
        images = [encode(picture) for picture in done.images] if request.send_images else []
        parameters = {**request.model_dump(exclude={"init_images"}), "sampler_name": request.sampler_name}
        return models.ImagesResponse(images=images, parameters=parameters, info=done.js())

    def text2imgapi(self, request: models.TextToImageRequest) -> models.ImagesResponse:
        return self.generate("txt2img", request)

    def img2imgapi(self, request: models.ImageToImageRequest) -> models.ImagesResponse:
        if request.init_images is None:
            raise HTTPException(status_code=404, detail="Init image not found")
        pictures = [decode(text) for text in request.init_images]
        return self.generate("img2img", request, init_images=pictures, denoising_strength=request.denoising_strength)

    def pnginfoapi(self, request: models.PngInfoRequest) -> dict[str, Any]:
        text = decode(request.image.strip()).info.get("parameters", "")
        return {"info": text, "items": {"parameters": text}, "parameters": {}}

    def progressapi(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(shared.state).items() if name != "textinfo"}
        progress = shared.state.progress()
        return {"progress": progress, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}

    def interruptapi(self) -> dict[str, Any]:
        shared.state.interrupted = True
        return {}

    def unloadapi(self) -> dict[str, Any]:
        sd_models.unload()
        return {}

    def set_config(self, changes: dict[str, Any] = Body()) -> None:  # noqa: B008
        sysinfo.set_config(changes)

    def get_samplers(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "aliases": [], "options": {"scheduler": default} if default else {}}
            for name, default in sd_samplers.SAMPLERS.items()
        ]

    def get_schedulers(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
            for name, label in sd_samplers.SCHEDULERS.items()
        ]

    def get_sd_models(self) -> list[dict[str, Any]]:
        return [
            {
                "title": checkpoint.title,
                "model_name": checkpoint.model_name,
                "hash": checkpoint.hash,
                "sha256": checkpoint.sha256,
                "filename": checkpoint.filename,
                "config": None,
            }
            for checkpoint in sd_models.checkpoints.values()
        ]
