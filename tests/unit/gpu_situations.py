"""Host situations, each named by a sentence, and what the plan for them must be. Pure data for test_gpu_plan.py."""

from dataclasses import dataclass, field, replace
from typing import Any

from atelier.gpu.devices import Gpu
from atelier.gpu.facts import GpuFacts, KernelModule, Package, PciGpu
from atelier.hostfacts import HostFacts

TRIXIE, BOOKWORM = "6.12.41+deb13-amd64", "6.1.0-37-amd64"
NOBLE, JAMMY = "6.8.0-45-generic", "5.15.0-122-generic"
SLOTS = ("0000:01:00.0", "0000:02:00.0")
CUDA_ON_UBUNTU = "https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64/"

UBUNTUS, DEBIANS, NVIDIAS = (
    "Ubuntu Core Developers <u@lists.ubuntu.com>",
    "Debian NVIDIA Maintainers",
    "cudatools@nvidia.com",
)
KEPLER, MAXWELL, PASCAL, VOLTA, TURING = "0x102d", "0x1340", "0x1b38", "0x1dff", "0x1e00"
AMPERE, ADA, HOPPER, B200, BLACKWELL, UNKNOWN = "0x2204", "0x2684", "0x2330", "0x2901", "0x2b85", "0x3f00"
NAMES = {
    KEPLER: ("Tesla K80", 11441, "3.7"),
    PASCAL: ("Tesla P40", 24576, "6.1"),
    VOLTA: ("Tesla V100", 16384, "7.0"),
    TURING: ("Quadro RTX 6000", 24576, "7.5"),
    AMPERE: ("NVIDIA GeForce RTX 3090", 24576, "8.6"),
    ADA: ("NVIDIA GeForce RTX 4090", 24564, "8.9"),
    HOPPER: ("NVIDIA H100 80GB HBM3", 81559, "9.0"),
    BLACKWELL: ("NVIDIA GeForce RTX 5090", 32607, "12.0"),
}

TOOLKIT = (
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
)
LOCKED, UUID, SECOND = "1.20.2-1", "GPU-0", "GPU-1"


def cards(*devices: str, driver: str = "") -> tuple[PciGpu, ...]:
    """One card in each slot."""
    return tuple(PciGpu(SLOTS[index], device, driver) for index, device in enumerate(devices))


def listed(*devices: str) -> tuple[Gpu, ...]:
    """The same cards as nvidia-smi lists them."""
    return tuple(Gpu(i, f"GPU-{i}", *NAMES[device], SLOTS[i]) for i, device in enumerate(devices))


def running(version: str, flavour: Any, *devices: str, **more: Any) -> GpuFacts:
    """A driver that works for these cards."""
    module = KernelModule(version, flavour)
    found = {
        "pci": cards(*devices, driver="nvidia"),
        "devices": listed(*devices),
        "loaded": module,
        "installed": module,
    }
    return GpuFacts(**{**found, **more})


def packages(version: str, maintainer: str, *names: str) -> dict[str, Package]:
    """Installed packages of one version and origin."""
    return {name: Package(version, maintainer) for name in names}


def archive(version: str = "580.95.05", stack: str = "580-server-open", kernel: str = NOBLE) -> dict[str, Package]:
    """Ubuntu's own driver."""
    userland = f"nvidia-utils-{stack.removesuffix('-open')}"
    names = (f"linux-modules-nvidia-{stack}-{kernel}", f"nvidia-headless-no-dkms-{stack}", userland)
    return packages(f"{version}-0ubuntu0.24.04.1", UBUNTUS, *names)


def network(version: str = "580.95.05", dkms: str = "nvidia-kernel-open-dkms") -> dict[str, Package]:
    """The driver of NVIDIA's repository on Debian."""
    return packages(f"{version}-1", NVIDIAS, "nvidia-driver-cuda", dkms, "nvidia-persistenced")


def debian(gpu: GpuFacts, codename: str = "trixie", headers: Any = "available", **more: Any) -> HostFacts:
    """Debian on amd64, headers at hand."""
    kernel = TRIXIE if codename == "trixie" else BOOKWORM
    gpu = replace(gpu, kernel=gpu.kernel or kernel, headers=headers)
    return HostFacts(**{"os_id": "debian", "os_codename": codename, "architecture": "amd64", "gpu": gpu, **more})


def ubuntu(gpu: GpuFacts, codename: str = "noble", **more: Any) -> HostFacts:
    """Ubuntu on amd64."""
    gpu = replace(gpu, kernel=gpu.kernel or (NOBLE if codename == "noble" else JAMMY))
    return HostFacts(**{"os_id": "ubuntu", "os_codename": codename, "architecture": "amd64", "gpu": gpu, **more})


BLACKLIST = ("nvidia-", "libnvidia-", "linux-modules-nvidia-", "cuda-", "linux-image-", "linux-headers-")


@dataclass(frozen=True)
class Plan:
    """What must be so; None is not looked at. Fragments of sentences for reasons, notes, refusals and reboot."""

    action: str
    torch: str | None = None
    route: str | None = None
    branch: str | None = None
    flavour: str | None = None
    packages: tuple[str, ...] | None = None
    remove: tuple[str, ...] | None = None
    headers: tuple[str, ...] | None = None
    pins: tuple[str, ...] | None = None
    unhold: tuple[str, ...] | None = None
    source: str | None = None
    reboot: str = ""
    load: bool = False
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    no_notes: bool = False
    refusals: tuple[tuple[str, str], ...] = ()
    gpus: dict[str, str] | None = None
    units: tuple[str, ...] | None = None
    holds: tuple[str, ...] | None = None
    toolkit: str | None = None
    toolkit_source: str | None = None
    blacklist: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Situation:
    facts: HostFacts
    expected: Plan
    settings: dict[str, Any] = field(default_factory=dict)


BOTH = {"comfyui": UUID, "forge": UUID}
PERSISTENCE = ("nvidia-persistenced.service",)
FABRIC = (*PERSISTENCE, "nvidia-fabricmanager.service")
OPEN = (f"linux-modules-nvidia-580-server-open-{NOBLE}", "linux-modules-nvidia-580-server-open-generic")
HEADLESS = ("nvidia-headless-no-dkms-580-server-open", "nvidia-utils-580-server")
DEBIAN_OPEN = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced")
DEBIAN_PROPRIETARY = ("nvidia-driver-cuda", "nvidia-kernel-dkms", "nvidia-persistenced")


def service(**gpus: Any) -> dict[str, Any]:
    """Settings: the GPU of each service."""
    return {"services": {name: {"gpu": gpu} for name, gpu in gpus.items()}}


