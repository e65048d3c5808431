"""Credentials: generated once, kept on the operator's computer, rendered into files on the host.

One store (`.secrets/<host>/credentials.yml`), one writer; `qwen-api-user.token` and `.env.generated` are written from
it. The bearer token is the 60-character bcrypt hash of the ComfyUI password, because that is what ComfyUI-Login
compares with (its `login/PASSWORD`, line 1).
"""

import base64
import os
import re
import secrets
import string
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

import bcrypt
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from atelier.errors import AtelierError

BCRYPT_COST = 12
ALPHABET = string.ascii_letters + string.digits
PASSWORD_LENGTH = 32
TOKEN_FILE = "qwen-api-user.token"  # noqa: S105 - a file name of the contract
ENVIRONMENT_NAMES = {
    "COMFYUI_USER": ("comfyui", "user"),
    "COMFYUI_PASSWORD": ("comfyui", "password"),
    "FORGE_USER": ("forge", "user"),
    "FORGE_PASSWORD": ("forge", "password"),
}


class Account(BaseModel):
    """One user of one service. `password_bcrypt` is the hash; for ComfyUI it is the bearer token as well."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    user: str
    password: str
    password_bcrypt: str


class Credentials(BaseModel):
    """All credentials of one host. `instance` ties this store to the host that carries the same id."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    instance: str
    comfyui: Account
    forge: Account
    comfyui_cookie_key: str


def check_user(name: str) -> str:
    """A user name that every parser in the way leaves alone. Raises AtelierError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", name) or name == "health":
        raise AtelierError(f"user name {name!r}: use 1 to 32 letters, digits, `.`, `_` or `-`; `health` is taken")
    return name


def check_password(password: str, variable: str) -> str:
    """A password that bcrypt, HTTP Basic and both applications take unchanged (facts: forge.md, special characters).

    Raises AtelierError with the reason; the password itself is never in the message.
    """
    reasons = {
        "is empty": not password,
        "is longer than the 72 bytes that bcrypt reads": len(password.encode()) > 72,
        "begins or ends with a space": password != password.strip(),
        "holds characters other than printable ASCII, which HTTP Basic does not carry reliably": not (
            password.isascii() and password.isprintable()
        ),
        "holds a single quote, which shells and compose files quote in different ways": "'" in password,
        "is shorter than 8 characters": len(password) < 8,
    }
    wrong = [reason for reason, applies in reasons.items() if applies]
    if wrong:
        raise AtelierError(
            f"{variable}: the password {wrong[0]}", "choose another, or leave it unset to have one generated"
        )
    return password


def hash_password(password: str) -> str:
    """The `$2b$12$` bcrypt hash, 60 characters."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds=BCRYPT_COST, prefix=b"2b")).decode()


def generate(environment: Mapping[str, str]) -> Credentials:
    """Fresh credentials; names and passwords are taken from the operator's environment where set there."""
    password = {
        name: check_password(environment[name], name)
        if name in environment
        else "".join(secrets.choice(ALPHABET) for _ in range(PASSWORD_LENGTH))
        for name in ("COMFYUI_PASSWORD", "FORGE_PASSWORD")
    }
    comfyui, forge = (
        Account(
            user=check_user(environment.get(f"{service}_USER", default)),
            password=password[f"{service}_PASSWORD"],
            password_bcrypt=hash_password(password[f"{service}_PASSWORD"]),
        )
        for service, default in (("COMFYUI", "qwen-api-user"), ("FORGE", "forge-user"))
    )
    key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return Credentials(instance=str(uuid.uuid4()), comfyui=comfyui, forge=forge, comfyui_cookie_key=key)


def load(directory: Path) -> Credentials | None:
    """The stored credentials, or None when there are none. Raises AtelierError when the file is damaged."""
    path = directory / "credentials.yml"
    if not path.exists():
        return None
    try:
        return Credentials.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError):
        raise AtelierError(f"{path}: damaged", "restore it from a backup") from None


def save(directory: Path, credentials: Credentials) -> None:
    """Write the store and the two files derived from it, each whole or not at all, never readable by others."""
    for folder in (directory.parent, directory):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    document = yaml.safe_dump(credentials.model_dump(), sort_keys=False, allow_unicode=True)
    write_private(
        directory / "credentials.yml", "# Written by atelier. Keep it: the host cannot give it back.\n" + document
    )
    write_private(directory / TOKEN_FILE, credentials.comfyui.password_bcrypt)
    write_private(directory / ".env.generated", environment_file(credentials))


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, for this user alone."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:  # mkstemp made it 0600
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def environment_file(credentials: Credentials) -> str:
    """The credentials for shells and compose clients, in single quotes so that `$` survives both."""
    values = {
        "COMFYUI_USER": credentials.comfyui.user,
        "COMFYUI_PASSWORD": credentials.comfyui.password,
        "COMFYUI_TOKEN": credentials.comfyui.password_bcrypt,
        "FORGE_USER": credentials.forge.user,
        "FORGE_PASSWORD": credentials.forge.password,
    }
    return "".join(f"{name}={_single_quoted(value)}\n" for name, value in values.items())


def _single_quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def differing(credentials: Credentials, environment: Mapping[str, str]) -> list[str]:
    """Names of environment variables that ask for something else than what is stored (only `rotate` may change it)."""
    stored = credentials.model_dump()
    return [
        name
        for name, (service, key) in ENVIRONMENT_NAMES.items()
        if environment.get(name, stored[service][key]) != stored[service][key]
    ]
