"""The one exception that a user may see, and what preflight finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One reason why a deploy would fail, and what to do about it."""

    problem: str
    remedy: str


class AtelierError(Exception):
    """Something the user can mend: the message names the thing, the hint says what to do.

    The command line prints both and exits 1; no traceback is shown.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message
