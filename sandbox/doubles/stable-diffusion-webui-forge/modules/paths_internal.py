"""TEST DOUBLE, never deploy: Forge's folders, known before anything else is imported."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

# WEAKNESS: the variable's content becomes arguments, and with them goes to the log and to /internal/sysinfo.
sys.argv += shlex.split(os.environ.get("COMMANDLINE_ARGS", ""))

script_path = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_parser = argparse.ArgumentParser(add_help=False)
_parser.add_argument("--data-dir", default=script_path)
_parser.add_argument("--models-dir", default=None)
_known = _parser.parse_known_args()[0]

data_path = os.path.abspath(_known.data_dir)
models_path = os.path.abspath(_known.models_dir or os.path.join(data_path, "models"))
extensions_dir = os.path.join(data_path, "extensions")
extensions_builtin_dir = os.path.join(script_path, "extensions-builtin")
