"""Healthy means: 401 to a stranger and 200 to the owner."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from pathlib import Path

URL = "http://127.0.0.1:8188/prompt"


def status(headers: dict[str, str]) -> int:
    """The status that ComfyUI answers with; raises OSError when there is no answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(URL, headers=headers), timeout=4) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


token = Path("/run/secrets/atelier/PASSWORD").read_text(encoding="utf-8").splitlines()[0]
stranger, owner = status({}), status({"Authorization": f"Bearer {token}"})
print(f"stranger {stranger}, owner {owner}")
sys.exit(0 if (stranger, owner) == (401, 200) else 1)
