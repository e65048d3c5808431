"""A small plot of what was measured over the last runs, as SVG that needs nothing else."""

from collections.abc import Sequence
from statistics import median

from markupsafe import Markup

from atelier.report.redaction import printable

WIDTH, HEIGHT, MARGIN = 240, 56, 6


def plot(earlier: Sequence[float], now: float, told: str) -> Markup:
    """The earlier values and this run's, oldest first, over a line at the earlier ones' median. The floor is zero.

    told: what a screen reader says instead.
    """
    values = [*earlier, now]
    step = (WIDTH - 2 * MARGIN) / max(len(values) - 1, 1)
    top = max(*values, 0) or 1

    def height(value: float) -> float:
        return round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * max(value, 0) / top, 1)

    points = [(round(MARGIN + step * number, 1), height(value)) for number, value in enumerate(values)]
    line = " ".join(f"{x},{y}" for x, y in points)
    dots = "".join(f'<circle class="then" cx="{x}" cy="{y}" r="2"/>' for x, y in points[:-1])
    x, y = points[-1]
    middle = height(median(earlier))
    return Markup(
        '<svg class="plot" viewBox="0 0 {w} {h}" role="img" aria-label="{told}">'
        '<line class="floor" x1="0" x2="{w}" y1="{floor}" y2="{floor}"/>'
        '<line class="median" x1="0" x2="{w}" y1="{middle}" y2="{middle}"/>'
        '<polyline class="course" points="{line}"/>{dots}<circle class="now" cx="{x}" cy="{y}" r="4"/></svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT,
        told=printable(told),
        floor=HEIGHT - MARGIN,
        middle=middle,
        line=line,
        dots=Markup(dots),  # noqa: S704 - numbers of ours
        x=x,
        y=y,
    )
