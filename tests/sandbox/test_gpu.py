"""The GPU stage in a real booted machine with two simulated cards: from bare with nouveau on them to containers that have
theirs, through every fault that the stage is expected to name and survive.

The tests share one sandbox and run in their order. They run the checkout's code with settings of their own (`checkout`).
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier import apt
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.reboot import reboot
from atelier.ssh import Destination, Ssh
from sandbox import machine, shared, simulated_gpu, tools

pytestmark = pytest.mark.sandbox
NAME = f"sandbox-gpu-{os.getpid()}"
ROOT = Path(__file__).resolve().parents[2]
CARDS = {"comfyui-qwen": simulated_gpu.CARDS["rtx4090"], "forge-turbo": simulated_gpu.CARDS["l40s"]}
SETTINGS = """
services = {"comfyui": {"gpu": "4090"}, "forge": {"gpu": "0"}}
"""
UNCHANGED = re.compile(r"Deployed: 0 of (\d+) operations changed something")
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
    simulated_gpu.insert(machine.up(NAME, print, binds=shared.binds()), [CARDS["forge-turbo"], CARDS["comfyui-qwen"]])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout as it stands, with settings of its own; what it keeps of the sandbox goes with it."""
    copy = tmp_path_factory.mktemp("gpu") / "checkout"
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    with (copy / "group_data/sandbox-gpu.py").open("a") as settings:
        settings.write(SETTINGS)
    return copy


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    try:
        up()
    except tools.UnavailableError as error:
        if os.environ.get("REQUIRE_SANDBOX") == "1":
            raise
        pytest.skip(str(error))
    # A stand-in for the one tool of the stage that a machine without a kernel of its own lacks: it says that it ran.
    root(
        "printf '#!/bin/sh\\necho \"$@\" >>/var/log/initramfs\\n' >/usr/sbin/update-initramfs; chmod +x /usr/sbin/update-initramfs"
    )
    root(f"mkdir -p /etc/docker; echo '{json.dumps(FOREIGN)}' >/etc/docker/daemon.json")
    yield
    machine.down(NAME, print)


