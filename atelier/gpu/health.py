"""Whether the GPUs and their driver are well: from `nvidia-smi -q`, the module's files and the kernel's log. Pure.

The text of `nvidia-smi -q` and not its queries: a query that one driver version does not know is refused as a whole,
and only here a card tells its own limits. What a version or a card leaves out is not judged.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from atelier.doctor.signatures import BENIGN_XIDS, GPU_FALLEN, XIDS
from atelier.errors import Finding
from atelier.gpu.assignment import ALL
from atelier.gpu.cards import undriven
from atelier.gpu.facts import SMI_SECONDS, KernelModule, PciGpu, parse_installed, parse_loaded

SCRIPT = f"""
LC_ALL=C; export LC_ALL; PATH="$PATH:/usr/lib/wsl/lib"
s() {{ echo "::$1"; }}
s smi; {{ {{ timeout -k 2 {SMI_SECONDS} nvidia-smi -q; echo "status $?"; }} </dev/null 2>&1 & }} | timeout {SMI_SECONDS + 5} cat
s loaded; head -n 1 /sys/module/nvidia/version 2>/dev/null; grep -h ^NVRM /proc/driver/nvidia/version 2>/dev/null
s installed; for m in nvidia nvidia-current nvidia-current-open; do
  v=$(modinfo -F version "$m" 2>/dev/null) && {{ echo "$v"; modinfo -F license "$m"; break; }}
done
s pci; for d in /sys/bus/pci/devices/*; do
  [ "$(cat "$d/vendor" 2>/dev/null)" = 0x10de ] && echo "${{d##*/}} $(cat "$d/device")"
done
s persistence; systemctl show nvidia-persistenced.service -p LoadState --value
systemctl show nvidia-persistenced.service -p ExecStart --value | grep -o -e --no-persistence-mode | head -n 1
s kernel
events() {{ grep -aE 'NVRM: (Xid|loading )' | tail -n 500; }}
case "$(systemd-detect-virt -c)" in none|wsl|'') ours=yes ;; *) ours= ;; esac
if journalctl -k -b -q -n 1 --no-pager 2>/dev/null | grep -q .; then
  echo read; journalctl -k -b -q -o cat --no-pager | events
elif [ -z "$ours" ]; then echo "container"
elif dmesg >/dev/null 2>&1; then echo read; dmesg | events
else echo unreadable; fi
true
"""
"""Prints sections that begin with `::name`. In a container the kernel's log is its host's, and no word of it is trusted."""

Fields = Mapping[str, str]
"""What nvidia-smi says of a card, by the headings that lead to it: `Remapped Rows/Pending`."""


@dataclass(frozen=True)
class Card:
    """A GPU as `nvidia-smi -q` describes it. `address` as in 0000:01:00.0."""

    address: str
    fields: Fields

    @property
    def uuid(self) -> str:
        """Its UUID."""
        return self.fields.get("GPU UUID", "")

    def named(self) -> str:
        """The card as a message names it."""
        return f"{self.fields.get('Product Name', 'GPU')} {self.uuid}"


@dataclass(frozen=True)
class Seen:
    """What SCRIPT brought."""

    cards: tuple[Card, ...] = ()
    error: str = ""
    """What nvidia-smi said instead of all of it."""
    loaded: KernelModule = field(default_factory=KernelModule)
    installed: KernelModule = field(default_factory=KernelModule)
    pci: Mapping[str, str] | None = None
    """Device id by address, of everything of NVIDIA's on the bus."""
    persistence_unit: bool = False
    """Whether a unit of the driver's packages switches persistence mode on; Ubuntu's is told not to."""
    kernel: str = "read"
    """Whether the kernel's log could be read: read, container, unreadable."""
    events: tuple[str, ...] = ()
    """The driver's lines in the kernel's log that matter, oldest first."""


