"""Past runs: which are read, which are compared with, and what was measured in them."""

import json
from pathlib import Path

import pytest

from atelier.history import READ, SAMPLES, Changes, Moved, PastReport, changes, comparable, measured, past_reports
from atelier.report import Report


def document(verdict: str = "passed", metrics: list[dict[str, object]] | None = None, **more: object) -> dict:
    check = {"id": "a.x", "group": "a", "title": "X", "verdict": verdict, "seconds": 1, "expected": "", "observed": ""}
    return {
        "schema": 1,
        "host": "gpu1",
        "started": "2026-11-21T20:43:00Z",
        "finished": "2026-11-21T20:44:00Z",
        "verdict": verdict,
        "doubles": False,
        "checks": [{**check, "hint": ""}],
        "versions": {"profile": "gpu", "sources": "upstream"},
        "images": [],
        "metrics": metrics or [],
        **more,
    }


def metric(value: float, name: str = "a.seconds", check: str = "a.x") -> dict[str, object]:
    return {"check": check, "name": name, "value": value, "unit": "s"}


def put(directory: Path, stamp: str, text: str | dict) -> None:
    folder = directory / stamp
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(text if isinstance(text, str) else json.dumps(text))


def past(*documents: dict) -> list[PastReport]:
    return [PastReport.model_validate({**one, "name": str(number)}) for number, one in enumerate(documents)]


def test_runs_are_read_oldest_first_and_once(tmp_path):
    for stamp in ("20261122T000000Z", "20261121T235959Z", "20261121T000000Z"):
        put(tmp_path, stamp, document())
    (tmp_path / "latest").symlink_to("20261122T000000Z")
    (tmp_path / "20261123T000000Z").symlink_to("20261122T000000Z")
    for name in ("browser", ".draft-x1", "20261122T000000Z.old"):
        put(tmp_path, name, document())
    names = [report.name for report in past_reports(tmp_path)]
    assert names == ["20261121T000000Z", "20261121T235959Z", "20261122T000000Z"]


def test_a_host_without_runs_has_none(tmp_path):
    assert past_reports(tmp_path / "never") == []


