"""Facts about a host's GPUs and their driver: part of `atelier.hostfacts`, in the same round trip."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from atelier.gpu import devices
from atelier.gpu.devices import Gpu
from sandbox import sources as apt_sources

STRICT = ConfigDict(extra="forbid")
"""A facts file is written by people too: a misspelt field must not pass for a missing one."""

Flavour = Literal["", "open", "proprietary"]


@dataclass(frozen=True)
class PciGpu:
    """An NVIDIA display controller in sysfs (vendor 0x10de, class 0x0300xx or 0x0302xx)."""

    __pydantic_config__ = STRICT
    address: str
    """As in 0000:01:00.0."""
    device: Annotated[str, Field(pattern=r"^0x[0-9a-f]{4}$")]
    """PCI device id, as in 0x2684."""
    driver: str = ""
    """The kernel driver bound to it: nvidia, nouveau, vfio-pci, or none."""
    answers: bool = True
    """False where its configuration space reads as ones: the card has fallen off the bus."""


@dataclass(frozen=True)
class KernelModule:
    """The kernel module `nvidia`, as loaded or as installed for the running kernel."""

    __pydantic_config__ = STRICT
    version: str = ""
    flavour: Flavour = ""


@dataclass(frozen=True)
class Package:
    """An installed package; its maintainer tells Debian's, Ubuntu's and NVIDIA's own apart."""

    __pydantic_config__ = STRICT
    version: str
    maintainer: str = ""


@dataclass(frozen=True)
class GpuFacts:
    """What the plan for driver, container toolkit and CDI rests on."""

    __pydantic_config__ = STRICT
    pci: tuple[PciGpu, ...] = ()
    """NVIDIA's display controllers in sysfs, whatever drives them."""
    devices: tuple[Gpu, ...] = ()
    """What nvidia-smi lists."""
    smi_error: str = ""
    """What nvidia-smi said instead; empty where it works or is not installed."""
    loaded: KernelModule = KernelModule()
    """The loaded kernel module (/sys/module/nvidia/version, /proc/driver/nvidia/version)."""
    installed: KernelModule = KernelModule()
    """The module on disk for the running kernel (modinfo)."""
    runfile: bool = False
    """The driver came from NVIDIA's .run installer: nvidia-uninstall is there and belongs to no package."""
    packages: dict[str, Package] = field(default_factory=dict)
    """Installed packages of driver, CUDA, container toolkit, fabric manager and kernel headers, by name."""
    held: frozenset[str] = frozenset()
    """Packages that apt holds."""
    available: dict[str, str] = field(default_factory=dict)
    """Candidate version by name, for the packages that a plan may name and apt knows already; asked where there is a card."""
    sources: frozenset[str] = frozenset()
    """URIs of apt's enabled sources."""
    contrib: tuple[str, ...] = ()
    """apt source lines that would add contrib beside the main of Debian's own archive; none where it is there."""
    kernel: str = ""
    """The running kernel's release, as in 6.12.41+deb13-amd64."""
    headers: Literal["", "available", "installed"] = ""
    """Headers for exactly the running kernel."""
    secure_boot: bool = False
    mok_enrolled: bool = False
    """The key that DKMS signs modules with (/var/lib/dkms/mok.pub) is enrolled in the firmware."""
    container: str = ""
    """What systemd-detect-virt calls the container this is: lxc, wsl, docker; empty on a machine."""
    vgpu: bool = False
    """A guest that was given a slice of a GPU, whose driver comes from the hypervisor's vendor."""
    nvswitches: int = 0
    cdi_devices: frozenset[str] = frozenset()
    """What `nvidia-ctk cdi list` knows."""
    reboot_required: bool = False
    """/run/reboot-required exists."""


PACKAGES = (
    "nvidia*",
    "libnvidia*",
    "xserver-xorg-video-nvidia*",
    "firmware-nvidia*",
    "linux-modules-nvidia*",
    "linux-objects-nvidia*",
    "linux-signatures-nvidia*",
    "linux-headers*",
    "cuda-drivers*",
    "cuda-keyring",
    "libcuda1",
    "dkms",
    "mokutil",
)
"""Patterns of the installed packages that are facts."""

