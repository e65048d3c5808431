"""Settings: hosts.yml, group_data and the built-in defaults become one validated, typed object.

Precedence, lowest first: the defaults below, `group_data/all.py`, `group_data/<group>.py` in the order in which
hosts.yml lists the groups, the host's own `settings` in hosts.yml. Mappings are merged key by key, everything else is
replaced. docs/configuration.md is generated from the field descriptions here.
"""

import difflib
import ipaddress
import re
import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from atelier.errors import AtelierError

SYSTEM_DIRECTORIES = re.compile(
    r"/|/(home|opt|root|srv|var|home/[^/]+|var/(cache|lib|log|tmp)|var/lib/docker(/.*)?)"
    r"|/(bin|boot|dev|etc|lib|lib64|proc|run|sbin|sys|tmp|usr)(/.*)?"
)

Port = Annotated[int, Field(ge=1, le=65535)]
ContainerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]
Size = Annotated[str, Field(pattern=r"^[1-9][0-9]*[kmg]$")]

ACME_PORTS = (80, 443)
"""Where an ACME server asks whether a name is ours."""


def bytes_of(size: str | None) -> int:
    """A Size in bytes; 0 for none."""
    return int(size[:-1]) << {"k": 10, "m": 20, "g": 30}[size[-1]] if size else 0


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise ValueError("must be an absolute path on the host, without '..', for example /srv/atelier")
    if re.search(r"[^A-Za-z0-9._/+-]", path):
        raise ValueError("may hold letters, digits and . _ + - / only, so that every tool on the host reads it alike")
    normal = str(PurePosixPath("/" + path.lstrip("/")))
    if SYSTEM_DIRECTORIES.fullmatch(normal):
        raise ValueError("is a directory of the system itself; name one of its own, for example /srv/atelier")
    return normal


HostPath = Annotated[str, AfterValidator(_absolute)]


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError("must be an IP address or a network, for example 10.0.0.0/8") from None


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("must be a DNS name or an IP address") from None


Network = Annotated[str, AfterValidator(_network)]
Address = Annotated[str, AfterValidator(_address)]
DnsName = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServiceSettings(_Model):
    """What both applications have in common."""

    enabled: bool = Field(True, description="Whether this service is deployed on the host.")
    container: ContainerName = Field(description="Name of the container; its compose project is `atelier-<name>`.")
    port: Port = Field(description="Port that the gateway publishes for this service.")
    gpu: str | None = Field(
        None, description="Which GPU: an index, a UUID or a part of the name. Unset: the only one there is."
    )
    memory_limit: Size | None = Field(
        None, description="Upper bound on memory, for example `48g`; used where the host has the controller."
    )
    cpu_limit: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Upper bound on CPUs, for example 8; used where the host has the controller."
    )
    gpu_memory_gb: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="GPU memory that this service needs; preflight adds up what shares a card. Unset: not checked.",
    )
    shm_size: Size = Field(
        "2g", description="Size of /dev/shm in the container (Docker's default of 64 MB is too small)."
    )


class ComfyUISettings(ServiceSettings):
    """ComfyUI with ComfyUI-Login."""

    container: ContainerName = Field(
        "comfyui-qwen", description="Name of the container; its compose project is `atelier-<name>`."
    )
    port: Port = Field(8188, description="Port that the gateway publishes for ComfyUI.")


class ForgeSettings(ServiceSettings):
    """Stable Diffusion WebUI Forge."""

    container: ContainerName = Field(
        "forge-turbo", description="Name of the container; its compose project is `atelier-<name>`."
    )
    port: Port = Field(7860, description="Port that the gateway publishes for Forge.")


class ServicesSettings(_Model):
    """The applications."""

    comfyui: ComfyUISettings = ComfyUISettings()
    forge: ForgeSettings = ForgeSettings()


