"""The forms in which a secret may turn up, and a search for them that runs in a guest."""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from atelier.doctor import redact

SHORTEST = 12
"""Characters of a piece that is worth looking for: shorter ones turn up by chance."""


def forms(secret: str) -> list[str]:
    """What a secret may look like on its way through programs; a piece of it stands for every other way of quoting."""
    escaped = secret.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return sorted({*redact.forms(secret), shlex.quote(secret), escaped, *pieces(secret)})


def pieces(secret: str) -> list[str]:
    """Parts of letters and digits, which no way of quoting changes."""
    return [piece for piece in re.findall(r"[A-Za-z0-9]+", secret) if len(piece) >= SHORTEST]


class Forms:
    """All forms of some secrets, and who is meant by a form that was found."""

    def __init__(self, secrets: Mapping[str, Iterable[str]]) -> None:
        """secrets: by name what must not be seen, such as the lines of a key."""
        self._meant: dict[bytes, set[str]] = defaultdict(set)
        for name, texts in secrets.items():
            for text in texts:
                for form in forms(text):
                    self._meant[form.encode()].add(name)
        self.patterns = sorted(self._meant)

    def seen_in(self, data: bytes) -> set[str]:
        """The secrets of which a form is in these bytes."""
        return {name for form, names in self._meant.items() if form in data for name in names}

    def meant_by(self, match: bytes) -> set[str]:
        return self._meant[match]


SEARCH = r"""
set -u; umask 077; export LC_ALL=C
private=$(mktemp -d -p /dev/shm) && trap 'rm -rf "$private"' EXIT && cat >"$private/patterns" || exit 1
look() { xargs -0r grep -aoHZF -f "$private/patterns" -- 2>/dev/null; }
place() {
    what=$1; shift
    { "$@" 2>&1 || echo >&2 "$what cannot be read"; } | grep -aoF -f "$private/patterns" | sort -u | sed "s|^|$what\x00|"
}
regular() { find "$@" -xdev -path "$private" -prune -o -type f -size +0 -print0; }
{
    # A program's arguments and environment are files of /proc.
    find /proc -maxdepth 2 -path '/proc/[0-9]*' \( -name cmdline -o -name environ \) -print0 2>/dev/null | look
    regular / /run /tmp /dev/shm | look
    place 'names of files' find / /run /tmp /dev/shm -xdev
    place journal journalctl --no-pager -o export
    place images docker save $(docker image ls --format '{{.Repository}}:{{.Tag}}')
    for image in $(docker image ls -q); do place "history" docker history --no-trunc "$image"; done
    for name in $(docker ps -a --format '{{.Names}}'); do
        place "inspect $name" docker inspect "$name"
        place "logs $name" docker logs "$name"
        process=/proc/$(docker inspect -f '{{.State.Pid}}' "$name"); root=$process/root
        # Storage in memory has no file on the disk.
        for mount in $(awk '$3 == "tmpfs" && $2 !~ "^/(proc|sys|dev)(/|$)" || $2 == "/dev/shm" { print $2 }' "$process/mounts"); do
            regular "$root$mount" | look | sed "s|^$root|$name:|"
        done
    done
} | sort -u
"""
"""Prints place, NUL and match for every place in the guest that holds one of the patterns on standard input, one a line."""


NUMBERED = re.compile(r"(?<=^/proc/)\d+|(?<=/)[0-9a-f]{64}|(?<=/#/)[0-9a-f]{64}")


def places(output: bytes, known: Forms) -> dict[str, set[str]]:
    """The secrets by the place where `SEARCH` found a form of them."""
    found: dict[str, set[str]] = defaultdict(set)
    for place, match in _rows(output):
        found[NUMBERED.sub("#", place.decode())] |= known.meant_by(match)
    return dict(found)


def _rows(output: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line in output.splitlines():
        place, _, match = line.partition(b"\0")
        yield place, match
