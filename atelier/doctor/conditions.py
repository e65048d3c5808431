"""What no log says: states of a host that are wrong, or will be after the next start, as lines for signatures to match. Pure."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from atelier import transfer
from atelier.gpu import devices, routes, toolkit
from atelier.gpu.cards import version
from atelier.gpu.facts import GpuFacts
from atelier.hostfacts import HostFacts

CLOCK_TOLERANCE = 120  # seconds
FULL = 1 << 30  # a file system with less room than this, and 98 % of it used, counts as full


def conditions(text: Mapping[str, str], now: float, local_time: float, facts: HostFacts | None) -> list[str]:
    """The lines. text: what each source brought, by its name. facts: None for a host without a GPU, or where they are not known."""
    found = [*_clock(now, local_time), *_full_disks(text.get("disks", ""))]
    found += [f"weights: {complaint}" for complaint in transfer.complaints(text.get("weights", ""))]
    if facts is None:
        return found
    found += _driver(facts.gpu)
    record = _document(text.get("deployed", ""))
    if not record:
        return found
    return [*found, *_cdi(facts.gpu, record), *_kept(facts, text), *_given(text, record)]


def _clock(now: float, local_time: float) -> Iterator[str]:
    if now and abs(now - local_time) > CLOCK_TOLERANCE:
        yield f"clock: {abs(now - local_time):.0f} s {'ahead' if now > local_time else 'behind'} of this computer's"


def _full_disks(df: str) -> Iterator[str]:
    space, _, inodes = df.partition("\ninodes\n")
    for row in (line.split() for line in space.splitlines()[1:]):
        if len(row) >= 6 and row[1].isdigit() and int(row[1]) > FULL:
            free, used = int(row[3]), int(row[4].rstrip("%") or 0)
            if used >= 98 and free < FULL:
                yield f"disk: {row[5]} is full: {free >> 20} MB of {int(row[1]) >> 30} GB free"
    for row in (line.split() for line in inodes.splitlines()[1:]):
        if len(row) >= 6 and row[4] == "100%" and row[0].startswith("/dev/"):
            yield f"disk: {row[5]} is full: no inode is free"


def _driver(gpu: GpuFacts) -> Iterator[str]:
    loaded, installed = gpu.loaded.version, gpu.installed.version
    if loaded and installed and loaded != installed:
        yield f"driver: loaded {loaded}, on disk {installed}"
    built = [name for name in gpu.packages if routes.DRIVER_PACKAGE.match(name) and "dkms" in name]
    if built and not loaded and not installed:
        yield f"driver: DKMS has built nothing for kernel {gpu.kernel} ({', '.join(built)})"
    held = [card.address for card in gpu.pci if card.driver == "nouveau"]
    if held and not loaded:
        yield f"driver: nouveau holds {', '.join(held)}"


def _cdi(gpu: GpuFacts, record: Mapping[str, Any]) -> Iterator[str]:
    """Only while the driver works: without it there is no list, and that has its own cause."""
    wanted = set(record.get("gpus", {}).values())
    lacking = [uuid for uuid in wanted if devices.cdi_device(uuid) not in gpu.cdi_devices]
    if lacking and gpu.devices:
        there = ", ".join(each.uuid for each in gpu.devices)
        yield f"cdi: {', '.join(sorted(lacking))} is not among the CDI devices; nvidia-smi lists {there}"


def _kept(facts: HostFacts, text: Mapping[str, str]) -> Iterator[str]:
    """What a deploy set so that the GPU comes back after each start."""
    if _document(facts.daemon_json).get("features", {}).get("cdi") is not True:
        yield "docker: daemon.json does not set features.cdi"
    lost = re.findall(r"^lost: (.+)$", text.get("boot", ""), re.M)
    if lost:
        yield f"boot: {'; '.join(lost)}"
    versions = toolkit.installed_versions(facts.gpu)
    unsafe = [f"{name} {there}" for name, there in versions.items() if version(there) < toolkit.FLOOR]
    if unsafe:
        yield f"toolkit: below {'.'.join(map(str, toolkit.FLOOR))}: {', '.join(unsafe)}"
    holds = {*_document(text.get("manifest", "")).get("created", {}).get("holds", ()), *toolkit.PACKAGES}
    free = sorted(holds & facts.gpu.packages.keys() - facts.gpu.held)
    if free:
        yield f"apt: not held any more: {', '.join(free)}"


def _given(text: Mapping[str, str], record: Mapping[str, Any]) -> Iterator[str]:
    """A container that was made by hand may see another GPU than the one that it was given."""
    for service, uuid in record.get("gpus", {}).items():
        container = record.get("services", {}).get(service, {}).get("container", "")
        seen = re.findall(r"^GPU \d+: .*\(UUID: (GPU-[^)]+)\)", text.get(f"gpu-in-{container}", ""), re.M)
        if seen and uuid.startswith("GPU-") and seen != [uuid]:
            yield f"gpu: {container} sees {', '.join(seen)}, and was given {uuid}"


def _document(text: str) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        document: Any = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
