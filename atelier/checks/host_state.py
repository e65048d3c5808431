"""What a host tells about itself in one round trip, and what is wrong with that. Pure."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.apt import HOLDER
from atelier.errors import Finding
from atelier.hostfacts import TIME_SERVICES
from atelier.preflight import GB, GIB, SUPPORTED, too_little_memory
from atelier.settings import Settings

Sections = Mapping[str, Sequence[str]]
"""Lines by section, as `script` prints them."""

MARK = "::host::"
SECONDS = 20
"""What answers later than this does not answer."""
OLDEST_KERNEL = (5, 15)
"""Ubuntu 22.04's, the oldest of the systems that are supported."""
CLOCK_TOLERANCE = 60  # seconds between the host's clock and this computer's
FULL = GB
LEAST_MEMORY = GIB // 2
GRACE_DAYS = 7
"""A restart that an update asks for may wait so long before it is a failure: the host never restarts by itself."""
TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer")


def script(settings: Settings) -> str:
    """A POSIX shell script that prints the sections; it changes nothing. Each command that could hang has a limit."""
    places = " ".join(map(shlex.quote, ("/", "/var/log", settings.config_root, *settings.data_directories())))
    return f"""
export LC_ALL=C
s() {{ printf '\\n%s\\n' "{MARK}$1"; }}
limited() {{ timeout {SECONDS} "$@" 2>&1 || {{ r=$?; [ $r != 124 ] || echo "time-out: no answer within {SECONDS} s"; return $r; }}; }}
s clock; date +%s
s system; cat /etc/os-release; echo "ARCHITECTURE=$(dpkg --print-architecture)"; echo "KERNEL=$(uname -r)"
s container; systemd-detect-virt -c
s modules; ls /lib/modules 2>/dev/null
s kernels; ls /boot 2>/dev/null | sed -n 's/^vmlinuz-//p'
s reboot; stat -c '%Y' /run/reboot-required 2>/dev/null && cat /run/reboot-required.pkgs 2>/dev/null
s memory; cat /proc/meminfo
s docker; limited docker info --format '{{{{json .}}}}' | tail -n 1
s docker-unit; systemctl is-enabled docker 2>&1; stat -c '%a %U' /run/docker.sock 2>&1; ss -Hltnp 2>/dev/null | grep '"dockerd"' || :
s docker-users; getent group "$(stat -c %G /run/docker.sock 2>/dev/null)" | cut -d: -f4 | tr , '\\n' | while read -r user; do
  [ -z "$user" ] || id -nG "$user" | grep -qwE 'root|sudo|admin|wheel' || echo "$user"; done
s disk; for d in {places} \\
  "$(sed -n 's/.*"data-root"[^"]*"\\([^"]*\\)".*/\\1/p' /etc/docker/daemon.json 2>/dev/null | grep . || echo /var/lib/docker)"
do printf '%s|%s\\n' "$d" "$(limited df -B1 --output=avail,itotal,iavail,target "$d" | tail -n 1)"; done
s time; systemctl is-active {" ".join(TIME_SERVICES)} | paste -s -d' '; limited timedatectl show -p NTPSynchronized
s upgrades; apt-config dump | grep -E '^(APT::Periodic|Unattended-Upgrade)::'
s timers; for t in {" ".join(TIMERS)}; do echo "$t $(systemctl is-enabled $t 2>&1 | head -n 1) $(systemctl is-active $t)"; done
s unattended; dpkg-query -W -f '${{db:Status-Status}}\\n' unattended-upgrades 2>&1
{HOLDER}
at_work=$(holder)
broken=$(dpkg-query -W -f '${{db:Status-Eflag}} ${{db:Status-Status}} ${{Package}}\\n' |
  sed -nE 's/^(reinstreq [^ ]+|ok half-installed|ok unpacked|ok half-configured) //p')
at_work=${{at_work:-$(holder)}}
s package-manager; echo "$at_work"
s broken; [ -n "$at_work" ] || echo "$broken"
:
"""


