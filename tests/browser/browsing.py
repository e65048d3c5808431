"""What the browser tests share: the host as a browser reaches it, and one browser session with all that it saw."""

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, Response

from atelier import credentials


@dataclass(frozen=True)
class Site:
    """A deployed host as the browser reaches it: base URL by service, credentials, the certificate to trust."""

    host: str
    urls: dict[str, str]
    known: credentials.Credentials
    authority: Path | None
    folder: Path


@dataclass
class Visit:
    """One browser session with everything it was told."""

    page: Page
    folder: Path
    console: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    frames: list[str | bytes] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)
    closed_sockets: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Note the console, refusals and WebSocket frames of the page from now on."""

        def answered(response: Response) -> None:
            path = urlsplit(response.url).path
            self.requests.append(f"{response.request.method} {path} {response.status}")
            if response.status >= 400:
                self.refused.append(f"{response.status} {response.request.method} {path}")

        self.page.set_default_timeout(180_000)  # a slow computer is no finding
        self.page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.console.append(f"exception: {error}"))
        self.page.on("response", answered)
        self.page.on("websocket", self._socket)

    def beside(self) -> "Visit":
        """Another tab of the same browser session."""
        tab = Visit(self.page.context.new_page(), self.folder)
        tab.listen()
        return tab

    def _socket(self, socket) -> None:
        self.sockets.append(socket.url)
        socket.on("framereceived", lambda frame: self.frames.append(frame))
        socket.on("close", lambda closed: self.closed_sockets.append(closed.url))

    def messages(self, kind: str) -> list[dict]:
        """The data of ComfyUI's WebSocket messages of one type."""
        texts = (json.loads(frame) for frame in self.frames if isinstance(frame, str))
        return [text["data"] for text in texts if text.get("type") == kind]

    def until(self, what: str, holds: Callable[[], object], seconds: float = 180) -> None:
        """Let the page run until something holds; fails naming it."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                self.shot("stuck")
                raise AssertionError(f"not within {seconds:.0f} s: {what}")
            self.page.wait_for_timeout(100)

    def press(self, keys: str, what: str, holds: Callable[[], object]) -> None:
        """Press keys until something holds: an interface hears its shortcuts some time after it is drawn."""
        for _ in range(10):
            self.page.keyboard.press(keys)
            with contextlib.suppress(AssertionError):
                return self.until(what, holds, 3)
        raise AssertionError(f"{keys} has no effect: {what}")

    def shot(self, name: str) -> None:
        """A screenshot to be looked at."""
        self.page.screenshot(path=self.folder / f"{name}.png")

    def caused_by_gateway(self) -> list[str]:
        """Console lines that a browser writes when a header, an origin rule or a limit stopped something."""
        words = ("Content Security", "X-Frame-Options", "CORS", "Cross-Origin", "Mixed Content", "ERR_BLOCKED_BY",
                 "status of 413", "status of 429", "WebSocket connection to")  # fmt: skip
        # ComfyUI's own policy keeps its pages from reading other hosts.
        own = (line for line in self.console if not re.search(r"https://(?!127\.0\.0\.1)", line))
        return [line for line in own if any(word in line for word in words)]


def log_in_to_comfyui(site: Site, visit: Visit) -> None:
    """Through the login page to the graph."""
    visit.page.goto(site.urls["comfyui"])
    visit.page.fill("#password", site.known.comfyui.password)
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("canvas")
    visit.until("the interface has its WebSocket", lambda: visit.messages("status"))
    visit.until("a workflow is open", lambda: "Unsaved Workflow" in visit.page.title())


def log_in_to_forge(site: Site, visit: Visit) -> None:
    """Through the login page to the interface."""
    page = visit.page
    page.goto(site.urls["forge"])
    page.get_by_label("username").fill(site.known.forge.user)
    page.get_by_label("password").fill(site.known.forge.password)
    page.get_by_role("button", name="Login").click()
    page.wait_for_selector("#txt2img_generate")
    # Forge's scripts bind the buttons some seconds after they are drawn.
    visit.until("the interface is ready", lambda: page.locator("#txt2img_token_counter span").count())
    page.wait_for_timeout(3000)
