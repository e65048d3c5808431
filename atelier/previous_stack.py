"""The stack that somebody put together by hand before this project: what of it lies on a host, and what is taken over.

The host is asked which containers are there, what the compose files say where those were made, and what lies in the
directories that all that leads to. Between the questions everything is pure.
"""

import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from atelier import importing, lifecycle, previous_containers, previous_places, relocation_host
from atelier.console import Narrator
from atelier.credentials import TOKEN_FILE
from atelier.displacement import SUFFIX, Displaced
from atelier.errors import AtelierError, Finding
from atelier.importing import Imported
from atelier.previous_containers import FOLDER, MARK, Seen, Suspects, is_below, sections, service_of
from atelier.previous_places import IMAGES, INPUTS, WEIGHTS, WORKFLOWS, Compose, Kind, Place, Size, Survey, token_files
from atelier.recorded import Roots, roots_of
from atelier.settings import Settings
from atelier.ssh import Ssh
from relocation.adopt import Adopted, Adoption
from weights.fetch import GB

INTO = "previous"
"""The directory among a service's outputs and workflows that gets what was taken over."""


@dataclass(frozen=True)
class Source:
    """Files that are copied: a directory of the host, or one that only a container has.

    inside: the directory in the container, which people know by name. without: names below it that are not meant.
    target: where the copies go.
    """

    service: str
    target: str
    directory: str = ""
    container: str = ""
    inside: str = ""
    name: str = ""
    without: tuple[str, ...] = ()
    pattern: str = "*"
    files: int = 0
    bytes: int = 0
    """0 of what only a container has, which tells no size."""

    def text(self) -> str:
        """Where it is, for people."""
        return self.directory or f"{self.inside} in the container {self.name}"


@dataclass(frozen=True)
class Inside:
    """A file of weights, or one that somebody uploaded, that only a container has. target: where it is kept from then on."""

    container: str
    path: str
    target: str
    bytes: int = 0


@dataclass(frozen=True)
class Found:
    """What a host has of a previous stack.

    containers: those that step aside. aside: those that did so earlier and are there still. roots: the directories that it
    was put together in. search: directories in which weights lie, or will once they were taken out of containers.
    token_files: those that hold credentials. obstacles: what a person has to settle first. notes: what one should know.
    """

    containers: tuple[Displaced, ...] = ()
    aside: tuple[Displaced, ...] = ()
    roots: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    outputs: tuple[Source, ...] = ()
    workflows: tuple[Source, ...] = ()
    inside: tuple[Inside, ...] = ()
    token_files: tuple[str, ...] = ()
    obstacles: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to take over or to displace."""
        return bool(self.containers or self.search or self.outputs or self.workflows or self.inside)


def look(ssh: Ssh, settings: Settings, root: str = "", ours: Roots | None = None) -> Found:
    """What the host has of a previous stack, in three round trips. Changes nothing.

    root: what FROM names. ours: the directories that the host has recorded, where it has. Raises AtelierError.
    """
    root = root and posixpath.normpath(root)
    listing = previous_containers.parse(ssh.run(previous_containers.script(), timeout=120).stdout)
    chosen = previous_containers.suspects(listing, settings, root)
    if not chosen.containers and not root:
        return Found(obstacles=chosen.obstacles, notes=chosen.notes)
    told = previous_places.parse_compose(ssh.run(previous_places.compose_script(chosen.roots), timeout=60).stdout)
    candidates = previous_places.places(chosen, told)
    survey = previous_places.parse_survey(
        ssh.run(previous_places.survey_script(chosen, candidates), timeout=600).stdout
    )
    if root and root not in survey.directories:
        raise AtelierError(
            f"FROM={root}: there is no such directory on the host", "name the previous stack's directory"
        )
    if root and not _is_stack(root, told, survey):
        raise AtelierError(
            f"FROM={root}: there is neither {FOLDER} with compose files nor shared/models or shared/outputs in it",
            "name the directory that holds them; everything in it is taken for the previous stack's",
        )
    return found(chosen, candidates, survey, settings, ours or roots_of(settings))


def _is_stack(root: str, told: Iterable[Compose], survey: Survey) -> bool:
    """Whether a directory looks like a previous stack's: of `/` every container would be."""
    shared = {f"{root}/shared/models", f"{root}/shared/outputs"} & {*survey.directories}
    return bool(shared) or any(compose.folder.startswith(f"{root}/{FOLDER}/") for compose in told)


