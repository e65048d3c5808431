"""make sabotage: what verify does not notice, does not name, or sees wrongly is a failure; what is broken is always undone."""

import re
import sys
from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace

import pytest

from atelier import cli, sabotage
from atelier.checks import Check
from atelier.errors import AtelierError
from atelier.report import CheckResult
from atelier.sabotage import Guest, Outcome, Sabotage, Saboteur, choose, concerned, faults, rotation, table
from atelier.settings import Settings


def declared(id: str, **more: object) -> Check:
    return Check(id, f"Title {id}", "", "the catalogue's hint", **more)


CHECKS = (
    declared("door.closed"),
    declared("door.locked", depends=("door.closed",)),
    declared("door.bolted", depends=("door.locked",)),
    declared("door.slow", quick=False),
    declared("door.restart", run="full"),
    declared("window.closed"),
    declared("roof.restart", run="full"),
    declared("window.service.healthz"),
)


def seen(id: str, verdict: str = "passed", observed: str = "as it must be", hint: str = "") -> CheckResult:
    return CheckResult(
        id=id, group=id.split(".")[0], title="", verdict=verdict, seconds=0, expected="", observed=observed, hint=hint
    )


def one(id: str = "door.open", **more: object) -> Sabotage:
    fields = {
        "does": "the door is opened",
        "breaks": "break door",
        "undoes": "mend door",
        "expects": ("door.closed",),
        "names": "door.*ajar",
    }
    return Sabotage(id, **{**fields, **more})


AJAR = seen("door.closed", "failed", "the front door is ajar", "close it")


@pytest.mark.parametrize(
    "more,results,fault",
    [
        ({}, [AJAR], None),
        ({}, [AJAR, seen("door.locked", "failed")], None),
        ({}, [AJAR, seen("door.locked", "failed"), seen("door.bolted", "failed")], "door.bolted turned red, too"),
        (
            {"expects": ("window.closed", "door.closed"), "names": "rain"},
            [seen("window.closed", "failed", "rain", "dry it"), seen("door.closed"), seen("door.locked", "failed")],
            "door.closed should have turned red, but passed\ndoor.locked turned red, too",
        ),
        ({}, [seen("door.closed")], "door.closed should have turned red, but passed"),
        ({}, [seen("door.closed", "warning", "ajar")], "door.closed should have turned red, but warning: ajar"),
        ({}, [seen("door.closed", "skipped", "no time")], "door.closed should have turned red, but skipped: no time"),
        ({}, [], "door.closed should have turned red, but this host has no such check"),
        (
            {},
            [AJAR, seen("window.closed", "failed", "rain", "dry it")],
            "window.closed turned red, too.*rain -> dry it",
        ),
        ({}, [AJAR, seen("window.closed", "skipped", "crashed")], "window.closed did not run: crashed"),
        ({"also": ("window.closed",)}, [AJAR, seen("window.closed", "failed")], None),
        ({"also": ("window",)}, [AJAR, seen("window.closed", "failed")], None),
        ({"also": ("win",)}, [AJAR, seen("window.closed", "failed")], "window.closed turned red, too"),
        ({}, [seen("door.closed", "failed", "a 500", "see the logs")], "door.closed does not name the cause.*a 500"),
        ({}, [seen("door.closed", "failed", "draught", "the door is ajar: close it")], None),
        ({"names": "door.*ajar.* -> .*close it"}, [AJAR], None),
        ({"names": "ajar.* -> .*lock it"}, [AJAR], "door.closed does not name the cause.*ajar -> close it"),
        ({}, [seen("door.closed", "failed", "the front door is ajar")], "door.closed does not say what to do"),
    ],
    ids=[
        "noticed and named",
        "what depends on it is red, too",
        "what depends on that is red as well",
        "what depends on a check that is green is red",
        "not noticed",
        "a warning is no red",
        "a skip is no red",
        "a check that this host has not",
        "an unexpected red",
        "an unexpected skip",
        "a red that the sabotage declares",
        "a group that it declares",
        "a beginning ends at a dot",
        "not named",
        "named by the hint",
        "named by both",
        "named, with another remedy",
        "named, without a remedy",
    ],
)
def test_what_is_a_fault(more: dict[str, object], results: list[CheckResult], fault: str | None) -> None:
    found = faults(one(**more), {result.id: result for result in results}, CHECKS)
    told = fault.splitlines() if fault else []
    assert len(found) == len(told) and all(re.search(*pair) for pair in zip(told, found, strict=True))


