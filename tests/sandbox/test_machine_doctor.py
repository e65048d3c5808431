"""Doctor on a real deployed machine: healthy, with its login plugin broken, with a full log of secrets, and stopped."""

import base64
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from harness import BREAK_LOGIN, Sandbox

from atelier import credentials, paths

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-doctor-{os.getpid()}")
NAME, atelier, ssh = SANDBOX.name, SANDBOX.atelier, SANDBOX.root


@pytest.fixture(scope="module", autouse=True)
def deployed() -> Iterator[None]:
    with SANDBOX.running():
        SANDBOX.deploy()
        yield


def bundle(output: str) -> dict[str, str]:
    """The files of the bundle that a run of doctor wrote."""
    path = Path(re.search(r"Support bundle: (.+)", output)[1].strip())
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read().decode() for member in archive.getmembers()}


def test_a_healthy_host_has_nothing_wrong_and_nothing_is_changed_there() -> None:
    changes = (
        "find / -xdev -newer /run/mark -type f -not -path '/proc/*' -not -path '/var/log/*' -not -path '/run/*' "
        + ("-not -path '/var/lib/docker/*' -not -path '/var/lib/containerd/*'")
    )
    ssh("touch /run/mark; sleep 1")
    assert "nothing is wrong" in atelier("doctor")
    assert ssh(changes) == ""


def test_every_source_brings_something() -> None:
    files = bundle(atelier("doctor", "--bundle"))
    silent = [name for name, text in files.items() if "host/" in name and len(text.splitlines()) < 2]
    assert [name.rpartition("/")[2] for name in silent] == ["failed-units.txt"]
    assert not [name for name, text in files.items() if "could not be read" in text and "README" not in name]


def test_planted_secrets_are_not_in_a_bundle_from_the_host() -> None:
    known = credentials.load(paths.secrets_dir(NAME))
    secrets = [known.forge.password, known.comfyui.password, known.comfyui.password_bcrypt, known.comfyui_cookie_key]
    forms = [form for secret in secrets for form in (secret, quote(secret), base64.b64encode(secret.encode()).decode())]
    shaped = ["opaque-planted-1", "hf_plantedplantedplanted1", "PlantedPlain2", "plantedword"]
    said = ("Authorization: Bearer {}", "use {}", "key={}", "the password is {}")
    lines = [*forms, *map(str.format, said, shaped), "the marker of this test"]
    # By standard input into the log of the application itself, and into files that doctor reads.
    ssh("docker exec -i -u 10001 forge-turbo sh -c 'cat >/proc/1/fd/1'", "\n".join(lines) + "\n")
    ssh("cat >>/var/log/apt/term.log", "\n".join(lines) + "\n")
    assert all(form in ssh("docker logs forge-turbo 2>&1") for form in [*forms, *shaped])
    ssh("systemd-run -q --wait --unit planted --description 'curl planted-argument' sh -c 'exit 3'; [ $? -eq 3 ]")
    assert "planted-argument" in ssh("systemctl list-units --failed --full --plain --no-legend")
    files = bundle(atelier("doctor", "--bundle"))
    assert [name.rpartition("/")[2] for name, text in files.items() if "planted.service" in text] == [
        "failed-units.txt"
    ]
    assert not [name for name, text in files.items() if "planted-argument" in text]
    marked = [name.rpartition("/")[2] for name, text in files.items() if "the marker of this test" in text]
    assert sorted(marked) == ["apt-terminal.txt", "log-forge-turbo.txt"]
    assert [(form, name) for form in [*forms, *shaped] for name, text in files.items() if form in text] == []


def test_a_broken_login_plugin_is_named_and_over_once_it_is_mended() -> None:
    ssh(BREAK_LOGIN)
    SANDBOX.wait_for("docker logs comfyui-qwen 2>&1 | grep -q 'was not started'")
    output = atelier("doctor", expect=1)
    assert re.findall(r"\[([a-z-]+)\]$", output, re.M) == ["login-plugin"]
    assert f"make deploy HOST={NAME}" in output and "is not in force" in output and "Support bundle" not in output
    ssh("cd /opt/atelier/services/comfyui-qwen && docker compose up -d --force-recreate --wait >/dev/null 2>&1")
    assert "nothing is wrong" in atelier("doctor")


def test_what_docker_refuses_is_named() -> None:
    image = ssh("docker inspect -f '{{.Config.Image}}' gateway")
    ssh(f"docker run -d --name other -p 127.0.0.1:8188:80 --entrypoint sleep {image} 60 2>&1 || true")
    ssh(f"docker run -d --name other-gpu --device nvidia.com/gpu=all --entrypoint sleep {image} 60 2>&1 || true")
    ssh("docker rm -f other other-gpu >/dev/null")
    output = atelier("doctor", expect=1)
    assert re.findall(r"\[([a-z-]+)\]$", output, re.M) == ["cdi-device-unknown", "port-taken"]
    ssh(
        "cd /opt/atelier/services/gateway && docker compose restart >/dev/null 2>&1 && docker compose up -d --wait >/dev/null 2>&1"
    )
    output = atelier("doctor")
    assert "Seen earlier and over by now" in output and "nothing is wrong" in output


def test_a_stopped_service_and_unknown_trouble() -> None:
    atelier("stop", "--service", "gateway")
    output = atelier("doctor", expect=1)
    assert re.findall(r"\[([a-z-]+)\]$", output, re.M) == ["stopped"] and "gateway: exited" in output
    atelier("start", "--service", "gateway")
    ssh("docker pause gateway")
    output = atelier("doctor", expect=1)
    assert "no known failure shows" in output and "gateway: paused" in output
    assert "Look at it before you send it" in output
    assert any(name.endswith("host/log-gateway.txt") for name in bundle(output))
