"""`make sabotage`: breaks a deployed sandbox in every known way, one at a time, and demands that verify notices.

A list of sabotages (tests/sabotage) says how to break something, which checks must turn red for it, and how to undo it.
What is broken is noted in the guest first, so that a run that was killed is undone by the next one.
"""

import contextlib
import difflib
import hashlib
import importlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atelier import forked, lifecycle, models, operate, paths, verify
from atelier.checks import CATALOGUE, Check, existing, explained
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.report import CheckResult
from atelier.settings import Settings
from atelier.ssh import Ssh
from atelier.target import Target

NOTE = "/var/lib/atelier-sabotage/at-work"
"""In the guest: the id of what is broken there. On its disk, because a sabotage may restart it."""
LOCK = "/run/atelier-sabotage.lock"
"""In the guest, held by the script at work: an undo waits for what a killed `breaks` left running."""
SETTLED_SECONDS = 40
"""How long a check may stay red after an undo, when every container is healthy again."""
SLOW_IN_ROTATION = 6

FUNCTIONS = r"""
recreate() { (cd "$CONFIG/services/$1" && docker compose up -d --force-recreate --remove-orphans) 2>&1; }
join() {
  docker network connect "$1" "$2" 2>/dev/null && return
  recreate "$2"; eventually 120 healthy "$2"; docker network connect "$1" "$2"
}
leave() {
  docker inspect -f '{{json .NetworkSettings.Networks}}' "$2" | grep -q "\"$1\":" || return 0
  docker network disconnect "$1" "$2" 2>/dev/null || recreate "$2"
}
overridden() {
  mkdir -p "$KEPT" && cat >"$KEPT/$1.yaml"
  (cd "$CONFIG/services/$1" && docker compose -f compose.yaml -f "$KEPT/$1.yaml" up -d) 2>&1
}
root_of() {
  merged=$(docker inspect -f '{{with .GraphDriver}}{{.Data.MergedDir}}{{end}}' "$1" 2>/dev/null) || merged=
  case $merged in /*) ;; *) merged=/var/lib/docker/rootfs/overlayfs/$(docker inspect -f '{{.Id}}' "$1") ;; esac
  [ -d "$merged/etc" ] && printf '%s' "$merged" || { echo "no root of $1 on the host" >&2; return 1; }
}
kept_as() { printf '%s/%s' "$KEPT" "$(printf %s "$1" | tr / _)"; }
keep() { mkdir -p -m 0700 "$KEPT" && { [ -e "$(kept_as "$1")" ] || cp -aT "$1" "$(kept_as "$1")"; }; }
give_back() {
  [ -e "$(kept_as "$1")" ] || return 0
  rm -rf "$1.part" && cp -aT "$(kept_as "$1")" "$1.part" && rm -rf "$1" && mv -T "$1.part" "$1" && rm -rf "$(kept_as "$1")"
}
eventually() {
  seconds=$1; shift; end=$(($(date +%s) + seconds))
  until eval "$*" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$end" ] || { echo "not within $seconds s: $*" >&2; return 1; }
    sleep 0.3
  done
}
healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$1")" = healthy ]; }
answer() {
  python3 -I -c 'import ssl, sys, urllib.error, urllib.request as r
tls = r.HTTPSHandler(context=ssl._create_unverified_context())
try: print(r.build_opener(r.ProxyHandler({}), tls).open(sys.argv[1], timeout=5).status)
except urllib.error.HTTPError as error: print(error.code)
except OSError: print("nothing")' "$1"
}
served() { [ "$(answer "$1/healthz")" = 200 ]; }
settle() {
  for one in "$COMFYUI" "$FORGE" "$GATEWAY"; do eventually 120 healthy "$one"; done
  for one in "$COMFYUI_URL" "$FORGE_URL"; do eventually 30 served "$one"; done
}
"""
"""What every script may call.

`recreate CONTAINER`: anew from its compose file. `overridden CONTAINER <<X`: with a further compose file, on standard
input. `join NETWORK CONTAINER`, `leave NETWORK CONTAINER`: Docker can do neither to a container that was running when its
daemon was restarted, so that one is made anew. `root_of CONTAINER`: the folder on the host that is a running container's
root file system, writable.
`keep PATH`, `give_back PATH`: put a file or folder aside with all that belongs to it, and back; nothing where nothing was
put aside. `eventually SECONDS COMMAND`: until it succeeds. `healthy CONTAINER`. `answer URL`: the status that a stranger
gets. `served URL`: whether `/healthz` says so. `settle`: until every container is healthy and every service is served.
"""
KEPT = "/var/lib/atelier-sabotage/kept"
"""In the guest, on its disk: what `keep` put aside."""
SCRIPT_SECONDS = 300
ONLY_SANDBOXES = "sabotage breaks what it finds: it runs on sandboxes only, such as HOST=sandbox"


