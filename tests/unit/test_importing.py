"""Credentials of the previous stack: what its hands and scripts left is read where it means one thing, else refused."""

from pathlib import Path

import bcrypt
import pytest

from atelier import credentials as store
from atelier.errors import AtelierError
from atelier.importing import import_credentials, read, require_token

PASSWORD = "the password of before"
TOKEN = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(rounds=10, prefix=b"2b")).decode()
OTHER = "$2b$12$" + "a" * 53


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BCRYPT_COST", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qwen-api-user.token").write_text(TOKEN)
    return tmp_path


def variables(folder: Path, text: str) -> Path:
    (folder / ".env.generated").write_bytes(text.encode())
    return folder


def test_a_token_goes_on_to_be_the_token_and_its_password_is_not_known(folder: Path) -> None:
    for path in (folder, folder / "qwen-api-user.token"):
        found = import_credentials(path, {})
        account = found.credentials.comfyui
        assert (account.user, account.password, account.password_bcrypt) == ("qwen-api-user", None, TOKEN)
        assert found.credentials.forge.password and "made anew: Forge's password" in found.summary


def test_passwords_come_along_and_are_compared_with_the_token(folder: Path) -> None:
    variables(
        folder, f"COMFYUI_USER=painter\nCOMFYUI_PASSWORD={PASSWORD}\nFORGE_USER=smith\nFORGE_PASSWORD=anvil-and-fire\n"
    )
    found = import_credentials(folder, {}).credentials
    assert (found.comfyui.user, found.comfyui.password, found.comfyui.password_bcrypt) == ("painter", PASSWORD, TOKEN)
    assert (found.forge.user, found.forge.password) == ("smith", "anvil-and-fire")
    assert store.is_password("anvil-and-fire", found.forge.password_bcrypt)


def test_the_environment_adds_what_the_files_lack(folder: Path) -> None:
    found = import_credentials(folder, {"COMFYUI_PASSWORD": PASSWORD, "FORGE_PASSWORD": "anvil-and-fire"}).credentials
    assert (found.comfyui.password, found.forge.password) == (PASSWORD, "anvil-and-fire")


def test_passwords_alone_are_taken_over_with_a_fresh_token(tmp_path: Path) -> None:
    found = import_credentials(variables(tmp_path, f"COMFYUI_PASSWORD='{PASSWORD}'\n"), {})
    assert found.credentials.comfyui.password == PASSWORD and found.credentials.comfyui.password_bcrypt != TOKEN
    assert found.summary.startswith(f"Imported: COMFYUI_PASSWORD in {tmp_path}")


READ = {
    "plain": f"COMFYUI_TOKEN={TOKEN}",
    "export": f"export COMFYUI_TOKEN={TOKEN}",
    "single quotes": f"COMFYUI_TOKEN='{TOKEN}'",
    "double quotes with escapes": 'COMFYUI_TOKEN="' + TOKEN.replace("$", "\\$") + '"',
    "double quotes without": f'COMFYUI_TOKEN="{TOKEN}"',
    "doubled dollars of compose": "COMFYUI_TOKEN=" + TOKEN.replace("$", "$$"),
    "KEY=KEY=value": f"COMFYUI_TOKEN=COMFYUI_TOKEN={TOKEN}",
    "KEY=KEY=KEY=value": f"COMFYUI_TOKEN=COMFYUI_TOKEN=COMFYUI_TOKEN='{TOKEN}'",
    "carriage returns": f"# the token\r\nCOMFYUI_TOKEN={TOKEN}\r\n\r\n",
    "a byte order mark": f"\ufeffCOMFYUI_TOKEN={TOKEN}\n",
    "another name": f"QWEN_API_TOKEN={TOKEN}\n",
    "two names, one token": f"QWEN_API_TOKEN={TOKEN}\nCOMFYUI_TOKEN={TOKEN}\n",
    "a name that says ComfyUI": f"comfy_key={TOKEN}\n",
    "a name that says Qwen": f"QWEN_API_KEY='{TOKEN}'\n",
    "beside what is not for us": f"HF_TOKEN=hf_abc\nCOMFYUI_TOKEN={TOKEN}\nPATHS=/a/b:/c\nEMPTY=\n",
    "beside another hash": f"FORGE_BASIC_AUTH_HASH='{OTHER}'\nFORGE_API_TOKEN={OTHER}\nCOMFYUI_TOKEN={TOKEN}\n",
    "beside another kind of hash": f"COMFYUI_TOKEN={TOKEN}\nTRAEFIK_AUTH=$2y$05${'a' * 53}\n",
    "beside what shells would work out": f'COMFYUI_TOKEN={TOKEN}\nDATA="$HOME/x"; export DATA\nNOTE=it\'s # so\n',
}