def branch(number: str) -> dict[str, Any]:
    return {"gpu": {"driver_branch": number}}


MIRROR = {"url": "https://mirror.example/x", "key_url": "https://mirror.example/key", "fingerprint": "A" * 40}

ON_DEBIAN = Plan("install", "cu130", "nvidia-repository", "580", "open", DEBIAN_OPEN, load=True)
ON_UBUNTU = Plan("install", "cu130", "ubuntu-archive", "580", "open", (*OPEN, *HEADLESS), load=True)
ADOPTED = Plan("adopt", "cu130", gpus=BOTH)

SITUATIONS: dict[str, Situation] = {
    "the profile is cpu, whatever the host has": Situation(
        debian(GpuFacts(pci=cards(ADA))), Plan("none", "cpu"), {"profile": "cpu"}
    ),
    "a simulated card is planned for like a real one": Situation(
        debian(GpuFacts(pci=cards(ADA))), ON_DEBIAN, {"profile": "gpu-simulated"}
    ),
    # Nothing installed: route, flavour, branch
    "a bare Debian 13 with an Ada card": Situation(
        debian(GpuFacts(pci=cards(ADA))),
        replace(
            ON_DEBIAN,
            source="https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/",
            pins=("nvidia-driver-pinning-580",),
            headers=(f"linux-headers-{TRIXIE}", "linux-headers-amd64"),
            remove=(),
            units=PERSISTENCE,
            holds=("nvidia-driver-cuda", "nvidia-driver-pinning-580", "nvidia-kernel-open-dkms", "nvidia-persistenced"),
            blacklist=BLACKLIST,
            toolkit=LOCKED,
            toolkit_source="https://nvidia.github.io/libnvidia-container/stable/deb/amd64/",
            reasons=("no NVIDIA driver", "Turing or later"),
        ),
    ),
    "a bare Debian 12, whose kernel has an ABI number": Situation(
        debian(GpuFacts(pci=cards(AMPERE)), "bookworm"),
        replace(
            ON_DEBIAN, source="repos/debian12/x86_64/", headers=(f"linux-headers-{BOOKWORM}", "linux-headers-amd64")
        ),
    ),
    "a Debian cloud image, whose kernel has a flavour of its own": Situation(
        debian(GpuFacts(pci=cards(ADA), kernel="6.12.41+deb13-cloud-amd64")),
        replace(ON_DEBIAN, headers=("linux-headers-6.12.41+deb13-cloud-amd64", "linux-headers-cloud-amd64")),
    ),
    "Debian without contrib, which NVIDIA's packages need": Situation(
        debian(GpuFacts(pci=cards(ADA), contrib=("deb http://mirror.example.org/debian trixie contrib",))),
        replace(ON_DEBIAN, source="deb http://mirror.example.org/debian trixie contrib"),
    ),
    "NVIDIA's repository is enabled on Debian already, under the operator's own key file": Situation(
        debian(
            GpuFacts(
                pci=cards(ADA),
                sources=frozenset({"https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/"}),
            )
        ),
        replace(ON_DEBIAN, source=""),
    ),
    "a mirror of both repositories": Situation(
        debian(GpuFacts(pci=cards(ADA))),
        replace(ON_DEBIAN, source="https://mirror.example/x/ /", toolkit_source="https://mirror.example/x/ /"),
        {"gpu": {"driver_repository": MIRROR, "toolkit_repository": MIRROR}},
    ),
    "arm64 on Debian": Situation(
        debian(GpuFacts(pci=cards(HOPPER), kernel="6.12.41+deb13-arm64"), architecture="arm64"),
        Plan("refuse", refusals=(("architecture arm64 is not supported", "amd64"),)),
    ),
    "a bare Ubuntu 24.04 with an Ada card": Situation(
        ubuntu(GpuFacts(pci=cards(ADA))),
        replace(
            ON_UBUNTU,
            source="",
            headers=(),
            pins=(),
            remove=(),
            units=PERSISTENCE,
            holds=(OPEN[0], *HEADLESS),
            blacklist=BLACKLIST,
            reasons=("no NVIDIA driver", "signed by Ubuntu"),
        ),
    ),
    "a bare Ubuntu 22.04 with a Pascal card: objects and signatures are linked on the host": Situation(
        ubuntu(GpuFacts(pci=cards(PASCAL)), "jammy"),
        replace(
            ON_UBUNTU,
            torch="cu126",
            flavour="proprietary",
            packages=(
                f"linux-modules-nvidia-580-server-{JAMMY}",
                f"linux-objects-nvidia-580-server-{JAMMY}",
                f"linux-signatures-nvidia-{JAMMY}",
                "linux-modules-nvidia-580-server-generic",
                "nvidia-headless-no-dkms-580-server",
                "nvidia-utils-580-server",
            ),
        ),
    ),
    "Ubuntu 22.04 on a hardware enablement kernel": Situation(
        ubuntu(GpuFacts(pci=cards(ADA), kernel=NOBLE), "jammy"),
        replace(ON_UBUNTU, packages=(OPEN[0], "linux-modules-nvidia-580-server-open-generic-hwe-22.04", *HEADLESS)),
    ),
    "Ubuntu 24.04 on a cloud kernel": Situation(
        ubuntu(GpuFacts(pci=cards(AMPERE), kernel="6.14.0-1018-aws")),
        replace(
            ON_UBUNTU,
            packages=(
                "linux-modules-nvidia-580-server-open-6.14.0-1018-aws",
                "linux-modules-nvidia-580-server-open-aws",
                *HEADLESS,
            ),
        ),
    ),
    "Ubuntu whose archive has dropped the modules of the running kernel": Situation(
        ubuntu(GpuFacts(pci=cards(ADA), available={OPEN[1]: "6.8.0-90.91"})),
        replace(ON_UBUNTU, packages=(OPEN[1], *HEADLESS), reboot="modules for a later kernel only"),
    ),
    "Ubuntu whose archive has no NVIDIA modules for this kernel at all": Situation(
        ubuntu(GpuFacts(pci=cards(ADA), kernel="6.9.1-mainline", available={"dkms": "3.0"})),
        Plan("refuse", refusals=(("no NVIDIA 580 modules for the running kernel 6.9.1-mainline", "restricted"),)),
    ),
    "a mirror of the driver is set for Ubuntu, which does not use it": Situation(
        ubuntu(GpuFacts(pci=cards(ADA))),
        replace(ON_UBUNTU, source="", notes=("driver_repository is not used",)),
        {"gpu": {"driver_repository": MIRROR}},
    ),
    "the oldest Maxwell id": Situation(
        debian(GpuFacts(pci=cards(MAXWELL))),
        replace(
            ON_DEBIAN, torch="cu126", flavour="proprietary", packages=DEBIAN_PROPRIETARY, reasons=("before Turing",)
        ),
    ),
    "the last id before Turing, a Volta": Situation(
        debian(GpuFacts(pci=cards(VOLTA))),
        replace(ON_DEBIAN, torch="cu126", flavour="proprietary", packages=DEBIAN_PROPRIETARY),
    ),
    "the first Turing id": Situation(debian(GpuFacts(pci=cards(TURING))), ON_DEBIAN),
    "a Blackwell card": Situation(debian(GpuFacts(pci=cards(BLACKWELL))), ON_DEBIAN),
    "a card whose id nobody knows yet": Situation(
        debian(GpuFacts(pci=cards(UNKNOWN))), replace(ON_DEBIAN, notes=("not known here", 'driver_branch: "595"'))
    ),
    "branch 595 for a Blackwell card on Debian": Situation(
        debian(GpuFacts(pci=cards(BLACKWELL))),
        replace(ON_DEBIAN, branch="595", pins=("nvidia-driver-pinning-595",)),
        branch("595"),
    ),
    "branch 595 on Ubuntu": Situation(
        ubuntu(GpuFacts(pci=cards(BLACKWELL))),
        replace(
            ON_UBUNTU,
            branch="595",
            packages=(
                f"linux-modules-nvidia-595-server-open-{NOBLE}",
                "linux-modules-nvidia-595-server-open-generic",
                "nvidia-headless-no-dkms-595-server-open",
                "nvidia-utils-595-server",
            ),
        ),
        branch("595"),
    ),
    "branch 595 is set for a Pascal card, which 580 drives last": Situation(
        debian(GpuFacts(pci=cards(PASCAL))),
        replace(
            ON_DEBIAN,
            torch="cu126",
            flavour="proprietary",
            packages=DEBIAN_PROPRIETARY,
            pins=("nvidia-driver-pinning-580",),
            reasons=("branch 580, not 595",),
        ),
        branch("595"),
    ),
    "a Kepler card only": Situation(
        debian(GpuFacts(pci=cards(KEPLER))), Plan("refuse", refusals=(("older than Maxwell", "use a later card"),))
    ),
    "no GPU at all": Situation(debian(GpuFacts()), Plan("refuse", refusals=(("no NVIDIA GPU", "profile: cpu"),))),
    "a distribution without a known route": Situation(
        HostFacts("fedora", "", "Fedora 42", "amd64", gpu=GpuFacts(pci=cards(ADA))),
        Plan("refuse", refusals=(("no known way to install a driver on Fedora 42", "Debian 12 or 13"),)),
    ),
    # Mixed cards
    "Pascal beside Ada: the proprietary 580 drives both": Situation(
        debian(GpuFacts(pci=cards(PASCAL, ADA))),
        replace(ON_DEBIAN, torch="cu130", flavour="proprietary", packages=DEBIAN_PROPRIETARY),
        service(comfyui="1", forge="1"),
    ),
    "Pascal beside Ada, one for each service: one build of PyTorch for both": Situation(
        debian(GpuFacts(pci=cards(PASCAL, ADA))),
        replace(ON_DEBIAN, torch="cu126", flavour="proprietary", packages=DEBIAN_PROPRIETARY),
        service(comfyui="0", forge="1"),
    ),
    "Pascal beside Blackwell: the old card stays dark": Situation(
        debian(GpuFacts(pci=cards(PASCAL, BLACKWELL))),
        replace(ON_DEBIAN, notes=("0000:01:00.0 (device id 0x1b38) stays dark",)),
        service(comfyui="1", forge="1"),
    ),
    "Pascal beside Blackwell, and a service wants the old card": Situation(
        debian(GpuFacts(pci=cards(PASCAL, BLACKWELL))),
        Plan("refuse", refusals=(("services.forge.gpu: 0000:01:00.0 (device id 0x1b38) cannot", "choose another"),)),
        service(comfyui="1", forge="0"),
    ),
    "Kepler beside Ada: only the Ada card counts": Situation(
        debian(GpuFacts(pci=cards(KEPLER, ADA))),
        replace(ON_DEBIAN, notes=("0x102d) stays dark",)),
        service(comfyui="1", forge="1"),
    ),
    "Kepler beside Ada, chosen by name: only the Ada card counts": Situation(
        debian(GpuFacts(pci=cards(KEPLER, ADA))), ON_DEBIAN, service(comfyui="4090", forge="4090")
    ),
    # Secure Boot, headers, nouveau
    "Secure Boot on Ubuntu: the archive's modules are signed": Situation(
        ubuntu(GpuFacts(pci=cards(ADA), secure_boot=True)), ON_UBUNTU
    ),
    "Secure Boot on Debian without an enrolled key": Situation(
        debian(GpuFacts(pci=cards(ADA), secure_boot=True)),
        Plan("refuse", refusals=(("Secure Boot is on", "mokutil --import /var/lib/dkms/mok.pub"),)),
    ),
    "Secure Boot on Debian 12, whose dkms makes no key by itself": Situation(
        debian(GpuFacts(pci=cards(ADA), secure_boot=True), "bookworm"),
        Plan("refuse", refusals=(("Secure Boot is on", "openssl req -new -x509"),)),
    ),
    "Secure Boot on Debian with the key enrolled": Situation(
        debian(GpuFacts(pci=cards(ADA), secure_boot=True, mok_enrolled=True)), ON_DEBIAN
    ),
    "a driver that DKMS built, never loaded, under Secure Boot without an enrolled key": Situation(
        debian(
            GpuFacts(pci=cards(ADA), installed=KernelModule("580.95.05", "open"), packages=network(), secure_boot=True)
        ),
        Plan("refuse", refusals=(("Secure Boot is on", "Enroll MOK"),)),
    ),
    "the same while nouveau holds the card": Situation(
        debian(
            GpuFacts(
                pci=cards(ADA, driver="nouveau"),
                installed=KernelModule("580.95.05", "open"),
                packages=network(),
                secure_boot=True,
            )
        ),
        Plan("refuse", refusals=(("Secure Boot is on", "Enroll MOK"),)),
    ),
    "the same with the key enrolled": Situation(
        debian(
            GpuFacts(
                pci=cards(ADA),
                installed=KernelModule("580.95.05", "open"),
                packages=network(),
                secure_boot=True,
                mok_enrolled=True,
            )
        ),
        Plan("adopt", "cu130", load=True),
    ),
    "Ubuntu, where DKMS built the driver under Secure Boot: the archive's signed modules take its place": Situation(
        ubuntu(
            GpuFacts(
                pci=cards(ADA),
                installed=KernelModule("580.95.05", "open"),
                packages=packages("580.95.05-0ubuntu1", UBUNTUS, "nvidia-dkms-580-open", "nvidia-utils-580"),
                secure_boot=True,
            )
        ),
        replace(ON_UBUNTU, remove=("nvidia-dkms-580-open", "nvidia-utils-580")),
    ),
    "the driver's packages are held and give way to another branch's": Situation(
        debian(
            running(
                "550.163.01",
                "open",
                ADA,
                packages=packages("550.163.01-1", NVIDIAS, "nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1"),
                held=frozenset({"libcuda1", "linux-image-amd64"}),
            )
        ),
        replace(ON_DEBIAN, reboot="stays loaded", gpus=BOTH, unhold=("libcuda1",)),
    ),
    "a Debian kernel that has no headers any more": Situation(
        debian(GpuFacts(pci=cards(ADA), available={"dkms": "3.2"}, kernel="6.12.20-amd64"), headers=""),
        Plan("refuse", refusals=(("no headers for the running kernel 6.12.20-amd64", "linux-image-amd64"),)),
    ),
    "a fresh Debian image without package lists: the deploy will fetch them": Situation(
        debian(GpuFacts(pci=cards(ADA)), headers=""), ON_DEBIAN
    ),
    "nouveau holds the card of a bare host": Situation(
        debian(GpuFacts(pci=cards(ADA, driver="nouveau"))),
        replace(ON_DEBIAN, load=False, reboot="nouveau holds the GPU"),
    ),
    "the driver is installed and nouveau holds the card": Situation(
        ubuntu(
            GpuFacts(
                pci=cards(ADA, driver="nouveau"),
                installed=KernelModule("580.95.05", "open"),
                packages=archive(),
            )
        ),
        Plan("adopt", "cu130", reboot="nouveau holds the GPU", blacklist=None),
    ),
    "a working driver, and nouveau on an old card for the screen": Situation(
        debian(
            running(
                "580.95.05",
                "open",
                ADA,
                packages=network(),
                pci=(PciGpu(SLOTS[0], ADA, "nvidia"), PciGpu(SLOTS[1], KEPLER, "nouveau")),
            )
        ),
        replace(ADOPTED, notes=("0000:02:00.0 (device id 0x102d) is not driven by this driver",)),
    ),
    "updates wait for a restart before an installation": Situation(
        ubuntu(GpuFacts(pci=cards(ADA), reboot_required=True)), replace(ON_UBUNTU, reboot="/run/reboot-required")
    ),
    # Drivers that work
    "a working 580 from Ubuntu's archive": Situation(
        ubuntu(running("580.95.05", "open", ADA, packages=archive())),
        replace(
            ADOPTED,
            reasons=("driver 580.95.05 (open modules) is there",),
            units=PERSISTENCE,
            holds=tuple(sorted(archive())),
            blacklist=BLACKLIST,
        ),
    ),
    "a working 580 from NVIDIA's repository on Debian, with its pin": Situation(
        debian(
            running(
                "580.95.05",
                "open",
                ADA,
                packages=network() | packages("580-1", NVIDIAS, "nvidia-driver-pinning-580"),
            )
        ),
        replace(
            ADOPTED,
            holds=("nvidia-driver-cuda", "nvidia-driver-pinning-580", "nvidia-kernel-open-dkms", "nvidia-persistenced"),
            blacklist=BLACKLIST,
        ),
    ),
    "exactly the lowest driver": Situation(
        ubuntu(running("580.65.06", "open", ADA, packages=archive("580.65.06"))), ADOPTED
    ),
    "one release below the lowest driver": Situation(
        ubuntu(running("580.65.05", "open", ADA, packages=archive("580.65.05"))),
        replace(ON_UBUNTU, load=True, reboot="580.65.05 stays loaded", gpus=BOTH),
    ),
    "a working driver of a later branch than any known here": Situation(
        ubuntu(running("615.71.09", "open", BLACKWELL, packages=archive("615.71.09", "615-server-open"))), ADOPTED
    ),
    "a working driver and updates that wait for a restart": Situation(
        ubuntu(running("580.95.05", "open", ADA, packages=archive(), reboot_required=True)),
        replace(ADOPTED, notes=("the GPU does not need that restart",)),
    ),
    "a working 580 with a Pascal card": Situation(
        debian(running("580.95.05", "proprietary", PASCAL, packages=network(dkms="nvidia-kernel-dkms"))),
        replace(ADOPTED, torch="cu126"),
    ),
    "a working 580 with a Volta card, which the later PyTorch has left": Situation(
        debian(running("580.95.05", "proprietary", VOLTA, packages=network())), replace(ADOPTED, torch="cu126")
    ),
    "a working 580 with a Hopper card": Situation(
        debian(running("580.95.05", "open", HOPPER, packages=network())), ADOPTED
    ),
    "nvidia-smi is too old to tell the compute capability: the device id does": Situation(
        debian(
            running(
                "580.95.05",
                "proprietary",
                PASCAL,
                packages=network(),
                devices=(Gpu(0, UUID, "Tesla P40", 24576, "[N/A]", SLOTS[0]),),
            )
        ),
        replace(ADOPTED, torch="cu126"),
    ),
    "a working 580 and NVIDIA's CUDA repository on Ubuntu": Situation(
        ubuntu(running("580.95.05", "open", ADA, packages=archive(), sources=frozenset({CUDA_ON_UBUNTU}))),
        replace(ADOPTED, notes=("CUDA repository is enabled; its driver is held",)),
    ),
    "Secure Boot on Debian with a working driver": Situation(
        debian(running("580.95.05", "open", ADA, packages=network(), secure_boot=True)), ADOPTED
    ),
    # Drivers to replace
    "a cloud image of Ubuntu with 550 from the archive": Situation(
        ubuntu(running("550.163.01", "proprietary", ADA, packages=archive("550.163.01", "550-server"))),
        replace(
            ON_UBUNTU,
            remove=tuple(sorted(archive(stack="550-server"))),
            reboot="550.163.01 stays loaded",
            reasons=("550.163.01 (proprietary modules) is below 580.65.06",),
            gpus=BOTH,
        ),
    ),
    "a cloud image of Ubuntu with 550 from NVIDIA's CUDA repository, still enabled: it works, so it stays": Situation(
        ubuntu(
            running(
                "550.163.01",
                "open",
                AMPERE,
                packages=packages("550.163.01-1", NVIDIAS, "nvidia-utils-550", "nvidia-dkms-550-open"),
                sources=frozenset({CUDA_ON_UBUNTU}),
            )
        ),
        Plan("adopt", "cu126", gpus=BOTH, notes=("below 580.65.06", "CUDA repository", "apt-get purge cuda-keyring")),
    ),
    "a bare Ubuntu with NVIDIA's CUDA repository enabled": Situation(
        ubuntu(GpuFacts(pci=cards(ADA), sources=frozenset({CUDA_ON_UBUNTU}))),
        Plan("refuse", refusals=(("drivers do not mix", "apt-get purge cuda-keyring"),), no_notes=True),
    ),
    "NVIDIA's driver without a number in its names, left behind on Ubuntu": Situation(
        ubuntu(
            GpuFacts(
                pci=cards(ADA),
                packages=packages("575.57.08-1", NVIDIAS, "libnvidia-compute", "nvidia-dkms-open"),
                installed=KernelModule("575.57.08", "open"),
            )
        ),
        replace(ON_UBUNTU, remove=("libnvidia-compute", "nvidia-dkms-open")),
    ),
    "the desktop driver 535 on Ubuntu": Situation(
        ubuntu(
            running(
                "535.183.01",
                "proprietary",
                ADA,
                packages=packages(
                    "535.183.01-0ubuntu1", UBUNTUS, "nvidia-driver-535", "nvidia-utils-535", "nvidia-settings"
                ),
            )
        ),
        replace(ON_UBUNTU, remove=("nvidia-driver-535", "nvidia-utils-535"), reboot="stays loaded", gpus=BOTH),
    ),
    "Debian's own 550, which works": Situation(
        debian(
            running(
                "550.163.01",
                "proprietary",
                ADA,
                packages=packages(
                    "550.163.01-2", DEBIANS, "nvidia-driver", "nvidia-smi", "nvidia-kernel-dkms", "nvidia-support"
                ),
            )
        ),
        replace(
            ON_DEBIAN,
            remove=("nvidia-driver", "nvidia-kernel-dkms", "nvidia-smi"),
            reboot="550.163.01 stays loaded",
            gpus=BOTH,
        ),
    ),
    "Debian's own 550, which works, under Secure Boot without an enrolled key: it stays": Situation(
        debian(
            running(
                "550.163.01", "proprietary", ADA, packages=packages("550-2", DEBIANS, "nvidia-smi"), secure_boot=True
            )
        ),
        Plan("adopt", "cu126", gpus=BOTH, notes=("below 580.65.06", "mokutil --import")),
    ),
    "Debian's own 550, whose Blackwell card does not answer, under Secure Boot without an enrolled key": Situation(
        debian(
            GpuFacts(
                pci=cards(BLACKWELL, driver="nvidia"),
                loaded=KernelModule("550.163.01", "proprietary"),
                installed=KernelModule("550.163.01", "proprietary"),
                smi_error="No devices were found",
                packages=packages("550-2", DEBIANS, "nvidia-smi"),
                secure_boot=True,
            )
        ),
        Plan("refuse", refusals=(("Secure Boot is on", "Enroll MOK"),)),
    ),
    "580 with proprietary modules on a Blackwell card, Ubuntu": Situation(
        ubuntu(
            GpuFacts(
                pci=cards(BLACKWELL, driver="nvidia"),
                loaded=KernelModule("580.95.05", "proprietary"),
                installed=KernelModule("580.95.05", "proprietary"),
                smi_error="No devices were found",
                packages=archive(stack="580-server"),
            )
        ),
        replace(
            ON_UBUNTU,
            remove=(f"linux-modules-nvidia-580-server-{NOBLE}", "nvidia-headless-no-dkms-580-server"),
            reboot="580.95.05 stays loaded",
            reasons=("580.95.05 (proprietary modules) does not drive",),
        ),
    ),
    "580 with proprietary modules on a Blackwell card, Debian": Situation(
        debian(
            GpuFacts(
                pci=cards(BLACKWELL, driver="nvidia"),
                loaded=KernelModule("580.95.05", "proprietary"),
                installed=KernelModule("580.95.05", "proprietary"),
                smi_error="No devices were found",
                packages=network(dkms="nvidia-kernel-dkms"),
            )
        ),
        replace(ON_DEBIAN, remove=("nvidia-kernel-dkms",), reboot="580.95.05 stays loaded"),
    ),
    "580 with open modules on a Pascal card, Ubuntu": Situation(
        ubuntu(
            GpuFacts(
                pci=cards(PASCAL, driver="nvidia"),
                loaded=KernelModule("580.95.05", "open"),
                installed=KernelModule("580.95.05", "open"),
                smi_error="No devices were found",
                packages=archive(),
            )
        ),
        replace(
            ON_UBUNTU,
            torch="cu126",
            flavour="proprietary",
            packages=None,
            remove=(OPEN[0], "nvidia-headless-no-dkms-580-server-open"),
            reboot="580.95.05 stays loaded",
        ),
    ),
    "580 with open modules beside a Pascal card that no service uses": Situation(
        debian(running("580.95.05", "open", AMPERE, packages=network(), pci=cards(AMPERE, PASCAL, driver="nvidia"))),
        replace(ADOPTED, notes=("0000:02:00.0 (device id 0x1b38) is not driven by this driver",)),
    ),
    # Installed and not running
    "installed and never loaded": Situation(
        debian(GpuFacts(pci=cards(ADA), installed=KernelModule("580.95.05", "open"), packages=network())),
        Plan("adopt", "cu130", load=True),
    ),
    "installed, not loaded, and updates wait for a restart": Situation(
        debian(
            GpuFacts(
                pci=cards(ADA), installed=KernelModule("580.95.05", "open"), packages=network(), reboot_required=True
            )
        ),
        Plan("adopt", "cu130", load=True, reboot="/run/reboot-required"),
    ),
    "the installation was interrupted after the module": Situation(
        debian(
            GpuFacts(
                pci=cards(ADA),
                installed=KernelModule("580.95.05", "open"),
                packages=packages("580.95.05-1", NVIDIAS, "nvidia-kernel-open-dkms"),
            )
        ),
        replace(ON_DEBIAN, reasons=("incomplete",)),
    ),
    "the loaded driver differs from the installed one": Situation(
        ubuntu(
            running(
                "580.95.05",
                "open",
                ADA,
                packages=archive(),
                devices=(),
                loaded=KernelModule("580.65.06", "open"),
                smi_error="Failed to initialize NVML: Driver/library version mismatch",
            )
        ),
        Plan("adopt", "cu130", reboot="580.65.06 is loaded and 580.95.05 is installed"),
    ),
    "the loaded driver differs from the installed one, and nvidia-smi still answers": Situation(
        ubuntu(running("580.95.05", "open", ADA, packages=archive(), loaded=KernelModule("580.65.06", "open"))),
        replace(ADOPTED, reboot="580.65.06 is loaded and 580.95.05 is installed"),
    ),
    "the right driver is loaded and lists no GPU": Situation(
        debian(
            GpuFacts(
                pci=cards(ADA, driver="nvidia"),
                loaded=KernelModule("580.95.05", "open"),
                installed=KernelModule("580.95.05", "open"),
                smi_error="Unable to determine the device handle",
                packages=network(),
            )
        ),
        Plan("refuse", refusals=(("580.95.05 is loaded and nvidia-smi says: Unable to determine", "make doctor"),)),
    ),
    "the right driver is loaded and lists no GPU, and updates wait for a restart": Situation(
        debian(
            GpuFacts(
                pci=cards(ADA, driver="nvidia"),
                loaded=KernelModule("580.95.05", "open"),
                installed=KernelModule("580.95.05", "open"),
                smi_error="Unable to determine the device handle",
                packages=network(),
                reboot_required=True,
            )
        ),
        Plan("adopt", "cu130", reboot="/run/reboot-required"),
    ),
    # Where no driver may be installed
    "WSL2 with one card: CDI knows no UUID there": Situation(
        ubuntu(GpuFacts(container="wsl", devices=listed(ADA), loaded=KernelModule("581.29"))),
        Plan("adopt", "cu130", gpus={"comfyui": "all", "forge": "all"}, notes=("under WSL2",), units=(), holds=()),
    ),
    "WSL2 where nothing tells the driver's version": Situation(
        ubuntu(GpuFacts(container="wsl", devices=listed(ADA))),
        Plan("adopt", "cu130", notes=("version is not known",), gpus={"comfyui": "all", "forge": "all"}),
    ),
    "WSL2 with an old driver in Windows and a Blackwell card": Situation(
        ubuntu(GpuFacts(container="wsl", devices=listed(BLACKWELL), loaded=KernelModule("572.16"))),
        Plan("refuse", refusals=(("572.16 cannot run PyTorch on NVIDIA GeForce RTX 5090", "in Windows"),)),
    ),
    "WSL2 with two cards": Situation(
        ubuntu(GpuFacts(container="wsl", devices=listed(ADA, ADA), loaded=KernelModule("581.29"))),
        Plan("refuse", refusals=(("every GPU or none", "Linux"),)),
        service(comfyui="0", forge="0"),
    ),
    "an LXC container whose host has a good driver": Situation(
        debian(
            GpuFacts(container="lxc", pci=cards(ADA), devices=listed(ADA), loaded=KernelModule("580.95.05", "open"))
        ),
        replace(ADOPTED, notes=("inside lxc",), units=()),
    ),
    "an LXC container whose host has a driver below the floor: it runs an older PyTorch": Situation(
        debian(GpuFacts(container="lxc", pci=cards(AMPERE), devices=listed(AMPERE), loaded=KernelModule("550.54.14"))),
        Plan("adopt", "cu126", gpus=BOTH, notes=("below 580.65.06", "driver of its host")),
    ),
    "an LXC container without a driver": Situation(
        debian(GpuFacts(container="lxc", pci=cards(ADA))),
        Plan("refuse", refusals=(("no NVIDIA driver works here, and this is a container (lxc)", "on that host"),)),
    ),
    "a vGPU guest with its vendor's driver": Situation(
        ubuntu(running("580.95.05", "open", AMPERE, vgpu=True)), ADOPTED
    ),
    "a vGPU guest with a driver below every floor": Situation(
        ubuntu(running("510.108.03", "proprietary", AMPERE, vgpu=True)),
        Plan("refuse", refusals=(("510.108.03 (proprietary modules) cannot run PyTorch", "hypervisor's vendor"),)),
    ),
    "a vGPU guest without a driver": Situation(
        ubuntu(GpuFacts(pci=cards(AMPERE), vgpu=True)),
        Plan("refuse", refusals=(("vGPU guest", "hypervisor's vendor"),)),
    ),
    "a working .run installation": Situation(
        debian(running("580.95.05", "open", ADA, runfile=True)), replace(ADOPTED, units=(), holds=(), blacklist=())
    ),
    "a working .run installation below the floor, good enough for the older PyTorch": Situation(
        debian(running("535.54.03", "proprietary", ADA, runfile=True)),
        Plan("adopt", "cu126", gpus=BOTH, notes=("nvidia-uninstall",)),
    ),
    "exactly the lowest driver of the older PyTorch": Situation(
        debian(running("525.60.13", "proprietary", ADA, runfile=True)), Plan("adopt", "cu126", gpus=BOTH)
    ),
    "below the lowest driver of the older PyTorch": Situation(
        debian(running("525.60.11", "proprietary", ADA, runfile=True)),
        Plan("refuse", refusals=(("525.60.11", "nvidia-uninstall"),)),
    ),
    "a .run installation with proprietary modules and a Blackwell card": Situation(
        debian(
            GpuFacts(
                pci=cards(BLACKWELL, driver="nvidia"),
                loaded=KernelModule("580.95.05", "proprietary"),
                installed=KernelModule("580.95.05", "proprietary"),
                smi_error="No devices were found",
                runfile=True,
            )
        ),
        Plan("refuse", refusals=(("580.95.05 (proprietary modules) cannot run PyTorch", "nvidia-uninstall"),)),
    ),
    "a .run installation that is not loaded": Situation(
        debian(GpuFacts(pci=cards(ADA), installed=KernelModule("580.95.05", "open"), runfile=True)),
        Plan("adopt", "cu130", load=True, blacklist=()),
    ),
    "a driver that no package owns, below the floor, with a Kepler card": Situation(
        debian(running("470.256.02", "proprietary", KEPLER)),
        Plan(
            "refuse",
            refusals=(("Tesla K80 (compute capability 3.7), and the driver belongs to no package", "remove it"),),
        ),
    ),
    # NVSwitch
    "NVSwitch on a bare Ubuntu": Situation(
        ubuntu(GpuFacts(pci=cards(HOPPER), nvswitches=4)),
        replace(ON_UBUNTU, packages=(*OPEN, *HEADLESS, "nvidia-fabricmanager-580"), units=FABRIC),
    ),
    "NVSwitch on a bare Debian": Situation(
        debian(GpuFacts(pci=cards(HOPPER), nvswitches=4)),
        replace(ON_DEBIAN, packages=(*DEBIAN_OPEN, "nvidia-fabricmanager"), units=FABRIC),
    ),
    "NVSwitch with a working driver and no Fabric Manager": Situation(
        ubuntu(running("580.95.05", "open", HOPPER, packages=archive(), nvswitches=4)),
        Plan(
            "install",
            "cu130",
            "ubuntu-archive",
            "580",
            packages=("nvidia-fabricmanager-580=580.95.05*",),
            remove=(),
            pins=(),
            gpus=BOTH,
            units=FABRIC,
            reasons=("NVSwitch",),
        ),
    ),
    "NVSwitch with a Fabric Manager of another version, and the right one in the archive": Situation(
        ubuntu(
            running(
                "580.95.05",
                "open",
                HOPPER,
                packages=archive() | packages("580.65.06-1", UBUNTUS, "nvidia-fabricmanager-580"),
                nvswitches=4,
                available={"nvidia-fabricmanager-580": "580.95.05-0ubuntu0.24.04.2"},
            )
        ),
        Plan(
            "install",
            packages=("nvidia-fabricmanager-580=580.95.05-0ubuntu0.24.04.2",),
            gpus=BOTH,
            holds=tuple(sorted({*archive(), "nvidia-fabricmanager-580"})),
        ),
    ),
    "NVSwitch with Fabric Manager at the driver's version": Situation(
        ubuntu(
            running(
                "580.95.05",
                "open",
                HOPPER,
                packages=archive() | packages("580.95.05-1", UBUNTUS, "nvidia-fabricmanager-580"),
                nvswitches=4,
            )
        ),
        replace(ADOPTED, units=FABRIC),
    ),
    "NVSwitch with a driver that no package owns": Situation(
        debian(running("580.95.05", "open", HOPPER, nvswitches=4)),
        Plan(
            "refuse",
            refusals=(
                ("NVSwitch needs nvidia-fabricmanager at exactly the driver's version, 580.95.05", "install it"),
            ),
        ),
    ),
    "NVSwitch on Debian with a working driver, whose repository is enabled no more": Situation(
        debian(running("580.95.05", "open", HOPPER, packages=network(), nvswitches=4)),
        Plan(
            "install",
            route="nvidia-repository",
            packages=("nvidia-fabricmanager=580.95.05*",),
            source="repos/debian13/x86_64/",
            gpus=BOTH,
        ),
    ),
    "NVSwitch, and apt would install a Fabric Manager of a later version": Situation(
        ubuntu(
            running(
                "580.95.05",
                "open",
                HOPPER,
                packages=archive(),
                nvswitches=4,
                available={"nvidia-fabricmanager-580": "580.126.20-0ubuntu0.24.04.1"},
            )
        ),
        Plan("install", packages=("nvidia-fabricmanager-580=580.95.05*",), gpus=BOTH),
    ),
    "NVSwitch seen from an LXC container: Fabric Manager and persistence are its host's": Situation(
        debian(running("580.95.05", "open", HOPPER, packages=network(), nvswitches=4, container="lxc")),
        replace(ADOPTED, units=()),
    ),
    "NVSwitch seen from a vGPU guest": Situation(
        ubuntu(running("580.95.05", "open", HOPPER, vgpu=True, nvswitches=4)), replace(ADOPTED, units=())
    ),
    # Hardware
    "a card that has fallen off the bus": Situation(
        debian(GpuFacts(pci=(PciGpu(SLOTS[0], ADA, "nvidia", answers=False),), loaded=KernelModule("580.95.05"))),
        Plan("refuse", refusals=(("0000:01:00.0 (device id 0x2684) has fallen off the bus", "power off and on"),)),
    ),
    "one of two cards has fallen off the bus, and nvidia-smi says so": Situation(
        debian(
            running(
                "580.95.05",
                "open",
                ADA,
                packages=network(),
                pci=cards(ADA, ADA, driver="nvidia"),
                smi_error="Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost",
            )
        ),
        Plan("refuse", refusals=(("lists 1 of 2 GPUs and says: Unable to determine", "power"),)),
    ),
    "the only card is set aside for a virtual machine": Situation(
        debian(GpuFacts(pci=cards(ADA, driver="vfio-pci"))),
        Plan("refuse", refusals=(("bound to vfio-pci", "deploy to that virtual machine"),)),
    ),
    "one of two cards is set aside for a virtual machine": Situation(
        debian(GpuFacts(pci=(PciGpu(SLOTS[0], PASCAL, "vfio-pci"), PciGpu(SLOTS[1], ADA)))),
        replace(ON_DEBIAN, notes=("0000:01:00.0 (device id 0x1b38) is bound to vfio-pci",)),
    ),
    # Services
    "two cards and no choice, before a driver runs": Situation(
        debian(GpuFacts(pci=cards(ADA, AMPERE))),
        Plan(
            "refuse",
            refusals=(
                ("services.comfyui.gpu: is unset and this host has 2 GPUs", "1: 0000:02:00.0 (device id 0x2204)"),
                ("services.forge.gpu: is unset", "0: 0000:01:00.0 (device id 0x2684)"),
            ),
        ),
    ),
    "an index that no card has, before a driver runs": Situation(
        debian(GpuFacts(pci=cards(ADA))),
        Plan("refuse", refusals=(("services.forge.gpu: 1 is no GPU of this host", "0: 0000:01:00.0"),)),
        service(forge="1"),
    ),
    "a UUID, which nobody can look up before a driver runs": Situation(
        debian(GpuFacts(pci=cards(ADA, AMPERE))), ON_DEBIAN, service(comfyui="GPU-0", forge="RTX 3090")
    ),
    "a part of a name that two cards have": Situation(
        debian(running("580.95.05", "open", ADA, ADA, packages=network())),
        Plan(
            "refuse",
            refusals=(("services.comfyui.gpu: 'RTX' names 2 GPUs", "0: NVIDIA GeForce RTX 4090 GPU-0"),),
        ),
        service(comfyui="RTX", forge="0"),
    ),
    "each service has its own card": Situation(
        debian(running("580.95.05", "open", ADA, AMPERE, packages=network())),
        replace(ADOPTED, gpus={"comfyui": SECOND, "forge": UUID}, no_notes=True),
        service(comfyui="3090", forge="GPU-0"),
    ),
    "two services on one card": Situation(
        debian(running("580.95.05", "open", ADA, packages=network())),
        replace(ADOPTED, notes=("comfyui and forge share",)),
    ),
    "one service on a Pascal card, the other on an Ada card": Situation(
        debian(running("580.95.05", "proprietary", PASCAL, ADA, packages=network())),
        replace(ADOPTED, torch="cu126", gpus={"comfyui": UUID, "forge": SECOND}),
        service(comfyui="0", forge="1"),
    ),
    "the services need more memory than the card has": Situation(
        debian(running("580.95.05", "open", ADA, packages=network())),
        Plan("refuse", refusals=(("comfyui and forge need 28 GB of GPU memory", "another card"),)),
        {"services": {"comfyui": {"gpu_memory_gb": 20}, "forge": {"gpu_memory_gb": 8}}},
    ),
    "the services need what is printed on the card's box": Situation(
        debian(running("580.95.05", "open", ADA, packages=network())),
        ADOPTED,
        {"services": {"comfyui": {"gpu_memory_gb": 16}, "forge": {"gpu_memory_gb": 8}}},
    ),
    "a card cut into MIG slices": Situation(
        debian(
            running("580.95.05", "open", HOPPER, packages=network(), cdi_devices=frozenset({"nvidia.com/gpu=MIG-1"}))
        ),
        Plan("refuse", refusals=(("comfyui.gpu: NVIDIA H100 80GB HBM3 GPU-0 is cut", "-mig 0"), ("forge", "-mig 0"))),
    ),
    # Container toolkit and Docker
    "a toolkit above the floor stays as it is": Situation(
        debian(running("580.95.05", "open", ADA, packages=network() | packages("1.19.1-1", NVIDIAS, *TOOLKIT))),
        replace(ADOPTED, toolkit="1.19.1-1", toolkit_source="", holds=tuple(sorted(network()))),
    ),
    "a toolkit later than the lock's stays as it is": Situation(
        debian(running("580.95.05", "open", ADA, packages=network() | packages("1.30.0-1", NVIDIAS, *TOOLKIT))),
        replace(ADOPTED, toolkit="1.30.0-1", toolkit_source=""),
    ),
    "a toolkit below the floor": Situation(
        debian(running("580.95.05", "open", ADA, packages=network() | packages("1.19.0-1", NVIDIAS, *TOOLKIT))),
        replace(ADOPTED, toolkit=LOCKED, toolkit_source="stable/deb/amd64/", notes=("CVE-2026-24260",)),
    ),
    "a toolkit of mixed versions": Situation(
        debian(
            running(
                "580.95.05",
                "open",
                ADA,
                packages=network()
                | packages("1.19.1-1", NVIDIAS, *TOOLKIT)
                | packages("1.20.0-1", NVIDIAS, "nvidia-container-toolkit"),
            )
        ),
        replace(ADOPTED, toolkit=LOCKED, notes=("mixed versions",)),
    ),
    "a toolkit of which one package is missing": Situation(
        debian(running("580.95.05", "open", ADA, packages=network() | packages("1.30.0-1", NVIDIAS, *TOOLKIT[1:]))),
        replace(ADOPTED, toolkit="1.30.0-1", notes=("not whole",)),
    ),
    "a toolkit above the floor and of one version, of which one package is missing": Situation(
        debian(running("580.95.05", "open", ADA, packages=network() | packages("1.19.1-1", NVIDIAS, *TOOLKIT[1:]))),
        replace(ADOPTED, toolkit=LOCKED, notes=("not whole",)),
    ),
    "the toolkit's repository is enabled already": Situation(
        debian(
            running(
                "580.95.05",
                "open",
                ADA,
                packages=network(),
                sources=frozenset({"https://nvidia.github.io/libnvidia-container/stable/deb/amd64/"}),
            )
        ),
        replace(ADOPTED, toolkit=LOCKED, toolkit_source=""),
    ),
    "old lists of nvidia-docker": Situation(
        debian(
            running(
                "580.95.05",
                "open",
                ADA,
                packages=network(),
                sources=frozenset({"https://nvidia.github.io/nvidia-docker/ubuntu18.04/amd64/"}),
            )
        ),
        Plan("refuse", refusals=(("old nvidia-docker list", "rm /etc/apt/sources.list.d/nvidia-docker.list"),)),
    ),
    "old lists of nvidia-docker beside a good toolkit": Situation(
        debian(
            running(
                "580.95.05",
                "open",
                ADA,
                packages=network() | packages(LOCKED, NVIDIAS, *TOOLKIT),
                sources=frozenset({"https://nvidia.github.io/nvidia-docker/ubuntu18.04/amd64/"}),
            )
        ),
        ADOPTED,
    ),
    "a docker-ce without CDI, which a deploy would keep": Situation(
        ubuntu(
            running("580.95.05", "open", ADA, packages=archive()),
            packages={"docker-ce": "5:24.0.9-1~ubuntu.24.04~noble"},
        ),
        Plan("refuse", refusals=(("Docker 24.0.9", "apt-get install docker-ce"),)),
    ),
    "a docker-ce without CDI whose version is written without its epoch": Situation(
        ubuntu(running("580.95.05", "open", ADA, packages=archive()), packages={"docker-ce": "24.0.9"}),
        Plan("refuse", refusals=(("Docker 24.0.9", "apt-get install docker-ce"),)),
    ),
    "Debian 12's Docker 20.10, which docker-ce will replace": Situation(
        debian(
            running("580.95.05", "open", ADA, packages=network()),
            "bookworm",
            packages={"docker.io": "20.10.24+dfsg1-1+b3"},
        ),
        ADOPTED,
    ),
    "Debian 13's own Docker 26": Situation(
        debian(running("580.95.05", "open", ADA, packages=network()), packages={"docker.io": "26.1.5+dfsg1-9+b4"}),
        ADOPTED,
    ),
    "a Docker that restarts containers with GPUs": Situation(
        debian(
            running("580.95.05", "open", ADA, AMPERE, packages=network()), packages={"docker-ce": "5:29.1.0-1~debian"}
        ),
        replace(ADOPTED, gpus={"comfyui": UUID, "forge": SECOND}, no_notes=True),
        service(comfyui="0", forge="1"),
    ),
    "a snap Docker": Situation(
        ubuntu(running("580.95.05", "open", ADA, packages=archive()), snap_docker=True),
        Plan("refuse", refusals=(("Docker is installed as a snap", "snap remove docker"),)),
    ),
    "several troubles at once": Situation(
        debian(
            GpuFacts(
                pci=cards(ADA, AMPERE),
                secure_boot=True,
                kernel="6.12.20-amd64",
                available={"dkms": "3.2"},
                sources=frozenset({"https://nvidia.github.io/nvidia-docker/ubuntu18.04/amd64/"}),
            ),
            headers="",
            packages={"docker-ce": "5:24.0.9-1"},
        ),
        Plan(
            "refuse",
            refusals=(
                ("services.comfyui.gpu", "index"),
                ("services.forge.gpu", "index"),
                ("Secure Boot", "mokutil"),
                ("no headers", "linux-image-amd64"),
                ("nvidia-docker", "rm "),
                ("Docker 24", "docker-ce"),
            ),
        ),
    ),
}
