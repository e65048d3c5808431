"""The operator's own pip settings, as far as an image build on another machine can follow them.

Remote indexes, proxy and certificates become a pip.conf; folders and `file://` indexes of this computer are where the
wheels of a lock are looked for, so that they can travel with the build.
"""

import configparser
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

CA_SECRET = "/run/secrets/ca"  # noqa: S105 - a path
SECTIONS = ("global", "install", "download")


@dataclass(frozen=True)
class PipSettings:
    """Settings by pip's option names (`index-url`, `find-links`, ...), lists still in one string."""

    values: Mapping[str, str]

    def words(self, name: str) -> tuple[str, ...]:
        """The parts of an option that may be given several times."""
        return tuple(self.values.get(name, "").split())

    def indexes(self) -> tuple[str, ...]:
        """The index addresses in pip's order. Without any of them pip asks its default one."""
        return self.words("index-url") + self.words("extra-index-url")

    def local(self) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        """Folders with files (`find-links`) and roots of simple indexes, on this computer."""
        folders = tuple(path for path in map(_local_path, self.words("find-links")) if path and path.is_dir())
        return folders, tuple(path for path in map(_local_path, self.indexes()) if path)

    def ca_bundle(self) -> bytes | None:
        """The certificates that pip here trusts, when they are not pip's own."""
        path = self.values.get("cert")
        return Path(path).read_bytes() if path and Path(path).is_file() else None

    def pip_conf(self, proxy: str | None) -> str:
        """A pip.conf for a build elsewhere. `proxy`: the one that the other machine needs, in place of this computer's."""
        remote = [url for url in self.indexes() if not _local_path(url)]
        index_is_local = bool(_local_path(self.values.get("index-url", "")))
        options = {name: self.values[name] for name in ("timeout", "retries", "no-index") if name in self.values}
        if self.values.get("index-url") and not index_is_local:
            options["index-url"] = remote.pop(0)
        elif index_is_local:
            # Without an index-url pip would ask its default index, which this computer does not.
            options |= {"index-url": remote.pop(0)} if remote else {"no-index": "true"}
        options["extra-index-url"] = " ".join(remote)
        options["find-links"] = " ".join(word for word in self.words("find-links") if not _local_path(word))
        options["trusted-host"] = " ".join(self.words("trusted-host"))
        options["proxy"] = proxy or self.values.get("proxy", "")
        options["cert"] = CA_SECRET if self.ca_bundle() else ""
        lines = [f"{name} = {_folded(value)}" for name, value in options.items() if value]
        return "\n".join(["[global]", *lines, ""])

    def probe_urls(self) -> list[str]:
        """A small page of each remote index."""
        if self.values.get("no-index"):
            return []
        indexes = [url for url in self.indexes() if not _local_path(url)]
        default = [] if self.values.get("index-url") else default_index()
        return [f"{url.rstrip('/')}/pip/" for url in [*default, *indexes]]


def read(environment: Mapping[str, str] | None = None) -> PipSettings:
    """What pip on this computer would read: its files in its order, then PIP_*."""
    environment = os.environ if environment is None else environment
    return parse([path.read_text(encoding="utf-8") for path in _files(environment)], environment)


def parse(files: Iterable[str], environment: Mapping[str, str]) -> PipSettings:
    """Settings from the texts of pip.conf files, lowest precedence first, and the environment over them."""
    values: dict[str, str] = {}
    for text in files:
        parser = configparser.RawConfigParser()
        parser.read_string(text)
        for section in SECTIONS:
            values |= {
                name.replace("_", "-"): value
                for name, value in (parser.items(section) if parser.has_section(section) else ())
            }
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            values[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return PipSettings(values)


def part(lock: str, files: Iterable[Path]) -> str:
    """The part of a hash-locked requirements file that these files are for."""
    chosen = {_distribution(path.name) for path in files}
    return "".join(f"{text}\n" for key, text in _entries(lock) if key in chosen)


def local_files(settings: PipSettings, lock: str, already: str = "") -> list[Path]:
    """The files on this computer that a lock names by hash, less those that the lock `already` names."""
    wanted, have = locked(lock), locked(already)
    wanted = {key: hashes for key, hashes in wanted.items() if key not in have}
    folders, indexes = settings.local()
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            hashes = wanted.get(_distribution(path.name), frozenset())
            if hashes and _fits(path.name) and _sha256(path) in hashes:
                found[path.name] = path
    for index in indexes:
        for (name, _), hashes in wanted.items():
            page = index / name / "index.html"
            for link in re.findall(r'href="([^"]+)"', page.read_text(encoding="utf-8")) if page.is_file() else ():
                address, _, digest = link.partition("#sha256=")
                target = _local_path(urljoin(page.as_uri(), address))
                if digest in hashes and target and target.is_file() and _fits(target.name):
                    found[target.name] = target
    return list(found.values())


def locked(lock: str) -> dict[tuple[str, str], frozenset[str]]:
    """The sha256 values of a hash-locked requirements file by (normalised name, version)."""
    return {key: frozenset(re.findall(r"sha256:([0-9a-f]{64})", text)) for key, text in _entries(lock)}


def default_index() -> list[str]:
    """The index that pip asks when none is configured, from the nearest pip itself; nothing where there is no pip."""
    question = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    for wheel in ["", *Path(os.__file__).parent.glob("ensurepip/_bundled/pip-*.whl")]:
        environment = {**os.environ, "PYTHONPATH": str(wheel)}
        answer = subprocess.run([sys.executable, "-c", question], env=environment, capture_output=True, text=True)
        if answer.returncode == 0:
            return answer.stdout.split()
    return []


def _files(environment: Mapping[str, str]) -> list[Path]:
    home = Path.home()
    own = environment.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return []
    paths = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf",
        *([Path(own)] if own else []),
    ]
    return [path for path in paths if path.is_file()]


def _local_path(address: str) -> Path | None:
    if address.startswith("file://"):
        return Path(unquote(urlsplit(address).path))
    return Path(address) if address and "://" not in address else None


def _folded(value: str) -> str:
    return value.replace(" ", "\n    ")


def _entries(lock: str) -> Iterator[tuple[tuple[str, str], str]]:
    for found in re.finditer(r"^([A-Za-z0-9._-]+)==(\S+)(?:\s*\\\n\s+--hash=\S+)*", lock, re.MULTILINE):
        yield (_normalised(found[1]), found[2]), found[0]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _distribution(file_name: str) -> tuple[str, str]:
    stem = re.sub(r"\.(whl|tar\.gz|zip)$", "", file_name)
    name, _, rest = stem.partition("-") if file_name.endswith(".whl") else stem.rpartition("-")
    return _normalised(name), rest.partition("-")[0]


def _fits(file_name: str) -> bool:
    """Whether a file can be of use to Python 3.11 on Linux."""
    if not file_name.endswith(".whl"):
        return True
    python, abi, platform = file_name.removesuffix(".whl").split("-")[-3:]
    runs = "abi3" in abi or not {"py3", "cp311"}.isdisjoint(python.split("."))
    return runs and (platform == "any" or "linux" in platform)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