def parse(output: str) -> dict[str, list[str]]:
    """The sections of what the script printed."""
    sections: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith(MARK):
            current = sections.setdefault(line.removeprefix(MARK), [])
        elif line.strip() and sections:
            current.append(line)
    return sections


def container(told: Sections) -> str:
    """What kind of container the host is; empty for a machine with a kernel and a clock of its own, which WSL has not."""
    kind = _first(told, "container")
    return "" if kind == "none" else kind


def system_text(told: Sections) -> str:
    """System, kernel and architecture in one line."""
    release = _assignments(told["system"])
    kernel = f"kernel {release.get('KERNEL')}" + (
        f" (the outer machine's: this is a {container(told)} container)" if container(told) else ""
    )
    return f"{release.get('PRETTY_NAME', 'unknown')}, {kernel}, {release.get('ARCHITECTURE')}"


def system(told: Sections) -> list[Finding]:
    """System, kernel and architecture among those that a deploy supports."""
    release = _assignments(told["system"])
    found = []
    if (release.get("ID"), release.get("VERSION_CODENAME")) not in SUPPORTED:
        name = release.get("PRETTY_NAME") or "this system"
        found.append(Finding(f"{name} is not supported", f"use one of: {', '.join(SUPPORTED.values())}"))
    if (architecture := release.get("ARCHITECTURE")) != "amd64":
        found.append(
            Finding(f"architecture {architecture}: the images are made of wheels for amd64", "use an amd64 host")
        )
    kernel = release.get("KERNEL", "")
    if _numbers(kernel)[:2] < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        found.append(
            Finding(
                f"kernel {kernel} is older than {oldest}", "start the kernel of a supported distribution, and reboot"
            )
        )
    return found


_FREE = re.compile(r" *(\d+) +(\d+|-) +(\d+|-) +(/.*)").fullmatch


def disk(told: Sections, settings: Settings) -> tuple[list[Finding], list[Finding]]:
    """File systems that are full or do not answer, and those that soon will be full."""
    found, almost = [], []
    answers = [line.partition("|")[::2] for line in told["disk"]]
    for place, answer in answers or [("/", "df said nothing")]:
        if not _FREE(answer):
            remedy = f"see `df {place}` and `mount` on the host"
            found.append(Finding(f"nobody can say how full {place} is: {answer or 'no answer'}", remedy))
    for mount, (free, inodes, free_inodes) in _free(told).items():
        room = f"{mount} has {free / GB:.1f} GB free"
        remedy = (
            f"free some space on {mount}: `du -xh --max-depth=2 {mount} | sort -h | tail` shows what takes it; "
            "`make models-prune` lists weights that no set needs, `docker image prune` removes old images"
        )
        if free < FULL:
            found.append(Finding(room, remedy))
        elif free < settings.monitoring.minimum_free_gb * GB:
            almost.append(Finding(room, remedy))
        if inodes and free_inodes * 100 < inodes:
            found.append(
                Finding(f"{mount} has {free_inodes} of {inodes} inodes free", f"remove small files on {mount}")
            )
    return found, almost


def disk_text(told: Sections) -> str:
    """Free space by file system."""
    return ", ".join(f"{mount} {free / GB:.0f} GB free" for mount, (free, *_) in _free(told).items())


def _free(told: Sections) -> dict[str, tuple[int, int, int]]:
    """By mount point: bytes free, inodes, inodes free; no inodes where the file system counts none."""
    rows = (row for line in told["disk"] if (row := _FREE(line.partition("|")[2])))
    numbers = {row[4]: [int(row[column].replace("-", "0")) for column in (1, 2, 3)] for row in rows}
    return {mount: (free, inodes, free_inodes) for mount, (free, inodes, free_inodes) in numbers.items()}


