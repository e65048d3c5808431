"""Host basics: packages, the service user, directories, unattended upgrades left sane."""

from pyinfra.api import deploy

from atelier import deployment as decide
from atelier.deployment import Deployment
from atelier.tree import File
from stages.operations import entries, packages, unless

LOCK_WAIT = File(
    "/etc/apt/apt.conf.d/90atelier-lock",
    b'// Wait for another package manager instead of failing.\nDPkg::Lock::Timeout "300";\n',
)


@deploy("Host")
def base(deployment: Deployment) -> None:
    """A host with what every later stage needs."""
    user, uid = deployment.settings.service_user, deployment.settings.service_uid
    unless(
        name="Finish interrupted package installations",
        probe='[ -n "$(dpkg --audit)" ] || echo sound',
        script="DEBIAN_FRONTEND=noninteractive dpkg --configure -a --force-confold",
    )
    entries(name="Let apt wait for its lock", entries=(LOCK_WAIT,))
    packages(name="Install base packages", names=decide.host_packages(deployment.facts))
    unless(
        name=f"Create the system user {user}",
        probe=f"getent passwd {user}",
        script=f"groupadd --system --gid {uid} {user} && useradd --system --uid {uid} --gid {uid} --no-create-home "
        f"--home-dir /nonexistent --shell /usr/sbin/nologin --comment 'Atelier services' {user}",
    )
    entries(name="Make directories", entries=deployment.directories())
