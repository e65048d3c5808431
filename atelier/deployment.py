"""What a deploy will bring about on one host: everything the stages need, decided before the first change."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from atelier import SCHEMA, apt, manifest, monitoring, recorded, render, weights_unit
from atelier.certificates import Certificate, Internal
from atelier.credentials import Credentials, fingerprint
from atelier.errors import AtelierError
from atelier.gpu import devices, upkeep
from atelier.gpu.plan import GpuPlan
from atelier.hostfacts import TIME_SERVICES, HostFacts
from atelier.images import ImageBuild, Step, archive_name, steps
from atelier.models import DIRECTORIES, Weight
from atelier.settings import Settings
from atelier.sources import Mode
from atelier.tree import Directory, Entry, File

NO_GPU = GpuPlan("none", "cpu")
DOCKER_CE = ("docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin")
DOCKER_DEBIAN = ("docker.io", "docker-cli", "docker-compose", "docker-buildx")
DOCKER_SOURCES = "/etc/apt/sources.list.d/docker.sources"
DOCKER_KEYRING = "/etc/apt/keyrings/docker.asc"
DAEMON_JSON = "/etc/docker/daemon.json"
TIME_PACKAGE = "systemd-timesyncd"
DOCKER_CONFLICTS = (
    "docker.io",
    "docker-doc",
    "docker-compose",
    "docker-compose-v2",
    "podman-docker",
    "containerd",
    "runc",
)

APT_SETTINGS = (
    File(
        "/etc/apt/apt.conf.d/90atelier",
        b"""// Wait for another package manager instead of failing.
