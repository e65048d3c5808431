"""The facts script's GPU part: the real shell on trees that stand for machines, and what is read from its output."""

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from atelier import hostfacts
from atelier.gpu import facts as gpu_facts
from atelier.gpu.devices import Gpu
from atelier.gpu.facts import GpuFacts, KernelModule, Package, PciGpu

TOOLS = ("awk", "cat", "grep", "head", "ls", "od", "readlink", "sed", "sh", "sleep", "timeout", "tr")
DEBIAN_KERNEL = "6.12.41+deb13-amd64"
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
SHIM_STATE = "sys/firmware/efi/efivars/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
NVRM = "NVRM version: NVIDIA UNIX {}  {}  Release Build  (dvs-builder@U22-I3)  Wed Oct  1 12:00:00 UTC 2026\n"
OPEN, PROPRIETARY = "Open Kernel Module for x86_64", "x86_64 Kernel Module"
ROW = "0, GPU-11111111-2222-3333-4444-555555555555, NVIDIA L40S, 46068, 8.9, 00000000:01:00.0"
L40S = Gpu(0, "GPU-11111111-2222-3333-4444-555555555555", "NVIDIA L40S", 46068, "8.9", "0000:01:00.0")


@dataclass
class Host:
    """A machine in a folder: files under `root`, commands in `bin`, and nothing of this computer but its plain tools."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir()
        self.file("proc/version", "")
        for tool in TOOLS:
            (self.folder / "bin" / tool).symlink_to(str(shutil.which(tool)))
        self.command("uname", f"echo {DEBIAN_KERNEL}")

    def file(self, path: str, content: str | bytes) -> None:
        place = self.folder / "root" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    def command(self, name: str, script: str) -> None:
        place = self.folder / "bin" / name
        place.unlink(missing_ok=True)
        place.write_text(f"#!/bin/sh\n{script}\n")
        place.chmod(0o755)

    def card(self, address: str, device: str = "0x26b9", kind: str = "0x030200", driver: str = "", **further: object):
        base = f"sys/bus/pci/devices/{address}"
        self.file(f"{base}/vendor", f"{further.get('vendor', '0x10de')}\n")
        self.file(f"{base}/device", f"{device}\n")
        self.file(f"{base}/class", f"{kind}\n")
        if "config" in further:
            self.file(f"{base}/config", further["config"])
        if driver:
            drivers = self.folder / "root/sys/bus/pci/drivers" / driver
            drivers.mkdir(parents=True, exist_ok=True)
            (self.folder / "root" / base / "driver").symlink_to(drivers)

    def output(self) -> str:
        text = f"s() {{ printf '\\n%s\\n' \"{hostfacts.SECTION}$1\"; }}\n" + gpu_facts.script(str(self.folder / "root"))
        done = subprocess.run(
            ["sh", "-c", text], capture_output=True, text=True, env={"PATH": str(self.folder / "bin")}, check=False
        )
        assert done.stderr == ""
        return done.stdout

    def facts(self) -> GpuFacts:
        return hostfacts.parse(self.output()).gpu


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def config(capabilities: bytes = b"", vendor: bytes = b"\xde\x10") -> bytes:
    """A PCI configuration space whose list of capabilities begins at 0x60."""
    space = bytearray(256)
    space[:2], space[0x34] = vendor, 0x60
    space[0x60 : 0x60 + len(capabilities)] = capabilities
    return bytes(space)


def test_a_machine_with_nothing_at_all(host: Host) -> None:
    assert host.facts() == GpuFacts(kernel=DEBIAN_KERNEL)


def test_two_bare_cards_driven_by_nouveau(host: Host) -> None:
    host.card("0000:01:00.0", "0x2684", "0x030000", "nouveau", config=config())
    host.card("0000:01:00.1", "0x22ba", "0x040300", "snd_hda_intel")
    host.card("0000:41:00.0", "0x1b06", "0x030200")
    host.card("0000:00:02.0", "0x4680", "0x030000", "i915", vendor="0x8086")
    facts = host.facts()
    assert facts.pci == (PciGpu("0000:01:00.0", "0x2684", "nouveau"), PciGpu("0000:41:00.0", "0x1b06"))
    assert facts.loaded == KernelModule() and facts.smi_error == ""


@pytest.fixture
def working(host: Host) -> Host:
    host.card("0000:01:00.0", driver="nvidia", config=config())
    host.file("sys/module/nvidia/version", "580.95.05\n")
    host.file("proc/driver/nvidia/version", NVRM.format(OPEN, "580.95.05") + "GCC version:  gcc 14.2.0\n")
    host.command("nvidia-smi", f"echo '{ROW}'")
    host.command("modinfo", 'case "$*" in "-F version nvidia") echo 580.95.05;; *) echo "Dual MIT/GPL";; esac')
    return host


def test_a_working_driver_with_open_modules(working: Host) -> None:
    working.file("sys/module/nvidia/version", "580.95.05-custom\n")
    working.command("nvidia-ctk", "echo noise >&2; echo nvidia.com/gpu=all; echo nvidia.com/gpu=GPU-1111")
    facts = working.facts()
    assert facts.devices == (L40S,) and facts.smi_error == ""
    assert facts.loaded == KernelModule("580.95.05-custom", "open") and facts.installed == KernelModule(
        "580.95.05", "open"
    )
    assert facts.pci == (PciGpu("0000:01:00.0", "0x26b9", "nvidia"),)
    assert facts.cdi_devices == {"nvidia.com/gpu=all", "nvidia.com/gpu=GPU-1111"}


def test_a_module_replaced_under_the_running_one(working: Host) -> None:
    said = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.105"
    working.command("nvidia-smi", f"echo '{said}'; exit 18")
    working.command("modinfo", 'case "$*" in "-F version nvidia") echo 580.105.08;; *) echo NVIDIA;; esac')
    working.file("proc/driver/nvidia/version", NVRM.format(PROPRIETARY, "580.95.05"))
    facts = working.facts()
    assert facts.loaded == KernelModule("580.95.05", "proprietary")
    assert facts.installed == KernelModule("580.105.08", "proprietary")
    assert facts.devices == () and facts.smi_error == said.replace("\n", " ")


def test_the_archives_module_of_debian_has_another_name(host: Host) -> None:
    known = '"-F version nvidia-current") echo 550.163.01;; "-F license nvidia-current") echo NVIDIA;;'
    host.command("modinfo", f'case "$*" in {known} *) echo "not found" >&2; exit 1;; esac')
    assert host.facts().installed == KernelModule("550.163.01", "proprietary")


def test_a_card_that_has_fallen_off_the_bus(working: Host) -> None:
    working.card("0000:41:00.0", driver="nvidia", config=b"\xff" * 256)
    lost = "Unable to determine the device handle for GPU0000:41:00.0: GPU is lost."
    working.command("nvidia-smi", f"echo '{ROW}'; echo '{lost}'; exit 15")
    facts = working.facts()
    assert [(card.address, card.answers) for card in facts.pci] == [("0000:01:00.0", True), ("0000:41:00.0", False)]
    assert facts.devices == (L40S,) and facts.smi_error == lost


def test_no_devices_is_what_nvidia_smi_says(working: Host) -> None:
    working.command("nvidia-smi", "echo 'No devices were found'; exit 6")
    assert working.facts().smi_error == "No devices were found"
    working.command("nvidia-smi", "exit 9")
    assert working.facts().smi_error == "nvidia-smi ended with status 9"


def test_a_warning_beside_a_full_answer_is_no_error(working: Host) -> None:
    working.command("nvidia-smi", f"echo '{ROW}'; echo 'WARNING: infoROM is corrupted at gpu 0000:01:00.0'")
    assert working.facts().smi_error == "" and working.facts().devices == (L40S,)


def test_a_hanging_nvidia_smi_is_ended(working: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_facts, "SMI_SECONDS", 0.1)
    working.command("nvidia-smi", "exec sleep 30")
    facts = working.facts()
    assert facts.smi_error == "nvidia-smi did not answer within 0.1 s" and facts.loaded.version == "580.95.05"


def test_one_that_nothing_can_end_is_left_behind(working: Host) -> None:
    """A process stuck in the driver outlives SIGKILL, and so does the timeout(1) that waits for it."""
    timeout = shutil.which("timeout")
    working.command("timeout", f'case $1 in -k) exec sleep 8;; *) shift; exec {timeout} 0.1 "$@";; esac')
    started = time.monotonic()
    assert working.facts().smi_error == "nvidia-smi did not answer within 20 s"
    assert time.monotonic() - started < 5


SECURE = {
    "off": ({SECURE_BOOT: b"\6\0\0\0\0"}, "", False),
    "on": ({SECURE_BOOT: b"\6\0\0\0\1"}, "", True),
    "on, validation off in shim": ({SECURE_BOOT: b"\6\0\0\0\1", SHIM_STATE: b"\6\0\0\0\1"}, "", False),
    "on, validation on in shim": ({SECURE_BOOT: b"\6\0\0\0\1", SHIM_STATE: b"\6\0\0\0\0"}, "", True),
    "variables not readable, mokutil says on": ({"sys/firmware/efi/x": b""}, "echo SecureBoot enabled", True),
    "variables not readable, mokutil says off": ({"sys/firmware/efi/x": b""}, "echo SecureBoot disabled", False),
    "BIOS": ({}, "echo SecureBoot enabled", False),
}


@pytest.mark.parametrize("files,mokutil,expected", SECURE.values(), ids=SECURE.keys())
def test_secure_boot(host: Host, files: dict[str, bytes], mokutil: str, expected: bool) -> None:
    for path, content in files.items():
        host.file(path, content)
    host.command("mokutil", mokutil)
    assert host.facts().secure_boot is expected


MOK = {
    "is already enrolled": True,
    "is already in db": True,
    "is not enrolled": False,
    "is already in the enrollment request": False,
    "is blocked in MokListX": False,
}


@pytest.mark.parametrize("said,expected", MOK.items(), ids=MOK.keys())
def test_an_enrolled_key(host: Host, said: str, expected: bool) -> None:
    # Its exit status says the opposite in other releases of mokutil, so the words decide.
    host.command("mokutil", f'[ "$1" = --test-key ] && echo "$2 {said}"; exit 1')
    assert host.facts().mok_enrolled is False, "there is no key"
    host.file("var/lib/dkms/mok.pub", "")
    assert host.facts().mok_enrolled is expected


@pytest.mark.parametrize(
    "detected,expected", [("none", ""), ("lxc", "lxc"), ("wsl", "wsl"), ("systemd-nspawn", "systemd-nspawn")]
)
def test_containers(host: Host, detected: str, expected: str) -> None:
    host.command("systemd-detect-virt", f'[ "$1" = --container ] && echo {detected}; [ {detected} != none ]')
    assert host.facts().container == expected


def test_wsl_is_known_by_its_device(host: Host) -> None:
    host.file("dev/dxg", "")
    host.command("systemd-detect-virt", "echo none; exit 1")
    assert host.facts().container == "wsl"


VGPU = {
    "vendor capability of a vGPU": (b"\x09\x00\x20VF\x00", True),
    "behind another capability": (b"\x01\x70" + bytes(14) + b"\x09\x00\x20VF", True),
    "another vendor capability": (b"\x09\x00\x14\x01\x00", False),
    "no vendor capability": (b"\x01\x00", False),
    "a chain that loops": (b"\x01\x60", False),
}


@pytest.mark.parametrize("capabilities,expected", VGPU.values(), ids=VGPU.keys())
def test_a_vgpu_guest_is_known_without_its_driver(host: Host, capabilities: bytes, expected: bool) -> None:
    host.card("0000:02:00.0", config=config(capabilities))
    assert host.facts().vgpu is expected


def test_nvswitches(host: Host) -> None:
    host.card("0000:07:00.0", "0x22a3", "0x068000", "nvidia-nvswitch")
    host.card("0000:08:00.0", "0x22a3", "0x068000", "nvidia-nvswitch")
    host.card("0000:00:14.0", "0x0269", "0x068000", "forcedeth")
    assert host.facts().nvswitches == 2 and host.facts().pci == ()
    for name in ("0000:07:00.0", "0000:08:00.0", "0000:09:00.0"):
        host.file(f"proc/driver/nvidia-nvswitch/devices/{name}", "")
    assert host.facts().nvswitches == 3


def test_packages_holds_and_candidates(host: Host) -> None:
    host.card("0000:01:00.0")
    rows = [
        "installed\tnvidia-utils-580-server\t580.95.05-0ubuntu1\tUbuntu Core Developers <a@example.org>",
        "config-files\tnvidia-driver-550\t550.1\tSomebody <b@example.org>",
        "installed\tlinux-headers-amd64\t6.12.117-1\t",
    ]
    host.command("dpkg-query", "printf '%s\\n' " + " ".join(f"'{row}'" for row in rows))
    host.command(
        "dpkg", "printf '%s\\t%s\\n' nvidia-utils-580-server hold libnvidia-compute-580:amd64 hold dash install"
    )
    policy = (
        "nvidia-fabricmanager:\n  Installed: (none)\n  Candidate: 580.105.08-1\n  Version table:\n"
        "     580.105.08-1 600\n        600 https://repository.example.org  Packages\n"
        f"linux-headers-{DEBIAN_KERNEL}:\n  Installed: (none)\n  Candidate: 6.12.41-1\n"
        "nvidia-fabricmanager-580:\n  Installed: 1.1-1\n  Candidate: (none)\n"
    )
    names = [
        "nvidia-fabricmanager",
        f"linux-headers-{DEBIAN_KERNEL}",
        "nvidia-fabricmanager-580",
        "linux-headers-amd64-extra",
    ]
    host.command(
        "apt-cache",
        f"case $* in pkgnames) printf '%s\\n' {' '.join(names)};; 'policy {' '.join(names[:3])}') echo '{policy}';; esac",
    )
    facts = host.facts()
    assert facts.packages == {
        "nvidia-utils-580-server": Package("580.95.05-0ubuntu1", "Ubuntu Core Developers <a@example.org>"),
        "linux-headers-amd64": Package("6.12.117-1"),
    }
    assert facts.held == {"nvidia-utils-580-server", "libnvidia-compute-580"}
    assert facts.available == {"nvidia-fabricmanager": "580.105.08-1", f"linux-headers-{DEBIAN_KERNEL}": "6.12.41-1"}
    assert facts.headers == "available"


@pytest.mark.parametrize(
    "kernel,names",
    [
        (DEBIAN_KERNEL, ["linux-headers-amd64"]),
        ("6.1.0-25-cloud-amd64", ["linux-headers-cloud-amd64"]),
        ("6.8.0-45-generic", ["linux-headers-generic", "linux-modules-nvidia-580-server-open-generic"]),
        ("6.8.0-1015-aws", ["linux-headers-aws", "linux-modules-nvidia-595-server-6.8.0-1015-aws"]),
    ],
)
def test_candidates_are_asked_for_by_the_kernels_names(host: Host, kernel: str, names: list[str]) -> None:
    host.card("0000:01:00.0")
    host.command("uname", f"echo {kernel}")
    expected = {*names, f"linux-headers-{kernel}", f"linux-modules-nvidia-580-server-open-{kernel}"}
    policy = 'shift; for name; do echo "$name:"; echo "  Candidate: 1"; done'
    host.command("apt-cache", f"case $1 in pkgnames) printf '%s\\n' {' '.join(expected)};; *) {policy};; esac")
    assert set(host.facts().available) == expected


def test_candidates_of_ubuntus_later_kernels(host: Host) -> None:
    name = "linux-modules-nvidia-580-server-open-generic-hwe-24.04"
    host.card("0000:01:00.0")
    host.command("uname", "echo 6.14.0-33-generic")
    host.file("etc/os-release", 'NAME="Ubuntu"\nVERSION_ID="24.04"\nVERSION="24.04.3 LTS"\n')
    host.command("apt-cache", f"case $1 in pkgnames) echo {name};; *) echo {name}:; echo '  Candidate: 1';; esac")
    assert host.facts().available == {name: "1"}


def test_headers_that_were_built_by_hand(host: Host) -> None:
    assert host.facts().headers == ""
    host.file(f"lib/modules/{DEBIAN_KERNEL}/build/Makefile", "")
    assert host.facts().headers == "installed"


def test_sources_by_their_uri_without_credentials(host: Host) -> None:
    printed = [
        "'http://mirror.example.org/debian/dists/trixie/InRelease' mirror.example.org_debian_dists_trixie_InRelease 0 ",
        "'http://mirror.example.org/debian/dists/trixie-updates/InRelease' x 0 ",
        "'http://mirror.example.org/debian/dists/trixie/main/binary-amd64/Packages.xz' x 0 ",
        "'https://joe:hunter2@mirror.example.org/repos/debian13/x86_64/InRelease' x 0 ",
    ]
    host.command("apt-get", 'printf "%s\\n" ' + " ".join(f'"{line}"' for line in printed))
    assert host.facts().sources == {
        "http://mirror.example.org/debian/",
        "https://mirror.example.org/repos/debian13/x86_64/",
    }


def test_sources_that_contradict_each_other_are_still_known(host: Host) -> None:
    said = "E: Conflicting values set for option Signed-By regarding source https://nvidia.github.io/x /: a != b"
    host.command("apt-get", f'echo "{said}" >&2; echo "E: The list of sources could not be read." >&2; exit 100')
    host.file("etc/apt/sources.list.d/nvidia-docker.list", "deb https://nvidia.github.io/nvidia-docker/ubuntu18.04 /\n")
    host.file("etc/apt/sources.list.d/debian.sources", DEBIAN_SOURCES)
    host.file("etc/apt/sources.list.d/a.sources", "Types: deb\nURIs: https://a.example.org\nSuites: ./")
    facts = hostfacts.parse(host.output())
    assert facts.sources_error == said.removeprefix("E: ")
    assert facts.gpu.sources == {
        "https://nvidia.github.io/nvidia-docker/ubuntu18.04/",
        "https://a.example.org/",
        "http://mirror.example.org/debian/",
        "http://mirror.example.org/debian-security/",
    }


DEBIAN_SOURCES = """Types: deb
URIs: http://mirror.example.org/debian
Suites: trixie trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example.org/debian-security
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
SIGNED = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
CONTRIB = {
    "none": ({}, ()),
    "main only": (
        {"sources.list.d/debian.sources": DEBIAN_SOURCES, "sources.list.d/x.list": "deb https://x.example.org/repo /"},
        (
            f"deb {SIGNED}http://mirror.example.org/debian trixie contrib",
            f"deb {SIGNED}http://mirror.example.org/debian trixie-updates contrib",
        ),
    ),
    "there": ({"sources.list.d/debian.sources": DEBIAN_SOURCES.replace("main", "main contrib")}, ()),
    "one line": (
        {"sources.list": "deb http://mirror.example.org/debian bookworm main\n# deb http://x bookworm contrib\n"},
        ("deb http://mirror.example.org/debian bookworm contrib",),
    ),
    "there in another file": (
        {
            "sources.list": "deb http://mirror.example.org/debian bookworm main",
            "sources.list.d/more.list": "deb http://mirror.example.org/debian/ bookworm contrib",
        },
        (),
    ),
    "Ubuntu": ({"sources.list": "deb http://ubuntu.example.org/ubuntu noble main universe"}, ()),
}


@pytest.mark.parametrize("files,expected", CONTRIB.values(), ids=CONTRIB.keys())
def test_source_lines_that_would_add_contrib(host: Host, files: dict[str, str], expected: tuple[str, ...]) -> None:
    for path, content in files.items():
        host.file(f"etc/apt/{path}", content)
    assert host.facts().contrib == expected


def test_a_run_installer_is_one_that_no_package_owns(host: Host) -> None:
    host.command("dpkg", '[ "$1" = -S ] && exit 1')
    assert host.facts().runfile is False
    host.file("usr/bin/nvidia-uninstall", "")
    assert host.facts().runfile is True
    host.command("dpkg", "exit 0")
    assert host.facts().runfile is False


def test_a_restart_that_is_due(host: Host) -> None:
    host.file("run/reboot-required", "*** System restart required ***\n")
    assert host.facts().reboot_required
