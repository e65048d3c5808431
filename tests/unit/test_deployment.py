"""Decisions from facts and settings: rendering, daemon.json, manifest, credentials."""

import json
import re
import shlex
import string
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from atelier import SCHEMA, hostfacts, lifecycle, paths, recorded, render, tree
from atelier import credentials as store
from atelier import deployment as decide
from atelier import manifest as manifests
from atelier.checks import host_state, monitor_state, storage_state
from atelier.console import Narrator
from atelier.doctor import collect
from atelier.errors import AtelierError
from atelier.gpu import devices
from atelier.gpu.plan import GpuPlan
from atelier.hostfacts import HostFacts, Listener
from atelier.images import ImageBuild
from atelier.manifest import Before
from atelier.models import read_lock
from atelier.settings import Settings, build_settings
from atelier.ssh import Destination, Ssh, connection_error
from atelier.target import Target

HASH = "$2b$12$" + "a" * 53
ACCOUNT = {"user": "someone", "password": "a-password-of-some-length", "password_bcrypt": HASH}
CREDENTIALS = store.Credentials(instance="i", comfyui=ACCOUNT, forge=ACCOUNT, comfyui_cookie_key="k" * 44)
IMAGES = {"comfyui": "atelier/comfyui:1", "forge": "atelier/forge:1", "gateway": "atelier/gateway:1"}
FACTS = HostFacts(
    os_id="debian",
    os_codename="trixie",
    architecture="amd64",
    memory=64 << 30,
    clock=1000,
    disk_free={"/srv/atelier": 200 << 30},
)
GPUS = (devices.Gpu(0, "GPU-aaa", "NVIDIA RTX A6000", 49140), devices.Gpu(1, "GPU-bbb", "NVIDIA L40S", 46068))


def settings(**values: object) -> Settings:
    return build_settings([("test", {"profile": "cpu", **values})])


def projects(
    chosen: Settings, credentials: store.Credentials = CREDENTIALS, **further: object
) -> dict[str, render.Project]:
    given = {"images": IMAGES, "controllers": frozenset(), "gpus": {}, **further}
    return {project.service: project for project in render.projects(chosen, credentials, **given)}


def compose(project: render.Project) -> dict:
    (file,) = (e for e in project.entries if isinstance(e, tree.File) and e.path.endswith("compose.yaml"))
    return yaml.safe_load(file.content)["services"][project.container]


@pytest.mark.parametrize("service", ["comfyui", "forge", "gateway"])
def test_compose_takes_no_container_of_a_hand_made_stack_for_ours(service: str) -> None:
    """One that was made in a folder of the same name carries that as its project, also when it has been renamed."""
    project = projects(settings())[service]
    (file,) = (e for e in project.entries if isinstance(e, tree.File) and e.path.endswith("compose.yaml"))
    assert yaml.safe_load(file.content)["name"] == f"atelier-{project.container}"


@pytest.mark.parametrize("service", ["comfyui", "forge", "gateway"])
def test_every_container_is_hardened(service: str) -> None:
    container = compose(projects(settings())[service])
    assert container["read_only"] and container["init"] and container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["logging"]["options"].keys() == {"max-size", "max-file"}


def test_only_the_gateway_publishes_ports_and_only_on_the_bind_address() -> None:
    rendered = projects(settings())
    assert "ports" not in compose(rendered["comfyui"]) and "ports" not in compose(rendered["forge"])
    assert compose(rendered["gateway"])["ports"] == [
        "${BIND_ADDRESS}:${COMFYUI_PORT}:8188",
        "${BIND_ADDRESS}:${FORGE_PORT}:7860",
    ]


def test_applications_share_no_network_and_theirs_are_internal() -> None:
    networks = {network.name: network for network in render.networks(settings())}
    assert {name for name, network in networks.items() if network.internal} == {
        "atelier-comfyui-qwen",
        "atelier-forge-turbo",
    }
    for name in ("atelier-comfyui-qwen", "atelier-forge-turbo"):
        assert (
            "--internal" in networks[name].create_command() and "inhibit_ipv4=true" in networks[name].create_command()
        )


def test_no_secret_is_rendered_outside_the_secret_files() -> None:
    credentials = CREDENTIALS.model_copy(update={"comfyui_cookie_key": "COOKIEKEY" * 5})
    for project in projects(settings(), credentials).values():
        for entry in project.entries:
            if isinstance(entry, tree.File):
                for secret in (HASH, ACCOUNT["password"], "COOKIEKEY"):
                    assert secret.encode() not in entry.content, entry.path


