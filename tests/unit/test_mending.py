"""Carrying repairs out: what they print when they fail, a key that is compared before it is trusted, and whether they helped."""

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_deployment import deployment
from test_old_host import Local

from atelier import ailments, lifecycle, mending
from atelier.ailments import Ailments, FileSystem
from atelier.apt import Repository
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.recorded import Recorded
from atelier.repairs import Repair
from atelier.ssh import Completed, Destination
from atelier.tree import File

NONE = Recorded()
HERE = deployment()


class Piped(Local):
    """A host whose commands run here, with one pipe for all that they print."""

    def popen(self, script: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, script: str, *, stdin: bytes = b"", check: bool = False, **_: Any) -> Any:
        done = subprocess.run(["sh", "-c", script], input=stdin, capture_output=True)
        assert not check or done.returncode == 0, done.stderr
        return super().run(":") if not done.stdout else _answer(done)


def _answer(done: "subprocess.CompletedProcess[bytes]") -> Completed:
    return Completed(done.returncode, done.stdout.decode(), done.stderr.decode())


class Silent(Local):
    """A host that is asked and prints nothing: what looks for ailments asks apt's repositories."""

    def __init__(self, destination: Destination) -> None:
        super().__init__(destination)
        self.asked: list[str] = []

    def run(self, script: str, **_: Any) -> Completed:
        self.asked.append(script)
        return Completed(0, "", "")


@pytest.fixture(autouse=True)
def unlocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lifecycle, "guard", lambda: "")
    monkeypatch.setattr(mending, "DOWNLOADED", str(tmp_path / "downloads/key"))


def mend(*ours: Repair) -> None:
    with Narrator() as narrator:
        mending.mend(Piped(Destination("host")), ours, narrator)


def test_a_repair_gets_its_input(tmp_path: Path) -> None:
    mend(Repair("broken", "Mend it", f"cat >{tmp_path}/told", b"input"))
    assert (tmp_path / "told").read_bytes() == b"input"


def test_a_repair_that_fails_tells_what_it_printed() -> None:
    with pytest.raises(AtelierError, match="broken: the repair failed\n    it is worse than that") as raised:
        mend(Repair("broken", "Mend it", "echo it is worse than that >&2; exit 3", remedy="look there"))
    assert raised.value.hint == "look there"


def test_what_stops_everything_is_an_error_with_its_remedy() -> None:
    stops = Repair("read-only", why="writing would harm", remedy="fsck", stops=True)
    with pytest.raises(AtelierError, match="read-only: writing would harm") as raised:
        mending.require_possible([Repair("broken", "Mend it", ":"), stops])
    assert raised.value.hint == "fsck"
    mending.require_possible([Repair("broken", "Mend it", ":"), Repair("theirs", why="it is not ours")])


START = Repair("Docker does not run: it is failed", "Start it", "start", remedy="look there")
PRUNE = Repair("/ lacks 3 GB", "Empty the cache, 7 GB", "prune", removes=True)
RENEW = Repair("expired", "Fetch it anew", repository=Repository("docker", "u", "f", "k", File("/x", b"")))


def test_a_repair_that_had_to_help_and_did_not_is_an_error() -> None:
    again = replace(START, problem="Docker does not run: it is inactive")
    with pytest.raises(AtelierError, match="it is inactive: the repair did not help") as raised:
        mending.require_helped([START], [again])
    assert raised.value.hint == "look there"
    assert mending.require_helped([], [START]) == mending.require_helped([START], []) == []


def test_less_room_than_before_and_an_expired_key_may_be_enough() -> None:
    less = replace(PRUNE, problem="/ lacks 1 GB", what="Empty the cache, 2 GB")
    another = replace(RENEW, repository=Repository("nvidia", "u", "f", "k", File("/y", b"")))
    left = [less, RENEW, another, Repair("theirs", why="it is not ours")]
    assert mending.require_helped([PRUNE, RENEW], left) == [less, RENEW]


