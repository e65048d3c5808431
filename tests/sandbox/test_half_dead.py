"""Half-dead hosts: what a reprovision repairs, what it names and leaves alone, and that it goes on to a host that passes.

The tests share one sandbox and run in their order; each leaves it healthy.
"""

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Sandbox

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-hd-{os.getpid()}")
DAEMON_JSON = "/etc/docker/daemon.json"
INCOMING = "/srv/atelier/models/.incoming"
NOBODYS = f"{INCOMING}/{'0' * 64}.part"
PACKAGES = "dpkg-query -W -f '${db:Status-Status} ${Package}\\n' | sort"
THEIRS = "/srv/theirs"


@pytest.fixture(scope="module", autouse=True)
def deployed() -> Iterator[None]:
    with SANDBOX.running():
        SANDBOX.deploy()
        yield


def reprovision(*arguments: str, expect: int = 0) -> str:
    return SANDBOX.atelier("reprovision", "--sources", "double", *arguments, expect=expect)


def repaired(output: str) -> list[str]:
    """The steps of the stage of repairs that were carried out."""
    found = re.search(r"^Repairs\n((?:  .*\n)+)", output, re.M)
    return re.findall(r"^  \+ (.+?)  \(", found[1], re.M) if found else []


def test_of_a_healthy_host_nothing_is_repaired() -> None:
    output = reprovision()
    assert repaired(output) == [] and "not touched" not in output


def test_a_docker_that_stopped_trying_is_started() -> None:
    SANDBOX.root("systemctl stop docker.socket docker.service; systemctl kill -s KILL docker.service 2>/dev/null; :")
    output = reprovision()
    assert "Docker does not run" in output and repaired(output) == ["Start it"]
    assert SANDBOX.root("systemctl is-active docker") == "active"


def test_docker_settings_of_ours_that_were_broken_by_hand_are_put_back_and_kept_beside() -> None:
    before = SANDBOX.root(f"cat {DAEMON_JSON}")
    SANDBOX.root(
        f"echo '\"mine\": true' >>{DAEMON_JSON}; systemctl stop docker.socket docker.service; "
        "for i in 1 2 3 4 5 6; do systemctl start docker.service 2>/dev/null; done; systemctl is-failed docker.service"
    )
    output = reprovision()
    assert f"Docker does not take {DAEMON_JSON}" in output
    assert SANDBOX.root(f"cat {DAEMON_JSON}") == before
    assert SANDBOX.root(f"tail -n 1 {DAEMON_JSON}.broken-*") == '"mine": true'
    SANDBOX.root(f"rm {DAEMON_JSON}.broken-*")


def test_a_docker_that_somebody_masked_is_left_so() -> None:
    SANDBOX.root("systemctl stop docker.socket docker.service; systemctl mask -q docker.service")
    try:
        output = reprovision(expect=1)
        assert "Docker is masked: not touched" in output and "systemctl unmask docker.service" in output
        assert SANDBOX.root("systemctl is-enabled docker.service || :") == "masked"
    finally:
        SANDBOX.root("systemctl unmask -q docker.service; systemctl start docker.service")


def test_an_installation_that_was_killed_is_finished_and_no_package_goes() -> None:
    before = {*SANDBOX.root(PACKAGES).splitlines()}
    SANDBOX.root(
        "export DEBIAN_FRONTEND=noninteractive; apt-get update -q >/dev/null; apt-get install -q -y -d jq >/dev/null; "
        "dpkg --unpack /var/cache/apt/archives/libjq*.deb /var/cache/apt/archives/jq_*.deb /var/cache/apt/archives/libonig*.deb "
        ">/dev/null; dpkg --audit | grep -q jq"
    )
    output = reprovision()
    assert re.search(r"an installation of packages broke off \(.*jq", output)
    assert repaired(output) == ["Finish it, without removing any package"]
    assert SANDBOX.root("dpkg --audit; jq -n 1") == "1"
    after = {*SANDBOX.root(PACKAGES).splitlines()}
    assert before <= after and {line.split()[1] for line in after - before} == {"jq", "libjq1", "libonig5"}


def test_a_package_that_would_have_to_be_removed_is_left_to_a_person() -> None:
    SANDBOX.root(
        "mkdir -p /tmp/p/DEBIAN && printf 'Package: theirs\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x>\\n"
        "Depends: nowhere-to-be-had\\nDescription: x\\n' >/tmp/p/DEBIAN/control && dpkg-deb -b /tmp/p /tmp/theirs.deb >/dev/null "
        "&& { dpkg -i /tmp/theirs.deb >/dev/null 2>&1; :; }"
    )
    try:
        output = reprovision(expect=1)
        assert "apt would mend that by removing theirs" in output
        assert "theirs" in SANDBOX.root(PACKAGES)
    finally:
        SANDBOX.root("dpkg --remove theirs >/dev/null")


