"""State: what is ours on the host is written down before it is created, and what runs after it does."""

import shlex
from collections.abc import Iterator
from importlib.metadata import version

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation

from atelier import deployment as decide
from atelier import manifest
from atelier.deployment import DAEMON_JSON, Deployment
from atelier.tree import File
from stages.operations import Lines, TreeState, entries, installed_packages, whole


def _manifest_path(deployment: Deployment) -> str:
    return f"{deployment.settings.state_dir()}/manifest.json"


def _current_manifest(deployment: Deployment) -> str:
    return "\n".join(host.get_fact(Lines, script=whole(_manifest_path(deployment))))


def _installed(path: str, text: str, mode: int = 0o644) -> StringCommand:
    return StringCommand(File(path, text.encode(), mode).install_script(), _stdin=text.encode())


def _manifest_installed(deployment: Deployment, text: str) -> StringCommand:
    # Sums of files that hold a secret of few bits beside known ones: nobody else is to try.
    return _installed(_manifest_path(deployment), text, 0o600)


@operation()
def _manifest(deployment: Deployment) -> Iterator[StringCommand]:
    declared = decide.declared(deployment)
    script = manifest.before_script(_manifest_path(deployment), declared, decide.asked_units(deployment), DAEMON_JSON)
    current, before = manifest.parse_before(host.get_fact(Lines, script=script))
    declared["packages"] = decide.installing(deployment, before)
    declared["enabled"] = decide.enabling(deployment, before)
    wanted = manifest.updated(current, declared, before, decide.written(deployment, before), version("atelier"))
    if wanted != current + "\n":
        yield StringCommand(f"mkdir -p {deployment.settings.state_dir()}")
        yield _manifest_installed(deployment, wanted)


@operation()
def _left_over(deployment: Deployment) -> Iterator[StringCommand]:
    current = _current_manifest(deployment)
    if files := decide.left_over(current, deployment):
        yield StringCommand("rm -f -- " + " ".join(shlex.quote(path) for path in files))
        yield _manifest_installed(deployment, manifest.without(current, files, version("atelier")))


@operation()
def _keyrings(paths: list[str], deployment: Deployment) -> Iterator[StringCommand]:
    # They count as we wrote them: the stage that added their repositories has just compared them.
    signatures = host.get_fact(TreeState, paths=paths)
    sums = {path: signature.rpartition(" ")[2] for path, signature in signatures.items() if signature.startswith("f ")}
    current = _current_manifest(deployment)
    wanted = manifest.having_written(current, sums, version("atelier"))
    if wanted != current:
        yield _manifest_installed(deployment, wanted)


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


@deploy("Manifest")
def keyrings(deployment: Deployment) -> None:
    """Write down which bytes are in the keyrings, once they were fetched."""
    if paths := decide.keyrings(deployment):
        _keyrings(name="Record the keys of repositories", paths=paths, deployment=deployment)


@deploy("Record")
def record(deployment: Deployment) -> None:
    """Remove what is of an earlier deploy alone, and write down what runs now."""
    _left_over(name="Remove files that nothing asks for any more", deployment=deployment)
    _deployed(name="Record what runs", deployment=deployment)
