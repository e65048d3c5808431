"""The report: verdicts, schema, publication, and that no secret gets into any of it."""

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone

import pytest
from pydantic import ValidationError

from atelier.report import (
    AccessMatrix,
    AccessRow,
    CheckResult,
    Metric,
    Report,
    ReportImage,
    Step,
    headline,
    judge,
    redact,
)
from atelier.report.publication import publish
from atelier.report.redaction import REMOVED
from atelier.report.texts import as_junit, as_markdown

NOW = datetime(2026, 11, 21, 20, 44, 0, tzinfo=timezone.utc)
SECRET = "$2b$12$<&p\"a'ss/w+o=rd\\é"


def result(id: str, verdict: str, observed: str = "seen", **more) -> CheckResult:
    return CheckResult(
        id=id,
        group=id.split(".")[0],
        title=f"Title of {id}",
        verdict=verdict,
        seconds=0.5,
        expected="wanted",
        observed=observed,
        hint="do it",
        **more,
    )


def report(*checks: CheckResult, verdict: str = "passed", **more) -> Report:
    fields = {"host": "gpu1", "started": "2026-11-21T20:43:00Z", "finished": "2026-11-21T20:44:00Z", "doubles": False}
    return Report(
        **{**fields, "verdict": verdict, "checks": list(checks), "versions": {"kernel": "6.1"}, "images": [], **more}
    )


@pytest.mark.parametrize(
    ("verdicts", "required", "crashed", "verdict"),
    [
        ({"a": "passed"}, "a", False, "passed"),
        ({"a": "passed", "b": "skipped"}, "a", False, "passed"),
        ({"a": "warning"}, "a", False, "passed"),
        ({"a": "passed", "b": "skipped"}, "ab", False, "incomplete"),
        ({"a": "passed"}, "ab", False, "incomplete"),  # declared, never ran
        ({"a": "skipped", "b": "failed"}, "ab", False, "failed"),
        ({"a": "passed", "b": "failed"}, "a", False, "failed"),  # optional, but red
        ({"a": "passed"}, "a", True, "failed"),
        ({}, "", False, "failed"),  # nothing ran
        ({"a": "skipped"}, "", False, "failed"),
        ({}, "a", False, "incomplete"),
    ],
)
def test_verdict(verdicts, required, crashed, verdict):
    checks = [result(id, value) for id, value in verdicts.items()]
    assert judge(checks, set(required), crashed=crashed) == verdict


LINES = [
    ({"a.x": "passed", "b.y": "failed", "b.z": "failed"}, "failed", "b.y (and 1 more): seen -> do it"),
    (
        {"generation.comfyui.checkpoint": "failed", "generation.comfyui.smoke": "failed"},
        "failed",
        "generation.comfyui.smoke (and 1 more): seen -> do it",
    ),
    ({"a.x": "skipped", "b.y": "passed"}, "incomplete", "1 required check did not run, first a.x: seen"),
    ({"a.x": "skipped", "b.y": "skipped"}, "incomplete", "2 required checks did not run, first a.x: seen"),
    ({"a.x": "passed", "b.y": "warning"}, "passed", "1 check passed, 1 warning"),
    ({"a.x": "passed", "b.y": "passed"}, "passed", "2 checks passed"),
    ({}, "failed", "No check ran"),
]


@pytest.mark.parametrize(("verdicts", "verdict", "line"), LINES)
def test_the_line_that_matters(verdicts, verdict, line):
    checks = [result(id, seen, required=True) for id, seen in verdicts.items()]
    assert headline(report(*checks, verdict=verdict)) == line


def test_the_line_that_matters_of_a_run_that_broke_off():
    assert headline(report(verdict="failed", broke_off="pytest ended with 2 and 0 results")) == (
        "The run broke off: pytest ended with 2 and 0 results; run it again"
    )
    skipped = result("a.x", "skipped", "interrupted before its turn", required=True)
    assert headline(report(skipped, verdict="incomplete", broke_off="interrupted")) == (
        "Interrupted: 1 required check did not run, first a.x: interrupted before its turn"
    )


def test_the_line_that_matters_is_one_line():
    line = headline(report(result("a.x", "failed", "one\ntwo " + "long " * 400), verdict="failed"))
    assert line.startswith("a.x: one two long") and line.endswith("… -> do it") and len(line) < 300


def test_an_optional_check_that_was_skipped_is_not_told_as_missing():
    line = headline(report(result("a.x", "skipped"), result("b.y", "skipped", required=True), verdict="incomplete"))
    assert line == "1 required check did not run, first b.y: seen"


