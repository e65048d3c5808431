"""Host basics: packages, the service user, directories, time, unattended upgrades that never restart the host."""

from pyinfra.api import deploy

from atelier import deployment as decide
from atelier.deployment import Deployment
from stages.operations import entries, finished, packages, unless


@deploy("Host")
def base(deployment: Deployment) -> None:
    """A host with what every later stage needs."""
    finished(name="Finish interrupted package installations")
    entries(name="Set apt's lock wait and unattended upgrades", entries=decide.APT_SETTINGS)
    packages(name="Install base packages", names=decide.host_packages(deployment.facts))
    if services := deployment.time_services():
        unless(
            name="Keep the time in sync",
            probe=f"systemctl is-active {' '.join(services)} | grep -x active",
            script=f"DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends {decide.TIME_PACKAGE} "
            f"&& systemctl enable -q --now {decide.TIME_PACKAGE}",
        )
    _places(deployment)


@deploy("Host")
def places(deployment: Deployment) -> None:
    """The service user and the directories alone."""
    _places(deployment)


def _places(deployment: Deployment) -> None:
    user, uid = deployment.settings.service_user, deployment.settings.service_uid
    unless(
        name=f"Create the system user {user}",
        probe=f"getent passwd {user}",
        script=f"{{ getent group {user} || groupadd --system --gid {uid} {user}; }} && useradd --system --uid {uid} "
        f"--gid {user} --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "
        f"--comment 'Atelier services' {user}",
    )
    entries(name="Make directories", entries=deployment.directories())
