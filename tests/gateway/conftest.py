"""Fixtures: gateways to send requests to. Skipped only where Caddy is not installed."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from gateway_harness import GATEWAY, Gateway, end_gateway, make_gateway

PASSWORDS = {"comfyui": "Comfy-pass-123", "forge": "Forge-pass-456"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("caddy") is None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="caddy is not installed (apt install caddy)"))


@pytest.fixture(scope="session")
def gateway_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with the guard's own locked libraries."""
    if all(importlib.util.find_spec(name) for name in ("aiohttp", "h11", "bcrypt")):
        return sys.executable
    venv = tmp_path_factory.mktemp("guard") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin" / "pip", "install", "--quiet", "--require-hashes", "-r", GATEWAY / "requirements.txt"]
    subprocess.run(pip, check=True)
    return str(venv / "bin" / "python")


@pytest.fixture(scope="session")
def accounts() -> dict[str, dict[str, str]]:
    return {
        kind: {
            "user": f"{kind}-owner",
            "password": password,
            "password_bcrypt": bcrypt.hashpw(password.encode(), bcrypt.gensalt(10)).decode(),
        }
        for kind, password in PASSWORDS.items()
    }


@pytest.fixture(scope="session")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, gateway_python: str, accounts: dict[str, dict[str, str]]
) -> Iterator[Gateway]:
    """One gateway with both applications, shared by tests that leave it as they found it."""
    running = make_gateway(tmp_path_factory.mktemp("gateway"), gateway_python, accounts)
    yield running
    end_gateway(running)


@pytest.fixture
def own_gateway(
    tmp_path: Path, gateway_python: str, accounts: dict[str, dict[str, str]]
) -> Iterator[Callable[..., Gateway]]:
    """Makes gateways of the test's own, for tests that break things."""
    made: list[Gateway] = []

    def make(**settings: Any) -> Gateway:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(make_gateway(directory, gateway_python, accounts, **settings))
        return made[-1]

    yield make
    for running in made:
        end_gateway(running)
