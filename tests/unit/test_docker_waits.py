"""Docker starts after the disks that hold the data, and not without them."""

import subprocess
from dataclasses import replace

import pytest
from test_deployment import deployment, settings

from atelier import deployment as decide
from atelier import render
from atelier.gpu.plan import GpuPlan
from atelier.tree import File


def text(**changes: object) -> str:
    (_, drop_in) = render.docker_waits(settings(**changes))
    assert isinstance(drop_in, File) and drop_in.path == render.DOCKER_WAITS
    return drop_in.content.decode()


def test_docker_waits_for_every_place_that_containers_mount_something_of() -> None:
    assert "\nRequiresMountsFor=/opt/atelier /srv/atelier /srv/atelier/models /srv/atelier/outputs\n" in text()
    elsewhere = text(config_root="/opt/a", data_root="/data", models_dir="/big/models", outputs_dir="/srv/out")
    assert "\nRequiresMountsFor=/opt/a /data /big/models /srv/out\n" in elsewhere


def test_what_a_deploy_writes_is_told_once_beside_what_a_gpu_adds() -> None:
    on_gpu = replace(deployment(), gpu=GpuPlan("adopt", "cpu"))
    paths = [entry.path for entry in on_gpu.entries()]
    assert len(paths) == len(set(paths))
    folder = "/etc/systemd/system/docker.service.d"
    assert {folder, render.DOCKER_WAITS, f"{folder}/atelier-gpu.conf"} <= set(paths)
    assert render.DOCKER_WAITS in decide.declared(deployment())["files"]
    assert folder in decide.declared(deployment())["directories"]


@pytest.mark.parametrize(
    "paths,reload,known",
    [
        (f"/x.conf {render.DOCKER_WAITS}", "no", True),
        ("/x.conf", "no", False),
        (f"/x.conf {render.DOCKER_WAITS}", "yes", False),
    ],
)
def test_whether_systemd_knows_it_is_asked(paths: str, reload: str, known: bool) -> None:
    systemctl = f'systemctl() {{ case "$*" in *DropInPaths*) echo "{paths}";; *) echo {reload};; esac; }}\n'
    done = subprocess.run(["sh", "-c", systemctl + render.WAITS_KNOWN], capture_output=True, text=True)
    assert bool(done.stdout) == known
