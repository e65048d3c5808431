"""Drift: what of a host is not as the settings say now. Pure: shell that asks the host, and what is wrong with its answers.

A file that only its owner may read is compared by its sha256: no byte of it is asked for, and none is told.
"""

import base64
import itertools
import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atelier import apt, render
from atelier import deployment as decide
from atelier.deployment import DAEMON_JSON, Deployment
from atelier.doctor.redact import HIDDEN, Redactor
from atelier.errors import AtelierError, Finding
from atelier.settings import Settings
from atelier.tree import Directory, Entry, File

UNITS = "/etc/systemd/system/"
SHOWN = 90
"""Characters of a line that a report shows."""
LARGEST = 1 << 18
"""Bytes of a file of which the first other line is looked for."""
KEEPS = (UNITS, "/etc/apt/apt.conf.d", "/etc/modprobe.d")
"""Where a deploy keeps settings of the system. Not apt's sources: they outlast the deploy that needed them first."""
KINDS = {
    "f": "a file",
    "d": "a directory",
    "l": "a symbolic link",
    "p": "a pipe",
    "s": "a socket",
    "b": "a device",
    "c": "a device",
}

DEPLOY = "run `make deploy`"
LEFT = "remove it on the host when nobody needs it any more"
CHANGED = f"the settings, the credentials or this checkout changed since the last deploy: {DEPLOY}"
EDITED = f"somebody or something edited the host since the last deploy: {DEPLOY}, which puts it back"
UNKNOWN = f"{DEPLOY}, which brings it to what the settings say"
IDENTITY = "`make deploy` tells whether this computer or the host has the newer credentials"
FOREIGN = "no deploy made it and none removes it: remove it on the host, or keep it elsewhere"


def remedies(deployment: Deployment, record: Mapping[str, Any]) -> dict[str, str]:
    """By part of the rendering, what to do about a file that differs: the settings changed, or somebody edited the host.

    record: state/deployed.json. One without a part's fingerprint cannot tell.
    """
    known = record.get("rendering")
    marks = known if isinstance(known, Mapping) else {}
    return {
        part: UNKNOWN if part not in marks else EDITED if marks[part] == mark else CHANGED
        for part, mark in deployment.rendering().items()
    }


def is_secret(entry: Entry) -> bool:
    """Whether only its owner may read it."""
    return isinstance(entry, File) and not entry.mode & 0o077


@dataclass(frozen=True)
class Seen:
    """A path on the host: type as find's %y, mode in octal, owner and group, sha256 of a file."""

    kind: str
    mode: str
    owner: str
    digest: str = ""


@dataclass(frozen=True)
class Tree:
    """What lies on a host. below: type by path under config_root. kept: paths where earlier deploys kept settings as well."""

    seen: Mapping[str, Seen] = field(default_factory=dict)
    below: Mapping[str, str] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    daemon_json: str = ""
    manifest: str = ""
    user: str = ""


def tree_script(deployment: Deployment) -> str:
    """Shell that prints what lies where the deployment has files and directories, and what else lies beside them."""
    settings, entries = deployment.settings, deployment.entries()
    root = settings.config_root
    # A directory of data may be a link to another disk; nothing under config_root may.
    linkable = [entry.path for entry in entries if isinstance(entry, Directory) and not _is_below(entry.path, root)]
    others = [entry.path for entry in entries if entry.path not in linkable]
    files = [entry.path for entry in entries if isinstance(entry, File)]
    manifest = f"{settings.state_dir()}/manifest.json"
    facts = "-maxdepth 0 -printf '%y %m %u:%g  %p\\0'"
    return f"""
exec 2>/dev/null
s() {{ printf '::%s\\0' "$1"; }}
s seen; find {_quoted([*others, DAEMON_JSON])} {facts}; find -H {_quoted(linkable)} {facts}
s digests; find {_quoted(files)} -maxdepth 0 -type f -exec sha256sum -z -- {{}} +
s below; find {shlex.quote(root)}/ -mindepth 1 -printf '%y %p\\0'
s kept; find {_quoted(KEEPS)} ! -type d -printf '%p\\0'
s daemon_json; cat {DAEMON_JSON}; printf '\\0'
s manifest; cat {shlex.quote(manifest)}; printf '\\0'
s user; getent passwd {settings.service_user}; printf '\\0'
:
"""


