"""TEST DOUBLE, never deploy: how extensions add routes of their own, which no login looks at."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

_app_started: list[Callable[[Any, Any], None]] = []


def on_app_started(callback: Callable[[Any, Any], None]) -> None:
    _app_started.append(callback)


def app_started_callback(demo: Any, app: Any) -> None:
    for callback in _app_started:
        try:
            callback(demo, app)
        except Exception:
            traceback.print_exc()
