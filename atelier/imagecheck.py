"""Whether some bytes are an image that a model could have made. Pure functions, no network, no files.

What can be asked depends on the weights. Trained ones make pictures: not flat, not noise, no grid; the doubles do so as
well. Random ones make something that decodes, has the right size and is not one single colour; more cannot be asked.
"""

import hashlib
import io
import random
import statistics

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageStat

from atelier.errors import AtelierError

FLAT_DEVIATION = 2.0
"""Standard deviation, in steps of 255, below which every channel counts as one colour."""

NOISE_ROUGHNESS = 0.8
"""White noise has 1.0, photographs below 0.2 (see `roughness`)."""

LATENT_ROUGHNESS = 0.6
"""The same at the scale of the latents, where enlarged noise has 0.68 to 1.0 and photographs below 0.3."""

LATENT_SCALE = 8
"""Pixels for one latent value: noise that was decoded without being denoised is smooth below this scale."""

GRID_PERIODS = (8, 16)
"""Pixels for one value of the latents, and for one patch of a transformer."""
OTHER_PERIODS = (7, 9, 11, 13, 15, 17)
"""What a picture has at these by chance is what it may have at those."""
GRID_STRENGTH, GRID_RATIO = 1.0, 4.0
"""From here on a pattern is a grid: its standard deviation in steps of 255, and how much it exceeds that of the other
periods. Of 463 pictures (photographs, paintings, images of a dozen models, scaled down and compressed) none has more
than 0.6 together with more than 3, SDXL Turbo's 0.56 and 3.1; lines of 5 steps every 8 pixels have 1.1 and 10."""
GRID_SIZE = 256
"""Pixels along the shorter side from which on there is enough to average over."""
FINE = 12
"""Contrast beyond this, in steps of 255, is content: it would outweigh a pattern."""


def decode(data: bytes) -> Image.Image:
    """The whole image as RGB. Raises AtelierError where the bytes are no image or end too early."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # every checksum to the end; pixels alone would not miss the last bytes
        with Image.open(io.BytesIO(data)) as image:
            whole: Image.Image = image.convert("RGB")
            return whole
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise AtelierError(f"not a whole image ({len(data)} bytes): {error}") from None


def metadata(data: bytes) -> dict[str, str]:
    """The texts that were written into an image file, such as ComfyUI's `prompt`; empty where it cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return {str(name): text for name, text in image.info.items() if isinstance(text, str)}
    except (OSError, SyntaxError, ValueError):
        return {}


