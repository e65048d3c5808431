"""A host whose every secret is known: deployed at a terminal, while every program and every file on both sides is watched."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from harness import Sandbox, copy_checkout
from secret_forms import Forms

from sandbox import machine, tools

HERE = Path(__file__).parent
DECOY = 'Gd5h$2b$10"q\\ Wz=Xe8rT4yUk1oPa&s;`|{#}%:,'
"""A secret of nobody's, planted in every kind of place: what does not find it finds nothing."""
CHOSEN = {
    "COMFYUI_PASSWORD": 'k7 $HOME"$2b$x\\n{#}&%=:,;`|!Wq3mZt8rLp5vXc',
    "FORGE_PASSWORD": 'Jx4 "$(id)#&=+\\{}[]~%s!Bn6kYd9sHf2gTw',
}
CHOSEN_LATER = {"COMFYUI_PASSWORD": 'r2 ${PATH}<>"\\$$Vb9nMq4wEz7t!', "FORGE_PASSWORD": "u8 `ls`|Dk5pLx3cRj6h?*^ %2F"}
HUB_TOKEN = "hf_MzQpVnTyLxRkWjBsHdGf"


@dataclass
class Watch:
    """What was seen while somebody was at work: all that a terminal showed, and the records of the two watchers."""

    folder: Path
    terminal: bytes = b""

    def programs(self, side: str) -> list[dict[str, list[str]]]:
        return [json.loads(line) for line in (self.folder / f"programs-{side}").read_text().splitlines()]

    def files_open_to_others(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.folder / "files").read_text("utf-8").split("\n")[:-1]]


@dataclass
class PlantedHost:
    """A sandbox, the checkout that it is deployed from, and what was watched."""

    sandbox: Sandbox
    folder: Path
    secrets: dict[str, list[str]] = field(default_factory=dict)
    watches: list[Watch] = field(default_factory=list)

    @property
    def temporary(self) -> Path:
        """The folder for temporary files of what runs on this computer."""
        return self.folder / "tmp"

    @property
    def checkout(self) -> Path:
        return self.sandbox.checkout

    @property
    def store(self) -> Path:
        return self.checkout / ".secrets" / self.sandbox.name

    def environment(self, chosen: Mapping[str, str]) -> dict[str, str]:
        return {**os.environ, **chosen, "PYTHONPATH": str(self.checkout), "TMPDIR": str(self.temporary)}

    def learn(self, when: str) -> None:
        """Take note of every secret that there is now."""
        stored = yaml.safe_load((self.store / "credentials.yml").read_text())
        for service in ("comfyui", "forge"):
            self.secrets[f"{when} {service} password"] = [stored[service]["password"]]
            self.secrets[f"{when} {service} hash"] = [stored[service]["password_bcrypt"]]
        self.secrets[f"{when} cookie key"] = [stored["comfyui_cookie_key"]]
        for name in ("tls.key", "ca.key"):
            lines = (self.store / name).read_text().splitlines()
            self.secrets[name] = [line for line in lines if not line.startswith("---") and len(line) > 16]

    def forms(self) -> Forms:
        return Forms({**self.secrets, "hub token": [HUB_TOKEN], "decoy": [DECOY]})

    def make(self, command: str, chosen: Mapping[str, str]) -> None:
        """Run a command of make's at a terminal, with all that can be said of it said, and watch."""
        watch = Watch(self.folder / f"watch-{len(self.watches)}")
        watch.folder.mkdir()
        self.watches.append(watch)
        script = f"read -r go; sh -x ./bootstrap.sh && exec make --trace {command}"
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 2000, 0, 0))
        with subprocess.Popen(
            ["sh", "-c", script],
            cwd=self.checkout,
            env=self.environment(chosen),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            with self._watched(watch, process.pid):
                os.write(ours, b"\n")
                watch.terminal = b"".join(iter(lambda: _read(ours), b""))
                process.wait(timeout=60)
                self._decoys_in_passing()
        os.close(ours)
        print(watch.terminal.decode(errors="replace"))
        assert process.returncode == 0, watch.terminal[-4000:].decode(errors="replace")

    @contextmanager
    def _watched(self, watch: Watch, here: int) -> Iterator[None]:
        guest = guest_processes(self.sandbox.name)
        root = f"/proc/{guest[0]}/root"
        watchers = [
            started("watch_processes.py", str(watch.folder / "programs-host"), *map(str, guest)),
            started("watch_processes.py", str(watch.folder / "programs-here"), str(here)),
            started("watch_files.py", str(watch.folder / "files"), root, "/", "/run", "/tmp", "/dev/shm"),
        ]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.terminate()
                watcher.wait()

    def _decoys_in_passing(self) -> None:
        """A program that gets the decoy and ends, a file that others could read for a moment, and one that they could not."""
        self.sandbox.root(
            'read -r decoy; /bin/true -- "$decoy"; SOMETHING="$decoy" /bin/true; umask 022; '
            'printf "%s" "$decoy" >/opt/passing; chmod 0600 /opt/passing; rm /opt/passing; umask 077; '
            'printf "%s" "$decoy" >/opt/private; rm /opt/private',
            stdin=DECOY + "\n",
        )


def started(program: str, *arguments: str) -> "subprocess.Popen[str]":
    """A watcher that is at work."""
    privilege = tools.sudo_prefix() if os.geteuid() else []
    command = [*privilege, sys.executable, str(HERE / program), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "watching\n"
    return process


def guest_processes(name: str) -> list[int]:
    """Every process of a sandbox as this computer numbers them, its init first."""
    guest = machine.get(name)
    assert guest
    network = Path("/run/netns", guest.namespace).stat().st_ino
    ours, found = Path("/proc/self/ns/pid").stat().st_ino, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            spaces = (process / "ns/net").stat().st_ino, (process / "ns/pid").stat().st_ino
        except OSError:
            continue
        if spaces[0] == network and spaces[1] != ours:
            found.append(int(process.name))
    return sorted(found)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # its other end is closed
        return b""


def prepared(name: str, folder: Path) -> PlantedHost:
    """A checkout of its own, with settings under which there is every kind of secret."""
    checkout = copy_checkout(folder / "checkout")
    (folder / "tmp").mkdir()
    (folder / "hub-token").touch(0o600)
    (folder / "hub-token").write_text(HUB_TOKEN)
    with (checkout / "group_data" / "sandbox.py").open("a") as settings:
        settings.write(f'models = {{"token_file": {str(folder / "hub-token")!r}}}\n')
        settings.write('bind_address = "0.0.0.0"\ntls = {"mode": "internal"}\n')
    environment = checkout / ".venv"
    environment.mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".made-from":
            (environment / part.name).symlink_to(part)
    script = "{ cat locks/requirements.txt pyproject.toml; pwd -P; } | sha256sum | cut -d' ' -f1 >.venv/.made-from"
    subprocess.run(["sh", "-c", script], cwd=checkout, check=True)
    return PlantedHost(Sandbox(name, checkout), folder)
