"""Facts about the host, gathered by one shell script in one round trip before anything is changed."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from atelier import apt, recorded, weights_unit
from atelier.gpu import facts as gpu_facts
from atelier.gpu.facts import STRICT, GpuFacts
from atelier.models import Weight
from atelier.recorded import SECTION, Roots
from atelier.settings import Settings
from atelier.tree import Entry
from weights.aria2 import is_near
from weights.store import INCOMING

TIME_SERVICES = ("systemd-timesyncd", "chrony", "chronyd", "ntp", "ntpsec", "openntpd")
"""Units any of which keeps a host's time in sync."""


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket. `process` is empty when the owner could not be seen."""

    __pydantic_config__ = STRICT
    address: str
    port: int
    process: str


@dataclass(frozen=True)
class HostFacts:
    """What decisions rest on. Sizes in bytes, times in seconds since the epoch."""

    __pydantic_config__ = STRICT
    os_id: str = ""
    os_codename: str = ""
    os_name: str = ""
    architecture: str = ""
    memory: int = 0
    clock: int = 0
    disk_free: dict[str, int] = field(default_factory=dict)
    """By directory: free space where it is or will be."""
    mounts: dict[str, str] = field(default_factory=dict)
    """By directory: the mount point of its file system, so that two of one file system are known."""
    controllers: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    """IP addresses of the host's interfaces."""
    listeners: tuple[Listener, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)
    containers: frozenset[str] = frozenset()
    snap_docker: bool = False
    daemon_json: str = ""
    lock_holder: str = ""
    unrepairable: str = ""
    """apt's words for a package that it can neither use nor install again, which stops it altogether."""
    sources_error: str = ""
    """apt's words where it cannot read its own sources."""
    uid_owner: str = ""
    gid_owner: str = ""
    service_user_uid: str = ""
    instance: str = ""
    fingerprint: str = ""
    """Of the credentials that it was given last."""
    schema: str = ""
    release: str = ""
    """That wrote the state."""
    roots: Roots | None = None
    """The directories that the host has recorded; none before a first deploy."""
    state_place: str = ""
    """Where the state was found; empty where it is not there."""
    reorganising: bool = False
    """A reprovision was begun and is not finished."""
    deployed: bool = False
    deployed_gpus: dict[str, str] = field(default_factory=dict)
    """UUID by service, as the last deploy gave them."""
    container: str = ""
    """As in the facts about the GPU, but also of a sandbox with a simulated one: a container has no clock of its own."""
    gpu: GpuFacts = field(default_factory=GpuFacts)


def script(settings: Settings, root: str = "") -> str:
    """A POSIX shell script that prints sections `::atelier::<name>` with one fact a line; it changes nothing.

    root: where /etc, /snap, /sys and dpkg's database lie, for tests.
    """
    return f"""
s() {{ printf '\\n%s\\n' "{SECTION}$1"; }}
nearest() {{ p=$1; while [ ! -d "$p" ]; do p=$(dirname "$p"); done; df -B1 --output=avail,target "$p" | tail -n 1; }}
{apt.HOLDER}
s os; cat {root}/etc/os-release
s architecture; dpkg --print-architecture
s memory; awk '/^MemTotal/ {{print $2 * 1024}}' /proc/meminfo
s clock; date +%s
d=$(sed -n 's/.*"data-root"[^"]*"\\([^"]*\\)".*/\\1/p' {root}/etc/docker/daemon.json 2>/dev/null)
s disk; for p in {shlex.join(settings.data_directories())} /var/lib/docker /var/lib/containerd $d; do
  printf '%s\\t%s\\n' "$p" "$(nearest "$p")"; done
s controllers; cat /sys/fs/cgroup/cgroup.controllers 2>/dev/null
s addresses; ip -o address 2>/dev/null | awk '{{ sub("/.*", "", $4); print $4 }}'
s listeners; ss -Hltnp 2>/dev/null
s packages; dpkg-query --admindir={root}/var/lib/dpkg -W -f '${{db:Status-Status}}\\t${{Package}}\\t${{Version}}\\n' \\
  'docker*' 'containerd*' podman-docker runc mmdebstrap 2>/dev/null
s containers; command -v docker >/dev/null && timeout 20 docker ps --format '{{{{.Names}}}}' 2>/dev/null
s snap; [ -d {root}/snap/docker ] && echo yes
s daemon; cat {root}/etc/docker/daemon.json 2>/dev/null
s lock; holder
s unrepairable; dpkg-query -W -f '${{db:Status-Eflag}}\\n' 2>/dev/null | grep -q reinstreq \\
  && LC_ALL=C timeout 60 apt-get check -o Debug::NoLocking=true -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= 2>&1 \\
  | grep 'needs to be reinstalled'
s gid; getent group {settings.service_uid} | cut -d: -f1
s uid; getent passwd {settings.service_uid} | cut -d: -f1; s user; getent passwd {settings.service_user} | cut -d: -f3
s reorganising; [ ! -e {root}{recorded.JOURNAL} ] || echo yes
{recorded.script(settings, root, whole=False)}
{gpu_facts.script(root)}
:
"""


