"""What is removed from a host, in which order, what stays and why: decided from what is recorded and what lies there."""

import itertools
import json
import os
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_deployment import settings

from atelier import deployment, recorded, remains, uninstall, uninstall_packages
from atelier.manifest import PURGING
from atelier.recorded import JOURNAL, Recorded, Roots, Service
from atelier.remains import DOCKER_ROOT, Container, Docker, Remains
from atelier.uninstall import Plan
from atelier.uninstall_packages import Packages, Simulation

ROOTS = Roots("/opt/atelier", "/srv/atelier", "/srv/atelier/models", "/srv/atelier/outputs")
STATE = ROOTS.state()
FILES = {
    "/opt/atelier/weights.json": "1",
    "/opt/atelier/services/web/.env": "2",
    "/etc/apt/apt.conf.d/90atelier": "3",
    "/etc/systemd/system/atelier-loopback-guard.service": "4",
}
STATE_FILES = [f"{STATE}/manifest.json", f"{STATE}/instance", f"{STATE}/weights/ab.json"]
DIRECTORIES = [
    "/opt/atelier",
    "/opt/atelier/services",
    "/opt/atelier/services/web",
    "/srv/atelier",
    STATE,
    f"{STATE}/weights",
    "/srv/atelier/models",
    "/srv/atelier/models/vae",
    "/srv/atelier/outputs",
    "/srv/atelier/outputs/comfyui",
    "/srv/atelier/users",
    "/srv/atelier/users/comfyui",
]
CREATED = {
    "files": [*FILES, *STATE_FILES],
    "directories": DIRECTORIES,
    "containers": ["gateway", "web", "art"],
    "networks": ["atelier-web"],
    "images": ["atelier/web:1", "atelier/gateway:1"],
    "units": ["atelier-loopback-guard.service"],
    "weights": ["vae/a.safetensors"],
    "users": ["atelier"],
    "holds": ["nvidia-open"],
    "packages": ["docker.io", "aria2"],
    "merged": [deployment.DAEMON_JSON],
}


def record(found: Mapping[str, Collection[str]] | None = None, **created: Sequence[str]) -> Recorded:
    kinds = {**CREATED, **created}
    found = {"packages": ["bash=5", "python3=3"], "files": [], "directories": [], **(found or {})}
    return Recorded(
        schema=2,
        release="1",
        roots=ROOTS,
        place=STATE,
        service_uid=10001,
        services={"gateway": Service("gateway", "x"), "comfyui": Service("web", "y")},
        created={kind: frozenset(names) for kind, names in kinds.items()},
        found={kind: frozenset(names) for kind, names in found.items()},
        wrote={path: frozenset({digest, "of before"}) for path, digest in FILES.items()},
    )


def ours(name: str, image: str = "atelier/web:1", networks: Collection[str] = ("atelier-web",)) -> Container:
    return Container(name, True, image, frozenset(networks))


def theirs(name: str, image: str = "redis:7", networks: Collection[str] = ("bridge",)) -> Container:
    return Container(name, False, image, frozenset(networks))


DOCKER = Docker(
    answers=True,
    containers=(ours("art"), ours("gateway", "atelier/gateway:1"), ours("web")),
    networks={"atelier-web": True},
    images=frozenset({"atelier/web:1", "atelier/gateway:1"}),
)
KINDS = {
    **dict.fromkeys([*FILES, *STATE_FILES, "/srv/atelier/models/vae/a.safetensors"], "f"),
    **dict.fromkeys([*DIRECTORIES, "/var/lib/docker"], "d"),
}
THERE = Remains(
    packages=dict.fromkeys(["bash", "python3", "docker.io", "aria2", "containerd", "their-tool"], "installed"),
    manual=frozenset({"docker.io", "aria2", "their-tool"}),
    holds=frozenset({"nvidia-open", "linux-image"}),
    kinds=KINDS,
    digests=FILES,
    sizes={"/srv/atelier/models": 37_100_000_000},
    docker=DOCKER,
    users=frozenset({"atelier"}),
    groups={"docker": "", "sudo": "me"},
    rules=frozenset(remains.RULES),
)
ALL = Packages(("docker.io", "aria2", "containerd"), ("containerd",))


def decide(known: Recorded, there: Remains, packages: Packages = ALL, purge: bool = False) -> Plan:
    return uninstall.decide(known, ROOTS, there, packages, purge)


def why(plan: Plan) -> dict[str, str]:
    return {kept.what: kept.why for kept in plan.keeps}


def also(there: Remains, **paths: str) -> Remains:
    return replace(there, kinds={**there.kinds, **paths})


