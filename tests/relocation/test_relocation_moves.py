"""Moves of real directories: what is kept, what is never done, and what happens on the way."""

import errno
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trees import AGES_AGO, OtherFiles, all_verbs, contents, job_for, put, record

from relocation import merge
from relocation.copy import copy
from relocation.files import OURS, Files, Identity, Mount, Place, folder, reading, scan
from relocation.finish import finish
from relocation.job import Job, RelocationError
from relocation.merge import Merge, Records
from relocation.plan import plan
from relocation.switch import switch
from weights.progress import Progress
from weights.store import File, Store

GB = 10**9


@pytest.fixture
def old(memory: Path) -> Path:
    return memory / "old"


@pytest.fixture
def new(memory: Path) -> Path:
    return memory / "new"


@pytest.fixture
def job(old: Path, new: Path) -> Job:
    """The outputs move."""
    old.mkdir()
    return job_for(old.parent, ("outputs", old, new))


def test_what_is_on_one_file_system_is_renamed_as_a_whole_and_not_read(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"vae/{number}" for number in range(4)]
    for name in names:
        with put(memory / "old/models" / name, b"", mode=0o444).open("r+b") as file:
            file.truncate(10 * GB)
    inodes = [(memory / "old/models" / name).stat().st_ino for name in names]
    (memory / "old/models/.lock").touch()
    put(memory / "new/models/.lock", b"123")
    (memory / "new/models/vae").mkdir()
    job = job_for(memory, ("models", memory / "old/models", memory / "new/models"))
    monkeypatch.setattr(merge, "hashed", None)
    monkeypatch.setattr("os.preadv", None)
    started = time.monotonic()
    copy(job, Files(), Progress())
    done = switch(job, Files(), Progress())[str(memory / "old/models")]
    assert time.monotonic() - started < 1
    finish(job, Files())
    assert [(memory / "new/models" / name).stat().st_ino for name in names] == inodes
    assert not (memory / "old/models").exists()
    assert (done.renamed_files, done.copied_files) == (5, 0)


def test_what_the_target_holds_stays_and_the_rest_is_renamed_beside_it(job: Job, old: Path, new: Path) -> None:
    put(old / "a/one", b"1")
    put(old / "b/two", b"2")
    put(new / "b/three", b"3")
    inode = (old / "b/two").stat().st_ino
    done = switch(job, Files(), Progress())[str(old)]
    finish(job, Files())
    assert {name: value[1] for name, value in contents(new).items() if value[0] == "file"} == {
        "a/one": b"1",
        "b/two": b"2",
        "b/three": b"3",
    }
    assert (new / "b/two").stat().st_ino == inode
    assert (done.renamed_files, done.copied_files) == (2, 0)
    assert not old.exists() and not (new / OURS).exists()


@pytest.mark.parametrize("files", [Files(), OtherFiles()])
def test_of_one_name_and_two_contents_both_stay_and_of_one_content_one(
    job: Job, old: Path, new: Path, files: Files
) -> None:
    put(old / "same", b"content")
    put(new / "same", b"content", mtime_ns=5)
    put(old / "other", b"content")
    put(new / "other", b"CONTENT")
    put(old / "longer", b"content and more")
    put(new / "longer", b"content")
    put(old / "way/x", b"x")
    put(new / "way", b"a file in the way of a directory")
    kept = {path.name: path.stat().st_ino for path in new.iterdir()}
    copy(job, files, Progress())
    aside = switch(job, files, Progress())[str(old)].aside
    finish(job, files)
    assert {path.name: path.stat().st_ino for path in new.iterdir() if path.name in kept} == kept
    assert (new / "other").read_bytes() == b"CONTENT"
    assert (new / aside["other"]).read_bytes() == b"content" and aside["other"].startswith("other.from-1")
    assert (new / aside["longer"]).read_bytes() == b"content and more"
    assert (new / aside["way"] / "x").read_bytes() == b"x"
    assert "same" not in aside and len(list(new.iterdir())) == 7
    assert not old.exists()


