"""Every way to break a sandbox that verify must notice: one module a group, each with a tuple SABOTAGES.

What no sandbox has, such as a card that computes, is broken in recorded answers: a module's RECORDED names, for a check,
a callable that gives such an answer to the check's own judgement and returns what that finds wrong.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from atelier.sabotage import Sabotage


def every() -> tuple[Sabotage, ...]:
    """All sabotages, in the order of their modules' names."""
    return tuple(sabotage for module in _modules() for sabotage in getattr(module, "SABOTAGES", ()))


def recorded() -> dict[str, Callable[[], list[str]]]:
    """All broken answers, by the check that must find them wrong."""
    return {id: broken for module in _modules() for id, broken in getattr(module, "RECORDED", {}).items()}


def _modules() -> list[Any]:
    return [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
