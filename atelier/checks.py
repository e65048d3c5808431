"""The catalogue of checks: which exist for given settings, which are required, which a selection runs. Pure.

A check is declared here and written in tests/verify, under the same id; a unit test holds the two together. What is
declared and selected but did not run makes a verdict incomplete, so a check cannot get lost.
"""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from atelier.errors import AtelierError
from atelier.settings import Settings

GROUPS = ("containers", "gpu", "host", "access", "secrets", "storage", "generation", "survival")


@dataclass(frozen=True)
class Check:
    """One thing that is proven.

    requirement: what must be true; numbers are lines of the list of known failures. hint: what to do when it is red.
    service, profile: it exists only where that service is deployed, or under that profile: `gpu` (a simulated one too),
    `cuda` (one that computes), `cpu`. tls: it exists only where the gateway speaks TLS. quick: part of QUICK=1.
    optional: may be skipped without making the verdict incomplete.
    """

    id: str
    title: str
    requirement: str
    hint: str
    service: Literal["comfyui", "forge"] | None = None
    profile: Literal["gpu", "cuda", "cpu"] | None = None
    tls: bool = False
    quick: bool = True
    optional: bool = False

    @property
    def group(self) -> str:
        """The part of the id before the first dot."""
        return self.id.partition(".")[0]


_NAMES = {"comfyui": "ComfyUI", "forge": "Forge"}


def _for_services(id: str, title: str, requirement: str, hint: str, *, quick: bool = True) -> list[Check]:
    """The same check for both applications; `{service}` and `{name}` are filled in."""
    kinds: tuple[Literal["comfyui", "forge"], ...] = ("comfyui", "forge")
    checks = []
    for kind in kinds:
        filled = [text.format(service=kind, name=_NAMES[kind]) for text in (id, title, requirement, hint)]
        checks.append(Check(filled[0], filled[1], filled[2], filled[3], service=kind, quick=quick))
    return checks


_REDEPLOY = "run `make deploy`; if it stays red, somebody or something changes the host behind it"
_LOGS = "see `make logs SERVICE={service}`"
_CLOSE = (
    "stop it now with `make stop`: what should be closed is open; then `make deploy` and `make logs SERVICE=gateway`"
)

