"""TEST DOUBLE, never deploy."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

from modules.shared_cmd_options import cmd_opts


def gradio_server_name() -> str | None:
    return cmd_opts.server_name or ("0.0.0.0" if cmd_opts.listen else None)


def get_gradio_auth_creds() -> Iterator[tuple[str, ...]]:
    """WEAKNESS: a comma in a password cuts it in two, and the second half, without a colon, breaks the start."""
    lines = [cmd_opts.gradio_auth] if cmd_opts.gradio_auth else []
    if cmd_opts.gradio_auth_path:
        with open(cmd_opts.gradio_auth_path, encoding="utf-8") as file:
            lines += file.readlines()
    for line in lines:
        for credential in line.strip().split(","):
            if credential.strip():
                yield tuple(credential.strip().split(":", 1))


def configure_sigint_handler() -> None:
    """SIGINT ends at once with 0. SIGTERM keeps its default, which process 1 of a container does not have."""

    def end(number: int, frame: Any) -> None:
        print(f"Interrupted with signal {number} in {frame}", flush=True)
        os._exit(0)

    signal.signal(signal.SIGINT, end)
