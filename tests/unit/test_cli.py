"""The command line: exit codes of the contract, one message, no traceback."""

import sys

import pytest

from atelier import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["atelier", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    "arguments,problem",
    [
        (("plan", "--bogus"), "--bogus"),
        (("plan", "--sources", "x"), "'x' is not one of"),
        (("generate",), "prompt"),
        (("deploy", "--host", "a b"), "HOST='a b' is not an address"),
        (("sandbox", "up", "--name", "mine"), "NAME=sandbox-mine"),
    ],
)
def test_wrong_words_exit_1_with_one_message(
    arguments: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == 1, "2 says that a plan has changes"
    message = capsys.readouterr().err
    assert problem in message and "->" in message


def test_alone_it_helps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch) == 0
    assert "deploy" in capsys.readouterr().out
