"""make sabotage end to end: every quick way to break a sandbox and a few of the slow ones, by commit; Ctrl-C and SIGKILL.

The tests share one deployed sandbox and run in their order.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from harness import ROOT, Sandbox

pytestmark = pytest.mark.sandbox
STOPPED = "access.forge-stopped"
PATIENCE = 1800
"""Seconds; a quiet computer with 2 cores needs a third of it."""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(f"sandbox-sabotage-{os.getpid()}")
    with sandbox.running():
        yield sandbox


def test_it_deploys_nothing_by_itself(sandbox: Sandbox) -> None:
    output = sandbox.atelier("sabotage", expect=1)
    assert "nothing is deployed here" in output and "make deploy" in output


def test_verify_notices_the_quick_ones_and_some_of_the_slow_ones(sandbox: Sandbox) -> None:
    sandbox.deploy()
    # As it comes: of a run that is ended for its time one must see how far it was.
    with sandbox.started("sabotage", "--sample", "--quick") as process:
        ending = threading.Timer(PATIENCE, process.terminate)
        ending.start()
        lines = []
        for line in process.stdout:
            print(line, end="")
            lines.append(line)
        ending.cancel()
    output = "".join(lines)
    assert process.returncode == 0
    noticed, tried = re.search(r"(\d+) of (\d+) sabotages were noticed, named and undone", output).groups()
    assert noticed == tried and int(tried) > 60
    assert "Verdict: passed" in output, "the whole verify after it"
    table = (ROOT / "reports" / sandbox.name / "sabotage.md").read_text()
    assert len(table.splitlines()) == int(tried) + 2 and "not as it must be" not in table


def broken_by(sandbox: Sandbox, *, sent: signal.Signals) -> str:
    """What a run of the command prints that gets a signal as soon as Forge is stopped."""
    with sandbox.started("sabotage", "--quick", "--only", STOPPED) as process:
        deadline = time.monotonic() + 120
        while running(sandbox):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(sent)
        output, _ = process.communicate(timeout=180)
    print(output)
    return output


def running(sandbox: Sandbox) -> bool:
    return sandbox.root("docker inspect -f '{{.State.Running}}' forge-turbo") == "true"


def test_an_interrupt_undoes_the_one_at_work(sandbox: Sandbox) -> None:
    output = broken_by(sandbox, sent=signal.SIGINT)
    assert f"undoing {STOPPED}" in output and "Traceback" not in output
    assert sandbox.root("docker inspect -f '{{.State.Health.Status}}' forge-turbo") == "healthy"


def test_the_next_run_undoes_what_a_killed_one_left(sandbox: Sandbox) -> None:
    broken_by(sandbox, sent=signal.SIGKILL)
    assert not running(sandbox)
    output = sandbox.atelier("sabotage", "--quick", "--only", "secrets.mode")
    assert f"killed in the middle of {STOPPED}" in output and "1 of 1 sabotages" in output
    assert running(sandbox)
