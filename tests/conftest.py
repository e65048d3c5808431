"""Tests that need a part which this computer lacks are skipped with the reason; under REQUIRE_SANDBOX=1 a skip is a failure."""

import os

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("REQUIRE_SANDBOX") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although REQUIRE_SANDBOX=1: {call.excinfo.value if call.excinfo else 'no reason'}"
