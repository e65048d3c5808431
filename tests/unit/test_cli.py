"""The command line: exit codes of the contract, one message, no traceback."""

import io
import json
import sys
from pathlib import Path

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


CARD = {"address": "0000:01:00.0", "device": "0x2684"}
TRIXIE = {"os_id": "debian", "os_codename": "trixie", "architecture": "amd64"}
BARE = {**TRIXIE, "gpu": {"pci": [CARD], "kernel": "6.12.41+deb13-amd64", "headers": "available"}}


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    return tmp_path / "facts.json"


@pytest.mark.parametrize(
    "document,status,action",
    [(BARE, 0, "install"), ({**BARE, "architecture": "arm64"}, 1, "refuse"), (TRIXIE, 1, "refuse")],
    ids=["a bare machine with a card", "arm64", "no card"],
)
@pytest.mark.parametrize("aim", [(), ("--host", "user@gpu.example")], ids=["no host", "a host's settings"])
def test_explain_gpu_prints_the_decision_as_json_alone(
    document: dict[str, object],
    status: int,
    action: str,
    aim: tuple[str, ...],
    facts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts.write_text(json.dumps(document))
    assert run(monkeypatch, "explain-gpu", str(facts), *aim) == status
    said = capsys.readouterr()
    decision = json.loads(said.out)
    assert decision["action"] == action and bool(decision.get("refusals")) == (action == "refuse")
    assert ("Target: gpu.example" in said.err) == bool(aim), "nothing but the answer is on standard output"


def test_explain_gpu_prints_the_facts_of_a_file_that_it_would_refuse(
    facts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts.write_text(json.dumps({**TRIXIE, "schema": "", "gpu": {"vgpu": False}}))
    assert run(monkeypatch, "explain-gpu", str(facts), "--facts") == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == TRIXIE and said.err == ""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.out.encode())))
    assert run(monkeypatch, "explain-gpu", "-", "--facts") == 0
    assert capsys.readouterr().out == said.out, "what is printed is read again, from standard input too"


@pytest.mark.parametrize(
    "content,problem",
    [('{"gpu": {"secureboot": true}}', "gpu.secureboot: unknown field"), ("", "JSON"), (None, "No such file")],
    ids=["unknown field", "empty", "missing"],
)
@pytest.mark.parametrize("aim", [(), ("--host", "user@gpu.example")], ids=["no host", "a host's settings"])
def test_explain_gpu_names_what_is_wrong_with_a_file(
    content: str | None,
    problem: str,
    aim: tuple[str, ...],
    facts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        facts.write_text(content)
    assert run(monkeypatch, "explain-gpu", str(facts), *aim) == 1
    said = capsys.readouterr()
    assert said.out == "" and f"{facts}: " in said.err and problem in said.err and "docs/gpu.md" in said.err
