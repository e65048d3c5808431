"""What brings the weights to a host: the program `weights/`, its job, and the unit that runs it, as files of the host."""

import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence

from atelier import paths, render, tree
from atelier.errors import AtelierError
from atelier.models import Weight
from atelier.settings import Settings
from atelier.tree import Directory, Entry, File
from weights import follow
from weights.fetch import GB
from weights.progress import FETCHED
from weights.store import CHANGED as CHANGED_MARK

UNIT = follow.UNIT
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
STARTED_AT_BOOT = f"/etc/systemd/system/multi-user.target.wants/{UNIT}"
"""The link that `systemctl enable` makes."""
BOOT_LINK = "l 644 root:root -"
"""It, as tree.probe_script prints it."""
RUN = "/run/atelier-weights"
IN_PLACE = "atelier-weights:"
"""How the word begins that the host prints for what it has of all this."""
ENDED = "::ended::"
"""What following prints last on standard error, which a lost connection does not."""
GOES_ON = f"the transfer goes on, and the same command picks it up; on the host, `systemctl stop {UNIT}` ends it"
RUNNING_SCRIPT = f"systemctl show -p ActiveState {UNIT} | grep -Eq '=(active|activating|reloading)$'"
"""Shell that succeeds while a transfer is under way, one that systemd is about to start again among them."""
CHANGED = "weights-changed"
"""The word that the host prints where a file was published and ComfyUI has not heard of it."""


def library(settings: Settings) -> str:
    """Where Python finds the program on the host."""
    return f"{settings.config_root}/lib"


def job_path(settings: Settings) -> str:
    """Where the job lies on the host."""
    return f"{settings.config_root}/weights.json"


def token_path(settings: Settings) -> str:
    """Where the token for gated repositories lies on the host, for root alone."""
    return f"{settings.config_root}/weights.token"


def store(settings: Settings) -> str:
    """Where the weights lie on the host."""
    return settings.models_path()


def state(settings: Settings) -> str:
    """Where the host remembers what it hashed."""
    return f"{settings.state_dir()}/weights"


def shell(settings: Settings, verb: str, *options: str) -> str:
    """Shell that runs the program on the host: `follow`, `verify`, `prune`."""
    command = shlex.join(["/usr/bin/python3", "-BEs", "-m", "weights", verb, job_path(settings), *options])
    return f"cd {shlex.quote(library(settings))} && exec {command}"


def follow_shell(settings: Settings) -> str:
    """Shell that follows the unit, and says last that it was not the connection that ended.

    The next deploy need not wait until the host finds out that nobody hears this one any more: following changes nothing.
    """
    return f"flock -u 8 2>/dev/null; ( {shell(settings, 'follow')} ); status=$?; echo {ENDED} >&2; exit $status"


def job(settings: Settings, weights: Sequence[Weight], program: str, token: bool) -> str:
    """The job: all weights of the host's sets, and how to come by them. Another program makes it another job."""
    models = settings.models
    document = {
        "files": [
            {
                "name": weight.store_path,
                "bytes": weight.bytes,
                "sha256": weight.sha256,
                "urls": weight.urls(models.mirrors, models.hub),
            }
            for weight in weights
        ],
        "store": store(settings),
        "state": state(settings),
        "search": models.search,
        "reserve_bytes": round(models.reserve_gb * GB),
        "jobs": models.parallel_files,
        "connections": models.connections,
        "proxy": settings.proxy,
        "token_file": token_path(settings) if token else None,
        "progress": f"{RUN}/progress.json",
        "result": f"{RUN}/result.json",
        "program": program,
    }
    return json.dumps(document, indent=1) + "\n"


def entries(settings: Settings, weights: Sequence[Weight], token: str | None) -> tuple[Entry, ...]:
    """Everything on the host that is not a weight or told by the program itself."""
    directory = f"{library(settings)}/weights"
    sources = sorted((paths.PROJECT / "weights").glob("*.py"))
    program = [File(f"{directory}/{source.name}", source.read_bytes()) for source in sources]
    # It may hold a proxy's password or a signed address.
    secrets = [File(token_path(settings), f"{token}\n".encode(), 0o600)] if token else []
    digest = hashlib.sha256("\n".join(file.signature() for file in (*program, *secrets)).encode()).hexdigest()
    return (
        *(Directory(path) for path in (library(settings), directory, state(settings))),
        *program,
        *secrets,
        File(job_path(settings), job(settings, weights, digest, bool(token)).encode(), 0o600),
        unit(settings),
    )


