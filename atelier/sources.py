"""Source code of the applications: `locks/sources.yml`, fetched at pinned commits into a local cache, archived for the builds.

The operator's computer fetches (git's own configuration holds: `url.<base>.insteadOf`, proxies, credentials); the host
gets archives. For the sandbox, protocol doubles from `sandbox/doubles/` can take the place of the upstream repositories.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atelier import paths
from atelier.errors import AtelierError

LOCK = "locks/sources.yml"
DOUBLES = "sandbox/doubles"
LOGIN_NODE = "ComfyUI-Login"
PROBE_SECONDS = 20
"""How long `auto` waits for each upstream repository before it takes the doubles."""

Mode = Literal["upstream", "double"]

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="40 hex digits; a branch or tag is no lock")]
Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Repository(BaseModel):
    """A git repository at one commit."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: Annotated[str, Field(pattern=r"^(https|ssh|git|file)://\S+$|^[^\s:/]+@[^\s:/]+:\S+$")]
    commit: Commit

    @property
    def title(self) -> str:
        """The repository's own name: the last part of its URL."""
        return PurePosixPath(self.url).name.removesuffix(".git")


class Named(Repository):
    """A repository that lies in a folder of that name in its application."""

    name: Folder


class ComfyUI(Repository):
    """ComfyUI and its custom nodes."""

    custom_nodes: list[Named]


class Forge(Repository):
    """Forge, the repositories that it would clone at start, and its extensions."""

    repositories: list[Named] = []
    extensions: list[Named] = []


Fingerprint = Annotated[str, Field(pattern=r"^[0-9A-F]{40}$")]


class Nvidia(BaseModel):
    """NVIDIA's packages by version, and the keys that sign the repositories a host is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    container_toolkit: str
    driver_key: Fingerprint
    toolkit_key: Fingerprint
    docker_key: Fingerprint


class SourceLock(BaseModel):
    """locks/sources.yml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    comfyui: ComfyUI
    forge: Forge
    nvidia: Nvidia

    @model_validator(mode="after")
    def _complete(self) -> "SourceLock":
        if LOGIN_NODE not in {node.name for node in self.comfyui.custom_nodes}:
            raise ValueError(f"comfyui.custom_nodes: {LOGIN_NODE} is missing; without it ComfyUI has no authentication")
        for key, entries in (
            ("comfyui.custom_nodes", self.comfyui.custom_nodes),
            ("forge.repositories", self.forge.repositories),
            ("forge.extensions", self.forge.extensions),
        ):
            names = [entry.name for entry in entries]
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{key}: {', '.join(sorted(twice))} is listed twice")
        return self


@dataclass(frozen=True)
class Placed:
    """A repository's commit and where its files lie in the image. `directory` is set for a double."""

    path: str
    title: str
    url: str
    commit: str
    directory: Path | None = None


@dataclass(frozen=True)
class Sources:
    """What each application's image is built from."""

    mode: Mode
    comfyui: tuple[Placed, ...]
    forge: tuple[Placed, ...]

    def of(self, service: str) -> tuple[Placed, ...]:
        """The repositories of one service (`comfyui`, `forge`)."""
        return {"comfyui": self.comfyui, "forge": self.forge}[service]


def read_lock(path: Path) -> SourceLock:
    """The validated lock. Raises AtelierError naming file, key, problem and remedy."""
    try:
        return SourceLock.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AtelierError(f"{path}: {error}", "the comment at the top of locks/sources.yml shows the form") from None
    except ValidationError as error:
        problems = [
            f"{path.name}: {'.'.join(str(part) for part in details['loc'])}: {details['msg'].removeprefix('Value error, ')}"
            for details in error.errors()
        ]
        raise AtelierError("\n".join(problems), f"the comment at the top of {LOCK} shows the form") from None


def upstream(lock: SourceLock) -> Sources:
    """The repositories of the lock at their places in the images."""

    def placed(path: str, repository: Repository) -> Placed:
        return Placed(path, repository.title, repository.url, repository.commit)

    return Sources(
        "upstream",
        (
            placed("/opt/comfyui", lock.comfyui),
            *(placed(f"/opt/comfyui/custom_nodes/{node.name}", node) for node in lock.comfyui.custom_nodes),
        ),
        (
            placed("/opt/forge", lock.forge),
            *(placed(f"/opt/forge/repositories/{entry.name}", entry) for entry in lock.forge.repositories),
            # Forge looks for other extensions in its data directory, which is the users' own.
            *(placed(f"/opt/forge/extensions-builtin/{entry.name}", entry) for entry in lock.forge.extensions),
        ),
    )


def doubles(real: Sources, directory: Path) -> Sources:
    """The same places, filled by those doubles that exist: `directory` holds a folder for each, named as the repository.

    What has no double is left out; each commit is that of a repository made at run time, and the same on every computer.
    """

    def replaced(places: Sequence[Placed]) -> Iterator[Placed]:
        for place in places:
            double = directory / place.title
            if double.is_dir():
                yield Placed(place.path, place.title, str(double), _double_commit(double), double)

    return Sources("double", tuple(replaced(real.comfyui)), tuple(replaced(real.forge)))