def test_a_whole_deploy_goes_in_an_order_in_which_nothing_is_missed() -> None:
    plan = decide(record(), THERE)
    names = [step.name for step in plan.steps]
    order = [
        "Remove gateway",
        "Remove art",
        "Remove web",
        "Remove our networks",
        "Remove 2 images",
        "Stop atelier-loopback-guard.service",
        "Take the guard's rules out of iptables",
        "Write down what apt is to remove",
        "Stop Docker and take its rules out",
        "Remove 3 packages",
        "Remove what Docker leaves",
        "Remove 4 files",
        "Remove the user atelier",
    ]
    assert [name for name in names if name in order] == order
    assert plan.removes["packages"] == ("docker.io", "aria2") and plan.removes[uninstall.BROUGHT] == ("containerd",)
    assert plan.removes["holds"] == ("nvidia-open",)
    assert why(plan) == {
        "/srv/atelier/models": "37.1 GB; PURGE=1 removes it",
        "/srv/atelier/outputs": "0.0 GB, owned by user id 10001, which has no name then; PURGE=1 removes it",
        "/srv/atelier/users": "0.0 GB, owned by user id 10001, which has no name then; PURGE=1 removes it",
    }


def test_the_host_looks_no_more_at_itself_before_anything_is_gone() -> None:
    timer = "/etc/systemd/system/atelier-monitor.timer"
    first = decide(record(files=[*CREATED["files"], timer]), also(THERE, **{timer: "f"})).steps[0]
    assert first.name == "Stop the host's look at itself"


STAYS = {
    "ours alone": (record(), THERE, ""),
    "here before": (record(packages=["aria2"]), THERE, "it was here before the first deploy"),
    "somebody's container": (
        record(),
        replace(THERE, docker=replace(DOCKER, containers=(*DOCKER.containers, theirs("cache")))),
        "it holds what is somebody else's: containers cache",
    ),
    "somebody's volume and image": (
        record(),
        replace(THERE, docker=replace(DOCKER, volumes=frozenset({"v"}), images=DOCKER.images | {"redis:7"})),
        "it holds what is somebody else's: volumes v; images redis:7",
    ),
    "somebody's network": (
        record(),
        replace(THERE, docker=replace(DOCKER, networks={"atelier-web": True, "shop": False})),
        "it holds what is somebody else's: networks shop",
    ),
    "gone already": (record(), replace(THERE, packages={"bash": "installed"}, docker=Docker()), ""),
    "its removal was begun": (
        record(purging=["docker.io"]),
        replace(THERE, docker=replace(DOCKER, volumes=frozenset({"v"}))),
        "",
    ),
    "it was decided before that it stays": (
        record(purging=["aria2"]),
        replace(THERE, docker=replace(DOCKER, volumes=frozenset({"v"}))),
        "it holds what is somebody else's: volumes v",
    ),
}


@pytest.mark.parametrize("known,there,expected", STAYS.values(), ids=STAYS.keys())
def test_docker_stays_while_it_is_somebody_elses_too(known: Recorded, there: Remains, expected: str) -> None:
    assert uninstall_packages.docker_stays(known, there) == expected


def test_where_docker_stays_nothing_of_it_is_touched_but_ours() -> None:
    sources = {deployment.DOCKER_SOURCES: "f", deployment.DOCKER_KEYRING: "f"}
    there = replace(
        also(THERE, **sources),
        docker=replace(
            DOCKER,
            containers=(*DOCKER.containers, theirs("cache", "atelier/web:1", ("atelier-web",))),
            images=DOCKER.images | {"redis:7"},
        ),
        daemon_json=deployment.merged_daemon_json("", settings()),
    )
    known = record(files=[*CREATED["files"], *sources])
    packages = uninstall_packages.candidates(known, there)
    assert packages.purge == ("aria2",)
    plan = decide(known, there, packages)
    names = [step.name for step in plan.steps]
    assert "Stop Docker and take its rules out" not in names and "Remove what Docker leaves" not in names
    assert not set(sources) & set(plan.removes["files"])
    told = why(plan)
    assert set(sources) < set(told)
    assert plan.removes["images"] == ("atelier/gateway:1",)
    assert told["the network atelier-web"] == "somebody else's containers are on it: cache"
    assert told["the image atelier/web:1"] == "somebody else's container cache uses it"
    assert "docker builder prune" in told["Docker's build cache"]
    put_back = next(step for step in plan.steps if step.name == "Put Docker's settings back")
    assert "systemctl reload docker" in put_back.script and "restart" not in put_back.script


