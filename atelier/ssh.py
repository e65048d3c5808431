"""One multiplexed OpenSSH connection to the target, used by everything: provisioning, lock, verify, forwards.

The operator's own `ssh` is run, so aliases, jump hosts, agents, hardware keys and host key questions work as they do
at the prompt; pyinfra's SSH library knows only a part of them.
"""

import contextlib
import getpass
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atelier import host_keys
from atelier.errors import AtelierError


@dataclass(frozen=True)
class Destination:
    """Where and how to connect: what the operator would type after `ssh`."""

    host: str
    user: str | None = None
    port: int | None = None
    config: Path | None = None

    @classmethod
    def parse(cls, address: str) -> "Destination":
        """`[user@]address[:port]`; an IPv6 address with a port stands in brackets. Raises AtelierError."""
        match = re.fullmatch(
            r"(?:([^@\s]+)@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*|[0-9A-Fa-f:]+)(?::(\d+))?", address
        )
        if not match or (match[3] and not 0 < int(match[3]) < 65536):
            raise AtelierError(
                f"HOST={address!r} is not an address", "write HOST=user@address or HOST=user@address:port"
            )
        return cls(match[2].strip("[]"), match[1], int(match[3]) if match[3] else None)

    def arguments(self) -> list[str]:
        """The options and the host for ssh's command line."""
        options = ["-F", str(self.config)] if self.config else []
        options += ["-l", self.user] if self.user else []
        options += ["-p", str(self.port)] if self.port else []
        return [*options, self.host]

    def resolved(self) -> str:
        """The name or address that ssh connects to, where the host is an alias of the operator's ssh configuration."""
        answer = subprocess.run(["ssh", "-G", *self.arguments()], capture_output=True, text=True).stdout
        return next((line.split(" ", 1)[1] for line in answer.splitlines() if line.startswith("hostname ")), self.host)


@dataclass(frozen=True)
class Completed:
    """What a command on the host did."""

    status: int
    stdout: str
    stderr: str


def _socket_dir() -> Path:
    """A short directory of this user's own: a control socket's path may have 104 bytes at most on some systems."""
    directory = Path(tempfile.gettempdir()) / f"atelier-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or directory.is_symlink():
        raise AtelierError(
            f"{directory} is not this user's own directory with mode 0700", f"remove it: rm -r {directory}"
        )
    return directory


