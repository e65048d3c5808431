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
from stages.operations import unless


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


@operation()
def _image(deployment: Deployment, step: Step) -> Iterator[Any]:
    settings, build = deployment.settings, step.build
    archive_dir = settings.images.archive_dir
    if step.action == "load":
        yield StringCommand(images.load_script(build.tag, str(archive_dir)))
        return
    directory = f"{settings.config_root}/build/{build.name}"
    place, parent = shlex.quote(directory), shlex.quote(f"{settings.config_root}/build")
    yield FunctionCommand(_upload, (build, directory, settings.proxy), {})
    script = images.build_script(build, directory, pip_settings.read())
    # The secrets of the build go whatever becomes of it.
    yield StringCommand(
        f"trap 'rm -rf {place}; rmdir --ignore-fail-on-non-empty {parent}' EXIT; {script}",
        _timeout=settings.timeouts.build,
    )
    if archive_dir:
        yield StringCommand(images.save_script(build.tag, archive_dir))


@deploy("Images")
def built(deployment: Deployment) -> None:
    """Every image that is not there yet by the tag that its inputs give it."""
    left = shlex.quote(f"{deployment.settings.config_root}/build")
    unless(name="Remove what an interrupted build left", probe=f"[ -e {left} ] || echo none", script=f"rm -rf {left}")
    for step in deployment.image_steps():
        verb = {"load": "Load", "build": "Build"}[step.action]
        _image(name=f"{verb} image {step.build.name}", deployment=deployment, step=step)
