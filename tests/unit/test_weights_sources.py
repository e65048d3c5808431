"""Where a deploy looks for a host's weights before it changes anything, and the token it takes along."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_stages import ALL, OTHER, PLAIN, WEIGHT

from atelier import lifecycle
from atelier.errors import AtelierError
from atelier.settings import build_settings


def urls(present: frozenset[str], **models: object) -> list[str]:
    settings = build_settings([("test", {"models": models})])
    return lifecycle.needed_urls(replace(PLAIN, settings=settings, present=present))


HUB = "https://huggingface.co/a/b/resolve/main/.gitattributes"


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({}, [HUB]),
        ({"mirrors": ["http://m1/x/", "http://m2"]}, ["http://m1/x/", "http://m2/", HUB]),
        ({"mirrors": ["http://m1"], "hub": False}, ["http://m1/"]),
        ({"mirrors": ["file:///m"], "hub": False}, [f"file:///m/{w.store_path}" for w in (WEIGHT, OTHER)]),
        ({"hub": False}, []),
    ],
)
def test_each_source_of_missing_weights_is_asked_once(models: dict[str, object], expected: list[str]) -> None:
    assert urls(frozenset(), **models) == expected
    assert urls(ALL, **models) == [], "nobody is asked for what is there"


def test_the_token_comes_from_the_file_that_the_settings_name_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    assert lifecycle.models_token(build_settings([])) is None
    file = tmp_path / "token"
    file.write_text("hf_mine\n")
    file.chmod(0o600)
    settings = build_settings([("test", {"models": {"token_file": str(file)}})])
    assert lifecycle.models_token(settings) == "hf_mine"
    file.chmod(0o644)
    with pytest.raises(AtelierError, match="chmod 600"):
        lifecycle.models_token(settings)
