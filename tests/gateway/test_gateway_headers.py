"""What the gateway's answers say about themselves: who refused, to whom, and in which form."""

import json
from collections.abc import Callable, Iterator

import pytest
from gateway_harness import BODY_LIMIT_MB, MARKER, Answer, Gateway, end_gateway, make_gateway, wait_until

SAFETY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Strict-Transport-Security": None,
    "Server": None,
    "Via": None,
    "X-Powered-By": None,
}
DECLARED = "https://app.example"


@pytest.fixture(scope="module")
def proxied(
    tmp_path_factory: pytest.TempPathFactory, gateway_python: str, accounts: dict[str, dict[str, str]]
) -> Iterator[Gateway]:
    """A gateway behind a proxy that it trusts, with another site's pages declared."""
    settings = {"trusted_proxies": ["127.0.0.1/32"], "cors_origins": [DECLARED]}
    running = make_gateway(tmp_path_factory.mktemp("proxied"), gateway_python, accounts, **settings)
    yield running
    end_gateway(running)


REFUSED = [
    ("comfyui", "GET", "/prompt", {}, 401),
    ("comfyui", "GET", "/", {"Accept": "text/html"}, 302),
    ("comfyui", "GET", "/internal/logs", {}, 403),
    ("comfyui", "GET", "/a/../prompt", {}, 400),
    ("comfyui", "TRACE", "/prompt", {}, 405),
    ("comfyui", "POST", "/login", {}, 422),
    ("forge", "GET", "/config", {"Authorization": "Basic " + "A" * 30}, 401),
    ("forge", "POST", "/login", {}, 422),
]


@pytest.mark.parametrize(("kind", "method", "target", "headers", "status"), REFUSED)
def test_a_refusal_names_the_gateway(
    gateway: Gateway, kind: str, method: str, target: str, headers: dict[str, str], status: int
) -> None:
    answer = gateway.ask(kind, method, target, headers)
    said = json.loads(answer.body)
    assert (answer.status, said["by"], bool(said["error"])) == (status, "gateway", True)
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_wrong_login_names_the_gateway_and_speaks_gradio(gateway: Gateway) -> None:
    said = json.loads(gateway.login("forge", username="nobody", password="wrong").body)
    assert said["by"] == "gateway"
    assert said["detail"] == "Incorrect credentials."


def test_an_application_s_own_refusal_does_not(gateway: Gateway) -> None:
    right = {"Authorization": gateway.authorization("forge")}
    answer = gateway.ask("forge", "GET", "/config", right)  # Basic does not open gradio's own routes
    assert answer.status == 401
    assert "by" not in json.loads(answer.body)


def test_caddy_s_own_refusals_name_the_gateway(gateway: Gateway) -> None:
    headers = {"Authorization": gateway.authorization("comfyui")}
    too_much = gateway.ask("comfyui", "POST", "/upload/image", headers, b"x" * (BODY_LIMIT_MB * 1000 * 1000 + 1))
    assert (too_much.status, json.loads(too_much.body)) == (
        413,
        {"error": "request body too large", "by": "gateway"},
    )


def test_an_application_that_is_not_served(own_gateway: Callable[..., Gateway]) -> None:
    """People read a page that says why, programs get JSON, and both hear when to come back."""
    gateway = own_gateway(serve=False)
    wait_until(lambda: "no connection" in gateway.output.read_text(), 10, "the first probe")
    page = gateway.ask("comfyui", "GET", "/", {"Accept": "text/html,*/*"})
    assert page.status == 503
    assert page.headers["Content-Type"].startswith("text/html")
    assert b"<h1>ComfyUI is not being served</h1>" in page.body
    assert b"no connection" in page.body
    program = gateway.ask("comfyui", "GET", "/prompt", {"Authorization": gateway.authorization("comfyui")})
    assert json.loads(program.body)["by"] == "gateway"
    assert "ComfyUI is not being served: no connection" in json.loads(program.body)["error"]
    for answer in (page, program):
        assert MARKER not in answer.body
        assert answer.headers["Retry-After"] == "2"
        assert answer.headers["Cache-Control"] == "no-store"


