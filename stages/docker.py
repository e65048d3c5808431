"""Docker: the engine, compose and buildx, the daemon's settings, the loopback guard, the networks."""

import shlex
from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import StringCommand, deploy, operation

from atelier import deployment as decide
from atelier import render
from atelier.deployment import Deployment
from atelier.tree import File
from stages.operations import Lines, entries, merged_json, packages, unless

RUNS_WITH_SETTINGS = (
    "systemctl is-enabled -q docker && systemctl is-active -q docker "
    f'&& [ "$(stat -c %Y {decide.DAEMON_JSON})" -lt "$(date -d "$(systemctl show docker -p ActiveEnterTimestamp --value)" +%s)" ] '
    "&& echo yes"
)
"""The daemon reads its settings at start, so one that was up before the file changed has yet to be restarted."""


def _repository(deployment: Deployment) -> File:
    facts = deployment.facts
    text = (
        f"Types: deb\nURIs: https://download.docker.com/linux/{facts.os_id}\nSuites: {facts.os_codename}\n"
        f"Components: stable\nArchitectures: {facts.architecture}\nSigned-By: {decide.DOCKER_KEYRING}\n"
    )
    return File(decide.DOCKER_SOURCES, text.encode())


@operation()
def _networks(networks: tuple[render.Network, ...]) -> Iterator[StringCommand]:
    present = host.get_fact(Lines, script="docker network ls --format '{{.Name}}'")
    for network in networks:
        if network.name not in present:
            yield StringCommand(network.create_command())


@deploy("Docker")
def engine(deployment: Deployment) -> None:
    """A running Docker with our settings merged into its own."""
    if decide.uses_docker_ce(deployment.facts):
        conflicts = " ".join(shlex.quote(name) for name in decide.DOCKER_CONFLICTS)
        unless(
            name="Remove packages that conflict with docker-ce",
            probe=f"[ -n \"$(dpkg-query -W -f '${{db:Status-Status}} ' {conflicts} 2>/dev/null | grep -w installed)\" ] || echo none",
            script=f"DEBIAN_FRONTEND=noninteractive apt-get remove -y {conflicts}",
        )
        unless(
            name="Fetch Docker's signing key",
            probe=f"cat {decide.DOCKER_KEYRING}",
            # apt's own helper, because apt's own proxy settings lead to the repository as well.
            script=f"install -d /etc/apt/keyrings && rm -f {decide.DOCKER_KEYRING}.part && /usr/lib/apt/apt-helper download-file "
            f"https://download.docker.com/linux/{deployment.facts.os_id}/gpg {decide.DOCKER_KEYRING}.part "
            f"&& chmod 0644 {decide.DOCKER_KEYRING}.part && mv {decide.DOCKER_KEYRING}.part {decide.DOCKER_KEYRING}",
        )
        entries(name="Add Docker's repository", entries=(_repository(deployment),))
    merged_json(
        name="Merge settings into daemon.json",
        path=decide.DAEMON_JSON,
        values=decide.daemon_settings(deployment.settings),
    )
    entries(name="Install the loopback guard", entries=(render.loopback_guard(),))
    unless(
        name="Start the loopback guard",
        probe="systemctl is-enabled -q atelier-loopback-guard && systemctl is-active -q atelier-loopback-guard "
        f"&& iptables -w -t raw -C {render.LOOPBACK_RULE} && echo active",
        script="systemctl daemon-reload && systemctl enable -q atelier-loopback-guard && systemctl restart atelier-loopback-guard",
    )
    packages(name="Install Docker", names=decide.docker_packages(deployment.facts))
    unless(
        name="Start Docker with its settings",
        probe=RUNS_WITH_SETTINGS,
        script="systemctl enable -q docker; sleep 1; systemctl restart docker",
    )
    _networks(name="Create networks", networks=render.networks(deployment.settings))
