"""What may be wrong with a host that is half dead: shell that asks, and its answers. Pure; nothing is changed by asking."""

import datetime
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from atelier import apt
from atelier.apt import Repository
from atelier.deployment import DAEMON_JSON
from atelier.docker_settings import BEFORE
from weights.store import INCOMING

SECTION = "::ailments::"
LOOPS_WITHIN = 300
"""Seconds since its last start within which a container that restarted often is one that goes on doing so."""
LOOPS_FROM = 3
"""Restarts from which it is."""
DOCKER_SECONDS = 20
"""In which Docker answers, or is taken for dead."""
SHOWN_LARGEST = 5
EXPIRED = re.compile(r"EXPKEYSIG|KEYEXPIRED|[Ee]xpired on ")
"""How apt's verifiers, gpgv and sqv, say that it is the key's time that is over."""
UNFINISHED = ("half-installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending")
"""dpkg's states of a package between two others."""
STATE = (
    'c {{.Name}} {{with index .Config.Labels "atelier.config"}}ours{{else}}-{{end}} {{.State.Restarting}} {{.State.Dead}} '
    "{{.RestartCount}} {{.State.ExitCode}} {{.State.StartedAt}}"
)
IMAGE = "{{.Id}} {{.Size}}{{range .RepoTags}} {{.}}{{end}}"


@dataclass(frozen=True)
class FileSystem:
    """A file system that something of ours lies on, or will. free: bytes; inodes: free names, None where it counts none."""

    mount: str
    free: int
    inodes: int | None = None
    read_only: bool = False


@dataclass(frozen=True)
class Docker:
    """Docker's daemon. load, active, result: as systemd has them. invalid: dockerd's own words about daemon.json."""

    load: str = ""
    active: str = ""
    result: str = ""
    answers: bool = False
    invalid: str = ""
    said: str = ""
    """The last line of its journal that names an error."""
    keeps_containers: bool = False
    """Its settings let containers run on while it restarts."""
    settings_before: bool = False
    """A copy of its settings of before the last merge lies there."""
    our_settings: str = ""
    """What daemon.json would be without anybody else's keys; empty where there was one before us."""


@dataclass(frozen=True)
class Container:
    """A container that does not stay up, or is half removed. ours: it carries our label."""

    name: str
    ours: bool
    restarts: int
    exit_code: int
    dead: bool = False


@dataclass(frozen=True)
class Packages:
    """The package manager. unfinished: packages that were not installed to the end."""

    holder: str = ""
    """Who holds its lock; what looks broken may be work in progress."""
    unfinished: tuple[str, ...] = ()
    reinstall: tuple[str, ...] = ()
    """Packages that dpkg wants to be installed anew."""
    available: frozenset[str] = frozenset()
    """Of those, the ones that apt can have."""
    broken: str = ""
    """apt's words about dependencies that are not met."""
    removals: tuple[str, ...] = ()
    """What apt would remove to mend that."""


@dataclass(frozen=True)
class Key:
    """A repository that apt refuses because its key has expired."""

    url: str
    file: str = ""
    """That names the repository."""
    ours: Repository | None = None


@dataclass(frozen=True)
class Ailments:
    """A host as it is, beside what this computer wants of it."""

    clock_off: float = 0.0
    """Seconds that its clock is before ours; negative: behind."""
    file_systems: tuple[FileSystem, ...] = ()
    lacking: Mapping[str, int] = field(default_factory=dict)
    """By mount point the bytes that are missing for what is to be done."""
    leaving: frozenset[str] = frozenset()
    """The file systems that data is about to move away from."""
    largest: Mapping[str, int] = field(default_factory=dict)
    """By path the bytes of what takes most of a file system that lacks space."""
    images: Mapping[str, int] = field(default_factory=dict)
    """By tag the bytes of images of ours that no container is of and this deployment does not want."""
    image_mount: str = ""
    """The file system that images and build cache are on."""
    build_cache: int = 0
    """Its bytes; 0 where somebody else's may be in it."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """By path the bytes of begun transfers of weights that nothing asks for."""
    parts_mount: str = ""
    docker: Docker = Docker()
    containers: tuple[Container, ...] = ()
    declared: frozenset[str] = frozenset()
    """The names of the containers that this deployment makes."""
    packages: Packages = Packages()
    keys: tuple[Key, ...] = ()


def script(directories: Iterable[str]) -> str:
    """A POSIX shell script that prints sections. directories: what must be on a file system that can be written."""
    return f"""
export LC_ALL=C.UTF-8
exec 2>/dev/null
s() {{ printf '\\n%s\\n' "{SECTION}$1"; }}
{NEAREST}
{apt.HOLDER}
s clock; date +%s
s systems; for p in {shlex.join(sorted({*directories}))}; do
  n=$(nearest "$p"); o=$(findmnt -rno OPTIONS -T "$n"); printf '%s ' "${{o%%,*}}"
  df -B1 --output=avail,iavail,itotal,target "$n" | tail -n 1
