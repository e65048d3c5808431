"""Operations and stages against a host that is only told: what they ask, and what they do about the answers."""

import base64
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gevent
import pytest
from pyinfra import host
from pyinfra.api import Config, FactBase, Inventory, State, operation
from pyinfra.api import deploy as pyinfra_deploy
from pyinfra.api.connect import connect_all
from pyinfra.api.deploy import add_deploy
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.operation import add_op
from pyinfra.api.operations import run_ops
from pyinfra.api.state import StateStage
from pyinfra.connectors.fake import FakeConnector
from test_openpgp import FINGERPRINT, KEY

from atelier import credentials as store
from atelier import deployment as decide
from atelier import openpgp, weights_unit
from atelier.apt import Repository
from atelier.deployment import Deployment
from atelier.errors import AtelierError
from atelier.gpu.plan import Driver, GpuPlan
from atelier.hostfacts import HostFacts
from atelier.images import ImageBuild
from atelier.models import Weight
from atelier.settings import build_settings
from atelier.tree import File
from stages import docker, gpu, models, operations, provision, services, state
from stages.connector import OpenSSHConnector

KEYRING = "/usr/share/keyrings/atelier-x.gpg"
SOURCE = File("/etc/apt/sources.list.d/atelier-x.list", b"deb [signed-by=...] https://mirror/x /\n")
REPOSITORY = Repository("x", "https://mirror/key.asc", FINGERPRINT, KEYRING, SOURCE)
GOOD = File(KEYRING, openpgp.binary(KEY.encode()))


