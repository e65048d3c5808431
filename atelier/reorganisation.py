"""What a host goes through to be as the settings say by now: what moves, steps aside, goes and stays. Pure.

`atelier/reprovision.py` carries it out. Nothing is removed that the host has not recorded as ours, and nothing before the
services have passed.
"""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import PurePosixPath

from atelier import deployment as decide
from atelier import displacement, drift_diff, render, repairs
from atelier.deployment import Deployment
from atelier.displacement import SUFFIX, Displaced
from atelier.drift_diff import Diff
from atelier.errors import Finding
from atelier.previous_stack import Found as PreviousStack
from atelier.recorded import ANCHOR_DIRECTORY, Recorded, Roots, roots_of
from atelier.remains import Container as Attached
from atelier.remains import Remains
from atelier.repairs import Repair
from atelier.settings import Settings
from atelier.tree import PART
from atelier.uninstall import UNITS, Step
from atelier.uninstall_packages import Kept, named
from relocation.job import Kind, Move, moved
from relocation.plan import Plan as Relocation
from relocation.plan import Planned

NOTHING = PreviousStack()
TITLES = {"comfyui": "ComfyUI", "forge": "Forge", "gateway": "the gateway"}
OWN_UNITS = f"{UNITS}atelier-"


@dataclass(frozen=True)
class Container:
    """A container on the host, whoever made it. ours: it carries our label; policy: of its restart."""

    id: str
    name: str
    ours: bool
    policy: str
    running: bool


@dataclass(frozen=True)
class Journal:
    """What a reorganisation that is under way has in mind, in a fixed place on the host until it is over.

    displaced: containers of ours that step aside; previous: those of a stack that was here before.
    """

    before: Roots | None
    after: Roots
    moves: tuple[Move, ...] = ()
    displaced: tuple[Displaced, ...] = ()
    previous: tuple[Displaced, ...] = ()
    owner: tuple[int, int] | None = None
    """The id of the service user, and the one that it had."""
    made: tuple[str, ...] = ()
    """Directories that were not there before it."""
    switching: bool = False
    """Directories and containers may have changed places: what was begun with these settings ends with them."""
    ours: tuple[str, ...] = ()
    """The containers of ours that were there before it, by id: others of ours make room again where it fails."""


@dataclass(frozen=True)
class Found:
    """What was found on a host."""

    remains: Remains = field(default_factory=Remains)
    containers: tuple[Container, ...] = ()
    relocation: Relocation = field(default_factory=lambda: Relocation((), (), ()))
    previous: PreviousStack = NOTHING
    repairs: tuple[Repair, ...] = ()
    diffs: tuple[Diff, ...] = ()
    left_alone: tuple[Kept, ...] = ()
    """What lies among files of ours and is somebody else's."""
    fetches: int = 0
    """Bytes of weights that the host has nowhere."""


