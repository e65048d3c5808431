"""Fetches files into a store: asks, lets aria2 transfer, hashes, publishes. What to do next, weights/decide.py decides."""

import math
import os
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from weights import aria2, pieces
from weights.adopt import each_at_once, take
from weights.decide import (
    WAITS_FOR_SPACE,
    Action,
    Check,
    Dropped,
    End,
    Fetch,
    GiveUp,
    Happening,
    Patience,
    PauseForSpace,
    Repair,
    Repaired,
    Source,
    Transfer,
    WrongBytes,
    WrongPiece,
    choose,
    decide,
    server_of,
    told,
    without_query,
)
from weights.hashing import PartHash
from weights.progress import Progress, plain, write, write_every_second
from weights.store import INCOMING, PIECE, File, Store, StoreError, identity, sha256_of

GB = 1_000_000_000
T = TypeVar("T")
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
    if all(_known_good(store, file) for file in wanted):
        return Result(tuple(FileResult(file.name, True) for file in wanted))
    if not shutil.which("aria2c"):
        raise FetchError("aria2c is missing; install the package aria2")
    progress = Progress(job.id, os.environ.get("INVOCATION_ID", ""))

    def waiting(text: str) -> None:
        progress.note(text)
        write(progress, job.progress)
        if job.say:
            _say(text)

    with store.lock(waiting) as held:
        return _Run(job, store, stop, held, progress).of(wanted)


def _known_good(store: Store, file: File) -> bool:
    """What cannot be looked at is looked at closely, and told of, when its turn comes."""
    try:
        return store.known_good(file)
    except OSError:
        return False


def _say(text: str) -> None:
    print(plain(text), flush=True)


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
    return token if _host(url) in hosts else None


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or ""


def _allocated(part: Path) -> int:
    return part.stat().st_blocks * 512 if part.exists() else 0


