"""No secret in what is written down."""

import base64
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

REMOVED = "[secret]"
SHORTEST_SECRET = 6
"""Shorter strings are not searched for: they would be found everywhere. Passwords have 8 characters at least."""


def redact(value: Any, secrets: Iterable[str]) -> Any:
    """The same structure with every secret replaced, plain, percent-encoded, JSON-escaped or as base64 of itself."""
    forms: set[str] = set()
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            plain = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
            forms |= plain | {base64.b64encode(secret.encode()).decode()}
    return _redact(value, sorted(forms, key=len, reverse=True))


def _redact(value: Any, forms: list[str]) -> Any:
    if isinstance(value, str):
        for form in forms:
            value = value.replace(form, REMOVED)
        return value
    if isinstance(value, dict):
        return {_redact(key, forms): _redact(item, forms) for key, item in value.items()}
    return [_redact(item, forms) for item in value] if isinstance(value, list) else value
