"""What is removed from a host so that it is as it was before its first deploy, in which order, and what stays and why.

Pure: it rests on what the host has recorded of itself and on what lies there. `atelier/takedown.py` carries it out.
"""

import json
import os.path
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from atelier import SCHEMA, apt, monitoring, weights_unit
from atelier.deployment import DAEMON_JSON, DOCKER_CONFLICTS, DOCKER_KEYRING, DOCKER_SOURCES
from atelier.docker_settings import BEFORE, LAST
from atelier.errors import Finding
from atelier.gpu import routes, upkeep
from atelier.manifest import PURGING
from atelier.recorded import ANCHOR, ANCHOR_DIRECTORY, JOURNAL, Recorded, Roots
from atelier.remains import CONTAINERD_ROOT, DOCKER_ROOT, RULES, Container, Remains, data_directories
from atelier.tree import PART, File
from atelier.uninstall_packages import (
    DOCKER_PACKAGES,
    Kept,
    Packages,
    docker_stays,
    foreign_containers,
    found_packages,
    gpu_stays,
    is_gpu_package,
    named,
    our_packages,
    stop_script,
)
from weights.progress import NOTE
from weights.store import INCOMING

UNITS = "/etc/systemd/system/"
ALWAYS_KEPT = ("weights", "manifest.json", "schema", "audit.log")
"""Of the state what stays with the data: with it the next deploy adopts the weights without reading them."""


@dataclass(frozen=True)
class Step:
    """One thing to do on the host; done again after a kill, it does what is left."""

    stage: str
    name: str
    script: str
    stdin: bytes = b""


@dataclass(frozen=True)
class Plan:
    """All of it. removes, puts_back: for people, by kind. steps: in their order."""

    steps: tuple[Step, ...] = ()
    removes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    puts_back: tuple[str, ...] = ()
    keeps: tuple[Kept, ...] = ()

    def lines(self) -> list[str]:
        """What a person reads before saying yes."""
        lines = ["Removes"] + [f"  {kind:<17} {named(names)}" for kind, names in self.removes.items() if names]
        if self.puts_back:
            lines += ["Puts back", *(f"  {what}" for what in self.puts_back)]
        return [*lines, *kept_lines(self.keeps)]

    def counts(self) -> str:
        """What was removed, in short."""
        numbers = {kind: len(names) for kind, names in self.removes.items() if kind in COUNTED and names}
        told = [f"{number} {kind if number > 1 else kind.removesuffix('s')}" for kind, number in numbers.items()]
        return ", ".join([*told, *self.removes.get("data", ())]) or "nothing"


BROUGHT = "what they brought"
COUNTED = ("containers", "networks", "images", "units", "rules", "holds", "packages", "files", "users")


def kept_lines(keeps: Iterable[Kept]) -> list[str]:
    """What stays and why, as lines."""
    lines = [f"  {kept.what}: {kept.why}" for kept in keeps]
    return ["Keeps", *lines] if lines else []


def is_done(plan: Plan, remains: Remains) -> bool:
    """Whether nothing is left to do, as after an uninstall that kept the data."""
    return not plan.steps and ANCHOR not in remains.kinds


def left(rest: Plan) -> str:
    """What of a plan that was carried out is still there; rest: the plan made anew. Empty where all is gone."""
    found = [f"{kind} {named(rest.removes[kind])}" for kind in GONE_AFTERWARDS if rest.removes.get(kind)]
    return "; ".join(found)


GONE_AFTERWARDS = ("containers", "networks", "images", "rules", "holds", "packages", "files", "users", "data")
"""The kinds of which nothing may be left; a directory may hold what is somebody else's, an edited unit's file stays."""


def obstacle(recorded: Recorded, remains: Remains, target: str, reprovision: str) -> Finding | None:
    """Why nothing can be removed now. reprovision: the command that finishes a reorganisation."""
    if refusal := recorded.refusal():
        return refusal
    if JOURNAL in remains.kinds:
        return Finding(f"a reprovision of {target} was begun and is not finished", f"finish it first: {reprovision}")
    held = [kind for kind in ("containers", "networks", "images") if recorded.created.get(kind)]
    if held and PURGING not in recorded.created and remains.has_engine() and not remains.docker.answers:
        return Finding(
            f"Docker on {target} does not answer, so its {', '.join(held)} can neither be listed nor removed",
            "start it (on the host: systemctl start docker), or see `make doctor`, then run the same command again",
        )
    return None