def found(chosen: Suspects, candidates: Sequence[Place], survey: Survey, settings: Settings, roots: Roots) -> Found:
    """All of it. roots: the directories that are ours."""
    there = [(place, survey.directories[place.path]) for place in candidates if place.path in survey.directories]
    there = [(place, size) for place, size in there if not _is_ours(size.path, roots)]
    displaced = [
        (seen, _displaced(seen, service, why, _keeps(seen, survey))) for seen, service, why in chosen.containers
    ]
    inside = [one for seen, _, _ in chosen.containers for one in _inside(seen, survey, settings)]
    lies = _outermost(size.path for place, size in there if place.kind == "models" and size.files)
    return Found(
        containers=tuple(one for seen, one in displaced if not seen.name.endswith(SUFFIX)),
        aside=tuple(
            replace(one, name=one.name.removesuffix(SUFFIX)) for seen, one in displaced if seen.name.endswith(SUFFIX)
        ),
        roots=chosen.roots,
        search=(*lies, *([taken_out(settings)] if inside else [])),
        outputs=(*_outputs(there, settings), *_alone(chosen, survey, settings, "outputs")),
        workflows=(*_workflows(there, settings), *_alone(chosen, survey, settings, "workflows")),
        inside=tuple(inside),
        token_files=tuple(path for root in chosen.roots for path in token_files(root) if path in survey.files),
        obstacles=chosen.obstacles,
        notes=(*chosen.notes, *(f"{one.name}: {one.keeps}" for _, one in displaced if one.keeps)),
    )


def _is_ours(path: str, roots: Roots) -> bool:
    return any(is_below(path, each) for each in (roots.models_dir, roots.outputs_dir, roots.users(), roots.state()))


def _displaced(seen: Seen, service: str, why: str, keeps: str) -> Displaced:
    return Displaced(
        seen.id,
        seen.name,
        seen.restart,
        seen.running,
        why=why,
        service=service,
        ports=tuple(port for port, _ in seen.published),
        networks=seen.networks,
        keeps=keeps,
    )


def _keeps(seen: Seen, survey: Survey) -> str:
    """What would be lost with the container, as nothing takes it over; empty where it may go."""
    if any(not _is_plain(path) for path in survey.alone.get(seen.id, ())):
        stays = f"it stays as {seen.name.removesuffix(SUFFIX)}{SUFFIX} (docker cp takes them out)"
        return f"Docker does not tell which files are in the container alone; {stays}"
    return ""


def taken_out(settings: Settings) -> str:
    """Where weights and inputs that only a container had are kept.

    Beside the store, so that they are linked from there; not in it, as that is pruned.
    """
    return f"{PurePosixPath(settings.models_path()).parent}/{INTO}"


def _inside(seen: Seen, survey: Survey, settings: Settings) -> Iterator[Inside]:
    place = f"{taken_out(settings)}/{seen.name.removesuffix(SUFFIX)}-{seen.id[:12]}"
    for path in _own_files(seen, survey):
        if re.search(f"{INPUTS}|{WEIGHTS}", path, re.I):
            yield Inside(seen.id, path, f"{place}{path}", survey.sizes.get((seen.id, path), 0))


def _own_files(seen: Seen, survey: Survey) -> list[str]:
    """What is in the container alone: where a directory is mounted, what is told is the place of the mount."""
    return [
        path
        for path in survey.alone.get(seen.id, ())
        if _is_plain(path) and not any(is_below(path, mount.target) for mount in seen.mounts)
    ]


def _is_plain(path: str) -> bool:
    """Whether it is a path as Docker tells them. Part of a name with a line break may look like one that leads elsewhere, and
    one that is no UTF-8 arrives as the name of nothing."""
    return path.startswith("/") and posixpath.normpath(path) == path and "\ufffd" not in path


def _outermost(paths: Iterable[str]) -> list[str]:
    """Without those that lie in another one."""
    distinct = list(dict.fromkeys(paths))
    return [path for path in distinct if not any(other != path and is_below(path, other) for other in distinct)]


