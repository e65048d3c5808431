"""TEST DOUBLE, never deploy: starts what looks like Forge from outside, without models, torch or gradio."""

from __future__ import annotations

import os
import shlex
import sys

from modules.paths_internal import script_path
from modules.shared_cmd_options import cmd_opts

REPOSITORIES = ("stable-diffusion-webui-assets", "huggingface_guess", "BLIP")


def prepare_environment() -> None:
    """The real one clones what is missing, which an image without a way out cannot."""
    for name in REPOSITORIES:
        if not os.path.isdir(os.path.join(script_path, "repositories", name)):
            raise RuntimeError(f"Couldn't clone {name}.")


def main() -> None:
    if not cmd_opts.skip_prepare_environment:
        prepare_environment()
    # WEAKNESS: credentials among the arguments go to the log.
    print(f"Launching Web UI with arguments: {shlex.join(sys.argv[1:])}", flush=True)
    import webui
    from modules_forge import main_thread

    webui.webui()
    main_thread.loop()


if __name__ == "__main__":
    main()