BRANCHES = ("580", "595")
CANDIDATES = (
    # The metapackage of headers is known to apt as soon as it has lists at all.
    *("linux-headers-$kernel", "linux-headers-$flavour", "linux-headers-$flavour-hwe-$release"),
    *("nvidia-fabricmanager", *(f"nvidia-fabricmanager-{branch}" for branch in BRANCHES)),
    *(
        f"linux-modules-nvidia-{branch}-server{open_}-{build}"
        for branch in BRANCHES
        for open_ in ("", "-open")
        for build in ("$kernel", "$flavour", "$flavour-hwe-$release")
    ),
)
"""Names whose candidate decides something; the shell puts in the running kernel's release, its flavour (amd64, generic, aws)
and Ubuntu's release number."""

SMI_SECONDS = 20


def script(root: str = "") -> str:
    """Shell for the script of `atelier.hostfacts`, which defines `s`: the GPU's sections. It changes nothing.

    root: where /sys, /proc, /run and so on lie, for tests.
    """
    # A program that hangs in the driver cannot be killed, and timeout(1) would wait for it for ever: it writes into a
    # pipe whose reader gives up. apt takes an unknown name with a dot for a pattern and compares it with every package.
    return f"""
LC_ALL=C; export LC_ALL
PATH="$PATH:/usr/lib/wsl/lib"
nvidia=; kernel=$(uname -r); flavour=$(printf %s "$kernel" | sed 's/^[0-9][^-]*-//; s/^[0-9][0-9]*-//')
release=$(sed -n 's/^VERSION_ID="\\(.*\\)"$/\\1/p' {root}/etc/os-release 2>/dev/null)
word() {{ [ -r "$1" ] && head -n 1 "$1"; }}
variable() {{ [ -r "$1" ] && od -An -tu1 -j4 -N1 "$1"; }}
s gpu-pci; for d in {root}/sys/bus/pci/devices/*; do
  [ "$(word "$d/vendor")" = 0x10de ] || continue; nvidia=yes
  driver=$(readlink "$d/driver")
  echo "${{d##*/}} $(word "$d/class") $(word "$d/device") ${{driver##*/}}"
  echo "config $([ -r "$d/config" ] && od -An -v -tx1 -N256 "$d/config" | tr -d ' \n')"
done
s gpu-smi; command -v nvidia-smi && {{
  {{ {{ timeout -k 2 {SMI_SECONDS} {devices.QUERY}; echo "status $?"; }} </dev/null 2>&1 & }} | timeout {SMI_SECONDS + 5} cat
}}
s gpu-loaded; word {root}/sys/module/nvidia/version; grep -h ^NVRM {root}/proc/driver/nvidia/version 2>/dev/null
s gpu-installed; for m in nvidia nvidia-current nvidia-current-open; do
  v=$(modinfo -F version "$m" 2>/dev/null) && {{ echo "$v"; modinfo -F license "$m"; break; }}
done
s gpu-runfile; u={root}/usr/bin/nvidia-uninstall; [ -e "$u" ] && ! dpkg -S "$u" >/dev/null 2>&1 && echo yes
s gpu-packages; dpkg-query -W -f '${{db:Status-Status}}\t${{Package}}\t${{Version}}\t${{Maintainer}}\n' {_quoted(PACKAGES)} 2>/dev/null
s gpu-held; dpkg --get-selections '*' 2>/dev/null | awk '$2 == "hold" {{ sub(":.*", "", $1); print $1 }}'
known=$([ -n "$nvidia" ] && timeout 60 apt-cache pkgnames 2>/dev/null | grep -Fx "$(printf '%s\\n' {" ".join(CANDIDATES)})")
s gpu-available; [ -n "$known" ] && timeout 60 apt-cache policy $known 2>/dev/null
s gpu-sources; timeout 20 apt-get update --print-uris 2>&1 | grep -e "/InRelease'" -e '^E:'
s gpu-lists; for f in {root}/etc/apt/sources.list {root}/etc/apt/sources.list.d/*.list; do [ -e "$f" ] && cat "$f"; echo; done
s gpu-deb822; for f in {root}/etc/apt/sources.list.d/*.sources; do [ -e "$f" ] && cat "$f"; echo; echo; done | sed 's/^/|/'
s gpu-kernel; echo "$kernel"; [ -e "{root}/lib/modules/$kernel/build/Makefile" ] && echo headers
s gpu-efi; e={root}/sys/firmware/efi; [ -d $e ] && {{
  on=$(variable $e/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c)
  off=$(variable $e/efivars/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23)
  if [ -n "$on" ]; then echo variable $on ${{off:-0}}; else mokutil --sb-state 2>/dev/null; fi
}}
s gpu-mok; m={root}/var/lib/dkms/mok.pub; [ -e $m ] && mokutil --test-key $m 2>/dev/null
s gpu-container; [ -e {root}/dev/dxg ] && echo wsl; systemd-detect-virt --container 2>/dev/null
s gpu-nvswitches; ls {root}/proc/driver/nvidia-nvswitch/devices 2>/dev/null
s gpu-cdi; timeout 20 nvidia-ctk cdi list 2>/dev/null | grep '^nvidia.com/gpu='
s gpu-reboot; [ -e {root}/run/reboot-required ] && echo yes
"""


