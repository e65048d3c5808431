"""The program that moves data, as it gets to a host and answers: real shell, real files."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from atelier import relocation_host
from relocation.job import Move
from weights.progress import NOTE, PROGRESS


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Where it was put, an earlier one having been there."""
    place = tmp_path / "with space/lib"
    (place / "relocation").mkdir(parents=True)
    (place / "relocation/outdated.py").touch()
    script = relocation_host.install_script(str(place))
    subprocess.run(["sh", "-ec", script], input=relocation_host.archive(), check=True)
    return place


def told_here(content: bytes, folder: Path) -> bytes:
    """The job, that tells nothing outside this folder."""
    return json.dumps({**json.loads(content), "progress": f"{folder}/progress", "result": f"{folder}/result"}).encode()


def ask(verb: str, library: Path, job: Path) -> tuple[int, relocation_host.Answer]:
    script = relocation_host.shell(verb, str(job), str(library)).replace(
        "/usr/bin/python3", shlex.quote(sys.executable)
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env={})
    *told, last = done.stdout.splitlines()
    assert all(relocation_host.is_progress(line) for line in told)
    return done.returncode, relocation_host.answer(last)


def test_it_is_put_in_the_place_of_an_earlier_one(library: Path) -> None:
    names = {str(path.relative_to(library)) for path in library.rglob("*") if path.is_file()}
    assert {"relocation/__main__.py", "weights/store.py"} <= names
    assert "relocation/outdated.py" not in names
    assert (library / "relocation/plan.py").stat().st_mode & 0o777 == 0o644


def test_a_reorganisation_from_plan_to_end(tmp_path: Path, library: Path) -> None:
    source, target, job = tmp_path / "old/outputs", tmp_path / "new/outputs", tmp_path / "job.json"
    source.mkdir(parents=True)
    (source / "a").write_bytes(b"a" * 5000)
    move = Move("outputs", str(source), str(target), str(source))
    file = relocation_host.job([move], str(tmp_path / "old/state/weights"), 0)
    assert (file.path, file.mode) == ("/etc/atelier/relocation.json", 0o600)
    job.write_bytes(told_here(file.content, tmp_path))
    status, planned = ask("plan", library, job)
    assert status == 0 and planned.plan and not planned.error
    (one,) = planned.plan.moves
    assert (one.how, one.files, one.collisions) == ("rename", 1, ())
    status, switched = ask("switch", library, job)
    assert status == 0 and switched.done and switched.done[str(source)].renamed_files == 1
    status, finished = ask("finish", library, job)
    assert status == 0 and finished.removed and finished.removed[str(source)].left == {}
    assert (target / "a").read_bytes() == b"a" * 5000


def test_why_it_cannot_is_in_the_answer(tmp_path: Path, library: Path) -> None:
    job = tmp_path / "job.json"
    file = relocation_host.job([Move("outputs", "/srv/a", "/srv/a/b", "/srv/a")], "/srv/a/state", 0)
    job.write_bytes(told_here(file.content, tmp_path))
    for verb in ("plan", "copy"):
        status, told = ask(verb, library, job)
        assert status == 1 and told.error == "/srv/a cannot move to /srv/a/b: one lies in the other"


def test_lines_that_tell_how_far_it_is() -> None:
    assert relocation_host.is_progress(f"{PROGRESS}1 of 2 GB") and relocation_host.is_progress(f"{NOTE}x")
    assert not relocation_host.is_progress('{"verb": "copy"}')
