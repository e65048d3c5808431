"""What the table of access.txt cannot say: origins, tokens in URLs, configuration, passwords, memory."""

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path

import bcrypt
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "images" / "gateway"))

from guard import admission  # noqa: E402
from guard.admission import OverloadedError, PasswordCheck  # noqa: E402
from guard.config import ConfigError, load  # noqa: E402
from guard.decide import (  # noqa: E402
    Ask,
    Open,
    Refuse,
    Request,
    judge,
    own_cookies,
    query_values,
    read_basic,
    same_origin,
)
from guard.memory import Answers, Seen  # noqa: E402
from guard.policy import COMFYUI, FORGE, Policy  # noqa: E402

TOKEN = "$2b$12$" + "a" * 53


@pytest.mark.parametrize(
    ("method", "host", "origin", "websocket", "expected"),
    [
        ("POST", "gpu:8188", None, False, True),
        ("POST", "gpu:8188", "http://gpu:8188", False, True),
        ("POST", "GPU:8188", "https://gpu:8188", False, True),
        ("POST", "gpu:8188", "http://gpu:7860", False, False),
        ("POST", "gpu:8188", "http://evil.example", False, False),
        ("POST", "gpu:8188", "null", False, False),
        ("POST", "gpu:8188", "", False, False),
        ("GET", "gpu:8188", "http://evil.example", False, True),
        ("GET", "gpu:8188", "http://evil.example", True, False),
        ("GET", "gpu:8188", "http://gpu:8188", True, True),
    ],
)
def test_origin(method: str, host: str, origin: str | None, websocket: bool, expected: bool) -> None:
    headers = [("Host", host)]
    if origin is not None:
        headers.append(("Origin", origin))
    if websocket:
        headers.append(("Sec-WebSocket-Key", "x"))
    assert same_origin(Request(method, "/", tuple(headers))) is expected


@pytest.mark.parametrize(
    ("scheme", "origin", "expected"),
    [
        ("https", "https://gpu:8188", True),
        ("https", "HTTPS://GPU:8188", True),
        # Whoever is on the way to a browser can be that page.
        ("https", "http://gpu:8188", False),
        ("http", "http://gpu:8188", True),
        # A proxy that speaks TLS and does not say so.
        ("http", "https://gpu:8188", True),
        ("http", "ftp://gpu:8188", False),
        ("http", "gpu:8188", False),
        ("https", "gpu:8188", False),
        ("https", "https://gpu:8188/", False),
        ("https", "https://https://gpu:8188", False),
        ("https", "https://", False),
    ],
)
def test_the_scheme_is_a_part_of_the_origin(scheme: str, origin: str, expected: bool) -> None:
    for method, further in (("POST", ()), ("GET", (("Sec-WebSocket-Key", "x"),))):
        headers = (("Host", "gpu:8188"), ("Origin", origin), *further)
        assert same_origin(Request(method, "/", headers, scheme)) is expected


def test_two_origins_are_foreign() -> None:
    assert not same_origin(Request("POST", "/", (("Host", "a"), ("Origin", "http://a"), ("Origin", "http://a"))))