def memory(told: Sections, settings: Settings) -> list[Finding]:
    """As much memory as preflight asks for, and some of it free."""
    total, available = _memory(told)
    found = too_little_memory(total, settings)
    if available < LEAST_MEMORY:
        found.append(
            Finding(
                f"{available >> 20} MB of {total / GIB:.0f} GB of memory are free: the next generation may be killed",
                "see what takes it with `ps -eo rss,comm --sort=-rss | head` on the host",
            )
        )
    return found


def memory_text(told: Sections) -> str:
    """Memory and how much of it is free."""
    total, available = _memory(told)
    return f"{total / GIB:.1f} GB, {available / GIB:.1f} GB free"


def _memory(told: Sections) -> tuple[int, int]:
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in told["memory"] if line.endswith(" kB")}
    return sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)


def time(told: Sections, before: float, after: float) -> tuple[list[Finding], list[Finding]]:
    """What is wrong with the host's clock, and what may as well be wrong with this computer's.

    before, after: this computer's clock around the question, seconds since 1970.
    """
    states = dict(zip(TIME_SERVICES, _first(told, "time").split(), strict=False))
    running = [name for name, state in states.items() if state == "active"]
    synchronised = "NTPSynchronized=yes" in told["time"]
    clock = float(_first(told, "clock") or 0)
    off = max(before - 1 - clock, clock - after, 0)  # the host's clock tells whole seconds
    apart = f"the host's clock is {off:.0f} s {'behind' if clock < before else 'ahead of'} this computer's"
    found = []
    if not container(told) and not running:
        remedy = "apt-get install systemd-timesyncd on the host, or run `make deploy`, which does"
        found.append(Finding("no time service runs, so the clock drifts", remedy))
    elif not container(told) and not synchronised:
        found.append(
            Finding(
                f"{running[0]} runs, but the clock is not in sync: no time server answers it",
                f"see `timedatectl timesync-status` or `chronyc sources`, and `journalctl -u {running[0]}`, on the host",
            )
        )
    suspect = []
    if off > CLOCK_TOLERANCE and (container(told) or found):
        kernels = "set the clock of the outer machine" if container(told) else "timedatectl set-ntp true on the host"
        found.append(Finding(apart, f"{kernels}, or this computer's if that is the one that is wrong"))
    elif off > CLOCK_TOLERANCE:
        suspect.append(Finding(f"{apart}, and the host's is in sync", "set this computer's clock"))
    return found, suspect


def time_text(told: Sections) -> str:
    """What keeps the clock."""
    if kind := container(told):
        return f"the outer machine's clock, which a {kind} container only reads: no time service is asked of it"
    states = dict(zip(TIME_SERVICES, _first(told, "time").split(), strict=False))
    return ", ".join(name for name, state in states.items() if state == "active") or "no time service"


def reboot(told: Sections, now: float) -> tuple[list[Finding], list[Finding]]:
    """What only a restart of the host mends: at once, or since more than GRACE_DAYS; and what can wait. now: its clock."""
    remedy = "when nobody is at work, restart the host: `make deploy` with REBOOT=1 does where it has to, `reboot` on it always"
    late: list[Finding] = []
    pending: list[Finding] = []
    if marks := told["reboot"]:
        days = (now - float(marks[0])) / 86400
        names = ", ".join(sorted(set(marks[1:]))) or "an update"
        (late if days > GRACE_DAYS else pending).append(
            Finding(f"{names} asked for a restart {days:.0f} days ago", remedy)
        )
    if container(told):
        return late, pending
    running = _assignments(told["system"]).get("KERNEL", "")
    if told["modules"] and running not in told["modules"]:
        problem = f"the modules of the running kernel {running} are gone from /lib/modules: none can be loaded any more"
        late.append(Finding(problem, remedy))
    newest = newest_kernel(running, told["kernels"])
    if newest != running:
        pending.append(Finding(f"kernel {newest} is installed, {running} runs", remedy))
    return late, pending