def _quoted(patterns: Iterable[str]) -> str:
    return " ".join(f"'{pattern}'" for pattern in patterns)


def parse(sections: Mapping[str, Sequence[str]]) -> GpuFacts:
    """The facts from the script's sections."""

    def lines(name: str) -> list[str]:
        return [line.strip() for line in sections.get(f"gpu-{name}", [])]

    def one(name: str) -> str:
        return next(iter(lines(name)), "")

    entries = _pci_entries(lines("pci"))
    cards = [entry for entry in entries if entry.is_display]
    found = devices.parse(lines("smi"))
    kernel = one("kernel")
    rows = [line.split("\t") for line in sections.get("gpu-packages", [])]
    packages = {row[1]: Package(row[2], row[3]) for row in rows if row[0] == "installed" and len(row) == 4}
    available = _candidates(lines("available"))
    entries_of_apt = [
        *apt_sources.parse_one_line("\n".join(lines("lists"))),
        *apt_sources.parse_deb822("\n".join(line[1:] for line in sections.get("gpu-deb822", []))),
    ]
    return GpuFacts(
        pci=tuple(PciGpu(card.address, card.device, card.driver, card.answers) for card in cards),
        devices=found,
        smi_error=_smi_error(lines("smi"), found),
        loaded=parse_loaded(lines("loaded")),
        installed=parse_installed(lines("installed")),
        runfile=bool(one("runfile")),
        packages=packages,
        held=frozenset(lines("held")),
        available=available,
        sources=_sources(lines("sources"), entries_of_apt),
        contrib=_contrib(entries_of_apt),
        kernel=kernel,
        headers=_headers(f"linux-headers-{kernel}", "headers" in lines("kernel"), packages, available),
        secure_boot=one("efi") in ("variable 1 0", "SecureBoot enabled"),
        mok_enrolled=one("mok").endswith((" is already enrolled", " is already in db")),
        container="" if one("container") == "none" else one("container"),
        vgpu=any(card.is_vgpu for card in cards) or any(name.startswith("nvidia-linux-grid") for name in packages),
        nvswitches=max(len(lines("nvswitches")), sum(entry.is_nvswitch for entry in entries)),
        cdi_devices=frozenset(lines("cdi")),
        reboot_required=bool(one("reboot")),
    )


@dataclass(frozen=True)
class _PciEntry:
    """A PCI device of NVIDIA's. `config` is the first 256 bytes of its configuration space, as far as they were given."""

    address: str
    kind: str
    device: str
    driver: str
    config: bytes

    @property
    def is_display(self) -> bool:
        return self.kind.startswith(("0x0300", "0x0302"))

    @property
    def is_nvswitch(self) -> bool:
        """Among the bridges of class `other`; the network cards of old nForce boards have that class and lower numbers."""
        return self.kind.startswith("0x0680") and int(self.device, 16) >= 0x1A00

    @property
    def answers(self) -> bool:
        # A read that nothing answers gives ones; sysfs's `vendor` and `revision` are from boot time.
        return self.config[:4] != b"\xff\xff\xff\xff"

    @property
    def is_vgpu(self) -> bool:
        """A virtual function of NVIDIA's vGPU software says "VF" in its vendor-specific capability, driver or not."""
        position, seen = self.config[0x34] if len(self.config) == 256 and self.answers else 0, set[int]()
        while 0x40 <= position <= 251 and position not in seen:
            seen.add(position)
            if self.config[position] == 0x09:
                return self.config[position + 3 : position + 5] == b"VF"
            position = self.config[position + 1]
        return False