class Guest:
    """The sandbox that is broken, for the scripts and callables of a sabotage."""

    def __init__(self, target: Target, ssh: Ssh) -> None:
        self.target, self.ssh = target, ssh

    @property
    def settings(self) -> Settings:
        """The settings that the sandbox was deployed with."""
        return self.target.settings

    @property
    def secrets_dir(self) -> Path:
        """The credentials of the sandbox on this computer."""
        return paths.secrets_dir(self.target.name)

    def root(self, script: str, stdin: bytes = b"") -> str:
        """Run a shell script (POSIX) as root in the guest, ended by the first command that fails.

        Returns what it printed. Raises AtelierError where it fails.
        """
        settings = self.settings
        names = {"CONFIG": settings.config_root, "DATA": settings.data_root, "UID_": str(settings.service_uid)}
        names |= {"MODELS": settings.models_path(), "OUTPUTS": settings.outputs_path(), "USERS": settings.users_path()}
        names |= {kind.upper(): service.container for kind, service in settings.enabled().items()}
        names |= {"GATEWAY": settings.gateway_container, "KEPT": KEPT}
        place = f"{settings.scheme()}://{settings.own_address()}"
        names |= {f"{kind.upper()}_URL": f"{place}:{service.port}" for kind, service in settings.enabled().items()}
        variables = "".join(f"{name}={shlex.quote(value)}\n" for name, value in names.items())
        whole = shlex.quote(f"set -e\n{variables}{FUNCTIONS}\n{script}")
        # -o: a program that the script leaves behind does not hold the lock.
        answer = self.ssh.run(f"exec flock -o {LOCK} sh -c {whole}", stdin=stdin, timeout=SCRIPT_SECONDS)
        if answer.status != 0:
            raise AtelierError(f"ended with {answer.status}: {(answer.stderr or answer.stdout).strip()[-600:]}")
        return answer.stdout

    def carry_out(self, deed: "Deed") -> None:
        """Do what a sabotage says. Raises AtelierError where it cannot be done."""
        if isinstance(deed, str):
            self.root(deed)
        else:
            deed(self)

    def note(self, id: str) -> None:
        """Write down what is about to be broken."""
        self.root(f"mkdir -p {Path(NOTE).parent} && printf %s {shlex.quote(id)} >{NOTE}.part && mv {NOTE}.part {NOTE}")

    def noted(self) -> str:
        """What was about to be broken when a run was killed; empty where none was."""
        return self.root(f"[ ! -e {NOTE} ] || cat {NOTE}").strip()

    def forget(self) -> None:
        """Nothing is broken any more."""
        self.root(f"rm -f {NOTE}")

    def require_sandbox(self) -> None:
        """Raises AtelierError unless the machine that answers is one that can be thrown away."""
        if self.ssh.run("systemd-detect-virt --container").stdout.strip() != "systemd-nspawn":
            raise AtelierError(f"what answers as {self.target.name} is no sandbox of this computer", ONLY_SANDBOXES)

    def wait_until_well(self) -> None:
        """Until every container is healthy. Raises AtelierError where that takes longer than a start may."""
        containers = [service.container for service in self.settings.enabled().values()]
        names = " ".join(shlex.quote(name) for name in (*containers, self.settings.gateway_container))
        state = "{{.Name}} {{.State.Status}} {{with .State.Health}}{{.Status}}{{end}}"
        look = f"docker inspect --type container --format {shlex.quote(state)} {names} 2>&1"
        deadline, told = time.monotonic() + self.settings.timeouts.start, ["no answer"]
        while True:
            with contextlib.suppress(AtelierError):  # it may be restarting
                told = self.ssh.run(look, timeout=30).stdout.splitlines() or ["no answer"]
                if all(line.endswith(" running healthy") for line in told):
                    return
            if time.monotonic() > deadline:
                raise AtelierError(f"not healthy within {self.settings.timeouts.start} s: {'; '.join(told)}")
            time.sleep(0.5)


