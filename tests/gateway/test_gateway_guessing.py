"""Guesses in every scheme against real Caddy and the real guard, with the owner at work all the while."""

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_harness import MARKER, Answer, Gateway, start_entrypoint

REFUSED = {302, 400, 401, 429}
ATTACKER, OWNER = "203.0.113.66", "198.51.100.1"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def watched(own_gateway: Callable[..., Gateway]) -> Gateway:
    """A gateway behind a proxy, so that callers have addresses."""
    return own_gateway(trusted_proxies=["127.0.0.1/32"])


def guesses(gateway: Gateway, address: str, count: int) -> list[Callable[[], Answer]]:
    """Guesses in turn by token, session, Basic and form, each another one."""
    came_from = {"X-Forwarded-For": address} if address else {}

    def guess(number: int) -> Answer:
        basic = base64.b64encode(f"forge-owner:guess-{number}".encode()).decode()
        wrong = [
            ("comfyui", "GET", "/queue", {"Authorization": f"Bearer guess-{number}"}, b""),
            ("comfyui", "GET", "/queue", {"Cookie": f"AIOHTTP_SESSION=guess-{number}"}, b""),
            ("forge", "GET", "/sdapi/v1/samplers", {"Authorization": f"Basic {basic}"}, b""),
            ("forge", "POST", "/login", FORM, f"username=forge-owner&password=guess-{number}".encode()),
        ]
        kind, method, target, headers, body = wrong[number % 4]
        return gateway.ask(kind, method, target, headers | came_from, body)

    return [lambda n=number: guess(n) for number in range(count)]


@pytest.mark.parametrize("address", [ATTACKER, ""], ids=["another address", "an address that all share"])
def test_guesses_at_once_shut_nobody_out_who_is_in(own_gateway: Callable[..., Gateway], address: str) -> None:
    gateway = own_gateway(trusted_proxies=["127.0.0.1/32"] if address else [])
    from_owner = {"X-Forwarded-For": OWNER} if address else {}
    token, basic = ({"Authorization": gateway.authorization(kind)} for kind in ("comfyui", "forge"))
    owner = [
        ("comfyui", "/queue", from_owner | token),
        ("comfyui", "/queue", from_owner | {"Cookie": gateway.session("comfyui")}),
        ("forge", "/sdapi/v1/samplers", from_owner | basic),
        ("forge", "/config", from_owner | {"Cookie": gateway.session("forge")}),
    ]
    for kind, target, headers in owner:
        assert gateway.ask(kind, "GET", target, headers).status == 200
    statuses: Counter[int] = Counter()
    over = threading.Event()

    def work(kind: str, target: str, headers: dict[str, str]) -> None:
        while not over.is_set():
            statuses[gateway.ask(kind, "GET", target, headers).status] += 1

    workers = [threading.Thread(target=work, args=request) for request in owner]
    for worker in workers:
        worker.start()
    with ThreadPoolExecutor(100) as pool:
        refused = list(pool.map(lambda guess: guess(), guesses(gateway, address, 100)))
    over.set()
    for worker in workers:
        worker.join()

    assert set(statuses) == {200}
    assert statuses[200] > 20
    assert {answer.status for answer in refused} <= REFUSED
    assert not [answer for answer in refused if MARKER in answer.body]
    assert sum(answer.status == 429 for answer in refused) >= (50 if address else 20)
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused if answer.status == 429)
    # A session is the application's to judge; nothing else that is wrong reaches one.
    shown = [request["Authorization"] or "" for app in gateway.applications.values() for request in app.requests()]
    assert not [value for value in shown if value and value not in (token["Authorization"], basic["Authorization"])]
    sessions = [r for r in gateway.applications["comfyui"].requests() if "guess" in (r["Cookie"] or "")]
    assert len(sessions) <= 25
    # Whose password was right once logs in again.
    assert gateway.session("forge").startswith("access-token-")


