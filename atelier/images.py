"""Container images: which there are, the tag that their inputs give them, and the commands that make them on the host.

base -> torch -> comfyui, forge; base -> gateway. A tag is a hash of every input, the parent's tag included, so an image
that is there under its tag is the image that is wanted. Wheels are no input of their own: the locks name them by hash.
"""

import hashlib
import json
import shlex
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atelier import paths, pip_settings, sources
from atelier.errors import AtelierError
from atelier.gpu.plan import Torch
from atelier.pip_settings import PipSettings
from atelier.settings import Settings
from atelier.sources import Placed, Sources

SECRET_FILES = {"apt_conf": "apt.conf", "apt_sources": "sources.list"}
"""What debian-archive.sh writes on the host, by the secret's name in the Dockerfiles."""


KEPT_ARCHIVES = 4


@dataclass(frozen=True)
class ImageBuild:
    """One image to build. `files`: path in the build context to the file on this computer."""

    name: str
    tag: str
    arguments: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, Path], ...]
    sources: tuple[Placed, ...] = ()
    parent: str | None = None
    lock: Path | None = None
    parent_lock: Path | None = None
    apt: tuple[str, ...] = ()
    """Installs Debian packages: what it must be told of how the host reaches Debian's archive."""


@dataclass(frozen=True)
class Step:
    """What to do about one image: load its archive, or build it."""

    action: Literal["load", "build"]
    build: ImageBuild


def plan(settings: Settings, chosen: Sources, torch: Torch) -> tuple[ImageBuild, ...]:
    """The images of one host, parents first. `torch`: the variant that fits the host; doubles have none.

    Raises AtelierError when a service has no sources (a missing double).
    """
    root, locks = paths.PROJECT / "images", paths.PROJECT / "locks" / "images"
    torch_variant, variant = ("none", "double") if chosen.mode == "double" else (torch, torch)

    user = (("USER", "atelier"), ("UID", str(settings.service_uid)))
    registry = (("BASE", settings.images.base),) if settings.images.base else ()
    # An image of a registry names its own archive; one made on the host names none.
    apt = ("apt_conf",) if registry else ("apt_conf", "apt_sources")
    base = _build("base", (*registry, *user), _files(root / "base"), apt=apt)

    torch_lock = locks / f"torch-{torch_variant}.txt"
    torch_layer = _build(
        "torch",
        (("BASE", base.tag), ("VARIANT", torch_variant)),
        _files(root / "torch"),
        parent=base.tag,
        lock=torch_lock,
    )
    applications = []
    for name in settings.enabled():
        if not chosen.of(name):
            raise AtelierError(f"there is no double of {name}", "SOURCES=upstream, or disable the service")
        applications.append(
            _build(
                name,
                (("BASE", torch_layer.tag),),
                (*_files(root / name), ("prove.py", root / "prove.py")),
                sources=chosen.of(name),
                parent=torch_layer.tag,
                lock=locks / f"{name}-{variant}.txt",
                parent_lock=torch_lock,
            )
        )
    gateway_lock = root / "gateway" / "requirements.txt"
    gateway = _build(
        "gateway", (("BASE", base.tag),), _files(root / "gateway"), parent=base.tag, lock=gateway_lock, apt=apt
    )
    return (base, torch_layer, *applications, gateway)


def steps(builds: Collection[ImageBuild], present: Collection[str], archived: Collection[str]) -> tuple[Step, ...]:
    """What is left to do, in order, when the host has these tags as images and these as archives.

    An image that others start from is needed only where one of those has to be built.
    """
    by_tag = {build.tag: build for build in builds}
    parents = {build.parent for build in builds}
    todo: dict[str, Step] = {}

    def need(build: ImageBuild) -> None:
        if build.tag in present or build.tag in todo:
            return
        if build.tag in archived:
            todo[build.tag] = Step("load", build)
            return
        if build.parent:
            need(by_tag[build.parent])
        todo[build.tag] = Step("build", build)

    for build in builds:
        if build.tag not in parents:
            need(build)
    return tuple(todo.values())


