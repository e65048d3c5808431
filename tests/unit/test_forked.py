"""pytest in a fork: its status, its output, the descriptors it is given, and that it can be interrupted and killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atelier import paths

DRIVER = """
import os, sys, time
from pathlib import Path
from atelier.forked import Forked, read_ahead

read_ahead()
reader, writer = os.pipe()
for number in range(2):
    with open("log", "wb") as log:
        run = Forked(
            ["-q", "-p", "no:cacheprovider", "--rootdir=.", "test_it.py"],
            cwd=Path.cwd(),
            environment={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "WRITER": str(writer)},
            output=log,
        )
        said = os.read(reader, 100).decode()
        if sys.argv[1] != "0":
            run.send_signal(int(sys.argv[1]))
        print(run.wait(), said, os.getsid(0) == int(said.split()[1]), flush=True)
"""
CHECKS = """
import os, time
def test_it():
    os.write(int(os.environ["WRITER"]), f"sid {os.getsid(0)}".encode())
    print("said aloud")
    time.sleep(WAIT)
    assert EXPECTED
"""


@pytest.mark.parametrize(
    "sent,wait,expected,status",
    [
        (0, 0, True, 0),
        (0, 0, False, 1),
        (signal.SIGINT, 60, True, 2),
        (signal.SIGKILL, 60, True, -signal.SIGKILL),
    ],
    ids=["passes", "fails", "interrupted", "killed"],
)
def test_pytest_in_a_fork(tmp_path: Path, sent: int, wait: int, expected: bool, status: int) -> None:
    (tmp_path / "test_it.py").write_text(CHECKS.replace("WAIT", str(wait)).replace("EXPECTED", str(expected)))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(int(sent))],
        cwd=tmp_path,
        env={"PYTHONPATH": str(paths.PROJECT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [str(status)] * 2, done.stdout + done.stderr
    assert all(line.endswith("False") for line in lines), "a session of its own"
    if not sent:
        log = (tmp_path / "log").read_text()
        assert ("said aloud" in log) is not expected and "1 " in log