DAMAGED = {
    "half": json.dumps(document())[:200],
    "empty": "",
    "list": "[]",
    "null": "null",
    "number": "7",
    "no-verdict": {key: value for key, value in document().items() if key != "verdict"},
    "odd-verdict": document("fine"),
    "checks-null": document(checks=None),
    "not-finite": json.dumps(document(metrics=[metric(float("nan"))])),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_what_cannot_be_read_is_left_out(text, tmp_path):
    put(tmp_path, "20261121T000000Z", text)
    put(tmp_path, "20261121T000001Z", document())
    (tmp_path / "20261121T000002Z").mkdir()
    (tmp_path / "20261121T000003Z" / "report.json").mkdir(parents=True)
    (tmp_path / "20261121T000004Z").mkdir()
    (tmp_path / "20261121T000004Z" / "report.json").write_bytes(b"\xff\xfe{")
    assert [report.name for report in past_reports(tmp_path)] == ["20261121T000001Z"]


def test_older_and_newer_releases_are_read(tmp_path):
    oldest = {key: value for key, value in document().items() if key not in ("metrics", "images")}
    put(tmp_path, "20261121T000000Z", oldest)
    put(tmp_path, "20271121T000000Z", document(schema=9, weather="fine", metrics=[{**metric(1), "error": 0.1}]))
    assert [len(report.metrics) for report in past_reports(tmp_path)] == [0, 1]


def test_only_the_newest_are_read(tmp_path):
    for number in range(READ + 2):
        put(tmp_path, f"20261121T{number:06}Z", document())
    found = past_reports(tmp_path)
    assert len(found) == READ and found[-1].name == f"20261121T{READ + 1:06}Z"


def test_measured_runs_are_read_however_many_quick_ones_came_after(tmp_path):
    names = [f"20261121T{number:06}Z" for number in range(READ + 6)]
    for name in names:
        put(tmp_path, name, document())
        (tmp_path / name / "comfyui-smoke.png").touch()
    for name in (names[1], names[4], names[-1]):
        (tmp_path / name / "comfyui-checkpoint-0.png").touch()
    assert [report.name for report in past_reports(tmp_path)] == [names[1], names[4], *names[6:]]


@pytest.mark.parametrize(
    ("doubles", "versions", "alike"),
    [
        (False, {"profile": "gpu", "sources": "upstream"}, True),
        (False, {"profile": "gpu", "sources": "upstream", "kernel": "7"}, True),
        (True, {"profile": "gpu", "sources": "upstream"}, False),
        (False, {"profile": "cpu", "sources": "upstream"}, False),
        (False, {"profile": "gpu", "sources": "double"}, False),
        (False, {}, False),
    ],
)
def test_comparable(doubles, versions, alike):
    found = comparable(past(document(versions={"profile": "gpu", "sources": "upstream"})), doubles, versions)
    assert bool(found) is alike


def test_runs_of_before_profiles_are_comparable_with_each_other():
    assert comparable(past(document(versions={})), False, {"kernel": "6.1"})


def test_measured_while_the_check_passed():
    runs = past(
        document(metrics=[metric(1.5), metric(800, "a.memory")]),
        document("failed", metrics=[metric(99)]),
        document(metrics=[metric(2.5), metric(7, "b.seconds", check="b.gone")]),
        document(),
    )
    assert measured(runs) == {"a.seconds": [1.5, 2.5], "a.memory": [800]}
    assert measured([]) == {}


def test_measures_are_the_newest_ones():
    runs = past(*(document(metrics=[metric(number)]) for number in range(SAMPLES + 3)))
    assert measured(runs) == {"a.seconds": [float(number) for number in range(3, SAMPLES + 3)]}


def run(verdicts: dict[str, str], **more: object) -> dict:
    checks = [
        {**document()["checks"][0], "id": id, "title": f"Title {id}", "verdict": verdict}
        for id, verdict in verdicts.items()
    ]
    return document(checks=checks, **more)


def changed(now: dict, *earlier: dict) -> Changes:
    runs = [
        PastReport.model_validate({**one, "name": str(day), "finished": f"2026-11-{day:02}T00:00:00Z"})
        for day, one in enumerate(earlier, 1)
    ]
    found = changes(Report.model_validate(now), runs)
    assert found and found.since is runs[-1]
    return found


@pytest.mark.parametrize(
    ("earlier", "now", "moved", "red_since"),
    [
        (["passed"], "passed", None, None),
        (["passed"], "failed", "passed", None),
        (["failed"], "passed", "failed", None),
        (["warning"], "passed", "warning", None),
        (["failed"], "failed", None, "2026-11-01T00:00:00Z"),
        (["failed", "passed", "failed", "failed"], "failed", None, "2026-11-03T00:00:00Z"),
        (["failed", "skipped"], "failed", None, "2026-11-01T00:00:00Z"),  # a short run in between says nothing
        (["failed", "skipped"], "passed", "failed", None),
        (["passed", "skipped", "skipped"], "failed", "passed", None),
        (["passed", "failed"], "skipped", None, None),
        (["skipped"], "failed", None, None),  # it never ran
    ],
)
def test_a_check_is_compared_with_when_it_last_ran(earlier, now, moved, red_since):
    found = changed(run({"a.x": now}), *(run({"a.x": verdict}) for verdict in earlier))
    ran = max((day for day, verdict in enumerate(earlier, 1) if verdict != "skipped"), default=0)
    then = f"2026-11-{ran:02}T00:00:00Z"
    assert found.moved == ([Moved("a.x", "Title a.x", moved, now, then)] if moved else [])
    assert found.red_since == ({"a.x": red_since} if red_since else {})
    assert found.none() is (moved is None)
    assert [one.id for one in found.newly("failed")] == (["a.x"] if moved and now == "failed" else [])


def test_checks_that_came_and_went_since_the_last_run():
    found = changed(run({"a": "passed", "b": "passed"}), run({"b": "passed"}), run({"a": "passed", "c": "skipped"}))
    assert ([check.id for check in found.added], [check.id for check in found.gone]) == (["b"], ["c"])
    assert not found.none()


def test_versions_are_compared_with_when_they_were_last_known():
    earlier = [run({}, versions={"kernel": "1", "Forge": "a"}), run({}, versions={"kernel": "2"})]
    found = changed(run({}, versions={"kernel": "2", "Forge": "b", "docker": "9"}), *earlier)
    assert found.versions == {"Forge": "a"}
    assert changed(run({}, versions={"kernel": "3"}), *earlier).versions == {"kernel": "2"}


def test_nothing_to_compare_with():
    assert changes(Report.model_validate(run({"a": "failed"})), []) is None
