"""`atelier models lock` against a server that answers as the hub does on the first hop."""

import logging
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from loopback import at_work

from atelier import paths
from atelier.errors import AtelierError
from atelier.models import read_lock
from atelier.models_lock import declared, lock_models, read_token, refresh

COMMIT, OLDER, SHA, OTHER_SHA = "c" * 40, "0" * 40, "a" * 64, "b" * 64
TOKEN = "hf_SecretSecretSecret"
PLACE = "/some/model/resolve/main/split/model.safetensors"
LFS = {"x-repo-commit": COMMIT, "x-linked-etag": f'"{SHA}"', "x-linked-size": "1234", "location": "/elsewhere"}
GIT_ETAG = '"' + "d" * 40 + '"'


class Hub:
    """Answers by path: status and headers. `seen`: method, path, Authorization of each request."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str]]] = {}
        self.gated: set[str] = set()
        self.seen: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.seen.append((self.command, self.path, self.headers["authorization"]))
                status, headers = hub.answers.get(self.path, (404, {"x-error-code": "EntryNotFound"}))
                if self.path in hub.gated and self.headers["authorization"] != f"Bearer {TOKEN}":
                    status, headers = 401, {"x-error-code": "GatedRepo"}
                self.send_response(status)
                for name, value in {**headers, "content-length": "0"}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub = Hub()
    hub.answers[PLACE] = hub.answers[PLACE.replace("main", COMMIT)] = (302, LFS)
    with at_work(hub.server):
        yield hub


ENTRY = """# ours
files:
  # why this one
  - repository: some/model   # the good one
    path: split/model.safetensors  # in a folder
    directory: vae
    sets: [mine]
    used_by: []
    licence: MIT