def pinned(mode: Mode) -> Sources:
    """The sources of a mode at their commits; nothing is fetched, and nobody is asked."""
    real = upstream(read_lock(paths.PROJECT / LOCK))
    return doubles(real, paths.PROJECT / DOUBLES) if mode == "double" else real


def choose(mode: Literal["upstream", "double", "auto"]) -> Sources:
    """The sources of a deploy, fetched into the local cache.

    `auto` is upstream when every repository of the lock is in the cache or answers, and the doubles otherwise.
    Raises AtelierError naming the repository when one cannot be fetched.
    """
    chosen = pinned("double" if mode == "double" else "upstream")
    if mode == "auto" and not _all_answer((*chosen.comfyui, *chosen.forge)):
        chosen = pinned("double")
    for place in (*chosen.comfyui, *chosen.forge):
        archive(place)
    return chosen


def archive(place: Placed) -> Path:
    """A tar of the commit's files, the same bytes each time, from the cache or made there.

    Raises AtelierError naming the repository when its commit cannot be fetched.
    """
    folder = paths.cache_dir() / "archives"
    final = folder / f"{place.title}-{place.commit}.tar"
    if final.exists():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if place.directory:
            repository = Path(temporary) / "repository"
            _make_repository(place.directory, repository)
        else:
            repository = _fetched(place)
        part = Path(temporary) / "archive.tar"
        _git(["archive", "--format=tar", f"--output={part}", place.commit], repository)
        part.rename(final)
    return final


def _fetched(place: Placed) -> Path:
    """A bare repository in the cache that holds the commit; an interrupted fetch is begun again by the next run."""
    repository = paths.cache_dir() / "git" / f"{place.title}.git"
    repository.mkdir(parents=True, exist_ok=True)
    try:
        _git(["init", "--quiet", "--bare"], repository)
        if subprocess.run(
            _command(["cat-file", "-e", f"{place.commit}^{{tree}}"], repository), capture_output=True
        ).returncode:
            # A server that stalls is given up after a minute.
            patience = ["-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60"]
            _git([*patience, "fetch", "--quiet", "--depth=1", "--no-tags", place.url, place.commit], repository)
    except subprocess.CalledProcessError as error:
        words = error.stderr.strip().splitlines() or [f"git ended with {error.returncode}"]
        raise AtelierError(
            f"{place.title}: commit {place.commit[:12]} cannot be fetched from {place.url}: {words[-1]}",
            "check the network, the commit in locks/sources.yml, or name a mirror: "
            "git config --global url.<base of the mirror>.insteadOf <base of the URL>",
        ) from None
    return repository


def _all_answer(places: Sequence[Placed]) -> bool:
    """Whether each repository's commit is in the cache or its git answers within PROBE_SECONDS."""

    def answers(place: Placed) -> bool:
        if (paths.cache_dir() / "archives" / f"{place.title}-{place.commit}.tar").exists():
            return True
        try:
            command = ["git", "ls-remote", "--quiet", place.url, "HEAD"]
            return (
                subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, env=_environment()).returncode == 0
            )
        except subprocess.TimeoutExpired:
            return False

    with ThreadPoolExecutor(len(places)) as pool:
        return all(pool.map(answers, places))


def _double_commit(directory: Path) -> str:
    """The commit that a double's files make, remembered by their content: git takes a second for all of them."""
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(directory)}\0{path.stat().st_mode & 0o111}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    remembered = paths.cache_dir() / "double-commits" / digest.hexdigest()
    if not remembered.exists():
        with tempfile.TemporaryDirectory() as temporary:
            commit = _make_repository(directory, Path(temporary) / "repository")
        remembered.parent.mkdir(parents=True, exist_ok=True)
        part = remembered.with_suffix(f".{os.getpid()}.part")
        part.write_text(commit, encoding="ascii")
        part.rename(remembered)
    return remembered.read_text(encoding="ascii")


def _make_repository(directory: Path, repository: Path) -> str:
    """A git repository with one commit that depends on the files alone; returns the commit."""
    shutil.copytree(directory, repository, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    who = {"NAME": "atelier", "EMAIL": "atelier@localhost", "DATE": "2026-01-01T00:00:00Z"}
    fixed = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    nobody = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for arguments in (["init", "--quiet"], ["add", "--all", "--force"], ["commit", "--quiet", "--message=Double"]):
        _git(arguments, repository, {**fixed, **nobody})
    return _git(["rev-parse", "HEAD"], repository).strip()


def _environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    # Without GIT_TERMINAL_PROMPT a deleted repository makes git ask for a user name, for ever.
    return {**os.environ, **(extra or {}), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def _command(arguments: Sequence[str], repository: Path) -> list[str]:
    return ["git", "-C", str(repository), *arguments]


def _git(arguments: Sequence[str], repository: Path, environment: Mapping[str, str] | None = None) -> str:
    """Standard output of a git command. Raises subprocess.CalledProcessError; AtelierError when there is no git."""
    try:
        return subprocess.run(
            _command(arguments, repository), capture_output=True, text=True, check=True, env=_environment(environment)
        ).stdout
    except FileNotFoundError:
        raise AtelierError("git is not installed on this computer", "apt-get install git") from None