DECLARED = {"https://app.example"}
SESSION, BEARER = ("Cookie", "AIOHTTP_SESSION=s"), ("Authorization", f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    ("method", "target", "origin", "further", "expected"),
    [
        ("POST", "/prompt", "https://app.example", [BEARER], "bearer"),
        ("GET", "/prompt", "https://app.example", [BEARER, SESSION], "bearer"),
        ("POST", "/prompt", "https://app.example", [SESSION], "401"),
        ("GET", "/prompt", "https://app.example", [SESSION], "401"),
        ("GET", "/ws", "https://app.example", [BEARER, ("Sec-WebSocket-Key", "x")], "bearer"),
        ("GET", "/ws", "https://app.example", [SESSION, ("Sec-WebSocket-Key", "x")], "401"),
        ("POST", "/login", "https://app.example", [], "403"),
        ("GET", "/login", "https://app.example", [SESSION], "open"),
        ("POST", "/internal/logs", "https://app.example", [BEARER], "403"),
        ("OPTIONS", "/prompt", "https://app.example", [("Access-Control-Request-Method", "POST")], "preflight"),
        ("OPTIONS", "/internal/logs", "https://app.example", [("Access-Control-Request-Method", "POST")], "403"),
        ("OPTIONS", "/a/../b", "https://app.example", [("Access-Control-Request-Method", "POST")], "400"),
        ("OPTIONS", "/prompt", "https://app.example", [], "401"),
        # Nobody else, and nothing that only looks like it.
        ("OPTIONS", "/prompt", "https://evil.example", [("Access-Control-Request-Method", "POST")], "401"),
        ("POST", "/prompt", "https://evil.example", [BEARER], "403"),
        ("POST", "/prompt", "http://app.example", [BEARER], "403"),
        ("POST", "/prompt", "https://app.example:8443", [BEARER], "403"),
        ("POST", "/prompt", "https://app.example.evil.example", [BEARER], "403"),
        ("POST", "/prompt", "https://app.example, https://evil.example", [BEARER], "403"),
        ("POST", "/prompt", "https://app.example", [BEARER, ("Origin", "https://evil.example")], "403"),
        ("POST", "/prompt", "null", [BEARER], "403"),
        # The gateway's own pages keep their sessions.
        ("POST", "/prompt", "http://gpu:8188", [SESSION], "cookie"),
    ],
)
def test_declared_origins(method: str, target: str, origin: str, further: list[tuple[str, str]], expected: str) -> None:
    request = Request(method, target, (("Host", "gpu:8188"), ("Origin", origin), *further))
    verdict = judge(request, COMFYUI, declared_origins=DECLARED)
    if isinstance(verdict, Ask):
        assert verdict.credential.scheme == expected
    elif isinstance(verdict, Refuse):
        assert str(verdict.status) == expected
    else:
        assert type(verdict).__name__.lower() == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("token=a", ["a"]),
        ("%74oken=a", ["a"]),
        ("x=1&token=", [""]),
        ("x=1;token=a", ["a"]),
        ("token", [""]),
        ("token=a&token=b", ["a", "b"]),
        ("tokens=a&TOKEN=b&xtoken=c", []),
        ("token=%242b%2412%24a%2Bb", ["$2b$12$a+b"]),
    ],
)
def test_tokens_are_found_however_they_are_written(query: str, expected: list[str]) -> None:
    assert query_values(query, "token") == expected


@pytest.mark.parametrize("name", ["token", "%74oken", "%74%6f%6b%65%6e"])
def test_query_token(name: str) -> None:
    request = Request("GET", f"/prompt?{name}={TOKEN}")
    assert judge(request, COMFYUI) == Refuse(
        401, "a token in the URL is not accepted; send it as `Authorization: Bearer`"
    )
    allowed = judge(request, COMFYUI, allow_query_token=True)
    assert isinstance(allowed, Ask)
    assert (allowed.credential.scheme, allowed.credential.value) == ("query", TOKEN)
    assert TOKEN not in repr(allowed)
    empty = judge(Request("GET", f"/prompt?{name}="), COMFYUI, allow_query_token=True)
    assert isinstance(empty, Refuse)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer  a",
        "Bearer a b",
        "bearer a",
        "Bearer\ta",
        "Bearer a,Bearer b",
        "Bearer é",
        "Basic a",
    ],
)
def test_malformed_bearer_is_refused_without_asking(authorization: str) -> None:
    verdict = judge(Request("GET", "/prompt", (("Authorization", authorization),)), COMFYUI)
    assert isinstance(verdict, Refuse)
    assert verdict.status == 401


@pytest.mark.parametrize("value", ["", "!", "YQ==", "YTo=", "OmE=", "/////w=="])
def test_malformed_basic(value: str) -> None:
    assert read_basic(value) is None
    verdict = judge(Request("GET", "/config", (("Authorization", f"Basic {value}"),)), FORGE)
    assert isinstance(verdict, Refuse)


def test_basic_password_may_hold_colons() -> None:
    assert read_basic("YTpiOmM=") == ("a", "b:c")


def test_own_cookies() -> None:
    headers = [
        "a=1; access-token-unsecure-x_Y-1=t; AIOHTTP_SESSION=s",
        "access-token-x=u; access-token-=v; xaccess-token-a=w",
    ]
    assert own_cookies(headers, FORGE) == "access-token-unsecure-x_Y-1=t; access-token-x=u"
    assert own_cookies(headers, COMFYUI) == "AIOHTTP_SESSION=s"
    assert own_cookies(["AIOHTTP_SESSION=\x80"], COMFYUI) == ""


