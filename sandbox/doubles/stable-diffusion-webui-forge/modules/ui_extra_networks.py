"""TEST DOUBLE, never deploy: open routes about models' preview cards; there are none."""

from __future__ import annotations

import os
from typing import Any

from fastapi import HTTPException


def add_pages_to_demo(app: Any) -> None:
    app.add_api_route("/sd_extra_networks/thumb", thumb, methods=["GET"])
    app.add_api_route("/sd_extra_networks/cover-images", absent, methods=["GET"])
    app.add_api_route("/sd_extra_networks/metadata", lambda: {}, methods=["GET"])


def thumb(filename: str = "") -> None:
    if os.path.isfile(filename):
        raise ValueError(f"File cannot be fetched: {filename}. Must be in one of directories registered by extra pages.")
    absent()


def absent() -> None:
    raise HTTPException(404, "File not found")
