"""What is wrong with the containers, judged from what Docker and the kernel told."""

import copy
import subprocess

import pytest

from atelier.checks import container_state
from atelier.settings import Settings

SETTINGS = Settings(profile="cpu", minimum_memory_gb=16)


def problems(findings) -> str:
    assert all(finding.remedy for finding in findings)
    return "; ".join(finding.problem for finding in findings)


UID = 10001
HEALTH = {"Test": ["CMD", "python", "/health.py"], "Interval": 1}
NAMES = ["comfyui-qwen", "forge-turbo", "gateway"]
OPEN = {"Max core file size": "0                    0                    bytes", "Max open files": "16384 16384 files"}
PROCESS = {
    "Uid": "10001\t10001\t10001\t10001",
    "Gid": "10001\t10001\t10001\t10001",
    "Groups": "10001 ",
    **dict.fromkeys(("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"), "0000000000000000"),
    "NoNewPrivs": "1",
    "Seccomp_filters": "1",
}


def inspect(name: str = "comfyui-qwen") -> dict:
    published = {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}] for port in (7860, 8188)}
    given = published if name == "gateway" else {}
    networks = ["atelier-comfyui-qwen", "atelier-forge-turbo", "atelier-gateway"]
    return {
        "Name": f"/{name}",
        "Image": "sha256:" + "a" * 64,
        "RestartCount": 0,
        "State": {"Status": "running", "Health": {"Status": "healthy", "Log": [{"Output": "fine"}]}},
        "Config": {"User": "10001:10001", "Healthcheck": HEALTH, "Labels": {"atelier.config": "c"}},
        "HostConfig": {
            "RestartPolicy": {"Name": "unless-stopped"},
            "Privileged": False,
            "ReadonlyRootfs": True,
            "CapAdd": None,
            "CapDrop": ["ALL"],
            "NetworkMode": "atelier-comfyui-qwen",
            "PidMode": "",
            "IpcMode": "private",
            "UTSMode": "",
            "SecurityOpt": ["no-new-privileges:true"],
            "Devices": None,
            "Init": True,
            "CgroupnsMode": "private",
            "MaskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware"],
            "ReadonlyPaths": ["/proc/bus", "/proc/sys", "/proc/sysrq-trigger"],
            "Memory": 0,
            "MemorySwap": 0,
            "NanoCpus": 0,
            "ShmSize": 2 << 30,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
            "PortBindings": given,
        },
        "Mounts": [{"Type": "bind", "Source": "/srv/atelier/models", "Destination": "/models", "RW": False}],
        "NetworkSettings": {"Ports": given, "Networks": {n: {} for n in networks if name in ("gateway", n[8:])}},
    }


def container(name: str = "comfyui-qwen", **changed) -> container_state.Told:
    """A good one; `HostConfig__Privileged=True` is a change below that key."""
    tree = inspect(name)
    for path, value in changed.items():
        *above, last = path.split("__")
        place = tree
        for key in above:
            place = place[key]
        place[last] = value
    return container_state.Told(name, tree, HEALTH, PROCESS, OPEN, "ro,relatime", cgroups="cgroup2fs")


def judged(told: container_state.Told, settings=SETTINGS, controllers=frozenset()) -> dict[str, str]:
    return {
        "running": problems(container_state.running(told)),
        "images": problems(container_state.deployed(told, {"id": "sha256:" + "a" * 64, "tag": "t"}, "c")),
        "hardened": problems(container_state.confinement(told, UID)),
        "limits": problems(container_state.limits(told, settings, controllers)),
    }


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_with_a_good_container(name):
    assert set(judged(container(name)).values()) == {""} and not container_state.restarted(container(name))


