"""The deployment, top to bottom. Preflight comes before it, the quick verify after it (atelier/cli.py)."""

from atelier.deployment import Deployment
from stages import credentials, docker, host, images, models, services, state


def deploy(deployment: Deployment) -> None:
    """Bring one host to what is declared. The GPU stage has its place between host and Docker (issue: the GPU host)."""
    state.declare(deployment)
    host.base(deployment)
    docker.engine(deployment)
    credentials.secrets(deployment)
    models.weights(deployment)
    images.built(deployment)
    services.running(deployment)
    services.gateway(deployment)
    state.record(deployment)
