"""Copying what somebody else has: everything arrives, verified, as the service's own; nothing of theirs or of ours is touched."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import pytest

from relocation import adopt as adopt_module
from relocation.adopt import Adopted, Adoption, adopt, read_adoptions
from relocation.files import Files, Place
from relocation.job import RelocationError
from weights.progress import Progress


class KilledError(BaseException):
    """As SIGKILL: nothing between it and the end heeds it."""


class Killed(Files):
    """Ends before its step-th change."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise KilledError


class Full(Files):
    def free(self, path: str) -> int:
        return 100


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt_module, "JOBS", 1)


@pytest.fixture
def theirs(memory: Path) -> Path:
    source = memory / "theirs"
    for name, text in {"a.png": "one", "2025/b.png": "two", "2025/c.png": "three", "notes.txt": ""}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
        os.utime(source / name, ns=(10**18, 10**18 + 7))
    (source / "link.png").symlink_to("a.png")
    return source


def adoption(theirs: Path, **more: object) -> Adoption:
    base = theirs.parent / "outputs"
    base.mkdir(exist_ok=True)
    return Adoption(str(theirs), str(base), "previous", os.getuid(), **more)


def run(*adoptions: Adoption, files: Files | None = None) -> Adopted:
    return adopt(list(adoptions), 0, files or Files(), Progress())