Deed = str | Callable[[Guest], object]
"""A shell script that runs as root in the guest, or a callable."""


@dataclass(frozen=True)
class Sabotage:
    """One way to break a deployed sandbox.

    id: its group and what is broken, such as `containers.published-port`. does: one line for the table.
    breaks, undoes: see `Guest.root` for the variables and functions of a script; undoes works after half a `breaks` too.
    expects: ids of the checks that must turn red. names: what the first of them must say: the cause, and maybe the remedy
    (a regular expression, searched in `observed -> hint`). also: ids, or beginnings of ids, that may be red besides,
    beyond what depends directly on one of `expects` by the catalogue. groups: groups to verify besides those of `expects`.
    needs: nothing but a sandbox, or one that has more, of NEEDS. slow: more than about 5 s with its verify and its undo.
    """

    id: str
    does: str
    breaks: Deed
    undoes: Deed
    expects: tuple[str, ...]
    names: str
    also: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    needs: Literal["", "gpu", "tls", "doubles"] = ""
    slow: bool = False


DOUBLES = "a sandbox with doubles in the place of the applications (SOURCES=double)"
NEEDS = {
    "gpu": "a sandbox with a simulated GPU, such as HOST=sandbox-gpu",
    "tls": "a sandbox with TLS (tls.mode)",
    "doubles": DOUBLES,
}


def load() -> tuple[Sabotage, ...]:
    """Every sabotage of tests/sabotage."""
    if (folder := str(paths.PROJECT / "tests")) not in sys.path:
        sys.path.append(folder)
    found: tuple[Sabotage, ...] = importlib.import_module("sabotage").every()
    return found


def possible(sabotage: Sabotage, settings: Settings) -> bool:
    """Whether a sandbox with these settings has what the sabotage needs; whether it has doubles, they do not tell."""
    has = {"": True, "doubles": True, "gpu": settings.profile == "gpu-simulated", "tls": settings.tls.mode != "off"}
    return has[sabotage.needs]


def choose(sabotages: Sequence[Sabotage], names: Collection[str], settings: Settings) -> list[Sabotage]:
    """Those that a name is the id or the beginning of, or without names all that this sandbox can have.

    Raises AtelierError for a name that fits none, and for one named in full that this sandbox cannot have.
    """
    chosen = []
    for name in names:
        fits = [sabotage for sabotage in sabotages if f"{sabotage.id}.".startswith(f"{name.removesuffix('.')}.")]
        if not fits:
            close = difflib.get_close_matches(name, [sabotage.id for sabotage in sabotages], n=1)
            raise AtelierError(
                f"no sabotage {name!r}", f"did you mean {close[0]}?" if close else "atelier sabotage --list"
            )
        if len(fits) == 1 and not possible(fits[0], settings):
            raise AtelierError(f"{fits[0].id} needs {NEEDS[fits[0].needs]}")
        chosen += fits
    return [sabotage for sabotage in sabotages if possible(sabotage, settings) and (sabotage in chosen or not names)]