def parse(text: str) -> Seen:
    """What SCRIPT printed."""
    sections: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("::"):
            name = line[2:]
        else:
            sections.setdefault(name, []).append(line)
    smi, kernel = sections.get("smi", []), sections.get("kernel", []) or ["unreadable"]
    told, status = (smi[:-1], smi[-1]) if smi and smi[-1].startswith("status ") else (smi, "status 124")
    cards = parse_cards(told)
    said = " ".join(line.strip() for line in told if line.strip() and not _describes(line)) if not cards else ""
    error = ""
    if status in ("status 124", "status 137"):
        error = f"time-out: no answer within {SMI_SECONDS} s"
    elif status != "status 0" or not cards:
        lost = [line.strip() for line in told if re.match(r"Unable to|.*GPU is lost", line)]
        error = " ".join(lost) or said or f"ended with {status}"
    return Seen(
        cards,
        error,
        parse_loaded(sections.get("loaded", [])),
        parse_installed(sections.get("installed", [])),
        {line.partition(" ")[0]: line.partition(" ")[2] for line in sections.get("pci", [])},
        sections.get("persistence") == ["loaded"],
        kernel[0],
        tuple(kernel[1:]),
    )


def _describes(line: str) -> bool:
    return " : " in line or line.startswith("=")


def parse_cards(lines: Iterable[str]) -> tuple[Card, ...]:
    """The cards of `nvidia-smi -q`: a heading `GPU 00000000:01:00.0` each, below it fields and headings by indentation."""
    cards: list[tuple[str, dict[str, str]]] = []
    path: list[tuple[int, str]] = []
    for line in lines:
        if heading := re.fullmatch(r"GPU ([0-9A-Fa-f]{8}:[0-9A-Fa-f:.]+)", line.rstrip()):
            cards.append((heading[1].lower()[-12:], {}))
            path = []
        elif cards and (row := re.fullmatch(r"( +)(\S.*?)\s*(?: : ?(.*))?", line.rstrip())):
            indent = len(row[1])
            path = [*((depth, name) for depth, name in path if depth < indent), (indent, row[2])]
            if row[3] is not None:
                cards[-1][1].setdefault("/".join(name for _, name in path), row[3].strip())
    return tuple(Card(address, fields) for address, fields in cards)


def in_use(seen: Seen, wanted: Collection[str]) -> list[Card]:
    """The cards that services were given, by UUID; all of them under WSL2, where CDI knows no UUID."""
    return [card for card in seen.cards if card.uuid in wanted or ALL in wanted]


RESTART_HOST = "restart the host"
MISMATCH = "Driver/library version mismatch"


def driver_faults(seen: Seen, wanted: Collection[str]) -> list[Finding]:
    """What is wrong with the driver, for the cards that services use."""
    if seen.error:
        return [Finding(f"nvidia-smi: {seen.error}", _remedy(seen.error))]
    found = [
        Finding(
            f"{uuid} is not there any more", "see `nvidia-smi -L` on the host; then `make doctor`, or `make deploy`"
        )
        for uuid in sorted(set(wanted) - {ALL} - {card.uuid for card in seen.cards})
    ]
    loaded, installed = seen.loaded, seen.installed
    if loaded.version and installed.version and loaded.version != installed.version:
        found.append(
            Finding(
                f"the kernel runs module {loaded.version} and {installed.version} is installed",
                f"{RESTART_HOST}: the driver was replaced under the running kernel",
            )
        )
    if loaded.flavour and installed.flavour and loaded.flavour != installed.flavour:
        found.append(
            Finding(
                f"the kernel runs {loaded.flavour} modules and {installed.flavour} ones are installed",
                "see `make plan` for those that the cards need; then `make deploy`",
            )
        )
    used = [card for card in in_use(seen, wanted) if card.address in (seen.pci or {})]
    for card in undriven([PciGpu(card.address, (seen.pci or {})[card.address]) for card in used], loaded.flavour):
        problem = f"{loaded.flavour} modules do not drive the card at {card.address} (device id {card.device})"
        found.append(Finding(problem, "see `make plan`; then `make deploy REBOOT=1`"))
    if seen.persistence_unit:
        found += _without_persistence(seen, wanted, "systemctl enable --now nvidia-persistenced on the host")
    return found


