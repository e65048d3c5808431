"""How far a run is: for programs in progress.json, for people in a line."""

import json
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WINDOW = 10.0  # seconds over which the rate is taken
NOTES = 50  # the last ones are kept
PROGRESS = "::progress:: "
"""How a line begins that tells how far it is; the next one takes its place."""
NOTE = "::note:: "
"""How a line begins that a person should see."""
FETCHED = "::fetched:: "
"""How a line begins that says how many bytes came from somewhere else."""


@dataclass
class FileProgress:
    """One file of a run."""

    name: str
    bytes: int
    done: int = 0
    state: str = "waiting"


@dataclass(frozen=True)
class Note:
    """What a person should know, counted so that a reader tells each once."""

    number: int
    text: str


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment. job: the sha256 of its job file; run: systemd's id of the unit's run."""

    files: tuple[FileProgress, ...]
    done: int
    bytes: int
    rate: float
    left: float | None
    notes: tuple[Note, ...] = ()
    job: str = ""
    run: str = ""
    fetched: int = 0
    """Bytes that this run had its sources send, those that turned out wrong among them; not what it found here."""


def plain(text: str) -> str:
    """A text as one line that moves no cursor: it may hold names of files that anybody made."""
    return "".join(character if character.isprintable() else "?" for character in text)


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


def later(notes: tuple[Note, ...], run: str, seen: dict[str, int]) -> list[str]:
    """The notes of a run that were not told yet."""
    last = seen.get(run, 0)
    seen[run] = max([last, *(note.number for note in notes)])
    return [note.text for note in notes if note.number > last]


@dataclass
class Progress:
    """What the transfers tell; written to a file by write()."""

    job: str = ""
    run: str = ""
    files: dict[str, FileProgress] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _fetched: int = 0
    _samples: "deque[tuple[float, float]]" = field(default_factory=deque)
    _notes: "deque[Note]" = field(default_factory=lambda: deque(maxlen=NOTES))

    def add(self, name: str, size: int) -> None:
        """A file of the run."""
        with self._lock:
            self.files[name] = FileProgress(name, size)

    def note(self, text: str) -> None:
        """Something that a person should know."""
        with self._lock:
            self._notes.append(Note(self._notes[-1].number + 1 if self._notes else 1, text))

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

    def came(self, size: int) -> None:
        """So many bytes came that the file had already, in another form."""
        with self._lock:
            self._fetched += size

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
            notes = tuple(self._notes)
        done, total = sum(file.done for file in files), sum(file.bytes for file in files)
        left = (total - done) / rate if rate > 0 else None
        return Snapshot(files, done, total, rate, left, notes, self.job, self.run, self._fetched)


def read_snapshot(told: dict[str, Any]) -> Snapshot:
    """What progress.json tells. Raises KeyError or TypeError where it is another program's."""
    files = tuple(FileProgress(**file) for file in told["files"])
    notes = tuple(Note(**note) for note in told["notes"])
    return Snapshot(**{**told, "files": files, "notes": notes})


def write_whole(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(value) + "\n", encoding="utf-8")
    beside.replace(path)


def write(progress: Progress, path: Path | None) -> Snapshot:
    """Write how far a run is at this moment, where there is a file for it."""
    snapshot = progress.snapshot(time.monotonic())
    if path:
        with suppress(OSError):  # such as a full disk, where the transfer waits for room
            write_whole(path, asdict(snapshot))
    return snapshot


def write_every_second(progress: Progress, path: Path | None, ended: threading.Event, say: bool) -> None:
    """Until ended: the state of the run into a file, and a line for people every ten seconds."""
    count = 0
    while True:
        last = ended.wait(1.0)
        snapshot = write(progress, path)
        if say and (last or count % 10 == 0):
            print(line(snapshot), flush=True)
        count += 1
        if last:
            return