def decide(recorded: Recorded, roots: Roots, remains: Remains, packages: Packages, purge: bool) -> Plan:
    """Everything, in its order. purge: the data goes too. packages: as `settle` has them."""
    parts = [
        _watchers(recorded, remains),
        _containers(recorded, remains),
        _networks(remains),
        _images(recorded, remains),
        _units(recorded, remains),
        _units_of_others(recorded, remains),
        _docker_settings(recorded, remains),
        _holds(recorded, remains),
        _packages(recorded, roots, remains, packages),
        _files(recorded, roots, remains),
        _user(recorded, remains),
        _data(recorded, roots, remains, purge),
    ]
    removes: dict[str, tuple[str, ...]] = {}
    for part in parts:
        removes |= part.removes
    return Plan(
        tuple(step for part in parts for step in part.steps),
        removes,
        tuple(what for part in parts for what in part.puts_back),
        tuple(kept for part in parts for kept in part.keeps),
    )


def _watchers(recorded: Recorded, remains: Remains) -> Plan:
    """First what would tell somebody that the services are gone, or fetch what is about to be removed."""
    steps = []
    if f"{UNITS}{monitoring.TIMER}" in remains.kinds:
        script = (
            f"systemctl disable -q --now {monitoring.TIMER}; "
            f"systemctl stop {monitoring.SERVICE} {shlex.quote(monitoring.NOTICE.replace('@', '@*'))}"
        )
        steps.append(Step("Units", "Stop the host's look at itself", script))
    if f"{UNITS}{weights_unit.UNIT}" in remains.kinds:
        steps.append(Step("Units", "Stop what fetches weights", f"systemctl disable -q --now {weights_unit.UNIT}"))
    return Plan(tuple(steps))


def _containers(recorded: Recorded, remains: Remains) -> Plan:
    gateway = recorded.services["gateway"].container if "gateway" in recorded.services else "gateway"
    ours = [container for container in remains.docker.containers if container.ours]
    ours.sort(key=lambda container: (container.name != gateway, container.name))
    names = tuple(container.name for container in ours)
    strangers = [
        Kept(f"the container {container.name}", "no deploy made it")
        for container in remains.docker.containers
        if not container.ours and container.name in recorded.created.get("containers", ())
    ]
    steps = tuple(Step("Containers", f"Remove {name}", _container_script(name)) for name in names)
    return Plan(steps, {"containers": names}, keeps=tuple(strangers))


def _container_script(name: str) -> str:
    quoted = shlex.quote(name)
    return f"docker stop -t 30 {quoted} >/dev/null; docker rm -f -v {quoted} >/dev/null"


def _networks(remains: Remains) -> Plan:
    ours = sorted(name for name, is_ours in remains.docker.networks.items() if is_ours)
    used = {
        name: others
        for name in ours
        if (others := [each.name for each in remains.docker.containers if not each.ours and name in each.networks])
    }
    names = tuple(name for name in ours if name not in used)
    steps = (
        [Step("Networks", "Remove our networks", f"docker network rm {shlex.join(names)} >/dev/null")] if names else []
    )
    keeps = tuple(
        Kept(f"the network {name}", f"somebody else's containers are on it: {named(each)}")
        for name, each in used.items()
    )
    return Plan(tuple(steps), {"networks": names}, keeps=keeps)


def _images(recorded: Recorded, remains: Remains) -> Plan:
    present = sorted(remains.docker.images & recorded.created.get("images", frozenset()))
    used = _users_of_images(remains.docker.containers)
    names = tuple(tag for tag in present if tag not in used)
    keeps = [
        Kept(f"the image {tag}", f"somebody else's container {used[tag]} uses it") for tag in present if tag in used
    ]
    steps = []
    if names:
        steps.append(Step("Images", f"Remove {len(names)} images", f"docker image rm {shlex.join(names)} >/dev/null"))
    if names and docker_stays(recorded, remains):
        others = remains.docker.images - recorded.created.get("images", frozenset())
        if others:
            why = f"it cannot be told apart from that of {named(sorted(others))}; `docker builder prune` empties it"
            keeps.append(Kept("Docker's build cache", why))
        else:
            steps.insert(0, Step("Images", "Empty the build cache", "docker builder prune -a -f >/dev/null"))
    return Plan(tuple(steps), {"images": names}, keeps=tuple(keeps))


