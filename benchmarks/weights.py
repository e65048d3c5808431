"""Fetching and checking weights beside curl, aria2c by hand, hf download and sha256sum: `make bench`.

`.venv/bin/python -m benchmarks.weights [SECTION ...]` runs these sections, or all: loopback, capped, memory, kill,
nothing, verify. It needs aria2c, curl, openssl, 10 GB of disk, and a package index for huggingface_hub, which gets a
virtual environment of its own. Xet is switched off for hf (HF_HUB_DISABLE_XET=1): a server of that protocol is beyond a
benchmark. Ours checks the sha256 and brings the file to the disk before it gives it its name; the others do neither, so
each is shown as it is, then followed by `sync FILE`, and then by a check: `openssl dgst`, which is as fast as Debian
13's sha256sum, or this machine's `sha256sum -c`.
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
from contextlib import suppress
from pathlib import Path

from atelier import paths
from atelier.models import read_lock
from benchmarks.file_server import REPOSITORY, REVISION, FileServer
from weights.store import File, Store, identity

MIB = 1 << 20
RUNS = 3
CONNECTIONS = 8
DELAY, CAP = 0.05, 24e6
NAME = "vae/a.safetensors"


class Bench:
    """A folder for everything, and the files that are fetched."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"
        self.hf_environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def file(self, size: int) -> tuple[Path, str]:
        """A file of random bytes and its sha256."""
        path, whole = self.root / f"{size // MIB}.bin", hashlib.sha256()
        with path.open("wb") as file:
            for _ in range(size // MIB):
                part = os.urandom(MIB)
                whole.update(part)
                file.write(part)
        return path, whole.hexdigest()

    def afresh(self) -> None:
        """An empty folder to fetch to, and a disk that has nothing to do."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        os.sync()

    def job(self, files: list[File], urls: list[str]) -> Path:
        """A job for our program."""
        described = {
            "files": [{"name": one.name, "bytes": one.bytes, "sha256": one.sha256, "urls": urls} for one in files],
            "store": str(self.out / "store"),
            "state": str(self.out / "state"),
            "connections": CONNECTIONS,
            "reserve_bytes": 0,
            "progress": str(self.out / "progress.json"),
            "result": str(self.out / "result.json"),
        }
        job = self.root / "job.json"
        job.write_text(json.dumps(described))
        return job

    def ours(self, server: FileServer, sha256: str) -> list[str]:
        """Our command."""
        job = self.job([File(NAME, server.size, sha256)], [server.url])
        return [sys.executable, "-m", "weights", "fetch", str(job)]

    def peers(self, server: FileServer) -> dict[str, list[str]]:
        """What a user would type instead."""
        self.hf_environment["HF_ENDPOINT"] = server.root
        split = [f"-x{CONNECTIONS}", f"-s{CONNECTIONS}", "-k1M"]
        hf = [str(self.root / "venv/bin/hf"), "download", REPOSITORY, server.name, "--revision", REVISION]
        return {
            "curl": ["curl", "-sS", "-o", str(self.out / server.name), server.url],
            "aria2c by hand": ["aria2c", "-q", *split, "-d", str(self.out), "-o", server.name, server.url],
            "hf download": [*hf, "--local-dir", str(self.out)],
        }

    def start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        """Start a command where our program is found."""
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=paths.PROJECT, env=self.hf_environment, stdout=quiet, stderr=quiet)

    def timed(self, command: list[str]) -> float:
        """Seconds that a command takes."""
        started = time.monotonic()
        status = self.start(command).wait()
        assert status == 0, f"{command} ended with {status}"
        return time.monotonic() - started

    def with_hf(self) -> str:
        """Make the virtual environment of hf; says its version."""
        subprocess.run([sys.executable, "-m", "venv", str(self.root / "venv")], check=True)
        subprocess.run(
            [str(self.root / "venv/bin/pip"), "install", "-q", "huggingface_hub"], check=True, capture_output=True
        )
        asked = [str(self.root / "venv/bin/python"), "-c", "import huggingface_hub as h; print(h.__version__)"]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def load() -> str:
    """How much else the machine had to do: a ratio seen under load says little."""
    return f"load {os.getloadavg()[0]:.1f} of {len(os.sched_getaffinity(0))} cores"


def side_by_side(bench: Bench, server: FileServer, sha256: str, once: tuple[str, ...] = ()) -> None:
    """All fetch the same file in turn. once: those that one run is enough for, as the cap alone decides."""
    commands = {**bench.peers(server), "ours": bench.ours(server, sha256)}
    stages = ("as they are", "and on the disk", "and by openssl", "and by sha256sum")
    times: dict[str, dict[str, list[float]]] = {stage: {label: [] for label in commands} for stage in stages}
    fetched, sums = bench.out / server.name, bench.root / "sums"
    sums.write_text(f"{sha256}  {fetched}\n")
    openssl = sha256sum = 0.0  # the same for whatever fetched the file
    for turn in range(RUNS):
        for label, command in commands.items():
            if turn and label in once:
                continue
            bench.afresh()
            seconds = [bench.timed(command)] * len(stages)
            if label == "ours":
                assert (bench.out / "store" / NAME).stat().st_size == server.size
            else:
                durable = seconds[0] + bench.timed(["sync", str(fetched)])
                if not turn:
                    openssl = openssl or bench.timed(["openssl", "dgst", "-sha256", str(fetched)])
                    sha256sum = sha256sum or bench.timed(["sha256sum", "-c", "--quiet", str(sums)])
                seconds[1:] = durable, durable + openssl, durable + sha256sum
            for stage, value in zip(stages, seconds, strict=True):
                times[stage][label].append(value)
    ours = statistics.median(times[stages[0]]["ours"])
    print(
        f"{server.size / 1e9:.2f} GB, medians of {RUNS} (once: {', '.join(once) or 'none'}); {load()}; ours {ours:.2f} s"
    )
    for stage in stages:
        medians = {label: statistics.median(times[stage][label]) for label in commands if label != "ours"}
        shown = (f"{label} {seconds:.2f} s ({seconds / ours:.2f})" for label, seconds in medians.items())
        print(f"  {stage:18} (time / ours): " + ", ".join(shown))
    print(flush=True)


def loopback(bench: Bench) -> None:
    """One server on loopback, as fast as it goes."""
    path, sha256 = bench.file(2048 * MIB)
    with FileServer(path, sha256) as server:
        print("== loopback, no cap")
        side_by_side(bench, server, sha256)


def capped(bench: Bench) -> None:
    """A round trip of 50 ms and a cap for each connection."""
    path, sha256 = bench.file(1024 * MIB)
    with FileServer(path, sha256, DELAY, CAP) as server:
        print(f"== {DELAY * 1000:.0f} ms a round trip, {CAP / 1e6:.0f} MB/s a connection")
        side_by_side(bench, server, sha256, once=("curl", "hf download"))


def memory(bench: Bench) -> None:
    """The peak of our program and aria2c together, at two sizes."""
    print("== memory: the peaks of our program and of aria2c added up")
    for size in (256 * MIB, 2048 * MIB):
        path, sha256 = bench.file(size)
        with FileServer(path, sha256, cap=size / 3 / CONNECTIONS) as server:
            bench.afresh()
            process, peaks = bench.start(bench.ours(server, sha256)), dict[int, int]()
            while process.poll() is None:
                for pid in (process.pid, *_children(process.pid)):
                    peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
                time.sleep(0.02)
            assert process.returncode == 0
        path.unlink()
        print(f"  {size / 1e9:.2f} GB: {sum(peaks.values()) / 1e6:.0f} MB", flush=True)
    print()


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def _peak(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def kill(bench: Bench) -> None:
    """kill -9 when half is there, then the same command again: what is fetched a second time."""
    path, sha256 = bench.file(512 * MIB)
    rate = 100e6
    print(
        f"== kill -9 at half of {path.stat().st_size / 1e9:.2f} GB at {rate / 1e6:.0f} MB/s, then again: fetched twice"
    )
    for label in ("curl", "aria2c by hand", "hf download", "ours"):
        alone = label in ("curl", "hf download")
        with FileServer(path, sha256, cap=rate / (1 if alone else CONNECTIONS)) as server:
            bench.afresh()
            command = {**bench.peers(server), "ours": bench.ours(server, sha256)}[label]
            process = bench.start(command)
            while server.sent < server.size / 2:
                time.sleep(0.01)
            process.kill()
            process.wait()
            again = {"curl": ["-C", "-"], "aria2c by hand": ["-c"]}.get(label, [])
            bench.timed([*command, *again])
            twice = server.sent - server.size
        print(f"  {label:15} {twice / 1e6:6.1f} MB: {twice / server.size:.1%}, {twice / rate:.2f} s", flush=True)
    print()


def nothing(bench: Bench) -> None:
    """All weights are there: sparse files of their sizes, with records that say so."""
    bench.afresh()
    store = Store(bench.out / "store", bench.out / "state")
    weights = read_lock(paths.PROJECT / "locks/models.yml").wanted(["qwen-edit-2509", "sdxl-turbo"])
    files = [File(weight.store_path, weight.bytes, weight.sha256) for weight in weights]
    for file in files:
        store.path(file).parent.mkdir(parents=True, exist_ok=True)
        store.path(file).touch()
        os.truncate(store.path(file), file.bytes)
        store.record(file, identity(store.path(file).stat()))
    job = bench.job(files, [])
    times, read = [], 0
    for _ in range(5):
        started = time.monotonic()
        process = bench.start([sys.executable, "-m", "weights", "fetch", str(job)])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        times.append(time.monotonic() - started)
        read = int(Path(f"/proc/{process.pid}/io").read_text().split()[1])
        assert process.wait() == 0
    gigabytes = sum(file.bytes for file in files) / 1e9
    print(
        f"== nothing to do for {gigabytes:.1f} GB (sparse): {statistics.median(times):.3f} s, the whole process; {load()}"
    )
    print(f"  read, its own program included: {read / 1e6:.1f} MB\n", flush=True)


def verify(bench: Bench) -> None:
    """A deep verify, whole processes, beside sha256sum once a core; the files lie in the cache."""
    cores = len(os.sched_getaffinity(0))
    bench.afresh()
    store = Store(bench.out / "store", bench.out / "state")
    files = []
    for number in range(cores):
        path, sha256 = bench.file(4096 * MIB)
        files.append(File(f"vae/{number}", path.stat().st_size, sha256))
        store.path(files[-1]).parent.mkdir(parents=True, exist_ok=True)
        path.rename(store.path(files[-1]))
    job = bench.job(files, [])
    each = " ".join(str(store.path(file)) for file in files)
    once_a_core = f"echo {each} | xargs -P {cores} -n 1 "
    served = "import sys; from weights.job import read_job; from weights.store import Store; from weights.verify import verify; "
    served += "job, _ = read_job(__import__('pathlib').Path(sys.argv[1])); verify(Store(job.store, job.state), job.files, True)"
    ours = [sys.executable, "-m", "weights", "verify", "--deep", str(job)]
    commands = {
        "sha256sum": ["sh", "-c", once_a_core + "sha256sum"],
        "openssl sha256": ["sh", "-c", once_a_core + "openssl dgst -sha256"],
        "ours": ours,
        "ours, with pieces": [sys.executable, "-c", served, str(job)],
    }
    times: dict[str, list[float]] = {label: [] for label in commands}
    for _ in range(RUNS):
        for label, command in commands.items():
            for file in files:
                store.pieces_path(file).unlink(missing_ok=True)
            times[label].append(bench.timed(command))
    medians = {label: statistics.median(values) for label, values in times.items()}
    print(
        f"== deep verify of {cores} files of 4.29 GB, {cores} at once; sha256sum of Debian 13 is made of openssl; {load()}"
    )
    for label, seconds in medians.items():
        peers = ", ".join(f"{medians[peer] / seconds:.2f} of {peer}" for peer in ("sha256sum", "openssl sha256"))
        print(f"  {label:18} {seconds:5.2f} s: speed {peers}", flush=True)
    print()


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "loopback": loopback,
    "capped": capped,
    "memory": memory,
    "kill": kill,
    "nothing": nothing,
    "verify": verify,
}


def main(*wanted: str) -> None:
    """Run the sections that are named, or all."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        chosen = wanted or tuple(SECTIONS)
        if {"loopback", "capped", "kill"} & set(chosen):
            print(f"huggingface_hub {bench.with_hf()}, {load()}\n", flush=True)
        for name in chosen:
            SECTIONS[name](bench)
            for left in bench.root.glob("*.bin"):
                left.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
