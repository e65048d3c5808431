"""What a host can tell about its trouble: logs, states and versions, each bounded in time and size, in one round trip.

Nothing on the host is changed, and nothing is written there: its disk may be full. Environments of containers and
command lines of processes are left out, because that is where other people's secrets lie.
"""

import base64
import binascii
import re
import shlex
from dataclasses import dataclass, replace
from typing import Literal

from atelier import transfer
from atelier.gpu import upkeep
from atelier.settings import Settings
from atelier.ssh import Ssh

Kind = Literal["kernel", "docker", "gpu", "service", "packages", "state"]
"""Where a line comes from: the kernel's log; Docker's log and what Docker says about containers; nvidia-smi and the
driver; an application's own log; apt, dpkg and unattended upgrades; anything else."""

TIMED_OUT = 124
SKIPPED = "not looked at: "
"""Begins the text of a source that this kind of host does not have."""
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
MARK = "::atelier-status::"
FAILED_UNITS = "systemctl list-units --failed --plain --no-legend --no-pager | awk '{print $1, $2, $3, $4}'"
"""Without their descriptions: that of a unit of `systemd-run` is its whole command line."""
TOTAL = 420  # seconds; a fallen GPU makes every nvidia-smi hang until its own time-out
DAY = 24 * 3600


@dataclass(frozen=True)
class Query:
    """One thing to ask. `looked_at` says in words how far back it reaches."""

    name: str
    kind: Kind
    looked_at: str
    command: str
    seconds: int = 20
    limit: int = 256 * 1024
    quiet_failure: bool = False
    """A status other than 0 is an answer here, and not a source that cannot be read."""


@dataclass(frozen=True)
class Source:
    """What one query brought."""

    name: str
    kind: Kind
    looked_at: str
    text: str = ""
    problem: str = ""
    """Why it could not be read; empty where it was."""
    cut: bool = False
    """Older lines were left out."""


