"""What Docker and the kernel tell about the containers in one round trip, and what is wrong with that. Pure."""

import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.errors import Finding
from atelier.render import network_name
from atelier.settings import Settings, bytes_of

MARK = "::container::"
REDEPLOY = "run `make deploy`; if it stays so, something else on the host keeps changing the containers"
MASKED = ("/proc/kcore", "/proc/keys", "/sys/firmware")
READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger")
"""Of what every Docker hides from a container, or lets it only read; `systempaths=unconfined` empties both lists, and no
security option tells of it."""
GATEWAY_FILES = 16384
"""Open files that the gateway asks for: a connection is two."""


@dataclass(frozen=True)
class Told:
    """One container. `inspect` as Docker has it, `process` and `limits` of its first process by the kernel.

    healthcheck: the image's own. root: the mount options of its root file system, as the process sees it.
    memory_max: the kernel's limit in bytes, or `max`; empty where the host has no controller for it.
    cgroups: the file system of the host's control groups. Those of version 1 Docker shares with every container.
    filters: how many filters of system calls (seccomp) every process of the host has; a container's has one more.
    """

    name: str
    inspect: Mapping[str, Any]
    healthcheck: Any = None
    process: Mapping[str, str] | None = None
    limits: Mapping[str, str] | None = None
    root: str = ""
    memory_max: str = ""
    filters: int = 0
    cgroups: str = ""


def script(names: Sequence[str]) -> str:
    """A shell script that prints the sections of each container that exists; it changes nothing."""
    return f"""
s() {{ printf '\\n%s%s %s\\n' "{MARK}" "$1" "$2"; }}
for c in {" ".join(names)}; do
  timeout 60 docker inspect --type container "$c" >/dev/null 2>&1 || continue
  s inspect "$c"; timeout 60 docker inspect --type container --format '{{{{json .}}}}' "$c"
  s healthcheck "$c"; docker image inspect --format '{{{{json .Config.Healthcheck}}}}' "$(docker inspect --format '{{{{.Image}}}}' "$c")"
  p=$(docker inspect --format '{{{{.State.Pid}}}}' "$c"); [ "$p" -gt 0 ] || continue
  s process "$c"; cat "/proc/$p/status"
  s limits "$c"; cat "/proc/$p/limits"
  s root "$c"; awk '$5 == "/" {{print $6}}' "/proc/$p/mountinfo"
  s filters "$c"; awk '$1 == "Seccomp_filters:" {{print $2}}' /proc/1/status
  s cgroups "$c"; stat -fc %T /sys/fs/cgroup
  s memory_max "$c"; cat "/proc/$p/root/sys/fs/cgroup/memory.max" 2>/dev/null
done
:
"""


def parse(output: str) -> dict[str, Told]:
    """What the script told, by container."""
    sections: dict[tuple[str, str], list[str]] = {}
    for line in output.splitlines():
        if line.startswith(MARK):
            name, _, container = line.removeprefix(MARK).partition(" ")
            current = sections.setdefault((container, name), [])
        elif line.strip() and sections:
            current.append(line)

    def text(container: str, name: str) -> str:
        return "\n".join(sections.get((container, name), []))

    return {
        container: Told(
            container,
            json.loads(text(container, "inspect")),
            json.loads(text(container, "healthcheck") or "null"),
            _pairs(r"(\w+):\t(.*)", text(container, "process")),
            _pairs(r"(.+?)\s{2,}(.*)", text(container, "limits")),
            text(container, "root"),
            text(container, "memory_max"),
            int(text(container, "filters") or 0),
            text(container, "cgroups"),
        )
        for container, name in sections
        if name == "inspect"
    }


def _pairs(pattern: str, text: str) -> dict[str, str]:
    return dict(re.findall(rf"^{pattern}$", text, re.M))


def missing(told: Mapping[str, Told], names: Sequence[str]) -> list[Finding]:
    """The containers that do not exist."""
    return [Finding(f"there is no container {name}", "run `make deploy`") for name in names if name not in told]


