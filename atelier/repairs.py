"""What of a half-dead host a reprovision repairs, and what it will not touch and why. Pure.

`ailments.py` asks the host, `mending.py` carries out what is decided here.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from atelier import apt
from atelier.ailments import Ailments, Container, FileSystem, Key
from atelier.apt import Repository
from atelier.deployment import DAEMON_JSON
from atelier.docker_settings import BEFORE
from atelier.preflight import amount
from atelier.tree import File
from atelier.uninstall_packages import named

DAY = 86400
FEW_INODES = 1000
AGAIN = "then run the same command again"
FREED = "it freed what it could; what is left of it is in use"


@dataclass(frozen=True)
class Repair:
    """One thing that is wrong with a host, and what becomes of it.

    what: the repair, as a step is named; empty where it is not touched, and then `why`. script: as root on the host.
    remedy: what a person does about what is not touched, or where the repair does not help. removes: it needs a yes.
    stops: nothing else can be done before this is mended. repository: one of ours whose key is fetched anew, instead of a script.
    """

    problem: str
    what: str = ""
    script: str = ""
    stdin: bytes = b""
    why: str = ""
    remedy: str = ""
    removes: bool = False
    stops: bool = False
    repository: Repository | None = None

    def deed(self) -> str:
        """What is the same in two looks where the same is to be done; the words count what goes on meanwhile."""
        return self.repository.name if self.repository else self.script

    def may_fail(self) -> bool:
        """Whether the deploy that follows tells whether it was enough."""
        return self.removes or self.repository is not None

    def lines(self) -> list[str]:
        """What it does, or why it does not and what a person has to do."""
        if self.what:
            return [f"{self.problem}: {self.what[:1].lower()}{self.what[1:]}"]
        return [f"{self.problem}: not touched: {self.why}", f"  -> {self.remedy}"]


def plan(facts: Ailments) -> tuple[Repair, ...]:
    """What is wrong, in the order in which it is repaired; nothing of a healthy host."""
    return tuple(repair for judge in _JUDGES for repair in judge(facts))


def lines(repairs: Iterable[Repair]) -> list[str]:
    """The repairs as a plan prints them."""
    return [line for repair in repairs for line in repair.lines()]


def _clock(facts: Ailments) -> Iterable[Repair]:
    if abs(facts.clock_off) > DAY:
        yield Repair(
            f"the host's clock is {abs(facts.clock_off) / DAY:.0f} days {'ahead' if facts.clock_off > 0 else 'behind'}",
            why="whoever set it may have had a reason; with it certificates and signing keys look invalid",
            remedy=f"on the host: timedatectl set-ntp true, or date -s; {AGAIN}",
            stops=True,
        )


def _read_only(facts: Ailments) -> Iterable[Repair]:
    for each in facts.file_systems:
        if each.read_only:
            yield Repair(
                f"{each.mount} is mounted read-only",
                why="a kernel does that to a disk with errors, and writing would make them worse",
                remedy=f"`dmesg` and `findmnt {each.mount}` on the host say why; mend the disk (fsck), mount it for writing, {AGAIN}",
                stops=True,
            )


def _parts(facts: Ailments) -> Iterable[Repair]:
    """Begun transfers that nothing waits for."""
    if facts.parts and facts.parts_mount in facts.lacking:
        yield Repair(
            _lacks(facts, facts.parts_mount),
            f"Remove begun transfers of weights that nothing asks for, {amount(sum(facts.parts.values()))}",
            f"rm -f -- {shlex.join(sorted(facts.parts))}",
            remedy=FREED,
            removes=True,
        )


def _lacks(facts: Ailments, mount: str) -> str:
    return f"{mount} lacks {amount(facts.lacking[mount])}"


def _packages(facts: Ailments) -> Iterable[Repair]:
    packages = facts.packages
    if packages.holder:
        return
    lost = [name for name in packages.reinstall if name not in packages.available]
    if lost:
        yield Repair(
            f"the installation of {named(lost)} broke off, and apt does not know where to get it",
            why="it could only be removed",
            remedy=f"on the host: dpkg --remove --force-remove-reinstreq {' '.join(lost)}; or put its file there and "
            f"install it with dpkg -i; {AGAIN}",
            stops=True,
        )
        return
    if packages.removals:
        yield Repair(
            f"packages do not fit each other: {packages.broken or named(packages.unfinished)}",
            why=f"apt would mend that by removing {named(packages.removals)}",
            remedy=f"on the host: apt-get --fix-broken install, where that is what you want; {AGAIN}",
            stops=True,
        )
        return
    if packages.unfinished or packages.reinstall or packages.broken:
        what = named(sorted({*packages.unfinished, *packages.reinstall})) or packages.broken
        yield Repair(
            f"an installation of packages broke off ({what})",
            "Finish the installation, without removing any package",
            finish_script(packages.reinstall),
            remedy=f"on the host: dpkg --configure -a says why; {AGAIN}",
        )


def finish_script(reinstall: Iterable[str]) -> str:
    """Shell that brings interrupted installations to their end. apt ends rather than remove a package."""
    again = f"install --reinstall {shlex.join(reinstall)}" if reinstall else "install"
    return f"""{apt.WAIT}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