def _is_below(path: str, root: str) -> bool:
    return path.startswith(f"{root}/")


def _quoted(paths: Iterable[str]) -> str:
    return " ".join(map(shlex.quote, paths))


def parse_tree(output: str) -> Tree:
    """What tree_script printed."""
    parts: dict[str, list[str]] = {}
    for text in output.split("\0"):
        if text.startswith("::"):
            current = parts.setdefault(text[2:], [])
        elif text and parts:
            current.append(text)

    digests = {path: digest for digest, path in (text.split("  ", 1) for text in parts.get("digests", []))}
    seen = {}
    for text in parts.get("seen", []):
        facts, _, path = text.partition("  ")
        kind, mode, owner = facts.split(" ", 2)
        seen[path] = Seen(kind, mode, owner, digests.get(path, ""))
    rows = (text.split(" ", 1) for text in parts.get("below", []))
    below = {path.replace("//", "/", 1): kind for kind, path in rows}
    daemon, manifest, user = ("".join(parts.get(name, [])) for name in ("daemon_json", "manifest", "user"))
    return Tree(seen, below, frozenset(parts.get("kept", [])), daemon, manifest, user.strip())


def unlike(deployment: Deployment, found: Tree) -> list[str]:
    """The paths of text files that have another content and may be shown."""
    return [
        entry.path
        for entry in deployment.entries()
        if isinstance(entry, File)
        and not is_secret(entry)
        and (seen := found.seen.get(entry.path))
        and seen.kind == "f"
        # Somebody else's secret may have been put there.
        and int(seen.mode, 8) & 0o004
        and seen.digest != entry.signature().rpartition(" ")[2]
    ]


def contents_script(paths: Iterable[str]) -> str:
    """Shell that prints these files, in base64."""
    return "".join(
        f"printf '%s\\t' {path}; head -c {LARGEST} {path} | base64 -w0; echo\n" for path in map(shlex.quote, paths)
    )


def parse_contents(output: str) -> dict[str, bytes]:
    """Content by path, from what contents_script printed."""
    rows = (line.split("\t") for line in output.splitlines() if "\t" in line)
    return {path: base64.b64decode(text) for path, text in rows}


def files(
    deployment: Deployment, found: Tree, contents: Mapping[str, bytes], record: Mapping[str, Any]
) -> list[Finding]:
    """Everything about files and directories that is not as a deploy would leave it, what nobody declared included."""
    wrong, parts = remedies(deployment, record), deployment.parts()
    state = deployment.settings.state_dir()
    whose = dict.fromkeys((f"{state}/instance", f"{state}/credentials"), IDENTITY)
    return [
        *(
            finding
            for entry in deployment.entries()
            for finding in _entry(entry, found.seen, contents, whose.get(entry.path, wrong[parts[entry.path]]))
        ),
        *_foreign(deployment, found),
        *_daemon(deployment, found, wrong["host"]),
        *_manifest(deployment, found.manifest),
        *_user(deployment.settings, found.user),
    ]


