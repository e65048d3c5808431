"""A whole run of verify with nothing behind it: neither a host nor pytest."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atelier import credentials, paths, recorded, verify
from atelier.checks import existing
from atelier.report.short import last_report
from atelier.settings import Settings, build_settings
from atelier.ssh import Completed, Destination
from atelier.target import Target

DEPLOYED = {"schema": 1, "release": "1", "services": {}, "sources": "upstream", "profile": "cpu"}


class Host:
    """Answers what a run asks besides its checks. deploying: who has a deploy at work there."""

    deploying = ""

    destination = SimpleNamespace(host="gpu1")
    _sudo: tuple[str, ...] = ()
    _sudo_password = ""

    def connect(self) -> None:
        """It is there."""

    def run(self, script: str, **_: object) -> Completed:
        if "flock" in script:
            return Completed(0, self.deploying, "")
        documents = {
            "config": "/opt/atelier",
            "place": "/srv/atelier/state",
            "instance": "i",
            "schema": "2",
            "deployed": json.dumps(DEPLOYED),
        }
        told = "".join(f"{recorded.PREFIX}{name}\n{text}\n" for name, text in documents.items())
        return Completed(0, told if "deployed.json" in script else "", "")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    for name in ("secrets_dir", "reports_dir"):
        monkeypatch.setattr(paths, name, lambda host, name=name: tmp_path / name / host)
    monkeypatch.setattr(credentials, "BCRYPT_COST", 4)
    credentials.save(tmp_path / "secrets_dir" / "gpu1", credentials.generate({}))
    here = Host()
    monkeypatch.setattr(Target, "ssh", lambda self: here)

    @contextlib.contextmanager
    def services(*_: object) -> Iterator[verify.Reach]:
        yield verify.Reach({}, None)

    monkeypatch.setattr(verify, "services", services)
    return Target("gpu1", "host", Destination("gpu1"), Settings(profile="cpu"))


def pytest_hands_back(
    monkeypatch: pytest.MonkeyPatch, *records: dict[str, Any], interrupted: bool = False, meanwhile: object = None
) -> None:
    def execute(run: verify.Run, context: dict[str, Any]) -> None:
        if callable(meanwhile):
            meanwhile()
        for record in records:
            run._take({"seconds": 1.0, "expected": "401", "hint": "close it", **record})
        run.interrupted = interrupted
        run.broke_off = "interrupted" if interrupted else ""

    monkeypatch.setattr(verify.Run, "execute", execute)


CHECK = existing(Settings(profile="cpu"))[0].id
GOOD = {"id": CHECK, "verdict": "passed", "observed": "401"}
RED = {"id": CHECK, "verdict": "failed", "observed": "200"}


@pytest.mark.parametrize(("record", "verdict"), [(GOOD, "incomplete"), (RED, "failed")])
def test_an_interrupted_run_is_published_and_ends_more_than_itself(
    record: dict[str, Any], verdict: str, host: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest_hands_back(monkeypatch, record, interrupted=True)
    said: list[str] = []
    with pytest.raises(verify.InterruptedRun) as ended:
        verify.verify(host, say=lambda line, style: said.append(line))
    report = last_report(paths.reports_dir("gpu1"))
    assert report and (report.verdict, report.broke_off) == (verdict, "interrupted")
    assert ended.value.verdict == verdict and said[-1].startswith(f"Verdict: {verdict}. ")


def test_an_interrupted_look_is_not_published(host: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest_hands_back(monkeypatch, GOOD, interrupted=True)
    with pytest.raises(KeyboardInterrupt):
        verify.verify(host, say=lambda *_: None, publishes=False)
    assert not paths.reports_dir("gpu1").exists()


def test_no_secret_of_this_computer_is_published(host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("hf_of-the-file\n")
    settings = {"models": {"token_file": str(token)}, "proxy": "http://me:of-the-proxy@10.0.0.1:3128"}
    host = replace(host, settings=build_settings([("test", {"profile": "cpu", **settings})]))
    monkeypatch.setattr(Host, "_sudo_password", "of-the-operator")
    monkeypatch.setenv("HF_TOKEN", "hf_of-the-environment")
    former = paths.secrets_dir("gpu1") / "former.yml"
    former.write_text("password: of-before-the-rotation\n")
    secrets = ("hf_of-the-file", "of-the-proxy", "of-the-operator", "hf_of-the-environment", "of-before-the-rotation")
    pytest_hands_back(monkeypatch, {**RED, "observed": f"refused: {' '.join(secrets)}"})
    said: list[str] = []
    verify.verify(host, say=lambda line, style: said.append(line))
    files = [file for file in (paths.reports_dir("gpu1") / "latest").iterdir() if file.is_file()]
    texts = {"terminal": "\n".join(said), **{file.name: file.read_text() for file in files}}
    assert len(texts) == 5 and [(name, text) for name, text in texts.items() if any(s in text for s in secrets)] == []


def at_work(target: Target, who: str) -> None:
    target.ssh().deploying = who  # type: ignore[attr-defined]


@pytest.mark.parametrize("begins", ["before", "meanwhile", "never"])
def test_a_deploy_at_work_is_told(begins: str, host: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    if begins == "before":
        at_work(host, "me on desk")
    other = "me on desk" if begins == "meanwhile" else ""
    pytest_hands_back(monkeypatch, RED, meanwhile=lambda: at_work(host, other))
    said: list[str] = []
    verify.verify(host, say=lambda line, style: said.append(line))
    sentence = "A deploy was at work on this host meanwhile (me on desk): what is red may be due to it; verify again afterwards."
    assert (said[0] == "A deploy is at work on this host: me on desk.") == (begins == "before")
    assert (sentence in said) == (begins != "never")
    report = last_report(paths.reports_dir("gpu1"))
    assert report and report.deploying == ("" if begins == "never" else "me on desk")
    for name in ("report.html", "report.md", "junit.xml"):
        assert (sentence in (paths.reports_dir("gpu1") / "latest" / name).read_text()) == (begins != "never"), name