def test_a_containerd_that_others_had_before_docker_came_runs_on() -> None:
    there = also(THERE, **{"/var/lib/containerd": "d"})
    plan = decide(record(), there, Packages(("docker.io",)))
    scripts = "\n".join(step.script for step in plan.steps)
    assert "/var/lib/docker" in scripts and "containerd" not in scripts
    scripts = "\n".join(step.script for step in decide(record(), there).steps)
    assert "systemctl disable -q --now containerd" in scripts and "/var/lib/containerd" in scripts


def test_the_group_docker_stays_with_its_members() -> None:
    assert any("groupdel docker" in step.script for step in decide(record(), THERE).steps)
    for known, there in (
        (record(), replace(THERE, groups={"docker": "me,you"})),
        (record({"groups": ["docker"]}), THERE),
    ):
        assert not any("groupdel docker" in step.script for step in decide(known, there).steps)
    assert why(decide(record(), replace(THERE, groups={"docker": "me"})))["the group docker"] == "it has members: me"


HELD = {
    "brought by ours": ({"packages": ["bash=5"]}, ("aria2", "docker.io", "nvidia-open")),
    "there before": ({"packages": ["nvidia-open=580"]}, ("aria2", "docker.io")),
}


@pytest.mark.parametrize("found,expected", HELD.values(), ids=HELD.keys())
def test_what_apt_holds_for_us_goes_where_it_was_not_there(found: dict, expected: tuple[str, ...]) -> None:
    there = replace(THERE, packages={**THERE.packages, "nvidia-open": "installed"})
    assert uninstall_packages.candidates(record(found), there).purge == expected
    of_schema_1 = replace(record(), found={})
    assert uninstall_packages.candidates(of_schema_1, there).purge == ("aria2", "docker.io"), "nobody knows"


def test_a_driver_stays_under_somebody_elses_containers() -> None:
    blacklist = uninstall.routes.NOUVEAU_BLACKLIST.path
    known = record(
        packages=["nvidia-open", "nvidia-container-toolkit", "docker.io"], files=[*CREATED["files"], blacklist]
    )
    there = replace(
        also(THERE, **{blacklist: "f"}),
        packages={**THERE.packages, "nvidia-open": "installed", "nvidia-container-toolkit": "installed"},
        docker=replace(DOCKER, containers=(theirs("train"),)),
    )
    packages = uninstall_packages.candidates(known, there)
    assert packages.purge == () and len(packages.kept) == 2
    plan = decide(known, there, packages)
    assert plan.removes["holds"] == () and blacklist in why(plan)


def test_a_container_under_one_of_our_names_that_no_deploy_made_stays() -> None:
    plan = decide(record(), replace(THERE, docker=replace(DOCKER, containers=(theirs("web"), ours("old-name")))))
    assert plan.removes["containers"] == ("old-name",)
    assert why(plan)["the container web"] == "no deploy made it"


EDITED = "/opt/atelier/services/web/.env"
FILES_CASES = {
    "as written": (record(), THERE, None),
    "as written by the deploy before, which a kill may leave": (
        record(),
        replace(THERE, digests={**FILES, EDITED: "of before"}),
        None,
    ),
    "edited": (record(), replace(THERE, digests={**FILES, EDITED: "9"}), "somebody edited it since a deploy wrote it"),
    "unknown bytes": (replace(record(), wrote={}), replace(THERE, digests={}), None),
    "a directory now": (
        record(),
        also(THERE, **{EDITED: "d"}),
        "a deploy wrote a file there, and it is none now",
    ),
    "there before": (record({"files": [EDITED]}), THERE, "it was here before the first deploy"),
}


@pytest.mark.parametrize("known,there,expected", FILES_CASES.values(), ids=FILES_CASES.keys())
def test_a_file_goes_only_as_we_wrote_it(known: Recorded, there: Remains, expected: str | None) -> None:
    plan = decide(known, there)
    removed = next(step for step in plan.steps if "files" in step.name).stdin.decode().split("\0")
    assert why(plan).get(EDITED) == expected
    assert (EDITED in removed) == (expected is None)


def test_a_hold_that_somebody_took_back_or_had_set_before_is_not_ours_to_end() -> None:
    assert decide(record(), replace(THERE, holds=frozenset({"linux-image"}))).removes["holds"] == ()
    assert decide(record({"holds": ["nvidia-open"]}), THERE).removes["holds"] == ()


