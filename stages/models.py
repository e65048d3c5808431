"""Weights: what fetches them on the host, and following it until every file is there."""

import shlex
from collections.abc import Iterator
from typing import Any, ClassVar

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation
from typing_extensions import override

from atelier import weights_unit
from atelier.deployment import Deployment
from stages.operations import TreeState, installed


class Following(StringCommand):
    """Shell that follows the unit on the host. Where it ends red, its reasons are the one message.

    `fetched` counts the bytes that hosts had sent to them while this process followed, also for what ended red.
    """

    fetched: ClassVar[int] = 0

    @override
    def execute(self, state: Any, host: Any, connector_arguments: Any) -> Any:
        status, output = super().execute(state, host, connector_arguments)
        Following.fetched += weights_unit.fetched(output.stdout_lines)
        if not status:
            raise weights_unit.explain(output.stderr_lines)
        return status, output


@operation()
def _fetcher(deployment: Deployment) -> Iterator[StringCommand]:
    declared = deployment.fetcher()
    present = host.get_fact(TreeState, paths=weights_unit.probed(deployment.settings, declared))
    yield from installed(declared, present)
    token = weights_unit.token_path(deployment.settings)
    if token in present and deployment.token is None:
        yield StringCommand(f"rm -f {shlex.quote(token)}")
    # A transfer that is under way goes on with what it is told now, and a failure of an earlier job is no more.
    unit = weights_unit.UNIT
    yield StringCommand(
        f"systemctl daemon-reload && systemctl enable -q {unit} && systemctl try-restart {unit} "
        f"&& {{ ! systemctl -q is-failed {unit} || systemctl start {unit}; }}"
    )


@operation()
def _followed(deployment: Deployment) -> Iterator[StringCommand]:
    yield Following(weights_unit.follow_shell(deployment.settings))


@deploy("Weights")
def weights(deployment: Deployment) -> None:
    """Every weight of the host's sets that is not known good, in the store that both applications read."""
    if not deployment.fetcher_in_place():
        _fetcher(name="Put in place what fetches the weights", deployment=deployment)
    if missing := deployment.missing_weights():
        size = sum(weight.bytes for weight in missing) / 1e9
        _followed(name=f"Bring {len(missing)} of {len(deployment.weights)} files, {size:.1f} GB", deployment=deployment)
