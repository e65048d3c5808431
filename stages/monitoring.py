"""Monitoring: what looks at the host from itself by a timer."""

import shlex
from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation

from atelier import monitoring
from atelier.deployment import Deployment
from stages.operations import Lines, TreeState, installed


@operation()
def _as_wanted(deployment: Deployment) -> Iterator[StringCommand]:
    settings, wanted = deployment.settings, deployment.monitor()
    present = host.get_fact(TreeState, paths=monitoring.probed(settings))
    told = host.get_fact(Lines, script=monitoring.probe_script(settings))
    if former := monitoring.former_metrics(told):
        yield StringCommand(f"rm -f {shlex.join(former)}")
    if not wanted:
        if present or monitoring.ACTIVE in told:
            yield StringCommand(monitoring.remove_script(settings))
        return
    kept = {entry.path for entry in wanted} | {monitoring.STARTED_AT_BOOT}
    stale = [path for path in present if path not in kept]
    if stale:
        yield StringCommand(f"rm -f {shlex.join(stale)}")
    changes = list(installed(wanted, present))
    yield from changes
    at_work = monitoring.ACTIVE in told and monitoring.STARTED_AT_BOOT in present
    # What made the last look fail may be mended: whoever verifies next asks for one that did not.
    if stale or former or changes or not at_work or monitoring.FAILED in told:
        yield StringCommand(monitoring.START_SCRIPT)


@deploy("Monitoring")
def timer(deployment: Deployment) -> None:
    """The timer and its first look, or nothing of it."""
    wanted = deployment.settings.monitoring.enabled
    _as_wanted(
        name="Start the host monitor (systemd timer)" if wanted else "Remove the host monitor",
        deployment=deployment,
    )
