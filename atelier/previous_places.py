"""Where a previous stack may keep weights, outputs and workflows, and what of that is there. Pure.

Compose files and `.env` are read for what they mount, and never run.
"""

import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import yaml

from atelier.credentials import ENVIRONMENT_FILE, TOKEN_FILE
from atelier.previous_containers import FOLDER, MARK, Mount, Seen, Suspects, sections, service_of

Kind = Literal["models", "outputs", "workflows"]
WORKFLOWS = "default/workflows"
"""Below ComfyUI's users' directory."""
_BELOW = ("", "ComfyUI/", "stable-diffusion-webui-forge/", "webui/")
"""Where an application may lie in a directory that is mounted as a whole."""
IMAGES = "png|jpe?g|webp|gif|mp4|webm"
WEIGHTS = r"\.(safetensors|sft|ckpt|gguf)$|/(models|loras?|embeddings|checkpoints)/.*\.(pt|pth|bin|onnx)$"
INPUTS = rf"/inputs?/.*\.({IMAGES})$"
UNTOLD = "?"
"""The name that stands for all that Docker did not tell of a container."""


@dataclass(frozen=True)
class Compose:
    """A compose file, and of the variables beside it those that are paths."""

    folder: str
    text: str
    variables: Mapping[str, str] = field(default_factory=dict)


def compose_script(roots: Iterable[str]) -> str:
    """A POSIX shell script that prints the compose files below roots, and of each `.env` the lines that hold a path."""
    folders = " ".join(f"{shlex.quote(f'{root}/{FOLDER}')}/*/" for root in roots)
    return f"""
for d in {folders}; do for f in docker-compose.yml docker-compose.yaml compose.yml compose.yaml; do
  [ -f "$d$f" ] || continue
  echo "{MARK}compose $d"; head -c 65536 "$d$f"; echo
  echo "{MARK}env $d"; grep -E '^(export )?[A-Za-z_][A-Za-z0-9_]*=["'"'"']?[./~]' "$d.env" 2>/dev/null
done; done
:
"""


def parse_compose(output: str) -> list[Compose]:
    """What `compose_script` printed."""
    told = sections(output)
    found = []
    for name, lines in told.items():
        word, _, folder = name.partition(" ")
        if word == "compose":
            rows = [line.removeprefix("export ").partition("=") for line in told.get(f"env {folder}", [])]
            variables = {key: value.strip().strip("\"'") for key, _, value in rows}
            found.append(Compose(folder.rstrip("/"), "\n".join(lines), variables))
    return found


def mounts_of(compose: Compose) -> list[Mount]:
    """The directories of the host that a compose file mounts. One that cannot be read mounts nothing."""
    try:
        document = yaml.safe_load(compose.text)
        services = [each for each in document["services"].values() if isinstance(each, dict)]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []
    project = re.sub(r"[^a-z0-9_-]", "", posixpath.basename(compose.folder).lower())
    found = []
    for volume in [volume for service in services for volume in service.get("volumes") or ()]:
        if isinstance(volume, str):
            source, _, rest = _interpolated(volume, compose.variables).partition(":")
            target = rest.partition(":")[0]
        elif isinstance(volume, dict):
            source, target = (
                _interpolated(str(volume.get(key, "")), compose.variables) for key in ("source", "target")
            )
        else:
            continue
        if target.startswith("/") and (path := _on_host(source, compose.folder, project)):
            found.append(Mount(path, posixpath.normpath(target)))
    return found