def test_fields_of_the_contract(tmp_path):
    image = ReportImage(check="a.x", file="one.png", width=96, height=64, sha256="0" * 64)
    (tmp_path / "one.png").write_bytes(b"image")
    place = publish(report(result("a.x", "passed"), images=[image]), tmp_path / "gpu1", [], tmp_path, now=lambda: NOW)
    document = json.loads((place / "report.json").read_text())
    assert list(document) == [
        "schema",
        "host",
        "started",
        "finished",
        "verdict",
        "doubles",
        "checks",
        "versions",
        "images",
        "matrices",
        "metrics",
        "command",
        "broke_off",
        "deploying",
    ]
    assert document["schema"] == 1 and document["verdict"] == "passed" and document["doubles"] is False
    assert list(document["checks"][0]) == [
        "id",
        "group",
        "title",
        "verdict",
        "seconds",
        "expected",
        "observed",
        "hint",
        "requirement",
        "required",
        "steps",
    ]
    assert (place / "one.png").read_bytes() == b"image"
    assert Report.model_validate(document)
    for broken in ({"verdict": "fine"}, {"schema": 2}, {"more": 1}):
        with pytest.raises(ValidationError):
            Report.model_validate({**document, **broken})


def test_published_whole_under_a_utc_stamp(tmp_path):
    place = publish(report(result("a", "passed")), tmp_path, [], now=lambda: NOW)
    assert place == tmp_path / "20261121T204400Z"
    second = publish(report(result("a", "failed"), verdict="failed"), tmp_path, [], now=lambda: NOW)
    assert second == tmp_path / "20261121T204401Z", "a second run within the second has a place of its own"
    latest = tmp_path / "latest"
    assert latest.is_symlink() and str(latest.readlink()) == second.name
    assert json.loads((latest / "report.json").read_text())["verdict"] == "failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20261121T204400Z", "20261121T204401Z", "latest"]


def test_a_publication_that_fails_leaves_nothing(tmp_path):
    image = ReportImage(check="a", file="missing.png", width=1, height=1, sha256="")
    with pytest.raises(FileNotFoundError):
        publish(report(result("a", "passed"), images=[image]), tmp_path / "r", [], tmp_path)
    assert list((tmp_path / "r").iterdir()) == []


SPELLINGS = {
    "itself": SECRET,
    "JSON": json.dumps(SECRET)[1:-1],
    "JSON within JSON": json.dumps(json.dumps(SECRET))[3:-3],
    "Python": repr(SECRET),
    "base64": "JDJiJDEyJDwmcCJhJ3NzL3crbz1yZFzDqQ==",
    "an URL": "%242b%2412%24%3C%26p%22a%27ss%2Fw%2Bo%3Drd%5C%C3%A9",
    "an URL in lower case": "%242b%2412%24%3c%26p%22a%27ss%2fw%2bo%3drd%5c%c3%a9",
    "HTML": "$2b$12$&lt;&amp;p&quot;a&#x27;ss/w+o=rd\\é",
    "HTML of Jinja": "$2b$12$&lt;&amp;p&#34;a&#39;ss/w+o=rd\\é",
    "HTML text": "$2b$12$&lt;&amp;p\"a'ss/w+o=rd\\é",
    "compose": "$$2b$$12$$<&p\"a'ss/w+o=rd\\é",
    "a shell": "'$2b$12$<&p\"a'\"'\"'ss/w+o=rd\\é'",
}


def leaks(text: str) -> bool:
    """Whether the middle of the secret is in it, in whatever spelling."""
    return any(
        re.search(r"p\W{1,9}(quot;|34;)?a\W{1,6}(x27;|39;|27|apos;)?ss", seen) or "JDJiJDEy" in seen or "%242b" in seen
        for seen in (text, html.unescape(text))
    )


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_no_secret_in_any_of_it(spelling, tmp_path):
    assert leaks(spelling), "the test itself would not see it"
    text = f"before {spelling} after"
    step = Step(expected=text, observed=text)
    check = result("a.0", "failed", text).model_copy(
        update={"expected": text, "hint": text, "title": text, "requirement": text, "steps": [step, step]}
    )
    matrix = AccessMatrix(check="a.0", columns=[text], rows=[AccessRow(request=text, cells="401 -")])
    planted = report(
        *(check, check.model_copy(update={"id": "a.1", "verdict": "warning"})),
        verdict="failed",
        versions={"image": spelling, spelling: "x"},
        matrices=[matrix],
        metrics=[Metric(check="a.0", name=spelling, value=1, unit=spelling)],
        command=text,
        broke_off=text,
    )
    place = publish(planted, tmp_path, [SECRET, "short"], now=lambda: NOW)
    assert len(list(place.iterdir())) == 5
    for file in place.iterdir():
        written = file.read_text()
        assert REMOVED in written and not leaks(written), file
    before, removed, after = "before ", re.escape(REMOVED), " after"
    assert re.search(f"{before}'?{removed}'?{after}", (place / "report.md").read_text())


