"""TEST DOUBLE, never deploy: open routes about models' preview cards; there are none."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException


def add_pages_to_demo(app: Any) -> None:
    app.add_api_route("/sd_extra_networks/thumb", absent, methods=["GET"])
    app.add_api_route("/sd_extra_networks/cover-images", absent, methods=["GET"])
    app.add_api_route("/sd_extra_networks/metadata", lambda: {}, methods=["GET"])


def absent() -> None:
    raise HTTPException(404, "File not found")
