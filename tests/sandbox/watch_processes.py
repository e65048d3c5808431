"""Records the arguments and the environment of every program that some processes and their children start.

`watch_processes.py RECORD PID...`, as root; one JSON object a line, bytes as latin-1. The kernel stops a process at each exec
and at no other system call: with strace a deploy takes twice as long. Whatever ends this program, the processes go on.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import IO

PTRACE_CONT, PTRACE_SEIZE, PTRACE_LISTEN = 7, 0x4206, 0x4208
EVENT_EXEC, EVENT_STOP = 4, 128
FOLLOW = sum(1 << event for event in (1, 2, 3, EVENT_EXEC))  # fork, vfork, clone, exec
STOPPING = (19, 20, 21, 22)  # SIGSTOP and those of terminals: the whole process rests until SIGCONT
ANY_CHILD = 0x40000000  # __WALL: threads as well

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def follow(processes: list[str]) -> None:
    """Attach to the processes, their children and all their threads; what starts in the meantime included."""
    attached: set[int] = set()
    while found := threads(processes) - attached:
        for thread in found:
            libc.ptrace(PTRACE_SEIZE, thread, None, FOLLOW)  # fails for what has ended or is followed already
        attached |= found


def threads(processes: list[str]) -> set[int]:
    found = set()
    for folder in (Path("/proc", process, "task") for process in processes):
        for thread in folder.glob("[0-9]*"):
            found.add(int(thread.name))
            try:
                found |= threads((thread / "children").read_text().split())
            except OSError:
                continue
    return found


def watch(record: IO[str]) -> None:
    while True:
        try:
            thread, status = os.waitpid(-1, ANY_CHILD)
        except ChildProcessError:
            return
        if not os.WIFSTOPPED(status):
            continue
        signal, event = os.WSTOPSIG(status), status >> 16
        if event == EVENT_EXEC:
            record.write(json.dumps(started(thread)) + "\n")
            record.flush()
        if event == EVENT_STOP and signal in STOPPING:
            libc.ptrace(PTRACE_LISTEN, thread, None, None)
        else:
            libc.ptrace(PTRACE_CONT, thread, None, None if event else signal)


def started(process: int) -> dict[str, object]:
    arguments, environment = (
        Path(f"/proc/{process}/{name}").read_bytes().decode("latin-1").split("\0") for name in ("cmdline", "environ")
    )
    return {"process": process, "arguments": arguments, "environment": environment}


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a", encoding="ascii") as stream:
        follow(sys.argv[2:])
        print("watching", flush=True)
        watch(stream)
