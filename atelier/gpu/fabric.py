"""Fabric Manager: hosts with NVSwitch need it at exactly the driver's version, or CUDA does not start (error 802)."""

from dataclasses import replace

from atelier.errors import Finding
from atelier.gpu import routes
from atelier.gpu.cards import version
from atelier.gpu.driver import DriverDecision, there
from atelier.gpu.facts import GpuFacts, KernelModule, Package
from atelier.gpu.routes import Driver
from atelier.hostfacts import HostFacts
from atelier.settings import Settings


def needed(gpu: GpuFacts) -> bool:
    """The switches are this system's to manage: in a container or a vGPU guest they are the host's."""
    return gpu.nvswitches > 0 and not gpu.container and not gpu.vgpu


def complete(facts: HostFacts, settings: Settings, outcome: DriverDecision) -> DriverDecision:
    """The outcome with Fabric Manager, where it is needed and not there at the driver's version."""
    gpu = facts.gpu
    if not needed(gpu) or outcome.findings:
        return outcome
    reasons = (*outcome.reasons, "NVSwitch: Fabric Manager comes at the driver's version")
    if outcome.driver:
        packages = (*outcome.driver.packages, _name(facts, outcome.driver.branch))
        return replace(outcome, reasons=reasons, driver=replace(outcome.driver, packages=packages))
    driver = there(gpu)
    if any(version(package.version) == version(driver.version) for package in _installed(gpu)):
        return outcome
    if not routes.installed_packages(gpu):
        problem = f"NVSwitch needs nvidia-fabricmanager at exactly the driver's version, {driver.version}"
        finding = Finding(problem, "install it the way the driver was installed, then deploy again")
        return replace(outcome, findings=(finding,))
    return replace(outcome, reasons=reasons, driver=_alone(facts, settings, driver))


def _installed(gpu: GpuFacts) -> list[Package]:
    return [package for name, package in gpu.packages.items() if name.startswith("nvidia-fabricmanager")]


def _name(facts: HostFacts, branch: str) -> str:
    return f"nvidia-fabricmanager-{branch}" if facts.os_id == "ubuntu" else "nvidia-fabricmanager"


def _alone(facts: HostFacts, settings: Settings, driver: KernelModule) -> Driver:
    """Fabric Manager for a driver that stays. apt takes the beginning of a version with a star."""
    branch = driver.version.partition(".")[0]
    name = _name(facts, branch)
    candidate = facts.gpu.available.get(name, "")
    exact = candidate if version(candidate) == version(driver.version) else f"{driver.version}*"
    debian = facts.os_id == "debian"
    return Driver(
        "nvidia-repository" if debian else "ubuntu-archive",
        branch,
        driver.flavour,
        routes.debian_repository(facts, settings) if debian else None,
        remove=(),
        headers=(),
        pins=(),
        packages=(f"{name}={exact}",),
    )