def _users_of_images(containers: Iterable[Container]) -> dict[str, str]:
    return {container.image: container.name for container in containers if not container.ours}


def _units(recorded: Recorded, remains: Remains) -> Plan:
    units = tuple(unit for unit in sorted(recorded.ours("units")) if f"{UNITS}{unit}" in remains.kinds)
    steps = [Step("Units", f"Stop {unit}", f"systemctl disable -q --now {shlex.quote(unit)}") for unit in units]
    if units or remains.rules:
        # Once more by hand: the unit may have been edited, or not be running.
        deletions = "\n".join(
            f"while iptables -w -t {table} -D {rest} 2>/dev/null; do :; done"
            for table, _, rest in (rule.partition(" ") for rule in sorted(RULES))
        )
        steps.append(Step("Units", "Take the guard's rules out of iptables", f"{deletions}\n:"))
    return Plan(tuple(steps), {"units": units, "rules": tuple(sorted(remains.rules))})


def _units_of_others(recorded: Recorded, remains: Remains) -> Plan:
    """Units that were here, and that a deploy has started: as they were found, unless somebody's containers need them by now."""
    boot = recorded.found.get("disabled", frozenset()) & remains.enabled
    # Docker holds more than ours, and its end would take rules and links of the kernel with it: that is for the next boot.
    runs = (recorded.found.get("stopped", frozenset()) & remains.active) - {DOCKER_UNIT}
    others = foreign_containers(remains.docker)
    needed = {unit for unit in boot | runs if others and (unit == DOCKER_UNIT or unit.startswith("nvidia-"))}
    steps, told = [], []
    for unit in sorted((boot | runs) - needed):
        verbs = [verb for verb, units in (("disable", boot), ("stop", runs)) if unit in units]
        script = "\n".join(f"systemctl {verb} {shlex.quote(unit)} || exit 1" for verb in verbs)
        steps.append(Step("Units", f"Put {unit} back", script))
        told.append(f"{unit}: {' and '.join(WAS[verb] for verb in verbs)}, as it was")
    keeps = [
        Kept(f"the unit {unit}", f"somebody else's containers may use it: {named(others)}") for unit in sorted(needed)
    ]
    return Plan(tuple(steps), {}, tuple(told), tuple(keeps))


DOCKER_UNIT = "docker.service"
WAS = {"disable": "not started at boot", "stop": "stopped"}


def _docker_settings(recorded: Recorded, remains: Remains) -> Plan:
    """The copy of before stays until all else is done: an interrupted run must find what was somebody's already."""
    if DAEMON_JSON not in recorded.created.get("merged", ()) or not remains.daemon_json.strip():
        return Plan()
    restored, part = _daemon_json(recorded, remains), f"{DAEMON_JSON}{PART}"
    put, content = f"sync {part} && mv -fT {part} {DAEMON_JSON}", b""
    told = f"{DAEMON_JSON}: without what we had merged into it"
    if restored is None:
        script, told = f"rm -f {DAEMON_JSON}", f"{DAEMON_JSON}: removed, as there was none"
    elif _object(restored) == _object(remains.daemon_json):
        return Plan()
    elif restored == remains.before:
        script, told = f"cp -aT {BEFORE} {part} && {put}", f"{DAEMON_JSON}: as the first deploy found it"
    else:
        like = f"chown --reference={DAEMON_JSON} {part} && chmod --reference={DAEMON_JSON} {part}"
        script, content = f"cat >{part} && {like} && {put}", restored.encode()
    reload, keeps = "", tuple[Kept, ...]()
    if docker_stays(recorded, remains):
        # A restart could end somebody else's containers.
        reload = "\n! systemctl is-active -q docker || systemctl reload docker"
        keeps = (Kept("the settings of ours that Docker has read", "some are in force until Docker starts anew"),)
    step = Step("Docker", "Put Docker's settings back", f"{{ {script}; }} || exit 1{reload}", content)
    return Plan((step,), {}, (told,), keeps)


