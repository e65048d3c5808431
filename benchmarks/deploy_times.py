"""From nothing to a verified stack with the doubles: first sandbox, second through the caches, nothing to do, full verify.

`make bench`, or `.venv/bin/python -m benchmarks.deploy_times`. A cache of its own makes the first one really the first.
"""

import os
import subprocess
import tempfile
import time

from atelier import paths

FIRST, SECOND = "sandbox-bench-first", "sandbox-bench-second"
ATELIER = str(paths.PROJECT / ".venv" / "bin" / "atelier")


def main() -> None:
    """Measure each step once and print it; the sandboxes and the cache are removed."""
    deploy = ("deploy", "--sources", "double", "--host")
    steps = {
        "first deploy, nothing cached, quick verify included": (*deploy, FIRST),
        "second sandbox, through the caches": (*deploy, SECOND),
        "deploy with nothing to do": (*deploy, SECOND),
        "verify": ("verify", "--host", SECOND),
    }
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "ATELIER_CACHE": cache}
        try:
            for title, arguments in steps.items():
                started = time.monotonic()
                subprocess.run([ATELIER, *arguments], env=environment, check=True, capture_output=True)
                print(f"{title}: {time.monotonic() - started:.0f} s", flush=True)
        finally:
            for name in (FIRST, SECOND):
                subprocess.run([ATELIER, "sandbox", "down", "--name", name], env=environment, check=True)


if __name__ == "__main__":
    main()