def test_what_is_too_short_to_be_a_password_stays_readable():
    assert redact({"a": ["short one"]}, ["short"]) == {"a": ["short one"]}


@pytest.mark.parametrize("verdict", ["failed", "incomplete"])
def test_junit_is_red_where_no_check_is_and_the_run_was_not_good(verdict):
    checks = [result("a.x", "passed"), result("b.z", "skipped", "busy")]
    suite = ElementTree.fromstring(as_junit(report(*checks, verdict=verdict)))  # noqa: S314 - our own text
    assert suite.get("errors") == "1" and suite.get("tests") == "3"
    assert suite.find("testcase[@name='verdict']/error").get("message").startswith(f"{verdict}: ")
    good = ElementTree.fromstring(as_junit(report(checks[0])))  # noqa: S314 - our own text
    assert good.get("errors") is None and good.find("testcase/error") is None


def test_junit_tells_of_stand_ins():
    suite = ElementTree.fromstring(as_junit(report(result("a", "passed"), versions={"sources": "double"})))  # noqa: S314
    assert suite.find("properties/property[@name='caveat']").get("value").startswith("Doubles stand in")


def test_junit_is_well_formed(tmp_path):
    checks = [
        result("a.x", "passed"),
        result("a.y", "failed", "odd \x1b[31m\x00 <&> output"),
        result("b.z", "skipped", "busy"),
    ]
    place = publish(report(*checks, verdict="failed"), tmp_path, [], now=lambda: NOW)
    suite = ElementTree.parse(place / "junit.xml").getroot()  # noqa: S314 - our own file
    assert {name: suite.get(name) for name in ("tests", "failures", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
    }
    assert suite.find("testcase[@name='b.z']/skipped").get("message") == "busy"
    assert "<&>" in suite.find("testcase[@name='a.y']/failure").text


@pytest.mark.parametrize(
    "deployed,said",
    [
        ({"sources": "double", "profile": "cpu"}, ["Doubles stand in"]),
        ({"sources": "upstream", "profile": "gpu-simulated"}, ["GPU is simulated"]),
        ({"sources": "double", "profile": "gpu-simulated"}, ["Doubles stand in", "GPU is simulated"]),
        ({"sources": "upstream", "profile": "gpu"}, []),
    ],
)
def test_markdown_says_what_is_not_the_real_thing(deployed, said):
    text = as_markdown(report(versions=deployed))
    assert [phrase for phrase in ("Doubles stand in", "GPU is simulated") if phrase in text] == said


def test_markdown_survives_pipes():
    text = as_markdown(report(result("a.x", "failed", "one | two\nthree"), verdict="failed"))
    assert text.startswith("# gpu1: failed\n\na.x: one | two three -> do it\n")
    assert "| one \\| two three |" in text


@pytest.mark.parametrize(
    "hostile", ["![x](https://a.example/x.png)", "[x](javascript:alert(1))", "[x][y]", "<script>alert(1)</script>"]
)
def test_nothing_from_a_host_is_active_in_markdown(hostile):
    checks = [result("a.x", "failed", hostile), result("a.y", "warning", hostile)]
    text = as_markdown(report(*checks, verdict="failed", versions={hostile: hostile}))
    assert not re.search(r"\]\(https|\]\(java|\]\[y|(?<!\\)<script", text) and "](" not in text


def test_markdown_names_causes_before_what_follows_and_what_did_not_run():
    checks = [
        result("generation.comfyui.checkpoint", "failed"),
        result("generation.comfyui.smoke", "failed"),
        result("a.warned", "warning"),
        result("a.missing", "skipped", required=True),
        result("a.other", "skipped"),
    ]
    text = as_markdown(report(*checks, verdict="failed"))
    assert re.findall(r"^## .*", text, re.M) == [
        "## failed: Title of generation.comfyui.smoke",
        "## failed: Title of generation.comfyui.checkpoint",
        "## warning: Title of a.warned",
        "## not run: Title of a.missing",
        "## Checks",
        "## Versions",
    ]
