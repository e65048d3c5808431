"""What a restart leaves. Each is followed by the quick checks; that of the host comes last, as it ends every connection."""

from atelier.checks.check import LOGS, Check, for_services

CHECKS: tuple[Check, ...] = (
    *for_services(
        "survival.{service}.restart",
        "{name}: a restart and a container made anew leave it closed to strangers, open to its owner, with all images",
        "nothing is lost and nothing opens at a restart",
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
    Check(
        "survival.docker",
        "A restart of Docker ends no container, and all is well after it",
        "an upgrade of Docker costs nobody a generation",
        "see `journalctl -u docker` on the host, and `make doctor`",
        quick=False,
        run="full",
    ),
    Check(
        "survival.host",
        "After a restart of the host everything comes back by itself, closed as before",
        "nothing is lost, nothing opens, and nobody has to start anything by hand",
        "see `make status` and `make doctor`",
        quick=False,
        run="full",
    ),
)
