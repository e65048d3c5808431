"""The documented form of report.json is the one that is written, and what was written before can still be read."""

import json

import pytest
from pydantic import ValidationError

from atelier.report import Report
from atelier.report.schema import SCHEMA, schema

OLD = {
    "schema": 1,
    "host": "gpu1",
    "started": "2026-11-21T20:43:00Z",
    "finished": "2026-11-21T20:44:00Z",
    "verdict": "failed",
    "doubles": False,
    "checks": [
        {
            "id": "a.x",
            "group": "a",
            "title": "A",
            "verdict": "failed",
            "seconds": 0.5,
            "expected": "401",
            "observed": "200",
            "hint": "close it",
        }
    ],
    "versions": {},
    "images": [{"check": "a.x", "file": "one.png", "width": 1, "height": 1, "sha256": ""}],
}
"""The fields of the first releases: what every report has, so that others may rely on it."""


def test_the_schema_is_current():
    assert SCHEMA.read_text(encoding="utf-8") == schema(), "run `make docs`"


def test_the_schema_requires_what_reports_always_had():
    document = json.loads(schema())
    assert set(document["required"]) == OLD.keys() - {"schema"}
    assert document["properties"]["schema"]["const"] == 1
    assert set(document["$defs"]["CheckResult"]["required"]) == OLD["checks"][0].keys()
    assert all(found["additionalProperties"] is False for found in (document, *document["$defs"].values()))


def test_a_report_of_an_older_release_is_read():
    report = Report.model_validate(OLD)
    assert (report.metrics, report.matrices, report.command, report.checks[0].steps) == ([], [], "", [])


@pytest.mark.parametrize("name", sorted(OLD.keys() - {"schema"}))
def test_a_report_that_lacks_what_all_have_is_not(name):
    with pytest.raises(ValidationError):
        Report.model_validate({key: value for key, value in OLD.items() if key != name})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_numbers(value):
    with pytest.raises(ValidationError):
        Report.model_validate({**OLD, "metrics": [{"check": "a", "name": "b", "value": value, "unit": "s"}]})
