"""Everything that would stop a deploy, found before anything is changed, all at once."""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from atelier import recorded
from atelier.apt import Repository
from atelier.deployment import Deployment, docker_conflicts, merged_daemon_json, uses_docker_ce
from atelier.errors import AtelierError, Finding
from atelier.gpu.plan import GpuPlan, host_refusals
from atelier.hostfacts import HostFacts
from atelier.images import ImageBuild
from atelier.settings import ACME_PORTS, Settings, bytes_of
from sandbox import sources as apt_sources

GIB = 1 << 30
GB = 1_000_000_000
SUPPORTED = {
    ("debian", "bookworm"): "Debian 12",
    ("debian", "trixie"): "Debian 13",
    ("ubuntu", "jammy"): "Ubuntu 22.04",
    ("ubuntu", "noble"): "Ubuntu 24.04",
}
CLOCK_TOLERANCE = 300  # seconds; certificates and signed archives fail long before a day

LAYER_GB = {"base": 0.2, "gateway": 0.1, "torch": 5.5, "comfyui": 0.7, "forge": 1.0}
"""What each image adds to its parent, unpacked. base and gateway as the sandbox's archives have them; torch and comfyui
share the 6.2 GB that ComfyUI's image for a GPU was measured at (docs/tested.md); forge is an estimate."""
TORCH_GB = {"none": 0.1, "cpu": 1.0}
"""torch without CUDA: its wheel unpacks to 0.75 GB."""
BUILD_FACTOR = 1.5
"""Beside an unpacked layer: its wheels while it is built, or its compressed form (docs/tested.md: 3.2 of 6.2 GB)."""
DOCKER_ROOT = "/var/lib/docker"
RESERVE_GB = 5
"""System packages, driver and CUDA libraries, logs, first outputs."""


def findings(deployment: Deployment, now: float, unreachable: Mapping[str, str]) -> list[Finding]:
    """All reasons why a deploy would fail on its host.

    now: the operator's clock, seconds since the epoch. unreachable: the reason by source that the host could not reach.
    """
    facts, settings = deployment.facts, deployment.settings
    return [
        *_system(facts, now),
        *contradictions(facts, settings),
        *_packages(facts),
        *_users(facts, settings),
        *(_space(facts, "this deploy", _deploy_needs(deployment)) or _least_space(facts, settings)),
        *_memory(facts, settings),
        *_network(facts, settings),
        *_docker(facts, settings),
        *(deployment.gpu.refusals if deployment.gpu.action != "none" else host_refusals(facts)),
        *_sources(essential(deployment, unreachable)),
    ]


def weights_findings(deployment: Deployment, now: float, unreachable: Mapping[str, str]) -> list[Finding]:
    """All reasons why bringing the weights alone would fail; the parameters are those of findings()."""
    return [
        *_system(deployment.facts, now),
        *contradictions(deployment.facts, deployment.settings),
        *_packages(deployment.facts),
        *_users(deployment.facts, deployment.settings),
        *_space(deployment.facts, "this fetch", _weights_needs(deployment)),
        *_sources(essential(deployment, unreachable)),
    ]


def repository_urls(plan: GpuPlan) -> list[str]:
    """Small documents of the apt repositories that a GPU's plan adds: each one's signing key and index."""
    repositories = [plan.driver.repository if plan.driver else None, plan.toolkit_repository]
    return [url for repository in repositories if repository for url in (repository.key_url, *_indexes(repository))]


def _indexes(repository: Repository) -> list[str]:
    entries = list(apt_sources.parse_one_line(repository.source.content.decode()))
    bases = [f"{entry.uri.rstrip('/')}{'' if entry.suite == '/' else f'/dists/{entry.suite}'}" for entry in entries]
    return [f"{base}/InRelease" for base in bases]


def _system(facts: HostFacts, now: float) -> list[Finding]:
    found = []
    if (facts.os_id, facts.os_codename) not in SUPPORTED:
        found.append(
            Finding(
                f"{facts.os_name or 'this system'} is not supported", f"use one of: {', '.join(SUPPORTED.values())}"
            )
        )
    if abs(facts.clock - now) > CLOCK_TOLERANCE:
        found.append(
            Finding(
                f"the host's clock is {abs(facts.clock - now):.0f} s off this computer's",
                "set it: timedatectl set-ntp true; or set this computer's",
            )
        )
    return found


