"""The one exception that a user may see."""


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
