"""The pages' templates: what is filled in is text, never markup."""

from typing import Any

import jinja2
from markupsafe import Markup

from atelier import paths
from atelier.report.printable import printable


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
