"""Group access, the whole table of access.txt: every class of path, asked by every kind of caller."""

import json
import time

import bcrypt
import pytest
from access_table import Cell, Shown, basic, cells
from cryptography.fernet import Fernet
from observe import Answer, as_expected, as_report, observe, sample
from stack import ENDED, Stack, one_off

GUESSES_OF_EACH = 2
"""Requests with each wrong credential that a host in use gets."""
DOWN = "the gateway has taken the service out; see `make status` and `make doctor`"


@pytest.mark.check("access.comfyui.stranger")
def test_comfyui_refuses_strangers(stack, check):
    strangers(stack, check, "comfyui")
    page = stack.http("comfyui").get("/", headers={"Accept": "text/html"})
    where = page.headers.get("location", "")
    check(
        "a browser is sent to /login",
        f"{page.status_code} {where}",
        page.status_code == 302 and where.startswith("/login"),
    )


@pytest.mark.check("access.forge.stranger")
def test_forge_refuses_strangers(stack, check):
    strangers(stack, check, "forge")
    page = stack.http("forge").get("/")
    shown = (
        "login page" if '"auth_required":true' in page.text.replace(" ", "") else f"{len(page.text)} other characters"
    )
    check("GET / is the login page, not the application", f"{page.status_code} {shown}", shown == "login page")


def strangers(stack: Stack, check, service: str) -> None:
    """Who shows nothing, whatever the path; the whole table is the matrix."""
    asked = [cell for cell in allowed(stack, service) if cell.column in ("stranger", "browser")]
    nobody = Shown({"comfyui": "Bearer x", "forge": "Basic x"}, {"comfyui": "x=x", "forge": "x=x"}, "")
    answers = observe(asked, nobody, stack.urls[service], stack.trust)
    wrong = [(cell, answer) for cell, answer in answers if not as_expected(cell, answer)]
    report_red(check, f"{len(answers)} requests without a credential as in tests/verify/access/access.txt", wrong)


@pytest.mark.check("access.comfyui.matrix")
def test_comfyui_matrix(stack, check, matrix):
    whole(stack, check, matrix, "comfyui")


@pytest.mark.check("access.forge.matrix")
def test_forge_matrix(stack, check, matrix):
    whole(stack, check, matrix, "forge")


def whole(stack: Stack, check, matrix, service: str) -> None:
    asked, shown = allowed(stack, service), callers(stack)
    guesses = [cell for cell in asked if cell.guesses]
    writes = [cell for cell in asked if cell.effect == "writes" and not cell.guesses]
    harmless = [cell for cell in asked if cell.effect != "writes" and not cell.guesses]
    answers: list[tuple[Cell, Answer]] = []

    def ask(some: list[Cell], **options: int) -> None:
        answers.extend(observe(some, shown, stack.urls[service], stack.trust, **options))

    ask(harmless)
    ask(sample(guesses, GUESSES_OF_EACH) if stack.in_use else guesses)
    # After all these guesses the owner must still be let in.
    ask([cell for cell in harmless if cell.admitted])
    ask(writes, callers=1)
    wrong = [(cell, answer) for cell, answer in answers if not as_expected(cell, answer)]
    matrix(as_report(every(stack, service), dict(answers), dict(wrong)))
    report_red(check, f"{len(answers)} requests as in tests/verify/access/access.txt", wrong)


def report_red(check, expected: str, wrong: list[tuple[Cell, Answer]]) -> None:
    if wrong and {answer.status for _, answer in wrong} == {503}:
        check.none(expected, [f"{len(wrong)} requests: 503, not being served"], DOWN)
    # What an application answered and should not have seen comes first.
    wrong = sorted(wrong, key=lambda pair: (pair[0].admitted, pair[1].by_gateway is True))
    told = [f"{len(wrong)} otherwise"] if len(wrong) > 5 else []
    told += [f"{cell}: {answer.told} instead of {cell.wanted.removeprefix('?')}" for cell, answer in wrong[:20]]
    check.none(expected, told)


def every(stack: Stack, service: str) -> list[Cell]:
    """The service's part of the table, under the settings of this host."""
    return [cell for cell in cells(stack.settings.allow_query_token) if cell.kind == service]


def allowed(stack: Stack, service: str) -> list[Cell]:
    """What this host may be asked: one in use is not asked for what changes something."""
    return [cell for cell in every(stack, service) if not (stack.in_use and cell.effect == "writes")]


def callers(stack: Stack) -> Shown:
    """The columns' credentials for this host."""
    comfyui, forge, key = stack.credentials.comfyui, stack.credentials.forge, stack.credentials.comfyui_cookie_key
    # The wrong ones are the same in every run: the gateway counts each once, and so verify locks nobody out.
    # An imported token's password may not be known here.
    old_token = bcrypt.hashpw((comfyui.password or "unknown").encode(), b"$2b$10$abcdefghijklmnopqrstuu").decode()
    return Shown(
        authorization={
            "comfyui": f"Bearer {comfyui.password_bcrypt}",
            "forge": basic(f"{forge.user}:{forge.password}"),
        },
        sessions={
            "comfyui": comfyui_session(key, logged_in=True, username=comfyui.user),
            "forge": forge_session(stack),
        },
        token=comfyui.password_bcrypt,
        more={
            ("wrong", "comfyui"): [("Authorization", f"Bearer {one_off(comfyui.password_bcrypt)}")],
            ("old", "comfyui"): [("Authorization", f"Bearer {old_token}")],
            ("ended", "comfyui"): [("Cookie", f"AIOHTTP_SESSION={ENDED}")],
            ("guest", "comfyui"): [("Cookie", comfyui_session(key, guest_mode=True))],
            ("wrong", "forge"): [("Authorization", basic(f"{forge.user}:{one_off(forge.password or '?')}"))],
            ("ended", "forge"): [("Cookie", f"access-token-unsecure-x={ENDED}")],
            ("old", "forge"): [("Authorization", basic(f"{forge.user}:{forge.password_bcrypt}"))],
        },
    )


def comfyui_session(key: str, **session: object) -> str:
    """A cookie as ComfyUI-Login makes them (aiohttp_session): whoever has the key can."""
    content = json.dumps({"created": int(time.time()), "session": session})
    return "AIOHTTP_SESSION=" + Fernet(key).encrypt(content.encode()).decode()


def forge_session(stack: Stack) -> str:
    """A cookie from a login; of a Forge that is not served, one that nobody gave."""
    if "forge" not in stack.urls:
        return "access-token-none=none"
    client, account = stack.http("forge"), stack.credentials.forge
    client.post("/login", data={"username": account.user, "password": account.password})
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in client.cookies.jar) or "access-token-none=none"
