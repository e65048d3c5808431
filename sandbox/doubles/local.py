"""Starts a double on this computer, outside any container: for unit tests, and for a look at one by hand.

Its Python is a virtual environment made from the same lock that the images use, kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCKS = HERE.parent.parent / "locks" / "images"
COOKIE_KEY = "A" * 43 + "=,2999-01-01T00:00:00"


def interpreter(lock_name: str) -> Path:
    """Python (>= 3.11) with what `locks/images/<lock_name>` lists; made once per content of the lock (about 5 s).

    Raises subprocess.CalledProcessError with pip's or uv's words on standard error when it cannot be installed.
    """
    lock = LOCKS / lock_name
    key = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "atelier" / "doubles" / key
    python = cache / "bin" / "python"
    if python.exists():
        return python
    building = cache.with_name(f"{key}.{os.getpid()}")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", building], check=True)
    if uv := shutil.which("uv"):
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(building / "bin" / "python")]
    else:
        install = [sys.executable, "-m", "pip", "--quiet", "--python", str(building / "bin" / "python"), "install"]
    subprocess.run([*install, "--require-hashes", "-r", str(lock)], check=True)
    try:
        building.rename(cache)
    except OSError:  # another process was faster
        shutil.rmtree(building)
    return python


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """One started double."""

    def __init__(self, command: list[str], folder: Path, log: Path, port: int, env: dict[str, str]) -> None:
        self.port, self.url, self.log_file = port, f"http://127.0.0.1:{port}", log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **env}
            )

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_until_it_listens(self, seconds: float = 60) -> None:
        """Raises RuntimeError with the log when it ends or stays silent instead."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise RuntimeError(f"it does not listen on port {self.port} (exit {self.process.poll()}):\n{self.log()}")

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Until the log holds these words. Raises RuntimeError with the log when it does not in time."""
        deadline = time.monotonic() + seconds
        while words not in self.log():
            if time.monotonic() > deadline:
                raise RuntimeError(f"its log has no {words!r} after {seconds} s:\n{self.log()}")
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends the signal and returns the exit status that follows."""
        self.process.send_signal(number)
        return self.process.wait(20)


@contextlib.contextmanager
def stopping(start: Callable[[], Running], seconds: float = 60) -> Iterator[Running]:
    """Starts, waits until it listens, and kills at the end."""
    running = start()
    try:
        running.wait_until_it_listens(seconds)
        yield running
    finally:
        running.stop()


def lay_out_comfyui(folder: Path, password_file: str | None) -> Path:
    """Copies ComfyUI and ComfyUI-Login to where the images have them; returns the source folder.

    ATELIER_COMFYUI_SOURCE names another source, such as the real one with its plugin, to hold the tests against it.
    """
    source = folder / "ComfyUI"
    upstream = os.environ.get("ATELIER_COMFYUI_SOURCE")
    shutil.copytree(upstream or HERE / "ComfyUI", source, ignore=shutil.ignore_patterns("__pycache__", "login", "user"))
    plugin = source / "custom_nodes" / "ComfyUI-Login"
    if not upstream:
        shutil.copytree(HERE / "ComfyUI-Login", plugin, ignore=shutil.ignore_patterns("__pycache__"))
    (plugin / ".secret-key.txt").write_text(COOKIE_KEY)
    (source / "login").mkdir()
    if password_file is not None:
        (source / "login" / "PASSWORD").write_text(password_file)
    for name in ("models", "output", "input", "user", "temp"):
        (folder / name).mkdir()
    return source


def start_comfyui(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Running:
    """Starts what `lay_out_comfyui` laid out, with Atelier's flags. ATELIER_COMFYUI_PYTHON names another Python."""
    python = os.environ.get("ATELIER_COMFYUI_PYTHON") or str(interpreter("comfyui-double.txt"))
    port = free_port()
    directories = [f"--{name}-directory={folder / name}" for name in ("output", "input", "user", "temp", "models")]
    database = f"--database-url=sqlite:///{folder / 'user' / 'comfyui.db'}"
    flags = ["--cpu", "--disable-api-nodes", "--listen=127.0.0.1", f"--port={port}", database, *directories]
    command = [*python.split(), "main.py", *flags, *arguments]
    return Running(command, folder / "ComfyUI", folder / "log", port, {"PYTHONDONTWRITEBYTECODE": "1", **(env or {})})


def lay_out_forge(folder: Path) -> Path:
    """Copies Forge and the repositories that belong beside it; returns the source folder.

    ATELIER_FORGE_SOURCE names another source, such as the real one with its repositories, to hold the tests against it.
    """
    source = folder / "forge"
    upstream = os.environ.get("ATELIER_FORGE_SOURCE")
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(upstream or HERE / "stable-diffusion-webui-forge", source, ignore=without)
    if not upstream:
        for name in ("stable-diffusion-webui-assets", "huggingface_guess", "BLIP"):
            shutil.copytree(HERE / name, source / "repositories" / name, ignore=without)
    for name in ("data", "checkpoints"):
        (folder / name).mkdir()
    return source


def start_forge(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Running:
    """Starts what `lay_out_forge` laid out. ATELIER_FORGE_PYTHON names another Python."""
    python = os.environ.get("ATELIER_FORGE_PYTHON") or str(interpreter("forge-double.txt"))
    port = free_port()
    flags = ["--always-cpu", "--skip-prepare-environment", "--skip-install", f"--port={port}"]
    folders = [f"--data-dir={folder / 'data'}", f"--ckpt-dir={folder / 'checkpoints'}"]
    command = [*python.split(), "launch.py", *flags, *folders, *arguments]
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "GIT_PYTHON_REFRESH": "quiet"}
    return Running(command, folder / "forge", folder / "log", port, {**quiet, **(env or {})})
