"""The whole table of access.txt through real Caddy and the real guard, and the logins that it takes for granted."""

import base64
import hashlib
import http.client
import json
import socket
import urllib.request
from collections.abc import Callable
from urllib.parse import quote

import pytest
from access_table import Cell, Shown, cells
from gateway_harness import BODY_LIMIT_MB, MARKER, Gateway
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect


@pytest.fixture(scope="module")
def shown(gateway: Gateway) -> Shown:
    kinds = ("comfyui", "forge")
    return Shown(
        authorization={kind: gateway.authorization(kind) for kind in kinds},
        sessions={kind: gateway.session(kind) for kind in kinds},
        token=gateway.accounts["comfyui"]["password_bcrypt"],
    )


CELLS = list(cells())


@pytest.mark.parametrize("kind", ["comfyui", "forge"])
def test_every_cell(gateway: Gateway, shown: Shown, kind: str) -> None:
    """Statuses as in the table; what passes reaches the application as it was judged, the rest does not reach it."""
    wrong = [problem for cell in CELLS if cell.kind == kind and (problem := problem_with(gateway, shown, cell))]
    assert not wrong, "\n".join(wrong)


def problem_with(gateway: Gateway, shown: Shown, cell: Cell) -> str:
    application = gateway.applications[cell.kind]
    target, headers = shown.request(cell)
    expected = cell.final
    before = len(application.requests())
    answer = gateway.ask(cell.kind, cell.method, target, headers)
    # The watch and the confirmations ask too; theirs carry no X-Forwarded-For.
    seen = [request for request in application.requests()[before:] if request["X-Forwarded-For"]]
    reached = [request["target"] for request in seen if request["method"] == cell.method]
    if cell.admitted:
        cookies = (seen[-1]["Cookie"] or "") if seen else ""
        if any(name in cookies for name in ("theme", *(other_sessions(shown, cell.kind)))):
            return f"{cell}: a cookie that is not its own reached the application"
        return "" if reached == [target] else f"{cell}: the application saw {reached}, answer {answer.status}"
    if MARKER in answer.body:
        return f"{cell}: the application's bytes came out, status {answer.status}"
    if reached:
        return f"{cell}: the application saw {reached}"
    if expected == "page":
        return "" if answer.status == 200 else f"{cell}: {answer.status} instead of the login page"
    if expected == "login":  # no form was sent
        return "" if answer.status == 422 else f"{cell}: {answer.status} instead of 422"
    return "" if str(answer.status) == expected else f"{cell}: {answer.status} instead of {expected}"


def other_sessions(shown: Shown, kind: str) -> list[str]:
    return [session for other, session in shown.sessions.items() if other != kind]


def test_strangers_get_the_login_pages(gateway: Gateway) -> None:
    assert b"ComfyUI Login" in gateway.ask("comfyui", "GET", "/login").body
    assert b'"auth_required":true' in gateway.ask("forge", "GET", "/").body


def test_an_ended_session_gets_the_login_page(gateway: Gateway) -> None:
    ended = {"Cookie": "access-token-gone=1; AIOHTTP_SESSION=gone", "Accept": "text/html"}
    assert b'"auth_required":true' in gateway.ask("forge", "GET", "/", ended).body
    assert gateway.ask("comfyui", "GET", "/", ended).headers["Location"] == "/login"


def test_login(gateway: Gateway) -> None:
    user, password = gateway.accounts["comfyui"]["user"], gateway.accounts["comfyui"]["password"]
    assert gateway.login("comfyui", password=password).headers["Location"] == "/"
    assert gateway.login("comfyui", password="wrong").headers["Location"] == "/login?wrong_password=1"
    assert gateway.login("comfyui", username=user).status == 422
    assert gateway.login("comfyui", password="x" * 80).headers["Location"] == "/login?wrong_password=1"
    user, password = gateway.accounts["forge"]["user"], gateway.accounts["forge"]["password"]
    assert json.loads(gateway.login("forge", username=user, password=password).body) == {"success": True}
    assert gateway.login("forge", username="other", password=password).status == 400
    assert gateway.login("forge", username=user, password="wrong").status == 400
    assert gateway.login("forge", password=password).status == 422
    odd = {"Content-Type": "application/x-www-form-urlencoded; charset=unicode_escape"}
    assert gateway.ask("forge", "POST", "/login", odd, b"username=a&password=\\ud800abc").status == 422


