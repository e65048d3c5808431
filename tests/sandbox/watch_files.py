"""Records what was written to files that others could open, for however short a moment.

`watch_files.py RECORD ROOT PATH...`, as root: the file systems mounted on these paths below a machine's ROOT, as seen from
here; one JSON object a line, content as latin-1. Each opening of a file waits for us, so the mode that we see is the one with
which it was made, whatever it gets a moment later.
"""

import ctypes
import json
import os
import stat
import struct
import sys
from pathlib import Path

INIT = 0x1 | 0x4 | 0x10 | 0x20 | 0x100
"""Closed on exec; before contents are used; queue and marks without limit; threads by their own number."""
ADD_FILE_SYSTEM = 0x1 | 0x100
OPENING, WRITTEN = 0x10000, 0x8  # FAN_OPEN_PERM, FAN_CLOSE_WRITE
ALLOW = 1
EVENT = struct.Struct("=IBBHQii")
LARGEST = 1 << 16
"""Bytes of a file that is recorded. What is larger is a part of a package or an image."""

libc = ctypes.CDLL(None, use_errno=True)


def mark(mounts: list[str]) -> int:
    """A descriptor that delivers what happens in the file systems that are mounted there."""
    group = libc.fanotify_init(INIT, os.O_RDONLY | getattr(os, "O_LARGEFILE", 0))
    for mount in mounts:
        done = libc.fanotify_mark(group, ADD_FILE_SYSTEM, ctypes.c_uint64(OPENING | WRITTEN), -100, os.fsencode(mount))
        if group < 0 or done < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), mount)
    return int(group)


class Openness:
    """Which files were open to others when they were opened: `open`, `private`, or `elsewhere` for another root's."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.seen: dict[tuple[int, int], str] = {}

    def opened(self, file: os.stat_result, thread: int) -> None:
        key, mode = (file.st_dev, file.st_ino), "open" if file.st_mode & stat.S_IROTH else "private"
        if file.st_size == 0:  # made just now; what had its inode before is gone
            self.seen[key] = mode if sees(thread, self.root) else "elsewhere"
        elif mode == "open" and self.seen.get(key) == "private":
            self.seen[key] = "open"

    def was_open(self, file: os.stat_result) -> bool:
        seen = self.seen.get((file.st_dev, file.st_ino), "private")
        return seen == "open" or (seen == "private" and bool(file.st_mode & stat.S_IROTH))


def reachable(root: str, path: str) -> bool:
    """Whether others may pass all folders on the way to a file."""
    try:
        return all(Path(f"{root}{folder}").stat().st_mode & stat.S_IXOTH for folder in Path(path).parents)
    except FileNotFoundError:  # removed meanwhile: nobody knows who might have passed
        return True


def sees(thread: int, root: str) -> bool:
    """Whether a thread has the machine's own root, so that a path means the same to it. Docker unpacks images in others."""
    try:
        return Path(f"/proc/{thread}/root/").samefile(f"{root}/")
    except OSError:  # killed while it waits for us
        return True


def main(record: str, root: str, paths: list[str]) -> None:
    group, openness = mark([f"{root}{path}" for path in paths]), Openness(root)
    print("watching", flush=True)
    with Path(record).open("a", encoding="utf-8") as stream:
        while events := os.read(group, 1 << 16):
            for offset in range(0, len(events), EVENT.size):
                *_, mask, descriptor, thread = EVENT.unpack_from(events, offset)
                file = os.fstat(descriptor)
                if mask & OPENING:
                    openness.opened(file, thread)
                    os.write(group, struct.pack("=iI", descriptor, ALLOW))
                elif stat.S_ISREG(file.st_mode) and 0 < file.st_size <= LARGEST and openness.was_open(file):
                    path = str(Path(f"/proc/self/fd/{descriptor}").readlink()).removesuffix(" (deleted)")
                    if reachable(root, path):
                        content = os.pread(descriptor, LARGEST, 0).decode("latin-1")
                        stream.write(json.dumps({"path": path, "content": content}, ensure_ascii=False) + "\n")
                        stream.flush()
                os.close(descriptor)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
