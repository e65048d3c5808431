"""A simulated GPU for a sandbox: NVIDIA's packages as stand-ins, and a guest that sees cards on its bus. README.md."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.settings import AptRepositorySettings
from sandbox import machine, shared
from sandbox.simulated_gpu import repository
from sandbox.simulated_gpu.packages import GUEST

FOLDER = "nvidia"
HARDWARE = "/var/lib/simulated-gpu/cards"
UNIT = """[Unit]
Description=Simulated GPU: the kernel's side
DefaultDependencies=no
RequiresMountsFor=/var/lib /usr
After=local-fs.target systemd-journald.service
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/simulated-gpu boot

[Install]
WantedBy=sysinit.target
"""

KMSG = "/var/lib/simulated-gpu/kmsg"
JOURNAL = f"""[Service]
# The journal reads the simulated kernel's log from there; /dev of everything else stays without one.
BindPaths=-{KMSG}:/dev/kmsg
"""
HELD_OPEN = f"""[Unit]
Description=Simulated GPU: holds the kernel's log open, so that nobody waits for a reader or a writer of it
DefaultDependencies=no
RequiresMountsFor=/var/lib
Before=systemd-journald.service

[Service]
Type=exec
StandardOutput=null
StandardError=null
ExecStart=/bin/sh -c 'exec sleep infinity <>{KMSG}'

[Install]
WantedBy=sysinit.target
"""


@dataclass(frozen=True)
class Card:
    """A simulated card. `device`: PCI device id. `memory` in MiB. nvidia-smi shows the name with "(simulated)" behind it."""

    address: str
    device: str
    uuid: str
    name: str
    memory: int
    capability: str


CARDS = {
    "l40s": Card("0000:81:00.0", "0x26b9", "GPU-5a000000-0000-4000-8000-000000000001", "NVIDIA L40S", 46068, "8.9"),
    "rtx4090": Card(
        "0000:82:00.0", "0x2684", "GPU-5a000000-0000-4000-8000-000000000002", "NVIDIA GeForce RTX 4090", 24564, "8.9"
    ),
    "t4": Card("0000:83:00.0", "0x1eb8", "GPU-5a000000-0000-4000-8000-000000000003", "Tesla T4", 15360, "7.5"),
    "p40": Card("0000:84:00.0", "0x1b38", "GPU-5a000000-0000-4000-8000-000000000004", "Tesla P40", 23040, "6.1"),
    "blackwell": Card(
        "0000:85:00.0",
        "0x2bb1",
        "GPU-5a000000-0000-4000-8000-000000000005",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        97887,
        "12.0",
    ),
}


def repositories() -> dict[str, AptRepositorySettings]:
    """`settings.gpu.driver_repository` and `toolkit_repository`, served from the folder that guests share."""
    made = repository.ensure(shared.folder() / FOLDER)
    root = f"file://{shared.GUEST_FOLDER}/{FOLDER}/{made.name}"
    fingerprint = (made / repository.FINGERPRINT).read_text()
    return {
        f"{name}_repository": AptRepositorySettings(
            url=f"{root}/{name}", key_url=f"{root}/{repository.KEY}", fingerprint=fingerprint
        )
        for name in ("driver", "toolkit")
    }


def hardware(cards: Sequence[Card]) -> str:
    """The file that tells the guest's simulated kernel what is plugged in."""
    return "".join(
        f"{card.address} {card.device} {card.uuid} {card.memory} {card.capability} {card.name}\n" for card in cards
    )


def insert(host: machine.Machine, cards: Sequence[Card] | None = None) -> None:
    """Plugs the cards into a running sandbox, for this and every later boot. Does nothing where they are plugged in.

    None: what is plugged in stays, and a guest without a card gets an L40S.
    Other cards than before appear as after a power cycle: nothing is loaded but what boots load.
    Raises machine.SandboxError when the guest refuses.
    """
    files = {
        "/etc/systemd/system/simulated-gpu.service": UNIT,
        "/etc/systemd/system/simulated-kmsg.service": HELD_OPEN,
        "/etc/systemd/system/systemd-journald.service.d/simulated-gpu.conf": JOURNAL,
        **{f"/usr/local/sbin/{name}": (GUEST / name).read_text() for name in ("simulated-gpu", "modprobe")},
    }
    plug = _put(Path(HARDWARE), hardware(cards or [CARDS["l40s"]]))
    script = "set -eu\nchanged=\n" + (f"if [ ! -e {HARDWARE} ]; then\n{plug}fi\n" if cards is None else plug)
    script += "".join(_put(Path(path), text) for path, text in files.items())
    script += f"""if [ -n "$changed" ]; then
[ -p {KMSG} ] || mkfifo -m 600 {KMSG}
systemctl daemon-reload
systemctl enable -q simulated-gpu.service simulated-kmsg.service
systemctl restart simulated-kmsg.service systemd-journald.service
systemctl restart simulated-gpu.service
fi
"""
    login = ["ssh", "-F", str(host.ssh_config), "-o", "BatchMode=yes", host.name, "sudo sh"]
    done = subprocess.run(login, input=script, capture_output=True, text=True)
    if done.returncode:
        raise machine.SandboxError(f"The simulated GPU could not be put into {host.name}: {done.stderr.strip()}")


def _put(path: Path, text: str) -> str:
    mode = "755" if path.parent.name == "sbin" else "644"
    encoded = base64.b64encode(text.encode()).decode()
    return (
        f"mkdir -p {path.parent}; echo {encoded} | base64 -d > {path}.part\n"
        f"if cmp -s {path}.part {path}; then rm {path}.part; else chmod {mode} {path}.part; mv {path}.part {path}; changed=yes; fi\n"
    )
