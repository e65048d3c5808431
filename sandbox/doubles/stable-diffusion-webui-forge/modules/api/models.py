"""TEST DOUBLE, never deploy: what requests to /sdapi may hold, with the real defaults; wrong types are a 422."""

from __future__ import annotations

from typing import Any

from modules.cmd_args import parser
from pydantic import BaseModel, Field, create_model, model_validator


class TextToImageRequest(BaseModel):
    prompt: str = ""
    negative_prompt: str = ""
    styles: list[str] | None = None
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0
    sampler_name: str | None = None
    scheduler: str | None = None
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    distilled_cfg_scale: float = 3.5
    width: int = 512
    height: int = 512
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    denoising_strength: float | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool = True
    enable_hr: bool = False
    sampler_index: str = "Euler"
    script_name: str | None = None
    script_args: list[Any] = Field(default_factory=list)
    send_images: bool = True
    save_images: bool = False
    alwayson_scripts: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def null_is_absent(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class ImageToImageRequest(TextToImageRequest):
    init_images: list[str] | None = None
    denoising_strength: float = 0.75  # type: ignore[assignment]
    mask: str | None = None
    resize_mode: int = 0
    include_init_images: bool = False


class ImagesResponse(BaseModel):
    images: list[str] | None = None
    parameters: dict[str, Any]
    info: str


class PngInfoRequest(BaseModel):
    image: str


def _flags() -> dict[str, Any]:
    """WEAKNESS: a flag without a default must be a text, as in the real one, so --port makes the answer a 500."""
    fields: dict[str, Any] = {}
    for action in parser._option_string_actions.values():
        if action.dest != "help":
            kind: Any = (str | None) if action.default is None else type(action.default)
            fields[action.dest] = (kind, Field(default=action.default))
    return fields


FlagsModel = create_model("Flags", **_flags())
