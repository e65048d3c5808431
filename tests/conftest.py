"""Runs the tests side by side, and tells of the long ones as they end.

Tests that need a part which this computer lacks are skipped with the reason; under REQUIRE_SANDBOX=1 a skip is a failure.
"""

import contextlib
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import side_by_side

if sys.dont_write_bytecode:
    # Who wants none beside the sources: elsewhere, since compiling takes longer than all else before the first test.
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode = False

LONG = 5
"""Seconds from which on a test is told of."""
ENDING = 120
"""Seconds at most until a process has ended."""


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """In as many processes as somebody said (-n), or as are right; in one where somebody wants to look on."""
    if not config.pluginmanager.hasplugin("xdist"):  # -p no:xdist
        return
    option = config.option
    if is_worker(config) or option.dist != "no" or option.tx:
        return
    if option.numprocesses is None and not option.usepdb and option.capture != "no":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**30
        option.numprocesses = side_by_side.processes(config.args, len(os.sched_getaffinity(0)), memory)
    option.dist = "loadfile"  # also with -n: tests of a file build on each other
    option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """After Ctrl-C each process removes the machines that it made, for which pytest-xdist leaves it 5 s."""
    distributed = session.config.pluginmanager.getplugin("dsession")
    if distributed and exitstatus == pytest.ExitCode.INTERRUPTED:
        for process in list(distributed._active_nodes):
            with contextlib.suppress(Exception):  # it ended with an error, or not in time
                process.channel.waitclose(ENDING)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return side_by_side.group(nodeid.partition("::")[0])

    return Groups(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: side_by_side.place(item.path))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("REQUIRE_SANDBOX") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although REQUIRE_SANDBOX=1: {call.excinfo.value if call.excinfo else 'no reason'}"


@pytest.hookimpl(trylast=True)  # when there is a terminal reporter
def pytest_configure(config: pytest.Config) -> None:
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):  # the processes beside the first have none
        config.pluginmanager.register(Pace(terminal))


class Pace:
    """Tells how long tests take: of each long one as it ends, of the files at the end."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal
        self.phases: dict[str, list[pytest.TestReport]] = defaultdict(list)
        self.files: Counter[str] = Counter()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.phases[report.nodeid].append(report)
        if report.when != "teardown":
            return
        phases = self.phases.pop(report.nodeid)
        seconds = sum(phase.duration for phase in phases)
        self.files[report.nodeid.partition("::")[0]] += seconds
        if seconds < LONG:
            return
        outcome = "failed" if any(phase.failed for phase in phases) else phases[-2].outcome
        parts = ", ".join(f"{phase.when} {phase.duration:.0f} s" for phase in phases if phase.duration >= LONG)
        if self.terminal._width_of_current_line:
            self.terminal.currentfspath = None
            self.terminal.line("")
        self.terminal.write_line(f"{outcome}  {report.nodeid}  {seconds:.0f} s ({parts})")

    def pytest_terminal_summary(self) -> None:
        long = [(file, seconds) for file, seconds in self.files.most_common() if seconds >= LONG]
        if long:
            self.terminal.section("seconds of each file")
        for file, seconds in long:
            self.terminal.write_line(f"{seconds:6.0f}  {file}")