def _entry(entry: Entry, present: Mapping[str, Seen], contents: Mapping[str, bytes], wrong: str) -> list[Finding]:
    seen, path = present.get(entry.path), entry.path
    if seen is None:
        return [Finding(f"{path} is missing", wrong)]
    kind = "f" if isinstance(entry, File) else "d"
    if seen.kind != kind:
        stands_in_the_way = seen.kind == "d" or kind == "d"
        clear = f"on the host: remove {path} or move it away; then {DEPLOY}" if stands_in_the_way else wrong
        return [Finding(f"{path} is {KINDS.get(seen.kind, 'something else')} and must be {KINDS[kind]}", clear)]
    problems = []
    if int(seen.mode, 8) != entry.mode:
        problems.append(f"{path} has mode {seen.mode} and must have {entry.mode:o}")
    if seen.owner != f"{entry.owner}:{entry.owner}":
        problems.append(f"{path} belongs to {seen.owner} and must belong to {entry.owner}:{entry.owner}")
    if isinstance(entry, File) and seen.digest != entry.signature().rpartition(" ")[2]:
        # Root reads everything, so this is not about modes.
        problems.append(f"{path} {_difference(entry, contents)}")
    return [Finding(problem, wrong) for problem in problems]


def _difference(entry: File, contents: Mapping[str, bytes]) -> str:
    if is_secret(entry) or entry.path not in contents:
        return "differs"
    return first_difference(without_others(contents[entry.path], entry), entry.content)


def without_others(found: bytes, entry: File) -> bytes:
    """What was found in the place of a file; of one with variables without the values of those that we have not.

    Whoever adds one to an `.env` may call it anything, and it is where people put passwords.
    """
    if not entry.path.endswith("/.env"):
        return found
    ours = {*entry.content.splitlines()}
    names = {line.partition(b"=")[0] for line in ours}
    lines = []
    for line in found.splitlines(keepends=True):
        name, _, _ = line.partition(b"=")
        known = not line.strip() or name in names or line.rstrip(b"\n") in ours
        kept = name if re.fullmatch(rb"\w+", name) and b"=" in line else b""
        lines.append(line if known else kept + (b"=" if kept else b"") + HIDDEN.encode() + b"\n")
    return b"".join(lines)


def first_difference(found: bytes, wanted: bytes) -> str:
    """The first line in which a text is not as wanted, in words; nothing in it that looks like a secret is told."""
    hide = Redactor(())
    try:
        texts = [text.decode().split("\n") for text in (found, wanted)]
    except UnicodeDecodeError:
        return "differs, and is no text"
    rows = enumerate(itertools.zip_longest(*texts), 1)
    number, (line, must) = next((number, pair) for number, pair in rows if pair[0] != pair[1])
    if must is None:
        return f"goes on at line {number}, where it must end: {_shown(hide(line))}"
    if line is None:
        return f"ends before line {number}, which must be {_shown(hide(must))}"
    line, must = hide(line), hide(must)
    if line == must:
        return f"differs in line {number}"
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(line, must, strict=False)))
    return f"line {number} is {_shown(line, same)} and must be {_shown(must, same)}"


def _shown(line: str, same: int = 0) -> str:
    """A line, or of a long one what lies about the place from which it is another."""
    start = same - SHOWN // 3 if same > SHOWN // 2 and len(line) > SHOWN else 0
    part = line[start : start + SHOWN]
    text = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in part)
    before, after = "..." if start else "", "..." if start + SHOWN < len(line) else ""
    return f"`{before}{text}{after}`" if line else "empty"


def _foreign(deployment: Deployment, found: Tree) -> list[Finding]:
    """What lies among our files and nothing declares, and what earlier deploys left of settings of the system."""
    root = deployment.settings.config_root
    declared, created = {entry.path for entry in deployment.entries()}, _created(found.manifest)
    under_way = f"{root}/build"
    strangers = {path for path in {*found.below} - declared if path != under_way and not _is_below(path, under_way)}
    # What lies in a folder that is not ours is told by that folder.
    strangers = {path for path in strangers if path.rpartition("/")[0] not in strangers}
    strangers |= (found.kept & created) - {*decide.declared(deployment)["files"]}
    emptied = [entry.path for entry in deployment.secrets() if isinstance(entry, Directory)]
    swept = {path for path in strangers if any(_is_below(path, folder) for folder in emptied)}
    swept |= created & {
        path for path in strangers if any(_is_below(path, each.directory) for each in deployment.projects())
    }
    return [_stranger(path, path in created, path in swept) for path in sorted(strangers)]


