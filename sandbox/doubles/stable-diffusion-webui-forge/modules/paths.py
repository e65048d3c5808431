"""TEST DOUBLE, never deploy: the repositories that Forge wants beside it."""

from __future__ import annotations

import os
import sys

from modules.paths_internal import script_path

for _folder, _must_exist in (
    ("repositories/BLIP", "models/blip.py"),
    ("repositories/huggingface_guess", "huggingface_guess/detection.py"),
):
    _path = os.path.join(script_path, _folder)
    if os.path.exists(os.path.join(_path, _must_exist)):
        sys.path.append(_path)
    else:
        print(f"Warning: {_folder} not found at path {_path}", file=sys.stderr)
