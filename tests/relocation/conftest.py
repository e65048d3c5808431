"""A directory in memory: thousands of synchronisations wait for no disk there."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on a tmpfs where this machine has one for everybody, else anywhere."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared if shared.is_mount() else None))
    yield folder.resolve()
    shutil.rmtree(folder)