def test_its_groups_are_verified_without_what_only_full_does() -> None:
    quick = ["door.closed", "door.locked", "door.bolted"]
    assert concerned(one(), CHECKS) == [*quick, "door.slow"]
    assert concerned(one(), CHECKS, only_quick=True) == quick
    assert concerned(one(groups=("window",)), CHECKS)[4:] == ["window.closed", "window.service.healthz"]
    restart = one(expects=("door.restart",))
    assert concerned(restart, CHECKS, only_quick=True) == [*quick, "door.restart"]


class House:
    """A pretended sandbox, its guest and its verify."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.at_work = ""
        self.done: list[str] = []
        self.said: list[str] = []
        self.verified: list[tuple[str, ...]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.well = True

    def root(self, script: str, stdin: bytes = b"") -> str:
        self.done.append(script)
        verb, _, what = script.partition(" ")
        if verb == "fail":
            raise AtelierError("ended with 1: no such file")
        (self.broken.add if verb == "break" else self.broken.discard)(what)
        return ""

    def carry_out(self, deed: str | Callable[["House"], object]) -> None:
        self.root(deed) if isinstance(deed, str) else deed(self)

    def note(self, id: str) -> None:
        self.at_work = id

    def noted(self) -> str:
        return self.at_work

    def forget(self) -> None:
        self.at_work = ""

    def wait_until_well(self) -> None:
        if not self.well:
            raise AtelierError("not healthy within 180 s: forge exited")

    def examine(self, ids: Collection[str]) -> Mapping[str, CheckResult]:
        self.verified.append(tuple(ids))
        self.meanwhile()
        reds = {"door": AJAR, "window": seen("window.closed", "failed", "rain", "dry it")}
        return {id: seen(id) for id in ids} | {
            reds[what].id: reds[what] for what in self.broken if reds[what].id in ids
        }


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def saboteur(house: House, monkeypatch: pytest.MonkeyPatch) -> Saboteur:
    monkeypatch.setattr(sabotage, "SETTLED_SECONDS", 0)
    monkeypatch.setattr(sabotage, "CATALOGUE", CHECKS)
    return Saboteur(house, CHECKS, house.examine, lambda line, style: house.said.append(line))


def test_each_alone_noticed_and_undone(house: House, saboteur: Saboteur) -> None:
    rain = one(
        "window.open",
        breaks=lambda guest: guest.root("break window"),
        undoes=lambda guest: guest.root("mend window"),
        expects=("window.closed",),
        names="rain",
    )
    outcomes = list(saboteur.run([one(), rain]))
    assert [(outcome.faults, outcome.red) for outcome in outcomes] == [((), ("door.closed",)), ((), ("window.closed",))]
    assert house.done == ["break door", "mend door", "break window", "mend window"] and not house.at_work
    assert "[1/2] door.open: the door is opened" in house.said and "[2/2] window.open" in " ".join(house.said)
    assert house.verified[1] == ("door.closed", "window.service.healthz"), (
        "what was red, and whether all is served again"
    )


@pytest.mark.parametrize(
    "more,broken,fault",
    [
        ({"breaks": "true"}, (), "door.closed should have turned red, but passed"),
        ({"groups": ("window",), "undoes": "mend window"}, ("window",), "window.closed turned red, too"),
        ({"names": "burglar"}, (), "door.closed does not name the cause"),
        ({"breaks": "fail"}, (), "could not be tried: ended with 1: no such file"),
        ({"undoes": "true"}, (), "its undo does not lead back to green: door.closed failed: the front door is ajar"),
        ({"undoes": "fail"}, (), "could not be undone: ended with 1: no such file"),
    ],
    ids=["unnoticed", "unexpected red", "unnamed", "cannot be tried", "undo does nothing", "undo fails"],
)
def test_a_fake_sabotage_fails(
    house: House, saboteur: Saboteur, more: dict[str, str], broken: tuple[str, ...], fault: str
) -> None:
    def breaks(guest: House) -> None:
        guest.root(more.get("breaks", "break door"))
        guest.broken |= set(broken)

    def undoes(guest: House) -> None:
        guest.root(more.get("undoes", "mend door"))
        if "window" in broken:
            guest.root("mend door")

    [outcome] = saboteur.run([one(**{**more, "breaks": breaks, "undoes": undoes})])
    assert outcome.faults and fault in outcome.faults[0]
    assert f"not as it must be: {fault}" in "\n".join(house.said)


def test_what_cannot_be_undone_ends_the_run_and_stays_noted(house: House, saboteur: Saboteur) -> None:
    house.well = False
    outcomes = list(saboteur.run([one(), one("door.again")]))
    assert [outcome.stuck for outcome in outcomes] == [True] and house.at_work == "door.open"
    assert "could not be undone: not healthy within 180 s: forge exited" in outcomes[0].faults[0]
    assert "1 further sabotages were not tried" in house.said[-1]


@pytest.mark.parametrize("where", ["in breaks", "in verify"])
def test_an_interrupt_undoes_the_one_at_work(house: House, saboteur: Saboteur, where: str) -> None:
    def interrupted() -> None:
        house.meanwhile = lambda: None
        raise KeyboardInterrupt

    def breaks(guest: House) -> None:
        guest.root("break door")
        if where == "in breaks":
            interrupted()

    if where == "in verify":
        house.meanwhile = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(saboteur.run([one(breaks=breaks), one("door.again")]))
    assert house.done == ["break door", "mend door"] and not house.at_work and not house.broken
    assert "undone" in house.said[-1]


def test_what_a_killed_run_left_is_undone_first(house: House, saboteur: Saboteur) -> None:
    house.broken, house.at_work = {"door"}, "door.open"
    saboteur.undo_what_was_left([one("door.other", undoes="fail"), one()])
    assert house.done == ["mend door"] and not house.at_work
    assert "killed in the middle of door.open" in house.said[0]
    saboteur.undo_what_was_left([])
    assert house.done == ["mend door"]


@pytest.mark.parametrize("undoes,known", [("true", "door.open"), ("mend door", "door.renamed")])
def test_what_was_left_and_cannot_be_undone_is_an_error(
    house: House, saboteur: Saboteur, undoes: str, known: str
) -> None:
    house.broken, house.at_work = {"door"}, "door.open"
    with pytest.raises(AtelierError, match=r"door\.open") as raised:
        saboteur.undo_what_was_left([one(known, undoes=undoes)])
    assert "fresh" in raised.value.hint and house.at_work == "door.open"


def test_nothing_is_broken_where_something_is_red_before(house: House, saboteur: Saboteur) -> None:
    saboteur.require_well([one()])
    assert len(house.verified) == 1
    restart = one(expects=("roof.restart",))
    saboteur.require_well([restart])
    assert len(house.verified) == 1, "nothing is restarted for it, and nothing else asked for"
    house.broken = {"door"}
    with pytest.raises(AtelierError, match=r"not all is well before.*the front door is ajar"):
        saboteur.require_well([one()])


def settings(**more: object) -> Settings:
    return Settings.model_validate({"profile": "cpu", **more})


ALL = [one("door.open"), one("door.open-wide"), one("gpu.gone", needs="gpu"), one("access.expired", needs="tls")]


@pytest.mark.parametrize(
    "names,more,chosen",
    [
        ([], {}, ["door.open", "door.open-wide"]),
        ([], {"profile": "gpu-simulated"}, ["door.open", "door.open-wide", "gpu.gone"]),
        ([], {"tls": {"mode": "internal"}}, ["door.open", "door.open-wide", "access.expired"]),
        (["door.open"], {}, ["door.open"]),
        (["door"], {}, ["door.open", "door.open-wide"]),
        (["door."], {}, ["door.open", "door.open-wide"]),
        (["gpu", "door.open-wide"], {"profile": "gpu-simulated"}, ["door.open-wide", "gpu.gone"]),
    ],
)
def test_which_are_tried(names: list[str], more: dict[str, object], chosen: list[str]) -> None:
    assert [sabotage.id for sabotage in choose(ALL, names, settings(**more))] == chosen


@pytest.mark.parametrize(
    "name,problem",
    [
        ("door.opne", "did you mean door.open"),
        ("roof", "--list"),
        ("gpu.gone", "gpu.gone needs a sandbox with a simulated GPU"),
        ("access.expired", "access.expired needs a sandbox with TLS"),
    ],
)
def test_a_name_that_fits_nothing_here_is_an_error(name: str, problem: str) -> None:
    with pytest.raises(AtelierError) as raised:
        choose(ALL, ["door.open", name], settings())
    assert problem in str(raised.value)


def test_a_rotation_is_the_same_for_a_commit_and_reaches_all() -> None:
    slow = [one(f"door.{number}") for number in range(20)]
    picked = [rotation(slow, f"commit {number}") for number in range(60)]
    assert all(len({sabotage.id for sabotage in few}) == 6 for few in picked)
    assert rotation(slow, "commit 7") == picked[7] == rotation(slow[::-1], "commit 7") != picked[8]
    assert {sabotage.id for few in picked for sabotage in few} == {sabotage.id for sabotage in slow}


def test_the_table_says_what_turned_red_and_what_was_wrong() -> None:
    text = table([Outcome(one(does="a | b"), ("door.closed",), 3.4), Outcome(one("x.y"), (), 70, ("unnoticed",))])
    assert "| door.open | a \\| b | door.closed | 3 |" in text
    assert "| x.y | the door is opened | **not as it must be**: unnoticed | 70 |" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("--host", "user@gpu1.example"),
        ("--host", "root@sandbox"),
        ("--host", "sandbox.example"),
        ("--host", "SANDBOX"),
        ("--host", "sandbox:22"),
        ("--host", "localhost"),
        ("--limit", "gpu1"),
        ("--limit", "all"),
    ],
    ids=" ".join,
)
def test_only_sandboxes_are_broken(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts.yml").write_text("hosts: {gpu1: {address: user@gpu1.example}}\n")
    resolve = cli.resolve
    monkeypatch.setattr(cli, "resolve", lambda host, limit: resolve(host, limit, tmp_path))
    monkeypatch.setattr(sabotage, "run", lambda *_: pytest.fail("it was run"))
    monkeypatch.setattr(sys, "argv", ["atelier", "sabotage", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1 and "not a sandbox" in capsys.readouterr().err


@pytest.mark.parametrize(
    "told,refused", [("systemd-nspawn\n", False), ("none\n", True), ("docker\n", True), ("", True)]
)
def test_what_answers_under_a_sandboxs_name_must_be_one(told: str, refused: bool) -> None:
    ssh = SimpleNamespace(run=lambda script, **_: SimpleNamespace(stdout=told, status=0))
    guest = Guest(SimpleNamespace(name="sandbox-x"), ssh)
    if refused:
        with pytest.raises(AtelierError, match="is no sandbox"):
            guest.require_sandbox()
    else:
        guest.require_sandbox()


def test_scripts_know_where_the_data_lies() -> None:
    given: list[str] = []
    ssh = SimpleNamespace(run=lambda script, **_: given.append(script) or SimpleNamespace(stdout="", status=0))
    elsewhere = settings(models_dir="/big/models", outputs_dir="/big/out", data_root="/data/atelier")
    Guest(SimpleNamespace(name="sandbox-x", settings=elsewhere, kind="sandbox"), ssh).root(":")
    assert {"MODELS=/big/models", "OUTPUTS=/big/out", "USERS=/data/atelier/users"} <= {*given[0].splitlines()}