DPkg::Lock::Timeout "300";
// Security updates come by themselves; the host never restarts by itself, least of all during a generation.
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Unattended-Upgrade "1";
Unattended-Upgrade::Automatic-Reboot "false";
""",
    ),
)


@dataclass(frozen=True)
class Deployment:
    """One deploy of one host."""

    settings: Settings
    facts: HostFacts
    credentials: Credentials
    builds: tuple[ImageBuild, ...]
    weights: tuple[Weight, ...]
    sources: Mode
    present: frozenset[str] = frozenset()
    """What the host has already: image tags, file names of image archives, sha256 of weights."""
    certificate: Certificate | None = None
    """What the gateway gets from this computer."""
    gpu: GpuPlan = NO_GPU
    token: str | None = field(default=None, repr=False)
    """For gated repositories of weights."""
    only: str = ""
    """One service (or `gateway`) to act on, with the gateway; empty for all."""
    internal: Internal | None = None
    """The authority of mode `internal` with the certificate it issued, which this computer keeps."""
    acme_roots: str = ""
    """Certificates (PEM) by which the gateway knows the ACME server, where the system does not."""

    def image_tags(self) -> dict[str, str]:
        """Tag by image name."""
        return {build.name: build.tag for build in self.builds}

    def image_steps(self) -> tuple[Step, ...]:
        """The images that have to be loaded or built, parents first."""
        wanted = [build for build in self.builds if build.name not in ("base", "torch") and self.concerns(build.name)]
        ancestors = {build.parent for build in wanted}
        ancestors |= {build.parent for build in self.builds if build.tag in ancestors}
        concerned = [build for build in self.builds if build in wanted or build.tag in ancestors]
        archived = [build.tag for build in concerned if archive_name(build.tag) in self.present]
        return steps(concerned, self.present, archived)

    def missing_weights(self) -> tuple[Weight, ...]:
        """The weights that are not known good on the host."""
        return tuple(weight for weight in self.weights if weight.sha256 not in self.present)

    def bytes_to_fetch(self) -> int:
        """The space that missing weights will take: less what is begun, and without what may be linked on the host."""
        begun = dict(word.split(":")[1:] for word in self.present if word.startswith("begun:"))
        return sum(
            max(0, weight.bytes - int(begun.get(weight.sha256, 0)))
            for weight in self.missing_weights()
            if not self.may_lie_there(weight)
        )

    def may_lie_there(self, weight: Weight) -> bool:
        """Whether the host has a file of that size where weights are looked for."""
        return f"here:{weight.bytes}" in self.present

    def fetcher(self) -> tuple[Entry, ...]:
        """What brings the weights: the program, its job, its unit."""
        return weights_unit.entries(self.settings, self.weights, self.token)

    def fetcher_in_place(self) -> bool:
        """Whether the host has all of that as it must be."""
        return weights_unit.in_place(self.settings, self.fetcher()) in self.present

    def weights_changed(self) -> bool:
        """Whether weights were published that ComfyUI may know older ones of, or will be by this deploy."""
        return weights_unit.CHANGED in self.present or bool(self.missing_weights())

    def entries(self) -> tuple[Entry, ...]:
        """Every file and directory that a deploy makes whole; not those that it adds to or that the host writes itself."""
        entries: tuple[Entry, ...] = (
            *self.directories(),
            *self.identity(),
            *self.secrets(),
            *APT_SETTINGS,
            render.loopback_guard(),
            *render.docker_waits(self.settings),
            *self.fetcher(),
            *self.gpu.files,
            *(upkeep.boot_files() if self.gpu.action != "none" else ()),
            *(entry for project in self.projects() for entry in project.entries),
            *self.monitor(),
        )
        return tuple(dict.fromkeys(entries))

    def monitor(self) -> tuple[Entry, ...]:
        """What looks at the host by a timer."""
        return monitoring.entries(
            self.settings, self.facts.disk_free, has_gpu=self.gpu.action != "none", time_services=self.time_services()
        )

    def time_services(self) -> tuple[str, ...]:
        """Units any of which must keep the host's clock; none in a container, whose clock is its host's."""
        return () if self.facts.container else TIME_SERVICES

    def parts(self) -> dict[str, str]:
        """By path of every entry the service whose deploy writes it, or `host` for what every deploy writes."""
        host = dict.fromkeys((entry.path for entry in self.entries()), "host")
        return host | {entry.path: project.service for project in self.projects() for entry in project.entries}

    def rendering(self) -> dict[str, str]:
        """A fingerprint of each part's entries: another one means other settings, credentials, weights or checkout."""
        parts = self.parts()
        lines = {"host": [merged_daemon_json("", self.settings)]}
        for entry in self.entries():
            lines.setdefault(parts[entry.path], []).append(f"{entry.path}\0{entry.signature()}")
        return {
            part: hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:16]
            for part, found in sorted(lines.items())
        }

    def concerns(self, service: str) -> bool:
        """Whether this deploy acts on a service; the gateway always is, as it holds every service's credentials."""
        return not self.only or service in (self.only, "gateway")

    def projects(self) -> tuple[render.Project, ...]:
        """The compose projects, the gateway last."""
        return render.projects(
            self.settings,
            self.credentials,
            self.image_tags(),
            self.facts.controllers,
            self.gpu_devices(),
            self.certificate,
            self.acme_roots,
        )

    def gpu_devices(self) -> dict[str, str]:
        """The CDI device of each service; none under profile cpu.

        While the driver does not run, a plan counts on those of the last deploy; no deploy gets that far.
        """
        if self.gpu.action == "none":
            return {}
        before = self.facts.deployed_gpus
        unknown = {name: before.get(name, "known-once-the-driver-runs") for name in self.settings.enabled()}
        uuids = self.gpu.gpus or unknown
        return {name: devices.cdi_device(uuid) for name, uuid in uuids.items()}

    def directories(self) -> tuple[Directory, ...]:
        """The skeleton under both roots."""
        settings, owner = self.settings, self.settings.service_user
        config, data = settings.config_root, settings.data_root
        roots = [
            Directory(path)
            for path in (config, f"{config}/services", f"{config}/secrets", data, self.settings.state_dir())
        ]
        models = settings.models_path()
        weights = [Directory(models)] + [Directory(f"{models}/{name}") for name in DIRECTORIES]
        shared = [Directory(settings.outputs_path()), Directory(settings.users_path())]
        owned = [
            Directory(path, mode, owner)
            for name in settings.enabled()
            for path, mode in ((settings.outputs_path(name), 0o755), (settings.users_path(name), 0o700))
        ]
        return (*roots, *weights, *shared, *owned)

    def identity(self) -> tuple[Entry, ...]:
        """What ties the host to its operator's store and to this release's layout, and says where its data lies."""
        state = self.settings.state_dir()
        return (
            *recorded.anchor(self.settings, self.credentials.instance),
            File(f"{state}/instance", f"{self.credentials.instance}\n".encode()),
            File(f"{state}/credentials", f"{fingerprint(self.credentials)}\n".encode()),
            File(f"{state}/schema", f"{SCHEMA}\n".encode()),
        )

    def secrets(self) -> tuple[Entry, ...]:
        """Every container's secret files."""
        return tuple(
            entry
            for entries in render.secret_files(self.settings, self.credentials, self.certificate).values()
            for entry in entries
        )


