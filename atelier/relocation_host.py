"""The program `relocation/` on a host: brought there for one reorganisation, asked with a job, and what it answers."""

import io
import json
import shlex
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from atelier import paths
from atelier.ssh import Ssh
from atelier.tree import File
from relocation.adopt import Adopted, Adoption
from relocation.finish import Removed
from relocation.job import RUN, Move
from relocation.merge import Done
from relocation.plan import Plan, Planned, Space
from weights.progress import NOTE, PROGRESS

JOB = "/etc/atelier/relocation.json"
ADOPTION = f"{RUN}/adoption.json"
LIBRARY = f"{RUN}/lib"
"""Gone with the next restart: it belongs to the release that reorganises, not to the one that is deployed."""
PACKAGES = ("relocation", "weights")
"""It takes from the weights' program how to tell progress and to write records."""


@dataclass(frozen=True)
class Answer:
    """What a verb came to, by source. error: why it did not."""

    error: str = ""
    done: Mapping[str, Done] | None = None
    removed: Mapping[str, Removed] | None = None
    plan: Plan | None = None
    adopted: Adopted | None = None


def archive() -> bytes:
    """The program, for `install_script`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as whole:
        for package in PACKAGES:
            for source in sorted((paths.PROJECT / package).glob("*.py")):
                content = source.read_bytes()
                member = tarfile.TarInfo(f"{package}/{source.name}")
                member.size, member.mode = len(content), 0o644
                whole.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def install_script(library: str = LIBRARY) -> str:
    """Shell that reads the archive from standard input and puts the program in the place of any earlier one."""
    place, beside = shlex.quote(library), shlex.quote(f"{library}.part")
    return (
        f"umask 022 && rm -rf {beside} && mkdir -p {beside} && tar -xzf - --no-same-owner -C {beside} "
        f"&& rm -rf {place} && mv -T {beside} {place}"
    )


def job(moves: Sequence[Move], records: str, reserve_bytes: int) -> File:
    """The job of a reorganisation. records: where the weights' records lie, before or after."""
    told = [
        {"kind": move.kind, "source": move.source, "target": move.target, "target_mount": move.target_mount}
        for move in moves
    ]
    document = {"moves": told, "records": records, "reserve_bytes": reserve_bytes}
    return File(JOB, (json.dumps(document, indent=1) + "\n").encode(), 0o600)


def adoption_job(adoptions: Sequence[Adoption], reserve_bytes: int) -> File:
    """The job of copying what somebody else has."""
    document = {"moves": [], "adopt": [asdict(one) for one in adoptions], "reserve_bytes": reserve_bytes}
    return File(ADOPTION, (json.dumps(document, indent=1) + "\n").encode(), 0o600)


def shell(verb: str, path: str = JOB, library: str = LIBRARY) -> str:
    """Shell that runs a verb of the program: `plan`, `copy`, `switch`, `finish`, `adopt`."""
    command = shlex.join(["/usr/bin/python3", "-BEs", "-m", "relocation", verb, path])
    return f"cd {shlex.quote(library)} && exec {command}"


def is_progress(line: str) -> bool:
    """Whether a line of its output tells how far it is, or something that a person should know."""
    return line.startswith((PROGRESS, NOTE))


def answer(line: str) -> Answer:
    """What the last line of its output says."""
    told: dict[str, Any] = json.loads(line)
    error, moves = told["error"], told["moves"]
    if told["verb"] == "plan":
        planned = tuple(Planned(**{**move, **_tuples(move, "collisions", "foreign")}) for move in moves)
        space = tuple(Space(**one) for one in told["space"])
        return Answer(error, plan=Plan(planned, space, tuple(told["obstacles"])))
    if told["verb"] == "adopt":
        return Answer(error, adopted=Adopted(**told["adopted"]) if "adopted" in told else None)
    if told["verb"] == "finish":
        return Answer(error, removed={source: Removed(**one) for source, one in moves.items()})
    return Answer(error, done={source: Done(**one) for source, one in moves.items()})


def ask(ssh: Ssh, script: str, hear: Callable[[str], None]) -> Answer:
    """Run a verb and wait for it. hear: is told how far it is. One that was cut off did not do it either."""
    process = ssh.popen(script)
    assert process.stdin and process.stdout  # noqa: S101 - popen was asked for pipes
    answered, told = Answer(), list[str]()
    with process:
        process.stdin.close()
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            if line.startswith("{"):
                answered = answer(line)
            elif is_progress(line):
                hear(line)
            else:
                told.append(line)
    if process.returncode == 0 and answered != Answer():
        return answered
    return replace(answered, error=answered.error or "\n    ".join(told[-10:]) or "the connection was lost")


def _tuples(told: Mapping[str, Any], *names: str) -> dict[str, tuple[str, ...]]:
    return {name: tuple(told[name]) for name in names}
