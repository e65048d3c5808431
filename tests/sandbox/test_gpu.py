"""The GPU stage in a real booted machine with two simulated cards: from bare with nouveau on them to containers that have
theirs, through every fault that the stage is expected to name and survive.

The tests share one sandbox and run in their order. They run the checkout's code with settings of their own.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from harness import UNCHANGED, Sandbox, changes, copy_checkout, edited

from sandbox import shared, simulated_gpu

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-gpu-{os.getpid()}")
root = SANDBOX.root
CARDS = {"comfyui-qwen": simulated_gpu.CARDS["rtx4090"], "forge-turbo": simulated_gpu.CARDS["l40s"]}
SETTINGS = """
services = {"comfyui": {"gpu": "4090"}, "forge": {"gpu": "0"}}
"""
MIRROR = f"{shared.GUEST_FOLDER}/{simulated_gpu.FOLDER}"
FOREIGN = {"debug": True, "max-concurrent-downloads": 5, "features": {"buildkit": True}, "labels": ["rack=7"]}
ANOTHER_KEY = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawI+WBYJKwYBBAHaRw8BAQdAdJH49JvI7FWMaaw6CrLWJ2HwtxWHon6KHxfa
cQ4uiCG0DGF0ZWxpZXIgdGVzdIiQBBMWCAA4FiEEeMuufC9I6+7w9QjSR6iyMr17
+RkFAmsCPlgCGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQR6iyMr17+RnY
3QEA/9vrMwpb5oK74isNgS5leArNPM0v4hi61ZJc93Yz93MBAPxvhXnWJWJTR5Sw
Tvdu+xNB4w1OMOwVHv9a8bz7WGEG
=ciNq
-----END PGP PUBLIC KEY BLOCK-----"""


def up() -> None:
    simulated_gpu.insert(SANDBOX.up(), [CARDS["forge-turbo"], CARDS["comfyui-qwen"]])


@pytest.fixture(scope="module", autouse=True)
def gpu_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """The sandbox, seen from a copy of this checkout with settings of its own."""
    copy = copy_checkout(tmp_path_factory.mktemp("gpu") / "checkout")
    with (copy / "group_data/sandbox-gpu.py").open("a") as settings:
        settings.write(SETTINGS)
    with SANDBOX.running():
        up()
        simulated_gpu.repositories()  # the faults below are planted in a copy of them, before any deploy has made them
        # A stand-in for the one tool of the stage that a machine without a kernel of its own lacks: it says that it ran.
        root(
            "printf '#!/bin/sh\\necho \"$@\" >>/var/log/initramfs\\n' >/usr/sbin/update-initramfs; chmod +x /usr/sbin/update-initramfs"
        )
        root(f"mkdir -p /etc/docker; echo '{json.dumps(FOREIGN)}' >/etc/docker/daemon.json")
        yield replace(SANDBOX, checkout=copy)


def message(output: str) -> str:
    """The one message that a failed command ends in."""
    found = re.findall(r"^Error: .*(?:\n  -> .*)?", output, re.M)
    found += re.findall(r"^  \d+\. .*(?:\n +-> .*)?", output, re.M)
    assert len(found) == 1, found
    return found[0]