class TlsSettings(_Model):
    """Transport security of the gateway."""

    mode: Literal["off", "internal", "acme", "files"] = Field(
        "off",
        description="`off`; `internal`: a certificate authority of this deployment's own, whose certificate lies beside the "
        "credentials; `acme`: certificates from Let's Encrypt or another ACME server; `files`: your own certificate and key.",
    )
    certificate: str | None = Field(
        None, description="The certificate chain (PEM), a file on this computer (mode `files`)."
    )
    key: str | None = Field(None, description="Its private key (PEM), a file on this computer (mode `files`).")
    names: list[DnsName | Address] = Field(
        [],
        description="Further full names and addresses under which the services are reached (mode `internal`; the host's own "
        "address and localhost are always among them).",
    )
    domain: DnsName | None = Field(
        None, description="Public DNS name of the host; its ports 80 and 443 must be reachable (mode `acme`)."
    )
    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")] | None = Field(
        None, description="Address that the ACME server may write to (mode `acme`)."
    )
    acme_directory: Annotated[str, Field(pattern=r"^https://\S+$")] | None = Field(
        None, description="Directory URL of another ACME server than Let's Encrypt (mode `acme`)."
    )
    acme_root: str | None = Field(
        None,
        description="Root certificates (PEM) of that server and of what it issues, a file on this computer, where the "
        "system does not know them.",
    )
    hsts: bool = Field(
        False, description="Tell browsers to use nothing but TLS for this name for a year (not with mode `internal`)."
    )


class ModelsSettings(_Model):
    """Weights."""

    lock: str = Field("locks/models.yml", description="The lock file that names every weight with its sha256.")
    sets: list[str] = Field(
        ["qwen-edit-2509", "sdxl-turbo"],
        description="Which sets of the lock file this host needs; files that the lock keeps for GPUs are "
        "left out under profile cpu.",
    )
    mirrors: list[Annotated[str, Field(pattern=r"^(https?://[^/@?#\s]+|file://)(/[^?#\s]*)?$")]] = Field(
        [],
        description="Base URLs tried before the hub, without user or query, each laid out as the store is: "
        "`<mirror>/<directory>/<file>`.",
    )
    hub: bool = Field(
        True, description="Whether the hub is asked for what no mirror has; false for a host without internet."
    )
    search: list[Annotated[str, Field(pattern=r"^/[^\x00-\x1f]*$")]] = Field(
        [
            "/root/.cache/huggingface/hub",
            "/home/*/.cache/huggingface/hub",
            "/root/*/models",
            "/home/*/*/models",
            "/opt/*/models",
            "/srv/*/models",
        ],
        description="Directories on the host, `*` allowed, in which weights may lie already: they are linked, not fetched.",
    )
    reserve_gb: Annotated[float, Field(ge=0)] = Field(
        2, description="What stays free on the disk of the weights, in GB."
    )
    parallel_files: Annotated[int, Field(ge=1, le=16)] = Field(2, description="How many files are fetched at once.")
    connections: Annotated[int, Field(ge=1, le=16)] = Field(8, description="Connections for each file.")
    token_file: str | None = Field(
        None,
        description="File on this computer with a token for gated repositories; it goes to the hub alone, through a "
        "file of root's on the host.",
    )

    def sources(self) -> str:
        """Where weights come from, in the order in which it is tried, for people."""
        return ", else ".join([*self.mirrors, *(["huggingface.co"] if self.hub else [])]) or "nowhere"


class ImagesSettings(_Model):
    """Container images."""

    base: Annotated[str, Field(pattern=r"^\S+@sha256:[0-9a-f]{64}$")] | None = Field(
        None,
        description="A registry image to use as base, pinned by digest. Unset: made on the host from Debian's archive.",
    )
    archive_dir: HostPath | None = Field(
        None,
        description="Directory on the host where built images are kept as archives and looked for before building.",
    )


class AptRepositorySettings(_Model):
    """An apt repository in the place of NVIDIA's own, such as a mirror."""

    url: Annotated[str, Field(pattern=r"^(https?|file)://\S+$")] = Field(
        description="Its base URL, laid out as NVIDIA's (a flat repository: `Release` and `Packages` lie in it)."
    )
    key_url: Annotated[str, Field(pattern=r"^(https?|file)://\S+$")] = Field(
        description="Where its signing key is fetched."
    )
    fingerprint: Annotated[str, Field(pattern=r"^[0-9A-F]{40}$")] = Field(
        description="The signing key's fingerprint: 40 hex digits in capitals, no spaces."
    )


