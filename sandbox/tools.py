"""What the sandbox needs on this computer: named, and installed from apt when it is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sandbox import sources

REMEDY = "Use a real machine instead: HOST=user@address."
PIP = "a pip, to ask it for the hosts it uses"
# What must be there -> the Debian package that brings it.
NEEDED = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "mkfs.ext4": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "unshare": "util-linux",
    "losetup": "mount",
    "gpg": "gpg",
    "gpg-agent": "gpg-agent",
    "dpkg-deb": "dpkg",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    PIP: "python3-pip-whl",
}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class UnavailableError(RuntimeError):
    """The sandbox cannot work on this computer; the message says why and what to do instead."""


def missing_packages(is_there: Callable[[str], bool]) -> list[str]:
    """The packages to install, in the order of NEEDED; ``is_there`` tells of each command or file."""
    return list(dict.fromkeys(package for need, package in NEEDED.items() if not is_there(need)))


def _is_there(need: str) -> bool:
    if need == PIP:
        return bool(importlib.util.find_spec("pip") or sources.pip_wheels())
    return Path(need).exists() if need.startswith("/") else shutil.which(need, path=PATH) is not None


def require_linux() -> None:
    """Raises UnavailableError where no sandbox can ever work."""
    if sys.platform != "linux":
        raise UnavailableError(f"The sandbox needs Linux, and this is {platform.system()}. {REMEDY}")


def install_missing(say: Callable[[str], None]) -> None:
    """Installs what is missing, without a question. Call as root. Raises UnavailableError where that is impossible."""
    missing = missing_packages(_is_there)
    if not missing:
        return
    if shutil.which("apt-get", path=PATH) is None:
        raise UnavailableError(f"The sandbox needs {', '.join(missing)} and this computer has no apt-get. {REMEDY}")
    say(f"Installing what the sandbox needs on this computer: {', '.join(missing)} ...")
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *missing]
    for command in (install, ["apt-get", "update", "-q"], install):
        done = _apt(command)
        if done.returncode == 0 and command is install:
            return
    raise UnavailableError(f"apt-get could not install {', '.join(missing)}:\n{done.stdout[-2000:].strip()}\n{REMEDY}")


def _apt(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment() | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def environment() -> dict[str, str]:
    """This process's environment with the administrator's folders in PATH, which a user's shell may lack."""
    return {**os.environ, "PATH": f"{PATH}:{os.environ.get('PATH', '')}"}


def sudo_prefix() -> list[str]:
    """``sudo`` with the words that let it run without a question, or with one where a person is at the terminal.

    Raises UnavailableError when this user cannot become root.
    """
    if shutil.which("sudo") is None:
        raise UnavailableError(
            f"The sandbox needs root (a booted machine, a network of its own), and there is no sudo. {REMEDY}"
        )
    if subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n"]
    if sys.stdin is not None and sys.stdin.isatty():
        return ["sudo"]
    raise UnavailableError(f"The sandbox needs root, and sudo asks for a password with no terminal to ask at. {REMEDY}")