def tree(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(root)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_all_files_are_there_with_their_times_and_the_originals_stay(theirs: Path) -> None:
    before = tree(theirs)
    done = run(adoption(theirs))
    previous = theirs.parent / "outputs/previous"
    assert tree(previous) == before == tree(theirs)
    assert (done.files, done.bytes, done.same) == (4, 11, 0)
    assert done.left == {f"{theirs}/link.png": "it is no file (a link, a socket, a pipe or a device)"}
    assert {path.stat().st_mode & 0o777 for path in previous.rglob("*") if path.is_file()} == {0o644}
    assert not (previous / ".relocating").exists()


def test_a_second_run_copies_what_came_since(theirs: Path) -> None:
    run(adoption(theirs))
    (theirs / "later.png").write_text("later")
    done = run(adoption(theirs))
    assert (done.files, done.bytes, done.same) == (1, 5, 4)


def test_a_name_that_is_taken_stays_and_the_file_gets_the_next_one(theirs: Path) -> None:
    one = adoption(theirs)
    ours = Path(one.base) / "previous/a.png"
    ours.parent.mkdir()
    ours.write_text("ours")
    for already in (0, 1):
        done = run(one)
        assert ours.read_text() == "ours" and ours.with_name("a-2.png").read_text() == "one"
        assert done.renamed == ({} if already else {f"{theirs}/a.png": "a-2.png"})
    assert len(list(ours.parent.iterdir())) == 4


def test_the_same_bytes_of_another_time_are_there_once(theirs: Path) -> None:
    one = adoption(theirs)
    run(one)
    os.utime(theirs / "a.png")
    done = run(one)
    assert (done.files, done.same) == (0, 4) and not (Path(one.base) / "previous/a-2.png").exists()


def test_only_what_is_meant(theirs: Path) -> None:
    run(adoption(theirs, pattern="*.png", without=("2025",)))
    assert set(tree(theirs.parent / "outputs")) == {"previous/a.png"}


def test_a_link_of_the_service_leads_nowhere(theirs: Path) -> None:
    one = adoption(theirs)
    elsewhere = theirs.parent / "elsewhere"
    elsewhere.mkdir()
    (Path(one.base) / "previous").symlink_to(elsewhere)
    with pytest.raises(OSError, match="previous"):
        run(one)
    assert not list(elsewhere.iterdir())


def test_killed_before_any_change_the_next_run_finishes_and_no_name_has_other_bytes(theirs: Path) -> None:
    expected = tree(theirs)
    for step in range(1, 200):
        one = adoption(theirs)
        try:
            run(one, files=Killed(step))
            assert step > 20
            return
        except KilledError:
            pass
        visible = {k: v for k, v in tree(Path(one.base)).items() if ".relocating" not in k}
        assert visible.items() <= {f"previous/{name}": told for name, told in expected.items()}.items()
        run(one)
        assert tree(Path(one.base) / "previous") == expected and not (Path(one.base) / "previous/.relocating").exists()
        assert {path.stat().st_mode & 0o777 for path in (Path(one.base) / "previous").rglob("2025")} == {0o755}
        Path(one.base).rename(f"{one.base}.{step}")
    raise AssertionError("it never ended")


def test_what_does_not_fit_is_not_begun(theirs: Path) -> None:
    (theirs / "large.png").write_bytes(bytes(1000))
    with pytest.raises(RelocationError, match=r"make room for 0\.00 GB"):
        run(adoption(theirs), files=Full())
    assert not (theirs.parent / "outputs/previous").exists()


def test_a_disk_that_gives_back_other_bytes_is_told_of(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt_module, "hashed", lambda _: "0" * 64)
    with pytest.raises(RelocationError, match="other bytes"):
        run(adoption(theirs))
    assert not [name for name in tree(theirs.parent / "outputs") if ".relocating" not in name]


def test_a_job_is_read_and_one_without_its_directory_refused(theirs: Path) -> None:
    one = adoption(theirs, without=("2025",))
    job = theirs.parent / "job.json"
    told = {"source": one.source, "base": one.base, "into": one.into, "owner": one.owner, "without": ["2025"]}
    job.write_text(json.dumps({"moves": [], "adopt": [told]}))
    assert read_adoptions(job) == [one]
    job.write_text(json.dumps({"moves": [], "adopt": [{**told, "base": "/nonexistent"}]}))
    with pytest.raises(RelocationError, match="/nonexistent is not there"):
        read_adoptions(job)
    job.write_text(json.dumps({"moves": [], "adopt": [{}]}))
    with pytest.raises(RelocationError, match="describes no adoption"):
        read_adoptions(job)


def test_a_file_that_is_written_to_meanwhile_is_left_to_the_next_run(theirs: Path) -> None:
    class Writing(Files):
        def finish_part(self, *told: object) -> object:
            with (theirs / "a.png").open("a") as file:
                file.write(" and more")
            return super().finish_part(*told)

    one = adoption(theirs, pattern="a.png")
    done = run(one, files=Writing())
    assert "being written to" in done.left[f"{theirs}/a.png"] and done.files == 0
    assert tree(Path(one.base)) == {}
    run(one)
    assert (Path(one.base) / "previous/a.png").read_text() == "one and more"


class Swapping(Files):
    """Before a name goes, its service puts a link in the place of the directory, which is its own."""

    def __init__(self, previous: Path, other: Path) -> None:
        self.previous, self.other = previous, other

    def unlink(self, place: Place) -> None:
        if not self.previous.is_symlink():
            self.previous.rename(self.previous.with_name("aside"))
            self.previous.symlink_to(self.other)
        super().unlink(place)


def test_what_a_service_bends_while_parts_are_cleared_away_leads_nowhere(theirs: Path, memory: Path) -> None:
    one = adoption(theirs)
    victim = memory / "etc" / ".relocating"
    victim.mkdir(parents=True)
    left = Path(one.base) / "previous" / ".relocating"
    left.mkdir(parents=True)
    for folder in (victim, left):
        (folder / "passwd").write_text("needed")
    swapping = Swapping(Path(one.base) / "previous", victim.parent)
    with contextlib.suppress(RelocationError, OSError):
        run(one, files=swapping)
    assert (victim / "passwd").read_text() == "needed"


def test_a_directory_among_the_parts_stays_and_hinders_nobody(theirs: Path) -> None:
    one = adoption(theirs)
    odd = Path(one.base) / "previous" / ".relocating" / "odd"
    odd.mkdir(parents=True)
    assert run(one).files == 4 and odd.is_dir()