def _outputs(there: Iterable[tuple[Place, Size]], settings: Settings) -> Iterator[Source]:
    """Each directory once, as the first who has it; what another one of them covers is left out of it."""
    sizes: dict[str, Size] = {}
    owners: dict[str, str] = {}
    for place, size in there:
        if place.kind == "outputs" and size.files:
            sizes.setdefault(size.path, size)
            owners[size.path] = owners.get(size.path) or place.service
    for path in list(sizes):
        if not owners[path]:
            for name in sizes[path].within:
                service, inner = service_of(Seen("", name)), f"{path}/{name}"
                if service and inner not in owners:
                    owners[inner], sizes[inner] = service, Size(inner, 0, 0)
    for path, size in sizes.items():
        inside = tuple(sorted(path_within(other, path) for other in sizes if other != path and is_below(other, path)))
        covered = [sizes[f"{path}/{name}"] for name in inside]
        files = max(0, size.files - sum(one.files for one in covered))
        if size.files and not files:
            continue
        service = owners[path] or "comfyui"
        yield Source(
            service,
            f"{settings.outputs_path(service)}/{INTO}",
            path,
            without=inside,
            files=files,
            bytes=max(0, size.bytes - sum(one.bytes for one in covered)),
        )


def path_within(path: str, root: str) -> str:
    """The path as it is from a root on."""
    return path.removeprefix(f"{root.rstrip('/')}/")


def _workflows(there: Iterable[tuple[Place, Size]], settings: Settings) -> Iterator[Source]:
    sizes = {
        size.path: size
        for place, size in there
        if place.kind == "workflows" and place.service in ("comfyui", "") and size.files
    }
    for path in _outermost(sizes):
        size = sizes[path]
        target = f"{settings.users_path('comfyui')}/{WORKFLOWS}/{INTO}"
        yield Source("comfyui", target, path, pattern="*.json", files=size.files, bytes=size.bytes)


def _alone(chosen: Suspects, survey: Survey, settings: Settings, kind: Kind) -> Iterator[Source]:
    """What would go with a container: files that it wrote where nothing was mounted."""
    for seen, service, _ in chosen.containers:
        files = _own_files(seen, survey)
        if kind == "workflows":
            pattern, inner = rf"(?P<top>.*/user/{WORKFLOWS})/.*\.json", "*.json"
        else:
            pattern, inner = rf"(?P<top>.*?/outputs?)/.*\.({IMAGES})", "*"
        tops: dict[str, int] = {}
        for match in (re.fullmatch(pattern, path, re.I) for path in files):
            if match:
                tops[match["top"]] = tops.get(match["top"], 0) + 1
        whose = service or "comfyui"
        target = (
            f"{settings.users_path('comfyui')}/{WORKFLOWS}/{INTO}"
            if kind == "workflows"
            else f"{settings.outputs_path(whose)}/{INTO}"
        )
        for top in _outermost(tops):
            count = sum(number for path, number in tops.items() if is_below(path, top))
            name = seen.name.removesuffix(SUFFIX)
            yield Source(whose, target, container=seen.id, inside=top, name=name, pattern=inner, files=count)


# Carrying it out


def with_search(settings: Settings, found: Found) -> Settings:
    """The settings for one run, in which weights are looked for in the previous stack's directories as well."""
    search = [*settings.models.search, *(escaped(path) for path in found.search)]
    models = settings.models.model_copy(update={"search": list(dict.fromkeys(search))})
    return settings.model_copy(update={"models": models})


def escaped(path: str) -> str:
    """A path as a pattern that means it alone."""
    return re.sub(r"([*?[])", r"[\1]", path)


def take_out(ssh: Ssh, settings: Settings, found: Found) -> None:
    """Have weights and inputs that only containers have in a directory of the host, verified; those that are there cost a look.

    After the manifest was written; before weights are fetched, and once more before the containers go. Raises AtelierError.
    """
    if not found.inside:
        return
    script = lifecycle.guard() + take_out_script(found.inside, round(settings.models.reserve_gb * GB))
    taken = ssh.run(script, timeout=24 * 3600)
    if taken.status != 0:
        raise AtelierError(
            f"what only the old containers have cannot be taken out: {taken.stderr.strip()}",
            "mend that, then run it again",
        )