CATALOGUE: tuple[Check, ...] = (
    Check(
        "host.listening",
        "The services' ports listen on the configured address only",
        "only the gateway is reachable, and only where it was asked for (8, 14)",
        "see which program holds the port with `ss -ltnp` on the host; bind_address is in the settings",
    ),
    Check(
        "host.closed",
        "The host's other addresses refuse the services' ports",
        "a loopback bind really is one (8)",
        "the guard for loopback addresses is missing: run `make deploy`",
    ),
    Check(
        "containers.running",
        "The containers run, are healthy and come back after a reboot",
        "a health check means usable and refusing strangers (6)",
        "see `make status` and `make logs`",
    ),
    Check(
        "containers.images",
        "The containers run the images that were deployed",
        "what runs is what was built (4, 10)",
        _REDEPLOY,
    ),
    Check(
        "containers.hardened",
        "The containers run unprivileged: own user, read-only, no capabilities",
        "least privilege (25)",
        _REDEPLOY,
    ),
    Check(
        "containers.ports",
        "No container but the gateway publishes a port",
        "no door beside the gateway (8)",
        "remove the container or the port that is named; " + _REDEPLOY,
    ),
    Check(
        "containers.networks",
        "Each application has an internal network of its own, shared with the gateway only",
        "applications reach neither the internet, nor the host, nor each other",
        _REDEPLOY,
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
        "a plugin that does not import must be noticed (1, 9, 10)",
        "the log line names the module; rebuild the images with `make deploy`",
    ),
    Check(
        "gpu.containers",
        "Each application sees the GPU it was given, and no other",
        "GPUs by UUID through CDI, also after a daemon-reload (16, 18)",
        "see `nvidia-ctk cdi list` and `journalctl -u docker` on the host, and `make doctor`; then `make deploy`",
        profile="gpu",
    ),
    Check(
        "gpu.host",
        "The host gives its GPUs to containers after every boot, and no upgrade takes the driver away",
        "containers keep their GPU through upgrades, reboots and daemon-reload (17, 18)",
        _REDEPLOY,
        profile="gpu",
    ),
    Check(
        "gpu.torch",
        "PyTorch in each application computes on its GPU",
        "images whose PyTorch fits driver and card (10, 16)",
        "see `make plan` for the PyTorch that fits, and `make doctor`",
        profile="cuda",
    ),
    Check(
        "access.certificate",
        "The services show the declared certificate, and it lasts for a while",
        "what clients are told to trust is what they meet, and it does not end unnoticed",
        _REDEPLOY,
        tls=True,
    ),
    *_for_services(
        "access.{service}.healthz", "{name}: /healthz says up", "a public state that says nothing else", _LOGS
    ),
    *_for_services(
        "access.{service}.stranger", "{name}: strangers are refused", "no credential, no access (1, 24)", _CLOSE
    ),
    *_for_services(
        "access.{service}.wrong",
        "{name}: wrong, malformed and foreign credentials are refused",
        "only the service's own credential opens it (2, 3)",
        _CLOSE,
    ),
    Check(
        "access.comfyui.token",
        "ComfyUI: the bytes of the token file open it",
        "the token kept here is the token in force, byte for byte (2, 3, 4)",
        "the host holds other credentials than `.secrets`: `make deploy` says which way to go",
        service="comfyui",
    ),
    Check(
        "access.comfyui.query",
        "ComfyUI: a token in the URL is treated as the settings say",
        "a token in a URL ends up in logs and histories",
        "see allow_query_token in the settings; then `make deploy`",
        service="comfyui",
    ),
    Check(
        "access.comfyui.browser",
        "ComfyUI: user and password log a browser in, a wrong password does not",
        "the browser's way in works",
        _LOGS.format(service="comfyui"),
        service="comfyui",
    ),
    Check(
        "access.comfyui.websocket",
        "ComfyUI: the WebSocket opens to the token only and speaks",
        "live progress through the gateway (27)",
        _LOGS.format(service="gateway"),
        service="comfyui",
    ),
    Check(
        "access.forge.basic",
        "Forge: user and password open the API",
        "the API's way in works (5)",
        "the host holds other credentials than `.secrets`: `make deploy` says which way to go",
        service="forge",
    ),
    Check(
        "access.forge.login",
        "Forge: the login form opens the interface, a wrong password does not",
        "the browser's way in works (5)",
        _LOGS.format(service="forge"),
        service="forge",
    ),
    Check(
        "access.direct",
        "Nobody reaches a container beside the gateway's ports: no user of the host, no other container",
        "no door beside the gateway (8)",
        "look for a published port, a network with a way in, an address of the host on it: `docker network inspect`; "
        "then `make deploy`",
        quick=False,
    ),
    *_for_services(
        "access.{service}.matrix",
        "{name}: every path gives every kind of caller what the table says",
        "each service's own credential opens it, nothing else does (1, 2, 3, 5, 24)",
        "access.html beside this report shows each request; " + _CLOSE,
        quick=False,
    ),
    Check(
        "secrets.files",
        "Secret files belong to the service user and nobody else can read them",
        "secrets are readable by exactly who needs them (7)",
        _REDEPLOY,
    ),
    Check(
        "secrets.arrived",
        "The secrets in the containers equal those generated",
        "what reaches the container is what was generated, byte for byte (2, 3, 4)",
        _REDEPLOY,
    ),
    Check(
        "secrets.leaks",
        "No secret in logs, arguments, environments, inspect output or rendered files",
        "secrets never appear where others look (5, 7)",
        "close the leak that is named; the secret is known now and has to be replaced",
    ),
    Check(
        "storage.outputs",
        "Outputs lie in the declared directories, weights are mounted read-only",
        "what users make survives the container (13)",
        _REDEPLOY,
    ),
    Check(
        "generation.comfyui.smoke",
        "ComfyUI: a workflow without weights makes exactly the image asked for",
        "a generation counts when its own fresh image is seen (20, 21, 22)",
        _LOGS.format(service="comfyui"),
        service="comfyui",
    ),
    Check(
        "generation.comfyui.checkpoint",
        "ComfyUI: text to image with a checkpoint",
        "the weights load and sample (23)",
        "see `make logs SERVICE=comfyui`; a missing weight: `make deploy`",
        service="comfyui",
        quick=False,
    ),
    Check(
        "generation.forge.txt2img",
        "Forge: text to image with the sampler and checkpoint asked for",
        "a 200 proves nothing (20, 21, 22)",
        "see `make logs SERVICE=forge`; a missing weight: `make deploy`",
        service="forge",
        quick=False,
    ),
    *_for_services(
        "survival.{service}.restart",
        "{name}: a restart leaves it closed to strangers, open to its owner, and the images in place",
        "nothing is lost and nothing opens at a restart (9, 13)",
        _LOGS,
        quick=False,
    ),
    Check(
        "survival.gateway.restart",
        "The gateway: a restart leaves both services reachable and closed",
        "nothing opens at a restart",
        _LOGS.format(service="gateway"),
        quick=False,
    ),
)


def existing(settings: Settings) -> list[Check]:
    """The checks that exist for a host with these settings, in the order in which they run."""
    enabled = settings.enabled()
    profiles = {"cpu": ("cpu",), "gpu-simulated": ("gpu",), "gpu": ("gpu", "cuda")}[settings.profile]
    checks = [check for check in CATALOGUE if check.service in (None, *enabled) and check.profile in (None, *profiles)]
    if settings.tls.mode == "off":
        checks = [check for check in checks if not check.tls]
    return sorted(checks, key=lambda check: GROUPS.index(check.group))


def select(checks: Sequence[Check], *, quick: bool, groups: Collection[str], ids: Collection[str]) -> list[Check]:
    """The checks that a run does: named groups and ids (together), or all; with `quick` only the quick ones of them.

    An id may name several checks by its beginning (`access.comfyui`). A check named in full runs with `quick` as well.
    Raises AtelierError for a name that fits nothing.
    """
    known = {check.group for check in checks} | {check.id for check in checks}
    for name in [*groups, *ids]:
        fits = [check for check in checks if check.group == name or (name in ids and _named(check, name))]
        if not fits:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else "known groups: " + ", ".join(GROUPS)
            raise AtelierError(f"no check or group {name!r} on this host", remedy)
    return [
        check
        for check in checks
        if (not groups and not ids) or check.group in groups or any(_named(check, name) for name in ids)
        if check.quick or not quick or check.id in ids
    ]


def _named(check: Check, name: str) -> bool:
    return check.id == name or check.id.startswith(name + ".")


def required(checks: Sequence[Check]) -> set[str]:
    """The ids without which a verdict is incomplete."""
    return {check.id for check in checks if not check.optional}