@pytest.mark.parametrize("files", [Files, OtherFiles])
def test_a_name_that_somebody_takes_at_the_last_moment_is_not_overwritten(
    job: Job, old: Path, new: Path, files: type[Files]
) -> None:
    class Late(files):  # type: ignore[valid-type, misc]
        def rename(self, source: Place, target: Place) -> None:
            if target.path == str(new / "a"):
                put(new / "a", b"theirs")
            super().rename(source, target)

    put(old / "a", b"ours")
    put(new / "b", b"")
    all_verbs(job, Late())
    assert (new / "a").read_bytes() == b"theirs"
    assert [path.read_bytes() for path in new.glob("a.from-*")] == [b"ours"]


@pytest.mark.parametrize("files", [Files(), OtherFiles()])
def test_links_into_a_tree_that_moves_lead_to_where_it_is(memory: Path, files: Files) -> None:
    old, new = memory / "old", memory / "new"
    put(old / "models/vae/x", b"x")
    (old / "users").mkdir()
    aims = {"in": "models/vae/x", "tree": "users", "out": "elsewhere"}
    for name, aim in aims.items():
        (old / "users" / name).symlink_to(old / aim)
    (old / "users/relative").symlink_to("../models/vae/x")
    moves = [(kind, old / kind, new / kind) for kind in ("users", "models")]
    all_verbs(job_for(memory, *moves), files)
    assert {path.name: str(path.readlink()) for path in (new / "users").iterdir()} == {
        "in": str(new / "models/vae/x"),
        "tree": str(new / "users"),
        "out": str(old / "elsewhere"),
        "relative": "../models/vae/x",
    }


def test_what_somebody_did_between_copy_and_switch_counts(job: Job, old: Path, new: Path) -> None:
    for name in ("kept", "changed", "restored", "removed", "renamed", "d/in", "dressed"):
        put(old / name, name.encode() * 100)
    copy(job, OtherFiles(), Progress())
    assert len(list(new.iterdir())) == 7 + 1
    put(old / "changed", b"another" * 50)
    put(old / "restored", b"RESTORED" * 100)  # of the same size, and its time set back
    (old / "removed").unlink()
    (old / "renamed").rename(old / "d/renamed")
    (old / "dressed").chmod(0o600)
    put(old / "added", b"added")
    wanted = contents(old)
    done = switch(job, OtherFiles(), Progress())[str(old)]
    assert contents(new) == wanted
    assert done.copied_files == 5
    assert not done.aside


def test_only_what_was_verified_gets_a_name(job: Job, old: Path, new: Path) -> None:
    """A half-written part of a killed run and a copy that somebody replaced are not what the journal tells of."""
    put(old / "a", b"a" * 100)
    put(old / "b", b"b" * 100)
    copy(job, OtherFiles(), Progress())
    (new / "a").unlink()
    put(new / OURS / str((old / "a").stat().st_ino), b"half of it")
    (new / "b").unlink()
    put(new / "b", b"theirs")
    aside = switch(job, OtherFiles(), Progress())[str(old)].aside
    assert (new / "a").read_bytes() == b"a" * 100
    assert (new / "b").read_bytes() == b"theirs"
    assert (new / aside["b"]).read_bytes() == b"b" * 100


def test_an_outdated_copy_that_somebody_changed_is_not_taken_back(job: Job, old: Path, new: Path) -> None:
    put(old / "a", b"a")
    copy(job, OtherFiles(), Progress())
    (old / "a").unlink()
    late = Merge(job, job.moves[0], OtherFiles(), Records([]), Progress())
    put(new / "a", b"theirs")
    late.clear_outdated()
    assert (new / "a").read_bytes() == b"theirs"


def test_what_is_written_while_it_is_copied_is_left_to_the_switch(job: Job, old: Path, new: Path) -> None:
    class Busy(OtherFiles):
        def finish_part(self, descriptor: int, like: Any, source: Place) -> Identity:
            if source.name == "busy":
                with (old / "busy").open("ab") as file:
                    file.write(b" more")
            return super().finish_part(descriptor, like, source)

    put(old / "busy", b"some")
    put(old / "calm", b"calm")
    assert copy(job, Busy(), Progress())[str(old)].waits == ["busy"]
    assert [path.name for path in new.iterdir() if path.name != OURS] == ["calm"]
    with pytest.raises(RelocationError, match="busy changes while it is moved"):
        switch(job, Busy(), Progress())
    assert not (new / "busy").exists()
    switch(job, OtherFiles(), Progress())
    assert (new / "busy").read_bytes() == b"some more more more more"


