"""What a sandbox has on this computer, found by its name alone, so that removal works after any crash."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

from sandbox import cgroup, network, tools

NSPAWN_STATE = Path("/run/systemd/nspawn")


def _named(name: str) -> network.Network:
    """The network's names; its addresses do not matter here."""
    return network.plan(name, [])


def loop_devices(folder: Path) -> list[str]:
    """The loop devices whose file lies under the folder."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # let go of while we were looking
            if backing.read_text().startswith(f"{folder}/"):
                found.append(f"/dev/{backing.parts[3]}")
    return found


def mounts(folder: Path) -> list[str]:
    """The mount points under the folder that this process sees, the deepest first."""
    with Path("/proc/self/mounts").open() as file:
        targets = [line.split()[1].encode().decode("unicode_escape") for line in file]
    return sorted((target for target in targets if target.startswith(f"{folder}/")), reverse=True)


def _nspawn_paths(name: str) -> list[Path]:
    return [path for path in NSPAWN_STATE.glob(f"*/*{cgroup.group_name(name)}") if path.name.endswith(f"-{name}")]


def find(name: str, folder: Path) -> list[str]:
    """Everything of the sandbox that is on this computer now, one line each; empty when there is nothing."""
    state_dir, names = folder / name, _named(name)
    found = [f"process {pid}" for pid in cgroup.processes(name)]
    found += [f"control group {path}" for path in cgroup.folders(name)]
    found += [f"mount {target}" for target in mounts(state_dir)]
    found += [f"loop device {device}" for device in loop_devices(state_dir)]
    namespaces = (names.guest_namespace, names.internet_namespace)
    found += [f"network namespace {namespace}" for namespace in namespaces if Path(f"/run/netns/{namespace}").exists()]
    if network.has_link(names.outer_link):
        found.append(f"interface {names.outer_link}")
    found += [f"route {route}" for route in network.ip("route").splitlines() if names.outer_link in route]
    found += [f"path {path}" for path in _nspawn_paths(name)]
    if state_dir.exists():
        found.append(f"folder {state_dir}")
    return found


def remove(name: str, folder: Path, seconds: float = 10) -> None:
    """Ends and removes everything but the folder with the disk. Raises RuntimeError when something resists."""
    state_dir = folder / name
    cgroup.remove(name)
    network.remove(_named(name))
    for target in mounts(state_dir):
        subprocess.run(["umount", "--lazy", target], env=tools.environment(), check=True)
    deadline = time.monotonic() + seconds
    while devices := loop_devices(state_dir):  # the kernel lets go of a killed guest's disk a moment later
        if time.monotonic() > deadline:
            raise RuntimeError(f"{', '.join(devices)} still holds the disk of sandbox {name}")
        for device in devices:
            subprocess.run(["losetup", "--detach", device], env=tools.environment(), capture_output=True)
        time.sleep(0.02)
    for path in _nspawn_paths(name):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
