"""Group access: strangers and wrong credentials are refused on the main paths of both applications, the owner is not."""

import base64
import json
import secrets

import pytest
from stack import ENDED, Stack, one_off
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from atelier.comfyui import ComfyUIError

REFUSED = (400, 401, 403, 429)
"""401 for who is not known; 400 and 403 for paths and headers that nobody may send; 429 after too many wrong ones."""

GUESSED = "somebody guesses from this address: wait, or `make restart SERVICE=gateway`; see `make logs SERVICE=gateway`"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.check("access.comfyui.healthz")
def test_comfyui_healthz(stack, check):
    healthz(stack, check, "comfyui")


@pytest.mark.check("access.forge.healthz")
def test_forge_healthz(stack, check):
    healthz(stack, check, "forge")


def healthz(stack: Stack, check, service: str) -> None:
    client = stack.http(service)
    answer = client.get("/healthz")
    body = answer.text.strip()
    told, hint = f"{answer.status_code} {body[:60]!r}", ""
    if answer.status_code == 503:  # elsewhere the gateway says why
        told += f": {client.get('/queue').text}"
    elif answer.status_code != 200:
        hint = "the gateway's configuration is not the one that was deployed: run `make deploy`"
    check("200 `up`, to a stranger", told, answer.status_code == 200 and body == "up", hint)


@pytest.mark.check("access.comfyui.wrong")
def test_comfyui_refuses_wrong_credentials(stack, check):
    known, client = stack.credentials, stack.http("comfyui")
    token = known.comfyui.password_bcrypt
    headers = {
        "the token, its last character changed": f"Bearer {one_off(token)}",
        "HTTP Basic of Forge": basic(known.forge.user, known.forge.password),
        "HTTP Basic of ComfyUI": basic(known.comfyui.user, known.comfyui.password),
        "Bearer alone": "Bearer",
        "Bearer with two values": f"Bearer {token} x",
        "bearer in lower case": f"bearer {token}",
        "the token without a scheme": token,
        "a cookie nobody gave": "",
    }
    if not stack.in_use:  # each of these counts as a guess
        headers |= {
            "a made-up token": "Bearer $2b$12$" + "0123456789" * 5 + "abc",
            "the token without its dollars": f"Bearer {token.replace('$', '')}",
            "the password as token": f"Bearer {known.comfyui.password}",
            "Forge's password as token": f"Bearer {known.forge.password}",
            "Forge's hash as token": f"Bearer {known.forge.password_bcrypt}",
        }
    observed = {}
    for name, value in headers.items():
        header = {"Authorization": value} if value else {"Cookie": "AIOHTTP_SESSION=" + ENDED}
        observed[name] = client.get("/system_stats", headers=header).status_code
    twice = [("Authorization", f"Bearer {one_off(token)}"), ("Authorization", f"Bearer {token}")]
    observed["two Authorization headers"] = client.get("/system_stats", headers=twice).status_code
    check.statuses(f"refused: {REFUSED}", REFUSED, observed)


@pytest.mark.check("access.forge.wrong")
def test_forge_refuses_wrong_credentials(stack, check):
    known, client = stack.credentials, stack.http("forge")
    headers = {
        "a wrong password": basic(known.forge.user, one_off(known.forge.password)),
        "the hash as password": basic(known.forge.user, known.forge.password_bcrypt),
        "ComfyUI's token": f"Bearer {known.comfyui.password_bcrypt}",
        "an empty password": basic(known.forge.user, ""),
        "Basic alone": "Basic",
        "Basic that is no base64": "Basic ****",
        "a cookie nobody gave": "",
    }
    if not stack.in_use:  # each of these counts as a guess
        headers |= {
            "a wrong user": basic(one_off(known.forge.user), known.forge.password),
            "ComfyUI's user and password": basic(known.comfyui.user, known.comfyui.password),
        }
    observed = {}
    for name, value in headers.items():
        header = {"Authorization": value} if value else {"Cookie": "access-token-unsecure-x=" + ENDED}
        observed[name] = client.get("/sdapi/v1/samplers", headers=header).status_code
    check.statuses(f"refused: {REFUSED}", REFUSED, observed)


@pytest.mark.check("access.comfyui.token")
def test_the_token_file_opens_comfyui(stack, check):
    raw = stack.token_file.read_bytes()
    check("a token of 60 characters, no line end", f"{len(raw)} bytes", len(raw) == 60 and raw.strip() == raw)
    headers = {b"Authorization": b"Bearer " + raw}
    client, paths = (
        stack.http("comfyui"),
        ("/prompt", "/queue", "/system_stats", "/object_info/SaveImage", "/api/queue", "/"),
    )
    observed = {path: client.get(path, headers=headers).status_code for path in paths}
    check.statuses("200 to exactly its bytes", (200,), observed)