def test_a_lock_out_is_of_the_address_and_is_logged_once(watched: Gateway) -> None:
    with ThreadPoolExecutor(8) as pool:  # more wait for a delay than for each other
        statuses = [answer.status for answer in pool.map(lambda guess: guess(), guesses(watched, ATTACKER, 60))]
    assert 429 in statuses
    token = {"Authorization": watched.authorization("comfyui")}
    password = watched.accounts["forge"]["password"]
    form = f"username=forge-owner&password={password}".encode()
    locked = watched.ask("forge", "POST", "/login", FORM | {"X-Forwarded-For": ATTACKER}, form)
    assert locked.status == 429
    assert "try again in" in json.loads(locked.body)["error"]
    assert 1 < int(locked.headers["Retry-After"]) <= 300
    # The token is not a guess, and other addresses are not the attacker's.
    assert watched.ask("comfyui", "GET", "/queue", token | {"X-Forwarded-For": ATTACKER}).status == 200
    assert watched.ask("forge", "POST", "/login", FORM | {"X-Forwarded-For": OWNER}, form).status == 200
    lines = [line for line in watched.log_lines() if line.get("event") == "locked out"]
    assert [(line["address"], line["failures"], line["seconds"]) for line in lines] == [(ATTACKER, 20, 300)]
    # Who is locked out still gets the login page that everybody gets.
    ended = {"X-Forwarded-For": ATTACKER, "Cookie": "AIOHTTP_SESSION=some-other"}
    assert watched.ask("comfyui", "GET", "/login", ended).status == 200
    browser = watched.ask("comfyui", "GET", "/", ended | {"Accept": "text/html"})
    assert (browser.status, browser.headers["Location"]) == (302, "/login")
    # An ended session is no guess, and is no part of this lock.
    assert watched.ask("comfyui", "GET", "/queue", ended).status == 401


def test_the_same_wrong_credentials_again_and_again_lock_nobody_out(watched: Gateway) -> None:
    wrong = guesses(watched, OWNER, 4)
    for guess in wrong * 15:
        assert guess().status in (400, 401)
    assert "locked out" not in watched.output.read_text()


@pytest.mark.parametrize("shared", [False, True], ids=["addresses of their own", "an address that all share"])
def test_a_gateway_made_anew_amid_guesses_shuts_no_owner_out(
    own_gateway: Callable[..., Gateway], gateway_python: str, shared: bool
) -> None:
    gateway = own_gateway(trusted_proxies=[] if shared else ["127.0.0.1/32"])

    def at(address: str) -> dict[str, str]:
        return {} if shared else {"X-Forwarded-For": address}

    password = gateway.accounts["comfyui"]["password"]
    session, ended = ({"Cookie": gateway.session("comfyui")}, {"Cookie": "AIOHTTP_SESSION=ended"})
    gateway.process.terminate()
    gateway.process.wait(20)
    gateway.process = start_entrypoint(gateway.output.parent, gateway_python, gateway.health_port, gateway.output)
    gateway.wait("comfyui", 200, 20)

    def guess(number: int) -> int:
        wrong = at(f"203.0.113.{number % 20}") | {"Authorization": f"Bearer guess-{number}"}
        return gateway.ask("comfyui", "GET", "/queue", wrong).status

    def login(address: str) -> Answer:
        return gateway.ask("comfyui", "POST", "/login", FORM | at(address), f"password={password}".encode())

    with ThreadPoolExecutor(60) as pool:
        assert set(pool.map(guess, range(60))) == {401}
    locked = [line["account"] for line in gateway.log_lines() if line.get("event") == "locked out"]
    assert locked == ["comfyui-qwen"]

    assert gateway.ask("comfyui", "GET", "/queue", at(OWNER) | session).status == 200
    token = {"Authorization": gateway.authorization("comfyui")}
    assert gateway.ask("comfyui", "GET", "/queue", at("203.0.113.1") | token).status == 200
    assert login("203.0.113.2").status == 429
    away = "198.51.100.2"
    assert gateway.ask("comfyui", "GET", "/queue", at(away) | ended).status == 401
    answer = login(away)
    assert answer.status == (429 if shared else 302)
    assert shared or answer.headers["Set-Cookie"].startswith("AIOHTTP_SESSION=")
