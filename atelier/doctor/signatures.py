"""The failures that doctor recognises: what each looks like in the logs, why it happens, and what to type.

Patterns are searched line by line; the kernel writes some of its messages over several lines. `basis` names where the
text was read: a document, an upstream thread or source, or our own programs.
"""

import re
import shlex
from dataclasses import dataclass
from typing import Literal

from atelier.doctor.collect import Kind, Source
from atelier.settings import Settings
from weights.decide import WAITS_FOR_SPACE


@dataclass(frozen=True)
class Step:
    """A command to type, on the host's shell or in this checkout."""

    where: Literal["host", "here"]
    command: str

    def typed(self, argument: str, settings: Settings) -> str:
        """The command for one target: `make` gets what names the target, and paths are the host's own."""
        if self.where == "here":
            return aimed(self.command, argument)
        places = {"{data}": shlex.join(settings.data_directories()), "{models}": settings.models_path()}
        places |= {"{outputs}": settings.outputs_path(), "{users}": settings.users_path()}
        return re.sub(r"\{[a-z]+\}", lambda found: places.get(found[0], found[0]), self.command)


MAKE = re.compile(
    r"\bmake (?:deploy|plan|preflight|verify|doctor|generate|status|logs|start|stop|restart|outputs|models-fetch|models-verify"
    r"|models-prune)\b(?: [A-Z]+=[^\s`;,]+)*"
)


def aimed(text: str, argument: str) -> str:
    """A text whose make commands name the target, which hosts.yml makes necessary."""
    return MAKE.sub(lambda found: f"{found[0]} {argument}".strip(), text)


def host(command: str) -> Step:
    """A command for the host's shell."""
    return Step("host", command)


def here(command: str) -> Step:
    """A command for this checkout."""
    return Step("here", command)


@dataclass(frozen=True)
class Signature:
    """One failure. The table below is in the order of importance."""

    id: str
    title: str
    why: str
    steps: tuple[Step, ...]
    kinds: tuple[Kind, ...]
    patterns: tuple[str, ...]
    basis: str
    over_by: str = ""
    """A later line of the same source after which it is over; `{app}` stands for the pattern's group of that name."""
    lasting: bool = False
    """Not over because everything runs again: hardware that failed once in this boot will fail again, a log stays damaged."""
    hides: tuple[str, ...] = ()
    """Ids of vaguer signatures that say the same once more."""

    sources: tuple[str, ...] = ()
    """The only sources that count, where others of these kinds tell of it on a host that is well."""

    def reads(self, source: Source) -> bool:
        """A source of this kind can show it."""
        return source.kind in self.kinds and (not self.sources or source.name in self.sources)

    def match(self, line: str) -> re.Match[str] | None:
        """The first pattern found in a line."""
        return next((found for pattern in self.patterns if (found := re.search(pattern, line))), None)


DEPLOY = here("make deploy")
REBOOT = host("sudo reboot")
STATUS = here("make status")

ACCESS = (
    Signature(
        "login-plugin",
        "ComfyUI was not started because its login is not in force",
        "ComfyUI-Login did not load, and ComfyUI would serve everybody without it, so our entry script ended it.",
        (
            here("make logs SERVICE=comfyui   # the traceback names the missing module or file"),
            here("make deploy   # puts the container back to the image that was proven"),
        ),
        ("service",),
        (
            r"atelier: ComfyUI was not started: the login is not in force",
            r"\(IMPORT FAILED\): \S*ComfyUI-Login",
            r"Cannot import \S*ComfyUI-Login module for custom nodes",
        ),
        "images/comfyui/entrypoint.py; ComfyUI nodes.py",
        over_by=r"atelier: the login is in force",
    ),
    Signature(
        "forge-login",
        "Forge was not started because its logins are not in force",
        "Form or API did not refuse a stranger, so our entry script ended it.",
        (here("make logs SERVICE=forge"), DEPLOY),
        ("service",),
        (r"atelier: Forge was not started: the logins are not in force",),
        "images/forge/entrypoint.py",
        over_by=r"atelier: the logins are in force",
    ),
    Signature(
        "open-to-strangers",
        "The gateway serves an application no more, because it answers strangers",
        "Asked without credentials, the application did not say 401. Whoever reaches it past the gateway needs no login.",
        (here("make restart"), here("make verify GROUP=access"), DEPLOY),
        ("service",),
        (r'"event": "not served", "application": "(?P<app>[^"]+)", "reason": "[^"]*to a stranger, 401 expected',),
        "images/gateway/guard/watch.py",
        over_by=r'"event": "served", "application": "{app}"',
    ),
    Signature(
        "credential-files",
        "A service cannot read its credentials",
        "A file below secrets/ on the host is missing, damaged or of another owner.",
        (DEPLOY,),
        ("service",),
        (
            r"atelier: ComfyUI was not started: (a credential file cannot be read|/\S+ must hold|/\S+ lets strangers in)",
            r"atelier: Forge was not started: /\S+( cannot be read)?:",
            r"^(.* )?gateway: /run/secrets/\S+: ",
        ),
        "images/*/entrypoint.py, images/gateway/guard/config.py",
        over_by=r"atelier: the logins? (is|are) in force|\"event\": \"served\"",
        hides=("permission",),
    ),
)

