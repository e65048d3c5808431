"""Restarting a host: who says yes, what came of it, and that it happens once."""

import contextlib
import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from atelier import cli, lifecycle, operate
from atelier import reboot as restarting
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.gpu.plan import GpuPlan
from atelier.ssh import Completed
from stages import provision

HOST = "gpu.example"


class Terminal(io.StringIO):
    """Standard input with a person at it, or none."""

    def __init__(self, typed: str, there: bool = True) -> None:
        super().__init__(typed)
        self.there = there

    def isatty(self) -> bool:
        return self.there


ANSWERS = {
    "yes": (Terminal("yes\n"), True, True),
    "y, in capitals": (Terminal(" Y \n"), True, True),
    "no": (Terminal("n\n"), True, False),
    "just return": (Terminal("\n"), True, False),
    "something else": (Terminal("yep\n"), True, False),
    "end of file": (Terminal(""), True, False),
    "input that is no terminal": (Terminal("yes\n", there=False), True, False),
    "output that is no terminal": (Terminal("yes\n"), False, False),
}


@pytest.mark.parametrize(("typed", "shown", "agreed"), ANSWERS.values(), ids=ANSWERS)
def test_a_host_is_restarted_only_with_a_yes(
    typed: Terminal, shown: bool, agreed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", typed)
    screen = io.StringIO()
    with Narrator(Console(file=screen, force_terminal=shown, width=200)) as narrator:
        if agreed:
            restarting.require_consent(HOST, "nouveau holds the card", False, narrator)
        else:
            with pytest.raises(AtelierError, match="must be restarted before") as refused:
                restarting.require_consent(HOST, "nouveau holds the card", False, narrator)
            assert "REBOOT=1" in refused.value.hint
    assert "The host must be restarted: nouveau holds the card" in screen.getvalue()
    assert (f"Restart {HOST} now? [y/N]" in screen.getvalue()) == (typed.there and shown)


def test_a_yes_on_the_command_line_is_asked_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Narrator, "ask", lambda *_: pytest.fail("it was asked"))
    restarting.require_consent(HOST, "nouveau holds the card", True, Narrator(Console(file=io.StringIO())))


class Machine:
    """Stands for the connection to a host that answers with these boots, one a look; None: not at all."""

    destination = SimpleNamespace(host=HOST)

    def __init__(self, *boots: str | None) -> None:
        self.boots, self.told, self.closed = list(boots), list[str](), 0

    def connect(self) -> None:
        if self.boots[0] is None:
            self._next()
            raise AtelierError("no route to host")

    def close(self) -> None:
        self.closed += 1

    def run(self, script: str, **_: object) -> Completed:
        if "boot_id" not in script:
            self.told.append(script)
            return Completed(0, "", "")
        return Completed(0, self._next() or "", "")

    def _next(self) -> str | None:
        return self.boots.pop(0) if len(self.boots) > 1 else self.boots[0]


def restart(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> str:
    """Restarts it with little patience; returns what a person reads."""
    monkeypatch.setattr(restarting, "INTERVAL", 0.001)
    screen = io.StringIO()
    restarting.reboot(machine, 0.1, Narrator(Console(file=screen, width=200)))
    assert len(machine.told) == 1 and "systemctl reboot" in machine.told[0]
    return screen.getvalue()


def test_a_host_is_back_when_it_answers_from_another_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("first\n", "first\n", None, "", "second\n")
    assert f"+ Restart {HOST} and wait for it" in restart(machine, monkeypatch)
    assert machine.boots == ["second\n"] and machine.closed, "the connection to the first boot is no use any more"


STAYED = {
    "never went": (("first\n",), "was told to restart and still runs after", "systemctl reboot"),
    "never came back": (("first\n", None), "did not come back within", "timeouts.reboot"),
    "went late": (("first\n", "first\n", "first\n", None), "did not come back within", "console"),
    "answers nothing": (("first\n", ""), "did not come back within", "console"),
}


@pytest.mark.parametrize(("boots", "problem", "remedy"), STAYED.values(), ids=STAYED)
def test_a_host_that_is_not_back_in_time_is_named(
    boots: tuple[str | None, ...], problem: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AtelierError, match=f"{HOST} {problem}") as error:
        restart(Machine(*boots), monkeypatch)
    assert remedy in error.value.hint and "the same command again" in error.value.hint


@pytest.fixture
def machine() -> Machine:
    return Machine("first\n")


@pytest.fixture
def restarts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A deploy to a host for which a restart is due whatever was done; records what was tried."""
    log: list[str] = []

    def deploy_with_driver(*_: object) -> provision.Outcome:
        log.append("attempt")
        return provision.Outcome(1, (), 1, "the driver is not loaded")

    monkeypatch.setattr(operate, "connected", lambda *_: machine)
    monkeypatch.setattr(lifecycle, "host_lock", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(lifecycle, "prepare", lambda *_: SimpleNamespace(gpu=GpuPlan("none", "cpu")))
    monkeypatch.setattr(lifecycle, "find_obstacles", lambda *_, **__: [])
    monkeypatch.setattr(provision, "deploy_with_driver", deploy_with_driver)
    monkeypatch.setattr(restarting, "reboot", lambda *_: log.append("restart"))
    return log


def deploy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one message that it ends in."""
    monkeypatch.setattr(sys, "argv", ["atelier", "deploy", "--host", "sandbox-x", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_a_deploy_restarts_a_host_once(
    restarts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = deploy(monkeypatch, capsys, "--reboot")
    assert "sandbox-x was restarted and must be again: the driver is not loaded" in said
    assert "-> make doctor HOST=sandbox-x" in said
    assert restarts == ["attempt", "restart", "attempt"]


def test_a_deploy_without_a_yes_restarts_nothing(
    restarts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "REBOOT=1" in deploy(monkeypatch, capsys)
    assert restarts == ["attempt"]


def test_a_host_that_somebody_restarted_while_the_question_stood_is_not_restarted_again(
    machine: Machine, restarts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.boots.append("second\n")
    deploy(monkeypatch, capsys, "--reboot")
    assert restarts == ["attempt", "attempt"]