def started(checkout: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command line as a user would call it, from the copied checkout."""
    return subprocess.Popen(
        [sys.executable, "-c", "from atelier.cli import main; main()", *arguments, "--host", NAME],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd="/",  # python -c imports from where it is started first
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def atelier(checkout: Path, *arguments: str, expect: int = 0) -> str:
    with started(checkout, *arguments) as done:
        output, _ = done.communicate(timeout=600)
    print(output)
    assert done.returncode == expect, output[-3000:]
    assert "Traceback" not in output
    return output


def deploy(checkout: Path, *arguments: str, expect: int = 0) -> str:
    return atelier(checkout, "deploy", "--sources", "double", *arguments, expect=expect)


def ssh() -> Ssh:
    return Ssh(Destination(NAME, config=machine.folder() / NAME / "ssh" / "config"), accept_new_host_key=True)


def root(script: str, expect: int = 0) -> str:
    """Run a script as root in the guest."""
    result = ssh().run(script)
    assert result.status == expect, result.stdout + result.stderr
    return result.stdout.strip()


def message(output: str) -> str:
    """The one message that a failed command ends in."""
    found = re.findall(r"^Error: .*(?:\n  -> .*)?", output, re.M)
    found += re.findall(r"^  \d+\. .*(?:\n +-> .*)?", output, re.M)
    assert len(found) == 1, found
    return found[0]


def cut_power() -> None:
    """SIGKILL to everything that is the sandbox; its disk stays."""
    pid = int((machine.folder() / NAME / "supervisor.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while machine.get(NAME) is not None and time.monotonic() < deadline:
        time.sleep(0.1)


def wait_for(script: str, seconds: int = 90) -> None:
    deadline = time.monotonic() + seconds
    while ssh_answers(script) is False:
        assert time.monotonic() < deadline, f"not within {seconds} s: {script}"
        time.sleep(1)


def ssh_answers(script: str) -> bool:
    try:
        return ssh().run(script, timeout=20).status == 0
    except AtelierError:
        return False


WITH_ANOTHER_MIRROR = f"rm -rf /var/tmp/mirror; cp -a {MIRROR} /var/tmp/mirror; cd /var/tmp/mirror; %s; mount --bind /var/tmp/mirror {MIRROR}"
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
}


@pytest.mark.parametrize(("break_it", "mend_it", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_fault_before_or_in_the_installation_is_named(
    checkout: Path, break_it: str, mend_it: str, expected: str
) -> None:
    root(break_it)
    try:
        said = message(deploy(checkout, "--reboot", expect=1))
    finally:
        root(mend_it)
    assert re.search(expected, said), said


def test_a_key_with_another_fingerprint_was_never_trusted() -> None:
    assert ANOTHER_KEY not in root("cat /usr/share/keyrings/*.asc /etc/apt/keyrings/* 2>/dev/null; true")


HOLD_THE_LOCK = """
mkdir -p /run/holder; cat >/run/holder/slow-upgrade <<'X'
import fcntl, time
lock = open('/var/lib/dpkg/lock-frontend', 'w')
fcntl.lockf(lock, fcntl.LOCK_EX)
time.sleep(float(__import__('sys').argv[1]))
X
systemd-run --quiet --collect --unit slow-upgrade python3 /run/holder/slow-upgrade %d; sleep 1
"""


def test_a_held_lock_is_waited_for_and_then_its_holder_is_named() -> None:
    root(HOLD_THE_LOCK % 6)
    waited = root(f"{apt.WAIT}\necho free")
    assert "waiting for the host's package manager: " in waited and waited.endswith("free")
    root((HOLD_THE_LOCK % 30) + "echo 'DPkg::Lock::Timeout \"2\";' >/etc/apt/apt.conf.d/99short")
    result = ssh().run(apt.install_script(["hello"]))
    root("rm /etc/apt/apt.conf.d/99short; systemctl stop slow-upgrade")
    assert result.status == 75
    finding = apt.explain((result.stdout + result.stderr).splitlines())
    assert finding and "slow-upgrade 30 (process" in finding.problem


def test_power_lost_between_driver_and_restart(checkout: Path) -> None:
    with started(checkout, "deploy", "--sources", "double", "--reboot") as process:
        assert process.stdout
        next(line for line in process.stdout if "+ Install the driver" in line)
        cut_power()
        process.kill()
    up()
    assert root("ls -d /sys/module/nouveau; dpkg-query -W -f '${Version}' nvidia-kernel-open-dkms").endswith(
        "580.178.04-1"
    )


def test_without_a_yes_the_host_is_not_restarted(checkout: Path) -> None:
    root("touch /run/this-boot")
    said = message(deploy(checkout, expect=1))
    assert "must be restarted" in said and "nouveau" in said and "REBOOT=1" in said
    root("ls /run/this-boot")


def test_a_toolkit_that_is_nowhere_at_its_version_is_named_with_those_that_are(checkout: Path) -> None:
    lock = checkout / "locks/sources.yml"
    before = lock.read_text()
    lock.write_text(before.replace("container_toolkit: 1.20.2-1", "container_toolkit: 1.20.9-1"))
    try:
        output = deploy(checkout, "--reboot", expect=1)
    finally:
        lock.write_text(before)
    assert "+ Restart " in output  # by REBOOT=1, after which nouveau is gone
    assert root("[ ! -e /sys/module/nouveau ] && nvidia-smi -L | wc -l") == "2"
    said = message(output)
    assert "at version 1.20.9-1; they have 1.21.0-1, 1.20.2-1, 1.17.7-1" in said and "locks/sources.yml" in said


def test_the_next_deploy_converges_and_the_one_after_it_changes_nothing(checkout: Path) -> None:
    output = deploy(checkout)
    assert "simulated" in output
    match = UNCHANGED.search(deploy(checkout))
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
    assert document["features"] == {**FOREIGN.pop("features"), "cdi": True}
    assert {key: document[key] for key in FOREIGN} == FOREIGN


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


def test_an_unknown_gpu_is_docker_s_own_error() -> None:
    image = root("docker inspect -f '{{.Config.Image}}' forge-turbo")
    result = ssh().run(f"docker run --rm --device nvidia.com/gpu=GPU-nowhere {image} true")
    assert result.status and "unresolvable CDI devices nvidia.com/gpu=GPU-nowhere" in result.stderr


def test_after_a_reboot_each_container_has_its_gpu_again_but_none_that_somebody_stopped(checkout: Path) -> None:
    atelier(checkout, "stop", "--service", "forge")
    root(
        "touch /run/before; systemd-run --quiet --collect --timer-property=AccuracySec=100ms --on-active=1 systemctl reboot"
    )
    wait_for("[ ! -e /run/before ] && [ $(docker ps --filter health=healthy -q | wc -l) = 2 ]")
    journal = root("journalctl -b -o cat -u docker -u nvidia-cdi-refresh -u atelier-gpu-containers")
    order = [journal.index(text) for text in ("Generated CDI spec", "Starting docker", "Started docker")]
    assert order == sorted(order)
    # Docker 26 did not start it, so that the unit which does is proved.
    assert 'could not select device driver \\"cdi\\"' in journal and "Finished atelier-gpu-containers" in journal
    assert root("docker inspect -f '{{.State.Status}}' forge-turbo") == "exited"
    atelier(checkout, "start", "--service", "forge")
    check_gpus()
    assert UNCHANGED.search(deploy(checkout))


def test_a_lost_cdi_specification_is_made_again(checkout: Path) -> None:
    root("rm /var/run/cdi/nvidia.yaml; systemctl stop nvidia-persistenced")
    output = deploy(checkout)
    changed = re.findall(r"^  \+ (.+?)  \(", output, re.M)
    assert changed == ["Start nvidia-persistenced.service", "Have CDI know the GPU of every service"]


def test_a_driver_that_was_removed_comes_back_without_a_restart(checkout: Path) -> None:
    names = "nvidia-driver-cuda nvidia-kernel-open-dkms"
    root(f"apt-get remove -qy --allow-change-held-packages {names} >/dev/null && simulated-gpu unload")
    output = deploy(checkout)
    assert "+ Install the driver 580, open modules" in output and "+ Load the driver" in output
    assert "+ Hold the driver" in output and "Restart" not in output
    check_gpus()


def test_a_host_that_does_not_come_back_is_named_and_converges_when_it_does(checkout: Path) -> None:
    # It powers itself off instead.
    root("ln -s /usr/lib/systemd/system/poweroff.target /etc/systemd/system/reboot.target; systemctl daemon-reload")
    with pytest.raises(AtelierError, match="did not come back within 8 s") as caught:
        reboot(ssh(), 8, Narrator())
    assert "console" in caught.value.hint
    up()
    root("rm /etc/systemd/system/reboot.target; systemctl daemon-reload")
    wait_for("[ $(docker ps --filter health=healthy -q | wc -l) = 3 ]")
    assert UNCHANGED.search(deploy(checkout))
    check_gpus()
