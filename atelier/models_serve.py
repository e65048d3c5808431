"""`make models-serve`: a store of weights, offered read-only from this computer to hosts, laid out as a mirror.

What is served is decided by the lock and the store's records, never by what lies in the folder: a host asks for
`<directory>/<file>`, and gets it only where that very file was hashed and found right.
"""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from atelier.errors import AtelierError
from atelier.models import Weight, read_lock
from atelier.ssh import Ssh
from weights.store import PIECE, PIECES, File, Store
from weights.verify import recorded_pieces, shallow

PORT = 8765
LOOK = 1.0  # seconds between two looks whether the connection still stands


class _AsItIs(web.FileResponse):
    """The file itself: aiohttp would send `<file>.gz`, which nobody checked, to a client that accepts gzip."""

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        headers = request.headers.copy()
        headers.popall(hdrs.ACCEPT_ENCODING, None)
        return await super().prepare(request.clone(headers=headers))


def store_files(entries: Sequence[Weight]) -> list[File]:
    """Entries of the lock as the store knows them."""
    return [File(weight.store_path, weight.bytes, weight.sha256) for weight in entries]


def refusal(store: Store, file: File) -> str | None:
    """Why a file of the lock is not served; None where it is."""
    real = os.path.realpath(store.path(file))
    if real != os.path.join(os.path.realpath(store.root), file.name):  # noqa: PTH118 - beside realpath, which never raises
        return f"{file.name}: not served: a link leads to {real}"
    finding = shallow(store, file)
    return None if finding.status == "good" else finding.text


def application(store: Store, files: Sequence[File]) -> web.Application:
    """The mirror: `/` lists what is served, `/<directory>/<file>` is a file, `.pieces.json` after it its pieces' sha256."""
    wanted = {file.name: file for file in files}

    def served(name: str) -> File:
        file = wanted.get(name)
        if file is None:
            raise web.HTTPNotFound(text=f"{name}: not in the lock\n")
        if reason := refusal(store, file):
            raise web.HTTPNotFound(text=f"{reason}\n")
        return file

    async def listing(_: web.Request) -> web.Response:
        names = await asyncio.to_thread(lambda: [file.name for file in files if refusal(store, file) is None])
        return web.Response(text="".join(f"{name}\n" for name in names))

    async def send(request: web.Request) -> web.StreamResponse:
        file = await asyncio.to_thread(served, request.match_info["name"])
        return _AsItIs(store.path(file), headers={hdrs.CONTENT_TYPE: "application/octet-stream"})

    async def send_pieces(request: web.Request) -> web.Response:
        file = await asyncio.to_thread(served, request.match_info["name"])
        pieces = recorded_pieces(store, file)
        if pieces is None:
            raise web.HTTPNotFound(text=f"{file.name}: its pieces were not recorded; a deep verify does it\n")
        facts = {"sha256": file.sha256, "bytes": file.bytes, "piece": PIECE, "pieces": pieces}
        return web.json_response(facts, dumps=json.dumps)

    mirror = web.Application()
    mirror.router.add_get("/", listing)
    mirror.router.add_get("/{name:[^/]+/[^/]+}" + PIECES, send_pieces)
    mirror.router.add_get("/{name:[^/]+/[^/]+}", send)
    return mirror


def serving(
    store: Store, files: Sequence[File], bind: str = "127.0.0.1", port: int = PORT
) -> contextlib.AbstractContextManager[int]:
    """Serve a store in the background; see `running`."""
    return running(application(store, files), bind, port)


@contextlib.contextmanager
def running(mirror: web.Application, bind: str, port: int) -> Iterator[int]:
    """Serve in the background; yields the port (another than asked for only where that is 0). Raises AtelierError."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(mirror, access_log=None, shutdown_timeout=1)

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, bind, port).start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever, name="models-serve", daemon=True)
    thread.start()
    try:
        try:
            taken = asyncio.run_coroutine_threadsafe(start(), loop).result()
        except OSError as error:
            raise AtelierError(
                f"cannot listen on {bind}:{port}: {error.strerror or error}",
                "choose another with PORT= (--port), or --bind",
            ) from None
        yield taken
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def usage(bind: str, port: int, host: str | None) -> list[str]:
    """How hosts use the mirror. `host`: the one that reaches it through its SSH connection."""
    address = f"[{bind}]" if ":" in bind else bind
    if bind in ("0.0.0.0", "::"):  # noqa: S104 - only compared
        address = "<address of this computer>"
    setting = ["    settings:", f'      models: {{mirrors: ["http://{address}:{port}"]}}']
    if host:
        return [f"{host} reaches it through its SSH connection. In hosts.yml, for this host:", *setting]
    if bind.startswith("127.") or bind in ("::1", "localhost"):
        return [
            "Only this computer reaches it. For a host without another way, keep this running as well:",
            f"  ssh -N -R 127.0.0.1:{port}:{address}:{port} user@host",
            "and in hosts.yml, for that host:",
            setting[0],
            f'      models: {{mirrors: ["http://127.0.0.1:{port}"]}}',
        ]
    return ["Whoever reaches this address can read the weights. In hosts.yml, for each host that is to:", *setting]


def serve_models(
    directory: Path,
    lock: Path,
    bind: str = "127.0.0.1",
    port: int = PORT,
    ssh: Ssh | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the store in `directory` until Ctrl-C, to one host through its connection where `ssh` is given.

    Raises AtelierError, also when that connection ends.
    """
    store, files = Store(directory, directory / ".state"), store_files(read_lock(lock).files)
    reasons = [refusal(store, file) for file in files]
    good = [file for file, reason in zip(files, reasons, strict=True) if reason is None]
    if ssh and bind != "127.0.0.1":
        raise AtelierError("--bind and a host do not go together", "the SSH connection leads to 127.0.0.1")
    if not good:
        raise AtelierError(
            f"{directory} holds no file of {lock.name} that is known good",
            f"make models-fetch DEST={directory}, or make models-verify DEEP=1 DEST={directory}",
        )
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(serving(store, files, bind, port))
        alive = stack.enter_context(ssh.reverse(taken)) if ssh else lambda: True
        for line in [reason for reason in reasons if reason and not reason.endswith(": missing")]:
            say(line)
        say(f"{len(good)} of {len(files)} files of {lock.name} at http://{bind}:{taken}/")
        for line in usage(bind, taken, ssh.destination.host if ssh else None):
            say(line)
        say("Beside it, `hub: false` for a host without internet.")
        say("Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            while alive():
                time.sleep(LOOK)
            raise AtelierError("the SSH connection ended", "run it again; a transfer goes on where it stopped")
