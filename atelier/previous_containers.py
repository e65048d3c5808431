"""Which containers on a host are a previous stack's, and where that was put together. Pure.

A previous stack is what somebody made by hand before this project: a folder a service with a compose file, below
`docker-configurations/services/`, beside `shared/models` and `shared/outputs`.
"""

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atelier.displacement import SUFFIX
from atelier.errors import Finding
from atelier.settings import Settings

OUR_LABEL = "atelier.config"
FOLDER = "docker-configurations/services"
"""Below a root of the previous stack: one folder a service, with its compose file."""
OWN_PORTS = {"comfyui": 8188, "forge": 7860}
"""Those that the applications listen on inside their containers."""
FORMER_PORTS = {17861: "forge"}
"""Of the host, where the previous stack published something else than is usual."""
MARK = "::previous::"
_HINTS = {"comfyui": ("comfy", "qwen"), "forge": ("forge", "turbo", "webui")}
_PLACES = ("/home/*/", "/home/*/*/", "/root/", "/root/*/", "/opt/", "/opt/*/", "/srv/", "/srv/*/")


@dataclass(frozen=True)
class Mount:
    """A directory of the host, and where a container has it."""

    source: str
    target: str


@dataclass(frozen=True)
class Seen:
    """A container on the host, whoever made it. published: (port of the host, port inside)."""

    id: str
    name: str
    image: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    running: bool = True
    restart: str = "no"
    leaves_nothing: bool = False
    """It was started with --rm."""
    published: tuple[tuple[int, int], ...] = ()
    mounts: tuple[Mount, ...] = ()
    gpu: bool = False
    networks: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The directory of the compose file that it was made from."""
        return self.labels.get("com.docker.compose.project.working_dir", "")


@dataclass(frozen=True)
class Listing:
    """What the host has. folders: those that look like a previous stack's, by root."""

    containers: tuple[Seen, ...] = ()
    folders: tuple[str, ...] = ()


_TEMPLATE = (
    '{"id":{{json .Id}},"name":{{json .Name}},"image":{{json .Config.Image}},"labels":{{json .Config.Labels}},'
    '"running":{{json .State.Running}},"restart":{{json .HostConfig.RestartPolicy}},"rm":{{json .HostConfig.AutoRemove}},'
    '"ports":{{json .HostConfig.PortBindings}},"mounts":{{json .Mounts}},"requests":{{json .HostConfig.DeviceRequests}},'
    '"devices":{{json .HostConfig.Devices}},"runtime":{{json .HostConfig.Runtime}},'
    '"networks":{{json .NetworkSettings.Networks}},"visible":"{{range .Config.Env}}{{$p := split . "="}}'
    '{{if eq (index $p 0) "NVIDIA_VISIBLE_DEVICES"}}{{index $p 1}}{{end}}{{end}}"}'
)
"""Of the environment nothing else: tokens and passwords are in it."""


def script() -> str:
    """A POSIX shell script that prints every container, and the folders that look like a previous stack's."""
    folders = " ".join(f"{place}{FOLDER}" for place in _PLACES)
    return f"""
echo {MARK}containers
if command -v docker >/dev/null; then
  timeout 60 docker ps -aq --no-trunc 2>/dev/null | xargs -r docker inspect --type container --format {shlex.quote(_TEMPLATE)} 2>/dev/null
fi
echo {MARK}folders; ls -d {folders} 2>/dev/null
:
"""


def sections(output: str) -> dict[str, list[str]]:
    """What a script printed below each line that begins with MARK."""
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith(MARK):
            current = found.setdefault(line.removeprefix(MARK), [])
        elif found:
            current.append(line)
    return found


def parse(output: str) -> Listing:
    """What `script` printed."""
    told = sections(output)
    return Listing(
        tuple(_seen(json.loads(line)) for line in told.get("containers", []) if line.startswith("{")),
        tuple(line.removesuffix(f"/{FOLDER}") for line in told.get("folders", [])),
    )


def _seen(told: Mapping[str, Any]) -> Seen:
    policy = told["restart"] or {}
    name, count = policy.get("Name") or "no", policy.get("MaximumRetryCount") or 0
    bindings = [(inner, each) for inner, every in (told["ports"] or {}).items() for each in every or ()]
    devices = [str(path) for each in told["devices"] or () for path in each.values()]
    return Seen(
        told["id"],
        told["name"].lstrip("/"),
        told["image"],
        told["labels"] or {},
        told["running"],
        f"{name}:{count}" if name == "on-failure" and count else name,
        told["rm"],
        tuple(
            (int(each["HostPort"]), int(inner.partition("/")[0]))
            for inner, each in bindings
            if each["HostPort"].isdigit()
        ),
        tuple(
            Mount(each["Source"], posixpath.normpath(each["Destination"]))
            for each in told["mounts"] or ()
            if each["Type"] in ("bind", "volume") and each.get("Source")
        ),
        bool(told["requests"])
        or told["runtime"] == "nvidia"
        or told["visible"] not in ("", "void", "none")
        or any(path.startswith("/dev/nvidia") for path in devices),
        tuple(sorted(told["networks"] or {})),
    )


