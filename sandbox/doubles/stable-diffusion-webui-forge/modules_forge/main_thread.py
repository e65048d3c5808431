"""TEST DOUBLE, never deploy."""

import time


def loop() -> None:
    """The main thread of the real one generates; here it only stays."""
    while True:
        time.sleep(1)