def test_login_as_gradio_sends_it(gateway: Gateway) -> None:
    account = gateway.accounts["forge"]
    fields = "".join(
        f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in (("username", account["user"]), ("password", account["password"]))
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = gateway.ask("forge", "POST", "/login", headers, f"{fields}--b--\r\n".encode())
    assert answer.status == 200
    assert answer.headers["Set-Cookie"].startswith("access-token-")


def test_wrong_passwords_and_tokens_never_reach_an_application(gateway: Gateway) -> None:
    gateway.login("comfyui", password="wrong-one")
    gateway.login("forge", username=gateway.accounts["forge"]["user"], password="wrong-one")
    guess = base64.b64encode(b"forge-owner:wrong-one").decode()
    assert gateway.ask("forge", "GET", "/sdapi/v1/samplers", {"Authorization": f"Basic {guess}"}).status == 401
    token = gateway.authorization("comfyui")[:-3] + "abc"
    assert gateway.ask("comfyui", "GET", "/prompt", {"Authorization": token}).status == 401
    seen = [request for application in gateway.applications.values() for request in application.requests()]
    assert not [request for request in seen if request["Authorization"] in (f"Basic {guess}", token)]
    log = gateway.output.read_text()
    assert "credential refused" in log
    assert "wrong-one" not in log


def test_guest_mode_is_closed(gateway: Gateway) -> None:
    password = gateway.accounts["comfyui"]["password"]
    answer = gateway.login("comfyui", guest_mode="1", password=password)
    assert "guest" not in answer.headers["Set-Cookie"]
    guest = {"Cookie": "AIOHTTP_SESSION=gAAAA-guest"}
    assert gateway.ask("comfyui", "GET", "/prompt", guest).status == 401
    assert gateway.ask("comfyui", "POST", "/prompt", guest).status == 401


def test_websockets(gateway: Gateway) -> None:
    url = f"ws://127.0.0.1:{gateway.ports['comfyui']}/ws?clientId=1"
    with connect(url, additional_headers={"Authorization": gateway.authorization("comfyui")}) as talk:
        talk.send("hello")
        assert talk.recv() == f"{MARKER.decode()} hello"
    with connect(url, additional_headers={"Cookie": gateway.session("comfyui")}) as talk:
        talk.send("again")
        assert talk.recv() == f"{MARKER.decode()} again"
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "AIOHTTP_SESSION=wrong"}):
        with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=headers):
            pass
        assert refused.value.response.status_code == 401
    right = {"Authorization": gateway.authorization("comfyui")}
    with pytest.raises(InvalidStatus) as refused, connect(url, origin="https://evil.example", additional_headers=right):
        pass
    assert refused.value.response.status_code == 403


def test_query_token_where_it_is_allowed(own_gateway) -> None:
    gateway = own_gateway(query=True)
    token = gateway.accounts["comfyui"]["password_bcrypt"]
    assert MARKER in gateway.ask("comfyui", "GET", f"/queue?token={token}").body
    assert gateway.ask("comfyui", "GET", f"/queue?token={token[:-1]}").status == 401
    assert gateway.ask("comfyui", "GET", "/queue?token=").status == 401
    assert gateway.ask("comfyui", "GET", f"/queue?token={token}&token={token}").status == 400
    assert token not in gateway.output.read_text()


MB = 1000 * 1000


