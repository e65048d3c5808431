"""What users make, where it was declared."""

from atelier.checks.check import REDEPLOY, Check

CHECKS: tuple[Check, ...] = (
    Check(
        "storage.mounts",
        "Each container has the declared directories and no other, and they are the host's own",
        "what users make lands where the host keeps it, and survives the container",
        REDEPLOY,
        depends=("containers.running",),
    ),
    Check(
        "storage.outputs",
        "What users make belongs to the service user, and nobody else can change it",
        "outputs land in the declared directories, owned right",
        REDEPLOY,
        depends=("containers.running",),
    ),
)