@pytest.fixture
def expired(tmp_path: Path) -> bytes:
    """A repository in a tar archive, signed by a key whose time is over."""
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
    run("--faked-system-time=20200102T000000", "--clearsign", f"--output={root / 'dists/s/InRelease'}", release)
    run("--export", f"--output={root / 'key.gpg'}")
    subprocess.run(["gpgconf", f"--homedir={home}", "--kill", "all"], capture_output=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(root, "theirs")
    return packed.getvalue()


def test_the_expired_key_of_somebody_elses_repository_is_named_and_the_rest_goes_on(expired: bytes) -> None:
    source = "/etc/apt/sources.list.d/theirs.list"
    SANDBOX.ssh().run("tar -xf - --no-same-owner -C /srv && chmod -R a+rX /srv/theirs", stdin=expired, check=True)
    line = f"deb [signed-by={THEIRS}/key.gpg] file://{THEIRS} s main"
    SANDBOX.root(f"echo '{line}' >{source}")
    try:
        output = reprovision()
        assert f"the key of the repository file:{THEIRS} has expired: not touched: {source} is not ours" in output
        assert "Reprovisioned" in output or "Deployed" in output
        assert SANDBOX.root(f"cat {source}") == line
    finally:
        SANDBOX.root(f"rm -rf {source} {THEIRS}")


def test_containers_in_a_restart_loop_ours_are_made_again_and_others_left() -> None:
    SANDBOX.root(
        "image=$(docker inspect -f '{{.Config.Image}}' gateway); "
        "docker run -d --name theirs --restart always --network none --entrypoint false $image >/dev/null; "
        # Ours: a service whose own program cannot be started any more.
        "docker inspect -f '{{.Id}}' forge-turbo >/tmp/forge; cd /opt/atelier/services/forge-turbo; "
        "printf 'services:\\n  forge-turbo:\\n    entrypoint: [\"false\"]\\n    restart: always\\n' >/tmp/broken.yaml; "
        "docker compose -f compose.yaml -f /tmp/broken.yaml up -d >/dev/null 2>&1"
    )
    SANDBOX.wait_for("[ $(docker inspect -f '{{.RestartCount}}' forge-turbo) -ge 4 ]", 120)
    try:
        output = reprovision()
        assert re.search(
            r"the container theirs starts again and again \(\d+ times, exit 1\): not touched: it is not ours", output
        )
        assert re.search(r"the container forge-turbo starts again and again \(\d+ times, exit 1\): remove it", output)
        assert SANDBOX.root("docker inspect -f '{{.State.Health.Status}} {{.RestartCount}}' forge-turbo") == "healthy 0"
        assert SANDBOX.root("docker inspect -f '{{.HostConfig.RestartPolicy.Name}}' theirs") == "always"
    finally:
        SANDBOX.root("docker rm -f theirs >/dev/null")


FILL = "f=$(df -B1 --output=avail / | tail -n 1); fallocate -l $((f - 60000000)) /home/theirs.bin"


def test_a_full_disk_ours_is_freed_after_a_yes_and_nothing_else() -> None:
    SANDBOX.root(
        "head -c 150M /dev/urandom >/tmp/r && tar -C /tmp -c r | docker import - atelier/comfyui:old >/dev/null && rm /tmp/r; "
        f"mkdir -p {INCOMING}; head -c 100M /dev/urandom >{NOBODYS}; {FILL}"
    )
    there = "docker image ls -q atelier/comfyui:old; ls " + NOBODYS
    before = SANDBOX.root(there)
    refused = reprovision(expect=1)
    assert "nothing was changed" in refused and "YES=1" in refused
    assert SANDBOX.root(there) == before
    output = reprovision("--yes")
    assert "atelier/comfyui:old" in output and "begun transfers of weights that nothing asks for" in output
    assert SANDBOX.root(f"docker image ls -q atelier/comfyui:old; ls {NOBODYS} 2>/dev/null || echo gone") == "gone"
    assert SANDBOX.root("ls /home/theirs.bin") == "/home/theirs.bin"


def test_a_disk_full_of_what_is_not_ours_is_named() -> None:
    SANDBOX.root(f"rm -f /home/theirs.bin; {FILL}")
    try:
        output = reprovision("--yes", expect=1)
        assert "/ lacks" in output and "not ours; the largest there: " in output and "/home/theirs.bin" in output
        assert SANDBOX.root("ls /home/theirs.bin") == "/home/theirs.bin"
    finally:
        SANDBOX.root("rm -f /home/theirs.bin")


def test_a_disk_that_cannot_be_written_is_named_and_nothing_done() -> None:
    running = SANDBOX.root("docker ps --no-trunc --format '{{.ID}}' | sort")
    SANDBOX.root("mount --bind /srv/atelier /srv/atelier && mount -o remount,bind,ro /srv/atelier")
    try:
        output = reprovision("--yes", expect=1)
        assert "/srv/atelier is mounted read-only: not touched" in output and "fsck" in output
        assert SANDBOX.root("docker ps --no-trunc --format '{{.ID}}' | sort") == running
    finally:
        SANDBOX.root("umount /srv/atelier")


def test_after_all_that_the_host_passes() -> None:
    assert repaired(reprovision()) == []
    SANDBOX.atelier("verify", "--quick")
