"""TEST DOUBLE, never deploy: the interruption flag that /interrupt sets and samplers read."""

from __future__ import annotations

import threading

_interrupted = threading.Event()


class InterruptProcessingException(Exception):
    pass


def interrupt_current_processing(value: bool = True) -> None:
    if value:
        _interrupted.set()
    else:
        _interrupted.clear()


def throw_exception_if_processing_interrupted() -> None:
    if _interrupted.is_set():
        _interrupted.clear()
        raise InterruptProcessingException
