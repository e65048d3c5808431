"""docs/configuration.md, generated from the settings' own descriptions; a test fails when it is stale."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from atelier import paths
from atelier.settings import Settings

PAGE = paths.PROJECT / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

Generated from the settings by `make docs`; do not edit.

Everything has a default, so nothing has to be configured. What differs stands in `hosts.yml` (copy `hosts.example.yml`) or in
`group_data/*.py`. Lowest precedence first: the defaults below, `group_data/all.py`, `group_data/<group>.py` for each group
that a host of hosts.yml lists, the host's own `settings`. Mappings are merged key by key.

All of it is validated before anything is touched; an unknown key, a wrong type or an impossible combination is one message
that names file, key, problem and remedy. `make plan` then says what a change would do.

| key | default | what it is |
|---|---|---|
"""


def rows(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, default as YAML would write it, and description of every setting."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from rows(field.annotation, f"{key}.")
        else:
            yield key, _default(field), f"{field.description}{_choices(field)}"


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is PydanticUndefined:
        return "required"
    return "unset" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _choices(field: FieldInfo) -> str:
    if "Literal" not in str(get_origin(field.annotation)):
        return ""
    return f" One of: {', '.join(f'`{choice}`' for choice in get_args(field.annotation))}."


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(f"| `{key}` | {default} | {description} |\n" for key, default, description in rows())


def main(path: Path = PAGE) -> None:
    """Write the page."""
    path.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
