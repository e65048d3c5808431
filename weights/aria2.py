"""One aria2c process for one file, and what came of it.

Each source is asked first, from its first hop: aria2 does not tell a Retry-After, and would carry a token along to
wherever a redirect leads. aria2 then gets the last hops, on its standard input, so that neither shows in a process list.
"""

import ctypes
import errno
import ipaddress
import re
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OTHER_DIGEST = 32  # all bytes are there, and the server's Digest header is another
_FILE_TOO_LARGE = -25  # SIGXFSZ, a limit on the size of files
DISK_FULL = {9, _FILE_TOO_LARGE}  # 9: no space
_BLOCK = 16 * 1024
# Requests are sent ahead: else each piece would cost a round trip.
_IN_ORDER = ("--stream-piece-selector=inorder", "--enable-http-pipelining=true")
_MIB = 1 << 20
_LOOK = 0.2  # seconds between two looks whether we are to end
_UNREADABLE = (struct.error, IndexError, ZeroDivisionError)  # what reading aria2's notes ends in, where they are none
# Bytes a second of one connection. Each holds 2 MiB that nobody else fetches: slower than this beside others, it would
# keep a whole file waiting for longer than 40 s.
_LOWEST_BESIDE_OTHERS = 50_000
_READOUT = re.compile(r"\[#[0-9a-f]+ (\d+)B/(\d+)B")
_NUMBER = re.compile(r"[0-9]{1,18}")
_REFUSING_TIMES = {403, 404, 410}  # what a signed URL answers once it has expired


@dataclass(frozen=True)
class Fetched:
    """All bytes are there; whether they are right, only their sha256 says."""


@dataclass(frozen=True)
class Cut:
    """The connection, the server, or a signed URL ended before the file did."""

    why: str
    progressed: bool = False


@dataclass(frozen=True)
class Unreachable:
    """No answer at all: no such name, no route, nobody listens, or silence."""

    why: str
    silent_for: float = 0.0  # seconds for which its server has never answered in this run


@dataclass(frozen=True)
class TooSlow:
    """Less than the lowest speed for longer than the patience."""

    progressed: bool = False


@dataclass(frozen=True)
class Refused:
    """The source wants somebody else: 401 or 403."""

    status: int


@dataclass(frozen=True)
class Missing:
    """The source has no such file, or one of another size."""

    why: str


@dataclass(frozen=True)
class Throttled:
    """The source asks to come back later."""

    status: int
    retry_after: float | None = None


@dataclass(frozen=True)
class NoRanges:
    """The source sends whole files only, and a part is there already."""


@dataclass(frozen=True)
class DiskFull:
    """No room for the file."""


@dataclass(frozen=True)
class Stopped:
    """We were asked to end."""


Outcome = Fetched | Cut | Unreachable | TooSlow | Refused | Missing | Throttled | NoRanges | DiskFull | Stopped


