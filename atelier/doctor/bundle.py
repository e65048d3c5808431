"""The support bundle: what was collected, on the operator's computer, with every secret removed."""

import io
import os
import tarfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from atelier.doctor.collect import Source
from atelier.doctor.redact import HIDDEN, Redactor

README = f"""Support bundle of {{host}}, {{time}}

Look at these files before you send them to anybody.

Replaced by {HIDDEN}: every secret that the operator's computer knows (passwords, tokens, hashes, keys; also encoded),
and whatever looks like one: Authorization headers and cookies, values named password, token, secret or key,
what stands after such a word in a sentence, credentials in URLs, password hashes, private and public SSH keys, addresses
of webhooks, tokens of Hugging Face, GitHub, AWS and others. A secret in a form that is not among these may have come through.
E-mail addresses became [e-mail]; public IP addresses became [address N], the same one the same N throughout.

Left as they are, because trouble cannot be understood without them: names of the host, its users, containers, files and
packages, private and loopback addresses, serial numbers and UUIDs of GPUs. Logs of the applications may hold file names
and words of prompts. Environments of containers and command lines of processes were never collected.
"""


@dataclass(frozen=True)
class Bundle:
    """A written bundle and the files in it, with their sizes."""

    path: Path
    files: tuple[tuple[str, int], ...]


def contents(host: str, instant: datetime, sources: Iterable[Source], extra: Mapping[str, str]) -> dict[str, str]:
    """The files of the bundle, not redacted yet. extra: more of them, by name."""
    files = {"README.txt": README.format(host=host, time=f"{instant:%Y-%m-%d %H:%M:%S} UTC"), **extra}
    for source in sources:
        head = f"# {source.name}, {source.looked_at}"
        head += "; older lines were left out" if source.cut else ""
        head += f"\n# could not be read: {source.problem}" if source.problem else ""
        files[f"host/{source.name}.txt"] = f"{head}\n{source.text}"
    return files


def write(folder: Path, host: str, instant: datetime, files: Mapping[str, str], redact: Redactor) -> Bundle:
    """Write `support-<UTC>.tar.gz`, readable by its owner only, every file but the README redacted."""
    name = f"support-{instant:%Y%m%dT%H%M%SZ}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.tar.gz"
    listed = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for file, text in files.items():
            data = (text if file == "README.txt" else redact(text)).encode()
            entry = tarfile.TarInfo(f"{name}/{file}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
            listed.append((file, len(data)))
    return Bundle(path, tuple(listed))


def now() -> datetime:
    """The present instant in UTC."""
    return datetime.now(timezone.utc)
