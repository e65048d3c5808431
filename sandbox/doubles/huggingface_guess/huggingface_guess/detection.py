"""TEST DOUBLE, never deploy."""

from __future__ import annotations

from collections.abc import Iterable

TEXT_ENCODER = {"conditioner.": "sdxl", "cond_stage_model.": "sd15"}


def guess(names: Iterable[str]) -> str | None:
    """`sdxl` or `sd15`, or None for tensors that belong to neither."""
    known = set(names)
    if not any(name.startswith("model.diffusion_model.") for name in known):
        return None
    for prefix, kind in TEXT_ENCODER.items():
        if any(name.startswith(prefix) for name in known):
            return kind
    return None
