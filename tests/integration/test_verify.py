"""How verify turns what pytest does into results: nothing that went wrong may end as passed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest

from atelier import checks, credentials, paths, verify
from atelier.checks import CATALOGUE, Check, existing, required, select
from atelier.errors import AtelierError
from atelier.generate import generate
from atelier.report import Report, judge
from atelier.report.model import NOT_CHOSEN
from atelier.settings import Settings
from atelier.ssh import Completed, Destination
from atelier.target import Target
from atelier.verify import Run

SECRET = "$2b$12$a-secret-of-the-test"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a test file as the checks of verify, each `check("x.y")` in it declared and selected."""

    def execute(source: str, *ids: str, declared: tuple[str, ...] = ()) -> SimpleNamespace:
        folder = tmp_path / "checks"
        folder.mkdir()
        shutil.copy(paths.PROJECT / "tests" / "verify" / "conftest.py", folder)
        (folder / "stack.py").write_text("class Stack: pass\n")  # the clients take a second to import
        (folder / "test_it.py").write_text(
            "import os, pytest\nfrom atelier.errors import AtelierError\n" + textwrap.dedent(source)
        )
        monkeypatch.setattr(verify, "CHECKS", folder)
        known = [Check(id, f"Title {id}", "", "the catalogue's hint") for id in (*ids, *declared)]
        lines: list[str] = []
        run = Run(tmp_path, known, [SECRET], lambda line, style: lines.append(line))
        run.execute({"selected": [check.id for check in known]})
        results = [run.result(check) for check in known]
        return SimpleNamespace(
            run=run,
            lines=lines,
            results={result.id: result for result in results},
            verdict=judge(results, required(known), crashed=run.crashed),
        )

    return execute


def test_what_a_check_recorded_is_reported(run, tmp_path, monkeypatch):
    context, start, modes = tmp_path / "context.json", subprocess.Popen, []

    def note_mode(*arguments, **more):
        modes.append(context.stat().st_mode & 0o777)
        return start(*arguments, **more)

    monkeypatch.setattr(verify.subprocess, "Popen", note_mode)
    it = run(
        """
        @pytest.mark.check("a.good")
        def test_good(check):
            check("401", 401, True)
            check.none("no strays", [])
            check.statuses("refused", (401,), {"/x": 401, "/y": 401})
        """,
        "a.good",
    )
    good = it.results["a.good"]
    assert (good.verdict, good.hint, it.verdict, it.run.crashed) == ("passed", "", "passed", False)
    assert (good.expected, good.observed) == ("401; no strays; refused", "401; nothing wrong found; all of 2 requests")
    assert good.seconds >= 0 and it.lines == [
        f"passed   a.good                           Title a.good ({good.seconds:.1f} s)"
    ]


def test_a_warning_is_no_failure_but_has_a_hint(run):
    source = """
        @pytest.mark.check("a.odd")
        def test_odd(check):
            check.warn("nothing left", ["old.key"], "remove it")
            check("closed", "401", True)
        @pytest.mark.check("a.even")
        def test_even(check):
            check.warn("nothing left", [], "remove it")
        @pytest.mark.check("a.red")
        def test_red(check):
            check.warn("nothing left", ["old.key"], "remove it")
            check("closed", "200", False)
        """
    it = run(source, "a.odd", "a.even", "a.red")
    seen = {id: (result.verdict, result.observed, result.hint) for id, result in it.results.items()}
    assert seen["a.odd"] == ("warning", "old.key; 401", "remove it")
    assert seen["a.even"] == ("passed", "nothing wrong found", "")
    assert seen["a.red"] == ("failed", "200", CATALOGUES)


