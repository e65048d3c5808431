"""The driver: keep the one that is there, install one, or say why neither can be."""

from dataclasses import dataclass, replace

from atelier.errors import Finding
from atelier.gpu import routes
from atelier.gpu.cards import FLOOR, UNKNOWN, best_flavour, modules, title, undriven, version
from atelier.gpu.facts import Flavour, GpuFacts, KernelModule
from atelier.gpu.inventory import Cards
from atelier.gpu.routes import Driver
from atelier.hostfacts import HostFacts
from atelier.settings import Settings

MAKE_KEY = {
    "bookworm": 'openssl req -new -x509 -nodes -days 36500 -newkey rsa:2048 -subj "/CN=DKMS module signing key" '
    "-keyout /var/lib/dkms/mok.key -outform DER -out /var/lib/dkms/mok.pub"
}
"""dkms 3.0 makes its key, like this, only when it first builds a module."""
CUDA_REPOSITORY = "developer.download.nvidia.com/compute/cuda/repos/ubuntu"


@dataclass(frozen=True)
class DriverDecision:
    """What is decided about the driver alone."""

    reasons: tuple[str, ...] = ()
    runs: str = FLOOR
    """The version that will run, as far as known."""
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    driver: Driver | None = None
    load: bool = False
    reboot: str = ""


def decide(facts: HostFacts, settings: Settings, cards: Cards) -> DriverDecision:
    """The driver for this host and these cards."""
    gpu = facts.gpu
    if kept := _keep(gpu, cards):
        if not _rejected(gpu):
            return kept
        if facts.os_id == "debian":
            return DriverDecision(findings=tuple(_unsigned(facts)))
    obstacle = _not_ours(gpu)
    if obstacle:
        return _keep_old(gpu, cards, obstacle) or DriverDecision(findings=(_without_driver(gpu, cards, obstacle),))
    installed = _install(facts, settings, cards)
    if installed.findings and gpu.devices:
        return _keep_old(gpu, cards, installed.findings[0]) or installed
    return installed


def there(gpu: GpuFacts) -> KernelModule:
    """The driver that the host has: that on disk, which the next start loads, before the loaded one."""
    return gpu.installed if gpu.installed.version else gpu.loaded


def _keep(gpu: GpuFacts, cards: Cards) -> DriverDecision | None:
    """The driver that is there, if its branch is maintained and it drives the cards that the services use."""
    present = there(gpu)
    maintained = version(present.version or FLOOR) >= version(FLOOR)
    if not _usable(gpu, cards) or not maintained:
        return None
    reason = f"driver {_described(present)} is there and drives {cards.names()}"
    unknown = f"its version is not known; PyTorch needs {FLOOR} or later"
    return _adopted(gpu, cards, reason, () if present.version else (unknown,))


def _keep_old(gpu: GpuFacts, cards: Cards, why: Finding) -> DriverDecision | None:
    """The old driver that is there, where no other can be installed and some build of PyTorch still runs on it."""
    if not _usable(gpu, cards):
        return None
    note = f"it is below {FLOOR}, the oldest still maintained, and stays because {why.problem}; to change that: {why.remedy}"
    return _adopted(gpu, cards, f"driver {_described(there(gpu))} is there and drives {cards.names()}", (note,))


def _usable(gpu: GpuFacts, cards: Cards) -> bool:
    """The driver that is there runs, or will after a restart, and PyTorch has a build for it and the cards in use."""
    present = there(gpu)
    if not gpu.devices and not (present.version and _complete(gpu)):
        return False
    if cards.variant(present.version or FLOOR) is None:
        return False
    if gpu.devices:
        return True
    missed = undriven(cards.wanted.values() or cards.usable, present.flavour)
    return (
        set(missed) <= set() if cards.wanted else set(missed) <= set(undriven(cards.usable, best_flavour(cards.usable)))
    )


def _complete(gpu: GpuFacts) -> bool:
    """Not only the module of an installation that was interrupted. A driver without packages has its own nvidia-smi."""
    return routes.has_userland(gpu) or not routes.installed_packages(gpu)


def _adopted(gpu: GpuFacts, cards: Cards, reason: str, notes: tuple[str, ...]) -> DriverDecision:
    """The driver that is there, and what it takes to make it run."""
    present = there(gpu)
    notes += tuple(
        f"{title(card)} is not driven by this driver and not used" for card in undriven(cards.usable, present.flavour)
    )
    adopted = DriverDecision((reason,), present.version or FLOOR, notes)
    if _bound_to_nouveau(gpu, cards):
        return replace(adopted, reboot="nouveau holds the GPU; it is blacklisted and gives way at a restart")
    if gpu.loaded.version and gpu.installed.version and gpu.loaded.version != gpu.installed.version:
        both = f"driver {gpu.loaded.version} is loaded and {gpu.installed.version} is installed"
        return replace(adopted, reboot=f"{both}; they do not work together")
    if gpu.devices:
        waiting = ("/run/reboot-required exists; the GPU does not need that restart",) if gpu.reboot_required else ()
        return replace(adopted, notes=notes + waiting)
    if gpu.reboot_required:
        return replace(adopted, reboot=_pending(gpu))
    if not gpu.loaded.version:
        return replace(adopted, load=True)
    said = gpu.smi_error or "lists no GPU"
    problem = f"driver {present.version} is loaded and nvidia-smi says: {said}"
    remedy = "restart the host; if that does not help, `make doctor` looks for the cause"
    return replace(adopted, findings=(Finding(problem, remedy),))


