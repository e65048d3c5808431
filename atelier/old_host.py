"""`OLD=user@old-host`: weights for a new machine from the one that it replaces, through this computer, while that one answers.

The new machine sees one more mirror, on its own loopback; what it gets it compares with the lock, as from any other source.
"""

import asyncio
import contextlib
import json
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from aiohttp import hdrs, web

from atelier import hostfacts, lifecycle, models_serve, paths, recorded, weights_unit
from atelier.console import Narrator
from atelier.deployment import Deployment
from atelier.errors import AtelierError
from atelier.models import Weight
from atelier.models_serve import store_files
from atelier.reorganisation import amount
from atelier.settings import Settings, read_hosts
from atelier.ssh import Ssh
from atelier.target import Target, resolve
from weights import pieces
from weights.store import PIECE, PIECES, File

CHUNK = 1 << 20
AT_ONCE = 8
"""Reads of the old host at a time: sshd lets a connection have ten sessions."""
BLOCK = 1 << 20
"""What dd reads at a time."""


@dataclass
class Offer:
    """What an old host has of the weights. served: bytes that went out so far."""

    ssh: Ssh
    store: str
    state: str
    files: Mapping[str, File]
    """By name, those that it knows to be good."""
    served: int = field(default=0)


def look(ssh: Ssh, settings: Settings, weights: Sequence[Weight]) -> Offer:
    """What the old host has of these weights, by its own record; not a byte is read. Raises AtelierError."""
    told = ssh.run(recorded.script(settings, whole=False), timeout=60, check=True).stdout
    record = recorded.parse(recorded.documents(told))
    if record.roots is None:
        raise AtelierError(
            f"{ssh.destination.host}: nothing of a deploy is recorded there", "name another in OLD=, or leave it out"
        )
    there = settings.model_copy(update=asdict(record.roots))
    words = {*ssh.run(hostfacts.presence_script(there, weights), timeout=120, check=True).stdout.split()}
    files = {file.name: file for file in store_files(weights) if file.sha256 in words}
    return Offer(ssh, weights_unit.store(there), weights_unit.state(there), files)


@contextlib.contextmanager
def through_here(
    old: Ssh, new: Ssh, deployment: Deployment, say: Callable[[str], None]
) -> Iterator[tuple[Deployment, Offer | None]]:
    """The deployment whose weights come from the old host first, and what that offers, for as long as this lasts.

    Where the old host does not answer, or has none of the missing weights, that is said, and the deployment is as it was.
    """
    missing, elsewhere = deployment.missing_weights(), deployment.settings.models.sources()
    host = old.destination.host
    try:
        offer = look(old, deployment.settings, missing) if missing else None
    except AtelierError as error:
        say(f"  weights do not come from the old host: {error.message}; they come from {elsewhere}")
        offer = None
    if offer is None or not offer.files:
        if offer:
            say(f"  the old host {host} has none of the weights that are missing; they come from {elsewhere}")
        yield deployment, None
        return
    size = amount(sum(file.bytes for file in offer.files.values()))
    say(
        f"  {len(offer.files)} of {len(missing)} missing weights, {size}, come from the old host {host} through this computer"
    )
    with models_serve.running(application(offer), "127.0.0.1", 0) as port, new.reverse(port):
        yield with_mirror(deployment, f"http://127.0.0.1:{port}"), offer


def bring(target: Target, address: str, new: Ssh, deployment: Deployment, narrator: Narrator) -> int | None:
    """Bring what the old host has of the missing weights, before anything else. Returns the bytes that came; None where it was not
    tried.

    address: as HOST= has it, or a name that HOST= or LIMIT= takes. What does not come stays missing, and comes from where the
    settings say.
    """
    from stages import provision

    old = _ssh(address)
    if old.destination.resolved() == target.destination.resolved() and old.destination.port == target.destination.port:
        raise AtelierError(f"OLD={address} is {target.name} itself", "OLD= names the machine that was replaced")
    with through_here(old, new, deployment, narrator.say) as (changed, offer):
        if offer is None:
            return None
        offered = tuple(weight for weight in changed.weights if weight.store_path in offer.files)
        changed = replace(changed, weights=offered)
        if lifecycle.find_weights_obstacles(new, changed, narrator):
            return None  # whoever goes on names them all
        before = provision.fetched()
        try:
            provision.fetch_weights(target, new, changed, narrator)
        except AtelierError as error:
            narrator.say(f"  {error.message}", style="yellow")
        # What a client that hangs up left unread was sent, and did not come.
        came = min(offer.served, provision.fetched() - before)
        narrator.say(f"  {amount(came)} came from the old host {old.destination.host}")
        return came


def _ssh(address: str) -> Ssh:
    hosts = paths.PROJECT / "hosts.yml"
    if "@" not in address and hosts.exists() and address in read_hosts(hosts):
        return resolve("", address)[0].ssh()
    return resolve(address, "")[0].ssh()


