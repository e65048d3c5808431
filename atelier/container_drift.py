"""Drift of containers: what of one is not as its compose file and its image say, and what was changed inside it. Pure."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from atelier.errors import Finding
from atelier.render import Project
from atelier.settings import bytes_of
from atelier.tree import File

MARK = "::drift::"
UNDECLARED = {
    "CapAdd": "added capabilities",
    "Devices": "devices",
    "DeviceCgroupRules": "rules for devices",
    "Dns": "name servers",
    "DnsSearch": "search domains",
    "ExtraHosts": "extra hosts",
    "GroupAdd": "added groups",
    "Links": "links",
    "Sysctls": "kernel settings",
    "VolumesFrom": "volumes of other containers",
    "Privileged": "privileges",
    "PublishAllPorts": "all its ports published",
    "AutoRemove": "an end that removes it",
    "CpuShares": "CPU shares",
    "CpuQuota": "a CPU quota",
    "CpuPeriod": "a CPU period",
    "CpuRealtimePeriod": "a real-time CPU period",
    "CpuRealtimeRuntime": "real-time CPU",
    "CpusetCpus": "CPUs of its own",
    "CpusetMems": "memory nodes of its own",
    "BlkioWeight": "an I/O weight",
    "BlkioWeightDevice": "I/O weights",
    "BlkioDeviceReadBps": "a limit of reading",
    "BlkioDeviceReadIOps": "a limit of reads",
    "BlkioDeviceWriteBps": "a limit of writing",
    "BlkioDeviceWriteIOps": "a limit of writes",
    "CgroupParent": "another control group",
    "OomScoreAdj": "another place in the order of killing",
    "OomKillDisable": "no killing for memory",
}
"""What `docker run` and `docker update` can give a container, and no compose file of ours does: key of HostConfig, in words."""
GPU_FILES = re.compile(
    r"/(usr/)?(local/)?lib(32|64)?/([a-z0-9_]+-linux-gnu/)?([^/]*(nvidia|cuda|libnv|gl|vulkan|opencl)[^/]*|(vdpau|gbm|nvidia)/.*)"
    r"|/etc/(ld\.so[^/]*|(vulkan|glvnd|OpenCL|egl|nvidia)(/.*)?)|/usr/share/(nvidia|vulkan|glvnd|egl)(/.*)?"
    r"|/(usr/)?bin/nvidia-[^/]*|/usr/lib/simulated-gpu/.*|/(var/)?run/nvidia[^/]*(/.*)?|/dev/.*",
    re.I,
)
"""In a container with a GPU the hooks of its CDI specification make these: links of libraries, and the linker's cache."""

INIT = ("/sbin/docker-init", "/usr/sbin/docker-init")
"""Where Docker mounts its init; it makes an empty file for that."""


def script(projects: Iterable[Project]) -> str:
    """Shell that prints the containers that exist, their images, and what changed inside each since it was made."""
    containers = " ".join(project.container for project in projects)
    # `docker diff` reads every file of the image, which takes seconds (moby 39428); what changed lies in the upper layer.
    return f"""
exec 2>/dev/null
of() {{ docker inspect --type container "$@" {containers}; }}
echo {MARK}containers; of
echo {MARK}images; docker image inspect $(of --format '{{{{.Image}}}}' | sort -u)
of --format '{{{{.Name}}}} {{{{.State.Pid}}}} {{{{with .GraphDriver}}}}{{{{.Data.UpperDir}}}}{{{{end}}}}' | while read -r c pid u; do
  echo "{MARK}${{c#/}}"
  [ -d "$u" ] || u=$(awk '$5 == "/"' "/proc/$pid/mountinfo" | sed -n 's/.*[ ,]upperdir=\\([^, ]*\\).*/\\1/p')
  if [ -d "$u" ]; then find "$u" -mindepth 1 -printf '%y /%P\\n'; else docker diff "${{c#/}}"; fi
  awk '{{print "m " $5}}' "/proc/$pid/mountinfo"
done
:
"""


@dataclass(frozen=True)
class Told:
    """One container: `docker inspect`, its image's configuration, and changes.

    Those are the paths in its own layer, each after find's %y or docker's A, C, D; and after `m`, where something is mounted.
    """

    inspect: Mapping[str, Any]
    image: Mapping[str, Any]
    changes: Sequence[str]