CATALOGUES = "the catalogue's hint"
UNEXPECTED = "the check could not go on: see `make status` and `make logs`; if all is well there, the check is at fault"
RED = {
    "check('a', 1, True); check('401', 200, False)": ("200", CATALOGUES),
    "check('401', 200, False, 'close it')": ("200", "close it"),
    "check.none('none', ['one', 'two'])": ("one; two", CATALOGUES),
    "check.statuses('refused', (401,), {'/x': 401, '/y': 200})": ("/y: 200", CATALOGUES),
    "check.statuses('refused', (401,), {'/x': 503, '/y': 200})": ("/x: 503; /y: 200", CATALOGUES),
    "check.statuses('refused', (401,), {'/x': 401, '/y': 503})": (
        "/y: 503",
        "nothing is open: the gateway has taken the service out; see `make status` and `make doctor`",
    ),
    "check.statuses('refused', (401,), {})": ("all of 0 requests", CATALOGUES),
    "pass": ("the check recorded nothing", CATALOGUES),
    "check('a', 1, True); raise RuntimeError('half way')": ("RuntimeError: half way", UNEXPECTED),
    "raise AtelierError('no route', 'plug it in')": ("no route", "plug it in"),
    "assert 1 == 2": ("AssertionError: assert 1 == 2", UNEXPECTED),
    f"check('x', 'Bearer {SECRET}', False)": ("Bearer [secret]", CATALOGUES),
}


def test_red(run):
    ids = [f"a.r{number}" for number in range(len(RED))]
    source = "".join(
        f"@pytest.mark.check('{id}')\ndef test_{id[2:]}(check):\n    {body}\n"
        for id, body in zip(ids, RED, strict=True)
    )
    it = run(source, *ids)
    for id, (body, (observed, hint)) in zip(ids, RED.items(), strict=True):
        bad = it.results[id]
        assert (bad.verdict, bad.observed, bad.hint) == ("failed", observed, hint), body
    assert it.verdict == "failed" and not it.run.crashed
    assert SECRET not in "\n".join(it.lines)


GOOD = "@pytest.mark.check('a.good')\ndef test_good(check):\n    check('a', 1, True)\n"


def test_what_did_not_run_or_ran_twice_is_never_passed(run):
    source = (
        GOOD
        + """
@pytest.mark.check('a.busy')
def test_busy(check):
    pytest.skip('at work')
@pytest.mark.check('a.setup')
def test_setup(check, no_such):
    pass
@pytest.mark.check('a.twice')
def test_first(check):
    check('a', 1, True)
@pytest.mark.check('a.twice')
def test_second(check):
    check('a', 1, True)
"""
    )
    it = run(source, "a.good", "a.busy", "a.setup", "a.twice", "a.unwritten")
    expected = {
        "a.good": ("passed", "1"),
        "a.busy": ("skipped", "at work"),
        "a.setup": ("failed", "FixtureLookupError"),
        "a.twice": ("failed", "two tests in tests/verify claim this check"),
        "a.unwritten": ("skipped", "declared, but it did not run"),
    }
    for id, (verdict, why) in expected.items():
        assert it.results[id].verdict == verdict and why in it.results[id].observed, it.results[id]
    for id in ("a.busy", "a.unwritten"):
        assert judge([it.results["a.good"], it.results[id]], {"a.good", id}) == "incomplete"


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        (GOOD + "@pytest.mark.check('a.two')\ndef test_two(check):\n    os._exit(0)\n", "failed"),
        (GOOD + "import no_such_module\n", "failed"),
        (GOOD + "def test_unmarked():\n    pass\n", "failed"),
        ("", "failed"),
        (GOOD + "@pytest.mark.check('a.two')\ndef test_2(check):\n    pytest.exit('', returncode=0)\n", "incomplete"),
    ],
    ids=["crash", "import-error", "unmarked", "nothing-collected", "exit-0"],
)
def test_a_run_that_broke_off_is_never_passed(run, source, verdict):
    it = run(source, "a.good", "a.two")
    assert it.verdict == verdict, it.lines
    assert it.results["a.two"].observed == "declared, but it did not run"


