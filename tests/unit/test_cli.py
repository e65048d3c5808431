"""The command line: exit codes of the contract, one message, no traceback."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def atelier(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ROOT / ".venv/bin/atelier"), *arguments], capture_output=True, text=True, cwd="/")


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
def test_wrong_words_exit_1_with_one_message(arguments: tuple[str, ...], problem: str) -> None:
    done = atelier(*arguments)
    assert done.returncode == 1, "2 says that a plan has changes"
    assert problem in done.stderr and "->" in done.stderr and "Traceback" not in done.stderr


def test_alone_it_helps() -> None:
    done = atelier()
    assert done.returncode == 0 and "deploy" in done.stdout
