"""The fetch against a real server with the faults that real ones have.

In every case: no wrong byte under a final name, no more bytes served than needed plus 16 MiB, and the run, or the next
one, finishes.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
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

from weights.decide import Patience
from weights.fetch import FetchError, FileResult, Job, Result, run
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


@pytest.mark.parametrize(
    ("found", "told"), [(bytes(len(CONTENT)), f"expected sha256 {SHA}"), (b"x", "(1 bytes, expected")]
)
def test_another_file_of_the_name_is_set_aside_with_what_it_was(
    tmp_path: Path, server: FaultServer, capsys: pytest.CaptureFixture[str], found: bytes, told: str
) -> None:
    job = job_for(tmp_path, server.url("a"))
    (job.store / NAME).parent.mkdir(parents=True)
    (job.store / NAME).write_bytes(found)
    assert run(job).ready
    assert_published(job)
    (aside,) = (job.store / NAME).parent.glob("*.wrong-*")
    assert aside.read_bytes() == found
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "another file had this name" in line)
    assert line.startswith(f"{NAME}: ") and told in line and line.endswith(f"set aside as {aside}")


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


@pytest.mark.parametrize(
    ("hosts", "credentials"), [(("127.0.0.1",), {"Bearer hf_secret"}), (("huggingface.co",), set())]
)
def test_the_token_goes_to_the_hosts_it_is_for_alone(
    tmp_path: Path, server: FaultServer, hosts: tuple[str, ...], credentials: set[str]
) -> None:
    assert run(replace(job_for(tmp_path, server.url("a")), token="hf_secret", token_hosts=hosts)).ready
    assert server.credentials == credentials


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
    assert server.asked["a"] == 2  # a question, and one connection: each further one would begin the whole file
    assert server.sent < len(CONTENT) + MIB


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
    server.faults.rate = 10e6
    job = job_for(tmp_path, server.url("a"))
    command = command_for(job, tmp_path / "job.json")
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert_published(job)
    assert server.sent < len(CONTENT) + MIB


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


def test_a_file_system_that_cannot_take_room_beforehand(tmp_path: Path, server: FaultServer) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(80 * MIB)
    subprocess.run(["/sbin/mkfs.ext3", "-q", str(image)], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no image can be mounted: {mounted.stderr.decode()}")
    try:
        job = replace(job_for(tmp_path, server.url("a")), store=disk / "store")
        assert run(job).ready
        assert_published(job)
        assert server.sent < len(CONTENT) + MIB
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(path: Path) -> None:
    """Take the last byte of the disk."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(64 * 1024)):
            pass


@pytest.mark.parametrize("state_beside", [True, False])
def test_disk_fills_before_the_first_byte_and_is_cleared(
    tmp_path: Path, small_disk: Path, server: FaultServer, capfd: pytest.CaptureFixture[str], state_beside: bool
) -> None:
    job = replace(job_for(tmp_path, server.url("a")), store=small_disk / "store")
    if state_beside:
        job = replace(job, state=small_disk / "state")
    server.faults.refusals = [(503, {"Retry-After": "1"})]
    thread, results = in_background(job)
    wait_until = time.monotonic() + 5
    while not server.asked["a"] and time.monotonic() < wait_until:
        time.sleep(0.01)
    fill(other := small_disk / "other")
    time.sleep(2)
    assert thread.is_alive()
    assert "the disk is full" in capfd.readouterr().out
    other.unlink()
    thread.join()
    assert results[0].ready
    assert_published(job)
    assert server.sent < len(CONTENT) + ALLOWED


def test_no_room_for_what_is_known_of_a_file(
    tmp_path: Path, small_disk: Path, server: FaultServer, capfd: pytest.CaptureFixture[str]
) -> None:
    job = replace(job_for(tmp_path, server.url("a")), state=small_disk / "state")
    fill(other := small_disk / "other")
    thread, results = in_background(job)
    until, told = time.monotonic() + 20, ""
    while "the disk is full" not in told and time.monotonic() < until:
        time.sleep(0.1)
        told += capfd.readouterr().out
    assert "the disk is full" in told
    assert not (job.store / NAME).exists()
    other.unlink()
    thread.join()
    assert results[0].ready
    assert_published(job)
    assert server.sent < len(CONTENT) + MIB


