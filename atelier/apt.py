"""apt on a host: the shell that runs it, and what its output means when it fails. Pure; stages/operations.py carries it out."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from atelier.errors import Finding
from atelier.tree import File

HELD = "atelier: the lock is held by "
AVAILABLE = "atelier: available: "
SAME_COMMAND = "run the same command again; it continues where it stopped"


@dataclass(frozen=True)
class Repository:
    """An apt repository. `fingerprint` is that of its signing key; `key_url` where the host fetches it."""

    name: str
    key_url: str
    fingerprint: str
    keyring: str
    source: File


HOLDER = r"""
locks='/var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/lib/apt/lists/lock /var/cache/apt/archives/lock'
holder() {
  for f in $locks; do
    i=$(stat -c :%i "$f" 2>/dev/null) || continue
    for p in $(awk -v i="$i" '$2 != "->" && substr($6, length($6) - length(i) + 1) == i {print $5}' /proc/locks); do
      for d in /proc/$p/fd/*; do
        if [ "$d" -ef "$f" ]; then printf '%s(process %s)' "$(tr '\0' ' ' </proc/$p/cmdline)" "$p"; return; fi
      done
    done
  done
}
"""
"""Defines `holder`, which prints the command and the id of the process that holds one of the package manager's locks."""

WAIT = (
    HOLDER
    + r"""limit=; eval "$(apt-config shell limit DPkg::Lock::Timeout)"; waited=0
while held=$(holder); [ -n "$held" ]; do
  if [ "$waited" -ge "${limit:-300}" ]; then echo "atelier: the lock is held by $held" >&2; exit 75; fi
  [ $((waited % 10)) != 0 ] || echo "waiting for the host's package manager: $held holds its lock"
  sleep 1; waited=$((waited + 1))
done
"""
)
"""Waits for another package manager as long as apt is told to, and says for whom. apt's own wait does not cover the lock
of its lists, and does not name the command."""


def install_script(wanted: Sequence[str]) -> str:
    """Install packages, each a name or `name=version`, without recommendations.

    An archive that does not answer fails it only where a package is missing because of that. A hold of an earlier
    deploy gives way: who holds a package says so again afterwards.
    """
    quoted = " ".join(shlex.quote(package) for package in wanted)
    names = " ".join(shlex.quote(name_of(package)) for package in wanted)
    downgrades = "--allow-downgrades " if any("=" in package for package in wanted) else ""
    return f"""{WAIT}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
apt-get update -q
unhold=$(apt-mark showhold {names} 2>/dev/null); [ -z "$unhold" ] || apt-mark -q unhold $unhold
apt-get install -q -y --no-install-recommends --fix-broken {downgrades}\\
  -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold {quoted} && exit 0
apt-cache madison {names} 2>/dev/null | sed 's/^/{AVAILABLE}/' >&2
exit 1
"""


def remove_script(names: Sequence[str]) -> str:
    """Remove packages; their settings stay.

    What was interrupted is finished as far as it goes: apt asks for that first, and it may be what is to be removed.
    """
    quoted = " ".join(shlex.quote(name) for name in names)
    return f"""{WAIT}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
[ -z "$(ls -A /var/lib/dpkg/updates)" ] || dpkg --configure -a --force-confold
unhold=$(apt-mark showhold {quoted} 2>/dev/null); [ -z "$unhold" ] || apt-mark -q unhold $unhold
apt-get remove -q -y {quoted}
"""


def purge_script(names: Sequence[str]) -> str:
    """Remove exactly these packages with their settings; of those that are gone already, what is left of them."""
    quoted = " ".join(shlex.quote(name) for name in names)
    return f"""{WAIT}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
[ -z "$(ls -A /var/lib/dpkg/updates)" ] || dpkg --configure -a --force-confold
apt-get purge -q -y --allow-change-held-packages {quoted}
"""


def unhold_script(names: Sequence[str]) -> str:
    """Let apt replace packages again."""
    return f"{WAIT}\napt-mark -q unhold {' '.join(shlex.quote(name) for name in names)}"


def hold_script(names: Sequence[str]) -> str:
    """Let apt leave packages as they are, whatever is newer."""
    return f"{WAIT}\napt-mark -q hold {' '.join(shlex.quote(name) for name in names)}"


def finish_script() -> str:
    """Finish what an interrupted installation left."""
    return f"""{WAIT}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
dpkg --configure -a --force-confold
"""


def fetch_script(url: str, path: str) -> str:
    """Fetch a file with apt's own helper, because apt's own proxy settings lead to a repository's key as well."""
    source, target = shlex.quote(url), shlex.quote(path)
    if url.startswith("file://"):
        return f"cp -- {shlex.quote(url.removeprefix('file://'))} {target}"
    return (
        f"rm -f {target}; LC_ALL=C.UTF-8 /usr/lib/apt/apt-helper -o APT::Sandbox::User=root "
        f"download-file {source} {target}"
    )


def name_of(package: str) -> str:
    """The name in `name` or `name=version`."""
    return package.partition("=")[0]


def missing(wanted: Iterable[str], installed: Mapping[str, str]) -> list[str]:
    """Those of the packages that are not installed, or not at the version that they are wanted at."""
    return [package for package in wanted if not _satisfied(*package.partition("=")[::2], installed)]


def _satisfied(name: str, version: str, installed: Mapping[str, str]) -> bool:
    return name in installed and version in ("", installed[name])


def explain(lines: Sequence[str]) -> Finding | None:
    """What stopped apt, dpkg or apt's helper, from all that they printed; None where that is not known."""
    text = "\n".join(line.rstrip() for line in lines)
    return next((finding for judge in _JUDGES if (finding := judge(text))), None)


def _held(text: str) -> Finding | None:
    found = re.search(rf"{HELD}(.+)", text) or re.search(r"held by (process \d+ \([^)]*\)|process \d+)", text)
    found = found or re.search(r"lock was locked by (?:another process with )?(.*pid \d+)", text)
    if found is None:
        return None
    return Finding(
        f"the host's package manager is busy: {found[1]} holds its lock",
        f"let it finish or end it, then {SAME_COMMAND}",
    )


def _full(text: str) -> Finding | None:
    place = re.search(r"don't have enough free space in ([^\n]+?)\.?\n", f"{text}\n")
    if place is None and "No space left on device" not in text:
        return None
    return Finding(
        f"the host's disk is full{f' ({place[1]})' if place else ''}: the packages were not installed",
        f"make room (df -h; apt-get clean removes fetched packages), then {SAME_COMMAND}",
    )


SIGNATURE = re.compile(
    r"^[WE]: .*?(?:verification failed|GPG error): (?P<where>\S+)[^:\n]*? (?:In)?Release[^:\n]*: (?P<why>[^\n]+)", re.M
)
CHANGED = re.compile(
    r"^[WE]: Failed to fetch (?P<where>\S+) +(?P<why>(?:Hash Sum mismatch|File has unexpected)[^\n]*)", re.M
)
UNSIGNED = re.compile(r"^E: The repository '(?P<where>\S+)[^'\n]*' is (?P<why>not signed|no longer signed)", re.M)
SUBPROCESS = re.compile(r"Sub-process \S+ returned an error code \(\d+\), error message is: ")
OTHER_ANSWER = "does the network require authentication"
"""apt's words for an answer that is no repository at all, such as the page of a portal."""


def _tampered(text: str) -> Finding | None:
    found = [*SIGNATURE.finditer(text), *CHANGED.finditer(text)]
    found = [match for match in found if OTHER_ANSWER not in match["why"]]
    found = found or ([] if OTHER_ANSWER in text else [*UNSIGNED.finditer(text)])
    if not found:
        return None
    why = " ".join(SUBPROCESS.sub("", found[0]["why"]).split())
    return Finding(
        f"apt refuses the repository {found[0]['where']}: {why.rstrip('.')}",
        "its files are not what its owner signed with the key that is pinned: if it is a mirror, let it be made again; "
        f"then {SAME_COMMAND}",
    )


UNREACHABLE = (
    re.compile(r"^[WE]: Failed to fetch (?P<where>\S+) +(?P<why>[^\n]+)", re.M),
    re.compile(r"^Err:\d+ (?P<where>\S+)[^\n]*\n +(?P<why>[^\n]+)", re.M),
    re.compile(r"^E: The repository '(?P<where>\S+)[^'\n]*' (?P<why>does not have a Release file)", re.M),
    re.compile(r"^cp: cannot (?:stat|open) '(?P<where>[^']+)'[^:\n]*: (?P<why>[^\n]+)", re.M),
)


def _unreachable(text: str) -> Finding | None:
    found = next((match for pattern in UNREACHABLE if (match := pattern.search(text))), None)
    if found is None:
        return None
    return Finding(
        f"apt cannot fetch {found['where']}: {found['why'].strip().rstrip('.')}",
        f"see the host's network, name resolution and apt's proxy settings, then {SAME_COMMAND}",
    )


ABSENT = (
    re.compile(r"^E: Version '(?P<version>[^']+)' for '(?P<name>[^']+)' was not found", re.M),
    re.compile(r"^E: (?:Unable to locate package |Package ')(?P<name>[^'\s]+)(?P<version>)", re.M),
)


def _other_version(text: str) -> Finding | None:
    found = ABSENT[0].search(text)
    known = re.findall(rf"^{AVAILABLE}\s*{re.escape(found['name'])} \|\s+(\S+)\s+\|", text, re.M) if found else []
    return _absent(text, f"they have {', '.join(dict.fromkeys(known))}") if known else None


def _absent(text: str, known: str = "") -> Finding | None:
    found = next((match for pattern in ABSENT if (match := pattern.search(text))), None)
    if found is None:
        return None
    what = f"{found['name']} at version {found['version']}" if found["version"] else found["name"]
    return Finding(
        f"the host's apt sources do not have the package {what}" + (f"; {known}" if known else ""),
        "a mirror may lag behind; else mend the version in locks/sources.yml or the setting that chose the package; "
        f"then {SAME_COMMAND}",
    )


def _unmet(text: str) -> Finding | None:
    found = re.search(r"have unmet dependencies:\n((?: .*\n?)+)", text)
    if found is None:
        return None
    lines = [" ".join(line.split()) for line in found[1].splitlines()]
    return Finding(
        f"apt cannot install what it was asked for: {'; '.join(lines[:4])}",
        f"a hold or a foreign repository keeps another version (apt-mark showhold; apt policy NAME), then {SAME_COMMAND}",
    )


def _module(text: str) -> Finding | None:
    found = re.search(
        r"Bad return status for module build on kernel: (\S+)[^\n]*\n\s*Consult /var/lib/dkms/([^/\s]+)/([^/\s]+)/",
        text,
    )
    if found is None:
        return None
    kernel, name, version = found.groups()
    return Finding(
        f"the kernel module {name} {version} does not build for kernel {kernel}, and until it does or is gone apt fails at everything",
        # The kernel's own installation is unfinished as well: it may have no initrd yet.
        f"before any restart remove its package (`dpkg -S /usr/src/{name}-{version}` names it), then {SAME_COMMAND}",
    )


_JUDGES: tuple[Callable[[str], Finding | None], ...] = (
    _held,
    _full,
    _module,
    _other_version,
    _tampered,
    _unreachable,
    _absent,
    _unmet,
)
"""The first that knows decides: a package may be missing because its repository did not answer, never the other way."""
