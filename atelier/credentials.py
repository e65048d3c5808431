"""Credentials: generated once, kept on the operator's computer, rendered into files on the host.

One store (`.secrets/<host>/credentials.yml`), one writer; `qwen-api-user.token` and `.env.generated` are written from
it. The bearer token is the 60-character bcrypt hash of the ComfyUI password, because that is what ComfyUI-Login
compares with (its `login/PASSWORD`, line 1).
"""

import base64
import hashlib
import json
import os
import re
import secrets
import string
import tempfile
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

import bcrypt
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from atelier.errors import AtelierError

BCRYPT_COST = 12
ALPHABET = string.ascii_letters + string.digits
PASSWORD_LENGTH = 32
STORE_FILE = "credentials.yml"
TOKEN_FILE = "qwen-api-user.token"  # noqa: S105 - a file name of the contract
ENVIRONMENT_FILE = ".env.generated"
FORMER_FILE = "credentials.previous.yml"
USERS = {"comfyui": "qwen-api-user", "forge": "forge-user"}
"""User names where nobody chooses others."""
ENVIRONMENT_NAMES = {
    "COMFYUI_USER": ("comfyui", "user"),
    "COMFYUI_PASSWORD": ("comfyui", "password"),
    "FORGE_USER": ("forge", "user"),
    "FORGE_PASSWORD": ("forge", "password"),
}


Document = TypeVar("Document", bound=BaseModel)


class Account(BaseModel):
    """One user of one service. `password_bcrypt` is the hash; for ComfyUI it is the bearer token as well.

    `password` is None where a token was imported whose password nobody gave.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    user: str
    password: str | None
    password_bcrypt: str


class Credentials(BaseModel):
    """All credentials of one host. `instance` ties this store to the host that carries the same id."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    instance: str
    comfyui: Account
    forge: Account
    comfyui_cookie_key: str

    def account(self, service: str) -> Account:
        """The account of `comfyui` or `forge`."""
        return {"comfyui": self.comfyui, "forge": self.forge}[service]


