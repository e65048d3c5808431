"""What a restart leaves."""

from atelier.checks.check import LOGS, Check, for_services

CHECKS: tuple[Check, ...] = (
    *for_services(
        "survival.{service}.restart",
        "{name}: a restart leaves it closed to strangers, open to its owner, and the images in place",
        "nothing is lost and nothing opens at a restart (9, 13)",
        LOGS,
        quick=False,
        run="full",
    ),
    Check(
        "survival.gateway.restart",
        "The gateway: a restart leaves both services reachable and closed",
        "nothing opens at a restart",
        LOGS.format(service="gateway"),
        quick=False,
        run="full",
    ),
)