def test_secret_files_are_for_the_service_user_alone_and_hold_no_password() -> None:
    files = [entry for entries in render.secret_files(settings(), CREDENTIALS).values() for entry in entries]
    assert {entry.mode for entry in files if isinstance(entry, tree.File)} == {0o400}
    assert {entry.mode for entry in files if isinstance(entry, tree.Directory)} == {0o500}
    assert {entry.owner for entry in files} == {"atelier"}
    assert not any(ACCOUNT["password"].encode() in entry.content for entry in files if isinstance(entry, tree.File))


CHANGES = {
    "port": (lambda: projects(settings(services={"comfyui": {"port": 9000}})), {"gateway"}),
    "shm size": (lambda: projects(settings(services={"comfyui": {"shm_size": "4g"}})), {"comfyui"}),
    "image": (lambda: projects(settings(), images={**IMAGES, "forge": "atelier/forge:2"}), {"forge"}),
    "forge password": (
        lambda: projects(
            settings(),
            CREDENTIALS.model_copy(
                update={"forge": CREDENTIALS.forge.model_copy(update={"password_bcrypt": "$2b$12$" + "b" * 53})}
            ),
        ),
        {"forge", "gateway"},
    ),
    "cookie key": (
        lambda: projects(settings(), CREDENTIALS.model_copy(update={"comfyui_cookie_key": "x" * 44})),
        {"comfyui"},
    ),
    "query token": (lambda: projects(settings(allow_query_token=True)), {"gateway"}),
    "nothing": (lambda: projects(settings()), set()),
}


@pytest.mark.parametrize("changed,concerned", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_recreates_only_the_services_it_concerns(changed, concerned: set[str]) -> None:
    before, after = projects(settings()), changed()
    assert {name for name in before if before[name].config != after[name].config} == concerned


def test_limits_only_where_the_host_has_the_controllers() -> None:
    chosen = settings(services={"comfyui": {"memory_limit": "32g", "cpu_limit": 4}})
    assert "mem_limit" not in compose(projects(chosen)["comfyui"]) and "cpus" not in compose(
        projects(chosen)["comfyui"]
    )
    limited = compose(projects(chosen, controllers=frozenset({"memory", "cpu"}))["comfyui"])
    assert limited["mem_limit"] == "${MEMORY_LIMIT}" and limited["cpus"] == "${CPU_LIMIT}"


def test_a_gpu_is_asked_for_by_uuid_and_the_cpu_flag_goes() -> None:
    with_gpu = compose(projects(settings(profile="gpu"), gpus={"comfyui": "nvidia.com/gpu=GPU-aaa"})["comfyui"])
    (device,) = with_gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "cdi", "device_ids": ["${GPU_DEVICE}"], "capabilities": ["gpu"]}
    assert "command" not in with_gpu and compose(projects(settings())["comfyui"])["command"] == ["--cpu"]


def test_a_disabled_service_is_nowhere() -> None:
    rendered = projects(settings(services={"forge": {"enabled": False}}))
    assert rendered.keys() == {"comfyui", "gateway"}
    assert all(b"forge" not in e.content for e in rendered["gateway"].entries if isinstance(e, tree.File))


def dotenv_reader(text: str) -> str:
    """Compose's rule for a double-quoted value: backslash escapes of backslash, quote and dollar."""
    body, out, index = text[1:-1], "", 0
    while index < len(body):
        if body[index] == "\\" and index + 1 < len(body) and body[index + 1] in '\\"$':
            index += 1
        out += body[index]
        index += 1
    return out


@pytest.mark.parametrize(
    "value", ["$2b$12$x", 'a"b', "back\\slash", "${HOME}", "\\", "'", "é ü", "{{x}}", "#no", " lead", ""]
)
def test_env_values_survive(value: str) -> None:
    assert dotenv_reader(render.env_value(value)) == value


def test_env_values_refuse_line_breaks() -> None:
    with pytest.raises(ValueError):
        render.env_value("a\nb")


LIMITS = {"max-size": "10m", "max-file": "3"}
OURS = {"features": {"cdi": True}, "live-restore": True, "log-driver": "json-file", "log-opts": LIMITS}
SYSLOG = {"log-driver": "syslog", "log-opts": {"syslog-address": "udp://192.0.2.1"}}
DAEMON = {
    "empty": ("", OURS),
    "foreign keys stay": ('{"data-root": "/data"}', {**OURS, "data-root": "/data"}),
    "other features stay": ('{"features": {"x": true}}', {**OURS, "features": {"x": True, "cdi": True}}),
    "ours wins": ('{"live-restore": false, "log-opts": {"max-size": "1g"}}', OURS),
    "another log driver keeps its options": (json.dumps(SYSLOG), {**OURS, **SYSLOG}),
}


