"""Where secrets appear on a host that must not, asked in one round trip; and what is wrong with that. Pure."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atelier import render
from atelier.doctor.redact import forms
from atelier.errors import Finding
from atelier.settings import Settings

LOG_BYTES = 256_000_000
"""How much of the logs is searched, the newest first: a search for all forms of all secrets reads some 100 MB a second."""
REPLACE = "remove it there and close the leak, then `make rotate`: whoever saw it knows it"


@dataclass(frozen=True)
class Told:
    """What the search told, as places. unread: what could not be searched. older: of the logs, too much to be searched."""

    found: tuple[str, ...] = ()
    homes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    older: tuple[str, ...] = ()


SCRIPT = r"""
private=$(mktemp -d -p /dev/shm) && trap 'rm -rf "$private"' EXIT && umask 077 && cat >"$private/patterns" || exit 1
# Secrets that this host alone has.
[ ! -e "$CONFIG/weights.token" ] || grep -E '.{6}' "$CONFIG/weights.token" >>"$private/patterns"
[ ! -d "$ACME" ] || find "$ACME" -name '*.key' -exec grep -hE '^[^-]{20}' {} + >>"$private/patterns"
search() {
  what=$1; shift
  "$@" >"$private/text" 2>&1 || { echo "unread $what"; return; }
  if grep -aqF -f "$private/patterns" "$private/text"; then echo "found $what"; fi
}
files() { xargs -0r grep -aslF -f "$private/patterns" -- | sed "s/^/$1 /"; }
inspected() { ids=$(docker ps -aq) || return; [ -z "$ids" ] || docker inspect $ids || [ $? -eq 1 ]; }
search 'docker inspect' inspected
for c in $CONTAINERS; do search "docker logs $c" docker logs "$c"; done
# Images that others start from are there only where one was built.
for t in $(docker image ls --filter 'reference=atelier/*' --format '{{.Repository}}:{{.Tag}}'); do
  search "docker history $t" docker history --no-trunc "$t"
  search "docker image inspect $t" docker image inspect "$t"
done
find /proc -maxdepth 2 -path '/proc/[0-9]*' \( -name cmdline -o -name environ \) -print0 2>/dev/null | files found
printf '%s\0' "$CANARY" | files found
find "$CONFIG" -path "$CONFIG/secrets" -prune -o -path "$CONFIG/weights.token" -prune -o -type f -print0 | files found
find "$STATE" -path "$ACME" -prune -o -type f -print0 | files found
find "$USERS" -type f \( -name '*.log' -o -name '*.json' \) -print0 | files found
# What an application writes into one image it writes into all.
find "$OUTPUTS" -type f -printf '%T@ %p\n' | sort -rn | head -n 20 | cut -d' ' -f2- | tr '\n' '\0' | files found
for d in run tmp var/tmp dev/shm var/crash; do
  [ ! -d "$ROOT/$d" ] || find "$ROOT/$d" -xdev -path "$private" -prune -o -path "$ROOT/run/log" -prune -o -type f -size -8M -print0
done | files found
# Others read there; the keys of certificates that are root's alone belong there.
find "$ROOT/etc" -xdev -type f -perm /044 -size -1024k -print0 | files found
# An operator who deploys from here keeps the credentials in .secrets.
find "$ROOT/root" "$ROOT/home" -xdev -maxdepth 4 \( -name .secrets -o -path "$CONFIG" \) -prune -o \
  -type f -size -1024k -print0 2>/dev/null | files homes
for d in var/log run/log; do
  [ ! -d "$ROOT/$d" ] || find "$ROOT/$d" -xdev -type f -size +0 -printf '%T@ %s %p\n'
done |
  sort -rn | awk -v left="$LOG_BYTES" -v older="$private/older" '
    { size = $2; sub(/^[^ ]+ [^ ]+ /, "") }
    size > left { printf "older %s (%.0f MB)\n", $0, size / 1e6 > older; next }
    { left -= size; print }' | tr '\n' '\0' | files found
[ ! -e "$private/older" ] || cat "$private/older"
# In the journal's files long messages are compressed.
search journal journalctl -b -q -n 20000 --no-pager
true
"""


def script(settings: Settings, containers: Iterable[str], canary: str, root: str = "") -> str:
    """A shell script that prints where the secrets on its standard input are, and what could not be searched.

    They are in no argument and no environment. canary: a file that holds one of them. root: where /etc, /var and the
    like are, for tests.
    """
    names = {
        "ACME": render.acme_storage(settings),
        "CANARY": canary,
        "CONTAINERS": " ".join(containers),
        "CONFIG": settings.config_root,
        "STATE": settings.state_dir(),
        "USERS": settings.users_path(),
        "OUTPUTS": settings.outputs_path(),
        "LOG_BYTES": str(LOG_BYTES),
        "ROOT": root,
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in names.items()) + SCRIPT


def patterns(secrets: Iterable[str]) -> bytes:
    """What the script is given: all forms of the secrets."""
    return "".join(f"{form}\n" for form in sorted({form for secret in secrets for form in forms(secret)})).encode()


def parse(output: str) -> Told:
    """What the script printed."""
    lines = [line.partition(" ")[::2] for line in output.splitlines()]

    def told(kind: str) -> tuple[str, ...]:
        return tuple(place for first, place in lines if first == kind)

    return Told(told("found"), told("homes"), told("unread"), told("older"))


def leaks(told: Told, canary: str) -> list[Finding]:
    """Places that hold a secret and must not, and those that nobody could search."""
    return [
        *(Finding(place, REPLACE) for place in told.found if place != canary),
        *(Finding(f"{place} cannot be read", "see `make status`; then search again") for place in told.unread),
    ]


def kept(told: Told) -> list[Finding]:
    """Secrets in the homes of the host's own users: shells' histories, files of a stack before this one."""
    return [Finding(place, "remove it there; where others could read it, `make rotate`") for place in told.homes]


def text(told: Told) -> str:
    """What was not searched."""
    if not told.older:
        return "nothing wrong found"
    return f"nothing wrong found; not searched, beyond {LOG_BYTES / 1e6:.0f} MB of newer logs: {_some(told.older)}"


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
