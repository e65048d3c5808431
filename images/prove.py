"""The proof inside an image build: the application starts with throw-away credentials and its health check passes.

    prove.py [--forbid TEXT]... -- ARGUMENT...

Fails when the process ends or stays unhealthy, when its output holds a forbidden text, or when it holds the token.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bcrypt

PROGRAMS = Path("/opt/atelier")
SECRETS = Path("/run/secrets/atelier")
LIMIT = 300  # seconds until healthy


def write_credentials() -> str:
    """The files of both applications; returns the hash, which is ComfyUI's token."""
    password_bcrypt = bcrypt.hashpw(os.urandom(16).hex().encode(), bcrypt.gensalt(10)).decode()
    cookie_key = base64.urlsafe_b64encode(os.urandom(32)).decode()
    (SECRETS / "PASSWORD").write_text(f"{password_bcrypt}\nbuild\n", encoding="utf-8")
    (SECRETS / ".secret-key.txt").write_text(f"{cookie_key},2999-01-01T00:00:00", encoding="ascii")
    (SECRETS / "auth.json").write_text(
        json.dumps({"user": "build", "password_bcrypt": password_bcrypt}), encoding="utf-8"
    )
    return password_bcrypt


def healthy() -> bool:
    """Whether the image's own health check passes."""
    check = [sys.executable, "-P", str(PROGRAMS / "health.py")]
    return subprocess.run(check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def main() -> int:
    """0 when the application was healthy and its output clean."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--forbid", action="append", default=[])
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    token = write_credentials()
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        command = [sys.executable, "-P", str(PROGRAMS / "entrypoint.py"), *options.arguments]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        up = False
        while not up and process.poll() is None and time.monotonic() < started + LIMIT:
            time.sleep(0.5)
            up = healthy()
        seconds = time.monotonic() - started
        process.kill()
        process.wait()
        output.seek(0)
        log = output.read().decode(errors="replace")
    problems = [] if up else [f"not healthy after {seconds:.0f} s"]
    problems += [f"the output holds {text!r}" for text in options.forbid if text in log]
    problems += ["the output holds the token"] if token in log else []
    if problems:
        print(log.replace(token, "[token]")[-8000:])
    print(f"not proven: {'; '.join(problems)}" if problems else f"proven: healthy after {seconds:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
