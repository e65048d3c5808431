"""Carrying a reorganisation out: what is under way outlives a kill, nothing without a yes, and what stepped aside comes back."""

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyinfra.api.deploy import add_deploy
from test_deployment import settings
from test_reorganisation import OLD, declared, host, planned, record
from test_stages import Told

import deploy
from atelier import lifecycle, mending, operate, previous_stack, reorganisation, reprovision, takedown
from atelier import reboot as restarting
from atelier.ailments import Ailments
from atelier.console import Narrator
from atelier.deployment import Deployment
from atelier.displacement import Displaced
from atelier.errors import AtelierError
from atelier.previous_stack import Found as PreviousStack
from atelier.previous_stack import Inside
from atelier.reboot import RestartNeededError
from atelier.reorganisation import Container, Found, Journal, Reorganisation
from atelier.repairs import Repair
from atelier.reprovision import Survey, Wishes, Work
from atelier.ssh import Completed, Destination
from atelier.target import Target
from relocation.job import Move
from relocation.plan import Planned
from stages import provision

TARGET = Target("box", "host", Destination("box"), settings(), "HOST=box")
ASIDE = Displaced("1", "art", "unless-stopped", True, True, "why", "forge", (7860,), ("atelier-art",))
JOURNAL = Journal(
    OLD,
    replace(OLD, data_root="/data"),
    (Move("state", "/srv/atelier/state", "/data/state", "/srv/atelier/state", "/data"),),
    (ASIDE,),
    (replace(ASIDE, id="2", ours=False),),
    (10001, 10002),
    ("/data",),
    True,
)


def test_a_journal_is_read_as_it_was_written() -> None:
    file = reprovision.journal_file(JOURNAL)
    assert file.mode == 0o600 and reprovision.read_journal(file.content.decode()) == JOURNAL
    bare = Journal(None, OLD)
    assert reprovision.read_journal(reprovision.journal_file(bare).content.decode()) == bare


@pytest.mark.parametrize("text", ["", "\n"])
def test_without_a_journal_nothing_was_begun(text: str) -> None:
    assert reprovision.read_journal(text) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 2, "release": "1"}', '{"schema": 2, "release": "1", "journal": {}}']
)
def test_a_damaged_journal_is_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(AtelierError, match="damaged") as raised:
        reprovision.read_journal(text)
    assert "*.previous" in raised.value.hint


def test_a_journal_of_a_later_release_is_left_alone() -> None:
    document = json.loads(reprovision.journal_file(JOURNAL).content) | {
        "schema": 99,
        "release": "9.9",
        "journal": {"other": 1},
    }
    with pytest.raises(AtelierError, match=r"9\.9"):
        reprovision.read_journal(json.dumps(document))


def test_containers_as_docker_tells_them() -> None:
    told = """
1a /comfyui-qwen true unless-stopped:0 0123456789abcdef
2b /old false on-failure:3 -
3c /bare true :0 -
"""
    assert reprovision.parse_containers(told) == (
        Container("1a", "comfyui-qwen", True, "unless-stopped", True),
        Container("2b", "old", False, "on-failure:3", False),
        Container("3c", "bare", False, "no", True),
    )


class Host:
    """What runs on it, by name to id; what it was told to do, in order."""

    destination = Destination("box")

    def __init__(self, containers: dict[str, str], gone: Sequence[str] = (), marks: Sequence[str] = ()) -> None:
        self.containers, self.gone, self.marks, self.done = containers, gone, marks, list[str]()

    def run(self, script: str, **_: object) -> Completed:
        if script == reprovision.CONTAINERS:
            rows = [f"{one} /{name} true unless-stopped:0 label" for name, one in self.containers.items()]
            return Completed(0, "\n".join(rows), "")
        if script.startswith("[ -e "):
            source, mark = script.split()[2], script.split()[-2]
            return Completed(1 if source in self.gone or mark in self.marks else 0, "", "")
        self.done.append(script)
        return Completed(0, "", "")


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Work]:
    monkeypatch.setattr(lifecycle, "guard", lambda: "")
    monkeypatch.setattr(takedown, "carry_out", lambda ssh, step, _: ssh.done.append(step.script))

    def make(there: Host, journal: Journal, found: Found) -> Work:
        plan = planned(declared(), record(), found)
        survey = Survey(TARGET, record(), declared(), declared(), journal, False, found, plan)
        made = Work(survey, there, Narrator(), Wishes())
        made.gateway = made._gateway_id()
        return made

    return make