@pytest.mark.parametrize("current,expected", DAEMON.values(), ids=DAEMON.keys())
def test_daemon_json_is_merged(current: str, expected: dict) -> None:
    merged = decide.merged_daemon_json(current, settings())
    assert json.loads(merged) == expected
    assert decide.merged_daemon_json(merged, settings()) == merged


@pytest.mark.parametrize("damaged", ["[]", "{", "nonsense", '{"features": []}', '{"log-opts": "x"}'])
def test_a_damaged_daemon_json_is_named(damaged: str) -> None:
    with pytest.raises(AtelierError, match=r"/etc/docker/daemon\.json"):
        decide.merged_daemon_json(damaged, settings())


def test_a_key_of_daemon_json_may_be_null() -> None:
    merged = json.loads(decide.merged_daemon_json('{"features": null, "log-opts": null}', settings()))
    assert merged["features"] == {"cdi": True} and merged["log-opts"]["max-file"] == "3"


def test_files_of_a_service_that_nothing_asks_for_any_more_are_left_over_and_nothing_else_is() -> None:
    now = deployment()
    roots = "/opt/atelier/services/gateway/config/acme-roots.crt"
    others = ["/opt/atelier/services/elsewhere/compose.yaml", "/opt/atelier/services/gateway.bak", "/etc/apt/former"]
    manifest = manifests.updated("", {"files": [roots, *others]}, Before(), {}, "1")
    manifest = manifests.updated(manifest, decide.declared(now), Before(), {}, "1")
    assert decide.left_over(manifest, now) == (roots,)
    assert decide.left_over(manifest, replace(now, only="forge")) == (roots,)
    forge = "/opt/atelier/services/forge-turbo/former.json"
    both = manifests.updated(manifest, {"files": [forge]}, Before(), {}, "1")
    assert decide.left_over(both, replace(now, only="comfyui")) == (roots,)
    without = manifests.without(both, decide.left_over(both, now), "1")
    assert decide.left_over(without, now) == ()
    assert {*json.loads(both)["created"]["files"]} - {*json.loads(without)["created"]["files"]} == {roots, forge}
    assert decide.left_over("", now) == ()
    with pytest.raises(AtelierError, match="damaged"):
        decide.left_over("{", now)


@pytest.mark.parametrize(
    "os_id,codename,packages,expected",
    [
        ("debian", "trixie", {}, decide.DOCKER_DEBIAN),
        ("debian", "bookworm", {}, decide.DOCKER_CE),
        ("ubuntu", "noble", {}, decide.DOCKER_CE),
        ("debian", "trixie", {"docker-ce": "29"}, decide.DOCKER_CE),
    ],
)
def test_docker_comes_from_the_archive_only_where_it_is_recent_enough(os_id, codename, packages, expected) -> None:
    assert decide.docker_packages(HostFacts(os_id=os_id, os_codename=codename, packages=packages)) == expected


@pytest.mark.parametrize("wanted,index", [("0", 0), ("1", 1), ("GPU-bbb", 1), ("a6000", 0), ("l40", 1)])
def test_gpu_by_index_uuid_or_name(wanted: str, index: int) -> None:
    assert devices.choose(GPUS, wanted, "k").index == index


@pytest.mark.parametrize("wanted,expected", [(None, "is unset"), ("nvidia", "names 2 GPUs"), ("7", "names no GPU")])
def test_an_ambiguous_gpu_is_refused_with_the_list(wanted: str | None, expected: str) -> None:
    with pytest.raises(AtelierError, match=expected) as raised:
        devices.choose(GPUS, wanted, "services.forge.gpu")
    assert "GPU-aaa" in raised.value.hint and "GPU-bbb" in raised.value.hint


def test_nvidia_smi_is_parsed() -> None:
    lines = ["0, GPU-aaa, NVIDIA RTX A6000, 49140, 8.6, 00000000:C1:00.0", "No devices were found"]
    assert devices.parse(lines) == (replace(GPUS[0], capability="8.6", address="0000:c1:00.0"),)


def test_facts_script_runs_here_and_is_parsed() -> None:
    result = subprocess.run(["sh", "-c", hostfacts.script(settings())], capture_output=True, text=True, check=True)
    facts = hostfacts.parse(result.stdout)
    assert (
        facts.memory > 0
        and facts.clock > 0
        and {"/srv/atelier", "/var/lib/docker"} <= facts.disk_free.keys() == facts.mounts.keys()
    )