def concerned(sabotage: Sabotage, checks: Iterable[Check], *, only_quick: bool = False) -> list[str]:
    """The ids to verify while it is in force: its groups' checks, and those that it must turn red.

    only_quick: of its groups only what takes well under a second.
    """
    groups = {id.partition(".")[0] for id in sabotage.expects} | set(sabotage.groups)

    def concerns(check: Check) -> bool:
        return check.group in groups and check.run == "always" and (check.quick or not only_quick)

    return [check.id for check in checks if check.id in sabotage.expects or concerns(check)]


def faults(sabotage: Sabotage, results: Mapping[str, CheckResult], checks: Sequence[Check] = CATALOGUE) -> list[str]:
    """What verify got wrong while the sabotage was in force; empty where it noticed it, named it, and said nothing else."""
    red = {id for id, result in results.items() if result.verdict == "failed"}
    found = []
    for id in sabotage.expects:
        if id not in results:
            found.append(f"{id} should have turned red, but this host has no such check")
        elif id not in red:
            found.append(f"{id} should have turned red, but {results[id].verdict}: {results[id].observed}")
    allowed = set(sabotage.expects) | explained(red & set(sabotage.expects), checks)
    for id, result in results.items():
        if id in allowed or any(f"{id}.".startswith(f"{name}.") for name in sabotage.also):
            continue
        if result.verdict == "failed":
            found.append(f"{id} turned red, too, and nothing says why it may: {told(result)}")
        elif result.verdict == "skipped":
            found.append(f"{id} did not run: {result.observed}")
    found += [f"{id} does not say what to do" for id in sabotage.expects if id in red and not results[id].hint]
    first = sabotage.expects[0]
    if first in red and not re.search(sabotage.names, told(results[first])):
        found.append(f"{first} does not name the cause (no {sabotage.names!r} in it): {told(results[first])}")
    return found


def told(result: CheckResult) -> str:
    """What a red check says to a person."""
    return f"{result.observed} -> {result.hint}"


def rotation(slow: Sequence[Sabotage], seed: str, count: int = SLOW_IN_ROTATION) -> list[Sabotage]:
    """A few of the slow ones: the same for the same seed, such as a commit, and others for the next."""

    def place(sabotage: Sabotage) -> str:
        return hashlib.sha256(f"{seed} {sabotage.id}".encode()).hexdigest()

    return sorted(slow, key=place)[:count]