def _daemon_json(recorded: Recorded, remains: Remains) -> str | None:
    """Docker's settings as they must be: as found where that is known, else as the copy of before has them."""
    known = recorded.found.get("daemon_json")
    found = "".join(f"{text}\n" for text in known) if known is not None else remains.before or ""
    restored = restored_daemon_json(remains.daemon_json, found)
    # To the byte; an earlier release may have overwritten that copy with what it had merged itself.
    if restored and remains.before and _object(restored) == _object(remains.before):
        return remains.before
    return restored


def restored_daemon_json(current: str, before: str) -> str | None:
    """Docker's settings with our keys as they were before; all others as they are now. None where nothing is left.

    One that is no JSON object is nobody's to mend here: it stays.
    """
    now, then = _object(current), _object(before)
    if now is None:
        return current
    then = then or {}
    for key, ours in {"features": ("cdi",), "log-opts": ("max-size", "max-file")}.items():
        if isinstance(now.get(key), dict):
            former = then[key] if isinstance(then.get(key), dict) else {}
            now[key] = _as_before(now[key], former, ours)
            if not now[key] and key not in then:
                del now[key]
    now = _as_before(now, then, ("live-restore", *(("log-driver",) if now.get("log-driver") == "json-file" else ())))
    if now == then and before.strip():
        return before
    return json.dumps(now, indent=2, sort_keys=True) + "\n" if now else None