@pytest.mark.parametrize("is_known", [False, True])
def test_a_disk_that_gives_back_other_bytes_gets_no_name(memory: Path, is_known: bool) -> None:
    class Damaging(OtherFiles):
        def write(self, descriptor: int, data: memoryview, offset: int) -> None:
            super().write(descriptor, memoryview(bytes(data[:-1]) + b"!"), offset)

    weight = put(memory / "old/vae/w", b"x" * 5000)
    if is_known:
        record(memory / "state", weight)
    job = job_for(memory, ("models", memory / "old", memory / "new"), records=str(memory / "state"))
    with pytest.raises(RelocationError, match="reads back otherwise"):
        copy(job, Damaging(), Progress())
    assert not (memory / "new/vae/w").exists()
    assert weight.read_bytes() == b"x" * 5000
    all_verbs(job, OtherFiles())
    assert (memory / "new/vae/w").read_bytes() == b"x" * 5000


@pytest.mark.parametrize("old_record", [False, True])
def test_a_weight_is_read_once_hashed_once_and_known_good_afterwards(
    memory: Path, monkeypatch: pytest.MonkeyPatch, old_record: bool
) -> None:
    weight = put(memory / "old/models/vae/w", os.urandom(3_000_000), mode=0o444)
    sha256 = record(memory / "old/state/weights", weight)
    if old_record:
        found = weight.stat()
        (memory / f"old/state/weights/{sha256}.json").unlink()
        (memory / f"old/state/weights/{sha256}").write_text(f"{found.st_size} {AGES_AGO // 10**9} {found.st_ino}\n")
    file = File("vae/w", 3_000_000, sha256)
    assert Store(memory / "old/models", memory / "old/state/weights").known_good(file)
    moves = [(kind, memory / "old" / kind, memory / "new" / kind) for kind in ("models", "state")]
    job = job_for(memory, *moves, records=str(memory / "old/state/weights"))
    hashed, read = [], []
    original, preadv = merge.hashed, os.preadv
    monkeypatch.setattr(merge, "hashed", lambda one: hashed.append(os.fstat(one).st_size) or original(one))
    monkeypatch.setattr(os, "preadv", lambda *told: read.append(preadv(*told)) or read[-1])
    copy(job, OtherFiles(), Progress())
    assert hashed.count(3_000_000) == 1
    assert 6_000_000 <= sum(read) < 6_010_000
    assert Store(memory / "old/models", memory / "old/state/weights").known_good(file), "until the switch"
    switch(job, OtherFiles(), Progress())
    assert hashed.count(3_000_000) == 1
    store = Store(memory / "new/models", memory / "new/state/weights")
    assert store.known_good(file)
    finish(job, OtherFiles())
    assert store.known_good(file)
    assert not (memory / "old/models").exists() and not (memory / "old/state").exists()


def test_a_record_that_is_wrong_is_not_passed_on(memory: Path) -> None:
    weight = put(memory / "old/vae/w", b"right")
    record(memory / "state", weight)
    path = next((memory / "state").iterdir())
    wrong = path.rename(path.with_name("a" * 64 + ".json"))
    wrong.write_text(wrong.read_text().replace(path.name[:64], "a" * 64))
    before = wrong.read_text()
    job = job_for(memory, ("models", memory / "old", memory / "new"), records=str(memory / "state"))
    progress = Progress()
    copy(job, OtherFiles(), progress)
    assert f"{weight} is not what its record says" in progress.snapshot(0.0).notes[0].text
    all_verbs(job, OtherFiles())
    assert (memory / "new/vae/w").read_bytes() == b"right"
    assert wrong.read_text() == before and list((memory / "state").iterdir()) == [wrong]


