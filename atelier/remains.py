"""What of a deployment lies on a host, and what beside it is somebody else's: shell that asks, and its answers. Pure.

It asks with what every Debian has: by the time that an interrupted removal is finished, Python may be gone.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from atelier import render
from atelier.deployment import DAEMON_JSON, DOCKER_CE, DOCKER_DEBIAN
from atelier.docker_settings import BEFORE
from atelier.recorded import ANCHOR_DIRECTORY, Recorded, Roots
from atelier.tree import PART

ENGINES = (DOCKER_CE[0], DOCKER_DEBIAN[0])
"""The packages any of which is Docker's daemon."""
DOCKER_ROOT, CONTAINERD_ROOT = "/var/lib/docker", "/var/lib/containerd"
RULES = {f"raw {render.LOOPBACK_RULE}", f"mangle {render.DIRECT_RULE}"}
"""Table and rule of what the guard drops."""


@dataclass(frozen=True)
class Container:
    """A container on the host, whoever made it. ours: it carries our label."""

    name: str
    ours: bool
    image: str
    networks: frozenset[str]


@dataclass(frozen=True)
class Docker:
    """What Docker holds. answers: its daemon was asked; nothing is known of one that did not."""

    answers: bool = False
    containers: tuple[Container, ...] = ()
    networks: Mapping[str, bool] = field(default_factory=dict)
    """By name whether it carries our label; those that Docker makes itself are left out."""
    images: frozenset[str] = frozenset()
    """The tags."""
    volumes: frozenset[str] = frozenset()
    root: str = DOCKER_ROOT


@dataclass(frozen=True)
class Remains:
    """A host as it is."""

    packages: Mapping[str, str] = field(default_factory=dict)
    """By name dpkg's status: `installed`, `config-files` and those in between."""
    manual: frozenset[str] = frozenset()
    """The packages that somebody asked for, and no other package alone."""
    holds: frozenset[str] = frozenset()
    kinds: Mapping[str, str] = field(default_factory=dict)
    """By path type as find's %y, of what is recorded and what lies below directories of ours."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """By path sha256, of the files whose bytes were recorded."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """By directory of data, each service's in it, and weight the bytes that it takes."""
    foreign: frozenset[str] = frozenset()
    """What in the services' directories belongs to somebody else than the service user: the topmost of it."""
    mounts: frozenset[str] = frozenset()
    """Mount points below directories of ours."""
    docker: Docker = Docker()
    users: frozenset[str] = frozenset()
    groups: Mapping[str, str] = field(default_factory=dict)
    """By name its members, separated by commas."""
    daemon_json: str = ""
    before: str | None = None
    """Docker's settings as the first deploy found them, empty where there were none; None where no such copy lies there."""
    rules: frozenset[str] = frozenset()
    """Those of RULES that are in force."""
    enabled: frozenset[str] = frozenset()
    active: frozenset[str] = frozenset()
    """Of the units that somebody had switched off before the first deploy, those that start at boot, and those that run."""
    bridge: bool = False
    """Docker's own bridge is there."""

    def installed(self, names: Iterable[str]) -> list[str]:
        """Those packages of which there is anything left."""
        return [name for name in names if self.packages.get(name, "not-installed") != "not-installed"]

    def has_engine(self) -> bool:
        """Whether Docker's daemon is installed, and not half removed."""
        return any(self.packages.get(name) == "installed" for name in ENGINES)


def data_directories(roots: Roots) -> tuple[str, ...]:
    """Where users and operators have what they would miss."""
    return (roots.models_dir, roots.outputs_dir, roots.users())