class _Run:
    def __init__(self, job: Job, store: Store, stop: threading.Event, held: int, progress: Progress) -> None:
        self.job, self.store, self.stop, self.held = job, store, stop, held
        self.progress = progress
        # By server: when it was asked first, infinity once it has answered.
        self._asked: dict[str, float] = {}
        self._silent: set[str] = set()  # servers that kept us waiting

    def of(self, wanted: list[File]) -> Result:
        (self.job.store / INCOMING).mkdir(parents=True, exist_ok=True)
        for file in wanted:
            self.progress.add(file.name, file.bytes)
        ended = threading.Event()
        watcher = threading.Thread(
            target=write_every_second, args=(self.progress, self.job.progress, ended, self.job.say), daemon=True
        )
        watcher.start()
        try:
            results = self._results(wanted)
        finally:
            ended.set()
            watcher.join()
        return Result(results, self.stop.is_set() and not all(result.ready for result in results))

    def _results(self, wanted: list[File]) -> tuple[FileResult, ...]:
        # Its own heed ends it, as whoever ends us has set what that looks at.
        settled = each_at_once(wanted, lambda file, _: self._settled(file))
        done = {name: result for name, result in settled.items() if result}
        missing = [file for file in wanted if file.name not in done]
        have = {file.sha256: file for file in wanted if file.name in done and done[file.name].ready}
        # Several names for the same bytes are one fetch.
        origins = {**{file.sha256: file for file in reversed(missing)}, **have}
        lacking = [file for file in origins.values() if file.name not in done]
        still = self._not_found_here(lacking)
        self._check_space(still)
        with ThreadPoolExecutor(max(1, self.job.jobs)) as pool:
            fetched = zip(still, pool.map(self._fetch, still), strict=True)
            done.update({file.name: result for file, result in fetched})
        for file in lacking:
            done.setdefault(file.name, FileResult(file.name, True))
        for file in missing:
            if file.name not in done:
                origin = origins[file.sha256]
                done[file.name] = self._named(file, origin, done[origin.name])
        return tuple(self._looked_at(file, done[file.name], wanted) for file in wanted)

    def _settled(self, file: File) -> FileResult | None:
        """What is known of the file before anything is fetched. None: it is missing."""
        try:
            return FileResult(file.name, True) if self._settle(file) else None
        except (OSError, StoreError) as error:
            return self._unusable(file, error)

    def _unusable(self, file: File, error: OSError | StoreError) -> FileResult:
        """The result of a file whose name in the store cannot be used."""
        why = f"{self.store.path(file)}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
        self.progress.state(file.name, "failed")
        self._tell(f"{file.name}: {why}")
        return FileResult(file.name, False, why)

    def _looked_at(self, file: File, result: FileResult, wanted: list[File]) -> FileResult:
        """The result, where the file is there still."""
        if not result.ready or _known_good(self.store, file):
            return result
        # A record is of one file: of copies, the one that was recorded last.
        copied = any(other.sha256 == file.sha256 and other.name != file.name for other in wanted)
        path = self.store.path(file)
        if copied and path.is_file() and path.stat().st_size == file.bytes:
            return result
        self.progress.state(file.name, "failed")
        return FileResult(file.name, False, f"{path} is not there any more; run again", result.dropped)

    def _settle(self, file: File) -> bool:
        """Whether the file is there; another file with its name is set aside."""
        self.progress.state(file.name, "checking")
        wrong = self.store.settle(file, self.heed)
        if wrong:
            self._tell(wrong.text)
        ready = self.store.known_good(file)
        self.progress.state(file.name, "ready" if ready else "waiting")
        return ready

    def _not_found_here(self, missing: list[File]) -> list[File]:
        """Take what lies elsewhere on this machine, and say what is missing still."""
        if missing and self.job.search:
            for file in missing:
                self.progress.state(file.name, "looking for it on this machine")
            take(self.store, missing, self.job.search, copy=True, say=self._tell, needed=self.job.files)
        still = [file for file in missing if not self.store.known_good(file)]
        for file in missing:
            self.progress.state(file.name, "waiting" if file in still else "ready")
        return still

    def _check_space(self, missing: list[File]) -> None:
        needed = sum(max(0, file.bytes - _allocated(self.store.incoming(file))) for file in missing)
        short = short_of_space(needed, self.job.reserve, shutil.disk_usage(self.job.store).free)
        if missing and short:
            raise FetchError(f"{self.job.store}: {short}")

    def _named(self, file: File, origin: File, result: FileResult) -> FileResult:
        """The result under this file's own name, of bytes that were to come under another one."""
        if not result.ready:
            self.progress.state(file.name, "failed")
            return FileResult(file.name, False, result.why, result.dropped)
        part = self.store.incoming(file)
        try:
            self._double(origin, part)
            self.store.publish(part, file)
        except (OSError, StoreError) as error:
            return self._unusable(file, error)
        self.progress.state(file.name, "ready")
        return FileResult(file.name, True, "", result.dropped)

    def _double(self, origin: File, part: Path) -> None:
        """A second name for what is published; a copy where the file system knows no links."""
        try:
            os.link(self.store.path(origin), part)
        except OSError:
            shutil.copyfile(self.store.path(origin), part)
            if sha256_of(part, self.heed) != origin.sha256:
                part.unlink()
                raise StoreError(f"{self.store.path(origin)}: its copy has other bytes") from None

    def _fetch(self, file: File) -> FileResult:
        try:
            result = _FileRun(self, file).run()
        except EndedError:
            result = FileResult(file.name, False, _ENDED)
        except (OSError, StoreError) as error:
            result = FileResult(file.name, False, str(error))
        except Exception as error:  # servers say what nobody thought of: it costs this file, not the others
            result = FileResult(file.name, False, f"{type(error).__name__}: {error}")
        self.progress.state(file.name, "ready" if result.ready else "failed")
        if not result.ready and not self.stop.is_set():
            # What each source did was told as it came; the result tells it again.
            self._tell(f"{file.name}: {'could not be had from any source' if result.dropped else result.why}")
        return result

    def heed(self, _: int) -> None:
        """Called while hashing: end it when we are asked to."""
        if self.stop.is_set():
            raise EndedError

    def answered(self, url: str, ask: Callable[[], T]) -> T | aria2.Unreachable:
        """What a source answers. Where it is silent, for how long its server has been, whatever file it was asked for."""
        server = urllib.parse.urlsplit(url).netloc
        self._asked.setdefault(server, time.monotonic())
        answer = ask()
        if isinstance(answer, aria2.Unreachable):
            return aria2.Unreachable(answer.why, max(0.0, time.monotonic() - self._asked[server]))
        self._asked[server] = math.inf
        return answer

    def is_mirror(self, url: str) -> bool:
        """Whether a source is a server of somebody's own: neither the hub nor a folder."""
        return not url.startswith("file://") and _host(url) not in self.job.token_hosts

    def pieces_of(self, file: File) -> pieces.Pieces | None:
        """The sha256 of a file's pieces, where anybody knows them. A file of one piece has no use for them."""
        if file.bytes <= PIECE:
            return None
        known = pieces.recorded(self.store, file)
        if known:
            return known
        mirrors = [url for url in file.urls if self.is_mirror(url) and not self.kept_silent(url)]
        known, silent = pieces.ask(file, mirrors, self.job.limits)
        self._silent |= {urllib.parse.urlsplit(url).netloc for url in silent}
        return known

    def kept_silent(self, url: str) -> bool:
        """Whether this server did not answer in time when it was asked for something small."""
        return urllib.parse.urlsplit(url).netloc in self._silent

    def _tell(self, text: str) -> None:
        self.progress.note(text)
        if self.job.say:
            _say(text)


