"""Start ComfyUI, but let nothing listen before the login is proven to be in force.

ComfyUI has no authentication of its own, and goes on without ComfyUI-Login when that node fails to import. So this script
demands the credential files first, runs main.py unchanged in this process, and holds back the moment when aiohttp opens a
network port: until then the assembled application must refuse a stranger and admit the owner over a private socket.
"""

from __future__ import annotations

import logging
import re
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
from aiohttp import web

SOURCE = Path("/opt/comfyui")
LOGIN = SOURCE / "login"
COOKIE_KEY = SOURCE / "custom_nodes" / "ComfyUI-Login" / ".secret-key.txt"
USERS = Path("/users")

ARGUMENTS = [
    "--listen=0.0.0.0",
    "--port=8188",
    "--models-directory=/models",
    "--output-directory=/outputs",
    f"--user-directory={USERS}",
    f"--input-directory={USERS}/input",
    f"--database-url=sqlite:///{USERS}/comfyui.db",
    "--temp-directory=/tmp",
    # Nodes that call paid services over the internet, which this container cannot reach.
    "--disable-api-nodes",
]

EX_CONFIG = 78


def refuse(reason: str) -> NoReturn:
    """End before anything listens, with the exit status that sysexits.h gives to a configuration error."""
    print(f"atelier: ComfyUI was not started: {reason}", file=sys.stderr, flush=True)
    raise SystemExit(EX_CONFIG)


def read_token() -> str:
    """The bearer token: line 1 of login/PASSWORD, a bcrypt hash. Line 2, the user name, must be there as well."""
    password = LOGIN / "PASSWORD"
    try:
        lines = password.read_text(encoding="utf-8").splitlines()
        cookie_key = COOKIE_KEY.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"a credential file cannot be read: {error}")
    if len(lines) != 2 or not re.fullmatch(r"\$2b\$\d\d\$[./A-Za-z0-9]{53}", lines[0]) or not lines[1].strip():
        refuse(f"{password} must hold two lines, a bcrypt hash of 60 characters and a user name")
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}=,\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\n?", cookie_key):
        refuse(f"{COOKIE_KEY} must hold a key of 32 bytes in URL-safe base64, a comma and a date")
    if (LOGIN / "GUEST_MODE").exists():
        refuse(f"{LOGIN}/GUEST_MODE lets strangers in")
    return lines[0]


def keep_out_of_logs(secret: str) -> None:
    """ComfyUI-Login logs the token at every start, and ComfyUI serves its log at /internal/logs: blank it in each record."""
    make_record = logging.getLogRecordFactory()

    def make_clean_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if secret in record.getMessage():
            record.msg, record.args = record.getMessage().replace(secret, "[hidden]"), ()
        return record

    logging.setLogRecordFactory(make_clean_record)


async def prove_login(runner: web.BaseRunner, token: str) -> None:
    """Ask the assembled application, over a private socket, as a stranger and as its owner."""
    expected = {None: 401, "wrong": 401, token: 200}
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/proof"
        private = web.UnixSite(runner, socket)
        await private.start()
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session:
            for credential, status in expected.items():
                headers = {"Authorization": f"Bearer {credential}"} if credential else {}
                for path in ("/prompt", "/api/prompt"):
                    async with session.get(f"http://proof{path}", headers=headers) as answer:
                        if answer.status != status:
                            who = {None: "a stranger", "wrong": "a wrong token"}.get(credential, "the owner")
                            refuse(f"the login is not in force: {path} answers {answer.status} to {who}, not {status}")
        await private.stop()


def hold_ports_until_proven(token: str) -> None:
    """Put the proof before the one call by which aiohttp starts to listen on the network."""
    listen = web.TCPSite.start

    async def listen_when_proven(site: web.TCPSite) -> None:
        await prove_login(site._runner, token)
        logging.info("atelier: the login is in force")
        await listen(site)

    web.TCPSite.start = listen_when_proven  # type: ignore[method-assign]


def main() -> None:
    """Run ComfyUI's main.py with the fixed arguments and those of the container's command."""
    token = read_token()
    keep_out_of_logs(token)
    hold_ports_until_proven(token)
    (USERS / "input").mkdir(exist_ok=True)
    sys.argv = [str(SOURCE / "main.py"), *ARGUMENTS, *sys.argv[1:]]
    sys.path.insert(0, str(SOURCE))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