class Told:
    """A host that answers as it is told, and what it was asked to run. Answers: pattern of the command to output lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[str] = []
        self.sent: list[bytes] = []
        self.answers: dict[str | re.Pattern[str], object] = {}
        original = FakeConnector.run_shell_command

        def recorded(connector: FakeConnector, command: object, *arguments: object, **more: object) -> object:
            self.commands.append(command if isinstance(command, str) else command.get_raw_value())
            self.sent.append(more.get("_stdin") or b"")
            return original(connector, command, *arguments, **more)

        monkeypatch.setattr(FakeConnector, "run_shell_command", recorded)

    def run(self, add: Callable[[State], object]) -> list[str]:
        """The names of the operations that changed something."""
        hub = gevent.get_hub()
        hub.NOT_ERROR = (*hub.NOT_ERROR, AtelierError)
        data = {"fake_responses": self.answers, "fake_delay": 0, "fake_delay_jitter": 0}
        state = State(Inventory(([("@fake/host", data)], {})), Config(), check_for_changes=False)
        state.set_stage(StateStage.Connect)
        connect_all(state)
        state.set_stage(StateStage.Prepare)
        add(state)
        state.set_stage(StateStage.Execute)
        run_ops(state)
        host = next(iter(state.inventory))
        changed = [op for op in state.get_op_order() if state.ops[host][op].operation_meta.did_change()]
        return [next(iter(state.op_meta[op].names)) for op in changed]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    yield Told(monkeypatch)


def content(file: str, value: bytes) -> dict[str | re.Pattern[str], object]:
    return {re.compile(rf"^base64 {re.escape(file)} "): base64.encodebytes(value).decode().splitlines()}


def present(*files: File) -> dict[str | re.Pattern[str], object]:
    return {"sha256sum": [f"{file.signature()} {file.path}" for file in files]}


def add_repository(state: State) -> None:
    add_op(state, operations.repository, REPOSITORY, name="repository")


def installs(commands: list[str]) -> list[str]:
    return [match[1] for command in commands if (match := re.search(r"mv -fT \S+ (\S+)$", command))]


def test_a_repository_that_is_there_is_left_alone(told: Told) -> None:
    told.answers = {**content(KEYRING, GOOD.content), **present(GOOD, SOURCE)}
    assert told.run(add_repository) == []
    assert not any("download" in command for command in told.commands)


@pytest.mark.parametrize(
    "installed", [b"", b"garbage", openpgp.binary(KEY.encode())[:-9]], ids=["none", "rubbish", "cut"]
)
def test_a_key_that_is_missing_or_wrong_is_replaced(told: Told, installed: bytes) -> None:
    there = [replace(GOOD, content=installed), SOURCE] if installed else []
    told.answers = {
        **content(KEYRING, installed),
        **content("/run/atelier/keys/x.key", KEY.encode()),
        **present(*there),
    }
    assert told.run(add_repository) == ["repository"]
    assert installs(told.commands)[0] == KEYRING
    assert GOOD.content in told.sent  # binary, as apt expects it by the name


def test_a_key_that_its_users_may_not_read_is_written_again_and_not_fetched(told: Told) -> None:
    told.answers = {**content(KEYRING, GOOD.content), **present(replace(GOOD, mode=0o600), SOURCE)}
    assert told.run(add_repository) == ["repository"]
    assert installs(told.commands) == [KEYRING]
    assert not any("download" in command for command in told.commands)


def test_a_fetched_key_with_another_fingerprint_is_never_installed(told: Told) -> None:
    other = replace(REPOSITORY, fingerprint="0" * 40)
    told.answers = content("/run/atelier/keys/x.key", KEY.encode())
    with pytest.raises(AtelierError, match=f"{FINGERPRINT}, expected 0{{40}}"):
        told.run(lambda state: add_op(state, operations.repository, other, name="repository"))
    assert installs(told.commands) == []
    assert any(command.startswith("rm -f /run/atelier/keys/x.key") for command in told.commands)


@pytest.mark.parametrize(
    ("wanted", "asked"),
    [
        (("curl", "toolkit=1.20.2-1"), ""),
        (("curl", "toolkit=1.20.3-1"), "toolkit=1.20.3-1"),
        (("curl", "wget"), "wget"),
        ((), ""),
    ],
)
def test_packages_are_installed_where_they_are_not_there_as_wanted(
    told: Told, wanted: tuple[str, ...], asked: str
) -> None:
    told.answers = {"dpkg-query": ["installed curl 8", "installed toolkit 1.20.2-1", "config-files wget 1"]}
    changed = told.run(lambda state: add_op(state, operations.packages, wanted, name="packages"))
    assert changed == (["packages"] if asked else [])
    ran = [command for command in told.commands if "apt-get install" in command]
    assert len(ran) == bool(asked) and all(f"--force-confold {asked} && exit 0" in command for command in ran)


def test_what_stopped_apt_is_told_in_one_message(told: Told) -> None:
    told.answers = {"apt-get install": {"success": False, "stderr": ["E: Unable to locate package nvidia-x"]}}
    with pytest.raises(AtelierError, match="do not have the package nvidia-x"):
        told.run(lambda state: add_op(state, operations.packages, ("nvidia-x",), name="packages"))


def test_what_nobody_knows_is_a_failed_step_with_its_output(told: Told) -> None:
    told.answers = {"apt-get install": {"success": False, "stderr": ["Error! Bad return status for module build"]}}
    with pytest.raises(PyinfraError):
        told.run(lambda state: add_op(state, operations.packages, ("nvidia-x",), name="packages"))


def test_only_what_is_installed_and_free_is_held(told: Told) -> None:
    told.answers = {"showhold": ["b"], "dpkg-query": ["installed a 1", "installed b 1"]}
    told.run(lambda state: add_op(state, operations.held, ("a", "b", "c"), name="held"))
    assert told.commands[-1].endswith("apt-mark -q hold a")


ACCOUNT = {"user": "someone", "password": "a-password-of-some-length", "password_bcrypt": "$2b$12$" + "a" * 53}
CREDENTIALS = store.Credentials(instance="i", comfyui=ACCOUNT, forge=ACCOUNT, comfyui_cookie_key="k" * 44)
PLAN = GpuPlan(
    "install",
    "cu130",
    driver=Driver("nvidia-repository", "580", "open", REPOSITORY, ("old",), ("headers",), ("pin",), ("driver", "dkms")),
    toolkit=("toolkit=1",),
    files=(File("/etc/modprobe.d/atelier-nouveau.conf", b"blacklist nouveau\n"), File("/etc/apt/apt.conf.d/91x", b"")),
    holds=("driver", "dkms"),
    services=("nvidia-persistenced.service",),
)
RUNS = {"comfyui": "GPU-1", "forge": "GPU-1"}
FRESH = {
    **content("/run/atelier/keys/x.key", KEY.encode()),
    "Status} ${Package} ${Version}": ["installed old 1", "installed driver 1", "installed toolkit 1"],
    "showhold": [],
}


def carry_out(told: Told, stage: Callable[[Deployment], None], plan: GpuPlan) -> list[str]:
    deployment = Deployment(build_settings([]), HostFacts(), CREDENTIALS, (), (), "double", gpu=plan)
    told.answers = {**FRESH, **told.answers}
    return [name.split(" | ")[1] for name in told.run(lambda state: add_deploy(state, stage, deployment))]


def test_a_driver_is_installed_in_the_order_that_survives_a_power_cut(told: Told) -> None:
    assert carry_out(told, gpu.driver, replace(PLAN, load=True)) == [
        "Add the repository x",
        "Install the kernel's headers",
        "Pin the driver to branch 580",
        "Install the driver 580, open modules",
        "Hold the driver's packages",
        "Keep nouveau and unattended upgrades away from the driver",
        "Bring the initramfs up to date",
        "Load the driver",
    ]


def test_a_driver_that_is_replaced_goes_once_the_next_one_can_come(told: Told) -> None:
    assert carry_out(told, gpu.remove_former, PLAN) == ["Add the repository x", "Remove old"]


@pytest.mark.parametrize("driver", [None, replace(PLAN.driver, remove=())])
def test_nothing_makes_way_where_nothing_is_replaced(told: Told, driver: Driver | None) -> None:
    assert carry_out(told, gpu.remove_former, replace(PLAN, driver=driver)) == []


def test_an_adopted_driver_keeps_its_packages_and_gets_the_rest(told: Told) -> None:
    assert carry_out(told, gpu.driver, replace(PLAN, action="adopt", driver=None, gpus=RUNS)) == [
        "Hold the driver's packages",
        "Keep nouveau and unattended upgrades away from the driver",
        "Bring the initramfs up to date",
        "Start nvidia-persistenced.service",
    ]
    assert not any("apt-get install" in command for command in told.commands)


def test_the_initramfs_is_left_alone_where_it_carries_the_settings_or_nobody_has_one(told: Told) -> None:
    told.answers = {"command -v update-initramfs": ["made"]}
    assert "Bring the initramfs up to date" not in carry_out(told, gpu.driver, PLAN)


@pytest.mark.parametrize("action", ["none", "refuse"])
@pytest.mark.parametrize("stage", [gpu.driver, gpu.toolkit])
def test_nothing_is_done_about_no_gpu(told: Told, action: str, stage: Callable[[Deployment], None]) -> None:
    assert carry_out(told, stage, replace(PLAN, action=action)) == []
    assert told.commands == []


def test_cdi_must_know_the_gpu_of_every_service(told: Told) -> None:
    plan = replace(PLAN, gpus={"comfyui": "GPU-1", "forge": "GPU-2"})
    assert carry_out(told, gpu.toolkit, plan)[-1] == "Have CDI know the GPU of every service"
    probe = next(command for command in told.commands if "cdi list" in command and "restart" not in command)
    assert "nvidia.com/gpu=GPU-1" in probe and "nvidia.com/gpu=GPU-2" in probe


def test_docker_s_key_is_compared_with_the_lock_before_the_host_trusts_it(told: Told) -> None:
    told.answers = content("/run/atelier/keys/docker.key", KEY.encode())
    facts = HostFacts(os_id="debian", os_codename="bookworm", architecture="amd64")
    deployment = Deployment(build_settings([]), facts, CREDENTIALS, (), (), "double")
    with pytest.raises(AtelierError, match=f"{FINGERPRINT}, expected 9DC858229FC7DD38854AE2D88D81803C0EBFCD88"):
        told.run(lambda state: add_deploy(state, docker.engine, deployment))
    assert any("download-file https://download.docker.com/linux/debian/gpg " in command for command in told.commands)
    assert installs(told.commands) == []


def test_what_is_in_a_keyring_is_written_down_once_it_is_there(told: Told) -> None:
    path = "/etc/apt/keyrings/docker.asc"
    told.answers = {
        "sha256sum": [f"f 644 root:root {'ab' * 32} {path}"],
        "/srv/atelier/state/manifest.json": ['{"created": {"files": ["' + path + '"]}}'],
    }
    facts = HostFacts(os_id="debian", os_codename="bookworm", architecture="amd64")
    deployment = Deployment(build_settings([]), facts, CREDENTIALS, (), (), "double")
    assert told.run(lambda run: add_deploy(run, state.keyrings, deployment))
    (sent,) = [json.loads(text) for text in told.sent if text]
    assert sent["wrote"] == {path: ["ab" * 32]} and sent["created"] == {"files": [path]}
    there = replace(deployment, facts=replace(facts, packages={"docker-ce": "1"}))
    assert not told.run(lambda run: add_deploy(run, state.keyrings, there)), "nothing was compared, so nothing is ours"


WEIGHT = Weight(
    repository="a/b",
    revision="main",
    path="a.safetensors",
    bytes=5_000_000_000,
    sha256="ab" * 32,
    directory="vae",
    sets=["s"],
    used_by=[],
    licence="none",
)
OTHER = WEIGHT.model_copy(update={"path": "b.safetensors", "sha256": "cd" * 32})
PLAIN = Deployment(build_settings([]), HostFacts(), CREDENTIALS, (), (WEIGHT, OTHER), "double")
IN_PLACE = weights_unit.in_place(PLAIN.settings, PLAIN.fetcher())
ALL = frozenset({IN_PLACE, WEIGHT.sha256, OTHER.sha256})
UNIT_GOES_ON = (
    f"systemctl daemon-reload && systemctl enable -q {weights_unit.UNIT} && systemctl try-restart {weights_unit.UNIT} "
    f"&& {{ ! systemctl -q is-failed {weights_unit.UNIT} || systemctl start {weights_unit.UNIT}; }}"
)


def bring(told: Told, present: frozenset[str], **changes: object) -> list[str]:
    deployment = replace(PLAIN, present=present, **changes)
    return [name.split(" | ")[1] for name in told.run(lambda state: add_deploy(state, models.weights, deployment))]


def test_weights_that_are_known_good_cost_no_command_at_all(told: Told) -> None:
    assert bring(told, ALL) == [] and told.commands == []


def test_a_bare_host_gets_what_fetches_and_is_followed(told: Told) -> None:
    assert bring(told, frozenset()) == ["Put in place what fetches the weights", "Bring 2 of 2 files, 10.0 GB"]
    written = installs(told.commands)
    assert written[-2:] == ["/opt/atelier/weights.json", f"/etc/systemd/system/{weights_unit.UNIT}"]
    assert UNIT_GOES_ON in told.commands[-2]
    assert "-m weights follow /opt/atelier/weights.json" in told.commands[-1]


def test_one_file_that_is_missing_is_brought_by_what_is_there(told: Told) -> None:
    assert bring(told, ALL - {OTHER.sha256}) == ["Bring 1 of 2 files, 5.0 GB"]
    assert len(told.commands) == 1


def test_another_job_concerns_a_transfer_that_is_under_way_or_has_failed_and_starts_no_other(told: Told) -> None:
    told.answers = {"sha256sum": [f"{entry.signature()} {entry.path}" for entry in PLAIN.fetcher()]}
    assert bring(told, ALL, settings=build_settings([("t", {"models": {"connections": 2}})])) == [
        "Put in place what fetches the weights"
    ]
    assert installs(told.commands) == ["/opt/atelier/weights.json"]
    assert UNIT_GOES_ON in told.commands[-1]


def test_a_token_that_nothing_needs_any_more_goes(told: Told) -> None:
    told.answers = {"sha256sum": ["f 600 root:root ab /opt/atelier/weights.token"]}
    bring(told, ALL - {IN_PLACE})
    assert any("rm -f /opt/atelier/weights.token" in command for command in told.commands)
    told.commands.clear()
    bring(told, ALL, token="hf_token")
    assert not any("rm -f /opt/atelier/weights.token" in command for command in told.commands)
    assert "/opt/atelier/weights.token" in installs(told.commands)
    assert not any("hf_token" in command for command in told.commands) and b"hf_token\n" in told.sent


def test_the_bytes_that_came_are_counted_also_where_not_all_did(told: Told) -> None:
    before = provision.fetched()
    told.answers = {"weights follow": {"stdout": ["::progress:: 1 of 2 files", "::fetched:: 12"]}}
    bring(told, frozenset({IN_PLACE}))
    assert provision.fetched() - before == 12
    told.answers = {"weights follow": {"success": False, "stdout": ["::fetched:: 5"], "stderr": [weights_unit.ENDED]}}
    with pytest.raises(AtelierError):
        bring(told, frozenset({IN_PLACE}))
    assert provision.fetched() - before == 17


def test_files_that_could_not_be_had_are_the_message(told: Told) -> None:
    why = "vae/a.safetensors: http://m/vae/a.safetensors: sha256 ff, expected abab"
    told.answers = {"weights follow": {"success": False, "stderr": [why, weights_unit.ENDED]}}
    with pytest.raises(AtelierError, match=f"not all weights are there:\n    {re.escape(why)}"):
        bring(told, frozenset({IN_PLACE}))


@pytest.mark.parametrize(
    ("present", "only", "told_comfyui"),
    [
        (ALL, "", False),
        (ALL | {weights_unit.CHANGED}, "", True),
        (ALL | {weights_unit.CHANGED}, "comfyui", True),
        (ALL | {weights_unit.CHANGED}, "forge", False),
        (ALL - {WEIGHT.sha256}, "", True),
    ],
)
def test_comfyui_hears_of_changed_weights_once_it_is_up(
    told: Told, present: frozenset[str], only: str, told_comfyui: bool
) -> None:
    builds = tuple(ImageBuild(name, f"atelier/{name}:1", (), ()) for name in ("comfyui", "forge", "gateway"))
    deployment = replace(PLAIN, builds=builds, present=present, only=only)
    ran = told.run(lambda state: add_deploy(state, services.running, deployment))
    changed = [name.split(" | ")[1] for name in ran]
    assert ("Have ComfyUI read the weights that changed anew" in changed) is told_comfyui
    if told_comfyui:
        assert changed.index("Have ComfyUI read the weights that changed anew") == 2
        assert weights_unit.FORGET in told.sent


@pytest.mark.parametrize(
    ("there", "removed"),
    [({}, False), ({"mine": "1a"}, True), ({"mine": "1a", "project": "1a"}, False)],
    ids=["none", "of an earlier release", "of this project"],
)
def test_a_container_of_an_earlier_release_makes_room(there: dict[str, str], removed: bool, tmp_path: Path) -> None:
    fake = f"""#!/bin/sh