@dataclass
class Ssh:
    """A connection to one host. Commands run as root, through sudo where the user is not root."""

    destination: Destination
    accept_new_host_key: bool = False
    _sudo: list[str] | None = field(default=None, repr=False)
    _sudo_password: str = field(default="", repr=False)

    def options(self) -> list[str]:
        """Options that make every ssh of this project share one connection for as long as it is in use."""
        interactive = sys.stdin.isatty()
        options = {
            "ControlMaster": "auto",
            "ControlPath": str(_socket_dir() / "%C"),
            "ControlPersist": "60",
            "ConnectTimeout": "15",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "BatchMode": "no" if interactive else "yes",
        }
        if self.accept_new_host_key:
            options["StrictHostKeyChecking"] = "accept-new"
        return [part for key, value in options.items() for part in ("-o", f"{key}={value}")]

    def command(self, remote: str, extra: tuple[str, ...] = ()) -> list[str]:
        """The local argument list that runs `remote`, a shell command line, as the login user."""
        return ["ssh", "-T", *self.options(), *extra, *self.destination.arguments(), "--", remote]

    def connect(self) -> None:
        """Open the connection and find out how to become root, where that is not known from an earlier one.

        Raises AtelierError that says which of the usual reasons it is.
        """
        try:
            # The master that this leaves behind must not hold our pipes open, so its output goes to a file.
            with tempfile.TemporaryFile("w+") as errors:
                result = subprocess.run(self.command("id -u"), stdout=subprocess.PIPE, stderr=errors, text=True)
                errors.seek(0)
                stderr = errors.read()
        except FileNotFoundError:
            raise AtelierError("the program `ssh` is not installed here", "install openssh-client") from None
        if result.returncode != 0:
            raise connection_error(self.destination, stderr)
        if self._sudo is None:
            self._sudo = [] if result.stdout.strip() == "0" else self._how_to_sudo()

    def logs_in_alone(self) -> bool:
        """Whether a further connection could be opened without anybody at this computer typing or touching anything."""
        own = {"ControlMaster": "no", "ControlPath": "none", "BatchMode": "yes", "ConnectTimeout": "15"}
        options = [part for key, value in own.items() for part in ("-o", f"{key}={value}")]
        command = ["ssh", "-T", *options, *self.destination.arguments(), "--", "true"]
        return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0

    def close(self) -> None:
        """End the shared connection, such as one to a host that restarts; the next command opens another."""
        subprocess.run(
            ["ssh", *self.options(), "-O", "exit", *self.destination.arguments()], capture_output=True, text=True
        )

    def _how_to_sudo(self) -> list[str]:
        probe = subprocess.run(
            self.command("sudo -k -n true"), capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if probe.returncode == 0:
            return ["sudo", "-n", "--"]
        if "not found" in probe.stderr:
            raise AtelierError(
                f"{self.destination.host}: the user is not root and sudo is not installed",
                "connect as root, or install sudo",
            )
        if not sys.stdin.isatty():
            raise AtelierError(
                f"{self.destination.host}: sudo asks for a password and there is no terminal to ask on",
                "run the command in a terminal, connect as root, or allow sudo without a password",
            )
        self._sudo_password = getpass.getpass(f"sudo password on {self.destination.host}: ")
        # -k with a command ignores a cached answer, so that the password line is always consumed.
        sudo = ["sudo", "-k", "-S", "-p", "", "--"]
        check = subprocess.run(
            self.command(shlex.join([*sudo, "true"])), input=self._sudo_password + "\n", capture_output=True, text=True
        )
        if check.returncode != 0:
            raise AtelierError(
                f"{self.destination.host}: sudo refused: {check.stderr.strip()}", "check the password and sudoers"
            )
        return sudo

    def root_command(self, script: str) -> tuple[list[str], bytes]:
        """The local argument list that runs a shell script as root, and what its standard input must begin with."""
        if self._sudo is None:
            self.connect()
        assert self._sudo is not None  # noqa: S101 - connect() sets it or raises
        password = (self._sudo_password + "\n").encode() if self._sudo_password else b""
        code = script.encode()
        # The script comes on standard input: sudo writes every command line into the journal, and `ps` shows it to all.
        reader = shlex.join([*self._sudo, "sh", "-c", f'eval "$(head -c {len(code)})"'])
        return self.command(reader), password + code

    def run(self, script: str, *, stdin: bytes = b"", timeout: float | None = None, check: bool = False) -> Completed:
        """Run a shell script as root on the host.

        timeout: seconds, then AtelierError. check: raise AtelierError on a status other than 0.
        """
        arguments, prefix = self.root_command(script)
        try:
            result = subprocess.run(arguments, input=prefix + stdin, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AtelierError(f"{self.destination.host}: no answer within {timeout:.0f} s: {script[:80]}") from None
        stdout, stderr = result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")
        if result.returncode == 255:
            raise connection_error(self.destination, stderr)
        if check and result.returncode != 0:
            raise AtelierError(
                f"{self.destination.host}: `{script[:80]}` ended with {result.returncode}: {stderr.strip()[-600:]}"
            )
        return Completed(result.returncode, stdout, stderr)

    def popen(self, script: str) -> "subprocess.Popen[bytes]":
        """Start a shell script as root on the host; its output comes on one pipe, stderr included."""
        arguments, prefix = self.root_command(script)
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if prefix and process.stdin:
            process.stdin.write(prefix)
            process.stdin.flush()
        return process

    @contextlib.contextmanager
    def forward(
        self,
        remote_ports: Mapping[str, int],
        remote_host: str = "127.0.0.1",
        same_ports: bool = False,
        local_ports: Mapping[str, int] | None = None,
    ) -> Iterator[dict[str, int]]:
        """Forward local ports to ports of the host; yields the local port for each name.

        same_ports: the host's own numbers where they are free here, for URLs that a person remembers.
        local_ports: these and no others, for URLs that are in use already.
        """
        local = dict(local_ports) if local_ports else {}
        for name, port in remote_ports.items() if not local else ():
            local[name] = port if same_ports and _is_free(port) else _free_port()
        specifications = [f"127.0.0.1:{local[name]}:{remote_host}:{port}" for name, port in remote_ports.items()]
        flags = [part for specification in specifications for part in ("-L", specification)]
        with self._forwarding(flags):
            yield local

    def reverse(self, port: int) -> contextlib.AbstractContextManager[Callable[[], bool]]:
        """Let the host's own loopback port lead to the same port of this computer; yields whether it still does."""
        return self._forwarding(["-R", f"127.0.0.1:{port}:127.0.0.1:{port}"])

    @contextlib.contextmanager
    def _forwarding(self, flags: list[str]) -> Iterator[Callable[[], bool]]:
        self._control("forward", flags)
        # ssh closes an idle shared connection although ports are forwarded through it; not while it has a session.
        session = subprocess.Popen(self.command("echo && cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert session.stdout  # noqa: S101 - a pipe was asked for
        session.stdout.readline()
        try:
            yield lambda: session.poll() is None
        finally:
            with contextlib.suppress(AtelierError):
                self._control("cancel", flags)
            session.communicate()

    def _control(self, verb: str, flags: list[str] | None = None) -> None:
        # `ssh -O` needs a master; a connection that timed out meanwhile is opened again first.
        self.run("true", check=True)
        arguments = ["ssh", *self.options(), "-O", verb, *(flags or []), *self.destination.arguments()]
        result = subprocess.run(arguments, capture_output=True, text=True)
        if result.returncode != 0:
            raise AtelierError(
                f"{self.destination.host}: ssh could not {verb}: {result.stderr.strip()}",
                "another program has the port, or the host's sshd does not allow forwarding (AllowTcpForwarding)",
            )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connection_error(destination: Destination, stderr: str) -> AtelierError:
    """Name the reason why ssh failed, and its remedy."""
    host, text = destination.host, stderr.strip()
    last = text.splitlines()[-1] if text else "no message"
    if changed := host_keys.explain(host, stderr):
        return changed
    if "Host key verification failed" in text:
        return AtelierError(
            f"{host}: its SSH host key is not known here yet",
            f"connect once with `ssh {host}` and compare the fingerprint, or run again with ACCEPT_NEW_HOST_KEY=1",
        )
    if "Permission denied" in text:
        return AtelierError(
            f"{host}: SSH login refused: {last}", "check the user in HOST=user@address and your key or agent"
        )
    if "Could not resolve" in text:
        return AtelierError(f"{host}: no such host name", "check HOST= or the address in hosts.yml")
    return AtelierError(f"{host}: cannot connect by SSH: {last}", f"check that `ssh {host}` works")
