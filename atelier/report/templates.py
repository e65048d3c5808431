"""The pages' templates: what is filled in is text, never markup."""

from typing import Any

import jinja2
from markupsafe import Markup, escape

from atelier import paths
from atelier.report.redaction import printable


def codes(text: str) -> Markup:
    """The text with what stands between backticks as code."""
    parts = printable(text).split("`")
    if len(parts) % 2 == 0:  # one of them has no partner
        return escape(printable(text))
    pieces = (Markup("<code>{}</code>") if number % 2 else Markup("{}") for number in range(len(parts)))
    return Markup("").join(piece.format(part) for piece, part in zip(pieces, parts, strict=True))


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(paths.PROJECT / "templates" / "report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    finalize=_shown,
)
TEMPLATES.filters.update(codes=codes)
