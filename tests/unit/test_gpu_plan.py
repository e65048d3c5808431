"""plan_gpu over the table of host situations, and what must hold for every one of them."""

import json
import re
from dataclasses import replace

import pytest
from gpu_situations import NVIDIAS, SITUATIONS, TOOLKIT, UBUNTUS, Situation, debian

from atelier.gpu.cards import modules, torch_variant, undriven
from atelier.gpu.devices import Gpu
from atelier.gpu.explain import explain, facts_json, read_facts
from atelier.gpu.facts import GpuFacts, KernelModule, Package, PciGpu
from atelier.gpu.plan import GpuPlan, plan_gpu
from atelier.settings import Settings, build_settings

every = pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)


def settings_of(situation: Situation) -> Settings:
    return build_settings([("test", situation.settings)])


def planned(situation: Situation) -> GpuPlan:
    return plan_gpu(situation.facts, settings_of(situation))


@every
def test_plan(situation: Situation):
    plan, expected = planned(situation), situation.expected
    assert plan.action == expected.action, plan
    if expected.torch:
        assert plan.torch == expected.torch
    for name in ("route", "branch", "flavour", "packages", "remove", "headers", "pins", "unhold"):
        if (wanted := getattr(expected, name)) is not None:
            assert getattr(plan.driver, name) == wanted, name
    if expected.source is not None:
        repository = plan.driver.repository
        assert expected.source in repository.source.content.decode() if expected.source else repository is None
    assert (expected.reboot in plan.reboot) if expected.reboot else not plan.reboot
    assert plan.load == (expected.load and not expected.reboot), "a restart loads the module by itself"
    for name in ("reasons", "notes"):
        for fragment in getattr(expected, name):
            assert fragment in "\n".join(getattr(plan, name))
    if expected.no_notes:
        assert not plan.notes
    assert len(plan.refusals) == len(expected.refusals), plan.refusals
    for found, (problem, remedy) in zip(plan.refusals, expected.refusals, strict=True):
        assert problem in found.problem
        assert remedy in found.remedy
    if plan.action != "refuse":
        assert plan.gpus == expected.gpus
    if expected.units is not None:
        assert plan.services == expected.units
    if expected.holds is not None:
        assert plan.holds == tuple(sorted(expected.holds))
    if expected.toolkit:
        assert plan.toolkit == tuple(f"{name}={expected.toolkit}" for name in TOOLKIT)
    if expected.toolkit_source is not None:
        repository = plan.toolkit_repository
        content = repository.source.content.decode() if repository else ""
        assert expected.toolkit_source in content if expected.toolkit_source else not content
    if expected.blacklist is not None:
        assert blacklist(plan) == expected.blacklist


def blacklist(plan: GpuPlan) -> tuple[str, ...]:
    """What unattended-upgrades leaves alone."""
    files = [file.content.decode() for file in plan.files if "apt.conf.d" in file.path]
    return tuple(re.findall(r'^  "(.*)";$', files[0], re.M)) if files else ()


@pytest.mark.parametrize(
    ("driver", "capabilities", "expected"),
    [
        ((580, 65, 6), [(7, 5)], "cu130"),
        ((580, 65, 5), [(7, 5)], "cu126"),
        ((580, 65, 6), [(7, 0)], "cu126"),
        ((580, 65, 6), [(7, 0), (8, 9)], "cu126"),
        ((580, 65, 6), [(7, 0), (12, 0)], None),
        ((610,), [(12, 1)], "cu130"),
        ((610,), [(13, 0)], None),
        ((525, 60, 13), [(9, 0)], "cu126"),
        ((525, 60, 12), [(9, 0)], None),
        ((570,), [(10, 0)], None),
        ((550,), [(5, 0)], "cu126"),
        ((550,), [(3, 7)], None),
    ],
)
def test_build_of_pytorch(driver, capabilities, expected):
    assert torch_variant(driver, capabilities) == expected


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("0x133f", set()),
        ("0x1340", {"proprietary"}),
        ("0x1dff", {"proprietary"}),
        ("0x1e00", {"open", "proprietary"}),
        ("0x28ff", {"open", "proprietary"}),
        ("0x2900", {"open"}),
    ],
)
def test_modules_by_device_id(device, expected):
    assert modules(PciGpu("0000:01:00.0", device)) == expected


@pytest.mark.parametrize("flavour", ["", "open", "proprietary"])
def test_no_module_drives_a_card_older_than_maxwell(flavour):
    kepler, ada = PciGpu("0000:01:00.0", "0x133f"), PciGpu("0000:02:00.0", "0x2684")
    assert undriven([kepler, ada], flavour) == (kepler,)


@pytest.mark.parametrize(("codename", "file"), [("bookworm", "3bf863cc.pub"), ("trixie", "8793F200.pub")])
def test_debian_13_gets_the_key_file_that_its_apt_accepts(codename, file):
    """NVIDIA signs both repositories with one key; Debian 13 refuses the SHA-1 signature inside the older file."""
    plan = plan_gpu(debian(GpuFacts(pci=(PciGpu("0000:01:00.0", "0x2684"),)), codename), Settings())
    assert plan.driver.repository.key_url.endswith(file)
    assert plan.driver.repository.fingerprint == "EB693B3035CD5710E231E123A4B469963BF863CC"