GPU_FALLEN = Signature(
    "gpu-off-the-bus",
    "A GPU has fallen off the bus (Xid 79)",
    "The card no longer answers on PCI Express: overheating, power supply or cable, its seat in the slot, or a defect.",
    (
        host("nvidia-smi -q -d TEMPERATURE,POWER"),
        host("sudo poweroff   # then check power cables and seat; a warm restart often does not bring it back"),
        here("make doctor"),
    ),
    ("kernel", "gpu"),
    (
        r"fallen off the bus",
        r"Xid \(PCI:[^)]*\): 79\b",
        r"GPU is lost\. +Reboot the system to recover",
        r"Unable to determine the device handle for GPU.*: Unknown Error",
    ),
    "NVIDIA Xid catalog; leptonai/gpud 1209, NVIDIA/NVSentinel 155 (the form without an Xid)",
    lasting=True,
    hides=("gpu-not-initialised", "driver-not-loaded"),
)


@dataclass(frozen=True)
class Xid:
    """One of the driver's error numbers."""

    number: int
    title: str
    why: str
    steps: tuple[Step, ...]


RESTART = here("make restart")
RESET = host("sudo reboot   # resets the GPU")
QUERY_ECC = host("nvidia-smi -q -d ECC,PAGE_RETIREMENT,ROW_REMAPPER")

XIDS = (
    Xid(
        48,
        "the GPU's memory had an error that could not be corrected",
        "A double-bit ECC error: what was in that memory is lost. One alone may be chance; a second one is a failing card.",
        (QUERY_ECC, RESET),
    ),
    Xid(
        95,
        "the GPU's memory had an error that reached other programs",
        "An uncontained ECC error: everything that ran on the GPU is suspect until it is reset.",
        (QUERY_ECC, RESET),
    ),
    Xid(
        94,
        "the GPU's memory had an error that hit one program",
        "A contained ECC error: the program that used the memory was ended, others are not affected.",
        (RESTART, QUERY_ECC),
    ),
    Xid(
        64,
        "the GPU could not set aside bad memory",
        "Recording a retired page or remapped row failed. The card is to be replaced when it does so after a reset.",
        (QUERY_ECC, RESET),
    ),
    Xid(
        63,
        "the GPU sets aside bad memory",
        "A page was retired or a row remapped after memory errors; it takes effect at the next reset.",
        (QUERY_ECC, RESET),
    ),
    Xid(
        74,
        "an NVLink connection failed",
        "The link between two GPUs reported errors: a bridge or connector that does not sit well, or a failing card.",
        (host("nvidia-smi nvlink -s"), RESET),
    ),
    Xid(
        119,
        "the GPU's own processor does not answer (GSP time-out)",
        "The driver waited for the firmware on the card in vain. Some driver versions do this more than others.",
        (RESET, DEPLOY),
    ),
    Xid(
        120,
        "the GPU's own processor crashed (GSP error)",
        "The firmware on the card failed. It works again after a reset; when it comes back, try another driver of the branch.",
        (RESET, DEPLOY),
    ),
    Xid(
        31,
        "a program reached for GPU memory that is not its own (MMU fault)",
        "Most often a bug in a program (a custom node, an extension, a build for another GPU), seldom the card.",
        (RESTART, here("make logs")),
    ),
    Xid(
        13,
        "a program gave the GPU something that it cannot execute",
        "A graphics engine exception: a bug in a program or a build for another GPU; overclocking and heat do it as well.",
        (RESTART, here("make logs"), host("nvidia-smi -q -d TEMPERATURE")),
    ),
    Xid(
        43,
        "the GPU stopped a program",
        "The program's work on the GPU failed and was ended; the card itself is well.",
        (RESTART, here("make logs")),
    ),
)
"""NVIDIA's catalog: https://docs.nvidia.com/deploy/xid-errors/"""

BENIGN_XIDS = (45,)
"""Clean-up after a program that was ended."""


def _xid(xid: Xid) -> Signature:
    return Signature(
        f"xid-{xid.number}",
        f"Xid {xid.number}: {xid.title}",
        xid.why,
        xid.steps,
        ("kernel",),
        (rf"Xid \(PCI:[^)]*\): {xid.number}\b",),
        "NVIDIA Xid catalog",
        lasting=True,
    )


