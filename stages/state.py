"""State: what is ours on the host is written down before it is created, and what runs after it does."""

from collections.abc import Iterator
from importlib.metadata import version

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation

from atelier import deployment as decide
from atelier.deployment import Deployment
from atelier.tree import File
from stages.operations import Lines, entries, installed_packages, missing_packages, whole


@operation()
def _manifest(deployment: Deployment) -> Iterator[StringCommand]:
    path = f"{deployment.settings.state_dir()}/manifest.json"
    current = "\n".join(host.get_fact(Lines, script=whole(path)))
    installing = missing_packages(decide.all_packages(deployment))
    manifest = decide.updated_manifest(current, decide.declared(deployment), installing, version("atelier"))
    if manifest != current + "\n":
        yield StringCommand(f"mkdir -p {deployment.settings.state_dir()}")
        yield StringCommand(File(path, manifest.encode()).install_script(), _stdin=manifest.encode())


@operation()
def _deployed(deployment: Deployment) -> Iterator[StringCommand]:
    path = f"{deployment.settings.state_dir()}/deployed.json"
    tags = " ".join(deployment.image_tags().values())
    inspect = f"for t in {tags}; do echo \"$t $(docker image inspect --format '{{{{.Id}}}}' $t)\"; done; cat {path}"
    lines = host.get_fact(Lines, script=inspect)
    ids = dict(line.split(" ", 1) for line in lines[: len(deployment.builds)] if " " in line)
    packages = installed_packages(decide.recorded_packages(deployment))
    record = decide.deployed_record(deployment, version("atelier"), ids, packages)
    if record != "\n".join(lines[len(deployment.builds) :]) + "\n":
        yield StringCommand(File(path, record.encode()).install_script(), _stdin=record.encode())


@deploy("Manifest")
def declare(deployment: Deployment) -> None:
    """Write down what this deploy creates, and whose host this is."""
    _manifest(name="Record what will be created", deployment=deployment)
    entries(name="Record the instance", entries=deployment.identity())


@deploy("Record")
def record(deployment: Deployment) -> None:
    """Write down what runs now."""
    _deployed(name="Record what runs", deployment=deployment)
