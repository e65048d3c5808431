"""The lists of sabotages: every check has one, and all that they name exists."""

import re
import subprocess
from collections import Counter

import pytest
import sabotage as lists

from atelier.checks import CATALOGUE, existing, explained
from atelier.paths import PROJECT
from atelier.sabotage import NEEDS, Sabotage, concerned
from atelier.settings import Settings

ALL = lists.every()
SANDBOXES = {
    "": Settings.model_validate({"profile": "cpu"}),
    "doubles": Settings.model_validate({"profile": "cpu"}),
    "gpu": Settings.model_validate({"profile": "gpu-simulated"}),
    "tls": Settings.model_validate({"profile": "cpu", "tls": {"mode": "internal"}}),
}
FOUND = {need: {check.id for check in existing(settings)} for need, settings in SANDBOXES.items()}


def test_there_are_many_and_each_has_an_id_of_its_own() -> None:
    assert len(ALL) >= 60
    assert not [id for id, count in Counter(sabotage.id for sabotage in ALL).items() if count > 1]
    assert {sabotage.needs for sabotage in ALL} <= {"", *NEEDS}


@pytest.mark.parametrize("check", [check.id for check in CATALOGUE])
def test_every_check_has_a_sabotage(check: str) -> None:
    broken = [sabotage.id for sabotage in ALL if check in sabotage.expects]
    if any(check in found for found in FOUND.values()):
        assert broken, "no sabotage turns it red in any sandbox"
    else:
        assert lists.recorded()[check]()


@pytest.mark.parametrize("sabotage", ALL, ids=lambda sabotage: sabotage.id)
def test_what_a_sabotage_says_is_so(sabotage: Sabotage) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z0-9]+(-[a-z0-9]+)*", sabotage.id)
    assert re.compile(sabotage.names).pattern and sabotage.does and "\n" not in sabotage.does
    assert sabotage.expects and set(sabotage.expects) <= FOUND[sabotage.needs], "a check that such a sandbox has not"
    known = {check.id for check in CATALOGUE}
    assert all(any(f"{id}.".startswith(f"{name}.") for id in known) for name in sabotage.also)
    assert set(sabotage.groups) <= {check.group for check in CATALOGUE}
    for script in (sabotage.breaks, sabotage.undoes):
        if isinstance(script, str):
            read = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True)
            assert read.returncode == 0, read.stderr
            assert not re.search(r"DATA\}?/(models|outputs|users)", script), "its settings may name another place"


ROW = re.compile(r"\| (?P<id>[a-z]+\.[a-z0-9-]+) \| [^|]+ \| (?P<red>[a-z0-9.]+(, [a-z0-9.]+)*) \| \d+ \|")
"""Of the table in docs/tested.md."""
KNOWN = {sabotage.id: sabotage for sabotage in ALL}
RUN = [row for row in ROW.finditer((PROJECT / "docs" / "tested.md").read_text()) if row["id"] in KNOWN]


def test_the_last_run_of_all_is_read() -> None:
    assert len(RUN) > 200


@pytest.mark.parametrize("row", RUN, ids=lambda row: row["id"])
def test_what_turned_red_in_the_last_run_of_all_is_what_may(row: re.Match[str]) -> None:
    sabotage, red = KNOWN[row["id"]], set(row["red"].split(", "))
    allowed = {*sabotage.expects, *explained(sabotage.expects)}
    more = {id for id in red - allowed if not any(f"{id}.".startswith(f"{name}.") for name in sabotage.also)}
    assert not more


@pytest.mark.parametrize("sabotage", ALL, ids=lambda sabotage: sabotage.id)
def test_what_may_be_red_besides_is_looked_at(sabotage: Sabotage) -> None:
    asked = concerned(sabotage, existing(SANDBOXES[sabotage.needs]))
    unasked = [name for name in sabotage.also if not any(f"{id}.".startswith(f"{name}.") for id in asked)]
    assert not unasked


UNREADABLE = "; ".join(
    f"{what} cannot be read"
    for what in ("docker inspect", "docker logs comfyui-qwen", "docker image inspect atelier/leaky:1", "journal")
)
"""What secrets.leaks says of places that it could not search."""


@pytest.mark.parametrize("sabotage", ALL, ids=lambda sabotage: sabotage.id)
def test_what_any_failure_of_the_check_says_does_not_name_the_cause(sabotage: Sabotage) -> None:
    first = next(check for check in CATALOGUE if check.id == sabotage.expects[0])
    assert not re.search(sabotage.names, f"{first.title}: {UNREADABLE} -> {first.hint}")


@pytest.mark.parametrize("check", sorted({sabotage.expects[0] for sabotage in ALL}))
def test_what_a_check_says_to_do_is_tried_for_one_sabotage_at_least(check: str) -> None:
    assert any(" ->" in sabotage.names for sabotage in ALL if sabotage.expects[0] == check)
