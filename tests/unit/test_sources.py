"""locks/sources.yml, the local cache of repositories, and the doubles that can take their place."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from atelier import paths, sources
from atelier.errors import AtelierError

REAL = paths.PROJECT / "locks" / "sources.yml"


def git(directory: Path, *arguments: str) -> str:
    identity = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@localhost"}
    identity |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@localhost"}
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **identity}
    ).stdout.strip()


@pytest.fixture(autouse=True)
def no_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and a git that the operator's configuration does not reach."""
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "gitconfig").touch()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))


@pytest.fixture
def repository(tmp_path: Path) -> tuple[str, str]:
    """A file:// URL and the commit before its newest one."""
    directory = tmp_path / "upstream" / "App.git"
    directory.mkdir(parents=True)
    git(directory, "init", "-q")
    (directory / "main.py").write_text("print(1)\n")
    git(directory, "add", ".")
    git(directory, "commit", "-qm", "one")
    commit = git(directory, "rev-parse", "HEAD")
    (directory / "main.py").write_text("print(2)\n")
    git(directory, "commit", "-qam", "two")
    return directory.as_uri(), commit


def content(archive: Path, name: str) -> str:
    with tarfile.open(archive) as tar:
        member = tar.extractfile(name)
        assert member
        return member.read().decode()


def test_the_real_lock_has_the_login_and_forges_three_repositories() -> None:
    placed = sources.upstream(sources.read_lock(REAL))
    assert [place.path for place in placed.comfyui] == ["/opt/comfyui", "/opt/comfyui/custom_nodes/ComfyUI-Login"]
    assert {place.title for place in placed.forge} == {
        "stable-diffusion-webui-forge",
        "stable-diffusion-webui-assets",
        "huggingface_guess",
        "BLIP",
    }


def changed(tmp_path: Path, change: object) -> Path:
    document = yaml.safe_load(REAL.read_text())
    change(document)  # type: ignore[operator]
    path = tmp_path / "sources.yml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lock: lock["comfyui"].update(commit="master"), "comfyui.commit"),
        (lambda lock: lock["comfyui"].update(comit="x"), "comfyui.comit"),
        (lambda lock: lock["comfyui"].update(url="--upload-pack=evil"), "comfyui.url"),
        (lambda lock: lock["comfyui"].update(custom_nodes=[]), "ComfyUI-Login is missing"),
        (lambda lock: lock["comfyui"]["custom_nodes"].append(lock["comfyui"]["custom_nodes"][0]), "listed twice"),
        (lambda lock: lock["forge"]["repositories"][0].update(name="../x"), "forge.repositories.0.name"),
        (lambda lock: lock.pop("forge"), "forge"),
    ],
)
def test_a_bad_lock_is_named(tmp_path: Path, change: object, words: str) -> None:
    with pytest.raises(AtelierError) as failure:
        sources.read_lock(changed(tmp_path, change))
    assert words in failure.value.message
    assert "sources.yml" in str(failure.value)


def test_an_operators_node_and_extension_get_their_places(tmp_path: Path) -> None:
    entry = {"name": "Extra", "url": "https://example.org/Extra.git", "commit": "a" * 40}
    lock = changed(
        tmp_path, lambda d: (d["comfyui"]["custom_nodes"].append(entry), d["forge"]["extensions"].append(entry))
    )
    placed = sources.upstream(sources.read_lock(lock))
    assert placed.comfyui[-1].path == "/opt/comfyui/custom_nodes/Extra"
    assert placed.forge[-1].path == "/opt/forge/extensions-builtin/Extra"


def test_exactly_the_pinned_commit_is_archived_and_then_needs_no_repository(
    repository: tuple[str, str], tmp_path: Path
) -> None:
    url, commit = repository
    place = sources.Placed("/opt/app", "App", url, commit)
    archive = sources.archive(place)
    assert content(archive, "main.py") == "print(1)\n"
    shutil.rmtree(tmp_path / "upstream")
    assert sources.archive(place) == archive


def test_an_archive_is_the_same_bytes_on_another_computer(
    repository: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = sources.Placed("/opt/app", "App", *repository)
    first = sources.archive(place).read_bytes()
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "another"))
    assert sources.archive(place).read_bytes() == first