def test_the_table_is_large_enough():
    assert len(SITUATIONS) >= 40


@every
def test_refused_means_refusals_and_each_has_a_remedy(situation: Situation):
    plan = planned(situation)
    assert (plan.action == "refuse") == bool(plan.refusals)
    assert all(finding.problem and finding.remedy for finding in plan.refusals)
    if plan.refusals:
        assert not (plan.driver or plan.reboot or plan.load or plan.files or plan.holds or plan.toolkit)


@every
def test_install_means_packages_on_one_route(situation: Situation):
    plan = planned(situation)
    assert (plan.action == "install") == (plan.driver is not None)
    if not plan.driver:
        return
    assert plan.driver.packages
    assert plan.driver.flavour in ("open", "proprietary")
    names = " ".join(plan.driver.packages)
    if plan.driver.route == "ubuntu-archive":
        assert "dkms-" not in names.replace("no-dkms-", "")
        assert not (plan.driver.repository or plan.driver.pins or plan.driver.headers)
    else:
        assert "-server" not in names and "linux-modules" not in names
    assert not {*plan.driver.remove} & {*plan.driver.packages, *plan.driver.pins, *plan.driver.headers}
    assert not ("-open" in names and "nvidia-kernel-dkms" in names)


@every
def test_what_is_not_refused_says_why_and_gets_the_toolkit(situation: Situation):
    plan = planned(situation)
    if plan.action in ("install", "adopt"):
        assert plan.reasons
        assert len({package.partition("=")[2] for package in plan.toolkit}) == 1
    assert plan.torch in ("cu126", "cu130") or plan.action == "none"


@every
def test_pins_come_before_packages_and_a_repository_trusts_one_key(situation: Situation):
    plan = planned(situation)
    if plan.driver and plan.driver.route == "nvidia-repository" and len(plan.driver.packages) > 1:
        assert plan.driver.pins == (f"nvidia-driver-pinning-{plan.driver.branch}",)
        fields = list(type(plan.driver).__dataclass_fields__)
        assert fields.index("pins") < fields.index("packages")
    for repository in (plan.driver and plan.driver.repository, plan.toolkit_repository):
        if repository:
            assert f"signed-by={repository.keyring}" in repository.source.content.decode().splitlines()[0]
            assert len(repository.fingerprint) == 40


@every
def test_facts_survive_a_file(situation: Situation, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(facts_json(situation.facts))
    assert read_facts(path) == situation.facts


@every
def test_explanation_begins_with_the_action_and_names_every_refusal(situation: Situation):
    explained = json.loads(explain(situation.facts, settings_of(situation)))
    plan = planned(situation)
    assert next(iter(explained)) == "action"
    assert explained["action"] == plan.action
    assert [found["remedy"] for found in explained.get("refusals", [])] == [found.remedy for found in plan.refusals]


def after(situation: Situation, plan: GpuPlan) -> Situation:
    """The host once the plan's packages are there and it has restarted: what a second deploy meets."""
    gpu, driver = situation.facts.gpu, plan.driver
    version = f"{driver.branch}.95.05"
    maintainer = UBUNTUS if driver.route == "ubuntu-archive" else NVIDIAS
    names = (name.partition("=")[0] for name in (*driver.pins, *driver.packages))
    installed = {name: package for name, package in gpu.packages.items() if name not in driver.remove}
    installed |= {name: Package(f"{version}-1", maintainer) for name in names}
    module = KernelModule(version, driver.flavour)
    driven = [card for card in gpu.pci if card.driver != "vfio-pci" and card not in undriven(gpu.pci, driver.flavour)]
    gpu = replace(
        gpu,
        packages=installed,
        loaded=module,
        installed=module,
        devices=tuple(Gpu(i, f"GPU-{i}", f"card {i}", 24576, address=card.address) for i, card in enumerate(driven)),
        smi_error="",
        pci=tuple(replace(card, driver=card.driver if card.driver == "vfio-pci" else "nvidia") for card in gpu.pci),
        reboot_required=False,
    )
    return replace(situation, facts=replace(situation.facts, gpu=gpu))


INSTALLS = {name: situation for name, situation in SITUATIONS.items() if situation.expected.action == "install"}


@pytest.mark.parametrize("situation", INSTALLS.values(), ids=INSTALLS)
def test_what_was_installed_is_adopted_by_the_next_deploy(situation: Situation):
    """Services name no card here: how indexes count beside a dark card is nvidia-smi's business."""
    plan = planned(situation)
    later = replace(
        after(situation, plan), settings={"services": {"forge": {"enabled": False}, "comfyui": {"gpu": "0"}}}
    )
    second = planned(later)
    assert second.action == "adopt", second
    assert not (second.reboot or second.load)
    assert second.torch == plan.torch or len(situation.facts.gpu.pci) > 1
    assert {*plan.holds} <= {*second.holds}
    assert blacklist(second) == blacklist(plan)
