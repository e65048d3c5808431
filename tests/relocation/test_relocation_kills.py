"""Killed before any step of any verb, the next run goes on: nothing is lost, nothing verified is copied again."""

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from trees import OtherFiles, Told, all_verbs, contents, in_a_child, job_for, mortal, plant, put, record

from relocation.files import OURS, Files
from relocation.job import Job

FILE_SYSTEMS = {"renamed": Files, "copied": OtherFiles}


class World:
    """Three trees that are to move, with something in the way of some, and weights that are known."""

    def __init__(self, folder: Path, seed: int) -> None:
        dice = random.Random(seed)
        self.folder, old, new = folder, folder / "old", folder / "new"
        for kind in ("models", "outputs", "state"):
            plant(dice, old / kind)
        weight = put(old / "models/vae/w", dice.randbytes(3000), mode=0o444)
        self.sha256 = record(old / "state/weights", weight)
        self.hindered = dice.random() < 0.6
        if self.hindered:
            self._hinder(dice, old / "outputs", new / "outputs")
        if dice.random() < 0.3:
            (new / "models/vae").mkdir(parents=True)
        moves = [(kind, old / kind, new / kind) for kind in ("models", "outputs", "state")]
        self.job: Job = job_for(folder, *moves, records=str(new / "state/weights"))
        self.there = Counter(self.things(new))
        self.wanted = Counter(self.things(old))
        self.folders = self.directories(old, new)
        self.told = Told(folder / "told")

    def _hinder(self, dice: random.Random, source: Path, target: Path) -> None:
        """The same and other content under names that the source has, and a file where it has a directory."""
        for path in sorted(source.rglob("*")):
            there = target / path.relative_to(source)
            if path.is_symlink() or any(above.is_file() for above in there.parents):
                continue
            if path.is_dir() and dice.random() < 0.2:
                put(there, b"a file in the way of a directory")
            if path.is_file() and dice.random() < 0.5:
                put(there, dice.choice([path.read_bytes(), dice.randbytes(path.stat().st_size), b"other"]))

    def things(self, top: Path) -> list[Any]:
        """The contents of all files below, whatever their names; and where links lead."""
        found = (one for path in ("models", "outputs", "state") for one in contents(top / path).items())
        return [value[1] for name, value in found if value[0] in ("file", "link")]

    def directories(self, top: Path, other: Path) -> dict[str, Any]:
        """Those of the trees where nothing is in the way, with mode and owner."""
        found = ((kind, contents(top / kind), contents(other / kind)) for kind in ("models", "state"))
        return {
            f"{kind}/{name}": value
            for kind, inside, there in found
            for name, value in inside.items()
            if value[0] == "directory" and name not in there
        }

    def run(self, files: type[Files], steps: int) -> int:
        return in_a_child(lambda: all_verbs(self.job, mortal(files, steps, self.told)))

    def assert_nothing_lost(self) -> None:
        """Whatever was in the source is whole in one of both places, and what was in the target still is."""
        aimed = [self.aimed(one) for one in self.wanted]
        old = {self.aimed(one) for one in self.things(self.folder / "old")}
        new = {self.aimed(one) for one in self.things(self.folder / "new")}
        assert set(aimed) <= old | new
        assert set(self.there) <= set(self.things(self.folder / "new"))

    def aimed(self, one: Any) -> Any:
        """Links of the source as they lead in the target."""
        if isinstance(one, str):
            return one.replace(f"{self.folder}/old/", f"{self.folder}/new/")
        return b"" if one.startswith(b'{"bytes"') else one  # a record is written anew for a copy

    def assert_over(self) -> None:
        """All is in the target, nothing is in the source, nothing of ours is left, and the weight is known there."""
        assert not (self.folder / "old/models").exists()
        assert not (self.folder / "old/outputs").exists()
        assert not (self.folder / "old/state").exists()
        assert not list((self.folder / "new").rglob(f"*{OURS}*"))
        new = {self.aimed(one) for one in self.things(self.folder / "new")}
        assert {self.aimed(one) for one in self.wanted} <= new
        after = self.directories(self.folder / "new", self.folder / "old")
        assert {name: after[name] for name in self.folders} == self.folders
        weight = (self.folder / "new/models/vae/w").stat()
        text = (self.folder / f"new/state/weights/{self.sha256}.json").read_text()
        assert f'"mtime_ns": {weight.st_mtime_ns}, "inode": {weight.st_ino},' in text

    def assert_copied_once(self) -> None:
        verified: set[str] = set()
        for word, inode in self.told.rows():
            assert word != "part" or inode not in verified, f"{inode} was verified, and copied again"
            verified |= {inode} if word == "verified" else set()


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
@pytest.mark.parametrize("seed", range(24))
def test_killed_again_and_again_it_ends_with_everything_in_its_place(memory: Path, seed: int, file_system: str) -> None:
    world, dice = World(memory, seed), random.Random(seed)
    patience = 8
    while status := world.run(FILE_SYSTEMS[file_system], dice.randrange(patience)):
        assert status == -9
        world.assert_nothing_lost()
        patience += 4
    world.assert_over()
    world.assert_copied_once()


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_killed_before_each_step_of_one_move_it_goes_on(memory: Path, file_system: str) -> None:
    steps, status = 0, -9
    while status:
        (memory / str(steps)).mkdir()
        world = World(memory / str(steps), seed=10)
        status = world.run(FILE_SYSTEMS[file_system], steps)
        world.assert_nothing_lost()
        if status:
            assert status == -9
            assert world.run(FILE_SYSTEMS[file_system], 10**9) == 0
        world.assert_over()
        world.assert_copied_once()
        steps += 1
    assert steps > (150 if file_system == "copied" else 30), (
        "this move has no such many steps: the test sees too little"
    )


def test_a_tree_as_it_is_loses_no_property(memory: Path) -> None:
    for seed in range(20):
        source, target = memory / f"{seed}/old", memory / f"{seed}/new"
        plant(random.Random(seed), source, 20)
        before = contents(source)
        links = {name: (source / name).stat().st_nlink for name, value in before.items() if value[0] == "file"}
        job = job_for(memory, ("outputs", source, target))
        all_verbs(job, OtherFiles())
        after = contents(target)
        for name, value in before.items():
            aim = str(value[1]).replace(str(source), str(target))
            assert after.pop(name) == (("link", aim) if value[0] == "link" else value)
        assert not after
        assert links == {name: (target / name).stat().st_nlink for name in links}


@pytest.mark.parametrize("steps", range(12))
def test_a_directory_that_goes_after_a_kill_hinders_no_end(memory: Path, steps: int) -> None:
    """What was being made of it is left among the parts, and a file may have its inode by then."""
    source, target = memory / "old", memory / "new"
    put(source / "gone/a", b"1")
    job = job_for(memory, ("outputs", source, target))
    told = Told(memory / "told")
    in_a_child(lambda: all_verbs(job, mortal(OtherFiles, steps, told)))
    shutil.rmtree(source / "gone")
    put(source / "b", b"2")
    all_verbs(job, OtherFiles())
    assert (target / "b").read_bytes() == b"2" and not (target / OURS).exists()
