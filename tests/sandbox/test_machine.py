"""The throw-away machine itself: what it can do, what it must not be able to do, and that nothing of it remains."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest

from sandbox import base, leftovers, machine, sources, tools

pytestmark = pytest.mark.sandbox
DISK_GB = 7
NAME, OTHER = f"test-{os.getpid()}", f"test-{os.getpid()}-b"
ROOT = Path(__file__).resolve().parents[2]


def up(name: str) -> machine.Machine:
    return harness.up(name, disk_gb=DISK_GB)


def ssh(guest: machine.Machine, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ssh", "-F", guest.ssh_config, guest.name, command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def answer(guest: machine.Machine, command: str) -> str:
    done = ssh(guest, command)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def python(guest: machine.Machine, code: str) -> str:
    return answer(guest, f"python3 -c '{code}'")


def kill_supervisor(guest: machine.Machine) -> None:
    as_root = [] if os.geteuid() == 0 else tools.sudo_prefix()
    pid = (guest.state_dir / "supervisor.pid").read_text().strip()
    subprocess.run([*as_root, "kill", "-KILL", pid], check=True)


@pytest.fixture(scope="module")
def guest() -> Iterator[machine.Machine]:
    yield up(NAME)
    machine.down(NAME, print)


@pytest.fixture
def other() -> Iterator[machine.Machine]:
    yield up(OTHER)
    machine.down(OTHER, print)


def test_it_is_a_booted_debian_13_with_an_unprivileged_user(guest: machine.Machine) -> None:
    assert answer(guest, "systemctl is-system-running --wait") == "running"
    assert "VERSION_CODENAME=trixie" in answer(guest, "cat /etc/os-release")
    assert answer(guest, "id -un; hostname").split() == [guest.user, NAME]
    assert answer(guest, "sudo id -u") == "0"
    assert answer(guest, "id -u") != "0"
    assert '"sandbox": true' in answer(guest, "cat /etc/atelier-sandbox.json")


def test_an_up_that_was_killed_after_the_boot_is_finished_by_the_next(guest: machine.Machine) -> None:
    guest.ssh_config.unlink()
    assert answer(up(NAME), "echo in") == "in"


def test_it_is_bare(guest: machine.Machine) -> None:
    assert ssh(guest, "command -v docker curl gpg pip3 iptables nft").stdout == ""


def test_up_again_says_so_at_once(guest: machine.Machine) -> None:
    said: list[str] = []
    started = time.monotonic()
    assert machine.up(NAME, said.append) == guest
    assert time.monotonic() - started < 1
    assert said == [f"Sandbox {NAME} is already running at {guest.address}."]


def test_apt_works_through_the_proxy_with_signed_sources(guest: machine.Machine) -> None:
    said = answer(guest, "sudo apt-get update 2>&1")
    assert "trixie-security InRelease" in said
    assert not re.search(r"^(W|E|Err)", said, re.MULTILINE), said
    assert "Signed-By" in answer(guest, "cat /etc/apt/sources.list.d/debian.sources")


def test_the_proxy_refuses_an_unlisted_host(guest: machine.Machine) -> None:
    code = """
import http.client
c = http.client.HTTPConnection("127.0.0.1", 3128, timeout=10)
c.request("GET", "http://unlisted.example/")
r = c.getresponse()
print(r.status, r.read().decode())
"""
    said = python(guest, code)
    assert said.startswith("403 ")
    assert "does not pass on to unlisted.example" in said
    assert "proxy: refused GET unlisted.example" in (guest.state_dir / "supervisor.log").read_text()


@pytest.mark.parametrize(
    ("address", "port"), [("192.0.2.77", 80), ("8.8.8.8", 443), ("169.254.169.254", 80), ("203.0.113.9", 22)]
)
def test_the_fake_internet_answers_over_tcp(guest: machine.Machine, address: str, port: int) -> None:
    code = f"""