class GpuSettings(_Model):
    """The driver and the container toolkit."""

    driver_branch: Literal["580", "595"] = Field(
        "580", description="Driver branch to install where there is none: 580 (long-term support) or 595."
    )
    driver_repository: AptRepositorySettings | None = Field(
        None, description="A mirror of NVIDIA's driver repository for this host's system. Unset: NVIDIA's own."
    )
    toolkit_repository: AptRepositorySettings | None = Field(
        None, description="A mirror of NVIDIA's container toolkit repository. Unset: NVIDIA's own."
    )


class DockerSettings(_Model):
    """Docker's daemon."""

    log_max_size: Size = Field("10m", description="A container's log is rotated at this size.")
    log_max_file: Annotated[int, Field(ge=1, le=100)] = Field(3, description="Rotated logs kept for each container.")


class TimeoutSettings(_Model):
    """Seconds that slow steps may take; a time-out is a failure named as one, never a measurement."""

    build: Annotated[int, Field(ge=60)] = Field(3600, description="Building one image.")
    reboot: Annotated[int, Field(ge=30)] = Field(900, description="From a restart of the host to its answer.")
    start: Annotated[int, Field(ge=10)] = Field(300, description="From starting a container to healthy.")
    generation: Annotated[int, Field(ge=10)] = Field(900, description="One generation, a cold model load included.")
    hashing: Annotated[int, Field(ge=10)] = Field(3600, description="Hashing every byte of the weights (DEEP=1).")


class MonitoringSettings(_Model):
    """What looks at the host from itself, by a timer."""

    enabled: bool = Field(
        True, description="Whether a host monitor runs by a systemd timer: metrics, a state, one command for a change."
    )
    interval: Annotated[int, Field(ge=45, le=3600)] = Field(60, description="Seconds from one look to the next.")
    confirmations: Annotated[int, Field(ge=1, le=10)] = Field(
        2, description="How many looks in a row must find another state before it counts as changed."
    )
    textfile_dir: HostPath = Field(
        "/var/lib/prometheus/node-exporter",
        description="Directory from which node_exporter's textfile collector reads on the host; where there is none, the "
        "metrics lie in `state/monitor/`.",
    )
    command: list[Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]] = Field(
        [],
        description="Command that root runs on the host once for each change of state, as a list of words without a shell "
        "(a shell's line: `[/bin/sh, -c, '...']`); no secret in it. See docs/operations.md for what it is told.",
    )
    command_timeout: Annotated[int, Field(ge=1)] = Field(20, description="Seconds that it may take.")
    minimum_free_gb: Annotated[float, Field(ge=0)] = Field(
        5, description="Free space on each of the host's disks below which it is reported, in GB."
    )


