"""Where secrets are searched for: the real script in a tree of its own, and what is made of its words."""

import os
import subprocess

import pytest

from atelier.checks import leaks_state
from atelier.checks.leaks_state import Told
from atelier.settings import Settings

SECRET = "Zq7-correct$horse/battery"
KEY = "MHcCAQEEIHvWzFz1m4yq7jNf0Zq0dQbq3v1yKf0m3V5gkZxkq8T2oAoGCCqGSM49"
TOKEN = "hf_0123456789abcdef"


@pytest.fixture
def search(tmp_path):
    """Searches a small host, in which nothing leaks until a file says so. docker: shell that is Docker's answer."""
    config, data = tmp_path / "opt/atelier", tmp_path / "srv/atelier"
    settings = Settings(profile="cpu").model_copy(update={"config_root": str(config), "data_root": str(data)})
    canary = config / "secrets/gateway/credentials.json"
    programs = tmp_path / "programs"
    for folder in (canary.parent, data / "state", data / "users", data / "outputs", programs):
        folder.mkdir(parents=True)
    for folder in ("run", "tmp", "etc", "root/.secrets", "home", "var/log/journal/x"):
        (tmp_path / folder).mkdir(parents=True)
    canary.write_text(SECRET)
    (data / "state/acme/a").mkdir(parents=True)
    (data / "state/acme/a/a.key").write_text(f"-----BEGIN EC PRIVATE KEY-----\n{KEY}\n-----END EC PRIVATE KEY-----\n")
    (config / "weights.token").write_text(TOKEN + "\n")
    (tmp_path / "root/.secrets/store").write_text(SECRET)

    def told(files: dict[str, tuple[str, int]] = {}, docker: str = ":") -> Told:  # noqa: B006 - only read
        for path, (text, mode) in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
            (tmp_path / path).chmod(mode)
        for name, body in {"docker": docker, "journalctl": ":"}.items():
            (programs / name).write_text(f"#!/bin/sh\n{body}\n")
            (programs / name).chmod(0o755)
        script = leaks_state.script(settings, ["a"], str(canary), root=str(tmp_path))
        environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
        given = leaks_state.patterns([SECRET])
        answer = subprocess.run(["sh", "-c", script], input=given, env=environment, capture_output=True, check=True)
        seen = leaks_state.parse(answer.stdout.decode().replace(f"{tmp_path}/", ""))
        assert "opt/atelier/secrets/gateway/credentials.json" in seen.found, answer.stderr
        return Told(
            seen.found[:0] + tuple(x for x in seen.found if "/secrets/" not in x), *list(vars(seen).values())[1:]
        )

    return told


@pytest.mark.parametrize(
    ("path", "text", "mode"),
    [
        ("opt/atelier/services/a/.env", f"X={SECRET}", 0o600),
        ("srv/atelier/state/deployed.json", SECRET, 0o600),
        ("srv/atelier/users/a/x.log", SECRET, 0o600),
        ("srv/atelier/outputs/a/x y.png", f"\0PNG\0{SECRET}", 0o600),
        ("tmp/copy", SECRET, 0o600),
        ("etc/cron.d/job", SECRET, 0o644),
        ("etc/profile", TOKEN, 0o644),
        ("etc/copy.pem", f"{KEY}\n", 0o644),
        ("var/log/proxy.log.1", "Basic " + "WnE3LWNvcnJlY3QkaG9yc2UvYmF0dGVyeQ==", 0o600),
        ("var/log/journal/x/old.journal", "\0" * 9_000_000 + f"MESSAGE={SECRET}", 0o640),
    ],
)
def test_a_secret_is_found_where_it_leaked(search, path, text, mode):
    told = search({path: (text, mode)})
    assert told == Told(found=(path,))
    assert [finding.problem for finding in leaks_state.leaks(told, "other")] == [path]


def test_secrets_where_they_belong_are_no_leaks(search):
    private_key = {"etc/ssl/private/key.pem": (SECRET, 0o600)}
    assert search(private_key) == Told()
    assert leaks_state.text(Told()) == "nothing wrong found"


def test_the_home_of_an_operator_only_warns(search):
    told = search({"root/.bash_history": (f"curl -u a:{SECRET}", 0o600), "home/a/b/notes": (SECRET, 0o644)})
    assert set(told.homes) == {"root/.bash_history", "home/a/b/notes"} and not leaks_state.leaks(told, "")
    assert len(leaks_state.kept(told)) == 2


def test_the_newest_logs_are_searched_and_the_others_named(search, monkeypatch, tmp_path):
    monkeypatch.setattr(leaks_state, "LOG_BYTES", 1_000_000)
    (tmp_path / "var/log/huge").write_bytes(b"x" * 900_000)
    os.utime(tmp_path / "var/log/huge", (1, 1))
    told = search({"var/log/new": (SECRET + "x" * 500_000, 0o600)})
    assert told == Told(found=("var/log/new",), older=("var/log/huge (1 MB)",))
    assert leaks_state.text(told).endswith("not searched, beyond 1 MB of newer logs: var/log/huge (1 MB)")


@pytest.mark.parametrize(
    ("docker", "found", "unread"),
    [
        (
            '[ "$1" != ps ] || echo 1 2; [ "$1" != inspect ] || { echo "[{}]"; echo "No such object: 2" >&2; exit 1; }',
            (),
            (),
        ),
        (f'[ "$1" != ps ] || echo 1; [ "$1" != inspect ] || echo "X={SECRET}"', ("docker inspect",), ()),
        (f'[ "$1" != logs ] || echo "{SECRET}"', ("docker logs a",), ()),
        ('[ "$1" != inspect ]', (), ()),
        ('[ "$1" != ps ]', (), ("docker inspect",)),
        ('[ "$1" != logs ]', (), ("docker logs a",)),
    ],
)
def test_what_docker_tells(search, docker, found, unread):
    docker = docker.replace("$horse", "\\$horse")
    told = search(docker=docker)
    assert told == Told(found=found, unread=unread)
    assert all("cannot be read" in finding.problem for finding in leaks_state.leaks(told, "")[len(found) :])
