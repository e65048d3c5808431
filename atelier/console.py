"""What a person reads: stages and steps with their time, a live line on a terminal, plain lines without one.

What a step prints may hold what belongs in no log, so without a terminal a line of it is shown only where the step itself
says that it may be: whom it waits for, how far it is, and what a person should know.
"""

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.text import Text

from weights.progress import NOTE, PROGRESS

TICK = 0.2  # seconds between two looks at the step
HEARTBEAT = 30  # seconds after which a step without a terminal says that it is still at work
PROGRESS_EVERY = 15  # seconds after which it says how far it is, where it tells
WAITING = "waiting for "
"""How a line of a step's output begins that says whom it waits for."""


class Narrator:
    """Tells a run as it happens. Steps that changed something get a line; the others count."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._live = self.console.status("") if self.console.is_terminal else None
        self._stage = self._step = self._output = self._progress = ""
        self._started = 0.0
        self._silent_since = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Narrator":
        if self._live:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        if self._live:
            self._live.stop()

    def begin(self, stage: str, step: str) -> None:
        """A step begins."""
        if stage != self._stage:
            self._stage = stage
            self.console.print(Text(stage, style="bold"))
        self._step, self._output, self._progress = step, "", ""
        self._started = self._silent_since = time.monotonic()

    def output(self, line: str) -> None:
        """A line that the current step printed; a terminal shows the last one."""
        text = line.strip()
        if text.startswith(NOTE):
            self.say(f"    {text.removeprefix(NOTE)}", style="yellow")
            return
        if text.startswith(PROGRESS):
            self._progress = text = text.removeprefix(PROGRESS)
        if text.startswith(WAITING) and text != self._output:
            self.say(f"    ... {text}", style="dim")
        self._output = text or self._output

    def end(self, *, changed: bool) -> None:
        """The current step is done."""
        if changed:
            self.done(self._step, time.monotonic() - self._started)
        self._step = ""

    def done(self, what: str, seconds: float) -> None:
        """Something was done."""
        self.console.print(Text.assemble(("  + ", "green"), what, (f"  ({seconds:.1f} s)", "dim")))

    def ask(self, question: str) -> bool:
        """A yes or no at the terminal; no where there is none. An empty answer is a no."""
        if not (self._live and sys.stdin.isatty()):
            return False
        self._live.stop()
        try:
            return self.console.input(Text(f"{question} [y/N] ")).strip().lower() in ("y", "yes")
        except EOFError:
            return False
        finally:
            self._live.start()

    def say(self, line: str = "", style: str = "") -> None:
        """A line of its own."""
        self.console.print(Text(line, style=style), soft_wrap=True)

    def _tick(self) -> None:
        while not self._stopped.wait(TICK):
            self._tell(self._step, time.monotonic())

    def _tell(self, step: str, now: float) -> None:
        """How far the step is, where there is one and it is time to say so."""
        if not step:
            return
        if self._live:
            self._live.update(Text(self._moving(step, f"({now - self._started:.0f} s)")))
        elif now - self._silent_since >= (PROGRESS_EVERY if self._progress else HEARTBEAT):
            self._silent_since = now
            self.say(f"    ... {self._progress or f'{step}: {now - self._started:.0f} s so far'}", style="dim")

    def _moving(self, step: str, seconds: str) -> str:
        """What a terminal shows of the step, in one line."""
        room = self.console.width - len(seconds) - 4
        if self._progress:
            return f"{self._progress[:room]} {seconds}"
        return f"{step} {seconds} {self._output[: max(room - len(step), 0)]}"


def fail(message: str) -> None:
    """The one message of a command that could not do its work."""
    Console(stderr=True, highlight=False).print(Text(f"Error: {message}", style="red"), soft_wrap=True)
    sys.stderr.flush()
