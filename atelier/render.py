"""Rendering: from settings, credentials and image tags to the exact files of each compose project.

Pure: nothing is read but the templates, nothing is written. What a container must be recreated for is in its
CONFIG_FINGERPRINT, which covers its rendered files and its secrets, so a change concerns no other service.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from atelier import paths
from atelier.certificates import Certificate
from atelier.credentials import Credentials
from atelier.settings import ServiceSettings, Settings
from atelier.tree import Directory, Entry, File

INTERNAL_PORTS = {"comfyui": 8188, "forge": 7860}
COOKIE_KEY_EXPIRES = "2999-01-01T00:00:00"
"""ComfyUI-Login replaces a key older than 30 days, and serves everything when it cannot (facts: comfyui.md)."""
LOOPBACK_RULE = "PREROUTING ! -i lo -d 127.0.0.0/8 -j DROP"
DOOR = "atelier-door"
"""The bridge of the gateway's own network, named so that a rule can name it."""
DIRECT_RULE = f"FORWARD ! -i {DOOR} -o {DOOR} -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
"""Drops what is forwarded to the gateway's container and was not sent to a published port."""


GUARD_RULES = (f"raw {LOOPBACK_RULE}", f"mangle {DIRECT_RULE}")
"""Table and rule of everything that the loopback guard drops."""


def env_value(value: object) -> str:
    """A value for a compose `.env` file that arrives byte for byte: double quotes, with `\\`, `"` and `$` escaped.

    Raises ValueError for a line break or NUL, which no `.env` can carry alike in every parser.
    """
    text = str(value)
    if any(character in text for character in "\n\r\0"):
        raise ValueError("an .env value cannot hold a line break or NUL")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'


def environment() -> jinja2.Environment:
    """Jinja2 that refuses undefined names; JSON and YAML are not HTML, so nothing is escaped for that."""
    return _environment(paths.PROJECT / "templates")


@functools.cache
def _environment(templates: Path) -> jinja2.Environment:
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701
    )
    jinja.filters["env_value"] = env_value
    return jinja


@dataclass(frozen=True)
class Network:
    """A Docker network that the deploy creates. An internal one has no address of the host on it.

    way_out: whether the internet can be reached from it.
    """

    name: str
    internal: bool
    way_out: bool = False

    def options(self) -> dict[str, str]:
        """Options of the bridge driver."""
        bridge = "com.docker.network.bridge"
        if self.internal:
            return {f"{bridge}.inhibit_ipv4": "true"}
        return {f"{bridge}.enable_ip_masquerade": str(self.way_out).lower(), f"{bridge}.name": DOOR}

    def create_command(self) -> str:
        """The command that creates it."""
        options = " ".join(f"--opt {name}={value}" for name, value in self.options().items())
        return f"docker network create --label atelier=1 {'--internal ' if self.internal else ''}{options} {self.name}"

    def signature(self) -> str:
        """What `docker network inspect --format '{{.Name}} {{.Internal}} {{json .Options}}'` says of it."""
        return f"{self.name} {str(self.internal).lower()} {json.dumps(self.options(), separators=(',', ':'))}"


@dataclass(frozen=True)
class Project:
    """One compose project on the host. `config` is what the running container's label `atelier.config` must be."""

    service: str
    container: str
    directory: str
    config: str
    entries: tuple[Entry, ...]
    networks: frozenset[str]

    def judge(
        self, image: str, containers: Iterable[str]
    ) -> Literal["as declared", "to be started", "to be made again"]:
        """What to do about the container, from lines of name, `atelier.config`, image, networks and status.

        One that compose would leave alone although it is ill, or hangs on the wrong networks, has to be made again.
        """
        for line in containers:
            name, _, rest = line.partition(" ")
            if name != self.container:
                continue
            config, tag, networks, status = ([*rest.split(" ", 3), "", "", ""])[:4]
            if (config, tag) != (self.config, image):
                return "to be started"
            if set(networks.split(",")) != self.networks or re.search(r"\(unhealthy\)|Restarting|Paused", status):
                return "to be made again"
            return "as declared" if status.endswith("(healthy)") else "to be started"
        return "to be started"


def network_name(container: str) -> str:
    """The network of one container."""
    return f"atelier-{container}"


def project_name(container: str) -> str:
    """The compose project of one container: named as nobody names one by hand.

    Compose takes every container of a project's name for its own, whatever that container is called by now: one of a stack
    that was here before would be destroyed, not stepped aside from.
    """
    return f"atelier-{container}"


