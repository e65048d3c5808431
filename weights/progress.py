"""How far a run is: for programs in progress.json, for people in a line."""

import json
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

WINDOW = 10.0  # seconds over which the rate is taken


@dataclass
class FileProgress:
    """One file of a run."""

    name: str
    bytes: int
    done: int = 0
    state: str = "waiting"


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment."""

    files: tuple[FileProgress, ...]
    done: int
    bytes: int
    rate: float
    left: float | None


def line(snapshot: Snapshot) -> str:
    """The run in one line, for people."""
    ready = sum(1 for file in snapshot.files if file.state == "ready")
    text = f"{ready} of {len(snapshot.files)} files, {snapshot.done / 1e9:.2f} of {snapshot.bytes / 1e9:.2f} GB"
    if snapshot.rate > 0:
        text += f", {snapshot.rate / 1e6:.1f} MB/s"
    if snapshot.left is not None:
        minutes, seconds = divmod(round(snapshot.left), 60)
        text += f", {minutes // 60}:{minutes % 60:02}:{seconds:02} left"
    told = [
        f"{file.name}: {file.state}" for file in snapshot.files if file.state not in ("waiting", "fetching", "ready")
    ]
    return "; ".join([text, *told])


@dataclass
class Progress:
    """What the transfers tell; written to a file by write()."""

    files: dict[str, FileProgress] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _fetched: float = 0.0
    _samples: "deque[tuple[float, float]]" = field(default_factory=deque)

    def add(self, name: str, size: int) -> None:
        """A file of the run."""
        self.files[name] = FileProgress(name, size)

    def begin(self, name: str, done: int) -> None:
        """Bytes that were there before count as done, and not for the rate."""
        with self._lock:
            self.files[name].done = done

    def heard(self, name: str, done: int) -> None:
        """So many bytes of the file are there now."""
        with self._lock:
            file = self.files[name]
            self._fetched += max(0, done - file.done)
            file.done = done

    def state(self, name: str, state: str) -> None:
        """What happens with the file."""
        with self._lock:
            file = self.files[name]
            file.state = state
            if state == "ready":
                file.done = file.bytes

    def snapshot(self, now: float) -> Snapshot:
        """The run at this moment."""
        with self._lock:
            self._samples.append((now, self._fetched))
            while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW:
                self._samples.popleft()
            since, fetched = self._samples[0]
            rate = (self._fetched - fetched) / (now - since) if now > since else 0.0
            files = tuple(FileProgress(**asdict(file)) for file in self.files.values())
        done, total = sum(file.done for file in files), sum(file.bytes for file in files)
        return Snapshot(files, done, total, rate, (total - done) / rate if rate > 0 else None)


def write_whole(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old text or the new."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(value) + "\n", encoding="utf-8")
    beside.replace(path)


def write_every_second(progress: Progress, path: Path | None, ended: threading.Event, say: bool) -> None:
    """Until ended: the state of the run into a file, and a line for people every ten seconds."""
    count = 0
    while True:
        last = ended.wait(1.0)
        snapshot = progress.snapshot(time.monotonic())
        if path:
            write_whole(path, asdict(snapshot))
        if say and (last or count % 10 == 0):
            print(line(snapshot), flush=True)
        count += 1
        if last:
            return
