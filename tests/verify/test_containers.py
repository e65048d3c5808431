"""Group containers: they are what was deployed, they are confined, and only the gateway has doors.

What is wrong is judged by atelier/checks/container_state.py.
"""

import json
import shlex

import pytest
from stack import COMMAND_SECONDS

from atelier.checks import container_state
from atelier.render import INTERNAL_PORTS, network_name

OUTSIDE = ("1.1.1.1:443", "8.8.8.8:53", "169.254.169.254:80", "2606:4700:4700::1111:443")
PROBE = """
import os, socket, sys, threading, time
seconds, name, *targets = float(sys.argv[1]), *sys.argv[2:]
answered = []
def resolves(told, name):
    socket.getaddrinfo(name, 80, socket.AF_INET)
    answered.append(told)
def connects(target):
    address, _, port = target.rpartition(":")
    socket.create_connection((address, int(port)), seconds).close()
    answered.append(target)
def ask(question, *about):
    try:
        question(*about)
    except OSError:
        pass
asked = [(resolves, "NAMES", name), (resolves, "DNS", "example.com"), *((connects, target) for target in targets)]
threads = [threading.Thread(target=ask, args=each, daemon=True) for each in asked]
for thread in threads:
    thread.start()
end = time.monotonic() + seconds
for thread in threads:
    thread.join(max(0, end - time.monotonic()))
print(*answered, flush=True)
os._exit(0)  # a resolver may take longer, and nobody waits for it
"""
"""Prints each TCP address that answers, NAMES where the name given resolves, and DNS where others do."""
LOOK = """
import json, socket, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
probe, asked = sys.argv[1], json.loads(sys.argv[2])
both = socket.has_dualstack_ipv6()
door = socket.create_server(("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
doors = {"%s:%d" % (address, door.getsockname()[1]): address for address in sys.argv[3:]}
def look(container, arguments):
    inside = ["docker", "exec", container] if container else []
    command = [*inside, "python3", "-I", "-c", probe, *arguments, *doors]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.split()
with ThreadPoolExecutor() as pool:
    print(json.dumps([doors, dict(zip(asked, pool.map(look, asked, asked.values())))]))
"""
"""Opens a door on the host, and prints its addresses, and what the probe sees in each container, and in `` on the host.

Without that door, a host on which nothing else listens would look like one that cannot be reached.
"""
RUNNING = 'ids=$(docker ps -q) || exit; [ -z "$ids" ] || docker inspect $ids || [ $? -eq 1 ]'
"""Prints what Docker knows of every container that runs; one may end in between."""


@pytest.fixture(scope="module")
def there(stack):
    """The containers of ours that exist, asked in one round trip."""
    names = list(stack.containers.values())
    answer = stack.ssh.run(container_state.script(names), timeout=COMMAND_SECONDS, check=True)
    return container_state.parse(answer.stdout)


@pytest.fixture
def told(stack, check, there):
    """Every container of ours."""
    check.free_of("every container exists", container_state.missing(there, stack.containers.values()), ", ".join(there))
    return there


@pytest.mark.check("containers.running")
def test_containers_run_and_are_healthy(stack, check, told):
    wrong = [finding for each in told.values() for finding in container_state.running(each)]
    expected = "running, healthy by their images' own health checks, started again after a crash and with the host"
    check.free_of(expected, wrong, f"{len(told)} containers are")
    again = [finding for each in told.values() for finding in container_state.restarted(each)]
    check.warn_of("none ended by itself", again)


@pytest.mark.check("containers.images")
def test_containers_run_the_deployed_images(stack, check, told):
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
    uid = stack.settings.service_uid
    wrong = [finding for each in told.values() for finding in container_state.confinement(each, uid)]
    check.free_of(
        f"user {uid}, read-only, no capabilities, no new privileges, filtered system calls, own namespaces, no devices, "
        "init, nothing of the kernel's that Docker keeps from containers",
        wrong,
    )


@pytest.mark.check("containers.limits")
def test_containers_have_their_limits(stack, check, told):
    controllers = frozenset(
        stack.output("cd /sys/fs/cgroup; [ ! -e cgroup.controllers ] || cat cgroup.controllers").split()
    )
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
def test_networks_are_internal_and_private(stack, check, there):
    names = " ".join(network_name(name) for name in stack.applications.values())
    found = json.loads(stack.ssh.run(f"docker network inspect {names}", timeout=COMMAND_SECONDS).stdout or "[]")
    networks = {network["Name"]: network for network in found}
    wrong = container_state.networks(networks, there, stack.settings)
    check.free_of("each application on an internal network of its own, with the gateway and nobody else", wrong)


@pytest.mark.check("containers.egress")
def test_applications_cannot_get_out(stack, check):
    found = stack.inspect()
    addresses = {
        (service, network): entry["IPAddress"] or "no-address"
        for service, container in found.items()
        for network, entry in container["NetworkSettings"]["Networks"].items()
    }
    own, _, listening = stack.output("ip -o addr show scope global; echo --; ss -Hltn").partition("--\n")
    host = [line.split()[3].partition("/")[0] for line in own.splitlines()]
    places = [line.split()[3].rpartition(":") for line in listening.splitlines()]
    ports = {port for address, _, port in places if not address.startswith(("127.", "[::1]"))}
    services = {container: service for service, container in stack.applications.items()}
    gateways, inward, asked = {}, {}, {}
    for container, service in services.items():
        port, network = INTERNAL_PORTS[service], network_name(container)
        gateways[container] = f"{addresses.get(('gateway', network), 'no-address')}:{port}"
        inward[container] = f"{addresses.get((service, network), 'no-address')}:{port}"
        others = [
            f"{address}:{INTERNAL_PORTS[name]}"
            for (name, _), address in addresses.items()
            if name not in (service, "gateway")
        ]
        outside = [*OUTSIDE, *others, *(f"{address}:{port}" for address in host for port in sorted(ports))]
        asked[container] = ["1.5", stack.settings.gateway_container, gateways[container], *outside]
    # One second: the host is no farther from a container than its own kernel.
    asked[""] = ["1", "localhost", *inward.values()]
    command = shlex.join(["python3", "-I", "-c", LOOK, PROBE, json.dumps(asked), *host])
    doors, answered = json.loads(stack.output(command))
    seen = [address for door, address in doors.items() if door in answered[""]]
    # Without this the probe itself could be broken and everything would look closed.
    closed = "the host does not reach a port of its own: see `ip addr` and `nft list ruleset` there"
    check("a door of the host's own, opened for the probe", ", ".join(seen) or "not seen", bool(seen), closed)
    wrong = [
        finding
        for container, gateway in gateways.items()
        for finding in container_state.ways(
            container,
            gateway,
            frozenset(f"the host at {doors[target]}" if target in doors else target for target in answered[container]),
            inward[container] in answered[""],
        )
    ]
    check.free_of(
        "each application reaches the gateway, and no internet, no DNS, no address of the host, no other application; "
        "the host reaches none but through the gateway",
        wrong,
        f"{len(asked[container]) - 3 + len(doors)} addresses tried from each",
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
