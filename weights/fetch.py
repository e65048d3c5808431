"""Fetches files into a store: asks, lets aria2 transfer, hashes, publishes. What to do next, weights/decide.py decides."""

import os
import shutil
import subprocess
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from weights import aria2
from weights.adopt import adopt
from weights.decide import (
    Check,
    Dropped,
    End,
    Fetch,
    GiveUp,
    Patience,
    PauseForSpace,
    Source,
    Transfer,
    WrongBytes,
    choose,
    decide,
    without_query,
)
from weights.progress import Progress, write_every_second
from weights.store import File, Store, StoreError, sha256_of

GB = 1_000_000_000
_ENDED = "ended before it was done"


class FetchError(Exception):
    """Why a run cannot begin, and what to do about it."""


class EndedError(Exception):
    """We were asked to end while something could not be left half done for long: hashing, waiting for the lock."""


@dataclass(frozen=True)
class Job:
    """What to fetch, and how."""

    files: tuple[File, ...]
    store: Path
    state: Path
    limits: aria2.Limits = field(default_factory=aria2.Limits)
    patience: Patience = field(default_factory=Patience)
    jobs: int = 2  # files at once
    reserve: int = 2 * GB
    search: tuple[Path, ...] = ()  # where files may lie already
    token: str | None = None
    token_hosts: tuple[str, ...] = ("huggingface.co",)
    progress: Path | None = None
    say: bool = True
    id: str = ""  # of the job file, for whoever follows


@dataclass(frozen=True)
class FileResult:
    """What came of one file."""

    name: str
    ready: bool
    why: str = ""
    dropped: tuple[Dropped, ...] = ()


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    files: tuple[FileResult, ...]
    ended: bool = False  # by a signal, before it was done

    @property
    def ready(self) -> bool:
        """Whether every file is there."""
        return all(file.ready for file in self.files)


def run(job: Job, stop: threading.Event | None = None) -> Result:
    """Fetch what is missing. One file's failure does not stop the others."""
    stop = stop or threading.Event()
    store = Store(job.store, job.state)
    wanted = _once_each(job.files)
    missing = [file for file in wanted if not store.known_good(file)]
    if not missing:
        return Result(tuple(FileResult(file.name, True) for file in wanted))
    if not shutil.which("aria2c"):
        raise FetchError("aria2c is missing; install the package aria2")
    with store.lock(waiting=_say if job.say else None) as held:
        return _Run(job, store, stop, held).of(wanted)


def _say(text: str) -> None:
    print(text, flush=True)


def _once_each(files: tuple[File, ...]) -> list[File]:
    wanted: dict[str, File] = {}
    for file in files:
        before = wanted.setdefault(file.name, file)
        if before.sha256 != file.sha256:
            raise FetchError(f"{file.name} is wanted with two sha256: {before.sha256} and {file.sha256}")
    return list(wanted.values())


def short_of_space(missing: int, reserve: int, free: int) -> str | None:
    """What to tell where the disk cannot hold what is missing."""
    lacking = missing + reserve - free
    if lacking <= 0:
        return None
    return (
        f"{missing / GB:.2f} GB are missing and {reserve / GB:.2f} GB are to stay free, but only {free / GB:.2f} GB "
        f"are free: make room for {lacking / GB:.2f} GB"
    )


def token_for(url: str, token: str | None, hosts: tuple[str, ...]) -> str | None:
    """The token goes to the hosts it is for, and to no mirror."""
    host = urllib.parse.urlsplit(url).hostname or ""
    return token if host in hosts else None


def _allocated(part: Path) -> int:
    return part.stat().st_blocks * 512 if part.exists() else 0