@dataclass(frozen=True)
class Reorganisation:
    """All of it. removals: by kind, only after the services have passed."""

    moves: tuple[Planned, ...] = ()
    owner: tuple[int, int] | None = None
    user: str = ""
    """The service user, where it keeps its name and gets another id."""
    previous: PreviousStack = NOTHING
    displaced: tuple[Displaced, ...] = ()
    """Those of the previous stack included."""
    removals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kept: tuple[Kept, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes by path, of the data that is kept or goes."""
    repairs: tuple[Repair, ...] = ()
    diffs: tuple[Diff, ...] = ()
    left_alone: tuple[Kept, ...] = ()
    needs: Mapping[str, int] = field(default_factory=dict)
    """Bytes by mount point."""
    fetches: int = 0
    sources: str = ""
    downtime: str = ""
    obstacles: tuple[Finding, ...] = ()

    def is_empty(self) -> bool:
        """Whether a deploy is all that there is to do."""
        mending = any(repair.what for repair in self.repairs)
        return not (self.pending() or self.owner or self.displaced or self.removals or mending or self.previous)

    def needs_consent(self) -> bool:
        """Whether anything moves, makes room or goes."""
        return bool(self.consequences())

    def consequences(self) -> frozenset[tuple[str, str]]:
        """What a yes is for, each by its kind: a plan that has further ones needs another yes."""
        moves = {("moves", f"{move.source} -> {move.target}") for move in self.pending()}
        removed = {(kind, name) for kind, names in self.removals.items() for name in names}
        freed = {("repairs", repair.deed()) for repair in self.repairs if repair.removes}
        owner = {("owner", str(self.owner))} if self.owner else set[tuple[str, str]]()
        return frozenset({*moves, *removed, *freed, *owner, *(("aside", each.id) for each in self.displaced)})

    def pending(self) -> tuple[Planned, ...]:
        """The moves of which something is left to do."""
        return tuple(move for move in self.moves if move.how != "nothing")

    def prepares_data(self) -> str:
        """What is done with data while the services run, in words; empty where all is renamed whole."""
        how = {move.how for move in self.moves}
        if "copy" in how:
            return "Copy and verify what crosses file systems"
        return "Compare what has the same name in both places" if "merge" in how else ""

    def stops_services(self) -> bool:
        """Whether the services must not write while the directories change places; one that is renamed whole takes them along."""
        return bool(self.owner) or any(move.how in ("copy", "merge") for move in self.moves)

    def sized(self, names: Iterable[str]) -> list[str]:
        """Each name, with the bytes that it takes where that is known."""
        return [f"{name} ({amount(self.sizes[name])})" if name in self.sizes else name for name in names]

    def lines(self) -> list[str]:
        """The whole plan, for people."""
        sections = {
            "Finds wrong": repairs.lines(self.repairs),
            "Puts back": drift_diff.lines(self.diffs),
            "Leaves alone": [f"{kept.what}: {kept.why}" for kept in self.left_alone],
            "Moves": [*map(_move_line, self.pending()), *_owner_lines(self.owner, self.user)],
            "Adopts": _adoption_lines(self.previous),
            f"Steps aside, as NAME{SUFFIX} until what follows has passed": [
                f"{each.name}: {each.why}" for each in sorted(self.displaced, key=lambda one: one.name)
            ],
            "Removes, once the services have passed": [
                f"{kind:<12} {named(self.sized(names))}"
                for kind, names in (*self.removals.items(), *_their_networks(self.previous))
            ],
            "Keeps": [f"{what}: {kept.why}" for kept in self.kept for what in self.sized([kept.what])],
            "Needs": [f"{amount(size)} on {mount}" for mount, size in self.needs.items()],
            "Fetches": [f"{amount(self.fetches)} of weights from {self.sources}"] if self.fetches else [],
            "Downtime": [self.downtime] if self.downtime else [],
        }
        return [line for title, rows in sections.items() if rows for line in (title, *(f"  {row}" for row in rows))]


def count(number: int, what: str) -> str:
    """A number of things, for people."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def amount(size: int) -> str:
    """A number of bytes, for people."""
    if size >= 10**9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 10**5 else f"{size} bytes"


def _their_networks(previous: PreviousStack) -> list[tuple[str, list[str]]]:
    """Those of a previous stack, which go where nobody else is in them."""
    names = sorted({network for each in previous.containers for network in each.networks} - {"bridge", "host", "none"})
    return [("networks", [f"{name} (where nobody else is in it)" for name in names])] if names else []


def moves(before: Roots | None, after: Roots) -> tuple[Move, ...]:
    """Which directories of data are to lie elsewhere."""
    if before is None:
        return ()
    pairs: tuple[tuple[Kind, str, str], ...] = (
        ("models", before.models_dir, after.models_dir),
        ("outputs", before.outputs_dir, after.outputs_dir),
        ("users", before.users(), after.users()),
        ("state", before.state(), after.state()),
    )
    return tuple(Move(kind, source, target, source) for kind, source, target in pairs if source != target)


def begin(
    recorded: Recorded, deployment: Deployment, containers: Collection[Container], previous: PreviousStack
) -> Journal:
    """What a reorganisation has in mind that begins now."""
    after = roots_of(deployment.settings)
    return Journal(
        before=recorded.roots,
        after=after,
        moves=moves(recorded.roots, after),
        displaced=_of_ours(recorded, deployment, containers),
        previous=previous.containers,
        owner=_owner(recorded, deployment),
        ours=tuple(sorted(each.id for each in containers if each.ours)),
    )


def _owner(recorded: Recorded, deployment: Deployment) -> tuple[int, int] | None:
    had, gets = recorded.service_uid, deployment.settings.service_uid
    return (had, gets) if had is not None and had != gets else None


def _changed_user(recorded: Recorded, deployment: Deployment, journal: Journal) -> str:
    """The user that gets another id; none that was there before us, whose other files nobody here knows."""
    user = deployment.settings.service_user
    return user if journal.owner and user == recorded.service_user and user in recorded.ours("users") else ""


def _of_ours(recorded: Recorded, deployment: Deployment, containers: Iterable[Container]) -> tuple[Displaced, ...]:
    """The containers of ours under names that nothing has any more."""
    declared = {project.container: project.service for project in deployment.projects()}
    was = {service.container: name for name, service in recorded.services.items()}
    names = {service: container for container, service in declared.items()}
    found = []
    for each in containers:
        if not each.ours or each.name in declared or each.name.endswith(SUFFIX):
            continue
        service = was.get(each.name, "")
        successor = names.get(service)
        why = f"{TITLES[service]} is called {successor} now" if successor else "the settings have no such service"
        networks = (render.network_name(each.name),)
        found.append(Displaced(each.id, each.name, each.policy, each.running, True, why, service, networks=networks))
    return tuple(found)


def resumed(begun: Journal, now: Journal) -> Journal:
    """What is left of a reorganisation that was begun, and what has come up since. now: as `begin` says."""
    if not begun.switching:
        return replace(now, before=begun.before or now.before, made=begun.made)
    return replace(
        begun, displaced=_joined(begun.displaced, now.displaced), previous=_joined(begun.previous, now.previous)
    )


def _joined(first: Sequence[Displaced], then: Sequence[Displaced]) -> tuple[Displaced, ...]:
    known = {each.id for each in first}
    return (*first, *(each for each in then if each.id not in known))


def going(journal: Journal, found: Found) -> tuple[Displaced, ...]:
    """The containers that are aside and go once the services have passed, those of a run whose journal is gone included."""
    displaced = (*journal.displaced, *journal.previous)
    ids = {each.id for each in displaced}
    forgotten = [
        Displaced(each.id, each.name.removesuffix(SUFFIX), each.policy, each.running, True)
        for each in found.containers
        if _is_forgotten(each, ids)
    ]
    return (*displaced, *forgotten)


def conflict(journal: Journal, settings: Settings) -> Finding | None:
    """Why these settings cannot finish what was begun with others; None where they can, or where nothing was touched."""
    differing = journal.after.differing(roots_of(settings))
    if not journal.switching or not differing:
        return None
    told = ", ".join(f"{name}: {there}" for name, (there, _) in differing.items())
    return Finding(
        "a reprovision was begun with other settings and is not finished",
        f"set {told} again and finish it; then change the settings and run it once more",
    )


def interim(settings: Settings, recorded: Recorded) -> Settings:
    """The settings for what is prepared while data and owner are still as they were."""
    if recorded.roots is None:
        return settings
    before = recorded.roots
    return settings.model_copy(
        update={
            "data_root": before.data_root,
            "models_dir": before.models_dir,
            "outputs_dir": before.outputs_dir,
            "service_user": recorded.service_user or settings.service_user,
            "service_uid": settings.service_uid if recorded.service_uid is None else recorded.service_uid,
        }
    )


def reorganise(
    recorded: Recorded, deployment: Deployment, found: Found, journal: Journal, *, purge: bool = False
) -> Reorganisation:
    """What has to be done to a host that recorded this. journal: of one that was not finished, else what `begin` says."""
    parts = (
        _containers(journal, found),
        _networks(deployment, found),
        _units(recorded, deployment, found.remains),
        _files(recorded, deployment, found.remains, journal),
        _images(recorded, deployment, found),
        _users(recorded, deployment, found.remains),
        _data(recorded, deployment, found, journal, purge),
    )
    removals = {kind: names for part in parts for kind, names in part.removals.items() if names}
    kept = tuple(each for part in parts for each in part.kept)
    told = {name for names in removals.values() for name in names} | {each.what for each in kept}
    displaced = (*journal.displaced, *journal.previous)
    obstacles = [Finding(text, "then run the same command again") for text in found.relocation.obstacles]
    obstacles += displacement.taken(displaced, {each.name: each.id for each in found.containers})
    obstacles += found.previous.obstacles
    planned = Reorganisation(
        moves=found.relocation.moves,
        owner=journal.owner,
        user=_changed_user(recorded, deployment, journal),
        previous=found.previous,
        displaced=displaced,
        removals=removals,
        kept=kept,
        sizes={path: size for part in parts for path, size in part.sizes.items()},
        repairs=found.repairs,
        diffs=tuple(diff for diff in found.diffs if not _is_repaired(diff, found.repairs)),
        left_alone=(*(each for each in found.left_alone if each.what not in told), *_others(found, displaced)),
        needs=_needs(found, deployment),
        fetches=found.fetches,
        sources=deployment.settings.models.sources(),
        obstacles=tuple(obstacles),
    )
    declared = {project.service for project in deployment.projects()}
    return replace(planned, downtime=_downtime(planned, recorded, declared))


def _needs(found: Found, deployment: Deployment) -> dict[str, int]:
    """Bytes by mount point, of a previous stack at most: what an earlier run copied counts as well."""
    settings, previous = deployment.settings, found.previous
    needs = {space.mount: space.needed for space in found.relocation.space}
    for directory, copied in (
        (settings.outputs_dir or settings.data_root, previous.outputs),
        (settings.data_root, previous.workflows),
        (settings.models_dir or settings.data_root, previous.inside),
    ):
        mount = deployment.facts.mounts.get(directory, directory)
        if size := sum(one.bytes for one in copied):
            needs[mount] = needs.get(mount, 0) + size
    return needs


@dataclass(frozen=True)
class _Part:
    removals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kept: tuple[Kept, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)


def _containers(journal: Journal, found: Found) -> _Part:
    there, displaced = {each.id for each in found.containers}, going(journal, found)
    aside = [each.aside for each in displaced if each.id in there and not each.keeps]
    kept = [Kept(each.aside, each.keeps) for each in displaced if each.id in there and each.keeps]
    ids = {each.id for each in displaced}
    # Of no run that is known: it may be somebody's own way to keep one.
    strange = [each for each in found.previous.aside if each.id not in ids]
    kept += [
        Kept(each.aside, each.keeps or f"no reprovision is at it; docker rm {each.aside} removes it")
        for each in strange
    ]
    if inside := found.previous.inside:
        kept.append(Kept(found.previous.search[-1], f"{count(len(inside), 'file')} that only containers had"))
    return _Part({"containers": tuple(sorted(aside))}, tuple(kept))


def _is_forgotten(container: Container, displaced: Collection[str]) -> bool:
    return container.ours and container.name.endswith(SUFFIX) and container.id not in displaced


def _others(found: Found, displaced: Iterable[Displaced]) -> list[Kept]:
    """The containers that are neither ours nor of a previous stack."""
    making_room = {each.id for each in displaced} | {each.id for each in found.previous.aside}
    names = sorted(each.name for each in found.containers if not each.ours and each.id not in making_room)
    return [Kept(f"containers {named(names)}", "not ours")] if names else []


def _networks(deployment: Deployment, found: Found) -> _Part:
    declared = {network.name for network in render.networks(deployment.settings)}
    ours = sorted(name for name, is_ours in found.remains.docker.networks.items() if is_ours and name not in declared)
    going = {each.name for each in found.containers if each.ours}
    used = {name: _others_on(name, found.remains.docker.containers, going) for name in ours}
    kept = [
        Kept(f"the network {name}", f"somebody else's containers are on it: {named(on)}")
        for name, on in used.items()
        if on
    ]
    return _Part({"networks": tuple(name for name in ours if not used[name])}, tuple(kept))


def _others_on(network: str, containers: Iterable[Attached], ours: Collection[str]) -> list[str]:
    return [each.name for each in containers if each.name not in ours and network in each.networks]


def _units(recorded: Recorded, deployment: Deployment, remains: Remains) -> _Part:
    declared = {*decide.declared(deployment)["units"]}
    gone = sorted(unit for unit in recorded.ours("units") - declared if f"{UNITS}{unit}" in remains.kinds)
    return _Part({"units": tuple(unit for unit in gone if unit.startswith("atelier-"))})


def _files(recorded: Recorded, deployment: Deployment, remains: Remains, journal: Journal) -> _Part:
    """Files of earlier deploys where ours lie, and the directories that are empty without them."""
    before = journal.before or roots_of(deployment.settings)
    places = (before.config_root, deployment.settings.config_root)
    declared = decide.declared(deployment)
    stale = [
        path
        for path in sorted(recorded.ours("files") - {*declared["files"]})
        if path in remains.kinds and (_is_below(path, places) or path.startswith(OWN_UNITS))
    ]
    edited = [path for path in stale if _is_edited(path, recorded, remains)]
    going = [path for path in stale if path not in edited]
    roots = (before.data_root, deployment.settings.data_root)
    folders = [
        path
        for path in sorted(recorded.ours("directories") - {*declared["directories"]})
        if path in remains.kinds and (_is_below(path, places) or path in roots) and path != ANCHOR_DIRECTORY
    ]
    kept = [Kept(path, "somebody edited it since a deploy wrote it") for path in edited]
    known = {*recorded.created.get("files", ()), *recorded.created.get("directories", ())}
    # What is in a directory of data is told by its kind; the directory goes when nothing is left in it.
    rendered = [folder for folder in folders if folder not in roots]
    strangers = [path for path in _strangers(rendered, known, remains) if path not in edited]
    kept += [Kept(path, "no deploy made it") for path in strangers]
    stays = (*edited, *strangers)
    empty = [folder for folder in folders if not any(path.startswith(f"{folder}/") for path in stays)]
    return _Part({"files": tuple(going), "directories": tuple(empty)}, tuple(kept))


def _is_edited(path: str, recorded: Recorded, remains: Remains) -> bool:
    written = recorded.wrote.get(path)
    return remains.kinds[path] not in "fl" or bool(written and remains.digests.get(path) not in written)


def _strangers(folders: Collection[str], known: Collection[str], remains: Remains) -> list[str]:
    """What lies in folders of ours that nothing asks for, and no deploy made: the topmost of it."""
    strange = {
        path
        for path in remains.kinds
        if path not in known and not path.endswith(PART) and any(path.startswith(f"{folder}/") for folder in folders)
    }
    return sorted(path for path in strange if str(PurePosixPath(path).parent) not in strange)


def _images(recorded: Recorded, deployment: Deployment, found: Found) -> _Part:
    going = {each.name for each in found.containers if each.ours}
    used = {each.image for each in found.remains.docker.containers if each.name not in going}
    declared = {*deployment.image_tags().values()}
    ours = recorded.created.get("images", frozenset()) & found.remains.docker.images
    return _Part({"images": tuple(sorted(ours - declared - used))})


def _users(recorded: Recorded, deployment: Deployment, remains: Remains) -> _Part:
    gone = sorted((recorded.ours("users") & remains.users) - {deployment.settings.service_user})
    return _Part({"users": tuple(gone)})


def _data(recorded: Recorded, deployment: Deployment, found: Found, journal: Journal, purge: bool) -> _Part:
    """Folders of services that nothing asks for, and weights that no set needs, under their names once all is moved."""
    settings, remains = deployment.settings, found.remains
    pairs = [(move.source, move.target) for move in journal.moves]
    declared = {entry.path for entry in deployment.directories()}
    before = journal.before or roots_of(settings)
    parents = {before.outputs_dir, before.users(), settings.outputs_path(), settings.users_path()}
    folders = {
        moved(path, pairs): remains.sizes.get(path, 0)
        for path in recorded.ours("directories")
        if str(PurePosixPath(path).parent) in parents and path in remains.kinds
    }
    wanted = {weight.store_path for weight in deployment.weights}
    weights = {
        f"{settings.models_path()}/{name}": remains.sizes.get(f"{place}/{name}", 0)
        for name in recorded.created.get("weights", frozenset()) - wanted
        for place in (settings.models_path(), before.models_dir)
        if f"{place}/{name}" in remains.kinds
    }
    names = (*sorted(folders.keys() - declared), *sorted(weights))
    sizes = {name: {**folders, **weights}[name] for name in names}
    if not purge:
        why = "nothing asks for it any more; PURGE=1 removes it"
        return _Part(kept=tuple(Kept(name, why) for name in names), sizes=sizes)
    others = dict.fromkeys((moved(path, pairs) for path in remains.foreign), "it is not the service user's")
    others |= dict.fromkeys((moved(path, pairs) for path in remains.mounts), "it is mounted there")
    kept = [Kept(path, why) for path, why in sorted(others.items()) if _is_below(path, names)]
    # It may become one with what somebody else has there; once it has moved the host knows what it found.
    moving = [move.target for move in found.relocation.moves if move.how not in ("rename", "nothing")]
    later = [name for name in names if _is_below(name, moving)]
    why = "it moves first; PURGE=1 removes it the next time, where nothing was in its place before"
    kept += [Kept(name, why) for name in later]
    return _Part({"data": tuple(name for name in names if name not in later)}, tuple(kept), sizes)


def _is_below(path: str, directories: Iterable[str]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)


def _downtime(planned: Reorganisation, recorded: Recorded, declared: Collection[str]) -> str:
    if not recorded.services and not planned.displaced:
        return ""
    if planned.stops_services():
        return "all services, while what changed since the copy is brought over, and until they have started again"
    displaced = sorted(planned.displaced, key=lambda one: one.name)
    followed = [each.name for each in displaced if each.service in declared]
    ending = [each.name for each in displaced if each.service not in declared]
    told = [f"{named(followed)}: from the stop until the successor has started"] if followed else []
    told += [f"{named(ending)}: for good"] if ending else []
    told += ["each service for the seconds in which its container is made again"] if planned.pending() else []
    return "; ".join(told)


def _is_repaired(diff: Diff, planned: Iterable[Repair]) -> bool:
    """Whether a repair puts back the file that differs."""
    path = diff.problem.partition(" ")[0]
    return any(repair.what and path in repair.problem.replace(":", " ").split() for repair in planned)


def by_hand(diffs: Iterable[Diff], recorded: Recorded, remains: Remains) -> tuple[Diff, ...]:
    """Those of what differs that somebody did on the host; what the settings changed since is no edit."""
    created = {*recorded.created.get("files", ()), *recorded.created.get("directories", ())}
    return tuple(diff for diff in diffs if _is_by_hand(diff, created, recorded, remains))


def _is_by_hand(diff: Diff, created: Collection[str], recorded: Recorded, remains: Remains) -> bool:
    path, _, what = diff.problem.partition(" ")
    if diff.lines or what == "differs":
        return remains.digests.get(path) not in recorded.wrote.get(path, ())
    if what == "is missing":
        return path in created
    return path.startswith("/") and not what.startswith("does not name")


def removal_steps(planned: Reorganisation, uid: int) -> tuple[Step, ...]:
    """What takes everything away that goes, the containers apart; done again after a kill, it does what is left.

    uid: whose files go with a directory of data.
    """
    names = planned.removals
    files, folders = names.get("files", ()), sorted(names.get("directories", ()), reverse=True)
    reload = "; systemctl daemon-reload" if any(path.startswith(UNITS) for path in files) else ""
    todo = {
        "networks": (
            "for n in {}; do ! docker network inspect $n >/dev/null 2>&1 || docker network rm $n >/dev/null || exit 1; done",
            (),
        ),
        "units": ("systemctl disable -q --now {}", ()),
        "files": (f"xargs -0r rm -f --{reload}", files),
        "directories": (RMDIR, folders),
        "images": ("docker image rm {} >/dev/null", ()),
        "users": ("for u in {}; do userdel $u || exit 1; ! getent group $u >/dev/null || groupdel $u; done", ()),
        "data": (f"{EMPTY} {uid}", names.get("data", ())),
    }
    return tuple(
        Step("Removal", f"Remove {kind}: {named(names[kind])}", _filled(script, names[kind]), _list(paths))
        for kind, (script, paths) in todo.items()
        if kind in names
    )


def _filled(script: str, names: Sequence[str]) -> str:
    return script.replace("{}", shlex.join(names), 1) if " {}" in script else script


RMDIR = 'xargs -0r sh -c \'for d; do [ ! -d "$d" ] || [ -L "$d" ] || rmdir --ignore-fail-on-non-empty -- "$d" || exit 1; done\' _'


EMPTY = """xargs -0r sh -c 'u=$1; shift; for d; do
  [ -d "$d" ] || { rm -f -- "$d" || exit 1; continue; }
  find -H "$d" -xdev -mindepth 1 ! -uid $u -prune -o ! -type d -execdir rm -f -- "{}" + || exit 1
  { find -H "$d" -xdev -mindepth 1 ! -uid $u ! "(" -type d -empty ")" -prune -o -type d -print0 | sort -rz
    [ -L "$d" ] || printf "%s\\0" "$d"; } |
    xargs -0r sh -c "for e; do mountpoint -q -- \\"\\$e\\" || rmdir --ignore-fail-on-non-empty -- \\"\\$e\\" || exit 1; done" _ || exit 1
done' _"""
"""Takes the user id: files go where they lie, of a directory what is that user's; what others have in it stays, with its directory,
except one that is empty: Docker leaves one of root's where it mounts a directory into another."""


def _list(paths: Iterable[str]) -> bytes:
    return "".join(f"{path}\0" for path in paths).encode()


def forgotten(planned: Reorganisation, models_dir: str, declared: Collection[str]) -> dict[str, tuple[str, ...]]:
    """By kind what the manifest must not name any more once everything that goes is gone.

    declared: the containers that we have now, under the names of what made room for them.
    """
    names = {kind: each for kind, each in planned.removals.items() if kind != "data"}
    gone = (name.removesuffix(SUFFIX) for name in names.get("containers", ()))
    names["containers"] = tuple(name for name in gone if name not in declared)
    names["groups"] = names.get("users", ())
    data, store = planned.removals.get("data", ()), f"{models_dir}/"
    names["weights"] = tuple(path.removeprefix(store) for path in data if path.startswith(store))
    names["directories"] = (*names.get("directories", ()), *data)
    return names


@dataclass(frozen=True)
class Amounts:
    """Bytes that came or moved. brought: of those fetched, what came from an old host."""

    fetched: int = 0
    brought: int = 0
    renamed: int = 0
    copied: int = 0


def summary(planned: Reorganisation, amounts: Amounts, away: Mapping[str, str]) -> str:
    """What it came to, in one line. away: by service how long it was, in words; empty where none was there before."""
    old = f" ({amount(amounts.brought)} of it from the old host)" if amounts.brought else ""
    told = [
        f"{amount(amounts.fetched)} fetched{old}, {amount(amounts.renamed)} renamed, {amount(amounts.copied)} copied"
    ]
    told.append(
        ", ".join(f"{TITLES[service]} {words}" for service, words in away.items()) or "no service was there before"
    )
    removed = [f"{kind} {named(planned.sized(names))}" for kind, names in planned.removals.items()]
    told.append(f"removed: {', '.join(removed) or 'nothing'}")
    told.append(f"left over: {', '.join(planned.sized(kept.what for kept in planned.kept)) or 'nothing'}")
    return f"Reprovisioned: {'; '.join(told)}."


def away(samples: Sequence[tuple[float, bool]]) -> str:
    """How long a service did not answer, in words. samples: when it was asked, and whether it did."""
    if not any(answers for _, answers in samples):
        return "was not seen to answer"
    first = next(number for number, (_, answers) in enumerate(samples) if answers)
    if not samples[-1][1]:
        return "does not answer"
    total, last = 0.0, samples[first][0]
    for (_, before), (now, answers) in pairwise(samples[first:]):
        if answers:
            total += 0.0 if before else now - last
            last = now
    begun = "" if first == 0 else "was not there before, then "
    return f"{begun}away for {total:.1f} s"


def _move_line(move: Planned) -> str:
    how = {
        "rename": "renamed",
        "merge": "renamed, file by file, as something lies there",
        "copy": f"copied ({amount(move.copy_bytes)} to go) and verified; the old place is emptied once the services have passed",
        "switched": "moved; what is left of the old place goes once the services have passed",
        "nothing": "nothing",
    }[move.how]
    size = f"{amount(move.bytes)} in {move.files} files, " if move.files else ""
    return f"{move.kind:<8} {move.source} -> {move.target}: {size}{how}"


def _adoption_lines(previous: PreviousStack) -> list[str]:
    lines = [f"weights    below {place}: what is wanted, told by its sha256" for place in previous.search]
    lines += [
        f"files      {one.path}, which only a container has -> {one.target}: {amount(one.bytes)}, copied"
        for one in previous.inside
    ]
    for kind, sources in (("outputs", previous.outputs), ("workflows", previous.workflows)):
        for source in sorted(sources, key=lambda one: one.text()):
            size = count(source.files, "file") if source.files else "files"
            size += f", {amount(source.bytes)}" if source.bytes else ""
            lines.append(f"{kind:<10} {source.text()} -> {source.target}: {size}, copied")
    lines += [f"token      in {path}: clients go on working" for path in previous.token_files[:1]]
    return [*lines, *previous.notes]


def _owner_lines(owner: tuple[int, int] | None, user: str) -> list[str]:
    if owner is None:
        return []
    lines = [f"owner    of outputs and users' files: {owner[0]} -> {owner[1]}"]
    return [*lines, f"user     {user}: id {owner[0]} -> {owner[1]}"] if user else lines


def user_script(user: str, uid: int) -> str:
    """Shell that gives a user and its group another id; done again it does what is left."""
    return f"""u={shlex.quote(user)}
[ "$(getent passwd $u | cut -d: -f3)" = {uid} ] || usermod -u {uid} $u || exit 1
[ "$(getent group $u | cut -d: -f3)" = {uid} ] || groupmod -g {uid} $u || exit 1"""
