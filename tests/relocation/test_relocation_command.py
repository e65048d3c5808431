"""The program as a host runs it: from its own folder, across real file systems, killed for good at any moment."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from trees import contents, plant, put, record

from atelier import paths
from relocation.files import OURS
from weights.store import Store

SHARED = Path("/dev/shm")
MANY = 200


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """As it lies on a host: this program and that of the weights, nothing else."""
    for name in ("relocation", "weights"):
        shutil.copytree(paths.PROJECT / name, tmp_path / "lib" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "lib"


class Program:
    """It, and a job."""

    def __init__(
        self, library: Path, *moves: tuple[str, Path, Path], within: tuple[str, ...] = (), **more: Any
    ) -> None:
        self.library, self.within, self.path = library, within, library.parent / "job.json"
        told = [{"kind": kind, "source": str(source), "target": str(target)} for kind, source, target in moves]
        self.run = library.parent / "run"
        reports = {"progress": str(self.run / "progress.json"), "result": str(self.run / "result.json")}
        self.path.write_text(json.dumps({"moves": told, **reports, **more}))

    def start(self, verb: str) -> "subprocess.Popen[str]":
        command = [*self.within, sys.executable, "-BEsS", "-m", "relocation", verb, str(self.path)]
        return subprocess.Popen(
            command,
            cwd=self.library,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"]},
        )

    def __call__(self, verb: str, status: int = 0) -> dict[str, Any]:
        with self.start(verb) as process:
            out, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
        told: dict[str, Any] = json.loads(out.splitlines()[-1])
        assert told["verb"] == verb and bool(told["error"]) == bool(status)
        assert bool(errors) == bool(status), errors
        if verb != "plan":
            assert json.loads((self.run / "result.json").read_text()) == told
        return told


@pytest.fixture
def other_disk(tmp_path: Path, memory: Path) -> Path:
    """A folder on another file system than tmp_path."""
    if memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has no /dev/shm on a file system of its own")
    return memory


def test_across_two_file_systems(tmp_path: Path, library: Path, other_disk: Path) -> None:
    old, new = tmp_path / "old", other_disk / "new"
    for number, kind in enumerate(("models", "outputs", "users", "state")):
        plant(random.Random(number), old / kind, 30)
    weight = put(old / "models/vae/w", random.Random(1).randbytes(2_000_000), mode=0o444)
    sha256 = record(old / "state/weights", weight)
    moves = [(kind, old / kind, new / kind) for kind in ("models", "outputs", "users", "state")]
    program = Program(library, *moves, records=str(old / "state/weights"))
    before = contents(old)
    told = program("plan")
    assert [move["how"] for move in told["moves"]] == ["copy"] * 4
    assert told["space"][0]["needed"] == sum(move["copy_bytes"] for move in told["moves"]) > 2_000_000
    assert not new.exists(), "a plan changes nothing"
    program("copy")
    assert contents(old) == before
    switched = program("switch")
    assert sum(move["copied_files"] for move in switched["moves"].values()) == 0
    assert {name: value for name, value in contents(old).items() if name != "models/.lock"} == before
    removed = program("finish")
    assert not any(move["left"] for move in removed["moves"].values())
    assert not any((old / kind).exists() for kind in ("models", "outputs", "users", "state"))
    after = contents(new)
    assert set(after) == set(before)
    for name, value in before.items():
        aimed = (value[0], str(value[1]).replace(str(old), str(new))) if value[0] == "link" else value
        assert after[name] == aimed or name == f"state/weights/{sha256}.json"
    assert (
        json.loads((new / f"state/weights/{sha256}.json").read_text())["inode"] == (new / "models/vae/w").stat().st_ino
    )


def test_an_error_is_told_in_a_line_and_in_the_result(tmp_path: Path, library: Path) -> None:
    put(tmp_path / "old/a", b"a")
    program = Program(library, ("outputs", tmp_path / "old", tmp_path / "old/in"))
    told = program("copy", status=1)
    assert told["error"] == f"{tmp_path}/old cannot move to {tmp_path}/old/in: one lies in the other"
    assert program("plan", status=1)["obstacles"] == [told["error"]]
    (tmp_path / "job.json").write_text("{}")
    with program.start("switch") as process:
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "") and "describes no job" in errors


def test_progress_is_told(tmp_path: Path, library: Path, other_disk: Path) -> None:
    for number in range(4):
        put(tmp_path / f"old/{number}", random.Random(1).randbytes(10_000_000))
    program = Program(library, ("outputs", tmp_path / "old", other_disk / "new"))
    with program.start("copy") as process:
        out, _ = process.communicate(timeout=60)
    *_, last, result = out.splitlines()
    assert last.startswith("::progress:: 0.04 of 0.04 GB copied")
    assert json.loads(result)["moves"][str(tmp_path / "old")]["copied_bytes"] == 40_000_000
    assert json.loads((program.run / "progress.json").read_text())["done"] == 40_000_000


def test_one_at_a_time_and_none_that_nobody_hears(tmp_path: Path, library: Path) -> None:
    put(tmp_path / "old/a", b"a")
    program = Program(library, ("outputs", tmp_path / "old", tmp_path / "new"))
    with Store(program.run, program.run).lock():
        with program.start("switch") as process:
            assert process.stdout and process.stderr
            first = [process.stdout.readline() for _ in range(2)]
            process.stdout.close()
            try:
                assert process.wait(5) == -signal.SIGPIPE
            finally:
                process.kill()
        assert first[0] == f"::note:: {program.run} is in use by process {os.getpid()}; waiting for it to end\n"
        assert first[1].startswith("::progress:: ")
        assert (tmp_path / "old/a").exists()
    program("switch")
    assert (tmp_path / "new/a").exists()


@pytest.mark.parametrize("seed", range(5))
def test_killed_while_many_files_are_on_their_way(tmp_path: Path, library: Path, other_disk: Path, seed: int) -> None:
    dice = random.Random(seed)
    old, new = tmp_path / "old", other_disk / "new"
    for number in range(MANY):
        put(old / f"{number % 5}/{number}", dice.randbytes(dice.choice([10, 1000, 200_000])))
        if number % 20 == 0:
            (old / f"link{number}").hardlink_to(old / f"{number % 5}/{number}")
    put(new / "0/0", (old / "0/0").read_bytes())
    put(new / "1/1", b"other")
    before = {value[1] for value in contents(old).values() if value[0] == "file"}
    program = Program(library, ("outputs", old, new), jobs=6)
    for verb in ("copy", "copy", "switch", "finish"):
        process = program.start(verb)
        time.sleep(0.1 + dice.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        there = {value[1] for top in (old, new) for value in contents(top).values() if value[0] == "file"}
        assert before <= there
        if verb != "copy":
            program(verb)
    assert before | {b"other"} == {value[1] for value in contents(new).values() if value[0] == "file"}
    assert not old.exists() and not (new / OURS).exists()


IN_A_NAMESPACE = ("unshare", "--mount", "--propagation", "private", "sh", "-ec")
can_mount = (
    os.geteuid() == 0
    and not subprocess.run([*IN_A_NAMESPACE, "mount -t tmpfs none /mnt"], capture_output=True).returncode
)
needs_mounts = pytest.mark.skipif(not can_mount, reason="mounting in a namespace of its own is not allowed here")


def mounted(script: str) -> tuple[str, ...]:
    """What runs a command after mounts of its own, which nobody else sees."""
    return (*IN_A_NAMESPACE, f'{script}\nexec "$@"', "sh")


@needs_mounts
def test_a_disk_that_is_too_small_is_named_with_what_is_missing(tmp_path: Path, library: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for number in range(3):
        put(old / str(number), os.urandom(3_000_000))
    new.mkdir()
    small = mounted(f"mount -t tmpfs -o size=8m none {new}")
    told = Program(library, ("outputs", old, new / "outputs"), within=small)("copy", status=1)
    assert told["error"].startswith(f"{new}: 9.0 MB are to be copied there and 8.4 MB are free: free 0.7 MB, then")
    enough = mounted(f"mount -t tmpfs -o size=10m none {new}")
    assert not Program(library, ("outputs", old, new / "outputs"), within=enough)("copy")["error"]


@needs_mounts
def test_a_disk_without_room_for_names_is_told_and_loses_nothing(tmp_path: Path, library: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for number in range(30):
        put(old / str(number), b"small")
    new.mkdir()
    full = mounted(f"mount -t tmpfs -o nr_inodes=20 none {new}")
    told = Program(library, ("outputs", old, new / "outputs"), within=full)("copy", status=1)
    assert f"{new}/outputs: no room left" in told["error"]
    assert len(list(old.iterdir())) == 30


@needs_mounts
def test_a_rename_does_not_lead_from_one_mount_to_another_of_the_same_file_system(
    tmp_path: Path, library: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    put(old / "d/a", b"a")
    (tmp_path / "real").mkdir()
    new.mkdir()
    bound = mounted(f"mount --bind {tmp_path}/real {new}")
    program = Program(library, ("outputs", old, new / "outputs"), within=bound)
    assert program("plan")["moves"][0]["how"] == "copy"
    for verb in ("copy", "switch", "finish"):
        program(verb)
    assert (tmp_path / "real/outputs/d/a").read_bytes() == b"a"
    assert not old.exists()


@needs_mounts
def test_a_file_system_inside_a_tree_is_named_and_nothing_moves(tmp_path: Path, library: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    put(old / "a", b"a")
    (old / "inside").mkdir()
    program = Program(library, ("outputs", old, new), within=mounted(f"mount -t tmpfs none {old}/inside"))
    for verb in ("copy", "switch"):
        assert f"{old}/inside is a mount point inside {old}" in program(verb, status=1)["error"]
    assert not new.exists()


@needs_mounts
def test_a_target_that_cannot_be_written_to_is_told(tmp_path: Path, library: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    put(old / "a", b"a")
    new.mkdir()
    program = Program(library, ("outputs", old, new / "outputs"), within=mounted(f"mount -t tmpfs -o ro none {new}"))
    assert "Read-only file system" in program("copy", status=1)["error"]
    assert (old / "a").exists()


@needs_mounts
def test_onto_a_disk_of_its_own_with_what_its_file_system_keeps_there(tmp_path: Path, library: Path) -> None:
    """An ext4 that is mounted at the very target, with its lost+found."""
    old, new, image = tmp_path / "old", tmp_path / "new", tmp_path / "disk"
    plant(random.Random(5), old, 20)
    wanted = contents(old)
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    new.mkdir()
    program = Program(library, ("outputs", old, new), within=mounted(f"mount -o loop {image} {new}"))
    for verb in ("copy", "switch"):
        program(verb)
    assert contents(old) == wanted
    program("finish")
    assert not old.exists()
    found = subprocess.run(
        [*mounted(f"mount -o loop {image} {new}"), "find", str(new), "-mindepth", "1"], capture_output=True, check=True
    )
    names = {os.fsdecode(one) for one in found.stdout.split(f"{new}/".encode())[1:]}
    assert {name.rstrip("\n") for name in names} == {*wanted, "lost+found"}