def host_packages(facts: HostFacts) -> tuple[str, ...]:
    """Packages of the distribution that every host needs."""
    common = ("aria2", "ca-certificates", "curl", "iptables", "mmdebstrap", "python3", "unattended-upgrades")
    return (*common, "debian-archive-keyring") if facts.os_id == "ubuntu" else common


def uses_docker_ce(facts: HostFacts) -> bool:
    """Debian 13's own Docker 26 does; elsewhere the archive's is too old or lacks compose v2 (facts: nvidia.md).

    A docker-ce that is already there is kept.
    """
    return (facts.os_id, facts.os_codename) != ("debian", "trixie") or "docker-ce" in facts.packages


def docker_packages(facts: HostFacts) -> tuple[str, ...]:
    """The engine, compose and buildx, from one origin."""
    return DOCKER_CE if uses_docker_ce(facts) else DOCKER_DEBIAN


def all_packages(deployment: Deployment) -> tuple[str, ...]:
    """The names of all packages that a deploy wants on the host."""
    gpu = deployment.gpu
    driver = (*gpu.driver.headers, *gpu.driver.pins, *gpu.driver.packages) if gpu.driver else ()
    names = (*host_packages(deployment.facts), *driver, *gpu.toolkit, *docker_packages(deployment.facts))
    return tuple(apt.name_of(package) for package in names)


def held_packages(deployment: Deployment) -> tuple[str, ...]:
    """The names of the packages that apt must not replace."""
    toolkit = (apt.name_of(package) for package in deployment.gpu.toolkit)
    return tuple(sorted({*deployment.gpu.holds, *toolkit}))


def recorded_packages(deployment: Deployment) -> tuple[str, ...]:
    """The names of the packages whose versions a deploy writes down."""
    return tuple(sorted({*all_packages(deployment), *held_packages(deployment)}))


def docker_repository(facts: HostFacts, fingerprint: str) -> apt.Repository:
    """Docker's own repository for the host's system."""
    url = f"https://download.docker.com/linux/{facts.os_id}"
    source = (
        f"Types: deb\nURIs: {url}\nSuites: {facts.os_codename}\n"
        f"Components: stable\nArchitectures: {facts.architecture}\nSigned-By: {DOCKER_KEYRING}\n"
    )
    return apt.Repository("docker", f"{url}/gpg", fingerprint, DOCKER_KEYRING, File(DOCKER_SOURCES, source.encode()))


def docker_conflicts(facts: HostFacts) -> tuple[str, ...]:
    """Installed packages that docker-ce takes the place of."""
    if not uses_docker_ce(facts) or "docker-ce" in facts.packages:
        return ()
    return tuple(name for name in DOCKER_CONFLICTS if name in facts.packages)