def contradictions(facts: HostFacts, settings: Settings) -> list[Finding]:
    """What the host has recorded and this deploy would contradict: a later release, a reprovision under way, data elsewhere."""
    if refusal := recorded.later(int(facts.schema or 0), facts.release):
        return [refusal]
    if facts.reorganising:
        return [Finding("a reprovision of this host was begun and is not finished", "finish it: make reprovision")]
    return recorded.elsewhere(facts.roots, facts.state_place, settings)


def _packages(facts: HostFacts) -> list[Finding]:
    found = []
    if facts.lock_holder:
        found.append(
            Finding(f"the package manager is in use by: {facts.lock_holder}", "wait until it is done, then run again")
        )
    if facts.sources_error:
        found.append(
            Finding(
                f"apt cannot read its sources: {facts.sources_error}",
                "mend or remove the file it names, or the entries that contradict each other, in /etc/apt/sources.list.d",
            )
        )
    if facts.unrepairable:
        found.append(
            Finding(
                f"the host's package manager is stuck: {facts.unrepairable}",
                "remove that package: dpkg --remove --force-remove-reinstreq PACKAGE",
            )
        )
    return found


def _users(facts: HostFacts, settings: Settings) -> list[Finding]:
    found = []
    if facts.uid_owner not in ("", settings.service_user):
        found.append(
            Finding(
                f"user id {settings.service_uid} belongs to `{facts.uid_owner}` on this host",
                "set service_uid to a free number",
            )
        )
    elif not facts.service_user_uid and facts.gid_owner not in ("", settings.service_user):
        found.append(
            Finding(
                f"group id {settings.service_uid} belongs to `{facts.gid_owner}` on this host",
                "set service_uid to a number that is free as a user's and as a group's",
            )
        )
    if facts.service_user_uid not in ("", str(settings.service_uid)):
        found.append(
            Finding(
                f"user `{settings.service_user}` exists with id {facts.service_user_uid}, not {settings.service_uid}",
                f"set service_uid to {facts.service_user_uid}, or service_user to another name; "
                "where a deploy made that user, `make reprovision` gives it the number",
            )
        )
    return found


Need = tuple[str, str, int]
"""A directory, what for, and how many bytes."""


def _weights_needs(deployment: Deployment) -> list[Need]:
    settings, fetched = deployment.settings, deployment.bytes_to_fetch()
    reserve = round(settings.models.reserve_gb * GB) if fetched else 0
    disk = settings.models_dir or settings.data_root
    return [(disk, "weights", fetched), (disk, "models.reserve_gb", reserve)]


def _deploy_needs(deployment: Deployment) -> list[Need]:
    images = (image_directory(deployment.facts), "images", image_bytes(deployment))
    return [*_weights_needs(deployment), images, (DOCKER_ROOT, "a reserve", RESERVE_GB * GB)]


def lacking(deployment: Deployment) -> dict[str, int]:
    """By mount point the bytes that a deploy lacks there."""
    wanted = _by_mount(deployment.facts, _deploy_needs(deployment))
    return {mount: short for mount, (free, parts) in wanted.items() if (short := sum(parts.values()) - free) > 0}


def _by_mount(facts: HostFacts, needs: Sequence[Need]) -> dict[str, tuple[int, dict[str, int]]]:
    """What is free and what is wanted, added up by file system. A deployed host needs no reserve for what it has."""
    free: dict[str, int] = {}
    wanted: dict[str, dict[str, int]] = {}
    for directory, what, size in needs:
        if directory in facts.disk_free:
            mount = facts.mounts.get(directory, directory)
            free[mount] = facts.disk_free[directory]
            wanted.setdefault(mount, {}).update({what: size} if size else {})
    return {
        mount: (free[mount], parts)
        for mount, parts in wanted.items()
        if not facts.deployed or set(parts) != {"a reserve"}
    }


