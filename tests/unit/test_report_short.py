"""The last report in a few lines, as `make status` prints it."""

import json
from datetime import datetime, timezone

import pytest

from atelier.report import CheckResult, Report
from atelier.report.model import NOT_CHOSEN
from atelier.report.short import ago, in_short, last_report

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=timezone.utc)


def result(id: str, verdict: str, observed: str = "seen") -> CheckResult:
    fields = {"group": "a", "title": "T", "seconds": 1, "expected": "", "hint": "do it", "required": True}
    return CheckResult(id=id, verdict=verdict, observed=observed, **fields)


def report(verdict: str, *checks: CheckResult, **more: object) -> Report:
    stamp = "2026-11-22T10:00:00Z"
    return Report(
        host="gpu1",
        started=stamp,
        finished=stamp,
        verdict=verdict,
        doubles=False,
        checks=list(checks),
        **{"versions": {}, "images": [], **more},
    )


@pytest.mark.parametrize(
    ("stamp", "told"),
    [
        ("2026-11-22T11:59:30Z", "just now"),
        ("2026-11-22T12:05:00Z", "just now"),  # a clock that is ahead
        ("2026-11-22T11:59:00Z", "1 minute ago"),
        ("2026-11-22T11:00:01Z", "59 minutes ago"),
        ("2026-11-22T11:00:00Z", "1 hour ago"),
        ("2026-11-21T12:00:01Z", "23 hours ago"),
        ("2026-11-21T12:00:00Z", "1 day ago"),
        ("2026-08-01T12:00:00Z", "113 days ago"),
    ],
)
def test_how_long_ago(stamp, told):
    assert ago(stamp, NOW) == told


@pytest.mark.parametrize(
    ("found", "changed", "lines"),
    [
        (report("passed", result("a", "passed")), "", ["passed, 2 hours ago", "1 check passed"]),
        (
            report("failed", result("a", "failed"), result("b", "skipped", NOT_CHOSEN)),
            "2026-11-22T09:59:59Z",
            ["failed, 2 hours ago", "a: seen -> do it", "1 further check not part of that run"],
        ),
        (
            report("passed", result("a", "passed"), versions={"sources": "double", "profile": "gpu-simulated"}),
            "",
            [
                "passed, 2 hours ago",
                "1 check passed",
                "Doubles stand in for ComfyUI and Forge: this proves the deployment, not the applications.",
                "The GPU is simulated: this proves how it is given to containers; nothing is computed on it.",
            ],
        ),
        (
            report("incomplete", result("a", "skipped", "at work")),
            "2026-11-22T10:00:01Z",
            ["incomplete, 2 hours ago, before the last change", "1 required check did not run, first a: at work"],
        ),
    ],
)
def test_in_short(found, changed, lines):
    assert in_short(found, NOW, changed) == lines


def test_the_last_report_is_that_of_latest(tmp_path):
    for name, verdict in (("20261122T100000Z", "passed"), ("20261122T110000Z", "failed")):
        (tmp_path / name).mkdir()
        document = report(verdict).model_dump(by_alias=True) | {"of": "a newer release"}
        (tmp_path / name / "report.json").write_text(json.dumps(document))
    (tmp_path / "latest").symlink_to("20261122T100000Z")
    found = last_report(tmp_path)
    assert found and found.verdict == "passed"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"verdict": "passed"}', "[" * 100_000])
def test_what_cannot_be_read_is_none(text, tmp_path):
    assert last_report(tmp_path) is None
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "report.json").write_text(text)
    assert last_report(tmp_path) is None
