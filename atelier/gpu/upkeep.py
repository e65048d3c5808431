"""What keeps a GPU host one: shell that asks it and sets it right, and files of our own on it. Pure; stages/gpu.py carries it out."""

import json
import shlex
from collections.abc import Iterable, Sequence

from atelier import render
from atelier.errors import Finding
from atelier.gpu import toolkit
from atelier.tree import Directory, Entry, File

MODULE_SETTINGS = "/etc/modprobe.d/"
REFRESH = "nvidia-cdi-refresh"
REFRESH_UNITS = (f"{REFRESH}.path", f"{REFRESH}.service")
DROP_INS = {
    f"/etc/systemd/system/{unit}.d/atelier-gpu.conf": (unit, template)
    for unit, template in ((f"{REFRESH}.service", "cdi-refresh-gpu.conf.j2"), ("docker.service", "docker-gpu.conf.j2"))
}
"""By path, the unit that a drop-in of ours adds to, and its template."""
START_UNIT = "atelier-gpu-containers.service"


def boot_files() -> tuple[Entry, ...]:
    """What lets Docker find the GPUs at every boot: its place in the order, and a second try for what it could not start."""
    templates = render.environment()
    unit = templates.get_template(f"units/{START_UNIT}.j2").render(label="atelier.config")
    entries: list[Entry] = [File(f"/etc/systemd/system/{START_UNIT}", unit.encode())]
    for path, (_, template) in DROP_INS.items():
        text = templates.get_template(f"units/{template}").render(refresh=f"{REFRESH}.service")
        entries += [Directory(path.rpartition("/")[0]), File(path, text.encode())]
    return tuple(entries)


BOOT_FILES_KNOWN = (
    "".join(
        f"systemctl show {unit} -p NeedDaemonReload --value | grep -qx no "
        f"&& systemctl show {unit} -p DropInPaths --value | grep -qF {path} && "
        for path, (unit, _) in DROP_INS.items()
    )
    + f"[ \"$(systemctl show {START_UNIT} -p LoadState,NeedDaemonReload --value | tr '\\n' ' ')\" = 'loaded no ' ] "
    f"&& systemctl is-enabled -q {START_UNIT} && echo yes"
)
"""Prints something where systemd has read the boot files as they are."""
READ_BOOT_FILES = (
    f"systemctl daemon-reload && systemctl enable -q {START_UNIT} && {{ systemctl reset-failed {START_UNIT} || :; }}"
)


def module_settings(files: Iterable[File]) -> tuple[str, ...]:
    """The files that an initramfs has to carry as well: nouveau is loaded from there, before the disk is mounted."""
    return tuple(file.path for file in files if file.path.startswith(MODULE_SETTINGS))


def initramfs_stamp(state: str) -> str:
    """Where the host records for which settings its initramfs was made."""
    return f"{state}/initramfs"


def initramfs_probe(paths: Sequence[str], stamp: str) -> str:
    """Prints something where the initramfs was made after these files were last written, or there is no such thing."""
    return f'command -v update-initramfs >/dev/null || echo none; [ "$({_marks(paths)})" != "$(cat {shlex.quote(stamp)})" ] || echo made'


def initramfs_script(paths: Sequence[str], stamp: str) -> str:
    """Make every kernel's initramfs anew; the stamp is written last, so that a kill on the way is seen the next time."""
    return f"marks=$({_marks(paths)}) && update-initramfs -u -k all && printf '%s\\n' \"$marks\" >{shlex.quote(stamp)}"


def _marks(paths: Sequence[str]) -> str:
    return "stat -c '%n %s %Y %i' " + " ".join(shlex.quote(path) for path in paths)


LOADED = "ls -d /sys/module/nvidia /sys/module/nvidia_current 2>/dev/null | grep . && ls -d /sys/module/nvidia*_uvm"
"""Prints something where the driver's modules are loaded, under the name that Debian gives them as well."""
LOAD = """modprobe -a nvidia nvidia-uvm && exit 0
echo "the kernel refused the NVIDIA driver; its last words:" >&2
dmesg | grep -iE 'nvidia|nvrm|nouveau|lockdown|module verification' | tail -n 8 >&2
exit 1
"""


def runs(unit: str) -> str:
    """Prints something where a unit is started at boot and runs now."""
    return f"systemctl is-enabled -q {unit} && systemctl is-active -q {unit} && echo yes"


