"""A changed host key: both fingerprints, the exact command, and nothing accepted."""

import shlex
import subprocess
from pathlib import Path

import pytest

from atelier import host_keys
from atelier.ssh import Destination, connection_error

SHOWN = "SHA256:3cUx8rRZrhkEnfyHTcIbPvIE8XhjB2pgFV0tA3dZLqM"
SAID = """@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Someone could be eavesdropping on you right now (man-in-the-middle attack)!
It is also possible that a host key has just been changed.
The fingerprint for the ED25519 key sent by the remote host is
{shown}.
Please contact your system administrator.
Add correct host key in {file} to get rid of this message.
Offending RSA key in {file}:{line}
  remove with:
  ssh-keygen -f "{file}" -R "{name}"
Host key for {name} has changed and you have requested strict checking.
Host key verification failed.
"""
"""OpenSSH's words."""


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return path.with_suffix(".pub")


def fingerprint_by_ssh(key: Path) -> str:
    told = subprocess.run(["ssh-keygen", "-lf", key], check=True, capture_output=True, text=True).stdout
    return told.split()[1]


@pytest.fixture
def known_hosts(key: Path, tmp_path: Path) -> Path:
    file = tmp_path / "known hosts"
    file.write_text(f"# mine\n[gpu1]:2222 {key.read_text()}")
    return file


def said(file: Path, line: int = 2, name: str = "[gpu1]:2222") -> str:
    return SAID.format(shown=SHOWN, file=file, line=line, name=name)


def test_both_fingerprints_and_the_exact_command(key: Path, known_hosts: Path) -> None:
    told = str(connection_error(Destination("gpu1", port=2222), said(known_hosts)))
    assert f"known here: ED25519 {fingerprint_by_ssh(key)} ({known_hosts}, line 2)" in told
    assert f"shown now:  ED25519 {SHOWN}" in told
    assert f"ssh-keygen -f '{known_hosts}' -R '[gpu1]:2222'" in told
    assert "somebody is in between" in told


def test_the_command_forgets_that_key_and_no_other(key: Path, known_hosts: Path) -> None:
    other = f"gpu2 {key.read_text()}"
    known_hosts.write_text(known_hosts.read_text() + other)
    told = str(connection_error(Destination("gpu1", port=2222), said(known_hosts)))
    command = next(line for line in told.splitlines() if "only where they are equal: " in line).partition("equal: ")[2]
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    assert known_hosts.read_text().splitlines() == ["# mine", *other.splitlines()]


def test_the_file_of_known_keys_is_left_as_it_is(known_hosts: Path) -> None:
    before = known_hosts.read_text()
    connection_error(Destination("gpu1", port=2222), said(known_hosts))
    assert known_hosts.read_text() == before


@pytest.mark.parametrize(("file", "line"), [("/nonexistent/known_hosts", 1), (None, 9), (None, 1)])
def test_a_key_that_cannot_be_read_is_said_to_be(file: str | None, line: int, known_hosts: Path) -> None:
    told = str(connection_error(Destination("gpu1"), said(Path(file) if file else known_hosts, line)))
    assert "known here: a key that cannot be read" in told and SHOWN in told


@pytest.mark.parametrize(
    ("line", "begins"),
    [
        ("|1|aGFzaA==|aGFzaA== ssh-rsa AAAAB3NzaC1yc2E=", "RSA SHA256:"),
        ("@cert-authority *.example ecdsa-sha2-nistp256 AAAAE2VjZHNh me@here", "ECDSA SHA256:"),
        ("gpu1 sk-ssh-ed25519@openssh.com AAAAGnNr", "ED25519 SHA256:"),
        ("# a comment", ""),
        ("gpu1 ssh-ed25519 AAA", ""),
    ],
)
def test_lines_of_known_hosts(line: str, begins: str) -> None:
    found = host_keys.fingerprint(line)
    assert found.startswith(begins) and bool(found) == bool(begins)


def test_other_failures_are_no_change() -> None:
    assert host_keys.explain("gpu1", "Host key verification failed.") is None