def driver_warnings(seen: Seen, wanted: Collection[str]) -> list[Finding]:
    """What could be better with the driver: persistence mode where no unit of its packages looks after it."""
    if seen.error or seen.persistence_unit:
        return []
    return _without_persistence(seen, wanted, "nvidia-smi -pm 1 on the host, after every start of it")


def _remedy(error: str) -> str:
    if MISMATCH in error:
        return f"{RESTART_HOST}: the driver was replaced under the running kernel; then `make deploy`, which holds it"
    if "time-out" in error or "Unable to determine the device handle" in error or "GPU is lost" in error:
        return (
            "a card hangs or has fallen off the bus: power the host off, check power cables and seat; see `make doctor`"
        )
    return "`make doctor` names the cause; `make deploy` installs or loads the driver"


def _without_persistence(seen: Seen, wanted: Collection[str], remedy: str) -> list[Finding]:
    return [
        Finding(f"{card.named()}: persistence mode is off, so the driver unloads the card's state when idle", remedy)
        for card in in_use(seen, wanted)
        if card.fields.get("Persistence Mode") == "Disabled"
    ]


def card_faults(card: Card) -> list[Finding]:
    """What makes a card unfit: what it says of its memory, its state and its heat."""
    named, found = card.named(), []
    if mute := [name for name in _mute(card) if name.startswith(VITAL)]:
        found.append(Finding(_unanswered(card, mute), f"{RESTART_HOST}; see `make doctor`"))
    found += [
        Finding(f"{named}: {name} is Yes", SET_ASIDE if "Pending" in name else REPLACE)
        for name, value in card.fields.items()
        if name.startswith(MEMORY_STATES) and value == "Yes"
    ]
    uncorrected = sum(_number(card.fields[name]) or 0 for name in card.fields if _is_uncorrected(name))
    if uncorrected:
        problem = f"{named}: {uncorrected:g} uncorrected ECC errors since the driver was loaded"
        found.append(
            Finding(
                problem, f"what was computed meanwhile is suspect; {RESTART_HOST}, and replace the card if it recurs"
            )
        )
    action = card.fields.get("GPU Recovery Action", "")
    if action.startswith(("Reset", "Reboot", "Drain")):
        found.append(Finding(f"{named}: the driver asks for the recovery action {action}", RESET))
    elif card.fields.get("GPU Reset Status/Reset Required") == "Yes":
        found.append(Finding(f"{named}: it must be reset", RESET))
    return found + [fault for fault in [_too_hot(card)] if fault]


MEMORY_STATES = ("ECC Errors/", "Retired Pages/", "Remapped Rows/")
VITAL = (*MEMORY_STATES, "GPU UUID", "ECC Mode/", "FB Memory Usage/", "Temperature/GPU Current Temp")
"""What every card that is well tells, or says `N/A` to. Others, such as fans and power, some boards never tell."""


def _mute(card: Card) -> list[str]:
    return [name for name, value in card.fields.items() if re.search(r"Unknown Error|ERR!|GPU is lost", value)]


def _unanswered(card: Card, mute: Sequence[str]) -> str:
    return f"{card.named()}: no answer to {', '.join(mute[:3])}{' and others' if mute[3:] else ''}"


SET_ASIDE = f"bad memory is set aside at the next reset of the card: {RESTART_HOST}"
REPLACE = "the card cannot set aside its bad memory any more: have it replaced"
RESET = f"{RESTART_HOST}, which resets the card"
COOL = "check fans, dust and the room's air; `nvidia-smi -q -d TEMPERATURE` on the host"


def _is_uncorrected(name: str) -> bool:
    """Volatile counters; those of cards before Turing stand under Double Bit, with their sum as Total."""
    return name.startswith("ECC Errors/Volatile/") and (
        "Uncorrectable" in name.rpartition("/")[2] or name.endswith("Double Bit/Total")
    )


