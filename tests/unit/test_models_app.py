"""`atelier models`: one store, from an empty directory to a pruned one, by the commands that a person types."""

import hashlib
import shutil
import threading
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from atelier import models_app, models_fetch
from atelier.errors import AtelierError
from atelier.models_app import app, chosen_store
from weights.store import Store

needs_aria2 = pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2 is not installed")
CONTENT = {"vae/one.safetensors": b"1" * 1000, "loras/two.safetensors": b"2" * 2000}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror in a folder, and beside it a lock file that names what it holds."""
    root, entries = tmp_path / "mirror", []
    for name, content in CONTENT.items():
        directory, file = name.split("/")
        (root / directory).mkdir(parents=True)
        (root / name).write_bytes(content)
        entry = {"repository": "a/b", "revision": "main", "path": file, "bytes": len(content), "directory": directory}
        entry |= {"sha256": hashlib.sha256(content).hexdigest(), "sets": [directory], "used_by": [], "licence": "none"}
        entries.append(entry)
    (tmp_path / "models.yml").write_text(yaml.safe_dump({"files": entries}))
    return root


def models(*arguments: str, mirror: Path) -> Result:
    lock = ["--lock", str(mirror.parent / "models.yml"), "--dest", str(mirror.parent / "store")]
    return CliRunner().invoke(app, [*arguments, *lock])


STORE = Path("store")


@pytest.mark.parametrize(
    ("dest", "host", "limit", "only_here", "chosen"),
    [
        (STORE, "", "", {"--set": ["x"], "--lock": Path("x")}, STORE),
        (None, "me@box", "", {"--set": None, "--jobs": None}, None),
        (None, "", "all", {}, None),
        (STORE, "me@box", "", {}, "DEST= and a host were both given"),
        (STORE, "", "all", {}, "DEST= and a host were both given"),
        (None, "", "", {}, None),
        (None, "", "", {"--set": ["x"]}, "--set: only for a store"),
        (None, "me@box", "", {"--set": ["x"], "--jobs": 3, "--lock": None}, "--set, --jobs: only for a store"),
    ],
)
def test_a_command_is_for_a_store_here_or_for_hosts(
    dest: Path | None, host: str, limit: str, only_here: dict[str, object], chosen: Path | str | None
) -> None:
    if isinstance(chosen, str):
        with pytest.raises(AtelierError) as error:
            chosen_store(dest, host, limit, only_here)
        assert chosen in error.value.message and error.value.hint
    else:
        assert chosen_store(dest, host, limit, only_here) == chosen


@pytest.mark.parametrize("command", ["fetch", "verify", "prune"])
def test_without_a_word_it_is_aimed_like_every_other_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    aimed: list[tuple[str, str]] = []

    def for_each(host: str, limit: str, _: object) -> None:
        aimed.append((host, limit))
        raise typer.Exit(0)

    monkeypatch.setattr(models_app, "for_each", for_each)
    assert CliRunner().invoke(app, [command]).exit_code == 0
    assert aimed == [("", "")]


@pytest.mark.parametrize("command", ["verify", "prune"])
def test_a_store_that_is_not_there_is_named(command: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [command, "--dest", str(tmp_path / "typo")])
    assert isinstance(done.exception, AtelierError)
    assert str(done.exception).startswith(f"{tmp_path}/typo is no directory\n  -> make models-fetch DEST=")


ADOPT = {
    "no DEST": (["--search", "/"], "models-adopt DEST=DIR SEARCH=DIR"),
    "no SEARCH": (["--dest", "{tmp}/new"], "models-adopt DEST=DIR SEARCH=DIR"),
    "a SEARCH that is not there": (
        ["--dest", "{tmp}/new", "--search", "{tmp}", "--search", "{tmp}/typo"],
        "{tmp}/typo",
    ),
    "a SEARCH that is a file": (["--dest", "{tmp}/new", "--search", __file__], __file__),
}


@pytest.mark.parametrize(("words", "named"), ADOPT.values(), ids=ADOPT)
def test_what_adopting_lacks_is_named_and_no_store_is_made(words: list[str], named: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["adopt", *(word.replace("{tmp}", str(tmp_path)) for word in words)])
    assert isinstance(done.exception, AtelierError)
    assert named.replace("{tmp}", str(tmp_path)) in str(done.exception)
    assert not (tmp_path / "new").exists()


def test_serving_without_a_store_says_how_to_get_one() -> None:
    done = CliRunner().invoke(app, ["serve", "--host", "me@nowhere.example"])
    assert isinstance(done.exception, AtelierError)
    assert "make models-fetch DEST=" in str(done.exception) and "make models-adopt DEST=" in str(done.exception)


@pytest.mark.parametrize("words", [("--set", "vae,loras"), ("--set", "vae", "--set", "loras"), ()])
def test_sets_by_commas_or_repeated(words: tuple[str, ...], mirror: Path) -> None:
    (mirror.parent / "store").mkdir()
    assert "0 of 2 files are good" in models("verify", *words, mirror=mirror).output
    assert "0 of 1 files are good" in models("verify", "--set", "vae", mirror=mirror).output


def test_a_verify_names_what_is_expected_and_what_is_found(mirror: Path) -> None:
    store = mirror.parent / "store"
    shutil.copytree(mirror, store)
    (store / "vae/one.safetensors").write_bytes(b"2" * 1000)
    found, expected = (hashlib.sha256(byte * 1000).hexdigest() for byte in (b"2", b"1"))
    done = models("verify", "--deep", mirror=mirror)
    assert done.exit_code == 1
    assert f"vae/one.safetensors: wrong: sha256 {found}, expected {expected}" in done.output
    assert "1 of 2 files are good, by every byte\n" in done.output
    assert done.output.endswith(
        f"-> make models-fetch DEST={store} brings what is missing and sets aside what is wrong\n"
    )
    (store / "vae/one.safetensors").write_bytes(b"2" * 999)
    assert "vae/one.safetensors: wrong: 999 bytes, expected 1000" in models("verify", mirror=mirror).output


@needs_aria2
def test_a_store_from_nothing_to_pruned(mirror: Path) -> None:
    store = mirror.parent / "store"
    store.mkdir()
    missing = models("verify", mirror=mirror)
    assert missing.exit_code == 1 and "one.safetensors: missing" in missing.output
    assert models("fetch", "--mirror", f"file://{mirror}", mirror=mirror).exit_code == 0
    assert {name: (store / name).read_bytes() for name in CONTENT} == CONTENT
    assert models("verify", mirror=mirror).exit_code == models("verify", "--deep", mirror=mirror).exit_code == 0
    listed = models("prune", "--set", "vae", mirror=mirror)
    assert "two.safetensors" in listed.output and "nothing was removed" in listed.output
    assert (store / "loras/two.safetensors").exists()
    assert "removed: 0.00 GB" in models("prune", "--set", "vae", "--yes", mirror=mirror).output
    assert "not needed: nothing" in models("prune", "--set", "vae", mirror=mirror).output
    assert (store / "vae/one.safetensors").exists() and not (store / "loras/two.safetensors").exists()


def test_a_fetch_with_nothing_to_do_waits_for_nobody(mirror: Path) -> None:
    assert models("adopt", "--search", str(mirror), mirror=mirror).exit_code == 0
    done: list[Result] = []
    fetching = threading.Thread(target=lambda: done.append(models("fetch", mirror=mirror)))
    with pytest.MonkeyPatch.context() as patch, Store(mirror.parent / "store", mirror).lock():
        patch.setattr(models_fetch.signal, "signal", lambda *_: None)  # a thread may not
        fetching.start()
        fetching.join(10)
        waited = fetching.is_alive()
    fetching.join(10)
    assert not waited and done[0].exit_code == 0, done


def test_what_is_there_already_is_taken(mirror: Path) -> None:
    assert models("adopt", "--search", str(mirror), mirror=mirror).exit_code == 0
    assert models("verify", mirror=mirror).exit_code == 0
    assert all((mirror / name).read_bytes() == content for name, content in CONTENT.items())
