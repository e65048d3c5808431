"""Which tests run beside which: how many processes for what, what stays together, what comes first."""

from pathlib import Path

import pytest
import side_by_side

from atelier import paths

TESTS = paths.PROJECT / "tests"


@pytest.mark.parametrize(
    "asked,cores,gigabytes,number",
    [
        (["tests/unit"], 2, 24, 2),
        (["tests/unit", "tests/sandbox"], 64, 512, side_by_side.MOST),
        (["tests/unit/test_a.py", "tests/unit/test_b.py"], 4, 24, 4),
        (["tests/unit/test_a.py"], 64, 512, 0),
        (["tests/unit/test_a.py::test_one", "tests/unit/test_a.py::test_two[b/c.py]"], 64, 512, 0),
        (["tests/unit"], 1, 24, 0),
        (["tests/unit"], 16, 12, 3),
        (["tests/unit"], 16, 4, 0),
    ],
)
def test_a_single_file_and_a_small_computer_get_one_process(
    asked: list[str], cores: int, gigabytes: int, number: int
) -> None:
    assert side_by_side.processes(asked, cores, gigabytes) == number


def test_every_file_that_is_named_is_there() -> None:
    for name in (*side_by_side.TOGETHER, *side_by_side.LONGEST_FIRST):
        assert (TESTS / "sandbox" / name).exists(), name


def test_files_that_share_a_session_fixture_of_machines_run_in_one_process() -> None:
    """Such a fixture is made once in each process: two of them would be two machines."""
    sharing = {path.name for path in (TESTS / "sandbox").glob("test_*.py") if "planted_host" in path.read_text("utf-8")}
    assert {side_by_side.group(f"tests/sandbox/{name}") for name in sharing} == {"planted host"}
    assert sharing == set(side_by_side.TOGETHER)


def test_quick_ones_tell_first_and_the_longest_come_next() -> None:
    files = [
        "gateway/test_g.py",
        "sandbox/test_tls.py",
        "sandbox/test_other.py",
        "sandbox/test_rotate.py",
        "unit/test_u.py",
    ]
    ordered = sorted((Path("tests") / file for file in files), key=side_by_side.place)
    assert [path.name for path in ordered] == [
        "test_u.py",
        "test_rotate.py",
        "test_tls.py",
        "test_other.py",
        "test_g.py",
    ]
