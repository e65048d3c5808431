"""Moving a host's data beside mv, rsync and cp: `make bench`, or `.venv/bin/python -m benchmarks.relocation [SECTION ...]`.

Sections: renamed, weights, outputs, switched. It needs root (a mount in a namespace of its own, which makes two
file systems of one disk), rsync, and 8 GB of disk. Ours proves each copy by what the disk gives back and brings it to the
disk before it gets its name; the others do neither, so each is shown as it is, then followed by `sync`, and then by
`sha256sum -c` of its copies, out of the cache's sight.
"""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from atelier import paths

MIB = 1 << 20
RUNS = 3


class Bench:
    """A folder with what moves, and one on another mount."""

    def __init__(self, root: Path) -> None:
        self.root, self.old, self.new, self.state = root, root / "old", root / "new", root / "state"
        self.sums = root / "sums"

    def afresh(self) -> None:
        """An empty target, and a disk that has nothing to do."""
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir()
        os.sync()

    def plant(self, number: int, size: int, known: bool) -> None:
        """So many files of random bytes; known: as weights whose sha256 is on record."""
        shutil.rmtree(self.old, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir()
        sums = []
        for one in range(number):
            path = self.old / f"{one % 20}/{one}"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = os.urandom(min(size, MIB)) * max(1, size // MIB)
            path.write_bytes(content)
            sha256, found = hashlib.sha256(content).hexdigest(), path.stat()
            sums.append(f"{sha256}  {path.relative_to(self.old)}\n")
            if known:
                facts = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino, "sha256": sha256}
                (self.state / f"{sha256}.json").write_text(json.dumps(facts))
        self.sums.write_text("".join(sums))

    def job(self, target: Path) -> Path:
        """A job for our program."""
        path = self.root / "job.json"
        move = {"kind": "models", "source": str(self.old), "target": str(target)}
        reports = {name: str(self.root / "run" / f"{name}.json") for name in ("progress", "result")}
        path.write_text(json.dumps({"moves": [move], "records": str(self.state), **reports}))
        return path

    def ours(self, *verbs: str, across: bool = True) -> list[str]:
        """Our command; across: as if the target were a disk of its own."""
        job = self.job(self.new / "moved" if across else self.root / "renamed")
        steps = " && ".join(f"{sys.executable} -m relocation {verb} {job}" for verb in verbs)
        mount = f"mount --bind {self.new} {self.new} && " if across else ""
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{mount}{steps}"]

    def start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        """Start a command where our program is found."""
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=paths.PROJECT, stdout=quiet, stderr=quiet)

    def timed(self, command: list[str]) -> float:
        """Seconds that a command takes."""
        started = time.monotonic()
        status = self.start(command).wait()
        assert status == 0, f"{command} ended with {status}"
        return time.monotonic() - started

    def verified(self, copies: Path) -> float:
        """Seconds that sha256sum takes for the copies, once a core, where the cache holds none of them."""
        for path in copies.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
        cores = len(os.sched_getaffinity(0))
        check = f"split -n r/{cores} --filter='sha256sum -c --quiet' {self.sums}"
        return self.timed(["sh", "-c", f"cd {copies} && {check}"])


def load() -> str:
    """How much else the machine had to do: a ratio seen under load says little."""
    return f"load {os.getloadavg()[0]:.1f} of {len(os.sched_getaffinity(0))} cores"


def renamed(bench: Bench) -> None:
    """40 GB of weights (sparse) within a file system: what the services wait for."""
    times: dict[str, list[float]] = {"ours (copy, switch, finish)": [], "ours (switch)": [], "mv": []}
    for _ in range(RUNS):
        for label, values in times.items():
            bench.plant(0, 0, known=False)
            bench.old.mkdir()
            for number in range(40):
                with (bench.old / str(number)).open("wb") as file:
                    file.truncate(10**9)
            verbs = ("copy", "switch", "finish") if "," in label else ("switch",)
            there = bench.root / "renamed"
            values.append(
                bench.timed(["mv", str(bench.old), str(there)] if label == "mv" else bench.ours(*verbs, across=False))
            )
            assert len(list(there.iterdir())) >= 40
            shutil.rmtree(there)
    print(f"== 40 GB (sparse) renamed, whole processes, medians of {RUNS}; {load()}")
    for label, values in times.items():
        print(f"  {label:28} {statistics.median(values):.3f} s", flush=True)
    print()


def _copied(bench: Bench, what: str) -> None:
    peers = {
        "rsync -a": ["rsync", "-a", f"{bench.old}/", f"{bench.new}/moved/"],
        "cp -a": ["cp", "-a", "--reflink=never", str(bench.old), str(bench.new / "moved")],
    }
    stages = ("as they are", "and on the disk", "and verified")
    times: dict[str, dict[str, list[float]]] = {stage: {label: [] for label in ("ours", *peers)} for stage in stages}
    for _ in range(RUNS):
        for label in ("ours", *peers):
            bench.afresh()
            if label == "ours":
                seconds = [bench.timed(bench.ours("copy"))] * len(stages)
            else:
                first = bench.timed(peers[label])
                durable = first + bench.timed(["sync", "-f", str(bench.new)])
                seconds = [first, durable, durable + bench.verified(bench.new / "moved")]
            for stage, value in zip(stages, seconds, strict=True):
                times[stage][label].append(value)
    ours = statistics.median(times[stages[0]]["ours"])
    print(f"== {what}, medians of {RUNS}; {load()}; ours {ours:.2f} s")
    for stage in stages:
        medians = {label: statistics.median(times[stage][label]) for label in peers}
        print(
            f"  {stage:16} (time / ours): " + ", ".join(f"{n} {s:.2f} s ({s / ours:.2f})" for n, s in medians.items())
        )
    print(flush=True)


def weights(bench: Bench) -> None:
    """Few large files whose sha256 is on record."""
    bench.plant(4, 512 * MIB, known=True)
    _copied(bench, "4 weights of 0.54 GB copied")


def outputs(bench: Bench) -> None:
    """Many small files of which nothing is known."""
    bench.plant(3000, 200_000, known=False)
    _copied(bench, "3000 files of 0.2 MB copied")


def switched(bench: Bench) -> None:
    """What the services wait for after the copy: nothing changed, or one file in a hundred."""
    print(f"== the switch of 5000 copied files, medians of {RUNS}; {load()}")
    bench.plant(5000, 100, known=False)
    for label, every in (("nothing changed", 0), ("1 of 100 changed", 100)):
        times: dict[str, list[float]] = {"ours": [], "rsync -a --delete": []}
        for _ in range(RUNS):
            for name, values in times.items():
                bench.afresh()
                again = ["rsync", "-a", "--delete", f"{bench.old}/", f"{bench.new}/moved/"]
                bench.timed(bench.ours("copy") if name == "ours" else again)
                for number in range(0, 5000 if every else 0, every or 1):
                    (bench.old / f"{number % 20}/{number}").write_bytes(os.urandom(100))
                values.append(bench.timed(bench.ours("switch") if name == "ours" else again))
        told = ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in times.items())
        print(f"  {label:18} {told}", flush=True)
    print()


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "renamed": renamed,
    "weights": weights,
    "outputs": outputs,
    "switched": switched,
}


def main(*wanted: str) -> None:
    """Run the sections that are named, or all."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        for name in wanted or tuple(SECTIONS):
            SECTIONS[name](bench)


if __name__ == "__main__":
    main(*sys.argv[1:])