def unit(settings: Settings) -> File:
    """The unit that fetches."""
    template = render.environment().get_template(f"units/{UNIT}.j2")
    values = {"store": store(settings), "state": state(settings), "library": library(settings)}
    return File(UNIT_FILE, template.render(job=job_path(settings), **values).encode())


def changed_script(settings: Settings) -> str:
    """Shell that prints one word where ComfyUI has yet to hear that a file was published."""
    mark = shlex.quote(f"{state(settings)}/{CHANGED_MARK}")
    return f"{{ [ -e {mark} ] || [ -e {mark}.told ]; }} && echo {CHANGED}"


def probed(settings: Settings, declared: Iterable[Entry]) -> list[str]:
    """The paths that tell whether everything is in place: the token too where none is wanted, and the link at boot."""
    return list(dict.fromkeys([*(entry.path for entry in declared), token_path(settings), STARTED_AT_BOOT]))


def in_place_script(settings: Settings, declared: Iterable[Entry]) -> str:
    """Shell that prints one word for all of it."""
    probe = tree.probe_script(probed(settings, declared))
    return f"echo {IN_PLACE}$({{ {probe}; }} | sha256sum | cut -d' ' -f1)"


def in_place(settings: Settings, declared: Sequence[Entry]) -> str:
    """The word that a host prints that has everything as it must be."""
    signatures = {entry.path: entry.signature() for entry in declared}
    signatures[STARTED_AT_BOOT] = BOOT_LINK
    rows = [f"{signatures[path]} {path}\n" for path in probed(settings, declared) if path in signatures]
    return IN_PLACE + hashlib.sha256("".join(rows).encode()).hexdigest()


def forget_script(settings: Settings) -> str:
    """Shell that asks ComfyUI to unload its weights where one was published since it started; FORGET is its input.

    The mark goes once ComfyUI has heard; what is published meanwhile sets it again.
    """
    marks = f"{state(settings)}/{CHANGED_MARK}"
    container = settings.services.comfyui.container
    return f"""
changed={shlex.quote(marks)} told={shlex.quote(f"{marks}.told")}
[ ! -e "$changed" ] || mv -f "$changed" "$told"
[ -e "$told" ] || exit 0
started=$(docker inspect --format '{{{{.State.StartedAt}}}}' {container}) && started=$(date -d "$started" +%s) || exit 1
[ "$(stat -c %Y "$told")" -lt "$started" ] || docker exec -i {container} python -P - || exit 1
rm -f "$told"
"""


FORGET = b"""
import urllib.request
from pathlib import Path

token = Path("/run/secrets/atelier/PASSWORD").read_text(encoding="utf-8").splitlines()[0]
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
wish = b'{"unload_models": true, "free_memory": true}'
urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8188/free", wish, headers), timeout=60)
"""
"""Python that runs in ComfyUI's container, where its token is."""


def fetched(lines: Iterable[str]) -> int:
    """How many bytes came from somewhere else, from what following printed."""
    told = [line.removeprefix(FETCHED) for line in lines if line.startswith(FETCHED)]
    return sum(int(size) for size in told if size.isdecimal())


def explain(errors: Sequence[str]) -> AtelierError:
    """Why following ended red, from what it printed on standard error."""
    reasons = [line for line in errors if line.strip()]
    if reasons[-1:] != [ENDED]:
        return AtelierError(
            "\n    ".join(["the connection was lost while the host fetched its weights", *reasons]),
            GOES_ON,
        )
    return AtelierError(
        "\n    ".join(["not all weights are there:", *reasons[:-1]]),
        f"mend the cause and run the same command again; it continues (on the host: journalctl -u {UNIT})",
    )
