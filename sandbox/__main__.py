"""``python -m sandbox up|down|status [NAME...]`` or ``list|purge``."""

from __future__ import annotations

import argparse
import json
import sys

from sandbox import machine, tools


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 with one clear reason, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    parser.add_argument("command", choices=("up", "down", "list", "status", "purge"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: sandbox")
    parser.add_argument("--disk-gb", type=int, default=60, help="size of a new machine's disk in GiB (sparse)")
    parser.add_argument(
        "--bind", action="append", default=[], type=json.loads, help='["host path", "guest path", true]'
    )
    parser.add_argument("--allow-host", action="append", default=[], help="one more host for the proxy to pass on to")
    options = parser.parse_intermixed_args(arguments)
    try:
        return run(options)
    except (machine.SandboxError, tools.UnavailableError, RuntimeError, OSError) as error:
        print(f"{machine.ERROR_PREFIX}{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; `down` removes what was begun", file=sys.stderr)
        return 130


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)


def run(options: argparse.Namespace) -> int:
    """Carries out one parsed command."""
    names = options.names or ["sandbox"]
    if options.command == "list":
        for name in machine.names():
            say(name)
    elif options.command == "purge":
        machine.purge(say)
    elif options.command == "status":
        for name in names:
            found = machine.get(name)
            say(
                f"{name}: off"
                if found is None
                else f"{name}: running at {found.address}; ssh -F {found.ssh_config} {name}"
            )
    elif options.command == "up":
        for name in names:
            machine.up(
                name,
                say,
                disk_gb=options.disk_gb,
                binds=[tuple(bind) for bind in options.bind],
                allowed_hosts=options.allow_host,
            )
    else:
        for name in names:
            machine.down(name, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
