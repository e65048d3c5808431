"""Preflight in a real booted machine that has eight things wrong with it at once, all of them real."""

import os
import re
import subprocess
from collections.abc import Iterator

import pytest
from harness import Sandbox

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-preflight-{os.getpid()}")
ssh = SANDBOX.root

PLANT = r"""
set -e
systemd-run -q --unit=planted-port python3 -m http.server 8188 --bind 127.0.0.1
cat >/usr/local/sbin/planted-upgrade <<'X'
#!/usr/bin/python3
import fcntl, time
lock = open("/var/lib/dpkg/lock-frontend", "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
open("/run/planted-upgrade", "w").close()
time.sleep(3600)
X
chmod 0755 /usr/local/sbin/planted-upgrade
systemd-run -q --unit=planted-lock /usr/local/sbin/planted-upgrade
free=$(df -B1 --output=avail / | tail -n 1); fallocate -l $((free - 4 * 1024 * 1024 * 1024)) /planted
useradd --uid 10001 alice
cp /etc/resolv.conf /root/resolv.conf; echo 'nameserver 127.0.0.99' >/etc/resolv.conf
echo 'deb [trusted=yes] http://mirror.planted.example/debian trixie main' >/etc/apt/sources.list.d/planted.list
echo 'Acquire::http::Proxy::mirror.planted.example "DIRECT";' >/etc/apt/apt.conf.d/99planted
mkdir -p /srv/atelier/state; echo 99 >/srv/atelier/state/schema
mkdir -p /etc/docker; printf '{"log-driver": ' >/etc/docker/daemon.json
cp /var/lib/dpkg/status /root/status
printf '%s\n' '' 'Package: planted' 'Status: install reinstreq half-installed' 'Maintainer: nobody <n@example.org>' \
  'Architecture: all' 'Version: 1.0' 'Description: cut off while it was unpacked' >>/var/lib/dpkg/status
until [ -e /run/planted-upgrade ] && ss -Hltn 'sport = :8188' | grep -q .; do sleep 0.1; done
"""
UPROOT = r"""
set -e
systemctl stop planted-port planted-lock
rm /usr/local/sbin/planted-upgrade /planted /etc/apt/sources.list.d/planted.list /etc/apt/apt.conf.d/99planted
userdel alice
mv /root/resolv.conf /etc/resolv.conf
rm -r /srv/atelier /etc/docker
mv /root/status /var/lib/dpkg/status
"""
PROBLEMS = {
    "port 8188 for comfyui is in use by python3": "stop that program",
    r"the package manager is in use by: /usr/bin/python3 /usr/local/sbin/planted-upgrade \(process \d+\)": "wait until",
    r"/ has 4\.\d GB free and this deploy needs [\d.]+ GB there: .* for images, 5.0 GB for a reserve": "free some space",
    "user id 10001 belongs to `alice`": "set service_uid",
    r"the host cannot resolve the name mirror.planted.example \(DNS\)": "/etc/resolv.conf",
    r"deployed by a later release \(state schema 99": "use that release",
    "/etc/docker/daemon.json on the host is not valid JSON": "mend or remove that file",
    "package manager is stuck: The package planted needs to be reinstalled": "--force-remove-reinstreq",
}
STATE = r"""
find / -xdev \( -path /tmp -o -path /var/tmp -o -path /var/log -o -path /var/lib/systemd \) -prune \
  -o -type f -printf '%p %s %m %U %T@ %C@\n' -o -type d -printf '%p/ %m %U\n' -o -printf '%p %l\n'
ls -A /tmp /run/atelier 2>&1; systemctl list-units --plain --no-legend --type=service --state=running | cut -d' ' -f1
"""


def preflight(expect: int) -> str:
    return SANDBOX.atelier("preflight", "--sources", "double", expect=expect)


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    with SANDBOX.running():
        yield


def state() -> set[str]:
    # The connection's own traces: systemd's session services come and go.
    return {line for line in ssh(STATE).splitlines() if not line.startswith(("user@", "session-"))}


def test_eight_problems_at_once_are_all_named_and_nothing_is_changed() -> None:
    ssh(PLANT)
    before = state()
    output = preflight(expect=1)
    assert state() == before
    assert "8 reason(s) why this deploy would fail; nothing was changed" in output
    for problem, remedy in PROBLEMS.items():
        assert re.search(rf"\d\. .*{problem}.*\n +-> .*{remedy}", output), problem


def test_without_them_nothing_stands_in_the_way() -> None:
    ssh(UPROOT)
    assert "nothing stands in the way" in preflight(expect=0)


def test_a_bare_machine_that_cannot_reach_its_archive_says_so() -> None:
    assert ssh("find /var/lib/apt/lists -type f -size +0 | head -n 1") == "", "the machine has no lists yet"
    ssh(
        "mv /etc/apt/apt.conf.d/80sandbox-proxy /root; cp /etc/resolv.conf /root; echo nameserver 127.0.0.99 >/etc/resolv.conf"
    )
    try:
        assert "the host cannot resolve the name" in preflight(expect=1)
    finally:
        ssh("mv /root/80sandbox-proxy /etc/apt/apt.conf.d/; mv /root/resolv.conf /etc/resolv.conf")


def test_a_user_who_may_not_become_root_is_told_so() -> None:
    # One command stays allowed, which gives the rest back.
    ssh(
        "cp /etc/sudoers.d/deploy /root/deploy; printf '#!/bin/sh\\nmv /root/deploy /etc/sudoers.d/deploy\\n' "
        ">/usr/local/sbin/give-back; chmod 0755 /usr/local/sbin/give-back; "
        "echo 'deploy ALL=NOPASSWD: /usr/local/sbin/give-back' >/etc/sudoers.d/deploy"
    )
    try:
        assert "sudo asks for a password and there is no terminal to ask on" in preflight(expect=1)
    finally:
        command = SANDBOX.ssh().command("sudo -n /usr/local/sbin/give-back")
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    preflight(expect=0)
