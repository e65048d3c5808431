"""Ways to take a GPU away, to break it, and to let its driver be replaced."""

from collections.abc import Callable

from atelier.gpu import torch_probe
from sabotage.sabotage import COMFYUI, DAEMON, Sabotage, changed, edited, given_back

ADDRESS = "ADDRESS=$(ls /run/simulated-gpu/minors | head -n 1)\n"
"""Of the first card."""
INSTALLED = '"$(modinfo -F version nvidia)"'
SPECIFICATION = "/var/run/cdi/nvidia.yaml"
REFRESHED = "systemctl reset-failed nvidia-cdi-refresh.service\nsystemctl restart nvidia-cdi-refresh.service\n"
DROP_IN = "/etc/systemd/system/docker.service.d/atelier-gpu.conf"
MODULE = '"$(modinfo -n nvidia)"'
TOOLKIT = "libnvidia-container1 libnvidia-container-tools nvidia-container-toolkit-base nvidia-container-toolkit"
GENERATOR = "/etc/systemd/system-generators/sabotage"
GPU_OF_COMFYUI = f"""overridden {COMFYUI} <<X
services:
  $COMFYUI:
    deploy: !override
      resources:
        reservations:
          devices: %s
X
"""
AS_BEFORE = f"recreate {COMFYUI}\n"


def ailing(planted: str) -> str:
    """A script after which nvidia-smi says this of the first card."""
    return f'{ADDRESS}simulated-gpu ail "$ADDRESS" {planted}\n'


WELL = f'{ADDRESS}simulated-gpu well "$ADDRESS"\n'


def versions(version: str) -> str:
    """A script that has apt install one version of the container toolkit."""
    names = " ".join(f"{name}={version}" for name in TOOLKIT.split())
    flags = "-qy --allow-downgrades --allow-change-held-packages"
    return f"DEBIAN_FRONTEND=noninteractive apt-get install {flags} {names} >/dev/null\napt-mark hold {TOOLKIT} >/dev/null\n"


