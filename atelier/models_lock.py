"""`atelier models lock`: asks the hub for revision, size and sha256 of what locks/models.yml declares.

The lock file is edited in place of the values alone, so comments, order and layout stay as a person wrote them.
"""

import difflib
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from atelier.errors import AtelierError
from atelier.models import HUB, parse_lock

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - the name of a variable
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Declared:
    """What an entry of the lock file says, and where in the text. `values`: its keys as written; `spans`: where they lie."""

    values: Mapping[str, str]
    spans: Mapping[str, tuple[int, int]]
    indent: int
    flow: bool

    @property
    def name(self) -> str:
        """How a person knows it."""
        return f"{self.values['repository']}: {self.values['path']}"

    @property
    def revision(self) -> str:
        """The revision to ask for."""
        return self.values.get("revision") or "main"


@dataclass(frozen=True)
class Resolved:
    """What the hub says about one file."""

    revision: str
    bytes: str
    sha256: str

    def values(self) -> dict[str, str]:
        """By key of the lock file."""
        return {"revision": self.revision, "bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True)
class Refresh:
    """A lock file as it is, and as the hub's answers make it."""

    path: Path
    before: str
    after: str

    def diff(self) -> str:
        """What would change; empty where nothing would."""
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True),
            self.after.splitlines(keepends=True),
            f"{self.path.name} (as it is)",
            f"{self.path.name} (from the hub)",
            n=5,
        )
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)

    def write(self) -> None:
        """Replace the file in one step."""
        path = self.path.resolve()
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(self.after, encoding="utf-8")
        draft.chmod(stat.S_IMODE(path.stat().st_mode))
        draft.replace(path)


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The hub's token from a file, else from `HF_TOKEN`, else None. Raises AtelierError without showing the token."""
    if file is None:
        token, source = environment.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not token:
            return None
    else:
        try:
            mode, token = file.stat().st_mode, file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            raise AtelierError(f"token file {file}: {error.strerror}") from None
        if mode & 0o077:
            raise AtelierError(f"token file {file} can be read by other users", f"chmod 600 {file}")
        source = str(file)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", token):
        raise AtelierError(f"{source} does not hold a token", "a token is one line such as hf_... without spaces")
    return token


def declared(text: str, name: str) -> list[Declared]:
    """The entries of a lock file's text, complete or not. Raises AtelierError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise AtelierError(f"{name}: not readable as YAML: {error}") from None
    files = [
        value
        for key, value in (root.value if isinstance(root, yaml.MappingNode) else [])
        if key.value == "files" and isinstance(value, yaml.SequenceNode)
    ]
    if not files:
        raise AtelierError(f"{name}: files: a list of entries is missing")
    return [_declared(node, f"{name}: files.{number}") for number, node in enumerate(files[0].value)]


def _declared(node: yaml.Node, place: str) -> Declared:
    if not isinstance(node, yaml.MappingNode):
        raise AtelierError(f"{place}: not an entry with keys")
    scalars = [(key, value) for key, value in node.value if isinstance(value, yaml.ScalarNode)]
    entry = Declared(
        values={key.value: value.value for key, value in scalars},
        spans={key.value: (value.start_mark.index, value.end_mark.index) for key, value in scalars},
        indent=node.start_mark.column,
        flow=bool(node.flow_style),
    )
    for key in ("repository", "path"):
        if not entry.values.get(key):
            raise AtelierError(
                f"{place}.{key}: missing", "an entry declares at least repository, path, directory, sets"
            )
    return entry


def rewritten(text: str, resolutions: list[tuple[Declared, Resolved]]) -> str:
    """The text with the values of its entries replaced, or added after `path`; every other character stays."""
    edits: list[tuple[int, int, str]] = []
    for entry, resolved in resolutions:
        for key, value in resolved.values().items():
            if key in entry.spans:
                start, end = entry.spans[key]
                if entry.values[key] != value:
                    edits.append((start, end, value if end > start else f" {value}"))
            else:
                edits.append(_added(text, entry, key, value))
    # From the end on, so that positions stay true; of several additions at one place the last comes first.
    edits.reverse()
    for start, end, value in sorted(edits, key=lambda edit: edit[0], reverse=True):
        text = text[:start] + value + text[end:]
    return text


def _added(text: str, entry: Declared, key: str, value: str) -> tuple[int, int, str]:
    end = entry.spans["path"][1]
    if entry.flow:
        return end, end, f", {key}: {value}"
    line_end = text.find("\n", end)
    place = line_end if line_end >= 0 else len(text)
    return place, place, f"\n{' ' * entry.indent}{key}: {value}"


def judged(entry: Declared, status: int, headers: Mapping[str, str], hub: str = HUB) -> Resolved | str:
    """What the hub's first answer (header names in lower case) says about an entry, or what is wrong with it."""
    error, repository, revision = headers.get("x-error-code", ""), entry.values["repository"], entry.revision
    if error == "GatedRepo" or (status == 403 and not error):
        return f"gated: accept the licence at {hub}/{repository} and give a token ({TOKEN_VARIABLE} or --token-file)"
    if status in (401, 403) or error == "RepoNotFound":
        return f"no repository {repository} that may be read: check the name, or give a token ({TOKEN_VARIABLE} or --token-file)"
    if error == "RevisionNotFound":
        return f"no revision {revision} in {repository}"
    if status == 404:
        return f"no such file at revision {revision} of {repository}"
    if status not in (200, 301, 302, 303, 307, 308):
        return f"the hub answered {status}{': ' + headers['x-error-message'] if headers.get('x-error-message') else ''}"
    return _from_headers(entry, headers)