def _as_before(now: Mapping[str, Any], then: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    kept = {key: value for key, value in now.items() if key not in keys}
    return kept | {key: then[key] for key in keys if key in then}


def _object(text: str) -> dict[str, Any] | None:
    try:
        document = json.loads(text) if text.strip() else {}
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _holds(recorded: Recorded, remains: Remains) -> Plan:
    ours = sorted(recorded.ours("holds") & remains.holds)
    stays = gpu_stays(remains)
    names = tuple(name for name in ours if not (stays and is_gpu_package(name)))
    steps = (Step("Packages", "Release the packages that we held", apt.unhold_script(names)),) if names else ()
    return Plan(steps, {"holds": names})


def _packages(recorded: Recorded, roots: Roots, remains: Remains, packages: Packages) -> Plan:
    names = packages.purge
    steps = []
    if names and PURGING not in recorded.created:
        manifest = purging_manifest(recorded, names)
        steps.append(
            Step("Packages", "Write down what apt is to remove", _write(manifest_path(roots)), manifest.encode())
        )
    going = recorded.created.get(PURGING, frozenset(names))
    goes = docker_goes(recorded, remains)
    if goes and (names or remains.bridge):
        steps.append(Step("Docker", "Stop Docker and take its rules out", _stop_docker_script(recorded, going)))
    if script := _stop_gpu_script(names):
        steps.append(Step("Units", "Stop what serves the GPUs", script))
    if names:
        steps.append(Step("Units", "Stop what these packages run", stop_script(names)))
        steps.append(Step("Packages", f"Remove {len(names)} packages", apt.purge_script(names)))
    told = {"packages": tuple(name for name in names if name not in packages.brought), BROUGHT: packages.brought}
    left = _docker_leftovers(recorded, remains, going) if goes else Plan()
    keeps = (*packages.kept, *left.keeps, *_not_put_back(recorded, remains))
    if any(routes.DRIVER_PACKAGE.match(name) for name in names):
        keeps += (Kept("the driver's kernel modules", "loaded until the host restarts"),)
    return Plan((*steps, *left.steps), {**told, **left.removes}, (), keeps)


def _stop_gpu_script(names: Collection[str]) -> str:
    """Shell that switches off the units of packages that go: a package takes only those links with it that it made itself."""
    units = [unit for unit, package in GPU_UNITS.items() if any(name.startswith(package) for name in names)]
    script = [f"! systemctl cat {unit} >/dev/null 2>&1 || systemctl disable -q --now {unit}" for unit in units]
    if units[:1] == [upkeep.REFRESH_UNITS[0]]:
        script.append("rm -f /run/cdi/nvidia.yaml; [ ! -d /run/cdi ] || rmdir --ignore-fail-on-non-empty /run/cdi")
    return "\n".join(script)


GPU_UNITS = {
    **dict.fromkeys(upkeep.REFRESH_UNITS, ("nvidia-container-toolkit-base",)),
    "nvidia-persistenced.service": ("nvidia-persistenced", "nvidia-compute-utils", "nvidia-headless"),
    "nvidia-fabricmanager.service": ("nvidia-fabricmanager",),
}
"""By unit, how the names of packages begin that have it."""


def docker_goes(recorded: Recorded, remains: Remains) -> bool:
    """Whether Docker is removed with all that it holds, or its removal was begun."""
    ours = recorded.created.get(PURGING, our_packages(recorded))
    return bool(DOCKER_PACKAGES & ours) and not docker_stays(recorded, remains)


def _stop_docker_script(recorded: Recorded, going: Collection[str]) -> str:
    """What Docker leaves in the kernel when it stops, and what it set there once it had started."""
    found = [entry.rpartition(" ")[::2] for entry in sorted(recorded.found.get("kernel", ()))]
    back = [
        f"echo {value} >{place}"
        if place.startswith("/")
        else f"! command -v {place} >/dev/null || {place} -w -P FORWARD {value}"
        for place, value in found
    ]
    # Others may have had containerd before Docker came.
    units = ["docker.socket", "docker", *(["containerd"] if CONTAINERD & {*going} else [])]
    stopped = [f"! systemctl cat {unit} >/dev/null 2>&1 || systemctl disable -q --now {unit}" for unit in units]
    return "\n".join([*stopped, STOP_DOCKER, *back, ":"])


CONTAINERD = {"containerd", "containerd.io"}
STOP_DOCKER = f"""
for x in iptables ip6tables; do
  command -v $x >/dev/null || continue
  for t in filter nat raw mangle; do
    $x -w -t $t -S | grep -xE -e '-A (PREROUTING|OUTPUT|FORWARD|POSTROUTING) .*-j DOCKER[A-Z0-9-]*' \\
      -e '-A FORWARD -[io] docker0( !? ?-o docker0)?( -m conntrack --ctstate RELATED,ESTABLISHED)? -j (ACCEPT|DROP)' \\
      -e '-A POSTROUTING -s [^ ]+ ! -o docker0 -j MASQUERADE' | sed 's/^-A /-D /' | xargs -r -L 1 $x -w -t $t
    chains=$($x -w -t $t -S | sed -n 's/^-N \\(DOCKER.*\\)/\\1/p')
    # Others may have rules of their own in this one.
    for c in $chains; do if [ $c = DOCKER-USER ]; then $x -w -t $t -D $c -j RETURN; else $x -w -t $t -F $c; fi; done
    for c in $chains; do $x -w -t $t -X $c || echo "{NOTE}the chain $c of $x stays: it holds rules that are not Docker's"; done
  done
done
[ ! -e /sys/class/net/docker0 ] || ip link delete docker0
"""


def _docker_leftovers(recorded: Recorded, remains: Remains, going: Collection[str]) -> Plan:
    given = _given_root(remains)
    roots = (*([] if given else [DOCKER_ROOT]), *([CONTAINERD_ROOT] if CONTAINERD & {*going} else []))
    places = tuple(path for path in roots if path in remains.kinds)
    members = remains.groups.get("docker")
    group = "docker" in remains.groups and "docker" not in recorded.found.get("groups", ())
    script = [f"{_emptied(path)}; rmdir {shlex.quote(path)}" for path in places]
    if DOCKER_ROOT in places:
        script.append("rm -rf /run/docker /run/docker.sock")
    if CONTAINERD_ROOT in places:
        script += ["rm -rf /run/containerd", "for d in /opt/containerd/* /opt/containerd /etc/cni/net.d /etc/cni; do"]
        script += ['[ ! -d "$d" ] || rmdir --ignore-fail-on-non-empty "$d"', "done"]
    if group and not members:
        script.append("groupdel docker")
    steps = (Step("Docker", "Remove what Docker leaves", "\n".join(script)),) if script else ()
    keeps = [Kept("the group docker", f"it has members: {members}")] if group and members else []
    if given:
        keeps.append(Kept(given, "somebody gave it to Docker for its data; what else lies there nobody can tell"))
    if given and DOCKER_ROOT in remains.kinds:
        keeps.append(Kept(DOCKER_ROOT, f"Docker has its data in {given}, so nobody was asked what this is"))
    return Plan(steps, {"Docker's data": places}, (), tuple(keeps))


def _given_root(remains: Remains) -> str:
    """The directory that somebody chose for Docker's data; empty where it is the usual one."""
    told = (_object(remains.daemon_json) or {}).get("data-root")
    places = [os.path.normpath(place) for place in (told, remains.docker.root) if isinstance(place, str)]
    return next((place for place in places if place != DOCKER_ROOT), "")


def _emptied(directory: str) -> str:
    """Shell that removes everything in a directory; what is mounted there stays."""
    return f"find -H {shlex.quote(directory)} -xdev -mindepth 1 -delete"


def _not_put_back(recorded: Recorded, remains: Remains) -> list[Kept]:
    """The packages that a deploy took away, as far as they can be told from those that somebody else did."""
    gone = sorted(name for name in found_packages(recorded) if not remains.installed([name]))
    replaced = [name for name in gone if name in DOCKER_CONFLICTS or is_gpu_package(name)]
    return [Kept(named(replaced), "removed since the first deploy; not installed again")] if replaced else []


def _files(recorded: Recorded, roots: Roots, remains: Remains) -> Plan:
    """Files of ours as we wrote them, the state apart; an edited one stays, and so does what somebody else put there."""
    files = recorded.created.get("files", frozenset()) | recorded.created.get("metrics", frozenset())
    present = [path for path in sorted(files) if path in remains.kinds and not _is_state(path, roots)]
    whys = {path: _why_kept(path, recorded, remains) for path in present}
    names = [path for path in present if not whys[path]]
    parts = [f"{path}{PART}" for path in files if f"{path}{PART}" in remains.kinds]
    build = f"{roots.config_root}/build"
    ours = {*files, *_directories(recorded), *parts, *(path for path in remains.kinds if _is_below(path, (build,)))}
    foreign = _foreign(roots.config_root, ours, remains)
    keeps = [Kept(path, why) for path, why in whys.items() if why]
    keeps += [Kept(path, "no deploy made it") for path in foreign]
    data = (*data_directories(roots), roots.data_root, roots.state(), ANCHOR_DIRECTORY)
    directories = [
        path
        for path in _directories(recorded) - recorded.found.get("directories", frozenset())
        if path in remains.kinds and not _is_below(path, data)
    ]
    script = "xargs -0r rm -f --"
    if build in remains.kinds:
        script += f"; rm -rf {shlex.quote(build)}"
    steps = []
    if names or parts or build in remains.kinds:
        steps.append(Step("Files", f"Remove {len(names)} files", script, _list([*names, *parts])))
    if directories:
        steps.append(Step("Files", "Remove directories that are empty now", _RMDIR, _deepest_first(directories)))
    if any(path.startswith(UNITS) for path in names):
        reload = "systemctl daemon-reload; systemctl reset-failed 'atelier-*'"
        steps.append(Step("Units", "Let systemd know", reload))
    stamp = upkeep.initramfs_stamp(roots.state())
    if stamp in remains.kinds and not gpu_stays(remains):
        script = f"! command -v update-initramfs >/dev/null || update-initramfs -u -k all || exit 1; rm -f {shlex.quote(stamp)}"
        steps.append(Step("Files", "Bring the initramfs up to date", script))
    told = {"files": tuple(names), "directories": tuple(sorted(directories))}
    return Plan(tuple(steps), told, (), tuple(keeps))


_RMDIR = 'xargs -0r sh -c \'for d; do [ ! -d "$d" ] || [ -L "$d" ] || rmdir --ignore-fail-on-non-empty -- "$d" || exit 1; done\' _'
"""Shell that removes the directories that its input names, as far as they are there and empty; no link to one."""


def _why_kept(path: str, recorded: Recorded, remains: Remains) -> str:
    """Why a file that a deploy wrote stays; empty where it goes."""
    if path in recorded.found.get("files", ()):
        return "it was here before the first deploy"
    if path in (DOCKER_SOURCES, DOCKER_KEYRING) and not docker_goes(recorded, remains):
        return f"Docker stays: {docker_stays(recorded, remains)}" if remains.installed(DOCKER_PACKAGES) else ""
    if _is_of_gpu(path) and (why := gpu_stays(remains)):
        return why
    if remains.kinds[path] not in "fl":
        return "a deploy wrote a file there, and it is none now"
    written = recorded.wrote.get(path)
    if written and remains.digests.get(path) not in written:
        return "somebody edited it since a deploy wrote it"
    return ""


def _is_of_gpu(path: str) -> bool:
    """Whether a file is a setting of the driver's or the toolkit's, or the repository they come from."""
    sources = path.startswith(("/etc/apt/sources.list.d/atelier-", "/etc/apt/keyrings/atelier-"))
    return sources or path in (routes.NOUVEAU_BLACKLIST.path, routes.UPGRADE_BLACKLIST.path)


def _directories(recorded: Recorded) -> frozenset[str]:
    return recorded.created.get("directories", frozenset())


def _is_state(path: str, roots: Roots) -> bool:
    return _is_below(path, (roots.state(), ANCHOR_DIRECTORY))


def _is_below(path: str, directories: Iterable[str]) -> bool:
    """Whether a path is one of the directories, or lies in one."""
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)


