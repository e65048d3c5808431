"""No way to the containers but the gateway's published ports, also for another machine on the same network segment."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness import Sandbox

from atelier import paths

pytestmark = pytest.mark.sandbox

HOST = Sandbox(f"sandbox-direct-{os.getpid()}")
SEGMENT_ADDRESS = "10.213.0.2"  # the host's, on the segment that it shares with the neighbour
PROBE = """
import socket, sys
for door in sys.argv[1:]:
    address, _, port = door.rpartition(":")
    try:
        socket.create_connection((address, int(port)), 2).close()
    except OSError:
        continue
    print(door)
"""


@pytest.fixture(scope="module", autouse=True)
def deployed() -> Iterator[None]:
    with HOST.running():
        HOST.deploy()
        yield


def doors() -> list[str]:
    """Where the containers listen, on each of their networks."""
    addresses = "docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' "
    ports = {"comfyui-qwen": ["8188"], "forge-turbo": ["7860"], "gateway": ["8188", "7860"]}
    return [
        f"{address}:{port}" for name in ports for address in HOST.root(addresses + name).split() for port in ports[name]
    ]


def neighbour_reaches(places: list[str]) -> list[str]:
    """Which of the host's and its containers' doors answer another machine, which sends all these by way of the host."""
    command = ["ip", "netns", "exec", f"atelier-{HOST.name}.internet", "python3", "-c", PROBE, *places]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_a_machine_on_the_same_segment_finds_no_way() -> None:
    ssh, published = f"{SEGMENT_ADDRESS}:22", [f"{SEGMENT_ADDRESS}:{port}" for port in (8188, 7860)]
    assert neighbour_reaches([ssh, *published, *doors()]) == [ssh]
    gateway = HOST.root(
        "docker inspect -f '{{(index .NetworkSettings.Networks \"atelier-gateway\").IPAddress}}' gateway"
    )
    HOST.root("systemctl stop atelier-loopback-guard")
    try:  # so that it is the rule which closes this, and the probe would see it open
        assert neighbour_reaches(doors()) == [f"{gateway}:8188", f"{gateway}:7860"]
    finally:
        HOST.root("systemctl start atelier-loopback-guard")
    assert neighbour_reaches(doors()) == []


def test_a_port_published_to_the_segment_would_be_reached() -> None:
    """The rule takes nothing from a public bind."""
    gateway = HOST.root(
        "docker inspect -f '{{(index .NetworkSettings.Networks \"atelier-gateway\").IPAddress}}' gateway"
    )
    rule = f"PREROUTING -d {SEGMENT_ADDRESS} -p tcp --dport 9999 -j DNAT --to-destination {gateway}:8188"
    HOST.root(f"iptables -t nat -I {rule}")
    try:
        assert neighbour_reaches([f"{SEGMENT_ADDRESS}:9999"]) == [f"{SEGMENT_ADDRESS}:9999"]
    finally:
        HOST.root(f"iptables -t nat -D {rule}")


def verified(expect: int) -> dict[str, str]:
    HOST.atelier("verify", "--check", "access.direct", expect=expect)
    report = json.loads((paths.reports_dir(HOST.name) / "latest" / "report.json").read_text())
    return next(check for check in report["checks"] if check["id"] == "access.direct")


@contextmanager
def undone(sabotage: str, undo: str) -> Iterator[None]:
    HOST.root(sabotage)
    try:
        yield
    finally:
        HOST.root(undo)


BRIDGE = "br-$(docker network inspect -f '{{.Id}}' atelier-comfyui-qwen | cut -c1-12)"
# Red for: who reaches what.
SABOTAGES = {
    "a network with a way in": (
        "docker network create leak && docker network connect leak comfyui-qwen",
        "docker network disconnect leak comfyui-qwen && docker network rm leak",
        "a user without privileges on the host reaches 172.",
    ),
    "an address of the host on the network": (
        f"ip addr add 172.18.255.254/16 dev {BRIDGE}",
        f"ip addr del 172.18.255.254/16 dev {BRIDGE}",
        "a user without privileges on the host reaches 172.18.",
    ),
    "a container on the default network as well": (
        "docker network connect bridge forge-turbo",
        "docker network disconnect bridge forge-turbo",
        "reaches 172.17.",
    ),
    "packets forwarded to the gateway": (
        "systemctl stop atelier-loopback-guard",
        "systemctl start atelier-loopback-guard",
        "matching rule",
    ),
}


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_verify_notices(sabotage: str) -> None:
    do, undo, seen = SABOTAGES[sabotage]
    with undone(do, undo):
        red = verified(expect=1)
    assert red["verdict"] == "failed" and seen in red["observed"], red


def test_verify_notices_a_port_published_by_a_container() -> None:
    """By another container than the gateway's, in front of the application: on each address of the host."""
    image = HOST.root("docker inspect -f '{{.Image}}' comfyui-qwen")
    run = f"docker run -d --rm --name door -p 18188:8188 --entrypoint sleep {image} 300"
    with undone(f"{run} && docker network connect atelier-comfyui-qwen door", "docker rm -f door"):
        HOST.atelier("verify", "--check", "containers.networks", expect=1)


def test_with_all_undone_it_is_green() -> None:
    assert verified(expect=0)["verdict"] == "passed"
