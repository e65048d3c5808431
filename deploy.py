"""The deployment, top to bottom. Preflight comes before it, the quick verify after it (atelier/cli.py)."""

from atelier.deployment import Deployment
from stages import credentials, docker, gpu, host, images, models, monitoring, services, state


def driver(deployment: Deployment) -> None:
    """What comes before the rest can be decided: only a running driver tells the GPUs' UUIDs, and it may take a restart."""
    state.declare(deployment)
    gpu.remove_former(deployment)
    host.base(deployment)
    gpu.driver(deployment)
    state.keyrings(deployment)


def declared(deployment: Deployment) -> None:
    """The manifest alone, before something is made that is not a deploy's."""
    state.declare(deployment)


def weights(deployment: Deployment) -> None:
    """The weights alone, with what fetching them needs."""
    state.declare(deployment)
    host.base(deployment)
    models.weights(deployment)


def rotate(deployment: Deployment) -> None:
    """Other credentials for what runs: the applications first, and the gateway, which lets in, last."""
    state.declare(deployment)
    credentials.secrets(deployment)
    services.running(deployment)
    services.gateway(deployment)
    state.record(deployment)


def prepared(deployment: Deployment) -> None:
    """What takes long and disturbs nobody, before what runs makes room."""
    driver(deployment)
    if not deployment.facts.deployed:
        gpu.toolkit(deployment)
        docker.engine(deployment)
        state.keyrings(deployment)
    models.weights(deployment)
    images.built(deployment)


def switched(deployment: Deployment) -> None:
    """The services, as soon as what they use lies in its place."""
    state.declare(deployment)
    host.places(deployment)
    docker.networks(deployment)
    credentials.secrets(deployment)
    services.running(deployment)
    services.gateway(deployment)


def deploy(deployment: Deployment) -> None:
    """Bring one host to what is declared."""
    driver(deployment)
    gpu.toolkit(deployment)
    docker.engine(deployment)
    state.keyrings(deployment)
    credentials.secrets(deployment)
    models.weights(deployment)
    images.built(deployment)
    services.running(deployment)
    services.gateway(deployment)
    state.record(deployment)
    monitoring.timer(deployment)
