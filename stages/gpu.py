"""The GPU stage: driver, container toolkit, CDI."""

from pyinfra.api import deploy

from atelier.deployment import Deployment


@deploy("Driver")
def driver(deployment: Deployment) -> None:
    """Carry out the plan for the driver."""


@deploy("Container toolkit")
def toolkit(deployment: Deployment) -> None:
    """Carry out the plan for the container toolkit."""