SABOTAGES = (
    Sabotage(
        "gpu.driver-replaced",
        "the driver's programs are of another version than the module that runs",
        "simulated-gpu loaded 580.65.06",
        f"simulated-gpu loaded {INSTALLED}",
        ("gpu.driver",),
        "version mismatch.* -> .*restart the host",
        needs="gpu",
    ),
    Sabotage(
        "gpu.module-replaced",
        "another module is on disk than runs, as after an upgrade by itself",
        edited(MODULE, """sed -i 's/version=580\\.[0-9]/version=580.9/' "$FILE" """),
        given_back(MODULE),
        ("gpu.driver",),
        r"runs module 580\.\S+ and 580\.9\S+ is installed.* -> .*restart the host",
        needs="gpu",
    ),
    Sabotage(
        "gpu.other-flavour",
        "proprietary modules run where open ones are installed",
        f"simulated-gpu loaded {INSTALLED} proprietary",
        f"simulated-gpu loaded {INSTALLED}",
        ("gpu.driver",),
        "proprietary modules and open ones are installed",
        needs="gpu",
    ),
    Sabotage(
        "gpu.no-persistence",
        "the persistence daemon is stopped",
        "systemctl stop nvidia-persistenced",
        "systemctl start nvidia-persistenced",
        ("gpu.driver",),
        "persistence mode is off.* -> .*nvidia-persistenced",
        needs="gpu",
    ),
    Sabotage(
        "gpu.off-the-bus",
        "a card has fallen off the bus",
        f'{ADDRESS}simulated-gpu lose "$ADDRESS"',
        f'{ADDRESS}simulated-gpu found "$ADDRESS"',
        ("gpu.driver", "gpu.health", "gpu.containers"),
        "Unable to determine the device handle.* -> .*power",
        needs="gpu",
    ),
    Sabotage(
        "gpu.xid",
        "the driver wrote into the kernel's log that the card is gone",
        f'{ADDRESS}simulated-gpu xid "$ADDRESS" 79 "GPU has fallen off the bus."',
        "simulated-gpu unload; modprobe -a nvidia nvidia-uvm",
        ("gpu.health",),
        "Xid 79 of the card at .*fallen off the bus.* -> .*Power the host off",
        needs="gpu",
    ),
    Sabotage(
        "gpu.ecc",
        "the card had memory errors that it could not correct",
        ailing("UNCORRECTED=2"),
        WELL,
        ("gpu.health",),
        "2 uncorrected ECC errors.* -> .*replace the card if it recurs",
        needs="gpu",
    ),
    Sabotage(
        "gpu.bad-memory",
        "the card waits for a reset to set bad memory aside",
        ailing("PENDING=Yes"),
        WELL,
        ("gpu.health",),
        "Pending is Yes.* -> .*set aside at the next reset",
        needs="gpu",
    ),
    Sabotage(
        "gpu.worn-out",
        "the card cannot set bad memory aside any more",
        ailing("FAILURE=Yes"),
        WELL,
        ("gpu.health",),
        "Remapping Failure Occurred is Yes.* -> .*have it replaced",
        needs="gpu",
    ),
    Sabotage(
        "gpu.hot",
        "the card slows itself down for heat",
        ailing("TEMPERATURE=90"),
        WELL,
        ("gpu.health",),
        r"has reached its temperature limit \(90 C\).* -> .*fans",
        needs="gpu",
    ),
    Sabotage(
        "gpu.reset-due",
        "the driver asks for a restart",
        ailing("RECOVERY=Reboot"),
        WELL,
        ("gpu.health",),
        "recovery action Reboot.* -> .*restart the host",
        needs="gpu",
    ),
    Sabotage(
        "gpu.cdi-removed",
        "the list of CDI devices is gone",
        f"rm -f {SPECIFICATION}",
        REFRESHED,
        ("gpu.cdi",),
        "CDI does not know GPU-.* -> .*nvidia-cdi-refresh",
        needs="gpu",
    ),
    Sabotage(
        "gpu.cdi-former-card",
        "the list of CDI devices is that of another card",
        changed(SPECIFICATION, """sed -i 's/name: "GPU-[^"]*"/name: "GPU-former"/' "$FILE" """),
        REFRESHED,
        ("gpu.cdi",),
        "CDI knows GPU-former",
        needs="gpu",
    ),
    Sabotage(
        "gpu.cdi-former-driver",
        "the list of CDI devices names files of another driver",
        changed(
            SPECIFICATION, """sed -i 's|hostPath: /usr/bin/nvidia-smi|hostPath: /usr/lib/libcuda.so.570.1|' "$FILE" """
        ),
        REFRESHED,
        ("gpu.cdi",),
        r"names /usr/lib/libcuda\.so\.570\.1, which is not on the host",
        needs="gpu",
    ),
    Sabotage(
        "gpu.cdi-off",
        "Docker's settings switch CDI off",
        edited(DAEMON, """sed -i 's/"cdi": true/"cdi": false/' "$FILE" """),
        given_back(DAEMON),
        ("gpu.host",),
        "features.cdi is False.* -> .*make deploy",
        needs="gpu",
    ),
    Sabotage(
        "gpu.not-held",
        "apt may replace the driver",
        "apt-mark unhold nvidia-driver-cuda >/dev/null",
        "apt-mark hold nvidia-driver-cuda >/dev/null",
        ("gpu.host",),
        "apt does not hold nvidia-driver-cuda",
        needs="gpu",
    ),
    Sabotage(
        "gpu.boot-order",
        "nothing has Docker wait for the list of CDI devices at boot",
        f"keep {DROP_IN}\nrm {DROP_IN}\nsystemctl daemon-reload",
        f"{given_back(DROP_IN)}systemctl daemon-reload",
        ("gpu.host",),
        "Docker may start before the CDI list is made",
        needs="gpu",
    ),
    Sabotage(
        "gpu.not-refreshed",
        "the list of CDI devices is not made at boot",
        "systemctl disable -q nvidia-cdi-refresh.service nvidia-cdi-refresh.path",
        "systemctl enable -q nvidia-cdi-refresh.service nvidia-cdi-refresh.path",
        ("gpu.host",),
        "nvidia-cdi-refresh, which makes the CDI list at every boot, is not enabled",
        needs="gpu",
    ),
    Sabotage(
        "gpu.unsafe-toolkit",
        "the container toolkit is one that lets containers out",
        f"dpkg-query -W -f '${{Version}}' nvidia-container-toolkit >/var/lib/simulated-gpu/toolkit\n{versions('1.17.7-1')}",
        versions("$(cat /var/lib/simulated-gpu/toolkit)")
        + "systemctl enable -q --now nvidia-cdi-refresh.path nvidia-cdi-refresh.service",
        ("gpu.host",),
        r"of one version and safe: .*1\.17\.7-1",
        needs="gpu",
        slow=True,
    ),
    Sabotage(
        "gpu.none-asked-for",
        "a container runs without a GPU",
        GPU_OF_COMFYUI % "[]",
        AS_BEFORE,
        ("gpu.containers",),
        "comfyui asks for no GPU.* -> .*nvidia-ctk cdi list",
        needs="gpu",
        slow=True,
    ),
    Sabotage(
        "gpu.all-asked-for",
        "a container has every GPU, not its own",
        GPU_OF_COMFYUI % '[{driver: cdi, device_ids: ["nvidia.com/gpu=all"], capabilities: [gpu]}]',
        AS_BEFORE,
        ("gpu.containers",),
        "comfyui asks for nvidia.com/gpu=all",
        needs="gpu",
        slow=True,
    ),
    Sabotage(
        "gpu.lost-at-a-reload",
        "a container loses its GPU when systemd reads its units again",
        f"""mkdir -p {GENERATOR.rpartition("/")[0]}
pid=$(docker inspect -f '{{{{.State.Pid}}}}' {COMFYUI})
printf '#!/bin/sh\\nnsenter -t %s -m -p umount -l /usr/lib/simulated-gpu/version\\n' "$pid" >{GENERATOR}
chmod +x {GENERATOR}
""",
        f"rm -f {GENERATOR}\nsystemctl daemon-reload\n{AS_BEFORE}",
        ("gpu.reload",),
        "comfyui sees Failed to initialize NVML.* -> .*through CDI",
        needs="gpu",
        slow=True,
    ),
)

RECORDED: dict[str, Callable[[], list[str]]] = {
    "gpu.torch": lambda: torch_probe.problems(
        {
            "torch": "2.13.0+cu130",
            "available": True,
            "devices": 1,
            "capability": [6, 1],
            "architectures": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
            "error": 0.03,
        }
    ),
}
