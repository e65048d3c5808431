"""pyinfra facts and operations of our own. Each asks once, and yields commands only for what differs."""

import base64
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pyinfra import host
from pyinfra.api import FactBase, StringCommand, operation
from typing_extensions import override

from atelier import apt, openpgp, tree
from atelier.errors import AtelierError

DOWNLOADS = "/run/atelier/keys"


class TreeState(FactBase[dict[str, str]]):
    """Signatures of paths, see atelier.tree."""

    @staticmethod
    def default() -> dict[str, str]:
        """Nothing is there."""
        return {}

    @override
    def command(self, paths: list[str]) -> str:
        return tree.probe_script(paths)

    @override
    def process(self, output: Iterable[str]) -> dict[str, str]:
        return tree.parse_probe(output)


class Lines(FactBase[list[str]]):
    """The output lines of a command that changes nothing; empty when it fails."""

    @staticmethod
    def default() -> list[str]:
        """No output."""
        return []

    @override
    def command(self, script: str) -> str:
        return f"{{ {script}; }} 2>/dev/null || true"

    @override
    def process(self, output: Iterable[str]) -> list[str]:
        return list(output)


class Content(FactBase[bytes]):
    """A file's bytes; none where it is missing."""

    @staticmethod
    def default() -> bytes:
        """Nothing is there."""
        return b""

    @override
    def command(self, path: str) -> str:
        return f"base64 {shlex.quote(path)} 2>/dev/null || true"

    @override
    def process(self, output: Iterable[str]) -> bytes:
        return base64.b64decode("".join(output))


def whole(path: str) -> str:
    """Shell that prints a file, nothing where there is none, and what is no JSON where it cannot be read.

    A document of which we keep what others wrote must not be taken for a missing one.
    """
    quoted = shlex.quote(path)
    return f"[ ! -e {quoted} ] || cat {quoted} || echo unreadable"


@operation()
def entries(entries: tuple[tree.Entry, ...]) -> Iterator[StringCommand]:
    """Files and directories, as they must be."""
    yield from installed(entries, host.get_fact(TreeState, paths=[entry.path for entry in entries]))


def installed(entries: Sequence[tree.Entry], present: Mapping[str, str]) -> Iterator[StringCommand]:
    """Commands that bring entries to what they must be, given the signatures of what is there."""
    for entry in tree.differing(entries, present):
        content = entry.content if isinstance(entry, tree.File) else b""
        yield StringCommand(entry.install_script(), _stdin=content)


@operation()
def unless(probe: str, script: str) -> Iterator[StringCommand]:
    """Run a shell script where a probe, which changes nothing, prints nothing."""
    if not host.get_fact(Lines, script=probe):
        yield StringCommand(script)


class AptCommand(StringCommand):
    """Shell that runs apt. Where it fails for a reason that we know, one clear message takes the place of its output."""

    @override
    def execute(self, state: Any, host: Any, connector_arguments: Any) -> Any:
        status, output = super().execute(state, host, connector_arguments)
        finding = None if status else apt.explain([line.line for line in output])
        if finding:
            raise AtelierError(finding.problem, finding.remedy)
        return status, output


def installed_packages(names: Iterable[str]) -> dict[str, str]:
    """Version by name of those packages that are installed on the host."""
    quoted = " ".join(shlex.quote(name) for name in names)
    script = f"dpkg-query -W -f '${{db:Status-Status}} ${{Package}} ${{Version}}\\n' {quoted}"
    rows = [line.split(" ") for line in host.get_fact(Lines, script=script)] if quoted else []
    return {row[1]: row[2] for row in rows if row[0] == "installed"}


def missing_packages(wanted: Iterable[str]) -> list[str]:
    """Those of the packages, each `name` or `name=version`, that are not installed on the host as wanted."""
    wanted = list(wanted)
    return apt.missing(wanted, installed_packages(apt.name_of(package) for package in wanted))


@operation()
def packages(names: tuple[str, ...]) -> Iterator[StringCommand]:
    """Packages, each `name` or `name=version`, without recommendations; what is there as wanted is left as it is."""
    missing = missing_packages(names)
    if missing:
        yield AptCommand(apt.install_script(missing))


@operation()
def finished() -> Iterator[StringCommand]:
    """No package left half configured by an interrupted installation."""
    if host.get_fact(Lines, script="dpkg --audit"):
        yield AptCommand(apt.finish_script())


@operation()
def removed(names: tuple[str, ...]) -> Iterator[StringCommand]:
    """Packages that must not be installed."""
    present = installed_packages(names)
    if present:
        yield AptCommand(apt.remove_script(list(present)))


@operation()
def unheld(names: tuple[str, ...]) -> Iterator[StringCommand]:
    """Packages that apt may replace."""
    holds = host.get_fact(Lines, script="apt-mark showhold")
    if stuck := [name for name in names if name in holds]:
        yield StringCommand(f"apt-mark -q unhold {' '.join(shlex.quote(name) for name in stuck)}")


@operation()
def held(names: tuple[str, ...]) -> Iterator[StringCommand]:
    """Packages that apt must not replace; those that are not installed yet get their hold after they are."""
    holds = host.get_fact(Lines, script="apt-mark showhold")
    free = [name for name in installed_packages(names) if name not in holds]
    if free:
        yield AptCommand(apt.hold_script(free))


@operation()
def repository(repository: apt.Repository) -> Iterator[StringCommand]:
    """An apt repository whose key is compared with its fingerprint on this computer before the host trusts it."""
    path = repository.keyring
    present = host.get_fact(TreeState, paths=[path, repository.source.path])
    key = host.get_fact(Content, path=path)
    if not _is_key(key, repository.fingerprint):
        part = f"{DOWNLOADS}/{repository.name}.key"
        yield StringCommand(f"install -d -m 0700 {DOWNLOADS}")
        yield AptCommand(apt.fetch_script(repository.key_url, part))
        key = host.get_fact(Content, path=part)
        yield StringCommand(f"rm -f {part}; install -d {shlex.quote(str(PurePosixPath(path).parent))}")
        openpgp.require(key, repository.fingerprint, repository.key_url)
    keyring = tree.File(path, openpgp.for_keyring(key, path))
    yield from installed((keyring, repository.source), present)


def _is_key(key: bytes, fingerprint: str) -> bool:
    try:
        openpgp.require(key, fingerprint, "the host")
    except AtelierError:
        return False
    return True