def test_a_login_is_checked_by_the_guard_even_with_a_session() -> None:
    for headers in ((), (("Cookie", "AIOHTTP_SESSION=s"),), (("Authorization", f"Bearer {TOKEN}"),)):
        assert judge(Request("POST", "/login", headers), COMFYUI) == Open(login=True)


def test_long_target() -> None:
    verdict = judge(Request("GET", "/view?filename=" + "a" * 9000), COMFYUI)
    assert isinstance(verdict, Refuse)
    assert verdict.status == 414


@pytest.mark.parametrize(
    ("policy", "targets", "expected"),
    [
        (COMFYUI, "/upload/image /api/upload/mask /prompt /api/prompt /api/assets", True),
        (COMFYUI, "/userdata/workflows%2Fa.json /api/userdata/a.json/move/b.json", True),
        (COMFYUI, "/queue /interrupt /api/free /history /settings/a /prompt/x /uploads/image", False),
        (FORGE, "/upload /sdapi/v1/img2img /queue/join /run/predict /api/predict /controlnet/detect", True),
        (FORGE, "/internal/progress /login_check /uploads /sdapi /reset /queue/join/x", False),
    ],
)
def test_uploads(policy: Policy, targets: str, expected: bool) -> None:
    for target in targets.split():
        verdict = judge(Request("POST", target, (("Cookie", "AIOHTTP_SESSION=s; access-token-a=s"),)), policy)
        assert isinstance(verdict, Ask)
        assert verdict.uploads is expected, target


GOOD_APPLICATION = {
    "name": "comfyui-qwen",
    "kind": "comfyui",
    "upstream": "comfyui-qwen:8188",
    "port": 8188,
    "allow_query_token": False,
}
GOOD_CREDENTIALS = {"comfyui": {"user": "a", "password_bcrypt": TOKEN}}


GOOD_GATEWAY = {"tls": False, "trusted_proxies": [], "cors_origins": []}


def write(directory: Path, applications: object, credentials: object, **gateway: object) -> None:
    (directory / "guard.json").write_text(json.dumps({"applications": applications, **GOOD_GATEWAY, **gateway}))
    (directory / "credentials.json").write_text(json.dumps(credentials))


def test_configuration(tmp_path: Path) -> None:
    write(tmp_path, [GOOD_APPLICATION], GOOD_CREDENTIALS, tls=True, trusted_proxies=["10.0.0.0/24", "2001:db8::1/128"])
    config = load(tmp_path, tmp_path)
    assert config.surroundings.tls
    assert [str(network) for network in config.surroundings.trusted_proxies] == ["10.0.0.0/24", "2001:db8::1/128"]
    (application,) = config.applications.values()
    assert (application.host, application.port, application.account.password_bcrypt) == ("comfyui-qwen", 8188, TOKEN)
    assert TOKEN not in repr(application)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "`kind` must be one of comfyui, forge"),
        ({"upstream": "comfyui"}, "`upstream` must be `host:port`"),
        ({"upstream": "http://a:1"}, "`upstream` must be `host:port`"),
        ({"name": ""}, "`name` must be a word"),
        ({"allow_query_token": "no"}, "must be true or false"),
        ({"extra": 1}, "needs exactly the keys"),
    ],
)
def test_wrong_configuration(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path, [GOOD_APPLICATION | change], GOOD_CREDENTIALS)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("gateway", "message"),
    [
        ({"tls": "off"}, "`tls` must be true or false"),
        ({"trusted_proxies": "10.0.0.1"}, "`trusted_proxies` must be a list of words"),
        ({"cors_origins": [1]}, "`cors_origins` must be a list of words"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "10.0.0.1/8 is no network"),
        ({"extra": 1}, "needs exactly the keys"),
    ],
)
def test_wrong_gateway(tmp_path: Path, gateway: dict[str, object], message: str) -> None:
    write(tmp_path, [GOOD_APPLICATION], GOOD_CREDENTIALS, **gateway)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "password_bcrypt",
    [
        None,
        1,
        "",
        "SENTINEL",
        TOKEN[:-1],
        TOKEN + "a",
        TOKEN + "\n",
        TOKEN.replace("$2b$", "$2a$"),
        TOKEN.replace("12", "04"),
    ],
)
def test_wrong_hash(tmp_path: Path, password_bcrypt: object) -> None:
    write(tmp_path, [GOOD_APPLICATION], {"comfyui": {"user": "a", "password_bcrypt": password_bcrypt}})
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, tmp_path)
    message = str(refused.value).removeprefix(str(tmp_path))
    assert not password_bcrypt or not isinstance(password_bcrypt, str) or password_bcrypt not in message


