"""Credentials of the previous stack, taken over at a first deploy: its token file and its `.env.generated`.

What it wrote by hand and by scripts is read where it can mean one thing only, and refused by name where it cannot.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from atelier.credentials import (
    ENVIRONMENT_FILE,
    ENVIRONMENT_NAMES,
    TOKEN_FILE,
    USERS,
    Account,
    Credentials,
    check_password,
    check_user,
    generate,
    is_password,
)
from atelier.errors import AtelierError

TOKEN_NAME = "COMFYUI_TOKEN"  # noqa: S105 - a variable's name
_TOKEN = re.compile(r"\$2b\$(1[0-9]|2[0-9]|3[01])\$[./A-Za-z0-9]{53}")
_NAMES_TOKEN = re.compile(r"(?!.*FORGE).*(TOKEN|COMFY|QWEN).*", re.IGNORECASE)  # the previous stack had five such names
_HASH = re.compile(r"""["']?\\?\$\$?2[abxy]?\\?\$""")  # how one begins, as a line may spell it
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)")
_PLAIN = re.compile(r"""[^"'`\\$;&|<>()]*""")
_DOUBLE_QUOTED = re.compile(r"""\"(?:[^"\\$`]|\\["\\$])*\"""")  # the escapes that shells and compose have in common
_GOES_ON = re.compile(r"""'[^']*|"(?:[^"\\]|\\.)*|.*\\""")  # into the lines below
_MEND = "mend that line, or remove it"


@dataclass(frozen=True)
class Value:
    """A value that was found: in which variable, if any, and where."""

    name: str
    where: str
    text: str

    def place(self) -> str:
        """For messages, which never show the value."""
        return f"{self.name} in {self.where}" if self.name else self.where

    def is_token(self) -> bool:
        """Whether it is, or was meant to be, ComfyUI's bearer token."""
        return self.name == "" or is_token(self.name, self.text)


@dataclass(frozen=True)
class Imported:
    """Credentials with what was found, and a sentence that says what that was."""

    credentials: Credentials
    summary: str


def import_credentials(path: Path, environment: Mapping[str, str]) -> Imported:
    """Credentials with the token and passwords found at a path; fresh ones for what is not there.

    path: the token file, the `.env.generated`, or a folder that holds them. The environment adds what they lack.
    Raises AtelierError that names file and variable, and never a secret.
    """
    texts = {str(file): _text(file) for file in _files(path)}
    return import_texts(texts, environment, f"IMPORT={path}")


def import_texts(texts: Mapping[str, str], environment: Mapping[str, str], asked: str) -> Imported:
    """The same from texts by the place where each was read. asked: what the operator said, for messages."""
    values = [value for where, text in texts.items() for value in read(text, where)]
    values += [Value(name, "the environment", environment[name]) for name in ENVIRONMENT_NAMES if name in environment]
    for value in values:
        _require_no_hash(value)
    tokens = [value for value in values if value.is_token()]
    token, given = _one(tokens), {name: _one([v for v in values if v.name == name]) for name in ENVIRONMENT_NAMES}
    if token is None and not any(given.values()):
        raise AtelierError(
            f"{asked} holds none of {', '.join((TOKEN_NAME, *ENVIRONMENT_NAMES))}",
            f"name them so, or leave {asked.partition('=')[0]} out",
        )
    chosen = {name: value.text for name, value in given.items() if value}
    fresh = generate({name: text for name, text in chosen.items() if not (token and name.startswith("COMFYUI"))})
    if token is None:
        return Imported(fresh, _summary(values, given, None))
    account = _account_of(token, given)
    return Imported(fresh.model_copy(update={"comfyui": account}), _summary(values, given, token))


def _files(path: Path) -> list[Path]:
    found = [path / name for name in (TOKEN_FILE, ENVIRONMENT_FILE)] if path.is_dir() else [path]
    found = [file for file in found if file.is_file()]
    if not found:
        raise AtelierError(
            f"IMPORT={path}: no such file, or a folder without {TOKEN_FILE} and {ENVIRONMENT_FILE}",
            "name the token file, the .env.generated, or their folder",
        )
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AtelierError(f"IMPORT: {file} cannot be read: {error}", "name the right file") from None


def read(text: str, where: str) -> list[Value]:
    """What a file of the previous stack holds: a token alone, or variables that are not empty. Raises AtelierError."""
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    if len([line for line in lines if line]) == 1 and "=" not in text:
        return [Value("", where, require_token("".join(lines), where))]
    found = [
        _assignment(line, f"line {number} of {where}", where)
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]
    return [value for value in found if value.text]


