"""Group containers: they are what was deployed, they are confined, and only the gateway has doors.

What is wrong is judged by atelier/checks/container_state.py.
"""

import json
import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest
from stack import COMMAND_SECONDS

from atelier.checks import container_state
from atelier.render import INTERNAL_PORTS, network_name

OUTSIDE = ("1.1.1.1:443", "8.8.8.8:53", "169.254.169.254:80", "2606:4700:4700::1111:443")
PROBE = (
    'g=$1; shift; for t in "$@"; do '
    '(timeout 2 bash -c "exec 3<>/dev/tcp/${t%:*}/${t##*:}" 2>/dev/null && echo "$t") & done; '
    '(timeout 2 getent ahostsv4 "$g" >/dev/null && echo NAMES) & '
    "(timeout 2 getent ahostsv4 example.com >/dev/null && echo DNS) & wait"
)
"""Prints each TCP address that answers, NAMES where the first argument resolves, and DNS where others do."""
RUNNING = 'ids=$(docker ps -q) || exit; [ -z "$ids" ] || docker inspect $ids || [ $? -eq 1 ]'
"""Prints what Docker knows of every container that runs; one may end in between."""


@pytest.fixture(scope="module")
def told(stack):
    """Every container of ours, asked in one round trip."""
    names = list(stack.containers.values())
    answer = stack.ssh.run(container_state.script(names), timeout=COMMAND_SECONDS, check=True)
    return container_state.parse(answer.stdout)


@pytest.mark.check("containers.running")
def test_containers_run_and_are_healthy(stack, check, told):
    check.free_of("every container exists", container_state.missing(told, stack.containers.values()), ", ".join(told))
    wrong = [finding for each in told.values() for finding in container_state.running(each)]
    expected = "running, healthy by their images' own health checks, started again after a crash and with the host"
    check.free_of(expected, wrong, f"{len(told)} containers are")
    again = [finding for each in told.values() for finding in container_state.restarted(each)]
    check.warn_of("none ended by itself", again)


@pytest.mark.check("containers.images")
def test_containers_run_the_deployed_images(stack, check, told):
    check.free_of("every container exists", container_state.missing(told, stack.containers.values()), ", ".join(told))
    record = stack.deployed
    wrong = [
        finding
        for service, container in stack.containers.items()
        for finding in container_state.deployed(
            told[container], record["images"][service], record["services"][service]["config"]
        )
    ]
    seen = ", ".join(f"{name} {each.inspect['Image'][7:19]}" for name, each in told.items())
    check.free_of("images and configurations as recorded in state/deployed.json", wrong, seen)


@pytest.mark.check("containers.hardened")
def test_containers_are_unprivileged(stack, check, told):
    check.free_of("every container exists", container_state.missing(told, stack.containers.values()), ", ".join(told))
    uid = stack.settings.service_uid
    wrong = [finding for each in told.values() for finding in container_state.confinement(each, uid)]
    check.free_of(
        f"user {uid}, read-only, no capabilities, no new privileges, filtered system calls, own namespaces, no devices, init",
        wrong,
    )


@pytest.mark.check("containers.limits")
def test_containers_have_their_limits(stack, check, told):
    check.free_of("every container exists", container_state.missing(told, stack.containers.values()), ", ".join(told))
    controllers = frozenset(stack.output("cat /sys/fs/cgroup/cgroup.controllers").split())
    wrong = [finding for each in told.values() for finding in container_state.limits(each, stack.settings, controllers)]
    usable = [name for name in ("memory", "cpu") if name in controllers]
    seen = f"as set; the host can limit {' and '.join(usable) or 'neither memory nor CPU'}"
    check.free_of("memory, CPU, /dev/shm, open files, no core dumps, rotated logs as the settings say", wrong, seen)


@pytest.mark.check("containers.ports")
def test_only_the_gateway_publishes_ports(stack, check):
    running = json.loads(stack.output(RUNNING) or "[]")
    wrong = container_state.doors(running, stack.settings)
    ports = ", ".join(map(str, sorted(stack.settings.published_ports())))
    check.free_of(
        f"the gateway publishes {ports} on {stack.settings.bind_address}, and no other container of ours anything",
        wrong,
    )


@pytest.mark.check("containers.networks")
def test_networks_are_internal_and_private(stack, check, told):
    names = " ".join(network_name(name) for name in stack.applications.values())
    found = json.loads(stack.ssh.run(f"docker network inspect {names}", timeout=COMMAND_SECONDS).stdout or "[]")
    networks = {network["Name"]: network for network in found}
    wrong = container_state.networks(networks, told, stack.settings)
    check.free_of("each application on an internal network of its own, with the gateway and nobody else", wrong)


@pytest.mark.check("containers.egress")
def test_applications_cannot_get_out(stack, check):
    found = stack.inspect()
    addresses = {
        (service, network): entry["IPAddress"]
        for service, container in found.items()
        for network, entry in container["NetworkSettings"]["Networks"].items()
    }
    own = stack.output("ip -4 -o addr show scope global").splitlines()
    ssh_port = stack.host.run("ss -Hltnp | grep -m1 '\"sshd\"'").stdout.split()[3:4]
    door = ssh_port[0].rpartition(":")[2] if ssh_port else "22"
    host_doors = [f"{line.split()[3].partition('/')[0]}:{door}" for line in own]

    def probe(service: str, container: str) -> list:
        gateway = f"{addresses.get(('gateway', network_name(container)), 'no-address')}:{INTERNAL_PORTS[service]}"
        others = [
            f"{address}:{INTERNAL_PORTS[name]}"
            for (name, _), address in addresses.items()
            if name not in (service, "gateway")
        ]
        targets = " ".join([stack.settings.gateway_container, gateway, *OUTSIDE, *host_doors, *others])
        answered = stack.output(f"docker exec {container} bash -c {shlex.quote(PROBE)} probe {targets}").split()
        inward = addresses.get((service, network_name(container)), ""), str(INTERNAL_PORTS[service])
        reached = stack.host.run("timeout 2 bash -c 'exec 3<>/dev/tcp/'%s/%s", *inward).rc == 0
        return container_state.ways(container, gateway, frozenset(answered), reached)

    with ThreadPoolExecutor() as pool:
        wrong = [
            finding for found in pool.map(probe, *zip(*stack.applications.items(), strict=True)) for finding in found
        ]
    check.free_of(
        "each application reaches the gateway, and no internet, no DNS, no address of the host, no other application; "
        "the host reaches none beside the gateway",
        wrong,
        f"{len(OUTSIDE) + len(host_doors)} addresses tried from each",
    )


@pytest.mark.check("containers.logs")
def test_logs_tell_of_no_failed_import(stack, check):
    marks = {container: container_state.STARTED[service] for service, container in stack.containers.items()}
    starts = container_state.starts(stack.output(container_state.log_script(marks)))
    check.free_of(
        "each log is written, and tells of no failed import and nothing installed at the start",
        container_state.notable(starts, list(marks)),
        f"{len(marks)} logs are clean",
    )
    check.warn_of("each application's log goes back to its start", container_state.unseen(starts))