def test_addresses_from_trusted_proxies_only(proxied: Gateway) -> None:
    """What the application and the log are told of the client; several X-Forwarded-For headers are one list."""
    gateway = proxied
    token = gateway.authorization("comfyui")
    said = [
        ("X-Forwarded-For", "192.0.2.1, 203.0.113.5"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Real-IP", "192.0.2.66"),
        ("Forwarded", "for=192.0.2.67"),
    ]
    gateway.ask("comfyui", "GET", "/forwarded", [("Authorization", token), *said])
    gateway.ask("comfyui", "GET", "/queue", [("Authorization", token[:-1] + "!"), *said])
    gateway.ask("comfyui", "GET", "/queue", [("Authorization", token + "A"), *said])
    seen = next(r for r in gateway.applications["comfyui"].requests() if r["target"] == "/forwarded")
    assert (seen["X-Forwarded-For"], seen["X-Forwarded-Proto"]) == ("203.0.113.5", "https")
    assert (seen["X-Real-IP"], seen["Forwarded"]) == (None, None)
    (refused,) = [line for line in gateway.log_lines() if line.get("event") == "credential refused"]
    assert refused["address"] == "203.0.113.5"


def test_addresses_from_nobody_else(gateway: Gateway) -> None:
    headers = {"Authorization": gateway.authorization("comfyui"), "X-Forwarded-For": "203.0.113.5"}
    gateway.ask("comfyui", "GET", "/nobody-else", headers | {"X-Forwarded-Proto": "https"})
    seen = next(r for r in gateway.applications["comfyui"].requests() if r["target"] == "/nobody-else")
    assert (seen["X-Forwarded-For"], seen["X-Forwarded-Proto"]) == ("127.0.0.1", "http")


COOKIES = {
    "a=1": "a=1",
    "b=2; Path=/; Secure; HttpOnly; SameSite=None": "b=2; Path=/",
    "c=3; samesite=Strict;httponly ; Max-Age=5": "c=3; Max-Age=5",
    "d=secure; SECURE; Path=/httponly": "d=secure; Path=/httponly",
    "f=4; Domain=example.org; Path=/": "f=4; Path=/",
    "e=$1; SameSite": "e=$1",
}


@pytest.mark.parametrize("secure", [False, True])
def test_cookies_leave_with_the_same_attributes_once_each(proxied: Gateway, secure: bool) -> None:
    gateway = proxied
    came_by = {"X-Forwarded-Proto": "https"} if secure else {}
    end = "; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")
    asked = [("Authorization", gateway.authorization("comfyui")), *came_by.items()]
    asked += [("X-Set-Cookie", cookie) for cookie in COOKIES]
    answer = gateway.ask("comfyui", "GET", "/cookies", asked)
    assert answer.headers.get_all("Set-Cookie") == [cookie + end for cookie in COOKIES.values()]
    form = f"password={gateway.accounts['comfyui']['password']}".encode()
    headers = came_by | {"Content-Type": "application/x-www-form-urlencoded"}
    login = gateway.ask("comfyui", "POST", "/login", headers, form)
    issued = login.headers.get_all("Set-Cookie")
    assert issued == ["AIOHTTP_SESSION=gAAAA-good; Path=/" + end, "theme=dark; Path=/" + end]


def access_control(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.lower().startswith("access-control-")}


ALLOWED = {"Access-Control-Allow-Origin": DECLARED}


def test_a_declared_site_s_page_may_call_with_a_token(proxied: Gateway) -> None:
    gateway = proxied
    headers = {"Origin": DECLARED, "Sec-Fetch-Site": "cross-site", "Cookie": gateway.session("comfyui")}
    right = headers | {"Authorization": gateway.authorization("comfyui")}
    for method in ("GET", "POST"):
        answer = gateway.ask("comfyui", method, f"/declared/{method}", right)
        assert (answer.status, access_control(answer)) == (200, ALLOWED)
        assert "Origin" in answer.headers.get_all("Vary")
        (seen,) = [r for r in gateway.applications["comfyui"].requests() if r["target"] == f"/declared/{method}"]
        assert (seen["Origin"], seen["Sec-Fetch-Site"], seen["Cookie"] or None) == (None, None, None)
    # On the browser's session it may do nothing; it may read that it may not.
    refused = gateway.ask("comfyui", "GET", "/queue", headers)
    assert (refused.status, access_control(refused)) == (401, ALLOWED)
    assert gateway.login("comfyui", password="x").status == 302
    login = {"Origin": DECLARED, "Content-Type": "application/x-www-form-urlencoded"}
    assert gateway.ask("comfyui", "POST", "/login", login, b"password=x").status == 403


