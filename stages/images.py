"""Images: loaded from an archive where one is kept, else built on the host from what this computer sends along."""

import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FunctionCommand, StringCommand, deploy, operation

from atelier import images, pip_settings
from atelier.deployment import Deployment
from atelier.errors import AtelierError
from atelier.images import ImageBuild, Step
from atelier.ssh import Ssh
from stages.operations import Lines


def _present_script(archive_dir: str | None) -> str:
    archives = f"; ls {shlex.quote(archive_dir)}" if archive_dir else ""
    return f"docker image ls --filter 'reference=atelier/*' --format '{{{{.Repository}}}}:{{{{.Tag}}}}'{archives}"


def _upload(build: ImageBuild, directory: str, proxy: str | None) -> None:
    """Send the build's context and secrets as one stream into a directory that only root can read."""
    ssh: Ssh = host.data.ssh
    with tempfile.TemporaryDirectory(prefix="atelier-build-") as local:
        images.write_context(build, Path(local), pip_settings.read(), proxy)
        place = shlex.quote(directory)
        receive, prefix = ssh.root_command(f"umask 077; rm -rf {place}; mkdir -p {place} && tar -x -C {place}")
        with subprocess.Popen(["tar", "-C", local, "-cf", "-", "."], stdout=subprocess.PIPE) as sender:
            assert sender.stdout  # noqa: S101 - a pipe was asked for
            with subprocess.Popen(receive, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as receiver:
                assert receiver.stdin and receiver.stderr  # noqa: S101 - pipes were asked for
                receiver.stdin.write(prefix)
                while block := sender.stdout.read(1 << 18):
                    receiver.stdin.write(block)
                receiver.stdin.close()
                errors = receiver.stderr.read().decode(errors="replace")
    if sender.returncode or receiver.returncode:
        raise AtelierError(f"sending the sources of {build.tag} broke off: {errors.strip()}")


def _build_commands(deployment: Deployment, step: Step) -> Iterator[Any]:
    settings, build = deployment.settings, step.build
    directory = f"{settings.config_root}/build/{build.name}"
    place = shlex.quote(directory)
    yield FunctionCommand(_upload, (build, directory, settings.proxy), {})
    script = images.build_script(build, directory, pip_settings.read())
    # The secrets of the build go whatever becomes of it.
    yield StringCommand(f"trap 'rm -rf {place}' EXIT; {script}", _timeout=settings.timeouts.build)
    if settings.images.archive_dir:
        yield StringCommand(images.save_script(build.tag, settings.images.archive_dir))


@operation()
def _image(deployment: Deployment, build: ImageBuild) -> Iterator[Any]:
    settings = deployment.settings
    lines = host.get_fact(Lines, script=_present_script(settings.images.archive_dir))
    archived = [each.tag for each in deployment.builds if images.archive_name(each.tag) in lines]
    for step in images.steps(deployment.builds, lines, archived):
        if step.build != build:
            continue
        if step.action == "load":
            yield StringCommand(images.load_script(build.tag, str(settings.images.archive_dir)))
        else:
            yield from _build_commands(deployment, step)


@deploy("Images")
def built(deployment: Deployment) -> None:
    """Every image of this deployment, by the tag that its inputs give it."""
    for build in deployment.builds:
        _image(name=f"Make image {build.tag}", deployment=deployment, build=build)
