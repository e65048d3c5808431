"""The catalogue: what explains what, and what nothing explains away."""

import re

import pytest

from atelier.checks import CATALOGUE, Check, explained
from atelier.report import CheckResult
from atelier.report.judgement import roots

OPEN = re.compile(
    r"containers\.(hardened|ports|networks|egress)|access\.direct|access\.\w+\.(stranger|wrong|query|matrix)"
    r"|host\.(listening|closed)|secrets\.\w+|survival\..+"
)
"""What shows whether somebody gets in, or out, who must not."""


def failed(id: str) -> CheckResult:
    return CheckResult(
        id=id, group=id.split(".")[0], title="", verdict="failed", seconds=0, expected="", observed="", hint=""
    )


def test_a_failure_explains_what_depends_on_it_and_nothing_further() -> None:
    chain = (
        Check("a.x", "", "", ""),
        Check("b.x", "", "", "", depends=("a.x",)),
        Check("c.x", "", "", "", depends=("b.x", "a.y")),
    )
    assert explained({"a.x"}, chain) == {"b.x"}
    assert explained({"a.x", "b.x"}, chain) == {"b.x", "c.x"}
    assert explained({"a"}, chain) == explained({"c.x"}, chain) == set()


@pytest.mark.parametrize("check", CATALOGUE, ids=lambda check: check.id)
def test_a_check_depends_on_other_checks_by_their_whole_ids(check: Check) -> None:
    assert set(check.depends) <= {other.id for other in CATALOGUE} - {check.id}


def test_nothing_explains_itself_in_the_end() -> None:
    left = {check.id: set(check.depends) for check in CATALOGUE}
    while first := [id for id, causes in left.items() if not causes & left.keys()]:
        left = {id: causes for id, causes in left.items() if id not in first}
    assert not left


def test_what_is_open_is_never_called_a_consequence() -> None:
    found = [check for check in CATALOGUE if OPEN.fullmatch(check.id)]
    assert len(found) > 20 and not [check.id for check in found if check.depends]


@pytest.mark.parametrize(
    "red,first",
    [
        (
            "host.disk containers.running containers.hardened containers.egress containers.ports host.listening drift.units",
            "host.disk containers.running containers.hardened containers.egress containers.ports host.listening drift.units",
        ),
        ("host.docker containers.running containers.limits", "host.docker"),
        ("host.reboot drift.packages", "host.reboot drift.packages"),
        ("secrets.leaks drift.files", "secrets.leaks drift.files"),
        ("gpu.driver gpu.containers gpu.reload", "gpu.driver"),
        (
            "access.forge.healthz access.forge.login access.comfyui.token access.forge.stranger",
            "access.forge.healthz access.comfyui.token access.forge.stranger",
        ),
        ("drift.images", "drift.images"),
    ],
)
def test_what_is_to_be_mended_first(red: str, first: str) -> None:
    assert [check.id for check in roots([failed(id) for id in red.split()])] == first.split()