class _Run:
    def __init__(self, job: Job, store: Store, stop: threading.Event, held: int) -> None:
        self.job, self.store, self.stop, self.held = job, store, stop, held
        self.progress = Progress(job.id, os.environ.get("INVOCATION_ID", ""))

    def of(self, wanted: list[File]) -> Result:
        (self.job.store / ".incoming").mkdir(parents=True, exist_ok=True)
        for file in wanted:
            self.progress.add(file.name, file.bytes)
        ended = threading.Event()
        watcher = threading.Thread(
            target=write_every_second, args=(self.progress, self.job.progress, ended, self.job.say), daemon=True
        )
        watcher.start()
        try:
            settled = {file.name: self._settle(file) for file in wanted}
            missing = self._not_found_here([file for file in wanted if not settled[file.name]])
            settled = {file.name: file not in missing for file in wanted}
            same = {file.sha256: file for file in reversed(missing)}
            self._check_space(list(same.values()))
            with ThreadPoolExecutor(max(1, self.job.jobs)) as pool:
                done = dict(zip(same, pool.map(self._fetch, same.values()), strict=True))
            results = tuple(
                FileResult(file.name, True) if settled[file.name] else self._named(file, same[file.sha256], done)
                for file in wanted
            )
        finally:
            ended.set()
            watcher.join()
        return Result(results, self.stop.is_set() and not all(result.ready for result in results))

    def _settle(self, file: File) -> bool:
        """Whether the file is there; another file with its name is set aside."""
        self.progress.state(file.name, "checking")
        wrong = self.store.settle(file, self.heed)
        if wrong:
            self._tell(f"{file.name}: another file had this name; it was set aside as {wrong.path}")
        ready = self.store.known_good(file)
        self.progress.state(file.name, "ready" if ready else "waiting")
        return ready

    def _not_found_here(self, missing: list[File]) -> list[File]:
        """Take what lies elsewhere on this machine, and say what is missing still."""
        if missing and self.job.search:
            for file in missing:
                self.progress.state(file.name, "looking for it on this machine")
            adopt(self.store, missing, self.job.search, copy=True, say=self._tell)
        still = [file for file in missing if not self.store.known_good(file)]
        for file in missing:
            self.progress.state(file.name, "waiting" if file in still else "ready")
        return still

    def _check_space(self, missing: list[File]) -> None:
        needed = sum(max(0, file.bytes - _allocated(self.store.incoming(file))) for file in missing)
        short = short_of_space(needed, self.job.reserve, shutil.disk_usage(self.job.store).free)
        if missing and short:
            raise FetchError(f"{self.job.store}: {short}")

    def _named(self, file: File, fetched: File, done: dict[str, FileResult]) -> FileResult:
        """The result under this file's own name: two names for the same bytes are one fetch and two links."""
        result = done[file.sha256]
        if file.name == fetched.name or not result.ready:
            return FileResult(file.name, result.ready, result.why, result.dropped)
        part = self.store.incoming(file)
        os.link(self.store.path(fetched), part)
        self.store.publish(part, file)
        self.progress.state(file.name, "ready")
        return FileResult(file.name, True, "", result.dropped)

    def _fetch(self, file: File) -> FileResult:
        try:
            result = _FileRun(self, file).run()
        except EndedError:
            result = FileResult(file.name, False, _ENDED)
        except (OSError, StoreError) as error:
            result = FileResult(file.name, False, str(error))
        self.progress.state(file.name, "ready" if result.ready else "failed")
        if not result.ready and not self.stop.is_set():
            self._tell(f"{file.name}: {result.why}")
        return result

    def heed(self, _: int) -> None:
        """Called while hashing: end it when we are asked to."""
        if self.stop.is_set():
            raise EndedError

    def _tell(self, text: str) -> None:
        self.progress.note(text)
        if self.job.say:
            _say(text)


