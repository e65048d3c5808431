"""What aria2c's end means, and what keeps a source from answering."""

import errno
import os
import socket
import ssl

import pytest

from weights.aria2 import Cut, DiskFull, Fetched, Outcome, Stopped, TooSlow, explain, judge_exit


@pytest.mark.parametrize(
    ("code", "slow", "stopped", "full", "expected"),
    [
        (0, False, False, False, Fetched()),
        (0, True, True, True, Fetched()),
        (7, True, True, False, Stopped()),
        (7, True, False, False, TooSlow(True)),
        (5, False, False, False, TooSlow(True)),
        (9, False, False, False, DiskFull()),
        (-25, False, False, False, DiskFull()),
        (1, False, False, True, DiskFull()),
        (1, False, False, False, Cut("aria2c ended with status 1", True)),
    ],
)
def test_how_aria2c_ended(code: int, slow: bool, stopped: bool, full: bool, expected: Outcome) -> None:
    assert judge_exit(code, True, slow, stopped, full) == expected


def unaccepted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1007)")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (socket.gaierror(-2, "Name or service not known"), "the name cannot be resolved"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "nobody listens there"),
        (TimeoutError("timed out"), "no answer in time"),
        (unaccepted(), "its certificate is not accepted: self-signed certificate"),
        (OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH)), "No route to host"),
        (OSError("Tunnel connection failed: 407 Proxy Authentication Required"), "Tunnel connection failed: 407 Proxy"),
        (EOFError(), "EOFError"),
        ("unknown url type: x", "unknown url type: x"),
    ],
)
def test_why_nothing_came(error: Exception | str, expected: str) -> None:
    assert explain(error).startswith(expected) and "Errno" not in explain(error)
