"""The base image: a minimal Debian 13 as a bare cloud machine has it, built once and copied for each sandbox."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from sandbox import internet, proxy, sources, tools

SUITE = "trixie"
COMPONENTS = "main contrib non-free non-free-firmware"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
USER = "deploy"
# What a bare Debian cloud machine has and a deploy may count on. No curl, no gnupg, no Docker: the deploy brings them.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "sudo",
    "iproute2",
    "ca-certificates",
    "python3",
    "procps",
    "kmod",
    "netbase",
    "less",
    "tzdata",
)
IMAGE_BYTES = 4 * 2**30  # sparse; each sandbox's copy is grown to its own size

# Runs in mount and process namespaces of its own, so that nothing is left when it is killed.
BUILD = """set -eu
mount -o loop "$IMAGE" "$ROOT"
set -- "$SUITE" "$ROOT/new"
if [ -s "$SOURCES" ]; then set -- "$@" "$SOURCES"; fi
mmdebstrap --quiet --mode=root --variant=minbase --format=directory --include="$PACKAGES" \
    --aptopt='Acquire::http::Proxy "http://127.0.0.1:'"$PROXY_PORT"'"' --aptopt='Acquire::Languages "none"' \
    "$@"
mv "$ROOT"/new/* "$ROOT"/ && rmdir "$ROOT/new"
rm -f "$ROOT"/etc/ssh/ssh_host_* "$ROOT"/etc/apt/apt.conf.d/99mmdebstrap
chroot "$ROOT" useradd --create-home --shell /bin/bash --uid 1000 "$LOGIN"
install -m 0440 /dev/null "$ROOT/etc/sudoers.d/$LOGIN"
echo "$LOGIN ALL=(ALL) NOPASSWD: ALL" >> "$ROOT/etc/sudoers.d/$LOGIN"
if [ -s "$SOURCES" ]; then
    rm -f "$ROOT"/etc/apt/sources.list "$ROOT"/etc/apt/sources.list.d/*
    cp "$SOURCES" "$ROOT/etc/apt/sources.list.d/debian.sources"
fi
cat "$ROOT/etc/apt/sources.list" "$ROOT"/etc/apt/sources.list.d/* > "$USED_SOURCES" 2>/dev/null || :
umount "$ROOT"
"""


def guest_sources(archive: sources.DebianArchive | None) -> str:
    """The guest's apt sources (deb822) at this computer's mirror; empty where mmdebstrap's own default serves."""
    if archive is None:
        return ""
    security = archive.security or (archive.main + "-security" if re.search(r"/debian$", archive.main) else "")
    entries = [(archive.main, f"{SUITE} {SUITE}-updates")]
    if security:
        entries.append((security, f"{SUITE}-security"))
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: {COMPONENTS}\nSigned-By: {KEYRING}\n"
        for uri, suites in entries
    )


def image_name(apt_sources: str) -> str:
    """``base-<hash of all inputs>.img``."""
    inputs = json.dumps([apt_sources, SUITE, PACKAGES, USER, IMAGE_BYTES, BUILD])
    return f"base-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}.img"


def die_with_parent() -> None:
    """For ``preexec_fn``: SIGKILL when the parent ends, so that a killed command leaves no worker."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def ensure(folder: Path, say: Callable[[str], None]) -> Path:
    """The base image, built when there is none for these inputs (about a minute). Call as root.

    Raises RuntimeError with the end of the tool's output when the build fails. Beside the image lies ``.sources``, the
    guest's apt sources as installed.
    """
    apt_sources = guest_sources(sources.debian_archive(sources.apt_sources()))
    image = folder / image_name(apt_sources)
    with (folder / "base.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another command is building the base image: waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            say("Building the base image, a minimal Debian 13 (once, about a minute) ...")
            started = time.monotonic()
            _build(folder, image, apt_sources, say)
            say(f"The base image is built ({time.monotonic() - started:.0f} s).")
    return image


def _build(folder: Path, image: Path, apt_sources: str, say: Callable[[str], None]) -> None:
    part, root, wanted, written = (folder / f"base.{kind}" for kind in ("part", "root", "wanted", "written"))
    part.unlink(missing_ok=True)
    with part.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    root.mkdir(exist_ok=True)
    wanted.write_text(apt_sources)
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-L", "atelier", part], env=tools.environment(), check=True, stdin=subprocess.DEVNULL
    )
    listener = internet.listen("127.0.0.1", 0)
    with proxy.in_background(proxy.Proxy(None, folder / "packages", say, sources.computers_route()), listener):
        environment = {
            **{
                key: value
                for key, value in tools.environment().items()
                if not key.lower().endswith("_proxy") and key != "TMPDIR"
            },
            "LC_ALL": "C.UTF-8",
            "IMAGE": str(part),
            "ROOT": str(root),
            "PACKAGES": ",".join(PACKAGES),
            "SUITE": SUITE,
            "SOURCES": str(wanted),
            "USED_SOURCES": str(written),
            "LOGIN": USER,
            "PROXY_PORT": str(listener.getsockname()[1]),
        }
        namespaces = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        built = subprocess.run(
            [*namespaces, "sh", "-c", BUILD],
            env=environment,
            preexec_fn=die_with_parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    if built.returncode:
        raise RuntimeError(
            f"The base image could not be built. The end of mmdebstrap's output:\n{built.stdout[-3000:]}"
        )
    # So that resize2fs takes each copy without a check of its own.
    subprocess.run(["e2fsck", "-fy", part], env=tools.environment(), capture_output=True)
    for old in folder.glob("base-*.img"):
        old.unlink()
        old.with_suffix(".sources").unlink(missing_ok=True)
    written.rename(image.with_suffix(".sources"))
    part.rename(image)
    root.rmdir()
    wanted.unlink()