def test_a_failing_teardown_fails_the_run(run):
    source = "@pytest.fixture\ndef undo():\n    yield\n    raise RuntimeError('cannot undo')\n" + GOOD.replace(
        "(check)", "(check, undo)"
    )
    assert run(source, "a.good").verdict == "failed"


def test_order_is_the_catalogues_and_the_rest_is_left_out(run):
    source = "".join(GOOD.replace("good", name) for name in ("c", "b", "a"))
    it = run(source, "a.a", "a.c")
    assert list(it.run.records) == ["a.a", "a.c"] and it.verdict == "passed"


def test_an_interrupt_ends_the_checks_and_undoes_what_they_began(run, tmp_path):
    mark = tmp_path / "undone"
    source = f"""
        import pathlib, time
        @pytest.mark.check("a.good")
        def test_good(check):
            check("a", 1, True)
        @pytest.mark.check("a.slow")
        def test_slow(check):
            try:
                pathlib.Path({str(mark)!r}).write_text("begun")
                time.sleep(60)
            finally:
                pathlib.Path({str(mark)!r}).write_text("undone")
        """

    def interrupt():
        while not mark.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    it = run(source, "a.good", "a.slow", "a.later")
    assert it.run.interrupted and mark.read_text() == "undone"
    assert [result.verdict for result in it.results.values()] == ["passed", "skipped", "skipped"]
    assert it.verdict == "incomplete"


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
@pytest.mark.parametrize("services", [("comfyui", "forge"), ("comfyui",), ("forge",)])
def test_checks_that_exist(profile, services):
    enabled = {name: {"enabled": name in services} for name in ("comfyui", "forge")}
    found = existing(Settings.model_validate({"profile": profile, "services": enabled}))
    assert {check.service for check in found} == {None, *services}
    assert [check.group for check in found] == sorted((check.group for check in found), key=checks.GROUPS.index)


def test_gpu_checks_do_not_exist_without_a_gpu(monkeypatch):
    monkeypatch.setattr(
        checks,
        "CATALOGUE",
        (
            Check("host.x", "", "", ""),
            Check("gpu.seen", "", "", "", profile="gpu"),
            Check("gpu.sums", "", "", "", profile="cuda"),
        ),
    )
    assert [check.id for check in existing(Settings(profile="cpu"))] == ["host.x"]
    assert [check.id for check in existing(Settings(profile="gpu"))] == ["host.x", "gpu.seen", "gpu.sums"]
    assert [check.id for check in existing(Settings(profile="gpu-simulated"))] == ["host.x", "gpu.seen"]


SOME = [
    Check("host.a", "", "", ""),
    Check("host.b", "", "", "", quick=False),
    Check("access.forge.x", "", "", "", optional=True),
    Check("weights.deep", "", "", "", quick=False, run="deep"),
    Check("survival.a", "", "", "", quick=False, run="full"),
]


@pytest.mark.parametrize(
    ("quick", "groups", "ids", "chosen"),
    [
        (False, (), (), ["host.a", "host.b", "access.forge.x"]),
        (True, (), (), ["host.a", "access.forge.x"]),
        (False, ("host",), (), ["host.a", "host.b"]),
        (True, ("host",), (), ["host.a"]),
        (False, (), ("host.b",), ["host.b"]),
        (True, (), ("host.b",), ["host.b"]),
        (False, (), ("access.forge",), ["access.forge.x"]),
        (False, ("access",), ("host.a",), ["host.a", "access.forge.x"]),
        (False, ("survival",), ("weights.deep",), ["weights.deep", "survival.a"]),
        (True, ("survival",), (), []),
    ],
)
def test_selection(quick, groups, ids, chosen):
    assert [check.id for check in select(SOME, quick=quick, groups=groups, ids=ids)] == chosen
    assert required(SOME[:3]) == {"host.a", "host.b"}


