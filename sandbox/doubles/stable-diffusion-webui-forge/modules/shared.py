"""TEST DOUBLE, never deploy: settings, progress and the command line, shared by all modules."""

from __future__ import annotations

import json
import os
import time
from typing import Any, ClassVar

from modules.paths_internal import data_path
from modules.shared_cmd_options import cmd_opts

demo: Any = None
_OUTPUTS = os.path.join(data_path, "outputs")


class Options:
    """The settings, kept in config.json. Unknown names raise KeyError."""

    defaults: ClassVar[dict[str, Any]] = {
        "samples_save": True,
        "samples_format": "png",
        "grid_save": True,
        "return_grid": True,
        "outdir_samples": "",
        "outdir_txt2img_samples": os.path.join(_OUTPUTS, "txt2img-images"),
        "outdir_img2img_samples": os.path.join(_OUTPUTS, "img2img-images"),
        "outdir_extras_samples": os.path.join(_OUTPUTS, "extras-images"),
        "outdir_grids": "",
        "outdir_txt2img_grids": os.path.join(_OUTPUTS, "txt2img-grids"),
        "outdir_img2img_grids": os.path.join(_OUTPUTS, "img2img-grids"),
        "outdir_save": os.path.join(data_path, "log", "images"),
        "sd_model_checkpoint": None,
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1.0,
        "live_previews_enable": True,
        "show_progress_every_n_steps": 10.0,
        "show_progress_type": "Approx NN",
        "disabled_extensions": [],
        "disable_all_extensions": "none",
        "forge_preset": "sd",
        "forge_additional_modules": [],
        "forge_unet_storage_dtype": "Automatic",
        "forge_inference_memory": 1024.0,
    }

    def __init__(self) -> None:
        self.data = dict(self.defaults)
        if os.path.exists(cmd_opts.ui_settings_file):
            with open(cmd_opts.ui_settings_file, encoding="utf-8") as file:
                self.data.update(json.load(file))

    def set(self, changes: dict[str, Any]) -> None:
        for name, value in changes.items():
            self.defaults[name]
            self.data[name] = value

    def save(self) -> None:
        with open(cmd_opts.ui_settings_file, "w", encoding="utf-8") as file:
            json.dump(self.data, file, indent=4)


class State:
    """What is being generated, for whoever asks for progress."""

    def __init__(self) -> None:
        self.interrupted = self.skipped = False
        self.job, self.job_timestamp = "", "0"
        self.job_count = self.job_no = self.sampling_step = self.sampling_steps = 0

    def begin(self, job: str, count: int, steps: int) -> None:
        self.__init__()  # type: ignore[misc]
        self.job, self.job_count, self.sampling_steps = job, count, steps
        self.job_timestamp = time.strftime("%Y%m%d%H%M%S")

    def end(self) -> None:
        self.job, self.job_count = "", 0

    def progress(self) -> float:
        if not self.job_count:
            return 0.0
        done = (self.job_no + self.sampling_step / max(self.sampling_steps, 1)) / self.job_count
        return min(0.01 + done, 1.0)


opts = Options()
state = State()
