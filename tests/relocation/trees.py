"""Trees to move, what they hold, and a program that is killed between two steps."""

import hashlib
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relocation.copy import copy
from relocation.files import OURS, Files, Place
from relocation.finish import finish
from relocation.job import Job, read_job
from relocation.switch import switch
from weights.progress import Progress

AGES_AGO = 1_600_000_000 * 10**9


class OtherFiles(Files):
    """As if every two directories were on different file systems."""

    def are_joined(self, source: str, target: str) -> bool:
        return False


def job_for(tmp_path: Path, *moves: tuple[str, Path, Path], **more: Any) -> Job:
    path = tmp_path / "job.json"
    told = [{"kind": kind, "source": str(source), "target": str(target)} for kind, source, target in moves]
    usual = {"jobs": 1, "progress": str(tmp_path / "run/progress.json"), "result": str(tmp_path / "run/result.json")}
    path.write_text(json.dumps({"moves": told, **usual, **more}))
    return read_job(path)


def all_verbs(job: Job, files: Files) -> None:
    copy(job, files, Progress())
    switch(job, files, Progress())
    finish(job, files)


def put(path: Path, content: bytes, mtime_ns: int = AGES_AGO, mode: int = 0o640) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def record(state: Path, file: Path) -> str:
    """Have a file known good, as a fetch does."""
    sha256, found = hashlib.sha256(file.read_bytes()).hexdigest(), file.stat()
    state.mkdir(parents=True, exist_ok=True)
    told = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino, "sha256": sha256}
    (state / f"{sha256}.json").write_text(json.dumps(told) + "\n")
    return sha256


def contents(top: Path) -> dict[str, tuple[Any, ...]]:
    """What a tree holds: kind, bytes or aim, mode, owner, time."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, directories, names in os.walk(top):
        directories[:] = [name for name in directories if name != OURS]
        for name in [*directories, *names]:
            path = Path(folder) / name
            key, stat = str(path.relative_to(top)), path.lstat()
            if path.is_symlink():
                found[key] = ("link", str(path.readlink()))
            elif path.is_dir():
                found[key] = ("directory", stat.st_mode, stat.st_uid)
            elif path.is_file():
                found[key] = ("file", path.read_bytes(), stat.st_mode, stat.st_uid, stat.st_mtime_ns)
            else:
                found[key] = ("special", stat.st_mode)
    return found


def plant(dice: random.Random, top: Path, files: int = 8) -> None:
    """A tree of anything: nested, empty, sparse, linked, with names that are no UTF-8."""
    top.mkdir(parents=True, exist_ok=True)
    folders = [top]
    for number in range(dice.randrange(4)):
        folders.append(dice.choice(folders) / f"d{number}")
        folders[-1].mkdir(exist_ok=True)
        folders[-1].chmod(dice.choice([0o755, 0o700, 0o2770]))
    made: list[Path] = []
    for number in range(dice.randrange(1, files)):
        name = dice.choice([f"f{number}", f"{number}.png", os.fsdecode(b"\xff\xfe%d" % number), f"a\nb{number}"])
        path = dice.choice(folders) / name
        sort = dice.random()
        if sort < 0.15 and made:
            os.link(dice.choice(made), path)
        elif sort < 0.3:
            path.symlink_to(dice.choice(["f0", "/etc/hostname", str(top / "f0"), "../up"]))
        elif sort < 0.4:
            with path.open("wb") as file:
                file.truncate(dice.randrange(1, 1 << 20))
                file.seek(dice.randrange(1 << 20))
                file.write(b"x" * dice.randrange(3))
            made.append(path)
        else:
            put(path, dice.randbytes(dice.choice([0, 1, 5000])), AGES_AGO + number, dice.choice([0o600, 0o644]))
            made.append(path)


class Told:
    """What a child did, written so that its death loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def write(self, *words: object) -> None:
        with self.path.open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")

    def rows(self) -> list[list[str]]:
        return [row.split() for row in self.path.read_text().splitlines()]


def mortal(base: type[Files], steps: int, told: Told) -> Files:
    """Files that kill their process before a step."""

    class Mortal(base):  # type: ignore[valid-type, misc]
        left = steps

        def step(self) -> None:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def part(self, place: Place) -> Any:
            told.write("part", place.name.rpartition("/")[2])
            return super().part(place)

        def append(self, path: Path, text: bytes) -> None:
            super().append(path, text)
            line = json.loads(text)
            if line[4:5] == ["copied"]:
                told.write("verified", line[2][0])

    return Mortal()


def in_a_child(work: Callable[[], None]) -> int:
    """The status with which a forked process ends that does the work. 0: done; -9: killed."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