def merged_daemon_json(current: str, settings: Settings) -> str:
    """daemon.json with what we need in it; everything else is the host's own and stays.

    A log driver that the host chose stays with its options: the compose files of our services name theirs.
    Raises AtelierError when the current document is not a JSON object.
    """
    try:
        document: Any = json.loads(current) if current.strip() else {}
    except ValueError as error:
        raise AtelierError(
            f"{DAEMON_JSON} on the host is not valid JSON: {error}", "mend or remove that file"
        ) from None
    if not isinstance(document, dict):
        raise AtelierError(f"{DAEMON_JSON} on the host is not a JSON object", "mend or remove that file")
    for key in ("features", "log-opts"):
        if not isinstance(document.get(key), dict | None):
            raise AtelierError(f"{DAEMON_JSON} on the host: {key} is not a JSON object", "mend or remove that key")
    document["features"] = {**(document.get("features") or {}), "cdi": True}
    document["live-restore"] = True
    if document.get("log-driver", "json-file") == "json-file":
        limits = {"max-size": settings.docker.log_max_size, "max-file": str(settings.docker.log_max_file)}
        document |= {"log-driver": "json-file", "log-opts": {**(document.get("log-opts") or {}), **limits}}
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def changed_daemon_json(current: str, settings: Settings) -> str:
    """daemon.json as it must be written; empty where all that we need is in it. Raises AtelierError as above."""
    merged = merged_daemon_json(current, settings)
    return "" if current.strip() and json.loads(merged) == json.loads(current) else merged


def declared(deployment: Deployment) -> dict[str, list[str]]:
    """Everything that a deploy creates on the host, by kind: what the manifest records before it is created.

    `merged` are files of the host's own that hold keys of ours, `metrics` the places of a file that is in one of them,
    `rules` those of the loopback guard, by table. The packages are told by `installing`.
    """
    settings, state = deployment.settings, deployment.settings.state_dir()
    entries = deployment.entries()
    gpu_units = [upkeep.START_UNIT] if deployment.gpu.action != "none" else []
    timers = [monitoring.TIMER] if settings.monitoring.enabled else []
    files = {entry.path for entry in entries if isinstance(entry, File)}
    files |= {f"{state}/{name}" for name in ("manifest.json", "deployed.json", "audit.log")}
    files |= {weights_unit.STARTED_AT_BOOT} | {
        f"{weights_unit.state(settings)}/{weight.sha256}.json" for weight in deployment.weights
    }
    files |= monitoring.written(settings)
    if upkeep.module_settings(deployment.gpu.files):
        files.add(upkeep.initramfs_stamp(state))
    if uses_docker_ce(deployment.facts):
        files |= {DOCKER_SOURCES, DOCKER_KEYRING}
    for repository in _gpu_repositories(deployment):
        files |= {repository.source.path, repository.keyring}
    facts, user = deployment.facts, settings.service_user
    return {
        "files": sorted(files),
        "directories": sorted(entry.path for entry in entries if isinstance(entry, Directory)),
        "merged": [DAEMON_JSON],
        "metrics": monitoring.metrics(settings),
        "units": ["atelier-loopback-guard.service", weights_unit.UNIT, *gpu_units, *timers],
        "containers": sorted(project.container for project in deployment.projects()),
        "networks": sorted(network.name for network in render.networks(settings)),
        "images": sorted(deployment.image_tags().values()),
        "weights": sorted(weight.store_path for weight in deployment.weights),
        "users": [] if facts.service_user_uid else [user],
        "groups": [] if facts.service_user_uid or facts.gid_owner == user else [user],
        "rules": list(render.GUARD_RULES),
        "holds": list(held_packages(deployment)),
    }


def _gpu_repositories(deployment: Deployment) -> list[apt.Repository]:
    gpu = deployment.gpu
    return [each for each in (gpu.driver.repository if gpu.driver else None, gpu.toolkit_repository) if each]


def keyrings(deployment: Deployment) -> list[str]:
    """The files with keys of repositories that this deploy compares with what they must be."""
    docker = [DOCKER_KEYRING] if _adds_docker(deployment.facts) else []
    return [*docker, *(repository.keyring for repository in _gpu_repositories(deployment))]


def _adds_docker(facts: HostFacts) -> bool:
    return uses_docker_ce(facts) and "docker-ce" not in facts.packages


def installing(deployment: Deployment, before: manifest.Before) -> list[str]:
    """The packages that the host lacks, and that so are ours once they are there."""
    wanted = (*all_packages(deployment), *_time_package(deployment, before))
    return apt.missing(wanted, before.packages)


def asked_units(deployment: Deployment) -> tuple[str, ...]:
    """The units whose state counts for what a deploy does, and for what an uninstall puts back."""
    return (*TIME_SERVICES, *_enabled(deployment))