def test_what_others_put_into_our_directories_is_named_once_and_stays() -> None:
    there = also(
        THERE,
        **{
            "/opt/atelier/notes": "d",
            "/opt/atelier/notes/a": "f",
            "/opt/atelier/services/web/x.yaml": "f",
            "/opt/atelier/build": "d",
            "/opt/atelier/build/web": "d",
            "/opt/atelier/weights.json.atelier-part": "f",
        },
    )
    plan = decide(record(), there)
    assert {path for path in why(plan) if path.startswith("/opt")} == {
        "/opt/atelier/notes",
        "/opt/atelier/services/web/x.yaml",
    }
    step = next(step for step in plan.steps if "files" in step.name)
    assert b"/opt/atelier/weights.json.atelier-part\0" in step.stdin and "rm -rf /opt/atelier/build" in step.script


def test_directories_that_were_there_before_stay() -> None:
    known = record({"directories": ["/opt/atelier"]})
    directories = next(step for step in decide(known, THERE).steps if "directories" in step.name)
    assert directories.stdin.decode().split("\0") == ["/opt/atelier/services/web", "/opt/atelier/services", ""]


def test_purge_takes_the_data_and_names_what_is_not_ours() -> None:
    there = also(
        THERE,
        **{
            "/srv/atelier/models/loras": "d",
            "/srv/atelier/models/vae/mine.safetensors": "f",
            "/srv/atelier/models/.incoming": "d",
            "/srv/atelier/models/.incoming/x.part": "f",
            "/srv/atelier/outputs/comfyui/1.png": "f",
        },
    )
    plan = decide(record(), there, purge=True)
    data = [step for step in plan.steps if step.stage == "Data"]
    assert data[0].stdin == b"/srv/atelier/models/vae/a.safetensors\0/srv/atelier/models/.incoming\0"
    assert [step.name for step in data[1:]] == [
        "Remove /srv/atelier/outputs/comfyui",
        "Remove /srv/atelier/users/comfyui",
    ]
    assert why(plan) == {
        "/srv/atelier/models/loras": "no deploy made it",
        "/srv/atelier/models/vae/mine.safetensors": "no deploy made it",
    }


def test_purge_leaves_outputs_that_were_there_before_us() -> None:
    plan = decide(record({"directories": ["/srv/atelier/outputs/comfyui"]}), THERE, purge=True)
    assert "Remove /srv/atelier/outputs/comfyui" not in [step.name for step in plan.steps]


def apt(depends: Mapping[str, str], before: Collection[str] = ()):
    """What apt would do, where each package that is a key needs the one that is its value."""

    def simulate(names: Sequence[str]) -> Simulation:
        removed = {*names}
        while more := {name for name, needed in depends.items() if needed in removed} - removed:
            removed |= more
        needless = {"containerd", "libnl"} if "docker.io" in removed else set()
        return Simulation(dict.fromkeys(removed, False) | dict.fromkeys(needless, True), frozenset(before))

    return simulate


PACKAGES = {
    "what ours brought goes with them": (apt({}), record(), (["aria2", "docker.io", "containerd", "libnl"], [])),
    "what was there before stays": (
        apt({}),
        record({"packages": ["libnl=3"]}),
        (["aria2", "docker.io", "containerd"], []),
    ),
    "what was needless before is not ours to tell": (
        apt({}, ["libnl"]),
        record(),
        (["aria2", "docker.io", "containerd"], []),
    ),
    "what somebody else's need stays": (
        apt({"their-tool": "docker.io"}),
        record(),
        (["aria2"], ["the package docker.io: somebody else's need it: their-tool"]),
    ),
    "what needs ours and nobody asked for goes along": (
        apt({"docker-helper": "aria2"}),
        record(packages=["aria2"]),
        (["aria2", "docker-helper"], []),
    ),
}


@pytest.mark.parametrize("simulate,known,expected", PACKAGES.values(), ids=PACKAGES.keys())
def test_packages(simulate: object, known: Recorded, expected: tuple[list[str], list[str]]) -> None:
    settled = uninstall_packages.settle(uninstall_packages.candidates(known, THERE), known, THERE, simulate)
    assert list(settled.purge) == expected[0]
    assert [f"{kept.what}: {kept.why}" for kept in settled.kept] == expected[1]


def test_what_is_recommended_goes_unless_it_came_to_be_somebody_elses() -> None:
    def settled(by: str) -> tuple[str, ...]:
        removed = {"docker.io": False, "aria2": False, "containerd": True, "libidn": True}
        told = Simulation(removed, frozenset(), {"libidn": frozenset({by})}, frozenset({"containerd"}))
        wanted = uninstall_packages.candidates(record(), THERE)
        return uninstall_packages.settle(wanted, record(), THERE, lambda _: told).purge

    assert "libidn" in settled("bash"), "bash was there before, and had to do without"
    assert settled("their-tool") == ("aria2", "docker.io", "containerd")