def _bound_to_nouveau(gpu: GpuFacts, cards: Cards) -> bool:
    """It holds a card that is wanted; beside a driver that works, it may keep another one for the screen."""
    return not gpu.devices and any(card.driver == "nouveau" for card in cards.usable)


def _pending(gpu: GpuFacts) -> str:
    return "/run/reboot-required exists: packages wait for a restart" if gpu.reboot_required else ""


def _described(module: KernelModule) -> str:
    return " ".join(part for part in (module.version, module.flavour and f"({module.flavour} modules)") if part)


def _not_ours(gpu: GpuFacts) -> Finding | None:
    """Why no driver may be installed here."""
    if gpu.container == "wsl":
        return Finding("this is WSL2, which uses the driver of Windows", "update NVIDIA's driver in Windows")
    if gpu.container:
        return Finding(
            f"this is a container ({gpu.container}), which uses the driver of its host",
            f"install driver {FLOOR} or later on that host, the same version's libraries here, and pass the GPU on",
        )
    if gpu.vgpu:
        return Finding(
            "this is a vGPU guest, whose driver must match that of the hypervisor",
            "install the guest driver that the hypervisor's vendor gives out",
        )
    if gpu.runfile:
        return Finding(
            "the driver was installed by NVIDIA's .run installer",
            f"remove it (nvidia-uninstall), restart, deploy again; or install {FLOOR} or later the same way",
        )
    if (there(gpu).version or gpu.devices) and not routes.installed_packages(gpu):
        return Finding(
            "the driver belongs to no package",
            f"remove it the way it was installed, restart, deploy again; or bring it to {FLOOR} or later",
        )
    return None


def _without_driver(gpu: GpuFacts, cards: Cards, obstacle: Finding) -> Finding:
    present = there(gpu)
    if not present.version:
        return Finding(f"no NVIDIA driver works here, and {obstacle.problem}", obstacle.remedy)
    problem = f"driver {_described(present)} cannot run PyTorch on {cards.names()}, and {obstacle.problem}"
    return Finding(problem, obstacle.remedy)


def _install(facts: HostFacts, settings: Settings, cards: Cards) -> DriverDecision:
    gpu = facts.gpu
    flavour = best_flavour(cards.usable)
    branch = "580" if flavour == "proprietary" else settings.gpu.driver_branch
    findings = [*_card_findings(cards, flavour), *_route_findings(facts, branch, flavour)]
    if findings:
        return DriverDecision(findings=tuple(findings))
    debian = facts.os_id == "debian"
    driver = (
        routes.debian_driver(facts, settings, branch, flavour)
        if debian
        else routes.ubuntu_driver(facts, branch, flavour)
    )
    origin = (
        "NVIDIA's repository (Debian's own is below it)" if debian else "Ubuntu's archive (modules signed by Ubuntu)"
    )
    reasons = [_why_install(gpu, cards), f"driver {branch} comes from {origin}", _why_flavour(cards, flavour)]
    if branch != settings.gpu.driver_branch:
        reasons.append(
            f"branch {branch}, not {settings.gpu.driver_branch}: later ones do not drive cards before Turing"
        )
    driver = replace(driver, unhold=tuple(sorted(gpu.held & {*routes.installed_packages(gpu)})))
    reboot = _why_reboot(facts, cards, driver)
    notes = [
        f"{title(card)} stays dark: no driver runs all cards of this host" for card in undriven(cards.usable, flavour)
    ]
    notes += [
        f'{title(card)} is not known here; should branch {branch} not drive it, set gpu.driver_branch: "595"'
        for card in cards.usable
        if int(card.device, 16) >= UNKNOWN
    ]
    if not debian and settings.gpu.driver_repository:
        notes.append("gpu.driver_repository is not used: on Ubuntu the driver comes from the archive")
    return DriverDecision(tuple(reasons), notes=tuple(notes), driver=driver, load=not reboot, reboot=reboot)


def _why_install(gpu: GpuFacts, cards: Cards) -> str:
    present = there(gpu)
    if not present.version:
        return "no NVIDIA driver is installed for the running kernel"
    if not _complete(gpu):
        return f"driver {_described(present)} is incomplete: its programs are missing"
    if version(present.version) < version(FLOOR):
        return f"driver {_described(present)} is below {FLOOR}, the oldest still maintained"
    return f"driver {_described(present)} does not drive {cards.names()}"


