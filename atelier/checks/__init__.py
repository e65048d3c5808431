"""The catalogue of checks: which exist for given settings, which are required, which a selection runs. Pure.

A check is declared here, in the module of its group, and written in tests/verify under the same id; a unit test holds
the two together. What is declared and selected but did not run makes a verdict incomplete, so a check cannot get lost.
"""

import difflib
from collections.abc import Collection, Iterable, Sequence

from atelier.checks import access, containers, drift, generation, gpu, host, secrets, storage, survival, weights
from atelier.checks.check import Check as Check
from atelier.errors import AtelierError
from atelier.settings import Settings

CATALOGUE: tuple[Check, ...] = (
    *host.CHECKS,
    *gpu.CHECKS,
    *drift.CHECKS,
    *containers.CHECKS,
    *weights.CHECKS,
    *access.CHECKS,
    *secrets.CHECKS,
    *storage.CHECKS,
    *generation.CHECKS,
    *survival.CHECKS,
)
"""In the order in which they run: causes before their consequences."""

GROUPS = tuple(dict.fromkeys(check.group for check in CATALOGUE))


def existing(settings: Settings, weights: Collection[str] | None = None) -> list[Check]:
    """The checks that exist for a host with these settings, in the order in which they run.

    weights: names of the files that the settings ask for, there or not; None while that is not known.
    """
    enabled = settings.enabled()
    profiles = {"cpu": ("cpu",), "gpu-simulated": ("gpu",), "gpu": ("gpu", "cuda")}[settings.profile]
    checks = [check for check in CATALOGUE if check.service in (None, *enabled) and check.profile in (None, *profiles)]
    return [
        check
        for check in checks
        if (settings.tls.mode != "off" or not check.tls) and (weights is None or set(check.weights) <= set(weights))
    ]


def select(
    checks: Sequence[Check],
    *,
    quick: bool = False,
    full: bool = False,
    deep: bool = False,
    groups: Collection[str] = (),
    ids: Collection[str] = (),
) -> list[Check]:
    """The checks that a run does: named groups and ids (together), or all; with `quick` only the quick ones of them.

    An id may name several checks by its beginning (`access.comfyui`). A check named in full runs with `quick` as well,
    and one that is named at all needs neither `full` nor `deep`. Raises AtelierError for a name that fits nothing.
    """
    known = {check.group for check in checks} | {check.id for check in checks}
    for name in [*groups, *ids]:
        fits = [check for check in checks if check.group == name or (name in ids and check.fits(name))]
        if not fits:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else "known groups: " + ", ".join(GROUPS)
            raise AtelierError(f"no check or group {name!r} on this host", remedy)
    asked = {"always", *(["full"] if full else []), *(["deep"] if deep else [])}

    def chosen(check: Check) -> bool:
        named = check.group in groups or any(check.fits(name) for name in ids)
        wanted = named if groups or ids else check.run in asked
        return wanted and (check.quick or not quick or check.id in ids)

    return [check for check in checks if chosen(check)]


def required(checks: Sequence[Check]) -> set[str]:
    """The ids without which a verdict is incomplete."""
    return {check.id for check in checks if not check.optional}


def explained(red: Iterable[str], checks: Sequence[Check] = CATALOGUE) -> set[str]:
    """The ids that depend on one of these: their failure may follow from it."""
    causes = set(red)
    return {check.id for check in checks if causes & set(check.depends)}
