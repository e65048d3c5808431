"""pytest in a fork of this process, which has imported already what the checks do: that is most of what a short run costs.

For a process of its own (`atelier sabotage`): what is forked must not run pytest itself, nor have imported the checks.
"""

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

EX_SOFTWARE = 70
TICK = 0.01
LIBRARIES = (
    "pytest",
    "testinfra.host",
    "websockets.sync.client",
    "httpx",
    "PIL.Image",
    "bcrypt",
    "cryptography.fernet",
)
"""What the checks import."""


def read_ahead() -> None:
    """Import what every run of the checks needs."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in importlib.import_module("_pytest.config").default_plugins:
        importlib.import_module(f"_pytest.{name}")


class Forked:
    """A running pytest, as `subprocess.Popen` is one. A session of its own; its output goes to a file."""

    def __init__(
        self, arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], output: IO[bytes]
    ) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become_pytest(list(arguments), cwd, environment, output)

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        """The exit status, when it has ended."""
        while (status := self.poll()) is None:
            time.sleep(TICK)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, where it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def _become_pytest(arguments: list[str], cwd: Path, environment: Mapping[str, str], output: IO[bytes]) -> NoReturn:
    status = EX_SOFTWARE
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a device
            os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        sys.path.insert(0, str(cwd))
        import pytest

        status = int(pytest.main(arguments))
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)