class Former(BaseModel):
    """What an unfinished rotation replaces: the services, their credentials where known, sessions that must end.

    `cookies`: by service, the Cookie header of a session that was opened with the former credentials. `successor`: the
    fingerprint of the new ones. `replaces`: that of those on the host, which is told even where they are not known here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    services: tuple[str, ...]
    credentials: Credentials | None
    cookies: dict[str, str]
    successor: str
    replaces: str = ""


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
        "holds a comma or a colon, at which Forge's own options split what they are given": variable.startswith("FORGE")
        and re.search("[,:]", password) is not None,
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


def is_password(password: str, password_bcrypt: str) -> bool:
    """Whether this is the password of that hash."""
    raw = password.encode()
    return len(raw) <= 72 and b"\0" not in raw and bcrypt.checkpw(raw, password_bcrypt.encode())


def is_same_account(one: Account, other: Account) -> bool:
    """Whether both let the same user in with the same token or password; two hashes of one password differ."""
    same_password = one.password is not None and one.password == other.password
    return one.user == other.user and (same_password or one.password_bcrypt == other.password_bcrypt)


def generate(environment: Mapping[str, str], instance: str = "") -> Credentials:
    """Fresh credentials; names and passwords are taken from the operator's environment where set there.

    instance: the id of a host that has one.
    """
    comfyui, forge = (_fresh_account(service, user, environment) for service, user in USERS.items())
    return Credentials(
        instance=instance or str(uuid.uuid4()), comfyui=comfyui, forge=forge, comfyui_cookie_key=_fresh_cookie_key()
    )


def renew(credentials: Credentials, services: Collection[str], environment: Mapping[str, str]) -> Credentials:
    """The same with fresh ones for these services, chosen by the environment where it does.

    Raises AtelierError when it chooses the password that is to go, or one of a service that stays as it is.
    """
    staying = [name for name in differing(credentials, environment) if ENVIRONMENT_NAMES[name][0] not in services]
    if staying:
        raise AtelierError(
            f"{', '.join(staying)} in the environment differ from the stored credentials, which stay",
            "unset them, or rotate that service too",
        )
    fresh: dict[str, object] = {}
    for service in services:
        name, former = f"{service.upper()}_PASSWORD", credentials.account(service)
        if name in environment and is_password(environment[name], former.password_bcrypt):
            raise AtelierError(f"{name} in the environment is the password in use", "unset it, or choose another")
        fresh[service] = _fresh_account(service, former.user, environment)
    if "comfyui" in services:
        fresh["comfyui_cookie_key"] = _fresh_cookie_key()
    return credentials.model_copy(update=fresh)


def _fresh_account(service: str, user: str, environment: Mapping[str, str]) -> Account:
    name = f"{service.upper()}_PASSWORD"
    if name in environment:
        password = check_password(environment[name], name)
    else:
        password = "".join(secrets.choice(ALPHABET) for _ in range(PASSWORD_LENGTH))
    chosen = check_user(environment.get(f"{service.upper()}_USER", user))
    return Account(user=chosen, password=password, password_bcrypt=hash_password(password))


def _fresh_cookie_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def fingerprint(credentials: Credentials) -> str:
    """What a host is told of the credentials it got. The cookie key in it keeps anybody from guessing by it."""
    accounts = [[account.user, account.password_bcrypt] for account in (credentials.comfyui, credentials.forge)]
    values = [credentials.instance, *accounts, credentials.comfyui_cookie_key]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def load(directory: Path) -> Credentials | None:
    """The stored credentials, or None when there are none. Raises AtelierError when the file is damaged."""
    return _read(directory / STORE_FILE, Credentials)


def load_former(directory: Path) -> Former | None:
    """What an unfinished rotation replaces, or None when there is none. Raises AtelierError when the file is damaged."""
    return _read(directory / FORMER_FILE, Former)


def unfinished(directory: Path) -> Former | None:
    """The rotation that has to be finished first. One that was ended before it stored anything new is none."""
    stored, former = load(directory), load_former(directory)
    return former if stored and former and former.successor == fingerprint(stored) else None


def _read(path: Path, model: type[Document]) -> Document | None:
    if not path.exists():
        return None
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError):
        raise AtelierError(f"{path}: damaged", "restore it from a backup") from None


def begin_rotation(directory: Path, former: Former, credentials: Credentials) -> None:
    """Store the new credentials, after what they replace is written down: who is killed in between has both or the old."""
    _make_private(directory)
    write_private(directory / FORMER_FILE, "# Written by atelier: a rotation is not finished.\n" + _yaml(former))
    save(directory, credentials)


def forget_former(directory: Path) -> None:
    """The rotation is finished and proved."""
    (directory / FORMER_FILE).unlink(missing_ok=True)


def save(directory: Path, credentials: Credentials) -> None:
    """Write the store and the two files derived from it, each whole or not at all, never readable by others."""
    _make_private(directory)
    write_private(
        directory / STORE_FILE, "# Written by atelier. Keep it: the host cannot give it back.\n" + _yaml(credentials)
    )
    write_private(directory / TOKEN_FILE, credentials.comfyui.password_bcrypt)
    write_private(directory / ENVIRONMENT_FILE, environment_file(credentials))


def _make_private(directory: Path) -> None:
    for folder in (directory.parent, directory):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)


def _yaml(document: BaseModel) -> str:
    return yaml.safe_dump(document.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name too outlasts a power cut
    finally:
        os.close(folder)


def environment_file(credentials: Credentials) -> str:
    """The credentials for shells and compose clients, in single quotes so that `$` survives both."""
    values = {
        "COMFYUI_USER": credentials.comfyui.user,
        "COMFYUI_PASSWORD": credentials.comfyui.password,
        "COMFYUI_TOKEN": credentials.comfyui.password_bcrypt,
        "FORGE_USER": credentials.forge.user,
        "FORGE_PASSWORD": credentials.forge.password,
    }
    return "".join(f"{name}={_single_quoted(value)}\n" for name, value in values.items() if value is not None)


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
