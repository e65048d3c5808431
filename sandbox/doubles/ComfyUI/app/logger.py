"""TEST DOUBLE, never deploy: ComfyUI's log, coloured on the console and kept for whoever may read /internal/logs."""

from __future__ import annotations

import logging
import sys
from collections import deque
from datetime import datetime
from typing import TextIO

RESET = "\033[0m"
COLOURS = {"DEBUG": "\033[36m", "INFO": "\033[32m", "WARNING": "\033[1m\033[33m", "ERROR": "\033[1m\033[31m"}
LINES_KEPT = 300

_kept: deque[dict[str, str]] = deque(maxlen=LINES_KEPT)


class _Recorder:
    """Passes everything on to a standard stream and keeps a copy."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        _kept.append({"t": datetime.now().isoformat(), "m": text})
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{COLOURS.get(record.levelname, '')}[{record.levelname}]{RESET} {super().format(record)}"


def get_logs() -> list[dict[str, str]]:
    return list(_kept)


def setup_logger(level: str, use_stdout: bool, files: list[tuple[str, str]]) -> None:
    logging.addLevelName(15, "DETAIL")
    sys.stdout = _Recorder(sys.stdout)  # type: ignore[assignment]
    sys.stderr = _Recorder(sys.stderr)  # type: ignore[assignment]
    console = logging.StreamHandler(sys.stdout if use_stdout else sys.stderr)
    console.setFormatter(_Formatter("%(message)s"))
    console.setLevel(level)
    handlers: list[logging.Handler] = [console]
    for file_level, path in files:
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("[%(asctime)s] [%(levelname)s] %(message)s"))
        handler.setLevel(file_level)
        handlers.append(handler)
    logging.basicConfig(level=min(handler.level for handler in handlers), handlers=handlers)