def presence_script(settings: Settings, weights: Iterable[Weight], fetcher: Sequence[Entry] = ()) -> str:
    """Prints what need not be brought: image tags, image archives, what fetches weights, and the sha256 of each known good.

    Known good: size, time and inode are those recorded when its bytes were hashed, as weights.store.Store.known_good has it.
    Of what is not: `begun:<sha256>:<bytes>` that its part takes, and `here:<size>` of files that may be it.
    """
    store, state = weights_unit.store(settings), weights_unit.state(settings)
    lines = ["docker image ls --filter 'reference=atelier/*' --format '{{.Repository}}:{{.Tag}}' 2>/dev/null"]
    if settings.images.archive_dir:
        lines.append(f"ls {shlex.quote(settings.images.archive_dir)} 2>/dev/null")
    lines += [weights_unit.in_place_script(settings, fetcher), _KNOWN_GOOD]
    weights = list(weights)
    for weight in weights:
        file, record = shlex.quote(f"{store}/{weight.store_path}"), shlex.quote(f"{state}/{weight.sha256}")
        part = shlex.quote(f"{store}/{INCOMING}/{weight.sha256}.part")
        lines.append(
            f"known_good {file} {record} {weight.bytes} {weight.sha256} || {{ missing=1; begun {part} {weight.sha256}; }}"
        )
    if weights:
        sizes = " -o ".join(f"-size {size}c" for size in dict.fromkeys(weight.bytes for weight in weights))
        places = " ".join(map(_glob, [store, *settings.models.search]))
        lines.append(_LIES_HERE.format(store=shlex.quote(store), places=places, sizes=sizes))
    lines.append(weights_unit.changed_script(settings))
    return "\n".join([*lines, ":"])


def _glob(pattern: str) -> str:
    """A pattern for the shell, in which nothing but `*` is special."""
    return "*".join(shlex.quote(part) if part else "" for part in pattern.split("*"))


_KNOWN_GOOD = r"""
known_good() {
  [ -f "$1" ] && [ ! -L "$1" ] || return
  set -- "$@" $(stat -c '%s %.9Y %i %Y' "$1")
  [ "$5" = "$3" ] || return
  if [ -e "$2.json" ]; then
    # Nanoseconds: without the dot, and without the zeros before them that are no number's.
    ns=$(printf %s "$6" | sed 's/\.//; s/^\(-\{0,1\}\)0*\([0-9]\)/\1\2/')
    [ "$(cat "$2.json")" = "{\"bytes\": $5, \"mtime_ns\": $ns, \"inode\": $7, \"sha256\": \"$4\"}" ] && echo "$4"
  elif [ -e "$2" ]; then
    [ "$(cat "$2")" = "$5 $8 $7" ] && echo "$4"
  fi
} 2>/dev/null
begun() { [ ! -f "$1" ] || echo "begun:$2:$(($(stat -c '%b * %B' "$1")))"; }"""

_LIES_HERE = r"""if [ -n "${{missing:-}}" ]; then
  p={store}; while [ ! -d "$p" ]; do p=$(dirname "$p"); done
  find {places} -xdev -type f \( {sizes} \) -printf 'here:%s:%D\n' 2>/dev/null | sed -n "s/:$(stat -c %d "$p")\$//p" | sort -u
fi"""
"""Sizes of wanted files on the store's own file system: they may be linked, and then take no space."""


def _route(url: str, proxy: str | None) -> str:
    """The way to a source as the host itself gets there, for the shell function `probe`."""
    if is_near(url):
        return f"reached -o Acquire::http::Proxy::{urlsplit(url).hostname}=DIRECT"
    # A proxy's own refusal looks like the source's.
    return 'refused -c "$t/proxied"' if proxy else "reached"