def _foreign(root: str, known: Collection[str], remains: Remains) -> list[str]:
    """What lies below a directory of ours and is not ours: the topmost of it."""
    strange = {path for path in remains.kinds if path.startswith(f"{root}/") and path not in known}
    return sorted(path for path in strange if str(PurePosixPath(path).parent) not in strange)


def _user(recorded: Recorded, remains: Remains) -> Plan:
    names = tuple(sorted(recorded.ours("users") & remains.users))
    script = "\n".join(
        f"userdel {name} || exit 1; ! getent group {name} >/dev/null || groupdel {name}" for name in names
    )
    return Plan((Step("Host", f"Remove the user {' '.join(names)}", script),) if names else (), {"users": names})


def _data(recorded: Recorded, roots: Roots, remains: Remains, purge: bool) -> Plan:
    """Weights, outputs and users' files: kept, or removed as far as they are ours."""
    uid = recorded.service_uid or recorded.deployed.get("layout", {}).get("service_uid")
    there = [path for path in data_directories(roots) if path in remains.kinds]
    sizes = {path: f"{remains.sizes.get(path, 0) / 1e9:.1f} GB" for path in there}
    if not purge:
        owner = f", owned by user id {uid}, which has no name then" if uid else ""
        owners = {roots.models_dir: ""}
        keeps = [Kept(path, f"{sizes[path]}{owners.get(path, owner)}; PURGE=1 removes it") for path in there]
        return Plan(keeps=tuple(keeps))
    weights = [f"{roots.models_dir}/{name}" for name in sorted(recorded.created.get("weights", ()))]
    weights = [path for path in weights if path in remains.kinds]
    work = [path for path in (f"{roots.models_dir}/{name}" for name in STORE_FILES) if path in remains.kinds]
    folders = [
        path
        for path in sorted(recorded.ours("directories"))
        if str(PurePosixPath(path).parent) in (roots.outputs_dir, roots.users()) and path in remains.kinds
    ]
    steps = []
    if weights or work:
        steps.append(Step("Data", f"Remove {len(weights)} weights", "xargs -0r rm -rf --", _list([*weights, *work])))
    for folder in folders:
        steps.append(Step("Data", f"Remove {folder}", f"{_emptied(folder)}; rmdir {shlex.quote(folder)}"))
    known = {*recorded.created.get("directories", ()), *weights, *work}
    keeps = [
        Kept(path, "no deploy made it")
        for root in data_directories(roots)
        for path in _foreign(root, known, remains)
        if not _is_below(path, folders) and not _is_below(path, work)
    ]
    keeps += [Kept(path, "it is mounted there") for path in sorted(remains.mounts)]
    told = [roots.models_dir] if weights or work else []
    told += [
        path for path in (roots.outputs_dir, roots.users()) if any(_is_below(folder, (path,)) for folder in folders)
    ]
    return Plan(tuple(steps), {"data": tuple(f"{sizes[path]} in {path}" for path in told)}, (), tuple(keeps))


