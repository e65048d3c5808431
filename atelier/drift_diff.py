"""What of a host somebody edited, as it is shown before a deploy puts it back. Pure, but for `look`.

Of a file that not everybody may read, nothing but that it differs; of all others no line that looks like a secret.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from atelier import deployment as decide
from atelier import drift
from atelier.deployment import DAEMON_JSON, Deployment
from atelier.drift import LARGEST, Tree
from atelier.errors import AtelierError
from atelier.recorded import Roots
from atelier.report.redaction import printable
from atelier.ssh import Ssh
from atelier.tree import File
from atelier.uninstall_packages import Kept, named

LONGEST = 200
"""Lines of one file's diff that are shown."""
WIDEST = 240
"""Characters of a line that are shown."""
PUT_BACK = (drift.UNKNOWN, f"{drift.DEPLOY}, which removes it", drift.DEPLOY)
"""What drift says of what the next deploy mends; anything else is for a person."""

Hide = Callable[[str], str]
"""What takes secrets out of a text."""


@dataclass(frozen=True)
class Diff:
    """One thing on the host that is not as a deploy left it.

    problem: in words, with its path. lines: a unified diff from what lies there to what is put there, where both are texts
    that may be shown. remedy: what a person has to do first; empty where a deploy puts it back.
    """

    problem: str
    lines: tuple[str, ...] = ()
    remedy: str = ""


def as_recorded(deployment: Deployment, roots: Roots | None) -> Deployment:
    """The same deployment in the directories that the host has now, so that what will move is not taken for missing."""
    if roots is None:
        return deployment
    there = {name: getattr(roots, name) for name in ("config_root", "data_root", "models_dir", "outputs_dir")}
    return replace(deployment, settings=deployment.settings.model_copy(update=there))


def look(ssh: Ssh, deployment: Deployment, hide: Hide) -> tuple[tuple[Diff, ...], tuple[Kept, ...]]:
    """What differs on a host that was deployed, and what lies among it and is left alone."""
    found = drift.parse_tree(ssh.run(drift.tree_script(deployment), timeout=120, check=True).stdout)
    unlike = drift.unlike(deployment, found)
    told = ssh.run(drift.contents_script(unlike), timeout=120, check=True).stdout if unlike else ""
    return diffs(deployment, found, drift.parse_contents(told), hide), left_alone(deployment, found)


def diffs(deployment: Deployment, found: Tree, contents: Mapping[str, bytes], hide: Hide) -> tuple[Diff, ...]:
    """Everything of ours that is not as a deploy would leave it. hide: takes out what this computer knows to be secret."""
    wanted = {entry.path: entry for entry in deployment.entries() if isinstance(entry, File)}
    told: list[Diff] = []
    for finding in drift.files(deployment, found, {}, {}):
        if finding.remedy in (drift.FOREIGN, drift.LEFT):
            continue
        path = finding.problem.removesuffix(" differs")
        shown = path in contents and finding.problem.endswith(" differs")
        lines = _of_file(contents[path], wanted[path], hide) if shown else ()
        if finding.problem.startswith(f"{DAEMON_JSON}: ") and not any(DAEMON_JSON in each.problem for each in told):
            lines = _of_docker(deployment, found, hide)
        told.append(Diff(hide(printable(finding.problem)), lines, "" if finding.remedy in PUT_BACK else finding.remedy))
    return tuple(told)


def _of_file(found: bytes, wanted: File, hide: Hide) -> tuple[str, ...]:
    return unified(drift.without_others(found, wanted), wanted.content, hide)


def _of_docker(deployment: Deployment, found: Tree, hide: Hide) -> tuple[str, ...]:
    """Docker's settings are the host's own with keys of ours in them: what is put there is made of what lies there."""
    seen = found.seen.get(DAEMON_JSON)
    if seen is None or not int(seen.mode, 8) & 0o004:
        return ()
    try:
        wanted = decide.changed_daemon_json(found.daemon_json, deployment.settings)
    except AtelierError:  # told by the finding
        return ()
    return unified(found.daemon_json.encode(), wanted.encode(), hide) if wanted else ()


def left_alone(deployment: Deployment, found: Tree) -> tuple[Kept, ...]:
    """What lies among our files and is somebody else's, or of an earlier deploy; a deploy does not touch it."""
    whys = {drift.FOREIGN: "not ours", drift.LEFT: "of an earlier deploy, and nothing asks for it now"}
    kept = [
        Kept(each.problem.removesuffix(f" is {whys[each.remedy]}"), whys[each.remedy])
        for each in drift.files(deployment, found, {}, {})
        if each.remedy in whys
    ]
    told = {each.what for each in kept}
    kept += [Kept(path, "not ours") for path in sorted(drift.dropped_in(deployment, found)) if path not in told]
    keys = _own_keys(deployment, found.daemon_json)
    return (*kept, *([Kept(f"{named(keys)} in {DAEMON_JSON}", "not ours")] if keys else []))


def _own_keys(deployment: Deployment, daemon_json: str) -> list[str]:
    """The keys of Docker's settings that are the host's own."""
    try:
        there = json.loads(daemon_json or "{}")
    except ValueError:  # told by the finding
        return []
    ours = json.loads(decide.merged_daemon_json("", deployment.settings))
    return sorted({*there} - ours.keys()) if isinstance(there, dict) else []


def unified(found: bytes, wanted: bytes, hide: Hide) -> tuple[str, ...]:
    """A unified diff without secrets: `-` is on the host, `+` is put there. One line in words where none can be shown."""
    try:
        # What is cut off in the middle of a letter is cut before it.
        there = found.decode(errors="ignore" if len(found) == LARGEST else "strict")
        before, after = (printable(hide(text)).split("\n") for text in (there, wanted.decode()))
    except UnicodeDecodeError:
        return ("it is no text",)
    lines = list(difflib.unified_diff(before, after, n=2, lineterm=""))[2:]
    if not lines:
        return ("only what is not shown here differs",)
    shown = [line if len(line) <= WIDEST else f"{line[:WIDEST]}..." for line in lines[:LONGEST]]
    return (*shown, *([f"... {len(lines) - LONGEST} more lines"] if len(lines) > LONGEST else []))


def lines(told: Iterable[Diff]) -> list[str]:
    """The diffs as they are printed."""
    text = []
    for diff in told:
        text.append(f"{diff.problem}{f' -> {diff.remedy}' if diff.remedy else ''}")
        text += [f"    {line}" for line in diff.lines]
    return text
