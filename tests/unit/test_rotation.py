"""Rotation: what must be so afterwards, what is refused before, and how a run goes on with one that was killed."""

import contextlib
import io
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from test_deployment import CREDENTIALS, deployment
from websockets.exceptions import ConnectionClosedOK

from atelier import credentials as store
from atelier import lifecycle, paths, rotation
from atelier.console import Narrator
from atelier.credentials import Account, Credentials, Former
from atelier.errors import AtelierError
from atelier.hostfacts import HostFacts
from atelier.rotation import Downtime, Rotation, Visitor, answer, proofs, undeployed, unprovable
from atelier.settings import Settings
from atelier.ssh import Destination
from atelier.target import Target

OLD = Account(user="someone", password="the old one", password_bcrypt="$2b$12$old")
NEW = Account(user="someone", password="the new one", password_bcrypt="$2b$12$new")
AFTER = CREDENTIALS.model_copy(update={"comfyui": NEW, "forge": NEW})
BEFORE = CREDENTIALS.model_copy(update={"comfyui": OLD, "forge": OLD})
BOTH = ("comfyui", "forge")


def former_of(services: tuple[str, ...], known: Credentials | None = BEFORE) -> Former:
    return Former(services=services, credentials=known, cookies={}, successor=store.fingerprint(AFTER))


@pytest.mark.parametrize(
    ("status", "said"),
    [(200, "admitted"), (302, "refused"), (401, "refused"), (403, "refused"), (400, "refused"), (0, "not answered")]
    + [(status, f"answered with {status}") for status in (204, 404, 413, 429, 500, 502, 503)],
)
def test_only_a_yes_and_a_no_prove_anything(status: int, said: str) -> None:
    assert answer(status) == said


class Gateway:
    """Stands for a service behind its gateway: `valid` are the accounts and sessions it lets in."""

    def __init__(self, service: str, *valid: object, at_work: int = 0) -> None:
        self.service, self.valid, self.generations = service, list(valid), at_work
        self.asked: list[object] = []
        self.served = True

    def by_header(self, account: Account | None) -> int:
        self.asked.append(account)
        return 503 if not self.served else 200 if account in self.valid else 401

    def by_form(self, account: Account) -> tuple[int, str]:
        return (200, f"session={account.password_bcrypt}") if account in self.valid else (401, "")

    def by_cookie(self, cookie: str) -> int:
        return 200 if cookie in self.valid else 401

    def is_served(self) -> bool:
        return self.served

    def is_there(self) -> bool:
        return True

    def at_work(self, account: Account) -> int:
        return self.generations if account in self.valid else 0

    def socket(self, account: Account) -> "Socket | None":
        return Socket() if self.service == "comfyui" and account in self.valid else None


class Socket:
    """A WebSocket whose other side says something and stays, or goes."""

    def __init__(self, ends: bool = True) -> None:
        self.ends, self.messages, self.closed = ends, ["status"], False

    def recv(self, timeout: float) -> str:
        if self.messages:
            return self.messages.pop()
        raise ConnectionClosedOK(None, None) if self.ends else TimeoutError

    def close(self) -> None:
        self.closed = True


def wrong(gateway: Gateway, cookie: str = "session=x", socket: Socket | None = None) -> list[str]:
    seen = proofs(gateway, NEW, OLD, cookie, socket)
    return [proof.line() for proof in seen if not proof.holds()]


@pytest.mark.parametrize("service", BOTH)
def test_a_rotation_is_proved_when_the_new_are_let_in_and_nothing_else(service: str) -> None:
    assert wrong(Gateway(service, NEW), socket=Socket()) == []


