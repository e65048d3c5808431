"""The process behind a running sandbox: ``python -m sandbox.supervisor STATE_DIR``, as root.

Makes the network, serves the proxy and the fake internet in it, boots the guest, and boots it again when it reboots.
Each boot gets a new network, as a real reboot empties a kernel of its bridges and packet filters.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sandbox import base, cgroup, devices, internet, network, proxy, sources

REBOOT = 133  # systemd-nspawn --keep-unit: the guest asked to be started again


def log(text: str) -> None:
    """One line with the time in UTC; ``up`` sends it to supervisor.log."""
    print(f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ} {text}", flush=True)


def boot_command(state_dir: Path, uptime_seconds: int) -> list[str]:
    """One boot in mount and time namespaces of its own; with its own clocks, the guest's uptime starts at zero."""
    clocks = ["--time", "--boottime", str(-uptime_seconds), "--monotonic", str(-uptime_seconds)]
    namespaces = ["unshare", "--mount", "--propagation", "private", *clocks, "--fork", "--kill-child"]
    return [*namespaces, sys.executable, "-m", "sandbox.boot", str(state_dir)]


async def run_once(spec: dict[str, Any], state_dir: Path, allowed: frozenset[str]) -> int:
    """Serves the network and boots the guest in it; returns systemd-nspawn's exit status when the guest has ended."""
    plan = network.Network(**spec["network"])
    packages = proxy.Proxy(allowed, state_dir.parent / "packages", log, sources.computers_route())
    outside = internet.Internet(plan.internet_namespace)
    try:
        await packages.start(
            internet.in_namespace(plan.guest_namespace, lambda: internet.listen("127.0.0.1", proxy.PORT))
        )
        await outside.start()
        uptime = int(min(time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)))
        guest = await asyncio.create_subprocess_exec(
            *boot_command(state_dir, uptime), stdin=asyncio.subprocess.DEVNULL, preexec_fn=base.die_with_parent
        )
        return await guest.wait()
    finally:
        await packages.stop()
        await outside.stop()


def prepare(state_dir: Path) -> dict[str, Any]:
    """Makes the control group and the network, and completes the specification that ``up`` left with them."""
    path = state_dir / "machine.json"
    spec: dict[str, Any] = json.loads(path.read_text())
    with (state_dir.parent / "network.lock").open("w") as lock:  # two sandboxes must not choose the same addresses
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = network.plan(spec["name"], network.taken_networks())
        network.create(plan)
    spec |= {"network": vars(plan), "namespace": plan.guest_namespace, "address": plan.guest_ssh_address}
    group = cgroup.create(spec["name"])
    devices.restrict(group / "machine")
    spec["group"] = str(group)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(spec, indent=1))
    part.rename(path)
    return spec


def main(state_dir: Path) -> None:
    """Runs the sandbox of the state folder until its guest is off."""
    pid_file = (state_dir / "supervisor.pid").open("a+")
    fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until this process ends: how the others know it lives
    pid_file.truncate(0)
    pid_file.write(f"{os.getpid()}\n")
    pid_file.flush()
    spec = prepare(state_dir)
    allowed = sources.allowed_hosts(os.environ, Path(spec["home"])) | frozenset(spec["allowed_hosts"])
    log(f"supervisor {os.getpid()} of sandbox {spec['name']}; the proxy passes on to {', '.join(sorted(allowed))}")
    while (status := asyncio.run(run_once(spec, state_dir, allowed))) == REBOOT:
        log("the guest reboots")
        network.create(network.Network(**spec["network"]))
    network.remove(network.Network(**spec["network"]))
    log(f"the guest is off: systemd-nspawn ended with status {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
