"""Fingerprints of OpenPGP keys, compared with gpg's own and with published ones."""

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier import openpgp
from atelier.errors import AtelierError

ARCHIVE_KEYS = {
    "bookworm-stable": "4D64FEC119C2029067D6E791F8D2585B8783D481",
    "bookworm-automatic": "B8B80B5B623EAB6AD8775C45B7C5D7D6350947F8",
    "bookworm-security-automatic": "05AB90340C0C5E797F44A8C8254CF3B5AEC0A8F0",
}
"""As published at https://ftp-master.debian.org/keys.html."""

# Made for this test (ed25519, "atelier test"); its private part was thrown away.
KEY = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawI+WBYJKwYBBAHaRw8BAQdAdJH49JvI7FWMaaw6CrLWJ2HwtxWHon6KHxfa
cQ4uiCG0DGF0ZWxpZXIgdGVzdIiQBBMWCAA4FiEEeMuufC9I6+7w9QjSR6iyMr17
+RkFAmsCPlgCGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQR6iyMr17+RnY
3QEA/9vrMwpb5oK74isNgS5leArNPM0v4hi61ZJc93Yz93MBAPxvhXnWJWJTR5Sw
Tvdu+xNB4w1OMOwVHv9a8bz7WGEG
=ciNq
-----END PGP PUBLIC KEY BLOCK-----
"""
KEYS = Path(__file__).parent / "openpgp_keys"
"""Public keys that gpg made, a subkey each; making them takes seconds. Their private parts were thrown away."""
KINDS = ("rsa2048", "rsa4096", "ed25519", "nistp256", "dsa2048")
FINGERPRINT = "78CBAE7C2F48EBEEF0F508D247A8B232BD7BF919"


class Gpg:
    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, *arguments: str) -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--passphrase", "", *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def fingerprint(self, name: str) -> str:
        """Of the primary key, as gpg has it."""
        found = re.findall(r"^fpr:::::::::(\w+):", self.run("--list-keys", "--with-colons", name).decode(), re.M)
        return found[0]


@pytest.fixture(scope="module")
def gpg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpg]:
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not installed on this computer")
    # Not under pytest's own folder: the path of gpg-agent's socket must be short.
    home = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    gpg = Gpg(home)
    gpg.run("--import", *(str(KEYS / f"{kind}.asc") for kind in KINDS))
    yield gpg
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=False)
    shutil.rmtree(home, ignore_errors=True)


def test_a_key_in_this_file_needs_no_gpg() -> None:
    assert openpgp.fingerprints(KEY.encode()) == (FINGERPRINT,)
    assert openpgp.fingerprints(KEY.replace("\n", "\r\n").encode()) == (FINGERPRINT,)
    assert openpgp.fingerprints(openpgp.binary(KEY.encode())) == (FINGERPRINT,)


@pytest.mark.parametrize("name", ARCHIVE_KEYS)
def test_debian_s_archive_keys_have_their_published_fingerprints(name: str) -> None:
    path = Path(f"/usr/share/keyrings/debian-archive-{name}.gpg")
    if not path.exists():
        pytest.skip(f"{path} is not on this computer")
    openpgp.require(path.read_bytes(), ARCHIVE_KEYS[name], "Debian")


@pytest.mark.parametrize("kind", KINDS)
def test_gpg_agrees_about_keys_of_every_kind(gpg: Gpg, kind: str) -> None:
    wanted = gpg.fingerprint(f"{kind}@example.invalid")
    for export in (["--export"], ["--armor", "--export"], ["--armor", "--comment", "x: y", "--export"]):
        assert openpgp.fingerprints(gpg.run(*export, wanted)) == (wanted,)


def test_a_keyring_with_several_keys_is_read_whole_and_refused_as_one(gpg: Gpg) -> None:
    wanted = [gpg.fingerprint(f"{kind}@example.invalid") for kind in KINDS[:3]]
    exported = gpg.run("--armor", "--export", *wanted)
    assert openpgp.fingerprints(exported) == tuple(wanted)
    for fingerprint in wanted:
        with pytest.raises(AtelierError, match=f"{wanted[0]} and {wanted[1]} and {wanted[2]}, expected"):
            openpgp.require(exported, fingerprint, "https://example.invalid/key")


def test_a_private_key_is_refused(gpg: Gpg) -> None:
    gpg.run("--quick-generate-key", "private", "ed25519", "sign", "never")
    wanted = gpg.fingerprint("private")
    assert openpgp.fingerprints(gpg.run("--export", wanted)) == (wanted,)
    for armour in ([], ["--armor"]):
        secret = gpg.run(*armour, "--export-secret-keys", wanted)
        with pytest.raises(ValueError, match="private key"):
            openpgp.fingerprints(secret)


BLOCK = KEY.encode()
BINARY = openpgp.binary(BLOCK)
GARBAGE = {
    "nothing": b"",
    "blank": b"\n\n",
    "a web page": b"<!DOCTYPE html><title>Sign in to the network</title>",
    "binary rubbish": bytes(range(128, 256)),
    "cut in the middle": BINARY[: len(BINARY) // 2],
    "armour cut": BLOCK[:-60],
    "no end": BLOCK.replace(b"-----END PGP PUBLIC KEY BLOCK-----", b""),
    "text before": b"# a comment\n" + BLOCK,
    "text behind": BLOCK + b"x",
    "two blocks": BLOCK + BLOCK,
    "bytes behind": BINARY + b"\0",
    "no base64": BLOCK.replace(b"BLOCK-----\n\n", b"BLOCK-----\n\n!", 1),
    "a wrong checksum": re.sub(rb"\n=....\n", b"\n=AAAA\n", BLOCK),
    "a key of version 5": BINARY.replace(BINARY[2:3], b"\x05", 1),
    "only a signature": base64.b64decode("iHUEABYKAB0WIQQ="),
    "a length in parts": b"\xc6\xe1" + b"\x04" * 8,
    "a length without end": b"\x9b" + b"\x04" * 8,
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_anything_else_is_refused_with_one_clear_message(content: bytes) -> None:
    with pytest.raises(AtelierError, match="is no OpenPGP public key: it") as caught:
        openpgp.require(content, FINGERPRINT, "https://example.invalid/key")
    assert "nothing was installed" in caught.value.hint


def test_another_key_is_refused_and_both_fingerprints_are_named() -> None:
    with pytest.raises(AtelierError, match=f"has the fingerprint {FINGERPRINT}, expected {'0' * 40}"):
        openpgp.require(BLOCK, "0" * 40, "https://example.invalid/key")


def test_a_keyring_has_the_form_that_its_name_tells_apt() -> None:
    assert openpgp.for_keyring(BLOCK, "/k.gpg") == BINARY == openpgp.for_keyring(BINARY, "/k.gpg")
    assert openpgp.for_keyring(BLOCK, "/k.asc") == BLOCK
    armoured = openpgp.for_keyring(BINARY, "/k.asc")
    assert openpgp.binary(armoured) == BINARY