class _FileRun:
    """The loop around the decisions for one file."""

    def __init__(self, run: _Run, file: File) -> None:
        self.run_, self.job, self.stop, self.file = run, run.job, run.stop, file
        self.part = run.store.incoming(file)
        # Who sent to the part. What an earlier run began, nobody alone is blamed for.
        self.senders = ["an earlier run", "unknown"] if self.part.exists() else []
        self.transfer = Transfer(tuple(Source(url) for url in dict.fromkeys(file.urls)))

    def run(self) -> FileResult:
        action = Check() if self._complete() else choose(self.transfer, time.monotonic())
        while True:
            if self.stop.is_set() or isinstance(action, End):
                return self._failed(_ENDED)
            if isinstance(action, GiveUp):
                return self._failed(_told(action))
            if isinstance(action, Check):
                outcome: aria2.Outcome | WrongBytes | None = self._check()
                if outcome is None:
                    return FileResult(self.file.name, True, "", self.transfer.dropped)
                url = ""
            elif isinstance(action, PauseForSpace):
                self._pause(action)
                action = choose(self.transfer, time.monotonic())
                continue
            else:
                url = action.url
                outcome = self._attempt(action)
            before = self.transfer.dropped
            self.transfer, action = decide(self.transfer, url, outcome, time.monotonic(), self.job.patience)
            for gone in self.transfer.dropped[len(before) :]:
                self.run_._tell(f"{self.file.name}: {without_query(gone.url)} is not asked again: {gone.why}")

    def _failed(self, why: str) -> FileResult:
        return FileResult(self.file.name, False, why, self.transfer.dropped)

    def _complete(self) -> bool:
        return (
            self.part.exists()
            and self.part.stat().st_size == self.file.bytes
            and not aria2.control_path(self.part).exists()
        )

    def _pause(self, action: PauseForSpace) -> None:
        self.run_.progress.state(self.file.name, "waiting for space")
        free = shutil.disk_usage(self.job.store).free
        self.run_._tell(
            f"{self.file.name}: the disk is full, {free / GB:.2f} GB are free; it goes on when there is room"
        )
        self.stop.wait(action.wait)

    def _attempt(self, action: Fetch) -> aria2.Outcome:
        name = self.file.name
        if action.wait:
            self.run_.progress.state(name, f"waiting {action.wait:.0f} s for {without_query(action.url)}")
            if self.stop.wait(action.wait):
                return aria2.Stopped()
        if action.afresh or (self.part.exists() and self.part.stat().st_size > self.file.bytes):
            self._drop_part()
        self.run_.progress.state(name, "fetching")
        if action.url.startswith("file://"):
            return self._copy(action.url)
        token = token_for(action.url, self.job.token, self.job.token_hosts)
        answer = aria2.ask(action.url, token, self.file.bytes, self.job.limits)
        if not isinstance(answer, aria2.Answer):
            return answer
        have = aria2.saved_bytes(self.part)
        if not answer.ranges and self.part.exists():
            if have:
                return aria2.NoRanges()
            self._drop_part()
        self.senders.append(action.url)
        self.run_.progress.begin(name, have)
        return aria2.run(
            self.part,
            answer,
            self.job.limits,
            os.getpid(),
            self.stop,
            lambda done: self.run_.progress.heard(name, done),
            (self.run_.held,),
        )

    def _copy(self, url: str) -> aria2.Outcome:
        origin = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
        if not Path(origin).is_file():
            return aria2.Missing(f"there is no file {origin}")
        self._drop_part()
        self.senders.append(url)
        copied = subprocess.run(  # holes stay holes
            ["cp", "--sparse=always", "--", origin, str(self.part)], capture_output=True, text=True, errors="replace"
        )
        if copied.returncode == 0:
            return aria2.Fetched()
        full = shutil.disk_usage(self.job.store).free < 1_000_000
        return aria2.DiskFull() if full else aria2.Cut(copied.stderr.strip())

    def _drop_part(self) -> None:
        self.part.unlink(missing_ok=True)
        aria2.control_path(self.part).unlink(missing_ok=True)
        self.senders = []

    def _check(self) -> WrongBytes | None:
        self.run_.progress.state(self.file.name, "checking its sha256")
        found = sha256_of(self.part, self.run_.heed)
        if found == self.file.sha256:
            self.run_.store.publish(self.part, self.file)
            return None
        return WrongBytes(found, self.file.sha256, tuple(dict.fromkeys(self.senders)))


def _told(action: GiveUp) -> str:
    if action.refused:
        page = without_query(action.refused).partition("/resolve/")[0]
        return f"{action.why}. Accept the licence at {page} and give a token of that account"
    return action.why
