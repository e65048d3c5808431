"""The manifest, state/manifest.json: what is ours on a host, what of it was there before us, and which bytes we wrote. Pure.

It is written before anything is created. `created`: names by kind. `found`: those that the host had when we first declared
them, and of the time before the first deploy as `packages` everything that was installed, as `groups` all groups, as
`daemon_json` Docker's settings, as `kernel` what Docker changes there; as `disabled` and `stopped` those units of others
under `enabled` that were so. `wrote`: sums of what we wrote, by path.
"""

import json
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from atelier import SCHEMA, recorded
from atelier.errors import AtelierError
from relocation.job import moved as place

PATHS = ("files", "directories", "merged")
"""The kinds whose names are paths."""
MARK = "::before::"
PURGING = "purging"
"""The kind that names every package that an uninstall told apt to remove; a deploy that comes after it ends that."""
FORWARDING = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")
POLICIES = ("iptables", "ip6tables")
"""The programs that tell the policy of their chain FORWARD."""

Names = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Before:
    """A host as it is when a deploy begins."""

    packages: Mapping[str, str] = field(default_factory=dict)
    """Version by name of what is installed."""
    holds: frozenset[str] = frozenset()
    there: frozenset[str] = frozenset()
    """Of the paths that were asked for and the directories above them, those that exist."""
    active: frozenset[str] = frozenset()
    """Of the units that were asked for, those that are active."""
    disabled: frozenset[str] = frozenset()
    stopped: frozenset[str] = frozenset()
    """Of the units that were asked for and are there, those that are not started at boot, and those that do not run."""
    groups: frozenset[str] = frozenset()
    kernel: frozenset[str] = frozenset()
    """FORWARDING and POLICIES, each with its value."""
    daemon_json: str = ""


def before_script(path: str, declared: Names, units: Iterable[str], daemon_json: str, dpkg: str = "") -> str:
    """Shell that prints the manifest at a path, and how the host is. dpkg: an option of dpkg-query, for tests."""
    names = [name for kind in PATHS for name in declared.get(kind, ())]
    paths = " ".join(map(shlex.quote, sorted({*names, *_above(names)})))
    manifest = shlex.quote(path)
    # A document of which we keep what others wrote must not be taken for a missing one.
    return f"""[ ! -e {manifest} ] || cat {manifest} || echo unreadable
echo; echo {MARK}packages; dpkg-query {dpkg} -W -f '${{db:Status-Want}} ${{db:Status-Status}} ${{Package}} ${{Version}}\\n'
echo {MARK}there; for p in {paths}; do {{ [ ! -e "$p" ] && [ ! -L "$p" ]; }} || echo "$p"; done
echo {MARK}active; for u in {" ".join(units)}; do ! systemctl is-active -q "$u" 2>/dev/null || echo "$u"; done
echo {MARK}disabled; for u in {" ".join(units)}; do [ "$(systemctl is-enabled $u 2>/dev/null)" != disabled ] || echo "$u"; done
echo {MARK}stopped; for u in {" ".join(units)}; do systemctl show -p LoadState,ActiveState --value $u 2>/dev/null | tr '\\n' ' ' \\
  | grep -Eq '^loaded (inactive|failed) ' && echo "$u"; done
echo {MARK}groups; getent group | cut -d: -f1
echo {MARK}kernel; for f in {" ".join(FORWARDING)}; do [ ! -e $f ] || echo "$f $(cat $f)"; done
for x in {" ".join(POLICIES)}; do p=$($x -w -S FORWARD 2>/dev/null | head -n 1); p=${{p##* }}; echo "$x ${{p:-ACCEPT}}"; done
echo {MARK}daemon; [ ! -e {daemon_json} ] || cat {daemon_json} || echo unreadable"""


def _above(paths: Iterable[str]) -> set[str]:
    """The directories above paths, the root apart."""
    return {str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"/"}


def parse_before(lines: Iterable[str]) -> tuple[str, Before]:
    """The manifest and the host, from what `before_script` printed."""
    sections: dict[str, list[str]] = {"manifest": []}
    current = sections["manifest"]
    for line in lines:
        if line.startswith(MARK):
            current = sections.setdefault(line.removeprefix(MARK), [])
        else:
            current.append(line)
    rows = [row for row in (line.split(" ") for line in sections.get("packages", [])) if row[1] == "installed"]
    return "\n".join(sections["manifest"]).strip("\n"), Before(
        {name: version for _, _, name, version in rows},
        frozenset(name for want, _, name, _ in rows if want == "hold"),
        frozenset(sections.get("there", [])),
        frozenset(sections.get("active", [])),
        frozenset(sections.get("disabled", [])),
        frozenset(sections.get("stopped", [])),
        frozenset(sections.get("groups", [])),
        frozenset(sections.get("kernel", [])),
        "\n".join(sections.get("daemon", [])),
    )


def created(manifest: str) -> dict[str, list[str]]:
    """What earlier deploys declared, by kind. Raises AtelierError for a damaged manifest."""
    return {kind: list(names) for kind, names in _document(manifest)["created"].items()}


