"""The fetch against a real server with the faults that real ones have.

In every case: no wrong byte under a final name, no more bytes served than needed plus 16 MiB, and the run, or the next
one, finishes.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from fault_server import FaultServer
from fetching import (
    ALLOWED,
    CONTENT,
    MIB,
    NAME,
    ROOT,
    SHA,
    assert_published,
    command_for,
    in_background,
    job_for,
    wait_until_sent,
)

from weights.fetch import FetchError, Result, run
from weights.store import File, Store

pytestmark = pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2c is not installed")


def test_a_file_is_fetched_once(tmp_path: Path, server: FaultServer) -> None:
    job = job_for(tmp_path, server.url("a"))
    assert run(job).ready
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED
    asked = server.requests
    assert run(job).ready
    assert server.requests == asked


def test_what_lies_on_this_machine_is_not_fetched(tmp_path: Path, server: FaultServer) -> None:
    blobs, snapshot = tmp_path / "hub" / "models--a" / "blobs", tmp_path / "hub" / "models--a" / "snapshots" / "main"
    for directory in (blobs, snapshot):
        directory.mkdir(parents=True)
    (blobs / SHA).write_bytes(CONTENT)
    (snapshot / "a.safetensors").symlink_to(blobs / SHA)
    job = replace(job_for(tmp_path, server.url("a")), search=(tmp_path / "hub",))
    assert run(job).ready
    assert server.requests == 0
    assert (job.store / NAME).stat().st_ino == (blobs / SHA).stat().st_ino
    assert_published(job)


def test_server_killed_and_started_again(tmp_path: Path, server: FaultServer) -> None:
    server.faults.rate = 15e6
    job = job_for(tmp_path, server.url("a"))
    thread, results = in_background(job)
    wait_until_sent(server, 8 * MIB)
    server.stop()
    time.sleep(1)
    server.faults.rate = 200e6
    server.start()
    thread.join()
    assert results[0].ready
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED


def test_cut_fifty_times(tmp_path: Path, server: FaultServer) -> None:
    draw = random.Random(2)
    server.faults.cuts = [draw.randrange(50_000, 450_000) for _ in range(50)]
    job = job_for(tmp_path, server.url("a"))
    assert run(job).ready
    assert server.faults.cuts == []
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED


@pytest.mark.parametrize("status", [503, 429])
def test_retry_after_is_kept(tmp_path: Path, server: FaultServer, status: int) -> None:
    server.faults.refusals = [(status, {"Retry-After": "1"})]
    job = job_for(tmp_path, server.url("a"))
    begun = time.monotonic()
    assert run(job).ready
    assert time.monotonic() - begun >= 1
    assert_published(job)


def test_signed_url_expires_in_the_middle(tmp_path: Path, server: FaultServer) -> None:
    server.faults.signed_bytes, server.faults.wanted_token = 8 * MIB, "hf_secret"
    job = replace(job_for(tmp_path, server.url("a")), token="hf_secret", token_hosts=("127.0.0.1",))
    assert run(job).ready
    assert len(server.signatures) > 3
    assert server.tokens_at_store == 0
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED


def test_flipped_byte_is_named_and_the_good_mirror_used(
    tmp_path: Path, server: FaultServer, mirror: FaultServer
) -> None:
    server.faults.flip = 7 * MIB
    job = job_for(tmp_path, server.url("a"), mirror.url("a"))
    result = run(job)
    assert result.ready
    (gone,) = result.files[0].dropped
    assert gone.url == server.url("a")
    assert f"expected {SHA}" in gone.why
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED


def test_flipped_byte_without_another_mirror(tmp_path: Path, server: FaultServer) -> None:
    server.faults.flip = 7 * MIB
    job = job_for(tmp_path, server.url("a"))
    result = run(job)
    assert not result.ready
    assert SHA in result.files[0].why
    assert not (job.store / NAME).exists()
    server.faults.flip = None
    assert run(job).ready
    assert_published(job)


def test_truncated_with_200(tmp_path: Path, server: FaultServer, mirror: FaultServer) -> None:
    server.faults.ranges, server.faults.short = False, 9 * MIB
    job = job_for(tmp_path, server.url("a"), mirror.url("a"))
    result = run(job)
    assert result.ready
    assert "has 9437184 bytes" in result.files[0].dropped[0].why
    assert_published(job)


def test_ends_early_behind_the_right_length(tmp_path: Path, server: FaultServer, mirror: FaultServer) -> None:
    server.faults.short, server.faults.short_hidden = 9 * MIB, True
    job = job_for(tmp_path, server.url("a"), mirror.url("a"))
    assert run(job).ready
    assert_published(job)
    assert server.sent + mirror.sent < len(CONTENT) + ALLOWED


@pytest.mark.parametrize("off", [1000, -1000])
def test_wrong_content_length(tmp_path: Path, server: FaultServer, mirror: FaultServer, off: int) -> None:
    server.faults.ranges, server.faults.length_off = False, off
    job = job_for(tmp_path, server.url("a"), mirror.url("a"))
    assert run(job).ready
    assert_published(job)


def test_no_ranges(tmp_path: Path, server: FaultServer) -> None:
    server.faults.ranges = False
    job = job_for(tmp_path, server.url("a"))
    assert run(job).ready
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED


def test_slow_mirror_beside_a_fast_one(tmp_path: Path, server: FaultServer, mirror: FaultServer) -> None:
    server.faults.rate = 5000
    job = job_for(tmp_path, server.url("a"), mirror.url("a"))
    job = replace(job, limits=replace(job.limits, lowest_speed=100_000))
    begun = time.monotonic()
    assert run(job).ready
    assert time.monotonic() - begun < 10
    assert_published(job)


def test_gated_file_fails_and_the_rest_goes_on(tmp_path: Path, server: FaultServer) -> None:
    server.faults.status["owner/gated/resolve/main/g"] = 401
    gated = File("vae/g.safetensors", 5, "0" * 64, (server.url("owner/gated/resolve/main/g"),))
    job = job_for(tmp_path, server.url("a"))
    result = run(replace(job, files=(gated, *job.files)))
    assert [file.ready for file in result.files] == [False, True]
    assert f"Accept the licence at {server.url('owner/gated')} " in result.files[0].why
    assert_published(job)


def test_same_bytes_under_two_names_are_fetched_once(tmp_path: Path, server: FaultServer) -> None:
    job = job_for(tmp_path, server.url("a"))
    job = replace(job, files=(*job.files, replace(job.files[0], name="vae/b.safetensors")))
    assert run(job).ready
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED


def test_two_fetches_at_once(tmp_path: Path, server: FaultServer) -> None:
    server.faults.rate = 30e6
    job = job_for(tmp_path, server.url("a"))
    first, second = in_background(job), in_background(job)
    for thread, results in (first, second):
        thread.join()
        assert results[0].ready
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED


def test_too_little_space_is_told_before_the_first_byte(tmp_path: Path, server: FaultServer) -> None:
    job = replace(job_for(tmp_path, server.url("a")), reserve=1 << 60)
    with pytest.raises(FetchError, match="make room for"):
        run(job)
    assert server.requests == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_disk_fills_and_is_cleared(
    tmp_path: Path, small_disk: Path, server: FaultServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.faults.rate = 30e6
    job = replace(job_for(tmp_path, server.url("a")), store=small_disk / "store")
    server.faults.refusals = [(503, {"Retry-After": "1"})]
    thread, results = in_background(job)
    wait_until = time.monotonic() + 5
    while not server.requests and time.monotonic() < wait_until:
        time.sleep(0.01)
    other = small_disk / "other"  # fills the disk after the check, before the first byte
    other.write_bytes(bytes(30 * MIB))
    time.sleep(2)
    assert thread.is_alive()
    assert "the disk is full" in capfd.readouterr().out
    other.unlink()
    thread.join()
    assert results[0].ready
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED


def test_kill_9_at_random_moments(tmp_path: Path, server: FaultServer) -> None:
    server.faults.rate = 6e6
    job = job_for(tmp_path, server.url("a"))
    draw = random.Random(3)
    command = command_for(job, tmp_path / "job.json")
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
        time.sleep(draw.uniform(0.8, 1.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (job.store / NAME).exists()
    server.faults.rate = 200e6
    assert run(job).ready
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED


def test_stopping_leaves_a_part_that_the_next_run_takes(tmp_path: Path, server: FaultServer) -> None:
    server.faults.rate = 15e6
    job, stop = job_for(tmp_path, server.url("a")), threading.Event()
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run(job, stop)))
    thread.start()
    wait_until_sent(server, 12 * MIB)
    stop.set()
    thread.join(5)
    assert results[0].ended
    assert not (job.store / NAME).exists()
    server.faults.rate = 200e6
    assert run(job).ready
    assert_published(job)
    assert server.sent < len(CONTENT) + 4 * MIB


def test_command_line_tells_by_status_and_files(tmp_path: Path, server: FaultServer) -> None:
    server.faults.status["a"] = 404
    job = job_for(tmp_path, server.url("a"))
    command = command_for(job, tmp_path / "job.json")
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert f"{NAME}: {server.url('a')}: it answers 404" in failed.stderr
    assert json.loads((tmp_path / "result.json").read_text())["files"][0]["ready"] is False
    del server.faults.status["a"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["done"], progress["bytes"]) == (len(CONTENT), len(CONTENT))
    assert json.loads((tmp_path / "result.json").read_text())["files"][0]["ready"] is True
    assert_published(job)


def test_sigterm_ends_and_leaves_no_aria2c(tmp_path: Path, server: FaultServer) -> None:
    server.faults.rate = 5e6
    job = job_for(tmp_path, server.url("a"))
    process = subprocess.Popen(command_for(job, tmp_path / "job.json"), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until_sent(server, 6 * MIB)
    process.terminate()
    assert process.wait(5) == 143
    time.sleep(0.2)
    sent = server.sent
    time.sleep(0.5)
    assert server.sent == sent
    server.faults.rate = 200e6
    assert run(job).ready
    assert server.sent < len(CONTENT) + ALLOWED


def children_of(pid: int) -> list[str]:
    """The aria2c that were told to end with this process."""
    mark = f"--stop-with-process={pid}\0".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "cmdline").read_bytes():
                found.append(entry.name)
    return found


def test_after_kill_9_the_lock_is_free_only_once_aria2c_is_gone(tmp_path: Path, server: FaultServer) -> None:
    server.faults.rate = 4e6
    job = job_for(tmp_path, server.url("a"))
    process = subprocess.Popen(command_for(job, tmp_path / "job.json"), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until_sent(server, 4 * MIB)
    assert children_of(process.pid)
    process.kill()
    process.wait()
    begun = time.monotonic()
    with Store(job.store, job.state).lock():
        assert time.monotonic() - begun < 5
        assert not children_of(process.pid)


def test_sigterm_ends_one_that_waits_for_the_lock(tmp_path: Path, server: FaultServer) -> None:
    job = job_for(tmp_path, server.url("a"))
    with Store(job.store, job.state).lock():
        command = command_for(job, tmp_path / "job.json")
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert "is in use by process" in process.stdout.readline()
        process.terminate()
        assert process.wait(5) == 143
    assert server.requests == 0


def test_a_part_without_notes_is_continued(tmp_path: Path, server: FaultServer) -> None:
    job = job_for(tmp_path, server.url("a"))
    part = Store(job.store, job.state).incoming(job.files[0])
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[: 20 * MIB])
    assert run(job).ready
    assert_published(job)
    assert server.sent < 8 * MIB


def test_a_wrong_part_of_an_earlier_run_is_begun_again_and_nobody_blamed(tmp_path: Path, server: FaultServer) -> None:
    job = job_for(tmp_path, server.url("a"))
    part = Store(job.store, job.state).incoming(job.files[0])
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(20 * MIB))
    result = run(job)
    assert result.ready
    assert result.files[0].dropped == ()
    assert_published(job)
