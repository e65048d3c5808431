"""A host's facts as a file, and the plan that follows from them as JSON that a person can read."""

import codecs
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from atelier.errors import AtelierError
from atelier.gpu.plan import plan_gpu
from atelier.hostfacts import HostFacts
from atelier.settings import Settings

FORM = "docs/gpu.md describes the fields; `atelier explain-gpu --facts` prints those of a live host"
_FACTS = TypeAdapter(HostFacts)


def facts_json(facts: HostFacts) -> str:
    """The facts as JSON; `read_facts` reads it back."""
    # Sets have no order, and a file of facts should not differ from run to run.
    return json.dumps(_FACTS.dump_python(facts, exclude_defaults=True), indent=2, default=sorted) + "\n"


def read_facts(path: Path) -> HostFacts:
    """Facts from a file, or from standard input (`-`); what is not in it has its default.

    Raises AtelierError naming file, field and what is right.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return _FACTS.validate_json(content.removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise AtelierError(f"{path}: {error.strerror or error}", "name a file of facts; " + FORM) from None
    except ValidationError as error:
        raise AtelierError("\n".join(f"{path}: {_problem(details)}" for details in error.errors()), FORM) from None


def explain(facts: HostFacts, settings: Settings) -> str:
    """The plan: action first, then why, then what would be done. What is empty is left out."""
    plan = asdict(plan_gpu(facts, settings))
    shown = _readable(plan)
    if plan["action"] == "refuse":
        shown.pop("torch")
    return json.dumps({"action": plan["action"], **shown}, indent=2, ensure_ascii=False) + "\n"


def _problem(details: ErrorDetails) -> str:
    place = ".".join(str(part) for part in details["loc"] if part != "HostFacts")
    if details["type"] == "unexpected_keyword_argument":
        return f"{place}: unknown field"
    return f"{place}: {details['msg']}" if place else details["msg"]


def _readable(value: Any) -> Any:
    """Without what is empty; the bytes of a file as its lines, its mode in octal."""
    if isinstance(value, dict):
        named = {name: f"{item:o}" if name == "mode" else _readable(item) for name, item in value.items()}
        return {name: item for name, item in named.items() if item not in ("", None, [], {}, False)}
    if isinstance(value, (list, tuple)):
        return [_readable(item) for item in value]
    return value.decode().splitlines() if isinstance(value, bytes) else value
