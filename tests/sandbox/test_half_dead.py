"""Half-dead hosts: what a reprovision repairs, what it names and leaves alone, and that it goes on to a host that passes.

The tests share one sandbox and run in their order; each leaves it healthy.
"""

import io
import os
import re
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from following import follow
from harness import Sandbox

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-hd-{os.getpid()}")
DAEMON_JSON = "/etc/docker/daemon.json"
INCOMING = "/srv/atelier/models/.incoming"
NOBODYS = f"{INCOMING}/{'0' * 64}.part"
PACKAGES = "dpkg-query -W -f '${db:Status-Status} ${Package}\\n' | sort"
THEIRS = "/srv/theirs"
THEIR_SOURCE = "/etc/apt/sources.list.d/theirs.list"
AGAIN = "(?:was not there before, then )?"
RUNNING = "docker ps --no-trunc --format '{{.ID}}' | sort"


@pytest.fixture(scope="module", autouse=True)
def deployed() -> Iterator[None]:
    with SANDBOX.running():
        SANDBOX.deploy()
        yield


def reprovision(*arguments: str, expect: int = 0) -> str:
    return SANDBOX.atelier("reprovision", "--sources", "double", *arguments, expect=expect)


def repaired(output: str) -> list[str]:
    """The steps of the stages of repairs that were carried out, in their order."""
    rounds = re.findall(r"^Repairs\n((?:  .*\n)+)", output, re.M)
    return [step for steps in rounds for step in re.findall(r"^  \+ (.+?)  \(", steps, re.M)]


def told_repaired(output: str) -> list[str]:
    """What is said at the end of each repair."""
    return re.findall(r"^Repaired: (.*)", output, re.M)


def summary(output: str) -> str:
    (line,) = re.findall(r"^Reprovisioned: .*", output, re.M)
    return str(line)


def seconds_away(line: str) -> dict[str, float]:
    return {
        title: float(seconds) for title, seconds in re.findall(rf"(ComfyUI|Forge) {AGAIN}away for ([0-9.]+) s", line)
    }