def test_facts_come_from_where_the_host_has_recorded_them(tmp_path: Path) -> None:
    deployed = replace(deployment(), settings=settings(data_root="/data/a"))
    script = hostfacts.script(settings(), str(tmp_path))

    def seen() -> HostFacts:
        return hostfacts.parse(subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout)

    for entry in deployed.identity():
        if isinstance(entry, tree.File):
            place = tmp_path / entry.path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(entry.content)
    facts = seen()
    assert (facts.instance, facts.fingerprint, facts.schema) == ("i", store.fingerprint(CREDENTIALS), str(SCHEMA))
    assert facts.roots == recorded.roots_of(deployed.settings) and facts.state_place == "/data/a/state"
    assert not facts.deployed and not facts.release and facts.deployed_gpus == {}
    record = tmp_path / "data/a/state/deployed.json"
    record.write_text(
        decide.deployed_record(replace(deployed, gpu=GpuPlan("adopt", "cpu", gpus={"forge": "GPU-a"})), "1.2", {}, {})
    )
    facts = seen()
    assert facts.deployed and facts.release == "1.2" and facts.deployed_gpus == {"forge": "GPU-a"}
    record.write_text("{")
    assert seen().deployed and seen().deployed_gpus == {}


DPKG_STATUS = """Package: podman-docker
Status: install ok installed
Architecture: all
Version: 5.4.2+ds1-2
Maintainer: x
Description: x

Package: containerd
Status: deinstall ok config-files
Architecture: amd64
Version: 1.7
Maintainer: x
Description: x

"""


def test_what_stands_in_for_docker_is_seen(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "etc/docker").mkdir(parents=True)
    (tmp_path / "snap/docker").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(DPKG_STATUS)
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    (tmp_path / "etc/docker/daemon.json").write_text(f'{{"data-root": "{tmp_path}/big"}}')

    def seen() -> HostFacts:
        script = hostfacts.script(settings(), str(tmp_path))
        return hostfacts.parse(subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout)

    facts = seen()
    assert facts.snap_docker and facts.packages == {"podman-docker": "5.4.2+ds1-2"}
    assert decide.docker_conflicts(facts) == ("podman-docker",)
    assert json.loads(facts.daemon_json)["data-root"] == f"{tmp_path}/big" and f"{tmp_path}/big" in facts.disk_free
    (tmp_path / "snap/docker").rmdir()
    assert not seen().snap_docker


def test_listeners_are_parsed() -> None:
    output = (
        '::atelier::listeners\nLISTEN 0 4096 127.0.0.1:8188 0.0.0.0:* users:(("docker-proxy",pid=1,fd=4))\n'
        "LISTEN 0 128 [::]:22 [::]:*\nLISTEN 0 1 127.0.0.53%lo:53 0.0.0.0:*\n"
    )
    assert hostfacts.parse(output).listeners == (
        Listener("127.0.0.1", 8188, "docker-proxy"),
        Listener("::", 22, ""),
        Listener("127.0.0.53", 53, ""),
    )


def test_tree_sees_each_kind_of_difference(tmp_path: Path) -> None:
    owner = subprocess.run(["stat", "-c", "%U", tmp_path], capture_output=True, text=True, check=True).stdout.strip()
    folder = tree.Directory(f"{tmp_path}/a folder", 0o750, owner)
    file = tree.File(f"{tmp_path}/a folder/it's $HOME", b"text\n", 0o640, owner)
    link = tree.File(f"{tmp_path}/link", b"text\n", 0o644, owner)

    def differing() -> list[tree.Entry]:
        probe = subprocess.run(
            ["sh", "-c", tree.probe_script([e.path for e in (folder, file, link)])], capture_output=True, text=True
        )
        return tree.differing([folder, file, link], tree.parse_probe(probe.stdout.splitlines()))

    assert differing() == [folder, file, link]
    for entry, content in ((folder, b""), (file, file.content), (link, link.content)):
        subprocess.run(["sh", "-c", entry.install_script()], input=content, check=True)
    assert differing() == []
    Path(file.path).write_bytes(b"tixt\n")
    Path(folder.path).chmod(0o755)
    Path(link.path).unlink()
    Path(link.path).symlink_to(file.path)
    assert differing() == [folder, file, link]
    Path(folder.path).rename(tmp_path / "elsewhere")
    Path(folder.path).symlink_to(tmp_path / "elsewhere")
    Path(folder.path).chmod(0o750)
    assert folder not in differing(), "a directory on another disk is a directory"