_KNOWN_XIDS = "|".join(str(number) for number in (79, *BENIGN_XIDS, *(xid.number for xid in XIDS)))
OTHER_XID = Signature(
    "xid-other",
    "The GPU driver reported an error (Xid)",
    "The number after the PCI address says which; NVIDIA's list is at https://docs.nvidia.com/deploy/xid-errors/",
    (host("sudo journalctl -k -b | grep Xid"), here("make doctor BUNDLE=1")),
    ("kernel",),
    (rf"Xid \(PCI:[^)]*\): (?!(?:{_KNOWN_XIDS})\b)\d+",),
    "NVIDIA Xid catalog",
    lasting=True,
)

DRIVER = (
    Signature(
        "driver-mismatch",
        "The driver was replaced under the running kernel",
        "The loaded kernel module and the installed libraries are of different versions: an upgrade came between two boots.",
        (REBOOT, DEPLOY),
        ("kernel", "gpu", "docker", "service", "state"),
        (
            r"Failed to initialize NVML: Driver/library version mismatch",
            r"(?i)nvml error: driver/library version mismatch",
            r"NVRM: API mismatch: the client has the version",
            r"driver: loaded \S+, on disk \S+",
        ),
        "nvidia.md 1; stackhpc/ansible-slurm-appliance 287; ubuntu-packaging-nvidia-driver 3",
        hides=("driver-upgraded", "gpu-missing-in-container"),
    ),
    Signature(
        "secure-boot",
        "Secure Boot rejects the driver's kernel module",
        "The firmware loads only modules signed with a key that it knows, and the key of this module is not enrolled.",
        (
            host("sudo mokutil --import /var/lib/dkms/mok.pub   # choose a password for the next boot"),
            host("sudo reboot   # at the console: Enroll MOK, and type that password"),
            DEPLOY,
        ),
        ("kernel", "gpu", "state", "packages"),
        (
            r"(?i)could not insert '?nvidia\S*'?: (Key was rejected by service|Required key not available)",
            r"(?i)nvidia\S*:? .*(Key was rejected by service|Required key not available)",
            r"Loading of (unsigned )?module with unavailable key is rejected",
            r"Lockdown: (modprobe|systemd-modules|insmod): unsigned module loading is restricted",
        ),
        "nvidia.md 3; siderolabs/talos 7043; kernel/module/signing.c",
        hides=("driver-not-loaded",),
    ),
    Signature(
        "open-modules-needed",
        "This GPU works with the open kernel modules only",
        "Blackwell and later cards refuse the proprietary modules that are installed.",
        (here("make plan"), DEPLOY),
        ("kernel",),
        (r"requires use of the NVIDIA open kernel modules",),
        "nvidia.md 4; text as of 570 and 580",
        hides=("gpu-not-initialised", "driver-not-loaded"),
    ),
    Signature(
        "open-modules-unsupported",
        "This GPU is too old for the open kernel modules",
        "Cards before Turing have no GPU System Processor, which the open modules need: they work with 580 proprietary.",
        (here("make plan"), DEPLOY),
        ("kernel",),
        (r"is not supported by open\b",),
        "nvidia.md 5; negativo17/nvidia-driver 158; NVIDIA/open-gpu-kernel-modules 322",
        hides=("gpu-not-initialised", "driver-not-loaded"),
    ),
    Signature(
        "nouveau",
        "The driver nouveau holds the GPU",
        "The kernel's own driver was loaded first, and two drivers cannot have one card.",
        (here("make deploy REBOOT=1"),),
        ("kernel", "state"),
        (r"NVRM: nouveau, rivafb", r"NVRM: This can occur when a driver such as", r"driver: nouveau holds "),
        "mattshma/bigdata 133 (NVRM text); sysfs",
        hides=("driver-not-loaded",),
    ),
    Signature(
        "dkms-failed",
        "The driver's kernel module could not be built",
        "DKMS builds it anew for each kernel, and needs that kernel's headers and compiler for it.",
        (
            host("sudo apt-get install linux-headers-$(uname -r)"),
            host("sudo dkms autoinstall"),
            host("sudo tail -n 40 /var/lib/dkms/nvidia/*/build/make.log"),
            DEPLOY,
        ),
        ("packages", "gpu", "state"),
        (
            r"(?i)bad return status for module build on kernel",
            r"(?i)your kernel headers for kernel \S+ cannot be found",
            r"driver: DKMS has built nothing for kernel",
        ),
        "dkms.in of Debian 12 and 13",
        hides=("driver-not-loaded", "apt-interrupted"),
    ),
    Signature(
        "fabric-manager",
        "The NVSwitch fabric is not initialised",
        "Hosts with NVSwitch need nvidia-fabricmanager at exactly the driver's version, and running.",
        (
            host("systemctl status nvidia-fabricmanager"),
            host("dpkg -l 'nvidia-fabricmanager*'; cat /sys/module/nvidia/version"),
            DEPLOY,
        ),
        ("service", "state", "gpu"),
        (
            r"Error 802: system not yet initialized",
            r"cuda runtime error \(802\)",
            r"(?i)fabric ?manager.*(version mismatch|driver version .* does not match|don't match with driver)",
        ),
        "nvidia.md 10; pytorch/pytorch 35710; nanoporetech/dorado 1214",
    ),
    Signature(
        "gpu-not-initialised",
        "The driver cannot start the GPU",
        "The module is loaded and the card does not come up: wrong kind of module, firmware missing, power, or a defect.",
        (
            host("sudo journalctl -k -b | grep NVRM"),
            here("make plan"),
            host("sudo poweroff   # then on again: a cold start"),
        ),
        ("kernel", "gpu"),
        (
            r"RmInitAdapter failed!",
            r"^(.* )?No devices were found$",
            r"NVRM: None of the NVIDIA devices were initialized",
        ),
        "nvidia.md 4; NVIDIA/open-gpu-kernel-modules 789",
    ),
    Signature(
        "driver-not-loaded",
        "The NVIDIA driver is not loaded",
        "nvidia-smi is there and the kernel module is not: it was not built for this kernel, was refused, or is blacklisted.",
        (host("sudo modprobe nvidia"), host("dkms status; uname -r; dpkg -l 'linux-headers*' | grep ^ii"), DEPLOY),
        ("gpu", "state", "kernel"),
        (
            r"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver",
            r"modprobe: FATAL: Module nvidia\S* not found in directory",
            r"(?i)Failed to find module '?nvidia",
        ),
        "nvidia.md 2",
    ),
    Signature(
        "driver-upgraded",
        "Unattended upgrades replaced the driver since the last boot",
        "The new version takes effect at the next start; until then new programs may find library and module apart.",
        (REBOOT, here("make deploy   # puts the packages on hold")),
        ("packages",),
        (r"INFO Packages that will be upgraded:.*\b(lib)?nvidia-",),
        "nvidia.md, Modules, reboot, holds; unattended-upgrades log",
    ),
)

