"""How a host's transfer of weights stands, from what its unit and its program told last. Pure but for the script's text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from atelier import weights_unit
from atelier.weights_unit import UNIT
from weights.decide import WAITS_FOR_SPACE
from weights.follow import reasons
from weights.progress import Snapshot, line, read_snapshot

SCRIPT = (
    f"systemctl show {UNIT} -p ActiveState -p InvocationID -p Result 2>/dev/null; "
    f"cat {weights_unit.RUN}/progress.json {weights_unit.RUN}/result.json 2>/dev/null"
)


@dataclass(frozen=True)
class Transfer:
    """A transfer. progress: of one that is under way. failed: why the last one ended red. stopped: it was told to end."""

    running: bool = False
    progress: Snapshot | None = None
    failed: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def waiting(self) -> tuple[str, ...]:
        """The files that wait for space on the disk."""
        files = self.progress.files if self.progress else ()
        return tuple(file.name for file in files if file.state == WAITS_FOR_SPACE)

    def text(self) -> str:
        """It in a few words; empty where there is nothing to tell."""
        if self.running:
            return f"on the way: {line(self.progress)}" if self.progress else "the transfer begins"
        if self.failed:
            return f"not all are there: {'; '.join(self.failed)}"
        return "the transfer was stopped before it was done" if self.stopped else ""


def parse(told: str) -> Transfer:
    """The transfer from the script's output."""
    unit = dict(row.split("=", 1) for row in told.splitlines() if "=" in row and not row.startswith("{"))
    documents = [document for row in told.splitlines() if (document := _document(row))]
    progress = next((document for document in documents if "rate" in document), None)
    result = next((document for document in documents if "ready" in document), None)
    if unit.get("ActiveState") in ("active", "activating", "reloading"):
        return Transfer(True, _snapshot(progress, unit.get("InvocationID", "")))
    fresh = result is not None and unit.get("InvocationID") in ("", None, result["run"])
    if unit.get("ActiveState") == "failed" and not fresh:
        return Transfer(failed=(f"{UNIT} ended without a word ({unit.get('Result')})",))
    if result is None or result["ready"]:
        return Transfer()
    return Transfer(stopped=True) if result["ended"] else Transfer(failed=tuple(reasons(result)))


def _document(row: str) -> dict[str, Any] | None:
    try:
        document = json.loads(row)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _snapshot(progress: dict[str, Any] | None, run: str) -> Snapshot | None:
    """What the present run told; what an earlier one left, or another release, says nothing."""
    try:
        return read_snapshot(progress) if progress and progress["run"] == run else None
    except (KeyError, TypeError):
        return None


def complaints(told: str) -> Iterator[str]:
    """What is wrong with a transfer, a line each."""
    transfer = parse(told)
    yield from transfer.failed
    yield from (f"{name}: {WAITS_FOR_SPACE}" for name in transfer.waiting)
