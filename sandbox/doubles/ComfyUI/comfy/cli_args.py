"""TEST DOUBLE, never deploy: ComfyUI's command line. A flag that ComfyUI v0.33.0 lacks is an argparse error here too.

Flags that only steer a GPU are taken and ignored.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

LOG_LEVELS = ("DEBUG", "DETAIL", "INFO", "WARNING", "ERROR", "CRITICAL")
IGNORED_SWITCHES = (
    "auto-launch", "disable-auto-launch", "cuda-malloc", "disable-cuda-malloc", "force-fp32", "force-fp16",
    "fp32-unet", "bf16-unet", "fp16-unet", "fp8_e4m3fn-unet", "fp8_e5m2-unet", "fp16-vae", "fp32-vae", "bf16-vae",
    "cpu-vae", "fp8_e4m3fn-text-enc", "fp8_e5m2-text-enc", "fp16-text-enc", "fp32-text-enc", "bf16-text-enc",
    "force-channels-last", "supports-fp8-compute", "cache-classic", "cache-none", "high-ram",
    "use-split-cross-attention", "use-quad-cross-attention", "use-pytorch-cross-attention", "use-sage-attention",
    "use-flash-attention", "disable-xformers", "force-upcast-attention", "dont-upcast-attention", "gpu-only",
    "highvram", "lowvram", "novram", "disable-async-offload", "disable-dynamic-vram", "enable-dynamic-vram",
    "disable-smart-memory", "deterministic", "disable-pinned-memory", "disable-mmap", "windows-standalone-build",
    "enable-assets", "enable-compress-response-body",
)  # fmt: skip
IGNORED_VALUES = (
    "cuda-device", "default-device", "reserve-vram", "vram-headroom", "cache-lru", "front-end-version",
    "preview-method", "preview-size", "tls-keyfile", "tls-certfile",
)  # fmt: skip


class VerboseAction(argparse.Action):
    """No value means DEBUG; LEVEL sets the console, LEVEL FILE adds a log file; may be repeated."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        given = list(values or [])
        if (given and given[0] not in LOG_LEVELS) or len(given) > 2:
            parser.error(f"{option_string} expects no values, a console LEVEL, or LEVEL FILE")
        level = given[0] if given else "DEBUG"
        path = given[1] if len(given) == 2 else None
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), (level, path)])


def readable_directory(path: str) -> str:
    """Directories that ComfyUI wants to exist at the start: user, models, front end."""
    if not os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"'{path}' is not a directory.")
    if not os.access(path, os.R_OK):
        raise argparse.ArgumentTypeError(f"You do not have read permissions for '{path}'.")
    return path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1", nargs="?", const="0.0.0.0,::")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--enable-cors-header", default=None, nargs="?", const="*")
    parser.add_argument("--max-upload-size", type=float, default=100, help="MB")
    parser.add_argument("--base-directory", default=None)
    parser.add_argument("--models-directory", type=readable_directory, default=None)
    parser.add_argument("--output-directory", default=None)
    parser.add_argument("--temp-directory", default=None)
    parser.add_argument("--input-directory", default=None)
    parser.add_argument("--user-directory", type=readable_directory, default=None)
    parser.add_argument("--front-end-root", type=readable_directory, default=None)
    database = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "user", "comfyui.db"))
    parser.add_argument("--database-url", default=f"sqlite:///{database}")
    parser.add_argument("--dont-print-server", action="store_true")
    parser.add_argument("--quick-test-for-ci", action="store_true")
    parser.add_argument("--disable-metadata", action="store_true")
    parser.add_argument("--disable-all-custom-nodes", action="store_true")
    parser.add_argument("--whitelist-custom-nodes", nargs="+", default=[])
    parser.add_argument("--disable-api-nodes", action="store_true")
    parser.add_argument("--multi-user", action="store_true")
    parser.add_argument("--verbose", action=VerboseAction, nargs="*", default=[])
    parser.add_argument("--log-stdout", action="store_true")
    parser.add_argument("--fast", nargs="*")
    parser.add_argument("--cache-ram", nargs="*", type=float, default=[])
    parser.add_argument("--async-offload", nargs="?", type=int)
    for name in IGNORED_SWITCHES:
        parser.add_argument(f"--{name}", action="store_true")
    for name in IGNORED_VALUES:
        parser.add_argument(f"--{name}", default=None)
    return parser


args = build_parser().parse_args()


def console_log_level() -> str:
    levels = [level for level, path in args.verbose if path is None]
    return min(levels, key=LOG_LEVELS.index, default="INFO")
