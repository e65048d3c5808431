"""Where a request comes from: a pure function of its connection and of what trusted proxies say of it."""

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK = ipaddress.IPv4Address("127.0.0.1")


@dataclass(frozen=True)
class Client:
    """Who sent a request, as far as addresses tell.

    `shared` is whether others have this address as well: all who come through the host itself (a tunnel, a loopback
    bind), or through a proxy that does not say for whom. `secure` is whether the client itself speaks TLS, to us or to
    a trusted proxy.
    """

    address: Address
    shared: bool
    secure: bool

    @property
    def scheme(self) -> str:
        """The scheme of the addresses that the client sees."""
        return "https" if self.secure else "http"

    @property
    def counted_as(self) -> str | None:
        """What wrong credentials are counted under: the address, an IPv6 one's network, nothing for a shared one."""
        if self.shared:
            return None
        if self.address.version == 6:
            return str(ipaddress.ip_network((self.address, 64), strict=False))
        return str(self.address)

    @property
    def name(self) -> str:
        """The address as logs name it; never one that a ban would cut everybody off by."""
        return "shared" if self.shared else str(self.address)


@dataclass(frozen=True)
class Surroundings:
    """What the gateway knows of its network.

    `own_gateways` are the addresses from which connections of the host itself arrive in the container: Docker carries
    what reaches a loopback address, or an IPv6 one, into the container by a program of its own.
    """

    trusted_proxies: Sequence[Network] = ()
    own_gateways: Collection[Address] = ()
    tls: bool = False


def read_client(peer: str, forwarded_for: str, forwarded_proto: str, around: Surroundings) -> Client:
    """The rightmost address that is no trusted proxy's; the connection's own when one on the way there is malformed."""
    sender = read_address(peer) or LOOPBACK
    if sender in around.own_gateways:
        sender = LOOPBACK
    secure = around.tls
    address = sender
    if _trusted(sender, around):
        if forwarded_proto:
            secure = forwarded_proto.rpartition(",")[2].strip().lower() == "https"
        address = _rightmost_stranger(forwarded_for, around) or sender
    return Client(address, address.is_loopback or _trusted(address, around), secure)


def _rightmost_stranger(forwarded_for: str, around: Surroundings) -> Address | None:
    for entry in reversed(forwarded_for.split(",")):
        address = read_address(entry.strip())
        if address is None or not _trusted(address, around):
            return address
    return None


def read_address(text: str) -> Address | None:
    """An address; one of IPv4 in IPv6's clothes is IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return None if address.scope_id else address.ipv4_mapped or address
    return address


def read_default_gateways(route_table: str) -> frozenset[Address]:
    """The default gateways in the text of /proc/net/route."""
    rows = [line.split() for line in route_table.splitlines()[1:]]
    found = (bytes.fromhex(row[2])[::-1] for row in rows if len(row) > 2 and row[1] == "00000000")
    return frozenset(ipaddress.IPv4Address(packed) for packed in found if any(packed))


def _trusted(address: Address, around: Surroundings) -> bool:
    return any(address in network for network in around.trusted_proxies)
