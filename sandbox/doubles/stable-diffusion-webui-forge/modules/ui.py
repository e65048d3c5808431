"""TEST DOUBLE, never deploy: the page, with one function behind it, and Forge's open /internal routes."""

from __future__ import annotations

import json
import os
from typing import Any

import gradio
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from modules import processing, sd_models, shared, sysinfo
from modules.call_queue import queue_lock
from modules.paths_internal import script_path


def txt2img(prompt: str, seed: int = -1) -> list[dict[str, str]]:
    """What the Generate button does: a small picture, always kept in the output folder."""
    with queue_lock:
        job = processing.Job("txt2img", prompt=prompt, seed=seed, steps=1, width=64, height=64)
        done = processing.process_images(job)
        folder = shared.opts.data["outdir_txt2img_samples"]
        return [{"path": path} for path in processing.save(done.images, folder, done.info["seed"])]


def create_ui() -> gradio.Blocks:
    sd_models.list_models()
    # WEAKNESS: the description of the functions goes into the login page as well, names of checkpoints included.
    return gradio.Blocks("Stable Diffusion", txt2img, {"Checkpoint": list(sd_models.checkpoints)})


def setup_ui_api(app: Any) -> None:
    app.add_api_route("/internal/quicksettings-hint", quicksettings_hint, methods=["GET"])
    app.add_api_route("/internal/ping", lambda: {}, methods=["GET"])
    app.add_api_route("/internal/profile-startup", lambda: {"total": 0.0, "records": {}}, methods=["GET"])
    app.add_api_route("/internal/sysinfo", download_sysinfo, methods=["GET"])
    app.add_api_route("/internal/sysinfo-download", lambda: download_sysinfo(attachment=True), methods=["GET"])
    assets = os.path.join(script_path, "repositories", "stable-diffusion-webui-assets")
    app.mount("/webui-assets", StaticFiles(directory=assets), name="webui-assets")


def quicksettings_hint() -> list[dict[str, str]]:
    return [{"name": name, "label": name} for name in shared.opts.defaults]


def download_sysinfo(attachment: bool = False) -> PlainTextResponse:
    kind = "attachment" if attachment else "inline"
    headers = {"Content-Disposition": f'{kind}; filename="sysinfo.json"'}
    return PlainTextResponse(json.dumps(sysinfo.get_dict(), indent=4), headers=headers)
