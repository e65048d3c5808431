"""Which packages go with an uninstall, and why others stay: Docker while others use it, what others need. Pure."""

import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from atelier import apt
from atelier.deployment import DOCKER_CE, DOCKER_DEBIAN
from atelier.gpu import routes, toolkit
from atelier.manifest import PURGING
from atelier.recorded import Recorded
from atelier.remains import Docker, Remains

SHOWN = 6
"""Names of one kind that are told one by one."""
DOCKER_PACKAGES = frozenset({*DOCKER_CE, *DOCKER_DEBIAN})


@dataclass(frozen=True)
class Kept:
    """What stays, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Simulation:
    """What apt would do. removed: by name whether it only became needless. before: what is needless now already.

    recommended: those of the removed by whom they are recommended that stays. unwanted: those that nobody recommends either.
    """

    removed: Mapping[str, bool] = field(default_factory=dict)
    before: frozenset[str] = frozenset()
    recommended: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unwanted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Packages:
    """purge: all packages that go. brought: those of them that nobody asked for. kept: why others of ours stay."""

    purge: tuple[str, ...] = ()
    brought: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()


def is_gpu_package(name: str) -> bool:
    """Whether a package is of the driver or of the container toolkit."""
    return bool(routes.DRIVER_PACKAGE.match(name)) or name.startswith(routes.COMPANIONS) or name in toolkit.PACKAGES


def docker_stays(recorded: Recorded, remains: Remains) -> str:
    """Why Docker is not removed; empty where it is."""
    if not remains.installed(DOCKER_PACKAGES) or DOCKER_PACKAGES & recorded.created.get(PURGING, frozenset()):
        return ""
    if not DOCKER_PACKAGES & our_packages(recorded):
        return "it was here before the first deploy"
    told = _others_in(recorded, remains.docker)
    return f"it holds what is somebody else's: {'; '.join(told)}" if told else ""


def _others_in(recorded: Recorded, docker: Docker) -> list[str]:
    """What Docker holds that no deploy made, in words."""
    others = {
        "containers": foreign_containers(docker),
        "volumes": sorted(docker.volumes),
        "networks": sorted(name for name, ours in docker.networks.items() if not ours),
        "images": sorted(docker.images - recorded.created.get("images", frozenset())),
    }
    return [f"{kind} {named(names)}" for kind, names in others.items() if names]


def reconsidered(recorded: Recorded, remains: Remains) -> Recorded:
    """The record without a removal of packages that broke off before Docker went, where others use Docker by now."""
    begun = DOCKER_PACKAGES & recorded.created.get(PURGING, frozenset())
    if not begun or not remains.docker.answers or not _others_in(recorded, remains.docker):
        return recorded
    return replace(recorded, created={kind: names for kind, names in recorded.created.items() if kind != PURGING})


def gpu_stays(remains: Remains) -> str:
    """Why driver and toolkit of ours are not removed; empty where they are."""
    others = foreign_containers(remains.docker)
    return f"somebody else's containers may use it: {named(others)}" if others else ""


def foreign_containers(docker: Docker) -> list[str]:
    """The containers that no deploy made."""
    return sorted(container.name for container in docker.containers if not container.ours)


def our_packages(recorded: Recorded) -> frozenset[str]:
    """The packages that deploys installed, and that were not there before.

    What apt holds for us it never calls needless. Where nobody wrote down what was there it may have been.
    """
    held = recorded.created.get("holds", frozenset()) if "packages" in recorded.found else frozenset()
    return (frozenset(map(apt.name_of, recorded.created.get("packages", ()))) | held) - found_packages(recorded)


def found_packages(recorded: Recorded) -> frozenset[str]:
    """The packages that were there before the first deploy; none where that was not recorded."""
    return frozenset(map(apt.name_of, recorded.found.get("packages", ())))


def candidates(recorded: Recorded, remains: Remains) -> Packages:
    """The packages of ours that may go, before apt was asked what hangs on them."""
    if PURGING in recorded.created:
        return Packages(tuple(sorted(remains.installed(recorded.created[PURGING]))))
    ours = sorted(remains.installed(our_packages(recorded)))
    docker, gpu = docker_stays(recorded, remains), gpu_stays(remains)
    kept = {}
    if docker:
        kept[docker] = [name for name in ours if name in DOCKER_PACKAGES]
    if gpu:
        kept[gpu] = [name for name in ours if is_gpu_package(name)]
    stays = {name for names in kept.values() for name in names}
    told = tuple(Kept(f"the packages {' '.join(names)}", why) for why, names in kept.items() if names)
    return Packages(tuple(name for name in ours if name not in stays), (), told)


def settle(
    wanted: Packages, recorded: Recorded, remains: Remains, simulate: Callable[[Sequence[str]], Simulation]
) -> Packages:
    """The packages that go: without any that somebody else's need, and with what ours alone had brought.

    simulate: asks apt what removing packages would remove besides.
    """
    if PURGING in recorded.created:
        return wanted
    found, names, kept = found_packages(recorded), list(wanted.purge), list(wanted.kept)
    told = simulate(names) if names else Simulation()
    if _dragged(names, told, found, remains):
        for name in list(names):
            if others := _dragged(names, simulate([name]), found, remains):
                names.remove(name)
                kept.append(Kept(f"the package {name}", f"somebody else's need it: {named(others)}"))
        told = simulate(names) if names else Simulation()
        if others := _dragged(names, told, found, remains):
            return Packages(
                (), (), (*kept, Kept(f"the packages {' '.join(names)}", f"others need them: {named(others)}"))
            )
    brought = sorted(
        name for name in told.removed if name not in names and name not in found and name not in told.before
    )
    # It was missing before to whom it is recommended, or it came with what somebody chose since: then it is theirs as well.
    theirs = {name for name in brought if told.recommended.get(name, frozenset()) - found}
    if theirs:
        brought = [name for name in brought if name in told.unwanted]
    return Packages((*names, *brought), tuple(brought), tuple(kept))


def _dragged(names: Collection[str], told: Simulation, found: Collection[str], remains: Remains) -> list[str]:
    """What would go because it needs one of ours, and is somebody else's."""
    return sorted(
        name
        for name, needless in told.removed.items()
        if not needless and name not in names and (name in remains.manual or name in found)
    )


