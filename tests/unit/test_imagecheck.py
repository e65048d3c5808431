"""Image checks: each defect is named, a picture is not accused."""

import io
import math
import random

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from atelier import imagecheck
from atelier.errors import AtelierError


def png(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1, **options)
    return stream.getvalue()


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = random.Random(7).randbytes(size[0] * size[1] * 3)
    return Image.frombytes("RGB", size, pixels)


def picture(size: tuple[int, int] = (512, 512)) -> Image.Image:
    """Shapes on a gradient, softened, with some grain: what a photograph is like at every scale."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    draw, chance = ImageDraw.Draw(image), random.Random(3)
    for _ in range(40):
        x, y, r = chance.randrange(size[0]), chance.randrange(size[1]), chance.randrange(size[0] // 16, size[0] // 4)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(chance.randrange(256) for _ in range(3)))
    return Image.blend(image.filter(ImageFilter.GaussianBlur(2)), noise(size), 0.08)


def with_pattern(image: Image.Image, value) -> Image.Image:
    """`value(x, y)` steps of 255 are added to each pixel."""
    steps = bytes(128 + round(value(x, y)) for y in range(image.height) for x in range(image.width))
    pattern = Image.frombytes("L", image.size, steps)
    return ImageChops.add(image, Image.merge("RGB", [pattern] * 3), 1, -128)


GRIDS = {
    "lines every 8": (lambda x, y: 6 * (x % 8 == 0 or y % 8 == 0), 8),
    "lines every 16": (lambda x, y: 12 * (x % 16 == 0 or y % 16 == 0), 16),
    "a chequerboard": (lambda x, y: 3 if (x // 4 + y // 4) % 2 else -3, 8),
    "waves": (lambda x, y: 5 * math.sin(math.tau * x / 8) + 5 * math.sin(math.tau * y / 8), 8),
    "stripes": (lambda x, y: 6 * (x % 8 < 2), 8),
    "blocks with a slope": (lambda x, y: 4 * (x % 16 + y % 16) / 15 - 4, 16),
}


WHOLE = png(picture())
SMALL = png(picture((64, 64)))
DECODED_NOISE = noise((64, 64)).resize((512, 512), Image.Resampling.BICUBIC)
SPECK = Image.new("RGB", (64, 64), (9, 9, 9))
SPECK.putpixel((5, 5), (99, 9, 9))


@pytest.mark.parametrize(
    ("data", "size", "trained", "problem"),
    [
        (WHOLE, (512, 512), True, None),
        (SMALL, (64, 64), True, None),
        (WHOLE, (64, 64), True, "is 512x512 instead of 64x64"),
        (WHOLE[: len(WHOLE) // 2], (512, 512), True, "not a whole image"),
        (WHOLE[:-20], (512, 512), True, "not a whole image"),
        (b'{"error": "no"}', (64, 64), False, "not a whole image"),
        (b"", (64, 64), False, "not a whole image (0 bytes)"),
        (png(Image.new("RGB", (64, 64), (10, 20, 30))), (64, 64), False, "is flat"),
        (png(Image.new("RGB", (64, 64))), (64, 64), True, "is black"),
        (png(SPECK), (64, 64), True, "is flat"),
        (png(SPECK), (64, 64), False, None),
        (png(noise((512, 512))), (512, 512), True, "is noise"),
        (png(noise((64, 64))), (64, 64), True, "is noise"),
        (png(noise((64, 64))), (64, 64), False, None),
        (png(DECODED_NOISE), (512, 512), True, "is decoded noise"),
        (png(DECODED_NOISE), (512, 512), False, None),
    ],
)
def test_problems(data, size, trained, problem):
    found = imagecheck.problems(data, size, trained=trained)
    assert (not found) if problem is None else (len(found) == 1 and problem in found[0]), found


@pytest.mark.parametrize("name", GRIDS)
def test_grids(name):
    value, period = GRIDS[name]
    (found,) = imagecheck.problems(png(with_pattern(picture(), value)), (512, 512), trained=True)
    assert found.startswith(f"has a grid of {period} pixels: ")


@pytest.mark.parametrize(
    "value",
    [
        lambda x, y: 0,
        lambda x, y: x % 8 == 0,  # too faint to be seen
        lambda x, y: 12 * (x % 9 == 0 or y % 9 == 0),
        lambda x, y: 12 * (x % 50 == 0 or y % 50 == 0),
        lambda x, y: 60 * (x // 128 % 2),
        lambda x, y: 60 * (y == 256),
    ],
)
def test_what_is_no_grid(value):
    assert imagecheck.problems(png(with_pattern(picture(), value)), (512, 512), trained=True) == []


def test_a_grid_is_looked_for_in_pictures_only():
    lines = with_pattern(picture(), GRIDS["lines every 8"][0])
    assert imagecheck.problems(png(lines), (512, 512), trained=False) == []
    little = with_pattern(picture((128, 128)), GRIDS["lines every 8"][0])
    assert imagecheck.problems(png(little), (128, 128), trained=True) == [], "too little to average over"


def test_an_empty_picture_has_no_grid():
    assert imagecheck.grid(Image.new("RGB", (512, 512), 0x808080)) is None


def test_texts_in_an_image():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("prompt", '{"1": {}}')
    assert imagecheck.metadata(png(picture(), pnginfo=info)) == {"prompt": '{"1": {}}'}
    assert imagecheck.metadata(WHOLE) == imagecheck.metadata(b"<html>") == {}


def test_a_drawn_reference_is_another_for_each_seed():
    one, again, other = (imagecheck.drawn((96, 64), seed) for seed in (1, 1, 2))
    assert one == again and not imagecheck.pixels_equal(one, other)
    assert imagecheck.problems(one, (96, 64), trained=True) == []


def test_metadata_is_not_part_of_a_picture():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("prompt", "another")
    other = png(picture(), pnginfo=info)
    assert other != WHOLE and imagecheck.pixels_equal(other, WHOLE)
    changed = picture()
    changed.putpixel((0, 0), (1, 2, 3))
    assert not imagecheck.pixels_equal(png(changed), WHOLE)
    assert imagecheck.pixel_hash(png(Image.new("L", (2, 8)))) != imagecheck.pixel_hash(png(Image.new("L", (8, 2))))


def test_filled_with_takes_rounding_and_nothing_more():
    data = png(Image.new("RGB", (9, 6), (51, 102, 153)))
    assert imagecheck.filled_with(data, (51, 102, 153)) and imagecheck.filled_with(data, (50, 103, 153))
    assert not imagecheck.filled_with(data, (49, 102, 153))
    spot = Image.new("RGB", (9, 6), (51, 102, 153))
    spot.putpixel((8, 5), (51, 102, 156))
    assert not imagecheck.filled_with(png(spot), (51, 102, 153))


def test_a_file_that_is_no_image_is_an_error():
    with pytest.raises(AtelierError, match="not a whole image"):
        imagecheck.pixel_hash(b"<html>")