done
s unit; systemctl show docker.service -p LoadState,ActiveState,Result
s docker
if timeout {DOCKER_SECONDS} docker version --format '{{{{.Server.Version}}}}' >/dev/null; then
  echo answers
  c=$(timeout 60 docker ps -aq --no-trunc) && [ -z "$c" ] || timeout 60 docker inspect --type container --format '{STATE}' $c
else
  if [ -e {DAEMON_JSON} ] && command -v dockerd >/dev/null; then
    v=$(dockerd --validate --config-file {DAEMON_JSON} 2>&1) || echo "invalid $(echo "$v" | tail -n 1)"
  fi
  journalctl -u docker.service -n 40 -o cat --no-pager | grep -iE 'failed|error' | tail -n 1 | sed 's/^/said /'
  grep -Eq '"live-restore"[[:space:]]*:[[:space:]]*true' {DAEMON_JSON} && echo keeps
  [ ! -s {BEFORE} ] || echo before
fi
s holder; holder
s packages; dpkg-query -W -f '${{db:Status-Status}} ${{db:Status-Eflag}} ${{Package}}\\n'
ls -A /var/lib/dpkg/updates | sed -n '1s/.*/updates - -/p'
for p in $(dpkg-query -W -f '${{db:Status-Eflag}} ${{Package}}\\n' | sed -n 's/^reinstreq //p'); do
  [ -z "$(apt-cache madison "$p")" ] || echo "available - $p"
