"""What the gateway says itself: refusals, and the page of an application that is not being served.

Every refusal names its author, because an application refuses with the same statuses.
"""

import json
import re
from html import escape

from aiohttp import web

from guard.decide import Refuse

RETRY_SECONDS = 2  # a restarted application is proved within about that time
_NO_STORE = {"Cache-Control": "no-store"}
_ATTRIBUTE = re.compile(
    r"\s*;\s*(httponly|secure|samesite|domain)\b\s*(=[^;]*)?", re.IGNORECASE
)  # the Caddyfile's as well
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5"><title>{title} is not being served</title>
<style>body{{font:16px/1.5 sans-serif;max-width:40em;margin:4em auto;padding:0 1em}}</style></head>
<body><h1>{title} is not being served</h1><p>The gateway says why: {reason}.</p>
<p>This page tries again every 5 seconds.</p></body></html>
"""


def refusal(verdict: Refuse, **further: str) -> web.Response:
    """The answer to a refused request."""
    headers = dict(_NO_STORE)
    if verdict.location:
        headers["Location"] = verdict.location
    if verdict.challenge:
        headers["WWW-Authenticate"] = verdict.challenge
    if verdict.retry_after:
        headers["Retry-After"] = str(verdict.retry_after)
    return _json(verdict.status, verdict.reason, headers, further)


def not_served(title: str, reason: str, *, as_page: bool) -> web.Response:
    """The answer while an application is not served: a page for people, JSON for programs."""
    headers = _NO_STORE | {"Retry-After": str(RETRY_SECONDS)}
    if not as_page:
        return _json(503, f"{title} is not being served: {reason}", headers, {})
    page = _PAGE.format(title=escape(title), reason=escape(reason))
    return web.Response(status=503, text=page, content_type="text/html", headers=headers)


def preflight() -> web.Response:
    """What the pages of declared origins may send."""
    headers = {
        "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
    }
    return web.Response(status=204, headers=headers)


def readable_from(answer: web.Response, origin: str) -> web.Response:
    """The answer, which the pages of that origin may read."""
    answer.headers["Access-Control-Allow-Origin"] = origin
    answer.headers["Vary"] = "Origin"
    return answer


def cookie_end(*, secure: bool) -> str:
    """The attributes that every cookie leaves with, whatever the application gave it."""
    return "; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")


def hardened(set_cookie: str, *, secure: bool) -> str:
    """A Set-Cookie header with these attributes, once each."""
    return _ATTRIBUTE.sub("", set_cookie) + cookie_end(secure=secure)


def _json(status: int, reason: str, headers: dict[str, str], further: dict[str, str]) -> web.Response:
    text = json.dumps({"error": reason, "by": "gateway", **further})
    return web.Response(status=status, text=text, content_type="application/json", headers=headers)
