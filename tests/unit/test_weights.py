"""Weights on the host: never trusted because a file exists, never a wrong byte under the right name."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from atelier import hostfacts
from atelier.models import Weight
from atelier.settings import build_settings
from stages.models import _fetch_script

GOOD = b"the right bytes" * 1000
WEIGHT = Weight(
    repository="a/b",
    revision="main",
    path="split/model.safetensors",
    bytes=len(GOOD),
    sha256=hashlib.sha256(GOOD).hexdigest(),
    directory="vae",
    sets=["s"],
    used_by=[],
    licence="none",
)


class Host:
    """A host's store and state in a folder, and mirrors beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store, self.state = root / "models", root / "state"
        (self.store / "vae").mkdir(parents=True)
        self.final = self.store / "vae" / "model.safetensors"
        (root / "bin").mkdir()
        (root / "bin" / "chown").symlink_to("/bin/true")  # so that the tests need no root
        self.environment = {**os.environ, "PATH": f"{root}/bin:{os.environ['PATH']}"}

    def mirror(self, name: str, content: bytes | None) -> str:
        path = self.root / name / "vae" / "model.safetensors"
        path.parent.mkdir(parents=True)
        if content is not None:
            path.write_bytes(content)
        return f"file://{path}"

    def fetch(self, *urls: str) -> subprocess.CompletedProcess[str]:
        script = _fetch_script(str(self.store), str(self.state), WEIGHT, list(urls), None)
        return subprocess.run(["sh", "-c", script], env=self.environment, capture_output=True, text=True)

    def known_good(self) -> bool:
        settings = build_settings([("test", {"profile": "cpu"})]).model_copy(update={"data_root": str(self.root)})
        script = hostfacts.presence_script(settings, (WEIGHT,))
        found = subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout.split()
        return WEIGHT.sha256 in found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_right_bytes_are_published_read_only_and_remembered(host: Host) -> None:
    assert not host.known_good()
    assert host.fetch(host.mirror("m", GOOD)).returncode == 0
    assert host.final.read_bytes() == GOOD and host.final.stat().st_mode & 0o777 == 0o444
    assert host.known_good()


@pytest.mark.parametrize(
    "bad", [GOOD[:-1], b"X" + GOOD[1:], GOOD + b"more", b""], ids=["short", "flipped", "long", "empty"]
)
def test_wrong_bytes_are_never_published_and_named(host: Host, bad: bytes) -> None:
    result = host.fetch(host.mirror("bad", bad))
    assert result.returncode != 0 and not host.final.exists() and not host.known_good()
    assert "model.safetensors" in result.stderr and WEIGHT.sha256 in result.stderr
    assert hashlib.sha256(bad).hexdigest() in result.stderr


def test_the_next_source_is_used_when_the_first_is_wrong_or_gone(host: Host) -> None:
    urls = host.mirror("gone", None), host.mirror("bad", b"X" + GOOD[1:]), host.mirror("good", GOOD)
    assert host.fetch(*urls).returncode == 0
    assert host.final.read_bytes() == GOOD


def test_a_right_file_that_is_there_is_taken_without_fetching(host: Host) -> None:
    host.final.write_bytes(GOOD)
    assert not host.known_good(), "a file is not trusted because it exists"
    assert host.fetch(host.mirror("gone", None)).returncode == 0
    assert host.known_good()


@pytest.mark.parametrize("wrong", [GOOD[:100], b"X" + GOOD[1:]], ids=["truncated", "same size"])
def test_a_wrong_file_with_the_right_name_is_set_aside_and_kept(host: Host, wrong: bytes) -> None:
    host.final.write_bytes(wrong)
    assert host.fetch(host.mirror("good", GOOD)).returncode == 0
    (aside,) = host.final.parent.glob("model.safetensors.wrong-*")
    assert (host.final.read_bytes(), aside.read_bytes()) == (GOOD, wrong)


def test_a_file_that_was_changed_since_is_not_known_good(host: Host) -> None:
    host.fetch(host.mirror("good", GOOD))
    host.final.chmod(0o644)
    host.final.write_bytes(b"X" + GOOD[1:])
    os.utime(host.final, (1, 1))
    assert not host.known_good()
