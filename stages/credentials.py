"""Credentials: the freshly hashed secrets, each in exactly the container's directory that needs it."""

from pyinfra.api import deploy

from atelier.deployment import Deployment
from stages.operations import entries


@deploy("Credentials")
def secrets(deployment: Deployment) -> None:
    """Secret files of the service user, 0400, written without a moment in which others could read them."""
    entries(name="Put the secret files in place", entries=deployment.secrets())
