"""What each application leaves open, what nobody may reach, and how it says who somebody is. Data only.

Sources: the applications' own routes at the pinned commits (ComfyUI v0.33.0, ComfyUI-Login 6910925, Forge dfdcbab with
gradio 4.40.0) and what was measured of their weaknesses. Patterns are matched against the whole decoded path.
"""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["comfyui", "forge"]


@dataclass(frozen=True)
class OpenPath:
    """Something that a login page needs: served to anybody, as to a stranger, by the guard itself."""

    methods: frozenset[str]
    path: re.Pattern[str]
    query: re.Pattern[str] = re.compile("")


@dataclass(frozen=True)
class Policy:
    """The rules for one kind of application.

    `scheme` is the only Authorization scheme it knows, `cookies` the names of its own cookies. `stranger_paths` must
    answer 401 to a request without credentials, else the application is not served. `confirm_paths` must answer 200
    to a credential of that kind. `denies_guest` names a path whose JSON answer tells a guest's session from the
    owner's. `encoded_slash` says in which raw paths `%2F` may stand, and there only where the pattern allows it.
    `uploads` may have bodies up to the operator's limit; all others are small.
    """

    kind: Kind
    title: str
    scheme: str
    cookies: re.Pattern[str]
    open: tuple[OpenPath, ...]
    closed: re.Pattern[str]
    login_redirect: str | None
    challenge_paths: re.Pattern[str]
    encoded_slash: re.Pattern[str] | None
    uploads: re.Pattern[str]
    stranger_paths: tuple[str, ...]
    confirm_paths: dict[str, str]
    denies_guest: str | None = None


READ = frozenset({"GET", "HEAD"})
POST = frozenset({"POST"})

COMFYUI = Policy(
    kind="comfyui",
    title="ComfyUI",
    scheme="Bearer",
    cookies=re.compile(r"AIOHTTP_SESSION"),
    open=(
        OpenPath(READ, re.compile(r"/login"), re.compile(r"(wrong_password=1)?")),
        OpenPath(POST, re.compile(r"/login")),
        OpenPath(READ, re.compile(r"/old_css/style\.css")),
    ),
    # The log holds the token: the plugin prints it at every start.
    closed=re.compile(r"(/api)?/internal/logs(/.*)?"),
    login_redirect="/login",
    challenge_paths=re.compile(r".*"),
    # A user's file is one path segment to ComfyUI; its clients write the slashes of a sub-folder as %2F.
    encoded_slash=re.compile(r"(/api)?/userdata/[^/]+(/move/[^/]+)?"),
    # Workflows hold whole images at times.
    uploads=re.compile(r"(/api)?/(upload/.+|userdata/.+|prompt|assets)"),
    stranger_paths=("/prompt",),
    confirm_paths={"bearer": "/prompt", "query": "/prompt", "cookie": "/prompt"},
    denies_guest="/guest_mode",
)

FORGE = Policy(
    kind="forge",
    title="Forge",
    scheme="Basic",
    cookies=re.compile(r"access-token-(unsecure-)?[A-Za-z0-9_-]+"),
    open=(
        OpenPath(READ, re.compile(r"/"), re.compile(r"(__theme=(light|dark|system))?")),
        OpenPath(POST, re.compile(r"/login/?")),
        # On its login page gradio itself writes `undefined` for the hash.
        OpenPath(READ, re.compile(r"/theme\.css"), re.compile(r"(v=([0-9a-f]+|undefined))?")),
        OpenPath(READ, re.compile(r"/assets/(svelte/)?[A-Za-z0-9_-][A-Za-z0-9_.-]*\.(js|css|woff2?|ttf|svg|png)")),
        OpenPath(READ, re.compile(r"/static/img/[A-Za-z0-9_-]+\.svg")),
        OpenPath(READ, re.compile(r"/favicon\.ico")),
    ),
    # cmd-flags returns credentials, sysinfo arguments and environment, /proxy= fetches for the caller, /dev is
    # gradio's own reload channel, and no file with a dotted folder in its path (`.git`) is anybody's image.
    closed=re.compile(
        r"/sdapi/v1/cmd-flags/?|/internal/sysinfo(-download)?/?|/proxy=.*|/dev/.*|/file[=/](.*/)?\.[^/]*(/.*)?"
        r"|/file[=/]/(proc|sys|dev|etc|run|root|home)(/.*)?",
        re.IGNORECASE,
    ),
    login_redirect=None,
    # A challenge anywhere else would make browsers ask for a password over the login page.
    challenge_paths=re.compile(r"/sdapi/.*"),
    encoded_slash=None,
    uploads=re.compile(r"/upload|/sdapi/v1/.+|/queue/join|/(run|api)/.+|/controlnet/detect"),
    stranger_paths=("/config", "/sdapi/v1/samplers"),
    confirm_paths={"basic": "/sdapi/v1/samplers", "cookie": "/login_check"},
)

POLICIES: dict[str, Policy] = {policy.kind: policy for policy in (COMFYUI, FORGE)}