@pytest.mark.parametrize("text", READ.values(), ids=READ.keys())
def test_a_token_is_read_as_it_was_written(text: str, tmp_path: Path) -> None:
    found = import_credentials(variables(tmp_path, text) / ".env.generated", {})
    assert found.credentials.comfyui.password_bcrypt == TOKEN


def test_what_was_not_read_is_named(tmp_path: Path) -> None:
    found = import_credentials(variables(tmp_path, READ["beside what is not for us"] + "FORGE_AUTH=smith:anvil\n"), {})
    assert found.summary.endswith("ignored: FORGE_AUTH, HF_TOKEN, PATHS") and "anvil" not in found.summary


def test_a_hash_under_a_name_that_does_not_say_so_is_not_the_token(tmp_path: Path) -> None:
    text = f"FORGE_PASSWORD=anvil-and-fire\nFORGE_BASIC_AUTH_HASH='{TOKEN}'\nTRAEFIK_AUTH=$2y$05${'a' * 53}\n"
    found = import_credentials(variables(tmp_path, text), {})
    assert found.credentials.comfyui.password_bcrypt != TOKEN
    assert "made anew: ComfyUI's token and password" in found.summary
    assert found.summary.endswith("ignored: FORGE_BASIC_AUTH_HASH, TRAEFIK_AUTH")


PASSWORDS = {
    "dollars": ("FORGE_PASSWORD='$ecret $2 pay'", "$ecret $2 pay"),
    "an equals sign": ("FORGE_PASSWORD=a=b=c=d=e", "a=b=c=d=e"),
    "an escaped dollar": (r'FORGE_PASSWORD="pa\${HOME}word"', "pa${HOME}word"),
    "all that shells know, in single quotes": ("FORGE_PASSWORD='$(x);`y` & $$ #z|<>'", "$(x);`y` & $$ #z|<>"),
    "escaped quotes": (r'FORGE_PASSWORD="say \"hello\" \\now"', 'say "hello" \\now'),
    "a hash sign in it": ("FORGE_PASSWORD=anvil#fire", "anvil#fire"),
    "spaces around it": ("FORGE_PASSWORD = anvil and fire ", "anvil and fire"),
}


@pytest.mark.parametrize(("line", "password"), PASSWORDS.values(), ids=PASSWORDS.keys())
def test_a_password_is_read_as_it_was_written(line: str, password: str, tmp_path: Path) -> None:
    assert import_credentials(variables(tmp_path, line), {}).credentials.forge.password == password