def test_holes_stay_holes(job: Job, old: Path, new: Path) -> None:
    with put(old / "sparse", b"").open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"in the middle")
        file.truncate(100_000_000)
    told = plan(job, OtherFiles()).moves[0]
    assert told.copy_bytes < 1_000_000
    content = (old / "sparse").read_bytes()
    all_verbs(job, OtherFiles())
    assert (new / "sparse").stat().st_blocks * 512 < 1_000_000
    assert (new / "sparse").read_bytes() == content


def test_where_there_are_no_hard_links_each_name_gets_a_copy(job: Job, old: Path, new: Path) -> None:
    class NoLinks(OtherFiles):
        def link(self, source: Place, target: Place) -> None:
            raise OSError(errno.EPERM, "no links")

    put(old / "a", b"x")
    for name in ("b", "c"):
        (old / name).hardlink_to(old / "a")
    all_verbs(job, NoLinks())
    assert [(new / name).read_bytes() for name in "abc"] == [b"x"] * 3
    assert len({(new / name).stat().st_ino for name in "abc"}) == 3
    assert not old.exists()


def test_what_is_no_file_stays_where_a_copy_is_needed_and_is_named(job: Job, old: Path, new: Path) -> None:
    put(old / "d/a", b"x")
    os.mkfifo(old / "d/pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(old / "socket"))
    assert set(plan(job, OtherFiles()).moves[0].foreign) == {"d/pipe", "socket"}
    copy(job, OtherFiles(), Progress())
    assert set(switch(job, OtherFiles(), Progress())[str(old)].left) == {"d/pipe", "socket"}
    left = finish(job, OtherFiles())[str(old)].left
    assert left == {"d/pipe": "it is no file", "socket": "it is no file"}
    assert set(contents(old)) == {"d", "d/pipe", "socket"}
    assert set(contents(new)) == {"d", "d/a"}


def test_a_rename_takes_along_what_is_no_file(job: Job, old: Path, new: Path) -> None:
    os.mkfifo(old / "pipe")
    put(new / "in the way", b"")
    all_verbs(job, Files())
    assert (new / "pipe").is_fifo()
    assert not old.exists()


def test_access_lists_and_other_attributes_come_along(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    put(old / "d/a", b"x")
    for path in (old / "d/a", old / "d", old):
        os.setxattr(path, "user.note", path.name.encode())
    all_verbs(job_for(tmp_path, ("outputs", old, new)), OtherFiles())
    assert [os.getxattr(path, "user.note") for path in (new / "d/a", new / "d", new)] == [b"a", b"d", b"old"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owners_stay(job: Job, old: Path, new: Path) -> None:
    put(old / "d/a", b"x", mode=0o4755)
    (old / "d/link").symlink_to("a")
    for path in (old / "d/a", old / "d", old, old / "d/link"):
        os.chown(path, 10001, 10002, follow_symlinks=False)
    (old / "d/a").chmod(0o4755)
    all_verbs(job, OtherFiles())
    for path in (new / "d/a", new / "d", new, new / "d/link"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (10001, 10002)
    assert (new / "d/a").stat().st_mode & 0o7777 == 0o4755


# What others do with links while root copies their files


def swapping(outside: Path, victim: Path, when: Callable[[str], bool]) -> type[Files]:
    """Files during whose first change that fits somebody puts a link to another directory in the place of one."""

    class Swapping(OtherFiles):
        swapped = False

        def part(self, place: Place) -> Any:
            self._swap("part")
            return super().part(place)

        def unlink(self, place: Place) -> None:
            self._swap("unlink")
            super().unlink(place)

        def _swap(self, what: str) -> None:
            if not self.swapped and when(what):
                type(self).swapped = True
                victim.rename(victim.with_name("was"))
                victim.symlink_to(outside)

    return Swapping


def test_no_link_below_a_root_is_followed(old: Path) -> None:
    put(old / "outside/b", b"secret")
    (old / "tree").mkdir()
    (old / "tree/d").symlink_to(old / "outside")
    (old / "tree/b").symlink_to(old / "outside/b")
    root = str(old / "tree")
    with pytest.raises(OSError, match="Not a directory"), folder(root, "d"):
        pass
    for name in ("d/b", "b"):
        with pytest.raises(OSError, match=r"Not a directory|Too many"), reading(Place(root, name)):
            pass
    with pytest.raises(OSError, match="Not a directory"):
        Files().unlink(Place(root, "d/b"))
    assert (old / "outside/b").exists()


def test_a_directory_that_becomes_a_link_is_not_followed_when_it_is_copied(job: Job, old: Path, new: Path) -> None:
    outside = old.parent / "outside"
    put(outside / "b", b"secret")
    put(old / "a", b"first" * 9999)
    put(old / "d/b", b"theirs")
    done = copy(job, swapping(outside, old / "d", lambda what: what == "part")(), Progress())[str(old)]
    assert done.waits == ["d/b"]
    assert b"secret" not in [value[1] for value in contents(new).values()]


def test_a_directory_that_becomes_a_link_is_not_followed_when_files_are_removed(job: Job, old: Path, new: Path) -> None:
    outside = old.parent / "outside"
    put(old / "a", b"a")
    put(old / "d/b", b"b")
    put(outside / "b", b"precious")
    copy(job, OtherFiles(), Progress())
    switch(job, OtherFiles(), Progress())
    with pytest.raises(OSError, match=r"Not a directory|Too many"):
        finish(job, swapping(outside, old / "d", lambda what: what == "unlink")())
    assert (outside / "b").read_bytes() == b"precious"


# The end of a move


def test_nothing_is_removed_before_the_switch(job: Job, old: Path) -> None:
    put(old / "a", b"a")
    copy(job, OtherFiles(), Progress())
    with pytest.raises(RelocationError, match="`switch` comes before `finish`"):
        finish(job, OtherFiles())
    assert (old / "a").exists()


def test_a_source_stays_where_its_copy_is_not_good_or_it_was_written_to(job: Job, old: Path, new: Path) -> None:
    for name in ("good", "gone", "cut", "late"):
        put(old / name, name.encode() * 10)
    copy(job, OtherFiles(), Progress())
    switch(job, OtherFiles(), Progress())
    (new / "gone").unlink()
    os.truncate(new / "cut", 3)
    os.utime(new / "cut", ns=(AGES_AGO, AGES_AGO))
    put(old / "late", b"late")
    put(old / "foreign/x", b"x")
    left = finish(job, OtherFiles())[str(old)].left
    assert {name: why[:11] for name, why in left.items()} == {
        "gone": "its copy go",
        "cut": "its copy cu",
        "late": "it was writ",
        "foreign/x": "it was not ",
    }
    assert {path.name for path in old.iterdir()} == {"gone", "cut", "late", "foreign"}
    assert not (new / OURS).exists()


def test_a_source_that_is_written_to_in_the_last_moment_stays(job: Job, old: Path, new: Path) -> None:
    class Late(OtherFiles):
        def unlink(self, place: Place) -> None:
            if place.path == str(old / "a"):
                put(old / "b", b"written to late")
            super().unlink(place)

    put(old / "a", b"a")
    put(old / "b", b"b")
    copy(job, OtherFiles(), Progress())
    switch(job, OtherFiles(), Progress())
    assert set(finish(job, Late())[str(old)].left) == {"b"}
    assert (old / "b").read_bytes() == b"written to late"


def test_killed_between_two_names_of_one_file_the_other_one_goes_too(job: Job, old: Path, new: Path) -> None:
    class Dying(OtherFiles):
        def unlink(self, place: Place) -> None:
            if place.path == str(old / "b"):
                raise KeyboardInterrupt
            super().unlink(place)

    put(old / "a", b"a")
    (old / "b").hardlink_to(old / "a")
    copy(job, OtherFiles(), Progress())
    switch(job, OtherFiles(), Progress())
    with pytest.raises(KeyboardInterrupt):
        finish(job, Dying())
    assert [path.name for path in old.iterdir()] == ["b"]
    assert finish(job, OtherFiles())[str(old)].left == {}
    assert not old.exists()


def test_what_the_services_change_after_the_switch_is_theirs(job: Job, old: Path, new: Path) -> None:
    for name in ("edited", "replaced", "kept"):
        put(old / name, name.encode())
    copy(job, OtherFiles(), Progress())
    switch(job, OtherFiles(), Progress())
    (new / "edited").write_bytes(b"edited by the service")
    (new / "beside").write_bytes(b"replaced by the service")
    (new / "beside").rename(new / "replaced")
    copy(job, OtherFiles(), Progress())
    again = switch(job, OtherFiles(), Progress())[str(old)]
    assert not again.aside and not again.copied_files
    assert finish(job, OtherFiles())[str(old)].left == {}
    assert (new / "edited").read_bytes() == b"edited by the service"
    assert (new / "replaced").read_bytes() == b"replaced by the service"
    assert not old.exists()


def test_a_link_that_led_to_the_source_goes_with_it(memory: Path) -> None:
    put(memory / "big/outputs/a", b"a")
    (memory / "outputs").symlink_to(memory / "big/outputs")
    all_verbs(job_for(memory, ("outputs", memory / "outputs", memory / "new")), Files())
    assert (memory / "new/a").read_bytes() == b"a"
    assert not os.path.lexists(memory / "outputs")


def test_a_link_to_a_source_that_still_holds_something_stays(memory: Path) -> None:
    put(memory / "big/outputs/a", b"a")
    (memory / "outputs").symlink_to(memory / "big/outputs")
    job = job_for(memory, ("outputs", memory / "outputs", memory / "new"))
    copy(job, OtherFiles(), Progress())
    switch(job, OtherFiles(), Progress())
    put(memory / "outputs/b", b"foreign")
    finish(job, OtherFiles())
    assert (memory / "outputs/b").read_bytes() == b"foreign"


def test_what_belongs_to_a_disk_stays_on_it(job: Job, old: Path, new: Path) -> None:
    put(old / "lost+found/x", b"x")
    put(old / "a", b"a")
    all_verbs(job, OtherFiles())
    assert set(contents(new)) == {"a"}
    assert set(contents(old)) == {"lost+found", "lost+found/x"}


@pytest.mark.parametrize("files", [Files(), OtherFiles()])
def test_once_it_is_over_the_verbs_do_nothing(job: Job, old: Path, new: Path, files: Files) -> None:
    put(old / "a", b"a")
    all_verbs(job, files)
    before = contents(new)
    assert plan(job, files).moves[0].how == "nothing"
    all_verbs(job, files)
    assert contents(new) == before


def test_a_fetch_that_is_under_way_is_waited_for(memory: Path) -> None:
    put(memory / "old/vae/w", b"w")
    job = job_for(memory, ("models", memory / "old", memory / "new"))
    progress = Progress()
    with Store(memory / "old", memory / "old").lock():
        thread = threading.Thread(target=switch, args=(job, Files(), progress))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and (memory / "old/vae/w").exists()
    thread.join(5)
    assert (memory / "new/vae/w").exists()
    assert "is in use by process" in progress.snapshot(0.0).notes[0].text


# What is in the way


def obstacles(job: Job, files: Files) -> str:
    """What plan says, where copy says the same and changes nothing."""
    told = "\n".join(plan(job, files).obstacles)
    before = [contents(Path(move.target)) for move in job.moves]
    with pytest.raises(RelocationError) as refused:
        copy(job, files, Progress())
    assert str(refused.value) == told
    assert [contents(Path(move.target)) for move in job.moves] == before
    return told


def with_mounts(*paths: Path) -> Files:
    class Mounted(Files):
        def mounts(self) -> list[Mount]:
            return [Mount("1", "/"), *(Mount(str(path), str(path)) for path in paths)]

    return Mounted()


def test_mount_points_inside_are_named_before_anything_moves(job: Job, old: Path, new: Path) -> None:
    (old / "inside").mkdir()
    assert f"{old}/inside is a mount point inside {old}" in obstacles(job, with_mounts(old / "inside"))
    with pytest.raises(RelocationError, match="is a mount point inside"):
        switch(job, with_mounts(new / "inside"), Progress())
    assert old.exists() and not new.exists()
    assert not plan(job, with_mounts(old, new)).obstacles


def test_a_subvolume_is_seen_though_nothing_is_mounted_there() -> None:
    with pytest.raises(RelocationError, match="is a file system of its own"):
        scan("/dev")


def test_two_mounts_of_one_file_system_are_copied_between(job: Job, old: Path, new: Path) -> None:
    new.mkdir()
    put(old / "a", b"a")
    told = plan(job, with_mounts(new))
    assert (told.moves[0].how, told.moves[0].target_mount, told.moves[0].copy_bytes) == ("copy", str(new), 1)


def test_a_file_in_the_place_of_a_directory_is_named(memory: Path, old: Path, new: Path, job: Job) -> None:
    put(new, b"")
    assert f"{new} is no directory" in obstacles(job, Files())
    below = job_for(memory, ("outputs", old, new / "b/c"))
    assert f"{new} is no directory, and {new}/b/c cannot be made" in obstacles(below, Files())
    put(memory / "file", b"")
    source = job_for(memory, ("outputs", memory / "file", memory / "other"))
    assert f"{memory}/file is no directory" in obstacles(source, Files())


def test_a_target_whose_file_system_is_not_mounted_any_more_is_named(job: Job, old: Path) -> None:
    put(old / "a", b"")
    mounted = replace(job, moves=(replace(job.moves[0], target_mount="/data"),))
    assert "was to lie on what is mounted at /data, and lies on " in obstacles(mounted, Files())


def test_a_source_that_is_another_directory_than_the_one_that_was_copied_is_not_believed(
    job: Job, old: Path, new: Path
) -> None:
    put(old / "a", b"a")
    copy(job, OtherFiles(), Progress())
    old.rename(old.with_name("unmounted"))
    for make in (old.mkdir, lambda: None, old.rmdir):
        make()
        with pytest.raises(RelocationError, match="mount its file system again"):
            switch(job, OtherFiles(), Progress())
        assert (new / "a").read_bytes() == b"a"
    old.with_name("unmounted").rename(old)
    switch(job, OtherFiles(), Progress())


def test_one_move_at_a_time_into_and_out_of_a_directory(memory: Path, job: Job, old: Path, new: Path) -> None:
    put(old / "a", b"a")
    put(memory / "third/a", b"a")
    copy(job, OtherFiles(), Progress())
    other = job_for(memory, ("outputs", memory / "third", new))
    with pytest.raises(RelocationError, match=f"belongs to a move from {old}"):
        copy(other, OtherFiles(), Progress())
    onwards = job_for(memory, ("outputs", new, memory / "fourth"))
    with pytest.raises(RelocationError, match="is itself the target of a move that is not over"):
        copy(onwards, OtherFiles(), Progress())


def test_what_does_not_fit_is_said_before_a_byte_is_copied(job: Job, old: Path, new: Path) -> None:
    class Small(OtherFiles):
        room = 2500

        def free(self, path: str) -> int:
            return self.room

    put(old / "a", b"a" * 3000)
    put(old / "b", b"b" * 2000)
    one = replace(job, reserve=500)
    told = plan(one, Small()).space[0]
    assert (told.needed, told.free, told.missing) == (5000, 2500, 3000)
    assert "0.1 MB are to be copied there and 0.1 MB are free: free 0.1 MB, then run again" in obstacles(one, Small())
    Small.room = 5499
    assert obstacles(one, Small())
    Small.room = 5500
    copy(one, Small(), Progress())
    Small.room = 500
    copy(one, Small(), Progress())
    put(old / "c", b"c" * 2000)
    with pytest.raises(RelocationError, match=r"free 0\.1 MB, then run again"):
        switch(one, Small(), Progress())
    assert not (new / "c").exists()


def test_a_disk_that_fills_up_on_the_way_keeps_what_was_copied(job: Job, old: Path, new: Path) -> None:
    class Filling(OtherFiles):
        left = 12_000

        def write(self, descriptor: int, data: memoryview, offset: int) -> None:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(descriptor, data, offset)

    for number in range(4):
        put(old / str(number), os.urandom(5000))
    wanted = contents(old)
    for copied in (2, 2):
        with pytest.raises(RelocationError, match="no room left"):
            copy(job, Filling(), Progress())
        assert len([path for path in new.iterdir() if path.name != OURS]) == copied
        Filling.left = 4_000
    assert copy(job, OtherFiles(), Progress())[str(old)].copied_files == 2
    switch(job, OtherFiles(), Progress())
    assert contents(new) == wanted


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a file immutable")
@pytest.mark.parametrize("which", ["d/a", "d"])
def test_what_is_immutable_is_named_before_anything_moves(tmp_path: Path, which: str) -> None:
    put(tmp_path / "old/d/a", b"a")
    put(tmp_path / "new/d/b", b"b")
    job = job_for(tmp_path, ("outputs", tmp_path / "old", tmp_path / "new"))
    subprocess.run(["chattr", "+i", tmp_path / "old" / which], check=True)
    try:
        assert f"{tmp_path}/old/{which} is immutable or append-only" in obstacles(job, Files())
        with pytest.raises(RelocationError, match="chattr -ia"):
            switch(job, Files(), Progress())
        assert (tmp_path / "old/d/a").exists()
    finally:
        subprocess.run(["chattr", "-i", tmp_path / "old" / which], check=True)
    all_verbs(job, Files())
    assert (tmp_path / "new/d/a").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a file immutable")
def test_what_becomes_immutable_later_stays_and_is_named(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    put(old / "a", b"a")
    put(old / "b", b"b")
    job = job_for(tmp_path, ("outputs", old, new))
    copy(job, OtherFiles(), Progress())
    subprocess.run(["chattr", "+i", old / "a"], check=True)
    try:
        switch(job, OtherFiles(), Progress())
        left = finish(job, OtherFiles())[str(old)].left
    finally:
        subprocess.run(["chattr", "-i", old / "a"], check=True)
    assert list(left) == ["a"] and "chattr -ia" in left["a"]
    assert (old / "a").exists() and not (old / "b").exists()


# Power cuts


class Ordered(OtherFiles):
    """What reaches the disk, in order."""

    def __init__(self) -> None:
        self.order: list[tuple[str, Any]] = []

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self.order.append(("sync", os.fstat(descriptor).st_ino))

    def append(self, path: Path, text: bytes) -> None:
        self.order.append(("told", text))
        super().append(path, text)

    def rename(self, source: Place, target: Place) -> None:
        self.order.append(("named", Path(source.path).lstat().st_ino))
        super().rename(source, target)

    def unlink(self, place: Place) -> None:
        self.order.append(("unlinked", place.path))
        super().unlink(place)


def test_bytes_reach_the_disk_before_the_journal_says_so_and_names_before_the_source_goes(
    memory: Path, old: Path
) -> None:
    files, new = Ordered(), memory / "further/down/new"
    job = job_for(memory, ("outputs", old, new))
    put(old / "d/a", b"a")
    copy(job, files, Progress())
    put(old / "d/b", b"b")
    switch(job, files, Progress())
    finish(job, files)
    told = [number for number, (what, _) in enumerate(files.order) if what == "told"]
    for number, name in enumerate(("d/a", "d/b")):
        inode = (new / name).stat().st_ino
        synced, named = files.order.index(("sync", inode)), files.order.index(("named", inode))
        removed = files.order.index(("unlinked", str(old / name)))
        assert synced < told[number] < named
        for above in (new / "d", new, new.parent, new.parent.parent, memory):
            assert ("sync", above.stat().st_ino) in files.order[named:removed]


def test_many_at_once_are_as_good_as_one_after_the_other(job: Job, old: Path, new: Path) -> None:
    for number in range(200):
        put(old / f"{number % 7}/{number}", os.urandom(number * 10))
        if number % 10 == 0:
            (old / f"{number}-too").hardlink_to(old / f"{number % 7}/{number}")
    wanted = contents(old)
    all_verbs(replace(job, jobs=8), OtherFiles())
    assert contents(new) == wanted
    assert (new / "50-too").stat().st_nlink == 2
    assert not old.exists()


def test_a_file_of_many_names_goes_name_by_name_in_one_pass(memory: Path) -> None:
    source, target = memory / "old", memory / "new"
    first = put(source / "a", b"1")
    for name in "bcdef":
        os.link(first, source / name)
    put(target / "other", b"2")
    done = switch(job_for(memory, ("outputs", source, target)), Files(), Progress())[str(source)]
    assert not done.waits and sorted(path.name for path in target.iterdir()) == [*"abcdef", "other"]
    assert (target / "f").stat().st_nlink == 6