def key(folder: Path) -> tuple[bytes, str]:
    """A key whose time is over, made longer by its owner: the same fingerprint. Returns it and its fingerprint."""
    home = folder / "gpg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", f"--homedir={home}", "--batch", "--quiet", "--passphrase="]
    try:
        made = [
            *gpg,
            "--faked-system-time=20200101T000000",
            "--quick-gen-key",
            "x <x@example.org>",
            "ed25519",
            "sign",
            "30d",
        ]
        subprocess.run(made, check=True, capture_output=True)
        listed = subprocess.run(
            [*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
        ).stdout
        fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
        exported = subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout
    finally:
        subprocess.run(["gpgconf", f"--homedir={home}", "--kill", "all"], capture_output=True)
    return exported, fingerprint


@pytest.mark.parametrize("pinned", [True, False])
def test_a_key_is_trusted_only_with_the_fingerprint_that_is_pinned(
    pinned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported, fingerprint = key(tmp_path)
    (tmp_path / "offered").write_bytes(exported)
    keyring = tmp_path / "keyring.gpg"
    keyring.write_bytes(b"before")
    repository = Repository(
        "docker", f"file://{tmp_path}/offered", fingerprint if pinned else "A" * 40, str(keyring), File("/x", b"")
    )
    monkeypatch.setattr(File, "install_script", lambda self: f"cat >{self.path}")
    renew = Repair("expired", "Fetch it anew", repository=repository)
    if pinned:
        mend(renew)
        assert keyring.read_bytes() == exported
    else:
        with pytest.raises(AtelierError, match=f"has the fingerprint {fingerprint}, expected {'A' * 40}"):
            mend(renew)
        assert keyring.read_bytes() == b"before"
    assert not os.path.exists(mending.DOWNLOADED)  # noqa: PTH110


def look(monkeypatch: pytest.MonkeyPatch, host: Ailments, answers: list[str], facts: Any = HERE.facts) -> Ailments:
    """A look at a host that is so, on which these free bytes were known before."""
    monkeypatch.setattr(ailments, "parse", lambda *_: host)

    silent = Silent(Destination("host"))
    found = mending.look(silent, replace(HERE, facts=facts), NONE)
    answers += silent.asked
    return found


def test_a_host_with_room_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    facts = replace(HERE.facts, deployed=True)
    assert look(monkeypatch, Ailments(file_systems=(FileSystem("/", 50 << 30),)), asked, facts).lacking == {}
    assert len(asked) == 1


def test_a_full_file_system_lacks_room_though_no_deploy_needs_any(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    facts = replace(HERE.facts, deployed=True)
    found = look(monkeypatch, Ailments(file_systems=(FileSystem("/", 1000),)), asked, facts)
    assert found.lacking == {"/": mending.FULL - 1000} and len(asked) == 2


def test_what_is_needed_is_compared_with_what_is_free_now(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict.fromkeys([*HERE.facts.disk_free, mending.DOCKER_ROOT], 0)
    facts = replace(HERE.facts, disk_free=known, mounts=dict.fromkeys(known, "/"))
    with_room = Ailments(file_systems=(FileSystem("/", 1 << 40),))
    assert look(monkeypatch, with_room, [], facts).lacking == {}
    without = Ailments(file_systems=(FileSystem("/", 1_000_000_000),))
    assert look(monkeypatch, without, [], facts).lacking["/"] > 0


def test_the_file_systems_that_data_leaves_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Ailments(file_systems=(FileSystem("/", 1000), FileSystem("/srv", 1 << 40), FileSystem("/sr", 1 << 40)))
    monkeypatch.setattr(ailments, "parse", lambda *_: host)
    for left, mount in ((["/srv/atelier/models"], {"/srv"}), (["/home/x"], {"/"}), ([], set())):
        assert mending.look(Silent(Destination("host")), HERE, NONE, left).leaving == mount


def test_docker_settings_are_ours_where_there_were_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, ours in ((frozenset[str](), True), (frozenset({mending.DAEMON_JSON}), False)):
        record = Recorded(created={"merged": frozenset({mending.DAEMON_JSON})}, found={"merged": found})
        assert bool(mending._our_daemon_json(HERE, record)) is ours
    assert mending._our_daemon_json(HERE, NONE) == ""


def test_only_repositories_that_a_deploy_recorded_are_ours() -> None:
    source = "/etc/apt/sources.list.d/docker.sources"
    assert mending._repositories(HERE, NONE) == []
    (found,) = mending._repositories(HERE, Recorded(created={"files": frozenset({source})}))
    assert found.source.path == source and len(found.fingerprint) == 40


def test_the_clock_of_this_computer_is_what_the_hosts_is_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(ailments, "parse", lambda _, now, __: given.append(now) or Ailments())
    mending.look(Silent(Destination("host")), replace(HERE, facts=replace(HERE.facts, deployed=True)), NONE)
    assert abs(given[0] - time.time()) < 60
