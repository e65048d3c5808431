"""The containers: what was deployed, confined."""

from atelier.checks.check import REDEPLOY, Check

CHECKS: tuple[Check, ...] = (
    Check(
        "containers.running",
        "The containers run, are healthy and come back after a reboot",
        "a health check means usable and refusing strangers",
        "see `make status` and `make logs`",
        depends=("host.docker",),
    ),
    Check(
        "containers.images",
        "The containers run the images that were deployed",
        "what runs is what was built",
        REDEPLOY,
        depends=("host.docker", "containers.running"),
    ),
    Check(
        "containers.hardened",
        "The containers run unprivileged: own user, read-only, no capabilities",
        "least privilege",
        REDEPLOY,
    ),
    Check(
        "containers.limits",
        "The containers have their limits, and their logs are rotated",
        "neither memory nor logs of one service take the host from the others",
        REDEPLOY,
        depends=("host.docker", "containers.running"),
    ),
    Check(
        "containers.ports",
        "No container but the gateway publishes a port",
        "no published port bypasses the gateway",
        "remove the container or the port that is named; " + REDEPLOY,
    ),
    Check(
        "containers.networks",
        "Each application has an internal network of its own, shared with the gateway only",
        "applications reach neither the internet, nor the host, nor each other",
        REDEPLOY,
    ),
    Check(
        "containers.egress",
        "The applications cannot reach the internet, the host or each other",
        "applications reach neither the internet, nor the host, nor each other",
        "look for a network with a way out: `docker network inspect` on the host; then `make deploy`",
    ),
    Check(
        "containers.logs",
        "Nothing failed to import and nothing installed itself at start",
        "a plugin that does not import must be noticed",
        "the log line names the module; rebuild the images with `make deploy`",
        depends=("host.docker", "containers.running"),
    ),
)
