"""The fetcher against the mirror that reads an old host's store through ssh; here ssh's commands run on this computer."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer
from fetching import CONTENT, NAME, SHA, assert_published, job_for
from typing_extensions import override

from atelier import models_serve, old_host
from atelier.old_host import Offer
from atelier.ssh import Completed, Destination, Ssh
from weights.fetch import run
from weights.store import File, Store
from weights.verify import verify

FILE = File(NAME, len(CONTENT), SHA)


class Here(Ssh):
    """Commands of a host run here. dead: they end before they sent anything, as those of a host that is gone."""

    dead = False

    @override
    def root_command(self, script: str) -> tuple[list[str], bytes]:
        code = script.encode()
        return ["sh", "-c", "exit 255" if self.dead else f'eval "$(head -c {len(code)})"'], code

    @override
    def run(self, script: str, **_: Any) -> Completed:
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        return Completed(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def offer(tmp_path: Path) -> Offer:
    old = Store(tmp_path / "old", tmp_path / "old-state")
    old.path(FILE).parent.mkdir(parents=True)
    old.path(FILE).write_bytes(CONTENT)
    verify(old, [FILE], deep=True)
    return Offer(Here(Destination("old")), str(old.root), str(old.state), {NAME: FILE})


@pytest.fixture
def url(offer: Offer) -> Iterator[str]:
    with models_serve.running(old_host.application(offer), "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}/{NAME}"


def test_a_file_comes_once_and_is_published(url: str, offer: Offer, tmp_path: Path) -> None:
    job = job_for(tmp_path, url)
    assert run(job).ready
    assert_published(job)
    assert len(CONTENT) <= offer.served < 1.5 * len(CONTENT)


def test_a_rotten_byte_of_the_old_host_is_never_published(url: str, offer: Offer, tmp_path: Path) -> None:
    path = Path(offer.store, NAME)
    rotten = bytearray(CONTENT)
    rotten[len(rotten) // 2] ^= 1
    path.write_bytes(rotten)
    result = run(job_for(tmp_path, url))
    assert not result.ready and not (tmp_path / "store" / NAME).exists()


def test_an_old_host_that_goes_leaves_the_rest_to_the_next_source(
    url: str, offer: Offer, server: FaultServer, tmp_path: Path
) -> None:
    offer.ssh.dead = True  # type: ignore[attr-defined]
    job = job_for(tmp_path, url, server.url("a"))
    assert run(job).ready and offer.served == 0
    assert_published(job)
