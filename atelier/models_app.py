"""`atelier models ...`: a store of weights on this computer."""

from pathlib import Path
from typing import Annotated

import typer

from atelier import models_lock, models_serve, paths
from atelier.errors import AtelierError
from atelier.models import Weight, read_lock
from weights import adopt as taking
from weights import fetch as fetching
from weights import prune as pruning
from weights import verify as verification
from weights.store import File, Store, StoreError

app = typer.Typer(help="A store of weights on this computer.", no_args_is_help=True)

Lock = Annotated[Path, typer.Option("--lock", help="The lock file that names every weight with its sha256.")]
Dest = Annotated[Path, typer.Option("--dest", help="The store's directory.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="A set of the lock file; may be repeated. Default: all.")]
DEFAULT_LOCK = paths.PROJECT / "locks" / "models.yml"


def _wanted(lock: Path, sets: list[str] | None) -> tuple[Weight, ...]:
    known = read_lock(lock)
    return known.wanted(sets) if sets else tuple(known.files)


def _store(dest: Path) -> Store:
    return Store(dest, dest / ".state")


@app.command()
def fetch(
    dest: Dest,
    lock: Lock = DEFAULT_LOCK,
    sets: Sets = None,
    mirror: Annotated[list[str] | None, typer.Option("--mirror", help="Base URL tried before the hub.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Files fetched at once.")] = 2,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="A token for gated files.")] = None,
) -> None:
    """Fetch what is missing: resumes, checks every sha256, publishes by rename. Exit 1 when a file could not be had."""
    files = tuple(
        File(weight.store_path, weight.bytes, weight.sha256, tuple(weight.urls(mirror or [])))
        for weight in _wanted(lock, sets)
    )
    try:
        job = fetching.Job(files, dest, dest / ".state", jobs=jobs, token=models_lock.read_token(token_file))
        result = fetching.run(job)
    except (fetching.FetchError, StoreError) as error:
        raise AtelierError(str(error)) from None
    for file in result.files:
        if not file.ready:
            typer.echo(f"{file.name}: {file.why}", err=True)
    raise typer.Exit(0 if result.ready else 1)


@app.command()
def verify(
    dest: Dest,
    lock: Lock = DEFAULT_LOCK,
    sets: Sets = None,
    deep: Annotated[bool, typer.Option("--deep", help="Hash every byte, on all cores.")] = False,
) -> None:
    """Check a store: from its records at once, or deep. Exit 1 when a file is missing or wrong."""
    findings = verification.verify(_store(dest), models_serve.store_files(_wanted(lock, sets)), deep, say=typer.echo)
    raise typer.Exit(0 if all(finding.status == "good" for finding in findings) else 1)


@app.command("lock")
def refresh_lock(
    lock: Lock = DEFAULT_LOCK,
    write: Annotated[bool, typer.Option("--write", help="Write the changes that are shown.")] = False,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="A token for gated files.")] = None,
) -> None:
    """Show what the hub says of revision, size and sha256 of every file of a lock, as a diff."""
    models_lock.lock_models(lock, write, token_file)


@app.command()
def serve(
    dest: Dest,
    lock: Lock = DEFAULT_LOCK,
    bind: Annotated[str, typer.Option("--bind", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = models_serve.PORT,
    host: Annotated[str, typer.Option("--host", help="The host that reaches it through its SSH connection.")] = "",
    limit: Annotated[str, typer.Option("--limit", help="The same, by its name in hosts.yml.")] = "",
) -> None:
    """Serve a store to other hosts, read-only, until Ctrl-C."""
    from atelier.target import resolve

    ssh = None
    if host or limit:
        (target,) = resolve(host, limit)
        ssh = target.ssh()
        ssh.connect()
    models_serve.serve_models(dest, lock, bind, port, ssh)


@app.command()
def adopt(
    dest: Dest,
    search: Annotated[list[Path], typer.Option("--search", help="Where files may lie already; may be repeated.")],
    lock: Lock = DEFAULT_LOCK,
    sets: Sets = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy where a file cannot be linked or moved.")] = False,
) -> None:
    """Take files that are on this computer already into a store, by their sha256, without copying where that works."""
    store = _store(dest)
    try:
        with store.lock(waiting=typer.echo):
            taking.adopt(store, models_serve.store_files(_wanted(lock, sets)), search, copy=copy, say=typer.echo)
    except StoreError as error:
        raise AtelierError(str(error)) from None


@app.command()
def prune(
    dest: Dest,
    lock: Lock = DEFAULT_LOCK,
    sets: Sets = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
) -> None:
    """List what lies in a store and no set needs; remove it only with --yes."""
    store, needed = _store(dest), models_serve.store_files(_wanted(lock, sets))
    with store.lock(waiting=typer.echo):
        items = pruning.garbage(store, needed)
        for item in items:
            typer.echo(f"{item.path}: {item.bytes / 1e9:.2f} GB: {item.why}")
        if yes:
            pruning.remove(store, needed, items, say=typer.echo)
        elif items:
            typer.echo("nothing was removed: --yes does it")
