"""Watches each application as a stranger: it is served only while the process behind it refuses strangers."""

import asyncio
from collections.abc import Callable, Iterable

from guard.config import Application
from guard.conversation import Conversation, ConversationError

INTERVAL = 0.5  # seconds between probes; the contract allows one
PATIENCE = 10.0  # seconds for one answer; loading a model can hold an application's event loop for some of them


class AnswersStrangersError(Exception):
    """An application did not say 401 to a request without credentials."""


async def prove_closed(talk: Conversation, paths: Iterable[str]) -> None:
    """Ask as a stranger what only the owner may see.

    Raises AnswersStrangersError unless every answer is 401, ConversationError when there is none.
    """
    for path in paths:
        answer = await talk.ask(path, patience=PATIENCE)
        if answer.status != 401:
            raise AnswersStrangersError(f"GET {path} answered {answer.status} to a stranger, 401 expected")


class Watch:
    """Whether one application may be served, kept true by a standing conversation with it.

    `refusal` is None exactly while the process at the other end of that conversation has refused a stranger at every
    probe; otherwise it says why the application is not served. An application that ends takes its connection with it,
    so a new process starts unproven, however fast it comes up.
    """

    def __init__(self, application: Application, on_change: Callable[[str | None], None]) -> None:
        self.application = application
        self.refusal: str | None = "not probed yet"
        self._on_change = on_change

    async def run(self) -> None:
        """Probe for ever."""
        while True:
            try:
                await self._stay()
            except AnswersStrangersError as error:
                self._say(str(error))
            except ConversationError as error:
                self._say(str(error))
            await asyncio.sleep(INTERVAL)

    def distrust(self, reason: str) -> None:
        """Stop serving at once, on somebody else's evidence; the next good probe ends it."""
        self._say(reason)

    async def _stay(self) -> None:
        application = self.application
        talk = await Conversation.open(application.host, application.port, patience=PATIENCE, on_lost=self._lost)
        try:
            while True:
                await prove_closed(talk, application.policy.stranger_paths)
                if talk.lost.is_set():
                    return
                self._say(None)
                try:
                    await asyncio.wait_for(talk.lost.wait(), INTERVAL)
                except asyncio.TimeoutError:
                    continue
                return
        finally:
            talk.close()

    def _lost(self) -> None:
        if self.refusal is None:
            self._say("the application ended")

    def _say(self, refusal: str | None) -> None:
        if refusal != self.refusal:
            self.refusal = refusal
            self._on_change(refusal)
