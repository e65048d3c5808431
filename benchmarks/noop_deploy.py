"""A deploy that has nothing to do, against the same state in ansible-core with pipelining.

`make bench`, or `.venv/bin/python -m benchmarks.noop_deploy [sandbox name]`. The sandbox must be deployed.
ansible-core is installed into a virtual environment of its own in a temporary folder.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import yaml

from atelier import lifecycle, paths
from atelier.console import Narrator
from atelier.ssh import Ssh
from atelier.target import sandbox_target
from benchmarks.ansible_playbook import playbook
from stages import provision

RUNS = 3
OURS = (
    "import sys; from benchmarks.noop_deploy import deploy_once; outcome = deploy_once(sys.argv[1]); "
    "print(outcome.operations, len(outcome.changed), outcome.commands)"
)


def deploy_once(name: str) -> provision.Outcome:
    """Everything `make deploy` does between the lock and the quick verify; returns pyinfra's outcome."""
    target = sandbox_target(name, paths.PROJECT)
    ssh = target.ssh()
    ssh.connect()
    with Narrator() as narrator, lifecycle.host_lock(ssh):
        deployment = lifecycle.prepare(target, ssh, _sources(ssh), narrator)
        assert not lifecycle.find_obstacles(ssh, deployment, narrator)
        return provision.apply(ssh, deployment, narrator, [])


def _sources(ssh: Ssh) -> Literal["upstream", "double"]:
    """What the sandbox was deployed with: a deploy with anything else has something to do."""
    deployed: dict[str, Literal["upstream", "double"]] = json.loads(
        ssh.run("cat /srv/atelier/state/deployed.json").stdout
    )
    return deployed["sources"]


def main(name: str = "sandbox") -> None:
    """Measure both, in turn, and print medians and their ratio."""
    target = sandbox_target(name, paths.PROJECT)
    ssh = target.ssh()
    ssh.connect()
    with Narrator() as narrator:
        deployment = lifecycle.prepare(target, ssh, _sources(ssh), narrator)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", str(root / "venv")], check=True)
        subprocess.run([str(root / "venv/bin/pip"), "install", "-q", "ansible-core"], check=True)
        play = playbook(deployment)
        (root / "play.yml").write_text(yaml.safe_dump(play))
        (root / "play.yml").chmod(0o600)
        (root / "hosts").write_text(f"{name} ansible_ssh_common_args='-F {target.destination.config}'\n")
        (root / "ansible.cfg").write_text("[defaults]\ninventory = hosts\n[ssh_connection]\npipelining = True\n")
        environment = {**os.environ, "ANSIBLE_CONFIG": str(root / "ansible.cfg")}
        ansible = [str(root / "venv/bin/ansible-playbook"), "play.yml"]
        ours = [sys.executable, "-c", OURS, name]
        subprocess.run(ansible, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
        times: dict[str, list[float]] = {"atelier": [], "ansible": []}
        for _ in range(RUNS):
            for label, command, where in (("atelier", ours, paths.PROJECT), ("ansible", ansible, root)):
                started = time.monotonic()
                result = subprocess.run(command, cwd=where, env=environment, check=True, capture_output=True, text=True)
                times[label].append(time.monotonic() - started)
                last = result.stdout.strip().splitlines()[-1]
                print(f"{label}: {times[label][-1]:.2f} s   {last}", flush=True)
    medians = {label: statistics.median(values) for label, values in times.items()}
    print(f"tasks in the playbook: {len(play[0]['tasks'])}")
    print(f"median: atelier {medians['atelier']:.2f} s, ansible {medians['ansible']:.2f} s")
    print(f"ratio atelier / ansible: {medians['atelier'] / medians['ansible']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
