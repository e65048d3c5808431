"""Adoption of a store of 40 files beside what one would do instead: `make bench`.

`.venv/bin/python -m benchmarks.adoption`. 40 weights of different sizes lie under other names among files of other sizes.
Ours finds them by size, hashes those on all cores and links them. Beside it: `sha256sum` over everything in the folder, which
is what tells the weights apart where sizes are not looked at; `sha256sum` over those of the right size alone, one after the
other; and the least that anybody could do, those same files by `openssl dgst`, which is as fast as Debian 13's sha256sum,
one a core. It needs 4 GB of disk.
"""

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.weights import MIB, load
from weights.adopt import adopt
from weights.store import File, Store

FILES, EACH, OTHERS = 40, 48 * MIB, 40
RUNS = 3


def planted(root: Path) -> list[File]:
    """The folder with weights and what else lies there."""
    wanted = []
    for number in range(FILES + OTHERS):
        block = os.urandom(MIB)
        size = EACH + number * 4096 + (0 if number < FILES else 1)
        content = (block * (size // MIB + 1))[:size]
        (root / f"{number:02}.bin").write_bytes(content)
        if number < FILES:
            wanted.append(File(f"loras/{number}.safetensors", size, hashlib.sha256(content).hexdigest()))
    return wanted


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def main() -> None:
    """Print the medians."""
    with tempfile.TemporaryDirectory(prefix="bench-adoption-", dir=os.environ.get("TMPDIR")) as folder:
        root = Path(folder)
        (root / "theirs").mkdir()
        wanted = planted(root / "theirs")
        sizes = {file.bytes for file in wanted}
        every = sorted(map(str, (root / "theirs").iterdir()))
        right = [path for path in every if Path(path).stat().st_size in sizes]
        cores = len(os.sched_getaffinity(0))
        runs = iter(range(1000))

        def ours() -> None:
            number = next(runs)
            store = Store(root / f"store-{number}", root / f"state-{number}")
            assert len(adopt(store, wanted, [root / "theirs"]).taken) == FILES

        def sums(paths: list[str], *program: str, at_once: int = 1) -> None:
            each = -(-len(paths) // (4 * at_once)) if at_once > 1 else len(paths)
            command = ["xargs", "-0", "-n", str(each), "-P", str(at_once), *program]
            subprocess.run(command, input="\0".join(paths).encode(), check=True, stdout=subprocess.DEVNULL)

        ways: dict[str, Callable[[], None]] = {
            "ours": ours,
            "sha256sum of everything": lambda: sums(every, "sha256sum"),
            "sha256sum of the right sizes": lambda: sums(right, "sha256sum"),
            "openssl of the right sizes": lambda: sums(right, "openssl", "dgst", "-sha256"),
            f"the same, {cores} at once": lambda: sums(right, "openssl", "dgst", "-sha256", at_once=cores),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(RUNS):
            for way, work in ways.items():
                times[way].append(timed(work))
        medians = {way: statistics.median(each) for way, each in times.items()}
        size = sum(file.bytes for file in wanted) / 1e9
        print(f"== adoption of {FILES} files, {size:.2f} GB, among {FILES + OTHERS}; medians of {RUNS}; {load()}")
        for way, seconds in medians.items():
            print(f"  {way:30} {seconds:6.2f} s ({seconds / medians['ours']:.2f} of ours)")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
