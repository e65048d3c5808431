"""What a command is aimed at: its options on the command line, and one action on each of the targets that they name."""

from collections.abc import Callable
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console

from atelier.console import Narrator, fail
from atelier.errors import AtelierError
from atelier.target import Target, resolve

Host = Annotated[str, typer.Option("--host", help="user@address[:port], or `sandbox`; default: the sandbox.")]
Limit = Annotated[str, typer.Option("--limit", help="Names of hosts.yml, separated by commas, or `all`.")]
Sources = Annotated[
    Literal["auto", "upstream", "double"],
    typer.Option("--sources", help="Sandbox only: upstream, double, or auto (upstream when it answers)."),
]


class EndedEarlyError(Exception):
    """The user ended the whole command in the middle of one action, which had something to finish. status: what that came to."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def for_each(
    host: str, limit: str, action: Callable[[Target, Narrator], int], console: Console | None = None
) -> NoReturn:
    """Run an action on each target, also after one failed, until the user ends it; exits 1 when one failed, else with the
    highest status.

    console: where it is told; standard output unless an answer for programs goes there.
    """
    statuses = []
    targets = resolve(host, limit)
    for number, target in enumerate(targets, 1):
        with Narrator(console) as narrator:
            narrator.say(target.headline(), style="bold cyan")
            try:
                statuses.append(action(target, narrator))
            except AtelierError as error:
                fail(str(error))
                statuses.append(1)
            except EndedEarlyError as ended:
                statuses.append(ended.status)
                if left := [further.name for further in targets[number:]]:
                    fail(f"interrupted; not begun: {', '.join(left)}")
                break
    raise typer.Exit(1 if 1 in statuses else max(statuses))