DOCKER = (
    Signature(
        "docker-missing",
        "Docker is not installed",
        "Nothing was deployed here yet, a deploy stopped before Docker, or Docker was removed.",
        (DEPLOY,),
        ("docker", "service"),
        (r"\bdocker: not found", r"docker: command not found"),
        "dash and bash, in the sandbox before a deploy",
    ),
    Signature(
        "docker-down",
        "Docker does not run",
        "Its daemon has ended or cannot start: a mistake in daemon.json, a full disk, a killed process.",
        (
            host("sudo journalctl -b -u docker -n 50"),
            host("sudo systemctl restart docker"),
            DEPLOY,
        ),
        ("docker", "service"),
        (r"Cannot connect to the Docker daemon at ", r"failed to connect to the docker API at "),
        "docker/cli, text of 26 in the sandbox and of 28",
    ),
    Signature(
        "container-log",
        "Docker cannot read the log of a container",
        "A line of it was cut off, as by a disk that was full. It stays so for as long as the container is the same one.",
        (
            host("sudo docker rm -f NAME   # the container whose log is named below; its data lie outside of it"),
            here("make deploy   # makes it again"),
        ),
        ("service",),
        (r"(?i)^error from daemon in stream: Error grabbing logs: ",),
        "moby/moby 29511; docker/for-linux 140",
        lasting=True,
    ),
    Signature(
        "toolkit-missing",
        "Docker does not know how to give a container a GPU",
        "The NVIDIA container toolkit is missing, or Docker was not restarted after it was installed.",
        (DEPLOY, host("sudo systemctl restart docker")),
        ("docker",),
        (r'could not select device driver \\*"(nvidia)?\\*" with capabilities',),
        "nvidia.md 6; NVIDIA/nvidia-docker 1034",
    ),
    Signature(
        "cdi-device-unknown",
        "The GPU that a container asks for is not among the CDI devices",
        "The list in /var/run/cdi is missing or old (it is made at each boot), or the card was replaced and has another UUID.",
        (
            here("make deploy   # has the list made anew, and gives the services the card that is there"),
            host("sudo systemctl restart nvidia-cdi-refresh.service && nvidia-ctk cdi list   # the list alone"),
            here("make start"),
        ),
        ("docker", "state"),
        (r"unresolvable CDI devices? ", r"cdi: \S+.* is not among the CDI devices"),
        "nvidia.md 7; NVIDIA/nvidia-container-toolkit 434 and 1239; nvidia-ctk cdi list",
        hides=("cdi-off",),
    ),
    Signature(
        "cdi-setting",
        "Docker's settings do not turn CDI on",
        "features.cdi is missing from /etc/docker/daemon.json, or the file is damaged: when Docker starts next, no container gets a GPU.",
        (DEPLOY,),
        ("state",),
        (r"docker: daemon\.json does not set features\.cdi",),
        "nvidia.md 6; daemon.json, read",
        hides=("cdi-off",),
    ),
    Signature(
        "cdi-off",
        "Docker could not use CDI devices when it started a container",
        "Docker is too old, or before 28.2: then it starts containers at boot before it knows its CDI driver.",
        (here("make start"), DEPLOY, host("docker version --format '{{.Server.Version}}'   # 28.3 or later has it on")),
        ("docker",),
        (r'could not select device driver \\*"cdi\\*" with capabilities',),
        "nvidia.md 6; moby/moby 49989",
        # Docker's own log has it at every boot before 28.2; a container's state only until it runs.
        sources=("container-states",),
    ),
    Signature(
        "boot-order",
        "After the next start Docker would not find the GPUs",
        "What starts Docker after the CDI list, and what makes that list, is missing or disabled.",
        (DEPLOY,),
        ("state",),
        (r"boot: (systemd does not know|nvidia-cdi-refresh)",),
        "systemctl show and is-enabled, of what docs/gpu.md lists",
    ),
    Signature(
        "toolkit-unsafe",
        "The container toolkit is of a version with known holes",
        "Before 1.19.1 a container can take over the host (CVE-2026-24260, CVE-2025-23266).",
        (DEPLOY,),
        ("state",),
        (r"toolkit: below [\d.]+: ",),
        "NVIDIA's security bulletins; dpkg",
    ),
    Signature(
        "not-held",
        "apt may replace the driver or the container toolkit by itself",
        "Their packages are not on hold any more: an upgrade would replace them under the running kernel.",
        (DEPLOY,),
        ("state",),
        (r"apt: not held any more: ",),
        "state/manifest.json; dpkg --get-selections",
    ),
    Signature(
        "other-gpu",
        "A service sees another GPU than the one it was given",
        "Its container was made by hand, or from changed files, since the last deploy.",
        (
            host("sudo docker rm -f NAME   # the container that is named below; its data lie outside of it"),
            here("make deploy   # makes it again, which it does not while its container looks as declared"),
        ),
        ("state",),
        (r"gpu: \S+ sees GPU-\S+.* and was given GPU-",),
        "nvidia-smi -L in the container; state/deployed.json",
    ),
    Signature(
        "rootless-or-lxc",
        "A container inside a container may not be given a GPU",
        "Docker runs rootless or in LXC, and the toolkit's older way needs rights over device cgroups that are not given there.",
        (here("make preflight"), DEPLOY),
        ("docker",),
        (r"bpf_prog_query\(BPF_CGROUP_DEVICE\) failed: operation not permitted",),
        "nvidia.md 11; NVIDIA/libnvidia-container 154",
    ),
    Signature(
        "port-taken",
        "Another program holds a port",
        "The gateway cannot publish on a port that is in use.",
        (
            host("sudo ss -ltnp   # who listens"),
            here("make start   # when that program is gone; or set services.<name>.port and make deploy"),
        ),
        ("docker",),
        (
            r"port is already allocated",
            r"failed to bind host port (for )?\S+: .*address already in use",
            r"(listen|bind)\S* .*bind: address already in use",
        ),
        "moby/moby, libnetwork portallocator; text of 26 and of 28",
    ),
    Signature(
        "gpu-lost-in-container",
        "A running container has lost its GPU",
        "`systemctl daemon-reload` takes devices away that were given by the older hook; devices given through CDI stay.",
        (here("make restart"), here("make deploy   # gives GPUs through CDI")),
        ("gpu", "service"),
        (r"Failed to initialize NVML: Unknown Error",),
        "nvidia.md 8; NVIDIA/nvidia-container-toolkit 48",
        hides=("gpu-missing-in-container",),
    ),
    Signature(
        "stopped",
        "A service is stopped",
        "It ended as it was told to: `make stop`, `docker stop`, or a deploy that was interrupted. It does not start by itself.",
        (here("make start"),),
        ("docker",),
        (r"status=exited exit=(0|130|143) oom=false .* error=\"\"",),
        "docker inspect in the sandbox after make stop",
    ),
)

