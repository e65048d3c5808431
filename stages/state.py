"""State: what is ours on the host is written down before it is created, and what runs after it does."""

import shlex
from collections.abc import Iterator
from importlib.metadata import version

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation

from atelier import deployment as decide
from atelier.deployment import Deployment
from atelier.tree import File
from stages.operations import Lines, entries, installed_packages, missing_packages, whole


def _manifest_path(deployment: Deployment) -> str:
    return f"{deployment.settings.state_dir()}/manifest.json"


def _current_manifest(deployment: Deployment) -> str:
    return "\n".join(host.get_fact(Lines, script=whole(_manifest_path(deployment))))


def _installed(path: str, text: str) -> StringCommand:
    return StringCommand(File(path, text.encode()).install_script(), _stdin=text.encode())


@operation()
def _manifest(deployment: Deployment) -> Iterator[StringCommand]:
    current = _current_manifest(deployment)
    installing = missing_packages(decide.all_packages(deployment))
    manifest = decide.updated_manifest(current, decide.declared(deployment), installing, version("atelier"))
    if manifest != current + "\n":
        yield StringCommand(f"mkdir -p {deployment.settings.state_dir()}")
        yield _installed(_manifest_path(deployment), manifest)


@operation()
def _left_over(deployment: Deployment) -> Iterator[StringCommand]:
    manifest = _current_manifest(deployment)
    if files := decide.left_over(manifest, deployment):
        yield StringCommand("rm -f -- " + " ".join(shlex.quote(path) for path in files))
        yield _installed(_manifest_path(deployment), decide.manifest_without(manifest, files, version("atelier")))


@operation()
def _deployed(deployment: Deployment) -> Iterator[StringCommand]:
    path = f"{deployment.settings.state_dir()}/deployed.json"
    tags = " ".join(deployment.image_tags().values())
    inspect = f"for t in {tags}; do echo \"$t $(docker image inspect --format '{{{{.Id}}}}' $t)\"; done; cat {path}"
    lines = host.get_fact(Lines, script=inspect)
    ids = dict(line.split(" ", 1) for line in lines[: len(deployment.builds)] if " " in line)
    packages = installed_packages(decide.recorded_packages(deployment))
    before = "\n".join(lines[len(deployment.builds) :]) + "\n"
    record = decide.deployed_record(deployment, version("atelier"), ids, packages, before)
    if record != before:
        yield _installed(path, record)


@deploy("Manifest")
def declare(deployment: Deployment) -> None:
    """Write down what this deploy creates, and whose host this is."""
    _manifest(name="Record what will be created", deployment=deployment)
    entries(name="Record the instance", entries=deployment.identity())


@deploy("Record")
def record(deployment: Deployment) -> None:
    """Remove what is of an earlier deploy alone, and write down what runs now."""
    _left_over(name="Remove files that nothing asks for any more", deployment=deployment)
    _deployed(name="Record what runs", deployment=deployment)
