"""Keeps the guest away from this computer's devices: a BPF program on its control group.

Container runtimes attach the same. systemd-nspawn leaves it to systemd, which is not asked here (``--register=no``).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

ANY = -1
# Character devices that the guest may open, as (major, minor): what systemd allows its own containers, and TUN.
ALLOWED = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 200), (136, ANY))

BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
PROG_LOAD, PROG_ATTACH = 5, 8
PROG_TYPE_CGROUP_DEVICE, ATTACH_CGROUP_DEVICE = 15, 6
ALLOW_MULTI = 2  # the guest's systemd and Docker attach their own programs below; all must agree
ACCESS_MKNOD, TYPE_CHARACTER = 1, 2

LOAD_WORD, MOVE, MOVE_CONSTANT, AND, SHIFT_RIGHT = 0x61, 0xBF, 0xB7, 0x57, 0x77
JUMP, JUMP_EQUAL, JUMP_NOT_EQUAL, EXIT = 0x05, 0x15, 0x55, 0x95


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, constant: int = 0) -> bytes:
    return struct.pack("<BBhi", code, target | source << 4, offset, constant)


def program(allowed: tuple[tuple[int, int], ...] = ALLOWED) -> bytes:
    """The filter's instructions: making a node is allowed (it opens nothing), opening one only if it is listed."""
    context, access, major, minor, kind = 1, 2, 3, 4, 5  # register 1 holds struct bpf_cgroup_dev_ctx
    allow = [_instruction(MOVE_CONSTANT, 0, constant=1), _instruction(EXIT)]
    body = [
        _instruction(LOAD_WORD, access, context, 0),
        _instruction(LOAD_WORD, major, context, 4),
        _instruction(LOAD_WORD, minor, context, 8),
        _instruction(MOVE, kind, access),
        _instruction(AND, kind, constant=0xFFFF),
        _instruction(SHIFT_RIGHT, access, constant=16),
        _instruction(JUMP_NOT_EQUAL, access, offset=len(allow), constant=ACCESS_MKNOD),
        *allow,
    ]
    for wanted_major, wanted_minor in allowed:
        tests = [(kind, TYPE_CHARACTER), (major, wanted_major)]
        if wanted_minor != ANY:
            tests.append((minor, wanted_minor))
        for index, (register, value) in enumerate(tests):
            past = len(tests) - index - 1 + len(allow)
            body.append(_instruction(JUMP_NOT_EQUAL, register, offset=past, constant=value))
        body += allow
    return b"".join([*body, _instruction(MOVE_CONSTANT, 0, constant=0), _instruction(EXIT)])


def _bpf(command: int, attributes: bytes) -> int:
    number = BPF_SYSCALL.get(platform.machine())
    if number is None:
        raise RuntimeError(f"the sandbox does not know the bpf system call of {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    padded = attributes.ljust(128, b"\0")
    result = int(libc.syscall(number, command, padded, len(padded)))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf: {os.strerror(ctypes.get_errno())}")
    return result


def restrict(group: Path) -> None:
    """Attaches the filter to a v2 control group; OSError where the kernel does not let us."""
    code, licence = ctypes.create_string_buffer(program()), ctypes.create_string_buffer(b"Apache-2.0")
    instructions = (len(code) - 1) // 8
    loaded = _bpf(
        PROG_LOAD,
        struct.pack("<IIQQ", PROG_TYPE_CGROUP_DEVICE, instructions, ctypes.addressof(code), ctypes.addressof(licence)),
    )
    folder = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _bpf(PROG_ATTACH, struct.pack("<IIII", folder, loaded, ATTACH_CGROUP_DEVICE, ALLOW_MULTI))
    finally:
        os.close(folder)
        os.close(loaded)