def test_disk_fills_in_the_middle_and_is_cleared(
    tmp_path: Path, small_disk: Path, server: FaultServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file's own room was taken at once. But aria2 empties its notes, and a cut transfer cannot go on."""
    server.faults.rate = 4e6
    job = job_for(tmp_path, server.url("a"))
    job = replace(job, store=small_disk / "store", state=small_disk / "state")
    thread, results = in_background(job)
    wait_until_sent(server, 12 * MIB)
    fill(other := small_disk / "other")
    notes = small_disk / "store" / ".incoming" / f"{SHA}.part.aria2"
    until = time.monotonic() + 10
    while notes.stat().st_size and time.monotonic() < until:
        time.sleep(0.02)
    server.stop()
    told = ""
    while "the disk is full" not in told and time.monotonic() < until:
        time.sleep(0.1)
        told += capfd.readouterr().out
    assert "the disk is full" in told
    server.start()
    time.sleep(1)
    assert thread.is_alive()
    other.unlink()
    thread.join()
    assert results[0].ready
    assert_published(job)
    assert server.sent < len(CONTENT) + 12 * MIB


@pytest.mark.parametrize("room", [True, False])
def test_emptied_notes_of_aria2_keep_nobody_from_going_on(tmp_path: Path, server: FaultServer, room: bool) -> None:
    server.faults.rate = 4e6
    job, stop = job_for(tmp_path, server.url("a")), threading.Event()
    thread = threading.Thread(target=run, args=(job, stop))
    thread.start()
    wait_until_sent(server, 16 * MIB)
    stop.set()
    thread.join()
    (notes,) = (job.store / ".incoming").glob("*.aria2")
    notes.write_bytes(b"")
    if not room:
        (job.store / ".incoming" / f"{SHA}.part.kept").unlink()
    sent = server.sent
    assert run(job).ready
    assert_published(job)
    assert (server.sent < sent + 14 * MIB) == room


def test_kill_9_at_twenty_random_moments(tmp_path: Path, server: FaultServer) -> None:
    server.faults.rate = 1e6
    job = job_for(tmp_path, server.url("a"))
    draw = random.Random(3)
    command = command_for(job, tmp_path / "job.json")
    for count in range(20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
        time.sleep(draw.uniform(0.2, 2.0))
        for transfer in aria2c_of(process.pid) if count % 2 else []:  # as when the machine is switched off
            os.kill(transfer, signal.SIGKILL)
        process.kill()
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
    assert f"{NAME}: {server.url('').rstrip('/')}: it answers 404" in failed.stderr
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


def test_switched_off_in_the_middle_costs_two_seconds_of_transfer(tmp_path: Path, server: FaultServer) -> None:
    server.faults.rate = 4e6
    job = job_for(tmp_path, server.url("a"))
    process = subprocess.Popen(command_for(job, tmp_path / "job.json"), stdout=subprocess.DEVNULL, cwd=ROOT)
    wait_until_sent(server, 14 * MIB)
    for pid in (*aria2c_of(process.pid), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert run(job).ready
    assert_published(job)
    assert server.sent < len(CONTENT) + 2 * server.faults.rate


def aria2c_of(pid: int) -> list[int]:
    """The transfers that a process began."""
    begun = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [child for child in begun if Path(f"/proc/{child}/comm").read_text() == "aria2c\n"]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_after_kill_9_aria2c_ends_too_and_only_then_the_lock_is_free(tmp_path: Path, server: FaultServer) -> None:
    server.faults.rate = 1e6  # left alone, it would go on for half a minute
    job = job_for(tmp_path, server.url("a"))
    process = subprocess.Popen(command_for(job, tmp_path / "job.json"), cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until_sent(server, 2 * MIB)
    (aria2c,) = aria2c_of(process.pid)
    process.kill()
    process.wait()
    assert lives(aria2c)
    begun = time.monotonic()
    with Store(job.store, job.state).lock():
        assert not lives(aria2c)
    assert time.monotonic() - begun < 5


@pytest.fixture
def large_part(tmp_path: Path) -> tuple[list[str], Path]:
    """A part that takes long to hash, complete: 30 GB of nothing, without a block on the disk."""
    size = 30 * 10**9
    job = replace(job_for(tmp_path), files=(File(NAME, size, "0" * 64, ("http://127.0.0.1:9/a",)),))
    part = Store(job.store, job.state).incoming(job.files[0])
    part.parent.mkdir(parents=True)
    with part.open("wb") as file:
        file.truncate(size)
    return command_for(job, tmp_path / "job.json"), part


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_the_middle_of_hashing(large_part: tuple[list[str], Path], number: signal.Signals) -> None:
    command, part = large_part
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while str(part) not in open_files(process.pid) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    assert str(part) in open_files(process.pid)
    process.send_signal(number)
    assert process.wait(2) == 143
    assert part.stat().st_size == 30 * 10**9


def open_files(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.add(str(entry.readlink()))
    return found


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


def test_a_part_that_is_too_long_is_begun_again(tmp_path: Path, server: FaultServer) -> None:
    job = job_for(tmp_path, server.url("a"))
    part = Store(job.store, job.state).incoming(job.files[0])
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT + b"more")
    assert run(job).files == (FileResult(NAME, True),)
    assert_published(job)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Somebody's copy of the store."""
    folder = tmp_path / "folder with spaces"
    folder.mkdir()
    return folder


def test_a_folder_as_the_source(tmp_path: Path, folder: Path) -> None:
    (folder / "a").write_bytes(CONTENT)
    job = job_for(tmp_path, (folder / "a").as_uri())
    assert run(job).ready
    assert_published(job)
    assert (folder / "a").stat().st_ino != (job.store / NAME).stat().st_ino


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), f"expected {SHA}"),
        (None, "there is no file"),
        (CONTENT + b"more", f"its file has {len(CONTENT) + 4} bytes, expected {len(CONTENT)}"),
        (CONTENT[:-1], f"its file has {len(CONTENT) - 1} bytes, expected {len(CONTENT)}"),
    ],
)
def test_a_folder_with_something_else(
    tmp_path: Path, folder: Path, server: FaultServer, content: bytes | None, why: str
) -> None:
    if content:
        (folder / "a").write_bytes(content)
    job = job_for(tmp_path, (folder / "a").as_uri())
    result = run(job)
    assert not result.ready
    assert why in result.files[0].why
    assert not (job.store / NAME).exists()
    job = job_for(tmp_path, (folder / "a").as_uri(), server.url("a"))
    result = run(job)
    assert result.ready
    assert why in result.files[0].dropped[0].why
    assert_published(job)