def card_warnings(card: Card) -> list[Finding]:
    """What does not make a card unfit and should be known."""
    named, found = card.named(), []
    if mute := [name for name in _mute(card) if not name.startswith(VITAL)]:
        told = "some boards never tell it; where it is told otherwise, check the card's fans, cables and seat"
        found.append(Finding(_unanswered(card, mute), told))
    for where in ("Clocks Event Reasons", "Clocks Throttle Reasons"):
        for reason, remedy in (
            ("HW Thermal Slowdown", COOL),
            ("HW Power Brake Slowdown", "check its power cables and the power supply"),
        ):
            if card.fields.get(f"{where}/HW Slowdown/{reason}") == "Active":
                found.append(Finding(f"{named} slows itself down: {reason}", remedy))
    now, most = (
        _number(card.fields.get(f"Temperature/GPU {name}", "")) for name in ("Current Temp", "Max Operating Temp")
    )
    if now is not None and most is not None and now >= most and not _too_hot(card):
        found.append(Finding(f"{named} has {now:g} C; it is made for less than {most:g} C", COOL))
    now, most = (
        _number(card.fields.get(f"Temperature/Memory {name}", "")) for name in ("Current Temp", "Max Operating Temp")
    )
    if now is not None and most is not None and now >= most:
        found.append(Finding(f"{named}: its memory has {now:g} C; it is made for less than {most:g} C", COOL))
    free = _number(card.fields.get("FB Memory Usage/Free", ""))
    if free is not None and free < NEARLY_FULL:
        problem = f"{named}: {free:g} MiB of its memory are free"
        found.append(Finding(problem, "`nvidia-smi` on the host says who holds it; `make restart` gives it back"))
    return found


def too_full(seen: Seen, wanted: Collection[str], needed: int) -> list[str]:
    """The cards in use that have less than so many MiB free."""
    free = {card.named(): _number(card.fields.get("FB Memory Usage/Free", "")) for card in in_use(seen, wanted)}
    return [f"{named} has {mib:g} MiB free" for named, mib in free.items() if mib is not None and mib < needed]


NEARLY_FULL = 256
"""MiB below which the next generation is likely to find no memory."""


def _too_hot(card: Card) -> Finding | None:
    """From where a card slows itself down: a temperature, or on cards from Ada on a distance to one."""
    now = _number(card.fields.get("Temperature/GPU Current Temp", ""))
    slows = _number(card.fields.get("Temperature/GPU Slowdown Temp", ""))
    distance = _number(card.fields.get("Temperature/GPU T.Limit Temp", ""))
    least = _number(card.fields.get("Temperature/GPU Slowdown T.Limit Temp", ""))
    if now is not None and slows is not None and now >= slows:
        return Finding(f"{card.named()} has {now:g} C and slows itself down from {slows:g} C on", COOL)
    if distance is not None and least is not None and distance <= least:
        return Finding(f"{card.named()} has reached its temperature limit ({now or 0:g} C) and slows itself down", COOL)
    return None


def _number(value: str) -> float | None:
    """The number in `41 C`, `0` or `24564 MiB`; None in `N/A` and everything else."""
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)(?: \S+)?", value)
    return float(found[1]) if found else None


@dataclass(frozen=True)
class Xid:
    """Errors of one number that the driver reported for one card. `address` as in 0000:01:00, without the function."""

    address: str
    number: int
    times: int
    last: str

    def named(self) -> str:
        """The error as a message names it."""
        title = next((known.title for known in XIDS if known.number == self.number), self.last)
        often = "" if self.times == 1 else f", {self.times} times"
        return f"Xid {self.number} of the card at {self.address}{often}: {title}"

    def remedy(self) -> str:
        """What to do about it. It stays in the log, so the driver has to be loaded anew in any case."""
        if self.number == FALLEN:
            return f"{GPU_FALLEN.why} Power the host off and check; see `make doctor`"
        why = next((known.why for known in XIDS if known.number == self.number), "")
        listed = "NVIDIA's list is at https://docs.nvidia.com/deploy/xid-errors/"
        return f"{why or listed} {RESTART_HOST.capitalize()}; `make doctor` says more"


FALLEN = 79
OF_PROGRAMS = (13, 31, 43)
"""Most often a program's own mistake, after which the card is well."""
NOTHING_TO_DO = re.compile(r"recovery action changed from .* to 0x0 \(None\)")


