"""The GPU host: driver, container toolkit, CDI. It carries a GpuPlan out and decides nothing; no operation restarts the host."""

from pyinfra.api import deploy

from atelier import apt
from atelier.deployment import Deployment
from atelier.gpu import upkeep
from atelier.gpu.plan import Driver
from stages.operations import entries, held, packages, removed, repository, unheld, unless


@deploy("Former driver")
def remove_former(deployment: Deployment) -> None:
    """Remove a driver that is to be replaced, once the repository of the next one is there.

    Before anything else is done with packages: one whose module did not build makes apt fail at everything.
    """
    wanted = deployment.gpu.driver
    if wanted and wanted.remove:
        _add_repository(wanted)
        removed(name=f"Remove {', '.join(wanted.remove)}", names=wanted.remove)


@deploy("Driver")
def driver(deployment: Deployment) -> None:
    """The driver, and what keeps it as it is. What needs a restart to work is started after it."""
    plan = deployment.gpu
    if plan.action not in ("adopt", "install"):
        return
    if plan.driver:
        _install(plan.driver)
    held(name="Hold the driver's packages", names=plan.holds)
    entries(name="Keep nouveau and unattended upgrades away from the driver", entries=plan.files)
    if settings := upkeep.module_settings(plan.files):
        stamp = upkeep.initramfs_stamp(deployment.settings.state_dir())
        unless(
            name="Bring the initramfs up to date",
            probe=upkeep.initramfs_probe(settings, stamp),
            script=upkeep.initramfs_script(settings, stamp),
        )
    if plan.load:
        unless(name="Load the driver", probe=upkeep.LOADED, script=upkeep.LOAD)
    if plan.gpus is not None:  # the driver runs
        for unit in plan.services:
            unless(name=f"Start {unit}", probe=upkeep.runs(unit), script=upkeep.run_script(unit))


def _add_repository(wanted: Driver) -> None:
    if wanted.repository:
        repository(name=f"Add the repository {wanted.repository.name}", repository=wanted.repository)


def _install(wanted: Driver) -> None:
    if wanted.unhold:
        unheld(name="Let the driver's packages be replaced", names=wanted.unhold)
    _add_repository(wanted)  # only now on a host that has nothing to remove: it may have lacked certificates before
    if wanted.headers:
        packages(name="Install the kernel's headers", names=wanted.headers)
    if wanted.pins:
        packages(name=f"Pin the driver to branch {wanted.branch}", names=wanted.pins)
    packages(name=f"Install the driver {wanted.branch}, {wanted.flavour} modules", names=wanted.packages)


@deploy("Container toolkit")
def toolkit(deployment: Deployment) -> None:
    """The container toolkit, and the CDI device of every service."""
    plan = deployment.gpu
    if plan.action not in ("adopt", "install"):
        return
    if plan.toolkit_repository:
        repository(name=f"Add the repository {plan.toolkit_repository.name}", repository=plan.toolkit_repository)
    packages(name="Install the container toolkit", names=plan.toolkit)
    held(name="Hold the container toolkit", names=tuple(apt.name_of(package) for package in plan.toolkit))
    unless(name="Have the CDI specification kept up to date", probe=upkeep.ENABLED, script=upkeep.ENABLE)
    devices = tuple(dict.fromkeys(deployment.gpu_devices().values()))
    unless(
        name="Have CDI know the GPU of every service",
        probe=upkeep.have_devices(devices),
        script=upkeep.refresh_script(devices),
    )