HOLD_THE_LOCK = """
cat >/run/slow-upgrade <<'X'
import fcntl, time
lock = open('/var/lib/dpkg/lock-frontend', 'w')
fcntl.lockf(lock, fcntl.LOCK_EX)
open('/run/slow-upgrade-runs', 'w').close()
time.sleep(600)
X
rm -f /run/slow-upgrade-runs; systemd-run --quiet --collect --unit slow-upgrade python3 /run/slow-upgrade
until [ -e /run/slow-upgrade-runs ]; do sleep 0.1; done
"""
RELEASE_THE_LOCK = "systemctl stop slow-upgrade"
WITH_ANOTHER_MIRROR = f"M=/var/tmp/mirror; rm -rf $M; cp -a {MIRROR} $M; cd $M; %s; mount --bind $M {MIRROR}"
THE_MIRROR_AGAIN = f"umount {MIRROR}"
FAULTS = {
    "another key": (
        WITH_ANOTHER_MIRROR % f"for k in */key.asc; do cat >$k <<'X'\n{ANOTHER_KEY}\nX\ndone",
        THE_MIRROR_AGAIN,
        r"key\.asc has the fingerprint 78CBAE7C2F48EBEEF0F508D247A8B232BD7BF919, expected [0-9A-F]{40}\n  -> .*publishes",
    ),
    "repository unreachable": (
        WITH_ANOTHER_MIRROR % "rm -rf */driver",
        THE_MIRROR_AGAIN,
        rf"{MIRROR}/\w+/driver.*\n +-> .*network",
    ),
    "bad signature": (
        WITH_ANOTHER_MIRROR % "sed -i 's/^Label: .*/Label: mine/' */driver/InRelease",
        THE_MIRROR_AGAIN,
        rf"apt refuses the repository file:{MIRROR}/\w+/driver: .*manipulated\n  -> .*signed",
    ),
    "disk full": (
        "mount -t tmpfs -o size=4k none /usr/src; fallocate -l 4k /usr/src/full",
        "umount /usr/src",
        r"the host's disk is full.*\n  -> make room",
    ),
    "package manager at work for too long": (
        HOLD_THE_LOCK + "echo 'DPkg::Lock::Timeout \"2\";' >/etc/apt/apt.conf.d/99short",
        RELEASE_THE_LOCK + "; rm /etc/apt/apt.conf.d/99short",
        r"package manager is busy: .*/run/slow-upgrade \(process \d+\) holds its lock\n  -> let it finish",
    ),
}