def parse(output: str) -> dict[str, Told]:
    """What the script told, by container."""
    sections: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith(MARK):
            current = sections.setdefault(line.removeprefix(MARK), [])
        elif line.strip() and sections:
            current.append(line)

    def documents(name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads("\n".join(sections.get(name, [])) or "[]")
        return found

    images = {image["Id"]: image["Config"] for image in documents("images")}
    return {
        name: Told(container, images.get(container["Image"], {}), sections.get(name, []))
        for container in documents("containers")
        if (name := container["Name"].lstrip("/"))
    }


@dataclass(frozen=True)
class Declared:
    """A container by its compose file, values put in. `networks`: names by the file's own words for them."""

    service: Mapping[str, Any]
    networks: Mapping[str, str]


def declared(project: Project) -> Declared:
    """The container of a project, from its rendered files."""
    texts = {
        PurePosixPath(entry.path).name: entry.content.decode() for entry in project.entries if isinstance(entry, File)
    }
    document = _with_values(yaml.safe_load(texts["compose.yaml"]), variables(texts[".env"]))
    networks = {word: network["name"] for word, network in document["networks"].items()}
    return Declared(document["services"][project.container], networks)


def variables(env: str) -> dict[str, str]:
    """Values by name from an .env file as we render it."""
    rows = (line.partition("=") for line in env.splitlines() if line and not line.startswith("#"))
    return {name: re.sub(r"\\(.)", r"\1", value[1:-1]) for name, _, value in rows}


def _with_values(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], value)
    if isinstance(value, dict):
        return {key: _with_values(each, values) for key, each in value.items()}
    return [_with_values(each, values) for each in value] if isinstance(value, list) else value


def containers(projects: Iterable[Project], told: Mapping[str, Told]) -> list[Finding]:
    """What of the containers is not as declared."""
    found: list[Finding] = []
    for project in projects:
        name = project.container
        if name not in told:
            found.append(Finding(f"there is no container {name}", "run `make deploy`"))
            continue
        again = f"on the host: cd {project.directory} && docker compose up -d --force-recreate"
        if told[name].inspect["Config"]["Labels"].get("atelier.config") != project.config:
            again = "run `make deploy`, which makes it anew"
        wrong = [*configuration(declared(project), told[name]), *changed_inside(told[name])]
        found += [Finding(f"{name}: {problem}", again) for problem in wrong]
    return found


def configuration(wanted: Declared, told: Told) -> list[str]:
    """How a container's configuration differs from its compose file and its image."""
    service, host, own = wanted.service, told.inspect["HostConfig"], told.inspect["Config"]
    image = told.image
    log = service["logging"]
    # Docker gives every container the further options of its own settings, which are the host's.
    options = {name: value for name, value in (host["LogConfig"]["Config"] or {}).items() if name in log["options"]}
    limits = {
        "memory limit": bytes_of(service.get("mem_limit")),
        "CPU limit": round(float(service.get("cpus", 0)) * 1e9),
    }
    facts: dict[str, tuple[Any, Any]] = {
        "image": (own["Image"], service["image"]),
        "user": (own["User"], service["user"]),
        "name of its host": (own["Hostname"], service["hostname"]),
        "command": (own.get("Cmd"), service.get("command", image.get("Cmd"))),
        "entrypoint": (own.get("Entrypoint"), image.get("Entrypoint")),
        "working directory": (own.get("WorkingDir") or "/", image.get("WorkingDir") or "/"),
        "health check": (own.get("Healthcheck"), image.get("Healthcheck")),
        "seconds to stop": (own.get("StopTimeout"), int(service["stop_grace_period"].removesuffix("s"))),
        "restart policy": (host["RestartPolicy"]["Name"] or "no", service["restart"]),
        "log driver": (host["LogConfig"]["Type"], log["driver"]),
        "log options": (options, log["options"]),
        "memory limit": (host["Memory"], limits["memory limit"]),
        "CPU limit": (host["NanoCpus"], limits["CPU limit"]),
        "limit of processes": (max(host.get("PidsLimit") or 0, 0), 0),
        "root file system": (_root(host["ReadonlyRootfs"]), _root(service["read_only"])),
        "init": (bool(host["Init"]), service["init"]),
        "dropped capabilities": (host["CapDrop"] or [], service["cap_drop"]),
        "security options": (host["SecurityOpt"] or [], service["security_opt"]),
    }
    if "shm_size" in service:
        facts["size of /dev/shm"] = (host["ShmSize"], bytes_of(service["shm_size"]))
    problems = [
        f"its {what} is {_plain(seen)} and must be {_plain(must)}"
        for what, (seen, must) in facts.items()
        if seen != must
    ]
    problems += _sets("mount", {_mount(mount) for mount in told.inspect["Mounts"]}, _mounts(service))
    problems += _sets("tmpfs", {f"{at}:{how}" for at, how in (host["Tmpfs"] or {}).items()}, {*service["tmpfs"]})
    problems += _sets("port", _bindings(host["PortBindings"]), _ports(service))
    problems += _sets("network", {*told.inspect["NetworkSettings"]["Networks"]}, {*wanted.networks.values()})
    problems += _sets("GPU", _devices(host), _reservations(service))
    problems += _variables(own.get("Env") or [], image.get("Env") or [], service.get("environment", {}))
    return problems + [f"it has {what}, which nothing declares" for key, what in UNDECLARED.items() if host.get(key)]


