"""The verb `adopt` as a host runs it, and what is understood of its answer."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_relocation_command import Program, library

from atelier import relocation_host
from relocation.adopt import Adopted, Adoption

__all__ = ["library"]


def told(program: Program) -> tuple[int, list[str]]:
    with program.start("adopt") as process:
        out, _ = process.communicate(timeout=60)
    return process.returncode, out.splitlines()


def job(library: Path, tmp_path: Path, base: Path) -> Program:
    (tmp_path / "old/2025").mkdir(parents=True)
    (tmp_path / "old/2025/é.png").write_bytes(b"image")
    one = Adoption(str(tmp_path / "old"), str(base), "previous", os.getuid(), "*.png", ("without",))
    written: dict[str, Any] = json.loads(relocation_host.adoption_job([one], 0).content)
    return Program(library, adopt=written["adopt"])


def test_files_arrive_and_the_answer_tells_how_many(library: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    program = job(library, tmp_path, tmp_path / "outputs")
    for expected in (Adopted(1, 5, 0), Adopted(0, 0, 1)):
        status, lines = told(program)
        assert status == 0 and all(map(relocation_host.is_progress, lines[:-1]))
        assert relocation_host.answer(lines[-1]) == relocation_host.Answer(adopted=expected)
    assert (tmp_path / "outputs/previous/2025/é.png").read_bytes() == b"image"


def test_what_cannot_be_done_is_told(library: Path, tmp_path: Path) -> None:
    status, lines = told(job(library, tmp_path, tmp_path / "nowhere"))
    answer = relocation_host.answer(lines[-1])
    assert status == 1 and answer.adopted is None and "nowhere is not there" in answer.error


@pytest.mark.parametrize("text", ["[", "{}", '{"moves": [], "adopt": 3}'])
def test_a_damaged_job_is_refused(library: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    command = ["/usr/bin/env", "python3", "-BEsS", "-m", "relocation", "adopt", str(tmp_path / "job.json")]
    done = subprocess.run(command, cwd=library, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "describes no" in done.stdout + done.stderr
