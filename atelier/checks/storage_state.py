"""Where the containers keep what users make, told in one round trip by the host and from inside them; and what is wrong. Pure."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atelier import render
from atelier.errors import Finding
from atelier.settings import Settings

MARK = "::storage::"
SECONDS = 30
"""What answers later than this does not answer."""
REDEPLOY = "run `make deploy`; if it stays so, `make restart`"


@dataclass(frozen=True)
class Place:
    """A directory by its stat. `identity` is device and inode: two paths with the same are one directory."""

    identity: str
    owner: str = ""
    mode: str = ""
    kind: str = "directory"


@dataclass(frozen=True)
class Told:
    """What the host told. places: its directories by path. mounts: of each container, as Docker has them.

    inside: by container, the directories at its mount points. writable: by container, where it can write.
    strangers: paths in the services' directories that belong to somebody else.
    late: what did not answer in time: containers, and `strangers`.
    """

    places: Mapping[str, Place]
    mounts: Mapping[str, Sequence[Mapping[str, Any]]]
    inside: Mapping[str, Mapping[str, Place]] = field(default_factory=dict)
    writable: Mapping[str, frozenset[str]] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()
    late: frozenset[str] = frozenset()


def declared(settings: Settings) -> dict[str, dict[str, bool]]:
    """By container, the directories of the host that it has, and whether it may write there."""
    mounts = {}
    for name, service in settings.enabled().items():
        mounts[service.container] = {
            settings.outputs_path(name): True,
            settings.users_path(name): True,
            settings.models_path(): False,
            render.secrets_path(settings, service.container): False,
        }
    gateway = settings.gateway_container
    acme = {render.acme_storage(settings): True} if settings.tls.mode == "acme" else {}
    config = f"{settings.config_root}/services/{gateway}/config"
    return {**mounts, gateway: {config: False, render.secrets_path(settings, gateway): False, **acme}}


def _kept(settings: Settings) -> list[str]:
    """The directories of what users make."""
    return [path for name in settings.enabled() for path in (settings.outputs_path(name), settings.users_path(name))]


def script(settings: Settings) -> str:
    """A shell script that prints the sections; it changes nothing."""
    wanted = declared(settings)
    paths = " ".join(shlex.quote(path) for path in dict.fromkeys(path for each in wanted.values() for path in each))
    inside = 'for d; do stat -c "%d:%i|%n" "$d"; [ -w "$d" ] && echo "writable|$d"; done'
    kept = " ".join(map(shlex.quote, _kept(settings)))
    return f"""
s() {{ printf '\\n%s%s\\n' "{MARK}" "$1"; }}
limited() {{ what=$1; shift; timeout {SECONDS} "$@" || {{ [ $? != 124 ] || s "late $what"; }}; }}
s places; stat -c '%d:%i|%u:%g|%a|%F|%n' {paths} 2>/dev/null
s strangers; limited strangers sh -c 'find "$@" 2>/dev/null | head -n 5' find {kept} -xdev ! -uid {settings.service_uid} -print
for c in {" ".join(wanted)}; do
  s "mounts $c"; docker inspect --type container --format '{{{{json .Mounts}}}}' "$c"
  s "inside $c"; limited "$c" docker exec "$c" sh -c {shlex.quote(inside)} probe \\
    $(docker inspect --format '{{{{range .Mounts}}}}{{{{println .Destination}}}}{{{{end}}}}' "$c")
