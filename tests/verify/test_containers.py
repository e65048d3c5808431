"""Group containers: they are what was deployed, they are confined, and only the gateway has doors."""

import json
import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest

from atelier.render import INTERNAL_PORTS, network_name

OUTSIDE = ("1.1.1.1:443", "8.8.8.8:53", "169.254.169.254:80")
PROBE = (
    'for t in "$@"; do (timeout 2 bash -c "exec 3<>/dev/tcp/${t%:*}/${t##*:}" 2>/dev/null && echo "$t") & done; '
    "(timeout 2 getent ahostsv4 example.com >/dev/null && echo DNS) & wait"
)
"""Prints each TCP address that answers, and DNS where names resolve."""


@pytest.mark.check("containers.running")
def test_containers_run_and_are_healthy(stack, check):
    for container in stack.inspect().values():
        state, name = container["State"], container["Name"].lstrip("/")
        health = state.get("Health", {}).get("Status", "no health check")
        last = (state.get("Health", {}).get("Log") or [{}])[-1].get("Output", "").strip()
        policy = container["HostConfig"]["RestartPolicy"]["Name"]
        observed = f"{state['Status']}, {health}, restart {policy}" + (f" ({last})" if health != "healthy" else "")
        good = state["Status"] == "running" and health == "healthy" and policy in ("unless-stopped", "always")
        check(
            f"{name} running, healthy, restarted with the host",
            observed,
            good,
            f"docker logs {name}" if not good else "",
        )


@pytest.mark.check("containers.images")
def test_containers_run_the_deployed_images(stack, check):
    wrong = []
    for service, container in stack.inspect().items():
        deployed = stack.deployed["images"][service]
        if not deployed["id"] or container["Image"] != deployed["id"]:
            wrong.append(
                f"{service} runs {container['Image'][7:19]}, deployed was {deployed['id'][7:19]} ({deployed['tag']})"
            )
        config = container["Config"]["Labels"].get("atelier.config")
        if config != stack.deployed["services"][service]["config"]:
            wrong.append(f"{service} was started with configuration {config}")
    check.none("images and configurations as recorded in state/deployed.json", wrong)