def newest_kernel(running: str, installed: Sequence[str]) -> str:
    """The newest installed kernel of the running one's flavour; the running one where it was not installed from a package."""
    split = re.compile(r"(\d[\w.+~-]*?)-([a-z][a-z0-9-]*)").fullmatch
    own = split(running)
    if own is None or running not in installed:
        return running
    alike = [kernel for kernel in installed if (parts := split(kernel)) and parts[2] == own[2]]
    return max(alike, key=_numbers)


def upgrades(told: Sections) -> list[Finding]:
    """Why security updates would not come by themselves, or would restart the host."""
    settings: dict[str, list[str]] = {}
    for line in told["upgrades"]:
        name, _, value = line.rstrip(";").partition(" ")
        settings.setdefault(name.rstrip(":"), []).append(value.strip('"'))

    def last(name: str) -> str:
        return settings.get(name, [""])[-1]

    redeploy = "run `make deploy`; a later file in /etc/apt/apt.conf.d says otherwise if it stays so"
    found = []
    if _first(told, "unattended") != "installed":
        found.append(Finding("unattended-upgrades is not installed", "run `make deploy`, which installs it"))
    for name in ("Update-Package-Lists", "Unattended-Upgrade"):
        if last(f"APT::Periodic::{name}") in ("", "0"):
            found.append(Finding(f'APT::Periodic::{name} is "{last(f"APT::Periodic::{name}")}"', redeploy))
    if last("APT::Periodic::Enable") == "0":
        found.append(Finding('APT::Periodic::Enable is "0": nothing runs by itself', redeploy))
    origins = settings.get("Unattended-Upgrade::Origins-Pattern", []) + settings.get(
        "Unattended-Upgrade::Allowed-Origins", []
    )
    if not any("security" in origin.lower() for origin in origins):
        found.append(
            Finding(
                "no security archive is among the origins of unattended-upgrades",
                "restore /etc/apt/apt.conf.d/50unattended-upgrades: apt-get install --reinstall "
                "-o Dpkg::Options::=--force-confmiss unattended-upgrades",
            )
        )
    if last("Unattended-Upgrade::Automatic-Reboot").lower() not in ("", "false", "0", "no"):
        found.append(Finding("unattended-upgrades may restart the host by itself (Automatic-Reboot)", redeploy))
    for line in told["timers"]:
        timer, enabled, active = (*line.split(), "", "")[:3]
        if (enabled, active) != ("enabled", "active"):
            found.append(
                Finding(
                    f"{timer} is {enabled} and {active}",
                    f"on the host: systemctl unmask {timer}; systemctl enable --now {timer}",
                )
            )
    if told["broken"]:
        found.append(
            Finding(
                f"{told['broken'][0]} is half installed, and until it is whole apt installs nothing",
                "run `make deploy`, which finishes it; by hand: dpkg --configure -a; apt-get install -f",
            )
        )
    return found


def upgrades_text(told: Sections) -> str:
    """What was not looked at, as nothing is half installed by a package manager that is still at work."""
    at_work = _first(told, "package-manager")
    return (
        f"nothing wrong found; packages were not judged: {at_work} is at work on them"
        if at_work
        else "nothing wrong found"
    )