def xids(events: Sequence[str]) -> list[Xid]:
    """The errors since the driver was last loaded, without those that mean nothing."""
    starts = [number for number, line in enumerate(events) if "NVRM: loading " in line]
    found: dict[tuple[str, int], Xid] = {}
    for line in events[starts[-1] :] if starts else events:
        match = re.search(r"NVRM: Xid \(PCI:([0-9A-Fa-f:]+)(?:\.[0-9A-Fa-f])?\): (\d+)(?:, *(.*))?", line)
        if not match or int(match[2]) in BENIGN_XIDS or NOTHING_TO_DO.search(line):
            continue
        key = (match[1].lower()[-10:], int(match[2]))
        last = re.sub(r"^pid='?[^,]*, *(name=[^,]*, *)?", "", match[3] or "")
        found[key] = Xid(*key, found[key].times + 1 if key in found else 1, last)
    return list(found.values())


def xid_faults(seen: Seen, wanted: Collection[str]) -> list[Finding]:
    """Errors of the cards in use that are the card's or its driver's. A card that is gone has no address any more."""
    return [Finding(xid.named(), xid.remedy()) for xid in xids(seen.events) if _is_grave(xid, seen, wanted)]


def xid_warnings(seen: Seen, wanted: Collection[str]) -> list[Finding]:
    """The other errors: those of programs, and of cards that no service uses."""
    return [Finding(xid.named(), xid.remedy()) for xid in xids(seen.events) if not _is_grave(xid, seen, wanted)]


def _is_grave(xid: Xid, seen: Seen, wanted: Collection[str]) -> bool:
    used = {card.uuid for card in in_use(seen, wanted)}
    elsewhere = any(card.address.startswith(xid.address) and card.uuid not in used for card in seen.cards)
    return xid.number not in OF_PROGRAMS and not elsewhere


def health_faults(seen: Seen, wanted: Collection[str]) -> list[Finding]:
    """Everything that makes a card unfit that a service uses."""
    if seen.error:
        return [Finding(f"nvidia-smi: {seen.error}", _remedy(seen.error)), *xid_faults(seen, wanted)]
    return [*xid_faults(seen, wanted), *(fault for card in in_use(seen, wanted) for fault in card_faults(card))]


def health_warnings(seen: Seen, wanted: Collection[str]) -> list[Finding]:
    """Everything else that should be known: about the cards in use, and what is wrong with others."""
    used = in_use(seen, wanted)
    found = [warning for card in used for warning in card_warnings(card)]
    found += [fault for card in seen.cards if card not in used for fault in card_faults(card)]
    found += xid_warnings(seen, wanted)
    if seen.kernel == "unreadable":
        remedy = "let the journal keep the kernel's log; `dmesg` is refused as well"
        found.append(Finding("the kernel's log cannot be read, so errors of the driver (Xid) are not seen", remedy))
    return found


def cdi_faults(known: Collection[str], cards: Sequence[Card], missing_files: Collection[str]) -> list[Finding]:
    """What is wrong with the CDI list: against the cards that nvidia-smi lists, and the files that it would mount.

    known: device names as `nvidia-ctk cdi list` prints them. A card that is cut into slices (MIG) has no device of its own.
    """
    uuids = {card.uuid for card in cards}
    whole = {card.uuid for card in cards if card.fields.get("MIG Mode/Current") != "Enabled"}
    prefix, refresh = "nvidia.com/gpu=", "systemctl restart nvidia-cdi-refresh on the host, or `make deploy`"
    listed = {name.removeprefix(prefix) for name in known if name.startswith(prefix)}
    found = [
        Finding(f"CDI does not know {uuid}, which nvidia-smi lists", refresh)
        for uuid in sorted(whole)
        if uuid not in listed
    ]
    found += [
        Finding(f"CDI knows {name}, which nvidia-smi does not list", refresh)
        for name in sorted(listed)
        if name.startswith("GPU-") and name not in uuids
    ]
    found += [
        Finding(
            f"the CDI list names {path}, which is not on the host: no container with a GPU can start",
            f"it was made for another driver: {refresh}",
        )
        for path in sorted(missing_files)
    ]
    return found