dpkg --configure -a --force-confold
apt-get -q -y --no-remove --no-install-recommends --allow-change-held-packages --fix-broken \\
  -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold {again}
"""


def _keys(facts: Ailments) -> Iterable[Repair]:
    if abs(facts.clock_off) > DAY:
        return
    for key in facts.keys:
        yield _key(key)


def _key(key: Key) -> Repair:
    problem = f"the key of the repository {key.url} has expired"
    if key.ours:
        return Repair(
            problem,
            "Fetch the key anew, and compare it with its fingerprint",
            remedy=f"its owner offers no other under {key.ours.key_url} yet; apt goes on without this repository",
            repository=key.ours,
        )
    where = key.file or "/etc/apt/sources.list.d"
    return Repair(
        problem,
        why=f"{where} is not ours; apt goes on with what it knew of it",
        remedy=f"on the host: install the owner's present key, or take the repository out of {where}",
    )


START = """
systemctl reset-failed docker.service docker.socket containerd.service 2>/dev/null
systemctl {verb} docker.service || {{ journalctl -u docker.service -n 15 -o cat --no-pager >&2; exit 1; }}
i=0; while [ $i -lt 30 ]; do timeout 10 docker version >/dev/null 2>&1 && exit 0; sleep 1; i=$((i + 1)); done
echo 'docker.service runs, and Docker does not answer' >&2; exit 1
"""


def _docker(facts: Ailments) -> Iterable[Repair]:
    docker = facts.docker
    if docker.answers or docker.load in ("", "not-found"):
        return
    look = f"`journalctl -u docker` on the host says why; {AGAIN}"
    if docker.load == "masked":
        unmask = f"on the host: systemctl unmask docker.service docker.socket; {AGAIN}"
        yield Repair("Docker is masked", why="somebody did that on purpose", remedy=unmask, stops=True)
    elif docker.invalid:
        yield _daemon_json(facts)
    elif docker.active != "active":
        state = f"{docker.active} ({docker.result})" if docker.active == "failed" else docker.active
        # Of one that was stopped, what it said last is of something else.
        said = f": {docker.said}" if docker.said and docker.active == "failed" else ""
        yield Repair(
            f"Docker does not run: it is {state}{said}", "Start Docker", START.format(verb="start"), remedy=look
        )
    elif docker.keeps_containers:
        restart = START.format(verb="restart")
        yield Repair("Docker does not answer", "Restart Docker; containers run on meanwhile", restart, remedy=look)
    else:
        yield Repair(
            "Docker does not answer",
            why="its settings lack live-restore, and a restart would end the containers that run",
            remedy=f"on the host: systemctl restart docker, when they may stop; {AGAIN}",
            stops=True,
        )


def _daemon_json(facts: Ailments) -> Repair:
    problem = f"Docker does not take {DAEMON_JSON}: {facts.docker.invalid}"
    if ours := facts.docker.our_settings:
        settings = File(DAEMON_JSON, ours.encode())
        aside = f'cp -a {DAEMON_JSON} "{DAEMON_JSON}.broken-$(date +%s)"'
        return Repair(
            problem,
            "Put ours back, keep what is there as daemon.json.broken-<time>",
            f"{aside} && {settings.install_script()} || exit 1\n{START.format(verb='start')}",
            settings.content,
            remedy=f"`journalctl -u docker` on the host says why; {AGAIN}",
        )
    before = f" ({BEFORE} is as it was before our first change)" if facts.docker.settings_before else ""
    return Repair(
        problem,
        why="the host had settings of its own before us, and what is meant by them is not for us to guess",
        remedy=f"mend that file on the host{before}; {AGAIN}",
        stops=True,
    )


def _images(facts: Ailments) -> Iterable[Repair]:
    """Images of ours that nothing uses, and the build cache where nobody else's can be in it."""
    if facts.image_mount not in facts.lacking:
        return
    if facts.images:
        tags = sorted(facts.images)
        yield Repair(
            _lacks(facts, facts.image_mount),
            f"Remove images of ours that nothing uses, up to {amount(sum(facts.images.values()))}: {named(tags)}",
            f"docker image rm {shlex.join(tags)} >/dev/null",
            remedy=FREED,
            removes=True,
        )
    if facts.build_cache:
        yield Repair(
            _lacks(facts, facts.image_mount),
            f"Empty Docker's build cache, {amount(facts.build_cache)}",
            "docker builder prune -a -f >/dev/null",
            remedy=FREED,
            removes=True,
        )