FAILURES: dict[str, tuple[str, list[object], Socket | None, list[str]]] = {
    "nobody gets in": (
        "comfyui",
        [],
        None,
        [
            "ComfyUI: the new token: refused, and must be admitted",
            "ComfyUI: the new password in the login form: refused, and must be admitted",
            "ComfyUI: a WebSocket with the new token: refused, and must be admitted",
        ],
    ),
    "a stranger gets in": ("forge", [NEW, None], None, ["Forge: a stranger: admitted, and must be refused"]),
    "the old get in": (
        "forge",
        [NEW, OLD],
        None,
        [
            "Forge: the old HTTP Basic: admitted, and must be refused",
            "Forge: the old password in the login form: admitted, and must be refused",
        ],
    ),
    "an old session lives": (
        "comfyui",
        [NEW, "session=x"],
        None,
        ["ComfyUI: a session from before: admitted, and must be refused"],
    ),
    "an old WebSocket lives": (
        "comfyui",
        [NEW],
        Socket(ends=False),
        ["ComfyUI: a WebSocket from before: open, and must be closed"],
    ),
}


@pytest.mark.parametrize(("service", "valid", "socket", "expected"), FAILURES.values(), ids=FAILURES.keys())
def test_what_is_not_as_it_must_be_is_named(
    service: str, valid: list[object], socket: Socket | None, expected: list[str]
) -> None:
    assert wrong(Gateway(service, *valid), socket=socket) == expected


def test_a_lock_out_proves_nothing() -> None:
    gateway = Gateway("forge", NEW)
    gateway.by_cookie = lambda cookie: 429  # type: ignore[method-assign]
    assert wrong(gateway) == ["Forge: a session from before: answered with 429, and must be refused"]


UNPROVABLE: dict[str, tuple[str, Account | None, str, Socket | None, list[str]]] = {
    "everything was at hand": ("comfyui", OLD, "x=y", Socket(), []),
    "Forge has no WebSocket": ("forge", OLD, "x=y", None, []),
    "resumed": ("comfyui", OLD, "x=y", None, ["ComfyUI: not shown: no WebSocket was held from before"]),
    "it was down": (
        "comfyui",
        OLD,
        "",
        None,
        [
            "ComfyUI: not shown: no session could be opened before",
            "ComfyUI: not shown: no WebSocket was held from before",
        ],
    ),
    "imported without a password": (
        "comfyui",
        OLD.model_copy(update={"password": None}),
        "",
        Socket(),
        [
            "ComfyUI: not shown: the password of before is not known here",
            "ComfyUI: not shown: no session could be opened before",
        ],
    ),
    "the store was lost": ("forge", None, "", None, ["Forge: not shown: the credentials of before are not known here"]),
}


@pytest.mark.parametrize(
    ("service", "former", "cookie", "socket", "expected"), UNPROVABLE.values(), ids=UNPROVABLE.keys()
)
def test_what_cannot_be_shown_is_said(
    service: str, former: Account | None, cookie: str, socket: Socket | None, expected: list[str]
) -> None:
    assert unprovable(service, former, cookie, socket) == expected


def record_of(known: Credentials) -> dict[str, dict[str, dict[str, str]]]:
    done = replace(deployment(), credentials=known)
    return {
        "images": {name: {"tag": tag} for name, tag in done.image_tags().items()},
        "services": {project.service: {"config": project.config} for project in done.projects()},
    }


def changed(record: dict, kind: str, name: str, value: dict[str, str] | None) -> dict:
    entries = {**record[kind], name: value}
    return {**record, kind: {key: entry for key, entry in entries.items() if entry is not None}}


RECORD = record_of(BEFORE)
MIXED = changed(RECORD, "services", "comfyui", record_of(AFTER)["services"]["comfyui"])
DEPLOYED: dict[str, tuple[dict, list[str]]] = {
    "as it is": (RECORD, []),
    "as it will be": (record_of(AFTER), []),
    "killed in between": (MIXED, []),
    "another image": (changed(RECORD, "images", "forge", {"tag": "atelier/forge:0"}), ["image forge"]),
    "an image more": (changed(RECORD, "images", "torch", None), ["image torch"]),
    "other settings": (changed(RECORD, "services", "gateway", {"config": "0"}), ["settings of gateway"]),
    "a service less": (changed(RECORD, "services", "forge", None), ["settings of forge"]),
    "a service more": (changed(RECORD, "services", "third", {"config": "0"}), ["settings of third"]),
}


