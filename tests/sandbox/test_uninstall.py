"""From a host with somebody's own things on it to a deployed one and back: nothing of it is missing, nothing of ours is left.

The tests share one sandbox and run in their order.
"""

import json
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Sandbox

from atelier import paths
from sandbox import simulated_gpu

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-un-{os.getpid()}")
GPU = Sandbox(f"sandbox-gpu-un-{os.getpid()}")
SNAPSHOT = (Path(__file__).parent / "host_snapshot.py").read_text()
KILLS_BEFORE, KILLS_AFTER = 3, 2
"""How many runs are killed before the power is cut in the middle of apt's work, and after it."""
DATA = "/srv/atelier"
OUTPUT, WEIGHT = f"{DATA}/outputs/comfyui/kept.png", f"{DATA}/models/vae/qwen_image_vae.safetensors"
LORA = f"{DATA}/models/loras/mine.safetensors"
DAEMON_JSON = '{ "debug":true,\n\n "log-opts": {"compress": "true", "max-file": "2"} }'
THEIRS = """
set -e; export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null; apt-get install -q -y --no-install-recommends iptables jq >/dev/null; apt-mark -q hold jq
iptables -A INPUT -s 203.0.113.9 -j DROP -m comment --comment "not 'ours'"
mkdir -p /etc/docker /srv/theirs
printf '%s' '{DAEMON_JSON}' >/etc/docker/daemon.json; chmod 640 /etc/docker/daemon.json
echo precious >/srv/theirs/file; useradd --system them
printf '[Service]\\nExecStart=/bin/sleep infinity\\n[Install]\\nWantedBy=multi-user.target\\n' >/etc/systemd/system/theirs.service
systemctl enable -q --now theirs.service
""".replace("{DAEMON_JSON}", DAEMON_JSON)
"""Run before the first deploy: what a host of somebody's may have."""


def snapshot(sandbox: Sandbox = SANDBOX) -> dict:
    return json.loads(sandbox.root("python3 -", SNAPSHOT))


def differences(before: dict, after: dict) -> list[str]:
    """What of a host is not as it was: `- kind what` is missing, `+ kind what` is there."""
    found = []
    for kind, was in before.items():
        rows = [
            {f"{path} {told}" for path, told in each.items()} if isinstance(each, dict) else set(each)
            for each in (was, after[kind])
        ]
        found += [f"- {kind} {row}" for row in sorted(rows[0] - rows[1])]
        found += [f"+ {kind} {row}" for row in sorted(rows[1] - rows[0])]
    return found


def outside_of_data(found: list[str]) -> list[str]:
    return [line for line in found if not line.startswith(f"+ files {DATA}")]


@pytest.fixture(scope="module", autouse=True)
def before() -> Iterator[dict]:
    with SANDBOX.running():
        SANDBOX.root(THEIRS)
        yield snapshot()


LEFT_BEHIND = {
    "echo x >/etc/left": "+ files /etc/left -rw-r--r-- 0:0 ",
    "mkdir /usr/local/left": "+ files /usr/local/left drwxr-xr-x 0:0",
    "chmod 700 /srv/theirs": "- files /srv/theirs drwxr-xr-x 0:0",
    "echo more >>/srv/theirs/file": "- files /srv/theirs/file -rw-r--r-- 0:0 ",
    "apt-get install -q -y --no-install-recommends hello >/dev/null": "+ packages hello ",
    "apt-mark -q auto iptables": "- manual iptables",
    "apt-mark -q unhold jq": "- holds jq",
    "systemctl disable -q theirs.service": "- units theirs.service enabled",
    "systemctl stop theirs.service": "- running theirs.service",
    "useradd --system left": "+ users left:",
    "iptables -t raw -A PREROUTING -s 203.0.113.8 -j DROP": "+ rules -A PREROUTING -s 203.0.113.8/32 -j DROP",
    "iptables -P FORWARD DROP": "+ rules :FORWARD DROP",
    "mkdir -p /run/left && mount -t tmpfs none /run/left": "+ mounts /run/left tmpfs",
    "ip link add left type bridge": "+ links left",
    "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding": "+ kernel /proc/sys/net/ipv6/conf/all/forwarding:1",
}
"""What an uninstall could leave, and the line that must tell of it."""
TAKEN_AWAY = """
rm -r /etc/left /usr/local/left; chmod 755 /srv/theirs; echo precious >/srv/theirs/file
apt-get purge -q -y hello >/dev/null; apt-mark -q manual iptables; apt-mark -q hold jq; systemctl enable -q --now theirs.service
userdel left; iptables -t raw -D PREROUTING -s 203.0.113.8 -j DROP; iptables -P FORWARD ACCEPT; umount /run/left; rmdir /run/left
ip link delete left; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding
"""