def test_a_sparse_file_from_a_folder_stays_sparse(tmp_path: Path, folder: Path) -> None:
    with (folder / "a").open("wb") as file:
        file.truncate(200 * MIB)
        file.write(b"weights")
    sha256 = hashlib.sha256((folder / "a").read_bytes()).hexdigest()
    job = job_for(tmp_path)
    job = replace(job, files=(File(NAME, 200 * MIB, sha256, ((folder / "a").as_uri(),)),))
    assert run(job).ready
    assert_published(job)
    assert (job.store / NAME).stat().st_blocks * 512 < MIB


def copying(job: Job, tmp_path: Path, seconds: int) -> tuple["subprocess.Popen[bytes]", int]:
    """A run that copies a file from a folder for so many seconds, and its cp."""
    cp, pid = tmp_path / "bin" / "cp", tmp_path / "pid"
    cp.parent.mkdir()
    cp.write_text(f"#!/bin/sh\necho $$ > {pid}.tmp; mv {pid}.tmp {pid}; exec sleep {seconds}\n")
    cp.chmod(0o755)
    command, path = command_for(job, tmp_path / "job.json"), f"{cp.parent}:{os.environ['PATH']}"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": path})
    until = time.monotonic() + 10
    while not pid.exists() and time.monotonic() < until:
        time.sleep(0.05)
    return process, int(pid.read_text())


def test_sigterm_ends_the_copying_from_a_folder(tmp_path: Path, folder: Path) -> None:
    (folder / "a").write_bytes(CONTENT)
    process, cp = copying(job_for(tmp_path, (folder / "a").as_uri()), tmp_path, seconds=60)
    process.terminate()
    assert process.wait(3) == 143
    assert not lives(cp)


def test_after_kill_9_the_lock_is_free_only_once_the_copying_has_ended(tmp_path: Path, folder: Path) -> None:
    (folder / "a").write_bytes(CONTENT)
    job = job_for(tmp_path, (folder / "a").as_uri())
    process, cp = copying(job, tmp_path, seconds=2)
    process.kill()
    process.wait()
    assert lives(cp)
    with Store(job.store, job.state).lock():
        assert not lives(cp)


def refused_address() -> str:
    """Where nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{nobody.getsockname()[1]}"


def test_a_hub_that_never_answers_is_given_up_sooner_for_all_files_together(
    tmp_path: Path, server: FaultServer
) -> None:
    hub = refused_address()
    server.faults.flip = 7 * MIB
    server.content["b"] = CONTENT[::-1]
    second = File("vae/b", len(CONTENT), hashlib.sha256(CONTENT[::-1]).hexdigest(), (server.url("b"), f"{hub}/b"))
    job = job_for(tmp_path, server.url("a"), f"{hub}/a")
    job = replace(job, files=(*job.files, second), jobs=1, patience=Patience(first_wait=0.5, silence=2))
    begun = time.monotonic()
    result = run(job)
    assert 2 < time.monotonic() - begun < 8
    for file in result.files:
        assert not file.ready
        assert server.url("").rstrip("/") in file.why
        assert hub in file.why


@pytest.mark.parametrize("address", ["nowhere", "http://a..b/a"])
def test_what_is_no_address_is_named_and_the_next_used(tmp_path: Path, server: FaultServer, address: str) -> None:
    job = job_for(tmp_path, address, server.url("a"))
    result = run(job)
    assert result.ready
    assert result.files[0].dropped[0].url == address
    assert_published(job)


def test_a_server_that_has_answered_is_waited_for(tmp_path: Path, server: FaultServer) -> None:
    server.faults.rate = 15e6
    job = job_for(tmp_path, server.url("a"))
    job = replace(job, patience=replace(job.patience, silence=0.5, failures=10, first_wait=0.5))
    thread, results = in_background(job)
    wait_until_sent(server, 8 * MIB)
    server.stop()
    time.sleep(3)
    server.start()
    thread.join()
    assert results[0].ready
    assert_published(job)
