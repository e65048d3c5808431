"""A mirror on the machine itself or in its own network is asked directly; the proxy is for the way out."""

import hashlib
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from fault_server import FaultServer

from weights.aria2 import Answer, Limits, arguments, is_near
from weights.decide import Patience
from weights.fetch import Job, run
from weights.store import File

CONTENT = bytes(range(256)) * 8192


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("http://127.0.0.1:8765/vae/a", True),
        ("http://localhost:8765/vae/a", True),
        ("http://[::1]/a", True),
        ("http://10.1.2.3/a", True),
        ("https://192.168.7.7:8443/a", True),
        ("http://[fd00::1]/a", True),
        ("http://9.9.9.9/a", False),
        ("https://mirror.example.org/a", False),
        ("https://localhost.example.org/a", False),
    ],
)
def test_what_is_near(url: str, near: bool) -> None:
    assert is_near(url) == near


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (["http://127.0.0.1:8765/a", "https://far.example.org/a", "http://10.1.2.3/a"], "127.0.0.1,10.1.2.3"),
        (["https://far.example.org/a"], ""),
        (["http://127.0.0.1:8765/a"], None),
    ],
)
def test_of_several_mirrors_the_near_ones_are_asked_without_the_proxy(
    tmp_path: Path, urls: list[str], expected: str | None
) -> None:
    answers = [Answer(url, (), True) for url in urls]
    _, told = arguments(tmp_path / "part", answers, Limits(proxy="http://proxy:1"), 1)
    options = dict(line.strip().partition("=")[::2] for line in told.splitlines()[1:])
    assert options.get("no-proxy") == expected
    assert options.get("all-proxy") == (None if expected is None else "http://proxy:1")


@pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2c is not installed")
def test_a_proxy_that_leads_nowhere_does_not_keep_from_a_mirror_on_the_machine(tmp_path: Path) -> None:
    with socket.socket() as nowhere:
        nowhere.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{nowhere.getsockname()[1]}"
        server = FaultServer({"a": CONTENT})
        file = File("vae/a", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), (server.url("a"),))
        job = Job((file,), tmp_path / "store", tmp_path / "state", Limits(patience=2), Patience(failures=2), reserve=0)
        try:
            assert run(replace(job, limits=replace(job.limits, proxy=proxy))).ready
        finally:
            server.stop()