def queries(settings: Settings) -> tuple[Query, ...]:
    """Everything that is asked of a host with these settings."""
    applications = [service.container for service in settings.enabled().values()]
    containers = [*applications, settings.gateway_container]
    state, data = shlex.quote(settings.state_dir()), settings.data_directories()
    boot = "since the last boot"
    kernel_noise = r"UFW (BLOCK|AUDIT)|apparmor=.(ALLOWED|STATUS)|audit: |veth[0-9a-f]{7}|br-[0-9a-f]{12}"
    return (
        Query(
            "machine",
            "state",
            "now",
            "date +'now %s %z'; awk '/^btime/ {print \"boot\", $2}' /proc/stat; uptime; uname -a; cat /etc/os-release; "
            "timedatectl show -p NTPSynchronized -p NTP -p Timezone 2>/dev/null; systemd-detect-virt",
            quiet_failure=True,
        ),
        Query(
            "kernel",
            "kernel",
            boot,
            f'case "$(systemd-detect-virt -c)" in none|wsl|"") ;; *) echo "{SKIPPED}this is a container, and the kernel its '
            "host's\"; exit 0;; esac; "
            "if journalctl -k -b -q -o short-unix --no-pager -n 1 2>/dev/null | grep -q .; "
            "then journalctl -k -b -q -o short-unix --no-pager; else dmesg --time-format=iso; fi "
            f"| grep -avE {shlex.quote(kernel_noise)} | tail -n 4000; "
            # Without a journal, a dmesg that is refused must not pass for a kernel with nothing to say.
            "journalctl -k -b -q -n 1 2>/dev/null | grep -q . || dmesg >/dev/null",
        ),
        Query("docker-daemon", "docker", boot, _journal("docker.service", "containerd.service")),
        Query(
            "units",
            "state",
            boot,
            _journal("nvidia-*", "atelier-*", "systemd-modules-load.service", "systemd-timesyncd.service", "chrony*"),
        ),
        Query("package-units", "packages", boot, _journal("apt-daily*", "unattended-upgrades.service", "dkms.service")),
        Query("failed-units", "state", "now", FAILED_UNITS),
        Query(
            "containers", "docker", "now", "docker ps -a --format '{{.Names}}\\t{{.Image}}\\t{{.Status}}\\t{{.Ports}}'"
        ),
        Query("container-states", "docker", "now", _states(containers), quiet_failure=True),
        *(
            Query(
                f"log-{name}",
                "service",
                "since the container's last start, or five minutes before it while it is not healthy",
                _container_log(name),
                limit=512 * 1024,
            )
            for name in containers
        ),
        *(
            Query(
                f"gpu-in-{name}",
                "gpu",
                "now",
                f"[ \"$(docker inspect -f '{{{{.State.Running}}}}' {name} 2>/dev/null)\" = true ] || exit 0; "
                f"timeout 15 docker exec {name} nvidia-smi -L",
                quiet_failure=True,
            )
            for name in applications
            if settings.profile != "cpu"
        ),
        Query(
            "nvidia-smi",
            "gpu",
            "now",
            "command -v nvidia-smi >/dev/null || { echo 'nvidia-smi is not installed'; exit 0; }; "
            "nvidia-smi; nvidia-smi -L; nvidia-smi -q -d MEMORY,UTILIZATION,ECC,TEMPERATURE,POWER,CLOCK,PAGE_RETIREMENT,"
            "ROW_REMAPPER,PERFORMANCE",
            seconds=40,
            quiet_failure=True,
        ),
        Query(
            "driver",
            "gpu",
            "now",
            "cat /proc/driver/nvidia/version 2>/dev/null; lsmod | grep -E '^(nvidia|nouveau)'; mokutil --sb-state 2>/dev/null; "
            'command -v dkms >/dev/null && dkms status | sed "s/^/dkms: /"; '
            "nvidia-ctk cdi list 2>&1; ls -l /var/run/cdi /etc/cdi 2>/dev/null",
            quiet_failure=True,
        ),
        Query(
            "packages",
            "packages",
            "now",
            "dpkg --audit 2>&1; apt-cache policy 2>&1 >/dev/null; apt-mark showhold | sed 's/^/held /'; "
            "dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n' 'docker*' 'containerd*' 'nvidia*' 'libnvidia*' "
            "'linux-modules-nvidia*' 'linux-image*' 'cuda*' 2>/dev/null | grep -v '^un'",
            quiet_failure=True,
        ),
        Query(
            "upgrades",
            "packages",
            "the last 300 lines of the package managers' logs",
            "tail -n 300 /var/log/unattended-upgrades/unattended-upgrades.log 2>/dev/null; "
            "tail -n 300 /var/log/apt/history.log 2>/dev/null",
            quiet_failure=True,
        ),
        Query("apt-terminal", "packages", "the last 200 lines", "tail -n 200 /var/log/apt/term.log 2>/dev/null; :"),
        Query(
            "disks", "state", "now", "df -B1 -P -x tmpfs -x devtmpfs -x overlay -x squashfs; echo inodes; df -i -P", 20
        ),
        Query(
            "memory",
            "state",
            "now",
            "free -m; ps -eo rss,comm --sort=-rss | head -n 15; ls -ld /dev/shm; df -h /dev/shm",
        ),
        Query("listeners", "state", "now", "ss -Hltnp"),
        Query(
            "docker",
            "docker",
            "now",
            "docker version; docker compose version; docker info; cat /etc/docker/daemon.json",
            quiet_failure=True,
        ),
        Query(
            "places",
            "state",
            "now",
            "ls -ldn "
            + " ".join(
                f"{place} {place}/*"
                for place in map(
                    shlex.quote, (*data, settings.outputs_path(), settings.users_path(), settings.config_root)
                )
            ),
            quiet_failure=True,
        ),
        *((Query("boot", "state", "now", _boot(), quiet_failure=True),) if settings.profile != "cpu" else ()),
        Query("weights", "state", "the transfer of weights, now or last", transfer.SCRIPT, quiet_failure=True),
        Query("manifest", "state", "everything that deploys created", f"cat {state}/manifest.json", quiet_failure=True),
        Query("deployed", "state", "the last deploy", f"cat {state}/deployed.json", quiet_failure=True),
        Query("audit", "state", "the last 20 deploys", f"tail -n 20 {state}/audit.log", quiet_failure=True),
    )


def _journal(*units: str) -> str:
    chosen = " ".join(f"-u {shlex.quote(unit)}" for unit in units)
    return f"journalctl -b -q -o short-unix --no-pager -n 2000 {chosen}"


