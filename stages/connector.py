"""pyinfra over the operator's own OpenSSH, on the connection that everything else shares.

pyinfra's own SSH connector speaks through paramiko, which knows a part of ssh_config, waits 40 ms for each command
(no TCP_NODELAY) and leaves uploads world-readable in /tmp for a moment (pyinfra #1085).
"""

import shlex
from collections.abc import Iterator
from io import IOBase
from typing import Any

from gevent import subprocess
from pyinfra.api.command import StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.util import get_file_io
from pyinfra.connectors.base import BaseConnector, ConnectorData, DataMeta
from pyinfra.connectors.util import CommandOutput, OutputLine, extract_control_arguments, make_unix_command_for_host
from typing_extensions import override

from atelier.errors import AtelierError
from atelier.ssh import Ssh


class OpenSSHData(ConnectorData):
    """`ssh`: the connection to use."""

    ssh: Any


class OpenSSHConnector(BaseConnector):
    """Runs every command as root over `atelier.ssh.Ssh`; `commands` counts the round trips."""

    handles_execution = True
    data_cls = OpenSSHData
    data_meta = {"ssh": DataMeta("An atelier.ssh.Ssh")}  # noqa: RUF012 - pyinfra reads it from the class
    commands = 0

    @property
    def ssh(self) -> Ssh:
        """The shared connection."""
        connection: Ssh = self.data["ssh"]
        return connection

    @override
    @staticmethod
    def make_names_data(name: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        yield f"@openssh/{name}", {}, []

    @override
    def connect(self) -> None:
        try:
            self.ssh.connect()
        except AtelierError as error:
            raise ConnectError(str(error)) from None

    @override
    def disconnect(self) -> None:
        """The shared connection outlives pyinfra: the quick verify that follows uses it."""

    @override
    def run_shell_command(
        self, command: StringCommand, print_output: bool = False, print_input: bool = False, **arguments: Any
    ) -> tuple[bool, CommandOutput]:
        control = extract_control_arguments(arguments)
        unix_command = make_unix_command_for_host(self.state, self.host, command, **arguments)
        stdin = control.get("_stdin") or b""
        status, lines = self._execute(unix_command.get_raw_value(), stdin, control.get("_timeout"))
        return status in (control.get("_success_exit_codes") or [0]), CommandOutput(lines)

    def _execute(self, script: str, stdin: Any, timeout: int | None) -> tuple[int, list[OutputLine]]:
        type(self).commands += 1
        data = stdin if isinstance(stdin, bytes) else "\n".join([stdin] if isinstance(stdin, str) else stdin).encode()
        arguments, prefix = self.ssh.root_command(script)
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(prefix + data, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise TimeoutError(f"no answer within {timeout} s") from None
        lines = [OutputLine("stdout", line) for line in stdout.decode(errors="replace").splitlines()]
        return process.returncode, lines + [OutputLine("stderr", line) for line in stderr.decode(errors="replace").splitlines()]

    @override
    def put_file(
        self,
        filename_or_io: str | IOBase,
        remote_filename: str,
        remote_temp_filename: str | None = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        """Write the file beside its destination with mode 0600, then rename: never half there, never readable by others.

        An existing file's owner and mode are kept; pyinfra sets what the operation asks for afterwards.
        """
        with get_file_io(filename_or_io) as stream:
            content = stream.read()
        data = content.encode() if isinstance(content, str) else content
        destination = shlex.quote(remote_filename)
        script = (
            f"umask 077; t={destination}.atelier-part; cat >\"$t\" && if [ -e {destination} ]; then "
            f'chown --reference={destination} "$t" && chmod --reference={destination} "$t"; fi && mv -f "$t" {destination}'
        )
        status, lines = self._execute(script, data, None)
        if status != 0:
            raise OSError("; ".join(line.line for line in lines))
        return True

    @override
    def get_file(
        self,
        remote_filename: str,
        filename_or_io: str | IOBase,
        remote_temp_filename: str | None = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        result = self.ssh.run(f"cat {shlex.quote(remote_filename)}")
        if result.status != 0:
            return False
        with get_file_io(filename_or_io, "wb") as stream:
            stream.write(result.stdout.encode())
        return True
