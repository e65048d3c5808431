"""The guard's decision against the table of who gets what, and each rule taken away in turn."""

import importlib
import re
import sys
import types
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "images" / "gateway"))

from access_table import Cell, Shown, cells  # noqa: E402
from guard import decide  # noqa: E402
from guard.policy import COMFYUI, FORGE, POLICIES, Policy  # noqa: E402

SHOWN = Shown(
    authorization={"comfyui": "Bearer $2b$12$abc", "forge": "Basic Zm9yZ2Utb3duZXI6cHc="},
    sessions={"comfyui": "AIOHTTP_SESSION=x", "forge": "access-token-ab=y"},
    token="$2b$12$abc",
)
CELLS = list(cells())


def outcome(cell: Cell, policies: dict[str, Policy], module: types.ModuleType = decide) -> str:
    target, headers = SHOWN.request(cell)
    request = module.Request(cell.method, target, (("Host", "gpu:8188"), *headers))
    verdict = module.judge(request, policies[cell.kind])
    if isinstance(verdict, module.Refuse):
        return str(verdict.status)
    if isinstance(verdict, module.Open):
        return "login" if verdict.login else "page"
    return "ask"


def red(policies: dict[str, Policy], module: types.ModuleType = decide) -> list[str]:
    return [str(cell) for cell in CELLS if outcome(cell, policies, module) != cell.expected]


def test_table_is_whole() -> None:
    assert len(CELLS) > 1000
    assert {cell.kind for cell in CELLS} == set(POLICIES)


def test_every_cell() -> None:
    assert red(POLICIES) == []


def test_every_token_in_a_url_where_it_is_allowed() -> None:
    asked = [cell for cell in cells(allow_query_token=True) if cell.column == "query" and cell.admitted]
    assert len(asked) > 80
    for cell in asked:
        target, headers = SHOWN.request(cell)
        request = decide.Request(cell.method, target, (("Host", "gpu:8188"), *headers))
        verdict = decide.judge(request, POLICIES[cell.kind], allow_query_token=True)
        assert isinstance(verdict, decide.Ask) and verdict.credential.scheme == "query", str(cell)


def test_what_an_unconfirmed_credential_gets_is_what_a_stranger_gets() -> None:
    rows = {(cell.kind, cell.method, cell.target): cell.expected for cell in CELLS if cell.column == "stranger"}
    for cell in CELLS:
        target, headers = SHOWN.request(cell)
        verdict = decide.judge(decide.Request(cell.method, target, tuple(headers)), POLICIES[cell.kind])
        if isinstance(verdict, decide.Ask):
            alone = decide.judge(decide.Request(cell.method, cell.target), POLICIES[cell.kind])
            assert verdict.otherwise == alone, str(cell)
            assert rows[cell.kind, cell.method, cell.target] in ("401", "page"), str(cell)


@pytest.mark.parametrize("query", ["a=\xe9", "token=x&\udcff", "a=\x01", "a b", "a=\x7f"])
def test_a_query_is_printable_ascii(query: str) -> None:
    for policy in POLICIES.values():
        request = decide.Request("GET", f"/?{query}", (("Authorization", SHOWN.authorization[policy.kind]),))
        assert decide.judge(request, policy) == decide.Refuse(400, "malformed query")


NOTHING = re.compile(r"(?!)")
ANYTHING = re.compile(r".*")
POLICY_RULES = {
    **{
        f"{policy.title} opens {entry.path.pattern}": replace(policy, open=tuple(o for o in policy.open if o != entry))
        for policy in (COMFYUI, FORGE)
        for entry in policy.open
    },
    **{f"{policy.title} closes": replace(policy, closed=NOTHING) for policy in (COMFYUI, FORGE)},
    "ComfyUI sends browsers to the login": replace(COMFYUI, login_redirect=None),
    "ComfyUI's files may have encoded slashes": replace(COMFYUI, encoded_slash=None),
    "other paths may not": replace(COMFYUI, encoded_slash=ANYTHING),
    "ComfyUI knows its cookies": replace(COMFYUI, cookies=NOTHING),
    "Forge knows its cookies": replace(FORGE, cookies=NOTHING),
    "ComfyUI wants Bearer": replace(COMFYUI, scheme="Basic"),
    "Forge wants Basic": replace(FORGE, scheme="Bearer"),
}


@pytest.mark.parametrize("rule", POLICY_RULES)
def test_table_notices_a_missing_policy(rule: str) -> None:
    policy = POLICY_RULES[rule]
    assert red({**POLICIES, policy.kind: policy})


# Each rule of decide.py, as the text that makes it and what the code is without it.
CODE_RULES = {
    "methods": ("request.method not in METHODS", "False"),
    "closed paths": ("policy.closed.fullmatch(target.path)", "False"),
    "closed paths are compared decoded": (
        "policy.closed.fullmatch(target.path)",
        "policy.closed.fullmatch(request.target)",
    ),
    "origin": ("not same_origin(request)", "False"),
    "logins are the guard's": ("isinstance(stranger, Open) and stranger.login", "False"),
    "characters of a path": ("not _RAW_PATH.fullmatch(path)", "False"),
    "UTF-8": ("unquote_to_bytes(text).decode()", 'unquote_to_bytes(text).decode(errors="replace")'),
    "control characters": (r"[\x00-\x1f\x7f\\]", r"(?!)"),
    "double slash": ('or "//" in form', ""),
    "dot segments": ('segment in (".", "..")', "False"),
    "decoded twice": ("for form in (path, decoded, twice)", "for form in (path,)"),
    "encoded slash": ("if not slashes_kept", "if False"),
    "encoded slash, encoded again": ('twice.count("/")', 'decoded.count("/")'),
    "query token": ("if tokens and not allow_query_token", "if False"),
    "one Authorization": ("len(authorization) > 1", "False"),
    "form of Authorization": ("not match or ", 'match["scheme"] if match else False and '),
    "scheme of Authorization": ('match["scheme"] != policy.scheme', "False"),
    "own cookies only": ("policy.cookies.fullmatch(", "re.fullmatch('.*', "),
    "method of an open path": ("request.method in entry.methods", "True"),
    "open paths are not encoded": ("raw_path == target.path", "True"),
    "query of an open path": ("bool(entry.query.fullmatch(target.query))", "True"),
}


@pytest.mark.parametrize("rule", CODE_RULES)
def test_table_notices_a_missing_rule(rule: str) -> None:
    source = Path(decide.__file__).read_text()
    text, without = CODE_RULES[rule]
    assert source.count(text) == 1, f"{text!r} must stand once in decide.py"
    module = types.ModuleType("decide_without")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(source.replace(text, without), "decide_without", "exec"), module.__dict__)  # noqa: S102
        # The rule may keep malformed input from code that cannot take it: that is red too.
        with suppress(TypeError, KeyError, AttributeError):
            assert red(POLICIES, module)
    finally:
        del sys.modules[module.__name__]


def test_the_package_is_the_one_of_the_image() -> None:
    assert Path(importlib.import_module("guard").__file__ or "").parent == ROOT / "images" / "gateway" / "guard"