def updated(manifest: str, declared: Names, before: Before, wrote: Mapping[str, str], release: str) -> str:
    """The manifest as it must be before anything is created: what earlier deploys created stays in it until it is removed.

    wrote: sha256 by path of what this deploy writes. Raises AtelierError for a damaged manifest.
    """
    document = _document(recorded.migrate({"manifest": manifest})["manifest"])
    known = {kind: {*names} for kind, names in document["created"].items()}
    fresh = {kind: {*names} - known.get(kind, set()) for kind, names in declared.items()}
    paths = [path for kind in PATHS for path in fresh.get(kind, ())]
    on_the_way = _above(paths) - before.there
    found = {kind: {*names} for kind, names in document["found"].items()}
    for kind, names in fresh.items():
        known[kind] = known.get(kind, set()) | names
        if kind == "enabled":
            for state, units in (("disabled", before.disabled), ("stopped", before.stopped)):
                if was := names & units:
                    found[state] = found.get(state, set()) | was
        there = before.there if kind in PATHS else before.holds if kind == "holds" else frozenset()
        if already := names & there:
            found[kind] = found.get(kind, set()) | already
    if on_the_way:
        known["directories"] = known.get("directories", set()) | on_the_way
    if "packages" not in document["found"] and "packages" not in document["created"]:
        found["packages"] = {f"{name}={version}" for name, version in before.packages.items()}
        found |= {"groups": {*before.groups}, "kernel": {*before.kernel}, "daemon_json": {before.daemon_json} - {""}}
    known.pop(PURGING, None)
    return _text(_sorted(known), _sorted(found), _sums(document["wrote"], wrote), release)


def having_written(manifest: str, wrote: Mapping[str, str], release: str) -> str:
    """The manifest after more was written. wrote: sha256 by path. Raises AtelierError for a damaged manifest."""
    document = _document(manifest)
    if all(digest in document["wrote"].get(path, [])[:1] for path, digest in wrote.items()):
        return manifest
    return _text(document["created"], document["found"], _sums(document["wrote"], wrote), release)


def _sums(before: Mapping[str, Collection[str]], wrote: Mapping[str, str]) -> dict[str, list[str]]:
    """What was written last and before that, by path."""
    sums = {path: [*before.get(path, [])] for path in {*before, *wrote}}
    for path, digest in wrote.items():
        sums[path] = [digest, *(each for each in sums[path] if each != digest)][:2]
    return sums


def without(manifest: str, files: Collection[str], release: str) -> str:
    """The manifest after some files were removed. Raises AtelierError for a damaged manifest."""
    document = _document(manifest)
    document["created"]["files"] = [path for path in document["created"].get("files", []) if path not in files]
    wrote = {path: sums for path, sums in document["wrote"].items() if path not in files}
    return _text(document["created"], document["found"], wrote, release)


def moved(manifest: str, pairs: Sequence[tuple[str, str]], release: str, made: Collection[str] = ()) -> str:
    """The manifest after each first directory came to lie in the place of its second.

    made: directories that were not there before; what ours became one with otherwise is as it was found. Raises
    AtelierError for a damaged manifest.
    """
    document = _document(recorded.migrate({"manifest": manifest})["manifest"])
    parts = {
        part: {
            kind: {place(name, pairs) for name in names} if kind in (*PATHS, "metrics") else names
            for kind, names in document[part].items()
        }
        for part in ("created", "found")
    }
    went = {place(name, pairs) for name in document["created"].get("directories", ()) if place(name, pairs) != name}
    parts["created"]["directories"] = {*parts["created"].get("directories", ()), *made}
    if there := {*parts["found"].pop("directories", ()), *went} - {*made}:
        parts["found"]["directories"] = there
    wrote = {place(path, pairs): sums for path, sums in document["wrote"].items()}
    return _text(_sorted(parts["created"]), _sorted(parts["found"]), wrote, release)


def without_names(manifest: str, gone: Names, release: str) -> str:
    """The manifest after things were removed, by kind. Raises AtelierError for a damaged one."""
    document = _document(manifest)
    left = {kind: {*names} - {*gone.get(kind, ())} for kind, names in document["created"].items()}
    wrote = {path: sums for path, sums in document["wrote"].items() if path not in gone.get("files", ())}
    return _text(_sorted(left), document["found"], wrote, release)


def _sorted(names: Names) -> dict[str, list[str]]:
    return {kind: sorted(each) for kind, each in names.items()}


def _document(manifest: str) -> dict[str, dict[str, Any]]:
    try:
        document = json.loads(manifest) if manifest.strip() else {"created": {}}
        parts = {name: dict(document.get(name, {})) for name in ("found", "wrote")}
        return {"created": dict(document["created"]), **parts}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AtelierError(
            "state/manifest.json on the host is damaged", "move it away; the deploy writes it anew"
        ) from None


def _text(created: Names, found: Names, wrote: Names, release: str) -> str:
    parts = {"created": created, "found": found, "wrote": dict(sorted(wrote.items()))}
    return json.dumps({"schema": SCHEMA, "release": release, **parts}, indent=1) + "\n"