HOST = (
    Signature(
        "disk-full",
        "The disk is full",
        "Nothing can be written any more: images, logs, databases and package installations break in turn.",
        (
            host("df -h; sudo du -xh -d2 /var /srv | sort -h | tail -n 20"),
            host("sudo docker builder prune   # build cache that nothing uses"),
            host("sudo journalctl --vacuum-size=200M"),
            here("make outputs   # before you delete images on the host"),
        ),
        ("kernel", "docker", "service", "packages", "state"),
        (
            r"(?i)no space left on device",
            r"\bENOSPC\b",
            r"database or disk is full",
            r"(?i)you don't have enough free space in",
            r"disk: \S+ is full",
        ),
        "errno(3); sqlite result code 13; apt",
        hides=("database", "apt-interrupted"),
    ),
    Signature(
        "out-of-memory",
        "The kernel ended a program because memory ran out",
        "Loading a model takes about its size in memory. The container's limit or the host's memory is too small for it.",
        (
            host("free -h; sudo docker stats --no-stream"),
            here("make start"),
            here("make deploy   # after raising services.<name>.memory_limit, or with fewer services on the host"),
        ),
        ("kernel", "docker"),
        (r"(?i)out of memory: Kill(ed)? process \d+", r"oom-kill:constraint=", r" oom=true "),
        "linux/mm/oom_kill.c",
        hides=("container-killed",),
    ),
    Signature(
        "container-killed",
        "A container was killed (exit 137)",
        "SIGKILL: by somebody's `docker kill`, because it did not end in time, or because memory ran out.",
        (host("sudo journalctl -k -b | grep -i 'out of memory'"), here("make start"), here("make logs")),
        ("docker",),
        (r"status=(exited|dead|restarting) exit=137 ",),
        "moby/moby, container state",
    ),
    Signature(
        "shared-memory",
        "A container's shared memory is full",
        "PyTorch passes tensors through /dev/shm, whose size is a setting.",
        (here("make deploy   # after raising services.<name>.shm_size"),),
        ("service",),
        (
            r"(?i)unexpected bus error encountered in worker",
            r"unable to (write to|allocate shared memory\(shm\)).*(/torch_|shm)",
        ),
        "torch/utils/data/_utils/signal_handling.py",
    ),
    Signature(
        "clock",
        "The clock is wrong",
        "Package archives, certificates and logins are refused when the time is off.",
        (host("timedatectl"), host("sudo timedatectl set-ntp true"), here("make preflight")),
        ("packages", "docker", "state", "service"),
        (
            r"is not valid yet \(invalid for another",
            r"Not live until \d{4}-",
            r"x509: certificate has expired or is not yet valid",
            r"(?i)certificate verify failed: certificate is not yet valid",
            r"clock: \d+ s (behind|ahead)",
        ),
        "apt; sqv; Go's crypto/x509; OpenSSL",
    ),
    Signature(
        "dns",
        "Names cannot be resolved",
        "The host's name servers do not answer. (The applications' containers have no way out on purpose; this is the host.)",
        (host("cat /etc/resolv.conf; getent hosts example.org"), host("resolvectl status"), here("make preflight")),
        ("docker", "packages", "state"),
        (
            r"Temporary failure resolving '",
            r"Could not resolve '[^']+'",
            r"lookup \S+ on \S+: (no such host|server misbehaving|.*i/o timeout)",
            r"dial tcp: lookup \S+: (no such host|Temporary failure in name resolution|i/o timeout)",
        ),
        "apt methods; Go's net",
    ),
    Signature(
        "apt-signed-by",
        "Two package sources name different keys for one repository",
        "Lists of an older installation (nvidia-docker) are beside those of today, and apt reads none of its sources then.",
        (
            host("grep -rlE 'nvidia.github.io|download.docker.com' /etc/apt/sources.list /etc/apt/sources.list.d"),
            host("sudo rm /etc/apt/sources.list.d/nvidia-docker.list   # the older one of the two"),
            DEPLOY,
        ),
        ("packages",),
        (r"Conflicting values set for option Signed-By",),
        "nvidia.md 12; NVIDIA/nvidia-docker 1626",
    ),
    Signature(
        "apt-key",
        "A package repository's signing key is unknown or has expired",
        "apt does not install from a repository whose signature it cannot check.",
        (here("make deploy   # installs the keys of the repositories that it uses"), host("sudo apt-get update")),
        ("packages",),
        (
            r"\bNO_PUBKEY [0-9A-F]+",
            r"\b(EXPKEYSIG|KEYEXPIRED) ",
            r"The following signatures were invalid",
            r"/usr/bin/sqv returned an error code .*(Missing key|Expired on|is not bound)",
        ),
        "apt gpgv and sqv methods",
    ),
    Signature(
        "apt-interrupted",
        "An installation of packages was interrupted",
        "dpkg was stopped half way (power, a kill, a full disk) and does nothing else until it has finished.",
        (host("sudo dpkg --configure -a"), host("sudo apt-get -f install"), DEPLOY),
        ("packages",),
        (
            r"dpkg was interrupted, you must manually run",
            r"The following packages are only half (configured|installed)",
            r"The following packages have been unpacked but not yet configured",
            r"The following packages are in a mess due to serious problems",
            r"Sub-process /usr/bin/dpkg returned an error code",
        ),
        "dpkg --audit; apt-pkg/deb/dpkgpm.cc",
    ),
)

