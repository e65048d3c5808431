"""What speaks against a restart, what keeps a host from coming back, and what is red afterwards. Pure."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from atelier import lifecycle
from atelier.apt import HOLDER
from atelier.checks.check import Check
from atelier.errors import Finding
from atelier.report import CheckResult
from atelier.weights_unit import UNIT as WEIGHTS_UNIT


def at_work_script(directory: str = lifecycle.LOCK_DIRECTORY) -> str:
    """Prints what is at work on the host, one `kind: what` a line. directory: of the lock of deploys.

    A lock that this process holds, as `make sabotage` does, is none of others. It is tried, shared and for a moment: who
    has taken it has ended by now, so inside a PID namespace the kernel does not list it.
    """
    return (
        HOLDER
        + f"""
held=$(holder); [ -z "$held" ] || echo "package manager: $held"
if [ -e {directory}/lock ] && ! grep -sqx {lifecycle.HOLDER} {directory}/owner; then
  flock -ns {directory}/lock true || echo "deploy: $(head -n 1 {directory}/owner)"
fi
[ ! -e {directory}/busy ] || flock -n {directory}/busy true || echo "deploy: a command of an interrupted one"
[ "$(systemctl show {WEIGHTS_UNIT} -p ActiveState --value)" != activating ] || echo "weights: their transfer"
systemd-inhibit --list --mode=block --no-legend --no-pager 2>/dev/null | grep -w shutdown | sed 's/^/inhibitor: /'
docker ps -q | xargs -r docker inspect -f 'container: {{{{.Name}}}} {{{{.HostConfig.RestartPolicy.Name}}}}'
"""
    )


def busy_applications(queue: Mapping[str, Sequence[str]], jobs: int) -> list[str]:
    """Which applications make images, from ComfyUI's queue and Forge's jobs, both as the clients tell them."""
    found = []
    if any(queue.values()):
        found.append(f"ComfyUI is at work ({', '.join(f'{len(ids)} {name}' for name, ids in queue.items())})")
    if jobs:
        found.append("Forge is at work")
    return found


def busy_host(lines: Iterable[str], ours: Iterable[str], whole_host: bool) -> list[str]:
    """What would be disturbed, from what `at_work_script` printed. ours: names of our containers.

    whole_host: by a restart of Docker or of the host; one of a container of ours disturbs deploys alone.
    """
    own, found = set(ours), []
    for line in lines:
        kind, _, what = line.partition(": ")
        if kind == "deploy":
            found.append(f"a deploy is at work: {what}")
        elif not whole_host:
            continue
        elif kind == "container":
            name, _, policy = what.removeprefix("/").partition(" ")
            if name not in own and policy in ("", "no"):
                found.append(f"the container {name} runs and would not start again by itself")
        elif kind == "package manager":
            found.append(f"the package manager is at work: {what}")
        elif kind == "weights":
            found.append("weights are being fetched")
        elif kind == "inhibitor":
            found.append(f"something on the host forbids a restart: {' '.join(what.split()[:1])}")
    return found


REMEMBERED = 200
LARGEST_MIB = 16
TOLD = 3


def newest_script(folders: Iterable[str]) -> str:
    """Prints the newest files in folders as `sha256  path`, each ended by NUL; those larger than images are left out."""
    names = " ".join(shlex.quote(folder) for folder in folders)
    return (
        f"find {names} -type f -size -{LARGEST_MIB}M -printf '%T@ %p\\0' | sort -zrn | head -zn {REMEMBERED} "
        f"| cut -zd ' ' -f 2- | {HASH}"
    )


HASH = "xargs -0r sha256sum -z -- 2>/dev/null || [ $? = 123 ]"
"""Prints the files named on standard input in the same way; those that are gone are left out."""


def read_hashes(text: str) -> dict[str, str]:
    """What `newest_script` and HASH printed: sha256 by path."""
    pairs = (record.split("  ", 1) for record in text.split("\0") if record)
    return {path: digest for digest, path in pairs}


def lost(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Which files are not there any more, or not the same. Both: sha256 by path."""
    wrong = {
        path: "has other bytes" if path in after else "is lost" for path in before if after.get(path) != before[path]
    }
    told = [f"{path} {what}" for path, what in sorted(wrong.items())]
    return told[:TOLD] + [f"{len(told)} in all"] * (len(told) > TOLD)


def state_script(containers: Iterable[str]) -> str:
    """Prints how far the host, Docker and these containers are.

    Docker itself is asked only once it runs: asking would start it where systemd listens in its place.
    """
    names = " ".join(shlex.quote(name) for name in containers)
    state = (
        "container {{.Name}} {{.State.Status}} {{with .State.Health}}{{.Status}}{{else}}none{{end}} "
        "{{.RestartCount}} {{.HostConfig.RestartPolicy.Name}}"
    )
    return f"""
echo "host $(systemctl is-system-running)"
echo "docker $(systemctl show docker.service -p ActiveState --value) $(systemctl is-enabled docker.service)"
systemctl is-active -q docker.service || exit 0
docker inspect --type container -f {shlex.quote(state)} {names} 2>/dev/null
true
"""