def post(gateway: Gateway, kind: str, target: str, size: int, *, chunked: bool, headers: dict[str, str]) -> int | str:
    """The status, or the size that the application says it got."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.ports[kind], timeout=30)
    body = (b"x" * (size // 10) for _ in range(10))
    try:
        length = {} if chunked else {"Content-Length": str(size)}
        connection.request("POST", target, body, headers | length, encode_chunked=chunked)
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status == 200 or json.loads(said)["by"] == "gateway"
        return said.split()[-1].decode() if answer.status == 200 else answer.status
    except (BrokenPipeError, ConnectionResetError):
        return 413  # refused while we were still sending
    finally:
        connection.close()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("kind", "target", "size", "expected"),
    [
        ("comfyui", "/upload/image", (BODY_LIMIT_MB - 1) * MB, str((BODY_LIMIT_MB - 1) * MB)),
        ("comfyui", "/upload/image", (BODY_LIMIT_MB + 1) * MB, 413),
        ("comfyui", "/api/prompt", 2 * MB, str(2 * MB)),
        ("comfyui", "/interrupt", 900_000, "900000"),
        ("comfyui", "/interrupt", 2 * MB, 413),
        ("comfyui", "/login", 100_000, 413),
        ("forge", "/sdapi/v1/img2img", 2 * MB, str(2 * MB)),
        ("forge", "/login", 100_000, 413),
    ],
)
def test_bodies(gateway: Gateway, kind: str, target: str, size: int, expected: int | str, chunked: bool) -> None:
    headers = {"Authorization": gateway.authorization(kind), "Content-Type": "application/x-www-form-urlencoded"}
    assert post(gateway, kind, target, size, chunked=chunked, headers=headers) == expected


def test_downloads_have_no_limit(gateway: Gateway) -> None:
    size = (BODY_LIMIT_MB + 1) * MB
    headers = {"Authorization": gateway.authorization("comfyui")}
    assert len(gateway.ask("comfyui", "GET", f"/view?bytes={size}", headers).body) == len(MARKER) + size


@pytest.mark.parametrize(
    "line",
    [b"GET foo:bar HTTP/1.1", b"GET http:prompt HTTP/1.1", b"GET prompt HTTP/1.1", b"GET http://x/prompt HTTP/1.1"],
)
def test_other_forms_of_target_get_nothing(gateway: Gateway, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", gateway.ports["comfyui"]), timeout=5) as raw:
        raw.sendall(line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split()[1][:1] == b"4"
    assert MARKER not in answer


def test_headers_of_ours_cannot_be_brought_along(gateway: Gateway) -> None:
    ours = {
        "X-Atelier-Route": "application",
        "X-Atelier-Purpose": "alive",
        "X-Atelier-Who": "owner",
        "X-Forwarded-Uri": "/login",
        "X-Forwarded-Method": "GET",
    }
    assert gateway.ask("comfyui", "GET", "/prompt", ours).status == 401
    hidden = ours | {"Connection": ", ".join(ours)}
    assert gateway.ask("comfyui", "GET", "/prompt", hidden).status == 401
    owner = ours | {"Authorization": gateway.authorization("comfyui"), "X-Forwarded-For": "203.0.113.9"}
    assert gateway.ask("comfyui", "GET", "/spoofed", owner).status == 200
    seen = next(r for r in gateway.applications["comfyui"].requests() if r["target"] == "/spoofed")
    assert seen["X-Atelier-Who"] is None
    assert seen["X-Forwarded-Uri"] is None
    assert seen["X-Forwarded-For"] == "127.0.0.1"
    # Naming headers in `Connection` makes a proxy drop them; not the guard's own, after it has judged.
    owner["Connection"] = "X-Forwarded-Uri, X-Forwarded-Method, X-Atelier-Purpose, X-Atelier-Application, X-Atelier-Who"
    assert gateway.ask("comfyui", "GET", "/internal/logs", owner).status == 403
    assert gateway.ask("comfyui", "GET", "/queue", owner).status == 200


def test_nobody_takes_the_gateways_own_headers_away(own_gateway: Callable[..., Gateway]) -> None:
    """What `Connection` names, a proxy removes: the caller's real address among it."""
    gateway = own_gateway(trusted_proxies=["127.0.0.1/32"])
    names = "X-Atelier-Peer, X-Atelier-Forwarded-For, X-Atelier-Forwarded-Proto"
    hidden = {"Connection": names, "X-Forwarded-For": "203.0.113.9"}
    assert gateway.ask("comfyui", "GET", "/login", hidden).status == 200
    assert gateway.ask("comfyui", "GET", "/prompt", hidden).status == 401
    wrong = {"Authorization": "Bearer " + "x" * 60}
    assert gateway.ask("comfyui", "GET", "/prompt", hidden | wrong).status == 401
    (line,) = (line for line in gateway.log_lines() if line.get("event") == "credential refused")
    assert line["address"] == "203.0.113.9"


