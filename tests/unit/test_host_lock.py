"""The lock of a host, with this computer's own shell in the place of the host's."""

import re
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from atelier import lifecycle
from atelier.errors import AtelierError
from atelier.ssh import Completed, Ssh
from atelier.weights_unit import follow_shell


def _popen(script: str) -> "subprocess.Popen[bytes]":
    command = ["sh", "-c", script]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _run(script: str, **_: object) -> Completed:
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    return Completed(done.returncode, done.stdout, done.stderr)


HOST = cast(Ssh, SimpleNamespace(popen=_popen, run=_run, destination=SimpleNamespace(host="here")))


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LOCK_DIRECTORY", str(tmp_path / "lock"))
    monkeypatch.setattr(lifecycle, "BEAT", 0.02)
    monkeypatch.setattr(lifecycle, "SILENCE", 0.6)
    monkeypatch.setattr(lifecycle, "MOMENT", 0.5)


def _guarded(script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["sh", "-c", lifecycle.guard() + script], capture_output=True, text=True)


def _left_running(script: str) -> "subprocess.Popen[bytes]":
    """A command that has begun, and goes on until it is ended."""
    left = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert left.stdout
    left.stdout.readline()
    return left


def _end(left: "subprocess.Popen[bytes]") -> None:
    assert left.stdin
    left.stdin.close()


def test_a_deploy_that_lives_keeps_the_lock_and_one_that_ended_does_not() -> None:
    with lifecycle.host_lock(HOST):
        time.sleep(0.8)
        with (
            pytest.raises(AtelierError, match=r"another deploy of here is running: held by .+ since"),
            lifecycle.host_lock(HOST),
        ):
            pass
        assert _guarded("echo done").stdout == "done\n"
    with lifecycle.host_lock(HOST):
        pass


def test_who_has_a_deploy_at_work_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held() -> str:
        return lifecycle.deploy_at_work(HOST)

    assert held() == ""
    with lifecycle.host_lock(HOST):
        assert held() == "", "one does not have to be told of oneself"
        monkeypatch.setattr(lifecycle, "HOLDER", "another")
        assert re.fullmatch(r"\S+ on \S+ since \d{4}-\d\d-\d\d \d\d:\d\d UTC", held())
        with pytest.raises(AtelierError, match=f"held by {held()}"), lifecycle.host_lock(HOST):
            pass
    assert held() == ""
    (tmp_path / "lock" / "lock").unlink()
    assert held() == "", "there was none since the host was restarted"


def test_a_look_at_the_lock_refuses_no_deploy() -> None:
    with lifecycle.host_lock(HOST):
        pass
    look = _left_running(f"exec 9<>{lifecycle.LOCK_DIRECTORY}/lock; flock -s 9; echo; sleep 0.3")
    with lifecycle.host_lock(HOST):
        assert look.wait() == 0


def test_a_deploy_out_of_reach_loses_the_lock_and_does_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "BEAT", 60.0)
    monkeypatch.setattr(lifecycle, "SILENCE", 0.1)
    with lifecycle.host_lock(HOST):
        asleep = lifecycle.guard()
        subprocess.run(["flock", "--wait", "20", f"{lifecycle.LOCK_DIRECTORY}/lock", "true"], check=True)
        monkeypatch.setattr(lifecycle, "SILENCE", 60)
        monkeypatch.setattr(lifecycle, "HOLDER", "another")
        with lifecycle.host_lock(HOST):
            assert _guarded("echo done").stdout == "done\n"
        late = subprocess.run(["sh", "-c", asleep + "echo done"], capture_output=True, text=True)
        assert late.returncode == 1
        assert "another deploy has begun" in late.stderr
        assert not late.stdout


def test_what_a_killed_deploy_left_running_is_waited_for(tmp_path: Path) -> None:
    with lifecycle.host_lock(HOST):
        left = _left_running(f"{lifecycle.guard()} echo; read -r _; sleep 0.2; echo >{tmp_path}/done")
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        _end(left)

    with lifecycle.host_lock(HOST, hear):
        assert (tmp_path / "done").exists()
    assert left.wait() == 0
    assert "interrupted deploy" in said[0]


def test_one_who_only_follows_a_transfer_is_not_waited_for() -> None:
    from atelier.settings import Settings

    release = follow_shell(Settings.model_validate({"profile": "cpu"})).partition(";")[0]
    with lifecycle.host_lock(HOST):
        left = _left_running(f"{lifecycle.guard()} sh -c '{release}; echo; read -r _'")
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        _end(left)

    with lifecycle.host_lock(HOST, hear):
        assert left.poll() is None
    assert said == []
    _end(left)
