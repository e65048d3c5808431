"""Credentials: what is accepted, what a rotation renews, and a store that a kill never leaves behind its host."""

import shutil
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import pytest
from killing import killed_before

from atelier import credentials as store
from atelier import lifecycle, paths
from atelier.credentials import Account, Credentials, Former
from atelier.errors import AtelierError
from atelier.hostfacts import HostFacts
from atelier.settings import Settings
from atelier.ssh import Destination
from atelier.target import Target


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BCRYPT_COST", 4)


@pytest.fixture
def known(cheap_hashes: None) -> Credentials:
    return store.generate({"COMFYUI_USER": "painter", "COMFYUI_PASSWORD": "correct horse", "FORGE_USER": "smith"})


UNUSABLE = {
    "": "is empty",
    "tiny1": "shorter than 8",
    "it's quoted": "single quote",
    " leading": "begins or ends with a space",
    "trailing ": "begins or ends with a space",
    "pässwörter": "printable ASCII",
    "tab\tinside": "printable ASCII",
    "line\nbreak": "printable ASCII",
    "x" * 73: "72 bytes",
}


@pytest.mark.parametrize("variable", ["COMFYUI_PASSWORD", "FORGE_PASSWORD"])
@pytest.mark.parametrize(("password", "reason"), UNUSABLE.items())
def test_unusable_passwords_are_refused_with_the_reason(password: str, reason: str, variable: str) -> None:
    with pytest.raises(AtelierError) as raised:
        store.check_password(password, variable)
    assert variable in str(raised.value) and reason in str(raised.value)
    assert not password or password not in str(raised.value)


@pytest.mark.parametrize("password", ["comma, inside", "colon:inside"])
def test_what_splits_forges_options_is_refused_for_forge_alone(password: str) -> None:
    assert store.check_password(password, "COMFYUI_PASSWORD") == password
    with pytest.raises(AtelierError, match="comma or a colon"):
        store.check_password(password, "FORGE_PASSWORD")


@pytest.mark.parametrize("password", ["x" * 72, 'a b$c"d`e', r"back\slash", "{{braces}} %41 &+=?#;"])
def test_awkward_passwords_are_taken_as_they_are(password: str) -> None:
    assert store.generate({"FORGE_PASSWORD": password}).forge.password == password


RENEWED: dict[str, tuple[Collection[str], set[str]]] = {
    "both": (("comfyui", "forge"), {"comfyui", "forge", "comfyui_cookie_key"}),
    "ComfyUI": (("comfyui",), {"comfyui", "comfyui_cookie_key"}),
    "Forge": (("forge",), {"forge"}),
}


@pytest.mark.parametrize(("services", "changed"), RENEWED.values(), ids=RENEWED.keys())
def test_a_rotation_renews_its_services_and_nothing_else(
    services: Collection[str], changed: set[str], known: Credentials
) -> None:
    after = store.renew(known, services, {})
    assert {name for name in Credentials.model_fields if getattr(after, name) != getattr(known, name)} == changed
    for service in services:
        new, old = after.account(service), known.account(service)
        assert new.user == old.user and new.password != old.password
        assert new.password and store.is_password(new.password, new.password_bcrypt)


def test_the_environment_chooses_at_a_rotation(known: Credentials) -> None:
    after = store.renew(known, ["comfyui"], {"COMFYUI_PASSWORD": "another horse", "COMFYUI_USER": "sculptor"})
    assert (after.comfyui.user, after.comfyui.password) == ("sculptor", "another horse")


@pytest.mark.parametrize(
    ("services", "environment", "problem"),
    [
        (
            ["comfyui"],
            {"COMFYUI_PASSWORD": "correct horse"},
            "COMFYUI_PASSWORD in the environment is the password in use",
        ),
        (["comfyui"], {"FORGE_PASSWORD": "for the other"}, "FORGE_PASSWORD in the environment differ"),
        (["forge"], {"FORGE_PASSWORD": "tiny"}, "shorter than 8"),
        (["forge"], {"FORGE_USER": "a b"}, "user name"),
    ],
)
def test_what_the_environment_may_not_choose(
    services: list[str], environment: dict[str, str], problem: str, known: Credentials
) -> None:
    with pytest.raises(AtelierError, match=problem):
        store.renew(known, services, environment)


