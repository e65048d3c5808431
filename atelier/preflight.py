"""Everything that would stop a deploy, found before anything is changed, all at once."""

from collections.abc import Mapping

from atelier import SCHEMA
from atelier.deployment import docker_conflicts
from atelier.errors import AtelierError, Finding
from atelier.gpu import devices
from atelier.hostfacts import HostFacts
from atelier.settings import Settings

GIB = 1 << 30
SUPPORTED = {
    ("debian", "bookworm"): "Debian 12",
    ("debian", "trixie"): "Debian 13",
    ("ubuntu", "jammy"): "Ubuntu 22.04",
    ("ubuntu", "noble"): "Ubuntu 24.04",
}
CLOCK_TOLERANCE = 300  # seconds; certificates and signed archives fail long before a day


def findings(facts: HostFacts, settings: Settings, now: float, unreachable: Mapping[str, str]) -> list[Finding]:
    """All reasons why a deploy would fail on this host.

    now: the operator's clock, seconds since the epoch. unreachable: the reason by source that the host could not reach.
    """
    return [
        *_system(facts, settings, now),
        *_space(facts, settings),
        *_ports(facts, settings),
        *_gpus(facts, settings),
        *_docker(facts, settings),
        *_sources(unreachable),
    ]


def _system(facts: HostFacts, settings: Settings, now: float) -> list[Finding]:
    found = []
    if (facts.os_id, facts.os_codename) not in SUPPORTED:
        found.append(
            Finding(
                f"{facts.os_name or 'this system'} is not supported", f"use one of: {', '.join(SUPPORTED.values())}"
            )
        )
    if facts.architecture not in ("amd64", "arm64"):
        found.append(Finding(f"architecture {facts.architecture} is not supported", "use a machine with amd64"))
    if abs(facts.clock - now) > CLOCK_TOLERANCE:
        found.append(
            Finding(
                f"the host's clock is {abs(facts.clock - now):.0f} s off this computer's",
                "set it: timedatectl set-ntp true",
            )
        )
    if facts.snap_docker:
        found.append(Finding("Docker is installed as a snap, which cannot use the GPU runtime", "snap remove docker"))
    if facts.lock_holder:
        found.append(
            Finding(f"the package manager is in use by: {facts.lock_holder}", "wait until it is done, then run again")
        )
    if facts.uid_owner not in ("", settings.service_user):
        found.append(
            Finding(
                f"user id {settings.service_uid} belongs to `{facts.uid_owner}` on this host",
                "set service_uid to a free number",
            )
        )
    if facts.service_user_uid not in ("", str(settings.service_uid)):
        found.append(
            Finding(
                f"user `{settings.service_user}` exists with id {facts.service_user_uid}, not {settings.service_uid}",
                f"set service_uid to {facts.service_user_uid}, or service_user to another name",
            )
        )
    if facts.schema.isdigit() and int(facts.schema) > SCHEMA:
        found.append(
            Finding(
                f"the host was deployed by a later release (state schema {facts.schema}; this one knows {SCHEMA})",
                "use that release",
            )
        )
    return found


def _space(facts: HostFacts, settings: Settings) -> list[Finding]:
    found = []
    wanted = settings.minimum_disk_gb * GIB
    if not facts.deployed:
        found += [
            Finding(
                f"{path} has {free / GIB:.0f} GB free, {settings.minimum_disk_gb} GB are wanted",
                "free some space, or point data_root at a larger disk",
            )
            for path, free in facts.disk_free.items()
            if free < wanted
        ]
    if facts.memory < settings.minimum_memory_gb * GIB * 0.93:  # firmware and kernel keep some of what was bought
        found.append(
            Finding(
                f"the host has {facts.memory / GIB:.0f} GB of memory, {settings.minimum_memory_gb} GB are wanted",
                "use a larger machine, or lower minimum_memory_gb at your own risk",
            )
        )
    return found


def _ports(facts: HostFacts, settings: Settings) -> list[Finding]:
    ours = "docker-proxy" if settings.gateway_container in facts.containers else None
    taken = {listener.port: listener for listener in facts.listeners if listener.process != ours}
    return [
        Finding(
            f"port {service.port} for {name} is in use by {taken[service.port].process or 'another program'}",
            f"stop that program, or set services.{name}.port",
        )
        for name, service in settings.enabled().items()
        if service.port in taken
    ]


def _docker(facts: HostFacts, settings: Settings) -> list[Finding]:
    conflicts = docker_conflicts(facts)
    ours = {settings.gateway_container, *(service.container for service in settings.enabled().values())}
    if not conflicts or not facts.containers - ours:
        return []
    return [
        Finding(
            f"Docker from {', '.join(conflicts)} would be replaced by docker-ce, and these containers stopped: "
            f"{', '.join(sorted(facts.containers - ours))}",
            "stop them yourself first, or install docker-ce yourself",
        )
    ]


def _gpus(facts: HostFacts, settings: Settings) -> list[Finding]:
    if settings.profile != "gpu":
        return []
    if not facts.gpu.devices:
        return [
            Finding(
                "no NVIDIA GPU answers on this host (`nvidia-smi`)",
                "install a driver of branch 580 or later; for a machine without a GPU set profile: cpu",
            )
        ]
    found = []
    for name, service in settings.enabled().items():
        try:
            device = devices.cdi_device(devices.choose(facts.gpu.devices, service.gpu, f"services.{name}.gpu").uuid)
        except AtelierError as error:
            found.append(Finding(error.message, error.hint))
            continue
        if device not in facts.gpu.cdi_devices:
            found.append(
                Finding(
                    f"the container toolkit does not know {device}",
                    "install nvidia-container-toolkit 1.19.1 or later and start nvidia-cdi-refresh.service",
                )
            )
    return found


def _sources(unreachable: Mapping[str, str]) -> list[Finding]:
    return [
        Finding(
            f"the host cannot reach {url}" + (f" ({reason})" if reason else ""),
            "check its network, DNS and proxy (setting `proxy`; apt's own settings), or name a mirror",
        )
        for url, reason in unreachable.items()
    ]