def _stranger(path: str, created: bool, swept: bool) -> Finding:
    """created: by an earlier deploy. swept: the next deploy removes it."""
    problem = f"{path} is of an earlier deploy, and nothing asks for it now" if created else f"{path} is not ours"
    return Finding(problem, f"{DEPLOY}, which removes it" if swept else LEFT if created else FOREIGN)


def _created(manifest: str) -> set[str]:
    try:
        created = json.loads(manifest)["created"]
        return {*created["files"], *created["directories"]}
    except (ValueError, KeyError, TypeError):  # told by _manifest
        return set()


def _daemon(deployment: Deployment, found: Tree, wrong: str) -> list[Finding]:
    """What Docker's settings lack of ours; what else is in there is the host's own, and may be secret."""
    seen = found.seen.get(DAEMON_JSON)
    if seen is None or seen.kind not in ("f", "l"):
        return [Finding(f"{DAEMON_JSON} is missing", wrong)]
    try:
        wanted = json.loads(decide.merged_daemon_json(found.daemon_json, deployment.settings))
    except AtelierError as error:
        return [Finding(error.message.replace(" on the host", ""), error.hint)]
    problems = _unlike_keys("", json.loads(found.daemon_json or "{}"), wanted)
    if seen.kind == "f" and (int(seen.mode, 8) & 0o022 or not seen.owner.startswith("root:")):
        problems.append(f"can be changed by others than root (mode {seen.mode}, {seen.owner})")
    return [Finding(f"{DAEMON_JSON}: {problem}", wrong) for problem in problems]