def _root(read_only: bool) -> str:
    return "read-only" if read_only else "writable"


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else str(value)


def _sets(what: str, seen: Collection[str], must: Collection[str]) -> list[str]:
    more = [f"its {what} {each} is not declared" for each in sorted({*seen} - {*must})]
    return [f"it lacks the {what} {each}" for each in sorted({*must} - {*seen})] + more


def _mount(mount: Mapping[str, Any]) -> str:
    source = mount.get("Source") or mount.get("Name") or ""
    return f"{source} at {mount['Destination']} ({'writable' if mount['RW'] else 'read-only'})"


def _mounts(service: Mapping[str, Any]) -> set[str]:
    return {
        _mount({"Source": each["source"], "Destination": each["target"], "RW": not each.get("read_only")})
        for each in service["volumes"]
    }


def _bindings(bindings: Mapping[str, Sequence[Mapping[str, str]]] | None) -> set[str]:
    return {
        f"{each['HostIp'].strip('[]')}:{each['HostPort']} to {inside.removesuffix('/tcp')}"
        for inside, doors in (bindings or {}).items()
        for each in doors or []
    }


def _ports(service: Mapping[str, Any]) -> set[str]:
    rows = (port.rsplit(":", 2) for port in service.get("ports", []))
    return {f"{address.strip('[]')}:{outside} to {inside}" for address, outside, inside in rows}


def _devices(host: Mapping[str, Any]) -> set[str]:
    return {device for request in host.get("DeviceRequests") or [] for device in request.get("DeviceIDs") or ["all"]}


def _reservations(service: Mapping[str, Any]) -> set[str]:
    resources = service.get("deploy", {}).get("resources", {}).get("reservations", {})
    return {device for request in resources.get("devices", []) for device in request["device_ids"]}


def _variables(seen: Sequence[str], image: Sequence[str], service: Mapping[str, str]) -> list[str]:
    """Differences of the environment by name: a value may be a secret that somebody put there."""
    must = dict(text.split("=", 1) for text in image) | {name: str(value) for name, value in service.items()}
    there = dict(text.partition("=")[::2] for text in seen)
    problems = _sets("variable", there.keys(), must.keys())
    return problems + [f"its variable {name} differs" for name in must if there.get(name, must[name]) != must[name]]


def changed_inside(told: Told) -> list[str]:
    """Files that were changed in a container since it was made: its root file system is read-only to itself."""
    host = told.inspect["HostConfig"]
    rows = [line.split(" ", 1) for line in told.changes]
    mounts = {path for kind, path in rows if kind == "m"} | {mount["Destination"] for mount in told.inspect["Mounts"]}
    mounts |= {*(host["Tmpfs"] or {}), *INIT}
    gpu = bool(_devices(host))
    paths = {path: kind for kind, path in rows if kind != "m"}
    removed = {"c": "was removed", "D": "was removed"}
    # A folder is told by what lies in it; Docker makes those that it mounts something on.
    folders = {str(folder) for path in (*paths, *mounts) for folder in PurePosixPath(path).parents}
    expected = folders | mounts
    strays = [path for path in paths if path not in expected and not (gpu and GPU_FILES.fullmatch(path))]
    more = [f"and {len(strays) - 5} files more were changed inside it"] if len(strays) > 5 else []
    return [
        f"{path} {removed.get(paths[path], 'was added or changed')} inside it" for path in sorted(strays)[:5]
    ] + more
