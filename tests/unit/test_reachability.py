"""What a host can reach, asked by the real script with apt's helper of this computer, through a proxy of the test's own."""

import base64
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from loopback import at_work

from atelier import hostfacts

URL = "http://mirror.example/vae/a"


class _Proxy(BaseHTTPRequestHandler):
    status = 200
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Proxy-Authorization")))
        self.send_response(self.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[tuple[type[_Proxy], str]]:
    handler = type("Handler", (_Proxy,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    with at_work(server):
        yield handler, f"http://joe:hunter2@127.0.0.1:{server.server_address[1]}"


@pytest.fixture(autouse=True)
def no_pause_before_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apt.conf").write_text('Acquire::Retries::Delay "false";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))


def _unreachable(script: str) -> dict[str, str]:
    done = subprocess.run(["sh"], input=script, capture_output=True, text=True, timeout=60)
    return hostfacts.parse_reachability(done.stdout)


def test_a_proxy_is_used_with_its_password_which_no_command_line_shows(proxy: tuple[type[_Proxy], str]) -> None:
    handler, address = proxy
    script = hostfacts.reachability_script(address, [URL], [], archive=False)
    assert _unreachable(script) == {}
    assert handler.asked == [(URL, "Basic " + base64.b64encode(b"joe:hunter2").decode())]
    shown = [line for line in script.splitlines() if "hunter2" in line]
    assert all(line.startswith(("printf", "Acquire")) for line in shown), shown


@pytest.mark.parametrize(("status", "reached"), [(401, True), (404, True), (403, False), (502, False)])
def test_what_a_proxy_refuses_is_out_of_reach(proxy: tuple[type[_Proxy], str], status: int, reached: bool) -> None:
    handler, address = proxy
    handler.status = status
    assert (_unreachable(hostfacts.reachability_script(address, [URL], [], archive=False)) == {}) == reached


def test_a_login_in_an_address_is_shown_to_nobody() -> None:
    script = hostfacts.reachability_script(None, ["https://joe:hunter2@index.example/simple/"], [], archive=False)
    assert "hunter2" not in script and "https://index.example/simple/" in script
