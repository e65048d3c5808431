"""A connection to a host that is opened again: after a restart, by itself."""

import os
from pathlib import Path

import pytest

from atelier.ssh import Destination, Ssh

FAKE = """#!/bin/sh
echo "$*" >>"$FAKE_SSH_LOG"
case "$*" in
  *"id -u"*) echo 1000 ;;
  *"sudo -k -n true"*) exit 1 ;;
  *BatchMode=yes*"-- true") exit "${FAKE_SSH_ALONE:-0}" ;;
esac
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "ssh"
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SSH_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def test_the_password_of_sudo_is_not_asked_for_again(log: Path) -> None:
    ssh = Ssh(Destination("gpu.example"), _sudo=["sudo", "-S", "--"], _sudo_password="known")
    ssh.connect()
    assert ssh._sudo == ["sudo", "-S", "--"]
    assert "sudo" not in log.read_text()


@pytest.mark.parametrize(("status", "alone"), [("0", True), ("255", False)])
def test_whether_a_login_needs_a_person_is_asked_without_the_shared_connection(
    status: str, alone: bool, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SSH_ALONE", status)
    assert Ssh(Destination("gpu.example")).logs_in_alone() is alone
    assert "ControlPath=none" in log.read_text()