@dataclass(frozen=True)
class Suspects:
    """What belongs to a previous stack: its containers, each with why and whose service, and its roots."""

    containers: tuple[tuple[Seen, str, str], ...] = ()
    roots: tuple[str, ...] = ()
    obstacles: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def suspects(listing: Listing, settings: Settings, root: str = "") -> Suspects:
    """Which containers and directories are a previous stack's. root: what FROM names."""
    chosen = tuple(
        (each, service_of(each), why) for each in listing.containers if (why := reason(each, settings, root))
    )
    roots = list(
        dict.fromkeys([*([root] if root else []), *(each for seen, _, _ in chosen for each in _roots_of(seen))])
    )
    unnamed = [folder for folder in listing.folders if folder not in roots]
    return Suspects(
        chosen,
        tuple(roots),
        (*_obstacles([seen for seen, _, _ in chosen]), *_namesakes(listing, chosen, settings)),
        tuple(
            f"{folder} looks like a previous stack that no container comes from: FROM={folder} takes over what is in it"
            for folder in unnamed
        ),
    )


def reason(seen: Seen, settings: Settings, root: str = "") -> str:
    """Why a container is a previous stack's; empty where it is not, such as one of ours or of somebody else's."""
    if OUR_LABEL in seen.labels:
        return ""
    services = settings.enabled()
    names = {service.container for service in services.values()}
    if seen.name.removesuffix(SUFFIX) in names:
        return f"ours gets the name {seen.name.removesuffix(SUFFIX)}"
    if root and any(is_below(path, root) for path in (seen.folder, *(mount.source for mount in seen.mounts))):
        return f"it belongs to {root}"
    if f"/{FOLDER}/" in f"{seen.folder}/":
        return f"it was made in {seen.folder}"
    ours = {service.port: name for name, service in services.items()} | FORMER_PORTS
    for port, inside in seen.published:
        # Any other program there is somebody else's; preflight names the port.
        if port in ours and inside == OWN_PORTS[ours[port]]:
            return f"it publishes port {port}"
    models = next((mount.source for mount in seen.mounts if "/shared/models/" in f"{mount.source}/"), "")
    return f"it uses a GPU and has {models}" if seen.gpu and models else ""


def service_of(seen: Seen) -> str:
    """Whose place a container has: `comfyui`, `forge`, or empty where nothing tells."""
    for text in (seen.name, posixpath.basename(seen.folder), seen.image):
        for service, hints in _HINTS.items():
            if any(hint in text.lower() for hint in hints):
                return service
    inside = {port for _, port in seen.published}
    return next((service for service, port in OWN_PORTS.items() if port in inside), "")


def is_below(path: str, root: str) -> bool:
    """Whether a path is a directory or lies in it."""
    return path == root or path.startswith(f"{root.rstrip('/')}/")


def _roots_of(seen: Seen) -> Iterator[str]:
    root, separator, _ = f"{seen.folder}/".partition(f"/{FOLDER}/")
    if separator:
        yield root
    for mount in seen.mounts:
        shared = re.match(r"(/.+)/shared/(models|outputs)(/|$)", mount.source)
        if shared:
            yield shared[1]


def _obstacles(going: Sequence[Seen]) -> Iterator[Finding]:
    for each in going:
        if each.leaves_nothing:
            yield Finding(
                f"{each.name} was started with --rm: stopped it is gone, and could not come back",
                f"docker stop {each.name}, where nobody needs it any more",
            )


def _namesakes(listing: Listing, chosen: Sequence[tuple[Seen, str, str]], settings: Settings) -> Iterator[Finding]:
    """A previous stack had no gateway: whatever has that name is somebody else's."""
    name, going = settings.gateway_container, {seen.id for seen, _, _ in chosen}
    for each in listing.containers:
        if each.name == name and OUR_LABEL not in each.labels and each.id not in going:
            yield Finding(
                f"a container is called {name}, which is to be the gateway's name, and is somebody else's",
                f"set gateway_container to another name, or rename that one: docker rename {name} NAME",
            )