def test_the_fingerprint_is_of_what_the_host_holds(known: Credentials) -> None:
    prints = {store.fingerprint(known)}
    for services in (["comfyui"], ["forge"]):
        prints.add(store.fingerprint(store.renew(known, services, {})))
    assert len(prints) == 3 and all(len(each) == 16 for each in prints)
    unknown = known.comfyui.model_copy(update={"password": None})
    assert store.fingerprint(known.model_copy(update={"comfyui": unknown})) == store.fingerprint(known)


def former_of(known: Credentials | None, new: Credentials) -> Former:
    cookies = {"comfyui": "AIOHTTP_SESSION=x"}
    return Former(services=("comfyui", "forge"), credentials=known, cookies=cookies, successor=store.fingerprint(new))


def test_what_a_rotation_replaces_is_kept_for_this_user_alone(tmp_path: Path, known: Credentials) -> None:
    directory = tmp_path / ".secrets" / "box"
    new = store.renew(known, ["forge"], {})
    store.begin_rotation(directory, former_of(known, new), new)
    assert store.load_former(directory) == former_of(known, new) and store.load(directory) == new
    assert (directory / store.FORMER_FILE).stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    store.forget_former(directory)
    assert store.load_former(directory) is None
    store.forget_former(directory)


UNFINISHED: dict[str, tuple[Callable[[Credentials, Credentials], tuple[Credentials, Former | None]], bool]] = {
    "none was begun": (lambda old, new: (old, None), False),
    "nothing new was stored": (lambda old, new: (old, former_of(old, new)), False),
    "the new are stored": (lambda old, new: (new, former_of(old, new)), True),
    "those of before are unknown": (lambda old, new: (new, former_of(None, new)), True),
    "unknown, and an old copy is stored": (lambda old, new: (old, former_of(None, new)), False),
}


@pytest.mark.parametrize(("situation", "expected"), UNFINISHED.values(), ids=UNFINISHED.keys())
def test_when_a_rotation_is_unfinished(
    situation: Callable[[Credentials, Credentials], tuple[Credentials, Former | None]],
    expected: bool,
    tmp_path: Path,
    known: Credentials,
) -> None:
    stored, former = situation(known, store.renew(known, ["comfyui", "forge"], {}))
    store.save(tmp_path / "box", stored)
    if former:
        store.begin_rotation(tmp_path / "box", former, stored)
    assert store.unfinished(tmp_path / "box") == (former if expected else None)


def test_a_rotation_killed_at_any_change_of_the_store_is_continued_or_never_was(
    tmp_path: Path, known: Credentials
) -> None:
    new = store.renew(known, ["comfyui", "forge"], {})
    step, seen = 0, []
    while True:
        step += 1
        directory = tmp_path / str(step) / "box"
        store.save(directory, known)
        killed = killed_before(step, partial(store.begin_rotation, directory, former_of(known, new), new))
        stored = store.load(directory)
        assert stored in (known, new)
        assert bool(store.unfinished(directory)) == (stored == new), "who has the new ones knows what to finish"
        seen.append(stored == new)
        store.save(directory, stored)  # as the run that finishes it does
        token = (directory / store.TOKEN_FILE).read_text()
        assert token == stored.comfyui.password_bcrypt
        if not killed:
            break
    assert step > 10 and not seen[0] and seen[-1]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    return Target("box", "host", Destination("box"), Settings(profile="cpu"), "HOST=box")


def facts_of(known: Credentials, instance: str = "") -> HostFacts:
    return HostFacts(instance=instance or known.instance, fingerprint=store.fingerprint(known))


