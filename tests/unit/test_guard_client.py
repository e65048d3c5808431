"""Whose request it is: peer, forwarded addresses, trusted proxies, and what the host itself looks like."""

import ipaddress
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "images" / "gateway"))

from guard.client import Surroundings, read_client, read_default_gateways  # noqa: E402

AROUND = Surroundings(
    trusted_proxies=(ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("127.0.0.1/32")),
    own_gateways=frozenset({ipaddress.ip_address("172.18.0.1")}),
)


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("203.0.113.9", "", "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.7", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.7", "1.1.1.1, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.7", "1.1.1.1,198.51.100.1,10.0.0.8", "198.51.100.1"),
        ("10.0.0.7", "not an address, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.7", "2001:db8::1", "2001:db8::1"),
        ("10.0.0.7", "::ffff:198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.7", "198.51.100.1", "198.51.100.1"),
        ("172.18.0.1", "198.51.100.1", "198.51.100.1"),  # a proxy on the host, which is trusted as 127.0.0.1
        # Nobody of whom a ban or a lock may be made: the proxy itself, or all who come through the host.
        ("10.0.0.7", "", "shared"),
        ("10.0.0.7", "10.0.0.8", "shared"),
        ("10.0.0.7", "198.51.100.1, garbage", "shared"),
        ("10.0.0.7", "198.51.100.1,", "shared"),
        ("10.0.0.7", "198.51.100.1:1234", "shared"),
        ("10.0.0.7", "fe80::1%eth0", "shared"),
        ("10.0.0.7", "127.0.0.5", "shared"),
        ("127.0.0.1", "", "shared"),
        ("::1", "", "shared"),
        ("172.18.0.1", "", "shared"),
        ("", "198.51.100.1", "198.51.100.1"),
    ],
)
def test_address(peer: str, forwarded_for: str, expected: str) -> None:
    assert read_client(peer, forwarded_for, "", AROUND).name == expected


def test_without_trusted_proxies_nothing_forwarded_is_believed() -> None:
    client = read_client("127.0.0.1", "198.51.100.1", "https", Surroundings())
    assert (client.name, client.scheme) == ("shared", "http")


@pytest.mark.parametrize(
    ("peer", "proto", "tls", "expected"),
    [
        ("203.0.113.9", "", False, "http"),
        ("203.0.113.9", "", True, "https"),
        ("203.0.113.9", "https", False, "http"),
        ("203.0.113.9", "http", True, "https"),
        ("10.0.0.7", "https", False, "https"),
        ("10.0.0.7", "HTTPS", False, "https"),
        ("10.0.0.7", "http, https", False, "https"),
        ("10.0.0.7", "https, http", True, "http"),
        ("10.0.0.7", "", True, "https"),
        ("10.0.0.7", "wss", False, "http"),
    ],
)
def test_scheme(peer: str, proto: str, tls: bool, expected: str) -> None:
    around = Surroundings(AROUND.trusted_proxies, AROUND.own_gateways, tls)
    assert read_client(peer, "198.51.100.1", proto, around).scheme == expected


def test_default_gateways() -> None:
    table = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010012AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    assert read_default_gateways(table) == {ipaddress.ip_address("172.18.0.1")}
    assert read_default_gateways(table.splitlines()[0]) == frozenset()