def _assignment(line: str, place: str, where: str) -> Value:
    match = _ASSIGNMENT.fullmatch(line)
    if not match:
        raise AtelierError(f"IMPORT: {place} is not `NAME=value`", _MEND)
    name, text = match[1], match[2].strip()
    while text.startswith(f"{name}="):  # the previous stack's sync wrote KEY=KEY=value
        text = text.removeprefix(f"{name}=")
    value, place = Value(name, where, text), f"{name} in {place}"
    if not is_token(name, text) and name not in ENVIRONMENT_NAMES:
        if _GOES_ON.fullmatch(text):
            raise _unclear(place)
        return value
    # A whole hash shows by its form that nothing in it was taken for a variable; so it may be without single quotes.
    text = _bare(text) if _HASH.match(text) else _unquoted(text, place)
    if text and is_token(name, text):
        text = require_token(text, value.place())
    return replace(value, text=text)


def is_token(name: str, text: str) -> bool:
    """Whether a variable is for ComfyUI's token: COMFYUI_TOKEN, or a hash under another name that says TOKEN, COMFY or QWEN.

    Not under one that says FORGE, nor under one for a user or a password.
    """
    if name == TOKEN_NAME:
        return True
    return name not in ENVIRONMENT_NAMES and bool(_NAMES_TOKEN.fullmatch(name)) and bool(_HASH.match(text))


def _require_no_hash(value: Value) -> None:
    if value.name in ENVIRONMENT_NAMES and _HASH.match(value.text):
        raise AtelierError(
            f"IMPORT: {value.place()} is a hash, not a user or a password",
            f"name it {TOKEN_NAME} if it is ComfyUI's token, else remove it",
        )


def _bare(text: str) -> str:
    return re.sub(r"""^(["'])(.*)\1$""", r"\2", text).replace("\\$", "$")


def _unquoted(text: str, place: str) -> str:
    """A value that shells and compose files read alike. Raises AtelierError that names its place."""
    if re.fullmatch("'[^']*'", text):
        return text[1:-1]
    if _DOUBLE_QUOTED.fullmatch(text):
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    if _PLAIN.fullmatch(text) and not re.search(r"^~|(^|\s)#", text):
        return text
    raise _unclear(place)


def _unclear(place: str) -> AtelierError:
    return AtelierError(
        f"IMPORT: {place}: not in single quotes, and shells and compose files may read it in several ways",
        "write what the old service took it for, in single quotes, or remove that line",
    )


def require_token(text: str, place: str) -> str:
    """A bearer token as ComfyUI-Login and the gateway take it. Raises AtelierError that says what is wrong with it."""
    token = text.replace("$$", "$")  # as compose files write a dollar
    if _TOKEN.fullmatch(token):
        return token
    if re.match(r"\$2[axy]?\$", token):
        reason = "is another kind of hash; ComfyUI-Login and the gateway take $2b$ only"
    elif len(token) != 60:
        reason = f"has {len(token)} characters, not 60; a `$` in it may have been taken for a variable on the way"
    elif re.match(r"\$2b\$0", token):
        reason = "is a hash of a cost below 10"
    else:
        reason = "is not a bcrypt hash"
    raise AtelierError(
        f"IMPORT: {place}: the token {reason}",
        "take the one that the old ComfyUI has in login/PASSWORD, line 1, or remove that line if it is not ComfyUI's",
    )


def _one(values: list[Value]) -> Value | None:
    if len({value.text for value in values}) > 1:
        places = ", ".join(value.place() for value in values)
        raise AtelierError(f"IMPORT: values that differ: {places}", "leave the one that is in force")
    return values[0] if values else None


def _account_of(token: Value, given: Mapping[str, Value | None]) -> Account:
    """The account of a token; its password is known where one was given, and then must be the token's."""
    user, password = given["COMFYUI_USER"], given["COMFYUI_PASSWORD"]
    if password and not is_password(password.text, token.text):
        raise AtelierError(
            f"IMPORT: {password.place()} is not the password of the token ({token.place()})",
            "remove it: the token goes on working, and `make rotate` makes a password that is known",
        )
    return Account(
        user=check_user(user.text) if user else USERS["comfyui"],
        password=check_password(password.text, password.name) if password else None,
        password_bcrypt=token.text,
    )


def _summary(values: list[Value], given: Mapping[str, Value | None], token: Value | None) -> str:
    taken = [token.place()] if token else []
    taken += [value.place() for value in given.values() if value]
    known = {*ENVIRONMENT_NAMES, token.name if token else ""}
    ignored = sorted({value.name for value in values if not value.is_token()} - known)
    fresh = ["ComfyUI's token and password"] if not token and not given["COMFYUI_PASSWORD"] else []
    fresh += [] if given["FORGE_PASSWORD"] else ["Forge's password"]
    told = {"Imported": taken, "made anew": fresh, "ignored": ignored}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in told.items() if names)
