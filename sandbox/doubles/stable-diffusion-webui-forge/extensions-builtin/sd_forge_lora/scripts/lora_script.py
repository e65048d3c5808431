"""TEST DOUBLE, never deploy. WEAKNESS: an extension's routes are open, /sdapi or not, --api-auth or not."""

import os

from modules import script_callbacks
from modules.paths_internal import models_path
from modules.shared_cmd_options import cmd_opts


def loras():
    folder = cmd_opts.lora_dir or os.path.join(models_path, "Lora")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [{"name": os.path.splitext(name)[0], "path": os.path.join(folder, name)} for name in names]


def add_routes(demo, app):
    app.add_api_route("/sdapi/v1/loras", loras, methods=["GET"])
    app.add_api_route("/sdapi/v1/refresh-loras", lambda: None, methods=["POST"])


script_callbacks.on_app_started(add_routes)