def _space(facts: HostFacts, wanting: str, needs: Sequence[Need]) -> list[Finding]:
    """What is missing. wanting: what would fail."""
    return [
        Finding(
            f"{mount} has {amount(free)} free and {wanting} needs {amount(sum(parts.values()))} there: "
            + ", ".join(f"{amount(size)} for {what}" for what, size in parts.items()),
            "free some space"
            + (
                " (`make models-prune` lists weights that no set needs)"
                if facts.instance and "weights" in parts
                else ""
            )
            + ", or point data_root or models_dir (Docker: data-root in /etc/docker/daemon.json) at a larger disk",
        )
        for mount, (free, parts) in _by_mount(facts, needs).items()
        if sum(parts.values()) > free
    ]


def _least_space(facts: HostFacts, settings: Settings) -> list[Finding]:
    """The lower bound of the settings, before a first deploy."""
    directories = [
        name for name in (*settings.data_directories(), image_directory(facts), DOCKER_ROOT) if name in facts.disk_free
    ]
    free = {facts.mounts.get(name, name): facts.disk_free[name] for name in directories}
    if facts.deployed or sum(free.values()) >= settings.minimum_disk_gb * GB:
        return []
    return [
        Finding(
            f"{' and '.join(free)} {'has' if len(free) == 1 else 'have'} {amount(sum(free.values()))} free, "
            f"{settings.minimum_disk_gb} GB are wanted before a first deploy",
            "free some space, use a larger disk, or lower minimum_disk_gb",
        )
    ]


def amount(size: int) -> str:
    """A number of bytes, for people."""
    return f"{size / GB:.1f} GB" if size >= GB // 10 else f"{size / 1e6:.1f} MB"


def image_bytes(deployment: Deployment) -> int:
    """Space that the images to be built or loaded take, with those that they start from and the host lacks."""
    by_tag = {build.tag: build for build in deployment.builds}
    missing: dict[str, ImageBuild] = {}
    for step in deployment.image_steps():
        build: ImageBuild | None = step.build
        while build and build.tag not in deployment.present:
            missing[build.tag] = build
            build = by_tag.get(build.parent or "")
    return int(sum(map(_layer_gb, missing.values())) * BUILD_FACTOR * GB)


def _layer_gb(build: ImageBuild) -> float:
    return TORCH_GB.get(dict(build.arguments).get("VARIANT", ""), LAYER_GB.get(build.name, 1.0))


def image_directory(facts: HostFacts) -> str:
    """Where Docker keeps images: a fresh Docker 29 leaves them to containerd, whatever its data-root."""
    if uses_docker_ce(facts) and "docker-ce" not in facts.packages:
        return "/var/lib/containerd"
    chosen = re.search(r'"data-root"\s*:\s*"([^"]+)"', facts.daemon_json)
    return chosen[1] if chosen else DOCKER_ROOT


def too_little_memory(memory: int, settings: Settings) -> list[Finding]:
    """That a host has less memory than the settings ask for."""
    if memory >= settings.minimum_memory_gb * GIB * 0.93:  # firmware and kernel keep some of what was bought
        return []
    problem = f"the host has {memory / GIB:.1f} GB of memory, {settings.minimum_memory_gb} GB are wanted"
    return [Finding(problem, "use a larger machine, or lower minimum_memory_gb at your own risk")]


def _memory(facts: HostFacts, settings: Settings) -> list[Finding]:
    found = too_little_memory(facts.memory, settings)
    services = settings.enabled()
    shared = sum(bytes_of(service.shm_size) for service in services.values())
    if shared > facts.memory:
        found.append(
            Finding(
                f"shared memory of the services (shm_size) may grow to {shared / GIB:.0f} GB together, "
                f"the host has {facts.memory / GIB:.0f} GB of memory",
                "lower services.*.shm_size",
            )
        )
    found += [
        Finding(
            f"services.{name}: shm_size {service.shm_size} is not below memory_limit {service.memory_limit}, "
            "which it counts towards",
            f"raise services.{name}.memory_limit, or lower shm_size",
        )
        for name, service in services.items()
        if service.memory_limit and bytes_of(service.shm_size) >= bytes_of(service.memory_limit)
    ]
    return found