def test_the_guard_judges_nothing_from_nowhere(gateway: Gateway) -> None:
    """A request without the headers that Caddy sets is refused; it is no failure of the guard's."""
    guard = http.client.HTTPConnection("gateway")
    guard.sock = socket.socket(socket.AF_UNIX)
    guard.sock.connect(str(gateway.output.parent / "run" / "guard.sock"))
    whole = {
        "X-Atelier-Purpose": "judge",
        "X-Atelier-Application": "comfyui-qwen",
        "X-Atelier-Peer": "127.0.0.1",
        "X-Forwarded-Method": "GET",
        "X-Forwarded-Uri": "/login",
    }
    for missing in (None, *whole):
        guard.request("GET", "/", headers={name: value for name, value in whole.items() if name != missing})
        answer = guard.getresponse()
        answer.read()
        assert answer.status == (400 if missing else 200), missing
    guard.close()


def test_the_guard_serves_only_login_pages_itself(gateway: Gateway) -> None:
    """Should a mistake in the Caddyfile ever send it more than what it said was open."""
    guard = http.client.HTTPConnection("gateway")
    guard.sock = socket.socket(socket.AF_UNIX)
    guard.sock.connect(str(gateway.output.parent / "run" / "guard.sock"))
    ours = {"X-Atelier-Purpose": "serve", "X-Atelier-Application": "comfyui-qwen", "X-Atelier-Peer": "127.0.0.1"}
    for target, status in (("/login", 200), ("/prompt", 403), ("/internal/logs", 403)):
        guard.request("GET", target, headers=ours | {"Authorization": gateway.authorization("comfyui")})
        answer = guard.getresponse()
        assert answer.status == status
        assert MARKER not in answer.read()
    guard.close()


def test_answers_say_nothing_about_the_servers(gateway: Gateway) -> None:
    right = {"Authorization": gateway.authorization("forge"), "Origin": "https://evil.example"}
    for answer in (gateway.ask("forge", "GET", "/sdapi/v1/samplers", right), gateway.ask("forge", "GET", "/config")):
        assert "Server" not in answer.headers
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert len(answer.headers["X-Request-Id"]) == 36


def test_only_the_api_challenges_for_basic(gateway: Gateway) -> None:
    """A challenge on what a login page loads would open the browser's own password window over it."""
    assert gateway.ask("forge", "GET", "/sdapi/v1/samplers").headers["WWW-Authenticate"] == 'Basic realm="Forge"'
    assert "WWW-Authenticate" not in gateway.ask("forge", "GET", "/file=style.css").headers


def in_every_form(secret: str) -> set[str]:
    encoded = base64.b64encode(secret.encode()).decode()
    return {secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1], encoded}