STORE_FILES = (INCOMING, ".lock")
"""What the program that fetches weights has beside them."""


def last_steps(recorded: Recorded, roots: Roots, remains: Remains, purge: bool, audit: str) -> tuple[Step, ...]:
    """What must outlive all else: by it an interrupted removal is known and finished.

    audit: the line of the audit log.
    """
    state = roots.state()
    steps = []
    if state in remains.kinds and purge:
        script = f"{_emptied(state)} && {_RMDIR}"
        directories = _deepest_first({state, *recorded.ours("directories")})
        steps.append(Step("State", "Remove what the host remembers", script, directories))
    elif state in remains.kinds:
        keep = " ".join(f"! -path {shlex.quote(f'{state}/{name}')}" for name in (*ALWAYS_KEPT, "weights/*"))
        log, manifest = shlex.quote(f"{state}/audit.log"), kept_manifest(recorded, roots)
        steps += [
            Step("State", "Say so in the audit log", f"cat >>{log}", f"{audit}\n".encode()),
            Step("State", "Remember what stays", _write(manifest_path(roots)), manifest.encode()),
            Step("State", "Forget everything else", f"find -H {shlex.quote(state)} -xdev -mindepth 1 {keep} -delete"),
        ]
    copy = (BEFORE, LAST) if recorded.created.get("merged") else ()
    folders = (
        ANCHOR_DIRECTORY,
        *(path for path in recorded.ours("directories") if copy and BEFORE.startswith(f"{path}/")),
    )
    gone = shlex.join([ANCHOR, *copy, "/run/atelier-monitor", weights_unit.RUN, "/run/atelier-relocation"])
    forget = f"rm -rf {gone}; {_RMDIR}"
    return (*steps, Step("State", "Forget that this host was deployed", forget, _deepest_first(folders)))