SPACE = rf"({WAITS_FOR_SPACE}$|no space on the disk|make room for \d)"
WRONG_BYTES = r"sha256 [0-9a-f]{8,}, expected "
REFUSED = r"it answers 40[13]\b"
FETCH = here("make models-fetch")

WEIGHTS = (
    Signature(
        "weights-space",
        "The weights do not fit on the disk",
        "A transfer in the middle waits and goes on by itself when there is room; one that had not begun has to be told again.",
        (
            host("df -h {data}; sudo du -xh -d2 {data} | sort -h | tail -n 20"),
            here("make models-prune   # weights that no set needs; YES=1 removes them"),
            FETCH,
        ),
        ("state",),
        (rf"^weights: .*{SPACE}",),
        "weights/fetch.py",
    ),
    Signature(
        "weights-wrong-bytes",
        "A source of weights sends other bytes than the lock file names",
        "Its file was damaged, or replaced by another version. Nothing of it was used, and no other source had the right one.",
        (
            here("make models-fetch   # once that mirror's file is mended, or the mirror taken out of models.mirrors"),
            here("make models-lock   # where it is the hub: has the file been replaced there?"),
        ),
        ("state",),
        (rf"^weights: .*{WRONG_BYTES}",),
        "weights/decide.py",
    ),
    Signature(
        "weights-refused",
        "A source of weights refuses a file",
        "The repository is gated, or the token is not valid, has expired, or is of an account that has not accepted the licence.",
        (here("make models-fetch   # after accepting the licence on its page, with models.token_file set"),),
        ("state",),
        (rf"^weights: .*{REFUSED}",),
        "weights/decide.py; huggingface.co: 401 and 403 with X-Error-Code GatedRepo",
    ),
    Signature(
        "weights-not-fetched",
        "Weights could not be fetched",
        "No source that is known for them delivered: not reachable, without the file, or broken off again and again.",
        (here("make preflight   # which sources the host cannot reach"), here("make logs SERVICE=weights"), FETCH),
        ("state",),
        (rf"^weights: (?!.*({SPACE}|{WRONG_BYTES}|{REFUSED}|No space left on device))",),
        "weights/follow.py",
    ),
)

