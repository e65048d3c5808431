"""`python3 -m weights VERB JOB` as a host runs it: its exit status, its lines, and the result that it leaves."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from weights import __main__ as program
from weights.fetch import Result

ROOT = Path(__file__).parents[2]
GOOD, BAD = b"the right bytes" * 1000, b"the wrong bytes" * 1000
NAME = "vae/a.safetensors"


@contextmanager
def signals_kept() -> Iterator[None]:
    """The program decides what signals do to it; whoever ran it has them as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Host:
    """A store whose one file comes from a folder, and a job for it."""

    def __init__(self, root: Path) -> None:
        self.root, self.store, self.job = root, root / "models", root / "job.json"
        self.source = root / "source.bin"
        self.source.write_bytes(GOOD)
        self.told = {
            "files": [
                {
                    "name": NAME,
                    "bytes": len(GOOD),
                    "sha256": hashlib.sha256(GOOD).hexdigest(),
                    "urls": [f"file://{self.source}"],
                }
            ],
            "store": str(self.store),
            "state": str(root / "state"),
            "reserve_bytes": 0,
            "progress": str(root / "run" / "progress.json"),
            "result": str(root / "run" / "result.json"),
        }

    def run(self, verb: str, *options: str) -> tuple[int, str, str]:
        """The program in this process: one of its own spends most of its time on imports."""
        self.job.write_text(json.dumps(self.told))
        out, errors = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, signals_kept(), redirect_stdout(out), redirect_stderr(errors):
            patch.setenv("INVOCATION_ID", "r7")
            patch.setattr(sys, "argv", ["weights", verb, str(self.job), *options])
            return program.main(), out.getvalue(), errors.getvalue()

    def run_as_a_process(self, verb: str, *options: str) -> tuple[int, str, str]:
        self.job.write_text(json.dumps(self.told))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "INVOCATION_ID": "r7"}
        command = [sys.executable, "-m", "weights", verb, str(self.job), *options]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return ran.returncode, ran.stdout, ran.stderr

    def result(self) -> dict:
        return json.loads((self.root / "run" / "result.json").read_text())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    if not shutil.which("aria2c"):
        pytest.skip("needs aria2c")
    return Host(tmp_path)


def test_a_fetch_leaves_a_result_that_says_of_which_job_and_run_it_is(host: Host) -> None:
    assert host.run_as_a_process("fetch")[0] == 0
    job = hashlib.sha256(host.job.read_bytes()).hexdigest()
    about = {key: host.result()[key] for key in ("job", "run", "ready", "error", "ended")}
    assert about == {"job": job, "run": "r7", "ready": True, "error": "", "ended": False}
    progress = json.loads((host.root / "run" / "progress.json").read_text())
    assert (progress["job"], progress["run"], progress["files"][0]["state"]) == (job, "r7", "ready")


def test_a_file_that_cannot_be_had_is_in_the_result_with_its_source(host: Host) -> None:
    host.source.write_bytes(BAD)
    status, _, errors = host.run_as_a_process("fetch")
    (file,) = host.result()["files"]
    found, wanted = hashlib.sha256(BAD).hexdigest(), hashlib.sha256(GOOD).hexdigest()
    assert status == 1 and not host.result()["ready"]
    assert file["dropped"][0]["url"] == f"file://{host.source}"
    assert file["dropped"][0]["why"] == f"sha256 {found}, expected {wanted}"
    assert f"{NAME}: file://{host.source}: sha256 {found}, expected {wanted}" in errors


def test_what_hinders_the_whole_run_is_in_the_result(host: Host) -> None:
    host.told["reserve_bytes"] = 1 << 60
    status, _, errors = host.run("fetch")
    assert status == 1 and "make room for" in host.result()["error"] and host.result()["error"] in errors
    assert host.result()["ready"] is False and not (host.store / NAME).exists()


def test_verify_says_of_each_file_how_it_is(host: Host) -> None:
    status, lines, _ = host.run("verify")
    assert status == 1 and f"{NAME}: missing" in lines
    host.run("fetch")
    status, lines, _ = host.run("verify")
    assert status == 0 and f"{NAME}: good" in lines
    final = host.store / NAME
    times = final.stat()
    final.chmod(0o644)
    final.write_bytes(BAD)
    os.utime(final, ns=(times.st_mtime_ns, times.st_mtime_ns))
    assert host.run("verify")[0] == 0, "by its record alone it cannot be seen"
    status, lines, _ = host.run("verify", "--deep")
    assert status == 1 and f"{NAME}: wrong: sha256 {hashlib.sha256(BAD).hexdigest()}" in lines


def test_a_host_s_deep_verify_leaves_no_pieces(host: Host) -> None:
    host.run("fetch")
    assert host.run("verify", "--deep")[0] == 0
    assert [path.name for path in (host.root / "state").glob("*.pieces.json")] == []


def test_a_run_that_was_ended_ends_as_by_a_signal_and_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.job.write_text(json.dumps(host.told))
    monkeypatch.setattr(program, "run", lambda job, stop: Result((), ended=True))
    with signals_kept():
        assert program.fetch(host.job) == 143
    assert host.result()["ended"] is True


def test_prune_removes_what_the_job_does_not_need_when_told(host: Host) -> None:
    host.run("fetch")
    other = host.store / "vae" / "other.safetensors"
    other.write_bytes(b"x")
    status, lines, _ = host.run("prune")
    assert status == 0 and str(other) in lines and other.exists()
    status, lines, _ = host.run("prune", "--yes")
    assert status == 0 and "removed: " in lines and not other.exists() and (host.store / NAME).exists()


@pytest.mark.parametrize("verb", ["fetch", "follow", "verify", "prune"])
def test_a_damaged_job_is_one_line_that_names_it(host: Host, verb: str) -> None:
    host.told = {"files": 1}
    status, _, errors = host.run_as_a_process(verb)
    assert status == 1 and str(host.job) in errors and "Traceback" not in errors