class _FileRun:
    """The loop around the decisions for one file."""

    def __init__(self, run: _Run, file: File) -> None:
        self.run_, self.job, self.stop, self.file = run, run.job, run.stop, file
        self.part = run.store.incoming(file)
        self.hashed: PartHash | None = None  # of what was fetched last, until it is checked
        # Who sent to the part. What an earlier run began, nobody alone is blamed for.
        self.senders = ["an earlier run", "unknown"] if self.part.exists() else []
        self.transfer = Transfer(tuple(Source(url, joins=run.is_mirror(url)) for url in dict.fromkeys(file.urls)))
        self.pieces: pieces.Pieces | None = None
        self.asked_for_pieces = False
        self.wrong_pieces: dict[int, str] = {}  # and the sha256 they have

    def run(self) -> FileResult:
        action = self._begin()
        while True:
            if self.stop.is_set() or isinstance(action, End):
                return self._failed(_ENDED)
            if isinstance(action, GiveUp):
                return self._failed(told(action))
            if isinstance(action, PauseForSpace):
                self._pause(action)
                action = self._begin()
                continue
            outcome = self._carried_out(action)
            if outcome is None:
                return FileResult(self.file.name, True, "", self.transfer.dropped)
            action = self._decide("" if isinstance(action, Check) else action.url, outcome)

    def _begin(self) -> Action:
        if self._complete():
            return Check()
        self._know_pieces()
        return choose(self.transfer, time.monotonic())

    def _know_pieces(self) -> None:
        if self.asked_for_pieces:
            return
        self.asked_for_pieces = True
        self.pieces = self.run_.pieces_of(self.file)
        sources = (replace(one, slow=self.run_.kept_silent(one.url)) for one in self.transfer.sources)
        self.transfer = replace(
            self.transfer, sources=tuple(sources), pieces=self.pieces.origin if self.pieces else None
        )

    def _carried_out(self, action: Fetch | Repair | Check) -> Happening | None:
        """What came of it; None: the file is there."""
        try:
            if isinstance(action, Check):
                return self._check()
            if action.wait:
                waiting = f"waiting {action.wait:.0f} s for {server_of(action.url)}"
                self.run_.progress.state(self.file.name, waiting)
                if self.stop.wait(action.wait):
                    return aria2.Stopped()
            return self._repair(action) if isinstance(action, Repair) else self._attempt(action)
        except OSError as error:
            if error.errno not in aria2.NO_ROOM:
                raise
            return aria2.DiskFull()

    def _decide(self, url: str, outcome: Happening) -> Action:
        before = self.transfer
        self.transfer, action = decide(before, url, outcome, time.monotonic(), self.job.patience)
        for gone in self.transfer.dropped[len(before.dropped) :]:
            self.run_._tell(f"{self.file.name}: {server_of(gone.url)} is not asked again: {gone.why}")
        if before.pieces and not self.transfer.pieces:
            self._forget_pieces(before.pieces)
        return action

    def _forget_pieces(self, origin: str) -> None:
        self.run_._tell(f"{self.file.name}: the sha256 of its pieces by {without_query(origin)} are wrong; not used")
        self.run_.store.pieces_path(self.file).unlink(missing_ok=True)
        self.pieces = None

    def _failed(self, why: str) -> FileResult:
        return FileResult(self.file.name, False, why, self.transfer.dropped)

    def _complete(self) -> bool:
        return (
            self.part.exists()
            and self.part.stat().st_size == self.file.bytes
            and not aria2.control_path(self.part).exists()
        )

    def _pause(self, action: PauseForSpace) -> None:
        self.run_.progress.state(self.file.name, WAITS_FOR_SPACE)
        free = shutil.disk_usage(self.job.store).free
        self.run_._tell(
            f"{self.file.name}: the disk is full, {free / GB:.2f} GB are free; it goes on when there is room"
        )
        self.stop.wait(action.wait)

    def _attempt(self, action: Fetch) -> aria2.Outcome:
        name = self.file.name
        too_long = self.part.exists() and self.part.stat().st_size > self.file.bytes
        if action.afresh or too_long or not aria2.mend(self.part):
            self._drop_part()
        self.run_.progress.state(name, "fetching")
        if action.url.startswith("file://"):
            return self._copy(action.url)
        answer, others = self._answers(action)
        if not isinstance(answer, aria2.Answer):
            return answer
        have = aria2.saved_bytes(self.part)
        if not answer.ranges and self.part.exists():
            if have:
                return aria2.NoRanges()
            self._drop_part()
        together = {action.url: answer, **others} if answer.ranges else {action.url: answer}
        # Who is asked again had trouble, perhaps with requests sent ahead. Of several, a slow one would hold up the rest.
        alone = len(together) == 1
        in_order = alone and action.url not in self.senders
        piece = aria2.piece_length(self.file.bytes) if alone else self.job.limits.piece
        self.senders += together
        self.run_.progress.begin(name, have)
        hashed = PartHash(self.part, self.file.bytes)
        with hashed.following() if answer.ranges else nullcontext():  # without ranges it may begin again at any time
            outcome = aria2.run(
                self.part,
                self.file.bytes,
                list(together.values()),
                replace(self.job.limits, in_order=in_order, piece=piece),
                os.getpid(),
                self.stop,
                lambda done: self.run_.progress.heard(name, done),
                (self.run_.held,),
            )
        # aria2c says so once a second, and not at its end.
        fetched = self.file.bytes if isinstance(outcome, aria2.Fetched) else aria2.saved_bytes(self.part)
        self.run_.progress.heard(name, max(have, fetched))
        self.hashed = hashed if isinstance(outcome, aria2.Fetched) else None
        return outcome

    def _answers(self, action: Fetch) -> tuple[aria2.Answer | aria2.Outcome, dict[str, aria2.Answer]]:
        """What the source answers, and who of the others can send beside it."""
        brief = replace(self.job.limits, patience=min(pieces.WAIT, self.job.limits.patience))
        with ThreadPoolExecutor(1 + len(action.beside)) as pool:
            asked = {url: pool.submit(self._ask, url, brief) for url in action.beside}
            answer = self._ask(action.url, self.job.limits)
            answers = {url: other.result() for url, other in asked.items()}
        for url, other in answers.items():
            if isinstance(other, aria2.Unreachable):  # it had little time
                self._decide(url, aria2.Cut(other.why))
            elif not isinstance(other, aria2.Answer):
                self._decide(url, other)
        ready = {url: other for url, other in answers.items() if isinstance(other, aria2.Answer) and other.ranges}
        return answer, ready

    def _ask(self, url: str, limits: aria2.Limits) -> aria2.Answer | aria2.Outcome:
        def asking() -> aria2.Answer | aria2.Outcome:
            return aria2.ask(url, self._token(url), self.file.bytes, limits)

        return self.run_.answered(url, lambda: aria2.in_time(asking, limits.patience, self.stop))

    def _token(self, url: str) -> str | None:
        return token_for(url, self.job.token, self.job.token_hosts)

    def _repair(self, action: Repair) -> Happening:
        """Fetch the wrong pieces again, each counted once its sha256 is right."""
        expected = self.pieces.sha256 if self.pieces else ()
        if not expected or action.url.startswith("file://"):
            return aria2.NoRanges()
        self.run_.progress.state(self.file.name, "fetching its wrong pieces again")
        if action.url not in self.senders:
            self.senders.append(action.url)
        sample, held = next(iter(self.wrong_pieces)), dict(self.wrong_pieces)
        wrong_piece, as_before, progressed = None, True, False
        with ThreadPoolExecutor(self.job.limits.connections) as pool:
            for batch in self._batches():
                came = pool.map(lambda index: self._piece(action.url, index, expected[index], self.part), batch)
                outcomes = dict(zip(batch, came, strict=True))
                for index in [index for index, outcome in outcomes.items() if outcome is None]:
                    del self.wrong_pieces[index]
                    progressed = True
                for index, outcome in outcomes.items():
                    if isinstance(outcome, WrongPiece):
                        wrong_piece, as_before = wrong_piece or outcome, as_before and outcome.found == held[index]
                    elif isinstance(outcome, (aria2.Cut, aria2.TooSlow)):
                        return replace(outcome, progressed=progressed)
                    elif outcome:
                        return outcome
                if wrong_piece and len(self.transfer.sources) > 1:
                    break
        if wrong_piece:
            return replace(wrong_piece, as_before=as_before and not progressed)
        asked = [(url, self._piece(url, sample, expected[sample], None)) for url in action.suspects]
        return Repaired(tuple((url, wrong) for url, wrong in asked if isinstance(wrong, WrongPiece)))

    def _batches(self) -> list[list[int]]:
        """The wrong pieces: one first, which shows who sends wrong ones, then as many at once as connections are allowed."""
        (first, *others), many = self.wrong_pieces, self.job.limits.connections
        return [[first], *(others[at : at + many] for at in range(0, len(others), many))]

    def _piece(self, url: str, index: int, expected: str, into: Path | None) -> WrongPiece | aria2.Outcome | None:
        """What is wrong with a piece as this source sends it; None: nothing."""
        found = self.run_.answered(
            url,
            lambda: pieces.fetch(url, self._token(url), self.file, index, into, self.job.limits, self.stop),
        )
        if not isinstance(found, str):
            return found
        self.run_.progress.came(min(PIECE, self.file.bytes - index * PIECE))
        return None if found == expected else WrongPiece(index, found, expected)

    def _copy(self, url: str) -> aria2.Outcome:
        origin = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
        if not origin.is_file():
            return aria2.Missing(f"there is no file {origin}")
        if origin.stat().st_size != self.file.bytes:
            return aria2.Missing(f"its file has {origin.stat().st_size} bytes, expected {self.file.bytes}")
        self._drop_part()
        self.senders.append(url)
        command = ["cp", "--sparse=always", "--", str(origin), str(self.part)]  # holes stay holes
        held = (self.run_.held,)  # what a killed run leaves behind keeps the store locked
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=held) as copying:
            while copying.poll() is None:
                if self.stop.wait(0.05):
                    copying.kill()
                    return aria2.Stopped()
            told = copying.stderr.read().strip() if copying.stderr else ""
        if copying.returncode == 0:
            self.run_.progress.begin(self.file.name, 0)
            self.run_.progress.heard(self.file.name, self.file.bytes)
            return aria2.Fetched()
        return aria2.DiskFull() if aria2.is_full(self.part) else aria2.Cut(told)

    def _drop_part(self) -> None:
        aria2.drop(self.part)
        self.senders = []
        self.wrong_pieces = {}

    def _check(self) -> WrongBytes | None:
        self.run_.progress.state(self.file.name, "checking its sha256")
        hashed, self.hashed = self.hashed, None
        before = identity(self.part.stat())
        found = hashed.sha256(self.file.sha256, self.run_.heed) if hashed else sha256_of(self.part, self.run_.heed)
        if found == self.file.sha256:
            self.run_.store.publish(self.part, self.file, before)
            return None
        return WrongBytes(found, self.file.sha256, tuple(dict.fromkeys(self.senders)), self._find_wrong_pieces())

    def _find_wrong_pieces(self) -> tuple[int, ...] | None:
        self._know_pieces()
        if not self.pieces:
            return None
        self.run_.progress.state(self.file.name, "looking for its wrong pieces")
        self.wrong_pieces = pieces.wrong(self.part, self.pieces.sha256, self.run_.heed)
        if self.wrong_pieces:
            shown = ", ".join(str(index + 1) for index in list(self.wrong_pieces)[:10])
            self.run_._tell(
                f"{self.file.name}: its sha256 is wrong; {len(self.wrong_pieces)} of {len(self.pieces.sha256)} pieces "
                f"are fetched again: {shown}"
            )
        return tuple(self.wrong_pieces)
