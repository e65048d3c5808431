"""What this computer is configured to fetch packages from: pure parsers, and two functions that read the files.

No host name of an archive is written here: the sandbox may reach what its computer was told to use, and nothing else.
"""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sandbox import proxy

DEBIAN_SUITES = frozenset(
    ("bullseye", "bookworm", "trixie", "forky", "sid", "oldoldstable", "oldstable", "stable", "testing", "unstable")
)


@dataclass(frozen=True)
class AptSource:
    """One ``deb`` archive: an address, a suite, its components and the key ring named for it."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


@dataclass(frozen=True)
class DebianArchive:
    """Where Debian comes from; ``security`` is empty when the computer names no security archive."""

    main: str
    security: str


def parse_one_line(text: str) -> Iterator[AptSource]:
    """The entries of a ``sources.list``: ``deb [options] uri suite component...``."""
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if not found:
            continue
        options, uri, suite, components = found.groups()
        signed_by = re.search(r"signed-by=(\S+)", options or "", re.IGNORECASE)
        yield AptSource(uri, suite, tuple(components.split()), signed_by.group(1) if signed_by else "")


def parse_deb822(text: str) -> Iterator[AptSource]:
    """The entries of a ``*.sources`` file (deb822), one for each address and suite."""
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", uncommented):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield AptSource(uri, suite, tuple(fields.get("components", "").split()), fields.get("signed-by", ""))


def debian_archive(sources: Iterable[AptSource]) -> DebianArchive | None:
    """The Debian archive among the computer's sources, or None (Ubuntu, or only third parties).

    Third parties use Debian's suite names too, so the entry that looks most like Debian's own wins: its key ring,
    its path, and ``-updates`` beside it.
    """
    known = [source for source in sources if urlsplit(source.uri).scheme in ("http", "https")]

    def likeness(source: AptSource) -> int:
        updates = any(other.uri == source.uri and other.suite == f"{source.suite}-updates" for other in known)
        path = urlsplit(source.uri).path.rstrip("/")
        return 2 * ("debian-archive" in source.signed_by) + (path.endswith("/debian")) + 2 * updates

    candidates = [source for source in known if source.suite in DEBIAN_SUITES and "main" in source.components]
    best = max(candidates, key=likeness, default=None)
    if best is None or likeness(best) == 0:
        return None
    security = (
        source.uri
        for source in known
        if source.suite.removesuffix("-security") in DEBIAN_SUITES
        and source.suite.endswith("-security")
        and "main" in source.components
    )
    return DebianArchive(best.uri.rstrip("/"), next(security, "").rstrip("/"))


def apt_sources(root: Path = Path("/etc/apt")) -> list[AptSource]:
    """Every archive that apt on this computer is configured for."""
    found: list[AptSource] = []
    lists = [root / "sources.list", *sorted((root / "sources.list.d").glob("*.list"))]
    for path in lists:
        if path.is_file():
            found += parse_one_line(path.read_text(errors="replace"))
    for path in sorted((root / "sources.list.d").glob("*.sources")):
        found += parse_deb822(path.read_text(errors="replace"))
    return found


def apt_proxies(apt_configuration: str) -> dict[str, str]:
    """``http_proxy`` and ``https_proxy`` as apt is told to use them, from the text of ``apt-config dump``."""
    found = re.findall(r'^Acquire::(https?)::Proxy "([^"]+)";$', apt_configuration, re.MULTILINE)
    return {f"{scheme}_proxy": address for scheme, address in found if address != "DIRECT"}


def route_of(
    environment: Mapping[str, str], apt: Mapping[str, str], apt_hosts: frozenset[str]
) -> Callable[[str, str], tuple[str, int] | None]:
    """How this computer reaches a host: apt's own proxy for apt's archives, the environment's for the rest."""
    return lambda scheme, host: proxy.upstream(
        {**environment, **apt} if host in apt_hosts else environment, scheme, host
    )


def computers_route() -> Callable[[str, str], tuple[str, int] | None]:
    """``route_of`` with what apt and the environment of this computer say."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout
    hosts = hosts_of(source.uri for source in apt_sources())
    return route_of(os.environ, apt_proxies(dump), frozenset(hosts))


@dataclass(frozen=True)
class PipIndexes:
    """Where pip looks for packages; ``index`` is empty where pip's own default serves."""

    index: str
    extra: tuple[str, ...]
    find_links: tuple[str, ...]


def pip_indexes(environment: Mapping[str, str], files: Sequence[str]) -> PipIndexes:
    """As pip would read them: the environment over the files (texts of pip.conf), later files over earlier ones."""
    parsers = [configparser.RawConfigParser() for _ in files]
    for parser, text in zip(parsers, files, strict=True):
        parser.read_string(text)

    def setting(key: str) -> str:
        value = ""
        for parser in parsers:
            for section in ("global", "install", "download"):
                value = parser.get(section, key, fallback=value)
        return environment.get(f"PIP_{key.upper().replace('-', '_')}", value).strip()

    extra, find_links = (tuple(setting(key).split()) for key in ("extra-index-url", "find-links"))
    return PipIndexes(setting("index-url"), extra, find_links)


def computers_pip_indexes(environment: Mapping[str, str], home: Path) -> PipIndexes:
    """``pip_indexes`` of this computer and user."""
    return pip_indexes(environment, [path.read_text() for path in pip_configuration_files(environment, home)])


def pip_configuration_files(environment: Mapping[str, str], home: Path) -> list[Path]:
    """The pip.conf files of this computer, lowest priority first (pip's documented order)."""
    if environment.get("PIP_CONFIG_FILE") == os.devnull:
        return []
    config_home = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    paths = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        config_home / "pip/pip.conf",
        Path(sys.prefix) / "pip.conf",
    ]
    if environment.get("PIP_CONFIG_FILE"):
        paths.append(Path(environment["PIP_CONFIG_FILE"]))
    return [path for path in paths if path.is_file()]


def pip_wheels() -> list[Path]:
    """The wheels of pip that lie on this computer for making virtual environments."""
    folders = (Path("/usr/share/python-wheels"), Path(os.__file__).parent / "ensurepip/_bundled")
    return [wheel for folder in folders for wheel in folder.glob("pip-*.whl")]


def pip_default_hosts() -> set[str]:
    """The hosts pip uses when no index is configured, asked from the nearest pip itself (installed, or a wheel)."""
    question = "from pip._internal.models.index import PyPI as i; print(i.netloc, i.file_storage_domain)"
    for path in ["", *map(str, pip_wheels())]:
        environment = {**os.environ, "PYTHONPATH": path} if path else dict(os.environ)
        answer = subprocess.run([sys.executable, "-c", question], env=environment, capture_output=True, text=True)
        if answer.returncode == 0:
            return set(answer.stdout.split())
    return set()


def hosts_of(urls: Iterable[str]) -> set[str]:
    """The host names in the addresses; local folders have none."""
    return {host for host in (urlsplit(url).hostname for url in urls) if host}


def allowed_hosts(environment: Mapping[str, str], home: Path) -> frozenset[str]:
    """Every host that the sandbox's proxy may connect to: this computer's apt archives and package indexes."""
    pip = computers_pip_indexes(environment, home)
    hosts = hosts_of(source.uri for source in apt_sources()) | hosts_of([*pip.extra, *pip.find_links])
    # An index may keep its files elsewhere; only pip's default one is known to (its own code names both hosts).
    hosts |= hosts_of([pip.index]) if pip.index else pip_default_hosts()
    return frozenset(hosts)
