"""One action on each target: what ends the whole command, and with which status."""

import pytest
import typer

from atelier import aim, cli, operate, verify
from atelier.aim import EndedEarlyError, for_each
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.settings import Settings
from atelier.ssh import Destination
from atelier.target import Target

HOSTS = [Target(name, "host", Destination(name), Settings(profile="cpu")) for name in ("gpu1", "gpu2", "gpu3")]


@pytest.fixture(autouse=True)
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aim, "resolve", lambda host, limit: HOSTS)


@pytest.mark.parametrize(
    ("answers", "status", "done"),
    [
        ([0, 0, 0], 0, 3),
        ([0, 3, 0], 3, 3),
        ([3, 1, 0], 1, 3),
        ([0, AtelierError("no route"), 0], 1, 3),
        ([EndedEarlyError(3)], 3, 1),
        ([EndedEarlyError(1)], 1, 1),
        ([0, EndedEarlyError(3)], 3, 2),
        ([1, EndedEarlyError(3)], 1, 2),
        ([AtelierError("no route"), EndedEarlyError(3)], 1, 2),
        ([0, 0, EndedEarlyError(3)], 3, 3),
    ],
)
def test_status_of_several(
    answers: list[int | Exception], status: int, done: int, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def action(target: Target, narrator: Narrator) -> int:
        answer = answers[len(begun)]
        begun.append(target.name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(typer.Exit) as ended:
        for_each("", "all", action)
    assert (ended.value.exit_code, begun) == (status, ["gpu1", "gpu2", "gpu3"][:done])
    left = ", ".join(["gpu1", "gpu2", "gpu3"][done:])
    assert (f"interrupted; not begun: {left}" in capsys.readouterr().err) == bool(left)


def test_an_interrupt_ends_the_command_of_whatever_it_was_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise verify.InterruptedRun("failed")

    monkeypatch.setattr(verify, "verify", interrupted)
    with pytest.raises(EndedEarlyError) as ended:
        operate.run_verify(HOSTS[0], Narrator())
    assert ended.value.status == verify.EXIT_STATUS["failed"]
    with pytest.raises(KeyboardInterrupt):  # a deploy goes on where it stopped, when it is run again
        operate.quick_verify(HOSTS[0], Narrator())


def test_ctrl_c_in_verify_of_several_hosts_verifies_none_further(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def interrupted(target: Target, **_: object) -> None:
        begun.append(target.name)
        raise verify.InterruptedRun("incomplete")

    monkeypatch.setattr(verify, "verify", interrupted)
    monkeypatch.setattr("sys.argv", ["atelier", "verify", "--limit", "all"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, begun) == (3, ["gpu1"])
    assert "interrupted; not begun: gpu2, gpu3" in capsys.readouterr().err
