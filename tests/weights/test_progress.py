"""What a run tells while it is under way."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from fault_server import FaultServer
from fetching import CONTENT, MIB, NAME, in_background, job_for

from weights.fetch import Job, run
from weights.progress import NOTES, FileProgress, Progress, Snapshot, line, read_snapshot, write
from weights.store import Store


def test_a_steady_transfer_is_told_while_it_runs_and_not_taken_for_a_slow_one(
    tmp_path: Path, server: FaultServer
) -> None:
    server.faults.rate = 4 * MIB
    job = replace(job_for(tmp_path, server.url("a")), progress=tmp_path / "run" / "progress.json")
    thread, results = in_background(job)
    heard = set()
    while thread.is_alive():
        if job.progress.exists():
            snapshot = read_snapshot(json.loads(job.progress.read_text()))
            heard.add(snapshot.done)
            assert snapshot.rate < 10 * MIB
        time.sleep(0.2)
    assert results[0].ready
    assert len([done for done in heard if 0 < done < len(CONTENT)]) >= 3
    assert server.asked["a"] <= 16, "aria2 was not ended and started again: one request for each 2 MiB, and one before"


def test_the_bytes_that_came_are_told_and_not_those_that_were_there(tmp_path: Path, server: FaultServer) -> None:
    def fetched(job: Job) -> int:
        assert run(job).ready
        return read_snapshot(json.loads(job.progress.read_text())).fetched

    job = replace(job_for(tmp_path, server.url("a")), progress=tmp_path / "progress.json")
    assert fetched(job) == len(CONTENT)
    origin = tmp_path / "store" / NAME
    copied = replace(job_for(tmp_path / "copied", origin.as_uri()), progress=tmp_path / "copied.json")
    assert fetched(copied) == len(CONTENT)
    found = replace(job_for(tmp_path / "found", server.url("a")), progress=tmp_path / "found.json", search=(job.store,))
    assert fetched(found) == 0


def test_of_what_was_cut_only_the_rest_comes_again(tmp_path: Path, server: FaultServer) -> None:
    server.faults.cuts = [MIB, 2 * MIB, 3 * MIB]
    job = replace(job_for(tmp_path, server.url("a")), progress=tmp_path / "progress.json")
    assert run(job).ready
    assert len(CONTENT) <= read_snapshot(json.loads(job.progress.read_text())).fetched <= server.sent


def test_notes_are_counted_and_the_last_ones_kept() -> None:
    progress = Progress("job", "run")
    for number in range(NOTES + 2):
        progress.note(f"note {number}")
    notes = progress.snapshot(0.0).notes
    assert (len(notes), notes[0].number, notes[0].text, notes[-1].number) == (NOTES, 3, "note 2", NOTES + 2)


def test_what_is_written_is_read_again() -> None:
    progress = Progress("job", "run")
    progress.add("vae/a", 10)
    progress.note("a note")
    snapshot = progress.snapshot(0.0)
    assert read_snapshot(json.loads(json.dumps(asdict(snapshot)))) == snapshot
    assert (snapshot.job, snapshot.run, snapshot.notes[0].text) == ("job", "run", "a note")


def test_a_line_for_people() -> None:
    files = (
        FileProgress("vae/a", 2_000_000_000, 2_000_000_000, "ready"),
        FileProgress("vae/b", 5_000_000_000, 10, "waiting for space"),
        FileProgress("vae/c", 5_000_000_000, 0, "fetching"),
    )
    told = Snapshot(files, 2_000_000_010, 12_000_000_000, 3_000_000.0, 3723.4)
    assert line(told) == ("1 of 3 files, 2.00 of 12.00 GB, 3.0 MB/s, 1:02:03 left; vae/b: waiting for space")
    assert line(replace(told, rate=0.0, left=None)) == "1 of 3 files, 2.00 of 12.00 GB; vae/b: waiting for space"


def test_whom_a_run_waits_for_is_told_before_it_begins(tmp_path: Path, server: FaultServer) -> None:
    job = replace(job_for(tmp_path, server.url("a")), progress=tmp_path / "progress.json")
    with Store(job.store, job.state).lock():
        thread, results = in_background(job)
        until = time.monotonic() + 10
        while not job.progress.exists() and time.monotonic() < until:
            time.sleep(0.02)
        (note,) = read_snapshot(json.loads(job.progress.read_text())).notes
        assert "is in use by process" in note.text and results == []
    thread.join()
    assert results[0].ready
    assert read_snapshot(json.loads(job.progress.read_text())).notes == (note,), "it is kept, and told once"


def test_a_disk_that_takes_no_progress_does_not_end_the_telling(tmp_path: Path) -> None:
    progress = Progress("job", "run")
    (tmp_path / "progress.json.tmp").mkdir()
    assert write(progress, tmp_path / "progress.json").job == "job"
