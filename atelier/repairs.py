"""What of a half-dead host a reprovision repairs, and what it will not touch and why. Pure.

`ailments.py` asks the host; `mending.py` carries out what is decided here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from atelier.ailments import Ailments
from atelier.apt import Repository


@dataclass(frozen=True)
class Repair:
    """One thing that is wrong with a host, and what becomes of it.

    what: the repair, as a step is named; empty where it is not touched, and then `why`. script: as root on the host.
    remedy: what a person does about what is not touched. removes: it needs a yes. stops: nothing else can be done before
    this is mended. repository: one of ours whose key is fetched anew; it has no script.
    """

    problem: str
    what: str = ""
    script: str = ""
    stdin: bytes = b""
    why: str = ""
    remedy: str = ""
    removes: bool = False
    stops: bool = False
    repository: Repository | None = None

    def is_done_by_us(self) -> bool:
        """Whether anything is done about it here."""
        return bool(self.what)


def plan(facts: Ailments) -> tuple[Repair, ...]:
    """What is wrong, in the order in which it is repaired; nothing of a healthy host."""
    return ()


def needs_consent(repairs: Iterable[Repair]) -> bool:
    """Whether a repair removes anything."""
    return any(repair.removes for repair in repairs)


def lines(repairs: Iterable[Repair]) -> list[str]:
    """The repairs as a plan prints them."""
    return [line for repair in repairs for line in _lines(repair)]


def _lines(repair: Repair) -> list[str]:
    if repair.is_done_by_us():
        return [f"{repair.problem}: {repair.what}"]
    return [f"{repair.problem}: not touched: {repair.why}", f"  -> {repair.remedy}"]
