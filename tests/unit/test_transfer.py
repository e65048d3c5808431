"""What is told of a host's transfer of weights, from the words of its unit and its program."""

import json
from dataclasses import asdict

import pytest

from atelier import transfer
from weights.decide import Dropped
from weights.fetch import FileResult, Result
from weights.progress import FileProgress, Snapshot

FILES = (FileProgress("vae/a", 4_000_000_000, 4_000_000_000, "ready"), FileProgress("loras/b", 6_000_000_000, 10**9))
HALF = Snapshot(FILES, 5 * 10**9, 10 * 10**9, 50e6, 100.0, run="r1")
FULL = Snapshot((FileProgress("loras/b", 10, 5, "waiting for space"),), 5, 10, 0.0, None, run="r1")
WRONG = "http://m/b: sha256 " + "f" * 64 + ", expected " + "e" * 64
GATED = Dropped("https://hub.example/b?token=x", "it answers 401", refused=True)


def unit(state: str, run: str = "r1", result: str = "success") -> str:
    return f"ActiveState={state}\nInvocationID={run}\nResult={result}\n"


def result(*files: FileResult, run: str = "r1", error: str = "", ended: bool = False) -> str:
    found = Result(files, ended)
    about = {"job": "j", "run": run, "ready": found.ready and not error, "error": error}
    return json.dumps({**about, **asdict(found)}) + "\n"


def progress(snapshot: Snapshot) -> str:
    return json.dumps(asdict(snapshot)) + "\n"


GOOD = FileResult("vae/a", True)
BAD = FileResult("loras/b", False, WRONG, (GATED,))

TOLD = {
    "nothing was ever deployed": ("", ""),
    "a host without the unit": (unit("inactive", ""), ""),
    "half way": (
        unit("active") + progress(HALF) + result(BAD, run="r0"),
        "on the way: 1 of 2 files, 5.00 of 10.00 GB, 50.0 MB/s, 0:01:40 left",
    ),
    "about to be started again": (unit("activating"), "the transfer begins"),
    "has not said anything yet": (unit("active", "r2") + progress(HALF), "the transfer begins"),
    "the disk is full": (
        unit("active") + progress(FULL),
        "on the way: 0 of 1 files, 0.00 of 0.00 GB; loras/b: waiting for space",
    ),
    "done": (unit("inactive") + progress(HALF) + result(GOOD), ""),
    "done, and the unit forgotten by systemd": (unit("inactive", "") + result(GOOD), ""),
    "a file could not be had": (
        unit("failed", result="exit-code") + progress(HALF) + result(GOOD, BAD),
        f"not all are there: loras/b: {WRONG}; loras/b: https://hub.example: it answers 401",
    ),
    "it could not begin": (
        unit("failed", result="exit-code") + result(error="/srv: make room for 3.00 GB"),
        "not all are there: /srv: make room for 3.00 GB",
    ),
    "ended without a word": (
        unit("failed", "r2", "oom-kill") + result(GOOD),
        "not all are there: atelier-weights.service ended without a word (oom-kill)",
    ),
    "stopped by somebody": (
        unit("inactive") + result(GOOD, FileResult("loras/b", False, "ended"), ended=True),
        "the transfer was stopped before it was done",
    ),
    "torn": (unit("active") + '{"rate": 3, "run": "r1"}\n{"rea', "the transfer begins"),
}


@pytest.mark.parametrize("told,text", TOLD.values(), ids=TOLD.keys())
def test_a_transfer_in_a_few_words(told: str, text: str) -> None:
    assert transfer.parse(told).text() == text


def test_complaints_are_of_what_failed_and_what_waits_for_space() -> None:
    assert list(transfer.complaints(TOLD["half way"][0])) == []
    assert list(transfer.complaints(TOLD["the disk is full"][0])) == ["loras/b: waiting for space"]
    assert list(transfer.complaints(TOLD["it could not begin"][0])) == ["/srv: make room for 3.00 GB"]