def commit() -> str:
    """The commit of this checkout; empty where it is no git repository."""
    answer = subprocess.run(["git", "-C", str(paths.PROJECT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip()


@dataclass(frozen=True)
class Outcome:
    """What came of one sabotage. faults: what was not as it must be. stuck: the sandbox is not as it was before."""

    sabotage: Sabotage
    red: tuple[str, ...]
    seconds: float
    faults: tuple[str, ...] = ()
    stuck: bool = False


def table(outcomes: Iterable[Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = ["| sabotage | what is broken | turned red | seconds |", "|---|---|---|---|"]
    for outcome in outcomes:
        red = ", ".join(outcome.red) or "nothing"
        verdict = f"**not as it must be**: {'; '.join(outcome.faults)}" if outcome.faults else red
        cells = (outcome.sabotage.id, outcome.sabotage.does, verdict, f"{outcome.seconds:.0f}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


Examine = Callable[[Collection[str]], Mapping[str, CheckResult]]
"""Verifies these check ids and nothing else."""
Say = Callable[[str, str], object]


class Saboteur:
    """Breaks, has it verified, undoes."""

    def __init__(
        self, guest: Guest, checks: Sequence[Check], examine: Examine, say: Say, *, only_quick: bool = False
    ) -> None:
        self.guest, self.checks, self.examine, self.say, self.only_quick = guest, checks, examine, say, only_quick

    def undo_what_was_left(self, known: Iterable[Sabotage]) -> None:
        """Undo what a killed run left broken. Raises AtelierError where that cannot be done."""
        if not (id := self.guest.noted()):
            return
        self.say(f"An earlier run was killed in the middle of {id}; undoing that first.", "yellow")
        sabotage = next((sabotage for sabotage in known if sabotage.id == id), None)
        if sabotage is None:
            raise AtelierError(f"no sabotage {id!r} is known any more", "take the sandbox down and deploy a fresh one")
        if problem := self._undo(sabotage, set(sabotage.expects)):
            raise AtelierError(f"{id}: {problem}", "take the sandbox down and deploy a fresh one")

    def require_well(self, sabotages: Iterable[Sabotage]) -> None:
        """Raises AtelierError where something is red before anything is broken."""
        wanted = {id for sabotage in sabotages for id in concerned(sabotage, self.checks, only_quick=self.only_quick)}
        ids = [check.id for check in self.checks if check.id in wanted and check.run == "always"]
        self.say(f"Before anything is broken: {len(ids)} checks.", "")
        if wrong := self._wrong(self.examine(ids)) if ids else []:
            raise AtelierError(
                "not all is well before anything is broken: " + "; ".join(wrong), "make verify, make deploy"
            )

    def run(self, sabotages: Sequence[Sabotage]) -> Iterator[Outcome]:
        """Each alone, in order. What cannot be undone ends the run. An interrupt undoes the one at work."""
        for number, sabotage in enumerate(sabotages, 1):
            self.say(f"[{number:{len(str(len(sabotages)))}}/{len(sabotages)}] {sabotage.id}: {sabotage.does}", "")
            outcome = self._one(sabotage)
            for fault in outcome.faults:
                self.say(f"      not as it must be: {fault}", "bold red")
            self.say(f"      {', '.join(outcome.red) or 'nothing'} turned red ({outcome.seconds:.0f} s)", "dim")
            yield outcome
            if outcome.stuck:
                left = len(sabotages) - number
                self.say(f"The sandbox is not as it was; {left} further sabotages were not tried.", "bold red")
                return

    def _one(self, sabotage: Sabotage) -> Outcome:
        started = time.monotonic()
        self.guest.note(sabotage.id)
        try:
            red, found = self._break_and_look(sabotage)
        except BaseException:  # above all Ctrl-C
            self.say(f"      interrupted; undoing {sabotage.id} ...", "yellow")
            self.say(f"      {self._undo(sabotage, sabotage.expects) or 'undone'}", "yellow")
            raise
        problem = self._undo(sabotage, {*red, *sabotage.expects})
        found += [problem] if problem else []
        return Outcome(sabotage, red, time.monotonic() - started, tuple(found), stuck=bool(problem))

    def _break_and_look(self, sabotage: Sabotage) -> tuple[tuple[str, ...], list[str]]:
        """What turned red, and what is not as it must be."""
        try:
            self.guest.carry_out(sabotage.breaks)
            results = self.examine(concerned(sabotage, self.checks, only_quick=self.only_quick))
        except AtelierError as error:
            return (), [f"could not be tried: {error}"]
        red = tuple(id for id, result in results.items() if result.verdict == "failed")
        return red, faults(sabotage, results)

    def _undo(self, sabotage: Sabotage, ids: Collection[str]) -> str:
        """Undo, and verify that these checks are green again; returns what is not as before, or nothing."""
        try:
            self.guest.carry_out(sabotage.undoes)
            self.guest.wait_until_well()
        except AtelierError as error:
            return f"could not be undone: {error}"
        again = [check.id for check in self.checks if check.id in ids or check.id.endswith(".healthz")]
        deadline = time.monotonic() + SETTLED_SECONDS
        while wrong := self._still_wrong(again):
            if time.monotonic() > deadline:
                return f"its undo does not lead back to green: {'; '.join(wrong)}"
            time.sleep(1)
        self.guest.forget()
        return ""

    def _still_wrong(self, ids: Collection[str]) -> list[str]:
        try:
            return self._wrong(self.examine(ids))
        except AtelierError as error:  # the host may be restarting
            return [str(error)]

    def _wrong(self, results: Mapping[str, CheckResult]) -> list[str]:
        """The checks that were asked for and are not green."""
        optional = {check.id for check in self.checks if check.optional}
        return [
            f"{id} {result.verdict}: {told(result)}"
            for id, result in results.items()
            if result.verdict == "failed" or (result.verdict == "skipped" and id not in optional)
        ]


def require_sandboxes(targets: Iterable[Target]) -> None:
    """Raises AtelierError naming every target that is not a sandbox, before any is touched."""
    hosts = [target.name for target in targets if target.kind != "sandbox"]
    if hosts:
        raise AtelierError(f"{', '.join(hosts)}: not a sandbox", ONLY_SANDBOXES)


def run(
    target: Target, narrator: Narrator, names: Collection[str], *, sample: bool = False, only_quick: bool = False
) -> int:
    """The sabotages of these names, or all, and then a whole verify; 0 where everything is as it must be.

    sample: of the slow ones only a few, chosen by commit. only_quick: see `concerned`.
    """
    settings = target.settings
    known = load()
    chosen = choose(known, names, settings)
    if sample:
        few = rotation([sabotage for sabotage in chosen if sabotage.slow], commit())
        chosen = [sabotage for sabotage in chosen if not sabotage.slow or sabotage in few]
    operate.require_up(target, narrator)
    ssh = target.ssh()
    ssh.connect()
    guest = Guest(target, ssh)
    guest.require_sandbox()
    sources = verify.read_deployed(ssh, settings)["sources"]
    if sources != "double" and (needing := [sabotage for sabotage in chosen if sabotage.needs == "doubles"]):
        narrator.say(f"{len(needing)} sabotages need {DOUBLES}; they are left out.", "dim")
        chosen = [sabotage for sabotage in chosen if sabotage not in needing]
    checks = declared(target, sources)
    ids = {check.id for check in checks}
    if strange := [sabotage.id for sabotage in chosen if not ids.issuperset(sabotage.expects)]:
        narrator.say(f"Left out, as this sandbox has not what they break: {', '.join(strange)}", "dim")
        chosen = [sabotage for sabotage in chosen if sabotage.id not in strange]
    for need, where in NEEDS.items():
        if left := [sabotage for sabotage in known if sabotage.needs == need and not possible(sabotage, settings)]:
            narrator.say(f"{len(left)} sabotages need {where}; they are left out.", "dim")
    outcomes: list[Outcome] = []
    place = paths.reports_dir(target.name) / "sabotage.md"
    place.parent.mkdir(parents=True, exist_ok=True)
    with lifecycle.host_lock(ssh):
        saboteur = Saboteur(guest, checks, examiner(target), narrator.say, only_quick=only_quick)
        saboteur.undo_what_was_left(known)
        saboteur.require_well(chosen)
        for outcome in saboteur.run(chosen):
            outcomes.append(outcome)
            place.write_text(table(outcomes), encoding="utf-8")
    good = sum(not outcome.faults for outcome in outcomes)
    whole = names or verify.verify(target, say=narrator.say).verdict == "passed"
    narrator.say(f"Table: {place}")
    narrator.say(
        f"{good} of {len(chosen)} sabotages were noticed, named and undone.", "" if good == len(chosen) else "bold red"
    )
    return 0 if whole and good == len(chosen) else 1


def declared(target: Target, sources: str) -> list[Check]:
    """The checks of a sandbox that was deployed from these sources."""
    wanted = models.weights_for(lifecycle.sandbox_settings(target.settings, sources), paths.PROJECT)
    return existing(target.settings, {weight.name for weight in wanted})


def examiner(target: Target) -> Examine:
    """Verifies a target, without counting it as one of its runs."""
    forked.read_ahead()

    def examine(ids: Collection[str]) -> Mapping[str, CheckResult]:
        report = verify.verify(target, checks=ids, say=lambda line, style: None, publishes=False, forks=True)
        return {result.id: result for result in report.checks if result.id in ids}

    return examine