def enabling(deployment: Deployment, before: manifest.Before) -> list[str]:
    """The units of others that a deploy has started, at boot and now."""
    return [*_enabled(deployment), *_time_package(deployment, before)]


def _enabled(deployment: Deployment) -> tuple[str, ...]:
    gpu = deployment.gpu
    refresh = upkeep.REFRESH_UNITS if gpu.action in ("adopt", "install") else ()
    return ("docker.service", *refresh, *gpu.services)


def _time_package(deployment: Deployment, before: manifest.Before) -> tuple[str, ...]:
    return (TIME_PACKAGE,) if deployment.settings.profile == "gpu" and not before.active & {*TIME_SERVICES} else ()


def written(deployment: Deployment, before: manifest.Before) -> dict[str, str]:
    """sha256 by path of what a deploy writes whole; of the keyrings only once they are fetched: by `keyrings`."""
    sources = [repository.source for repository in _gpu_repositories(deployment)]
    if _adds_docker(deployment.facts):
        sources.append(docker_repository(deployment.facts, "").source)
    files = [entry for entry in (*deployment.entries(), *sources) if isinstance(entry, File)]
    with suppress(AtelierError):  # told by who merges, and not everybody who writes this down does
        if merged := changed_daemon_json(before.daemon_json, deployment.settings):
            files.append(File(DAEMON_JSON, merged.encode()))
    return {file.path: hashlib.sha256(file.content).hexdigest() for file in files}


def left_over(current: str, deployment: Deployment) -> tuple[str, ...]:
    """The files among those of a service that an earlier deploy wrote and this one does not. current: the manifest.

    Of a service that this deploy does not act on nothing is left over. Raises AtelierError for a damaged manifest.
    """
    folders = tuple(
        f"{project.directory}/" for project in deployment.projects() if deployment.concerns(project.service)
    )
    asked_for = deployment.parts()
    return tuple(
        path
        for path in manifest.created(current).get("files", [])
        if path.startswith(folders) and path not in asked_for
    )


def deployed_record(
    deployment: Deployment, release: str, image_ids: Mapping[str, str], packages: Mapping[str, str], before: str = ""
) -> str:
    """state/deployed.json: what runs on the host according to the last deploy, for status and verify.

    packages: versions by name. before: the record of the last deploy; a deploy of one service leaves the others as that
    one brought them about.
    """
    rendered = {
        part: mark for part, mark in deployment.rendering().items() if part == "host" or deployment.concerns(part)
    }
    settings = deployment.settings
    ports = {name: service.port for name, service in settings.enabled().items()}
    services = {
        project.service: {"container": project.container, "config": project.config}
        for project in deployment.projects()
        if deployment.concerns(project.service)
    }
    if deployment.only:
        services = {
            **{name: it for name, it in _recorded(before, "services").items() if isinstance(it, dict)},
            **services,
        }
    document = {
        "schema": SCHEMA,
        "instance": deployment.credentials.instance,
        "release": release,
        "sources": deployment.sources,
        "images": {build.name: {"tag": build.tag, "id": image_ids.get(build.tag, "")} for build in deployment.builds},
        "profile": deployment.settings.profile,
        "gpus": deployment.gpu.gpus or deployment.facts.deployed_gpus,
        "layout": {
            **asdict(recorded.roots_of(settings)),
            "service_user": settings.service_user,
            "service_uid": settings.service_uid,
            "bind_address": settings.bind_address,
        },
        # The gateway publishes the ports, and every deploy acts on it.
        "services": {name: {**service, "port": ports.get(name)} for name, service in services.items()},
        "packages": dict(sorted(packages.items())),
        "rendering": {**(_recorded(before, "rendering") if deployment.only else {}), **rendered},
    }
    return json.dumps(document, indent=1) + "\n"


def _recorded(record: str, part: str) -> dict[str, Any]:
    """A part of the text of a state/deployed.json; nothing of one that lacks it."""
    with suppress(ValueError, KeyError, TypeError):
        return dict(json.loads(record)[part])
    return {}
