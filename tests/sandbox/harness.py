"""What the end-to-end tests share: booted sandboxes, the command line as a user calls it, root in the guest."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from atelier import paths
from atelier.errors import AtelierError
from atelier.ssh import Ssh
from atelier.target import sandbox_target
from sandbox import cgroup, machine, shared, tools

ROOT = Path(__file__).resolve().parents[2]
UNCHANGED = r"Deployed: 0 of (\d+) operations changed something"


def up(name: str, **options: object) -> machine.Machine:
    """A running machine; skips the tests where this computer can make none."""
    try:
        return machine.up(name, print, **options)
    except tools.UnavailableError as error:
        if os.environ.get("REQUIRE_SANDBOX") == "1":
            raise
        pytest.skip(str(error))


def changes(output: str) -> list[str]:
    """The steps of a deploy that changed something."""
    return re.findall(r"^  \+ (.+?)  \(", output, re.M)


def told(output: str) -> str:
    """What a command's output ends with, and before it the checks that did not pass: those may lie far above."""
    wrong = re.findall(r"^(?:failed|warned|skipped) .*(?:\n {3,}\S.*)*", output, re.M)
    return "\n".join([*wrong, "...", output[-3000:]])


@dataclass(frozen=True)
class Sandbox:
    """A sandbox, and the checkout whose commands are aimed at it."""

    name: str
    checkout: Path = ROOT

    def up(self) -> machine.Machine:
        return up(self.name, binds=shared.binds())

    @contextmanager
    def running(self) -> Iterator[None]:
        self.up()
        try:
            yield
        finally:
            self.forget()

    def cut_power(self) -> None:
        """SIGKILL to everything that is the sandbox; its disk stays."""
        pid = int((machine.folder() / self.name / "supervisor.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while machine.get(self.name) is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        cgroup.remove(self.name)

    def gate(self) -> str:
        """This computer's address that the guest reaches, restarts of the guest outlasted."""
        spec = json.loads((machine.folder() / self.name / "machine.json").read_text())
        return str(spec["network"]["outer_address"])

    def forget(self) -> None:
        """Remove it, and what this checkout keeps of it."""
        machine.down(self.name, print)
        for folder in (paths.secrets_dir(self.name), paths.reports_dir(self.name), paths.outputs_dir(self.name)):
            shutil.rmtree(folder, ignore_errors=True)

    def started(self, *arguments: str, **options: object) -> subprocess.Popen[str]:
        """A command of the checkout, as a user would call it from somewhere else."""
        command = [Path(sys.executable).with_name("atelier"), *arguments, "--host", self.name]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        environment = {**os.environ, "PYTHONPATH": str(self.checkout)}
        return subprocess.Popen(command, env=environment, cwd="/", text=True, **{**streams, **options})

    def atelier(self, *arguments: str, expect: int = 0) -> str:
        """Run a command to its end; returns what it printed."""
        with self.started(*arguments) as process:
            try:
                output, _ = process.communicate(timeout=900)
            finally:
                process.kill()
        print(output)
        assert process.returncode == expect, told(output)
        assert "Traceback" not in output
        return output

    def deploy(self, *arguments: str, expect: int = 0) -> str:
        return self.atelier("deploy", "--sources", "double", *arguments, expect=expect)

    def ssh(self) -> Ssh:
        return sandbox_target(self.name, ROOT).ssh()

    def root(self, script: str, stdin: str = "") -> str:
        """Run a script as root in the guest."""
        result = self.ssh().run(script, stdin=stdin.encode())
        assert result.status == 0, result.stdout + result.stderr
        return result.stdout.strip()

    def wait_for(self, condition: str, seconds: int = 90) -> None:
        """Until the shell in the guest says that it is so; it may be starting meanwhile."""
        deadline = time.monotonic() + seconds
        while not self._holds(condition):
            assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
            time.sleep(1)

    def _holds(self, condition: str) -> bool:
        try:
            return self.ssh().run(condition, timeout=20).status == 0
        except AtelierError:
            return False


def copy_checkout(place: Path) -> Path:
    """This checkout as it stands, without what git ignores, in another place."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, capture_output=True, check=True).stdout.decode().split("\0"):
        if name and (ROOT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    return place


@contextmanager
def edited(path: Path, text: str) -> Iterator[None]:
    """A file of a copied checkout with another text, for a while."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


BREAK_LOGIN = """
set -e; cd /opt/atelier/services/comfyui-qwen
printf 'raise ImportError("broken on purpose")\\n' >/tmp/broken.py; chmod 0644 /tmp/broken.py
cat >/tmp/broken.yaml <<'X'
services:
  comfyui-qwen:
    volumes: ["/tmp/broken.py:/opt/comfyui/custom_nodes/ComfyUI-Login/__init__.py:ro"]
X
docker compose -f compose.yaml -f /tmp/broken.yaml up -d >/dev/null 2>&1
"""
"""Run in a guest: ComfyUI starts again with a login plugin that cannot be imported."""