def networks(settings: Settings) -> tuple[Network, ...]:
    """One internal network for each application, and the gateway's own, which publishes its ports.

    The gateway talks to the internet only where it fetches its certificates there.
    """
    internal = tuple(Network(network_name(service.container), True) for service in settings.enabled().values())
    way_out = settings.tls.mode == "acme"
    return (*internal, Network(network_name(settings.gateway_container), False, way_out))


def secret_files(
    settings: Settings, credentials: Credentials, certificate: Certificate | None = None
) -> dict[str, tuple[Entry, ...]]:
    """For each container, its directory of secrets and the files in it, readable by the service user alone."""
    owner = settings.service_user
    contents: dict[str, dict[str, str]] = {
        settings.gateway_container: {"credentials.json": json.dumps(_hashes(settings, credentials))}
    }
    if certificate:
        contents[settings.gateway_container] |= {"tls.crt": certificate.chain, "tls.key": certificate.key}
    for name, service in settings.enabled().items():
        contents[service.container] = _service_secrets(name, credentials)
    return {
        container: (
            Directory(secrets_path(settings, container), 0o500, owner),
            *(
                File(f"{secrets_path(settings, container)}/{name}", text.encode(), 0o400, owner)
                for name, text in files.items()
            ),
        )
        for container, files in contents.items()
    }


def secrets_path(settings: Settings, container: str) -> str:
    """Where a container's secrets lie on the host."""
    return f"{settings.config_root}/secrets/{container}"


def _hashes(settings: Settings, credentials: Credentials) -> dict[str, dict[str, str]]:
    accounts = {"comfyui": credentials.comfyui, "forge": credentials.forge}
    return {name: accounts[name].model_dump(include={"user", "password_bcrypt"}) for name in settings.enabled()}


def _service_secrets(name: str, credentials: Credentials) -> dict[str, str]:
    if name == "comfyui":
        return {
            "PASSWORD": f"{credentials.comfyui.password_bcrypt}\n{credentials.comfyui.user}",
            ".secret-key.txt": f"{credentials.comfyui_cookie_key},{COOKIE_KEY_EXPIRES}",
        }
    return {"auth.json": json.dumps(credentials.forge.model_dump(include={"user", "password_bcrypt"}))}


def projects(
    settings: Settings,
    credentials: Credentials,
    images: Mapping[str, str],
    controllers: frozenset[str],
    gpus: Mapping[str, str],
    certificate: Certificate | None = None,
    acme_roots: str = "",
) -> tuple[Project, ...]:
    """The compose projects in the order in which they start; the gateway is the last.

    images: tag by service name and `gateway`. controllers: cgroup v2 controllers of the host. gpus: CDI device by service.
    acme_roots: certificates (PEM) by which the gateway knows the ACME server.
    """
    secrets = secret_files(settings, credentials, certificate)
    applications = tuple(
        _application(settings, name, service, images[name], controllers, gpus.get(name), secrets[service.container])
        for name, service in settings.enabled().items()
    )
    return (*applications, _gateway(settings, images["gateway"], secrets[settings.gateway_container], acme_roots))


def _application(
    settings: Settings,
    name: str,
    service: ServiceSettings,
    image: str,
    controllers: frozenset[str],
    gpu: str | None,
    secrets: tuple[Entry, ...],
) -> Project:
    limits = {
        "memory": service.memory_limit if "memory" in controllers else None,
        "cpu": service.cpu_limit if "cpu" in controllers else None,
    }
    variables = _common_variables(settings, service.container, image) | {
        "SHM_SIZE": service.shm_size,
        "MODELS_DIR": settings.models_path(),
        "OUTPUTS_DIR": settings.outputs_path(name),
        "USERS_DIR": settings.users_path(name),
        **({"MEMORY_LIMIT": limits["memory"]} if limits["memory"] else {}),
        **({"CPU_LIMIT": limits["cpu"]} if limits["cpu"] else {}),
        **({"GPU_DEVICE": gpu} if gpu else {}),
    }
    template = environment().get_template(f"services/{name}/compose.yaml.j2")
    compose = template.render(
        project_name=project_name(service.container),
        service=service,
        limits=limits,
        gpu=gpu,
        cpu=settings.profile != "gpu",
    )
    return _project(settings, name, service.container, compose, variables, secrets, ())


