"""The sha256 of a file's 16 MiB pieces, as mirrors offer them: `<file>.pieces.json`.

With them a file may come from several sources at once, and a wrong byte costs a piece instead of the file. They come
from where the bytes come from, so they are believed only as long as the sha256 of the whole file is right in the end.
"""

import hashlib
import json
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from weights import aria2
from weights.store import PIECE, PIECES, File, Store
from weights.verify import recorded_pieces

WAIT = 3.0  # seconds for a list: what it saves is not worth more
_CHUNK = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Pieces:
    """The sha256 of each piece in order, and who says so."""

    sha256: tuple[str, ...]
    origin: str


def read(told: bytes, file: File) -> tuple[str, ...] | None:
    """The list in an answer, where it is one of this very file."""
    try:
        facts = json.loads(told)
        about, pieces = (facts["sha256"], facts["bytes"], facts["piece"]), facts["pieces"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if about != (file.sha256, file.bytes, PIECE) or not isinstance(pieces, list):
        return None
    if len(pieces) != -(-file.bytes // PIECE):
        return None
    right = all(isinstance(piece, str) and _SHA256.fullmatch(piece) for piece in pieces)
    return tuple(pieces) if right else None


def longest(size: int) -> int:
    """How long the list of a file of this size may be: 1 TB has one of 5 MB."""
    return 4096 + 128 * -(-size // PIECE)


def recorded(store: Store, file: File) -> Pieces | None:
    """The list that a deep verify on this machine left."""
    pieces = recorded_pieces(store, file)
    return Pieces(tuple(pieces), "an earlier verify on this machine") if pieces else None


def ask(file: File, urls: Sequence[str], limits: aria2.Limits) -> tuple[Pieces | None, set[str]]:
    """The first list that one of these sources offers, and which of them kept silent for as long as we waited."""
    answers: queue.Queue[tuple[str, tuple[str, ...] | None]] = queue.Queue()
    until = time.monotonic() + WAIT

    def listen(url: str) -> None:
        answers.put((url, _list_from(url, file, limits, until)))

    for url in urls:
        threading.Thread(target=listen, args=(url,), daemon=True).start()
    silent = set(urls)
    while silent:
        try:
            url, found = answers.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None, silent
        if found:
            return Pieces(found, url + PIECES), set()
        silent.remove(url)
    return None, set()


def _list_from(url: str, file: File, limits: aria2.Limits, until: float) -> tuple[str, ...] | None:
    most = longest(file.bytes)
    response = aria2.opened(url + PIECES, None, None, replace(limits, patience=WAIT))
    if not isinstance(response, HTTPResponse):
        return None
    told = b""
    with response:
        try:
            while chunk := response.read1(_CHUNK):
                told += chunk
                if len(told) > most or time.monotonic() > until:
                    return None
        except (OSError, HTTPException):
            return None
    return read(told, file)


def wrong(part: Path, pieces: Sequence[str], heed: Callable[[int], None]) -> dict[int, str]:
    """Which pieces of a part are not as listed, and the sha256 they have."""
    found: dict[int, str] = {}
    with part.open("rb") as file:
        for index, expected in enumerate(pieces):
            digest, left = hashlib.sha256(), PIECE
            while left and (chunk := file.read(min(left, _CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
                heed(file.tell())
            if digest.hexdigest() != expected:
                found[index] = digest.hexdigest()
    return found


def fetch(
    url: str,
    token: str | None,
    file: File,
    index: int,
    into: Path | None,
    limits: aria2.Limits,
    stop: threading.Event,
) -> str | aria2.Outcome:
    """The sha256 of one piece as this source sends it; into: the part that gets it. Else why it did not come."""
    first = index * PIECE
    last = min(first + PIECE, file.bytes) - 1
    response = aria2.in_time(lambda: aria2.opened(url, token, (first, last), limits), limits.patience, stop)
    if not isinstance(response, HTTPResponse):
        return response
    with response:
        unfit = aria2.judge_size(response.headers, response.status, file.bytes)
        if unfit:
            return unfit
        if response.status != 206:
            return aria2.NoRanges()
        digest, at, pace = hashlib.sha256(), first, aria2.Pace(limits, 0)
        while at <= last:
            if stop.is_set():
                return aria2.Stopped()
            if pace.too_slow(at - first):
                return aria2.TooSlow()
            try:
                chunk = response.read1(min(_CHUNK, last + 1 - at))
            except (OSError, HTTPException) as error:
                return aria2.Cut(aria2.explain(error))
            if not chunk:
                return aria2.Cut("it ended a piece early")
            digest.update(chunk)
            if into:
                _write(into, at, chunk)
            at += len(chunk)
    return digest.hexdigest()


def _write(part: Path, at: int, chunk: bytes) -> None:
    with part.open("r+b", buffering=0) as file:
        file.seek(at)
        file.write(chunk)