def test_an_interrupted_removal_goes_on_with_what_was_written_down() -> None:
    text = uninstall.purging_manifest(record(), ["docker.io", "aria2", "containerd"])
    written = {kind: frozenset(names) for kind, names in json.loads(text)["created"].items()}
    known = replace(record(), created=written)
    there = replace(THERE, packages={"bash": "installed", "containerd": "config-files", "aria2": "installed"})
    packages = uninstall_packages.settle(
        uninstall_packages.candidates(known, there), known, there, lambda _: pytest.fail("not asked again")
    )
    assert packages.purge == ("aria2", "containerd")
    names = [step.name for step in decide(known, replace(there, docker=Docker()), packages).steps]
    assert "Write down what apt is to remove" not in names and "Remove what Docker leaves" in names


OBSTACLES = {
    "none": (record(), THERE, None),
    "Docker is dead": (record(), replace(THERE, docker=Docker()), "does not answer"),
    "Docker was stopped by an interrupted removal": (
        record(purging=["docker.io"]),
        replace(THERE, docker=Docker()),
        None,
    ),
    "Docker is gone": (record(), replace(THERE, docker=Docker(), packages={"docker.io": "half-configured"}), None),
    "nothing in Docker was ours": (
        record(containers=[], networks=[], images=[]),
        replace(THERE, docker=Docker()),
        None,
    ),
    "a later release": (replace(record(), schema=99, release="9.1"), THERE, "9.1"),
    "a reprovision": (record(), also(THERE, **{JOURNAL: "f"}), "reprovision"),
}


@pytest.mark.parametrize("known,there,expected", OBSTACLES.values(), ids=OBSTACLES.keys())
def test_what_stands_in_the_way(known: Recorded, there: Remains, expected: str | None) -> None:
    finding = uninstall.obstacle(known, there, "box", "make reprovision")
    assert (finding is None) == (expected is None)
    assert finding is None or expected in finding.problem


DAEMON = {
    "none": "",
    "empty": "{}",
    "others' keys": '{"registry-mirrors": ["https://m"]}\n',
    "their own log driver": '{"log-driver": "journald", "log-opts": {"tag": "x"}}',
    "the same log driver": '{"log-driver": "json-file"}',
    "limits of theirs": '{ "log-opts": {"max-size": "1m", "compress": "true"} }',
    "their features": '{"features": {"cdi": false, "x": true}, "live-restore": false}',
    "no features": '{"features": {}, "log-opts": {}}',
}


@pytest.mark.parametrize("before", DAEMON.values(), ids=DAEMON.keys())
def test_dockers_settings_are_put_back_byte_for_byte(before: str) -> None:
    merged = deployment.merged_daemon_json(before, settings())
    assert uninstall.restored_daemon_json(merged, before) == (before or None)


@pytest.mark.parametrize("before", DAEMON.values(), ids=DAEMON.keys())
def test_of_settings_that_somebody_edited_only_our_keys_go(before: str) -> None:
    merged = json.loads(deployment.merged_daemon_json(before, settings()))
    edited = json.dumps({**merged, "debug": True, "features": {**merged["features"], "theirs": True}})
    restored = json.loads(uninstall.restored_daemon_json(edited, before))
    then = json.loads(before or "{}")
    assert restored.pop("debug") is True and restored["features"].pop("theirs") is True
    if not restored["features"] and "features" not in then:
        del restored["features"]
    assert restored == then


def test_what_was_found_goes_before_a_copy_that_an_earlier_release_made_of_its_own_merge() -> None:
    merged = deployment.merged_daemon_json('{"debug": true}', settings())
    there = replace(THERE, daemon_json=merged, before=merged)
    step = next(
        step for step in decide(record({"daemon_json": ['{"debug": true}']}), there).steps if "settings" in step.name
    )
    assert step.stdin == b'{"debug": true}\n'
    first = replace(there, before='{"debug":true}')
    step = next(
        step for step in decide(record({"daemon_json": ['{"debug": true}']}), first).steps if "settings" in step.name
    )
    assert step.stdin == b"" and "cp -aT /etc/docker/daemon.json.before-atelier" in step.script, "the very file"
    step = next(step for step in decide(record({"daemon_json": []}), there).steps if "settings" in step.name)
    assert json.loads(step.stdin) == {"debug": True}, "somebody's by now"
    none = replace(there, daemon_json=deployment.merged_daemon_json("", settings()))
    step = next(step for step in decide(record({"daemon_json": []}), none).steps if "settings" in step.name)
    assert "rm -f /etc/docker/daemon.json" in step.script


