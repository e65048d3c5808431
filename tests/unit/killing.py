"""Killing a piece of work at each of its changes to the file system in turn, as kill -9 would."""

import os
import sys
from collections.abc import Callable
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.chmod", "os.chown", "os.mkdir", "os.link", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def killed_before(step: int, work: Callable[[], object]) -> bool:
    """Run work in a child that dies before its step-th change to the file system. False: it ended by itself."""
    child = os.fork()
    if child == 0:
        count = 0

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in CHANGES or (event == "open" and arguments[2] & WRITING):
                count += 1
                if count == step:
                    os._exit(9)

        sys.addaudithook(die)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9