def simulate_script(names: Sequence[str]) -> str:
    """Shell that prints what apt would remove: `needless` before, `removed` with these, `all` with what they brought.

    And by whom what is installed is recommended: apt itself would keep what anybody suggests.
    """
    quoted = shlex.join(names)
    needless = "-o APT::AutoRemove::RecommendsImportant=false -o APT::AutoRemove::SuggestsImportant=false"
    return f"""
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
ask() {{
  told=$(apt-get -s -o Debug::NoLocking=true {needless} --allow-change-held-packages "$@" 2>&1) || {{ echo "$told" >&2; exit 1; }}
  echo "$told" | sed -n 's/^\\(Purg\\|Remv\\) \\([^ ]*\\).*/\\2/p'
}}
echo ::needless; ask autoremove
echo ::removed; ask purge {quoted}
echo ::all; ask purge --autoremove {quoted}
echo ::unwanted; ask -o APT::AutoRemove::RecommendsImportant=true purge --autoremove {quoted}
echo ::recommends; dpkg-query -W -f '${{db:Status-Status}} ${{Package}} ${{Recommends}}\\n' | sed -n 's/^installed //p'
"""


def stop_script(names: Sequence[str]) -> str:
    """Shell that stops the units of packages that go: not every package does so itself when it is removed."""
    unit = "s#^\\(/usr\\)\\?/lib/systemd/system/\\([^/@]*\\.\\(service\\|socket\\|path\\|timer\\)\\)$#\\2#p"
    return f"""
for u in $(dpkg-query -L {shlex.join(names)} 2>/dev/null | sed -n '{unit}'); do
  ! systemctl is-active -q "$u" || systemctl stop "$u" || exit 1
done
"""


def parse_simulation(output: str) -> Simulation:
    """What `simulate_script` printed."""
    sections = {name: text for name, _, text in (part.partition("\n") for part in output.split("::")[1:])}
    removed, together = set(sections["removed"].split()), set(sections["all"].split())
    recommended: dict[str, frozenset[str]] = {}
    for package, _, wishes in (line.partition(" ") for line in sections["recommends"].splitlines()):
        for name in set(re.findall(r"(?:^|[,|]) *([a-z0-9][a-z0-9.+-]*)", wishes)) & together:
            if package not in together:
                recommended[name] = recommended.get(name, frozenset()) | {package}
    return Simulation(
        {name: name not in removed for name in together},
        frozenset(sections["needless"].split()),
        recommended,
        frozenset(sections["unwanted"].split()),
    )


def named(names: Sequence[str]) -> str:
    """Names in a line, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