THEIR_OWN = '{"live-restore": true, "features": {"cdi": true}}'
PUT_BACK_ALREADY = {
    "of a host of which no more than the data is ours": (record(merged=[]), THEIR_OWN, None),
    "by a run that was interrupted": (record({"daemon_json": [THEIR_OWN]}), THEIR_OWN, None),
    "by one of a host of which nobody wrote down what was there": (record(), THEIR_OWN, THEIR_OWN + "\n"),
}


@pytest.mark.parametrize("known,text,before", PUT_BACK_ALREADY.values(), ids=PUT_BACK_ALREADY.keys())
def test_settings_that_are_somebodys_again_are_left_alone(known: Recorded, text: str, before: str | None) -> None:
    plan = decide(known, replace(THERE, daemon_json=text, before=before))
    assert not [step.name for step in plan.steps if "settings" in step.name] and not plan.puts_back


REFRESH, PERSISTENCE = "nvidia-cdi-refresh.path", "nvidia-persistenced.service"
WERE_OFF = {"disabled": [REFRESH, "docker.service", "x.service"], "stopped": [REFRESH, PERSISTENCE, "docker.service"]}
STARTED = replace(
    THERE,
    enabled=frozenset({REFRESH, "docker.service"}),
    active=frozenset({REFRESH, PERSISTENCE, "docker.service"}),
)


def test_units_that_somebody_had_switched_off_are_off_again() -> None:
    plan = decide(record(WERE_OFF), STARTED)
    steps = {step.name: step.script for step in plan.steps if step.name.startswith("Put ")}
    assert {name: script.split(" || exit 1")[:-1] for name, script in steps.items()} == {
        "Put docker.service back": ["systemctl disable docker.service"],
        f"Put {REFRESH} back": [f"systemctl disable {REFRESH}", f"\nsystemctl stop {REFRESH}"],
        f"Put {PERSISTENCE} back": [f"systemctl stop {PERSISTENCE}"],
    }
    assert f"{REFRESH}: not started at boot and stopped, as it was" in plan.puts_back
    again = decide(record(WERE_OFF), replace(STARTED, enabled=frozenset(), active=frozenset({"docker.service"})))
    assert not [step.name for step in again.steps if step.name.startswith("Put ")]


def test_units_that_somebody_elses_containers_may_use_stay_as_they_are() -> None:
    there = replace(STARTED, docker=replace(DOCKER, containers=(*DOCKER.containers, theirs("db"))))
    plan = decide(record(WERE_OFF), there)
    assert not [step.name for step in plan.steps if step.name.startswith("Put ")]
    assert why(plan)[f"the unit {REFRESH}"] == "somebody else's containers may use it: db"