def test_whatever_was_left_behind_would_be_seen(before: dict) -> None:
    SANDBOX.root("set -e; export DEBIAN_FRONTEND=noninteractive\n" + "\n".join(LEFT_BEHIND))
    seen = differences(before, snapshot())
    assert {line for line in LEFT_BEHIND.values() if not any(row.startswith(line) for row in seen)} == set()
    SANDBOX.root(f"set -e; export DEBIAN_FRONTEND=noninteractive\n{TAKEN_AWAY}")
    assert differences(before, snapshot()) == []


def containers() -> list[str]:
    return SANDBOX.root("docker ps --format '{{.Names}} {{.ID}}' | sort").splitlines()


def test_nothing_is_removed_without_a_yes(before: dict) -> None:
    SANDBOX.deploy()
    SANDBOX.root(f"echo image >{OUTPUT}; chown 10001:10001 {OUTPUT}")
    running = containers()
    output = SANDBOX.atelier("uninstall", expect=1)
    assert "nothing was removed" in output and "YES=1" in output
    assert "Removes" in output and "docker.io" in output and "comfyui-qwen" in output and f"{DATA}/models" in output
    assert containers() == running and len(running) == 3


def test_the_host_is_as_found_but_for_the_data(before: dict) -> None:
    weight = SANDBOX.root(f"stat -c '%i %y' {WEIGHT}")
    output = SANDBOX.atelier("uninstall", "--yes")
    after = snapshot()
    assert outside_of_data(differences(before, after)) == []
    assert SANDBOX.root(f"stat -c '%i %y' {WEIGHT}") == weight
    assert SANDBOX.root(f"cat {OUTPUT}; stat -c %u {OUTPUT}").split() == ["image", "10001"]
    state = {path.removeprefix(f"{DATA}/state/") for path in after["files"] if path.startswith(f"{DATA}/state/")}
    assert {name for name in state if "/" not in name} == {"weights", "manifest.json", "schema", "audit.log"}
    assert "uninstalled" in SANDBOX.root(f"tail -n 1 {DATA}/state/audit.log")
    assert "Removed: 3 containers" in output and f"{DATA}/outputs: " in output
    assert str(paths.secrets_dir(SANDBOX.name)) in output


def test_once_more_says_that_nothing_is_left() -> None:
    output = SANDBOX.atelier("uninstall", "--yes")
    assert "nothing of a deploy" in output and f"{DATA}/models" in output


def test_a_deploy_afterwards_adopts_what_was_kept() -> None:
    weight = SANDBOX.root(f"stat -c '%i %y' {WEIGHT}")
    output = SANDBOX.deploy()
    assert "+ Bring" not in output, "not a byte of the weights is fetched again"
    assert SANDBOX.root(f"stat -c '%i %y' {WEIGHT}") == weight
    assert SANDBOX.root(f"cat {OUTPUT}; stat -c %U {OUTPUT}").split() == ["image", "atelier"]
    SANDBOX.atelier("verify", "--quick")


def test_an_edited_file_and_what_is_somebody_elses_stay_and_are_named(before: dict) -> None:
    edited, foreign = "/opt/atelier/services/forge-turbo/compose.yaml", "/opt/atelier/notes.txt"
    SANDBOX.root(f"echo '# mine' >>{edited}; echo mine >{foreign}; echo lora >{LORA}")
    output = SANDBOX.atelier("uninstall", "--yes", "--purge")
    for path, why in ((edited, "edited"), (foreign, "no deploy made it"), (LORA, "no deploy made it")):
        assert f"{path}: " in output and why in output
    assert SANDBOX.root(f"tail -n 1 {edited}; cat {foreign} {LORA}").split("\n") == ["# mine", "mine", "lora"]
    left = [line.split()[2] for line in differences(before, snapshot())]
    assert {path for path in left if not any(other.startswith(f"{path}/") for other in left)} == {edited, foreign, LORA}
    SANDBOX.root(f"rm {edited} {foreign} {LORA}")
    SANDBOX.root(f"find /opt/atelier {DATA} -depth -type d -empty -delete")
    assert differences(before, snapshot()) == []