def script(recorded: Recorded, roots: Roots) -> str:
    """A POSIX shell script that prints sections, everything ended by NUL; it changes nothing.

    roots: those that are recorded, or where nothing is, those of the settings.
    """
    paths = sorted(recorded.created.get("files", frozenset()) | recorded.created.get("directories", frozenset()))
    paths += [f"{path}{PART}" for path in recorded.created.get("files", ())]
    paths += sorted(recorded.created.get("metrics", ()))
    own = shlex.join([roots.config_root, roots.state(), ANCHOR_DIRECTORY])
    data = shlex.join(data_directories(roots))
    users = shlex.join(sorted(recorded.created.get("users", ())))
    units = shlex.join(sorted(recorded.found.get("disabled", frozenset()) | recorded.found.get("stopped", frozenset())))
    places = (roots.outputs_dir, roots.users())
    folders = [path for path in recorded.ours("directories") if str(PurePosixPath(path).parent) in places]
    of_users = [f"find -H {shlex.quote(path)} -xdev -mindepth 1" for path in sorted(folders)]
    # Docker leaves an empty directory of root's where it mounts one into another.
    is_foreign = f"! -uid {recorded.service_uid} -prune ! \\( -type d -empty \\) -printf '%p\\0'"
    others = "-false" if recorded.service_uid is None else is_foreign
    checks = "; ".join(
        f"iptables -w -t {table} -C {rest} && printf '%s\\0' {shlex.quote(rule)}"
        for rule in sorted(RULES)
        for table, _, rest in [rule.partition(" ")]
    )
    below = "|".join(
        shlex.quote(f"{root}/") + "*" for root in [*data_directories(roots), *own.split(), roots.data_root]
    )
    return f"""
exec 2>/dev/null
export LC_ALL=C.UTF-8
s() {{ printf '::%s\\0' "$1"; }}
lines() {{ tr '\\n' '\\0'; }}
s packages; dpkg-query -W -f '${{db:Status-Status}} ${{Package}}\\n' | lines
s manual; apt-mark showmanual | lines
s holds; apt-mark showhold | lines
s kinds; find {shlex.join([*paths, roots.data_root, roots.state(), DOCKER_ROOT, CONTAINERD_ROOT])} -maxdepth 0 -printf '%y %p\\0'
find {own} -mindepth 1 -printf '%y %p\\0'; find -H {data} -maxdepth 2 -printf '%y %p\\0'
s digests; find {shlex.join(sorted(recorded.wrote) or ["/nonexistent"])} -maxdepth 0 -type f -exec sha256sum -z -- {{}} +
s sizes; {{ du -0sxD -B1 {data}; du -0xD -B1 -d 1 {shlex.join(places)}
find -H {shlex.quote(roots.models_dir)} -xdev -mindepth 2 -maxdepth 2 -type f -printf '%s\\t%p\\0'; }} | tr '\\t' ' '
s foreign; {"; ".join(f"{find} {others}" for find in of_users)}
s mounts; while read -r _ _ _ _ where _; do case $where in {below}) printf '%s\\0' "$where";; esac; done </proc/self/mountinfo
s docker
if timeout 30 docker version --format '{{{{.Server.Version}}}}' >/dev/null; then
  printf 'answers\\0'
  docker ps -a --no-trunc --format 'c {{{{.Names}}}} {{{{.Label "atelier.config"}}}} {{{{.Image}}}} {{{{.Networks}}}}' | lines
  docker network ls --filter type=custom --format 'n {{{{.Name}}}} {{{{.Label "atelier"}}}}' | lines
  docker image ls --format 'i {{{{.Repository}}}}:{{{{.Tag}}}}' | lines
  docker volume ls --format 'v {{{{.Name}}}}' | lines
  docker info --format 'r {{{{.DockerRootDir}}}}' | lines
fi
s users; for u in {users}; do getent passwd "$u" | cut -d: -f1 | lines; done
s groups; getent group | cut -d: -f1,4 | lines
s daemon_json; cat {DAEMON_JSON}; printf '\\0'
s before; [ ! -e {BEFORE} ] || {{ printf 'there\\0'; cat {BEFORE}; printf '\\0'; }}
s rules; {checks}
s enabled; for u in {units}; do [ "$(systemctl is-enabled $u)" != enabled ] || printf '%s\\0' $u; done
s active; for u in {units}; do ! systemctl is-active -q $u || printf '%s\\0' $u; done
s bridge; [ ! -e /sys/class/net/docker0 ] || printf 'yes\\0'
:
"""


def parse(output: str) -> Remains:
    """What `script` printed."""
    sections: dict[str, list[str]] = {}
    for text in output.split("\0"):
        if text.startswith("::"):
            current = sections.setdefault(text[2:], [])
        elif text and sections:
            current.append(text)

    def pairs(name: str, separator: str = " ") -> list[tuple[str, str]]:
        return [(one, two) for one, _, two in (text.partition(separator) for text in sections.get(name, []))]

    before = sections.get("before", [])
    return Remains(
        packages={name: status for status, name in pairs("packages")},
        manual=frozenset(sections.get("manual", [])),
        holds=frozenset(sections.get("holds", [])),
        kinds={path: kind for kind, path in pairs("kinds")},
        digests={path: digest for digest, path in pairs("digests", "  ")},
        sizes={path: int(size) for size, path in pairs("sizes")},
        foreign=frozenset(sections.get("foreign", [])),
        mounts=frozenset(sections.get("mounts", [])),
        docker=_docker(sections.get("docker", [])),
        users=frozenset(sections.get("users", [])),
        groups=dict(pairs("groups", ":")),
        daemon_json="".join(sections.get("daemon_json", [])),
        before="".join(before[1:]) if before else None,
        rules=frozenset(sections.get("rules", [])),
        enabled=frozenset(sections.get("enabled", [])),
        active=frozenset(sections.get("active", [])),
        bridge=bool(sections.get("bridge")),
    )


def _docker(lines: list[str]) -> Docker:
    if not lines:
        return Docker()
    rows: dict[str, list[str]] = {kind: [] for kind in "cnivr"}
    for line in lines[1:]:
        rows[line[0]].append(line[2:])
    containers = [line.split(" ") for line in rows["c"]]
    networks = [line.partition(" ") for line in rows["n"]]
    return Docker(
        answers=True,
        containers=tuple(
            Container(name, bool(label), image, frozenset(attached.split(",")) - {""})
            for name, label, image, attached in containers
        ),
        networks={name: bool(label) for name, _, label in networks},
        images=frozenset(tag for tag in rows["i"] if "<none>" not in tag),
        volumes=frozenset(rows["v"]),
        root=next(iter(rows["r"]), DOCKER_ROOT),
    )
