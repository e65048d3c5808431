"""The container's health: exit 0 when Caddy and the guard behind it answer. The applications have their `/healthz`."""

import os
import sys
import urllib.request

PORT = int(os.environ.get("GATEWAY_HEALTH_PORT", "2020"))

try:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=4) as answer:
        sys.exit(0 if answer.status == 200 else 1)
except OSError as error:  # a refused connection, a time-out and any status of 400 or more
    sys.exit(f"gateway: {error}")
