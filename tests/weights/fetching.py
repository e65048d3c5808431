"""What the tests of fetching share: a file, servers that have it, a job that fetches it."""

import hashlib
import json
import random
import sys
import threading
import time
from pathlib import Path

from fault_server import FaultServer

from weights.aria2 import Limits
from weights.decide import Patience
from weights.fetch import Job, Result, run
from weights.store import File, Store

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
ALLOWED = 16 * MIB
CONTENT = random.Random(1).randbytes(24 * MIB + 12345)
SHA = hashlib.sha256(CONTENT).hexdigest()
NAME = "checkpoints/a.safetensors"


def job_for(tmp_path: Path, *urls: str) -> Job:
    return Job(
        files=(File(NAME, len(CONTENT), SHA, urls),),
        store=tmp_path / "store",
        state=tmp_path / "state",
        limits=Limits(connections=4, patience=2.0),
        patience=Patience(failures=6, first_wait=0.1, space_wait=0.2),
        reserve=0,
    )


def assert_published(job: Job) -> None:
    store = Store(job.store, job.state)
    for file in job.files:
        assert hashlib.sha256((job.store / file.name).read_bytes()).hexdigest() == file.sha256
        assert store.known_good(file)
    assert not list((job.store / ".incoming").iterdir())


def in_background(job: Job) -> tuple[threading.Thread, list[Result]]:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run(job)))
    thread.start()
    return thread, results


def wait_until_sent(server: FaultServer, size: int) -> None:
    until = time.monotonic() + 20
    while server.sent < size and time.monotonic() < until:
        time.sleep(0.01)
    assert server.sent >= size


def command_for(job: Job, path: Path) -> list[str]:
    (file,) = job.files
    described = {
        "files": [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256, "urls": file.urls}],
        "store": str(job.store),
        "state": str(job.state),
        "reserve_bytes": 0,
        "progress": str(path.with_name("progress.json")),
        "result": str(path.with_name("result.json")),
    }
    path.write_text(json.dumps(described))
    return [sys.executable, "-m", "weights", "fetch", str(path)]