REFUSED = {
    "57 characters": (f"COMFYUI_TOKEN={TOKEN[:-3]}", "COMFYUI_TOKEN in .*: the token has 57 characters"),
    "its dollars lost": ("COMFYUI_TOKEN=" + TOKEN.replace("$", ""), "the token has 57 characters"),
    "another kind": ("COMFYUI_TOKEN=" + TOKEN.replace("$2b", "$2y"), "another kind of hash"),
    "cheap": ("COMFYUI_TOKEN=" + TOKEN.replace("$10$", "$09$"), "a cost below 10"),
    "another alphabet": ("COMFYUI_TOKEN=" + TOKEN[:-1] + "!", "is not a bcrypt hash"),
    "mangled, under another name": ("X_TOKEN='$2b$12$short'", "X_TOKEN in .*: the token has 12 characters"),
    "two tokens": (f"A_TOKEN={TOKEN}\nQWEN_KEY={OTHER}", "values that differ: A_TOKEN in .*, QWEN_KEY in "),
    "two passwords": (
        "FORGE_PASSWORD=anvil-and-fire\nFORGE_PASSWORD=hammer-time",
        "values that differ: FORGE_PASSWORD",
    ),
    "a password of another": (
        f"COMFYUI_TOKEN={TOKEN}\nCOMFYUI_PASSWORD=not of this one",
        "not the password of the token",
    ),
    "an open quote": ("FORGE_PASSWORD='anvil", "FORGE_PASSWORD in line 1 of .*: not in single quotes"),
    "quotes in the middle": ("\nFORGE_PASSWORD=an'vil'fire", "FORGE_PASSWORD in line 2 of .*: not in single quotes"),
    "a comment": ("FORGE_PASSWORD=anvil-fire # old", "not in single quotes"),
    "an open quote of another": (f"NOTE='so\nCOMFYUI_TOKEN={TOKEN}", "NOTE in line 1 of .*: not in single quotes"),
    "a line that goes on, of another": (
        f"NOTE=a\\\nCOMFYUI_TOKEN={TOKEN}",
        "NOTE in line 1 of .*: not in single quotes",
    ),
    "a comment alone": ("FORGE_PASSWORD= # to be chosen", "not in single quotes"),
    "a token and a command": (f"COMFYUI_TOKEN={TOKEN}; export COMFYUI_TOKEN", "COMFYUI_TOKEN in .*: the token has"),
    "another kind, under a name of ours": (f"QWEN_AUTH={TOKEN.replace('$2b', '$2y')}", "QWEN_AUTH in .*: the token is"),
    "a hash for a password": (f"COMFYUI_PASSWORD='{TOKEN}'", "COMFYUI_PASSWORD in .* is a hash"),
    "no assignment": ("COMFYUI_TOKEN", "not `NAME=value`|the token has"),
    "YAML": ("comfyui:\n  token: x\n", "line 1 of .* is not `NAME=value`"),
    "nothing of use": ("HF_TOKEN=hf_x\nPORT=8188\n", "holds none of COMFYUI_TOKEN"),
    "a comma for Forge": ("FORGE_PASSWORD=anvil,fire", "FORGE_PASSWORD: the password holds a comma"),
    "a user with a colon": (f"COMFYUI_TOKEN={TOKEN}\nCOMFYUI_USER=a:b", "user name"),
}


@pytest.mark.parametrize(("text", "problem"), REFUSED.values(), ids=REFUSED.keys())
def test_what_can_mean_several_things_is_refused_by_name(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match=problem) as raised:
        import_credentials(variables(tmp_path, text) / ".env.generated", {})
    for secret in (TOKEN[7:], "anvil", "hammer", "not of this"):
        assert secret not in str(raised.value)


INTERPOLATED = {
    "a variable": "pa$HOME-word",
    "a variable in braces": "pa${HOME}word",
    "two dollars": "pa$$word99",
    "a dollar at the end": "anvil-and-$",
    "a variable in double quotes": '"pa${HOME}word"',
    "two dollars in double quotes": '"pa$$word99"',
    "an escape that only some know": r'"anvil\nfire"',
    "a command": "$(cat /x/y)zz",
    "a command in backticks": "`cat /x/y`zz",
    "backticks in double quotes": '"`cat /x/y`zz"',
    "a second command": "anvilfire; export FORGE_PASSWORD",
    "a command at the back": "anvil&fire",
    "a pipe": "anvil|fire",
    "a home folder": "~/anvil-fire",
}


@pytest.mark.parametrize("value", INTERPOLATED.values(), ids=INTERPOLATED.keys())
@pytest.mark.parametrize("name", ["FORGE_PASSWORD", "COMFYUI_PASSWORD"])
def test_what_shells_and_compose_would_have_worked_out_is_refused(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match=f"{name} in line 1 of ") as raised:
        import_credentials(variables(tmp_path, f"{name}={value}\n"), {})
    assert "in single quotes" in raised.value.hint
    assert value not in str(raised.value)


def test_a_hash_in_the_environment_is_no_password(folder: Path) -> None:
    with pytest.raises(AtelierError, match="FORGE_PASSWORD in the environment is a hash"):
        import_credentials(folder, {"FORGE_PASSWORD": OTHER})


def test_copies_of_the_token_that_drifted_apart_are_named(folder: Path) -> None:
    with pytest.raises(AtelierError, match=r"qwen-api-user.token, COMFYUI_TOKEN in .*env.generated"):
        import_credentials(variables(folder, f"COMFYUI_TOKEN={OTHER}"), {})


def test_an_import_of_nothing_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match=r"qwen-api-user.token and .env.generated"):
        import_credentials(tmp_path, {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AtelierError, match="cannot be read"):
        import_credentials(tmp_path / "binary", {})


def test_a_line_end_behind_the_token_is_no_part_of_it() -> None:
    assert [value.text for value in read(f"{TOKEN}\r\n", "here")] == [TOKEN]
    assert require_token(OTHER, "here") == OTHER