def drawn(size: tuple[int, int], seed: int) -> bytes:
    """A PNG with some coloured shapes, others for each seed: a reference image that nobody has used."""
    chance = random.Random(seed)  # noqa: S311 - a picture
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    draw, (width, height) = ImageDraw.Draw(image), size
    for _ in range(12):
        x, y, r = chance.randrange(width), chance.randrange(height), chance.randrange(2, max(3, height // 3))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(chance.randrange(256) for _ in range(3)))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def roughness(image: Image.Image) -> float:
    """Mean squared difference of neighbouring pixels over twice the variance: 1 minus their correlation."""
    grey = image.convert("L")
    variance = ImageStat.Stat(grey).var[0]
    if variance == 0:
        return 0.0
    width, height = grey.size
    squares = []
    for dx, dy in ((1, 0), (0, 1)):
        if dx < width and dy < height:
            neighbours = grey.crop((dx, dy, width, height)), grey.crop((0, 0, width - dx, height - dy))
            squares.append(ImageStat.Stat(ImageChops.difference(*neighbours)).sum2[0] / ((width - dx) * (height - dy)))
    return sum(squares) / len(squares) / (2 * variance) if squares else 0.0


def grid(image: Image.Image) -> tuple[int, float, float] | None:
    """A pattern that repeats itself as latents or patches do: period in pixels, strength, ratio to other periods.

    All tiles of one period are averaged, which leaves what repeats itself at that period: the energy at that frequency
    and its multiples, in both directions at once.
    """
    fine = _fine_structure(image)
    # What remains of anything else by chance grows with the tile.
    others = [_repeated(fine, period) / period for period in OTHER_PERIODS]
    chance = max(sum(others) / len(others), 1e-3)
    found = [(period, strength := _repeated(fine, period), strength / period / chance) for period in GRID_PERIODS]
    strong = [pattern for pattern in found if pattern[1] >= GRID_STRENGTH and pattern[2] >= GRID_RATIO]
    # What repeats itself every 8 pixels does so every 16 as well, with some chance added.
    return max(strong, key=lambda pattern: pattern[1] * (1.25 if pattern[0] == GRID_PERIODS[0] else 1), default=None)


def _fine_structure(image: Image.Image) -> Image.Image:
    """What differs from its surroundings, and not by much, around a middle of 128."""
    grey = image.convert("L")
    rest = ImageChops.subtract(grey, grey.filter(ImageFilter.BoxBlur(LATENT_SCALE)), 1, 128)
    return rest.point([min(max(step, 128 - FINE), 128 + FINE) for step in range(256)])


def _repeated(image: Image.Image, period: int) -> float:
    """Standard deviation of the mean of all tiles of period by period pixels."""
    across, down = image.width // period, image.height // period
    rows, width = image.crop((0, 0, across * period, down * period)).tobytes(), across * period
    sums = [0] * (period * period)
    for y in range(down * period):
        row = rows[y * width : (y + 1) * width]
        for x in range(period):
            sums[y % period * period + x] += sum(row[x::period])
    return statistics.pstdev(total / (across * down) for total in sums)


def problems(data: bytes, size: tuple[int, int], *, trained: bool) -> list[str]:
    """What is wrong with an image; empty when nothing is.

    size: width and height in pixels. trained: whether the weights were, so that it must be a picture.
    """
    try:
        image = decode(data)
    except AtelierError as error:
        return [error.message]
    found = []
    if image.size != size:
        found.append(f"is {image.width}x{image.height} instead of {size[0]}x{size[1]}")
    deviation = max(ImageStat.Stat(image).stddev)
    if deviation < FLAT_DEVIATION if trained else deviation == 0:
        black = max(most for _, most in ImageStat.Stat(image).extrema) < FLAT_DEVIATION
        found.append(f"is {'black' if black else 'flat'}: standard deviation {deviation:.2f} of 255")
    if trained and not found:
        if roughness(image) > NOISE_ROUGHNESS:
            found.append(f"is noise: roughness {roughness(image):.2f}, pictures stay below {NOISE_ROUGHNESS}")
        elif min(image.size) >= 16 * LATENT_SCALE:
            small = image.reduce(LATENT_SCALE)
            if roughness(small) > LATENT_ROUGHNESS:
                found.append(f"is decoded noise: roughness {roughness(small):.2f} at the scale of the latents")
        if not found and min(image.size) >= GRID_SIZE and (pattern := grid(image)):
            seen = f"{pattern[1]:.1f} of 255, {pattern[2]:.0f} times what other periods have"
            found.append(f"has a grid of {pattern[0]} pixels: {seen}")
    return found


def filled_with(data: bytes, colour: tuple[int, int, int]) -> bool:
    """Whether every pixel has this colour, give or take 1 for rounding."""
    image = decode(data)
    difference = ImageChops.difference(image, Image.new("RGB", image.size, colour))
    return all(most <= 1 for _, most in ImageStat.Stat(difference).extrema)


def pixel_hash(data: bytes) -> str:
    """sha256 of size and pixels; a file's own hash would cover its metadata (prompt, seed) as well."""
    image = decode(data)
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()


def pixels_equal(one: bytes, other: bytes) -> bool:
    """Whether two files show the same picture."""
    return pixel_hash(one) == pixel_hash(other)
