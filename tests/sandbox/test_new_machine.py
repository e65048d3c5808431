"""Another machine under a known name: its key is explained and never taken by itself, credentials stay, weights come from the old one.

The tests share two sandboxes and run in their order.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from following import follow
from harness import Sandbox

from atelier import paths
from atelier.errors import AtelierError
from atelier.ssh import Destination, Ssh
from sandbox import machine

pytestmark = pytest.mark.sandbox
OLD = Sandbox(f"sandbox-nm-old-{os.getpid()}")
NEW = Sandbox(f"sandbox-nm-{os.getpid()}")
STORE = "/srv/atelier/models"
SUMS = f"cd {STORE} && find . -type f -path './*/*' ! -path './.*' -exec sha256sum {{}} + | sort -k 2"


@pytest.fixture(scope="module", autouse=True)
def old() -> Iterator[None]:
    with OLD.running():
        OLD.deploy()
        yield


@pytest.fixture(scope="module")
def new(old: None) -> Iterator[None]:
    with NEW.running():
        yield


def reprovision(sandbox: Sandbox, *arguments: str, expect: int = 0) -> str:
    return sandbox.atelier("reprovision", "--sources", "double", *arguments, expect=expect)


def fingerprint(key: Path) -> str:
    told = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True).stdout
    return told.split()[1]


def test_a_changed_host_key_is_explained_and_taken_only_by_the_command_it_names(tmp_path: Path) -> None:
    guest = machine.get(OLD.name)
    assert guest
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    kind, blob, *_ = other.with_suffix(".pub").read_text().split()
    known = tmp_path / "known_hosts"
    known.write_text(f"{guest.address} {kind} {blob}\n")
    config = tmp_path / "config"
    config.write_text(guest.ssh_config.read_text().replace(str(guest.known_hosts_file), str(known)))
    before = known.read_bytes()
    OLD.ssh().close()  # one that was open before would carry the next
    for accepting in (False, True):
        with pytest.raises(AtelierError) as raised:
            Ssh(Destination(OLD.name, user="deploy", config=config), accept_new_host_key=accepting).connect()
        told = str(raised.value)
        assert fingerprint(other.with_suffix(".pub")) in told
        assert fingerprint(guest.ssh_config.parent / "host_ed25519.pub") in told
        assert known.read_bytes() == before, "accepted by itself"
    command = next(line for line in told.splitlines() if "only where they are equal: " in line).partition("equal: ")[2]
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    with pytest.raises(AtelierError, match="not known here yet"):
        Ssh(Destination(OLD.name, user="deploy", config=config)).connect()
    ssh = Ssh(Destination(OLD.name, user="deploy", config=config), accept_new_host_key=True)
    ssh.connect()
    ssh.close()


def summary(output: str) -> str:
    (line,) = re.findall(r"^Reprovisioned: .*", output, re.M)
    return str(line)


def test_a_bare_machine_under_a_known_name_takes_credentials_from_here_and_weights_from_the_old_one(new: None) -> None:
    folder = paths.secrets_dir(NEW.name)
    shutil.copytree(paths.secrets_dir(OLD.name), folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (output,) = follow("another machine under a known name", NEW, {"user@old-host": OLD.name})
    assert f"{NEW.name} is a machine that was never deployed; the credentials of this computer" in output
    assert files and {path: path.read_bytes() for path in files} == files

    told = re.search(
        r"(\d+) of (\d+) missing weights, (\d+) bytes, come from the old host \S+ through this computer", output
    )
    assert told and told[1] == told[2] != "0"
    assert f"{told[3]} bytes came from the old host {OLD.name}" in output
    said = summary(output)
    assert f"{told[3]} bytes fetched ({told[3]} bytes of it from the old host), 0 bytes renamed, 0 bytes copied" in said
    assert "no service was there before" in said and "removed: nothing" in said
    assert NEW.root(SUMS) == OLD.root(SUMS) != ""
    job = "cat /opt/atelier/weights.json"
    assert NEW.root(job) == OLD.root(job), "it names the way through this computer no more"


def test_an_old_machine_that_is_gone_is_said_to_be_and_the_rest_goes_on() -> None:
    size = NEW.root(f"cat {STORE}/vae/*.safetensors | wc -c")
    NEW.root(f"rm -f {STORE}/vae/*.safetensors")
    OLD.cut_power()
    output = reprovision(NEW, "--old", OLD.name)
    assert re.search(r"weights do not come from the old host: .*; they come from file:///", output)
    assert f"{size} bytes of weights from file:///" in output
    said = summary(output)
    assert f"{size} bytes fetched, 0 bytes renamed, 0 bytes copied" in said and "removed: nothing" in said
    assert re.search(r"ComfyUI away for [0-9.]+ s, Forge away for 0.0 s", said)
    NEW.atelier("verify", "--quick")