@dataclass(frozen=True)
class Limits:
    """How a transfer is carried out."""

    connections: int = 8
    lowest_speed: int = 20_000  # bytes a second
    patience: float = 30.0  # seconds
    piece: int = 2 * _MIB  # bytes of one request
    in_order: bool = False  # from the front to the end, for who reads along; a server must bear requests sent ahead
    proxy: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a source said when it was asked for its first byte."""

    url: str  # of the last hop
    headers: tuple[str, ...]
    ranges: bool


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header: a number, or a date."""
    if value is None:
        return None
    if _NUMBER.fullmatch(value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return None


def judge_refusal(status: int, first_hop: bool, wait: float | None) -> Outcome:
    """What a status that is no success means. Behind a redirect a refusal is a signed URL that has expired."""
    if status in (429, 503):
        return Throttled(status, wait)
    if not first_hop and status in _REFUSING_TIMES | {401}:
        return Cut(f"the address it redirects to answers {status}")
    if status in (401, 403):
        return Refused(status)
    if status in (404, 410):
        return Missing(f"it answers {status}")
    return Cut(f"it answers {status}")


def judge_size(headers: Message, status: int, expected: int) -> Missing | None:
    """A source that has another size has another file."""
    told = headers.get("Content-Range" if status == 206 else "Content-Length") or ""
    total = told.rpartition("/")[2]
    if _NUMBER.fullmatch(total) and int(total) != expected:
        return Missing(f"its file has {int(total)} bytes, expected {expected}")
    return None


def judge_exit(code: int, progressed: bool, slow: bool, stopped: bool, full: bool) -> Outcome:
    """What aria2c's exit status means; the statuses are those of its manual. A disk without any room gives a 1."""
    if code == 0:
        return Fetched()
    if stopped:
        return Stopped()
    if slow or code == 5:
        return TooSlow(progressed)
    if code in DISK_FULL or full:
        return DiskFull()
    return Cut(f"aria2c ended with status {code}", progressed)


def explain(error: BaseException | str) -> str:
    """What kept an answer from coming, for people."""
    if isinstance(error, socket.gaierror):
        return "the name cannot be resolved"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def is_near(url: str) -> bool:
    """Whether a source is the machine itself or in its own network, where no proxy leads."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost"


class _Proxy(urllib.request.ProxyHandler):
    """Asks at each hop whether the proxy is for it."""

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> object:
        return None if is_near(req.full_url) else super().proxy_open(req, proxy, type)


class _SameHostToken(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and takes the token along to the same host only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if following and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            following.remove_header("Authorization")
        return following


def opened(url: str, token: str | None, span: tuple[int, int] | None, limits: Limits) -> HTTPResponse | Outcome:
    """The answer to a request, from the first hop. span: the first and the last byte that are asked for."""
    handlers: list[urllib.request.BaseHandler] = [_SameHostToken()]
    if limits.proxy:
        handlers.append(_Proxy({"http": limits.proxy, "https": limits.proxy}))
    headers = {"User-Agent": "atelier"}
    if span:
        headers["Range"] = f"bytes={span[0]}-{span[1]}"
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310
        response: HTTPResponse = urllib.request.build_opener(*handlers).open(request, timeout=limits.patience)
        return response
    except urllib.error.HTTPError as error:
        with error:
            first_hop = error.geturl() == url
            return judge_refusal(error.code, first_hop, retry_after(error.headers.get("Retry-After"), time.time()))
    except urllib.error.URLError as error:
        return Unreachable(explain(error.reason))
    except (OSError, HTTPException) as error:
        return Unreachable(explain(error))
    except ValueError as error:
        return Missing(f"it is no address: {error}")


def ask(url: str, token: str | None, expected: int, limits: Limits) -> Answer | Outcome:
    """Ask a source for the first byte of a file."""
    response = opened(url, token, (0, 0), limits)
    if not isinstance(response, HTTPResponse):
        return response
    with response:
        wrong = judge_size(response.headers, response.status, expected)
        if wrong:
            return wrong
        last = response.geturl()
        same_host = urllib.parse.urlsplit(last).netloc == urllib.parse.urlsplit(url).netloc
        headers = (f"Authorization: Bearer {token}",) if token and same_host else ()
        return Answer(last, headers, response.status == 206)


def in_time(asking: Callable[[], T], patience: float, stop: threading.Event) -> T | Unreachable | Stopped:
    """What came of asking, where it comes in time: urllib's timeout begins again with each byte."""
    answers: Future[T] = Future()

    def listen() -> None:
        try:
            answers.set_result(asking())
        except Exception as error:
            answers.set_exception(error)

    threading.Thread(target=listen, daemon=True).start()
    until = time.monotonic() + patience
    while not stop.is_set():
        left = until - time.monotonic()
        wait([answers], max(0.0, min(_LOOK, left)))
        if answers.done():
            return answers.result()
        if left <= 0:
            return Unreachable(explain(TimeoutError()))
    return Stopped()


def piece_length(size: int) -> int:
    """Bytes of one request: whoever holds the last one is waited for, and for each server a file is not many requests."""
    return 16 * _MIB if size >= 1024 * _MIB else 2 * _MIB


def _can_allocate(folder: Path) -> bool:
    """Whether room can be taken beforehand, so that a full disk is found before the first byte. Not on ext3 or old NFS."""
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        taken = libc.fallocate(file.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(1))
    return taken == 0 or ctypes.get_errno() != errno.EOPNOTSUPP


def arguments(part: Path, answers: Sequence[Answer], limits: Limits, parent: int) -> tuple[list[str], str]:
    """Command line and standard input of aria2c. Several sources all know ranges, and none wants a token."""
    connections = min(16, limits.connections) if answers[0].ranges else 1
    in_order = limits.in_order and answers[0].ranges
    lowest = limits.lowest_speed // connections
    if len(answers) > 1:
        lowest = max(lowest, _LOWEST_BESIDE_OTHERS)
    command = [
        # Into a pipe aria2c tells how far it is only every 4 KiB of text, which is every minute or so.
        *(["stdbuf", "-oL"] if shutil.which("stdbuf") else []),
        "aria2c",
        "--no-conf",
        "--input-file=-",
        "--continue=true",
        "--auto-file-renaming=false",
        f"--file-allocation={'falloc' if _can_allocate(part.parent) else 'none'}",
        "--auto-save-interval=1",
        f"--piece-length={limits.piece}",
        f"--min-split-size={limits.piece}",
        "--allow-piece-length-change=true",
        f"--max-tries={1 if in_order else 5}",  # a server that minds requests sent ahead is asked plainly soon
        "--retry-wait=0",
        "--connect-timeout=20",
        f"--timeout={max(1, int(limits.patience))}",
        f"--lowest-speed-limit={lowest}",
        f"--split={connections * len(answers)}",
        f"--max-connection-per-server={connections}",
        "--follow-metalink=false",
        "--follow-torrent=false",
        "--human-readable=false",
        "--enable-color=false",
        "--summary-interval=0",
        "--console-log-level=error",
        "--download-result=hide",
        f"--stop-with-process={parent}",
        *(_IN_ORDER if in_order else ()),
    ]
    lines = ["\t".join(answer.url for answer in answers), f" dir={part.parent}", f" out={part.name}"]
    lines += [f" header={header}" for header in answers[0].headers]
    near = [urllib.parse.urlsplit(answer.url).hostname or "" for answer in answers if is_near(answer.url)]
    if limits.proxy and len(near) < len(answers):
        lines += [f" all-proxy={limits.proxy}", f" no-proxy={','.join(near)}"]
    return command, "\n".join(lines) + "\n"


class Pace:
    """Whether bytes come at the lowest speed at least."""

    def __init__(self, limits: Limits, done: int) -> None:
        self.limits, self.since, self.at = limits, time.monotonic(), done

    def too_slow(self, done: int) -> bool:
        """Asked now and then with the bytes so far."""
        now = time.monotonic()
        if now - self.since < self.limits.patience:
            return False
        slow = done - self.at < self.limits.lowest_speed * (now - self.since)
        self.since, self.at = now, done
        return slow


def control_path(part: Path) -> Path:
    """Where aria2 notes what it has of a part."""
    return part.with_name(part.name + ".aria2")


def _kept_path(part: Path) -> Path:
    return part.with_name(part.name + ".kept")


def _drop_notes(part: Path) -> None:
    """Take a part for whole."""
    for path in (control_path(part), _kept_path(part)):
        path.unlink(missing_ok=True)


def drop(part: Path) -> None:
    """Begin again from nothing."""
    _drop_notes(part)
    part.unlink(missing_ok=True)


def mend(part: Path) -> bool:
    """Whether aria2 can begin; where its notes are lost, the last ones that were whole take over."""
    if not is_lost(part):
        return True
    if not _readable(_kept_path(part)):
        return False
    _kept_path(part).replace(control_path(part))
    return True


def _keep(part: Path) -> None:
    """Remember aria2's notes while they are whole: it empties them on a full disk, and its transfer goes on."""
    kept = _kept_path(part)
    beside = kept.with_name(kept.name + ".tmp")
    with suppress(OSError):
        notes = control_path(part).read_bytes()
        if kept.exists() and kept.read_bytes() == notes:
            return
        beside.write_bytes(notes)
        if _readable(beside):
            beside.replace(kept)
    beside.unlink(missing_ok=True)


def saved_bytes(part: Path) -> int:
    """How much of a part is there: by aria2's control file; without one, all of it."""
    try:
        return _noted_bytes(control_path(part).read_bytes())
    except FileNotFoundError:
        return part.stat().st_size if part.exists() else 0
    except _UNREADABLE:
        return 0


def is_lost(part: Path) -> bool:
    """Whether nobody knows what a part has: notes that a full disk or a power cut spoiled, aria2c refuses for ever."""
    return control_path(part).exists() and not _readable(control_path(part))


def _readable(control: Path) -> bool:
    try:
        _noted_bytes(control.read_bytes())
    except (FileNotFoundError, *_UNREADABLE):
        return False
    return True


def _noted_bytes(control: bytes) -> int:
    # The layout is in aria2's manual of internals: "Control file (*.aria2) format", version 1, big endian.
    (length,) = struct.unpack_from(">I", control, 6)
    at = 10 + length
    piece, total, _, field = struct.unpack_from(">IQQI", control, at)
    at += 24
    bits = control[at : at + field]
    done = sum(bin(byte).count("1") for byte in bits) * piece
    last = (total - 1) // piece
    if bits[last // 8] & (0x80 >> last % 8):
        done -= (last + 1) * piece - total
    at += field
    (flying,) = struct.unpack_from(">I", control, at)
    at += 4
    for _ in range(flying):
        _, _, field = struct.unpack_from(">III", control, at)
        at += 12
        done += sum(bin(byte).count("1") for byte in control[at : at + field]) * _BLOCK
        at += field
    return int(min(done, total))


def noted_front(control: bytes) -> int:
    """How many bytes from the front on are done, by the text of a control file."""
    (length,) = struct.unpack_from(">I", control, 6)
    piece, total = struct.unpack_from(">IQ", control, 10 + length)
    first, pieces = 34 + length, -(-total // piece)
    whole = next((at for at in range(pieces) if not control[first + at // 8] & (0x80 >> at % 8)), pieces)
    return int(min(whole * piece, total))


def _bound(process: "subprocess.Popen[str]", size: int) -> bool:
    """Keep a source that sends without end from filling the disk. Whether it is this bound that ends aria2c."""
    most = size + _MIB  # aria2's notes stay below that as well
    with suppress(OSError):
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        if soft == resource.RLIM_INFINITY or soft > most:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, hard))
            return True
    return False


def run(
    part: Path,
    size: int,
    answers: Sequence[Answer],
    limits: Limits,
    parent: int,
    stop: threading.Event,
    heard: Callable[[int], None],
    keep_open: tuple[int, ...] = (),
) -> Outcome:
    """Let aria2c fetch the file of this size; heard is told the bytes so far. keep_open: descriptors aria2c holds while it lives."""
    command, text = arguments(part, answers, limits, parent)
    before = saved_bytes(part)
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=keep_open,
        start_new_session=True,  # a Ctrl-C is for us: we end it
    )
    bounded = _bound(process, size)
    done = before

    def read() -> None:
        nonlocal done
        for line in process.stdout or ():
            for match in _READOUT.finditer(line):
                done = int(match[1])
                heard(done)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    slow = False
    try:
        if process.stdin:
            with suppress(BrokenPipeError):  # its exit status says more
                process.stdin.write(text)
                process.stdin.close()
        pace = Pace(limits, before)
        while process.poll() is None and not stop.is_set() and not slow:
            reader.join(_LOOK)
            _keep(part)
            slow = pace.too_slow(done)
    finally:
        _end(process)
        reader.join(5)
    if (bounded and process.returncode == _FILE_TOO_LARGE) or (part.exists() and part.stat().st_size > size):
        why = f"it sends more than its {size} bytes"
        return Missing(why) if len(answers) == 1 else Cut(why)  # nobody knows which of several
    if process.returncode == _OTHER_DIGEST and part.exists() and part.stat().st_size == size:
        _drop_notes(part)  # they say now that nothing is there; our own sha256 decides
        return Fetched()
    progressed = saved_bytes(part) > before
    if process.returncode == 0:
        _kept_path(part).unlink(missing_ok=True)
    return judge_exit(process.returncode, progressed, slow, stop.is_set(), is_full(part))


def is_full(part: Path) -> bool:
    """Whether not even a note can be written beside a part."""
    note = part.with_name(part.name + ".room")
    try:
        note.write_bytes(bytes(_BLOCK))
    except OSError as error:
        return error.errno in NO_ROOM
    finally:
        note.unlink(missing_ok=True)
    return False


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.terminate()  # it then writes down what it has
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
