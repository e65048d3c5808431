"""Ports forwarded through the one SSH connection: they last while nobody uses it, and go when they should."""

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Sandbox

from atelier.errors import AtelierError
from atelier.models_serve import serving
from atelier.ssh import Ssh
from weights.store import File, Store
from weights.verify import verify

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-forwards-{os.getpid()}")
CONTENT = os.urandom(3 * 2**20)
FILE = File("vae/small.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
FETCH = r"""perl -MIO::Socket::INET -e '
$s = IO::Socket::INET->new("127.0.0.1:%d") or die "refused";
print $s "GET /vae/small.safetensors HTTP/1.0\r\n\r\n";
while (<$s>) { last if $_ eq "\r\n" }
while (read($s, $bytes, 65536)) { print $bytes }' | sha256sum"""


class HastySsh(Ssh):
    """A connection that ssh closes after two idle seconds."""

    def options(self) -> list[str]:
        return [option.replace("ControlPersist=60", "ControlPersist=2") for option in super().options()]


@pytest.fixture(scope="module")
def ssh() -> Iterator[Ssh]:
    with SANDBOX.running():
        SANDBOX.ssh().close()
        yield HastySsh(SANDBOX.ssh().destination, accept_new_host_key=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def greeting(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        return connection.recv(4)


def test_a_host_without_another_way_fetches_weights_from_this_computer(ssh: Ssh, tmp_path: Path) -> None:
    store = Store(tmp_path, tmp_path / ".state")
    store.path(FILE).parent.mkdir()
    store.path(FILE).write_bytes(CONTENT)
    verify(store, [FILE], deep=True)
    with serving(store, [FILE], port=0) as port:
        with ssh.reverse(port) as alive:
            time.sleep(5)
            assert alive() and FILE.sha256 in ssh.run(FETCH % port).stdout
            assert f"127.0.0.1:{port}" in ssh.run("ss -Hltn").stdout
        assert "refused" in ssh.run(FETCH % port).stderr


def test_a_forward_lasts_while_nobody_uses_it(ssh: Ssh) -> None:
    with ssh.forward({"sshd": 22}) as local:
        time.sleep(5)
        assert greeting(local["sshd"]) == b"SSH-"
    with pytest.raises(ConnectionRefusedError):
        greeting(local["sshd"])


def test_a_connection_that_ends_is_noticed(ssh: Ssh) -> None:
    with ssh.reverse(free_port()) as alive:
        assert alive()
        ssh.close()
        deadline = time.monotonic() + 10
        while alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive()


def test_a_port_that_the_host_uses_itself_is_named(ssh: Ssh) -> None:
    with pytest.raises(AtelierError, match="listen port 22") as caught, ssh.reverse(22):
        pass
    assert "another program has the port" in caught.value.hint