def _unlike_keys(prefix: str, document: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    found = []
    for key, value in wanted.items():
        there = document.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            found += _unlike_keys(f"{prefix}{key}.", there, value)
        elif there != value:
            is_what = f"is {json.dumps(there)}" if key in document else "is not set"
            found.append(f"{prefix}{key} {is_what} and must be {json.dumps(value)}")
    return found


def _manifest(deployment: Deployment, manifest: str) -> list[Finding]:
    """What the list of everything that is ours does not name: nobody would remove it."""
    path = f"{deployment.settings.state_dir()}/manifest.json"
    try:
        created: dict[str, list[str]] = json.loads(manifest)["created"]
        missing = {
            kind: sorted({*names} - {*created.get(kind, [])}) for kind, names in decide.declared(deployment).items()
        }
    except (ValueError, KeyError, TypeError):
        return [Finding(f"{path} is damaged or missing", f"move it away; then {DEPLOY}, which writes it anew")]
    return [
        Finding(f"{path} does not name {len(names)} of our {kind}: {', '.join(names[:3])}", DEPLOY)
        for kind, names in missing.items()
        if names
    ]


def _user(settings: Settings, line: str) -> list[Finding]:
    """What is wrong with the service user, from its line in passwd."""
    name, uid = settings.service_user, str(settings.service_uid)
    if line.count(":") != 6:
        return [Finding(f"there is no user {name}", DEPLOY)]
    _, _, *ids, _, _, shell = line.split(":")
    wrong = []
    if ids != [uid, uid]:
        change = f"on the host: usermod --uid {uid} {name} && groupmod --gid {uid} {name}"
        wrong.append(Finding(f"user {name} has uid and gid {' and '.join(ids)} and must have {uid}", change))
    if not shell.endswith(("/nologin", "/false")):
        change = f"on the host: usermod --shell /usr/sbin/nologin {name}"
        wrong.append(Finding(f"user {name} may log in: its shell is {shell or '/bin/sh'}", change))
    return wrong


UNIT_FACTS = "Id,LoadState,ActiveState,Result,UnitFileState,FragmentPath,DropInPaths,NeedDaemonReload"
RULES = (("raw", render.LOOPBACK_RULE), ("mangle", render.DIRECT_RULE))


def units_script(deployment: Deployment) -> str:
    """Shell that prints what systemd knows of our units, and which of the loopback guard's rules are in force."""
    names = _quoted(["docker.service", *_units(deployment), *_dropped_into(deployment)])
    rules = "".join(
        f"iptables -w -t {table} -C {rule} && echo Rule={shlex.quote(f'{table} {rule}')}\n" for table, rule in RULES
    )
    return f"""
exec 2>/dev/null
systemctl show -p {UNIT_FACTS} {names}
echo; echo Id=host
echo "Written=$(stat -L -c %Y {DAEMON_JSON})"
# systemd 249 has no --timestamp=unix.
echo "Entered=$(date -d "$(LC_ALL=C TZ=UTC systemctl show -p ActiveEnterTimestamp --value docker.service)" +%s)"
{rules}:
"""


def _units(deployment: Deployment) -> dict[str, str]:
    """Our units: text by name. A template is none before somebody names an instance."""
    found = re.compile(rf"{re.escape(UNITS)}([^/]+(?<!@)\.(?:service|timer|path|socket))")
    return {
        match[1]: entry.content.decode()
        for entry in deployment.entries()
        if isinstance(entry, File) and (match := found.fullmatch(entry.path))
    }


def dropped_in(deployment: Deployment, found: Tree) -> set[str]:
    """What somebody else added to units of ours, and to those that we add to."""
    places = tuple(f"{UNITS}{name}.d/" for name in ("docker.service", *_units(deployment), *_dropped_into(deployment)))
    return {path for path in found.kept if path.startswith(places)} - {entry.path for entry in deployment.entries()}


def _dropped_into(deployment: Deployment) -> dict[str, list[str]]:
    """Units of others that we add to: our drop-ins by name."""
    found: dict[str, list[str]] = {}
    for entry in deployment.entries():
        if match := re.fullmatch(rf"{re.escape(UNITS)}([^/]+)\.d/[^/]+\.conf", entry.path):
            found.setdefault(match[1], []).append(entry.path)
    return found


def parse_units(output: str) -> dict[str, dict[str, list[str]]]:
    """Values by name and unit, from what units_script printed; the host's own facts are those of `host`."""
    units: dict[str, dict[str, list[str]]] = {}
    for block in output.split("\n\n"):
        facts: dict[str, list[str]] = {}
        for line in block.strip().splitlines():
            name, _, value = line.partition("=")
            facts.setdefault(name, []).append(value)
        if "Id" in facts:
            units[facts["Id"][0]] = facts
    return units


def units(deployment: Deployment, found: Mapping[str, Mapping[str, Sequence[str]]]) -> list[Finding]:
    """Units that do not start at boot, do not run, are not what lies on the disk, or were added to."""
    known = {name: {key: " ".join(values) for key, values in facts.items()} for name, facts in found.items()}
    wrong = []
    for name, text in _units(deployment).items():
        wrong += _unit(name, text, known.get(name, {}))
    for name, paths in _dropped_into(deployment).items():
        read = known.get(name, {}).get("DropInPaths", "").split()
        again = f"on the host: systemctl daemon-reload; then {DEPLOY}"
        wrong += [Finding(f"systemd does not know {path}", again) for path in paths if path not in read]
    for name in {"docker.service", *_dropped_into(deployment)} & known.keys():
        wrong += _unread(name, known[name])
    return [*wrong, *_docker(known), *_rules(found)]


def _unit(name: str, text: str, facts: Mapping[str, str]) -> list[Finding]:
    if facts.get("LoadState") != "loaded":
        return [Finding(f"{name} is {facts.get('LoadState') or 'unknown to systemd'}", DEPLOY)]
    wrong = []
    if (path := facts["FragmentPath"]) != f"{UNITS}{name}":
        wrong.append(Finding(f"{name} comes from {path}", f"on the host: remove {path}; then {DEPLOY}"))
    for path in facts["DropInPaths"].split():
        # Those of a whole type of units are the system's own.
        if not re.search(r"/(service|timer|path|socket)\.d/[^/]+$", path):
            undo = f"on the host: rm {path} && systemctl daemon-reload; then {DEPLOY}"
            wrong.append(Finding(f"{name} is changed by {path}", undo))
    state = facts["UnitFileState"]
    if "\n[Install]\n" in text and state != "enabled":
        wrong.append(Finding(f"{name} is {state or 'not enabled'}: it does not start at boot", DEPLOY))
    active = facts["ActiveState"]
    if active == "failed":
        journal = f"`journalctl -u {name}` on the host says why; then {DEPLOY}"
        wrong.append(Finding(f"{name} failed ({facts['Result']})", journal))
    elif _stays_up(name, text) and active != "active":
        wrong.append(Finding(f"{name} does not run: it is {active}", DEPLOY))
    return wrong + _unread(name, facts)


def _stays_up(name: str, text: str) -> bool:
    return not name.endswith(".service") or bool(re.search(r"^(RemainAfterExit=yes|Restart=always)$", text, re.M))


def _unread(name: str, facts: Mapping[str, str]) -> list[Finding]:
    if facts.get("NeedDaemonReload") != "yes":
        return []
    return [Finding(f"systemd has not read {name} since it changed", "on the host: systemctl daemon-reload")]


def _docker(known: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    facts = known.get("docker.service", {})
    if facts.get("ActiveState") != "active":
        return [Finding(f"docker.service is {facts.get('ActiveState', 'not there')}", DEPLOY)]
    wrong = []
    if facts["UnitFileState"] != "enabled":
        wrong.append(Finding(f"docker.service is {facts['UnitFileState']}: it does not start at boot", DEPLOY))
    written, entered = (known.get("host", {}).get(name, "") for name in ("Written", "Entered"))
    if written.isdigit() and entered.isdigit() and int(written) >= int(entered):
        wrong.append(Finding(f"Docker has not read {DAEMON_JSON} since it was written", f"{DEPLOY}, which restarts it"))
    return wrong


def _rules(found: Mapping[str, Mapping[str, Sequence[str]]]) -> list[Finding]:
    there = found.get("host", {}).get("Rule", ())
    missing = [f"{table} {rule}" for table, rule in RULES if f"{table} {rule}" not in there]
    guard = f"on the host: systemctl restart atelier-loopback-guard; or {DEPLOY}"
    return [Finding(f"the loopback guard's rule is not in force: {rule}", guard) for rule in missing]


def packages_script(names: Iterable[str]) -> str:
    """Shell that prints the packages that are installed, and which of all packages apt holds."""
    return f"""
dpkg-query -W -f 'package ${{db:Status-Status}} ${{Package}} ${{Version}}\\n' {_quoted(names)} 2>/dev/null
dpkg --get-selections '*' 2>/dev/null | sed -n 's/^\\([^:[:space:]]*\\).*[[:space:]]hold$/held \\1/p'
:
"""


def parse_packages(output: str) -> tuple[dict[str, str], frozenset[str]]:
    """Version by name of what is installed, and the names that apt holds."""
    rows = [line.split(" ") for line in output.splitlines()]
    installed = {row[2]: row[3] for row in rows if row[0] == "package" and row[1] == "installed"}
    return installed, frozenset(row[1] for row in rows if row[0] == "held")


def older_script(installed: Mapping[str, str], recorded: Mapping[str, str]) -> str:
    """Shell that prints the names of the packages that are older than recorded; empty where none differs.

    The host compares: what comes after what is Debian's own policy, and dpkg knows it.
    """
    return "".join(
        f"dpkg --compare-versions {shlex.quote(installed[name])} lt {shlex.quote(version)} && echo {shlex.quote(name)}\n"
        for name, version in recorded.items()
        if name in installed and installed[name] != version
    )


def packages(
    wanted: Iterable[str],
    holds: Collection[str],
    installed: Mapping[str, str],
    held: Collection[str],
    recorded: Mapping[str, str],
    older: Collection[str],
) -> list[Finding]:
    """Packages that are missing, at another version than the one that they are pinned or held at, or older than deployed.

    Newer ones, where nothing holds them, are security updates. wanted: each `name` or `name=version`. holds: names that
    apt must hold. older: those whose version is before the recorded one.
    """
    wrong, told = [], set()
    for package in apt.missing(wanted, installed):
        name, _, version = package.partition("=")
        there = installed.get(name)
        state = f"is {there} and must be {version}" if there else "is not installed"
        wrong.append(Finding(f"package {name} {state}", DEPLOY))
        told.add(name)
    for name, version in recorded.items():
        there = installed.get(name, version)
        if name in told or there == version:
            continue
        if name in older:
            upgrade = f"on the host: apt-get install --only-upgrade {name}; or, where it is meant, `make deploy` records {there}"
            wrong.append(Finding(f"package {name} is {there}, older than the {version} that was deployed", upgrade))
        elif name in holds:
            back = f"on the host: apt-get install --allow-change-held-packages {name}={version}; or `make deploy` records {there}"
            wrong.append(Finding(f"package {name} is held at {version} and is {there} now", back))
    free = [name for name in holds if name in installed and name not in held]
    wrong += [Finding(f"apt does not hold {name}: an upgrade may replace it", DEPLOY) for name in sorted(free)]
    return wrong


def wanted_packages(deployment: Deployment) -> tuple[str, ...]:
    """Every package that a deploy wants, each `name` or `name=version`."""
    pinned = {apt.name_of(package): package for package in deployment.gpu.toolkit}
    return tuple(pinned.get(name, name) for name in decide.all_packages(deployment))


IMAGES = "docker image inspect --format '{{.Id}}{{range .RepoTags}} {{.}}{{end}}'"


def images_script(deployment: Deployment) -> str:
    """Shell that prints the id and all tags of the images that the settings want, those that are there."""
    return f"{IMAGES} {_quoted(deployment.image_tags().values())} 2>/dev/null; :"


def parse_images(output: str) -> dict[str, str]:
    """Id by tag."""
    rows = (line.split(" ") for line in output.splitlines())
    return {tag: row[0] for row in rows for tag in row[1:]}


def images(
    deployment: Deployment, record: Mapping[str, Any], there: Mapping[str, str], labels: Mapping[str, str]
) -> list[Finding]:
    """Images and configurations: what the settings want, what was deployed, what is on the host.

    record: state/deployed.json. there: id by tag. labels: `atelier.config` by service, of the containers that are there.
    """
    wrong = []
    for name, tag in deployment.image_tags().items():
        deployed = record["images"].get(name, {"tag": "none", "id": ""})
        if deployed["tag"] != tag:
            wrong.append(Finding(f"image {name} would be {tag} now, deployed is {deployed['tag']}", CHANGED))
        elif tag not in there and name in _run_images(deployment):
            wrong.append(Finding(f"image {tag} is gone from the host", DEPLOY))
        elif tag in there and deployed["id"] and there[tag] != deployed["id"]:
            undo = f"on the host: docker tag {deployed['id'][7:19]} {tag}; then {DEPLOY}"
            seen = f"{there[tag][7:19]}, deployed was {deployed['id'][7:19]}"
            wrong.append(Finding(f"the tag {tag} names another image than was deployed: {seen}", undo))
    for project in deployment.projects():
        deployed_config = record["services"].get(project.service, {}).get("config")
        if deployed_config != project.config:
            problem = f"{project.container} would be configured otherwise now ({project.config}, deployed is {deployed_config})"
            wrong.append(Finding(problem, CHANGED))
        elif labels.get(project.service, project.config) != project.config:
            problem = f"{project.container} runs with configuration {labels[project.service] or 'none'}, deployed was {project.config}"
            wrong.append(Finding(problem, EDITED))
    return wrong


def _run_images(deployment: Deployment) -> set[str]:
    """Those that containers run; what they start from is there only where one was built."""
    return {project.service for project in deployment.projects()}