def _without_login(url: str) -> str:
    """An address that may stand in a process list. The source then asks for a login, and so is there."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def reachability_script(proxy: str | None, urls: Iterable[str], apt_urls: Iterable[str], archive: bool) -> str:
    """Fetches a small document from each source, all at once, and prints those that did not answer, with the reason.

    apt's own helper is the one client that every Debian and Ubuntu machine has. apt_urls, and with
    archive apt's present sources as well, are tried with apt's own settings.
    """
    probes = "\n".join(f"probe {shlex.quote(_without_login(url))} {_route(url, proxy)} &" for url in urls)
    probes += "".join(f"\nprobe {shlex.quote(url)} reached &" for url in apt_urls)
    # In a file that root alone can read: the proxy's password is nobody's to see in a process list.
    proxied = "".join(f'Acquire::{scheme}::Proxy "{proxy}";\n' for scheme in ("http", "https")) if proxy else ""
    # A machine that never ran `apt-get update` has no index targets yet.
    own = "apt-get update --print-uris | sed -n \"s/^'\\([^']*InRelease\\)'.*/\\1/p\" | sort -u"
    archives = f'for url in $({own}); do probe "$url" reached & done' if archive else ""
    return f"""
t=$(mktemp -d); trap 'rm -rf "$t"' EXIT
printf %s {shlex.quote(proxied)} >"$t/proxied"
probe() {{
  url=$1; case $2 in reached) answers=' 40[134] ';; *) answers=' 40[14] ';; esac; shift 2; n=$(printf %s "$url" | cksum | tr -d ' ')
  case $url in file://*) [ -e "${{url#file://}}" ] || printf '%s\\tno such file\\n' "$url"; return;; esac
  set -- -o APT::Sandbox::User=root -o Acquire::Retries=1 "$@"
  timeout 60 /usr/lib/apt/apt-helper "$@" download-file "$url" "$t/$n" >"$t/$n.log" 2>&1 && return
  grep -qE "$answers" "$t/$n.log" || printf '%s\\t%s\\n' "$url" "$(grep -E '^(E:|W:|  )' "$t/$n.log" | head -n 1 | tr '\\t' ' ')"
}}
{probes}
{archives}
wait
"""


def parse_reachability(output: str) -> dict[str, str]:
    """Reason by URL for each source that did not answer."""
    rows = (line.partition("\t") for line in _without_credentials(output).splitlines())
    return {url: reason.strip() for url, _, reason in rows if url}


def _without_credentials(text: str) -> str:
    """URLs without user and password."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def parse(output: str) -> HostFacts:
    """The facts from the script's output."""
    sections: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith(SECTION):
            current = sections.setdefault(line.removeprefix(SECTION), [])
        elif line.strip() and sections:
            current.append(line)

    def one(name: str) -> str:
        return next((line.strip() for line in sections.get(name, [])), "")

    def pairs(name: str) -> dict[str, str]:
        return {key: value for key, _, value in (line.partition("\t") for line in sections.get(name, []))}

    release = {key: value.strip('"') for key, _, value in (line.partition("=") for line in sections.get("os", []))}
    packages = [line.split("\t") for line in sections.get("packages", [])]
    disks = {path: where for path, where in pairs("disk").items() if len(where.split()) > 1}
    documents = recorded.documents(output)
    known = recorded.parse(documents)
    gpu = gpu_facts.parse(sections)
    return HostFacts(
        os_id=release.get("ID", ""),
        os_codename=release.get("VERSION_CODENAME", ""),
        os_name=release.get("PRETTY_NAME", ""),
        architecture=one("architecture"),
        memory=int(float(one("memory") or 0)),
        clock=int(one("clock") or 0),
        disk_free={path: int(where.split()[0]) for path, where in disks.items()},
        mounts={path: where.split(maxsplit=1)[1] for path, where in disks.items()},
        controllers=frozenset(one("controllers").split()),
        addresses=frozenset(sections.get("addresses", [])),
        listeners=tuple(_listener(line) for line in sections.get("listeners", [])),
        packages={package[1]: package[2] for package in packages if package[0] == "installed"},
        containers=frozenset(sections.get("containers", [])),
        snap_docker=bool(one("snap")),
        daemon_json=_without_credentials("\n".join(sections.get("daemon", []))),
        lock_holder=one("lock"),
        unrepairable=one("unrepairable").removeprefix("E: "),
        sources_error=next((line for line in sections.get("gpu-sources", []) if line.startswith("E: ")), "")[3:],
        uid_owner=one("uid"),
        gid_owner=one("gid"),
        service_user_uid=one("user"),
        instance=known.instance,
        fingerprint=known.fingerprint,
        schema=str(known.schema or ""),
        release=known.release,
        roots=known.roots,
        state_place=known.place,
        reorganising=bool(one("reorganising")),
        deployed="deployed" in documents,
        deployed_gpus=known.gpus(),
        container=gpu.container,
        gpu=gpu,
    )


def _listener(line: str) -> Listener:
    fields = line.split()
    address, _, port = fields[3].rpartition(":")
    process = fields[5].split('"')[1] if len(fields) > 5 and '"' in fields[5] else ""
    return Listener(address.partition("%")[0].strip("[]"), int(port), process)