def _from_headers(entry: Declared, headers: Mapping[str, str]) -> Resolved | str:
    commit, size = headers.get("x-repo-commit", ""), headers.get("x-linked-size", "")
    linked = headers.get("x-linked-etag", "")
    etag = linked.removeprefix("W/").strip('"')
    moved = re.search(r"^(?:https?://[^/]+)?/([^/]+/[^/]+)/resolve/", headers.get("location", ""))
    if not commit and moved and moved[1] != entry.values["repository"]:
        return f"the repository is now {moved[1]}: write that name"
    if not COMMIT.fullmatch(commit):
        return "the answer names no commit (x-repo-commit): is this the hub, or a proxy in between?"
    if COMMIT.fullmatch(entry.revision) and commit != entry.revision:
        return f"asked for revision {entry.revision}, the answer is for {commit}"
    if not linked:
        return "the answer holds no sha256 (x-linked-etag): only files that the hub keeps in LFS or Xet can be locked this way"
    if not SHA256.fullmatch(etag):
        return f"x-linked-etag is {etag[:80]}, which is no sha256: only files that the hub keeps in LFS or Xet can be locked this way"
    if not re.fullmatch(r"[1-9][0-9]*", size):
        return f"the answer holds no size (x-linked-size: {size[:80]!r})"
    known = entry.values.get("sha256")
    if known and known != etag:
        return (
            f"SHA256 DIFFERS at revision {entry.revision}: the lock has {known}, the hub {etag}. "
            "Where the file was replaced on purpose, remove `bytes` and `sha256` from the entry and run this again"
        )
    return Resolved(commit, size, etag)


def refresh(path: Path, token: str | None = None, hub: str = HUB) -> Refresh:
    """Ask the hub about every entry. Raises AtelierError that names each entry that could not be resolved."""
    try:
        before = path.read_text(encoding="utf-8")
    except OSError as error:
        raise AtelierError(f"{path}: {error.strerror}", "name an existing lock file") from None
    entries = declared(before, path.name)
    with httpx.Client(
        headers={"authorization": f"Bearer {token}"} if token else {}, timeout=30, follow_redirects=False
    ) as client:
        answers = [(entry, _asked(client, entry, hub)) for entry in entries]
    problems = [f"{entry.name}: {answer}" for entry, answer in answers if isinstance(answer, str)]
    if problems:
        raise AtelierError(f"{path.name} stays as it is:\n" + "\n".join(f"  {problem}" for problem in problems))
    after = rewritten(before, [(entry, answer) for entry, answer in answers if isinstance(answer, Resolved)])
    parse_lock(after, path.name)
    return Refresh(path, before, after)


def _asked(client: httpx.Client, entry: Declared, hub: str) -> Resolved | str:
    url = f"{hub}/{entry.values['repository']}/resolve/{entry.revision}/{entry.values['path']}"
    try:
        answer = client.head(url)
    except httpx.HTTPError as error:
        return f"no answer from {hub}: {error or type(error).__name__}"
    return judged(entry, answer.status_code, answer.headers, hub)


def lock_models(
    path: Path, write: bool = False, token_file: Path | None = None, hub: str = HUB, say: Callable[[str], None] = print
) -> None:
    """Show what the hub's answers change in a lock file; change it only with `write`. Raises AtelierError."""
    found = refresh(path, read_token(token_file), hub)
    diff = found.diff()
    if not diff:
        say(f"{path.name}: every revision, size and sha256 is as the hub has it")
        return
    say(diff.rstrip("\n"))
    if write:
        found.write()
        say(f"{path.name}: written")
    else:
        say("nothing was written: --write does it")
