"""A control group of its own for each sandbox: the one handle that still finds every process after a crash."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def unified_root(mounts: str) -> Path:
    """Where the v2 hierarchy is mounted, from the text of ``/proc/self/mounts`` (also on a hybrid v1/v2 machine)."""
    for line in mounts.splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    raise RuntimeError("no cgroup v2 hierarchy is mounted on this computer; the sandbox needs one")


def _roots() -> list[Path]:
    """The v2 hierarchy, and systemd's named v1 one beside it, where systemd-nspawn makes the same groups."""
    root = unified_root(Path("/proc/self/mounts").read_text())
    legacy = root.parent / "systemd"
    return [root, legacy] if root.name == "unified" and legacy.is_dir() else [root]


def group_name(name: str) -> str:
    """The name of the sandbox's control group, and of its machine."""
    return f"atelier-sandbox-{name}"


def create(name: str) -> Path:
    """Makes the group with its two halves, ``helpers`` and ``machine``, and returns its path in the v2 hierarchy."""
    root = _roots()[0]
    group = root / group_name(name)
    for part in ("helpers", "machine"):
        (group / part).mkdir(parents=True, exist_ok=True)
    for folder in (root, group):
        for controller in (folder / "cgroup.controllers").read_text().split():
            try:
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")
            except OSError:
                continue  # busy or not delegated: the guest then goes without this controller
    return group


def enter(group: Path) -> None:
    """Moves the calling process into the group."""
    (group / "cgroup.procs").write_text("0")


def folders(name: str) -> list[Path]:
    """Every directory of the sandbox's groups that exists now, the deepest first."""
    found: list[Path] = []
    for root in _roots():
        top = root / group_name(name)
        if top.is_dir():
            found += [Path(path) for path, _, _ in os.walk(top, topdown=False)]
    return found


def processes(name: str) -> list[int]:
    """The ids of every process in the sandbox's groups, the guest's included."""
    found: set[int] = set()
    for folder in folders(name):
        try:
            found |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
        except OSError:
            continue  # the group went away while we were looking
    return sorted(found - {0})


def remove(name: str, seconds: float = 20) -> None:
    """Kills what is in the groups and removes them.

    Raises RuntimeError when a process survives SIGKILL for ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while folders(name):
        for pid in processes(name):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for folder in folders(name):
            try:
                folder.rmdir()
            except OSError:
                continue  # still populated: the next round tries again
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes of sandbox {name} survive SIGKILL: {processes(name)}")
        time.sleep(0.02)
