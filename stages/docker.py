"""Docker: the engine, compose and buildx, the daemon's settings, the loopback guard, the networks."""

from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation

from atelier import deployment as decide
from atelier import docker_settings, paths, render, sources
from atelier.deployment import DAEMON_JSON, Deployment
from atelier.gpu import upkeep
from stages.operations import Lines, entries, packages, removed, repository, unless, whole


@operation()
def _daemon_json(deployment: Deployment) -> Iterator[StringCommand]:
    current = "\n".join(host.get_fact(Lines, script=whole(DAEMON_JSON)))
    if merged := decide.changed_daemon_json(current, deployment.settings):
        script = docker_settings.merge_script(deployment.facts.deployed)
        yield StringCommand(script, _stdin=merged.encode())


@operation()
def _networks(networks: tuple[render.Network, ...]) -> Iterator[StringCommand]:
    """Networks as declared; one of ours that is not is made again, and its containers with it, by the stages that follow."""
    inspect = "docker network inspect --format '{{.Name}} {{.Internal}} {{json .Options}}' "
    lines = host.get_fact(Lines, script=";".join(f"{inspect}{network.name} || :" for network in networks))
    present = {line.split(" ", 1)[0]: line for line in lines if line}
    for network in networks:
        if present.get(network.name) == network.signature():
            continue
        if network.name in present:
            attached = (
                f"docker network inspect --format '{{{{range .Containers}}}}{{{{.Name}}}} {{{{end}}}}' {network.name}"
            )
            yield StringCommand(f"docker rm -f $({attached}); docker network rm {network.name}")
        yield StringCommand(network.create_command())


@deploy("Docker")
def engine(deployment: Deployment) -> None:
    """A running Docker with our settings merged into its own."""
    facts = deployment.facts
    if decide.uses_docker_ce(facts) and "docker-ce" not in facts.packages:
        _repository(deployment)
    _daemon_json(name="Merge settings into daemon.json", deployment=deployment)
    entries(name="Install the loopback guard", entries=(render.loopback_guard(),))
    unless(
        name="Start the loopback guard",
        probe="systemctl is-enabled -q atelier-loopback-guard && systemctl is-active -q atelier-loopback-guard "
        "&& systemctl show atelier-loopback-guard -p NeedDaemonReload --value | grep -qx no "
        f"&& iptables -w -t raw -C {render.LOOPBACK_RULE} && iptables -w -t mangle -C {render.DIRECT_RULE} "
        "&& echo active",
        script="systemctl daemon-reload && systemctl enable -q atelier-loopback-guard "
        "&& systemctl restart atelier-loopback-guard",
    )
    if deployment.gpu.action != "none":
        entries(name="Order Docker after the making of the CDI specification", entries=upkeep.boot_files())
    entries(name="Have Docker wait for the disks of the data", entries=render.docker_waits(deployment.settings))
    packages(name="Install Docker", names=decide.docker_packages(facts))
    if deployment.gpu.action != "none":
        unless(name="Let systemd know that order", probe=upkeep.BOOT_FILES_KNOWN, script=upkeep.READ_BOOT_FILES)
    unless(name="Let systemd know what Docker waits for", probe=render.WAITS_KNOWN, script="systemctl daemon-reload")
    unless(
        name="Start Docker with its settings",
        probe=docker_settings.taken_probe(),
        script=docker_settings.restart_script(),
    )
    _networks(name="Create networks", networks=render.networks(deployment.settings))


@deploy("Docker")
def networks(deployment: Deployment) -> None:
    """The networks alone, for containers of other names."""
    _networks(name="Create networks", networks=render.networks(deployment.settings))


def _repository(deployment: Deployment) -> None:
    """Docker's own repository, on a host that has no docker-ce yet."""
    if conflicts := decide.docker_conflicts(deployment.facts):
        removed(name=f"Remove {' '.join(conflicts)}, which docker-ce replaces", names=conflicts)
    fingerprint = sources.read_lock(paths.PROJECT / sources.LOCK).nvidia.docker_key
    repository(name="Add Docker's repository", repository=decide.docker_repository(deployment.facts, fingerprint))
