"""TEST DOUBLE, never deploy: what the double reads of a weight file, the safetensors header, and what it refuses."""

from __future__ import annotations

import json
import logging
import os
import re
import struct
from typing import Any

MAX_HEADER_BYTES = 100_000_000
BLOCK = re.compile(r"(.*transformer_blocks\.\d+\.)(.+)")


class SafetensorError(Exception):
    """Carries the module name of the real class, because clients read it in `exception_type`."""


SafetensorError.__module__ = "safetensors._safetensors_rust"


def read_header(path: str) -> dict[str, Any]:
    """The header of a safetensors file. SafetensorError, in the library's own words, when the file is not one."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise SafetensorError("Error while deserializing header: header too small")
        length = struct.unpack("<Q", prefix)[0]
        if length > MAX_HEADER_BYTES:
            raise SafetensorError("Error while deserializing header: header too large")
        if length > size - 8:
            raise SafetensorError("Error while deserializing header: invalid header length")
        raw = file.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        tensors = {name: info for name, info in header.items() if name != "__metadata__"}
        end = max((info["data_offsets"][1] for info in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SafetensorError("Error while deserializing header: invalid JSON in header") from error
    if 8 + length + end != size:
        raise SafetensorError("Error while deserializing header: incomplete metadata, file not fully covered")
    return tensors


def log_missing(header: dict[str, Any]) -> None:
    """Like the real loader, only warn about an absent tensor: one that the file's other transformer blocks have."""
    blocks: dict[str, set[str]] = {}
    for name in header:
        if match := BLOCK.match(name):
            blocks.setdefault(match[1], set()).add(match[2])
    complete = set().union(*blocks.values())
    missing = [block + name for block, names in blocks.items() for name in sorted(complete - names)]
    if missing:
        logging.warning("unet missing: %s", missing)