@pytest.mark.parametrize(
    ("group", "changed", "seen"),
    [
        (
            "running",
            {"State": {"Status": "exited", "ExitCode": 137, "OOMKilled": True}},
            "exited (exit status 137, killed",
        ),
        ("running", {"State": {"Status": "paused", "ExitCode": 0}}, "comfyui-qwen is paused"),
        (
            "running",
            {"State__Health": {"Status": "unhealthy", "Log": [{"Output": "stranger 200"}]}},
            "unhealthy: stranger 200",
        ),
        ("running", {"State__Health": {"Status": "starting"}}, "starting: no answer yet"),
        (
            "running",
            {"Config__Healthcheck": None},
            "another health check than its image: none for CMD python /health.py",
        ),
        ("running", {"Config__Healthcheck": {"Test": ["CMD", "true"]}}, "CMD true for CMD python"),
        ("running", {"HostConfig__RestartPolicy": {"Name": "no"}}, "restart policy no"),
        ("running", {"HostConfig__RestartPolicy": {"Name": ""}}, "restart policy no"),
        ("images", {"Image": "sha256:" + "b" * 64}, "runs image bbbbbbbbbbbb, deployed was aaaaaaaaaaaa (t)"),
        ("images", {"Config__Labels": {}}, "was started with configuration None, deployed was c"),
        ("hardened", {"Config__User": ""}, "runs as user root"),
        ("hardened", {"HostConfig__Privileged": True}, "is privileged"),
        ("hardened", {"HostConfig__ReadonlyRootfs": False}, "has a writable root file system"),
        ("hardened", {"HostConfig__CapAdd": ["NET_ADMIN"]}, "was given capabilities: NET_ADMIN"),
        ("hardened", {"HostConfig__CapDrop": None}, "keeps Docker's usual capabilities"),
        ("hardened", {"HostConfig__PidMode": "host"}, "shares PidMode with the host"),
        ("hardened", {"HostConfig__NetworkMode": "container:abc"}, "shares NetworkMode"),
        ("hardened", {"HostConfig__SecurityOpt": ["seccomp=unconfined"]}, "security options seccomp=unconfined"),
        ("hardened", {"HostConfig__Devices": [{"PathOnHost": "/dev/sda"}]}, "has devices of the host: /dev/sda"),
        ("hardened", {"HostConfig__Init": None}, "has no init"),
        ("hardened", {"HostConfig__CgroupnsMode": "host"}, "shares CgroupnsMode with the host"),
        ("hardened", {"HostConfig__MaskedPaths": []}, "sees /proc/kcore, /proc/keys, /sys/firmware of the host"),
        ("hardened", {"HostConfig__MaskedPaths": ["/proc/kcore", "/proc/keys"]}, "sees /sys/firmware of the host"),
        ("hardened", {"HostConfig__ReadonlyPaths": None}, "may write to /proc/sys, /proc/sysrq-trigger of the host"),
        ("hardened", {"Mounts": [{"Source": "/run/docker.sock"}]}, "holds /run/docker.sock"),
        (
            "limits",
            {"HostConfig__LogConfig": {"Type": "json-file", "Config": {}}},
            "log rotation is none, not max-file=3 max-size",
        ),
        ("limits", {"HostConfig__LogConfig": {"Type": "none", "Config": {}}}, "log driver is none"),
        ("limits", {"HostConfig__ShmSize": 64 << 20}, "size of /dev/shm is 67108864, not 2147483648"),
        ("limits", {"HostConfig__Memory": 1}, "memory limit is 1, not 0"),
        ("limits", {"HostConfig__NanoCpus": 5}, "CPU limit is 5, not 0"),
    ],
)
def test_what_is_wrong_with_a_container(group, changed, seen):
    found = judged(container(**changed))
    assert seen in found.pop(group)
    assert not any(found.values())


def test_options_of_the_hosts_own_log_settings_are_no_fault():
    options = {"max-size": "10m", "max-file": "3", "compress": "true", "tag": "x"}
    found = judged(container(HostConfig__LogConfig={"Type": "json-file", "Config": options}))
    assert not any(found.values())
    found = judged(container(HostConfig__LogConfig={"Type": "json-file", "Config": {**options, "max-file": "9"}}))
    assert "log rotation is max-file=9 max-size=10m, not max-file=3 max-size=10m" in found["limits"]


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({"Uid": "0\t10001\t10001\t10001"}, "runs as user 10001:10001 (0 10001"),
        ({"Groups": "10001 998"}, "is in further groups: 10001 998"),
        ({"CapBnd": "00000000a80425fb"}, "CapBnd 00000000a80425fb"),
        ({"NoNewPrivs": "0"}, "no-new-privileges is off"),
        ({"Seccomp_filters": "0"}, "no filter of system calls"),
    ],
)
def test_what_the_kernel_says_of_a_container(changed, seen):
    told = container_state.Told("x", inspect(), HEALTH, PROCESS | changed, OPEN, "ro")
    assert seen in problems(container_state.confinement(told, UID))


