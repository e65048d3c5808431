"""Group host: the timer by which the host looks at itself. What is wrong with it is judged by atelier/checks/monitor_state.py."""

import pytest

from atelier.checks import monitor_state


@pytest.mark.check("host.monitor")
def test_the_host_looks_at_itself(stack, check):
    told = monitor_state.parse(stack.output(monitor_state.script(stack.settings)))
    monitoring = stack.settings.monitoring
    expected = f"a look every {monitoring.interval} s, its state and its metrics" if monitoring.enabled else "no timer"
    check.free_of(expected, monitor_state.wrong(told, stack.settings), monitor_state.text(told, stack.settings))
