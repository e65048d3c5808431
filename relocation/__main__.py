"""`python3 -m relocation VERB JOB.json` on a host: `plan`, `copy`, `switch`, `finish`, `adopt`. 0 done, 1 not.

Standard output: lines that tell how far it is and what a person should know, as those of weights; the last line is the
result, as JSON, which goes to the file that the job names as well. Killed, the same verb goes on.
"""

import argparse
import errno
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from relocation.adopt import adopt, read_adoptions
from relocation.copy import copy
from relocation.files import Files
from relocation.finish import finish
from relocation.job import Job, RelocationError, read_job
from relocation.plan import plan
from relocation.switch import switch
from weights.progress import NOTE, PROGRESS, Progress, Snapshot, later, plain, write, write_whole
from weights.store import Store

VERBS = {
    "plan": "say what there is to do, what it needs, and what is in its way; change nothing",
    "copy": "copy and verify what crosses file systems, while the services run",
    "switch": "have everything at its target; nobody writes meanwhile",
    "finish": "remove what was copied from its old place",
    "adopt": "copy what somebody else has, and leave it as it is",
}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m relocation")
    commands = parser.add_subparsers(dest="verb", required=True)
    for verb, what in VERBS.items():
        commands.add_parser(verb, help=what).add_argument("job", type=Path)
    told = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        job = read_job(told.job)
        result, error = _done(told.verb, job, told.job)
    except (RelocationError, OSError) as problem:
        print(plain(str(problem)), file=sys.stderr)
        return 1
    document = {"verb": told.verb, "error": error, **result}
    if told.verb != "plan":
        write_whole(job.result, document)
    print(json.dumps(document), flush=True)
    for line in error.splitlines():
        print(plain(line), file=sys.stderr)
    return 1 if error else 0


def _done(verb: str, job: Job, path: Path) -> tuple[dict[str, Any], str]:
    files, progress = Files(), Progress()
    if verb == "plan":
        planned = plan(job, files)
        return asdict(planned), "\n".join(planned.obstacles)
    try:
        # Who is not heard any more ends by SIGPIPE, within a second; whoever comes after it waits for that.
        run = job.progress.parent
        with telling(progress, job.progress), Store(run, run).lock(waiting=progress.note):
            if verb == "adopt":
                return {"moves": {}, "adopted": asdict(adopt(read_adoptions(path), job.reserve, files, progress))}, ""
            if verb == "finish":
                return {"moves": {source: asdict(one) for source, one in finish(job, files).items()}}, ""
            moved = copy(job, files, progress) if verb == "copy" else switch(job, files, progress)
            return {"moves": {source: asdict(one) for source, one in moved.items()}}, ""
    except RelocationError as error:
        return {"moves": {}}, str(error)
    except OSError as error:
        full = ": free some room, then run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return {"moves": {}}, f"{error}{full}; what was done stays and counts"


@contextmanager
def telling(progress: Progress, path: Path) -> Iterator[None]:
    """Tell each second how far it is."""
    ended = threading.Event()
    teller = threading.Thread(target=_tell, args=(progress, path, ended), daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def _tell(progress: Progress, path: Path, ended: threading.Event) -> None:
    seen: dict[str, int] = {}
    while True:
        last = ended.wait(1.0)
        snapshot = write(progress, path)
        for note in later(snapshot.notes, "", seen):
            print(NOTE + plain(note), flush=True)
        print(PROGRESS + line(snapshot), flush=True)
        if last:
            return


def line(snapshot: Snapshot) -> str:
    """How far the copies are, for people."""
    if not snapshot.bytes:
        return "looking at what is there"
    text = f"{snapshot.done / 1e9:.2f} of {snapshot.bytes / 1e9:.2f} GB copied"
    if snapshot.rate > 0:
        text += f", {snapshot.rate / 1e6:.1f} MB/s"
    if snapshot.left is not None:
        minutes, seconds = divmod(round(snapshot.left), 60)
        text += f", {minutes // 60}:{minutes % 60:02}:{seconds:02} left"
    return text


if __name__ == "__main__":
    sys.exit(main())
