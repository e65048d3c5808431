"""Group access: no way to the containers' own addresses but through the gateway's published ports."""

import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest
from stack import Stack

from atelier.render import DIRECT_RULE

PROBE = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def answers(target):
    address, _, port = target.rpartition(":")
    try:
        socket.create_connection((address, int(port)), 1.5).close()
    except OSError:
        return False
    return True
way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
way.connect((sys.argv[1].rpartition(":")[0], 9))
door = socket.create_server((way.getsockname()[0], 0))
itself = "%s:%d" % door.getsockname()
targets = [itself, *sys.argv[1:]]
with ThreadPoolExecutor(len(targets)) as pool:
    for target, answer in zip(targets, pool.map(answers, targets)):
        if answer:
            print("itself" if target == itself else target)
"""
"""Prints which of its arguments answer over TCP, and `itself` for a door of its own, on the address it asks from."""


def doors(stack: Stack) -> dict[str, list[str]]:
    """Every address and port on which the containers listen, by service."""
    found: dict[str, list[str]] = {}
    for service, container in stack.inspect().items():
        listening = stack.output(f"nsenter -t {container['State']['Pid']} -n ss -Hltn").splitlines()
        places = [line.split()[3].rpartition(":") for line in listening]
        ports = sorted({port for address, _, port in places if not address.startswith(("127.", "[::1]"))})
        addresses = [network["IPAddress"] for network in container["NetworkSettings"]["Networks"].values()]
        found[service] = [f"{address}:{port}" for address in addresses if address for port in ports]
    return found


@pytest.mark.check("access.direct")
def test_nobody_reaches_the_containers_themselves(stack, check):
    found = doors(stack)
    for service, targets in found.items():
        check(f"{service} listens on its own network", ", ".join(targets) or "nowhere", bool(targets))
    every = [target for targets in found.values() for target in targets]
    applications = [target for service, targets in found.items() if service != "gateway" for target in targets]
    user = f"setpriv --reuid=65534 --regid=65534 --clear-groups python3 -I -c {shlex.quote(PROBE)}"
    confined = "--cap-drop ALL --security-opt no-new-privileges --read-only --user 65534:65534"
    image = stack.deployed["images"]["gateway"]["id"]
    # On Docker's default network, as any container is that somebody starts on the host.
    container = f"docker run --rm --network bridge {confined} --entrypoint python3 {image} -I -c {shlex.quote(PROBE)}"
    published = [f"{stack.settings.own_address()}:{port}" for port in sorted(stack.settings.published_ports())]
    asked = {
        "a user without privileges on the host": f"{user} {' '.join([*applications, *published])}",
        "another container": f"{container} {' '.join(every)}",
    }
    with ThreadPoolExecutor() as pool:
        answers = dict(zip(asked, pool.map(lambda command: stack.output(command).split(), asked.values()), strict=True))
    for who, answered in answers.items():
        # Without this the probe itself could be broken and everything would look closed.
        seen = "seen" if "itself" in answered else "not seen"
        check(f"{who}: the probe sees a door of its own", seen, "itself" in answered)
        check.none(f"{who} reaches none", [f"{who} reaches {door}" for door in answered if door in every])
    through = [door for door in published if door in answers["a user without privileges on the host"]]
    check("a user on the host reaches the gateway's ports", ", ".join(through) or "nothing", through == published)
    rule = stack.host.run(f"iptables -w -t mangle -C {DIRECT_RULE}")
    told = "rule present" if rule.rc == 0 else rule.stderr
    hint = "start atelier-loopback-guard.service on the host: its rule is not in force"
    check("packets of other machines for the gateway's own address are dropped", told, rule.rc == 0, hint)