@pytest.mark.parametrize(
    ("asked", "further"),
    [
        ({}, []),
        ({"full": True}, ["survival.a"]),
        ({"deep": True}, ["weights.deep"]),
        ({"full": True, "quick": True}, []),
    ],
)
def test_the_long_checks_run_when_asked_for(asked, further):
    always = ["host.a", "access.forge.x"] if asked.get("quick") else ["host.a", "host.b", "access.forge.x"]
    assert [check.id for check in select(SOME, **asked)] == [*always, *further]


@pytest.mark.parametrize(("groups", "ids"), [(("hots",), ()), ((), ("host.c",)), ((), ("hos",))])
def test_a_name_that_fits_nothing_is_an_error(groups, ids):
    with pytest.raises(AtelierError, match="no check or group") as caught:
        select(SOME, quick=False, groups=groups, ids=ids)
    assert "host" in caught.value.hint


def test_each_check_of_the_catalogue_is_written_once_and_none_besides():
    """Collected in a process of its own: tests/verify runs through verify only."""
    code = (
        "import json, sys, pytest\n"
        "class Seen:\n"
        "    def pytest_collection_finish(self, session):\n"
        "        ids = [marker.args[0] for item in session.items for marker in item.iter_markers('check')]\n"
        "        print('IDS' + json.dumps([len(session.items), ids]))\n"
        "folder = sys.argv[1]\n"
        "sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', f'--rootdir={folder}', folder], plugins=[Seen()]))"
    )
    command = [sys.executable, "-c", code, str(paths.PROJECT / "tests" / "verify")]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    output = subprocess.run(command, capture_output=True, text=True, cwd=paths.PROJECT, env=environment).stdout
    found = next(line for line in output.splitlines() if line.startswith("IDS"))
    number, ids = json.loads(found[3:])
    assert number == len(ids), "a test in tests/verify carries no check"
    assert sorted(ids) == sorted(check.id for check in CATALOGUE)


def test_the_catalogue_is_complete():
    assert len({check.id for check in CATALOGUE}) == len(CATALOGUE)
    for check in CATALOGUE:
        assert check.title and check.requirement and check.hint and check.group in checks.GROUPS, check.id
        assert "{" not in check.id + check.title + check.hint, check.id
        for name in check.depends:
            assert any(other.fits(name) for other in CATALOGUE), f"{check.id} depends on {name}, which is no check"


def target(tmp_path, monkeypatch, **answers) -> Target:
    """A target whose host answers with what is given; this computer's folders lie in tmp_path."""
    for name in ("secrets_dir", "reports_dir", "outputs_dir"):
        monkeypatch.setattr(paths, name, lambda host, name=name: tmp_path / name / host)
    ssh = SimpleNamespace(
        connect=lambda: None, destination=SimpleNamespace(host="gpu1"), run=lambda *_, **__: Completed(**answers)
    )
    monkeypatch.setattr(Target, "ssh", lambda self: ssh)
    return Target("gpu1", "host", Destination("gpu1"), Settings())


def test_nothing_to_verify_is_an_error_and_no_report(tmp_path, monkeypatch):
    host = target(tmp_path, monkeypatch, status=1, stdout="", stderr="no such file")
    with pytest.raises(AtelierError, match="no check or group 'hots'"):
        verify.verify(host, groups=["hots"], say=lambda *_: None)
    with pytest.raises(AtelierError, match="no credentials of gpu1 on this computer"):
        verify.verify(host, say=lambda *_: None)
    credentials.save(tmp_path / "secrets_dir" / "gpu1", credentials.generate({}))
    with pytest.raises(AtelierError, match="nothing is deployed here"):
        verify.verify(host, say=lambda *_: None)
    assert not (tmp_path / "reports_dir").exists()


