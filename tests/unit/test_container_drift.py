"""Drift of containers: what is not as the compose file and the image say, and what was changed inside."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from test_deployment import IMAGES, projects, settings

from atelier import container_drift
from atelier.container_drift import Told, declared
from atelier.render import Project

IMAGE = {
    "Cmd": ["serve"],
    "Entrypoint": ["/usr/local/bin/start"],
    "Env": ["PATH=/usr/bin", "PYTHONUNBUFFERED=1"],
    "WorkingDir": "/opt",
    "Healthcheck": {"Test": ["CMD", "healthy"], "Interval": 5000000000},
}
COMFYUI, FORGE, GATEWAY = (projects(settings())[name] for name in ("comfyui", "forge", "gateway"))
LOG = {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}


def bind(source: str, target: str, writable: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Destination": target, "RW": writable, "Propagation": "rprivate"}


CONTAINER: dict[str, Any] = {
    "Config": {
        **{key: IMAGE[key] for key in ("Entrypoint", "Env", "WorkingDir", "Healthcheck")},
        "Cmd": ["--cpu"],
        "Image": IMAGES["comfyui"],
        "User": "10001:10001",
        "Hostname": "comfyui-qwen",
        "StopTimeout": 20,
        "Labels": {"atelier.config": COMFYUI.config},
    },
    "HostConfig": {
        "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0},
        "LogConfig": LOG,
        "Memory": 0,
        "NanoCpus": 0,
        "PidsLimit": None,
        "ShmSize": 2 << 30,
        "ReadonlyRootfs": True,
        "Init": True,
        "CapDrop": ["ALL"],
        "CapAdd": None,
        "SecurityOpt": ["no-new-privileges:true"],
        "Tmpfs": {"/tmp": "mode=1777"},
        "PortBindings": {},
        "DeviceRequests": None,
        "Privileged": False,
        "OomKillDisable": None,
    },
    "Mounts": [
        bind("/srv/atelier/models", "/models"),
        bind("/srv/atelier/outputs/comfyui", "/outputs", True),
        bind("/srv/atelier/users/comfyui", "/users", True),
        bind("/opt/atelier/secrets/comfyui-qwen", "/run/secrets/atelier"),
    ],
    "NetworkSettings": {"Networks": {"atelier-comfyui-qwen": {}}},
}
DOCKERS_OWN = [
    "d /run",
    "d /run/secrets",
    "d /run/secrets/atelier",
    "d /users",
    "d /usr/sbin",
    "f /usr/sbin/docker-init",
]
"""What Docker makes to mount on."""


def told(change: Callable[[dict[str, Any]], object] = lambda _: None, changes: list[str] = DOCKERS_OWN) -> Told:
    container = copy.deepcopy(CONTAINER)
    change(container)
    return Told(container, IMAGE, changes)


def problems(change: Callable[[dict[str, Any]], object] = lambda _: None) -> list[str]:
    return container_drift.configuration(declared(COMFYUI), told(change))


def host(**changed: object) -> Callable[[dict[str, Any]], object]:
    return lambda container: container["HostConfig"].update(changed)


def own(**changed: object) -> Callable[[dict[str, Any]], object]:
    return lambda container: container["Config"].update(changed)


CASES: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "as declared": (lambda _: None, []),
    "restart policy": (
        host(RestartPolicy={"Name": "no"}),
        ["its restart policy is no and must be unless-stopped"],
    ),
    "memory": (host(Memory=1 << 30), ["its memory limit is 1073741824 and must be 0"]),
    "CPU": (host(NanoCpus=500000000), ["its CPU limit is 500000000 and must be 0"]),
    "processes": (host(PidsLimit=100), ["its limit of processes is 100 and must be 0"]),
    "no limit of processes": (host(PidsLimit=-1), []),
    "shm": (host(ShmSize=64 << 20), ["its size of /dev/shm is 67108864 and must be 2147483648"]),
    "log driver": (
        host(LogConfig={"Type": "none", "Config": {}}),
        [
            "its log driver is none and must be json-file",
            'its log options is {} and must be {"max-file": "3", "max-size": "10m"}',
        ],
    ),
    "log options of the host's own beside ours": (
        host(LogConfig={"Type": "json-file", "Config": {**LOG["Config"], "compress": "true"}}),
        [],
    ),
    "log options of the host's own in place of ours": (
        host(LogConfig={"Type": "json-file", "Config": {"max-size": "1g", "compress": "true"}}),
        ['its log options is {"max-size": "1g"} and must be {"max-file": "3", "max-size": "10m"}'],
    ),
    "root": (host(ReadonlyRootfs=False), ["its root file system is writable and must be read-only"]),
    "capability": (host(CapAdd=["NET_ADMIN"]), ["it has added capabilities, which nothing declares"]),
    "CPU period": (host(CpuPeriod=50000), ["it has a CPU period, which nothing declares"]),
    "disk": (
        host(BlkioDeviceReadBps=[{"Path": "/dev/sda", "Rate": 1}]),
        ["it has a limit of reading, which nothing declares"],
    ),
    "privileged": (host(Privileged=True), ["it has privileges, which nothing declares"]),
    "name servers": (host(Dns=["192.0.2.1"]), ["it has name servers, which nothing declares"]),
    "extra hosts": (host(ExtraHosts=["a:192.0.2.1"]), ["it has extra hosts, which nothing declares"]),
    "port": (
        host(PortBindings={"8188/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8188"}]}),
        ["its port 0.0.0.0:8188 to 8188 is not declared"],
    ),
    "GPU": (
        host(DeviceRequests=[{"Driver": "nvidia", "Count": -1, "DeviceIDs": None}]),
        ["its GPU all is not declared"],
    ),
    "tmpfs": (
        host(Tmpfs={"/tmp": "mode=1777,exec"}),
        ["it lacks the tmpfs /tmp:mode=1777", "its tmpfs /tmp:mode=1777,exec is not declared"],
    ),
    "command": (own(Cmd=["--cpu", "--listen"]), ['its command is ["--cpu", "--listen"] and must be ["--cpu"]']),
    "entrypoint": (own(Entrypoint=None), ['its entrypoint is None and must be ["/usr/local/bin/start"]']),
    "user": (own(User="0"), ["its user is 0 and must be 10001:10001"]),
    "health check": (
        own(Healthcheck={"Test": ["NONE"]}),
        ['its health check is {"Test": ["NONE"]} and must be {"Interval": 5000000000, "Test": ["CMD", "healthy"]}'],
    ),
    "image": (own(Image="atelier/other:1"), ["its image is atelier/other:1 and must be atelier/comfyui:1"]),
    "variable more": (own(Env=[*IMAGE["Env"], "TOKEN=hunter2"]), ["its variable TOKEN is not declared"]),
    "variable less": (own(Env=["PATH=/usr/bin"]), ["it lacks the variable PYTHONUNBUFFERED"]),
    "variable differs": (own(Env=["PATH=/tmp", "PYTHONUNBUFFERED=1"]), ["its variable PATH differs"]),
    "mount more": (
        lambda container: container["Mounts"].append(bind("/var/run/docker.sock", "/docker.sock", True)),
        ["its mount /var/run/docker.sock at /docker.sock (writable) is not declared"],
    ),
    "weights writable": (
        lambda container: container["Mounts"][0].update(RW=True),
        [
            "it lacks the mount /srv/atelier/models at /models (read-only)",
            "its mount /srv/atelier/models at /models (writable) is not declared",
        ],
    ),
    "network": (
        lambda container: container["NetworkSettings"]["Networks"].update(bridge={}),
        ["its network bridge is not declared"],
    ),
}


@pytest.mark.parametrize("change,expected", CASES.values(), ids=CASES.keys())
def test_configuration(change: Callable[[dict[str, Any]], object], expected: list[str]) -> None:
    assert problems(change) == expected


def test_no_value_of_a_variable_is_told() -> None:
    assert "hunter2" not in str(problems(own(Env=["PATH=hunter2", "TOKEN=hunter2"])))


def test_limits_that_are_declared_are_wanted() -> None:
    chosen = settings(services={"comfyui": {"memory_limit": "32g", "cpu_limit": 1.5}})
    limited = projects(chosen, controllers=frozenset({"memory", "cpu"}))["comfyui"]
    assert container_drift.configuration(declared(limited), told(host(Memory=32 << 30, NanoCpus=1500000000))) == []
    assert len(container_drift.configuration(declared(limited), told())) == 2


def test_a_gpu_by_its_uuid() -> None:
    project = projects(settings(profile="gpu"), gpus={"comfyui": "nvidia.com/gpu=GPU-aaa"})["comfyui"]

    def with_gpu(uuid: str) -> Told:
        return told(
            lambda container: (
                host(DeviceRequests=[{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={uuid}"]}])(container),
                own(Cmd=["serve"])(container),
            )
        )

    assert container_drift.configuration(declared(project), with_gpu("GPU-aaa")) == []
    assert container_drift.configuration(declared(project), with_gpu("GPU-bbb")) == [
        "it lacks the GPU nvidia.com/gpu=GPU-aaa",
        "its GPU nvidia.com/gpu=GPU-bbb is not declared",
    ]


def test_the_gateway_publishes_its_ports_where_it_is_bound() -> None:
    for bound, address in {"127.0.0.1": "127.0.0.1", "::1": "::1"}.items():
        gateway = declared(projects(settings(bind_address=bound))["gateway"])
        assert container_drift._ports(gateway.service) == {f"{address}:8188 to 8188", f"{address}:7860 to 7860"}
    assert set(declared(GATEWAY).networks.values()) == GATEWAY.networks


def test_values_of_the_env_file_arrive_as_compose_reads_them() -> None:
    assert container_drift.variables('# x\nA="b"\nC="a \\"q\\" \\$d \\\\"\n') == {"A": "b", "C": 'a "q" $d \\'}


INSIDE: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], []),
    "what Docker mounts on": (DOCKERS_OWN, []),
    "a file": (
        [*DOCKERS_OWN, "d /opt", "d /opt/comfyui", "f /opt/comfyui/server.py"],
        ["/opt/comfyui/server.py was added or changed inside it"],
    ),
    "a folder": (["d /opt/new"], ["/opt/new was added or changed inside it"]),
    "removed": (["c /opt/comfyui/custom_nodes/x"], ["/opt/comfyui/custom_nodes/x was removed inside it"]),
    "as docker diff has it": (
        ["C /opt", "A /opt/a", "D /opt/b"],
        ["/opt/a was added or changed inside it", "/opt/b was removed inside it"],
    ),
    "a file beside a mount": (["d /run", "f /run/x"], ["/run/x was added or changed inside it"]),
    "what CDI mounts": (["d /usr/lib/gpu", "f /usr/lib/gpu/version", "m /", "m /usr/lib/gpu/version"], []),
    "many": (
        [f"f /x{number}" for number in range(7)],
        [
            *(f"/x{number} was added or changed inside it" for number in range(5)),
            "and 2 files more were changed inside it",
        ],
    ),
}


@pytest.mark.parametrize("changes,expected", INSIDE.values(), ids=INSIDE.keys())
def test_what_changed_inside(changes: list[str], expected: list[str]) -> None:
    assert container_drift.changed_inside(told(changes=changes)) == expected


def test_what_cdi_puts_into_a_container_with_a_gpu_is_no_change() -> None:
    cdi = ["d /usr", "d /usr/bin", "f /usr/bin/nvidia-smi", "d /etc", "f /etc/ld.so.cache", "f /etc/evil"]
    with_gpu = told(host(DeviceRequests=[{"DeviceIDs": ["nvidia.com/gpu=GPU-aaa"]}]), cdi)
    assert container_drift.changed_inside(with_gpu) == ["/etc/evil was added or changed inside it"]
    assert len(container_drift.changed_inside(told(changes=cdi))) == 3


@pytest.mark.parametrize(
    "path,of_the_gpu",
    [
        ("/usr/lib/x86_64-linux-gnu/libcuda.so.1", True),
        ("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so", True),
        ("/usr/lib64/libEGL_nvidia.so.0", True),
        ("/usr/lib/x86_64-linux-gnu/gbm/nvidia-drm_gbm.so", True),
        ("/etc/vulkan/icd.d/nvidia_icd.json", True),
        ("/usr/share/glvnd/egl_vendor.d/10_nvidia.json", True),
        ("/usr/bin/nvidia-smi", True),
        ("/etc/ld.so.cache", True),
        ("/opt/venv/lib/python3.11/site-packages/torch/cuda/__init__.py", False),
        ("/opt/comfyui/custom_nodes/cuda_tools/__init__.py", False),
        ("/opt/forge/modules/egl.py", False),
        ("/etc/passwd", False),
    ],
)
def test_what_a_gpu_brings_is_known_by_its_place(path: str, of_the_gpu: bool) -> None:
    with_gpu = told(host(DeviceRequests=[{"DeviceIDs": ["nvidia.com/gpu=GPU-aaa"]}]), [f"f {path}"])
    assert (container_drift.changed_inside(with_gpu) == []) is of_the_gpu


def test_what_the_script_tells_is_read_and_every_finding_names_its_container_and_remedy() -> None:
    mark = container_drift.MARK
    container = {**CONTAINER, "Name": "/comfyui-qwen", "Image": "sha256:1"}
    image = {"Id": "sha256:1", "Config": IMAGE}
    output = f"{mark}containers\n{json.dumps([container], indent=1)}\n{mark}images\n{json.dumps([image])}\n"
    output += f"{mark}comfyui-qwen\nf /x\n"
    found = container_drift.parse(output)
    assert found == {"comfyui-qwen": Told(container, IMAGE, ["f /x"])}
    first, second = container_drift.containers((COMFYUI, FORGE), found)
    assert first.problem == "comfyui-qwen: /x was added or changed inside it"
    assert first.remedy == "on the host: cd /opt/atelier/services/comfyui-qwen && docker compose up -d --force-recreate"
    assert second.problem == "there is no container forge-turbo"
    otherwise = projects(settings(services={"comfyui": {"shm_size": "4g"}}))["comfyui"]
    assert {finding.remedy for finding in container_drift.containers((otherwise,), found)} == {
        "run `make deploy`, which makes it anew"
    }
    assert container_drift.parse("") == container_drift.parse(f"{mark}containers\n[]\n{mark}images\n[]\n") == {}


@pytest.mark.parametrize("project", [COMFYUI, FORGE, GATEWAY], ids=lambda project: project.service)
def test_every_project_is_understood(project: Project) -> None:
    service = declared(project).service
    assert "${" not in json.dumps(service) and service["labels"]["atelier.config"] == project.config
    found = container_drift.configuration(declared(project), told())
    assert bool(found) is (project is not COMFYUI), "each container is another"