def test_a_filter_that_every_process_of_the_host_has_is_none_of_the_containers():
    told = container_state.Told("x", inspect(), HEALTH, PROCESS, OPEN, "ro", filters=1)
    assert "no filter of system calls" in problems(container_state.confinement(told, UID))


@pytest.mark.parametrize(("groups", "shared"), [("cgroup2fs", True), ("tmpfs", False)])
def test_control_groups_of_the_first_version_are_always_shared(groups, shared):
    host = container(HostConfig__CgroupnsMode="host").inspect
    told = container_state.Told("x", host, HEALTH, PROCESS, OPEN, "ro", cgroups=groups)
    assert ("shares CgroupnsMode" in problems(container_state.confinement(told, UID))) == shared


def test_a_root_that_is_writable_by_the_kernels_word():
    told = container_state.Told("x", inspect(), HEALTH, PROCESS, OPEN, "rw,relatime")
    assert "writable root" in problems(container_state.confinement(told, UID))


def test_limits_are_asked_for_where_the_host_has_the_controllers():
    settings = SETTINGS.model_validate(
        {"profile": "cpu", "services": {"comfyui": {"memory_limit": "48g", "cpu_limit": 8}}}
    )
    both = frozenset({"memory", "cpu"})
    good = {"HostConfig__Memory": 48 << 30, "HostConfig__MemorySwap": 96 << 30, "HostConfig__NanoCpus": 8 * 10**9}
    assert problems(container_state.limits(container(), settings, frozenset())) == ""
    found = problems(container_state.limits(container(), settings, both))
    assert "memory limit is 0, not 51539607552" in found and "CPU limit is 0, not 8000000000" in found
    told = container(**good)
    in_force = container_state.Told(told.name, told.inspect, HEALTH, PROCESS, OPEN, "ro", str(48 << 30))
    assert problems(container_state.limits(in_force, settings, both)) == ""
    unlimited = container_state.Told(told.name, told.inspect, HEALTH, PROCESS, OPEN, "ro", "max")
    assert problems(container_state.limits(unlimited, settings, both)) == (
        "comfyui-qwen: memory limit of the kernel is max, not 51539607552"
    )
    for swap, wrong in (
        (48 << 30, ""),
        (-1, "memory and swap is -1, not at most 103079215104"),
        (97 << 30, "and swap is"),
    ):
        tree = container(**good | {"HostConfig__MemorySwap": swap}).inspect
        swapping = container_state.Told(told.name, tree, HEALTH, PROCESS, OPEN, "ro", str(48 << 30))
        found = problems(container_state.limits(swapping, settings, both))
        assert wrong in found and bool(found) == bool(wrong)
    dumping = container_state.Told(
        "gateway", inspect("gateway"), HEALTH, PROCESS, {"Max open files": "1024 1024"}, "ro"
    )
    found = problems(container_state.limits(dumping, settings, both))
    assert "open files is 1024, not at least 16384" in found and "core dumps is , not 0 0" in found


def test_the_containers_script_is_read_back():
    output = """
::container::inspect a
{"Name": "/a"}
::container::healthcheck a
{"Test": ["CMD"]}
::container::process a
Name:\ttini
Uid:\t10001\t10001\t10001\t10001
::container::limits a
Limit                     Soft Limit           Hard Limit           Units
Max core file size        0                    0                    bytes
::container::root a
ro,relatime
::container::filters a
3
::container::cgroups a
cgroup2fs
::container::memory_max a
max
::container::inspect b
{"Name": "/b", "Config": {"User": "0:0"}}
::container::healthcheck b
null
"""
    told = container_state.parse(output)
    assert told["a"].process["Uid"] == "10001\t10001\t10001\t10001" and told["a"].root == "ro,relatime"
    assert told["a"].limits["Max core file size"].split()[:2] == ["0", "0"] and told["a"].memory_max == "max"
    assert told["a"].filters == 3 and told["a"].cgroups == "cgroup2fs" and told["b"].filters == 0
    assert told["b"].healthcheck is None and not told["b"].process
    assert problems(container_state.missing(told, ["a", "b", "c"])) == "there is no container c"
    stopped = problems(container_state.confinement(told["b"], UID))
    assert "no process" in stopped and "it was to run as user 0:0, not as 10001" in stopped


def test_a_container_that_docker_had_to_start_again():
    assert "was started again 3 times" in problems(container_state.restarted(container(RestartCount=3)))