@pytest.mark.check("containers.hardened")
def test_containers_are_unprivileged(stack, check):
    uid, wrong = stack.settings.service_uid, []
    for service, container in stack.inspect().items():
        host = container["HostConfig"]
        status = stack.output(f"cat /proc/{container['State']['Pid']}/status")
        process = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        facts = {
            f"user {uid}": container["Config"]["User"] == f"{uid}:{uid}" and process["Uid"].split() == [str(uid)] * 4,
            "read-only root": host["ReadonlyRootfs"],
            "all capabilities dropped": host["CapDrop"] == ["ALL"] and not host["CapAdd"],
            "no effective capability": all(int(process[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapBnd")),
            "no-new-privileges": process["NoNewPrivs"] == "1",
            "not privileged": not host["Privileged"],
            "own namespaces": all(host[name] != "host" for name in ("NetworkMode", "PidMode", "IpcMode", "UTSMode")),
            "no Docker socket": not any("docker.sock" in mount["Source"] for mount in container["Mounts"]),
            "init": host["Init"] is True,
            "no core dumps": {"Name": "core", "Hard": 0, "Soft": 0} in (host["Ulimits"] or []),
        }
        wrong += [f"{service}: not so: {name}" for name, holds in facts.items() if not holds]
    check.none(f"user {uid}, read-only, no capabilities, no new privileges, own namespaces, init, no core dumps", wrong)


@pytest.mark.check("containers.ports")
def test_only_the_gateway_publishes_ports(stack, check):
    names = stack.output("docker ps -q").split()
    every = json.loads(stack.output(f"docker inspect {' '.join(names)}")) if names else []
    published = {
        container["Name"].lstrip("/"): sorted(
            {f"{door['HostIp']}:{door['HostPort']}" for doors in ports.values() for door in doors}
        )
        for container in every
        if (ports := {port: doors for port, doors in (container["NetworkSettings"]["Ports"] or {}).items() if doors})
    }
    gateway = stack.settings.gateway_container
    wanted = sorted(f"{stack.settings.bind_address}:{port}" for port in stack.settings.published_ports())
    check(
        f"the gateway publishes {', '.join(wanted)}",
        published.get(gateway, "nothing"),
        published.get(gateway) == wanted,
    )
    ours = [container for container in published if container in stack.containers.values() and container != gateway]
    check.none("no other container of ours publishes a port", [f"{name}: {published[name]}" for name in ours])
    ports = {f":{port}" for port in stack.settings.published_ports()}
    doors = [
        f"{name}: {door}"
        for name in published
        for door in published[name]
        if name != gateway and f":{door.rpartition(':')[2]}" in ports
    ]
    check.none("no container stands in for the gateway", doors)


@pytest.mark.check("containers.networks")
def test_networks_are_internal_and_private(stack, check):
    gateway = stack.settings.gateway_container
    names = {name: network_name(name) for name in stack.applications.values()}
    networks = json.loads(stack.output(f"docker network inspect {' '.join(names.values())}"))
    found = {network["Name"]: network for network in networks}
    for container, name in names.items():
        network = found[name]
        members = sorted(member["Name"] for member in network["Containers"].values())
        closed = network["Internal"] and network["Options"].get("com.docker.network.bridge.inhibit_ipv4") == "true"
        check(
            f"{name} internal, without an address of the host",
            f"internal: {network['Internal']}, {network['Options']}",
            closed,
        )
        check(f"{name} joins {container} and {gateway}", members, members == sorted([container, gateway]))
    for service, inspect in stack.inspect().items():
        attached = sorted(inspect["NetworkSettings"]["Networks"])
        wanted = (
            [names[stack.containers[service]]]
            if service != "gateway"
            else sorted([*names.values(), network_name(gateway)])
        )
        check(f"{service} is on {', '.join(wanted)}", ", ".join(attached), attached == wanted)


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

    def probe(service: str, container: str) -> tuple[str, set[str], bool]:
        gateway = f"{addresses['gateway', network_name(container)]}:{INTERNAL_PORTS[service]}"
        others = [
            f"{address}:{INTERNAL_PORTS[name]}"
            for (name, _), address in addresses.items()
            if name not in (service, "gateway")
        ]
        targets = " ".join([gateway, *OUTSIDE, *host_doors, *others])
        answered = stack.output(f"docker exec {container} bash -c {shlex.quote(PROBE)} probe {targets}").split()
        inward = addresses[service, network_name(container)], str(INTERNAL_PORTS[service])
        reached = stack.host.run("timeout 2 bash -c 'exec 3<>/dev/tcp/'%s/%s", *inward).rc == 0
        return gateway, set(answered), reached

    with ThreadPoolExecutor() as pool:
        probes = dict(
            zip(stack.applications, pool.map(probe, *zip(*stack.applications.items(), strict=True)), strict=True)
        )
    for service, (gateway, answered, reached) in probes.items():
        # Without this the probe itself could be broken and everything would look closed.
        seen = "reached" if gateway in answered else "not reached"
        check(f"{service}: the probe reaches the gateway", seen, gateway in answered)
        wrong = sorted(f"{service} reaches {target}" for target in answered - {gateway})
        check.none(f"{service} reaches no internet, no DNS, no address of the host, no other application", wrong)
        check(f"the host does not reach {service} beside the gateway", "reached" if reached else "refused", not reached)


@pytest.mark.check("containers.logs")
def test_logs_tell_of_no_failed_import(stack, check):
    for service, container in stack.inspect().items():
        started, name = container["State"]["StartedAt"], container["Name"].lstrip("/")
        pattern = "IMPORT FAILED|missing: \\[|Cannot import|Successfully installed|ModuleNotFoundError"
        # A log that cannot be read, or holds nothing, must not look like a clean one.
        size, *lines = stack.output(
            f't=$(mktemp) && trap \'rm -f "$t"\' EXIT && docker logs --since {started} {name} >"$t" 2>&1 || exit; '
            f'wc -c <"$t"; grep -m 5 -E {shlex.quote(pattern)} "$t" || [ $? -eq 1 ]'
        ).splitlines()
        check(f"{service}: its log is written and can be read", f"{size} bytes", int(size) > 0)
        check.none(f"{service}: no failed import and nothing installed since its start", lines)