FOUND = host(record())
THERE = {each.name: each.id for each in FOUND.containers}
OURS = Journal(OLD, OLD, (), (replace(ASIDE, id="id-forge-turbo", name="forge-turbo"),), ours=(*THERE.values(),))
THEIRS = Journal(OLD, OLD, (), (), (Displaced("9", "comfyui-qwen", ports=(8188,)),), ours=(*THERE.values(),))
MOVING = replace(OURS, moves=JOURNAL.moves)


def fails(at: Work) -> str:
    with pytest.raises(AtelierError) as raised, at._coming_back():
        raise AtelierError("it does not start", "see its log")
    assert raised.value.hint == "see its log" and raised.value.message.startswith("it does not start")
    return raised.value.message


def test_ours_come_back_while_the_gateway_still_leads_to_them(work: Callable[..., Work]) -> None:
    there = Host({**THERE, "fresh": "id-fresh"})
    assert "forge-turbo run again as before" in fails(work(there, OURS, FOUND))
    text = "\n".join(there.done)
    assert "docker rm -f fresh" in text and text.index("docker rm -f fresh") < text.index("step id-forge-turbo")
    assert "id-comfyui-qwen" not in text


@pytest.mark.parametrize(
    "journal,containers,gone",
    [(OURS, {**THERE, "gateway": "id-fresh"}, ()), (MOVING, THERE, ("/srv/atelier/state",))],
    ids=["the gateway is another", "the data moved"],
)
def test_ours_stay_aside_where_nothing_leads_to_them(
    journal: Journal, containers: dict[str, str], gone: Sequence[str], work: Callable[..., Work]
) -> None:
    there = Host(containers, gone)
    assert "the same command goes on from there" in fails(work(there, journal, FOUND))
    assert not any("step" in script or "docker" in script for script in there.done)


def test_services_that_were_stopped_run_again_where_no_data_moved(work: Callable[..., Work]) -> None:
    there = Host(THERE)
    at = work(there, replace(JOURNAL, displaced=(), previous=()), FOUND)
    at.stopped, at.watchers_stopped = ["comfyui-qwen", "forge-turbo"], True
    fails(at)
    assert "docker start comfyui-qwen forge-turbo >/dev/null" in there.done
    assert "enable -q atelier-monitor.timer" in there.done[0] and "enable -q atelier-weights.service" in there.done[0]
    moved = Host(THERE)
    at = work(moved, replace(JOURNAL, displaced=(), previous=()), FOUND)
    at.stopped, at.moved = ["comfyui-qwen"], True
    assert "the data lies in its new place" in fails(at) and moved.done == []


def test_services_stay_stopped_where_a_copy_was_switched_to_and_the_old_place_is_still_there(
    work: Callable[..., Work],
) -> None:
    there = Host(THERE, marks=("/data/state/.relocating/switched",))
    at = work(there, replace(JOURNAL, displaced=(), previous=()), FOUND)
    at.stopped = ["comfyui-qwen"]
    assert "the data lies in its new place" in fails(at) and there.done == []