@pytest.mark.parametrize(("record", "expected"), DEPLOYED.values(), ids=DEPLOYED.keys())
def test_a_checkout_that_would_change_more_is_found_out(record: dict, expected: list[str]) -> None:
    known = [replace(deployment(), credentials=each).projects() for each in (BEFORE, AFTER)]
    assert undeployed(record, deployment().image_tags(), *known) == expected


def test_of_unknown_credentials_the_images_alone_are_compared() -> None:
    tags = deployment().image_tags()
    assert undeployed(record_of(BEFORE), tags) == []
    assert undeployed(changed(RECORD, "images", "forge", {"tag": "x"}), tags) == ["image forge"]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setattr(paths, "secrets_dir", lambda name: tmp_path / ".secrets" / name)
    monkeypatch.setattr(store, "BCRYPT_COST", 4)
    for name in ("LOOK", "CLOSED_WITHIN"):
        monkeypatch.setattr(rotation, name, 0.001)
    return Target("box", "host", Destination("box"), Settings(profile="cpu"), "HOST=box")


class Stage:
    """A host with both services, and one rotation of it."""

    def __init__(self, target: Target, former: Former, resumed: bool, **gateways: Gateway) -> None:
        self.log = io.StringIO()
        self.target, self.gateways, self.directory = target, gateways, paths.secrets_dir("box")
        narrator = Narrator(Console(file=self.log, width=300))
        done = replace(deployment(), credentials=AFTER)
        self.rotation = Rotation(target, target.ssh(), narrator, former, done, resumed)

    def complete(self, consent: bool = False, before: Callable[[], None] = lambda: None) -> None:
        def carry_out(_: object) -> None:
            before()
            for gateway in self.gateways.values():
                gateway.valid = [NEW]

        self.rotation.complete(consent, carry_out)

    def said(self) -> list[str]:
        return self.log.getvalue().splitlines()


