"""The host itself."""

from atelier.checks.check import REDEPLOY, Check

CHECKS: tuple[Check, ...] = (
    Check(
        "host.system",
        "System, kernel and architecture are supported",
        "what runs is what was tried",
        "docs/tested.md has the systems that were tried",
    ),
    Check(
        "host.disk",
        "The disks have room",
        "a full disk is known before an image is lost to it",
        "free some space on the host",
    ),
    Check(
        "host.memory",
        "The host has the memory that the models need",
        "no generation is killed for memory",
        "see what takes it with `ps` on the host",
    ),
    Check(
        "host.time",
        "The clock is correct and synchronised",
        "a clock that is off makes certificates, logs and proofs of freshness worthless",
        "see `timedatectl` on the host",
    ),
    Check(
        "host.reboot",
        "No restart of the host is overdue",
        "the kernel and driver that run are those on the disk",
        "restart the host when nobody is at work",
    ),
    Check(
        "host.upgrades",
        "Security updates install automatically and never restart the host",
        "holes are closed, and no generation is lost to an upgrade",
        REDEPLOY,
    ),
    Check(
        "host.docker",
        "Docker runs as the services need it, and is root's alone",
        "containers outlive a restart of Docker, get their GPU, and give nobody the host",
        REDEPLOY,
    ),
    Check(
        "host.listening",
        "The services' ports listen on the configured address only",
        "only the gateway is reachable, and only where it was asked for",
        "see which program holds the port with `ss -ltnp` on the host; bind_address is in the settings",
    ),
    Check(
        "host.closed",
        "The host's other addresses refuse the services' ports",
        "a loopback bind really is one",
        "the guard for loopback addresses is missing: run `make deploy`",
    ),
    Check(
        "host.monitor",
        "The host's monitor runs by its systemd timer, as the settings say",
        "what breaks between two runs of verify is noticed, and unknown is never taken for idle or down",
        "see `journalctl -u atelier-monitor` on the host; then `make deploy`",
    ),
)
