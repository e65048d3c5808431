"""make sabotage end to end: every quick way to break a sandbox and a few of the slow ones, by commit; Ctrl-C and SIGKILL.

The tests share one deployed sandbox and run in their order.
"""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from harness import ROOT, Sandbox

from atelier.sabotage import Guest, Sabotage, Saboteur, commit, declared, examiner, load, possible, rotation
from atelier.target import Target, sandbox_target
from atelier.verify import verify

pytestmark = pytest.mark.sandbox
NAME = f"sandbox-sabotage-{os.getpid()}"
HERE = [sabotage for sabotage in load() if possible(sabotage, sandbox_target(NAME, ROOT).settings)]
CHOSEN = [
    *(sabotage for sabotage in HERE if not sabotage.slow),
    *rotation([sabotage for sabotage in HERE if sabotage.slow], commit()),
]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(NAME)
    with sandbox.running():
        yield sandbox


@pytest.fixture(scope="module")
def target(sandbox: Sandbox) -> Target:
    return sandbox_target(sandbox.name, ROOT)


@pytest.fixture(scope="module")
def saboteur(sandbox: Sandbox, target: Target) -> Saboteur:
    sandbox.deploy()
    ssh = target.ssh()
    checks = declared(target, ssh)
    return Saboteur(Guest(target, ssh), checks, examiner(target), lambda line, style: print(line), only_quick=True)


def test_it_deploys_nothing_by_itself(sandbox: Sandbox) -> None:
    output = sandbox.atelier("sabotage", expect=1)
    assert "nothing is deployed here" in output and "make deploy" in output


def test_all_is_well_before(saboteur: Saboteur) -> None:
    saboteur.require_well(CHOSEN)


@pytest.mark.parametrize("sabotage", CHOSEN, ids=lambda sabotage: sabotage.id)
def test_verify_notices(saboteur: Saboteur, sabotage: Sabotage) -> None:
    assert not saboteur.guest.noted(), "the one before was not undone"
    [outcome] = saboteur.run([sabotage])
    assert not outcome.faults, "\n".join(outcome.faults)


def broken_by(sandbox: Sandbox, *, sent: signal.Signals) -> str:
    """What a run of the command prints that gets a signal as soon as Forge is stopped."""
    with sandbox.started("sabotage", "--only", "access.forge-stopped") as process:
        deadline = time.monotonic() + 60
        while sandbox.root("docker inspect -f '{{.State.Running}}' forge-turbo") == "true":
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(sent)
        output, _ = process.communicate(timeout=180)
    print(output)
    return output


def test_an_interrupt_undoes_the_one_at_work(sandbox: Sandbox) -> None:
    output = broken_by(sandbox, sent=signal.SIGINT)
    assert "undoing access.forge-stopped" in output and "Traceback" not in output
    assert sandbox.root("docker inspect -f '{{.State.Health.Status}}' forge-turbo") == "healthy"


def test_the_next_run_undoes_what_a_killed_one_left(sandbox: Sandbox) -> None:
    broken_by(sandbox, sent=signal.SIGKILL)
    assert sandbox.root("docker inspect -f '{{.State.Running}}' forge-turbo") == "false"
    output = sandbox.atelier("sabotage", "--only", "access.healthz-closed")
    assert "killed in the middle of access.forge-stopped" in output and "1 of 1 sabotages" in output


def test_all_is_well_after(target: Target) -> None:
    report = verify(target, say=lambda line, style: print(line))
    assert report.verdict == "passed"