def _gateway(settings: Settings, image: str, secrets: tuple[Entry, ...], acme_roots: str) -> Project:
    container = settings.gateway_container
    gateway = {
        "applications": [
            {
                "name": service.container,
                "kind": name,
                "upstream": f"{service.container}:{INTERNAL_PORTS[name]}",
                "port": INTERNAL_PORTS[name],
                "network": network_name(service.container),
                "allow_query_token": settings.allow_query_token,
            }
            for name, service in settings.enabled().items()
        ],
        "tls": settings.tls.model_dump(),
        "trusted_proxies": settings.trusted_proxies,
        "cors_origins": settings.cors_origins,
        "max_body_mb": settings.max_upload_mb,
    }
    directory = f"{settings.config_root}/services/{container}/config"
    jinja = environment()
    config = tuple(
        File(
            f"{directory}/{name}",
            jinja.get_template(f"services/gateway/config/{name}.j2").render(gateway=gateway).encode(),
        )
        for name in ("Caddyfile", "guard.json")
    )
    if acme_roots:
        config += (File(f"{directory}/acme-roots.crt", acme_roots.encode()),)
    # What the ACME server gave, so that a container made anew does not ask for it again.
    kept = (Directory(acme_storage(settings), 0o700, settings.service_user),) if settings.tls.mode == "acme" else ()
    ports = {f"{name.upper()}_PORT": str(service.port) for name, service in settings.enabled().items()}
    variables = _common_variables(settings, container, image) | {
        "BIND_ADDRESS": f"[{settings.bind_address}]" if ":" in settings.bind_address else settings.bind_address,
        "CONFIG_DIR": directory,
        **({"ACME_DIR": acme_storage(settings)} if kept else {}),
        **ports,
    }
    template = jinja.get_template("services/gateway/compose.yaml.j2")
    compose = template.render(project_name=project_name(container), container=container, gateway=gateway)
    further = (Directory(directory), *config, *kept)
    return _project(settings, "gateway", container, compose, variables, secrets, further)


def acme_storage(settings: Settings) -> str:
    """Where the gateway keeps what an ACME server gave it."""
    return f"{settings.state_dir()}/acme"


def _common_variables(settings: Settings, container: str, image: str) -> dict[str, str]:
    return {
        "IMAGE": image,
        "SERVICE_UID": str(settings.service_uid),
        "NETWORK": network_name(container),
        "SECRETS_DIR": secrets_path(settings, container),
        "LOG_MAX_SIZE": settings.docker.log_max_size,
        "LOG_MAX_FILE": str(settings.docker.log_max_file),
    }


def _project(
    settings: Settings,
    service: str,
    container: str,
    compose: str,
    variables: dict[str, Any],
    secrets: tuple[Entry, ...],
    further: tuple[Entry, ...],
) -> Project:
    directory = f"{settings.config_root}/services/{container}"
    own = network_name(container)
    attached = frozenset(network.name for network in networks(settings)) if service == "gateway" else frozenset({own})
    digest = hashlib.sha256(json.dumps([compose, variables]).encode())
    for entry in (*secrets, *further):
        digest.update(f"{entry.path}\0{entry.signature()}\0".encode())
    config = digest.hexdigest()[:16]
    variables = {**variables, "CONFIG_FINGERPRINT": config}
    env = environment().get_template("services/env.j2").render(variables=variables)
    entries = (
        Directory(directory),
        *further,
        File(f"{directory}/compose.yaml", compose.encode()),
        File(f"{directory}/.env", env.encode()),
    )
    return Project(service, container, directory, config, entries, attached)


DOCKER_WAITS = "/etc/systemd/system/docker.service.d/atelier-data.conf"
"""Our drop-in, by which Docker starts after the disks that hold what containers mount, and not without them."""
WAITS_KNOWN = (
    "systemctl show docker.service -p NeedDaemonReload --value | grep -qx no "
    f"&& systemctl show docker.service -p DropInPaths --value | grep -qF {DOCKER_WAITS} && echo yes"
)
"""Prints something where systemd knows that drop-in as it is."""


def docker_waits(settings: Settings) -> tuple[Entry, ...]:
    """That drop-in, and its directory; where everything lies on the root's own file system it changes nothing."""
    places = (settings.config_root, settings.data_root, settings.models_path(), settings.outputs_path())
    text = environment().get_template("units/docker-data.conf.j2").render(places=dict.fromkeys(places))
    return Directory(DOCKER_WAITS.rpartition("/")[0]), File(DOCKER_WAITS, text.encode())


def loopback_guard() -> File:
    """The unit that keeps the local network segment from ports on 127.0.0.1 and from the gateway's own address."""
    unit = environment().get_template("units/atelier-loopback-guard.service.j2")
    return File(
        "/etc/systemd/system/atelier-loopback-guard.service",
        unit.render(iptables="/usr/sbin/iptables", rules=GUARD_RULES).encode(),
    )