def manifest_path(roots: Roots) -> str:
    """Where the manifest lies."""
    return f"{roots.state()}/manifest.json"


def purging_manifest(recorded: Recorded, packages: Iterable[str]) -> str:
    """The manifest once the containers are gone, and apt is about to remove these packages."""
    return _manifest({**recorded.created, PURGING: frozenset(packages)}, recorded)


def kept_manifest(recorded: Recorded, roots: Roots) -> str:
    """The manifest of a host that has data of ours and nothing else."""
    directories = [
        path
        for path in recorded.ours("directories")
        if _is_below(path, (*data_directories(roots), f"{roots.state()}/weights"))
        or path in (roots.data_root, roots.state())
    ]
    kept = {"weights": recorded.created.get("weights", ()), "directories": directories}
    files = {path for path in recorded.created.get("files", ()) if _is_below(path, (f"{roots.state()}/weights",))}
    return _manifest({**kept, "files": files}, replace(recorded, found={}, wrote={}), roots)


def _manifest(created: Mapping[str, Iterable[str]], recorded: Recorded, roots: Roots | None = None) -> str:
    def lists(names: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
        return {kind: sorted(each) for kind, each in names.items()}

    document = {"schema": SCHEMA, "release": recorded.release, "created": lists(created)}
    document |= {"found": lists(recorded.found), "wrote": lists(recorded.wrote)}
    return json.dumps(document | ({"layout": asdict(roots)} if roots else {}), indent=1) + "\n"


def _write(path: str) -> str:
    """Shell that writes its standard input into a file, whole or not at all."""
    return File(path, b"", 0o600).install_script()


def _list(paths: Iterable[str]) -> bytes:
    return "".join(f"{path}\0" for path in paths).encode()


def _deepest_first(directories: Iterable[str]) -> bytes:
    return _list(sorted(directories, key=lambda path: (-path.count("/"), path)))
