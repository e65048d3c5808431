"""A part of which aria2's notes are spoiled, as by a disk that was full when they were written."""

import shutil
from pathlib import Path

import pytest
from fault_server import FaultServer
from fetching import CONTENT, SHA, assert_published, job_for

from weights.aria2 import is_lost
from weights.fetch import run

# By the layout in the manual of internals: 3 MiB in pieces of 1 MiB, of which the first is there.
NOTES = bytes.fromhex("000100000000000000000010000000000000003000000000000000000000000000018000000000")


@pytest.mark.parametrize(
    ("notes", "lost"),
    [(None, False), (NOTES, False), (b"", True), (NOTES[:20], True), (NOTES[:-5], True), (bytes(len(NOTES)), True)],
    ids=["no notes: whole", "good", "empty", "cut off", "no bits", "zeros"],
)
def test_what_is_lost(tmp_path: Path, notes: bytes | None, lost: bool) -> None:
    if notes is not None:
        (tmp_path / "a.part.aria2").write_bytes(notes)
    assert is_lost(tmp_path / "a.part") == lost


@pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2c is not installed")
def test_a_lost_part_is_begun_again(tmp_path: Path) -> None:
    server = FaultServer({"a": CONTENT})
    job = job_for(tmp_path, server.url("a"))
    part = job.store / ".incoming" / f"{SHA}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(8192))
    part.with_name(part.name + ".aria2").write_bytes(b"")
    try:
        assert run(job).ready
    finally:
        server.stop()
    assert_published(job)