@pytest.fixture
def expired(tmp_path: Path) -> bytes:
    """A repository in a tar archive with the key that was its owner's when it was added: its time is over, the owner goes on."""
    home, root = tmp_path / "gpg", tmp_path / "repository"
    home.mkdir(mode=0o700)
    (root / "dists/s/main/binary-amd64").mkdir(parents=True)
    (root / "dists/s/main/binary-amd64/Packages").touch()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    release = root / "dists/s/Release"
    release.write_text(
        "Origin: theirs\nSuite: s\nCodename: s\nComponents: main\nArchitectures: amd64\nDate: Wed, 01 Jan 2020 10:00:00 UTC\n"
        f"SHA256:\n {empty} 0 main/binary-amd64/Packages\n"
    )
    gpg = ["gpg", f"--homedir={home}", "--batch", "--quiet", "--passphrase="]

    def run(*arguments: str | Path) -> None:
        subprocess.run([*gpg, *arguments], check=True, capture_output=True)

    run("--faked-system-time=20200101T000000", "--quick-gen-key", "theirs <t@example.org>", "ed25519", "sign", "30d")
    run(f"--output={root / 'key.gpg'}", "--export")
    listed = subprocess.run([*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True).stdout
    run("--quick-set-expire", re.findall(r"^fpr:+([0-9A-F]+)", listed, re.M)[0], "0")
    # Today: what was signed while the key was good is good for ever to one of apt's two verifiers.
    run("--clearsign", f"--output={root / 'dists/s/InRelease'}", release)
    subprocess.run(["gpgconf", f"--homedir={home}", "--kill", "all"], capture_output=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(root, "theirs")
    return packed.getvalue()


KILLED = """
export DEBIAN_FRONTEND=noninteractive; apt-get update -q >/dev/null; apt-get install -q -y -d jq >/dev/null
dpkg --unpack /var/cache/apt/archives/libjq*.deb /var/cache/apt/archives/jq_*.deb /var/cache/apt/archives/libonig*.deb >/dev/null
dpkg --audit | grep -q jq
"""
"""An installation ends between unpacking and configuring."""
LOOPING = """
image=$(docker inspect -f '{{.Config.Image}}' gateway)
docker run -d --name theirs --restart always --network none --entrypoint false $image >/dev/null
cd /opt/atelier/services/forge-turbo
printf 'services:\\n  forge-turbo:\\n    entrypoint: ["false"]\\n    restart: always\\n' >/tmp/broken.yaml
docker compose -f compose.yaml -f /tmp/broken.yaml up -d >/dev/null 2>&1
"""
"""Two containers that cannot start: one of ours, one that is somebody else's."""
BROKEN_SETTINGS = f"""
echo '"mine": true' >>{DAEMON_JSON}; systemctl stop docker.socket docker.service
for i in 1 2 3 4 5 6; do systemctl start docker.service 2>/dev/null; done; systemctl is-failed docker.service
"""


def test_one_ailment_behind_another_all_that_is_ours_is_repaired_and_nothing_else_touched(expired: bytes) -> None:
    """Docker that is dead hides the containers that start again and again: the repairs go in rounds."""
    packages = {*SANDBOX.root(PACKAGES).splitlines()}
    settings = SANDBOX.root(f"cat {DAEMON_JSON}")
    SANDBOX.ssh().run("tar -xf - --no-same-owner -C /srv && chmod -R a+rX /srv/theirs", stdin=expired, check=True)
    line = f"deb [signed-by={THEIRS}/key.gpg] file://{THEIRS} s main"
    SANDBOX.root(f"{KILLED} {LOOPING} echo '{line}' >{THEIR_SOURCE}")
    SANDBOX.wait_for("[ $(docker inspect -f '{{.RestartCount}}' forge-turbo) -ge 4 ]", 120)
    SANDBOX.root(BROKEN_SETTINGS)

    output = reprovision()
    steps = repaired(output)
    assert [step.split(",")[0] for step in steps] == [
        "Finish the installation",
        "Put ours back",
        "Remove forge-turbo; the deploy that follows makes it again",
    ]
    assert re.search(r"an installation of packages broke off \(.*jq", output)
    assert f"Docker does not take {DAEMON_JSON}" in output
    assert re.search(r"the container forge-turbo starts again and again \(exit 1\): remove forge-turbo", output)
    # What is not ours.
    assert re.search(r"the container theirs starts again and again \(exit 1\): not touched: it is not ours", output)
    assert "docker update --restart no theirs && docker stop theirs" in output
    key = f"the key of the repository file:{THEIRS} has expired: not touched: {THEIR_SOURCE} is not ours"
    assert key in output and f"take the repository out of {THEIR_SOURCE}" in output

    said = summary(output)
    assert "0 bytes fetched, 0 bytes renamed, 0 bytes copied" in said and "removed: nothing" in said
    assert [re.findall(r": ([a-z]+)", line)[-1] for line in told_repaired(output)] == ["finish", "put", "remove"]
    assert {*seconds_away(said)} == {"ComfyUI", "Forge"} and seconds_away(said)["ComfyUI"] < 1

    assert SANDBOX.root("dpkg --audit; jq -n 1") == "1"
    after = {*SANDBOX.root(PACKAGES).splitlines()}
    assert packages <= after and {line.split()[1] for line in after - packages} == {"jq", "libjq1", "libonig5"}
    assert SANDBOX.root(f"cat {DAEMON_JSON}") == settings
    assert SANDBOX.root(f"tail -n 1 {DAEMON_JSON}.broken-*") == '"mine": true'
    assert SANDBOX.root("docker inspect -f '{{.State.Health.Status}} {{.RestartCount}}' forge-turbo") == "healthy 0"
    assert SANDBOX.root("docker inspect -f '{{.HostConfig.RestartPolicy.Name}}' theirs") == "always"
    assert SANDBOX.root(f"cat {THEIR_SOURCE}") == line
    SANDBOX.root(f"docker rm -f theirs >/dev/null; rm -rf {DAEMON_JSON}.broken-* {THEIR_SOURCE} {THEIRS}")


def test_what_only_a_person_can_mend_is_named_and_nothing_done() -> None:
    """A package that only a removal would mend, a disk that a kernel would have made read-only, a masked Docker."""
    running = SANDBOX.root(RUNNING)
    SANDBOX.root(
        "mkdir -p /tmp/p/DEBIAN && printf 'Package: theirs\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x>\\n"
        "Depends: nowhere-to-be-had\\nDescription: x\\n' >/tmp/p/DEBIAN/control && dpkg-deb -b /tmp/p /tmp/theirs.deb >/dev/null "
        "&& { dpkg -i /tmp/theirs.deb >/dev/null 2>&1; :; }; mount --bind /srv/atelier /srv/atelier; "
        "mount -o remount,bind,ro /srv/atelier; systemctl stop docker.socket docker.service; systemctl mask -q docker.service"
    )
    try:
        output = reprovision("--yes", expect=1)
        assert "/srv/atelier is mounted read-only: not touched" in output and "fsck" in output
        assert "not touched: apt would mend that by removing theirs" in output and "theirs" in SANDBOX.root(PACKAGES)
        assert "Docker is masked: not touched" in output and "systemctl unmask docker.service" in output
        assert SANDBOX.root("systemctl is-enabled docker.service || :") == "masked"
        assert repaired(output) == [] and "Reprovisioned" not in output
        # What the monitor cannot write down while the disk is read-only: whoever goes on has it look again.
        SANDBOX.root(
            "! systemctl start atelier-monitor.service 2>/dev/null && systemctl is-failed -q atelier-monitor.service"
        )
    finally:
        SANDBOX.root("umount /srv/atelier; dpkg --remove theirs >/dev/null; systemctl unmask -q docker.service")
    # Not started again: that is for the next.
    _, output = follow("a host that is half dead", SANDBOX, expect=(2,))
    assert "Docker does not run: it is inactive" in output and repaired(output) == ["Start Docker"]
    assert SANDBOX.root(RUNNING) == running
    assert set(seconds_away(summary(output)).values()) == {0.0}


EARLIER_IMAGE = """
import json, pathlib
place = pathlib.Path("/srv/atelier/state/manifest.json")
manifest = json.loads(place.read_text())
manifest["created"]["images"] = sorted({*manifest["created"]["images"], "atelier/comfyui:old"})
place.write_text(json.dumps(manifest, indent=1) + chr(10))
"""
"""Run in a guest: the image as an earlier deploy would have recorded it. No name makes it ours."""
FILL = "f=$(df -B1 --output=avail / | tail -n 1); fallocate -l $((f - 60000000)) /home/theirs.bin"


def test_of_a_full_disk_ours_is_freed_after_a_yes_and_what_is_not_ours_is_named() -> None:
    SANDBOX.root(
        "set -e; head -c 800M /dev/zero >/home/r; tar -C /home -c r | docker import - atelier/comfyui:old >/dev/null; rm /home/r; "
        "tar -C /etc -c hostname | docker import - atelier/comfyui:theirs >/dev/null; "
        f"python3 -c {shlex.quote(EARLIER_IMAGE)}; mkdir -p {INCOMING}; head -c 400M /dev/zero >{NOBODYS}; {FILL}"
    )
    try:
        there = f"docker image ls -q atelier/comfyui | sort; ls {NOBODYS}"
        before = SANDBOX.root(there)
        refused = reprovision(expect=1)
        assert "nothing was changed" in refused and "YES=1" in refused
        assert SANDBOX.root(there) == before
        output = reprovision("--yes")
        said = summary(output)
        assert "0 bytes fetched, 0 bytes renamed, 0 bytes copied" in said
        parts, images = told_repaired(output)
        assert parts.endswith("remove begun transfers of weights that nothing asks for, 0.4 GB")
        assert "remove images of ours that nothing uses, up to" in images and images.endswith(": atelier/comfyui:old")
        assert SANDBOX.root(f"docker image ls -q atelier/comfyui:old; ls {NOBODYS} 2>/dev/null || echo gone") == "gone"
        assert SANDBOX.root("docker image ls -q atelier/comfyui:theirs") != "", "no deploy recorded it: it is not ours"
        SANDBOX.root(f"ls /home/theirs.bin; rm /home/theirs.bin; {FILL}")
        output = reprovision("--yes", expect=1)
        assert "/ lacks" in output and "not ours; the largest there: " in output and "/home/theirs.bin" in output
        assert repaired(output) == [] and SANDBOX.root("ls /home/theirs.bin") == "/home/theirs.bin"
    finally:
        SANDBOX.root("rm -f /home/theirs.bin")


def test_after_all_that_nothing_is_left_to_repair() -> None:
    output = reprovision()
    assert repaired(output) == [] and "not touched" not in output
    assert "0 of " in output and "removed: nothing" in summary(output)
