"""Everyday commands: what status and logs tell of the transfer of weights."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from test_transfer import TOLD

from atelier import operate, paths, recorded
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.settings import Settings
from atelier.ssh import Completed, Destination, Ssh
from atelier.target import Target
from atelier.tree import File

TARGET = Target("box", "host", Destination("box", "me"), Settings(profile="cpu"), "HOST=me@box")
CONTAINERS = "".join(
    f"{name}\tatelier/{name}:1\tUp 2 hours (healthy)\n" for name in ("comfyui-qwen", "forge-turbo", "gateway")
)
AUDIT = '{"time": "2026-11-22T01:02:03Z", "who": "me@desk", "commit": "abc", "result": "weights fetched"}\n'


def said(monkeypatch: pytest.MonkeyPatch, command: object, *arguments: object, output: str) -> tuple[list[str], str]:
    """What a command printed, and the script that it ran on the host."""
    scripts: list[str] = []

    def run(_: Ssh, script: str, **__: object) -> Completed:
        scripts.append(script)
        return Completed(0, output, "")

    monkeypatch.setattr(Ssh, "run", run)
    log = io.StringIO()
    assert command(TARGET, Narrator(Console(file=log, width=300)), *arguments) == 0
    return log.getvalue().splitlines(), "".join(scripts)


@pytest.mark.parametrize(
    ("told", "lines"),
    [
        ("done", []),
        ("half way", ["  weights          on the way: 1 of 2 files, 5.00 of 10.00 GB, 50.0 MB/s, 0:01:40 left"]),
        (
            "the disk is full",
            [
                "  weights          on the way: 0 of 1 files, 0.00 of 0.00 GB; loras/b: waiting for space",
                "                   -> make room on the disk of /srv/atelier/models; it goes on by itself",
            ],
        ),
        (
            "it could not begin",
            [
                "  weights          not all are there: /srv: make room for 3.00 GB",
                "                   -> mend that, then: make models-fetch HOST=me@box",
            ],
        ),
        (
            "stopped by somebody",
            [
                "  weights          the transfer was stopped before it was done",
                "                   -> make models-fetch HOST=me@box goes on with it",
            ],
        ),
    ],
)
def test_status_tells_of_a_transfer(told: str, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    output = f"{CONTAINERS}::\n  50G   99G /srv\n::\n{AUDIT}::\n::\n1000\n::\n{TOLD[told][0]}"
    printed, script = said(monkeypatch, operate.status, output=output)
    at = next(number for number, line in enumerate(printed) if line.startswith("  disk"))
    assert printed[3:at] == lines and printed[at].endswith("50G 99G /srv (free, size, mount)")
    assert printed[at + 2] == "  last change      2026-11-22T01:02:03Z by me@desk, commit abc, weights fetched"
    assert "atelier-weights.service" in script and "/run/atelier-weights/progress.json" in script


def test_images_are_copied_from_where_the_host_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    elsewhere = replace(TARGET, settings=TARGET.settings.model_copy(update={"outputs_dir": "/archive/images"}))
    monkeypatch.setattr(f"{__name__}.TARGET", elsewhere)
    monkeypatch.setattr(paths, "outputs_dir", lambda name: tmp_path)
    printed, script = said(monkeypatch, operate.fetch_outputs, output="")
    assert "cd /archive/images && find" in script and "0 of 0 files" in "".join(printed)


def test_status_tells_of_data_that_lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = TARGET.settings.model_copy(update={"data_root": "/data/a"})
    (anchor,) = (entry for entry in recorded.anchor(moved, "i") if isinstance(entry, File))
    documents = f"\n{recorded.PREFIX}anchor\n{anchor.content.decode()}\n{recorded.PREFIX}place\n/data/a/state\n"
    output = f"{CONTAINERS}::\n  50G   99G /srv\n::\n{AUDIT}::\n{documents}::\n1000\n::\n{TOLD['done'][0]}"
    printed, script = said(monkeypatch, operate.status, output=output)
    assert "  the data of this host lies in /data/a; the settings say /srv/atelier" in printed
    assert "`make reprovision` moves it there" in "\n".join(printed)
    assert '"$state"/audit.log' in script and '"$state"/monitor/state.json' in script


def test_logs_of_the_weights_are_those_of_their_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    printed, script = said(monkeypatch, operate.logs, "weights", 20, output="a line\n")
    assert (
        printed == ["--- weights", "a line"] and "journalctl -u atelier-weights.service" in script and " 20 " in script
    )
    assert "docker" not in script


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_the_weights_are_no_service_to_stop(verb: str) -> None:
    with pytest.raises(AtelierError, match="no such service"):
        operate.compose(TARGET, Narrator(Console(file=io.StringIO())), verb, "weights")


def test_status_tells_of_the_last_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "reports_dir", lambda host: tmp_path / host)
    monkeypatch.chdir(tmp_path)
    output = f"{CONTAINERS}::\n  50G   99G /srv\n::\n{AUDIT}::\n::\n1000\n::\n{TOLD['done'][0]}"
    assert not [line for line in said(monkeypatch, operate.status, output=output)[0] if "verify" in line]

    failed = {"id": "a.x", "group": "a", "title": "A", "verdict": "failed", "seconds": 1, "expected": "401"}
    document = {
        "schema": 1,
        "host": "box",
        "started": "2026-11-21T23:00:00Z",
        "finished": "2026-11-21T23:01:00Z",
        "verdict": "failed",
        "doubles": False,
        "checks": [{**failed, "observed": "200", "hint": "close it"}],
        "versions": {},
        "images": [],
    }
    folder = tmp_path / "box" / "20261121T230100Z"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(document))
    (tmp_path / "box" / "latest").symlink_to(folder.name)
    *_, verdict, line, path = said(monkeypatch, operate.status, output=output)[0]
    assert re.fullmatch(r"  last verify      failed, .* ago, before the last change", verdict)
    assert line.strip() == "a.x: 200 -> close it" and path.strip() == "box/20261121T230100Z/report.html"

    (folder / "report.json").write_text("{")
    *_, broken = said(monkeypatch, operate.status, output=output)[0]
    assert broken.startswith("  last verify      its report cannot be read: ")
