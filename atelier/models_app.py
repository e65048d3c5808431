"""`atelier models ...`: the weights of a host, or a store of weights on this computer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from atelier import models_fetch, models_host, models_lock, models_serve, paths
from atelier.aim import Sources, for_each
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.models import Weight, read_lock
from atelier.target import resolve
from weights import adopt as taking
from weights import fetch as fetching
from weights import prune as pruning
from weights import verify as verification
from weights.store import File, Store, StoreError

app = typer.Typer(
    help="The weights alone: of a host (--host, --limit), or in a store on this computer (--dest).",
    no_args_is_help=True,
)

HERE = "Only with --dest. "
DEFAULT_LOCK = paths.PROJECT / "locks" / "models.yml"
Host = Annotated[str, typer.Option("--host", help="A host's own: user@address[:port], or `sandbox`, the default.")]
Limit = Annotated[str, typer.Option("--limit", help="The same, by names of hosts.yml, with commas, or `all`.")]
Dest = Annotated[Path | None, typer.Option("--dest", help="A store on this computer: its directory.")]
Lock = Annotated[Path | None, typer.Option("--lock", help=f"{HERE}The lock file. Default: locks/models.yml.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help=f"{HERE}Sets of the lock file, separated by commas, or repeated. Default: all."),
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="A file with a token for gated files. Default: $HF_TOKEN.")
]


def chosen_store(dest: Path | None, host: str, limit: str, only_here: Mapping[str, object]) -> Path | None:
    """The store on this computer that is meant; None where hosts are, the sandbox among them. Raises AtelierError for both.

    only_here: what was given for options that a host takes from its settings instead.
    """
    if dest and (host or limit):
        raise AtelierError(
            "DEST= and a host were both given", "DEST=DIR is a store on this computer; HOST= or LIMIT= a host's own"
        )
    if dest:
        return dest
    given = [option for option, value in only_here.items() if value]
    if given:
        raise AtelierError(
            f"{', '.join(given)}: only for a store on this computer (--dest)",
            "a host's sets, mirrors and token are settings: models.* in docs/configuration.md",
        )
    return None


def _wanted(lock: Path | None, sets: list[str] | None) -> tuple[Weight, ...]:
    known = read_lock(lock or DEFAULT_LOCK)
    names = [name for words in sets or [] for name in words.split(",") if name]
    return known.wanted(names) if names else tuple(known.files)


def _store(dest: Path) -> Store:
    return Store(dest, dest / ".state")


def _existing(dest: Path) -> Store:
    if not dest.is_dir():
        raise AtelierError(f"{dest} is no directory", f"make models-fetch DEST={dest} makes a store there")
    return _store(dest)


@app.command()
def fetch(
    host: Host = "",
    limit: Limit = "",
    dest: Dest = None,
    lock: Lock = None,
    sets: Sets = None,
    mirror: Annotated[
        list[str] | None, typer.Option("--mirror", help=f"{HERE}Base URL tried before the hub; may be repeated.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help=f"{HERE}Files fetched at once. Default: 2.")] = None,
    token_file: TokenFile = None,
    sources: Sources = "auto",
) -> None:
    """Fetch the weights that are missing.

    Goes on where it stopped, and uses no file whose sha256 is not the lock's. On a host nothing but the weights and
    what they need is changed, and the transfer goes on there when this computer is closed.

    Exit 0 all are there, 1 one could not be had, 130 interrupted: run it again.
    """
    only_here = {"--lock": lock, "--set": sets, "--mirror": mirror, "--jobs": jobs, "--token-file": token_file}
    store = chosen_store(dest, host, limit, only_here)
    if store is None:
        for_each(host, limit, lambda target, narrator: models_host.fetch(target, narrator, sources))
    files = tuple(
        File(weight.store_path, weight.bytes, weight.sha256, tuple(weight.urls(mirror or [])))
        for weight in _wanted(lock, sets)
    )
    token = models_lock.read_token(token_file)
    with Narrator() as narrator:
        models_fetch.fetch_here(fetching.Job(files, store, store / ".state", jobs=jobs or 2, token=token), narrator)


@app.command()
def verify(
    host: Host = "",
    limit: Limit = "",
    dest: Dest = None,
    lock: Lock = None,
    sets: Sets = None,
    deep: Annotated[bool, typer.Option("--deep", help="Hash every byte, on all cores.")] = False,
) -> None:
    """Say whether all weights are there and right.

    At once, by what was recorded when they were hashed; or deep, by every byte. Moves and removes no weight.

    Exit 0 all are good, 1 one is missing or wrong.
    """
    where = chosen_store(dest, host, limit, {"--lock": lock, "--set": sets})
    if where is None:
        for_each(host, limit, lambda target, narrator: models_host.verify(target, narrator, deep))
    store, wanted = _existing(where), models_serve.store_files(_wanted(lock, sets))
    if not verification.verify_aloud(store, wanted, deep, typer.echo):
        typer.echo(f"  -> make models-fetch DEST={where} brings what is missing and sets aside what is wrong")
        raise typer.Exit(1)


@app.command()
def prune(
    host: Host = "",
    limit: Limit = "",
    dest: Dest = None,
    lock: Lock = None,
    sets: Sets = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
) -> None:
    """List what no set needs; remove it with --yes.

    Files of former sets, files that were set aside, parts that no transfer waits for. A host's sets are those of its last deploy or fetch.
    """
    where = chosen_store(dest, host, limit, {"--lock": lock, "--set": sets})
    if where is None:
        for_each(host, limit, lambda target, narrator: models_host.prune(target, narrator, yes))
    try:
        needed = models_serve.store_files(_wanted(lock, sets))
        pruning.prune_aloud(_existing(where), needed, yes, typer.echo)
    except StoreError as error:
        raise AtelierError(str(error)) from None


@app.command("lock")
def refresh_lock(
    lock: Annotated[Path, typer.Option("--lock", help="The lock file.")] = DEFAULT_LOCK,
    write: Annotated[bool, typer.Option("--write", help="Write the changes that are shown.")] = False,
    token_file: TokenFile = None,
) -> None:
    """Ask the hub for the lock's values, as a diff.

    Revision, size and sha256 of every entry; nothing is downloaded, and nothing written without --write.
    """
    models_lock.lock_models(lock, write, token_file)


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="The host that reaches it through its SSH connection.")] = "",
    limit: Annotated[str, typer.Option("--limit", help="The same, by its name in hosts.yml.")] = "",
    dest: Dest = None,
    lock: Annotated[Path, typer.Option("--lock", help="The lock file that says what is served.")] = DEFAULT_LOCK,
    bind: Annotated[str, typer.Option("--bind", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = models_serve.PORT,
) -> None:
    """Offer a store on this computer to hosts, until Ctrl-C.

    Read-only, and only files that were hashed and are in the lock. With --host the host reaches it at its own
    127.0.0.1, through the SSH connection.
    """
    if dest is None:
        raise AtelierError(
            "which store on this computer is to be served? DEST=DIR (--dest) names it",
            "there is none yet? make models-fetch DEST=DIR makes one from the internet; "
            "make models-adopt DEST=DIR SEARCH=DIR from files that are here",
        )
    ssh = None
    if host or limit:
        (target,) = resolve(host, limit)
        ssh = target.ssh()
        ssh.connect()
    models_serve.serve_models(dest, lock, bind, port, ssh)


@app.command()
def adopt(
    dest: Dest = None,
    search: Annotated[
        list[Path] | None, typer.Option("--search", help="Where files may lie already; may be repeated.")
    ] = None,
    lock: Annotated[Path, typer.Option("--lock", help="The lock file.")] = DEFAULT_LOCK,
    sets: Sets = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy where a file cannot be linked or moved.")] = False,
) -> None:
    """Take files that are on this computer into a store.

    By their sha256, linked where the file system can; the originals stay.

    A host's own files need no command: a deploy looks for them (setting models.search).
    """
    if not dest or not search:
        raise AtelierError(
            "which files are to be taken, into which store?",
            "make models-adopt DEST=DIR SEARCH=DIR (--dest, --search): the store, and where files lie already",
        )
    if nowhere := [str(folder) for folder in search if not folder.is_dir()]:
        raise AtelierError(f"{', '.join(nowhere)}: no directory to search", "SEARCH=DIR names where files lie already")
    store, wanted = _store(dest), models_serve.store_files(_wanted(lock, sets))
    try:
        with store.lock(waiting=typer.echo):
            taking.adopt(store, wanted, search, copy=copy, say=typer.echo)
    except StoreError as error:
        raise AtelierError(str(error)) from None
    typer.echo(verification.summary(verification.verify(store, wanted), 0.0, deep=False))