@pytest.mark.check("access.comfyui.query")
def test_tokens_in_urls(stack, check):
    parameters = {"token": stack.credentials.comfyui.password_bcrypt}
    client = stack.http("comfyui")
    observed = {path: client.get(path, params=parameters).status_code for path in ("/prompt", "/api/queue")}
    observed["/prompt, twice"] = client.get("/prompt", params=[*parameters.items()] * 2).status_code
    empty = client.get("/prompt", params={"token": ""}).status_code
    check("an empty token is refused", empty, empty in REFUSED)
    if stack.settings.allow_query_token:
        check("accepted, as allow_query_token says", observed["/prompt"], observed["/prompt"] == 200)
    else:
        check.statuses(f"refused: {REFUSED}", REFUSED, observed)


@pytest.mark.check("access.comfyui.browser")
def test_comfyui_login_in_a_browser(stack, check):
    account, form = stack.credentials.comfyui, {"Accept": "text/html"}
    client = stack.http("comfyui")
    page = client.get("/login", headers=form)
    check("the login page", page.status_code, page.status_code == 200 and "password" in page.text)
    wrong = {"username": account.user, "password": one_off(account.password or "unknown")}
    refused = client.post("/login", data=wrong, headers=form)
    inside = client.get("/prompt").status_code
    check("a wrong password opens nothing", f"{refused.status_code}, then {inside}", inside in REFUSED)
    if account.password is None:
        unknown = ["the token was imported without its password, so nobody tried to log in with it"]
        check.warn("the right password lets in", unknown, "`make rotate` makes a password that is known")
        return
    right = client.post("/login", data={"username": account.user, "password": account.password}, headers=form)
    heard = right.status_code != 429
    check("the right password is looked at", right.status_code if heard else f"429: {right.text}", heard, GUESSED)
    sent = right.headers.get("location", "")
    check("the right password is not called wrong", f"sent to {sent}", "wrong_password" not in sent)
    observed = {path: client.get(path, headers=form).status_code for path in ("/", "/prompt", "/queue")}
    check.statuses("200 with the cookie of the right password", (200,), observed)


@pytest.mark.check("access.comfyui.websocket")
def test_comfyui_websocket(stack, check):
    url = "ws" + stack.urls["comfyui"].removeprefix("http") + "/ws"
    tokens = {"no token": None, "a wrong token": f"Bearer {one_off(stack.credentials.comfyui.password_bcrypt)}"}
    for name, value in tokens.items():
        try:
            headers = {"Authorization": value} if value else None
            with connect(url, additional_headers=headers, open_timeout=10, proxy=None, ssl=stack.websocket_trust):
                status = 101
        except InvalidStatus as error:
            status = error.response.status_code
        check(f"refused with {name}", status, status in REFUSED)
    try:
        with stack.comfyui.socket(secrets.token_hex(8)) as socket:
            first = json.loads(socket.recv(timeout=10))
    except (TimeoutError, ComfyUIError) as error:
        first = {"type": f"nothing: {error}"}
    check("the token's owner hears `status` first", first["type"], first["type"] == "status")


@pytest.mark.check("access.forge.basic")
def test_basic_opens_forges_api(stack, check):
    samplers, options = stack.forge.samplers(), stack.forge.checkpoints()
    check(
        "samplers and checkpoints are listed", f"{len(samplers)} samplers, {len(options)} checkpoints", bool(samplers)
    )
    client = stack.http("forge")
    inside = client.get("/config", auth=(stack.credentials.forge.user, stack.credentials.forge.password)).status_code
    check("HTTP Basic opens the API only, not the interface", inside, inside in REFUSED)


@pytest.mark.check("access.forge.login")
def test_forge_login_form(stack, check):
    account, client = stack.credentials.forge, stack.http("forge")
    wrong = client.post("/login", data={"username": account.user, "password": one_off(account.password)})
    inside = client.get("/config").status_code
    check(
        "a wrong password opens nothing",
        f"{wrong.status_code}, then {inside}",
        wrong.status_code in REFUSED and inside in REFUSED,
    )
    right = client.post("/login", data={"username": account.user, "password": account.password})
    check("the right password is accepted", right.status_code, right.status_code == 200)
    page = client.get("/")
    shown = '"auth_required":true' not in page.text.replace(" ", "") and page.status_code == 200
    check("GET / is the application", f"{page.status_code}, {len(page.text)} characters", shown)
    observed = {path: client.get(path).status_code for path in ("/config", "/info")}
    check.statuses("200 with the cookie", (200,), observed)
    api = client.get("/sdapi/v1/options").status_code
    check("the cookie does not open the API", api, api in REFUSED)
