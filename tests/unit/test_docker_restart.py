"""Docker reads our settings by a restart that ends nobody's containers: the real shell, with a daemon that keeps its state in files."""

import os
import subprocess
from pathlib import Path

import pytest

from atelier import docker_settings

SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$AT/said"
case $1 in
  is-active) [ -e "$AT/runs" ] ;;
  kill) [ -e "$AT/swarm" ] || cp "$AT/daemon.json" "$AT/read" ;;
  restart)
    [ ! -e "$AT/bad" ] || ! grep -q ours "$AT/daemon.json" || exit 1
    grep -q live-restore "$AT/read" 2>/dev/null || : >"$AT/containers"
    cp "$AT/daemon.json" "$AT/read" ;;
esac
"""
DOCKER = """#!/bin/sh
case $1 in
  ps) cat "$AT/containers" ;;
  info) if grep -q live-restore "$AT/read" 2>/dev/null; then echo true; else echo false; fi ;;
esac
"""


class Host:
    """A host with a daemon.json of ours that Docker has not read yet; `theirs` is what was there before."""

    def __init__(self, folder: Path) -> None:
        self.at = folder
        for name, text in {"systemctl": SYSTEMCTL, "docker": DOCKER, "sleep": "#!/bin/sh\n"}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.write("daemon.json", "ours live-restore")
        self.write("read", "theirs")
        self.write("runs", "")
        self.write("containers", "")

    def write(self, name: str, text: str) -> None:
        (self.at / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.at / name).read_text().strip()

    def restart(self) -> subprocess.CompletedProcess[str]:
        script = docker_settings.restart_script().replace("/etc/docker", str(self.at))
        environment = {"PATH": f"{self.at}:{os.environ['PATH']}", "AT": str(self.at)}
        return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_containers_outlast_the_restart(host: Host) -> None:
    host.write("containers", "their-shop\n")
    assert host.restart().returncode == 0
    assert (host.read("containers"), host.read("read")) == ("their-shop", "ours live-restore")


@pytest.mark.parametrize("before", ["theirs", ""])
def test_where_they_would_end_nothing_is_restarted_and_nothing_changed(host: Host, before: str) -> None:
    host.write("containers", "their-shop\nold\n")
    host.write("swarm", "")
    host.write("daemon.json.last-atelier", before)
    done = host.restart()
    assert done.returncode == 1 and "end their-shop old" in done.stderr and "stop them" in done.stderr
    assert "restart docker" not in host.read("said") and host.read("containers").split() == ["their-shop", "old"]
    assert (host.at / "daemon.json").exists() is bool(before)
    assert not before or host.read("daemon.json") == before


@pytest.mark.parametrize("runs", [True, False])
def test_without_containers_it_just_restarts(host: Host, runs: bool) -> None:
    if not runs:
        (host.at / "runs").unlink()
    assert host.restart().returncode == 0 and "kill" not in host.read("said")
    assert host.read("read") == "ours live-restore"


def test_a_daemon_that_refuses_our_settings_gets_its_own_back(host: Host) -> None:
    host.write("daemon.json.last-atelier", "theirs")
    host.write("bad", "")
    done = host.restart()
    assert done.returncode == 1 and "did not start with our settings" in done.stderr
    assert host.read("daemon.json") == "theirs" == host.read("read")
