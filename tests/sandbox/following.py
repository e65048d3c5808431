"""Follows a recipe of the documents on a sandbox, at a terminal and to the letter: what a page says is what is tested."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import recipes
from harness import Sandbox, told

LIMIT = 900  # seconds for one command
QUESTION = "[y/N] "


def follow(
    title: str, sandbox: Sandbox, places: Mapping[str, str] | None = None, *, expect: Sequence[int] = ()
) -> list[str]:
    """Type each command of a recipe, and answer yes where it asks; what each of them printed.

    places: what this reader has in place of the page's examples. expect: the exit status of each, 0 where none is given.
    """
    recipe = recipes.read()[title]
    assert recipe.commands, title
    known = {recipes.HOST: sandbox.name, **(places or {})}
    known |= {name.partition("@")[2]: there for name, there in known.items() if "@" in name}
    outputs = []
    for number, command in enumerate(recipe.commands):
        typed = recipes.replaced(command.partition("  #")[0].rstrip(), known)
        status, output = _typed(typed, sandbox)
        print(f"$ {typed}\n{output}")
        wanted = expect[number] if number < len(expect) else 0
        assert status == wanted, f"{typed}: exit {status}\n{told(output)}"
        assert "Traceback" not in output
        outputs.append(output)
    lost = recipes.missing(tuple(recipes.replaced(line, known) for line in recipe.printed), "\n".join(outputs))
    assert not lost, f"docs/{recipe.page}, {title}: not printed: {lost}"
    return outputs


def _typed(command: str, sandbox: Sandbox) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(sandbox.checkout), "TERM": "dumb", "COLUMNS": "400"}
    if command.startswith("make "):
        aimed = recipes.words(f"{command} SOURCES=double", sandbox.checkout)
        return _at_a_terminal([Path(sys.executable).with_name("atelier"), *aimed], environment, sandbox.checkout)
    return _at_a_terminal(["bash", "-ec", command], environment, sandbox.checkout)


def _at_a_terminal(arguments: Sequence[str | Path], environment: Mapping[str, str], folder: Path) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(arguments, env=environment, cwd=folder, start_new_session=True, **streams) as process:
        os.close(theirs)
        try:
            output = _read(ours)
            return process.wait(timeout=60), output
        finally:
            process.kill()
            os.close(ours)


def _read(terminal: int) -> str:
    output, answered, deadline = "", 0, time.monotonic() + LIMIT
    while select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            chunk = os.read(terminal, 1 << 16)
        except OSError:  # its other end is closed
            break
        output += chunk.decode(errors="replace")
        if output.count(QUESTION) > answered:
            answered = output.count(QUESTION)
            os.write(terminal, b"y\n")
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", output)
