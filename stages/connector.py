"""pyinfra over the operator's own OpenSSH, on the connection that everything else shares.

pyinfra's own SSH connector speaks through paramiko, which knows a part of ssh_config, waits 40 ms for each command
(no TCP_NODELAY) and leaves uploads world-readable in /tmp for a moment (pyinfra #1085).
"""

import base64
import contextlib
import shlex
from collections.abc import Callable, Iterator
from io import IOBase
from typing import Any, ClassVar

import gevent
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
    """Runs every command as root over `atelier.ssh.Ssh`.

    `commands` counts the round trips, `watch` sees each line of what pyinfra prints, `prelude` is shell that runs before each command.
    """

    handles_execution = True
    data_cls = OpenSSHData
    data_meta = {"ssh": DataMeta("An atelier.ssh.Ssh")}  # noqa: RUF012 - pyinfra reads it from the class
    commands = 0
    prelude = ""
    watch: ClassVar[Callable[[str], None] | None] = None

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
        status, lines = self._execute(unix_command.get_raw_value(), stdin, control.get("_timeout"), print_output)
        return status in (control.get("_success_exit_codes") or [0]), CommandOutput(lines)

    def _execute(
        self, script: str, stdin: Any, timeout: int | None, shown: bool = False
    ) -> tuple[int, list[OutputLine]]:
        type(self).commands += 1
        data = stdin if isinstance(stdin, bytes) else "\n".join([stdin] if isinstance(stdin, str) else stdin).encode()
        arguments, prefix = self.ssh.root_command(type(self).prelude + script)
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        lines: list[OutputLine] = []
        readers = [
            gevent.spawn(self._collect, name, getattr(process, name), lines, shown) for name in ("stdout", "stderr")
        ]
        try:
            with gevent.Timeout(timeout, TimeoutError(f"no answer within {timeout} s")):
                with contextlib.suppress(BrokenPipeError):  # the command ended without reading; its status says why
                    process.stdin.write(prefix + data)
                    process.stdin.close()
                gevent.joinall(readers)
                return process.wait(), lines
        finally:
            if process.poll() is None:
                process.kill()

    def _collect(self, name: str, stream: Any, lines: list[OutputLine], shown: bool) -> None:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip("\r\n")
            lines.append(OutputLine(name, line))
            if shown and (watch := type(self).watch):
                watch(line)

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
            f'umask 077; t={destination}.atelier-part; cat >"$t" && if [ -e {destination} ]; then '
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
        status, lines = self._execute(f"base64 {shlex.quote(remote_filename)}", b"", None)
        if status == 0:
            with get_file_io(filename_or_io, "wb") as stream:
                stream.write(base64.b64decode("".join(line.line for line in lines)))
        return status == 0
