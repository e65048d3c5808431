"""What a host has of the weights, and what its applications see of them, in one round trip; and what is wrong with that. Pure."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atelier import weights_unit
from atelier.errors import Finding
from atelier.settings import Settings
from weights.store import INCOMING

MARK = "::weights::"
SECONDS = 30
"""An application that answers later than this does not answer."""
TARGET = "/models"
"""Where both applications have the store."""


@dataclass(frozen=True)
class Wanted:
    """A weight that the settings ask for. `name` is its place in the store."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Stat:
    """A file by its stat. `changed` in nanoseconds, `mode` in octal, `kind` in the words of stat(1)."""

    bytes: int
    changed: int
    inode: int
    mode: str
    owner: str
    kind: str


@dataclass(frozen=True)
class Told:
    """What the host told. Stats by name, records (JSON) by sha256; mounts: the options of each application's store.

    unit: state of what fetches. incoming: files that are being put together. aside: what wrongly had a weight's name.
    late: applications that did not answer in time.
    """

    files: Mapping[str, Stat]
    records: Mapping[str, str]
    unit: str
    incoming: tuple[str, ...]
    aside: tuple[str, ...]
    untold: bool
    seen: Mapping[str, Mapping[str, Stat]]
    mounts: Mapping[str, str]
    late: frozenset[str]


_STAT = "stat -c '%s|%.9Y|%i|%a|%U:%G|%F|%n'"


def script(settings: Settings, weights: Sequence[Wanted]) -> str:
    """A shell script that prints the sections; it reads no weight, and changes nothing."""
    store, state = shlex.quote(weights_unit.store(settings)), shlex.quote(weights_unit.state(settings))
    names = " ".join(shlex.quote(weight.name) for weight in weights)
    records = " ".join(f"{weight.sha256}.json" for weight in weights)
    inside = f"cd {TARGET} && {_STAT} {names}; grep -E ' {TARGET} ' /proc/self/mountinfo"
    applications = " ".join(service.container for service in settings.enabled().values())
    return f"""
s() {{ printf '\\n%s%s\\n' "{MARK}" "$1"; }}
s files; cd {store} && {_STAT} {names} 2>/dev/null
s records; cd {state} && for r in {records}; do [ -e "$r" ] && echo "$r $(cat "$r")"; done
s unit; systemctl show -p ActiveState --value {weights_unit.UNIT}
s incoming; ls {store}/{INCOMING} 2>/dev/null
s aside; cd {store} && find . -maxdepth 2 -name '*.wrong-*' | cut -c3-
s untold; {weights_unit.changed_script(settings)}
for c in {applications}; do
  s "in $c"; timeout {SECONDS} docker exec "$c" sh -c {shlex.quote(inside)} 2>/dev/null || {{ [ $? != 124 ] || s "late $c"; }}
done
:
"""


def parse(output: str) -> Told:
    """What the script told."""
    sections: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith(MARK):
            current = sections.setdefault(line.removeprefix(MARK), [])
        elif line.strip() and sections:
            current.append(line)
    inside = {name.removeprefix("in "): lines for name, lines in sections.items() if name.startswith("in ")}
    mounts = {
        name: next((line.split()[5] for line in lines if f" {TARGET} " in line and "|" not in line), "")
        for name, lines in inside.items()
    }
    return Told(
        files=_stats(sections["files"]),
        records={
            name.removesuffix(".json"): record for name, _, record in (r.partition(" ") for r in sections["records"])
        },
        unit=next(iter(sections["unit"]), ""),
        incoming=tuple(sections["incoming"]),
        aside=tuple(sections["aside"]),
        untold=bool(sections["untold"]),
        seen={name: _stats(lines) for name, lines in inside.items()},
        mounts=mounts,
        late=frozenset(name.removeprefix("late ") for name in sections if name.startswith("late ")),
    )


def _stats(lines: Sequence[str]) -> dict[str, Stat]:
    rows = (line.split("|") for line in lines if line.count("|") == 6)
    return {
        name: Stat(int(size), int(changed.replace(".", "")), int(inode), mode, owner, kind)
        for size, changed, inode, mode, owner, kind, name in rows
    }


