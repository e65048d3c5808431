"""Reads `guard.json` and `credentials.json`; whatever is wrong with them keeps the gateway from starting."""

import ipaddress
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard.client import Network, Surroundings, read_default_gateways
from guard.policy import POLICIES, Policy

_BCRYPT = re.compile(r"\$2b\$(1[0-9]|2[0-9]|3[01])\$[./A-Za-z0-9]{53}")
ROUTES = Path("/proc/net/route")
_UPSTREAM = re.compile(r"(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*):(?P<port>[0-9]{1,5})")


class ConfigError(Exception):
    """The gateway must not start; the message names the file, what is wrong and never a secret."""


@dataclass(frozen=True)
class Account:
    """Who may enter an application. For ComfyUI the hash is the bearer token itself."""

    user: str
    password_bcrypt: str = field(repr=False)


@dataclass(frozen=True)
class Application:
    """One application behind the gateway, with the account that may enter it."""

    name: str
    policy: Policy
    host: str
    port: int
    allow_query_token: bool
    account: Account


@dataclass(frozen=True)
class Config:
    """All that the guard is told: the applications by name, other sites' pages, and the network around the gateway."""

    applications: dict[str, Application]
    cors_origins: frozenset[str]
    surroundings: Surroundings


def load(config_dir: Path, secrets_dir: Path) -> Config:
    """The guard's configuration. Raises ConfigError."""
    config_file, credentials_file = config_dir / "guard.json", secrets_dir / "credentials.json"
    declared = _read_object(config_file)
    keys = {"applications", "cors_origins", "tls", "trusted_proxies"}
    if set(declared) != keys:
        raise ConfigError(f"{config_file}: needs exactly the keys {', '.join(sorted(keys))}")
    entries, tls = declared["applications"], declared["tls"]
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{config_file}: `applications` must list at least one application")
    if not isinstance(tls, bool):
        raise ConfigError(f"{config_file}: `tls` must be true or false")
    credentials = _read_object(credentials_file)
    applications = [_application(entry, credentials, config_file, credentials_file) for entry in entries]
    by_name = {application.name: application for application in applications}
    if len(by_name) < len(applications):
        raise ConfigError(f"{config_file}: two applications have the same name")
    proxies = tuple(_network(entry, config_file) for entry in _words(declared, "trusted_proxies", config_file))
    origins = frozenset(_words(declared, "cors_origins", config_file))
    own_gateways = read_default_gateways(ROUTES.read_text())
    return Config(by_name, origins, Surroundings(proxies, own_gateways, tls))


def _words(declared: dict[str, Any], key: str, config_file: Path) -> list[str]:
    value = declared[key]
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ConfigError(f"{config_file}: `{key}` must be a list of words")
    return value


def _network(text: str, config_file: Path) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"{config_file}: `trusted_proxies`: {text} is no network") from error


def _application(entry: Any, credentials: dict[str, Any], config_file: Path, credentials_file: Path) -> Application:
    keys = {"name", "kind", "upstream", "port", "allow_query_token"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise ConfigError(f"{config_file}: an application needs exactly the keys {', '.join(sorted(keys))}")
    name, kind, query_token = entry["name"], entry["kind"], entry["allow_query_token"]
    upstream = _UPSTREAM.fullmatch(str(entry["upstream"]))
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{config_file}: an application's `name` must be a word")
    if kind not in POLICIES:
        raise ConfigError(f"{config_file}: {name}: `kind` must be one of {', '.join(POLICIES)}")
    if not upstream:
        raise ConfigError(f"{config_file}: {name}: `upstream` must be `host:port`")
    if not isinstance(query_token, bool):
        raise ConfigError(f"{config_file}: {name}: `allow_query_token` must be true or false")
    account = _account(credentials.get(kind), f"{credentials_file}: {kind}")
    return Application(name, POLICIES[kind], upstream["host"], int(upstream["port"]), query_token, account)


def _account(entry: Any, where: str) -> Account:
    if not isinstance(entry, dict) or set(entry) != {"user", "password_bcrypt"}:
        raise ConfigError(f"{where}: needs exactly the keys password_bcrypt, user")
    user, password_bcrypt = entry["user"], entry["password_bcrypt"]
    if not isinstance(user, str) or not user or ":" in user:
        raise ConfigError(f"{where}: `user` must be a name without a colon")
    if not isinstance(password_bcrypt, str) or not _BCRYPT.fullmatch(password_bcrypt):
        raise ConfigError(f"{where}: `password_bcrypt` is not a 60-character $2b$ hash of cost 10 or more")
    return Account(user, password_bcrypt)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return value