def take_out_script(weights: Sequence[Inside], reserve: int) -> str:
    """Shell that takes files out of containers, each read back and compared before it has its name. reserve: bytes that stay free.

    A link is followed: the hub's cache has the bytes under another name.
    """
    calls = [shlex.join([one.container, one.path, one.target]) for one in weights]
    measured = "\n".join(f"measure {call}" for call in calls)
    taken = "\n".join(f"take {call}" for call in calls)
    return f"""{_TAKE_OUT}
{measured}
p={shlex.quote(str(PurePosixPath(weights[0].target).parent))}; while [ ! -d "$p" ]; do p=$(dirname "$p"); done
lacking=$((need + {reserve} - $(df -B1 --output=avail "$p" | tail -n 1)))
[ "$need" = 0 ] || [ "$lacking" -le 0 ] || {{
  echo "$p: $((need / 1000000)) MB are needed there, and {reserve / GB:.0f} GB stay free: make room for $((lacking / 1000000 + 1)) MB" >&2
  exit 1
}}
{taken}"""


_TAKE_OUT = r"""
set -e; umask 022; export LC_ALL=C TZ=UTC; need=0; e=$(mktemp); trap 'rm -f "$e"' EXIT
# Size and time as the head of the archive tells them; nothing where it is no file any more.
tell() {
  told=$(docker cp -L "$1:$2" - 2>"$e" | head -c 8192 | tar -tv --full-time -f - 2>/dev/null \
    | awk 'NR == 1 && /^-/ {print $3, $4, $5}')
  [ -n "$told" ] || [ ! -s "$e" ] || grep -qiE 'could not find the file|no such' "$e" || { tail -n 1 "$e" >&2; exit 1; }
}
here() { [ -f "$1" ] && echo "$(stat -c '%s' "$1") $(date -d "@$(stat -c %Y "$1")" '+%F %T')"; }
is_there() { [ "$(here "$3")" = "${told%.*}" ]; }
measure() { tell "$@"; [ -z "$told" ] || is_there "$@" || need=$((need + ${told%% *})); }
take() {
  tell "$@"; [ -n "$told" ] && ! is_there "$@" || return 0
  mkdir -p "$(dirname "$3")"
  sum=$(docker cp -L "$1:$2" - | tar -xO -f - | tee "$3.part" | sha256sum)
  sync "$3.part"; dd if="$3.part" iflag=nocache count=0 2>/dev/null || :
  if [ "$(stat -c %s "$3.part")" != "${told%% *}" ] || [ "$(sha256sum <"$3.part")" != "$sum" ]; then
    echo "$2: other bytes were written than were read, or it is being written to" >&2; exit 1
  fi
  touch -d "${told#* }" "$3.part"; mv -T "$3.part" "$3"; sync "$(dirname "$3")"
}
"""


def bring(ssh: Ssh, settings: Settings, found: Found, narrator: Narrator) -> Adopted:
    """Copy outputs and workflows, verified; what is there already costs a look. The originals stay.

    After the manifest was written; while the old containers run, and once more before they go. Raises AtelierError.
    """
    sources = [*found.outputs, *found.workflows]
    if not sources:
        return Adopted()
    staging, reserve = f"{settings.data_root}/.{INTO}", round(settings.models.reserve_gb * GB)
    guard, remedy = lifecycle.guard(), "mend that, then run it again"
    ssh.run(guard + relocation_host.install_script(), stdin=relocation_host.archive(), check=True)
    script = f"{guard}\n{bases_script(sources, settings)}\n{staging_script(sources, staging, reserve)}"
    taken = ssh.run(script, timeout=24 * 3600)
    if taken.status != 0:
        raise AtelierError(f"what only the old containers have cannot be taken out: {taken.stderr.strip()}", remedy)
    job = relocation_host.adoption_job(adoptions(sources, settings, staging), reserve)
    ssh.run(f"umask 077; cat >{relocation_host.ADOPTION}", stdin=job.content, check=True)
    answer = relocation_host.ask(ssh, guard + relocation_host.shell("adopt", relocation_host.ADOPTION), narrator.output)
    if answer.error or answer.adopted is None:
        raise AtelierError(f"not all of the previous stack's files could be copied: {answer.error}", remedy)
    ssh.run(f"rm -rf {shlex.quote(staging)}", check=True)
    for path, reason_ in answer.adopted.left.items():
        narrator.say(f"  {path}: not copied: {reason_}")
    for path, name in answer.adopted.renamed.items():
        narrator.say(f"  {path}: copied as {name}, as another file has its name")
    return answer.adopted


