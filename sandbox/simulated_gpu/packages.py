"""The stand-in packages: names, versions and relations of NVIDIA's own, with nothing of NVIDIA's in them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

GUEST = Path(__file__).parent / "guest"
DRIVERS = ("580.105.08-1", "580.178.04-1", "595.58.03-1", "610.57.04-1")
TOOLKITS = ("1.17.7-1", "1.20.2-1", "1.21.0-1")
ABOVE_ALL = "99-simulated"  # higher than what Debian's archive has, so that nothing is compiled
LICENCES = {"open": "Dual MIT/GPL", "proprietary": "NVIDIA"}
OWNER = "NVIDIA CORPORATION <cudatools@nvidia.com>"
DEBIAN = {"Maintainer": "Debian Kernel Team <debian-kernel@lists.debian.org>"}

PERSISTENCED = """[Unit]
Description=NVIDIA Persistence Daemon (simulated)

[Service]
Type=exec
ExecStartPre=/usr/bin/test -e /proc/driver/nvidia/version
ExecStart=/usr/bin/sleep infinity
RuntimeDirectory=nvidia-persistenced

[Install]
WantedBy=multi-user.target
"""
FABRIC_MANAGER = """[Unit]
Description=NVIDIA fabric manager service (simulated)
After=network-online.target
Requires=network-online.target

[Service]
Type=exec
ExecStartPre=/usr/bin/test -e /proc/driver/nvidia/version
ExecStart=/usr/bin/sleep infinity

[Install]
WantedBy=multi-user.target
"""
# What version 1.20.0 of the container toolkit installs.
CDI_REFRESH = """[Unit]
Description=Refresh NVIDIA CDI specification file
ConditionPathExists=|/usr/bin/nvidia-smi
ConditionPathExists=|/usr/sbin/nvidia-smi
ConditionPathExists=|/usr/lib/wsl/lib/nvidia-smi
ConditionPathExists=/usr/bin/nvidia-ctk
StartLimitBurst=5
StartLimitIntervalSec=10s

[Service]
Type=oneshot
Environment=NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/var/run/cdi/nvidia.yaml
EnvironmentFile=-/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env
ExecCondition=/bin/sh -c '/usr/bin/grep -qE "/(nvidia|nvidia-current)[.]ko" /lib/modules/%v/modules.dep || [ -e /dev/dxg ]'
ExecStart=/bin/sh -c '/usr/bin/nvidia-smi -L || /usr/sbin/nvidia-smi -L || /usr/lib/wsl/lib/nvidia-smi -L'
ExecStart=/usr/bin/nvidia-ctk cdi generate
CapabilityBoundingSet=CAP_SYS_MODULE CAP_SYS_ADMIN CAP_MKNOD
Restart=on-failure
RestartSec=1s

[Install]
WantedBy=multi-user.target
"""
CDI_REFRESH_PATH = """[Unit]
Description=Trigger CDI refresh on NVIDIA driver or toolkit install / upgrade events

[Path]
PathChanged=/lib/modules/%v/modules.dep
PathChanged=/lib/modules/%v/modules.dep.bin
PathChanged=/usr/bin/nvidia-ctk

[Install]
WantedBy=multi-user.target
"""
# DKMS builds in the postinst, and skips a kernel whose headers are not there.
DKMS_POSTINST = """#!/bin/sh
set -e
kernel=$(uname -r)
if [ ! -e "/lib/modules/$kernel/build" ]; then
  echo "Module build for kernel $kernel was skipped since the"
  echo "kernel headers for this kernel do not seem to be installed."
  exit 0
