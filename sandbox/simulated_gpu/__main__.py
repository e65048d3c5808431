"""``python -m sandbox.simulated_gpu repositories`` or ``insert SANDBOX [CARD...]``."""

from __future__ import annotations

import argparse
import sys

from sandbox import machine, simulated_gpu, tools


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.simulated_gpu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("repositories", help="write the package repositories and print their settings")
    insert = commands.add_parser("insert", help="plug cards into a running sandbox")
    insert.add_argument("sandbox")
    insert.add_argument("cards", nargs="*", metavar="CARD", help=f"{', '.join(simulated_gpu.CARDS)}; none: as it is")
    options = parser.parse_args(arguments)
    try:
        if options.command == "repositories":
            for name, settings in simulated_gpu.repositories().items():
                print(f"{name}: {settings.model_dump()}")
            return 0
        unknown = [name for name in options.cards if name not in simulated_gpu.CARDS]
        if unknown:
            parser.error(f"no card {', '.join(unknown)}; there are: {', '.join(simulated_gpu.CARDS)}")
        host = machine.get(options.sandbox)
        if host is None:
            parser.error(f"sandbox {options.sandbox} does not run")
        simulated_gpu.insert(host, [simulated_gpu.CARDS[name] for name in options.cards] or None)
    except (machine.SandboxError, tools.UnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
