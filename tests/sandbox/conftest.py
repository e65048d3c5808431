"""A deployed host that two files of tests share: the page for users, and the search for secrets after all that was done."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from planting import CHOSEN, PlantedHost, prepared


@pytest.fixture(scope="session")
def planted_host() -> Iterator[PlantedHost]:
    # In a short path: sockets of ssh lie in it.
    with tempfile.TemporaryDirectory(prefix="planted-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        host = prepared(f"sandbox-planted-{os.getpid()}", Path(folder))
        with host.sandbox.running():
            host.make(f"deploy HOST={host.sandbox.name} SOURCES=double", CHOSEN)
            host.learn("first")
            yield host
