"""`atelier models ... --host`: the weights of a host, brought, checked and pruned there."""

import shlex
import time
from collections.abc import Sequence
from typing import Literal

from atelier import lifecycle, operate, weights_unit
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.settings import Settings
from atelier.ssh import connection_error
from atelier.target import Target

NEVER = 90
"""The status by which the host says that it has no job: nothing was ever brought there."""


def fetch(target: Target, narrator: Narrator, sources: Literal["auto", "upstream", "double"]) -> int:
    """Bring the weights alone. 0: all are there; 1: something stands in the way, and nothing was changed."""
    from stages import provision

    started = time.monotonic()
    ssh = operate.connected(target, narrator)
    with lifecycle.host_lock(ssh):
        deployment = lifecycle.prepare(target, ssh, sources, narrator)
        obstacles = lifecycle.find_weights_obstacles(ssh, deployment, narrator)
        operate.print_findings(obstacles, narrator, "this fetch")
        if obstacles:
            return 1
        outcome = provision.fetch_weights(target, ssh, deployment, narrator)
    size = sum(weight.bytes for weight in deployment.weights) / 1e9
    narrator.say(
        f"All {len(deployment.weights)} weights, {size:.1f} GB, are there: {len(outcome.changed)} of "
        f"{outcome.operations} operations changed something, {time.monotonic() - started:.0f} s."
    )
    return 0


def verify(target: Target, narrator: Narrator, deep: bool) -> int:
    """Check the store of the host, there. 0: every file is good."""
    operate.require_up(target, narrator)
    status, _ = _run(target, narrator, "verify", *(["--deep"] if deep else []))
    if status:
        command = target.command("models-fetch")
        narrator.say(f"  -> {command} brings what is missing and sets aside what is wrong")
    return min(status, 1)


def prune(target: Target, narrator: Narrator, yes: bool) -> int:
    """List what the host's sets do not need; with yes remove it, while no deploy is at work."""
    operate.require_up(target, narrator)
    if not yes:
        return min(_run(target, narrator, "prune")[0], 1)
    ssh = target.ssh()
    with lifecycle.host_lock(ssh):
        status, told = _run(target, narrator, "prune", "--yes")
        if status or _listed(told):
            line = lifecycle.audit_line(["Weights: prune"], "failed" if status else "weights pruned")
            lifecycle.append_audit(ssh, target.settings, line)
    return min(status, 1)


def _listed(told: Sequence[str]) -> bool:
    """Whether prune named a file, which it does of each that it removes, by its whole path."""
    return any(line.startswith("/") and " is in use by process " not in line for line in told)


def _run(target: Target, narrator: Narrator, *words: str) -> tuple[int, list[str]]:
    """Run the program on the host and tell its lines as they come; its status, and they. Raises AtelierError."""
    told: list[str] = []
    ssh = target.ssh()
    process = ssh.popen(attended_script(target.settings, *words))
    assert process.stdin and process.stdout  # noqa: S101 - popen was asked for pipes
    try:
        for raw in process.stdout:
            told.append(raw.decode(errors="replace").rstrip())
            narrator.say(f"  {told[-1]}")
        status = process.wait()
    finally:
        process.stdin.close()  # where we are interrupted, the host ends it too
        process.wait()
    if status == NEVER:
        raise AtelierError(
            f"{target.name} was never told which weights it needs", f"{target.command('models-fetch')} brings them"
        )
    if status == 255:
        raise connection_error(ssh.destination, "")
    return status, told


def attended_script(settings: Settings, *words: str) -> str:
    """Shell that runs the program on the host for as long as its standard input stays open, and returns its status."""
    job = shlex.quote(weights_unit.job_path(settings))
    # The watcher's own child, `cat`, would outlive it: a shell that reads by itself has none.
    return f"""
[ -e {job} ] || exit {NEVER}
exec 3<&0
( {weights_unit.shell(settings, *words)} ) </dev/null 3<&- & p=$!
( while read -r _; do :; done <&3; kill $p ) >/dev/null 2>&1 & w=$!
wait $p; s=$?
kill $w 2>/dev/null
exit $s
"""