@pytest.mark.parametrize(("break_it", "mend_it", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_fault_before_or_in_the_installation_is_named(
    gpu_host: Sandbox, break_it: str, mend_it: str, expected: str
) -> None:
    root(break_it)
    try:
        said = message(gpu_host.deploy("--reboot", expect=1))
    finally:
        root(mend_it)
    assert re.search(expected, said), said


def test_a_key_with_another_fingerprint_was_never_trusted() -> None:
    assert ANOTHER_KEY not in root("cat /usr/share/keyrings/*.asc /etc/apt/keyrings/* 2>/dev/null; true")


def test_a_card_off_the_bus_is_in_the_list_of_preflight(gpu_host: Sandbox) -> None:
    lost = CARDS["comfyui-qwen"].address
    root(f"simulated-gpu lose {lost}")
    try:
        said = message(gpu_host.atelier("preflight", "--sources", "double", expect=1))
        with gpu_host.started("explain-gpu", "--facts", stderr=subprocess.DEVNULL) as process:
            facts = json.load(process.stdout)
    finally:
        root("systemctl restart simulated-gpu")
    assert re.search(rf"{lost}.*fallen off the bus.*\n +-> .*power", said), said
    assert [card["address"] for card in facts["gpu"]["pci"] if card.get("answers") is False] == [lost]


def test_a_package_manager_at_work_is_waited_for_then_power_is_lost_between_driver_and_restart(
    gpu_host: Sandbox,
) -> None:
    root(HOLD_THE_LOCK)
    with gpu_host.started("deploy", "--sources", "double", "--reboot") as process:
        said = iter(process.stdout.readline, "")
        assert any(re.search("waiting for the host.s package manager: .*slow-upgrade", line) for line in said)
        root(RELEASE_THE_LOCK)
        assert any("+ Install the driver" in line for line in said)
        SANDBOX.cut_power()
        process.kill()
    up()
    assert root("ls -d /sys/module/nouveau; dpkg-query -W -f '${Version}' nvidia-kernel-open-dkms").endswith(
        "580.178.04-1"
    )


def test_without_a_yes_the_host_is_not_restarted(gpu_host: Sandbox) -> None:
    root("touch /run/this-boot")
    output = gpu_host.deploy(expect=1)
    assert "must be restarted" in message(output) and "REBOOT=1" in message(output)
    assert re.search("The host must be restarted: .*nouveau", output)
    root("ls /run/this-boot")


def test_a_toolkit_that_is_nowhere_at_its_version_is_named_with_those_that_are(gpu_host: Sandbox) -> None:
    lock = gpu_host.checkout / "locks/sources.yml"
    with edited(lock, lock.read_text().replace("container_toolkit: 1.20.2-1", "container_toolkit: 1.20.9-1")):
        output = gpu_host.deploy("--reboot", expect=1)
    assert "+ Restart " in output  # by REBOOT=1, after which nouveau is gone
    assert root("[ ! -e /sys/module/nouveau ] && nvidia-smi -L | wc -l") == "2"
    said = message(output)
    assert "at version 1.20.9-1; they have 1.21.0-1, 1.20.2-1, 1.17.7-1" in said and "locks/sources.yml" in said


def test_the_next_deploy_converges_and_the_one_after_it_changes_nothing(gpu_host: Sandbox) -> None:
    output = gpu_host.deploy()
    assert "simulated" in output
    match = re.search(UNCHANGED, gpu_host.deploy())
    assert match and int(match[1]) > 25


def test_pins_came_before_the_driver() -> None:
    history = root("cat /var/log/apt/history.log")
    assert history.index(" nvidia-driver-pinning-580:") < history.index(" nvidia-driver-cuda:")


def test_nothing_replaces_the_driver_by_itself() -> None:
    holds = set(root("apt-mark showhold").split())
    assert {
        "nvidia-driver-cuda",
        "nvidia-kernel-open-dkms",
        "nvidia-container-toolkit",
        "libnvidia-container1",
    } <= holds
    blacklist = root("apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert all(f'"{name}-";' in blacklist for name in ("nvidia", "libnvidia", "linux-modules-nvidia", "cuda"))
    assert "blacklist nouveau" in root("cat /etc/modprobe.d/atelier-*")
    assert root("cat /var/log/initramfs") == "-u -k all"


def test_what_the_host_had_in_daemon_json_is_still_there() -> None:
    document = json.loads(root("cat /etc/docker/daemon.json"))
    assert {key: document[key] for key in FOREIGN} == {**FOREIGN, "features": {**FOREIGN["features"], "cdi": True}}


def test_the_manifest_names_what_the_gpu_stage_made() -> None:
    created = json.loads(root("cat /srv/atelier/state/manifest.json"))["created"]
    assert {"nvidia-driver-cuda", "nvidia-driver-pinning-580", "nvidia-container-toolkit"} <= set(created["packages"])
    assert "atelier-gpu-containers.service" in created["units"]
    missing = root(
        "for p in " + " ".join(created["files"] + created["directories"]) + "; do [ -e $p ] || echo $p; done"
    )
    assert missing == ""


SEEN = """for c in comfyui-qwen forge-turbo; do
echo "$c $(docker inspect -f '{{(index .HostConfig.DeviceRequests 0).DeviceIDs}}' $c) $(docker exec $c nvidia-smi -L)"; done"""


def holds_its_own_gpu(container: str, seen: str) -> bool:
    line = next(line for line in seen.splitlines() if line.startswith(container))
    return line.count("GPU-") == 2 and line.count(CARDS[container].uuid) == 2


def check_gpus() -> None:
    seen = root(SEEN)
    assert all(holds_its_own_gpu(container, seen) for container in CARDS), seen


def test_each_container_has_its_gpu_and_no_other() -> None:
    check_gpus()


def test_daemon_reload_takes_no_gpu_away() -> None:
    root("systemctl daemon-reload; sleep 1")
    check_gpus()


def test_an_error_in_the_kernel_s_log_turns_verify_red_until_the_driver_is_loaded_anew(gpu_host: Sandbox) -> None:
    address = CARDS["forge-turbo"].address
    root(f"simulated-gpu xid {address} 79 'GPU has fallen off the bus.'")
    log = root("journalctl -k -b -q -o cat").splitlines()
    assert all(line.startswith("NVRM: ") for line in log), "the guest's journal has no line of this computer's kernel"
    assert "): 79, " in log[-1]
    said = gpu_host.atelier("verify", "--check", "gpu.health", expect=1)
    assert f"Xid 79 of the card at {address.removesuffix('.0')}: GPU has fallen off the bus." in said
    root("simulated-gpu unload; modprobe -a nvidia nvidia-uvm")
    log = root("journalctl -k -b -q -o cat").splitlines()
    assert log[-1].startswith("NVRM: loading NVIDIA UNIX Open Kernel Module"), "as the real one says when it is loaded"
    gpu_host.atelier("verify", "--check", "gpu.health")


def test_verify_notices_a_broken_gpu(gpu_host: Sandbox) -> None:
    output = gpu_host.atelier(
        "sabotage", "--quick", "--only", "gpu.driver-replaced,gpu.cdi-removed,drift.toolkit-released"
    )
    assert "3 of 3 sabotages were noticed, named and undone" in output


def test_an_unknown_gpu_is_docker_s_own_error() -> None:
    image = root("docker inspect -f '{{.Config.Image}}' forge-turbo")
    result = SANDBOX.ssh().run(f"docker run --rm --device nvidia.com/gpu=GPU-nowhere {image} true")
    assert result.status and "unresolvable CDI devices nvidia.com/gpu=GPU-nowhere" in result.stderr


def test_a_host_that_does_not_come_back_is_named_and_all_is_as_it_was_once_it_does(gpu_host: Sandbox) -> None:
    gpu_host.atelier("stop", "--service", "forge")
    # It powers itself off instead.
    root("ln -s /usr/lib/systemd/system/poweroff.target /etc/systemd/system/reboot.target; systemctl daemon-reload")
    root("simulated-gpu loaded 580.65.06")  # as after an upgrade under the running kernel
    settings = gpu_host.checkout / "group_data/sandbox-gpu.py"
    with edited(settings, settings.read_text() + 'timeouts = {"reboot": 30}\n'):
        said = message(gpu_host.deploy("--reboot", expect=1))
    assert "did not come back within 30 s" in said and "console" in said
    up()
    root("rm /etc/systemd/system/reboot.target; systemctl daemon-reload")
    SANDBOX.wait_for("[ $(docker ps --filter health=healthy -q | wc -l) = 2 ]")
    journal = root("journalctl -b -o cat -u docker -u nvidia-cdi-refresh -u atelier-gpu-containers")
    order = [journal.index(text) for text in ("Generated CDI spec", "Starting docker", "Started docker")]
    assert order == sorted(order)
    # Docker 26 did not start it, so that the unit which does is proved.
    assert 'could not select device driver \\"cdi\\"' in journal and "Finished atelier-gpu-containers" in journal
    assert root("docker inspect -f '{{.State.Status}}' forge-turbo") == "exited", "somebody had stopped it"
    gpu_host.atelier("start", "--service", "forge")
    check_gpus()
    root("rm /var/run/cdi/nvidia.yaml")
    assert changes(gpu_host.deploy()) == ["Have CDI know the GPU of every service"]
    check_gpus()


def test_what_was_removed_or_stopped_comes_back_without_a_restart(gpu_host: Sandbox) -> None:
    names = "nvidia-driver-cuda nvidia-kernel-open-dkms"
    root(f"apt-get remove -qy --allow-change-held-packages {names} >/dev/null && simulated-gpu unload")
    root("systemctl stop nvidia-persistenced")
    # nvidia-cdi-refresh starts when the packages come, and may have loaded the driver first.
    assert [step for step in changes(gpu_host.deploy()) if step != "Load the driver"] == [
        "Let the driver's packages be replaced",
        "Install the driver 580, open modules",
        "Hold the driver's packages",
        "Record the keys of repositories",  # the run that added them lost its power before that
        "Start nvidia-persistenced.service",
    ]
    check_gpus()
