"""The lists of sabotages: every check has one, and all that they name exists."""

import re
import subprocess
from collections import Counter

import pytest
import sabotage as lists

from atelier.checks import CATALOGUE, existing
from atelier.sabotage import NEEDS, Sabotage
from atelier.settings import Settings

ALL = lists.every()
SANDBOXES = {
    "": Settings.model_validate({"profile": "cpu"}),
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