def test_doors():
    containers = [inspect(name) for name in NAMES]
    assert container_state.doors(containers, SETTINGS) == []
    wide, extra, lost, beside, stranger = (copy.deepcopy(containers) for _ in range(5))
    for table in (wide[2]["HostConfig"]["PortBindings"], wide[2]["NetworkSettings"]["Ports"]):
        table["8188/tcp"] = [{"HostIp": "0.0.0.0", "HostPort": "8188"}]
    found = problems(container_state.doors(wide, SETTINGS))
    assert "gateway publishes 0.0.0.0:8188, which" in found and "gateway does not publish 127.0.0.1:8188" in found
    extra[2]["NetworkSettings"]["Ports"]["9/tcp"] = [{"HostIp": "", "HostPort": "9999"}]
    assert "gateway publishes 0.0.0.0:9999" in problems(container_state.doors(extra, SETTINGS))
    del lost[2]
    assert "gateway does not run" in problems(container_state.doors(lost, SETTINGS))
    # On an internal network Docker publishes nothing, until the network is not internal any more.
    beside[0]["HostConfig"]["PortBindings"] = {"8188/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18188"}]}
    assert "comfyui-qwen publishes 127.0.0.1:18188, which bypasses the gateway" in problems(
        container_state.doors(beside, SETTINGS)
    )
    stranger.append(inspect("gateway") | {"Name": "/intruder"})
    assert "container intruder stands in for the gateway at" in problems(container_state.doors(stranger, SETTINGS))
    other = inspect("x") | {"Name": "/monitoring"}
    other["HostConfig"]["PortBindings"] = {"9/tcp": [{"HostIp": "0.0.0.0", "HostPort": "9100"}]}
    assert container_state.doors([*containers, other], SETTINGS) == []
    other["HostConfig"]["PortBindings"] = {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "9000-9005"}]}
    assert container_state.doors([*containers, other], SETTINGS) == []
    other["HostConfig"]["PortBindings"] = {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8180-8190"}]}
    assert "monitoring stands in for the gateway" in problems(container_state.doors([*containers, other], SETTINGS))


def network(*members: str, internal: bool = True, **options: str) -> dict:
    options = {"com.docker.network.bridge.inhibit_ipv4": "true", **options}
    return {"Internal": internal, "Options": options, "Containers": {name: {"Name": name} for name in members}}


def test_networks():
    told = {name: container(name) for name in NAMES}
    good = {
        "atelier-comfyui-qwen": network("comfyui-qwen", "gateway"),
        "atelier-forge-turbo": network("forge-turbo", "gateway"),
    }
    assert container_state.networks(good, told, SETTINGS) == []
    cases = {
        "there is no network atelier-comfyui-qwen": {**good, "atelier-comfyui-qwen": None},
        "is not internal: comfyui-qwen has a way out": {
            **good,
            "atelier-comfyui-qwen": network("comfyui-qwen", "gateway", internal=False),
        },
        "has an address of the host": {**good, "atelier-forge-turbo": network("gateway") | {"Options": None}},
        "intruder is on atelier-forge-turbo": {**good, "atelier-forge-turbo": network("forge-turbo", "intruder")},
    }
    for seen, found in cases.items():
        there = {name: each for name, each in found.items() if each}
        assert seen in problems(container_state.networks(there, told, SETTINGS))
    both = {"atelier-comfyui-qwen": {}, "bridge": {}}
    wrong = {**told, "comfyui-qwen": container(NetworkSettings__Networks=both)}
    assert problems(container_state.networks(good, wrong, SETTINGS)) == (
        "comfyui-qwen is on bridge, a network that it must not reach"
    )
    lost = {**told, "comfyui-qwen": container(NetworkSettings__Networks={})}
    assert "comfyui-qwen is not on atelier-comfyui-qwen" in problems(container_state.networks(good, lost, SETTINGS))


@pytest.mark.parametrize(
    ("answered", "reached", "seen"),
    [
        ({"g:1", "NAMES"}, False, ""),
        ({"NAMES"}, False, "the probe in app does not reach g:1, so"),
        ({"g:1"}, False, "does not reach NAMES"),
        (set(), True, "proves nothing"),
        ({"g:1", "NAMES", "DNS"}, False, "app resolves names of the internet"),
        ({"g:1", "NAMES", "1.1.1.1:443"}, False, "app reaches 1.1.1.1:443"),
        ({"g:1", "NAMES"}, True, "the host reaches app, bypassing the gateway"),
    ],
)
def test_ways_out_and_in(answered, reached, seen):
    found = problems(container_state.ways("app", "g:1", frozenset(answered), reached))
    assert seen in found and bool(found) == bool(seen)


MARKS = {"comfyui-qwen": container_state.STARTED["comfyui"], "forge-turbo": container_state.STARTED["forge"]}
COMFYUI_UP = "\x1b[32m[INFO]\x1b[0m Starting server\n\nTo see the GUI go to: http://0.0.0.0:8188\n"
FORGE_UP = "Running on local URL:  http://0.0.0.0:7860\natelier: the logins are in force\nStartup time: 12.1s.\n"
FAILED = "   0.1 seconds (IMPORT FAILED): /opt/comfyui/custom_nodes/pack\n"
OF_USERS = "clip missing: ['text_projection.weight']\nModuleNotFoundError: No module named 'x'\n" + FAILED
WELL, ILL = "up 2026-11-22T10:00:00Z", "ill 2026-11-20T10:00:00Z"
STAND_IN = """#!/bin/sh
for name; do :; done
case $1 in
inspect) cat "$LOGS/$name.state" ;;
logs) cat "$LOGS/$name.log"; exit "$(cat "$LOGS/$name.status" 2>/dev/null || echo 0)" ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "log", "status", "seen", "warned"),
    [
        pytest.param(WELL, "loading\n" + COMFYUI_UP, 0, "", "", id="clean"),
        pytest.param(WELL, "loading\n" + COMFYUI_UP + OF_USERS, 0, "", "", id="what users did"),
        pytest.param(
            WELL, FAILED + COMFYUI_UP, 0, "comfyui-qwen: 0.1 seconds (IMPORT FAILED): /opt/comfyui", "", id="at start"
        ),
        pytest.param(WELL, "unet missing: ['a']\n" + COMFYUI_UP, 0, "unet missing: ['a']", "", id="missing at start"),
        pytest.param(WELL, "clip missing: ['a']\n" + COMFYUI_UP, 0, "", "", id="often no fault"),
        pytest.param(
            WELL,
            "ModuleNotFoundError: Starting server is no mark\n" + COMFYUI_UP,
            0,
            "Starting server is",
            "",
            id="mark",
        ),
        pytest.param(WELL, "::container::up x\n" + COMFYUI_UP, 0, "", "", id="a section's head"),
        pytest.param(WELL, "100%\n" + OF_USERS, 0, "", "comfyui-qwen does not go back to its start", id="rotated"),
        pytest.param(ILL, COMFYUI_UP + OF_USERS, 0, "ModuleNotFoundError", "", id="starts again and again"),
        pytest.param(ILL, "loading", 0, "", "", id="still starting"),
        pytest.param(WELL, "", 0, "the log of comfyui-qwen is empty since its start", "", id="empty"),
        pytest.param(WELL, "no reading", 1, "the log of comfyui-qwen cannot be read", "", id="no log driver"),
        pytest.param(WELL, "loading\n", 124, "cannot be read within 60 s: a time-out", "", id="time-out"),
        pytest.param(None, "", 0, "the log of comfyui-qwen cannot be read", "", id="no container"),
    ],
)
def test_the_log_of_a_start(tmp_path, state, log, status, seen, warned):
    for name, text in (("docker", STAND_IN), ("forge-turbo.state", WELL), ("forge-turbo.log", FORGE_UP + OF_USERS)):
        (tmp_path / name).write_text(text)
    (tmp_path / "docker").chmod(0o755)
    if state:
        (tmp_path / "comfyui-qwen.state").write_text(state)
    (tmp_path / "comfyui-qwen.log").write_text(log)
    (tmp_path / "comfyui-qwen.status").write_text(str(status))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOGS": str(tmp_path)}
    output = subprocess.run(
        ["sh", "-c", container_state.log_script(MARKS)], env=environment, capture_output=True, text=True, check=True
    ).stdout
    told = container_state.starts(output)
    found, lost = problems(container_state.notable(told, list(MARKS))), problems(container_state.unseen(told))
    assert seen in found and bool(found) == bool(seen)
    assert warned in lost and bool(lost) == bool(warned)
    assert told["forge-turbo"] == container_state.Start(True, (), "started")
