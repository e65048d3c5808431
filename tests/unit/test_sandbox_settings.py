"""What a sandbox gets in the place of settings that nobody made."""

from pathlib import Path

import pytest

from atelier.lifecycle import sandbox_settings
from atelier.settings import Settings
from sandbox import shared


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path))


def test_a_sandbox_has_synthetic_weights_and_never_asks_the_hub() -> None:
    models = sandbox_settings(Settings(profile="cpu"), "double").models
    assert (
        models.sets == [shared.SET, shared.QWEN_SET] and models.mirrors == [shared.mirror("double")] and not models.hub
    )
    assert Path(models.lock).is_file()


def test_weights_that_the_operator_chose_stay_as_chosen() -> None:
    chosen = {"lock": "mine.yml", "sets": ["mine"], "mirrors": ["http://192.0.2.1:8765"]}
    models = sandbox_settings(Settings.model_validate({"profile": "cpu", "models": chosen}), "double").models
    assert models.model_dump(include=chosen.keys()) == chosen and not models.hub


def test_weights_that_are_there_are_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = shared.write_weights("double", [])
    before = lock.read_bytes(), lock.stat().st_mtime_ns
    hashed: list[Path] = []
    entry = shared._entry
    monkeypatch.setattr(shared, "_entry", lambda root, path: hashed.append(path) or entry(root, path))
    assert shared.write_weights("double", []) == lock and not hashed
    assert (lock.read_bytes(), lock.stat().st_mtime_ns) == before
    vae = lock.parent / "vae" / "qwen_image_vae.safetensors"
    vae.write_bytes(b"another")
    shared.write_weights("double", [])
    assert vae in hashed and lock.read_bytes() == before[0], "the file of before was written again"
    (lock.parent / "vae" / "more.safetensors").write_bytes(b"more")
    shared.write_weights("double", [])
    assert b"more.safetensors" in lock.read_bytes()
    (lock.parent / "vae" / "more.safetensors").unlink()
    shared.write_weights("double", [])
    assert lock.read_bytes() == before[0]