def test_lock_of_models_holds_only_exact_files(tmp_path: Path) -> None:
    lock = read_lock(paths.PROJECT / "locks" / "models.yml")
    weights = lock.wanted(["qwen-edit-2509", "sdxl-turbo"])
    assert sum(weight.bytes for weight in weights) == 20430698424 + 9384670680 + 253806246 + 6938081905
    with pytest.raises(AtelierError, match="no such set: nothing"):
        lock.wanted(["nothing"])
    broken = tmp_path / "models.yml"
    broken.write_text(
        "files: [{repository: a/b, revision: main, path: x, bytes: 1, directory: vae, sets: [a], used_by: [], licence: x}]"
    )
    with pytest.raises(AtelierError, match="sha256"):
        read_lock(broken)


def test_generated_credentials_are_strong_and_hash_to_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BCRYPT_COST", 4)
    first, second = store.generate({}), store.generate({})
    assert first.comfyui.password != second.comfyui.password and len(first.comfyui.password) >= 32
    assert set(first.comfyui.password) <= set(string.ascii_letters + string.digits)
    assert store.bcrypt.checkpw(first.comfyui.password.encode(), first.comfyui.password_bcrypt.encode())
    assert len(first.comfyui.password_bcrypt) == 60 and first.comfyui.password_bcrypt.startswith("$2b$")


@pytest.mark.parametrize(
    "password", ["", "tiny1", "it's quoted", " leading-space", "pässwörter", "x" * 73, "tab\tinside"]
)
def test_unusable_passwords_are_refused_without_showing_them(password: str) -> None:
    with pytest.raises(AtelierError) as raised:
        store.check_password(password, "FORGE_PASSWORD")
    assert "FORGE_PASSWORD" in str(raised.value) and (not password or password not in str(raised.value))


def test_store_is_private_and_survives_a_shell(tmp_path: Path) -> None:
    credentials = CREDENTIALS.model_copy(
        update={"forge": CREDENTIALS.forge.model_copy(update={"password": 'it\'s $5 `x` "y"'})}
    )
    store.save(tmp_path / ".secrets" / "a", credentials)
    assert store.load(tmp_path / ".secrets" / "a") == credentials
    for path in (tmp_path / ".secrets" / "a").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / ".secrets" / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".secrets" / "a" / store.TOKEN_FILE).read_bytes() == HASH.encode()
    script = f'. {shlex.quote(str(tmp_path / ".secrets" / "a" / ".env.generated"))}; printf \'%s|%s\' "$COMFYUI_TOKEN" "$FORGE_PASSWORD"'
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout == f"{HASH}|{credentials.forge.password}"


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "credentials.yml").write_text("instance: x")
    with pytest.raises(AtelierError, match="damaged"):
        store.load(tmp_path)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.setattr(store, "BCRYPT_COST", 4)
    return Target("gpu1", "host", Destination("gpu1"), settings())


def test_a_fresh_host_gets_fresh_credentials(target: Target) -> None:
    first, second = (lifecycle.choose_credentials(target, FACTS, {}) for _ in range(2))
    assert first.instance != second.instance
    assert store.load(paths.secrets_dir("gpu1")) is None, "only a deploy stores them"


def test_known_credentials_are_reused(target: Target) -> None:
    store.save(paths.secrets_dir("gpu1"), CREDENTIALS)
    assert lifecycle.choose_credentials(target, replace(FACTS, instance="i"), {}) == CREDENTIALS
    assert lifecycle.choose_credentials(target, FACTS, {}) == CREDENTIALS


def test_a_host_with_unknown_credentials_is_never_rotated_silently(target: Target) -> None:
    with pytest.raises(AtelierError, match="no credentials for it"):
        lifecycle.choose_credentials(target, replace(FACTS, instance="i"), {})
    store.save(paths.secrets_dir("gpu1"), CREDENTIALS)
    with pytest.raises(AtelierError, match="knows other credentials"):
        lifecycle.choose_credentials(target, replace(FACTS, instance="another"), {})


def test_the_environment_chooses_at_the_first_deploy_only(target: Target) -> None:
    chosen = lifecycle.choose_credentials(target, FACTS, {"FORGE_USER": "teacher", "FORGE_PASSWORD": "correct horse"})
    assert (chosen.forge.user, chosen.forge.password) == ("teacher", "correct horse")
    store.save(paths.secrets_dir("gpu1"), CREDENTIALS)
    with pytest.raises(AtelierError, match="FORGE_PASSWORD in the environment differ"):
        lifecycle.choose_credentials(target, FACTS, {"FORGE_PASSWORD": "something else"})