def test_no_credential_in_any_log(gateway: Gateway) -> None:
    token = gateway.accounts["comfyui"]["password_bcrypt"]
    session = gateway.session("comfyui")
    bearer = {"Authorization": f"Bearer {token}"}
    for query in ("token={}", "%74oken={}&a=1", "Token={}", "x=1;token={}", "api_key={}", "{}", "x=1&token={}#a"):
        for written in (token, quote(token, safe="")):
            gateway.ask("comfyui", "GET", "/queue?" + query.format(written), {"Referer": f"http://x/?token={token}"})
            gateway.ask("comfyui", "GET", "/queue?" + query.format(written), bearer)
            gateway.ask("forge", "GET", "/a#" + query.format(written), {"Accept": "text/html"})
    gateway.ask("comfyui", "GET", f"http://owner:{token}@x/queue?token={token}", bearer)
    gateway.ask("comfyui", "GET", f"//owner:{token}@x/queue", bearer)
    gateway.ask("comfyui", "GET", "/ok", bearer | {"X-Api-Key": token, "Cookie": session})
    gateway.ask("comfyui", "GET", "/cookies", [*bearer.items(), ("X-Set-Cookie", f"a={token}")])
    gateway.ask("comfyui", "GET", "/ok", {"Cookie": session})
    gateway.ask("comfyui", "GET", "/ok", {"Cookie": session + "-wrong"})
    gateway.ask("forge", "GET", "/sdapi/v1/samplers", {"Authorization": gateway.authorization("forge")})
    for kind, account in gateway.accounts.items():
        gateway.login(kind, username=account["user"], password=account["password"])
        gateway.login(kind, username="somebody", password=account["password"])
    log = gateway.output.read_text()
    secrets = [token, session.partition("=")[2], gateway.authorization("forge").split()[1]]
    secrets += [account["password"] for account in gateway.accounts.values()]
    assert [secret for secret in secrets for form in in_every_form(secret) if form in log] == []
    lines = [line for line in gateway.log_lines() if line.get("msg") == "handled request"]
    assert {"user_id", "request", "status", "resp_headers"} <= set(lines[-1])
    who = {line["user_id"] for line in lines}
    assert {"", "basic:forge-owner", f"bearer:{hashlib.sha256(token.encode()).hexdigest()[:16]}"} <= who
    assert {"/queue?", "/a#", "/ok"} <= {line["request"]["uri"] for line in lines}


IN_PATHS = [
    "/prompt&token={}",
    "/prompt;token={}",
    "/prompt%3Ftoken={}",
    "/prompt%253Ftoken={}",
    "/prompt%26%74oken%3D{}",
    "/prompt,token:{}",
    "/prompt/token={}",
    "/prompt/token/{}",
    "/prompt\\?token={}",
    "/prompt{}",
    "/{}",
    "/view/{}/a.png",
    "/userdata/{}",
    "/file={}",
    "//owner:{}@x/queue",
    "//{}/queue",
    "///owner:{}@x/queue",
    "HTTP://owner:{}@x/queue",
    "HTTP:{}",
    "{}",
]


def spellings(token: str) -> set[str]:
    once = quote(token, safe="")
    every = "".join(f"%{ord(character):02x}" for character in token)
    return {token, once, quote(once, safe=""), once.lower(), every, token.replace("$", "\\$"), f"%27{token}%27"}


def test_no_token_in_any_log_wherever_in_a_path_it_stands(gateway: Gateway) -> None:
    token = gateway.accounts["comfyui"]["password_bcrypt"]
    bearer = {"Authorization": f"Bearer {token}"}
    before = gateway.output.stat().st_size
    for path in IN_PATHS:
        for written in spellings(token):
            for kind, headers in (("comfyui", {}), ("comfyui", bearer), ("forge", {})):
                gateway.ask(kind, "GET", path.format(written), headers)
    # A hash may have slashes, so one part of it is as secret as the whole.
    gateway.ask("comfyui", "GET", f"HTTP://owner:$2b$12$a/{token[10:]}@x/queue", bearer)
    gateway.ask("comfyui", "GET", "/userdata/workflows%2Fa.json", bearer)
    gateway.ask("comfyui", "GET", "/api/view-1_2~.png", bearer)
    log = gateway.output.read_bytes()[before:].decode()
    parts = {part for form in spellings(token) | in_every_form(token) for part in (form, form[-20:])}
    assert [part for part in parts if part in log] == []
    uris = {json.loads(line)["request"]["uri"] for line in log.splitlines() if "handled request" in line}
    assert {"/prompt&", "/prompt;", "/prompt%", "/userdata/workflows%", "/api/view-1_2~.png"} <= uris


def test_health(gateway: Gateway) -> None:
    for kind in ("comfyui", "forge"):
        answer = gateway.ask(kind, "GET", "/healthz")
        assert (answer.status, answer.body) == (200, b"up\n")
        assert gateway.ask(kind, "POST", "/healthz").status == 401
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.health_port}/") as answer:
        assert answer.status == 200