def write_context(build: ImageBuild, directory: Path, pip: PipSettings, proxy: str | None) -> None:
    """Lay out what the host needs for one build: `context/`, and `secrets/` (0700) for what must leave no trace.

    `proxy`: through which the host reaches package indexes. Raises AtelierError when a source cannot be fetched.
    """
    context, secrets = directory / "context", directory / "secrets"
    secrets.mkdir(parents=True, mode=0o700)
    for name in ("wheels", "sources"):
        (context / name).mkdir(parents=True)
    for name, path in build.files:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, context / name)
    for placed in build.sources:
        target = context / "sources" / f"{placed.path.lstrip('/')}.tar"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources.archive(placed), target)
    if build.lock:
        lock = build.lock.read_text(encoding="utf-8")
        (context / "requirements.txt").write_text(lock, encoding="utf-8")
        already = build.parent_lock.read_text(encoding="utf-8") if build.parent_lock else ""
        wheels = pip_settings.local_files(pip, lock, already)
        for wheel in wheels:
            shutil.copyfile(wheel, context / "wheels" / wheel.name)
        (context / "wheels" / "requirements.txt").write_text(pip_settings.part(lock, wheels), encoding="utf-8")
        _write_secret(secrets / "pip_conf", pip.pip_conf(proxy).encode())
    if ca_bundle := pip.ca_bundle():
        _write_secret(secrets / "ca", ca_bundle)


def build_script(build: ImageBuild, directory: str, pip: PipSettings) -> str:
    """Shell that builds the image on the host from what `write_context` laid out, uploaded to `directory`."""
    context, secrets = f"{directory}/context", f"{directory}/secrets"
    arguments = dict(build.arguments)
    if "BASE" not in arguments:
        return shlex.join(["sh", f"{context}/make-base.sh", build.tag, arguments["USER"], arguments["UID"]])
    ids = [*(["pip_conf"] if build.lock else []), *(["ca"] if pip.ca_bundle() else []), *build.apt]
    prelude = ""
    if build.apt:
        only = [] if "apt_sources" in build.apt else ["settings"]
        prelude = shlex.join(["sh", f"{context}/debian-archive.sh", secrets, *only]) + " && "
    command = ["docker", "build", "--progress=plain", "--network=host", f"--tag={build.tag}"]
    command += [f"--build-arg={name}={value}" for name, value in build.arguments]
    command += [f"--secret=id={name},src={secrets}/{SECRET_FILES.get(name, name)}" for name in ids]
    return f"{prelude}DOCKER_BUILDKIT=1 {shlex.join([*command, context])}"


def archive_name(tag: str) -> str:
    """File name of an image's archive."""
    return tag.replace("/", "-").replace(":", "-") + ".tar"


def save_script(tag: str, directory: str) -> str:
    """Shell that keeps a built image as an archive in a directory on the host; it appears there whole or not at all.

    Of the same image's archives the KEPT_ARCHIVES that were used last stay.
    """
    place, archive = shlex.quote(directory), shlex.quote(archive_name(tag))
    same_image = shlex.quote(archive_name(tag).rpartition("-")[0])
    # Several hosts may share the directory (sandboxes do).
    return (
        f'mkdir -p {place} && cd {place} && part={archive}."$(uname -n)".part '
        f'&& docker save --output "$part" {tag} && mv "$part" {archive} '
        f"&& ls -t {same_image}-*.tar | tail -n +{KEPT_ARCHIVES + 1} | xargs -r rm -f --"
    )


def load_script(tag: str, directory: str) -> str:
    """Shell that brings an image back from its archive, and marks the archive as used."""
    archive = shlex.quote(f"{directory}/{archive_name(tag)}")
    return f"docker load --quiet --input {archive} && touch {archive}"


def index_probe_urls(builds: Iterable[ImageBuild]) -> list[str]:
    """A small page of each package index that these builds install from."""
    return pip_settings.read().probe_urls() if any(build.lock for build in builds) else []


def _files(directory: Path) -> tuple[tuple[str, Path], ...]:
    """An image's own files by their path in the context."""
    found = (path for path in sorted(directory.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return tuple((str(path.relative_to(directory)), path) for path in found)


def _build(
    name: str,
    arguments: tuple[tuple[str, str], ...],
    files: tuple[tuple[str, Path], ...],
    sources: tuple[Placed, ...] = (),
    parent: str | None = None,
    lock: Path | None = None,
    parent_lock: Path | None = None,
    apt: tuple[str, ...] = (),
) -> ImageBuild:
    if apt and parent:
        files = (*files, ("debian-archive.sh", paths.PROJECT / "images" / "base" / "debian-archive.sh"))
    inputs = [
        name,
        arguments,
        [(path, hashlib.sha256(file.read_bytes()).hexdigest()) for path, file in files],
        [(placed.path, placed.commit) for placed in sources],
        hashlib.sha256(lock.read_bytes()).hexdigest() if lock else "",
    ]
    tag = f"atelier/{name}:{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]}"
    return ImageBuild(name, tag, arguments, files, sources, parent, lock, parent_lock, apt)


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
