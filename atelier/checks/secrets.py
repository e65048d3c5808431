"""Secrets, where they belong and nowhere else."""

from atelier.checks.check import REDEPLOY, Check

CHECKS: tuple[Check, ...] = (
    Check(
        "secrets.files",
        "Secret files belong to the service user and nobody else can read them",
        "secrets are readable by exactly who needs them",
        REDEPLOY,
    ),
    Check(
        "secrets.arrived",
        "The secrets in the containers equal those generated",
        "what reaches the container is what was generated, byte for byte",
        REDEPLOY,
    ),
    Check(
        "secrets.leaks",
        "No secret in logs, arguments, environments, inspect output or rendered files",
        "secrets never appear where others look",
        "close the leak that is named; the secret is known now and has to be replaced",
    ),
    Check(
        "secrets.here",
        "The credentials on this computer are their owner's alone, and not in git",
        "what opens the host is nobody else's to read",
        "on this computer: chmod -R go= .secrets",
    ),
)
