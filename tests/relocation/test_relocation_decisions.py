"""What follows from what lies in source and target: tables."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from relocation.decide import aimed, candidates, destiny, is_skeleton, outdated, stays
from relocation.files import Entry, Identity, Mount, Place, Sort, Stamp, mount_of, read_mounts
from relocation.job import Move, RelocationError, moved, read_job, refusals
from relocation.journal import Known, Line, Verdict, parse

TIME = 1_700_000_000
SWITCHED = TIME * 10**9


def entry(name: str, inode: int, size: int = 5, sort: Sort = "file", mtime_ns: int = 7, ctime_ns: int = 9) -> Entry:
    return Entry(name, sort, Stamp(inode, size, mtime_ns, ctime_ns), 0o644, 0, 0, 1, 4096)


def known(*lines: Line) -> Known:
    found = Known()
    for line in lines:
        found.add(line)
    return found


def line(source: Entry, found: Entry, verdict: Verdict = "copied", into: str | None = None) -> Line:
    return Line(source.name, into or found.name, source.stamp, found.identity, verdict, "0" * 64)


ASIDE = f"d/a.from-{TIME}"
OURS = entry("d/a", 1)
THERE = entry("d/a", 50)
LONGER = entry("d/a", 51, size=6)
THERE_ASIDE = entry(ASIDE, 52)
FOLDER = entry("d/a", 53, sort="directory")


@pytest.mark.parametrize(
    ("one", "present", "lines", "action", "into"),
    [
        (OURS, [], [], "put", "d/a"),
        (OURS, [THERE], [], "compare", "d/a"),
        (OURS, [LONGER], [], "put", ASIDE),
        (OURS, [FOLDER], [], "put", ASIDE),
        (OURS, [THERE], [line(OURS, THERE)], "done", "d/a"),
        (OURS, [THERE], [line(OURS, THERE, "same")], "done", "d/a"),
        (OURS, [THERE], [line(OURS, THERE, "different")], "put", ASIDE),
        (OURS, [THERE, THERE_ASIDE], [line(OURS, THERE, "different")], "compare", ASIDE),
        (OURS, [THERE, THERE_ASIDE], [line(OURS, THERE, "different"), line(OURS, THERE_ASIDE)], "done", ASIDE),
        (
            OURS,
            [THERE, THERE_ASIDE],
            [line(OURS, THERE, "different"), line(OURS, THERE_ASIDE, "different")],
            "put",
            f"{ASIDE}-2",
        ),
        # Whatever was found out of another file says nothing: the source or the target changed since.
        (OURS, [entry("d/a", 50, mtime_ns=8)], [line(OURS, THERE)], "compare", "d/a"),
        (entry("d/a", 1, ctime_ns=10), [THERE], [line(OURS, THERE)], "compare", "d/a"),
        (FOLDER, [entry("d/a", 54, sort="directory")], [], "done", "d/a"),
        (FOLDER, [THERE], [], "put", ASIDE),
        (entry("d/a", 1, sort="link"), [entry("d/a", 50, 9, "link")], [], "compare", "d/a"),
        (entry("d/a", 1, sort="special"), [entry("d/a", 50, sort="special")], [], "put", ASIDE),
    ],
)
def test_where_an_entry_goes(one: Entry, present: list[Entry], lines: list[Line], action: str, into: str) -> None:
    found = destiny(one, "d/a", {there.name: there for there in present}, known(*lines), TIME)
    assert (found.action, found.into) == (action, into)


def test_names_that_are_put_aside_fit_into_a_directory() -> None:
    assert list(islice(candidates("a.png", TIME), 3)) == ["a.png", f"a.png.from-{TIME}", f"a.png.from-{TIME}-2"]
    long = "d/" + "é" * 127
    for name in islice(candidates(long, TIME), 3):
        assert name.startswith("d/")
        assert len(name.encode("utf-8", "surrogateescape")) <= 255 + 2


COPY = entry("d/a", 60)


@pytest.mark.parametrize(
    ("source", "present", "lines", "gone"),
    [
        ([OURS], [COPY], [line(OURS, COPY)], []),
        ([], [COPY], [line(OURS, COPY)], ["d/a"]),
        ([entry("d/a", 1, ctime_ns=10)], [COPY], [line(OURS, COPY)], ["d/a"]),
        ([], [entry("d/a", 61)], [line(OURS, COPY)], []),
        ([], [COPY], [line(OURS, COPY, "same")], []),
        ([], [COPY], [line(OURS, COPY, "different")], []),
        ([], [], [line(OURS, COPY)], []),
        # Written to and back again: what was found out last counts.
        ([OURS], [COPY], [line(entry("d/a", 1, ctime_ns=3), COPY), line(OURS, COPY, "same")], []),
    ],
)
def test_only_copies_of_ours_whose_original_changed_are_taken_back(
    source: list[Entry], present: list[Entry], lines: list[Line], gone: list[str]
) -> None:
    told = outdated(known(*lines), {one.name: one for one in source}, {one.name: one for one in present})
    assert [one.into for one in told] == gone


@pytest.mark.parametrize(
    ("kind", "one", "present", "lines", "why"),
    [
        ("models", OURS, [COPY], [line(OURS, COPY)], None),
        ("models", OURS, [COPY], [line(OURS, COPY, "same")], None),
        ("models", OURS, [COPY], [], "was not moved"),
        ("models", OURS, [COPY], [line(OURS, COPY, "different")], "was not moved"),
        ("models", entry("d/a", 1, ctime_ns=10), [COPY], [line(OURS, COPY)], "was written to"),
        ("models", OURS, [], [line(OURS, COPY)], "is gone"),
        ("models", OURS, [entry("d/a", 60, size=4)], [line(OURS, COPY)], "is another file"),
        ("models", OURS, [entry("d/a", 60, mtime_ns=SWITCHED + 1)], [line(OURS, COPY)], "is another file"),
        ("outputs", OURS, [entry("d/a", 61, 9, mtime_ns=SWITCHED + 1)], [line(OURS, COPY)], None),
        ("outputs", OURS, [entry("d/a", 61, 9, mtime_ns=SWITCHED - 1)], [line(OURS, COPY)], "is another file"),
        ("users", OURS, [entry("d/a", 61, 9, "directory", SWITCHED + 1)], [line(OURS, COPY)], "is another file"),
        ("state", OURS, [], [line(OURS, COPY)], "is gone"),
        (
            "state",
            entry("weights/changed", 1),
            [],
            [line(entry("weights/changed", 1), COPY, into="weights/changed")],
            None,
        ),
    ],
)
def test_a_source_goes_only_while_its_copy_is_good(
    kind: Any, one: Entry, present: list[Entry], lines: list[Line], why: str | None
) -> None:
    told = stays(kind, one, known(*lines), {there.name: there for there in present}, SWITCHED)
    assert told is None if why is None else told and why in told


def test_the_other_names_of_a_file_go_after_the_first_is_gone() -> None:
    found = known(line(OURS, COPY))
    later = entry("d/a", 1, ctime_ns=10)
    assert stays("models", later, found, {"d/a": COPY}, SWITCHED)
    found.removing.add(later.identity)
    assert stays("models", later, found, {"d/a": COPY}, SWITCHED) is None
    assert stays("models", entry("d/a", 2, ctime_ns=10), found, {"d/a": COPY}, SWITCHED)


@pytest.mark.parametrize(
    ("kind", "tree", "empty"),
    [
        ("models", [], True),
        ("models", [entry("", 1, sort="directory"), entry("vae", 2, sort="directory"), entry(".lock", 3)], True),
        ("outputs", [entry("", 1, sort="directory"), entry(".lock", 3)], False),
        ("models", [entry("", 1, sort="directory"), entry("vae/.lock", 3)], False),
        ("models", [entry("", 1, sort="directory"), entry("a", 3, sort="link")], False),
    ],
)
def test_a_skeleton_holds_nothing_that_anybody_would_miss(kind: Any, tree: list[Entry], empty: bool) -> None:
    assert is_skeleton(kind, tree) is empty


PAIRS = [("/srv/a/models", "/data/models"), ("/srv/a/users", "/srv/b/users")]


@pytest.mark.parametrize(
    ("text", "aim"),
    [
        ("/srv/a/models/vae/x", "/data/models/vae/x"),
        ("/srv/a/models", "/data/models"),
        ("/srv/a/users/x", "/srv/b/users/x"),
        ("/srv/a/models2/x", "/srv/a/models2/x"),
        ("/etc/hostname", "/etc/hostname"),
        ("../models/x", "../models/x"),
        ("srv/a/models/x", "srv/a/models/x"),
    ],
)
def test_links_lead_to_where_things_are(text: str, aim: str) -> None:
    assert aimed(text, PAIRS) == aim


def test_a_directory_moves_with_what_it_holds() -> None:
    assert moved("/a/b/c", [("/a/b", "/x")]) == "/x/c"
    assert moved("/a/bc", [("/a/b", "/x")]) == "/a/bc"


def move(kind: Any, source: str, target: str) -> Move:
    return Move(kind, source, target, source)


@pytest.mark.parametrize(
    ("moves", "refused"),
    [
        ([move("models", "/srv/a/models", "/srv/b/models"), move("users", "/srv/a/users", "/srv/b/users")], None),
        ([move("models", "/srv/a/models", "/srv/a/models/in")], "lies in the other"),
        ([move("models", "/srv/a/models/in", "/srv/a/models")], "lies in the other"),
        ([move("models", "/srv/a/models", "/srv/a/models2")], None),
        ([move("models", "/srv/a", "/srv/a"), move("users", "/srv/a", "/srv/b")], None),
        ([move("models", "/srv/a", "/srv/b"), move("outputs", "/srv/b", "/srv/a")], "in each other's way"),
        ([move("models", "/srv/a", "/srv/c"), move("outputs", "/srv/b", "/srv/c")], "in each other's way"),
        ([move("models", "/srv/a", "/srv/c"), move("outputs", "/srv/b", "/srv/c/d")], "in each other's way"),
        ([move("models", "/srv/a", "/srv/c"), move("outputs", "/srv/a/x", "/srv/d")], "in each other's way"),
    ],
)
def test_moves_that_cannot_be_made_are_refused(moves: list[Move], refused: str | None) -> None:
    told = list(refusals(moves))
    assert bool(told) == bool(refused)
    assert all(refused in one for one in told if refused)


MOUNTS = r"""22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:30 / /data rw - tmpfs tmpfs rw
31 30 0:31 / /data/a\040b rw - tmpfs tmpfs rw
32 22 0:32 / /data rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [("/", "22"), ("/srv/a", "22"), ("/data", "32"), ("/data/x", "32"), ("/data/a b/c", "31"), ("/database", "22")],
)
def test_where_a_path_lies(path: str, found: str) -> None:
    assert mount_of(path, read_mounts(MOUNTS)).id == found
    assert read_mounts(MOUNTS)[2] == Mount("31", "/data/a b")


