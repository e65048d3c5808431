"""Group weights: they are there, they are right, and the applications see them.

What is wrong is judged by atelier/checks/weights_state.py.
"""

import pytest
from stack import COMMAND_SECONDS

from atelier import weights_unit
from atelier.checks import weights_state
from atelier.errors import AtelierError


@pytest.fixture(scope="module")
def wanted(stack):
    """The weights that the settings ask for now."""
    weights = stack.context["weights"]
    return [
        weights_state.Wanted(f"{each['directory']}/{each['path'].rpartition('/')[2]}", each["bytes"], each["sha256"])
        for each in weights
    ]


@pytest.fixture(scope="module")
def told(stack, wanted):
    """What the host and both applications have, asked in one round trip."""
    script = weights_state.script(stack.settings, wanted)
    return weights_state.parse(stack.ssh.run(script, timeout=COMMAND_SECONDS, check=True).stdout)


@pytest.mark.check("weights.present")
def test_every_weight_is_the_file_that_was_hashed(check, wanted, told):
    size = sum(weight.bytes for weight in wanted) / 1e9
    expected = (
        "each weight of the settings there, root's own and read-only, with size, time and inode as when it was hashed"
    )
    check.free_of(expected, weights_state.in_place(wanted, told), f"{len(wanted)} files, {size:.1f} GB")
    check.warn_of("nothing left over by a transfer", weights_state.left_over(told))


@pytest.mark.check("weights.seen")
def test_the_applications_see_the_hosts_weights(stack, check, wanted, told):
    wrong = [
        finding for container in stack.applications.values() for finding in weights_state.seen(wanted, told, container)
    ]
    check.free_of("the same files inside each application as on the host, read-only", wrong, ", ".join(told.mounts))


@pytest.mark.check("weights.deep")
def test_every_byte_is_right(stack, check, wanted):
    seconds = stack.settings.timeouts.hashing
    # A generation beside it comes first.
    script = f"renice -n 15 $$ >/dev/null; ionice -c 3 -p $$; {weights_unit.shell(stack.settings, 'verify', '--deep')}"
    try:
        answer = stack.ssh.run(script, timeout=seconds)
    except AtelierError as error:
        hint = f"see the load of the host, or raise timeouts.hashing ({seconds} s)"
        check("every byte hashed", f"time-out: {error.message}", False, hint)
    lines = (answer.stdout + answer.stderr).splitlines()
    wrong = weights_state.by_every_byte(wanted, "\n".join(lines))
    check.free_of("the sha256 of every weight as in the lock file", wrong, lines[-1] if lines else "")