def _boot() -> str:
    """What has to be so for Docker to find the GPUs after the next start."""
    parts = (
        ("systemd does not know our order of Docker and the CDI list", upkeep.BOOT_FILES_KNOWN),
        (f"{upkeep.REFRESH}, which makes the CDI list, is not started", upkeep.ENABLED),
    )
    return "; ".join(
        f'[ -n "$({probe})" ] && echo kept || echo {shlex.quote(f"lost: {what}")}' for what, probe in parts
    )


def _states(containers: list[str]) -> str:
    """One line for each container, and the words of its last health checks. Never its environment."""
    state = (
        "{{.Name}} status={{.State.Status}} exit={{.State.ExitCode}} oom={{.State.OOMKilled}} "
        "health={{with .State.Health}}{{.Status}}{{else}}none{{end}} restarts={{.RestartCount}} "
        "started={{.State.StartedAt}} finished={{.State.FinishedAt}} error={{json .State.Error}}"
        "{{with .State.Health}}{{range .Log}}\n    health check: {{.Output}}{{end}}{{end}}"
    )
    # `docker inspect` of one that is missing says so and fails; the others must still be told.
    return "; ".join(f"docker inspect --type container -f {shlex.quote(state)} {name} 2>&1" for name in containers)


def _container_log(name: str) -> str:
    state = "{{.State.StartedAt}}\t{{with .State.Health}}{{.Status}}{{end}}"
    inspect = f"docker inspect --type container -f '{state}' {name}"
    return (
        f's=$({inspect}) || exit 1; t=$(date -d "${{s%%\t*}}" +%s) || exit 1; '
        'case "$s" in *healthy) case "$s" in *unhealthy) t=$((t - 300));; esac;; *) t=$((t - 300));; esac; '
        # Docker counts the years from 1 for a container that was never started.
        f'[ "$t" -gt 0 ] || t=0; docker logs -t --since "$t" --tail 4000 {name} 2>&1'
    )


def script(asked: tuple[Query, ...]) -> str:
    """A shell script that prints one line for each query: its name, and its output in base64 with the status at the end.

    In base64, because a log can hold anything, the marks of this script included.
    """
    lines = []
    for query in asked:
        # The status comes at the end of the stream: a file for it would need a disk with room.
        command = (
            f"{{ timeout -k 5 {query.seconds} sh -c {shlex.quote(query.command)} </dev/null 2>&1; "
            f"printf '\\n{MARK}%s' $?; }} | tail -c {query.limit} | base64 -w 0"
        )
        lines.append(f"printf '%s ' {shlex.quote(query.name)}; {command}; echo")
    return "LC_ALL=C; export LC_ALL\n" + "\n".join(lines) + "\n"


def parse(output: str, asked: tuple[Query, ...]) -> tuple[Source, ...]:
    """What each query brought; one that is missing or broken says so."""
    answers = dict(line.partition(" ")[::2] for line in output.splitlines())
    return tuple(_source(query, answers.get(query.name)) for query in asked)


def _source(query: Query, encoded: str | None) -> Source:
    empty = Source(query.name, query.kind, query.looked_at)
    try:
        raw = base64.b64decode(encoded or "", validate=True)
    except binascii.Error:
        raw = b""
    text, found, status = raw.decode(errors="replace").rpartition(f"\n{MARK}")
    if not found:
        return replace(empty, problem="the connection ended before it was told")
    cut = len(raw) >= query.limit
    if cut:
        # The first line is a part of one, and a part of a secret would not be recognised as such.
        text = text.partition("\n")[2]
    problem = ""
    if status == str(TIMED_OUT):
        problem = f"no answer within {query.seconds} s"
    elif status != "0" and not query.quiet_failure:
        problem = text.strip().splitlines()[-1][:200] if text.strip() else f"it ended with status {status}"
    return replace(empty, text=ANSI.sub("", text), problem=problem, cut=cut)


def collect(ssh: Ssh, settings: Settings) -> tuple[Source, ...]:
    """Ask the host everything, in one round trip. Raises AtelierError when it cannot be reached."""
    asked = queries(settings)
    return parse(ssh.run(script(asked), timeout=TOTAL).stdout, asked)
