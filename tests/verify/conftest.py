"""The pytest side of `make verify`: what a check is given, and what it hands back. See atelier/verify.py."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stack import Stack

from atelier.errors import AtelierError, Finding

DOWN = "nothing is open: the gateway has taken the service out; see `make status` and `make doctor`"
TO_ITS_END = "the check runs to its end"
UNEXPECTED = "the check could not go on: see `make status` and `make logs`; if all is well there, the check is at fault"


class CheckFailedError(Exception):
    """What was observed is not what was expected."""


class Recorder:
    """Given to a check as `check`; it must be told at least one thing."""

    def __init__(self) -> None:
        self.expected: list[str] = []
        self.observed: list[str] = []
        self.hint = ""
        self.finished = self.warned = False

    def __call__(self, expected: str, observed: object, holds: bool, hint: str = "") -> None:
        """Record one thing; where it does not hold, the check ends, red, with this alone."""
        if not holds:
            self.expected, self.observed, self.hint, self.finished = [expected], [str(observed)], hint, True
            raise CheckFailedError
        self.expected.append(expected)
        self.observed.append(str(observed))

    def none(self, expected: str, wrong: list[str], hint: str = "") -> None:
        """Record that a list of deviations is empty."""
        self(expected, "; ".join(wrong) or "nothing wrong found", not wrong, hint)

    def warn(self, expected: str, wrong: list[str], hint: str) -> None:
        """As `none`, for what is not right and harms nobody: the check goes on and ends as a warning."""
        self.expected.append(expected)
        self.observed.append("; ".join(wrong) or "nothing wrong found")
        if wrong:
            self.warned, self.hint = True, hint

    def free_of(self, expected: str, findings: list[Finding], observed: str = "nothing wrong found") -> None:
        """Record that nothing was found, or what was, with what to do about exactly that."""
        remedies = "; ".join(dict.fromkeys(finding.remedy for finding in findings))
        self(expected, "; ".join(finding.problem for finding in findings) or observed, not findings, remedies)

    def warn_of(self, expected: str, findings: list[Finding]) -> None:
        """As `free_of`, for what harms nobody yet."""
        remedies = "; ".join(dict.fromkeys(finding.remedy for finding in findings))
        self.warn(expected, [finding.problem for finding in findings], remedies)

    def statuses(self, expected: str, allowed: tuple[int, ...], observed: dict[str, int]) -> None:
        """Record that every request in a table was answered with an allowed status."""
        wrong = {request: status for request, status in observed.items() if status not in allowed}
        told = "; ".join(f"{request}: {status}" for request, status in wrong.items())
        # 503 is the gateway's own: it keeps closed what is down or does not refuse strangers.
        hint = DOWN if wrong and set(wrong.values()) == {503} else ""
        self(expected, told or f"all of {len(observed)} requests", bool(observed) and not wrong, hint)


RECORDER = pytest.StashKey[Recorder]()
CONTEXT = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--context", help="JSON file of atelier.verify; these checks run through `make verify` only")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--context"):
        config.stash[CONTEXT] = json.loads(Path(path).read_text(encoding="utf-8"))
        Path(path).unlink()  # it may hold a password of sudo
    config.addinivalue_line("markers", "check(id): the check of atelier.checks that this test carries out")


def _context(config: pytest.Config) -> dict[str, Any]:
    if CONTEXT not in config.stash:
        raise pytest.UsageError("these checks run through `make verify` only")
    return config.stash[CONTEXT]


def _check_id(item: pytest.Item) -> str:
    marker = item.get_closest_marker("check")
    if marker is None:
        raise pytest.UsageError(f"{item.nodeid} carries no check")
    return str(marker.args[0])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only the selected checks, in the catalogue's order: causes before their consequences."""
    if CONTEXT not in config.stash:
        return  # --collect-only, for the test that compares with the catalogue
    selected = _context(config)["selected"]
    items[:] = sorted(
        (item for item in items if _check_id(item) in selected), key=lambda item: selected.index(_check_id(item))
    )


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[Stack]:
    """The host under test and the clients of its services."""
    with Stack(_context(pytestconfig)) as stack:
        yield stack


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Recorder:
    return request.node.stash.setdefault(RECORDER, Recorder())


@pytest.fixture
def keep(request: pytest.FixtureRequest, stack: Stack) -> Callable[[str, bytes, str], None]:
    """Puts an image beside the report, under a name, with a few words on what it is."""

    def write(name: str, data: bytes, caption: str) -> None:
        _send(request.config, {"image": {**stack.keep(_check_id(request.node), name, data), "caption": caption}})

    return write


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Callable[[str, float, str, str], None]:
    """Adds a number with its unit, and what it is, to the report, to be compared with those of earlier runs."""

    def write(name: str, value: float, unit: str, caption: str) -> None:
        if not math.isfinite(value):
            raise ValueError(f"{name} was measured as {value}")
        metric = {"check": _check_id(request.node), "name": name, "value": value, "unit": unit, "caption": caption}
        _send(request.config, {"metric": metric})

    return write


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Adds a version to the report."""
    return lambda name, version: _send(request.config, {"versions": {name: version}})


@pytest.fixture
def matrix(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """Adds a table of who got what to the report."""
    return lambda table: _send(request.config, {"matrix": {"check": _check_id(request.node), **table}})


def _send(config: pytest.Config, record: dict[str, Any]) -> None:
    line = (json.dumps(record) + "\n").encode()
    while line:  # a long one does not fit into the pipe at once
        line = line[os.write(_context(config)["results"], line) :]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Tell that pytest came to its end by itself."""
    if CONTEXT in session.config.stash:
        _send(session.config, {"finished": int(exitstatus)})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Hand back what the check saw. A test that passes without having recorded anything has failed."""
    report = yield
    decided = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
    if not decided:
        return report
    recorder = item.stash.get(RECORDER, Recorder())
    verdict, hint = report.outcome, recorder.hint
    expected, observed = "; ".join(recorder.expected), "; ".join(recorder.observed)
    steps = list(zip(recorder.expected, recorder.observed, strict=True))
    if report.skipped:
        observed = str(call.excinfo.value) if call.excinfo else "skipped"
    elif report.failed and not recorder.finished:
        error = call.excinfo.value if call.excinfo else None
        known = isinstance(error, AtelierError)
        observed = error.message if known else f"{type(error).__name__}: {error}"
        hint = error.hint if known else UNEXPECTED
        steps.append((TO_ITS_END, observed))
        expected = TO_ITS_END + (f", after: {expected}" if expected else "")
    elif not recorder.expected:
        verdict, observed = "failed", "the check recorded nothing"
    elif report.passed and recorder.warned:
        verdict = "warning"
    _send(
        item.config,
        {
            "id": _check_id(item),
            "verdict": verdict,
            "seconds": time.time() - call.start,
            "expected": expected,
            "observed": observed,
            "hint": hint,
            "steps": steps if len(steps) > 1 else [],
        },
    )
    return report
