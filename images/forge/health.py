"""Healthy means, of the UI and of the API: 401 to a stranger and 200 to a known credential (this process's own)."""

from __future__ import annotations

import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

URL = "http://127.0.0.1:7860"


def status(path: str, headers: dict[str, str]) -> int:
    """The status that Forge answers with; raises OSError when there is no answer."""
    try:
        request = urllib.request.Request(URL + path, headers=headers)
        with urllib.request.urlopen(request, timeout=4) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


user, password = json.loads(Path("/run/atelier/health").read_text(encoding="ascii"))
basic = base64.b64encode(f"{user}:{password}".encode()).decode()
answers = (
    status("/config", {}),
    status("/sdapi/v1/samplers", {}),
    status("/sdapi/v1/samplers", {"Authorization": f"Basic {basic}"}),
)
print("stranger {} and {}, known credential {}".format(*answers))
sys.exit(0 if answers == (401, 401, 200) else 1)