def test_generate_refuses_before_it_connects(tmp_path, monkeypatch):
    host = target(tmp_path, monkeypatch, status=1, stdout="", stderr="")
    text = tmp_path / "note.txt"
    text.write_text("no picture")
    for arguments, words in (
        (("x", None, "gateway"), "SERVICE=gateway is not on this host"),
        (("x", tmp_path / "none.png", "forge"), "none.png: No such file"),
        (("x", text, "comfyui"), "note.txt: not a whole image"),
        (("x", None, "comfyui"), "no credentials of gpu1"),
    ):
        with pytest.raises(AtelierError, match=words):
            generate(host, *arguments, print)


def test_what_several_steps_compared_is_kept_one_by_one(run):
    it = run(
        """
        @pytest.mark.check("a.two")
        def test_two(check):
            check("closed", "401", True)
            check.none("nothing left", [])
        @pytest.mark.check("a.one")
        def test_one(check):
            check("closed", "401", True)
        """,
        "a.two",
        "a.one",
    )
    steps = {id: [(step.expected, step.observed) for step in found.steps] for id, found in it.results.items()}
    assert steps == {"a.two": [("closed", "401"), ("nothing left", "nothing wrong found")], "a.one": []}
    assert all(found.required for found in it.results.values()) and it.run.broke_off == ""


def test_what_was_observed_is_one_line_without_control_characters_or_half_a_secret(run):
    it = run(
        f"""
        @pytest.mark.check("a.odd")
        def test_odd(check):
            check("x", "one\\n  two \\x1b[31m \\u202e three", True)
        @pytest.mark.check("a.long")
        def test_long(check):
            check("x", "y" * 1490 + {SECRET!r} + "z" * 9000, False)
        """,
        "a.odd",
        "a.long",
    )
    assert it.results["a.odd"].observed == "one two ?[31m ? three"
    long = it.results["a.long"].observed
    assert len(long) == 1500 and long.startswith("y" * 1490 + "[secret]zz") and SECRET[:10] not in long
    assert "\x1b" not in "\n".join(it.lines)


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')"])
def test_what_is_no_number_is_no_measure(value, run):
    source = f"""
        @pytest.mark.check("a.slow")
        def test_slow(check, measure):
            check("x", "y", True)
            measure("a.seconds", {value}, "s", "one of them")
        """
    it = run(source, "a.slow")
    assert it.results["a.slow"].verdict == "failed" and "a.seconds was measured as" in it.results["a.slow"].observed
    assert it.run.metrics == []


def test_a_skipped_check_has_its_reason_and_no_remedy_of_another_failure(run):
    it = run("@pytest.mark.check('a.busy')\ndef test_busy(check):\n    pytest.skip('at work')\n", "a.busy")
    assert (it.results["a.busy"].observed, it.results["a.busy"].hint) == ("at work", "")


def test_a_run_ends_with_path_verdict_and_the_line_that_matters(run, tmp_path, monkeypatch):
    it = run(
        GOOD + "@pytest.mark.check('a.red')\ndef test_red(check):\n    check('401', 200, False)\n", "a.good", "a.red"
    )
    monkeypatch.chdir(tmp_path)
    moment = "2026-11-22T08:00:00Z"
    versions = {"profile": "gpu-simulated"}
    whole = {"host": "gpu1", "started": moment, "finished": moment, "versions": versions, "images": [], "doubles": True}
    unchosen = it.results["a.good"].model_copy(
        update={"id": "b", "verdict": "skipped", "observed": NOT_CHOSEN, "required": False}
    )
    report = Report(checks=[*it.results.values(), unchosen], verdict=it.verdict, **whole)
    lines: list[str] = []
    verify._conclude(report, tmp_path / "reports" / "gpu1" / "x", lambda line, _: lines.append(line))
    assert lines == [
        "1 further check not part of this run.",
        "The GPU is simulated: this proves how it is given to containers; nothing is computed on it.",
        "Report: reports/gpu1/x/report.html",
        "Verdict: failed. a.red: 200 -> the catalogue's hint",
    ]
