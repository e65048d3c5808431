"""make: a thin wrapper whose variables come from its command line alone, and a list that is true."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from atelier import cli

ROOT = Path(__file__).resolve().parents[2]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-C", str(ROOT), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd="/",
    )


def test_an_unknown_variable_is_an_error_that_names_it() -> None:
    done = make("-n", "deploy", "host=gpu1")
    assert done.returncode == 2 and "unknown variable: host" in done.stderr and "HOST" in done.stderr


def test_the_environment_aims_at_nothing() -> None:
    done = make("-n", "deploy", HOST="root@production", LIMIT="all", SERVICE="forge")
    assert done.returncode == 0 and "production" not in done.stdout and "--limit" not in done.stdout


@pytest.mark.parametrize(
    "variable,words",
    [
        ('PROMPT=it\'s "$5" `x` & more', ["--prompt", 'it\'s "$5" `x` & more']),
        ("HOST=ops@gpu1:2222", ["--host", "ops@gpu1:2222"]),
        ("IMAGE=/a folder/in.png", ["--image", "/a folder/in.png"]),
    ],
)
def test_values_arrive_whatever_they_hold(variable: str, words: list[str]) -> None:
    recipe = make("-n", "generate", variable).stdout
    arguments = recipe.partition("exec .venv/bin/atelier")[2]
    printed = subprocess.run(["sh", "-c", f"printf '%s\\n' {arguments}"], capture_output=True, text=True).stdout
    assert printed.split("\n")[1:-1] == words


def listed() -> set[str]:
    return set(re.findall(r"^  make ([a-z-]+)", make().stdout, re.M))


def test_the_list_names_every_command_that_the_readme_uses() -> None:
    blocks = "\n".join(re.findall(r"```.*?```", (ROOT / "README.md").read_text(), re.S))
    used = set(re.findall(r"^(?:\$ |\w+=\w+ |.*: +)?make ([a-z-]+)", blocks, re.M))
    assert len(used) > 8 and used <= listed()


PAGES = ["README.md", *(f"docs/{name}.md" for name in ("gpu", "operations", "report", "tested", "troubleshooting"))]


def typed(page: str, program: str) -> list[list[str]]:
    """The command lines of a page that begin with a program, as a shell takes them apart."""
    blocks = re.findall(r"```.*?```", (ROOT / page).read_text(), re.S)
    lines = re.findall(rf"^(?:\$ |[A-Z_]+=\w+ )?{re.escape(program)} (.*)$", "\n".join(blocks), re.M)
    return [shlex.split(line.partition(" && ")[0], comments=True) for line in lines]


def test_the_pages_are_taken_apart() -> None:
    assert ["models-fetch", "HOST=user@gpu-host"] in typed("docs/operations.md", "make")
    assert all(typed(page, "make") for page in PAGES if page not in ("docs/gpu.md", "docs/report.md"))


@pytest.mark.parametrize("page", PAGES)
def test_make_takes_what_the_pages_type(page: str) -> None:
    for words in typed(page, "make"):
        done = make("-n", *words)
        assert done.returncode == 0, f"{words}: {done.stderr}"


def test_the_command_line_takes_what_the_pages_type() -> None:
    commands = [words for page in PAGES for words in typed(page, ".venv/bin/atelier")]
    assert commands
    for words in commands:
        command = typer.main.get_command(cli.app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)  # raises where it knows no such option, or misses one


def test_every_listed_command_is_one_of_the_command_line() -> None:
    command_line = typer.main.get_command(cli.app)
    groups = {"sandbox", "models"}
    known = {f"{group}-{name}" for group in groups for name in command_line.commands[group].commands}
    assert listed() == known | set(command_line.commands) - groups - {"explain-gpu"} | {"help", "test", "bench"}


@pytest.mark.parametrize(
    "command,words",
    [
        (["models-fetch", "HOST=me@box"], ["models", "fetch", "--host", "me@box"]),
        (
            ["models-fetch", "HOST=sandbox", "SOURCES=double"],
            ["models", "fetch", "--host", "sandbox", "--sources", "double"],
        ),
        (
            ["models-fetch", "DEST=/a $5 folder", "SET=it's", "MIRROR=http://m/a b"],
            ["models", "fetch", "--dest", "/a $5 folder", "--set", "it's", "--mirror", "http://m/a b"],
        ),
        (["models-verify", "LIMIT=all", "DEEP=1"], ["models", "verify", "--limit", "all", "--deep"]),
        (["models-verify", "DEST=store", "DEEP=0"], ["models", "verify", "--dest", "store"]),
        (["models-prune", "HOST=me@box"], ["models", "prune", "--host", "me@box"]),
        (
            ["models-prune", "DEST=store", "YES=1", "SET=x"],
            ["models", "prune", "--dest", "store", "--set", "x", "--yes"],
        ),
        (
            ["models-serve", "DEST=store", "PORT=80", "LIMIT=b"],
            ["models", "serve", "--limit", "b", "--dest", "store", "--port", "80"],
        ),
        (["models-lock", "WRITE=1"], ["models", "lock", "--write"]),
        (["models-adopt", "DEST=store", "SEARCH=/old"], ["models", "adopt", "--dest", "store", "--search", "/old"]),
        (
            ["rotate", "HOST=me@box", "SERVICE=forge", "YES=1"],
            ["rotate", "--host", "me@box", "--service", "forge", "--yes"],
        ),
        (["rotate", "YES=0"], ["rotate"]),
        (["uninstall", "LIMIT=box", "YES=1", "PURGE=1"], ["uninstall", "--limit", "box", "--yes", "--purge"]),
        (["uninstall", "PURGE=0"], ["uninstall"]),
        (
            ["reprovision", "LIMIT=box", "YES=1", "FROM=/a b", "ADOPT_TOKEN=1", "OLD=me@old"],
            ["reprovision", "--limit", "box", "--yes", "--from", "/a b", "--adopt-token", "--old", "me@old"],
        ),
        (["deploy", "IMPORT=/an old/stack's"], ["deploy", "--import", "/an old/stack's"]),
        (
            ["models-adopt", "DEST=store", "SEARCH=/old", "COPY=1"],
            ["models", "adopt", "--dest", "store", "--search", "/old", "--copy"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_the_commands_are_told(command: list[str], words: list[str]) -> None:
    recipe = make("-n", *command).stdout
    arguments = recipe.partition("exec .venv/bin/atelier")[2]
    printed = subprocess.run(["sh", "-c", f"printf '%s\\n' {arguments}"], capture_output=True, text=True).stdout
    assert printed.split("\n")[:-1] == words


@pytest.mark.parametrize("value,given", [("1", True), ("0", False)])
def test_a_switch_is_1_or_0(value: str, given: bool) -> None:
    assert ("--reboot" in make("-n", "deploy", f"REBOOT={value}").stdout) is given


def test_a_switch_that_is_neither_is_an_error() -> None:
    assert "REBOOT is 1 or 0, not maybe" in make("-n", "deploy", "REBOOT=maybe").stderr
