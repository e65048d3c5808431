"""Carrying an uninstall out: nothing without a yes, a step that fails ends it, and what is still there afterwards is named."""

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_deployment import settings
from test_uninstall_plan import THERE, record

from atelier import lifecycle, recorded, remains, takedown
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.recorded import Recorded
from atelier.remains import Docker, Remains
from atelier.ssh import Completed, Destination
from atelier.target import Target

TARGET = Target("box", "host", Destination("box"), settings(), "HOST=box")


class Host:
    """A host that is as it is told, before and after; it notes what it is to do, and does nothing but what `fails` says."""

    destination = Destination("box")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, known: Recorded, *seen: Remains) -> None:
        self.done: list[str] = []
        self.fails: dict[str, str] = {}
        looks = iter(seen)
        monkeypatch.setattr(recorded, "parse", lambda _: known)
        monkeypatch.setattr(remains, "parse", lambda _: next(looks))
        monkeypatch.setattr(lifecycle, "host_lock", self._lock)
        monkeypatch.setattr(lifecycle, "guard", lambda: "")

    @contextlib.contextmanager
    def _lock(self, _: object) -> Iterator[None]:
        self.done.append("lock")
        yield
        self.done.append("unlock")

    def run(self, script: str, **_: object) -> Completed:
        if "apt-get -s" in script:
            return Completed(0, "::needless\n::removed\n::all\n::unwanted\n::recommends\n", "")
        self.done += [script] if script.startswith("rm") else []
        return Completed(0, "", "")

    def popen(self, script: str) -> "subprocess.Popen[bytes]":
        self.done.append(script)
        told = next((text for part, text in self.fails.items() if part in script), "")
        shell = f"cat >/dev/null; {told or ':'}"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(["sh", "-c", shell], **pipes)


GONE = replace(
    THERE,
    packages={"bash": "installed"},
    kinds={},
    docker=Docker(),
    users=frozenset(),
    rules=frozenset(),
    holds=frozenset(),
)


def uninstall(host: Host, *, yes: bool = True, purge: bool = False) -> int:
    with Narrator() as narrator:
        return takedown.run(TARGET, host, narrator, purge=purge, yes=yes)


def test_without_a_yes_and_without_a_terminal_nothing_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(monkeypatch, record(), THERE)
    with pytest.raises(AtelierError, match="nothing was removed") as raised:
        uninstall(host, yes=False)
    assert "YES=1" in raised.value.hint and host.done == ["lock"]
    output = capsys.readouterr().out
    assert "docker.io" in output and "/srv/atelier/models" in output, "the plan is told before the question"


def test_everything_is_done_under_the_lock_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "box").mkdir()
    monkeypatch.setattr(takedown.paths, "secrets_dir", lambda name: tmp_path / name)
    host = Host(monkeypatch, record(), THERE, GONE)
    assert uninstall(host) == 0
    assert host.done[0] == "lock" and host.done[-2:] == ["rm -rf /run/atelier", "unlock"]
    assert "docker stop -t 30 gateway" in host.done[1] and "host.json" in host.done[-3]
    output = capsys.readouterr().out
    assert "Removed: 3 containers, 1 network, 2 images" in output and "PURGE=1 removes it" in output
    assert str(tmp_path / "box") in output


def test_a_step_that_fails_ends_it_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, record(), THERE)
    host.fails["docker network rm"] = "echo has active endpoints; exit 1"
    with pytest.raises(AtelierError, match=r"Remove our networks: failed\n +has active endpoints") as raised:
        uninstall(host)
    assert "continues where it stopped" in raised.value.hint
    assert "network rm" in host.done[-1], "nothing after it"


def test_what_apt_says_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, record(), THERE)
    host.fails["apt-get purge"] = "echo 'atelier: the lock is held by apt (process 5)'; exit 75"
    with pytest.raises(AtelierError, match="package manager is busy: apt"):
        uninstall(host)


def test_what_is_still_there_afterwards_is_named_and_the_record_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, record(), THERE, replace(GONE, users=frozenset({"atelier"})))
    with pytest.raises(AtelierError, match="not everything could be removed from box: users atelier"):
        uninstall(host)
    assert not any("host.json" in script or "manifest.json" in script for script in host.done[-1:])


def test_a_lost_connection_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, record(), THERE)
    host.fails["docker stop"] = "echo 'Connection reset'; exit 255"
    with pytest.raises(AtelierError, match="cannot connect by SSH"):
        uninstall(host)


def test_a_host_without_anything_of_ours_is_left_in_peace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(monkeypatch, Recorded(), GONE)
    assert uninstall(host, yes=False) == 0
    assert host.done == ["lock", "rm -rf /run/atelier", "unlock"] and "nothing of a deploy" in capsys.readouterr().out
