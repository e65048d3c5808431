"""Every way to break a sandbox that verify must notice: one module a group, each with a tuple SABOTAGES."""

import importlib
import pkgutil

from atelier.sabotage import Sabotage


def every() -> tuple[Sabotage, ...]:
    """All sabotages, in the order of their modules' names."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return tuple(sabotage for module in modules for sabotage in getattr(module, "SABOTAGES", ()))