fi
install -D -m 644 /usr/src/nvidia-{version}/nvidia.ko "/lib/modules/$kernel/updates/dkms/nvidia.ko"
touch "/lib/modules/$kernel/modules.order" "/lib/modules/$kernel/modules.builtin" "/lib/modules/$kernel/modules.builtin.modinfo"
depmod -a
"""
DKMS_PRERM = """#!/bin/sh
set -e
rm -f "/lib/modules/$(uname -r)/updates/dkms/nvidia.ko"
if [ -d "/lib/modules/$(uname -r)" ]; then depmod -a; fi
"""
DKMS_STATUS = """#!/bin/sh
# A stand-in for dkms: tells which simulated module is built.
for built in /lib/modules/*/updates/dkms/nvidia.ko; do
  [ -e "$built" ] || continue
  kernel=${built#/lib/modules/}; echo "nvidia/$(modinfo -F version "$built"), ${kernel%%/*}, $(uname -m): installed"
done
"""
START_UNITS = """#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  systemctl enable {units}
  systemctl start {units} || echo "Could not start {units}" >&2
fi
"""
STOP_UNITS = """#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl disable --now {units}; fi
"""


@dataclass(frozen=True)
class Package:
    """One .deb: control fields, files by path (executable under bin and sbin), maintainer scripts by name."""

    name: str
    version: str
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)

    def control(self) -> str:
        """The control file."""
        lines = {"Package": self.name, "Version": self.version, "Architecture": "all", "Maintainer": OWNER}
        lines |= {
            "Section": "utils",
            "Priority": "optional",
            **self.fields,
            "Description": "stand-in for tests, simulated",
        }
        return "".join(f"{key}: {value}\n" for key, value in lines.items())


def kernel_module(version: str, licence: str) -> bytes:
    """The smallest ELF object that modinfo and depmod take for a kernel module: a .modinfo section and no code."""
    texts = {"version": version, "license": licence, "description": "simulated", "name": "nvidia", "depends": ""}
    modinfo = b"".join(f"{key}={value}".encode() + b"\0" for key, value in texts.items())
    names = b"\0.modinfo\0.shstrtab\0"
    start = 64
    sections = [
        struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, start, len(modinfo), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, start + len(modinfo), len(names), 0, 0, 1, 0),
    ]
    body = modinfo + names
    body += b"\0" * (-len(body) % 8)
    relocatable, x86_64 = 1, 62
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack(
        "<HHIQQQIHHHHHH", relocatable, x86_64, 1, 0, 0, start + len(body), 0, 64, 0, 0, 64, len(sections), 2
    )
    return header + body + b"".join(sections)


def driver() -> Iterator[Package]:
    """The repository of drivers, with the stand-ins for Debian's own packages that a driver needs."""
    for version in DRIVERS:
        upstream = version.partition("-")[0]
        same = f"(= {version})"
        yield Package(
            "nvidia-driver-cuda",
            version,
            {"Depends": f"libcuda1 {same}, nvidia-persistenced {same}"},
            {"usr/bin/nvidia-smi": _guest("nvidia-smi", upstream)},
        )
        yield Package(
            "libcuda1", version, {"Recommends": f"nvidia-kernel-dkms {same} | nvidia-kernel-open-dkms {same}"}
        )
        yield Package(
            "nvidia-persistenced",
            version,
            files={"usr/lib/systemd/system/nvidia-persistenced.service": PERSISTENCED.encode()},
            scripts=_units("nvidia-persistenced.service"),
        )
        yield Package(
            "nvidia-fabricmanager",
            version,
            files={"usr/lib/systemd/system/nvidia-fabricmanager.service": FABRIC_MANAGER.encode()},
        )
        for name, other, flavour in (
            ("nvidia-kernel-open-dkms", "nvidia-kernel-dkms", "open"),
            ("nvidia-kernel-dkms", "nvidia-kernel-open-dkms", "proprietary"),
        ):
            yield Package(
                name,
                version,
                {"Depends": "dkms", "Conflicts": other, "Replaces": other},
                {f"usr/src/nvidia-{upstream}/nvidia.ko": kernel_module(upstream, LICENCES[flavour])},
                {"postinst": DKMS_POSTINST.format(version=upstream), "prerm": DKMS_PRERM},
            )
    for branch in sorted({version.partition(".")[0] for version in DRIVERS}):
        pin = f"Package: *nvidia* libcuda* libnv* cuda-drivers*\nPin: version {branch}.*\nPin-Priority: 1000\n"
        yield Package(
            f"nvidia-driver-pinning-{branch}",
            f"{branch}-1",
            {"Provides": "nvidia-driver-pinning", "Conflicts": "nvidia-driver-pinning"},
            {"etc/apt/preferences.d/nvidia-driver-pinning": pin.encode()},
        )
    kernel = os.uname().release
    headers = f"linux-headers-{kernel}"
    yield Package("dkms", ABOVE_ALL, DEBIAN, {"usr/sbin/dkms": DKMS_STATUS.encode()})
    yield Package("linux-headers-amd64", ABOVE_ALL, {"Depends": headers, **DEBIAN})
    makefile = b"# Simulated: nothing can be compiled with this.\n"
    yield Package(headers, ABOVE_ALL, DEBIAN, {f"usr/lib/modules/{kernel}/build/Makefile": makefile})


def toolkit() -> Iterator[Package]:
    """The repository of the container toolkit."""
    for version in TOOLKITS:
        same = f"(= {version})"
        yield Package(
            "nvidia-container-toolkit",
            version,
            {
                "Depends": f"nvidia-container-toolkit-base {same}, libnvidia-container-tools {same}, "
                "libnvidia-container-tools (<< 2.0.0)"
            },
        )
        units = ("nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service") if version >= "1.18" else ()
        texts = dict(zip(units, (CDI_REFRESH_PATH, CDI_REFRESH), strict=False))
        files = {f"usr/lib/systemd/system/{unit}": text.encode() for unit, text in texts.items()}
        files["usr/bin/nvidia-ctk"] = _guest("nvidia-ctk", version.partition("-")[0])
        yield Package("nvidia-container-toolkit-base", version, files=files, scripts=_units(*units) if units else {})
        yield Package("libnvidia-container-tools", version, {"Depends": f"libnvidia-container1 (>= {version})"})
        yield Package("libnvidia-container1", version)


def everything() -> dict[Literal["driver", "toolkit"], list[Package]]:
    """The packages by repository."""
    return {"driver": list(driver()), "toolkit": list(toolkit())}


def _guest(name: str, version: str) -> bytes:
    return (GUEST / name).read_bytes().replace(b"@VERSION@", version.encode())


def _units(*units: str) -> dict[str, str]:
    return {
        "postinst": START_UNITS.format(units=" ".join(units)),
        "prerm": STOP_UNITS.format(units=" ".join(units)),
    }
