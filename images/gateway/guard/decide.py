"""The admission rule as one pure function: a request and a policy in, a verdict out. No network, no clock, no state.

Everything is judged on the request target as the client sent it, because that is what the application will get.
"""

import base64
import binascii
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import unquote_to_bytes

from guard.policy import OpenPath, Policy

Scheme = Literal["bearer", "basic", "cookie", "query"]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
TARGET_LIMIT = 8192  # characters; the longest real one, a workflow's name in /userdata, stays far below
_RAW_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,=:@/[\]-]|%[0-9A-Fa-f]{2})*")
_RAW_QUERY = re.compile(r"[!-~]*")
_AUTHORIZATION = re.compile(r"(?P<scheme>[A-Za-z]+) (?P<value>[A-Za-z0-9._~+/$=-]+)")


@dataclass(frozen=True)
class Request:
    """One request: method, raw target, headers in the order they came, names in any case, and its client's scheme."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    scheme: str = "http"

    def values(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for key, value in self.headers if key.lower() == name]

    def value(self, name: str) -> str:
        """The first value of a header, or an empty string."""
        return next(iter(self.values(name)), "")

    @property
    def wants_page(self) -> bool:
        """Whether a person will read the answer in a browser."""
        return self.method == "GET" and "text/html" in self.value("accept")


@dataclass(frozen=True)
class Credential:
    """What a request shows, before anybody has checked it."""

    scheme: Scheme
    value: str

    def __repr__(self) -> str:  # never let a credential into a log by accident
        return f"Credential({self.scheme})"


@dataclass(frozen=True)
class Refuse:
    """The application never sees the request."""

    status: int
    reason: str
    location: str | None = None
    challenge: str | None = None
    retry_after: int | None = None  # seconds


@dataclass(frozen=True)
class Open:
    """The guard answers in the application's place: a part of its login page, or the login itself."""

    login: bool


@dataclass(frozen=True)
class Ask:
    """Admit when the application confirms the credential; `otherwise` is what a stranger would get.

    `uploads` is whether the request may have a body up to the operator's limit.
    """

    credential: Credential
    otherwise: Refuse | Open
    uploads: bool


@dataclass(frozen=True)
class Preflight:
    """A browser asks whether a declared origin's page may send what it is about to; the guard says what such may."""


@dataclass(frozen=True)
class Target:
    """A judged request target: the decoded path and the raw query."""

    path: str
    query: str


def judge(
    request: Request, policy: Policy, *, allow_query_token: bool = False, declared_origins: Collection[str] = ()
) -> Refuse | Open | Ask | Preflight:
    """The verdict on one request."""
    if request.method not in METHODS:
        return Refuse(405, "method not allowed")
    target = read_target(request.target, policy)
    if isinstance(target, Refuse):
        return target
    if policy.closed.fullmatch(target.path):
        return Refuse(403, "this path is closed to everybody")
    other_site = declared_origin(request, declared_origins)
    if other_site is None and not same_origin(request):
        return Refuse(403, "request from a foreign origin")
    if other_site and request.method == "OPTIONS" and request.values("access-control-request-method"):
        return Preflight()
    stranger = _as_stranger(request, target, policy)
    is_login = isinstance(stranger, Open) and stranger.login
    if other_site and is_login:
        return Refuse(403, "sessions are for the login page's own visitors; send a token or a password")
    credential = read_credential(without_cookies(request) if other_site else request, target, policy, allow_query_token)
    if isinstance(credential, Refuse):
        return credential
    # A login is always the guard's to check, so that no guess reaches an application on somebody's session.
    if credential is None or is_login:
        return stranger
    return Ask(credential, stranger, uploads=bool(policy.uploads.fullmatch(target.path)))


def read_target(raw: str, policy: Policy) -> Target | Refuse:
    """Take a request target apart, or refuse it when two readers could understand it differently."""
    path, _, query = raw.partition("?")
    if len(raw) > TARGET_LIMIT:
        return Refuse(414, "request target too long")
    if not _RAW_PATH.fullmatch(path):
        return Refuse(400, "malformed path")
    if not _RAW_QUERY.fullmatch(query):
        return Refuse(400, "malformed query")
    decoded = _decode(path)
    # Decoded once more, in case an application or a library in it decodes twice.
    twice = None if decoded is None else _decode(decoded)
    if decoded is None or twice is None:
        return Refuse(400, "path is not valid UTF-8")
    for form in (path, decoded, twice):
        if re.search(r"[\x00-\x1f\x7f\\]", form) or "//" in form:
            return Refuse(400, "control character, backslash or double slash in path")
        if any(segment in (".", "..") for segment in form.split("/")):
            return Refuse(400, "dot segment in path")
    slashes_kept = twice.count("/") == path.count("/")
    if not slashes_kept and not (policy.encoded_slash and policy.encoded_slash.fullmatch(path)):
        return Refuse(400, "encoded slash in path")
    return Target(decoded, query)


