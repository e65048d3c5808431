"""What users make, where it was declared."""

from atelier.checks.check import REDEPLOY, Check

CHECKS: tuple[Check, ...] = (
    Check(
        "storage.outputs",
        "Outputs lie in the declared directories, weights are mounted read-only",
        "what users make survives the container (13)",
        REDEPLOY,
    ),
)
