"""What a machine under a known name is told."""

from dataclasses import replace

import pytest
from test_deployment import CREDENTIALS, FACTS

from atelier import new_machine
from atelier.credentials import Credentials
from atelier.hostfacts import HostFacts
from atelier.recorded import Roots

ROOTS = Roots("/opt/atelier", "/srv/atelier", "/srv/atelier/models", "/srv/atelier/outputs")


@pytest.mark.parametrize(
    ("facts", "stored", "told"),
    [
        (FACTS, CREDENTIALS, True),
        (FACTS, None, False),
        (replace(FACTS, instance="i"), CREDENTIALS, False),
        (replace(FACTS, roots=ROOTS), CREDENTIALS, False),
        (replace(FACTS, deployed=True), CREDENTIALS, False),
    ],
)
def test_only_a_bare_machine_under_a_known_name_is_told(
    facts: HostFacts, stored: Credentials | None, told: bool
) -> None:
    sentence = new_machine.sentence("gpu1", facts, stored)
    assert ("gpu1 is a machine that was never deployed; the credentials of this computer" in sentence) is told
    assert bool(sentence) is told