def docker(told: Sections) -> list[Finding]:
    """Why Docker would not run the services as it should, after a restart of itself or of the host as well."""
    try:
        info: dict[str, Any] = json.loads(_first(told, "docker"))
    except ValueError:
        info = {}
    if errors := info.get("ServerErrors") or (
        [] if info.get("ServerVersion") else [_first(told, "docker") or "no answer"]
    ):
        return [
            Finding(
                f"Docker does not answer: {errors[0]}",
                "on the host: systemctl status docker; journalctl -u docker; then systemctl restart docker",
            )
        ]
    redeploy = "run `make deploy`; then see `journalctl -u docker` and /etc/docker/daemon.json on the host"
    facts = {
        "live-restore is off: a restart of Docker ends the services": info.get("LiveRestoreEnabled") is True,
        "CDI is off: no container can be given a GPU": bool(info.get("CDISpecDirs")),
        f"storage driver {info.get('Driver')} copies every layer": info.get("Driver") not in ("vfs", None),
    }
    found = [Finding(problem, redeploy) for problem, holds in facts.items() if not holds]
    enabled, socket, *listening = (*told["docker-unit"], "", "")
    if enabled != "enabled":
        found.append(Finding(f"docker.service is {enabled}: the services stay down after a restart", redeploy))
    mode, _, owner = socket.partition(" ")
    if owner != "root" or mode[-1:] != "0":
        problem = f"Docker's socket has mode {mode} and owner {owner}: whoever opens it is root"
        found.append(Finding(problem, "on the host: chmod 660 /run/docker.sock; chown root:docker /run/docker.sock"))
    for line in filter(None, listening):
        problem = f"Docker listens on {line.split()[3]}: whoever reaches that is root"
        found.append(Finding(problem, "take `hosts` out of /etc/docker/daemon.json and -H tcp out of Docker's unit"))
    return found


def docker_users(told: Sections) -> list[Finding]:
    """Who besides the administrators may command Docker."""
    remedy = (
        "take them out of the group of /run/docker.sock on the host (`gpasswd -d USER docker`), or trust them with root"
    )
    return [
        Finding(f"{user} may command Docker without being an administrator, and that makes root of anybody", remedy)
        for user in told["docker-users"]
    ]


def docker_text(told: Sections) -> str:
    """Docker in one line."""
    info = json.loads(_first(told, "docker"))
    return f"Docker {info['ServerVersion']}, {info['Driver']}, live-restore, CDI"


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket. `program` is empty where it is not known, `uid` for root."""

    address: str
    port: int
    program: str
    uid: str


def listeners(output: str) -> list[Listener]:
    """The sockets of `ss -Hltnpe`."""
    found = []
    for line in output.splitlines():
        address, _, port = line.split()[3].rpartition(":")
        program, uid = re.search(r'users:\(\("([^"]+)"', line), re.search(r" uid:(\d+) ", line)
        bare = address.partition("%")[0].strip("[]")
        found.append(Listener(bare, int(port), program[1] if program else "", uid[1] if uid else ""))
    return found


def listening(sockets: Sequence[Listener], settings: Settings) -> list[Finding]:
    """What listens where it must not, or does not where it must."""
    found = []
    bind = settings.bind_address
    anywhere = ("0.0.0.0", "::", "*")  # noqa: S104 - compared with, not bound to
    allowed = anywhere if bind in anywhere else (bind,)
    look = "see which program holds the port with `ss -ltnp` on the host, and end it; bind_address is in the settings"
    for port in sorted(settings.published_ports()):
        here = [socket for socket in sockets if socket.port == port]
        if not any(socket.address in allowed for socket in here):
            found.append(Finding(f"nothing listens on {bind}:{port}", "see `make status`; then `make start`"))
        found += [
            Finding(f"{socket.program or 'a program'} listens on {socket.address}:{port}, not only on {bind}", look)
            for socket in here
            if socket.address not in allowed
        ]
    found += [
        Finding(f"{socket.program} of the service user listens on {socket.address}:{socket.port} of the host", look)
        for socket in sockets
        if socket.uid == str(settings.service_uid)
    ]
    return found


def _first(told: Sections, name: str) -> str:
    return next(iter(told.get(name, ())), "").strip()


def _assignments(lines: Sequence[str]) -> dict[str, str]:
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def _numbers(kernel: str) -> tuple[int, ...]:
    version = re.match(r"[\d.]+(-\d[\d.]*)?", kernel)
    return tuple(map(int, re.findall(r"\d+", version[0]))) if version else ()
