"""`python3 -m weights fetch JOB.json`: 0 all files are there, 1 one is not, 143 ended by a signal."""

import argparse
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from weights.fetch import EndedError, FetchError, run
from weights.job import read_job
from weights.progress import write_whole
from weights.store import StoreError


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m weights")
    commands = parser.add_subparsers(required=True)
    fetching = commands.add_parser("fetch", help="fetch what a job file describes")
    fetching.add_argument("job", type=Path)
    return fetch(parser.parse_args().job)


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
        result = run(job, stop)
    except EndedError:
        return 143
    except (FetchError, StoreError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if result_path:
        write_whole(result_path, asdict(result))
    if result.ended:
        return 143
    for file in result.files:
        if not file.ready:
            print(f"{file.name}: {file.why}", file=sys.stderr)
    return 0 if result.ready else 1


if __name__ == "__main__":
    sys.exit(main())
