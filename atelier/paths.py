"""Places on the operator's computer."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """Where slow things are kept between runs: `~/.cache/atelier`, or `$ATELIER_CACHE`."""
    return Path(os.environ.get("ATELIER_CACHE") or Path.home() / ".cache" / "atelier")


def secrets_dir(host: str) -> Path:
    """The operator's credentials for one host (0700)."""
    return PROJECT / ".secrets" / host


def reports_dir(host: str) -> Path:
    """Verify's reports for one host."""
    return PROJECT / "reports" / host


def outputs_dir(host: str) -> Path:
    """Where `make outputs` and `make generate` put images of one host."""
    return PROJECT / "outputs" / host