def test_an_old_copy_of_the_store_stops_a_deploy(target: Target, known: Credentials) -> None:
    store.save(paths.secrets_dir("box"), known)
    elsewhere = store.renew(known, ["forge"], {})
    with pytest.raises(AtelierError, match="newer credentials") as raised:
        lifecycle.choose_credentials(target, facts_of(elsewhere), {})
    assert "make rotate HOST=box" in str(raised.value) and "copy .secrets/box/" in str(raised.value)


def test_a_host_that_holds_those_before_an_unfinished_rotation_is_known(target: Target, known: Credentials) -> None:
    new = store.renew(known, ["forge"], {})
    store.begin_rotation(paths.secrets_dir("box"), former_of(known, new), new)
    for held in (known, new):
        assert lifecycle.choose_credentials(target, facts_of(held), {}) == new


def test_a_rotation_from_a_lost_store_killed_at_any_change_of_it_can_be_run_again(
    target: Target, known: Credentials
) -> None:
    lost, directory = store.renew(known, ["comfyui", "forge"], {}), paths.secrets_dir("box")
    former = former_of(None, known).model_copy(update={"replaces": store.fingerprint(lost)})
    step, finished = 1, []
    while killed_before(step, partial(store.begin_rotation, directory, former, known)):
        finished.append(store.unfinished(directory) is not None)
        if finished[-1]:
            for held in (lost, known):
                assert lifecycle.choose_credentials(target, facts_of(held), {}) == known
        else:
            assert store.load(directory) is None, "the next rotation begins anew"
        shutil.rmtree(directory, ignore_errors=True)
        step += 1
    assert step > 10 and not finished[0] and finished[-1]


def test_an_old_copy_of_the_store_does_not_come_to_the_host_by_a_rotation_that_stored_nothing(
    target: Target, known: Credentials
) -> None:
    directory, elsewhere = paths.secrets_dir("box"), store.renew(known, ["forge"], {})
    former = former_of(None, store.generate({}, known.instance))
    store.begin_rotation(directory, former.model_copy(update={"replaces": store.fingerprint(elsewhere)}), known)
    with pytest.raises(AtelierError, match="newer credentials"):
        lifecycle.choose_credentials(target, facts_of(elsewhere), {})


def test_a_host_of_a_release_without_fingerprints_is_known_by_its_instance(target: Target, known: Credentials) -> None:
    store.save(paths.secrets_dir("box"), known)
    assert lifecycle.choose_credentials(target, HostFacts(instance=known.instance), {}) == known


def test_an_import_is_for_the_first_deploy_and_may_be_repeated(target: Target, known: Credentials) -> None:
    assert lifecycle.choose_credentials(target, HostFacts(), {}, known) == known
    store.save(paths.secrets_dir("box"), known)
    again = store.generate({}).model_copy(update={"comfyui": known.comfyui})
    assert lifecycle.choose_credentials(target, HostFacts(), {}, again) == known
    with pytest.raises(AtelierError, match="has credentials already"):
        lifecycle.choose_credentials(target, HostFacts(), {}, store.generate({}))


SAME: dict[str, tuple[dict[str, str | None], bool]] = {
    "itself": ({}, True),
    "another hash of its password": ({"password_bcrypt": "$2b$12$other"}, True),
    "its token, the password unknown": ({"password": None}, True),
    "another user": ({"user": "another"}, False),
    "another password": ({"password": "another", "password_bcrypt": "$2b$12$other"}, False),
}


@pytest.mark.parametrize(("change", "same"), SAME.values(), ids=SAME.keys())
def test_which_accounts_are_the_same(change: dict[str, str | None], same: bool, known: Credentials) -> None:
    other = Account(**{**known.comfyui.model_dump(), **change})
    assert store.is_same_account(known.comfyui, other) is same


def test_an_unknown_password_is_left_out_of_the_shells_file(known: Credentials) -> None:
    imported = known.model_copy(update={"comfyui": known.comfyui.model_copy(update={"password": None})})
    text = store.environment_file(imported)
    assert "COMFYUI_TOKEN='$2b$" in text and "FORGE_PASSWORD=" in text and "COMFYUI_PASSWORD" not in text