def killed(seconds: float) -> bool:
    """Kill an uninstall after some seconds of its work; whether it was still at it."""
    with SANDBOX.started("uninstall", "--yes", "--purge") as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("  Keeps") or line.startswith("  Removes"):
                break
        time.sleep(seconds)
        running = process.poll() is None
        process.kill()
    return running


def test_killed_anywhere_and_in_a_power_cut_the_next_one_finishes(before: dict) -> None:
    SANDBOX.deploy()
    seed = int(os.environ.get("SEED", "7"))
    chosen = random.Random(seed)
    hits = sum(killed(chosen.uniform(0.2, 3)) for _ in range(KILLS_BEFORE))
    with SANDBOX.started("uninstall", "--yes", "--purge") as process:
        SANDBOX.wait_for("grep -q 'status half-' /var/log/dpkg.log && ! command -v docker", 120)
        hits += process.poll() is None
        SANDBOX.cut_power()
        process.kill()
    SANDBOX.up()
    SANDBOX.root("iptables -A INPUT -s 203.0.113.9 -j DROP -m comment --comment \"not 'ours'\"")
    hits += sum(killed(chosen.uniform(0.2, 4)) for _ in range(KILLS_AFTER))
    assert hits >= 3, "the kills came after the end"
    SANDBOX.atelier("uninstall", "--yes", "--purge")
    assert differences(before, snapshot()) == [], f"SEED={seed}"


def test_a_docker_that_others_use_stays_and_their_containers_run_on() -> None:
    SANDBOX.deploy()
    SANDBOX.root(
        "docker volume create theirs >/dev/null; docker run -d --name theirs --network none -v theirs:/data --entrypoint sleep "
        "$(docker inspect -f '{{.Config.Image}}' gateway) infinity >/dev/null"
    )
    started = "docker inspect -f '{{.State.Status}} {{.State.StartedAt}} {{.State.Pid}}' theirs"
    was = SANDBOX.root(started)
    output = SANDBOX.atelier("uninstall", "--yes", "--purge")
    assert "it holds what is somebody else's: containers theirs; volumes theirs" in output
    assert SANDBOX.root(started) == was and was.startswith("running")
    assert SANDBOX.root("docker ps -a --format '{{.Names}}'; docker network ls -q --filter type=custom") == "theirs"
    assert SANDBOX.root("cat /etc/docker/daemon.json; stat -c %a /etc/docker/daemon.json") == f"{DAEMON_JSON}640"
    assert SANDBOX.root("ls -d /opt/atelier /etc/atelier /srv/atelier 2>/dev/null || echo none") == "none"
    assert "until Docker starts anew" in output
    assert "aria2" not in SANDBOX.root("dpkg-query -W -f '${Package}\\n'").split()


def test_a_host_with_a_gpu_is_as_found() -> None:
    with GPU.running():
        simulated_gpu.insert(GPU.up())
        simulated_gpu.repositories()
        GPU.root(
            "printf '#!/bin/sh\\necho \"$@\" >>/var/log/initramfs\\n' >/usr/sbin/update-initramfs; chmod +x /usr/sbin/update-initramfs"
        )
        found = snapshot(GPU)
        GPU.atelier("deploy", "--sources", "double", "--reboot")
        made = GPU.root("wc -l </var/log/initramfs")
        output = GPU.atelier("uninstall", "--yes", "--purge")
        # The guest has no kernel of its own, so no modules but the driver's: depmod's index and the folders are new.
        index = re.compile(r"\+ files /usr/lib/modules(/[^/ ]+(/modules\.[^/ ]+|/updates(/dkms)?)?)? ")
        assert [line for line in differences(found, snapshot(GPU)) if not index.match(line)] == []
        assert int(GPU.root("wc -l </var/log/initramfs")) == int(made) + 1, "without our settings of the modules"
        assert "restart" in output, "the driver's modules stay loaded until then"