"""
FULL = ENTRY.replace(
    "  # in a folder\n", f"  # in a folder\n    revision: {COMMIT}\n    bytes: 1234\n    sha256: {SHA}\n"
)


def with_values(**values: str) -> str:
    """The declared entry with values written below its path."""
    lines = "".join(f"    {key}: {value}\n" for key, value in values.items())
    return ENTRY.replace("  # in a folder\n", "  # in a folder\n" + lines)


def lock(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "models.yml"
    path.write_text(text)
    return path


def test_a_declared_file_gets_revision_size_and_sha256_and_nothing_else_changes(hub: Hub, tmp_path: Path) -> None:
    path, said = lock(tmp_path, ENTRY), []
    lock_models(path, write=False, hub=hub.url, say=said.append)
    assert path.read_text() == ENTRY, "nothing is written unless told"
    assert [line for line in said[0].splitlines() if line[0] in "+-"][2:] == [
        f"+    revision: {COMMIT}",
        "+    bytes: 1234",
        f"+    sha256: {SHA}",
    ]
    path.chmod(0o640)
    lock_models(path, write=True, hub=hub.url, say=said.append)
    assert path.read_text() == FULL and path.stat().st_mode & 0o777 == 0o640
    assert read_lock(path).files[0].sha256 == SHA
    assert [entry.name for entry in tmp_path.iterdir()] == ["models.yml"]


def test_the_redirect_is_not_followed_and_the_file_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    refresh(lock(tmp_path, ENTRY), hub=hub.url)
    assert hub.seen == [("HEAD", PLACE, None)]


ONE_LINE = "files: [{repository: some/model, path: split/model.safetensors, directory: vae, sets: [a], used_by: [], licence: MIT}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FULL.replace(f"revision: {COMMIT}", "revision: main"), FULL),
        (
            FULL.replace("bytes: 1234", "bytes: 99   # was wrong"),
            FULL.replace("bytes: 1234", "bytes: 1234   # was wrong"),
        ),
        (FULL.replace(f"sha256: {SHA}", "sha256:"), FULL),
        (FULL.replace(f"sha256: {SHA}", 'sha256: ""'), FULL),
        (FULL.replace(f"sha256: {SHA}", f'sha256: "{SHA}"'), FULL.replace(f"sha256: {SHA}", f'sha256: "{SHA}"')),
        (ONE_LINE, ONE_LINE.replace(".safetensors", f".safetensors, revision: {COMMIT}, bytes: 1234, sha256: {SHA}")),
    ],
    ids=["branch", "wrong size", "empty value", "empty string", "quoted and right", "one line, no newline"],
)
def test_only_values_are_replaced(hub: Hub, tmp_path: Path, text: str, expected: str) -> None:
    assert refresh(lock(tmp_path, text), hub=hub.url).after == expected


def test_what_is_right_already_is_said_so(hub: Hub, tmp_path: Path) -> None:
    said: list[str] = []
    lock_models(lock(tmp_path, FULL), hub=hub.url, say=said.append)
    assert said == ["models.yml: every revision, size and sha256 is as the hub has it"]


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_another_sha256_is_refused_loudly(hub: Hub, tmp_path: Path, revision: str) -> None:
    text = with_values(revision=revision, bytes="1234", sha256=OTHER_SHA)
    path = lock(tmp_path, text)
    with pytest.raises(AtelierError) as caught:
        lock_models(path, write=True, hub=hub.url)
    assert "SHA256 DIFFERS" in str(caught.value) and OTHER_SHA in str(caught.value) and SHA in str(caught.value)
    assert path.read_text() == text


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in LFS.items() if key != name}


MOVED = {"location": "/now/there/resolve/main/split/model.safetensors"}
REFUSALS = {
    "gone": (404, {"x-error-code": "EntryNotFound"}, "no such file at revision main"),
    "revision": (404, {"x-error-code": "RevisionNotFound"}, "no revision main in some/model"),
    "repository": (401, {"x-error-code": "RepoNotFound"}, "no repository some/model that may be read"),
    "gated": (401, {"x-error-code": "GatedRepo"}, "/some/model and give a token"),
    "not accepted": (403, {"x-error-code": "GatedRepo"}, "accept the licence at "),
    "busy": (503, {"x-error-message": "try later"}, "answered 503: try later"),
    "no commit": (302, without("x-repo-commit"), "names no commit"),
    "no sha256": (302, without("x-linked-etag"), "no sha256 .x-linked-etag.: only files"),
    "no size": (302, without("x-linked-size"), "holds no size"),
    "size zero": (302, {**LFS, "x-linked-size": "0"}, "holds no size"),
    "kept in git": (200, {**LFS, "x-linked-etag": GIT_ETAG}, "which is no sha256"),
    "kept in git, plain etag": (200, {**without("x-linked-etag"), "etag": GIT_ETAG}, "holds no sha256"),
    "renamed": (307, MOVED, "the repository is now now/there"),
    "something else": (200, {"content-type": "text/html"}, "is this the hub"),
}


@pytest.mark.parametrize(("status", "headers", "message"), REFUSALS.values(), ids=REFUSALS)
def test_each_refusal_names_the_entry_and_writes_nothing(
    hub: Hub, tmp_path: Path, status: int, headers: dict[str, str], message: str
) -> None:
    hub.answers[PLACE] = (status, headers)
    path = lock(tmp_path, ENTRY)
    with pytest.raises(AtelierError, match=f"some/model: split/model.safetensors: .*{message}"):
        lock_models(path, write=True, hub=hub.url)
    assert path.read_text() == ENTRY


def test_an_answer_for_another_commit_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.answers[PLACE.replace("main", OLDER)] = (302, LFS)
    with pytest.raises(AtelierError, match=f"asked for revision {OLDER}, the answer is for {COMMIT}"):
        refresh(lock(tmp_path, with_values(revision=OLDER)), hub=hub.url)


def test_no_server_is_an_error_that_names_the_entry(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match=r"some/model: split/model.safetensors: no answer from http://127.0.0.1:1"):
        refresh(lock(tmp_path, ENTRY), hub="http://127.0.0.1:1")


def test_all_problems_are_named_at_once(hub: Hub, tmp_path: Path) -> None:
    second = ENTRY.split("files:\n")[1].replace("some/model", "an/other").replace("model.saf", "two.saf")
    hub.answers.clear()
    with pytest.raises(AtelierError, match=r"(?s)some/model: split/model.*an/other: split/two"):
        refresh(lock(tmp_path, ENTRY + second), hub=hub.url)


def test_a_gated_repository_opens_with_a_token_that_is_never_shown(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.gated.add(PLACE)
    path, said = lock(tmp_path, ENTRY), []
    with pytest.raises(AtelierError, match="accept the licence"):
        lock_models(path, hub=hub.url)
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    lock_models(path, token_file=token, hub=hub.url, say=said.append)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    lock_models(path, hub=hub.url, say=said.append)
    assert SHA in said[0] and said[:2] == said[2:]
    assert caplog.text and TOKEN not in caplog.text + "".join(said)


def test_tokens_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(AtelierError, match="No such file"):
        read_token(file)
    file.write_text(TOKEN)
    file.chmod(0o644)
    with pytest.raises(AtelierError, match="can be read by other users"):
        read_token(file)
    file.chmod(0o600)
    assert read_token(file, {"HF_TOKEN": "other"}) == TOKEN
    for bad in ("", f"{TOKEN}\nmore", f"{TOKEN} x", "hf_\N{SNOWMAN}"):
        file.write_text(bad)
        with pytest.raises(AtelierError, match="does not hold a token") as caught:
            read_token(file)
        assert not bad or bad not in str(caught.value)
    assert read_token(None, {}) is None and read_token(None, {"HF_TOKEN": f" {TOKEN}\n"}) == TOKEN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("files: [", "not readable as YAML"),
        ("other: 1", "files: a list of entries is missing"),
        ("files: [just a word]", "files.0: not an entry"),
        ("files: [{repository: a/b}]", "files.0.path: missing"),
    ],
)
def test_a_file_that_is_no_lock_is_named(text: str, message: str) -> None:
    with pytest.raises(AtelierError, match=message):
        declared(text, "models.yml")


def test_a_declaration_without_sets_is_refused_before_anything_is_written(hub: Hub, tmp_path: Path) -> None:
    path = lock(tmp_path, ENTRY.replace("    sets: [mine]\n", ""))
    with pytest.raises(AtelierError, match=r"files\.0\.sets"):
        lock_models(path, write=True, hub=hub.url)
    assert path.read_text() == ENTRY.replace("    sets: [mine]\n", "")


def test_the_projects_own_lock_comes_back_as_it_is_but_for_the_branch(hub: Hub, tmp_path: Path) -> None:
    text = (paths.PROJECT / "locks" / "models.yml").read_text()
    for weight in read_lock(paths.PROJECT / "locks" / "models.yml").files:
        commit = COMMIT if weight.revision == "main" else weight.revision
        hub.answers[f"/{weight.repository}/resolve/{weight.revision}/{weight.path}"] = (
            302,
            {"x-repo-commit": commit, "x-linked-etag": f'"{weight.sha256}"', "x-linked-size": str(weight.bytes)},
        )
    assert refresh(lock(tmp_path, text), hub=hub.url).after == text.replace("revision: main", f"revision: {COMMIT}")
