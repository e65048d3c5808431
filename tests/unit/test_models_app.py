"""`atelier models`: one store, from an empty directory to a pruned one, by the commands that a person types."""

import hashlib
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from atelier.models_app import app

pytestmark = pytest.mark.skipif(not shutil.which("aria2c"), reason="aria2 is not installed")
CONTENT = {"vae/one.safetensors": b"1" * 1000, "loras/two.safetensors": b"2" * 2000}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror in a folder, and beside it a lock file that names what it holds."""
    root, entries = tmp_path / "mirror", []
    for name, content in CONTENT.items():
        directory, file = name.split("/")
        (root / directory).mkdir(parents=True)
        (root / name).write_bytes(content)
        entry = {"repository": "a/b", "revision": "main", "path": file, "bytes": len(content), "directory": directory}
        entry |= {"sha256": hashlib.sha256(content).hexdigest(), "sets": [directory], "used_by": [], "licence": "none"}
        entries.append(entry)
    (tmp_path / "models.yml").write_text(yaml.safe_dump({"files": entries}))
    return root


def models(*arguments: str, mirror: Path) -> Result:
    lock = ["--lock", str(mirror.parent / "models.yml"), "--dest", str(mirror.parent / "store")]
    return CliRunner().invoke(app, [*arguments, *lock])


def test_a_store_from_nothing_to_pruned(mirror: Path) -> None:
    store = mirror.parent / "store"
    missing = models("verify", mirror=mirror)
    assert missing.exit_code == 1 and "one.safetensors: missing" in missing.output
    assert models("fetch", "--mirror", f"file://{mirror}", mirror=mirror).exit_code == 0
    assert {name: (store / name).read_bytes() for name in CONTENT} == CONTENT
    assert models("verify", mirror=mirror).exit_code == models("verify", "--deep", mirror=mirror).exit_code == 0
    listed = models("prune", "--set", "vae", mirror=mirror)
    assert "two.safetensors" in listed.output and "nothing was removed" in listed.output
    assert (store / "loras/two.safetensors").exists()
    models("prune", "--set", "vae", "--yes", mirror=mirror)
    assert (store / "vae/one.safetensors").exists() and not (store / "loras/two.safetensors").exists()


def test_what_is_there_already_is_taken(mirror: Path) -> None:
    assert models("adopt", "--search", str(mirror), mirror=mirror).exit_code == 0
    assert models("verify", mirror=mirror).exit_code == 0
    assert all((mirror / name).read_bytes() == content for name, content in CONTENT.items())