@pytest.mark.parametrize(
    "stderr,expected",
    [
        ("@@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@@", "ssh-keygen -R gpu1"),
        ("Host key verification failed.", "ACCEPT_NEW_HOST_KEY=1"),
        ("ops@gpu1: Permission denied (publickey).", "check the user"),
        ("ssh: Could not resolve hostname gpu1: Name or service not known", "hosts.yml"),
        ("ssh: connect to host gpu1 port 22: Connection refused", "Connection refused"),
        ("", "no message"),
    ],
)
def test_connection_errors_name_reason_and_remedy(stderr: str, expected: str) -> None:
    assert expected in str(connection_error(Destination("gpu1"), stderr))


def deployment(**further: object) -> decide.Deployment:
    def build(name: str, parent: str | None) -> ImageBuild:
        return ImageBuild(name, f"atelier/{name}:1", (), (), (), f"atelier/{parent}:1" if parent else None)

    parents = {"base": None, "torch": "base", "comfyui": "torch", "forge": "torch", "gateway": "base"}
    builds = tuple(build(name, parent) for name, parent in parents.items())
    return decide.Deployment(settings(), FACTS, CREDENTIALS, builds, (), "upstream", **further)


STEPS = {
    "fresh": ({}, ["base", "torch", "comfyui", "forge", "gateway"]),
    "one service": ({"only": "forge"}, ["base", "torch", "forge", "gateway"]),
    "the gateway": ({"only": "gateway"}, ["base", "gateway"]),
    "all there": ({"present": frozenset(IMAGES.values())}, []),
    "archives": (
        {"present": frozenset({"atelier-comfyui-1.tar", "atelier-forge-1.tar", "atelier/gateway:1"})},
        ["comfyui", "forge"],
    ),
}


@pytest.mark.parametrize("given,expected", STEPS.values(), ids=STEPS.keys())
def test_only_the_images_that_are_missing_are_made(given: dict, expected: list[str]) -> None:
    assert [step.build.name for step in deployment(**given).image_steps()] == expected


def test_the_manifest_declares_every_file_that_a_stage_writes() -> None:
    files = decide.declared(deployment())["files"]
    for path in (
        "/etc/apt/apt.conf.d/90atelier",
        "/srv/atelier/state/audit.log",
        "/opt/atelier/secrets/gateway/credentials.json",
    ):
        assert path in files
    assert decide.DOCKER_SOURCES not in files
    bookworm = replace(deployment(), facts=replace(FACTS, os_codename="bookworm", service_user_uid="10001"))
    assert decide.DOCKER_SOURCES in decide.declared(bookworm)["files"]
    assert decide.declared(bookworm)["users"] == [], "a user that was there before is not ours"


GROUPS = {
    "neither user nor group": ({}, ["atelier"], ["atelier"]),
    "the group was there": ({"gid_owner": "atelier"}, ["atelier"], []),
    "the user was there": ({"service_user_uid": "10001"}, [], []),
    "both were there": ({"service_user_uid": "10001", "gid_owner": "atelier"}, [], []),
}


@pytest.mark.parametrize("facts,users,groups", GROUPS.values(), ids=GROUPS.keys())
def test_user_and_group_are_ours_where_we_make_them(facts: dict, users: list[str], groups: list[str]) -> None:
    declared = decide.declared(replace(deployment(), facts=replace(FACTS, **facts)))
    assert (declared["users"], declared["groups"]) == (users, groups)


def test_what_the_manifest_declares_has_the_anchor_and_the_rules_of_the_guard() -> None:
    declared = decide.declared(deployment())
    assert recorded.ANCHOR in declared["files"] and recorded.ANCHOR_DIRECTORY in declared["directories"]
    assert declared["rules"] == list(render.GUARD_RULES)
    unit = render.loopback_guard().content.decode()
    assert all(
        f"-t {table} -I {rule}'" in unit for table, _, rule in (each.partition(" ") for each in declared["rules"])
    )


