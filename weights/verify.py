"""Check a store: from the records without reading a byte, or deep, by hashing everything on all cores."""

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from weights.store import PIECE, File, Store, identity, sha256_and_pieces, sha256_of, write_durably

Status = Literal["good", "unchecked", "missing", "wrong", "unreadable"]


@dataclass(frozen=True)
class Finding:
    """What a check found under a file's name."""

    file: File
    status: Status
    found_bytes: int | None = None
    found_sha256: str | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        """One line for a person."""
        if self.status == "wrong" and self.found_sha256:
            return f"{self.file.name}: wrong: sha256 {self.found_sha256}, expected {self.file.sha256}"
        if self.status == "wrong" and self.found_bytes is not None:
            return f"{self.file.name}: wrong: {self.found_bytes} bytes, expected {self.file.bytes}"
        if self.status == "unchecked":
            return f"{self.file.name}: not known good; a fetch or a deep verify checks it"
        return f"{self.file.name}: {self.status}" + (f": {self.reason}" if self.reason else "")


class _StoppedError(Exception):
    pass


def verify(
    store: Store,
    files: Sequence[File],
    deep: bool = False,
    jobs: int = 0,
    say: Callable[[str], None] | None = None,
    pieces: bool = True,
) -> list[Finding]:
    """One finding for each file, in the order given. Moves and removes nothing.

    Deep: what proves right is recorded, with its pieces; what proves wrong is known good no longer, so that the next
    fetch sets it aside. jobs is how many files are hashed at once, 0 for one a core. Pieces cost as much as the rest,
    once; a store that nobody serves can do without.
    """
    if not deep:
        findings = [shallow(store, file) for file in files]
        for finding in findings:
            if say:
                say(finding.text)
        return findings
    stop = threading.Event()

    def check(file: File) -> Finding:
        finding = _deep(store, file, stop, pieces)
        if say:
            say(finding.text)
        return finding

    # Threads: reading and hashing both run outside the interpreter's lock.
    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as workers:
        # The largest first, so that no core is left with a whole one at the end.
        running = {file: workers.submit(check, file) for file in sorted(set(files), key=lambda file: -file.bytes)}
        try:
            return [running[file].result() for file in files]
        except BaseException:
            stop.set()
            workers.shutdown(wait=False, cancel_futures=True)
            raise


def verify_aloud(
    store: Store, files: Sequence[File], deep: bool, say: Callable[[str], None], pieces: bool = True
) -> bool:
    """Verify for a person: a line for each file and one that sums up. Returns whether every file is good."""
    started = time.monotonic()
    findings = verify(store, files, deep, say=say, pieces=pieces)
    say(summary(findings, time.monotonic() - started, deep))
    return all(finding.status == "good" for finding in findings)


def summary(findings: Sequence[Finding], seconds: float, deep: bool) -> str:
    """A check in one line, for a person."""
    good = f"{sum(finding.status == 'good' for finding in findings)} of {len(findings)} files are good"
    if not deep:
        return f"{good}, by their records"
    gigabytes = sum(finding.found_bytes or 0 for finding in findings if finding.found_sha256) / 1e9
    if not gigabytes:
        return f"{good}; nothing was there to hash"
    if gigabytes < 0.05:
        return f"{good}, by every byte"
    return f"{good}; {gigabytes:.1f} GB hashed in {seconds:.1f} s, {gigabytes / max(seconds, 1e-3):.2f} GB/s"


def shallow(store: Store, file: File) -> Finding:
    """By stat and record alone."""
    try:
        if store.known_good(file):
            return Finding(file, "good")
        found = store.path(file).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return Finding(file, "missing")
    except OSError as error:
        return Finding(file, "unreadable", reason=str(error))
    if not stat.S_ISREG(found.st_mode):
        return Finding(file, "wrong", reason="not a regular file")
    if found.st_size != file.bytes:
        return Finding(file, "wrong", found.st_size)
    return Finding(file, "unchecked", found.st_size)


def _deep(store: Store, file: File, stop: threading.Event, with_pieces: bool) -> Finding:
    first = shallow(store, file)
    if first.status not in ("good", "unchecked"):
        return first

    def go_on(done: int) -> None:
        if stop.is_set():
            raise _StoppedError

    path = store.path(file)
    pieces: list[str] | None = None
    try:
        before = identity(path.lstat())
        if not with_pieces or recorded_pieces(store, file):
            sha256 = sha256_of(path, go_on)
        else:
            sha256, pieces = sha256_and_pieces(path, go_on)
        if identity(path.lstat()) != before:
            return Finding(file, "unreadable", reason="changed while it was read")
        if sha256 != file.sha256:
            store.forget(file)
            return Finding(file, "wrong", before.bytes, sha256)
        if first.status == "unchecked":
            store.record(file, before)
        if pieces:
            _record_pieces(store, file, pieces)
    except OSError as error:
        return Finding(file, "unreadable", reason=str(error))
    return Finding(file, "good", before.bytes, sha256)


def _record_pieces(store: Store, file: File, pieces: list[str]) -> None:
    facts = {"sha256": file.sha256, "bytes": file.bytes, "piece": PIECE, "pieces": pieces}
    write_durably(store.pieces_path(file), json.dumps(facts) + "\n")


def recorded_pieces(store: Store, file: File) -> list[str] | None:
    """The sha256 of each 16 MiB of the file, where a deep verify has recorded them."""
    try:
        facts = json.loads(store.pieces_path(file).read_bytes())
        pieces = [str(piece) for piece in facts["pieces"]]
        fits = (facts["sha256"], facts["bytes"], facts["piece"]) == (file.sha256, file.bytes, PIECE)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pieces if fits and len(pieces) == -(-file.bytes // PIECE) else None