def running(told: Told) -> list[Finding]:
    """Why a container is not usable now, or would not be after a restart of the host."""
    state, name = told.inspect["State"], told.name
    logs = f"see `make logs` and `docker logs {name}` on the host; then `make restart`"
    if state["Status"] == "paused":
        return [Finding(f"{name} is paused", f"on the host: docker unpause {name}")]
    if state["Status"] != "running":
        why = state.get("Error") or f"exit status {state.get('ExitCode')}"
        killed = ", killed for memory" if state.get("OOMKilled") else ""
        return [Finding(f"{name} is {state['Status']} ({why}{killed})", logs.replace("restart", "start"))]
    found = []
    health = state.get("Health") or {}
    checked = told.inspect["Config"].get("Healthcheck")
    if checked != told.healthcheck:
        problem = (
            f"{name} has another health check than its image: {_command(checked)} for {_command(told.healthcheck)}"
        )
        found.append(Finding(problem, REDEPLOY))
    elif health.get("Status") != "healthy":
        last = ((health.get("Log") or [{}])[-1].get("Output") or "").strip()
        found.append(
            Finding(f"{name} is {health.get('Status', 'without a health check')}: {last or 'no answer yet'}", logs)
        )
    policy = told.inspect["HostConfig"]["RestartPolicy"]["Name"] or "no"
    if policy not in ("unless-stopped", "always"):
        problem = f"{name} has restart policy {policy}: it stays down after a crash or a restart of the host"
        found.append(Finding(problem, REDEPLOY))
    return found


def _command(healthcheck: Any) -> str:
    return " ".join((healthcheck or {}).get("Test") or ["none"])


def restarted(told: Told) -> list[Finding]:
    """That Docker had to start a container again by itself."""
    count = told.inspect.get("RestartCount") or 0
    if not count:
        return []
    problem = f"{told.name} ended by itself and was started again {count} times"
    return [Finding(problem, f"`docker logs {told.name}` and `journalctl -k` on the host tell why; see `make doctor`")]


def deployed(told: Told, image: Mapping[str, str], config: str) -> list[Finding]:
    """Whether a container runs the image and the configuration that the last deploy recorded."""
    found = []
    running_id, label = told.inspect["Image"], told.inspect["Config"]["Labels"].get("atelier.config")
    if not image["id"] or running_id != image["id"]:
        problem = (
            f"{told.name} runs image {running_id[7:19]}, deployed was {image['id'][7:19] or 'none'} ({image['tag']})"
        )
        found.append(Finding(problem, REDEPLOY))
    if label != config:
        found.append(Finding(f"{told.name} was started with configuration {label}, deployed was {config}", REDEPLOY))
    return found


