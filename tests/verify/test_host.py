"""Group host: the machine itself, and where the services can be reached.

What is wrong with the machine is judged by atelier/checks/host_state.py.
"""

import shlex
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from stack import COMMAND_SECONDS

from atelier.checks import host_state

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
def test_there_is_room_on_the_disks(stack, check, told):
    wrong, almost = host_state.disk(told, stack.settings)
    expected = "at least 1 GB and 1 % of the inodes free on every file system in use"
    check.free_of(expected, wrong, host_state.disk_text(told))
    check.warn_of(f"{stack.settings.monitoring.minimum_free_gb:g} GB free", almost)


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
    check.free_of(expected, host_state.upgrades(told), host_state.upgrades_text(told))


@pytest.mark.check("host.docker")
def test_docker_is_as_it_must_be(check, told):
    wrong = host_state.docker(told)
    expected = "Docker answers, is started at boot, keeps containers through its own restart, and is root's alone"
    check.free_of(expected, wrong, "" if wrong else host_state.docker_text(told))
    check.warn_of("only administrators command Docker", host_state.docker_users(told))


@pytest.mark.check("host.listening")
def test_ports_listen_on_the_configured_address_only(stack, check):
    settings = stack.settings
    listening = host_state.listeners(stack.output("ss -Hltnpe"))
    expected = f"ports {', '.join(map(str, sorted(settings.published_ports())))} on {settings.bind_address} only; "
    expected += "no program of the service user listens on the host itself"
    check.free_of(expected, host_state.listening(listening, settings))


REACH = (
    'for t in "$@"; do (timeout 2 bash -c "exec 3<>/dev/tcp/${t%:*}/${t##*:}" 2>/dev/null && echo "$t") & done; wait'
)
"""Prints each address that answers the host itself."""
GUARDED = "iptables -w -t raw -C PREROUTING ! -i lo -d 127.0.0.0/8 -j DROP"


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
    lines = stack.output("ip -o addr show scope global").splitlines()
    others = sorted({line.split()[3].partition("/")[0] for line in lines} - {bind})
    own = [f"{bind}:{port}" for port in ports]
    doors = [f"{address}:{port}" for address in others for port in ports]
    answered = stack.output(f"bash -c {shlex.quote(REACH)} reach {' '.join([*own, *doors])}").split()
    lost = [f"{door} does not answer" for door in own if door not in answered]
    check.none(f"{bind} answers on {ports}", lost, "a service is down: see `make status`")
    hint = "see which program holds the port with `ss -ltnp` on the host; then run `make deploy`"
    open_doors = [f"{door} answers" for door in doors if door in answered]
    check.none(f"{len(others)} other addresses of the host refuse its ports", open_doors, hint)
    if not bind.startswith("127."):
        return
    config = subprocess.run(["ssh", "-G", *stack.destination.arguments()], capture_output=True, text=True, check=True)
    address = dict(line.split(" ", 1) for line in config.stdout.splitlines() if " " in line)["hostname"]
    if address not in ("localhost", "127.0.0.1", "::1"):
        with ThreadPoolExecutor() as pool:
            reached = dict(zip(ports, pool.map(lambda port: reach_from_here(address, port), ports), strict=True))
        open_doors = [f"{address}:{port} answers this computer" for port in ports if reached[port]]
        check.none(f"{address} refuses this computer", open_doors, hint)
    rule = stack.host.run(GUARDED)
    hint = "the guard for loopback addresses is gone: run `make deploy`, or systemctl restart atelier-loopback-guard on the host"
    seen = "rule present" if rule.rc == 0 else "rule missing"
    check("packets for loopback from outside are dropped", seen, rule.rc == 0, hint)
