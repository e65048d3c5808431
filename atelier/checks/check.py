"""What a check is, before it is written: its id, what it proves, when it runs, and what to do when it is red."""

from dataclasses import dataclass
from typing import Literal

REDEPLOY = "run `make deploy`; if it stays red, something else on the host keeps changing it"
LOGS = "see `make logs SERVICE={service}`"


@dataclass(frozen=True)
class Check:
    """One thing that is proven.

    requirement: what must be true. hint: what to do when it is red.
    service, profile: it exists only where that service is deployed, or under that profile: `gpu` (a simulated one too),
    `cuda` (one that computes), `cpu`. tls: it exists only where the gateway speaks TLS. weights: it exists only where the
    settings ask for all of these files. quick: part of QUICK=1.
    run: `full` and `deep` ones run with FULL=1 and DEEP=1, or when they or their group are named.
    depends: ids whose failure explains this one's, by the same cause. What shows whether somebody gets in, or out, who
    must not has none: it is never called a consequence.
    optional: may be skipped without making the verdict incomplete.
    """

    id: str
    title: str
    requirement: str
    hint: str
    service: Literal["comfyui", "forge"] | None = None
    profile: Literal["gpu", "cuda", "cpu"] | None = None
    tls: bool = False
    weights: tuple[str, ...] = ()
    quick: bool = True
    run: Literal["always", "full", "deep"] = "always"
    depends: tuple[str, ...] = ()
    optional: bool = False

    @property
    def group(self) -> str:
        """The part of the id before the first dot."""
        return self.id.partition(".")[0]

    def fits(self, name: str) -> bool:
        """Whether a name is this check's id or the beginning of it, up to a dot."""
        return self.id == name or self.id.startswith(name + ".")


_NAMES = {"comfyui": "ComfyUI", "forge": "Forge"}


def for_services(
    id: str,
    title: str,
    requirement: str,
    hint: str,
    *,
    quick: bool = True,
    run: Literal["always", "full", "deep"] = "always",
    depends: tuple[str, ...] = (),
) -> list[Check]:
    """The same check for both applications; `{service}` and `{name}` are filled in."""
    kinds: tuple[Literal["comfyui", "forge"], ...] = ("comfyui", "forge")
    checks = []
    for kind in kinds:
        filled = [text.format(service=kind, name=_NAMES[kind]) for text in (id, title, requirement, hint)]
        after = tuple(name.format(service=kind) for name in depends)
        checks.append(
            Check(filled[0], filled[1], filled[2], filled[3], service=kind, quick=quick, run=run, depends=after)
        )
    return checks