SERVICES = (
    Signature(
        "gateway-configuration",
        "The gateway's configuration is missing or damaged",
        "The rendered files were changed by hand, or a disk was full when they were written.",
        (DEPLOY,),
        ("service",),
        (
            r"^(.* )?gateway: /etc/gateway/\S+: ",
            r"Error: (adapting config using caddyfile|loading initial config)",
            r"^(.* )?gateway: caddy ended with status [1-9]",
        ),
        "images/gateway/entrypoint.py; Caddy 2.6",
        over_by=r"\"event\": \"served\"",
    ),
    Signature(
        "torch-driver-too-old",
        "The driver is too old for the PyTorch in the image",
        "Wheels for CUDA 13 need driver 580 or later; the image was made for a later driver than this host has.",
        (host("nvidia-smi --query-gpu=driver_version --format=csv,noheader"), here("make plan"), DEPLOY),
        ("service",),
        (r"The NVIDIA driver on your system is too old \(found version",),
        "nvidia.md 9; torch/csrc/cuda and c10/cuda/CUDAFunctions.cpp",
        hides=("gpu-missing-in-container",),
    ),
    Signature(
        "no-kernel-image",
        "The PyTorch in the image was not built for this GPU",
        "The wheel holds no code for this card's compute capability (too old or too new for it).",
        (
            host("nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader"),
            here("make plan   # says which torch variant fits"),
            DEPLOY,
        ),
        ("service",),
        (
            r"no kernel image is available for execution on the device",
            r"with CUDA capability sm_\d+ is not compatible with the current PyTorch installation",
        ),
        "nvidia.md 9; torch/cuda/__init__.py",
    ),
    Signature(
        "gpu-missing-in-container",
        "PyTorch finds no GPU in the container",
        "The container was given none, or the driver does not answer in it.",
        (host("nvidia-smi -L; nvidia-ctk cdi list"), here("make plan"), DEPLOY),
        ("service",),
        (
            r"Found no NVIDIA driver on your system",
            r"Torch not compiled with CUDA enabled",
            r"No CUDA GPUs are available",
            r"CUDA-capable device\(s\) is/are busy or unavailable",
        ),
        "c10/cuda/CUDAFunctions.cpp; torch/cuda/__init__.py",
    ),
    Signature(
        "cuda-out-of-memory",
        "The GPU's memory did not suffice",
        "The model and the image are larger than what was free on the card; another program may hold a part of it.",
        (
            host("nvidia-smi   # who holds how much"),
            here("make restart   # frees what models hold"),
            here("make plan   # says which services share a card"),
        ),
        ("service",),
        (
            r"CUDA out of memory",
            r"torch(\.cuda)?\.OutOfMemoryError",
            r"CUDA error: out of memory",
            r"Got an OOM, unloading all loaded models",
        ),
        "Comfy-Org/ComfyUI 5278, 11331 and 13110; torch c10/cuda/CUDACachingAllocator.cpp",
    ),
    Signature(
        "numpy-abi",
        "Python packages were built for another NumPy",
        "A package that needs NumPy 1 met NumPy 2 or the other way round: something was installed beside the lock.",
        (DEPLOY, here("make logs   # the traceback names the package")),
        ("service",),
        (
            r"numpy\.dtype size changed",
            r"A module that was compiled using NumPy 1\.x",
            r"numpy\.core\.multiarray failed to import",
        ),
        "forge.md; numpy/core/_multiarray_umath.py",
    ),
    Signature(
        "vae-approx",
        "Forge wants to fetch a preview decoder from the internet",
        "SDXL previews of kind `Approx NN` need vaeapprox-sdxl.pt, and the container has no way out on purpose.",
        (
            here("make deploy   # writes the default: previews of kind `Approx cheap`"),
            host("grep show_progress_type {users}/forge/config.json   # must say Approx cheap"),
            here("make restart SERVICE=forge"),
        ),
        ("service",),
        (r"(?i)VAE-approx/\S*\.pt\b", r"(?i)Downloading VAEApprox", r"\bvaeapprox-sd\S*\.pt"),
        "forge.md; AUTOMATIC1111/stable-diffusion-webui 12130 and 14529, modules/sd_vae_approx.py",
    ),
    Signature(
        "weights-missing",
        "A workflow asks for a weight that is not there",
        "The list of known files lacks the name: not downloaded, in another folder, or misspelt in the workflow.",
        (
            host("ls {models}/*"),
            here("make deploy   # fetches what models.sets names"),
        ),
        ("service",),
        (
            r"Value not in list: \w*_name: '[^']*' not in ",
            r"\w*(ckpt|unet|vae|clip|lora)_name\w*:? '[^']*' not in ",
            r"You do not have any model!",
        ),
        "Comfy-Org/ComfyUI 8826 and 5263; forge.md",
    ),
    Signature(
        "weights-damaged",
        "A weight file is damaged",
        "It was cut off or overwritten after it was downloaded; its sha256 is not that of the lock any more.",
        (here("make models-verify DEEP=1   # hashes every byte, and trusts no more what is wrong"), FETCH),
        ("service",),
        (
            r"SafetensorError",
            r"Error while deserializing header",
            r"Failed to recognize model type!",
            r"PytorchStreamReader failed",
        ),
        "Comfy-Org/ComfyUI 3225; forge.md",
    ),
    Signature(
        "database",
        "ComfyUI cannot use its database",
        "The file or its folder is not writable for the service user, is locked by another process, or is damaged.",
        (host("ls -ln {users}/comfyui"), DEPLOY, here("make restart SERVICE=comfyui")),
        ("service",),
        (
            r"(sqlite3\.|\()(Operational|Database)Error\)?:? .*(readonly|unable to open|locked|malformed|not a database)",
            r"Failed to initialize database\. Please ensure you have installed the latest requirements",
        ),
        "ComfyUI main.py setup_database; sqlite",
    ),
    Signature(
        "permission",
        "A service may not write or read one of its files",
        "The folders below the data root belong to the service user (uid 10001); something changed their owner or mode.",
        (host("ls -ln {data} {outputs} {users}"), DEPLOY),
        ("service",),
        (r"PermissionError: \[Errno 13?\]", r"\[Errno 30\] Read-only file system", r"getpwuid\(\): uid not found"),
        "failures.md 25; Python",
    ),
    Signature(
        "library-missing",
        "A library or Python module is missing in an image",
        "Something asks for what the image was not built with: an extension or custom node from elsewhere, a changed image.",
        (here("make logs"), DEPLOY),
        ("service",),
        (
            r"cannot open shared object file: No such file or directory",
            r"ModuleNotFoundError: No module named ",
        ),
        "failures.md 10; glibc; Python",
    ),
    Signature(
        "custom-node",
        "A custom node of ComfyUI did not load",
        "Its import failed; workflows that use it cannot run.",
        (here("make logs SERVICE=comfyui   # the traceback stands above the list of import times"),),
        ("service",),
        (r"\(IMPORT FAILED\): (?!\S*ComfyUI-Login)", r"Cannot import (?!\S*ComfyUI-Login)\S+ module for custom nodes"),
        "ComfyUI nodes.py; Comfy-Org/ComfyUI_frontend 684",
    ),
)

TABLE: tuple[Signature, ...] = (
    *ACCESS,
    GPU_FALLEN,
    *DRIVER,
    *DOCKER,
    *HOST,
    *WEIGHTS,
    *map(_xid, XIDS),
    OTHER_XID,
    *SERVICES,
)
"""Every signature, the most important first."""