@pytest.fixture
def stage(target: Target, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    def make(
        services: tuple[str, ...] = BOTH, resumed: bool = False, known: Credentials | None = BEFORE, **further: Gateway
    ) -> Stage:
        former = former_of(services, known)
        gateways = {"comfyui": Gateway("comfyui", OLD), "forge": Gateway("forge", OLD), **further}
        made = Stage(target, former, resumed, **gateways)

        @contextlib.contextmanager
        def visits(_: Rotation) -> Iterator[dict[str, Gateway]]:
            yield gateways

        monkeypatch.setattr(Rotation, "visits", visits)
        return made

    return make


def test_a_rotation_stores_brings_and_proves(stage: Callable[..., Stage]) -> None:
    made = stage()

    def on_the_way() -> None:
        assert store.load(made.directory) == AFTER, "this computer before the host"
        begun = store.unfinished(made.directory)
        assert begun and begun.credentials == BEFORE
        assert begun.cookies == dict.fromkeys(BOTH, "session=$2b$12$old")

    made.complete(before=on_the_way)
    assert "  ComfyUI: a WebSocket from before: closed" in made.said()
    assert "  Forge: a session from before: refused" in made.said()
    assert store.unfinished(made.directory) is None and store.load(made.directory) == AFTER


def test_a_proof_that_fails_keeps_what_it_takes_to_repeat_it(stage: Callable[..., Stage]) -> None:
    made = stage()
    made.gateways["forge"].by_cookie = lambda cookie: 200  # type: ignore[method-assign]
    with pytest.raises(AtelierError, match="Forge: a session from before: admitted") as raised:
        made.complete()
    assert "make rotate HOST=box" in str(raised.value)
    assert store.unfinished(made.directory), "the next run has to prove it"


def test_a_service_that_is_not_served_is_not_proved(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stage()
    monkeypatch.setattr(rotation, "SERVED_WITHIN", 0.001)

    def fall_silent() -> None:
        made.gateways["comfyui"].served = False

    with pytest.raises(AtelierError, match="does not serve ComfyUI"):
        made.complete(before=fall_silent)
    assert store.unfinished(made.directory)


BUSY: dict[str, tuple[tuple[str, ...], dict[str, int], str]] = {
    "the one that rotates": (("comfyui",), {"comfyui": 2}, "ComfyUI would lose generations"),
    "both": (BOTH, {"comfyui": 1, "forge": 1}, "ComfyUI and Forge would lose generations"),
    "Forge, whose callers wait at the gateway": (("comfyui",), {"forge": 1}, "Forge would lose generations"),
}


@pytest.mark.parametrize(("services", "work", "problem"), BUSY.values(), ids=BUSY.keys())
def test_generations_are_lost_with_consent_only(
    services: tuple[str, ...], work: dict[str, int], problem: str, stage: Callable[..., Stage]
) -> None:
    # The account of a service that stays is the same before and after.
    gateways = {name: Gateway(name, OLD, *([] if name in services else [NEW]), at_work=work[name]) for name in work}
    made = stage(services, **gateways)
    with pytest.raises(AtelierError, match=problem) as raised:
        made.complete()
    assert "YES=1" in str(raised.value) and store.load_former(made.directory) is None, "nothing was begun"
    made.complete(consent=True)
    assert store.load(made.directory) == AFTER


def test_comfyui_goes_on_while_forge_rotates(stage: Callable[..., Stage]) -> None:
    stage(("forge",), comfyui=Gateway("comfyui", NEW, at_work=3)).complete()


def test_a_resumed_rotation_does_not_guess_where_the_new_are_in_force(stage: Callable[..., Stage]) -> None:
    made = stage(resumed=True, comfyui=Gateway("comfyui", NEW))
    store.begin_rotation(made.directory, made.rotation.former, AFTER)
    made.complete(before=lambda: wait_for(lambda: made.gateways["forge"].asked.count(OLD) > 1))
    assert made.gateways["comfyui"].asked.count(OLD) == 1, "for the proof alone"
    said = made.said()
    assert "  ComfyUI: its downtime is not known: the old credentials were out of force when this run began" in said
    assert "  ComfyUI: not shown: no WebSocket was held from before" in said
    assert any(line.startswith("  Forge: ") and "between the last answer" in line for line in said)


def test_unknown_credentials_are_replaced_without_asking_with_them(stage: Callable[..., Stage]) -> None:
    made = stage(known=None)
    made.complete()
    assert OLD not in made.gateways["comfyui"].asked
    assert "  Forge: not shown: the credentials of before are not known here" in made.said()


RUNS: dict[str, tuple[tuple[str, ...] | None, str, list[tuple[str, tuple[str, ...]]]]] = {
    "nothing was begun": (None, "", [("begin", BOTH)]),
    "one service": (None, "forge", [("begin", ("forge",))]),
    "both were begun": (BOTH, "", [("finish", BOTH)]),
    "both were begun, one is asked for": (BOTH, "forge", [("finish", BOTH)]),
    "one was begun, both are asked for": (("comfyui",), "", [("finish", ("comfyui",)), ("begin", ("forge",))]),
    "one was begun, the other is asked for": (
        ("comfyui",),
        "forge",
        [("finish", ("comfyui",)), ("begin", ("forge",))],
    ),
}


@pytest.mark.parametrize(("begun", "only", "expected"), RUNS.values(), ids=RUNS.keys())
def test_what_was_begun_is_finished_before_anything_else(
    begun: tuple[str, ...] | None,
    only: str,
    expected: list[tuple[str, tuple[str, ...]]],
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[tuple[str, tuple[str, ...]]] = []
    store.save(paths.secrets_dir("box"), BEFORE)
    if begun:
        former = former_of(begun)
        store.begin_rotation(paths.secrets_dir("box"), former, AFTER)

    def finish(target: Target, ssh: object, former: Former, narrator: Narrator) -> SimpleNamespace:
        return SimpleNamespace(complete=lambda *_: done.append(("finish", former.services)))

    def begin(target: Target, ssh: object, wanted: list[str], narrator: Narrator) -> SimpleNamespace:
        return SimpleNamespace(complete=lambda *_: done.append(("begin", tuple(wanted))))

    monkeypatch.setattr(Rotation, "begun_before", finish)
    monkeypatch.setattr(Rotation, "of", begin)
    rotation.rotate(target, target.ssh(), only, False, Narrator(Console(file=io.StringIO())), lambda _: None)
    assert done == expected


def test_a_deploy_of_one_service_waits_for_the_rotation(target: Target) -> None:
    rotation.require_none_unfinished(target)
    former = former_of(("forge",))
    store.begin_rotation(paths.secrets_dir("box"), former, AFTER)
    with pytest.raises(AtelierError, match="a rotation of Forge was not finished") as raised:
        rotation.require_none_unfinished(target)
    assert "make rotate HOST=box" in str(raised.value)


def recorded(record: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "read_deployed", lambda ssh, settings: {**record, "sources": "upstream"})


@pytest.mark.parametrize("record", [RECORD, MIXED, record_of(AFTER)], ids=["before", "in between", "after"])
def test_a_rotation_goes_on_from_wherever_one_was_killed(
    record: dict, stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(record, monkeypatch)
    stage().rotation.require_nothing_else()


def test_no_rotation_beside_an_unfinished_reprovision(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(RECORD, monkeypatch)
    begun = stage().rotation
    facts = replace(begun.deployment.facts, reorganising=True)
    with pytest.raises(AtelierError, match="not finished") as raised:
        replace(begun, deployment=replace(begun.deployment, facts=facts)).require_nothing_else()
    assert "make reprovision" in str(raised.value)


def test_a_rotation_brings_no_other_images_or_settings(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(DEPLOYED["other settings"][0], monkeypatch)
    with pytest.raises(AtelierError, match="more than credentials: settings of gateway") as raised:
        stage().rotation.require_nothing_else()
    assert "make deploy HOST=box first" in str(raised.value)


def begun(target: Target, wanted: tuple[str, ...], found: HostFacts, monkeypatch: pytest.MonkeyPatch) -> Rotation:
    """A rotation of a host with these facts, as `Rotation.of` decides on it."""

    def prepare(*given: object) -> object:
        choose = given[-1]
        assert callable(choose)
        return replace(deployment(), facts=found, credentials=choose(found))

    monkeypatch.setattr(rotation, "_prepare", prepare)
    monkeypatch.setattr(Rotation, "require_nothing_else", lambda _: None)
    return Rotation.of(target, target.ssh(), wanted, Narrator(Console(file=io.StringIO())))


def test_a_rotation_renews_what_is_in_force(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(paths.secrets_dir("box"), CREDENTIALS)
    made = begun(target, ("forge",), facts(), monkeypatch)
    new = made.deployment.credentials
    assert made.former.credentials == CREDENTIALS and made.former.successor == store.fingerprint(new)
    assert new.comfyui == CREDENTIALS.comfyui and new.forge != CREDENTIALS.forge
    assert store.load(paths.secrets_dir("box")) == CREDENTIALS, "nothing is stored yet"


@pytest.mark.parametrize("stale", [True, False], ids=["an old copy", "no store"])
def test_where_nobody_knows_what_is_in_force_all_of_it_is_replaced(
    stale: bool, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stale:
        store.save(paths.secrets_dir("box"), CREDENTIALS)
    held = facts(fingerprint="another")
    with pytest.raises(AtelierError, match="leave SERVICE out"):
        begun(target, ("forge",), held, monkeypatch)
    made = begun(target, BOTH, held, monkeypatch)
    assert made.former.credentials is None and made.former.replaces == "another"
    assert made.deployment.credentials.instance == "i"
    assert made.deployment.credentials.comfyui != CREDENTIALS.comfyui


def test_a_deploy_proves_what_it_finished_and_forgets_what_never_began(
    stage: Callable[..., Stage], target: Target
) -> None:
    made = stage(comfyui=Gateway("comfyui", NEW), forge=Gateway("forge", NEW, OLD))
    store.begin_rotation(made.directory, made.rotation.former, AFTER)
    arguments = (target, target.ssh(), made.rotation.deployment, made.rotation.narrator)
    with pytest.raises(AtelierError, match="Forge: the old HTTP Basic: admitted"):
        rotation.conclude(*arguments)
    assert store.unfinished(made.directory)
    made.gateways["forge"].valid = [NEW]
    rotation.conclude(*arguments)
    assert store.load_former(made.directory) is None
    store.begin_rotation(made.directory, made.rotation.former, BEFORE)
    rotation.conclude(*arguments)
    assert store.load_former(made.directory) is None


def facts(instance: str = "i", fingerprint: str = "") -> HostFacts:
    return HostFacts(instance=instance, fingerprint=fingerprint)


def test_which_credentials_are_in_force(target: Target) -> None:
    assert rotation.in_force(target, facts()) is None, "the store was lost"
    store.save(paths.secrets_dir("box"), BEFORE)
    assert rotation.in_force(target, facts()) == BEFORE
    assert rotation.in_force(target, facts(fingerprint=store.fingerprint(BEFORE))) == BEFORE
    assert rotation.in_force(target, facts(fingerprint=store.fingerprint(AFTER))) is None, "an old copy of the store"
    with pytest.raises(AtelierError, match="knows other credentials under that name"):
        rotation.in_force(target, facts(instance="another"))


def test_downtime_is_from_the_last_of_the_old_to_the_first_of_the_new(target: Target) -> None:
    gateway = Gateway("forge", OLD)
    with Downtime(gateway, OLD, NEW) as downtime:
        wait_for(lambda: OLD in gateway.asked)
        gateway.valid = []
        asked = len(gateway.asked)
        wait_for(lambda: len(gateway.asked) > asked)
        assert NEW not in gateway.asked, "a wrong guess until the gateway has the new ones"
        gateway.valid = [NEW]
        downtime.wait_for_the_new()
        wait_for(lambda: NEW in gateway.asked)
    seconds = downtime.seconds()
    assert seconds is not None and seconds > 0
    assert gateway.asked.count(OLD) - gateway.asked.index(OLD) <= asked + 1, "it stops at the first refusal"


def test_downtime_that_was_not_seen_is_not_told(target: Target) -> None:
    with Downtime(Gateway("forge", NEW), OLD, NEW) as downtime:
        downtime.wait_for_the_new()
    assert downtime.seconds() is None


def wait_for(condition: Callable[[], bool]) -> None:
    """Until another thread has got there."""
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    pytest.fail("the other thread did not get there")


def test_a_gateway_that_is_gone_answers_nothing() -> None:
    visitor = Visitor("forge", "http://127.0.0.1:1", ssl.create_default_context())
    assert visitor.by_header(NEW) == visitor.by_cookie("a=b") == 0 and visitor.by_form(NEW) == (0, "")
    assert not visitor.is_there() and not visitor.is_served() and visitor.at_work(NEW) == 0
    assert Visitor("comfyui", "http://127.0.0.1:1", True).socket(NEW) is None


@pytest.mark.parametrize(("fails", "result"), [(False, "rotated, proof follows"), (True, "failed")])
def test_the_audit_log_does_not_call_proved_what_is_not_yet(
    fails: bool, result: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages import provision

    def apply(*_: object) -> provision.Outcome:
        if fails:
            raise AtelierError("no")
        return provision.Outcome(1, (), 1)

    told: list[str] = []
    monkeypatch.setattr(provision, "apply", apply)
    monkeypatch.setattr(lifecycle, "append_audit", lambda *line: told.append(json.loads(line[2])["result"]))
    with contextlib.suppress(AtelierError):
        provision.rotate(target, target.ssh(), deployment(), Narrator())
    assert told == [result]