def test_instead_of_leads_to_a_mirror(repository: tuple[str, str], tmp_path: Path) -> None:
    url, commit = repository
    base = url.removesuffix("App.git")
    (tmp_path / "gitconfig").write_text(f'[url "{base}"]\n\tinsteadOf = https://nowhere.invalid/\n')
    archive = sources.archive(sources.Placed("/opt/app", "App", "https://nowhere.invalid/App.git", commit))
    assert content(archive, "main.py") == "print(1)\n"


def test_a_repository_that_does_not_answer_is_named(tmp_path: Path) -> None:
    gone = sources.Placed("/opt/app", "App", (tmp_path / "gone.git").as_uri(), "a" * 40)
    with pytest.raises(AtelierError) as failure:
        sources.archive(gone)
    assert "App" in failure.value.message and "gone.git" in failure.value.message
    assert "insteadOf" in failure.value.hint
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_a_commit_that_the_repository_lacks_is_named(repository: tuple[str, str]) -> None:
    with pytest.raises(AtelierError, match="App: commit bbbbbbbbbbbb cannot be fetched"):
        sources.archive(sources.Placed("/opt/app", "App", repository[0], "b" * 40))


def test_a_fetch_that_was_killed_is_begun_again(repository: tuple[str, str], tmp_path: Path) -> None:
    place = sources.Placed("/opt/app", "App", *repository)
    half = tmp_path / "cache" / "git" / "App.git"
    half.mkdir(parents=True)
    (half / "HEAD").write_text("ref: refs/heads/main\n")
    assert content(sources.archive(place), "main.py") == "print(1)\n"


@pytest.fixture
def double(tmp_path: Path) -> Path:
    directory = tmp_path / "doubles" / "ComfyUI"
    (directory / "__pycache__").mkdir(parents=True)
    (directory / "main.py").write_text("double\n")
    (directory / "__pycache__" / "main.pyc").write_bytes(b"1")
    return directory


def test_a_double_has_the_same_commit_wherever_and_whenever_it_is_made(double: Path, tmp_path: Path) -> None:
    real = sources.upstream(sources.read_lock(REAL))
    (first,) = sources.doubles(real, double.parent).comfyui
    copy = shutil.copytree(double.parent, tmp_path / "elsewhere with spaces")
    (copy / "ComfyUI" / "__pycache__" / "main.pyc").write_bytes(b"2")
    (second,) = sources.doubles(real, copy).comfyui
    assert first.commit == second.commit
    assert first.path == "/opt/comfyui"
    (copy / "ComfyUI" / "main.py").write_text("changed\n")
    assert sources.doubles(real, copy).comfyui[0].commit != first.commit


def test_a_double_is_archived_like_any_other(double: Path) -> None:
    (place,) = sources.doubles(sources.upstream(sources.read_lock(REAL)), double.parent).comfyui
    archive = sources.archive(place)
    assert content(archive, "main.py") == "double\n"
    with tarfile.open(archive) as tar:
        assert tar.getnames() == ["main.py"]


def test_auto_takes_the_doubles_when_a_repository_does_not_answer(
    tmp_path: Path, double: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(lock: dict[str, dict[str, str]]) -> None:
        lock["forge"]["url"] = (tmp_path / "gone.git").as_uri()

    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(sources.paths, "PROJECT", tmp_path)
    changed(tmp_path / "locks", away)
    monkeypatch.setattr(sources, "DOUBLES", "doubles")
    monkeypatch.setattr(sources, "PROBE_SECONDS", 0.5)
    (tmp_path / "gitconfig").write_text(f'[url "{tmp_path.as_uri()}/"]\n\tinsteadOf = https://github.com/\n')
    assert sources.choose("auto").mode == "double"
    with pytest.raises(AtelierError):
        sources.choose("upstream")


def test_auto_takes_what_answers(repository: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(lock: dict[str, dict[str, object]]) -> None:
        for part in (lock["comfyui"], lock["forge"]):
            part.update(url=repository[0], commit=repository[1])
        lock["comfyui"]["custom_nodes"] = [{"name": "ComfyUI-Login", "url": repository[0], "commit": repository[1]}]
        lock["forge"]["repositories"] = []

    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(sources.paths, "PROJECT", tmp_path)
    changed(tmp_path / "locks", ours)
    chosen = sources.choose("auto")
    assert chosen.mode == "upstream"
    assert content(sources.archive(chosen.comfyui[0]), "main.py") == "print(1)\n"