def with_mirror(deployment: Deployment, url: str) -> Deployment:
    """The same deployment with one more mirror, before all others."""
    models = deployment.settings.models
    more = models.model_copy(update={"mirrors": [url, *models.mirrors]})
    return replace(deployment, settings=deployment.settings.model_copy(update={"models": more}))


def read_script(path: str, first: int, size: int) -> str:
    """Shell that prints a part of a file."""
    return (
        f"exec dd if={shlex.quote(path)} iflag=skip_bytes,count_bytes skip={first} count={size} bs={BLOCK} status=none"
    )


def application(offer: Offer) -> web.Application:
    """The mirror, laid out as models_serve's."""
    free = asyncio.Semaphore(AT_ONCE)

    def served(request: web.Request) -> File:
        file = offer.files.get(request.match_info["name"])
        if file is None:
            raise web.HTTPNotFound(text=f"{request.match_info['name']}: the old host does not have it\n")
        return file

    async def listing(_: web.Request) -> web.Response:
        return web.Response(text="".join(f"{name}\n" for name in offer.files))

    async def send_pieces(request: web.Request) -> web.Response:
        file = served(request)
        script = f"cat {shlex.quote(f'{offer.state}/{file.sha256}{PIECES}')}"
        try:
            found = await asyncio.to_thread(lambda: offer.ssh.run(script, timeout=30))
        except AtelierError as error:
            raise web.HTTPBadGateway(text=f"{error.message}\n") from None
        known = pieces.read(found.stdout.encode(), file)
        if known is None:
            raise web.HTTPNotFound(text=f"{file.name}: its pieces were not recorded\n")
        facts = {"sha256": file.sha256, "bytes": file.bytes, "piece": PIECE, "pieces": [*known]}
        return web.json_response(facts, dumps=json.dumps)

    async def send(request: web.Request) -> web.StreamResponse:
        file = served(request)
        first, size, status = _range(request, file)
        headers = {
            hdrs.CONTENT_TYPE: "application/octet-stream",
            hdrs.CONTENT_LENGTH: str(size),
            hdrs.ACCEPT_RANGES: "bytes",
            hdrs.ETAG: f'"{file.sha256}"',
        }
        if status == 206:
            headers[hdrs.CONTENT_RANGE] = f"bytes {first}-{first + size - 1}/{file.bytes}"
        response = web.StreamResponse(status=status, headers=headers)
        if request.method == hdrs.METH_HEAD:
            await response.prepare(request)
            return response
        async with free:
            await _stream(offer, file, first, size, request, response)
        return response

    mirror = web.Application()
    mirror.router.add_get("/", listing)
    mirror.router.add_get("/{name:[^/]+/[^/]+}" + PIECES, send_pieces)
    mirror.router.add_get("/{name:[^/]+/[^/]+}", send)
    return mirror


def _range(request: web.Request, file: File) -> tuple[int, int, int]:
    """First byte, number of bytes and status of what is asked for. Raises HTTPRequestRangeNotSatisfiable."""
    try:
        wanted = request.http_range
        first, last, _ = wanted.indices(file.bytes)
    except ValueError:
        first, last, wanted = 0, 0, slice(0, 0)
    if last <= first:
        raise web.HTTPRequestRangeNotSatisfiable(headers={hdrs.CONTENT_RANGE: f"bytes */{file.bytes}"})
    return first, last - first, 200 if wanted.start is None and wanted.stop is None else 206


async def _stream(
    offer: Offer, file: File, first: int, size: int, request: web.Request, response: web.StreamResponse
) -> None:
    """Send a part of a file as the old host reads it. One that ends early leaves the connection cut: the client tries elsewhere."""
    process = await asyncio.to_thread(_reading, offer.ssh, f"{offer.store}/{file.name}", first, size)
    assert process.stdout  # noqa: S101 - a pipe was asked for
    try:
        chunk = await asyncio.to_thread(process.stdout.read, min(CHUNK, size))
        if not chunk:
            raise web.HTTPBadGateway(text=f"{file.name}: the old host does not send it\n")
        await response.prepare(request)
        while chunk:
            await response.write(chunk)
            offer.served += len(chunk)
            size -= len(chunk)
            chunk = await asyncio.to_thread(process.stdout.read, min(CHUNK, size)) if size else b""
        if size:
            raise ConnectionResetError(f"{file.name}: the old host stopped sending it")
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)


def _reading(ssh: Ssh, path: str, first: int, size: int) -> "subprocess.Popen[bytes]":
    # What ssh itself says must not be taken for a part of the file, as it would be on Ssh.popen's one pipe.
    arguments, prefix = ssh.root_command(read_script(path, first, size))
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin  # noqa: S101 - a pipe was asked for
    with contextlib.suppress(BrokenPipeError):  # a host that is gone: nothing comes, which is told
        process.stdin.write(prefix)
        process.stdin.close()
    process.stdin = None
    return process
