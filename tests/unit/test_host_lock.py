"""The lock of a host, with this computer's own shell in the place of the host's."""

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from atelier import lifecycle
from atelier.errors import AtelierError
from atelier.ssh import Ssh
from atelier.weights_unit import follow_shell


def _popen(script: str) -> "subprocess.Popen[bytes]":
    command = ["sh", "-c", script]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


HOST = cast(Ssh, SimpleNamespace(popen=_popen, destination=SimpleNamespace(host="here")))


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LOCK_DIRECTORY", str(tmp_path / "lock"))
    monkeypatch.setattr(lifecycle, "BEAT", 0.1)
    monkeypatch.setattr(lifecycle, "SILENCE", 1)


def _guarded(script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["sh", "-c", lifecycle.guard() + script], capture_output=True, text=True)


def test_a_deploy_that_lives_keeps_the_lock_and_one_that_ended_does_not() -> None:
    with lifecycle.host_lock(HOST):
        time.sleep(1.5)
        with (
            pytest.raises(AtelierError, match=r"another deploy of here is running: held by .+ since"),
            lifecycle.host_lock(HOST),
        ):
            pass
        assert _guarded("echo done").stdout == "done\n"
    with lifecycle.host_lock(HOST):
        pass


def test_a_deploy_out_of_reach_loses_the_lock_and_does_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "BEAT", 60.0)
    with lifecycle.host_lock(HOST):
        asleep = lifecycle.guard()
        time.sleep(1.5)
        monkeypatch.setattr(lifecycle, "HOLDER", "another")
        with lifecycle.host_lock(HOST):
            assert _guarded("echo done").stdout == "done\n"
        late = subprocess.run(["sh", "-c", asleep + "echo done"], capture_output=True, text=True)
        assert late.returncode == 1
        assert "another deploy has begun" in late.stderr
        assert not late.stdout


def test_what_a_killed_deploy_left_running_is_waited_for() -> None:
    with lifecycle.host_lock(HOST):
        left = subprocess.Popen(["sh", "-c", lifecycle.guard() + "echo; sleep 1"], stdout=subprocess.PIPE)
        assert left.stdout
        left.stdout.readline()
    said: list[str] = []
    with lifecycle.host_lock(HOST, said.append):
        assert left.poll() is not None
    assert "interrupted deploy" in said[0]


def test_one_who_only_follows_a_transfer_is_not_waited_for() -> None:
    from atelier.settings import Settings

    release = follow_shell(Settings.model_validate({"profile": "cpu"})).partition(";")[0]
    with lifecycle.host_lock(HOST):
        left = subprocess.Popen(
            ["sh", "-c", f"{lifecycle.guard()} sh -c '{release}; echo; sleep 2'"], stdout=subprocess.PIPE
        )
        assert left.stdout
        left.stdout.readline()
    with lifecycle.host_lock(HOST):
        assert left.poll() is None
    left.wait()
