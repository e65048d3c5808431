"""A run's page without what tells whose host it was, to be shown to others:

.venv/bin/python -m atelier.report.neutral reports/gpu1/latest docs/example-report.html --host gpu1 --replace operator=me

Addresses become those that are reserved for documents, homes and GPUs get the same name everywhere; what else gives
away a person or a place is named with --replace. Secrets are not in a report to begin with.
"""

import argparse
import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError
from atelier.history import PastReport, comparable, past_reports
from atelier.report.model import Report
from atelier.report.page import as_page

IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\w)")
IPV6 = re.compile(r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)
HARDWARE = re.compile(r"(?<![\w:])[0-9a-f]{2}(?::[0-9a-f]{2}){5}(?![\w:])", re.IGNORECASE)
HOME = re.compile(r"/home/[^/\s'\",;:]+")
GPU = re.compile(r"\bGPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


class Neutral:
    """Replaces names and addresses, each by the same thing wherever it stands."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = sorted(names.items(), key=lambda pair: len(pair[0]), reverse=True)
        self._numbers: dict[str, int] = {}

    def __call__(self, value: Any) -> Any:
        """The same structure with other names."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {self(key): self(item) for key, item in value.items()}
        return [self(item) for item in value] if isinstance(value, list) else value

    def _text(self, text: str) -> str:
        for name, other in self._names:
            text = text.replace(name, other)
        text = HARDWARE.sub(lambda found: f"00:00:5e:00:53:{self._number(found[0]):02x}", text)
        text = IPV6.sub(self._address, IPV4.sub(self._address, text))
        text = GPU.sub(lambda found: f"GPU-00000000-0000-0000-0000-{self._number(found[0]):012x}", text)
        return HOME.sub("/home/operator", text)

    def _address(self, found: "re.Match[str]") -> str:
        try:
            address = ipaddress.ip_address(found[0])
        except ValueError:
            return found[0]  # a time of day, a version
        if address.is_loopback or address.is_unspecified:
            return found[0]
        number = self._number(found[0])
        return f"2001:db8::{number:x}" if address.version == 6 else f"192.0.2.{number}"

    def _number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers) + 1)


def neutral_page(place: Path, host: str, names: Mapping[str, str]) -> str:
    """report.html of the run in a folder, with another name for its host, and with the other names given.

    Raises AtelierError where something of what was to be replaced is still in it.
    """
    report = Report.model_validate_json((place / "report.json").read_text(encoding="utf-8"))
    earlier = [run for run in past_reports(place.parent) if run.name < place.name]
    neutral = Neutral({report.host: host, **names})
    told = Report.model_validate(neutral({**report.model_dump(by_alias=True), "matrices": []}))
    past = [
        PastReport.model_validate(neutral(run.model_dump()))
        for run in comparable(earlier, report.doubles, report.versions)
    ]
    page = as_page(told, past, place)
    if left := [name for name in (report.host, *names) if name in page and name not in (host, *names.values())]:
        raise AtelierError(f"still in the page: {', '.join(left)}", "name it in full with --replace")
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("run", type=Path, help="the folder of a run, such as reports/gpu1/latest")
    parser.add_argument("page", type=Path, help="what to write")
    parser.add_argument("--host", default="gpu1", help="the host's name there")
    parser.add_argument("--replace", action="append", default=[], metavar="OLD=NEW")
    given = parser.parse_args(arguments)
    names = dict(pair.split("=", 1) for pair in given.replace)
    given.page.write_text(neutral_page(given.run.resolve(), given.host, names), encoding="utf-8")


if __name__ == "__main__":
    main()