def test_units_of_others_that_a_deploy_starts_are_told() -> None:
    plain = deployment()
    assert decide.enabling(plain, Before()) == ["docker.service"]
    plan = replace(plain.gpu, action="adopt", services=("nvidia-persistenced.service",))
    on_gpu = replace(plain, gpu=plan, settings=settings(profile="gpu"))
    units = ["docker.service", "nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service", "nvidia-persistenced.service"]
    assert decide.enabling(on_gpu, Before(active=frozenset({"chrony"}))) == units
    assert decide.enabling(on_gpu, Before()) == [*units, decide.TIME_PACKAGE]
    assert {*units, decide.TIME_PACKAGE} <= {*decide.asked_units(on_gpu)}


TIME = {
    "none keeps it": ("gpu", {}, True),
    "one is active": ("gpu", {"active": frozenset({"chrony"})}, False),
    "the package is there": ("gpu", {"packages": {decide.TIME_PACKAGE: "1"}}, False),
    "a sandbox": ("cpu", {}, False),
}


@pytest.mark.parametrize("profile,before,expected", TIME.values(), ids=TIME.keys())
def test_the_package_that_keeps_the_time_is_ours_where_the_host_has_none(
    profile: str, before: dict, expected: bool
) -> None:
    ours = decide.installing(replace(deployment(), settings=settings(profile=profile)), Before(**before))
    assert (decide.TIME_PACKAGE in ours) == expected and "aria2" in ours
    assert "aria2" not in decide.installing(deployment(), Before(packages={"aria2": "1"}))


def test_the_sums_of_what_a_deploy_writes_are_those_of_its_files() -> None:
    docker = decide.merged_daemon_json("", deployment().settings)
    sums = decide.written(deployment(), Before())
    expected = {entry.path: entry.signature()[-64:] for entry in deployment().entries() if isinstance(entry, tree.File)}
    assert sums == {**expected, decide.DAEMON_JSON: tree.File("", docker.encode()).signature()[-64:]}
    assert decide.DAEMON_JSON not in decide.written(deployment(), Before(daemon_json=docker)), "nothing is written"
    assert decide.DAEMON_JSON not in decide.written(deployment(), Before(daemon_json="{")), "nor where it cannot be"
    bookworm = replace(deployment(), facts=replace(FACTS, os_codename="bookworm"))
    assert decide.DOCKER_SOURCES in decide.written(bookworm, Before())
    there = replace(bookworm, facts=replace(bookworm.facts, packages={"docker-ce": "29"}))
    assert decide.DOCKER_SOURCES not in decide.written(there, Before())


ELSEWHERE = {
    "config_root": "/opt/house",
    "data_root": "/data/house",
    "models_dir": "/nvme/weights",
    "outputs_dir": "/archive/images",
}
WITHIN = {**ELSEWHERE, "models_dir": "/data/house/weights", "outputs_dir": "/data/house/images"}


@pytest.mark.parametrize("roots", [ELSEWHERE, WITHIN], ids=["on disks of their own", "under other names"])
def test_nothing_of_a_deploy_lies_where_the_settings_do_not_say(roots: dict[str, str]) -> None:
    chosen = settings(**roots, models={"search": []}, profile="gpu", minimum_disk_gb=1)
    gpu = GpuPlan("adopt", "cpu", gpus={"comfyui": "GPU-a", "forge": "GPU-a"})
    of = replace(deployment(), settings=chosen, facts=replace(FACTS, disk_free={}), gpu=gpu)
    texts = [hostfacts.script(chosen), hostfacts.presence_script(chosen, of.weights, of.fetcher())]
    texts += [host_state.script(chosen), storage_state.script(chosen), monitor_state.script(chosen)]
    texts += [query.command for query in collect.queries(chosen)]
    texts += [entry.path for entry in of.entries()] + [*map(str, decide.declared(of).values())]
    texts += [entry.content.decode() for entry in of.entries() if isinstance(entry, tree.File)]
    wrong = re.compile(r"/(srv|opt)/atelier|/data/house/(models|outputs)\b")
    assert [
        text[max(0, found.start() - 60) : found.end() + 40] for text in texts for found in wrong.finditer(text)
    ] == []
    for directory in roots.values():
        assert sum(directory in text for text in texts) > 2, directory
    disks = json.loads(next(each for each in texts if each.startswith("{") and '"disks": [' in each))["disks"]
    assert {roots["data_root"], roots["models_dir"], roots["outputs_dir"]} <= {*disks}
    facts_of_disks = texts[0].partition("s disk;")[2].partition("/var/lib/docker")[0]
    assert all(roots[name] in facts_of_disks for name in ("data_root", "models_dir", "outputs_dir"))


