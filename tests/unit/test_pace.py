"""Times against the host's own, and what nvidia-smi tells of a generation."""

import pytest

from atelier import pace


@pytest.mark.parametrize(
    ("seconds", "earlier", "words"),
    [
        (99.0, [], None),
        (99.0, [10, 10], None),
        (15.0, [10, 10, 10], None),
        (15.1, [10, 10, 10], "x: 15.1 s, 1.5 times its median of 10.0 s in 3 runs"),
        (15.1, [10, 10, 300], "1.5 times"),
        (15.1, [1, 300, 10, 11], None),
        (0.5, [0.1, 0.1, 0.1], None),
        (0.7, [0.1, 0.1, 0.1], "7.0 times"),
    ],
)
def test_slower_than_the_host_was(seconds, earlier, words):
    (told,) = pace.slower("x", seconds, earlier) or [None]
    assert told == words if words is None else words in told


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([30.0, 3.0, 3.2], 3.0),
        ([30.0, 31.0, 3.2], 3.2),
        ([1.0, 3.0, 3.2], 3.0),
        ([30.0, None, 3.2], 3.2),
        ([None, 3.0, None], 3.0),
        ([30.0, None, None], None),
    ],
    ids=["loaded first", "loaded anew between", "loaded before", "others", "others before and after", "always others"],
)
def test_the_time_of_an_image_holds_no_load_and_nobody_elses_work(times, seconds):
    assert pace.unhindered(times) == seconds


@pytest.mark.parametrize(
    ("rows", "most"),
    [
        ([], {}),
        (["20412, 330.12", "23110, 68.10"], {"MiB": 23110, "W": 330.12}),
        (["512, [N/A]"], {"MiB": 512}),
        (["NVIDIA-SMI has failed because it couldn't communicate", "No devices were found"], {}),
    ],
)
def test_the_most_that_a_generation_took(rows, most):
    assert pace.usage(rows) == most
