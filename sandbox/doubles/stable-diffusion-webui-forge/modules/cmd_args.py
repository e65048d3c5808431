"""TEST DOUBLE, never deploy: Forge's command line. Flags that only steer a GPU are taken and ignored."""

from __future__ import annotations

import argparse
import os

from modules.paths_internal import data_path

SWITCHES = (
    "all-in-fp32", "all-in-fp16", "unet-in-bf16", "unet-in-fp16", "unet-in-fp8-e4m3fn", "vae-in-fp16", "vae-in-fp32",
    "vae-in-bf16", "vae-in-cpu", "clip-in-fp16", "clip-in-fp32", "attention-split", "attention-quad",
    "attention-pytorch", "disable-xformers", "xformers", "always-gpu", "always-high-vram", "always-normal-vram",
    "always-low-vram", "always-no-vram", "always-cpu", "always-offload-from-vram", "pytorch-deterministic",
    "cuda-malloc", "cuda-stream", "pin-shared-memory", "skip-python-version-check", "skip-torch-cuda-test",
    "skip-prepare-environment", "skip-install", "skip-version-check", "no-hashing", "no-download-sd-model",
    "do-not-download-clip", "no-half", "no-half-vae", "listen", "api", "api-log", "share", "autolaunch",
    "hide-ui-dir-config", "freeze-settings", "disable-console-progressbars", "disable-all-extensions",
    "disable-extra-extensions", "no-gradio-queue", "no-prompt-history", "log-startup", "update-check",
    "enable-insecure-extension-access",
)  # fmt: skip
PATHS = (
    "models-dir", "ckpt", "ckpt-dir", "vae-dir", "text-encoder-dir", "lora-dir", "hypernetwork-dir", "embeddings-dir",
    "gradio-auth-path",
)  # fmt: skip
TEXTS = (
    "gradio-auth", "api-auth", "server-name", "subpath", "theme", "loglevel", "gpu-device-id", "device-id",
    "cors-allow-origins", "cors-allow-origins-regex", "tls-keyfile", "tls-certfile",
)  # fmt: skip

parser = argparse.ArgumentParser()
for _name in SWITCHES:
    parser.add_argument(f"--{_name}", action="store_true")
for _name in PATHS:
    parser.add_argument(f"--{_name}", type=os.path.abspath, default=None)
for _name in TEXTS:
    parser.add_argument(f"--{_name}", default=None)
parser.add_argument("--data-dir", type=os.path.abspath, default=data_path)
parser.add_argument("--port", type=int, default=None)
parser.add_argument("--timeout-keep-alive", type=int, default=30)
parser.add_argument("--ui-settings-file", default=os.path.join(data_path, "config.json"))
parser.add_argument("--gradio-allowed-path", action="append", default=[data_path])
