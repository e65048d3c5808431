"""What is taken out of a text before it is written down or shown: secrets, and characters that mislead."""

import base64
import html
import json
import shlex
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

from markupsafe import escape

REMOVED = "[secret]"
SHORTEST_SECRET = 6
"""Shorter strings are not searched for: they would be found everywhere. Passwords have 8 characters at least."""


def printable(text: str) -> str:
    """The same without control and format characters: XML cannot hold them, terminals obey them, readers are misled."""
    return "".join(character if character.isprintable() or character in "\n\t" else "?" for character in text)


def redact(value: Any, secrets: Iterable[str]) -> Any:
    """The same structure with every secret replaced, however it is spelled (see `spellings`)."""
    forms: set[str] = set()
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            forms |= spellings(secret)
    return _redact(value, sorted(forms, key=len, reverse=True))


def spellings(secret: str) -> set[str]:
    """A secret as itself and as URLs, JSON, HTML, Python, shells, compose files and HTTP Basic spell it."""
    in_json = json.dumps(secret)[1:-1]
    in_html = {html.escape(secret), html.escape(secret, quote=False), str(escape(secret))}
    in_url = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    return {
        secret,
        in_json,
        json.dumps(in_json)[1:-1],
        repr(secret)[1:-1],
        *in_html,
        *(form.replace("&#x27;", apostrophe) for form in in_html for apostrophe in ("&#39;", "&apos;")),
        *in_url,
        *(_lower(form) for form in in_url),
        secret.replace("$", "$$"),
        shlex.quote(secret).strip("'"),
        base64.b64encode(secret.encode()).decode(),
        base64.urlsafe_b64encode(secret.encode()).decode(),
    }


def _lower(quoted: str) -> str:
    """A percent-encoded text with its hexadecimal digits in lower case."""
    first, *rest = quoted.split("%")
    return first + "".join(f"%{part[:2].lower()}{part[2:]}" for part in rest)


def _redact(value: Any, forms: list[str]) -> Any:
    if isinstance(value, str):
        for form in forms:
            value = value.replace(form, REMOVED)
        return value
    if isinstance(value, dict):
        return {_redact(key, forms): _redact(item, forms) for key, item in value.items()}
    return [_redact(item, forms) for item in value] if isinstance(value, list) else value
