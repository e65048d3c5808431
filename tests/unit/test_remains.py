"""What a host answers about what lies on it, from the shell that asks to what is made of the answers."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

from test_uninstall_plan import ROOTS, record

from atelier import remains
from atelier.recorded import Recorded, Roots
from atelier.remains import Container, Remains

HOST = r"""
timeout() { shift; "$@"; }
docker() {
  case "$1 $2" in
  "version "*) echo 26.1.5;;
  "ps "*) printf '%s\n' 'c gateway 0123 atelier/gateway:1 atelier-gateway,atelier-web' 'c their-db  postgres:17 bridge' 'c odd   ';;
  "network "*) printf '%s\n' 'n atelier-web 1' 'n shop ';;
  "image "*) printf '%s\n' 'i atelier/gateway:1' 'i <none>:<none>' 'i postgres:17';;
  "volume "*) echo 'v data';;
  "info "*) echo 'r /disk/docker';;
  *) exit 9;;
  esac
}
dpkg_query() { printf '%s\n' 'installed bash' 'config-files aria2' 'half-configured docker.io'; }
apt_mark() { case $1 in showmanual) echo bash;; showhold) echo nvidia-open;; esac; }
iptables() { case "$*" in *raw*) true;; *) false;; esac; }
getent() { case $1 in passwd) echo "$2:x:10001:10001::/:/bin/false";; group) printf 'root:x:0:\ndocker:x:999:me,you\n';; esac; }
systemctl() {
  case "$*" in
  "is-enabled a.service") echo enabled;; is-enabled*) echo disabled; false;;
  "is-active -q c.path") ;; *) false;;
  esac
}
cat() { case $1 in *daemon.json) printf '{\n "debug": true\n}\n';; esac; }
"""


def ask(host: str) -> Remains:
    known = record({"disabled": ["a.service", "b.service"], "stopped": ["b.service", "c.path"]})
    script = remains.script(known, ROOTS).replace("dpkg-query", "dpkg_query").replace("apt-mark", "apt_mark")
    done = subprocess.run(["sh", "-c", host + script], capture_output=True, text=True)
    assert done.returncode == 0
    return remains.parse(done.stdout)


def test_every_answer_arrives() -> None:
    seen = ask(HOST)
    assert seen.packages == {"bash": "installed", "aria2": "config-files", "docker.io": "half-configured"}
    assert seen.installed(["aria2", "bash", "curl"]) == ["aria2", "bash"] and not seen.has_engine()
    assert (seen.manual, seen.holds, seen.users) == ({"bash"}, {"nvidia-open"}, {"atelier"})
    assert seen.groups == {"root": "", "docker": "me,you"}
    assert seen.docker.answers and seen.docker.root == "/disk/docker"
    assert seen.docker.containers == (
        Container("gateway", True, "atelier/gateway:1", frozenset({"atelier-gateway", "atelier-web"})),
        Container("their-db", False, "postgres:17", frozenset({"bridge"})),
        Container("odd", False, "", frozenset()),
    )
    assert seen.docker.networks == {"atelier-web": True, "shop": False}
    assert seen.docker.images == {"atelier/gateway:1", "postgres:17"} and seen.docker.volumes == {"data"}
    assert (seen.enabled, seen.active) == ({"a.service"}, {"c.path"})
    assert seen.daemon_json == '{\n "debug": true\n}\n'
    assert seen.rules == {rule for rule in remains.RULES if rule.startswith("raw ")}


def test_sizes_and_what_others_have_in_the_services_directories(tmp_path: Path) -> None:
    """By service's directory and by weight; of what others have the topmost is told."""
    roots = Roots("/nonexistent", str(tmp_path), f"{tmp_path}/models", f"{tmp_path}/out puts")
    folder = tmp_path / "out puts/comfyui"
    (folder / "inner").mkdir(parents=True)
    (folder / "where Docker mounts").mkdir()
    (folder / "inner/image.png").write_bytes(b"a" * 100_000)
    (tmp_path / "models/vae").mkdir(parents=True)
    (tmp_path / "models/vae/a b.safetensors").write_bytes(b"a" * 300)
    (tmp_path / "users/comfyui").mkdir(parents=True)
    ours = frozenset({str(folder), f"{tmp_path}/users/comfyui"})

    def ask(uid: int) -> Remains:
        known = Recorded(created={"directories": ours}, service_uid=uid)
        done = subprocess.run(["sh", "-c", remains.script(known, roots)], capture_output=True, text=True)
        return remains.parse(done.stdout)

    seen = ask(os.getuid())
    assert seen.sizes[str(folder)] >= 100_000 and seen.sizes[f"{tmp_path}/models/vae/a b.safetensors"] == 300
    assert {f"{tmp_path}/users/comfyui", f"{tmp_path}/users", f"{tmp_path}/models"} <= seen.sizes.keys()
    assert seen.foreign == frozenset()
    assert ask(os.getuid() + 1).foreign == {f"{folder}/inner"}


def test_a_docker_without_a_daemon_has_told_nothing() -> None:
    seen = ask("timeout() { false; }; docker() { echo no; }")
    assert seen.docker == remains.Docker()


def test_a_half_removed_engine_is_none() -> None:
    assert Remains(packages={"docker-ce": "installed"}).has_engine()
    assert not replace(Remains(), packages={"docker-ce": "config-files"}).has_engine()
