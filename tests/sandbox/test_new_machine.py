"""Another machine under a known name: its key is explained and never taken by itself, credentials stay, weights come from the old one.

The tests share two sandboxes and run in their order.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
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


def test_a_new_machine_gets_its_weights_from_the_old_one_while_that_answers(new: None) -> None:
    output = reprovision(NEW, "--old", OLD.name)
    told = re.search(
        r"(\d+) of (\d+) missing weights, .* come from the old host sandbox-nm-old-\d+ through this computer", output
    )
    assert told and told[1] == told[2] != "0"
    came = re.search(r"([\d.]+) (MB|GB) came from the old host", output)
    assert came and float(came[1]) > 0
    assert NEW.root(SUMS) == OLD.root(SUMS) != ""
    NEW.atelier("verify", "--quick")
    assert "127.0.0.1" not in NEW.root("cat /opt/atelier/weights.json"), "the way through this computer is gone"


def test_a_bare_machine_under_a_known_name_takes_the_credentials_of_this_computer() -> None:
    folder = paths.secrets_dir(NEW.name)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    machine.down(NEW.name, print)
    NEW.up()
    output = reprovision(NEW)
    assert f"{NEW.name} is a machine that was never deployed; the credentials of this computer" in output
    assert {path: path.read_bytes() for path in files} == files
    NEW.atelier("verify", "--quick")


def test_an_old_machine_that_is_gone_is_said_to_be_and_the_rest_goes_on() -> None:
    NEW.root(f"rm -f {STORE}/vae/*.safetensors")
    OLD.cut_power()
    output = reprovision(NEW, "--old", OLD.name)
    assert "weights do not come from the old host" in output
    NEW.atelier("verify", "--quick")