def in_place(weights: Sequence[Wanted], told: Told) -> list[Finding]:
    """The weights that are not there, or not the files that were hashed."""
    fetch = "run `make models-fetch` (or `make deploy`), which brings what is missing and checks what is there"
    if not weights:
        return [Finding("the settings ask for no weights", "name sets in models.sets")]
    found = []
    for weight in weights:
        file = told.files.get(weight.name)
        if file is None:
            found.append(Finding(f"{weight.name} is missing", fetch))
        elif file.kind != "regular file":
            found.append(Finding(f"{weight.name} is a {file.kind}, not a file", fetch))
        elif file.bytes != weight.bytes:
            found.append(Finding(f"{weight.name} has {file.bytes} bytes, not {weight.bytes}", fetch))
        elif difference := _since_hashed(weight, file, told.records.get(weight.sha256)):
            found.append(Finding(f"{weight.name}: {difference}", f"{fetch}; DEEP=1 reads every byte"))
        elif (file.mode, file.owner) != ("444", "root:root"):
            problem = f"{weight.name} has mode {file.mode} and owner {file.owner}: not only root can change it"
            found.append(Finding(problem, f"on the host: chown root:root, chmod 444; then {fetch}"))
    if told.unit == "failed":
        problem = f"{weights_unit.UNIT} has failed"
        found.append(Finding(problem, f"`journalctl -u {weights_unit.UNIT}` on the host says why; then {fetch}"))
    return found


def _since_hashed(weight: Wanted, file: Stat, record: str | None) -> str:
    """In what a file differs from the one that was hashed and found right."""
    if record is None:
        return "nobody has hashed it"
    try:
        known = json.loads(record)
        before = {
            "bytes": known["bytes"],
            "mtime_ns": known["mtime_ns"],
            "inode": known["inode"],
            "sha256": known["sha256"],
        }
    except (ValueError, KeyError, TypeError):
        return "the record of its hashing is damaged"
    now = {"bytes": file.bytes, "mtime_ns": file.changed, "inode": file.inode, "sha256": weight.sha256}
    words = {"bytes": "its size", "mtime_ns": "its time", "inode": "its inode (another file)", "sha256": "the hash"}
    changed = [words[key] for key in now if now[key] != before[key]]
    return f"{', '.join(changed)} changed since it was hashed" if changed else ""


def left_over(told: Told) -> list[Finding]:
    """What a transfer left, and nothing needs."""
    found = []
    if told.incoming and told.unit not in ("active", "activating", "reloading"):
        problem = f"{len(told.incoming)} parts lie in {INCOMING}, and nothing is being fetched"
        found.append(Finding(problem, "`make models-fetch` goes on with them; `make models-prune` removes them"))
    if told.aside:
        found.append(Finding(f"set aside: {', '.join(told.aside)}", "`make models-prune` lists and removes them"))
    if told.untold and told.unit not in ("active", "activating", "reloading"):
        problem = "ComfyUI was not told of weights that were replaced"
        found.append(Finding(problem, "run `make models-fetch`, which tells it, or `make restart SERVICE=comfyui`"))
    return found


def seen(weights: Sequence[Wanted], told: Told, container: str) -> list[Finding]:
    """In what an application's weights are not those of the host, or not read-only."""
    redeploy = "run `make deploy`; if it stays so, `make restart`"
    if container in told.late:
        problem = f"time-out: {container} did not show its weights within {SECONDS} s"
        return [Finding(problem, "see the load of the host, and whether the disk of the weights hangs")]
    options = told.mounts.get(container, "")
    if not options:
        return [Finding(f"{container} has no store at {TARGET}", redeploy)]
    found = []
    if "ro" not in options.split(","):
        found.append(Finding(f"{container} can write to {TARGET}", redeploy))
    inside = told.seen.get(container, {})
    for weight in weights:
        here, there = told.files.get(weight.name), inside.get(weight.name)
        if here and there is None:
            found.append(
                Finding(f"{container} does not see {weight.name}", f"another directory is mounted; {redeploy}")
            )
        elif here and there and (here.inode, here.bytes) != (there.inode, there.bytes):
            problem = f"{container} sees another {weight.name} than the host: inode {there.inode}, not {here.inode}"
            found.append(Finding(problem, f"the store was replaced since the container started; {redeploy}"))
    return found


def by_every_byte(weights: Sequence[Wanted], output: str) -> list[Finding]:
    """What `python3 -m weights verify --deep` found wrong, or did not look at."""
    lines = {name: verdict for name, _, verdict in (line.partition(": ") for line in output.splitlines())}
    fetch = "run `make models-fetch`, which sets a wrong file aside and fetches it again"
    return [
        Finding(f"{weight.name}: {lines.get(weight.name, 'not looked at')}", fetch)
        for weight in weights
        if lines.get(weight.name) != "good"
    ]