def test_what_a_package_runs_is_stopped_before_it_goes(tmp_path: Path) -> None:
    host = f"""
    dpkg_query() {{ shift; for p; do case $p in
      upgrades) printf '/.\\n/lib/systemd/system/upgrades.service\\n/usr/lib/systemd/system/upgrades@.service\\n';;
      docker.io) printf '/usr/lib/systemd/system/docker.socket\\n/usr/lib/systemd/system/idle.timer\\n/usr/bin/docker\\n';;
      *) echo "dpkg-query: package '$p' is not installed" >&2; false;; esac; done; }}
    systemctl() {{ if [ $1 = stop ]; then echo $2 >>{tmp_path}/stopped; else [ $3 != idle.timer ]; fi; }}
    """
    script = uninstall_packages.stop_script(["upgrades", "docker.io", "gone"]).replace("dpkg-query", "dpkg_query")
    done = subprocess.run(["sh", "-c", host + script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "stopped").read_text().split() == ["upgrades.service", "docker.socket"]
    order = [step.name for step in decide(record(), THERE).steps]
    assert order.index("Stop what these packages run") == order.index("Remove 3 packages") - 1


STOPS = {
    "the toolkit": (["nvidia-container-toolkit-base"], {"nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service"}),
    "the driver": (["nvidia-persistenced", "nvidia-driver-cuda"], {PERSISTENCE}),
    "Ubuntu's": (["nvidia-compute-utils-580"], {PERSISTENCE}),
    "the fabric": (["nvidia-fabricmanager-580"], {"nvidia-fabricmanager.service"}),
    "nothing of the GPU's": (["aria2"], set()),
}


@pytest.mark.parametrize("names,units", STOPS.values(), ids=STOPS.keys())
def test_only_units_of_packages_that_go_are_switched_off(names: list[str], units: set[str]) -> None:
    there = replace(THERE, packages={**THERE.packages, **dict.fromkeys(names, "installed")})
    plan = decide(record(packages=names), there, Packages(tuple(names)))
    scripts = [step.script for step in plan.steps if step.name == "Stop what serves the GPUs"]
    assert {word for script in scripts for word in script.split() if word.startswith("nvidia-")} == units
    assert bool(scripts) == bool(units) and ("/run/cdi" in "".join(scripts)) == (REFRESH in units)


def test_what_stays_is_found_again_wherever_it_lies() -> None:
    roots = Roots("/opt/atelier", "/data", "/weights", "/data/outputs")
    text = uninstall.kept_manifest(replace(record(), roots=roots), roots)
    read = recorded.parse({"manifest": text, "schema": "2", "place": "/data/state"})
    assert read.roots == roots and read.created["weights"] == {"vae/a.safetensors"} and not read.found
    assert recorded.elsewhere(read.roots, read.place, settings(data_root="/data", models_dir="/weights")) == []


def test_settings_that_are_no_json_stay() -> None:
    assert uninstall.restored_daemon_json("{broken", "") == "{broken"


def test_every_script_is_shell() -> None:
    driver = {f"{STATE}/initramfs": "f", "/etc/systemd/system/atelier-monitor.timer": "f"}
    there = replace(also(THERE, **driver), daemon_json=deployment.merged_daemon_json("", settings()))
    known = record({"kernel": ["/proc/sys/net/ipv4/ip_forward 0", "iptables ACCEPT"]})
    steps = []
    for purge, packages in itertools.product((False, True), (ALL, Packages())):
        steps += uninstall.decide(known, ROOTS, there, packages, purge).steps
        steps += uninstall.last_steps(known, ROOTS, there, purge, "{}")
    for script in [
        *(step.script for step in steps),
        uninstall_packages.simulate_script(["a"]),
        remains.script(known, ROOTS),
    ]:
        done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
        assert done.returncode == 0, f"{script}\n{done.stderr}"
    assert len(steps) > 60


OURS = {"config/a.json": "a", "config/services/web/.env": "b", "config/lib/x.py": "c", "data/state/manifest.json": "{}"}
DATA_FILES = ("data/models/vae/w.safetensors", "data/outputs/comfyui/deep/1.png", "data/users/comfyui/db")
FOREIGN = ("config/services/mine.txt", "data/models/vae/lora.safetensors")


class Tree:
    """A deployed host's files in a folder, and the steps that concern them, carried out by the shell."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.roots = Roots(f"{root}/config", f"{root}/data", f"{root}/data/models", f"{root}/data/outputs")
        for name in (*OURS, *DATA_FILES, *FOREIGN, "data/state/weights/ab.json", "data/state/acme/key"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(OURS.get(name, "x"))
        directories = [str(path) for path in root.rglob("*") if path.is_dir() and path.name != "deep"]
        digests = {name: subprocess.check_output(["sha256sum", root / name], text=True).split()[0] for name in OURS}
        self.recorded = replace(
            record(),
            roots=self.roots,
            created={
                "files": frozenset(f"{root}/{name}" for name in OURS),
                "directories": frozenset(directories),
                "weights": frozenset({"vae/w.safetensors"}),
            },
            wrote={f"{root}/{name}": frozenset({digest}) for name, digest in digests.items()},
        )

    def look(self) -> Remains:
        # This computer's own packages and containers are no matter of the test.
        nothing = "; ".join(f"{name}() {{ false; }}" for name in ("docker", "apt_mark", "iptables", "timeout"))
        script = f"{nothing}; {remains.script(self.recorded, self.roots).replace('apt-mark', 'apt_mark')}"
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        return remains.parse(done.stdout)

    def steps(self, purge: bool) -> list[uninstall.Step]:
        there = self.look()
        plan = uninstall.decide(self.recorded, self.roots, there, Packages(), purge)
        steps = [step for step in plan.steps if step.stage in ("Files", "Data")]
        return [
            *steps,
            *uninstall.last_steps(self.recorded, self.roots, there, purge, '{"result": "uninstalled"}')[:-1],
        ]

    def left(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()}


def carry_out(steps: Sequence[uninstall.Step]) -> None:
    for step in steps:
        done = subprocess.run(["sh", "-c", step.script], input=step.stdin, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b""), f"{step.name}: {done.stderr!r}"


KEPT_STATE = {"data/state/manifest.json", "data/state/audit.log", "data/state/weights/ab.json"}


def test_files_on_a_real_disk_with_their_data(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    carry_out(tree.steps(purge=False))
    assert tree.left() == {*DATA_FILES, *FOREIGN, *KEPT_STATE}
    assert not (tmp_path / "config/lib").exists() and (tmp_path / "config/services").is_dir()
    assert json.loads((tmp_path / "data/state/manifest.json").read_text())["created"]["weights"] == [
        "vae/w.safetensors"
    ]
    assert (tmp_path / "data/state/manifest.json").stat().st_mode & 0o777 == 0o600


def test_files_on_a_real_disk_killed_after_every_step(tmp_path: Path) -> None:
    count = len(Tree(tmp_path / "whole").steps(purge=True))
    for done in range(count + 1):
        tree = Tree(tmp_path / str(done))
        carry_out(tree.steps(purge=True)[:done])
        carry_out(tree.steps(purge=True))
        assert tree.left() == {*FOREIGN}, f"killed after {done} steps"
    assert count >= 6


def test_an_edited_file_on_a_real_disk_stays(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tmp_path / "config/services/web/.env").write_text("mine")
    carry_out(tree.steps(purge=True))
    assert tree.left() == {*FOREIGN, "config/services/web/.env"}


def test_data_behind_a_link_goes_and_the_link_stays(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "host")
    models = tmp_path / "host/data/models"
    models.rename(tmp_path / "disk")
    models.symlink_to(tmp_path / "disk")
    carry_out(tree.steps(purge=True))
    assert models.is_symlink() and [path.name for path in (tmp_path / "disk/vae").iterdir()] == ["lora.safetensors"]


SAID = """::needless
libold
::removed
docker.io
docker-helper
::all
docker.io
docker-helper
libold
containerd
::unwanted
docker.io
docker-helper
containerd
::recommends
systemd libold (>= 1), gone | containerd
docker.io containerd
their-tool
"""


def test_what_apt_says_it_would_remove() -> None:
    told = uninstall_packages.parse_simulation(SAID)
    assert told.removed == {"docker.io": False, "docker-helper": False, "libold": True, "containerd": True}
    assert told.before == {"libold"}
    assert told.unwanted == {"docker.io", "docker-helper", "containerd"}
    assert told.recommended == {"libold": {"systemd"}, "containerd": {"systemd"}}


def test_apt_is_asked_and_a_refusal_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(
        "#!/bin/sh\ncase \"$*\" in *broken*) echo 'E: no'; exit 100;; *--autoremove*) echo 'Purg b [1]';; esac\n"
        "case \"$*\" in *purge*) echo 'Reading lists'; echo 'Purg a:amd64 [1]';; *) echo 'Remv old [2] []';; esac\n"
    )
    apt.chmod(0o755)

    def ask(name: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        script = ["sh", "-c", uninstall_packages.simulate_script([name])]
        return subprocess.run(script, capture_output=True, text=True, env=environment)

    told = uninstall_packages.parse_simulation(ask("a").stdout)
    assert told.removed == {"a:amd64": False, "b": True} and told.before == {"old"}
    refused = ask("broken")
    assert refused.returncode == 1 and "E: no" in refused.stderr


@pytest.mark.parametrize("answers", [True, False], ids=["Docker answers", "Docker is gone already"])
def test_a_place_that_somebody_gave_docker_is_not_emptied_nor_is_the_one_it_had_before(answers: bool) -> None:
    """It may be a disk with other things, or even that of the data; and what lies in the usual place nobody was asked about."""
    there = replace(
        THERE,
        docker=replace(DOCKER, answers=answers, root="/srv/atelier" if answers else DOCKER_ROOT),
        daemon_json='{"data-root": "/srv/atelier/"}',
    )
    plan = decide(record(), there)
    assert not any("/srv/atelier" in step.script and "-delete" in step.script for step in plan.steps)
    assert not any(DOCKER_ROOT in step.script for step in plan.steps)
    assert "/srv/atelier" in why(plan) and DOCKER_ROOT in why(plan)
    assert "Docker's data" not in plan.removes or not plan.removes["Docker's data"]


def test_a_removal_that_broke_off_is_considered_anew_where_others_use_docker_by_now() -> None:
    begun = record(**{PURGING: ["aria2", "containerd", "docker.io"]})
    used = replace(THERE, docker=replace(DOCKER, containers=(theirs("db"),), volumes=frozenset({"db"})))
    assert PURGING in uninstall_packages.reconsidered(begun, THERE).created
    anew = uninstall_packages.reconsidered(begun, used)
    assert PURGING not in anew.created and uninstall_packages.docker_stays(anew, used)
    wanted = uninstall_packages.candidates(anew, used)
    assert wanted.purge == ("aria2",)
    assert not any(DOCKER_ROOT in step.script for step in decide(anew, used, wanted).steps)
    half_gone = replace(used, packages={**used.packages, "docker.io": "config-files"}, docker=Docker())
    assert PURGING in uninstall_packages.reconsidered(begun, half_gone).created
