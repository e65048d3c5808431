"""`python3 -m weights VERB JOB.json` on a host: `fetch`, `follow` whoever fetches, `verify`, `prune`.

fetch: 0 all files are there, 1 one is not, 143 ended by a signal. The others: 0 well, 1 not.
"""

import argparse
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from weights import prune as pruning
from weights import verify as verification
from weights.fetch import EndedError, FetchError, Job, Result, run
from weights.follow import follow
from weights.job import read_job
from weights.progress import Progress, plain, write, write_whole
from weights.store import Store, StoreError


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m weights")
    commands = parser.add_subparsers(dest="verb", required=True)
    verbs = {
        "fetch": "fetch what the job describes",
        "follow": "have the unit fetch it, and tell how far it is",
        "verify": "say which files are there and right",
        "prune": "list what lies in the store and the job does not need",
    }
    for verb, what in verbs.items():
        commands.add_parser(verb, help=what).add_argument("job", type=Path)
    commands.choices["verify"].add_argument("--deep", action="store_true", help="hash every byte")
    commands.choices["prune"].add_argument("--yes", action="store_true", help="remove what is listed")
    told = parser.parse_args()
    try:
        if told.verb == "fetch":
            return fetch(told.job)
        if told.verb == "follow":
            return follow(told.job)
        return verify(told.job, told.deep) if told.verb == "verify" else prune(told.job, told.yes)
    except (FetchError, StoreError, OSError) as error:
        print(plain(str(error)), file=sys.stderr)
        return 1


def fetch(path: Path) -> int:
    """Fetch what the job file describes; the result goes to the file that it names."""
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()
        raise EndedError

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        job, result_path = read_job(path)
        write(Progress(job.id, _run()), job.progress)
        result, error = _fetched(job, stop)
    except EndedError:
        return 143
    if result_path:
        about = {"job": job.id, "run": _run(), "ready": result.ready and not error, "error": error}
        write_whole(result_path, {**about, **asdict(result)})
    if result.ended:
        return 143
    for why in [error, *(f"{file.name}: {file.why}" for file in result.files if not file.ready)]:
        if why:
            print(plain(why), file=sys.stderr)
    return 0 if result.ready and not error else 1


def _fetched(job: Job, stop: threading.Event) -> tuple[Result, str]:
    try:
        return run(job, stop), ""
    except (FetchError, StoreError, OSError) as error:
        return Result(()), str(error)


def _run() -> str:
    """systemd's id of this run of the unit."""
    return os.environ.get("INVOCATION_ID", "")


def verify(path: Path, deep: bool) -> int:
    """One line a file, and one that sums up."""
    job, _ = read_job(path)
    store = Store(job.store, job.state)
    # Nobody fetches from a host's store, so nobody asks for its pieces.
    return 0 if verification.verify_aloud(store, job.files, deep, _say, pieces=False) else 1


def prune(path: Path, yes: bool) -> int:
    """One line for each file that the job does not need; they go when told to."""
    job, _ = read_job(path)
    pruning.prune_aloud(Store(job.store, job.state), job.files, yes, _say)
    return 0


def _say(text: str) -> None:
    print(plain(text), flush=True)


if __name__ == "__main__":
    sys.exit(main())