def test_preflights_are_the_gateway_s(proxied: Gateway) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = proxied.ask("comfyui", "OPTIONS", "/preflight", {"Origin": DECLARED} | asks)
    assert answer.status == 204
    assert access_control(answer) == ALLOWED | {
        "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
    }
    foreign = proxied.ask("comfyui", "OPTIONS", "/preflight", {"Origin": "https://evil.example"} | asks)
    assert (foreign.status, access_control(foreign)) == (401, {})
    assert not [r for r in proxied.applications["comfyui"].requests() if r["target"] == "/preflight"]


@pytest.mark.parametrize("origin", ["https://evil.example", None])
def test_no_other_site_may_read(proxied: Gateway, gateway: Gateway, origin: str | None) -> None:
    for running in (proxied, gateway):
        headers = {"Authorization": running.authorization("comfyui")} | ({"Origin": origin} if origin else {})
        answer = running.ask("comfyui", "GET", "/queue", headers)
        assert (answer.status, access_control(answer)) == (200, {})


def test_a_page_on_the_way_to_a_gateway_under_tls_is_foreign(proxied: Gateway) -> None:
    host = f"127.0.0.1:{proxied.ports['comfyui']}"
    right = {"Authorization": proxied.authorization("comfyui"), "X-Forwarded-For": "198.51.100.1"}
    for said, origin, status in (("https", "http", 403), ("https", "https", 200), ("http", "http", 200)):
        headers = right | {"X-Forwarded-Proto": said, "Origin": f"{origin}://{host}"}
        assert proxied.ask("comfyui", "POST", "/prompt", headers).status == status, (said, origin)
        login = {"X-Forwarded-Proto": said, "Origin": f"{origin}://{host}"}
        assert (proxied.ask("comfyui", "POST", "/login", login).status == 403) is (status == 403), (said, origin)


def test_the_gateway_s_own_pages_keep_origin_and_session(proxied: Gateway) -> None:
    host = f"127.0.0.1:{proxied.ports['comfyui']}"
    headers = {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert proxied.ask("comfyui", "POST", "/own", headers | {"Cookie": proxied.session("comfyui")}).status == 200
    (seen,) = [r for r in proxied.applications["comfyui"].requests() if r["target"] == "/own"]
    assert (seen["Origin"], seen["Sec-Fetch-Site"]) == (f"http://{host}", "same-origin")


ANSWERS = {
    "the application's": ("comfyui", "GET", "/queue", True, 200),
    "a login page": ("comfyui", "GET", "/login", False, 200),
    "a refusal": ("forge", "GET", "/config", False, 401),
    "a body too large": ("comfyui", "POST", "/interrupt", True, 413),
    "health": ("forge", "GET", "/healthz", False, 200),
}


@pytest.mark.parametrize("whose", ANSWERS)
def test_every_answer_is_safe_to_show_and_says_nothing_of_its_servers(gateway: Gateway, whose: str) -> None:
    kind, method, target, entitled, status = ANSWERS[whose]
    headers = {"Authorization": gateway.authorization(kind)} if entitled else {}
    answer = gateway.ask(kind, method, target, headers, b"x" * (2 * 1000 * 1000) if status == 413 else b"")
    assert answer.status == status
    assert {name: answer.headers[name] for name in SAFETY} == SAFETY
    assert all(len(answer.headers.get_all(name, [])) <= 1 for name in SAFETY)
    policies = answer.headers.get_all("Content-Security-Policy")
    own = ["default-src 'self'"] if whose == "the application's" else []
    assert sorted(policies) == sorted([*own, "frame-ancestors 'self'"])
    assert len(answer.headers["X-Request-Id"]) == 36
    if status >= 400:
        assert answer.headers["Cache-Control"] == "no-store"


def test_transport_security_where_it_is_declared(own_gateway: Callable[..., Gateway]) -> None:
    gateway = own_gateway(serve=False, tls={"mode": "off", "hsts": True})
    gateway.wait("forge", 503)
    answer = gateway.ask("forge", "GET", "/")
    assert answer.headers.get_all("Strict-Transport-Security") == ["max-age=31536000"]
