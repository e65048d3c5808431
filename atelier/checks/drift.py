"""The host is what the settings say now: nobody edited it, and nothing was changed here without a deploy."""

from atelier.checks.check import REDEPLOY, Check

CHECKS: tuple[Check, ...] = (
    Check(
        "drift.files",
        "Every file that a deploy writes is as the settings say now, and none lies among them that is not ours",
        "a host edited by hand, or settings changed without a deploy, are noticed",
        REDEPLOY,
        depends=("secrets.files", "secrets.arrived"),
    ),
    Check(
        "drift.units",
        "Our systemd units are as written, known to systemd, enabled, and nobody added to them",
        "what keeps the host so starts with it, and as it was written",
        REDEPLOY,
        depends=("host.docker", "host.monitor", "host.closed", "gpu.host", "weights.present"),
    ),
    Check(
        "drift.packages",
        "Packages are there, not older than deployed; pinned and held ones exactly as deployed",
        "an upgrade does not take the driver away, and nothing goes back behind a security update",
        REDEPLOY,
        depends=("host.upgrades", "gpu.driver", "gpu.host"),
    ),
    Check(
        "drift.images",
        "Images and configurations are those that the settings ask for now",
        "what runs is what was built from what is declared",
        REDEPLOY,
        depends=("host.docker", "containers.running", "containers.images"),
    ),
    Check(
        "drift.containers",
        "The containers are as their compose files say, and nothing was changed inside them",
        "a container changed by hand is noticed",
        REDEPLOY,
        depends=(
            "host.docker",
            "containers.running",
            "containers.images",
            "containers.hardened",
            "containers.limits",
            "containers.ports",
            "containers.networks",
            "gpu.containers",
            "storage.mounts",
            "weights.seen",
        ),
    ),
)
