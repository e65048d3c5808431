"""Services: one compose project each, recreated only when its own files, image or secrets changed."""

import shlex
from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation

from atelier import render, weights_unit
from atelier.deployment import Deployment
from stages.operations import Lines, entries

CONTAINERS = "docker ps -a --format '{{.Names}} {{.Label \"atelier.config\"}} {{.Image}} {{.Networks}} {{.Status}}'"


@operation()
def _up(project: render.Project, image: str, timeout: int) -> Iterator[StringCommand]:
    verdict = project.judge(image, host.get_fact(Lines, script=CONTAINERS))
    if verdict != "as declared":
        # `up` leaves a container alone whose configuration is right, also one that will not get well by itself.
        recreate = "--force-recreate" if verdict == "to be made again" else ""
        directory, log = shlex.quote(project.directory), f"docker logs --tail 25 {project.container} >&2"
        yield StringCommand(
            f"{_without_former(project.container)}cd {directory} "
            f"&& {{ docker compose up -d {recreate} --remove-orphans --wait --wait-timeout {timeout} || {{ {log}; exit 1; }}; }}"
        )


def _without_former(container: str) -> str:
    """Shell that removes the container of an earlier release, which compose does not know as this project's."""
    mine = f"docker ps -aq --filter 'name=^/?{container}$' --filter label=atelier.config"
    label = "com.docker.compose.project"
    return (
        f'former=$({mine}); [ -z "$former" ] || {mine} --filter label={label}={render.project_name(container)} | grep -q . '
        '|| docker rm -f "$former" >/dev/null; '
    )


def _project(deployment: Deployment, project: render.Project) -> None:
    entries(name=f"Render the files of {project.container}", entries=project.entries)
    _up(
        name=f"Start {project.container} and wait until it is healthy",
        project=project,
        image=deployment.image_tags()[project.service],
        timeout=deployment.settings.timeouts.start,
    )


@operation()
def _forgotten(deployment: Deployment) -> Iterator[StringCommand]:
    yield StringCommand(weights_unit.forget_script(deployment.settings), _stdin=weights_unit.FORGET)


@deploy("Services")
def running(deployment: Deployment) -> None:
    """The applications, each on its internal network; nothing is published yet."""
    for project in deployment.projects()[:-1]:
        if deployment.concerns(project.service):
            _project(deployment, project)
            if project.service == "comfyui" and deployment.weights_changed():
                _forgotten(name="Have ComfyUI read the weights that changed anew", deployment=deployment)


@deploy("Gateway")
def gateway(deployment: Deployment) -> None:
    """The only container that publishes ports, after the applications refuse strangers by themselves."""
    _project(deployment, deployment.projects()[-1])
