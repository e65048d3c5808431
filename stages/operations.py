"""pyinfra facts and operations of our own. Each asks once, and yields commands only for what differs."""

import shlex
from collections.abc import Iterable, Iterator

from pyinfra import host
from pyinfra.api import FactBase, StringCommand, operation
from typing_extensions import override

from atelier import tree


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


def whole(path: str) -> str:
    """Shell that prints a file, nothing where there is none, and what is no JSON where it cannot be read.

    A document of which we keep what others wrote must not be taken for a missing one.
    """
    quoted = shlex.quote(path)
    return f"[ ! -e {quoted} ] || cat {quoted} || echo unreadable"


@operation()
def entries(entries: tuple[tree.Entry, ...]) -> Iterator[StringCommand]:
    """Files and directories, as they must be."""
    present = host.get_fact(TreeState, paths=[entry.path for entry in entries])
    for entry in tree.differing(entries, present):
        content = entry.content if isinstance(entry, tree.File) else b""
        yield StringCommand(entry.install_script(), _stdin=content)


@operation()
def unless(probe: str, script: str) -> Iterator[StringCommand]:
    """Run a shell script where a probe, which changes nothing, prints nothing."""
    if not host.get_fact(Lines, script=probe):
        yield StringCommand(script)


def missing_packages(names: Iterable[str]) -> list[str]:
    """Those of the packages that are not installed on the host."""
    names = list(names)
    quoted = " ".join(shlex.quote(name) for name in names)
    script = f"dpkg-query -W -f '${{db:Status-Status}} ${{Package}}\\n' {quoted}"
    installed = {line.split(" ")[1] for line in host.get_fact(Lines, script=script) if line.startswith("installed ")}
    return [name for name in names if name not in installed]


@operation()
def packages(names: tuple[str, ...]) -> Iterator[StringCommand]:
    """Packages of the host's archives, installed without recommendations; what is there is left as it is."""
    missing = missing_packages(names)
    if missing:
        quoted = " ".join(shlex.quote(name) for name in missing)
        yield StringCommand("apt-get update -q")
        yield StringCommand(
            "DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "
            f"-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold {quoted}"
        )