@pytest.mark.parametrize("applications", [[], None, [GOOD_APPLICATION, GOOD_APPLICATION], ["x"]])
def test_wrong_applications(tmp_path: Path, applications: object) -> None:
    write(tmp_path, applications, GOOD_CREDENTIALS)
    with pytest.raises(ConfigError):
        load(tmp_path, tmp_path)


def test_answers_are_forgotten_by_time_by_size_and_when_told() -> None:
    now = 0.0
    found: list[str] = []

    async def recall(answers: Answers, name: str) -> bool:
        async def find() -> bool:
            found.append(name)
            return True

        return await answers.recall((name,), find)

    async def scenario() -> None:
        nonlocal now
        answers = Answers(5, size=2, clock=lambda: now)
        await recall(answers, "a")
        await recall(answers, "a")
        assert found == ["a"]
        now = 5.0
        await recall(answers, "a")
        assert found == ["a", "a"]
        await recall(answers, "b")
        await recall(answers, "c")  # makes room: `a` goes
        await recall(answers, "b")
        assert found == ["a", "a", "b", "c"]
        await recall(answers, "a")
        assert found[4:] == ["a"]
        answers.forget()
        await recall(answers, "a")
        assert found[4:] == ["a", "a"]
        assert b"a" not in answers._answers  # only its HMAC

    asyncio.run(scenario())


def test_answers_are_found_once_and_failures_not_remembered() -> None:
    async def scenario() -> None:
        answers = Answers(5)
        calls = 0

        async def find() -> bool:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0.01)
            if calls == 1:
                raise OverloadedError
            return True

        first = await asyncio.gather(*(answers.recall(("a",), find) for _ in range(5)), return_exceptions=True)
        assert [type(answer) for answer in first] == [OverloadedError] * 5
        assert await asyncio.gather(*(answers.recall(("a",), find) for _ in range(5))) == [True] * 5
        assert calls == 2

    asyncio.run(scenario())


def test_seen_is_bounded_and_keeps_no_credential() -> None:
    seen = Seen(size=2)
    seen.add("a", "b")
    seen.add("c")
    assert ("a", "b") in seen  # met again, so it stays
    seen.add("d")
    assert [words in seen for words in [("a", "b"), ("c",), ("d",), ("ab",)]] == [True, False, True, False]
    assert not {b"a", b"b", b"d", b"a\0b"} & set(seen._seen)
    seen.discard("d")
    assert ("d",) not in seen
    seen.clear()
    assert ("a", "b") not in seen


def test_passwords() -> None:
    hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()

    async def scenario() -> None:
        check = PasswordCheck()
        assert await check("right", hashed)
        assert not await check("wrong", hashed)
        assert not await check("", hashed)
        assert not await check("right" + "x" * 68, hashed)  # 73 bytes: bcrypt would refuse or cut them
        assert not await check("right\0", hashed)

    asyncio.run(scenario())


def test_passwords_are_checked_one_at_a_time_and_after_all_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, niceness = 0, 0, set()
    lock = threading.Lock()

    def slow(password: bytes, hashed: bytes) -> bool:
        nonlocal running, most
        niceness.add(os.getpriority(os.PRIO_PROCESS, 0))
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return password == b"0"

    monkeypatch.setattr(admission.bcrypt, "checkpw", slow)

    async def scenario() -> list[bool | BaseException]:
        check = PasswordCheck()
        return await asyncio.gather(*(check(str(guess), "hash") for guess in range(100)), return_exceptions=True)

    answers = asyncio.run(scenario())
    assert most == 1
    assert niceness == {19}
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19
    assert answers[0] is True
    assert sum(isinstance(answer, OverloadedError) for answer in answers) == 99 - admission.WAITING
