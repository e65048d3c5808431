"""Group host: the machine itself, and where the services can be reached.

What is wrong with the machine is judged by atelier/checks/host_state.py.
"""

import re
import socket
import subprocess
import time

import pytest
from stack import COMMAND_SECONDS

from atelier.checks import host_state

ANY = ("0.0.0.0", "[::]", "*")
WILDCARDS = ("0.0.0.0", "::")


@pytest.fixture(scope="module")
def asked(stack):
    """What the host tells, and this computer's clock before and after it was asked."""
    before = time.time()
    answer = stack.ssh.run(host_state.script(stack.settings), timeout=COMMAND_SECONDS, check=True)
    return host_state.parse(answer.stdout), before, time.time()


@pytest.fixture
def told(asked):
    return asked[0]


@pytest.mark.check("host.system")
def test_the_system_is_supported(check, told):
    check.free_of("a supported system and kernel on amd64", host_state.system(told), host_state.system_text(told))


@pytest.mark.check("host.disk")
def test_there_is_room_on_the_disks(check, told):
    full, almost = host_state.disk(told)
    check.free_of(
        "at least 1 GB and 1 % of the inodes free on every file system in use", full, host_state.disk_text(told)
    )
    check.warn_of("5 GB free", almost)


@pytest.mark.check("host.memory")
def test_there_is_memory(stack, check, told):
    expected = f"{stack.settings.minimum_memory_gb} GB of memory, and 512 MB of it free"
    check.free_of(expected, host_state.memory(told, stack.settings), host_state.memory_text(told))


@pytest.mark.check("host.time")
def test_the_clock_is_right(check, asked):
    told, before, after = asked
    wrong, suspect = host_state.time(told, before, after)
    check.free_of("a clock that is kept in sync, and agrees with this computer's", wrong, host_state.time_text(told))
    check.warn_of(f"less than {host_state.CLOCK_TOLERANCE} s between both clocks", suspect)


@pytest.mark.check("host.reboot")
def test_no_restart_is_overdue(check, asked):
    told, _, after = asked
    late, pending = host_state.reboot(told, after)
    check.free_of(
        f"no restart asked for more than {host_state.GRACE_DAYS} days ago, and the kernel's modules there", late
    )
    check.warn_of("no restart pending, and the newest kernel runs", pending)


@pytest.mark.check("host.upgrades")
def test_security_updates_come_by_themselves(check, told):
    expected = (
        "unattended-upgrades fetch security updates every day and never restart the host; no package is half installed"
    )
    check.free_of(expected, host_state.upgrades(told))


@pytest.mark.check("host.docker")
def test_docker_is_as_it_must_be(check, told):
    wrong = host_state.docker(told)
    expected = "Docker answers, is started at boot, keeps containers through its own restart, and is root's alone"
    check.free_of(expected, wrong, "" if wrong else host_state.docker_text(told))


def listeners(output: str, ports: set[int]) -> dict[int, set[str]]:
    """Addresses that something listens on, by port, from `ss -Hltn`."""
    found: dict[int, set[str]] = {port: set() for port in ports}
    for line in output.splitlines():
        address, _, port = line.split()[3].rpartition(":")
        if port.isdigit() and int(port) in ports:
            found[int(port)].add(re.sub(r"%.*", "", address))
    return found


@pytest.mark.check("host.listening")
def test_ports_listen_on_the_configured_address_only(stack, check):
    ports = stack.settings.published_ports()
    bind = stack.settings.bind_address
    allowed = set(ANY) if bind in WILDCARDS else {bind, f"[{bind}]"}
    for port, addresses in listeners(stack.output("ss -Hltn"), ports).items():
        where = ", ".join(sorted(addresses)) or "nowhere"
        hint = "" if addresses else "nothing listens: see `make status`"
        check(f"port {port} on {bind} only", f"{port} on {where}", bool(addresses) and addresses <= allowed, hint)
    strays = [line for line in stack.output("ss -Hltne").splitlines() if f"uid:{stack.settings.service_uid} " in line]
    check.none("no program of the service user listens on the host itself", strays)


def reach(stack, address: str, port: int) -> bool:
    """Whether the host itself can connect to one of its addresses."""
    return stack.host.run("timeout 2 bash -c 'exec 3<>/dev/tcp/'%s/%s", address, str(port)).rc == 0


def reach_from_here(address: str, port: int) -> bool:
    """Whether this computer can connect; unreachable and filtered are as good as refused."""
    try:
        socket.create_connection((address, port), timeout=3).close()
    except OSError:
        return False
    return True


@pytest.mark.check("host.closed")
def test_other_addresses_refuse(stack, check):
    bind = stack.settings.bind_address
    if bind in WILDCARDS:
        check("every address is meant to be bound", bind, True)
        return
    ports = sorted(stack.settings.published_ports())
    answering = [f"{bind}:{port}" for port in ports if reach(stack, bind, port)]
    seen = ", ".join(answering) or "nothing"
    check(f"{bind} answers on {ports}", seen, len(answering) == len(ports), "a service is down: see `make status`")
    lines = stack.output("ip -o addr show scope global").splitlines()
    others = {line.split()[3].partition("/")[0] for line in lines} - {bind}
    open_doors = [f"{address}:{port}" for address in sorted(others) for port in ports if reach(stack, address, port)]
    check.none(
        f"{len(others)} other addresses of the host refuse its ports", [f"{door} answers" for door in open_doors]
    )
    if not bind.startswith("127."):
        return
    config = subprocess.run(["ssh", "-G", *stack.destination.arguments()], capture_output=True, text=True, check=True)
    address = dict(line.split(" ", 1) for line in config.stdout.splitlines() if " " in line)["hostname"]
    if address not in ("localhost", "127.0.0.1", "::1"):
        doors = [f"{address}:{port} answers this computer" for port in ports if reach_from_here(address, port)]
        check.none(f"{address} refuses this computer", doors)
    rule = stack.host.run("iptables -t raw -C PREROUTING ! -i lo -d 127.0.0.0/8 -j DROP")
    check(
        "packets for loopback from outside are dropped", "rule present" if rule.rc == 0 else rule.stderr, rule.rc == 0
    )
