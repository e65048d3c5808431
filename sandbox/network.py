"""The guest's network: a namespace of its own, a link to this computer for SSH, and a link to a fake internet.

Nothing is forwarded and nothing is translated: the guest reaches this computer's end of the SSH link, and the fake
internet, and no other machine. Packages come through the proxy, which listens inside the guest's namespace.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sandbox import tools

SSH_RANGE = ipaddress.ip_network("198.18.0.0/15")  # RFC 2544: for tests, never routed on the internet
GUEST_ADDRESS = "10.213.0.2"  # seen only between the guest and its own fake internet, so the same in every guest
INTERNET_ADDRESS = "10.213.0.1"
INTERNET_PREFIX = 24
GUEST_NETWORK = "10.213.0.0/24"
# Where an unmasqueraded packet of a container would come from: the fake internet answers those too.
CONTAINER_RANGES = ("172.16.0.0/12", "192.168.0.0/16")


@dataclass(frozen=True)
class Network:
    """The names and addresses of one sandbox's network."""

    guest_namespace: str
    internet_namespace: str
    outer_link: str
    outer_address: str
    guest_ssh_address: str
    prefix: int = 30


def plan(name: str, taken: Iterable[str]) -> Network:
    """Names from the sandbox's name, and the first free /30 from a place that the name decides.

    ``taken`` are the networks this computer knows (``a.b.c.d/len``). Raises RuntimeError when all are taken.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()
    used = [ipaddress.ip_network(network, strict=False) for network in taken]
    count = 2 ** (30 - SSH_RANGE.prefixlen)
    for step in range(count):
        offset = 4 * ((int(digest, 16) + step) % count)
        candidate = ipaddress.ip_network((int(SSH_RANGE.network_address) + offset, 30))
        if not any(candidate.overlaps(other) for other in used):
            outer, guest = candidate.hosts()
            return Network(f"atelier-{name}", f"atelier-{name}.internet", f"at-{digest[:10]}", str(outer), str(guest))
    raise RuntimeError(f"no free /30 is left in {SSH_RANGE} for the sandbox's SSH link")


def ip(*arguments: str) -> str:
    """Runs ``ip`` and returns what it printed; raises RuntimeError with its message."""
    done = subprocess.run(["ip", *arguments], env=tools.environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def taken_networks() -> list[str]:
    """Every IPv4 network that this computer has an address in or a route to, the default route apart."""
    found = [
        f"{entry['local']}/{entry['prefixlen']}"
        for link in json.loads(ip("-j", "-4", "addr"))
        for entry in link.get("addr_info", [])
    ]
    routes = (route["dst"] for route in json.loads(ip("-j", "-4", "route", "show", "table", "main")))
    return found + [route for route in routes if route != "default"]


def has_link(name: str) -> bool:
    """Whether this process's namespace has the interface; ``/sys/class/net`` may show another's."""
    return name in (link for _, link in socket.if_nameindex())


def create(network: Network) -> None:
    """Makes both namespaces and both links. Whatever an earlier crash left is removed first."""
    remove(network)
    guest, internet = network.guest_namespace, network.internet_namespace
    for namespace in (guest, internet):
        ip("netns", "add", namespace)
        ip("-n", namespace, "link", "set", "lo", "up")
    ip("link", "add", network.outer_link, "type", "veth", "peer", "name", "ssh0", "netns", guest)
    # A computer that forwards (one with Docker, say) still forwards nothing that comes from the guest.
    settings = Path("/proc/sys/net")
    (settings / f"ipv4/conf/{network.outer_link}/forwarding").write_text("0")
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        (settings / f"ipv6/conf/{network.outer_link}/disable_ipv6").write_text("1")
    ip("addr", "add", f"{network.outer_address}/{network.prefix}", "dev", network.outer_link)
    ip("link", "set", network.outer_link, "up")
    ip("-n", guest, "addr", "add", f"{network.guest_ssh_address}/{network.prefix}", "dev", "ssh0")
    ip("-n", guest, "link", "set", "ssh0", "up")

    ip("-n", internet, "link", "add", "guest0", "type", "veth", "peer", "name", "eth0", "netns", guest)
    ip("-n", internet, "addr", "add", f"{INTERNET_ADDRESS}/{INTERNET_PREFIX}", "dev", "guest0")
    ip("-n", internet, "link", "set", "guest0", "up")
    # Every address is this namespace's own, the guest's side apart. In the table `local`, because the kernel lets a
    # socket answer only from an address that it finds there.
    ip("-n", internet, "route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "local")
    ip("-n", internet, "route", "add", GUEST_NETWORK, "dev", "guest0", "table", "local")
    ip("-n", guest, "addr", "add", f"{GUEST_ADDRESS}/{INTERNET_PREFIX}", "dev", "eth0")
    ip("-n", guest, "link", "set", "eth0", "up")
    ip("-n", guest, "route", "add", "default", "via", INTERNET_ADDRESS)
    for containers in CONTAINER_RANGES:
        ip("-n", internet, "route", "add", containers, "via", GUEST_ADDRESS, "table", "local")


def remove(network: Network) -> None:
    """Removes the namespaces and the link; what is already gone is no error."""
    if has_link(network.outer_link):
        ip("link", "delete", network.outer_link)
    for namespace in (network.guest_namespace, network.internet_namespace):
        if Path(f"/run/netns/{namespace}").exists():
            ip("netns", "delete", namespace)
