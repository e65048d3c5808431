"""TEST DOUBLE, never deploy: pictures instead of diffusion.

A picture is a few octaves of a smooth random field, so it is neither flat nor noise, and it depends on nothing but the
words and numbers it is made from: the same request gives the same pixels, another seed or prompt others.
"""

from __future__ import annotations

import hashlib
import random

from PIL import Image

OCTAVES = ((3, 1.0), (7, 0.45), (19, 0.2), (53, 0.08))  # cells along the longer side, weight of the layer


def smooth_field(size: tuple[int, int], *made_from: object) -> Image.Image:
    """An RGB picture of `size` (width, height) pixels that is a pure function of `size` and `made_from`."""
    digest = hashlib.sha256(repr((size, made_from)).encode()).digest()
    noise = random.Random(digest)
    width, height = size
    picture = Image.new("RGB", size)
    for cells, weight in OCTAVES:
        columns = max(2, round(cells * width / max(size)))
        rows = max(2, round(cells * height / max(size)))
        layer = Image.frombytes("RGB", (columns, rows), noise.randbytes(columns * rows * 3))
        picture = Image.blend(picture, layer.resize(size, Image.Resampling.BICUBIC), weight)
    return picture
