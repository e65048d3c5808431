"""What the unit tests do without, since none of them can see it and each would wait for it."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files are read back from memory: only a power cut would show whether they had reached the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def one_root_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """httpx reads all root certificates for each client, also for one of plain HTTP, and these servers speak that alone."""
    first = re.search(
        r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", Path(certifi.where()).read_text(), re.S
    )
    assert first
    place = tmp_path_factory.mktemp("certificates") / "one.pem"
    place.write_text(first[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certifi, "where", lambda: str(place))
        patch.setenv("SSL_CERT_FILE", str(place))
        yield
