"""A headless Chromium that opens a file, is asked for facts about its layout, and makes screenshots."""

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

START = 30
"""Seconds that a browser gets to start on a busy machine."""
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions")


class Tab:
    """One tab of the browser."""

    def __init__(self, connection: ClientConnection, session: str) -> None:
        self._connection, self._session, self._number = connection, session, 0
        self.requested: list[str] = []
        """What it has fetched, data URIs aside."""
        self.said: list[str] = []
        """What it wrote into its console and log."""
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._ask(f"{domain}.enable")

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters, "sessionId": self._session}
        self._connection.send(json.dumps(request))
        while True:
            answer = self._take()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _take(self) -> dict[str, Any]:
        message = dict(json.loads(self._connection.recv(timeout=START)))
        url = message.get("params", {}).get("request", {}).get("url", "")
        if message.get("method") == "Network.requestWillBeSent" and not url.startswith("data:"):
            self.requested.append(url)
        if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.said.append(json.dumps(message["params"]))
        return message

    def open(self, file: Path, width: int, height: int, *, dark: bool = False) -> None:
        """Show a file on a screen of that size, as a phone does where it is narrow."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self._ask("Page.navigate", url=file.resolve().as_uri())
        while self.value("document.readyState") != "complete":
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives."""
        result = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """A PNG of what the screen shows, or of the whole page."""
        picture = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(picture["data"]))

    def pdf(self, file: Path) -> None:
        """The page as it is printed, by who likes his screen dark."""
        self._ask(
            "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
        )
        printed = self._ask("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        file.write_bytes(base64.b64decode(printed["data"]))


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Tab]:
    """A fresh browser with one empty tab; `folder` holds its profile."""
    command = [program, *FLAGS, f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port, path = _listening(folder / "DevToolsActivePort", process)
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as connection:
            yield Tab(connection, _session(connection))
    finally:
        process.terminate()
        process.wait(START)


def _listening(file: Path, process: "subprocess.Popen[bytes]") -> tuple[str, str]:
    end = time.monotonic() + START
    while not (file.exists() and len(lines := file.read_text().splitlines()) == 2):
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        assert time.monotonic() < end, f"the browser did not start within {START} s"
        time.sleep(0.05)
    return lines[0], lines[1]


def _session(connection: ClientConnection) -> str:
    def ask(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        connection.send(json.dumps({"id": -number, "method": method, "params": parameters}))
        while (answer := json.loads(connection.recv(timeout=START))).get("id") != -number:
            pass
        return dict(answer["result"])

    target = ask(1, "Target.createTarget", url="about:blank")["targetId"]
    return str(ask(2, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
