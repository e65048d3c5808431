"""`atelier models fetch --dest`: weights into a store on this computer, told as they come."""

import contextlib
import json
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from atelier.console import Narrator
from atelier.errors import AtelierError
from weights.fetch import EndedError, FetchError, Job, Result, run
from weights.progress import NOTE, PROGRESS, Snapshot, later, line, plain, read_snapshot
from weights.store import StoreError


def fetch_here(job: Job, narrator: Narrator) -> None:
    """Fetch what is missing. Raises AtelierError that names each file that could not be had, KeyboardInterrupt on Ctrl-C."""
    started = time.monotonic()
    try:
        with _told(job, narrator) as told:
            result = _run_until_ctrl_c(told)
    except (FetchError, StoreError, OSError) as error:
        raise AtelierError(str(error)) from None
    if not result.ready:
        raise AtelierError(failures(result), "what is there is kept; the same command fetches the rest")
    gigabytes = sum(file.bytes for file in job.files) / 1e9
    seconds = time.monotonic() - started
    narrator.say(
        f"{len(job.files)} of {len(job.files)} files, {gigabytes:.1f} GB, are in {job.store} ({seconds:.1f} s)"
    )


def failures(result: Result) -> str:
    """Which files could not be had, and why."""
    lacking = [file for file in result.files if not file.ready]
    lines = [f"{len(lacking)} of {len(result.files)} files could not be had:"]
    return "\n".join([*lines, *(f"    {file.name}: {file.why}" for file in lacking)])


def _run_until_ctrl_c(job: Job) -> Result:
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()
        raise EndedError

    before = signal.signal(signal.SIGINT, end)
    try:
        result = run(job, stop)
    except EndedError:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
    if result.ended:
        raise KeyboardInterrupt
    return result


@contextlib.contextmanager
def _told(job: Job, narrator: Narrator) -> Iterator[Job]:
    """The job as it is to be run, with the narrator in the place of lines of its own."""
    narrator.begin("Weights", "Fetch")
    with tempfile.TemporaryDirectory() as folder:
        path, ended = Path(folder) / "progress.json", threading.Event()
        watcher = threading.Thread(target=_watch, args=(path, narrator, ended), daemon=True)
        watcher.start()
        try:
            yield replace(job, progress=path, say=False)
        finally:
            ended.set()
            watcher.join()
            narrator.end(changed=False)


def _watch(path: Path, narrator: Narrator, ended: threading.Event) -> None:
    seen: dict[str, int] = {}
    while True:
        last = ended.wait(0.5)
        if snapshot := _read(path):
            narrator.output(PROGRESS + line(snapshot))
            for note in later(snapshot.notes, snapshot.run, seen):
                narrator.output(NOTE + plain(note))
        if last:
            return


def _read(path: Path) -> Snapshot | None:
    try:
        return read_snapshot(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
