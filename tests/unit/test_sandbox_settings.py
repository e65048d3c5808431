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
    assert models.sets == [shared.SET] and models.mirrors == [shared.mirror("double")] and not models.hub
    assert Path(models.lock).is_file()


def test_weights_that_the_operator_chose_stay_as_chosen() -> None:
    chosen = {"lock": "mine.yml", "sets": ["mine"], "mirrors": ["http://192.0.2.1:8765"]}
    models = sandbox_settings(Settings.model_validate({"profile": "cpu", "models": chosen}), "double").models
    assert models.model_dump(include=chosen.keys()) == chosen and not models.hub