def _space(facts: Ailments) -> Iterable[Repair]:
    """What is still missing when all that we may free is freed; not said before a Docker that is dead can tell what it has."""
    for each in facts.file_systems:
        if each.inodes is not None and each.inodes < FEW_INODES:
            yield _no_inodes(each)
    if facts.docker.load not in ("", "not-found") and not facts.docker.answers:
        return
    for mount, missing in facts.lacking.items():
        freed = sum(facts.parts.values()) if mount == facts.parts_mount else 0
        if mount == facts.image_mount:
            freed += sum(facts.images.values()) + facts.build_cache
        if missing > freed:
            yield _full(facts, mount)


def _no_inodes(each: FileSystem) -> Repair:
    return Repair(
        f"{each.mount} has room for {each.inodes} more files only",
        why="none of the many are ours",
        remedy=f"`du --inodes -x {each.mount} | sort -n | tail` on the host says where they are; remove what nobody needs, {AGAIN}",
        stops=True,
    )


def _full(facts: Ailments, mount: str) -> Repair:
    below = mount.rstrip("/") + "/"
    largest = {path: size for path, size in facts.largest.items() if path.startswith(below) or path == mount}
    told = "; the largest there: " + _sizes(largest) if largest else ""
    if mount in facts.leaving:
        why = "what moves away from it makes room"
        return Repair(_lacks(facts, mount), why=why, remedy="if that is not enough, verify says what is missing")
    return Repair(
        _lacks(facts, mount),
        why=f"what else is on it is needed, or not ours{told}",
        remedy="free some space (`apt-get clean`, `journalctl --vacuum-size=200M`, `make models-prune`), or point data_root or "
        f"models_dir at a larger disk; {AGAIN}",
        stops=True,
    )


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{path} {amount(size)}" for path, size in sizes.items())


def _containers(facts: Ailments) -> Iterable[Repair]:
    for container in facts.containers:
        problem = (
            f"the container {container.name} is half removed"
            if container.dead
            else f"the container {container.name} starts again and again (exit {container.exit_code})"
        )
        if not container.ours:
            yield _foreign(container, problem)
        elif container.name in facts.declared:
            remove = f"docker rm -f -v {shlex.quote(container.name)} >/dev/null"
            look = f"`make logs` and `make doctor` look for the cause; {AGAIN}"
            yield Repair(
                problem, f"Remove {container.name}; the deploy that follows makes it again", remove, remedy=look
            )


def _foreign(container: Container, problem: str) -> Repair:
    name = shlex.quote(container.name)
    undo = f"docker rm -f {name}" if container.dead else f"docker update --restart no {name} && docker stop {name}"
    return Repair(problem, why="it is not ours", remedy=f"`docker logs {name}` on the host says why; `{undo}` ends it")


_JUDGES: tuple[Callable[[Ailments], Iterable[Repair]], ...] = (
    _clock,
    _read_only,
    _parts,
    _packages,
    _keys,
    _docker,
    _images,
    _space,
    _containers,
)
"""In the order of the repairs: room before what needs it, Docker before what asks it."""
