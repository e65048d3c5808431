"""Fingerprints of OpenPGP public keys (RFC 4880, RFC 9580), without gpg: a bare host has none, an operator may not.

A key is only read here to be compared with a fingerprint that we pin. So whatever apt might read otherwise than we do, such
as a second block or bytes outside of it, is refused.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

from atelier.errors import AtelierError

ARMOUR = re.compile(
    rb"\s*-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(?P<headers>(?:[A-Za-z]+: [^\n]*\n)*)[ \t]*\r?\n"
    rb"(?P<data>[A-Za-z0-9+/\s]+={0,2}\s*?)(?:\n=(?P<checksum>[A-Za-z0-9+/]{4}))?\s*-----END PGP PUBLIC KEY BLOCK-----\s*\Z"
)
PUBLIC_KEY = 6
IN_A_PUBLIC_KEY = {2: "signature", PUBLIC_KEY: "key", 12: "trust", 13: "user id", 14: "subkey", 17: "user attribute"}
VERSION = 4


def fingerprints(key: bytes) -> tuple[str, ...]:
    """The fingerprints of the primary keys in a file of public keys, armoured or binary: 40 hex digits in capitals.

    Raises ValueError with the reason when it is anything else.
    """
    found: list[str] = []
    for tag, body in _packets(binary(key)):
        if tag not in IN_A_PUBLIC_KEY:
            raise ValueError("it holds a private key" if tag in (5, 7) else f"it holds a packet of type {tag}")
        if tag != PUBLIC_KEY:
            if not found:
                raise ValueError("it does not begin with a key")
            continue
        if body[:1] != bytes([VERSION]):
            raise ValueError(f"its key is of another version than {VERSION}")
        head = b"\x99" + len(body).to_bytes(2, "big")
        found.append(hashlib.sha1(head + body, usedforsecurity=False).hexdigest().upper())
    if not found:
        raise ValueError("it holds no key")
    return tuple(found)


def require(key: bytes, fingerprint: str, origin: str) -> None:
    """Raise AtelierError unless the file holds exactly the one key with this fingerprint."""
    hint = (
        "the owner may have changed the key, or something on the way did: compare it with the fingerprint the owner "
        "publishes, then mend locks/sources.yml or the setting that names it; nothing was installed"
    )
    try:
        found = fingerprints(key)
    except ValueError as error:
        raise AtelierError(f"the signing key from {origin} is no OpenPGP public key: {error}", hint) from None
    if found != (fingerprint,):
        raise AtelierError(
            f"the signing key from {origin} has the fingerprint {' and '.join(found)}, expected {fingerprint}", hint
        )


def for_keyring(key: bytes, path: str) -> bytes:
    """The key as apt reads it: by a keyring's name it expects armour in `.asc` and binary in `.gpg`."""
    if not path.endswith(".asc"):
        return binary(key)
    if key.lstrip().startswith(b"-----"):
        return key
    text = base64.encodebytes(key).decode()
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{text}-----END PGP PUBLIC KEY BLOCK-----\n".encode()


def binary(key: bytes) -> bytes:
    """The key without its armour. Raises ValueError when that is damaged."""
    if not key.strip():
        raise ValueError("it is empty")
    if key[0] & 0x80:
        return key
    block = ARMOUR.match(key)
    if block is None:
        private = b"-----BEGIN PGP PRIVATE KEY BLOCK" in key
        raise ValueError("it holds a private key" if private else "it is not one block of a public key")
    try:
        data = base64.b64decode(b"".join(block["data"].split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"its armour is damaged: {error}") from None
    if block["checksum"] and _crc24(data) != base64.b64decode(block["checksum"]):
        raise ValueError("its checksum is wrong")
    return data


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and body of each packet (RFC 4880, 4.2)."""
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise ValueError("it is damaged")
        if head & 0x40:
            tag, (length, size) = head & 0x3F, _new_form_length(data[at + 1 : at + 6])
        else:
            tag, size = head >> 2 & 0x0F, {0: 1, 1: 2, 2: 4}.get(head & 3, 0)
            length = int.from_bytes(data[at + 1 : at + 1 + size], "big")
        body = data[at + 1 + size : at + 1 + size + length]
        if not size or len(body) != length:
            raise ValueError("it is damaged")
        yield tag, body
        at += 1 + size + length


def _new_form_length(octets: bytes) -> tuple[int, int]:
    """A packet's length and in how many octets it is written; (0, 0) where it is in parts, as no key is."""
    first = octets[0] if octets else 0
    if octets and first < 192:
        return first, 1
    if len(octets) >= 2 and first < 224:
        return ((first - 192) << 8) + octets[1] + 192, 2
    if len(octets) == 5 and first == 255:
        return int.from_bytes(octets[1:5], "big"), 5
    return 0, 0


def _crc24(data: bytes) -> bytes:
    crc = 0xB704CE
    for octet in data:
        crc ^= octet << 16
        for _ in range(8):
            crc = crc << 1 ^ (0x1864CFB if crc & 0x800000 else 0)
    return (crc & 0xFFFFFF).to_bytes(3, "big")