def _why_flavour(cards: Cards, flavour: Flavour) -> str:
    if flavour == "proprietary":
        return "proprietary modules: a card before Turing needs them, and 580 is their last branch for it"
    if any("proprietary" not in modules(card) for card in cards.usable):
        return "open modules: Blackwell and later cards need them"
    return "open modules: every card is Turing or later"


def _why_reboot(facts: HostFacts, cards: Cards, driver: Driver) -> str:
    gpu = facts.gpu
    if _bound_to_nouveau(gpu, cards):
        return "nouveau holds the GPU until a restart"
    if gpu.loaded.version:
        return f"driver {gpu.loaded.version} stays loaded until a restart"
    if driver.route == "ubuntu-archive" and not any(name.endswith(gpu.kernel) for name in driver.packages):
        return "the archive has modules for a later kernel only, which comes with them and runs after a restart"
    return _pending(gpu)


def _card_findings(cards: Cards, flavour: Flavour) -> list[Finding]:
    missed = undriven(cards.usable, flavour)
    if cards.usable and len(missed) == len(cards.usable):
        old = ", ".join(title(card) for card in missed)
        return [Finding(f"no driver that PyTorch can use drives {old}: older than Maxwell", "use a later card")]
    return [
        Finding(
            f"services.{name}.gpu: {title(card)} cannot be driven beside the host's other cards",
            "choose another card, or take one kind of card out of the host",
        )
        for name, card in cards.wanted.items()
        if card in missed
    ]


def _route_findings(facts: HostFacts, branch: str, flavour: Flavour) -> list[Finding]:
    if facts.os_id == "ubuntu" and facts.os_codename in routes.UBUNTU:
        return _ubuntu_findings(facts, branch, flavour)
    if facts.os_id == "debian" and facts.os_codename in routes.DEBIAN:
        return _debian_findings(facts)
    return [
        Finding(
            f"there is no known way to install a driver on {facts.os_name or 'this system'}",
            f"install driver {FLOOR} or later yourself, or use Debian 12 or 13, Ubuntu 22.04 or 24.04",
        )
    ]


def _ubuntu_findings(facts: HostFacts, branch: str, flavour: Flavour) -> list[Finding]:
    found = []
    stack = f"{branch}-server" + ("-open" if flavour == "open" else "")
    if any(CUDA_REPOSITORY in source for source in facts.gpu.sources):
        found.append(
            Finding(
                "NVIDIA's CUDA repository is enabled beside Ubuntu's archive, and their drivers do not mix",
                "apt-get purge cuda-keyring, remove cuda-*.list from /etc/apt/sources.list.d, apt-get update, deploy again",
            )
        )
    if not routes.ubuntu_modules(facts, stack):
        found.append(
            Finding(
                f"Ubuntu's archive has no NVIDIA {branch} modules for the running kernel {facts.gpu.kernel}",
                "enable the components restricted and multiverse and run apt-get update; if they are missing still, "
                "boot Ubuntu's current kernel (apt-get install linux-generic)",
            )
        )
    return found


def _rejected(gpu: GpuFacts) -> bool:
    """The kernel will not load the module that is there: DKMS built it, and the firmware does not know its key."""
    loads = gpu.loaded.version or gpu.devices or not gpu.secure_boot or gpu.mok_enrolled
    return not loads and any(routes.DRIVER_PACKAGE.match(name) and "dkms" in name for name in gpu.packages)


def _unsigned(facts: HostFacts) -> list[Finding]:
    """Secure Boot refuses modules that DKMS builds, until a person has enrolled its key."""
    if not facts.gpu.secure_boot or facts.gpu.mok_enrolled:
        return []
    return [
        Finding(
            "Secure Boot is on, and the key that signs the driver's modules is not enrolled",
            f"1. on the host: apt-get install dkms mokutil; {MAKE_KEY.get(facts.os_codename, 'dkms generate_mok')}; "
            "mokutil --import /var/lib/dkms/mok.pub; "
            "2. restart, and at the boot console choose Enroll MOK and type the password; then deploy again",
        )
    ]


def _debian_findings(facts: HostFacts) -> list[Finding]:
    gpu, found = facts.gpu, _unsigned(facts)
    # Without package lists apt knows no headers of any kernel; the deploy fetches the lists.
    if not gpu.headers and gpu.available:
        found.append(
            Finding(
                f"there are no headers for the running kernel {gpu.kernel}, so no module can be built for it",
                "boot the distribution's current kernel: apt-get update, apt-get install linux-image-amd64, restart "
                "into it (a later kernel that is installed beside it is started first: remove it)",
            )
        )
    return found
