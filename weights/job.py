"""A job in a JSON file, as the deploy writes it."""

import hashlib
import json
import stat
from collections.abc import Iterable
from pathlib import Path

from weights.aria2 import Limits
from weights.fetch import FetchError, Job
from weights.store import File

_GLOB = set("*?[")


def read_job(path: Path) -> tuple[Job, Path | None]:
    """The job that a file describes, and where its result is to be written."""
    try:
        text = path.read_bytes()
        told = json.loads(text)
        files = tuple(
            File(one["name"], one["bytes"], one["sha256"], tuple(one.get("urls", ()))) for one in told["files"]
        )
        usual = Job(files, Path(told["store"]), Path(told["state"]))
        job = Job(
            files,
            usual.store,
            usual.state,
            Limits(connections=told.get("connections", usual.limits.connections), proxy=told.get("proxy")),
            jobs=told.get("jobs", usual.jobs),
            reserve=told.get("reserve_bytes", usual.reserve),
            search=_found(told.get("search", ())),
            token=_token(told.get("token_file")),
            progress=_path(told.get("progress")),
            id=hashlib.sha256(text).hexdigest(),
        )
        return job, _path(told.get("result"))
    except (KeyError, TypeError, ValueError) as error:
        raise FetchError(f"{path} describes no job: {type(error).__name__}: {error}") from error


def _found(patterns: Iterable[str]) -> tuple[Path, ...]:
    found = (
        path for pattern in patterns for path in sorted(Path("/").glob(pattern.lstrip("/"))) if _counts(path, pattern)
    )
    return tuple(path for path in found if path.is_dir())


def _counts(path: Path, pattern: str) -> bool:
    """Whether only root decided where this hit of a pattern leads: below a `*` anybody may have linked to anything."""
    fixed = next((depth for depth, part in enumerate(Path(pattern).parts) if _GLOB & set(part)), len(path.parts))
    below = [Path(*path.parts[: depth + 1]) for depth in range(fixed, len(path.parts))]
    try:
        return all(not stat.S_ISLNK(found.st_mode) or found.st_uid == 0 for found in map(Path.lstat, below))
    except OSError:
        return False


def _path(told: str | None) -> Path | None:
    return Path(told) if told else None


def _token(path: str | None) -> str | None:
    return Path(path).read_text(encoding="utf-8").strip() if path else None