def read_credential(
    request: Request, target: Target, policy: Policy, allow_query_token: bool = False
) -> Credential | Refuse | None:
    """The one credential that a request stands on: its Authorization, else its session, else a query token."""
    tokens = query_values(target.query, "token") if policy.scheme == "Bearer" else []
    if tokens and not allow_query_token:
        return Refuse(401, "a token in the URL is not accepted; send it as `Authorization: Bearer`")
    if len(tokens) > 1:
        return Refuse(400, "more than one token in the URL")
    authorization = request.values("authorization")
    if len(authorization) > 1:
        return Refuse(400, "more than one Authorization header")
    if authorization:
        return _read_authorization(authorization[0], policy)
    if cookies := own_cookies(request.values("cookie"), policy):
        return Credential("cookie", cookies)
    return Credential("query", tokens[0]) if tokens and tokens[0] else None


def _read_authorization(header: str, policy: Policy) -> Credential | Refuse:
    match = _AUTHORIZATION.fullmatch(header)
    if not match or match["scheme"] != policy.scheme:
        return Refuse(401, f"Authorization must be `{policy.scheme}` and one value")
    if policy.scheme == "Basic":
        return Credential("basic", match["value"]) if read_basic(match["value"]) else Refuse(401, "malformed Basic")
    return Credential("bearer", match["value"])


def read_basic(value: str) -> tuple[str, str] | None:
    """User and password of a Basic value, or None when it is not one."""
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon and user and password else None


def own_cookies(headers: Iterable[str], policy: Policy) -> str:
    """The Cookie header with nothing in it but the application's own cookies (ports share cookies in a browser)."""
    pairs = (pair.strip() for header in headers for pair in header.split(";"))
    return "; ".join(
        pair for pair in pairs if policy.cookies.fullmatch(pair.partition("=")[0]) and re.fullmatch("[ -~]+", pair)
    )


def issued_cookies(set_cookies: Iterable[str], policy: Policy) -> str:
    """The application's own cookies among Set-Cookie headers, as their Cookie header will be."""
    return own_cookies((header.partition(";")[0] for header in set_cookies), policy)


def shuts_out(verdict: Refuse | Open) -> bool:
    """Whether it leads nowhere, neither to a login page nor on the way there."""
    return isinstance(verdict, Refuse) and verdict.location is None


def query_values(query: str, name: str) -> list[str]:
    """All values of a query field, however its name is written, with `&` or `;` between fields."""
    fields = (field.partition("=") for field in re.split("[&;]", query))
    return [_decode_query(value) for key, _, value in fields if _decode_query(key) == name]


def same_origin(request: Request) -> bool:
    """Whether a request that changes something, or opens a WebSocket, comes from the gateway's own pages.

    Programs send no Origin and are let through: they have no cookies of somebody else's to abuse.
    """
    origins = request.values("origin")
    if not origins or (request.method in SAFE_METHODS and not request.values("sec-websocket-key")):
        return True
    hosts = request.values("host")
    # What looks plain from here may be under TLS before a proxy that does not say so; the reverse cannot be.
    own = [f"{scheme}://{host}".lower() for scheme in {request.scheme, "https"} for host in hosts]
    return len(origins) == len(hosts) == 1 and origins[0].lower() in own


def declared_origin(request: Request, declared_origins: Collection[str]) -> str | None:
    """The other site whose page sent the request, where the operator declared it."""
    origins = request.values("origin")
    return origins[0] if len(origins) == 1 and origins[0] in declared_origins else None


def without_cookies(request: Request) -> Request:
    """The request as another site's page may make it: on what it knows itself, not on what the browser keeps."""
    return replace(request, headers=tuple(pair for pair in request.headers if pair[0].lower() != "cookie"))


def _as_stranger(request: Request, target: Target, policy: Policy) -> Refuse | Open:
    if any(_matches(request, target, entry) for entry in policy.open):
        return Open(login=request.method == "POST")
    if policy.login_redirect and request.wants_page:
        return Refuse(302, "no valid credential", location=policy.login_redirect)
    challenge = f'{policy.scheme} realm="{policy.title}"' if policy.challenge_paths.fullmatch(target.path) else None
    return Refuse(401, "no valid credential", challenge=challenge)


def _matches(request: Request, target: Target, entry: OpenPath) -> bool:
    # The raw path too: nothing that needs decoding is part of a login page.
    raw_path = request.target.partition("?")[0]
    return (
        request.method in entry.methods
        and bool(entry.path.fullmatch(target.path))
        and raw_path == target.path
        and bool(entry.query.fullmatch(target.query))
    )


def _decode(text: str) -> str | None:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return None


def _decode_query(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ")).decode(errors="replace")