class Settings(_Model):
    """Everything that can be chosen for one host."""

    profile: Literal["gpu", "cpu", "gpu-simulated"] = Field(
        "gpu",
        description="`gpu`, `cpu` for a machine without one, or `gpu-simulated` (sandbox only): stand-ins for card and driver.",
    )
    config_root: HostPath = Field("/opt/atelier", description="Directory on the host for everything rendered.")
    data_root: HostPath = Field(
        "/srv/atelier", description="Directory on the host for state, users' files, weights and outputs."
    )
    models_dir: HostPath | None = Field(
        None,
        description="Directory on the host for weights, such as one on another disk. Unset: `models` in data_root.",
    )
    outputs_dir: HostPath | None = Field(
        None, description="Directory on the host for generated images. Unset: `outputs` in data_root."
    )
    service_user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,30}$")] = Field(
        "atelier", description="System user without login that the containers run as."
    )
    service_uid: Annotated[int, Field(ge=200, le=60000)] = Field(
        10001, description="Its user and group id, the same in every image."
    )
    bind_address: str = Field("127.0.0.1", description="Address that the gateway publishes the ports on.")
    allow_plaintext: bool = Field(False, description="Allow an address other than loopback without TLS.")
    allow_query_token: bool = Field(False, description="Accept `?token=` in a URL (it ends up in logs and histories).")
    trusted_proxies: list[Network] = Field(
        [],
        description="Addresses or networks of reverse proxies in front of the gateway, whose `X-Forwarded-For` is believed.",
    )
    cors_origins: list[Annotated[str, Field(pattern=r"^https?://[a-z0-9.-]+(:[0-9]{1,5})?$")]] = Field(
        [],
        description="Web pages of other origins that may call the services from a browser, with a token or password and "
        "never with cookies.",
    )
    gateway_container: ContainerName = Field("gateway", description="Name of the gateway's container.")
    proxy: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = Field(
        None,
        description="HTTP proxy through which the host reaches package indexes and weights, mirrors at private addresses "
        "apart. apt keeps its own settings.",
    )
    max_upload_mb: Annotated[int, Field(ge=1, le=100000)] = Field(500, description="Largest request body in MB.")
    services: ServicesSettings = ServicesSettings()
    tls: TlsSettings = TlsSettings()
    models: ModelsSettings = ModelsSettings()
    images: ImagesSettings = ImagesSettings()
    gpu: GpuSettings = GpuSettings()
    docker: DockerSettings = DockerSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    minimum_disk_gb: Annotated[int, Field(ge=1)] = Field(
        90,
        description="Least free space before a first deploy; what it really needs is added up and asked for beside it.",
    )
    minimum_memory_gb: Annotated[int, Field(ge=1)] = Field(30, description="Memory that preflight asks for.")

    @model_validator(mode="after")
    def _possible_together(self) -> "Settings":
        try:
            address = ipaddress.ip_address(self.bind_address)
        except ValueError:
            raise ValueError(
                f"bind_address: {self.bind_address!r} is not an IP address; use 127.0.0.1, or 0.0.0.0 with tls.mode set"
            ) from None
        if not address.is_loopback and self.tls.mode == "off" and not self.allow_plaintext:
            raise ValueError(
                f"bind_address: {address} is reachable from outside and tls.mode is off, so passwords would travel in the "
                "clear; set tls.mode, or bind 127.0.0.1 and use `make tunnel`, or set allow_plaintext: true"
            )
        enabled = self.enabled()
        if not enabled:
            raise ValueError("services: every service is disabled; enable at least one")
        ports = {f"services.{name}.port": service.port for name, service in enabled.items()}
        names = {f"services.{name}.container": service.container for name, service in enabled.items()}
        _distinct(ports, "port")
        _distinct(names | {"gateway_container": self.gateway_container}, "container name")
        self._require_separate_directories()
        _tls_possible(self.tls)
        _monitoring_possible(self.monitoring)
        if self.tls.mode == "acme":
            if address.is_loopback:
                raise ValueError(
                    f"tls.mode, bind_address: the ACME server cannot reach {address}; set bind_address: 0.0.0.0, or use "
                    "another tls.mode"
                )
            for key, port in ports.items():
                if port in ACME_PORTS:
                    raise ValueError(f"{key}: {port} is where the ACME server asks; give the service another port")
        chosen = [f"services.{name}.gpu" for name, service in enabled.items() if service.gpu]
        if self.profile == "cpu" and chosen:
            raise ValueError(
                f"{chosen[0]}: profile is cpu, so there is no GPU to choose; remove it or set profile: gpu"
            )
        return self

    def scheme(self) -> str:
        """`http` or `https`, as the gateway serves."""
        return "http" if self.tls.mode == "off" else "https"

    def own_address(self) -> str:
        """An address by which the host itself reaches the published ports; an IPv6 address stands in brackets."""
        wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to
        address = wildcard.get(self.bind_address, self.bind_address)
        return f"[{address}]" if ":" in address else address

    def published_ports(self) -> set[int]:
        """The ports of the host that the gateway publishes."""
        ports = {service.port for service in self.enabled().values()}
        return ports | set(ACME_PORTS) if self.tls.mode == "acme" else ports

    def _require_separate_directories(self) -> None:
        data, models, outputs = (
            ("data_root", self.data_root),
            ("models_dir", self.models_path()),
            ("outputs_dir", self.outputs_path()),
        )
        # Weights and outputs may lie in the data, beside what else is there.
        own = [("data_root", self.state_dir()), ("data_root", self.users_path())]
        pairs = [(("config_root", self.config_root), other) for other in (data, models, outputs)]
        pairs += [*((mine, other) for other in (models, outputs) for mine in own), (models, outputs)]
        for (key, one), (other_key, other) in pairs:
            if _nested(one, other):
                raise ValueError(
                    f"{key}, {other_key}: one lies inside the other ({one}, {other}); use two separate directories"
                )

    def data_directories(self) -> list[str]:
        """The directories of data that may lie on disks of their own."""
        return [self.data_root, *filter(None, [self.models_dir, self.outputs_dir])]

    def state_dir(self) -> str:
        """Where the host records what it carries."""
        return f"{self.data_root}/state"

    def models_path(self) -> str:
        """Where the weights lie on the host."""
        return self.models_dir or f"{self.data_root}/models"

    def outputs_path(self, service: str = "") -> str:
        """Where a service's images lie on the host; those of all services without one."""
        return "/".join([self.outputs_dir or f"{self.data_root}/outputs", *filter(None, [service])])

    def users_path(self, service: str = "") -> str:
        """Where the files of a service's users lie on the host; those of all services without one."""
        return "/".join([f"{self.data_root}/users", *filter(None, [service])])

    def enabled(self) -> dict[str, ServiceSettings]:
        """The services deployed on this host, by name (`comfyui`, `forge`)."""
        everything: dict[str, ServiceSettings] = {"comfyui": self.services.comfyui, "forge": self.services.forge}
        return {name: service for name, service in everything.items() if service.enabled}