def _interpolated(text: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return variables.get(match["name"] or match["bare"]) or match["default"] or ""

    return re.sub(r"\$(?:\{(?P<name>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<bare>\w+))", value, text)


def _on_host(source: str, folder: str, project: str) -> str:
    if source.startswith("/"):
        return posixpath.normpath(source)
    if source.startswith("."):
        return posixpath.normpath(f"{folder}/{source}")
    return f"/var/lib/docker/volumes/{project}_{source}/_data" if re.fullmatch(r"[\w.-]+", source) else ""


@dataclass(frozen=True)
class Place:
    """A directory of the host that may hold something, and whose."""

    kind: Kind
    service: str
    path: str


def places(chosen: Suspects, composed: Iterable[Compose]) -> list[Place]:
    """Where weights, outputs and workflows may lie, what a container really has before what its files say."""
    of_files = [
        (mount, service_of(Seen("", posixpath.basename(compose.folder))))
        for compose in composed
        for mount in mounts_of(compose)
    ]
    of_containers = [(mount, service) for seen, service, _ in chosen.containers for mount in seen.mounts]
    found = [place for mount, service in (*of_containers, *of_files) for place in _of_mount(mount, service)]
    for root in chosen.roots:
        found += [Place("models", "", f"{root}/shared/models"), Place("outputs", "", f"{root}/shared/outputs")]
    return list(dict.fromkeys(found))


def _of_mount(mount: Mount, service: str) -> Iterator[Place]:
    """By where the container has it, else by how an application lies below a directory that is mounted as a whole."""
    source, target = mount.source, mount.target
    if source == "/" or not posixpath.isabs(source):
        return
    if re.search(r"/(site|dist)-packages(/|$)", target):
        return
    if re.search(r"/models(/|$)", target):
        yield Place("models", service, source)
    elif re.search(r"/outputs?(/|$)", target):
        yield Place("outputs", service, source)
    elif target.endswith("/workflows"):
        yield Place("workflows", service, source)
    elif target.endswith("/user/default"):
        yield Place("workflows", service, f"{source}/workflows")
    elif target.endswith("/user"):
        yield Place("workflows", service, f"{source}/{WORKFLOWS}")
    else:
        for above in _BELOW:
            yield Place("models", service, f"{source}/{above}models")
            yield Place("outputs", service, f"{source}/{above}output")
            yield Place("outputs", service, f"{source}/{above}outputs")
            yield Place("workflows", service, f"{source}/{above}user/{WORKFLOWS}")


@dataclass(frozen=True)
class Size:
    """A directory that is there, under its own path. within: the names of the directories in it."""

    path: str
    files: int
    bytes: int
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """What lies where. alone: by container the files that only it has; sizes: of weights and inputs among those, by container and path."""

    directories: Mapping[str, Size] = field(default_factory=dict)
    files: frozenset[str] = frozenset()
    alone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Mapping[tuple[str, str], int] = field(default_factory=dict)


def survey_script(chosen: Suspects, candidates: Iterable[Place]) -> str:
    """A POSIX shell script that prints which of the directories and files are there, and what only a container has."""
    directories = list(dict.fromkeys([*chosen.roots, *(place.path for place in candidates)]))
    tokens = [path for root in chosen.roots for path in token_files(root)]
    containers = " ".join(seen.id for seen, _, _ in chosen.containers)
    # Installed at its start, a container has changed a hundred thousand files.
    wanted = rf"/outputs?/.*\.({IMAGES})$|/user/default/workflows/.*\.json$|{INPUTS}|{WEIGHTS}|^\?$"
    measured = " ".join(shlex.quote(path) for path in directories if path not in chosen.roots)
    return rf"""
measure() {{ find "$1" -xdev -type f -printf '%s\n' 2>/dev/null | awk '{{ n += 1; b += $1 }} END {{ printf "%d\t%d\t", n, b }}'; }}
alone() {{
  {{ timeout 300 docker diff "$1" 2>/dev/null || echo; }} | sed -n '/^[ACD] \//!s/.*/A {UNTOLD}/; s/^[AC] //p' \
    | grep -iE {shlex.quote(wanted)} | grep -vE '/(site|dist)-packages/|/custom_nodes/|/input/example\.png$' \
    | awk 'tolower($0) !~ /\.({IMAGES})$/ || ++n <= 20000'
}}
echo {MARK}directories
for d in {shlex.join(chosen.roots)}; do [ ! -d "$d" ] || printf '%s\t%s\t0\t0\n' "$d" "$d"; done
for d in {measured}; do
  r=$(readlink -f "$d") && [ -d "$r" ] || continue
  printf '%s\t%s\t' "$d" "$r"; measure "$r"
  find "$r" -mindepth 1 -maxdepth 1 -type d -printf '%f/' 2>/dev/null; echo
done
echo {MARK}files; for f in {shlex.join(tokens)}; do [ ! -f "$f" ] || echo "$f"; done
# The head of an archive tells the size, and Docker sends no more of it than is read.
size() {{ docker cp -L "$1:$2" - 2>/dev/null | head -c 8192 | tar -tv -f - 2>/dev/null | awk 'NR == 1 {{print $3}}'; }}
for c in {containers}; do
  echo "{MARK}alone $c"; a=$(alone "$c"); printf '%s\n' "$a"
  echo "{MARK}sizes $c"; printf '%s\n' "$a" | grep -iE {shlex.quote(f"{INPUTS}|{WEIGHTS}")} | while IFS= read -r p; do
    printf '%s\t%s\n' "$(size "$c" "$p")" "$p"
  done
done
:
"""


def token_files(root: str) -> tuple[str, ...]:
    """Where a previous stack may have its credentials."""
    return (f"{root}/.secrets/{TOKEN_FILE}", f"{root}/.secrets/{ENVIRONMENT_FILE}")


def parse_survey(output: str) -> Survey:
    """What `survey_script` printed."""
    told = sections(output)
    rows = [line.split("\t") for line in told.get("directories", [])]
    return Survey(
        {
            row[0]: Size(row[1], int(row[2]), int(row[3]), tuple(filter(None, "".join(row[4:]).split("/"))))
            for row in rows
            if len(row) >= 4
        },
        frozenset(told.get("files", [])),
        {
            name.split(" ")[1]: tuple(filter(None, lines))
            for name, lines in told.items()
            if name.startswith("alone ") and any(lines)
        },
        {
            (name.split(" ")[1], path): int(size)
            for name, lines in told.items()
            if name.startswith("sizes ")
            for size, _, path in (line.partition("\t") for line in lines)
            if size.isdigit()
        },
    )
