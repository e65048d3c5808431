"""TEST DOUBLE, never deploy: loads the scripts of built-in and added extensions; a failing one is reported and left."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback

from modules.paths_internal import extensions_builtin_dir, extensions_dir
from modules.shared_cmd_options import cmd_opts


def load_scripts() -> None:
    if cmd_opts.disable_all_extensions:
        return
    for folder in (extensions_builtin_dir, extensions_dir):
        for extension in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            scripts = os.path.join(folder, extension, "scripts")
            for name in sorted(os.listdir(scripts)) if os.path.isdir(scripts) else []:
                if name.endswith(".py"):
                    load_script(os.path.join(scripts, name))


def load_script(path: str) -> None:
    try:
        spec = importlib.util.spec_from_file_location(os.path.basename(path), path)
        assert spec and spec.loader
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception:
        print(f"*** Error loading script: {os.path.basename(path)}", file=sys.stderr, flush=True)
        print("".join(f"    {line}\n" for line in traceback.format_exc().splitlines()), file=sys.stderr, flush=True)
