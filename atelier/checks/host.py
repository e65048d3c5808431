"""The host itself."""

from atelier.checks.check import Check

CHECKS: tuple[Check, ...] = (
    Check(
        "host.listening",
        "The services' ports listen on the configured address only",
        "only the gateway is reachable, and only where it was asked for (8, 14)",
        "see which program holds the port with `ss -ltnp` on the host; bind_address is in the settings",
    ),
    Check(
        "host.closed",
        "The host's other addresses refuse the services' ports",
        "a loopback bind really is one (8)",
        "the guard for loopback addresses is missing: run `make deploy`",
    ),
)