def _pci_entries(lines: Sequence[str]) -> list[_PciEntry]:
    entries = []
    for line, config in zip(lines[::2], lines[1::2], strict=True):
        address, kind, device, driver = [*line.split(), ""][:4]
        entries.append(_PciEntry(address, kind, device, driver, bytes.fromhex(config.removeprefix("config").strip())))
    return entries


def _smi_error(lines: Sequence[str], found: Sequence[Gpu]) -> str:
    """lines: the program's path, what it said, its exit status as `status N`; the last is missing where it hangs."""
    if not lines or (found and lines[-1] == "status 0"):
        return ""
    if not lines[-1].startswith("status ") or lines[-1] in ("status 124", "status 137"):
        return f"nvidia-smi did not answer within {SMI_SECONDS} s"
    said = [line for line in lines[1:-1] if not devices.parse([line])]
    return " ".join(said) or f"nvidia-smi ended with {lines[-1]}"


def parse_loaded(lines: Sequence[str]) -> KernelModule:
    """The loaded module, from its version in sysfs and the line `NVRM version` in /proc, where there are such."""
    nvrm = next((line for line in lines if line.startswith("NVRM")), "")
    stated = re.search(r"\d+\.\d+(\.\d+)?", nvrm)
    version = next((line for line in lines if line != nvrm), stated[0] if stated else "")
    return KernelModule(version, "open" if "Open Kernel Module" in nvrm else "proprietary" if nvrm else "")


def parse_installed(lines: Sequence[str]) -> KernelModule:
    """The module on disk, from version and license as modinfo prints them."""
    licences: dict[str, Flavour] = {"Dual MIT/GPL": "open", "NVIDIA": "proprietary"}
    version, licence = [*lines, "", ""][:2]
    return KernelModule(version, licences.get(licence, ""))


def _candidates(lines: Sequence[str]) -> dict[str, str]:
    """`apt-cache policy`: a line `name:`, then indented ones, of which `Candidate:` counts."""
    found, name = {}, ""
    for line in lines:
        key, _, value = line.partition(": ")
        if line.endswith(":") and " " not in line:
            name = line[:-1]
        elif key == "Candidate" and value != "(none)":
            found[name] = value
    return found


def _sources(lines: Sequence[str], entries: Iterable[apt_sources.AptSource]) -> frozenset[str]:
    """URIs with a slash at their end: as `apt-get update --print-uris` has them, and as they are written.

    apt prints none at all where two of its entries contradict each other.
    """
    printed = (re.sub(r"(/dists/.*)?/InRelease$", "", line.split("'")[1]) for line in lines if line.startswith("'"))
    uris = [*printed, *(entry.uri for entry in entries)]
    return frozenset(re.sub(r"://[^/@]+@", "://", uri).rstrip("/") + "/" for uri in uris)


def _contrib(entries: Sequence[apt_sources.AptSource]) -> tuple[str, ...]:
    archive = apt_sources.debian_archive(entries)
    main = [entry for entry in entries if archive and entry.uri.rstrip("/") == archive.main.rstrip("/")]
    served = {entry.suite for entry in main if "contrib" in entry.components}
    # apt refuses two entries of one archive that name different keys.
    lacking = {f"{_key(entry)}{entry.uri} {entry.suite} contrib" for entry in main if entry.suite not in served}
    return tuple(f"deb {line}" for line in sorted(lacking))


def _key(entry: apt_sources.AptSource) -> str:
    return f"[signed-by={entry.signed_by}] " if entry.signed_by else ""


def _headers(
    package: str, built: bool, packages: Mapping[str, Package], available: Mapping[str, str]
) -> Literal["", "available", "installed"]:
    if built or package in packages:
        return "installed"
    return "available" if package in available else ""