def _nested(one: str, other: str) -> bool:
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first == second or first in second.parents or second in first.parents


def _tls_possible(tls: TlsSettings) -> None:
    files = (tls.certificate, tls.key)
    if files != (None, None) if tls.mode != "files" else None in files:
        raise ValueError("tls: mode `files` needs certificate and key, and they need mode `files`")
    if (tls.domain is not None) != (tls.mode == "acme"):
        raise ValueError("tls: mode `acme` needs domain, and domain needs mode `acme`")
    if tls.mode != "acme" and (tls.email or tls.acme_directory or tls.acme_root):
        raise ValueError("tls: email, acme_directory and acme_root need mode `acme`")
    if tls.names and tls.mode != "internal":
        raise ValueError("tls: names needs mode `internal`")
    if bare := [
        str(name) for name in tls.names if "." not in str(name) and ":" not in str(name) and name != "localhost"
    ]:
        raise ValueError(f"tls: names: `{bare[0]}` is a bare name, below which others may have sites; give a full name")
    if tls.hsts and tls.mode in ("off", "internal"):
        raise ValueError(
            f"tls: hsts with mode `{tls.mode}` would lock browsers out; use it with `acme` or `files`, or leave it out"
        )


LOOKING = 35
"""Seconds of an interval that a look at the host and the command's ending may take beside the command."""


def _monitoring_possible(monitoring: MonitoringSettings) -> None:
    if monitoring.command and not monitoring.command[0].startswith("/"):
        raise ValueError(
            f"monitoring.command: {monitoring.command[0]!r} is no absolute path; name the program in full, for example "
            "/usr/local/bin/tell-me"
        )
    if monitoring.command and monitoring.command_timeout + LOOKING > monitoring.interval:
        raise ValueError(
            f"monitoring.command_timeout, monitoring.interval: {monitoring.command_timeout} s and {LOOKING} s for the look "
            f"itself do not fit into {monitoring.interval} s; make one shorter or the other longer"
        )


def _distinct(values: Mapping[str, object], what: str) -> None:
    keys: dict[object, str] = {}
    for key, value in values.items():
        if value in keys:
            raise ValueError(f"{keys[value]}, {key}: are both {value}; give each a {what} of its own")
        keys[value] = key