@dataclass(frozen=True)
class State:
    """How far a host is after a restart, from what `state_script` printed."""

    host: str
    """As `systemctl is-system-running` says: starting, running, degraded."""
    docker: str
    at_boot: str
    """Whether Docker starts with the host: enabled, disabled, masked."""
    containers: Mapping[str, "Container"]
    """By name."""

    def waiting_for(self, names: Iterable[str]) -> list[str]:
        """Which of these containers is not healthy yet, and how it is."""
        if self.docker != "active":
            return [f"Docker is {self.docker or 'unknown'}"]
        return [
            f"{name} is {self.containers[name].status}, {self.containers[name].health}"
            if name in self.containers
            else f"there is no {name}"
            for name in names
            if name not in self.containers or not self.containers[name].well
        ]

    def never(self, names: Iterable[str], waited: float) -> list[Finding]:
        """What will not come by itself however long one waits. waited: seconds so far."""
        if self.docker == "failed":
            return [Finding("Docker does not start", "see `journalctl -u docker` on the host, and `make doctor`")]
        if self.docker != "active":
            still = self.docker == "activating" or self.host not in ("running", "degraded")
            remedy = "systemctl enable --now docker on the host, or `make deploy`"
            return (
                []
                if still
                else [Finding(f"Docker is {self.docker} and {self.at_boot}: it does not start with the host", remedy)]
            )
        there = [(name, self.containers[name]) for name in names if name in self.containers]
        found = [
            Finding(
                f"{name} is {container.status} and its restart policy is {container.policy or 'no'}",
                "somebody changed it by hand: `make deploy` makes the container anew",
            )
            for name, container in there
            if container.down and container.policy in ("", "no")
        ]
        # Docker starts what it has to before it says that it is up, and ours after that while the host still starts.
        settled = waited > FORGOTTEN_SECONDS and self.host in ("running", "degraded")
        found += [
            Finding(f"{name} is {container.status} and Docker does not start it again", FORGOTTEN)
            for name, container in there
            if settled and container.down and container.policy not in ("", "no")
        ]
        return found + [
            Finding(
                f"{name} ends as soon as it is started: {container.restarts} times", "see `make logs`, `make doctor`"
            )
            for name, container in there
            if container.restarts >= ENDLESS
        ]


FORGOTTEN_SECONDS = 20
FORGOTTEN = (
    "`make start`; a daemon.json without live-restore lets Docker's restart end containers: `make deploy` puts it back"
)
ENDLESS = 4
"""Starts by Docker itself, one after the other, after which a container is not expected to stay."""


@dataclass(frozen=True)
class Container:
    """How a container is. restarts: how often Docker started it again since somebody did."""

    status: str
    health: str
    restarts: int
    policy: str

    @property
    def down(self) -> bool:
        """Whether nothing of it runs, and Docker is not about to start it."""
        return self.status in ("exited", "created", "dead")

    @property
    def well(self) -> bool:
        """Whether it runs and its health check says so."""
        return (self.status, self.health) == ("running", "healthy")


def read_state(text: str) -> State:
    """What `state_script` printed."""
    lines = [line.split(" ") for line in text.splitlines()]
    host = next((line[1] for line in lines if line[0] == "host"), "")
    docker, at_boot, *_ = [*next((line[1:] for line in lines if line[0] == "docker"), []), "", ""]
    containers = {
        line[1].removeprefix("/"): Container(line[2], line[3], int(line[4]), line[5])
        for line in lines
        if line[0] == "container" and len(line) == 6
    }
    return State(host, docker, at_boot, containers)


STRICT = ("access", "secrets")
"""Groups of checks whose red is never one that only has to settle: what was open for a moment was open."""


def unsettled(results: Iterable[CheckResult]) -> list[str]:
    """The red checks that may be green a moment later; none where another is red that may not."""
    red = [result for result in results if result.verdict == "failed"]
    return [] if any(result.group in STRICT for result in red) else [result.id for result in red]


def left_out(results: Iterable[CheckResult], wanted: Iterable[Check]) -> list[str]:
    """Which of the quick checks were skipped, and why: others were at work."""
    needed = {check.id for check in wanted if not check.optional}
    return [
        f"{result.id}: {result.observed}" for result in results if result.verdict == "skipped" and result.id in needed
    ]


def held_up(red: Iterable[str], seconds: float) -> tuple[list[str], list[str]]:
    """What to tell of checks that were red first and green that many seconds later: where it had to be so, and elsewhere."""
    told = {id: f"{id} was red for up to {seconds:.0f} s" for id in red}
    expected = [text for id, text in told.items() if id in SETTLING]
    return expected, [text for text in told.values() if text not in expected]


SETTLING = ("host.time", "host.monitor")
"""Checks of what the host does by itself a moment after its start: set its clock, look at itself."""

LONGEST = 200
"""Characters that are told of what one of the quick checks saw; run alone, it tells all."""


def red_afterwards(results: Iterable[CheckResult], wanted: Iterable[Check], crashed: bool) -> list[Finding]:
    """What the quick checks found, and those of them that never came to their turn."""
    seen = {result.id: result for result in results}
    found = []
    for check in wanted:
        result = seen.get(check.id)
        if result is not None and result.verdict == "failed":
            found.append(Finding(f"{check.id}: {result.observed[:LONGEST]}", result.hint))
        elif result is None and not check.optional:
            found.append(Finding(f"{check.id}: it did not run", f"make verify CHECK={check.id}"))
    if crashed and not found:
        found.append(Finding("the quick checks ended before their end", "make verify QUICK=1"))
    return found