def _network(facts: HostFacts, settings: Settings) -> list[Finding]:
    bind = ipaddress.ip_address(settings.bind_address)
    found = []
    there = {str(ipaddress.ip_address(address)) for address in facts.addresses}
    # Every address of 127.0.0.0/8 is the host's own, listed or not.
    if there and not bind.is_unspecified and not (bind.version == 4 and bind.is_loopback) and str(bind) not in there:
        found.append(
            Finding(
                f"bind_address {bind} is no address of this host",
                f"set bind_address to one it has: {', '.join(sorted(there))}",
            )
        )
    ours = "docker-proxy" if settings.gateway_container in facts.containers else None
    taken = {
        listener.port: listener
        for listener in facts.listeners
        if listener.process != ours and _overlap(listener.address, bind)
    }
    wanted = {service.port: (name, f"services.{name}.port") for name, service in settings.enabled().items()}
    if settings.tls.mode == "acme":
        wanted |= dict.fromkeys(ACME_PORTS, ("the ACME server", "another tls.mode"))
    return found + [
        Finding(
            f"port {port} for {name} is in use by {taken[port].process or 'another program'}",
            f"stop that program, or set {setting}",
        )
        for port, (name, setting) in wanted.items()
        if port in taken
    ]


def _overlap(address: str, bind: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """A listener on one address keeps another from being listened on; a wildcard of IPv6 takes IPv4 as well."""
    if address == "*":
        return True
    other = ipaddress.ip_address(address)
    return other == bind or other.is_unspecified or bind.is_unspecified


def _docker(facts: HostFacts, settings: Settings) -> list[Finding]:
    found = []
    try:
        merged_daemon_json(facts.daemon_json, settings)
    except AtelierError as error:
        found.append(Finding(error.message, error.hint))
    conflicts = docker_conflicts(facts)
    ours = {settings.gateway_container, *(service.container for service in settings.enabled().values())}
    if conflicts and facts.containers - ours:
        found.append(
            Finding(
                f"Docker from {', '.join(conflicts)} would be replaced by docker-ce, and these containers stopped: "
                f"{', '.join(sorted(facts.containers - ours))}",
                "stop them yourself first, or install docker-ce yourself",
            )
        )
    return found


def essential(deployment: Deployment, unreachable: Mapping[str, str]) -> dict[str, str]:
    """Without the sources of weights that have another one, or that may lie on the host."""
    models = deployment.settings.models
    spare, needed = set[str](), set[str]()
    for weight in deployment.missing_weights():
        sources = set(weight.probe_urls(models.mirrors, models.hub))
        stands_in_the_way = sources <= unreachable.keys() and not deployment.may_lie_there(weight)
        (needed if stands_in_the_way else spare).update(sources)
    return {url: reason for url, reason in unreachable.items() if url not in spare - needed}


UNRESOLVED = re.compile(r"resolv(?:e|ing) (?:host )?'?([A-Za-z0-9.-]+)")


def _sources(unreachable: Mapping[str, str]) -> list[Finding]:
    names = {url: UNRESOLVED.search(reason) for url, reason in unreachable.items()}
    unknown = dict.fromkeys(name[1].split(":")[0] for name in names.values() if name)
    return [*_unresolved(unknown), *_not_reached({url: unreachable[url] for url, name in names.items() if not name})]


def _unresolved(names: Iterable[str]) -> list[Finding]:
    return [
        Finding(
            f"the host cannot resolve the name {name} (DNS)",
            "check its DNS server (/etc/resolv.conf, `resolvectl`), or set `proxy`, or name a mirror",
        )
        for name in names
    ]


def _not_reached(reasons: Mapping[str, str]) -> list[Finding]:
    return [
        Finding(
            f"the host cannot reach {url}" + (f" ({reason})" if reason else ""),
            "is `make models-serve` running? It offers a store here at that address of the host"
            if _is_loopback(url)
            else "check its network and proxy (setting `proxy`; apt's own settings), or name a mirror",
        )
        for url, reason in reasons.items()
    ]


def _is_loopback(url: str) -> bool:
    name = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