done
:
"""


def parse(output: str) -> Told:
    """What the script told."""
    sections: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith(MARK):
            current = sections.setdefault(line.removeprefix(MARK), [])
        elif line.strip() and sections:
            current.append(line)

    def by_container(kind: str) -> dict[str, list[str]]:
        return {name.removeprefix(f"{kind} "): lines for name, lines in sections.items() if name.startswith(f"{kind} ")}

    rows = [line.split("|", 4) for line in sections["places"]]
    inside = {name: [line.split("|", 1) for line in lines] for name, lines in by_container("inside").items()}
    return Told(
        {path: Place(identity, owner, mode, kind) for identity, owner, mode, kind, path in rows},
        {name: json.loads(lines[0] if lines else "[]") for name, lines in by_container("mounts").items()},
        {name: {path: Place(what) for what, path in pairs if what != "writable"} for name, pairs in inside.items()},
        {name: frozenset(path for what, path in pairs if what == "writable") for name, pairs in inside.items()},
        tuple(sections["strangers"]),
        frozenset(by_container("late")),
    )


def outputs(told: Told, settings: Settings) -> list[Finding]:
    """What is wrong with the directories of what users make."""
    uid, found = settings.service_uid, []
    for path in _kept(settings):
        place = told.places.get(path)
        if place is None or place.kind != "directory":
            problem = f"{path} is {f'a {place.kind}' if place else 'missing'}"
            found.append(Finding(problem, f"bring it back if it was moved; {REDEPLOY}"))
            continue
        private = path.startswith(f"{settings.users_path()}/")
        forbidden = 0o077 if private else 0o022
        if place.owner != f"{uid}:{uid}":
            found.append(Finding(f"{path} belongs to {place.owner}, not to {uid}:{uid}", "run `make deploy`"))
        if int(place.mode, 8) & forbidden:
            what = "read" if private else "change"
            found.append(Finding(f"{path} has mode {place.mode}: others can {what} what is in it", "run `make deploy`"))
    if "strangers" in told.late:
        problem = f"time-out: the owners of the files were not all asked within {SECONDS} s"
        found.append(Finding(problem, f"see the load of the host, and whether `ls {settings.outputs_path()}` hangs"))
    for path in sorted(set(told.strangers) - _covered(told)):
        remedy = f"on the host: chown -h {uid}:{uid} {path}"
        found.append(
            Finding(f"{path} does not belong to the service user: it can neither replace nor remove it", remedy)
        )
    for name, service in settings.enabled().items():
        mounts = told.mounts.get(service.container, ())
        target = next(
            (mount["Destination"] for mount in mounts if mount["Source"] == settings.outputs_path(name)),
            None,
        )
        if service.container in told.late:
            found.append(_late(service.container))
        elif target and target not in told.writable.get(service.container, ()):
            problem = f"{service.container} cannot write to its outputs ({target})"
            found.append(Finding(problem, f"the disk is full, or its file system read-only: see `mount`; {REDEPLOY}"))
    return found


def _late(container: str) -> Finding:
    return Finding(
        f"time-out: {container} did not show its directories within {SECONDS} s",
        "see the load of the host, and whether a directory of data hangs: `docker exec` into it by hand",
    )


def _covered(told: Told) -> set[str]:
    """Directories of the host that Docker made, as root, for one mount inside another to stand on."""
    return {
        f"{outer['Source']}{inner['Destination'].removeprefix(outer['Destination'])}"
        for there in told.mounts.values()
        for outer in there
        for inner in there
        if inner["Destination"].startswith(f"{outer['Destination']}/")
    }


def mounts(told: Told, settings: Settings) -> list[Finding]:
    """In what the containers' mounts are not those declared, or not the directories that the host has now."""
    found = []
    for container, wanted in declared(settings).items():
        there = {mount["Source"]: mount for mount in told.mounts.get(container, ()) if mount["Type"] == "bind"}
        for path, writable in wanted.items():
            mount = there.get(path)
            if mount is None:
                found.append(Finding(f"{container} does not have {path}", REDEPLOY))
            elif mount["RW"] is not writable:
                how = "can write to" if mount["RW"] else "cannot write to"
                found.append(Finding(f"{container} {how} {path}", REDEPLOY))
            elif container not in told.late and (
                difference := _difference(told, container, path, str(mount["Destination"]))
            ):
                found.append(Finding(difference, f"copy the files from the old directory, then {REDEPLOY}"))
        if container in told.late:
            found.append(_late(container))
        further = [mount for mount in told.mounts.get(container, ()) if mount["Source"] not in wanted]
        found += [
            Finding(f"{container} has {mount['Source'] or mount['Type']} as {mount['Destination']}", REDEPLOY)
            for mount in further
            if mount["Type"] != "tmpfs"
        ]
    return found


def _difference(told: Told, container: str, path: str, target: str) -> str:
    here, there = told.places.get(path), told.inside.get(container, {}).get(target)
    if here is None:
        return f"{path} is missing on the host, and {container} still has it as {target}"
    if there is None:
        return f"{container} does not show {target}"
    if here.identity != there.identity:
        return f"{path} is another directory than the one that {container} has as {target}: it was moved or made anew"
    return ""