def test_the_record_says_how_the_host_is_laid_out() -> None:
    chosen = settings(models_dir="/big", bind_address="127.0.0.2", services={"forge": {"port": 9000}})
    of = replace(deployment(), settings=chosen)
    record = decide.deployed_record(of, "1.0", {}, {})
    state = {"instance": "i", "schema": "2", "place": "/srv/atelier/state", "deployed": record}
    read = recorded.parse(state)
    assert read.roots == recorded.roots_of(chosen) and read.roots.models_dir == "/big"
    assert (read.service_user, read.service_uid, read.bind_address) == ("atelier", 10001, "127.0.0.2")
    assert {name: (each.container, each.port) for name, each in read.services.items()} == {
        "comfyui": ("comfyui-qwen", 8188),
        "forge": ("forge-turbo", 9000),
        "gateway": ("gateway", None),
    }
    assert {name: each.config for name, each in read.services.items()} == {
        project.service: project.config for project in of.projects()
    }


def test_the_anchor_names_the_directories_of_the_settings() -> None:
    of = replace(deployment(), settings=settings(data_root="/data/a", outputs_dir="/images"))
    (anchor,) = (entry for entry in of.identity() if entry.path == recorded.ANCHOR)
    assert isinstance(anchor, tree.File)
    assert json.loads(anchor.content)["outputs_dir"] == "/images"
    assert [entry.path for entry in of.identity()][-1] == "/data/a/state/schema", "the last that is written"


def test_addresses_of_ipv6_stand_in_brackets() -> None:
    for bind, expected in {"::1": "[::1]", "127.0.0.1": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.items():
        assert settings(bind_address=bind, allow_plaintext=True).own_address() == expected


def test_doubles_are_refused_on_any_host_but_the_sandbox(target: Target) -> None:
    with pytest.raises(AtelierError, match="for the sandbox only"):
        lifecycle.prepare(target, target.ssh(), "double", Narrator())


def test_urls_of_sources_lose_user_and_password() -> None:
    output = "https://joe:hunter2@index.example/simple/\thttps://joe:hunter2@index.example: refused\n"
    assert hostfacts.parse_reachability(output) == {"https://index.example/simple/": "https://index.example: refused"}


def test_a_script_is_in_no_argument_list() -> None:
    ssh = Ssh(Destination("gpu1"), _sudo=["sudo", "-n", "--"], _sudo_password="")
    arguments, stdin = ssh.root_command("echo 'a secret'; cat")
    assert "a secret" not in " ".join(arguments) and stdin == b"echo 'a secret'; cat"
    remote = arguments[-1].removeprefix("sudo -n -- ")
    done = subprocess.run(
        ["sh", "-c", remote], input=stdin + b"the data\nthat follows", capture_output=True, check=True
    )
    assert done.stdout == b"a secret\nthe data\nthat follows"


def container_line(project: render.Project, **changed: str) -> str:
    fields = {
        "name": project.container,
        "config": project.config,
        "image": IMAGES[project.service],
        "networks": ",".join(sorted(project.networks)),
        "status": "Up 2 minutes (healthy)",
    }
    return " ".join({**fields, **changed}.values())


STATES = {
    "healthy": ({}, "as declared"),
    "another's": ({"name": "somebody-else"}, "to be started"),
    "other configuration": ({"config": "0"}, "to be started"),
    "made by hand": ({"config": ""}, "to be started"),
    "other image": ({"image": "atelier/old:0"}, "to be started"),
    "stopped": ({"status": "Exited (0) 3 minutes ago"}, "to be started"),
    "starting": ({"status": "Up 2 seconds (health: starting)"}, "to be started"),
    "unhealthy": ({"status": "Up 2 hours (unhealthy)"}, "to be made again"),
    "in a restart loop": ({"status": "Restarting (78) 2 seconds ago"}, "to be made again"),
    "off its network": ({"networks": ""}, "to be made again"),
    "on one network more": ({"networks": "atelier-comfyui-qwen,bridge"}, "to be made again"),
}


@pytest.mark.parametrize("changed,verdict", STATES.values(), ids=STATES.keys())
def test_what_is_done_about_a_container(changed: dict, verdict: str) -> None:
    project = projects(settings())["comfyui"]
    other = "unrelated 0 debian:12 bridge Up 3 days"
    assert project.judge(IMAGES["comfyui"], [other, container_line(project, **changed)]) == verdict


def test_a_container_that_is_not_there_is_started() -> None:
    assert projects(settings())["gateway"].judge(IMAGES["gateway"], []) == "to be started"
    gateway = projects(settings())["gateway"]
    assert gateway.judge(IMAGES["gateway"], [container_line(gateway)]) == "as declared"
