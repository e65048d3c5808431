"""The weights: there, right, and the applications' own."""

from atelier.checks.check import REDEPLOY, Check

FETCH = "run `make models-fetch`, which brings what is missing and checks what is there"

CHECKS: tuple[Check, ...] = (
    Check(
        "weights.present",
        "Every weight is there, and is the file that was hashed",
        "no weight is trusted because it exists",
        FETCH,
    ),
    Check(
        "weights.seen",
        "Both applications see exactly these weights, and cannot change them",
        "one store for all, no second copy, no empty directory in its place",
        REDEPLOY,
        depends=("containers.running",),
    ),
    Check(
        "weights.deep",
        "Every byte of every weight is right",
        "a weight is what its sha256 says, not what its name does",
        FETCH,
        quick=False,
        run="deep",
        depends=("weights.present",),
    ),
)