case "$*" in
  *label=com.docker.compose.project=atelier-art*) echo "{there.get("project", "")}" | grep . ;;
  *"name=^/?art$ --filter label=atelier.config"*) echo "{there.get("mine", "")}" ;;
  "rm -f 1a") touch {tmp_path}/removed ;;
  *) exit 9 ;;
esac
"""
    (tmp_path / "docker").write_text(fake)
    (tmp_path / "docker").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    script = f"set -e; {services._without_former('art')}true"
    assert subprocess.run(["sh", "-c", script], env=environment).returncode == 0
    assert (tmp_path / "removed").exists() is removed


def test_the_manifest_names_what_fetches_the_weights_and_what_it_remembers() -> None:
    builds = tuple(ImageBuild(name, f"atelier/{name}:1", (), ()) for name in ("comfyui", "forge", "gateway"))
    created = decide.declared(replace(PLAIN, builds=builds))
    assert weights_unit.UNIT in created["units"] and {"aria2", "python3"} <= set(decide.host_packages(HostFacts()))
    assert set(created["files"]) >= {
        "/opt/atelier/weights.json",
        "/opt/atelier/lib/weights/__main__.py",
        f"/etc/systemd/system/{weights_unit.UNIT}",
        f"/etc/systemd/system/multi-user.target.wants/{weights_unit.UNIT}",
        f"/srv/atelier/state/weights/{WEIGHT.sha256}.json",
    }
    assert "/opt/atelier/weights.token" not in created["files"]
    assert {"/opt/atelier/lib", "/opt/atelier/lib/weights", "/srv/atelier/state/weights"} <= set(created["directories"])
    assert "/opt/atelier/weights.token" in decide.declared(replace(PLAIN, builds=builds, token="t"))["files"]


class Here:
    """A connection that leads nowhere: commands run in a shell of this computer."""

    def connect(self) -> None:
        """It is there."""

    def root_command(self, script: str) -> tuple[list[str], bytes]:
        return ["sh", "-c", script], b""


class Probe(FactBase[str]):
    """What a probe prints."""

    def command(self) -> str:
        return "echo raw"


@operation()
def tell() -> Iterator[str]:
    yield f"echo after {host.get_fact(Probe)}"


def test_a_terminal_shows_what_commands_print_and_not_what_facts_do(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(OpenSSHConnector, "watch", seen.append)
    stages = pyinfra_deploy("Tell")(lambda _: tell(name="Tell"))
    with provision._state(Here(), None, stages, check_for_changes=False) as state:  # type: ignore[arg-type]
        state.set_stage(StateStage.Execute)
        run_ops(state)
    assert seen == ["after raw"]
