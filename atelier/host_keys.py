"""A host whose SSH key is not the one that is known here: what ssh said of it, explained. Nothing is accepted here.

A replaced machine has another key, and so has somebody in between; only a person can tell which it is.
"""

import base64
import binascii
import hashlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import AtelierError

CHANGED = "REMOTE HOST IDENTIFICATION HAS CHANGED"
KEYS = "for k in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $k; done"
"""What tells a machine's own fingerprints on its console."""


@dataclass(frozen=True)
class Change:
    """What ssh said. name: as the file of known keys has the host; file and line: where the key stands that was expected."""

    name: str
    kind: str
    fingerprint: str
    file: str
    line: int


def parse(stderr: str) -> Change | None:
    """The change that ssh refused; None where that is not what it said."""
    if CHANGED not in stderr:
        return None
    shown = re.search(r"fingerprint for the (\S+) key sent by the remote host is\s+(\S+?)\.?\s", stderr)
    place = re.search(r"Offending (?:\S+ )?key in (.+):(\d+)", stderr)
    name = re.search(r"[Hh]ost key for (\S+) has changed", stderr)
    return Change(
        name[1] if name else "",
        shown[1] if shown else "",
        shown[2] if shown else "",
        place[1].strip() if place else "",
        int(place[2]) if place else 0,
    )


def known(change: Change) -> str:
    """Type and fingerprint of the key that was expected, from the operator's own file; empty where it cannot be read."""
    try:
        return fingerprint(Path(change.file).read_text(encoding="utf-8").splitlines()[change.line - 1])
    except (OSError, UnicodeDecodeError, IndexError):
        return ""


def fingerprint(line: str) -> str:
    """Type and fingerprint of a line of known_hosts, as ssh writes them; empty where it is none."""
    found = re.search(r"(?:^|\s)((?:ssh|ecdsa|sk)-\S+) ([A-Za-z0-9+/]+={0,2})(?:\s|$)", line)
    if found is None:
        return ""
    try:
        key = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        return ""
    digest = base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")
    kind = next((word for word in ("ed25519", "ecdsa", "rsa", "dss") if word in found[1]), found[1])
    return f"{kind.upper()} SHA256:{digest}"


def explain(host: str, stderr: str) -> AtelierError | None:
    """Both fingerprints, what the change may mean, and the one command that forgets the old key; None where it is another failure."""
    change = parse(stderr)
    if change is None:
        return None
    before = known(change)
    file = f"-f {shlex.quote(change.file)} " if change.file else ""
    forget = f"ssh-keygen {file}-R {shlex.quote(change.name or host)}"
    lines = [
        f"{host}: its SSH host key is not the one known here. Either the machine was replaced, or somebody is in between",
        f"known here: {before or 'a key that cannot be read'}{f' ({change.file}, line {change.line})' if change.file else ''}",
        f"shown now:  {f'{change.kind} {change.fingerprint}'.strip() or 'not told'}",
    ]
    return AtelierError(
        "\n    ".join(lines),
        f"compare what is shown now with what the machine itself tells on its console: {KEYS}\n"
        f"     only where they are equal: {forget}\n"
        "     then run the same command again; it asks for the new key once, or takes it with ACCEPT_NEW_HOST_KEY=1",
    )
