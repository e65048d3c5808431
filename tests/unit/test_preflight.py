"""What preflight finds: each obstacle alone, and all of them at once."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from atelier import credentials as store
from atelier import hostfacts, lifecycle, preflight
from atelier.deployment import Deployment
from atelier.errors import Finding
from atelier.gpu.facts import GpuFacts, PciGpu
from atelier.gpu.plan import GpuPlan, plan_gpu
from atelier.hostfacts import HostFacts, Listener
from atelier.images import ImageBuild
from atelier.models import Weight
from atelier.recorded import Roots
from atelier.settings import build_settings

GIB, GB = 1 << 30, 10**9
ACCOUNT = {"user": "someone", "password": "a-password-of-some-length", "password_bcrypt": "$2b$12$" + "a" * 53}
CREDENTIALS = store.Credentials(instance="i", comfyui=ACCOUNT, forge=ACCOUNT, comfyui_cookie_key="k" * 44)
IMAGES = frozenset(f"atelier/{name}:1" for name in ("base", "torch", "comfyui", "forge", "gateway"))
DIRECTORIES = ("/srv/atelier", "/var/lib/docker", "/var/lib/containerd")


def disks(*, data: int, docker: int | None = None) -> dict[str, object]:
    """Facts of a host with one file system, or with Docker on one of its own; sizes in GB."""
    free = dict.fromkeys(DIRECTORIES, (data if docker is None else docker) * GB)
    mounts = dict.fromkeys(DIRECTORIES, "/" if docker is None else "/var")
    return {
        "disk_free": {**free, "/srv/atelier": data * GB},
        "mounts": {**mounts, "/srv/atelier": "/" if docker is None else "/srv"},
    }


ROOTS = Roots("/opt/atelier", "/srv/atelier", "/srv/atelier/models", "/srv/atelier/outputs")
FACTS = HostFacts(
    os_id="debian",
    os_codename="trixie",
    architecture="amd64",
    memory=64 * GIB,
    clock=1000,
    addresses=frozenset({"127.0.0.1", "::1", "192.0.2.7"}),
    **disks(data=200),
)


def weight(name: str, gigabytes: int) -> Weight:
    return Weight(
        repository="a/b",
        revision="main",
        path=f"{name}.safetensors",
        bytes=gigabytes * GB,
        sha256=name[0] * 64,
        directory="vae",
        sets=["x"],
        used_by=[],
        licence="none",
    )


def builds(variant: str) -> tuple[ImageBuild, ...]:
    parents = {"base": None, "torch": "base", "comfyui": "torch", "forge": "torch", "gateway": "base"}
    return tuple(
        ImageBuild(
            name,
            f"atelier/{name}:1",
            (("VARIANT", variant),) if name == "torch" else (),
            (),
            parent=f"atelier/{parent}:1" if parent else None,
        )
        for name, parent in parents.items()
    )


def deployment(
    facts: dict[str, object] | None = None, settings: dict[str, object] | None = None, **further: object
) -> Deployment:
    chosen = build_settings([("test", {"profile": "cpu", "models": {"reserve_gb": 0}, **(settings or {})})])
    given = {"builds": builds("cu130"), "weights": (weight("a", 20), weight("b", 17)), "sources": "upstream", **further}
    return Deployment(chosen, replace(FACTS, **(facts or {})), CREDENTIALS, **given)


def findings(*arguments: dict[str, object], **further: object) -> list[Finding]:
    return preflight.findings(deployment(*arguments, **further), 1000, {})


OBSTACLES: dict[str, tuple[dict[str, object], list[str]]] = {
    "none": ({}, []),
    "os": ({"os_codename": "bullseye", "os_name": "Debian 11"}, ["Debian 11 is not supported"]),
    "architecture": ({"architecture": "arm64"}, ["architecture arm64"]),
    "clock": ({"clock": 5000}, ["4000 s off"]),
    "memory": ({"memory": 8 * GIB}, ["8.0 GB of memory, 30 GB are wanted"]),
    "port": ({"listeners": (Listener("0.0.0.0", 8188, "nginx"),)}, ["port 8188 for comfyui is in use by nginx"]),
    "port of nobody we may see": (
        {"listeners": (Listener("127.0.0.1", 7860, ""),)},
        ["port 7860 for forge is in use by another program"],
    ),
    "our own port": (
        {"listeners": (Listener("127.0.0.1", 8188, "docker-proxy"),), "containers": frozenset({"gateway"})},
        [],
    ),
    "another container's port": (
        {"listeners": (Listener("127.0.0.1", 8188, "docker-proxy"),), "containers": frozenset({"theirs"})},
        ["port 8188 for comfyui is in use by docker-proxy"],
    ),
    "another program beside our gateway": (
        {"listeners": (Listener("0.0.0.0", 8188, "nginx"),), "containers": frozenset({"gateway"})},
        ["port 8188 for comfyui is in use by nginx"],
    ),
    "the port on another address": ({"listeners": (Listener("192.0.2.7", 8188, "nginx"),)}, []),
    "the port on all addresses, IPv6 with IPv4": ({"listeners": (Listener("*", 8188, "nginx"),)}, ["by nginx"]),
    "docker.io with containers": (
        {"os_codename": "bookworm", "packages": {"docker.io": "20"}, "containers": frozenset({"theirs"})},
        ["these containers stopped: theirs"],
    ),
    "docker.io without containers": ({"os_codename": "bookworm", "packages": {"docker.io": "20"}}, []),
    "snap": ({"snap_docker": True}, ["snap"]),
    "a later release": (
        {"schema": "99", "release": "9.1", "roots": Roots("/a", "/b", "/c", "/d"), "state_place": "/b/state"},
        ["later release (state schema 99, of release 9.1; this one knows"],
    ),
    "an earlier release": ({"schema": "1", "roots": ROOTS, "state_place": "/srv/atelier/state"}, []),
    "data elsewhere": (
        {"roots": replace(ROOTS, data_root="/data/a", models_dir="/data/a/models"), "state_place": "/data/a/state"},
        ["the data of this host lies in /data/a; the settings say /srv/atelier"],
    ),
    "weights and configuration elsewhere": (
        {"roots": replace(ROOTS, config_root="/opt/a", models_dir="/big"), "state_place": "/srv/atelier/state"},
        ["the configuration of this host lies in /opt/a", "the weights of this host lie in /big"],
    ),
    "a reprovision that is not finished": (
        {"roots": ROOTS, "state_place": "/srv/atelier/state", "reorganising": True},
        ["a reprovision of this host was begun"],
    ),
    "a disk that is not mounted": ({"roots": ROOTS, "state_place": ""}, ["its state is not in /srv/atelier/state"]),
    "daemon.json": ({"daemon_json": "{ not json"}, ["/etc/docker/daemon.json on the host is not valid JSON"]),
    "lock": ({"lock_holder": "apt-get upgrade (process 77)"}, ["in use by: apt-get upgrade (process 77)"]),
    "sources": ({"sources_error": "Conflicting values set"}, ["apt cannot read its sources: Conflicting values set"]),
    "stuck packages": ({"unrepairable": "The package x needs to be reinstalled"}, ["stuck: The package x needs"]),
    "uid": ({"uid_owner": "alice", "gid_owner": "alice"}, ["user id 10001 belongs to `alice`"]),
    "gid": ({"gid_owner": "staff"}, ["group id 10001 belongs to `staff`"]),
    "gid of a user that is there": ({"gid_owner": "staff", "uid_owner": "atelier", "service_user_uid": "10001"}, []),
    "user": ({"service_user_uid": "999"}, ["exists with id 999"]),
    "later schema": ({"schema": "99"}, ["later release"]),
    "several at once": (
        {"snap_docker": True, "memory": GIB, "clock": 0, "lock_holder": "x"},
        ["snap", "1.0 GB of memory", "s off", "shared memory of the services", "in use by: x"],
    ),
}


@pytest.mark.parametrize("facts,expected", OBSTACLES.values(), ids=OBSTACLES.keys())
def test_each_obstacle_is_found_with_its_remedy(facts: dict[str, object], expected: list[str]) -> None:
    expect(findings(facts), expected)


UNDER_A_LOCK: dict[str, tuple[dict[str, object], list[str]]] = {
    "at work": ({"lock_holder": "apt.systemd.daily (process 77)"}, []),
    "at work in the midst of a package": ({"lock_holder": "dpkg (process 7)", "unrepairable": "The package x"}, []),
    "interrupted": ({"unrepairable": "The package x needs to be reinstalled"}, ["stuck: The package x"]),
    "something else as well": ({"lock_holder": "dpkg (process 7)", "uid_owner": "alice"}, ["belongs to `alice`"]),
}


@pytest.mark.parametrize("facts,expected", UNDER_A_LOCK.values(), ids=UNDER_A_LOCK.keys())
def test_a_package_manager_at_work_stops_no_deploy(facts: dict[str, object], expected: list[str]) -> None:
    found = [finding.problem for finding in preflight.findings(lifecycle.unlocked(deployment(facts)), 1000, {})]
    assert len(found) == len(expected) and all(part in found[0] for part in expected), found


FOR_THE_WEIGHTS: dict[str, tuple[dict[str, object], list[str]]] = {
    "what only the services need": (
        {**OBSTACLES["port"][0], **OBSTACLES["docker.io with containers"][0], "memory": GIB, "snap_docker": True},
        [],
    ),
    "packages, clock and users": (
        {"lock_holder": "apt (process 7)", "clock": 5000, "uid_owner": "alice"},
        ["in use by: apt (process 7)", "4000 s off", "belongs to `alice`"],
    ),
    "space for the weights alone": (disks(data=37), []),
    "no space for the weights": (
        disks(data=36),
        ["/ has 36.0 GB free and this fetch needs 37.0 GB there: 37.0 GB for weights"],
    ),
}


@pytest.mark.parametrize("facts,expected", FOR_THE_WEIGHTS.values(), ids=FOR_THE_WEIGHTS.keys())
def test_what_stands_in_the_way_of_the_weights_alone(facts: dict[str, object], expected: list[str]) -> None:
    refused = GpuPlan("refuse", "cu130", refusals=(Finding("no card", "x"),))
    expect(preflight.weights_findings(deployment(facts, gpu=refused), 1000, {}), expected)


@pytest.mark.parametrize("instance", ["", "i"])
def test_prune_is_a_remedy_on_a_host_that_was_told_what_it_needs(instance: str) -> None:
    (found,) = preflight.weights_findings(deployment({**disks(data=36), "instance": instance}), 1000, {})
    assert ("`make models-prune`" in found.remedy) == bool(instance)


def test_little_is_told_in_megabytes() -> None:
    disk = disks(data=9, docker=9)
    small = {**disk, "disk_free": {**dict.fromkeys(DIRECTORIES, 9 * GB), "/srv/atelier": 3_000_000}}
    there = {"present": IMAGES | {"a" * 64, f"begun:{'b' * 64}:{17 * GB - 4_500_000}"}}
    (found,) = findings(small, {"minimum_disk_gb": 1, "models": {"reserve_gb": 0}}, **there)
    assert "3.0 MB free and this deploy needs 4.5 MB there: 4.5 MB for weights" in found.problem


def test_a_source_of_weights_that_cannot_be_reached_stands_in_their_way() -> None:
    expect(
        preflight.weights_findings(deployment(), 1000, {"http://m/": "refused"}), ["cannot reach http://m/ (refused)"]
    )


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        ("http://127.0.0.1:8765/", True),
        ("http://127.0.0.7:80/", True),
        ("http://[::1]:8765/", True),
        ("http://localhost:8765/", True),
        ("http://192.0.2.7:8765/", False),
        ("https://mirror.example/127.0.0.1/", False),
        ("file:///mnt/disk/", False),
    ],
)
def test_behind_a_mirror_at_a_loopback_address_a_server_is_missing(url: str, ours: bool) -> None:
    (found,) = preflight.weights_findings(deployment(), 1000, {url: "refused"})
    assert ("is `make models-serve` running?" in found.remedy) == ours


def test_the_reserve_counts_while_weights_are_missing() -> None:
    settings = {"minimum_disk_gb": 1, "models": {"reserve_gb": 10}}
    expect(findings(disks(data=54), settings), ["10.0 GB for models.reserve_gb"])
    assert findings(disks(data=17), settings, present=frozenset({"a" * 64, "b" * 64})) == []


MIRRORS = {"models": {"mirrors": ["http://m1", "http://m2"], "reserve_gb": 0}}
NO_HUB = {"models": {**MIRRORS["models"], "hub": False}}
UNREACHABLE: dict[str, tuple[dict[str, object], list[str], list[str], list[str]]] = {
    "one of two mirrors": (NO_HUB, ["http://m1/"], [], []),
    "both mirrors, and the hub answers": (MIRRORS, ["http://m1/", "http://m2/"], [], []),
    "every source": (NO_HUB, ["http://m1/", "http://m2/"], [], ["http://m1/", "http://m2/"]),
    "every source of weights that may be linked": (
        NO_HUB,
        ["http://m1/", "http://m2/"],
        [f"here:{20 * GB}", f"here:{17 * GB}"],
        [],
    ),
    "every source of one that may not": (
        NO_HUB,
        ["http://m1/", "http://m2/"],
        [f"here:{20 * GB}"],
        ["http://m1/", "http://m2/"],
    ),
    "something else beside a mirror": (NO_HUB, ["http://m1/", "http://pypi/"], [], ["http://pypi/"]),
}


@pytest.mark.parametrize("case", UNREACHABLE)
def test_weights_need_one_source(case: str) -> None:
    settings, unreachable, present, expected = UNREACHABLE[case]
    given = deployment({}, settings, present=IMAGES | set(present))
    assert list(preflight.essential(given, dict.fromkeys(unreachable, "refused"))) == expected


def expect(found: list[Finding], parts: list[str]) -> None:
    assert len(found) == len(parts), found
    for part in parts:
        assert any(part in finding.problem for finding in found), found
    assert all(finding.remedy for finding in found)


# 37 GB of weights; 7.5 GB of layers half as much again: 11.2 GB; 5 GB of reserve.
SPACE: dict[str, tuple[dict[str, object], dict[str, object], list[str]]] = {
    "enough": (disks(data=54), {}, []),
    "one file system": (disks(data=53), {}, ["/ has 53.0 GB free and this deploy needs 53.2 GB there"]),
    "the sum by its parts": (disks(data=3), {}, ["37.0 GB for weights, 11.2 GB for images, 5.0 GB for a reserve"]),
    "each enough by itself": (disks(data=38, docker=17), {}, []),
    "weights do not fit": (disks(data=36, docker=50), {}, ["/srv has 36.0 GB free and this deploy needs 37.0 GB"]),
    "images do not fit": (disks(data=90, docker=10), {}, ["/var has 10.0 GB free and this deploy needs 16.2 GB"]),
    "neither fits": (disks(data=1, docker=1), {}, ["/srv has 1.0 GB", "/var has 1.0 GB"]),
    "no CUDA": (disks(data=47), {"builds": builds("cpu")}, []),
    "weights are there": (disks(data=17), {"present": frozenset({"a" * 64, "b" * 64})}, []),
    "images are there": (disks(data=43), {"present": IMAGES}, []),
    "what is begun counts less": (
        {**disks(data=1), "deployed": True},
        {"present": IMAGES | {"a" * 64, f"begun:{'b' * 64}:{7 * GB}", f"begun:{'c' * 64}:{7 * GB}"}},
        ["this deploy needs 15.0 GB there: 10.0 GB for weights"],
    ),
    "what may be linked takes nothing": (
        {**disks(data=1), "deployed": True},
        {"present": IMAGES | {"a" * 64, f"here:{17 * GB}"}},
        [],
    ),
    "an image's ancestors count when its archive is loaded": (
        disks(data=43),
        {"present": frozenset({"a" * 64, "b" * 64, "atelier-comfyui-1.tar", "atelier/forge:1", "atelier/gateway:1"})},
        [],
    ),
    "loaded images need their space": (
        disks(data=13),
        {"present": frozenset({"a" * 64, "b" * 64, "atelier-comfyui-1.tar", "atelier/forge:1", "atelier/gateway:1"})},
        ["/ has 13.0 GB free and this deploy needs 14.6 GB there: 9.6 GB for images"],
    ),
    "all there on a deployed host": (
        {**disks(data=1), "deployed": True},
        {"present": IMAGES | {"a" * 64, "b" * 64}},
        [],
    ),
    "a weight missing on a deployed host": (
        {**disks(data=1), "deployed": True},
        {"present": IMAGES | {"a" * 64}},
        ["this deploy needs 22.0 GB there: 17.0 GB for weights"],
    ),
}


@pytest.mark.parametrize("facts,further,expected", SPACE.values(), ids=SPACE.keys())
def test_space_is_what_is_missing_by_file_system(
    facts: dict[str, object], further: dict[str, object], expected: list[str]
) -> None:
    expect(findings(facts, {"minimum_disk_gb": 1}, **further), expected)


def test_the_least_space_of_the_settings_counts_before_a_first_deploy() -> None:
    small = disks(data=60, docker=29)
    expect(findings(small), ["/srv and /var have 89.0 GB free, 90 GB are wanted before a first deploy"])
    assert findings({**small, "deployed": True}) == []
    assert findings(disks(data=60, docker=30)) == []


def test_images_lie_where_this_docker_puts_them() -> None:
    trixie, bookworm = FACTS, replace(FACTS, os_codename="bookworm")
    assert preflight.image_directory(trixie) == "/var/lib/docker"
    assert preflight.image_directory(bookworm) == "/var/lib/containerd"
    assert preflight.image_directory(replace(bookworm, packages={"docker-ce": "28"})) == "/var/lib/docker"
    assert preflight.image_directory(replace(trixie, daemon_json='{"data-root": "/big"}')) == "/big"


MEMORY: dict[str, tuple[dict[str, object], dict[str, object], list[str]]] = {
    "within": ({}, {"comfyui": {"shm_size": "40g"}, "forge": {"shm_size": "20g"}}, []),
    "together too much": (
        {},
        {"comfyui": {"shm_size": "40g"}, "forge": {"shm_size": "30g"}},
        ["may grow to 70 GB together, the host has 64 GB"],
    ),
    "a disabled service takes none": ({}, {"comfyui": {"shm_size": "40g"}, "forge": {"enabled": False}}, []),
    "shm in its limit": ({}, {"comfyui": {"shm_size": "2g", "memory_limit": "48g"}}, []),
    "shm above its limit": (
        {},
        {"comfyui": {"shm_size": "2g", "memory_limit": "2048m"}},
        ["services.comfyui: shm_size 2g is not below memory_limit 2048m"],
    ),
}


@pytest.mark.parametrize("facts,services,expected", MEMORY.values(), ids=MEMORY.keys())
def test_shared_memory(facts: dict[str, object], services: dict[str, object], expected: list[str]) -> None:
    expect(findings(facts, {"services": services}), expected)


ADDRESSES = {
    "127.0.0.1": [],
    "127.0.0.53": [],
    "::1": [],
    "0.0.0.0": [],
    "::": [],
    "192.0.2.7": [],
    "192.0.2.8": ["bind_address 192.0.2.8 is no address of this host"],
    "2001:db8::1": ["bind_address 2001:db8::1 is no address"],
}


@pytest.mark.parametrize("bind,expected", ADDRESSES.items(), ids=ADDRESSES.keys())
def test_the_bind_address_is_one_of_the_host(bind: str, expected: list[str]) -> None:
    expect(findings({}, {"bind_address": bind, "allow_plaintext": True}), expected)


def test_a_port_is_taken_on_the_address_that_is_bound() -> None:
    listening = {"listeners": (Listener("192.0.2.7", 8188, "nginx"),)}
    for bind, taken in {"127.0.0.1": 0, "192.0.2.7": 1, "0.0.0.0": 1}.items():
        assert len(findings(listening, {"bind_address": bind, "allow_plaintext": True})) == taken


def test_the_plans_refusals_are_findings() -> None:
    refusal = Finding("Secure Boot is on and the key of DKMS is not enrolled", "mokutil --import /var/lib/dkms/mok.pub")
    assert findings(gpu=GpuPlan("refuse", "cu130", refusals=(refusal,))) == [refusal]


def test_the_repositories_of_a_plan_are_looked_up() -> None:
    bare = HostFacts(os_id="debian", os_codename="trixie", architecture="amd64")
    card = GpuFacts(
        pci=(PciGpu("0000:01:00.0", "0x2684"),),
        kernel="6.12.41+deb13-amd64",
        headers="available",
        contrib=("deb http://deb.example.org/debian trixie contrib",),
    )
    urls = preflight.repository_urls(plan_gpu(replace(bare, gpu=card), build_settings([("t", {"profile": "gpu"})])))
    nvidia = "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64"
    assert urls == [
        f"{nvidia}/8793F200.pub",
        f"{nvidia}/InRelease",
        "http://deb.example.org/debian/dists/trixie/InRelease",
        "https://nvidia.github.io/libnvidia-container/gpgkey",
        "https://nvidia.github.io/libnvidia-container/stable/deb/amd64/InRelease",
    ]
    assert preflight.repository_urls(GpuPlan("none", "cpu")) == []


REASONS = {
    "E: Failed to fetch http://m.example/InRelease  Could not resolve 'm.example'": (
        "the host cannot resolve the name m.example (DNS)"
    ),
    "W: Temporary failure resolving 'm.example'": "the host cannot resolve the name m.example (DNS)",
    "E: Failed to fetch http://m.example/x  Connection refused": (
        "the host cannot reach http://m.example/x (E: Failed to fetch http://m.example/x  Connection refused)"
    ),
}


@pytest.mark.parametrize("reason,problem", REASONS.items())
def test_a_name_that_does_not_resolve_is_called_that(reason: str, problem: str) -> None:
    deployment = Deployment(build_settings([("t", {"profile": "cpu"})]), FACTS, CREDENTIALS, (), (), "upstream")
    unreachable = {"http://m.example/x": reason, "http://m.example/y": reason}
    found = preflight.findings(deployment, 1000, unreachable)
    assert found[0].problem == problem and "proxy" in found[0].remedy
    assert len(found) == (1 if "DNS" in problem else 2), "one name is one finding"


HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"


def test_who_holds_a_lock_is_read_from_the_kernel(tmp_path: Path) -> None:
    lock = tmp_path / "lock-frontend"
    script = hostfacts.apt.HOLDER.replace("/var/lib/dpkg/lock-frontend", str(lock)) + "holder"
    lock.touch()
    assert str(lock) not in subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout
    with subprocess.Popen(["python3", "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            seen = subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout
        finally:
            holder.kill()
    assert str(lock) in seen and f"(process {holder.pid})" in seen


def test_the_ports_of_an_acme_server_have_to_be_free() -> None:
    taken = {"listeners": (Listener("0.0.0.0", 80, "apache2"),)}
    public = {"bind_address": "0.0.0.0"}
    acme = {**public, "tls": {"mode": "acme", "domain": "a.example"}}
    expect(findings(taken, acme), ["port 80 for the ACME server is in use by apache2"])
    expect(findings(taken, {**public, "tls": {"mode": "internal"}}), [])


def test_weights_are_never_fetched_into_an_empty_place_beside_those_that_are_there() -> None:
    moved = {"roots": replace(ROOTS, models_dir="/big"), "state_place": "/srv/atelier/state"}
    found = preflight.weights_findings(deployment(moved), 1000, {})
    assert [finding.problem for finding in found] == [
        "the weights of this host lie in /big; the settings say /srv/atelier/models"
    ]
    assert preflight.weights_findings(deployment({"roots": ROOTS, "state_place": "/srv/atelier/state"}), 1000, {}) == []


def test_the_space_that_weights_need_is_asked_for_where_they_will_lie() -> None:
    disk = {"disk_free": {**FACTS.disk_free, "/big": 20 * GB}, "mounts": {**FACTS.mounts, "/big": "/big"}}
    (found,) = findings(disk, {"models_dir": "/big"})
    assert found.problem.startswith("/big has 20.0 GB free and this deploy needs 37.0 GB there: 37.0 GB for weights")
    assert "models_dir" in found.remedy