def run_script(unit: str) -> str:
    """Have a unit started at boot, and now; when it does not run, say what it said."""
    return (
        f"systemctl daemon-reload; systemctl enable -q {unit}; systemctl reset-failed {unit} 2>/dev/null; "
        f"systemctl restart {unit} || {{ journalctl -u {unit} -n 10 --no-pager -o cat >&2; exit 1; }}"
    )


ENABLED = (
    " && ".join(f"systemctl is-enabled -q {REFRESH}.{kind}" for kind in ("path", "service"))
    + f" && systemctl is-active -q {REFRESH}.path && echo yes"
)
ENABLE = (
    f"systemctl daemon-reload && systemctl enable -q {REFRESH}.path {REFRESH}.service && systemctl start {REFRESH}.path"
)
DEVICES = "nvidia-ctk cdi list 2>/dev/null"


def have_devices(devices: Sequence[str]) -> str:
    """Prints something where CDI knows every device."""
    return " && ".join(
        [f"known=$({DEVICES})", *(f'echo "$known" | grep -qxF {shlex.quote(name)}' for name in devices), "echo yes"]
    )


def refresh_script(devices: Sequence[str]) -> str:
    """Have the CDI specification written anew, and say what it lacks then."""
    return f"""
systemctl reset-failed {REFRESH}.service 2>/dev/null
systemctl restart {REFRESH}.service
for try in 1 2 3 4 5; do [ -z "$({have_devices(devices)})" ] || exit 0; sleep 1; done
known=$({DEVICES} | tr '\\n' ' ')
{{ journalctl -u {REFRESH}.service -n 8 --no-pager -o cat
echo "CDI does not have {", ".join(devices)}; it has: ${{known:-nothing}}"
echo "the specification is written by {REFRESH}.service from what nvidia-smi lists: see journalctl -u {REFRESH}"; }} >&2
exit 1
"""


def probe_script(manifest: str) -> str:
    """Prints what `faults` judges, in sections that begin with `::name`. manifest: the file that names what apt must hold."""
    return f"""
echo ::refresh; {ENABLED}
echo ::order; {BOOT_FILES_KNOWN}
echo ::packages; dpkg-query -W -f '${{db:Status-Status}} ${{Package}} ${{Version}}\\n'
echo ::held; apt-mark showhold
echo ::manifest; cat {shlex.quote(manifest)}
echo; echo ::daemon; cat /etc/docker/daemon.json
true
"""


def faults(printed: str) -> list[Finding]:
    """What would take the GPUs from the containers at the next boot or upgrade, from what `probe_script` printed."""
    parts = (part.partition("\n") for part in f"\n{printed}".split("\n::")[1:])
    sections = {name: text for name, _, text in parts}
    rows = [row.split() for row in sections["packages"].splitlines()]
    installed = {row[1]: row[2] for row in rows if row[0] == "installed" and len(row) == 3}
    found = []
    try:
        cdi = (json.loads(sections["daemon"] or "{}").get("features") or {}).get("cdi")
    except (ValueError, AttributeError):
        cdi = "in a file that is not valid JSON"
    if cdi is not True:
        problem = f"/etc/docker/daemon.json: features.cdi is {cdi}, so Docker hands out no GPU after its next start"
        found.append(Finding(problem, REDEPLOY))
    if not sections["refresh"].strip():
        problem = f"{REFRESH}, which makes the CDI list at every boot, is not enabled or does not watch"
        found.append(Finding(problem, REDEPLOY))
    if not sections["order"].strip():
        units = ", ".join(dict.fromkeys(unit for unit, _ in DROP_INS.values()))
        problem = f"systemd does not know our drop-ins of {units}, or {START_UNIT}: Docker may start before the CDI list is made"
        found.append(Finding(problem, REDEPLOY))
    toolkits = {name: installed[name] for name in toolkit.PACKAGES if name in installed}
    if not toolkit.is_safe(toolkits):
        told = ", ".join(f"{name} {version}" for name, version in toolkits.items()) or "none of its packages"
        problem = f"the container toolkit is not whole, of one version and safe: {told}"
        found.append(Finding(problem, f"{REDEPLOY}, which installs the version of locks/sources.yml"))
    holds = set(json.loads(sections["manifest"])["created"]["holds"])
    found += [
        Finding(f"apt does not hold {name}: an upgrade may replace it under the running kernel", REDEPLOY)
        for name in sorted((holds & set(installed)) - set(sections["held"].split()))
    ]
    return found


REDEPLOY = "run `make deploy`"