def test_services_stay_stopped_where_files_moved_one_by_one(
    work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Host(THERE)
    at = work(there, replace(JOURNAL, displaced=(), previous=()), FOUND)
    at.plan = replace(at.plan, moves=(Planned("state", "/srv/atelier/state", "/data/state", "merge"),))

    def broken(verb: str, _: str) -> None:
        raise AtelierError(f"{verb}: no room left")

    monkeypatch.setattr(at, "_relocate", broken)
    monkeypatch.setattr(lifecycle, "decide_again", lambda *_: declared())
    monkeypatch.setattr(lifecycle, "keep_credentials", lambda *_: None)
    with pytest.raises(AtelierError, match="the data lies in its new place"), at._coming_back():
        at._change_places()
    assert not any("docker start" in script for script in there.done)


def test_a_boot_in_the_middle_starts_nothing_that_makes_the_old_places_anew(work: Callable[..., Work]) -> None:
    there = Host(THERE)
    at = work(there, JOURNAL, FOUND)
    at.plan = replace(at.plan, owner=(1, 2))
    at._stop_writers()
    disabled = next(line for line in there.done[0].split(";") if "disable" in line)
    assert "atelier-weights.service" in disabled and "atelier-monitor.timer" in disabled


def test_the_previous_stack_comes_back_whatever_ours_did(work: Callable[..., Work]) -> None:
    there = Host({**THERE, "gateway": "id-fresh"})
    assert "comfyui-qwen run again as before" in fails(work(there, THEIRS, FOUND))
    assert "docker rm -f gateway" in there.done[0] and "step 9" in there.done[1]


def test_what_was_removed_meanwhile_is_not_said_to_run(work: Callable[..., Work]) -> None:
    class Emptied(Host):
        def run(self, script: str, **_: object) -> Completed:
            if "step 9" in script:
                return Completed(0, "gone\t9\tcomfyui-qwen\n", "")
            return super().run(script)

    told = fails(work(Emptied({**THERE}), THEIRS, FOUND))
    assert "comfyui-qwen cannot come back: somebody removed" in told and "as before" not in told


def test_what_a_killed_run_has_made_makes_room_as_well(work: Callable[..., Work]) -> None:
    """Its containers have the names and the ports of those that come back."""
    there = Host({**THERE, "comfyui-qwen": "id-of-the-killed-run", "gateway": "id-of-its-gateway"})
    found = replace(FOUND, containers=reprovision.parse_containers(there.run(reprovision.CONTAINERS).stdout))
    at = work(there, THEIRS, found)
    assert at.gateway == ""
    assert "comfyui-qwen run again as before" in fails(at)
    text = "\n".join(there.done)
    assert "docker rm -f comfyui-qwen gateway" in text and text.index("docker rm -f") < text.index("step 9")


def test_what_a_container_got_since_the_first_look_is_taken_over_before_it_goes(
    work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Host(THERE)
    at = work(there, THEIRS, FOUND)
    last = PreviousStack(aside=(replace(THEIRS.previous[0], keeps="a LoRA that came meanwhile"),), search=("/x",))
    brought, noted = list[object](), list[Journal]()
    monkeypatch.setattr(reprovision.previous_stack, "look", lambda *_: last)
    monkeypatch.setattr(
        reprovision.previous_stack, "bring", lambda *told: brought.append(told[2]) or SimpleNamespace(bytes=1, files=1)
    )
    monkeypatch.setattr(at, "_note", lambda journal: (noted.append(journal), setattr(at, "journal", journal)))
    at._adopt_the_rest()
    assert brought == [last] and noted == [at.journal]
    (kept,) = reorganisation.going(at.journal, FOUND)
    assert kept.keeps and "step 9" not in reprovision.displacement.remove_script([kept])


def test_a_fault_of_ours_brings_them_back_as_well(work: Callable[..., Work]) -> None:
    there = Host({**THERE, "gateway": "id-fresh"})
    with pytest.raises(ZeroDivisionError), work(there, THEIRS, FOUND)._coming_back():
        _ = 1 / 0
    assert "step 9" in there.done[1]


def test_an_interrupt_brings_nothing_back(work: Callable[..., Work], capsys: pytest.CaptureFixture[str]) -> None:
    there = Host(THERE)
    with pytest.raises(KeyboardInterrupt), work(there, THEIRS, FOUND)._coming_back():
        raise KeyboardInterrupt
    assert there.done == [] and "finishes what was begun" in capsys.readouterr().out


PRUNE = Repair("/ lacks 3 GB", "Empty the cache", "prune", remedy="it freed what it could", removes=True)
START = Repair("Docker does not run", "Start it", "start", remedy="look there")
THEIRS_LOOPS = Repair("the container theirs starts again and again", why="it is not ours", remedy="docker logs theirs")
MASKED = Repair("Docker is masked", why="somebody did that", remedy="systemctl unmask", stops=True)


class Asked(Narrator):
    """Answers questions, and knows what it said."""

    def __init__(self, *answers: bool) -> None:
        super().__init__()
        self.answers, self.said = [*answers], list[str]()

    def ask(self, question: str) -> bool:
        return self.answers.pop(0)

    def say(self, line: str, style: str | None = None) -> None:
        self.said.append(line)


def rounds(
    monkeypatch: pytest.MonkeyPatch, narrator: Asked, *seen: Sequence[Repair], yes: bool = False
) -> tuple[Survey, list[str]]:
    """What follows on looks that find this; the last goes on for ever. Returns the last survey and what was carried out."""
    looks, done = [*seen], list[str]()

    def look(*_: object) -> Survey:
        plan = planned(
            declared(), record(), replace(FOUND, repairs=tuple(looks.pop(0) if len(looks) > 1 else looks[0]))
        )
        return Survey(TARGET, record(), declared(), declared(), Journal(OLD, OLD), False, FOUND, plan)

    monkeypatch.setattr(reprovision, "look", look)
    monkeypatch.setattr(mending, "mend", lambda _, ours, __: done.extend(each.script for each in ours))
    wishes = Wishes(yes=yes)
    consent = reprovision.Consent(TARGET, wishes, narrator)
    survey = reprovision.repaired(TARGET, Host(THERE), wishes, narrator, consent)
    assert [each.script for each in consent.repaired] == done
    return survey, done


def test_repairs_go_on_until_nothing_is_left_that_is_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    narrator = Asked()
    again = replace(START, script="docker rm -f ours")
    survey, done = rounds(monkeypatch, narrator, [START], [again, THEIRS_LOOPS], [THEIRS_LOOPS])
    assert done == ["start", "docker rm -f ours"] and survey.plan.repairs == (THEIRS_LOOPS,)
    told = "\n".join(narrator.said)
    assert told.count("Docker does not run: start it") == 2 and told.count("-> docker logs theirs") == 1


def test_a_healthy_host_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    survey, done = rounds(monkeypatch, Asked(), [])
    assert done == [] and survey.plan.is_empty()


def test_what_stops_everything_is_said_before_a_yes_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    narrator = Asked()
    with pytest.raises(AtelierError, match="Docker is masked: somebody did that"):
        rounds(monkeypatch, narrator, [PRUNE, MASKED])
    assert any("not touched" in line for line in narrator.said)


def test_what_only_a_later_look_sees_to_remove_is_asked_about_again(monkeypatch: pytest.MonkeyPatch) -> None:
    more = replace(PRUNE, script="docker image rm x")
    _, done = rounds(monkeypatch, Asked(True, True), [PRUNE, START], [more], [])
    assert done == ["prune", "start", "docker image rm x"]
    with pytest.raises(AtelierError, match="nothing was changed"):
        rounds(monkeypatch, Asked(False), [PRUNE, START])
    with pytest.raises(AtelierError, match="nothing more was changed"):
        rounds(monkeypatch, Asked(True, False), [PRUNE, START], [more], [])
    _, done = rounds(monkeypatch, Asked(), [PRUNE], [more], [], yes=True)
    assert done == ["prune", "docker image rm x"]


def test_a_repair_that_changed_nothing_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    narrator = Asked(True)
    less = replace(PRUNE, problem="/ lacks 1 GB")
    survey, done = rounds(monkeypatch, narrator, [PRUNE], [less])
    assert done == ["prune"] and survey.plan.repairs == ()
    assert "  / lacks 1 GB still: it freed what it could" in narrator.said
    with pytest.raises(AtelierError, match="the repair did not help"):
        rounds(monkeypatch, Asked(), [START])


def test_a_host_that_breaks_ever_anew_is_left_to_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = [[replace(START, problem=f"trouble {number}", script=str(number))] for number in range(20)]
    with pytest.raises(AtelierError, match=rf"{reprovision.ROUNDS} rounds of repairs.*trouble 4") as raised:
        rounds(monkeypatch, Asked(), *endless)
    assert "make doctor" in raised.value.hint


def test_a_yes_is_asked_for_once_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(declared(), record(), replace(FOUND, repairs=(PRUNE,)))
    narrator = Asked(True, False)
    consent = reprovision.Consent(TARGET, Wishes(), narrator)
    consent.require(plan)
    consent.require(plan)
    with pytest.raises(AtelierError, match="nothing was changed"):
        consent.require(Reorganisation(displaced=(ASIDE,)))  # a dead Docker told of no containers
    reprovision.Consent(TARGET, Wishes(), Asked()).require(planned(declared(), record(), FOUND))


def test_without_a_yes_and_without_a_terminal_nothing_is_done() -> None:
    plan = planned(declared(), record(), replace(FOUND, repairs=(PRUNE,)))
    with pytest.raises(AtelierError, match="nothing was changed") as raised:
        reprovision.Consent(TARGET, Wishes(), Narrator()).require(plan)
    assert "YES=1" in raised.value.hint


def test_a_failed_step_aside_names_the_container_and_why(work: Callable[..., Work]) -> None:
    class Refusing(Host):
        def run(self, script: str, **_: object) -> Completed:
            return Completed(0, "failed\tid-forge-turbo\tit was started with --rm\n", "")

    at = work(Refusing(THERE), OURS, FOUND)
    with pytest.raises(AtelierError, match="forge-turbo: it was started with --rm"):
        at._displace(reprovision.displacement.aside_script, OURS.displaced, "Have containers step aside")


def test_the_journal_begins_with_what_has_to_make_room() -> None:
    now = reorganisation.begin(record(), declared(data_root="/data"), FOUND.containers, PreviousStack())
    assert now.before == OLD and now.after.data_root == "/data" and not now.switching and len(now.moves) == 4


def steps(
    monkeypatch: pytest.MonkeyPatch, stages: Callable[[Deployment], None], chosen: Deployment
) -> tuple[list[str], str]:
    """The stages that would do something on a host that answers nothing, and all commands that they run."""
    host = Told(monkeypatch)
    names = host.run(lambda state: add_deploy(state, stages, chosen))
    return list(dict.fromkeys(name.split(" | ")[0] for name in names)), "\n".join(host.commands)


def test_the_switch_does_only_what_the_services_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done, commands = steps(monkeypatch, deploy.switched, declared())
    assert done == ["Manifest", "Host", "Docker", "Credentials", "Services", "Gateway"]
    assert "apt-get" not in commands and "docker build" not in commands and "systemctl restart" not in commands
    assert commands.index("docker network create") < commands.index("compose up")


@pytest.mark.parametrize("deployed", [True, False])
def test_what_is_prepared_leaves_containers_and_networks_alone(monkeypatch: pytest.MonkeyPatch, deployed: bool) -> None:
    chosen = declared()
    chosen = replace(
        chosen, facts=replace(chosen.facts, deployed=deployed), present=frozenset(chosen.image_tags().values())
    )
    done, commands = steps(monkeypatch, deploy.prepared, chosen)
    assert ("Docker" in done) is not deployed and "Credentials" not in done
    assert "docker compose" not in commands and "docker rm" not in commands


class Local:
    """This computer in the place of a host."""

    destination = Destination("box")

    def run(self, script: str, *, stdin: bytes = b"", **_: object) -> Completed:
        shell = script.replace("/usr/bin/python3", shlex.quote(sys.executable))
        done = subprocess.run(["sh", "-c", shell], input=stdin, capture_output=True)
        return Completed(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_moves_are_planned_by_a_program_that_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "work"))
    (tmp_path / "work").mkdir()
    old, new = tmp_path / "it's old", tmp_path / "new"
    (old / "vae").mkdir(parents=True)
    (old / "vae/a").write_bytes(b"a" * 100_000)
    moves = (Move("models", str(old), str(new), str(old)),)
    plan = reprovision._plan_moves(Local(), settings(), Journal(OLD, OLD, moves))
    assert [(each.how, each.files, each.target) for each in plan.moves] == [("rename", 1, str(new))]
    assert not plan.obstacles and not new.exists() and list((tmp_path / "work").iterdir()) == []
    inside = (Move("models", str(old), f"{old}/inside", str(old)),)
    assert reprovision._plan_moves(Local(), settings(), Journal(OLD, OLD, inside)).obstacles


def test_the_directories_that_a_move_makes_are_known_before(tmp_path: Path, work: Callable[..., Work]) -> None:
    journal = Journal(
        OLD, OLD, (Move("models", "/srv/atelier/models", f"{tmp_path}/a b/c/models", "/srv/atelier/models"),)
    )
    at = work(Host(THERE), journal, FOUND)
    at.ssh = Local()
    vae = f"{tmp_path}/a b/c/models/vae"
    made = at._missing()
    assert made[:3] == [f"{tmp_path}/a b", f"{tmp_path}/a b/c", f"{tmp_path}/a b/c/models"] and vae in made
    Path(vae).mkdir(parents=True)
    assert vae not in at._missing(), "it was there before"
    at.journal = OURS
    assert at._missing() == []


def test_where_a_previous_stack_has_weights_is_searched_in_this_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []

    def prepare(target: Target, *_: object, **__: object) -> Deployment:
        searched.extend(target.settings.models.search)
        chosen = declared()
        return replace(chosen, facts=replace(chosen.facts, reorganising=True))

    monkeypatch.setattr(previous_stack, "look", lambda *_: PreviousStack(search=("/old/models",)))
    monkeypatch.setattr(lifecycle, "prepare", prepare)
    monkeypatch.setattr(mending, "look", lambda *_: Ailments())
    survey = reprovision.look(TARGET, Host({}), Wishes(root="/old"), Narrator())
    assert searched == [*TARGET.settings.models.search, "/old/models"]
    assert survey.target.settings == TARGET.settings
    assert not survey.deployment.facts.reorganising and not survey.before.facts.reorganising


@pytest.mark.parametrize(
    "adopts,known,taken,told",
    [(True, "", True, False), (False, "", False, True), (True, "1", False, False), (False, "1", False, False)],
)
def test_the_token_is_taken_where_it_is_asked_for_and_told_of_where_it_could_be(
    adopts: bool, known: str, taken: bool, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reprovision.store, "load", lambda _: None)
    found = PreviousStack(token_files=("/old/.secrets/t",))
    facts = replace(declared().facts, instance=known)
    about = reprovision._about_token(TARGET, Wishes(adopt_token=adopts), found, facts)
    assert bool(about.token_files) is taken and ("ADOPT_TOKEN=1" in " ".join(about.notes)) is told


def test_nothing_is_taken_from_a_container_that_somebody_keeps_in_his_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Displaced("1", "comfyui-qwen", running=False)
    stack = PreviousStack(aside=(kept,), search=("/old/models",), inside=(Inside("1", "/a.ckpt", "/b/a.ckpt"),))
    monkeypatch.setattr(previous_stack, "look", lambda *_: stack)
    monkeypatch.setattr(lifecycle, "prepare", lambda *_, **__: declared())
    monkeypatch.setattr(mending, "look", lambda *_: Ailments())
    survey = reprovision.look(TARGET, Host({}), Wishes(), Narrator())
    assert survey.found.previous == PreviousStack(aside=(kept,)) and survey.plan.is_empty()


def test_a_restart_that_is_due_brings_nothing_back(work: Callable[..., Work]) -> None:
    there = Host(THERE)
    with pytest.raises(RestartNeededError), work(there, THEIRS, FOUND)._coming_back():
        raise RestartNeededError("box", "a driver was installed")
    assert there.done == []


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch, work: Callable[..., Work]) -> list[str]:
    """A reprovision whose driver needs a restart once; what was done, in order."""
    log = list[str]()

    def prepared(*_: object) -> provision.Outcome:
        log.append("prepared")
        return provision.Outcome(1, (), 1, "" if "restarted" in log else "the driver is not loaded")

    def look(*_: object) -> Survey:
        log.append("looked")
        plan = planned(declared(data_root="/data"), record(), FOUND)
        return Survey(TARGET, record(), declared(), declared(), MOVING, False, FOUND, plan)

    monkeypatch.setattr(operate, "connected", lambda *_: Host(THERE))
    monkeypatch.setattr(operate, "quick_verify", lambda *_: 0)
    monkeypatch.setattr(operate, "print_access", lambda *_: None)
    monkeypatch.setattr(lifecycle, "host_lock", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(restarting, "boot_id", lambda *_: "a boot")
    monkeypatch.setattr(restarting, "reboot", lambda *_: log.append("restarted"))
    monkeypatch.setattr(reprovision, "look", look)
    monkeypatch.setattr(reprovision, "obstacles", lambda *_: [])
    monkeypatch.setattr(provision, "prepare", prepared)
    monkeypatch.setattr(Work, "carry_out", lambda at: (at._prepare(), log.append("carried out")))
    return log


def test_a_restart_is_asked_for_and_the_rest_follows_without_another_question(
    restarts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()
    monkeypatch.setattr(Narrator, "ask", lambda _, question: asked.append(question) or True)
    assert reprovision.run(TARGET, Wishes(), Narrator()) == 0
    assert restarts == ["looked", "prepared", "restarted", "looked", "prepared", "carried out"]
    assert asked == ["Do this to box?", "Restart box now?"]


def test_without_a_yes_nothing_is_restarted(restarts: list[str]) -> None:
    with pytest.raises(AtelierError, match="must be restarted before this can go on") as raised:
        reprovision.run(TARGET, Wishes(yes=True), Narrator())
    assert restarts == ["looked", "prepared"] and "REBOOT=1" in raised.value.hint


def test_a_restart_that_was_agreed_to_before_is_not_asked_for(restarts: list[str]) -> None:
    assert reprovision.run(TARGET, Wishes(yes=True, reboot=True), Narrator()) == 0
    assert "restarted" in restarts


def test_the_number_that_the_service_user_gets_is_asked_for_as_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    users = {"users": frozenset({"atelier"})}
    known = replace(record(), created={**record().created, **users})
    now = declared(service_uid=10002)
    now = replace(now, facts=replace(now.facts, service_user_uid="10001", gid_owner="staff"))
    plan = planned(now, known, FOUND)
    monkeypatch.setattr(lifecycle, "_unreachable", lambda *_: {})
    problems = [
        [each.problem for each in reprovision.obstacles(survey, Host({}), Narrator())]
        for survey in (
            Survey(TARGET, known, now, now, MOVING, False, FOUND, plan),
            Survey(TARGET, known, now, now, MOVING, False, FOUND, replace(plan, user="")),
        )
    ]
    assert any("group id 10002 belongs to `staff`" in each for each in problems[0])
    assert any("`atelier` exists with id 10001, not 10002" in each for each in problems[1])


def test_services_do_not_run_again_as_a_user_that_has_another_number(work: Callable[..., Work]) -> None:
    class Changed(Host):
        def run(self, script: str, **_: object) -> Completed:
            if script.startswith('[ "$(getent passwd atelier'):
                return Completed(0, "", "")
            return super().run(script, **_)

    there = Changed(THERE)
    at = work(there, replace(OURS, displaced=(), owner=(10001, 10002)), FOUND)
    at.plan, at.stopped = replace(at.plan, user="atelier"), ["forge-turbo"]
    assert "the data is of user id 10001 now: the same command goes on from there" in fails(at) and there.done == []