def _bases(settings: Settings) -> dict[str, int]:
    """The services' own directories, and the mode of each."""
    outputs = {settings.outputs_path(name): 0o755 for name in ("comfyui", "forge")}
    return {**outputs, settings.users_path("comfyui"): 0o700}


def bases_script(sources: Sequence[Source], settings: Settings) -> str:
    """Shell that makes the services' own directories that get something, where a deploy has not made them yet."""
    uid = settings.service_uid
    lines = [
        f"[ -d {place} ] || {{ mkdir -p {shlex.quote(str(PurePosixPath(base).parent))} "
        f"&& install -d -o {uid} -g {uid} -m {mode:04o} {place}; }}"
        for base, mode in _bases(settings).items()
        if any(is_below(source.target, base) for source in sources)
        for place in [shlex.quote(base)]
    ]
    return "\n".join(["set -e; umask 022", *lines])


def staging_script(sources: Iterable[Source], staging: str, reserve: int) -> str:
    """Shell that takes out of containers what only they have, where there is room. A link in there is copied as one.

    reserve: bytes that stay free.
    """
    place, above = shlex.quote(staging), shlex.quote(str(PurePosixPath(staging).parent))
    alone = [
        (f"{one.container}:{shlex.quote(f'{one.inside}/.')}", shlex.quote(_staged(one, staging)))
        for one in sources
        if one.container
    ]
    # Twice, as all of it lies there until it has been copied to where it belongs.
    measured = [f"n=$(docker cp {files} - | wc -c); need=$((need + 2 * n))" for files, _ in alone]
    taken = [f"mkdir -p -m 0700 {into}; docker cp -a {files} {into}" for files, into in alone]
    room = f"""need=0
{chr(10).join(measured)}
lacking=$((need + {reserve} - $(df -B1 --output=avail {above} | tail -n 1)))
[ "$lacking" -le 0 ] || {{
  echo "{above}: $((need / 1000000)) MB are needed there for a while, and {reserve / GB:.0f} GB stay free:" \\
    "make room for $((lacking / 1000000 + 1)) MB" >&2
  exit 1
}}"""
    return "\n".join(["set -e", f"rm -rf {place}", *([room, *taken] if alone else [])])


def _staged(one: Source, staging: str) -> str:
    return f"{staging}/{one.container[:12]}{one.inside}"


def adoptions(sources: Iterable[Source], settings: Settings, staging: str) -> list[Adoption]:
    """The sources as the program on the host takes them."""
    return [
        Adoption(
            one.directory or _staged(one, staging),
            base,
            path_within(one.target, base),
            settings.service_uid,
            one.pattern,
            one.without,
        )
        for one in sources
        for base in _bases(settings)
        if is_below(one.target, base)
    ]


def token_script(found: Found) -> str:
    """Shell that prints the files that hold credentials."""
    return "\n".join(
        f"echo {shlex.quote(f'{MARK}{path}')}; head -c 65536 {shlex.quote(path)}; echo" for path in found.token_files
    )


def credentials(ssh: Ssh, found: Found, environment: Mapping[str, str]) -> Imported:
    """Credentials with the token of the previous stack, read on the host and written nowhere. Raises AtelierError."""
    if not found.token_files:
        where = " or ".join(f"{root}/.secrets" for root in found.roots) or "the host, as no previous stack was found"
        raise AtelierError(
            f"ADOPT_TOKEN=1: there is no {TOKEN_FILE} in {where}", "leave it out; clients then get a new token"
        )
    texts = {
        path: "\n".join(lines) for path, lines in sections(ssh.run(token_script(found), check=True).stdout).items()
    }
    return importing.import_texts(texts, environment, "ADOPT_TOKEN=1")
