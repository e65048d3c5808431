"""Two servers that have the file."""

from collections.abc import Iterator

import pytest
from fault_server import FaultServer
from fetching import CONTENT


@pytest.fixture
def server() -> Iterator[FaultServer]:
    server = FaultServer({"a": CONTENT})
    yield server
    server.stop()


@pytest.fixture
def mirror() -> Iterator[FaultServer]:
    server = FaultServer({"a": CONTENT}, "127.0.0.2")
    yield server
    server.stop()
