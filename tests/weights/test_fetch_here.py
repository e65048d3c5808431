"""`atelier models fetch --dest`: what a person sees with and without a terminal, and Ctrl-C."""

import hashlib
import io
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from fault_server import FaultServer
from rich.console import Console

from atelier import console
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.models_fetch import fetch_here
from weights.fetch import Job
from weights.store import File

pytestmark = pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2c is not installed")

MIB = 1 << 20
CONTENT = random.Random(2).randbytes(12 * MIB)
NAME = "checkpoints/a.safetensors"
XTERM = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
COMMAND = (sys.executable, "-c", "from atelier.cli import main; main()", "models", "fetch")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    server = FaultServer({NAME: CONTENT})
    server.faults.rate = 4e6
    yield server
    server.stop()


@pytest.fixture
def command(tmp_path: Path, server: FaultServer) -> list[str]:
    entry = {"repository": "a/b", "revision": "main", "path": "a.safetensors", "bytes": len(CONTENT)}
    entry |= {"sha256": hashlib.sha256(CONTENT).hexdigest(), "directory": "checkpoints"}
    lock = tmp_path / "models.yml"
    lock.write_text(yaml.safe_dump({"files": [{**entry, "sets": ["x"], "used_by": [], "licence": "none"}]}))
    return [*COMMAND, "--dest", str(tmp_path / "store"), "--lock", str(lock), "--mirror", server.url("")]


def on_a_terminal(command: list[str]) -> str:
    leader, follower = pty.openpty()
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=XTERM):
        os.close(follower)
        told = b""
        with suppress(OSError):  # the end of a terminal is an error
            while read := os.read(leader, 65536):
                told += read
    os.close(leader)
    return told.decode()


def test_without_a_terminal_it_tells_plain_lines(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PROGRESS_EVERY", 2)
    server.faults.rate = 2e6
    log = io.StringIO()
    file = File(NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), (server.url(NAME),))
    with Narrator(Console(file=log, width=300)) as narrator:
        fetch_here(Job((file,), tmp_path / "store", tmp_path / "state", reserve=0), narrator)
    first, *moving, last = log.getvalue().splitlines()
    assert first == "Weights" and moving and "\x1b" not in log.getvalue() and "\r" not in log.getvalue()
    for line in moving:
        assert re.fullmatch(r"    \.\.\. 0 of 1 files, 0\.0\d of 0\.01 GB(, \d\.\d MB/s, 0:00:\d\d left)?", line)
    assert any(" MB/s, " in line for line in moving)
    assert re.fullmatch(rf"1 of 1 files, 0\.0 GB, are in {tmp_path}/store \(\d+\.\d s\)", last)


def test_a_terminal_shows_one_line_that_moves(command: list[str], server: FaultServer, tmp_path: Path) -> None:
    aside = tmp_path / "store" / NAME
    aside.parent.mkdir(parents=True)
    aside.write_bytes(b"wrong")
    server.faults.rate = 2e6
    told = on_a_terminal(command)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told).replace("\r", "\n").split("\n")
    moving = [line for line in lines if re.search(r"^\S+ 0 of 1 files, .* MB/s, .* left \(\d+ s\)", line)]
    assert len({re.sub(r"^\S* ", "", line) for line in moving}) > 1, told
    assert sum("another file had this name" in line for line in lines) == 1, "a note is told once"
    assert any(line.startswith("1 of 1 files") for line in lines) and (tmp_path / "store" / NAME).exists()


def test_ctrl_c_ends_it_with_one_message_and_the_next_run_goes_on(
    command: list[str], server: FaultServer, tmp_path: Path
) -> None:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while server.sent < len(CONTENT) // 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "Error: interrupted; the same command continues where this one stopped\n"
    server.faults.rate = 200e6
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (tmp_path / "store" / NAME).read_bytes() == CONTENT
    assert server.sent < len(CONTENT) + 4 * MIB


def test_a_file_that_cannot_be_had_is_named_with_what_each_source_sent(server: FaultServer, tmp_path: Path) -> None:
    server.faults.rate, server.faults.flip = 200e6, 5
    wanted, named = hashlib.sha256(CONTENT).hexdigest(), server.url("").rstrip("/")
    files = (
        File(NAME, len(CONTENT), wanted, (server.url(NAME),)),
        File("vae/b", 3, "b" * 64, (server.url("nothing"),)),
    )
    log = io.StringIO()
    with pytest.raises(AtelierError) as error:
        fetch_here(Job(files, tmp_path / "store", tmp_path / "state"), Narrator(Console(file=log, width=300)))
    head, *lines = error.value.message.splitlines()
    assert head == "2 of 2 files could not be had:" and "the same command" in error.value.hint
    assert re.fullmatch(rf"    {NAME}: {named}: sha256 [0-9a-f]{{64}}, expected {wanted}", lines[0])
    assert lines[1].startswith(f"    vae/b: {named}: ") and "404" in lines[1]
    assert "is not asked again" in log.getvalue(), "it was told as it came"


def test_a_second_one_tells_whom_it_waits_for(command: list[str], server: FaultServer) -> None:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as first:
        while not server.sent:
            time.sleep(0.02)
        told = on_a_terminal(command)
    assert first.returncode == 0 and "is in use by process " in told
    assert server.sent < len(CONTENT) + MIB, "what the first one brought is not fetched again"