done
a() {{ timeout 60 apt-get -o Debug::NoLocking=true -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@" 2>&1; }}
s broken; a check | grep -E '^(E:| [^ ]+ : )' | grep -v 'needs to be reinstalled'
s removals; a -s -q --fix-broken install | sed -n 's/^Remv \\([^ ]*\\).*/\\1/p'
s sources; grep -rHE '^[[:space:]]*(deb|URIs:)' /etc/apt/sources.list /etc/apt/sources.list.d
{_REFUSED}
:
"""


NEAREST = 'nearest() { p=$1; while [ ! -d "$p" ]; do p=$(dirname "$p"); done; printf %s "$p"; }'

_REFUSED = """
s refused
# Lists of their own, in memory, without indexes: apt verifies every repository, and the host keeps what it knew.
t=$(mktemp -d -p /run) && mkdir -p "$t/lists/partial" "$t/cache" && timeout 90 apt-get update -q \\
  -o Dir::State::lists="$t/lists" -o Dir::Cache="$t/cache" -o Debug::NoLocking=true -o APT::Sandbox::User=root \\
  -o Acquire::Retries=0 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 \\
  -o Acquire::IndexTargets::deb::Packages::DefaultEnabled=false -o Acquire::IndexTargets::deb::Translations::DefaultEnabled=false \\
  -o Acquire::IndexTargets::deb-src::Sources::DefaultEnabled=false 2>&1 | grep '^[WE]:'
rm -rf "$t"
"""


def space_script(store: str, mounts: Collection[str], image_directory: str) -> str:
    """Shell that prints what could be freed, and what takes most of the file systems that lack space."""
    incoming = shlex.quote(f"{store}/{INCOMING}")
    return f"""
export LC_ALL=C.UTF-8
exec 2>/dev/null
s() {{ printf '\\n%s\\n' "{SECTION}$1"; }}
{NEAREST}
s mounts; for p in {shlex.quote(image_directory)} {shlex.quote(store)}; do df --output=target "$(nearest "$p")" | tail -n 1; done
s parts; find {incoming} -xdev -type f -printf '%b %p\\n'
if timeout {DOCKER_SECONDS} docker version >/dev/null; then
  s used; c=$(docker ps -aq) && [ -z "$c" ] || docker inspect --type container --format '{{{{.Image}}}}' $c
  s images; i=$(docker image ls -q --no-trunc | sort -u); [ -z "$i" ] || docker image inspect --format '{IMAGE}' $i
  s cache; timeout 60 docker system df --format '{{{{.Type}}}}:{{{{.Size}}}}' | sed -n 's/^Build Cache://p'
fi
s largest; for m in {shlex.join(sorted(mounts))}; do timeout 60 du -xa -B1 --max-depth=4 "$m" | sort -rn | head -n 60; done
:
"""


def _sections(output: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith(SECTION):
            current = sections.setdefault(line.removeprefix(SECTION), [])
        elif line.strip() and sections:
            current.append(line.strip())
    return sections


def parse(output: str, now: float, repositories: Sequence[Repository] = ()) -> Ailments:
    """What `script` printed. now: this computer's clock when it did. repositories: those that a deploy may have added."""
    sections = _sections(output)
    clock = float(next(iter(sections.get("clock", [])), now))
    docker, unit = sections.get("docker", []), dict(line.split("=", 1) for line in sections.get("unit", []))
    told = {line.partition(" ")[0]: line.partition(" ")[2] for line in docker if not line.startswith("c ")}
    containers = [_container(line.split(" "), clock) for line in docker if line.startswith("c ")]
    return Ailments(
        clock_off=clock - now,
        file_systems=_file_systems(sections.get("systems", [])),
        docker=Docker(
            load=unit.get("LoadState", ""),
            active=unit.get("ActiveState", ""),
            result=unit.get("Result", ""),
            answers="answers" in told,
            invalid=told.get("invalid", ""),
            said=told.get("said", ""),
            keeps_containers="keeps" in told,
            settings_before="before" in told,
        ),
        containers=tuple(container for container in containers if container),
        packages=_packages(sections),
        keys=_keys(sections.get("refused", []), sections.get("sources", []), repositories),
    )


def with_space(
    facts: Ailments,
    output: str,
    wanted_images: Collection[str],
    wanted_weights: Collection[str],
    our_images: Collection[str],
) -> Ailments:
    """The same with what `space_script` printed. wanted_images, our_images: tags; wanted_weights: sha256."""
    sections = _sections(output)
    used = {*sections.get("used", [])}
    images: dict[str, int] = {}
    others = False
    for identity, size, *tags in (line.split(" ") for line in sections.get("images", [])):
        own = [tag for tag in tags if tag in our_images]
        others = others or not own
        if identity not in used and not {*tags} & {*wanted_images}:
            images |= dict.fromkeys(own, int(size))
    parts = (line.split(" ", 1) for line in sections.get("parts", []))
    mounts = [*sections.get("mounts", []), "", ""]
    cache = next(iter(sections.get("cache", [])), "0B")
    return replace(
        facts,
        images=images,
        image_mount=mounts[0],
        build_cache=0 if others else _bytes(cache),
        parts={
            path: int(blocks) * 512
            for blocks, path in parts
            if (found := re.search(r"/([0-9a-f]{64})\.[^/]*$", path)) and found[1] not in wanted_weights
        },
        parts_mount=mounts[1],
        largest=_largest(sections.get("largest", [])),
    )


def _bytes(told: str) -> int:
    """A size in Docker's words, such as `1.25GB`."""
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    found = re.fullmatch(r"([0-9.]+)([a-zA-Z]+)", told)
    return round(float(found[1]) * units.get(found[2], 0)) if found else 0


def _file_systems(lines: Iterable[str]) -> tuple[FileSystem, ...]:
    found = {}
    for line in lines:
        mode, free, inodes, names, mount = line.split(maxsplit=4)
        counted = int(inodes) if inodes.isdigit() and names not in ("0", "-") else None
        found[mount] = FileSystem(mount, int(free), counted, mode == "ro")
    return tuple(found.values())


def _container(fields: Sequence[str], clock: float) -> Container | None:
    """Of a container that does not stay up or is half removed; None of any other."""
    _, name, ours, restarting, dead, restarts, exit_code, started = fields
    since = datetime.datetime.fromisoformat(started[:19]).replace(tzinfo=datetime.timezone.utc).timestamp()
    loops = restarting == "true" or (int(restarts) >= LOOPS_FROM and clock - since < LOOPS_WITHIN)
    if not loops and dead != "true":
        return None
    return Container(name.removeprefix("/"), ours == "ours", int(restarts), int(exit_code), dead == "true")


def _packages(sections: Mapping[str, Sequence[str]]) -> Packages:
    rows = [line.split(" ") for line in sections.get("packages", [])]
    return Packages(
        holder="".join(sections.get("holder", [])),
        unfinished=tuple(name for status, _, name in rows if status in UNFINISHED),
        reinstall=tuple(name for _, flag, name in rows if flag == "reinstreq"),
        available=frozenset(name for status, _, name in rows if status == "available"),
        broken="; ".join(line.removeprefix("E: ") for line in sections.get("broken", [])),
        removals=tuple(sections.get("removals", [])),
    )


def _keys(refused: Iterable[str], sources: Iterable[str], repositories: Sequence[Repository]) -> tuple[Key, ...]:
    files: dict[str, str] = {}
    for line in sources:
        path, _, text = line.partition(":")
        files |= {_bare(url): path for url in re.findall(r"[a-z+]+:/\S+", text)}
    ours = {repository.source.path: repository for repository in repositories}
    found = {}
    for match in apt.SIGNATURE.finditer("\n".join(refused)):
        if EXPIRED.search(match["why"]):
            url = match["where"]
            file = files.get(_bare(url), "")
            found[url] = Key(url, file, ours.get(file))
    return tuple(found.values())


def _bare(url: str) -> str:
    """A repository's address in the one form in which apt and its sources can be compared."""
    parts = urlsplit(url)
    return f"{parts.scheme}:{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _largest(lines: Iterable[str]) -> dict[str, int]:
    """The largest directories, without those whose size is that of one below them."""
    sizes = {path: int(size) for size, path in (line.split("\t", 1) for line in lines if "\t" in line)}

    def is_more_than_its_parts(path: str) -> bool:
        inner = [size for other, size in sizes.items() if other != path and other.startswith(f"{path.rstrip('/')}/")]
        return not inner or max(inner) < 0.7 * sizes[path]

    chosen = [
        path for path in sorted(sizes, key=lambda path: -sizes[path]) if path != "/" and is_more_than_its_parts(path)
    ]
    return {path: sizes[path] for path in chosen[:SHOWN_LARGEST]}