def confinement(told: Told, uid: int) -> list[Finding]:
    """What a container may do that it must not, by its configuration and by the kernel."""
    process, user = told.process or {}, told.inspect["Config"]["User"]
    if not process:
        wrong = f"; it was to run as user {user or 'root'}, not as {uid}" if user != f"{uid}:{uid}" else ""
        return [Finding(f"{told.name} has no process to look at{wrong}", "see `make status`")]
    host, ids = told.inspect["HostConfig"], f"{process['Uid']} {process['Gid']}".split()
    capabilities = {name: process[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")}
    modes = ["NetworkMode", "PidMode", "IpcMode", "UTSMode", "UsernsMode"]
    modes += ["CgroupnsMode"] if told.cgroups == "cgroup2fs" else []
    shared = [name for name in modes if _shares(host.get(name))]
    bare = [path for path in MASKED if path not in (host["MaskedPaths"] or [])]
    loose = [path for path in READ_ONLY if path not in (host["ReadonlyPaths"] or [])]
    sockets = [mount["Source"] for mount in told.inspect["Mounts"] if mount["Source"].endswith(".sock")]
    facts = {
        f"runs as user {user or 'root'} ({' '.join(ids)}), not as {uid}": user == f"{uid}:{uid}"
        and set(ids) == {str(uid)},
        "is in further groups: " + process["Groups"].strip(): set(process["Groups"].split()) <= {str(uid)},
        "is privileged": not host["Privileged"],
        "has a writable root file system": host["ReadonlyRootfs"] and "ro" in told.root.split(","),
        "was given capabilities: " + ", ".join(host["CapAdd"] or []): not host["CapAdd"],
        "keeps Docker's usual capabilities": host["CapDrop"] == ["ALL"],
        "has capabilities by the kernel: " + _told(capabilities): not any(
            int(mask, 16) for mask in capabilities.values()
        ),
        "may gain privileges (no-new-privileges is off)": process["NoNewPrivs"] == "1",
        "has no filter of system calls (seccomp)": int(process["Seccomp_filters"]) > told.filters,
        "has security options " + ", ".join(host["SecurityOpt"] or []): host["SecurityOpt"]
        == ["no-new-privileges:true"],
        "shares " + ", ".join(shared) + " with the host or another container": not shared,
        "sees " + ", ".join(bare) + " of the host": not bare,
        "may write to " + ", ".join(loose) + " of the host": not loose,
        "has devices of the host: " + ", ".join(device["PathOnHost"] for device in host["Devices"] or []): not host[
            "Devices"
        ],
        "holds " + ", ".join(sockets): not sockets,
        "has no init to end what is left over": host["Init"] is True,
    }
    return [Finding(f"{told.name} {what}", REDEPLOY) for what, holds in facts.items() if not holds]


def _shares(mode: str | None) -> bool:
    return bool(mode) and (mode == "host" or str(mode).startswith("container:"))


def _told(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def limits(told: Told, settings: Settings, controllers: frozenset[str]) -> list[Finding]:
    """Limits that are not as the settings have them, by Docker and by the kernel. controllers: the host's, of cgroup v2."""
    host = told.inspect["HostConfig"]
    service = next((each for each in settings.enabled().values() if each.container == told.name), None)
    logs = {"max-size": settings.docker.log_max_size, "max-file": str(settings.docker.log_max_file)}
    log = host["LogConfig"]
    # Docker gives every container the further options of its own settings, which are the host's.
    rotation = {name: value for name, value in (log["Config"] or {}).items() if name in logs}
    wanted: dict[str, tuple[object, object]] = {
        "log driver": (log["Type"], "json-file"),
        "log rotation": (rotation, logs),
        "core dumps": ((told.limits or {}).get("Max core file size", "").split()[:2], ["0", "0"]),
    }
    if service:
        memory = bytes_of(service.memory_limit) if "memory" in controllers else 0
        wanted |= {
            "memory limit": (host["Memory"], memory),
            "CPU limit": (host["NanoCpus"], round((service.cpu_limit or 0) * 1e9) if "cpu" in controllers else 0),
            "size of /dev/shm": (host["ShmSize"], bytes_of(service.shm_size)),
        }
        if memory:
            wanted["memory limit of the kernel"] = (told.memory_max, str(memory))
            # Twice the memory is what Docker gives by default; -1 is no limit.
            both, enough = host["MemorySwap"], f"at most {2 * memory}"
            wanted["limit of memory and swap"] = (enough if memory <= both <= 2 * memory else both, enough)
    else:
        files = (told.limits or {}).get("Max open files", "0").split()[0]
        enough = f"at least {GATEWAY_FILES}"
        wanted["open files"] = (enough if int(files) >= GATEWAY_FILES else files, enough)
    return [
        Finding(f"{told.name}: {what} is {_plain(seen)}, not {_plain(want)}", REDEPLOY)
        for what, (seen, want) in wanted.items()
        if seen != want
    ]


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={value[name]}" for name in sorted(value)) or "none"
    return " ".join(value) if isinstance(value, list) else str(value)


def doors(containers: Sequence[Mapping[str, Any]], settings: Settings) -> list[Finding]:
    """Ports that are published and must not be, or must be and are not. containers: every one that runs, by inspect."""
    gateway = settings.gateway_container
    ours = {service.container for service in settings.enabled().values()}
    wanted = {f"{settings.bind_address}:{port}" for port in settings.published_ports()}
    ports = settings.published_ports()
    found = []
    if gateway not in {_name(container) for container in containers}:
        found.append(Finding(f"{gateway} does not run: nothing is published", "see `make status`; then `make start`"))
    for container in containers:
        name, published = _name(container), _published(container)
        if name == gateway:
            found += [
                Finding(f"{name} publishes {door}, which the settings do not ask for", REDEPLOY)
                for door in sorted(published - wanted)
            ]
            found += [Finding(f"{name} does not publish {door}", REDEPLOY) for door in sorted(wanted - published)]
        elif name in ours and published:
            found.append(
                Finding(f"{name} publishes {', '.join(sorted(published))}, which bypasses the gateway", REDEPLOY)
            )
        elif taken := sorted(door for door in published if _covers(door.rpartition(":")[2], ports)):
            problem = f"container {name} stands in for the gateway at {', '.join(taken)}"
            found.append(Finding(problem, f"on the host: docker rm -f {name}; then run `make deploy`"))
    return found


def _covers(given: str, ports: Collection[int]) -> bool:
    """Whether one of some ports is the one, or in the range, that was given: `8188`, `9000-9005`, or nothing."""
    low, _, high = given.partition("-")
    return low.isdigit() and any(int(low) <= port <= int(high or low) for port in ports)


def _name(inspect: Mapping[str, Any]) -> str:
    return str(inspect["Name"]).lstrip("/")


def _published(inspect: Mapping[str, Any]) -> set[str]:
    """Ports asked for, and ports given: on an internal network Docker gives none, until it is not internal any more."""
    tables = (inspect["HostConfig"].get("PortBindings") or {}, inspect["NetworkSettings"].get("Ports") or {})
    doors = [door for table in tables for given in table.values() for door in given or []]
    return {f"{door['HostIp'] or '0.0.0.0'}:{door['HostPort']}" for door in doors}  # noqa: S104 - what no address means


def networks(found: Mapping[str, Mapping[str, Any]], told: Mapping[str, Told], settings: Settings) -> list[Finding]:
    """Networks that are not closed, or that join what must be apart. found: `docker network inspect` by name."""
    gateway = settings.gateway_container
    own = {service.container: network_name(service.container) for service in settings.enabled().values()}
    findings = []
    for container, name in own.items():
        if name not in found:
            findings.append(Finding(f"there is no network {name}", REDEPLOY))
            continue
        network = found[name]
        if not network["Internal"]:
            findings.append(Finding(f"{name} is not internal: {container} has a way out", REDEPLOY))
        if (network["Options"] or {}).get("com.docker.network.bridge.inhibit_ipv4") != "true":
            findings.append(
                Finding(f"{name} has an address of the host: it reaches {container}, and {container} it", REDEPLOY)
            )
        members = {member["Name"] for member in (network["Containers"] or {}).values()}
        findings += [
            Finding(
                f"{stranger} is on {name} and reaches {container}, bypassing the gateway",
                f"on the host: docker network disconnect -f {name} {stranger}; then run `make deploy`",
            )
            for stranger in sorted(members - {container, gateway})
        ]
    for container, each in told.items():
        wanted = {own[container]} if container in own else {*own.values(), network_name(gateway)}
        attached = set(each.inspect["NetworkSettings"]["Networks"])
        findings += [Finding(f"{container} is not on {name}", REDEPLOY) for name in sorted(wanted - attached)]
        findings += [
            Finding(f"{container} is on {name}, a network that it must not reach", REDEPLOY)
            for name in sorted(attached - wanted)
        ]
    return findings


def ways(name: str, gateway: str, answered: frozenset[str], reached: bool) -> list[Finding]:
    """What an application reaches and must not. gateway: what it must reach, or the probe itself is broken.

    answered: the targets that answered its probe, `NAMES` where it resolves the gateway's name, `DNS` any other's.
    reached: whether the host reaches the application, bypassing the gateway.
    """
    lost = [target for target in (gateway, "NAMES") if target not in answered]
    if lost:
        problem = (
            f"the probe in {name} does not reach {', '.join(lost)}, so that it reaches nothing else proves nothing"
        )
        return [Finding(problem, "see `make status` and `docker network inspect` on the host; then `make deploy`")]
    remedy = f"a network of {name} has a way out: `docker network inspect` on the host; then `make deploy`"
    found = [
        Finding(f"{name} {'resolves names of the internet' if target == 'DNS' else f'reaches {target}'}", remedy)
        for target in sorted(answered - {gateway, "NAMES"})
    ]
    if reached:
        problem = f"the host reaches {name}, bypassing the gateway"
        found.append(Finding(problem, f"a network of {name} has an address of the host; run `make deploy`"))
    return found


NOTABLE = (
    "IMPORT FAILED|Cannot import|ModuleNotFoundError|[*][*][*] Error loading script|Successfully installed"
    "|unet missing: [[]"
)
"""Extended regular expression, without backslashes for awk's sake, for what no log of a start may hold."""
STARTED = {
    "comfyui": "(^| )Starting server$",
    "forge": "^(atelier: the logins are in force|Startup time: )",
    "gateway": ".",
}
"""By service, the line with which its start ends: it is there before the health check can succeed. What a log says after
that is of the work of its users.

The gateway imports nothing that it can do without, and logs what strangers ask for: its log must only be written.
"""


def log_script(marks: Mapping[str, str]) -> str:
    """A shell script that prints the notable lines of each container's start, and how it came to the end of them.

    marks: expressions of STARTED by container. Of one that is not well, it looks at all since it was made: one that starts
    again and again is met before it says why.
    """
    began = '{{if and .State.Health (eq .State.Health.Status "healthy")}}up {{.State.StartedAt}}{{else}}ill {{.Created}}{{end}}'
    looks = "\n".join(f"look {name} {shlex.quote(mark)}" for name, mark in marks.items())
    return f"""
look() {{
  s=$(docker inspect --type container --format {shlex.quote(began)} "$1") || return
  case $s in up*) m=$2 ;; *) m= ;; esac
  echo "{MARK}${{s%% *}} $1"
  {{ timeout 60 docker logs --since "${{s#* }}" "$1" 2>&1; printf '\\n%s' $?; }} |
    LC_ALL=C awk -v m="$m" -v n={shlex.quote(NOTABLE)} '
      m != "" && $0 ~ m {{ started = 1; exit }}
      $0 ~ n && k < 5 {{ k++; print "| " $0 }}
      /./ {{ lines++; last = $0 }}
      END {{ if (started) print "started"; else print "ended", last, lines - 1 }}'
}}
{looks}
:
"""


@dataclass(frozen=True)
class Start:
    """The log of a container's start: its notable lines, and how the look at it ended, `started` or `ended STATUS LINES`.

    up: whether the container is well now, so that there was an end of its start.
    """

    up: bool
    lines: tuple[str, ...]
    end: str


def starts(output: str) -> dict[str, Start]:
    """What the script told, by container."""
    found = {}
    for section in output.split(MARK)[1:]:
        head, *lines, end = section.splitlines() if "\n" in section.strip() else (section.strip(), "")
        state, _, name = head.partition(" ")
        found[name] = Start(state == "up", tuple(line.removeprefix("| ").strip() for line in lines), end)
    return found


def notable(told: Mapping[str, Start], names: Sequence[str]) -> list[Finding]:
    """What the logs tell of. One that cannot be read, or holds nothing, must not look like a clean one."""
    found = []
    for name in names:
        start = told.get(name, Start(False, (), ""))
        if start.end != "started" and (why := _unwritten(start.end)):
            remedy = f"see `docker logs {name}` on the host, and the log driver in /etc/docker/daemon.json; then `make deploy`"
            found.append(Finding(f"the log of {name} {why}", remedy))
        if start.lines and (start.end == "started" or not start.up):
            problem = f"{name}: {' | '.join(start.lines)}"
            remedy = (
                "the line names what is missing or was installed at start; `make deploy` builds what an image lacks"
            )
            found.append(Finding(problem, remedy))
    return found


def _unwritten(end: str) -> str:
    """Why a log that does not tell of the end of a start tells nothing else either; empty where it does."""
    _, _, rest = end.partition(" ")
    status, _, lines = rest.partition(" ")
    if status == "124":
        return "cannot be read within 60 s: a time-out"
    if status != "0":
        return "cannot be read"
    return "" if int(lines) else "is empty since its start"


def unseen(told: Mapping[str, Start]) -> list[Finding]:
    """Starts of which the log does not tell any more: what failed then would not be noticed."""
    return [
        Finding(
            f"the log of {name} does not go back to its start",
            "it was rotated since, as a long one is: its next start is looked at again (`make restart`, when nobody is at work)",
        )
        for name, start in told.items()
        if start.up and start.end.startswith("ended 0 ") and not start.end.endswith(" 0")
    ]