Layer = tuple[str, Mapping[str, Any]]
"""Where the values come from (file and place in it, as a message names it), and the values."""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; any other value of `over` replaces that of `base`."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def build_settings(layers: Iterable[Layer]) -> Settings:
    """Merge the layers, lowest precedence first, and validate the whole.

    Raises AtelierError with one line for each problem: origin, key, what is wrong, what would be right.
    """
    layers = list(layers)
    merged: dict[str, Any] = {}
    for _, values in layers:
        merged = merge(merged, values)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        problems = [_explain(details, layers) for details in error.errors()]
        raise AtelierError(
            "\n".join(problems), "nothing was touched; mend the settings and run the command again"
        ) from None


def _origin(location: tuple[str, ...], layers: list[Layer]) -> str:
    """The layer of highest precedence that holds the longest part of the key."""
    best, depth = "settings", 0
    for name, values in layers:
        here: Any = values
        reached = 0
        for part in location:
            if not isinstance(here, Mapping) or part not in here:
                break
            here = here[part]
            reached += 1
        if reached >= max(depth, 1):
            best, depth = name, reached
    return best


def _explain(details: ErrorDetails, layers: list[Layer]) -> str:
    location = tuple(str(part) for part in details["loc"])
    message = details["msg"].removeprefix("Value error, ")
    if not location:
        keys = [tuple(key.split(".")) for key in re.findall(r"[a-z_.]+", message.partition(":")[0])]
        origins = [origin for origin in (_origin(key, layers) for key in keys) if origin != "settings"]
        return f"{origins[-1] if origins else 'settings'}: {message}"
    key = ".".join(location)
    if details["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        remedy = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(sorted(known))}"
        return f"{_origin(location, layers)}: {key}: unknown key; {remedy}"
    return f"{_origin(location, layers)}: {key}: {details['input']!r}: {message}"


def _known_keys(path: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)


class HostEntry(_Model):
    """One host of hosts.yml."""

    address: Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+@)?[A-Za-z0-9._:\[\]-]+$")]
    groups: list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]] = []
    settings: dict[str, Any] = {}


def read_hosts(path: Path) -> dict[str, HostEntry]:
    """The hosts of a hosts.yml by name. Raises AtelierError naming file, key, problem and remedy."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AtelierError(f"{path.name}: not readable as YAML: {error}", "see hosts.example.yml") from None
    if not isinstance(document, dict) or set(document) != {"hosts"} or not isinstance(document["hosts"], dict):
        raise AtelierError(
            f"{path.name}: expected one key, `hosts`, with a name for each host", "see hosts.example.yml"
        )
    hosts: dict[str, HostEntry] = {}
    for name, entry in document["hosts"].items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(name)) or name.startswith("sandbox") or name == "all":
            raise AtelierError(
                f"{path.name}: hosts.{name}: not a usable name",
                "use letters, digits, `.`, `_`, `-`; names that begin with `sandbox`, and `all`, are taken",
            )
        try:
            hosts[name] = HostEntry.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(["hosts", name, *(str(part) for part in first["loc"])])
            raise AtelierError(f"{path.name}: {key}: {first['msg']}", "see hosts.example.yml") from None
    return hosts


def read_group(directory: Path, group: str, required: bool) -> Layer:
    """The public lower-case names of `group_data/<group>.py`, as pyinfra reads such a file."""
    path = directory / f"{group}.py"
    origin = f"group_data/{group}.py"
    if not path.exists():
        if required:
            known = ", ".join(sorted(file.stem for file in directory.glob("*.py"))) or "none"
            raise AtelierError(f"hosts.yml: group `{group}` has no {origin}", f"make that file, or use one of: {known}")
        return origin, {}
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise AtelierError(
            f"{origin}: {type(error).__name__}: {error}", "group data is plain Python assignments"
        ) from None
    values = {name: value for name, value in names.items() if not name.startswith("_") and name.islower()}
    return origin, {name: value for name, value in values.items() if not callable(value) and not _is_module(value)}


def _is_module(value: object) -> bool:
    return type(value).__name__ == "module"