def test_a_journal_is_read_again_and_a_damaged_line_tells_nothing() -> None:
    one, two = line(OURS, COPY), Line("\udcff", "x\ny", OURS.stamp, COPY.identity, "same", "1")
    text = one.text() + b'\n["torn", "li' + two.text() + b'\n{"a": 1}\n[]\n["/removing", 1, 5, 7]\n'
    found = parse(text)
    assert found.lines == [one, two]
    assert found.removing == {Identity(1, 5, 7)}


def test_a_place_is_shown_whole() -> None:
    assert Place("/a", "b/c").path == "/a/b/c"
    assert Place("/a", "").path == "/a"


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        '{"moves": [{"kind": "models", "source": "/a"}]}',
        '{"moves": [{"kind": "weights", "source": "/a", "target": "/b"}]}',
        '{"moves": [{"kind": "models", "source": "a", "target": "/b"}]}',
        '{"moves": [{"kind": "models", "source": "/a", "target": "/b", "force": true}]}',
    ],
)
def test_what_is_no_job_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job").write_text(text)
    with pytest.raises(RelocationError, match="describes no job"):
        read_job(tmp_path / "job")


def test_a_job_is_read_with_its_links_followed(tmp_path: Path) -> None:
    (tmp_path / "big/state").mkdir(parents=True)
    (tmp_path / "srv").symlink_to(tmp_path / "big")
    source, target = str(tmp_path / "srv/state"), str(tmp_path / "new/state")
    told = {"moves": [{"kind": "state", "source": source, "target": target}], "records": f"{source}/weights"}
    (tmp_path / "job").write_text(json.dumps(told))
    job = read_job(tmp_path / "job")
    assert job.moves == (Move("state", str(tmp_path / "big/state"), target, source),)
    assert job.records == tmp_path / "new/state/weights"
