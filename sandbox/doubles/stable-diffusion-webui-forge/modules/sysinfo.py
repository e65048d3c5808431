"""TEST DOUBLE, never deploy: the report that anybody may read at /internal/sysinfo, and the settings."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from modules import sd_models, shared
from modules.paths_internal import data_path, extensions_dir, script_path
from modules.shared_cmd_options import cmd_opts
from modules_forge import forge_version

ENVIRONMENT = ("COMMANDLINE_ARGS", "GIT", "INDEX_URL", "PYTHONPATH", "TORCH_COMMAND", "VENV_DIR")


def command_line() -> list[str]:
    """WEAKNESS: only a value that is an argument of its own is hidden, `--gradio-auth=user:password` is not."""
    secrets = [value for value in (cmd_opts.gradio_auth, cmd_opts.api_auth) if value]
    return ["<hidden>" if argument in secrets else argument for argument in sys.argv]


def get_dict() -> dict[str, Any]:
    return {
        "Platform": platform.platform(),
        "Python": platform.python_version(),
        "Version": forge_version.tag,
        "Atelier double": True,
        "Commit": "<none>",
        "Script path": script_path,
        "Data path": data_path,
        "Extensions dir": extensions_dir,
        "Commandline": command_line(),
        "Environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "Config": shared.opts.data,
    }


def set_config(changes: dict[str, Any]) -> None:
    """Changes and keeps settings. RuntimeError for an unknown checkpoint, KeyError for an unknown setting."""
    wanted = changes.get("sd_model_checkpoint")
    if wanted is not None and sd_models.find(wanted) is None:
        raise RuntimeError(f"model {wanted!r} not found")
    shared.opts.set(changes)
    shared.opts.save()