import socket
s = socket.create_connection(("{address}", {port}), 5)
s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
print(b"".join(iter(lambda: s.recv(4096), b"")).decode())
"""
    assert "atelier fake internet" in python(guest, code)


@pytest.mark.parametrize("server", ["10.213.0.1", "9.9.9.9", "169.254.169.254"])
def test_the_fake_internet_answers_dns(guest: machine.Machine, server: str) -> None:
    code = f"""
import socket, struct
q = b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3www\\7example\\0\\0\\1\\0\\1"
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(5)
u.connect(("{server}", 53))
u.send(q)
t = socket.create_connection(("{server}", 53), 5)
t.sendall(struct.pack("!H", len(q)) + q)
for answer in (u.recv(512), t.recv(512)):
    print(socket.inet_ntoa(answer[-4:]))
print(socket.gethostbyname("no-such-name.example"))
"""
    assert python(guest, code).split() == ["198.51.100.1"] * 3


def test_its_disk_is_its_own(guest: machine.Machine) -> None:
    size = int(answer(guest, "df --output=size -B1 / | tail -1"))
    assert 0.9 * DISK_GB < size / 2**30 <= DISK_GB


def test_it_cannot_set_this_computers_clock(guest: machine.Machine) -> None:
    done = ssh(guest, "sudo date -s @$(date +%s)")  # the time that it is, in case this test has something to find
    assert done.returncode != 0
    assert "Operation not permitted" in done.stderr


def test_root_in_it_lacks_the_clock_and_module_capabilities(guest: machine.Machine) -> None:
    bounding = int(answer(guest, "sudo awk '/CapBnd/ {print $2}' /proc/1/status"), 16)
    sys_module, sys_admin, sys_time = 16, 21, 25
    assert not bounding >> sys_time & 1
    assert not bounding >> sys_module & 1
    assert bounding >> sys_admin & 1  # the number is read rightly: Docker needs this one


def test_it_cannot_change_this_computers_kernel_settings(guest: machine.Machine) -> None:
    setting = Path("/proc/sys/kernel/printk_ratelimit_burst")
    before = setting.read_text()
    assert ssh(guest, f"echo {int(before) + 1} | sudo tee {setting}").returncode != 0
    assert setting.read_text() == before
    assert ssh(guest, "echo 1 | sudo tee /proc/sys/net/ipv4/ip_forward").returncode == 0  # its own, Docker needs it


def test_it_cannot_open_this_computers_devices(guest: machine.Machine) -> None:
    device = (guest.state_dir / "disk.img").stat().st_dev  # the disk on which the sandbox's own image lies
    loop = os.makedev(7, 0)
    for number in (device, loop):
        node = f"/var/disk-{number}"  # not in /tmp, which allows no devices at all
        done = ssh(
            guest,
            f"sudo mknod {node} b {os.major(number)} {os.minor(number)} && sudo head -c1 {node}; sudo rm -f {node}",
        )
        assert "Operation not permitted" in done.stderr or "Permission denied" in done.stderr, done
    assert answer(guest, "sudo mknod /var/zero c 1 5 && sudo head -c3 /var/zero | wc -c") == "3"


def test_a_reboot_is_a_reboot(guest: machine.Machine) -> None:
    answer(guest, "echo kept > kept; sudo ip link add gone type bridge; sleep 2")
    uptime_before = float(answer(guest, "cut -d' ' -f1 /proc/uptime"))
    boot_before = answer(guest, "cat /proc/sys/kernel/random/boot_id")
    ssh(guest, "sudo systemctl reboot")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done = ssh(guest, "cat /proc/sys/kernel/random/boot_id")
        if done.returncode == 0 and done.stdout.strip() != boot_before:
            break
        time.sleep(0.2)
    else:
        pytest.fail("it did not come back")
    assert float(answer(guest, "cut -d' ' -f1 /proc/uptime")) < uptime_before
    assert answer(guest, "cat kept") == "kept"
    assert "gone" not in answer(guest, "ip -br link")
    assert machine.get(NAME) == guest


def test_two_by_name_at_once(guest: machine.Machine, other: machine.Machine) -> None:
    assert guest.address != other.address
    assert answer(guest, "hostname; cat /etc/machine-id") != answer(other, "hostname; cat /etc/machine-id")
    assert answer(guest, "hostname") == NAME
    assert answer(other, "hostname") == OTHER
    assert {NAME, OTHER} <= set(machine.names())


def test_two_ups_of_one_name_make_one_machine() -> None:
    command = [sys.executable, "-m", "sandbox", "up", OTHER]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    try:
        assert [process.returncode for process in both] == [0, 0]
        assert sum("Making sandbox" in text for text in said) == 1
        assert sum("is already running" in text for text in said) == 1
        assert sum("waiting for it" in text for text in said) == 1
    finally:
        machine.down(OTHER, print)


def test_down_leaves_nothing() -> None:
    guest = up(OTHER)
    found = leftovers.find(OTHER, machine.folder())
    kinds = {re.match(r"[a-z ]+(?= )", line)[0] for line in found}  # type: ignore[index]
    # What is looked for is really found while the machine runs. Mounts live in a namespace of their own.
    assert kinds >= {"process", "control group", "loop device", "network namespace", "interface", "route", "folder"}
    assert machine.down(OTHER, print) is None
    assert leftovers.find(OTHER, machine.folder()) == []
    assert list(machine.folder().glob(f"{OTHER}*")) == []
    assert machine.get(OTHER) is None
    assert not machine.answers(guest)


def test_down_leaves_nothing_after_the_supervisor_was_killed() -> None:
    guest = up(OTHER)
    kill_supervisor(guest)
    machine.down(OTHER, print)
    assert leftovers.find(OTHER, machine.folder()) == []


def test_up_after_the_supervisor_was_killed_boots_the_same_disk() -> None:
    guest = up(OTHER)
    try:
        answer(guest, "echo kept > kept; sync")
        kill_supervisor(guest)
        while machine.get(OTHER) is not None:
            time.sleep(0.01)
        assert answer(up(OTHER), "cat kept") == "kept"
    finally:
        machine.down(OTHER, print)


@pytest.mark.parametrize("seconds", [0.3, 0.7, 1.1, 1.6, 2.2])
def test_down_leaves_nothing_after_up_was_killed(seconds: float) -> None:
    process = subprocess.Popen([sys.executable, "-m", "sandbox", "up", OTHER], cwd=ROOT, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    machine.down(OTHER, print)
    assert leftovers.find(OTHER, machine.folder()) == []


def test_up_completes_what_a_killed_up_began() -> None:
    process = subprocess.Popen([sys.executable, "-m", "sandbox", "up", OTHER], cwd=ROOT, start_new_session=True)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    try:
        assert answer(up(OTHER), "hostname") == OTHER
    finally:
        machine.down(OTHER, print)


def test_a_folder_of_this_computer_can_be_shared(tmp_path: Path) -> None:
    (tmp_path / "read: only").mkdir()
    (tmp_path / "read: only/file").write_text("from here\n")
    binds = [(str(tmp_path / "read: only"), "/mnt/ro", True), (str(tmp_path / "made"), "/mnt/rw", False)]
    guest = machine.up(OTHER, print, disk_gb=DISK_GB, binds=binds)
    try:
        assert answer(guest, "cat /mnt/ro/file; echo from there | sudo tee /mnt/rw/file") == "from here\nfrom there"
        assert ssh(guest, "sudo touch /mnt/ro/x").returncode != 0
        assert (tmp_path / "made/file").read_text() == "from there\n"
    finally:
        machine.down(OTHER, print)


def test_the_base_image_survives() -> None:
    archive = sources.debian_archive(sources.apt_sources())
    assert (machine.folder() / base.image_name(base.guest_sources(archive))).is_file()
