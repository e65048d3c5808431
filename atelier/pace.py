"""How fast a host makes images, and what of its GPU that takes: judged against the host's own earlier runs. Pure."""

import statistics
from collections.abc import Iterable, Sequence

ENOUGH = 3
"""Earlier runs that make a median worth comparing with."""
SLOWER = 1.5
NOTICEABLE_SECONDS = 0.5
"""A difference that nobody would notice is no warning, whatever its ratio."""

USAGE = "memory.used,power.draw"
"""What nvidia-smi is asked for, as `usage` reads it: MiB and W."""


def unhindered(times: Sequence[float | None]) -> float | None:
    """The least of the times of several images, without the first, which may load the model. None in the place of one, or
    of all: others were at work, so that it holds their time as well.

    The least: somebody else's image between two of ours makes the second one load the model again.
    """
    return min((seconds for seconds in times[1:] if seconds is not None), default=None)


def is_slower(seconds: float, earlier: Sequence[float]) -> bool:
    """Whether a time is out of line with the host's own earlier ones, all in seconds."""
    if len(earlier) < ENOUGH:
        return False
    usual = statistics.median(earlier)
    return seconds > SLOWER * usual and seconds - usual >= NOTICEABLE_SECONDS


def slower(name: str, seconds: float, earlier: Sequence[float]) -> list[str]:
    """What is to be said of a time that is out of line with the host's own; empty when nothing."""
    if not is_slower(seconds, earlier):
        return []
    usual = statistics.median(earlier)
    return [f"{name}: {seconds:.1f} s, {seconds / usual:.1f} times its median of {usual:.1f} s in {len(earlier)} runs"]


def usage(rows: Iterable[str]) -> dict[str, float]:
    """The most of each of USAGE that was seen, by unit; what a card does not tell (`[N/A]`) is left out."""
    most: dict[str, float] = {}
    for row in rows:
        for unit, text in zip(("MiB", "W"), row.split(","), strict=False):
            try:
                most[unit] = max(most.get(unit, 0.0), float(text))
            except ValueError:
                continue
    return most
