"""Starts the guard and Caddy, and ends when either ends: a gateway without its guard must not stay.

Exit status: 1 when configuration or credentials are missing or malformed, or when one of the two ended by itself;
0 after SIGTERM or SIGINT.
"""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from guard.config import ConfigError, load

HOME = Path(__file__).resolve().parent
CONFIG = Path(os.environ.get("GATEWAY_CONFIG", "/etc/gateway"))
SECRETS = Path(os.environ.get("GATEWAY_SECRETS", "/run/secrets/atelier"))
RUN = Path(os.environ.get("GATEWAY_RUN", "/run/gateway"))
GRACE = 10  # seconds between SIGTERM and SIGKILL


def main() -> int:
    """Run both until one ends or a signal comes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold credentials
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))  # a connection each; 1024 is a usual default
    try:
        load(CONFIG, SECRETS)
    except ConfigError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    caddyfile = CONFIG / "Caddyfile"
    if not caddyfile.is_file() or not caddyfile.read_text(encoding="utf-8").strip():
        print(f"gateway: {caddyfile}: missing or empty", file=sys.stderr)
        return 1
    # A write below these is all that Caddy and aiohttp ever do; the root file system is read-only.
    environment = os.environ | {
        "GATEWAY_RUN": str(RUN),
        "HOME": str(RUN),
        "TMPDIR": str(RUN),
        "XDG_CONFIG_HOME": str(RUN / "config"),
        "XDG_DATA_HOME": str(RUN / "data"),
    }
    commands = (
        [sys.executable, "-m", "guard", str(CONFIG), str(SECRETS), str(RUN / "guard.sock")],
        ["caddy", "run", "--config", str(caddyfile), "--adapter", "caddyfile"],
    )
    # Blocked before anything starts, so that no signal is lost; the children get an empty mask.
    awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    children = [
        subprocess.Popen(command, cwd=HOME, env=environment, preexec_fn=_accept_signals) for command in commands
    ]
    asked_to_end = False
    while all(child.poll() is None for child in children):
        if signal.sigwait(awaited) != signal.SIGCHLD:
            asked_to_end = True
            break
    for command, child in zip(commands, children, strict=True):
        if child.poll() is not None and not asked_to_end:
            print(f"gateway: {command[0]} ended with status {child.returncode}", file=sys.stderr)
        child.terminate()
    for child in children:
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return 0 if asked_to_end else 1


def _accept_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


if __name__ == "__main__":
    sys.exit(main())
