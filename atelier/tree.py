"""Files and directories that a deploy puts on a host: what they must be, and what differs from what is there."""

import hashlib
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PART = ".atelier-part"
"""How the name ends of a file that is being written."""


@dataclass(frozen=True)
class File:
    """A file on the host, whole."""

    path: str
    content: bytes
    mode: int = 0o644
    owner: str = "root"

    def signature(self) -> str:
        """Type, mode, owner and content, in the form that `probe_script` prints."""
        return f"f {self.mode:o} {self.owner}:{self.owner} {hashlib.sha256(self.content).hexdigest()}"

    def install_script(self) -> str:
        """Shell that reads the content from standard input: written 0600 beside its place, then renamed into it."""
        path, part = shlex.quote(self.path), shlex.quote(f"{self.path}{PART}")
        return (
            f"umask 077 && cat >{part} && chown {self.owner}:{self.owner} {part} && chmod {self.mode:o} {part} "
            f"&& sync {part} && mv -fT {part} {path}"
        )


@dataclass(frozen=True)
class Directory:
    """A directory on the host."""

    path: str
    mode: int = 0o755
    owner: str = "root"

    def signature(self) -> str:
        """Type, mode and owner, in the form that `probe_script` prints."""
        return f"d {self.mode:o} {self.owner}:{self.owner} -"

    def install_script(self) -> str:
        """Shell that makes it; parents that are missing are made for root."""
        path = shlex.quote(self.path)
        return f"mkdir -p {path} && chown {self.owner}:{self.owner} {path} && chmod {self.mode:o} {path}"


Entry = File | Directory


def probe_script(paths: Iterable[str]) -> str:
    """Shell that prints, for each path that exists: type, mode, owner:group, sha256 or `-`, and the path."""
    quoted = " ".join(shlex.quote(path) for path in paths)
    return (
        f'for p in {quoted}; do if [ -d "$p" ]; then t=d h=-; elif [ -L "$p" ]; then t=l h=-; elif [ -f "$p" ]; then t=f '
        'h=$(sha256sum <"$p"); h=${h%% *}; elif [ -e "$p" ]; then t=o h=-; else continue; fi; '
        'echo "$t $(stat -Lc \'%a %U:%G\' "$p") $h $p"; done'
    )


def parse_probe(lines: Iterable[str]) -> dict[str, str]:
    """Signatures by path, from what `probe_script` printed."""
    parts = (line.split(" ", 4) for line in lines)
    return {fields[4]: " ".join(fields[:4]) for fields in parts if len(fields) == 5}


def differing(entries: Iterable[Entry], present: Mapping[str, str]) -> list[Entry]:
    """The entries that are missing on the host or differ there, in their order."""
    return [entry for entry in entries if present.get(entry.path) != entry.signature()]
