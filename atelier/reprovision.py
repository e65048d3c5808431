"""`make reprovision`: brings a host from whatever it is to what is declared. The plan is `reorganisation.py`'s.

What is under way is written down on the host before anything changes places, and forgotten when all has passed: a run that
was killed anywhere is finished by the next one.
"""

import contextlib
import json
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import httpx
from pydantic import TypeAdapter

from atelier import (
    SCHEMA,
    displacement,
    drift_diff,
    hostfacts,
    lifecycle,
    manifest,
    mending,
    monitoring,
    new_machine,
    old_host,
    operate,
    paths,
    previous_stack,
    recorded,
    relocation_host,
    remains,
    reorganisation,
    repairs,
    rotation,
    takedown,
    weights_unit,
)
from atelier import credentials as store
from atelier.checks import existing
from atelier.console import Narrator
from atelier.credentials import Credentials
from atelier.deployment import Deployment
from atelier.displacement import Displaced
from atelier.doctor.redact import Redactor, known_secrets
from atelier.errors import AtelierError, Finding
from atelier.hostfacts import HostFacts
from atelier.previous_stack import Found as PreviousStack
from atelier.reboot import RestartNeededError
from atelier.recorded import JOURNAL, Recorded, roots_of
from atelier.reorganisation import Amounts, Container, Found, Journal, Reorganisation
from atelier.repairs import Repair
from atelier.settings import Settings
from atelier.ssh import Ssh
from atelier.target import Target
from atelier.tree import File
from atelier.uninstall import Step
from atelier.uninstall_packages import Kept
from atelier.verify import trust
from relocation.files import OURS
from relocation.job import RUN, Move
from relocation.job import moved as new_place
from relocation.journal import SWITCHED
from relocation.merge import Done
from relocation.plan import Plan as Relocation
from weights.fetch import GB

ROUNDS = 5  # of looks and repairs, before a person has to see to it
LOOK = 0.2  # seconds between two questions whether a service answers
AFTER_REMOVAL = ("drift", "secrets")
"""The groups of checks that see what makes room and is not gone yet."""
STOP = 30  # seconds that a service has to end by itself
NOTHING = Relocation((), (), ())
WATCH_AGAIN = "\n".join(
    f"! systemctl cat {unit} >/dev/null 2>&1 || {{ systemctl enable -q {unit} && systemctl start --no-block {unit}; }}"
    for unit in (monitoring.TIMER, weights_unit.UNIT)
)
CONTAINERS = """ids=$(docker ps -aq --no-trunc 2>/dev/null); [ -z "$ids" ] || docker inspect --type container --format \
'{{.Id}} {{.Name}} {{.State.Running}} {{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}} \
{{with index .Config.Labels "atelier.config"}}{{.}}{{else}}-{{end}}' $ids 2>/dev/null; :"""
_JOURNAL = TypeAdapter(Journal)


@dataclass(frozen=True)
class Wishes:
    """What the operator asked for. root: where a previous stack lies, where that is not found by itself."""

    sources: Literal["auto", "upstream", "double"] = "auto"
    yes: bool = False
    purge: bool = False
    adopt_token: bool = False
    root: str = ""
    old: str = ""
    """The machine that this one replaces: weights come from it while it answers."""
    reboot: bool = False
    """It is restarted without a question where it must be."""


@dataclass(frozen=True)
class Survey:
    """A host as it is and what is to become of it. deployment: weights are looked for in a previous stack as well.

    before: the deployment with data and owner as the host still has them; begun: an earlier run has begun it.
    """

    target: Target
    record: Recorded
    deployment: Deployment
    before: Deployment
    journal: Journal
    begun: bool
    found: Found
    plan: Reorganisation


def parse_containers(output: str) -> tuple[Container, ...]:
    """What CONTAINERS printed."""
    rows = [line.split(" ") for line in output.splitlines() if line.count(" ") == 4]
    return tuple(
        Container(one, name.lstrip("/"), label != "-", _policy(policy), running == "true")
        for one, name, running, policy, label in rows
    )


def _policy(told: str) -> str:
    name, _, retries = told.partition(":")
    return f"{name}:{retries}" if name == "on-failure" and retries != "0" else name or "no"


def journal_file(journal: Journal) -> File:
    """The journal as it lies on the host."""
    document = {"schema": SCHEMA, "release": version("atelier"), "journal": _JOURNAL.dump_python(journal, mode="json")}
    return File(JOURNAL, (json.dumps(document, indent=1) + "\n").encode(), 0o600)


def read_journal(text: str) -> Journal | None:
    """The journal of a run that was not finished; None where there is none. Raises AtelierError for one of a later release."""
    if not text.strip():
        return None
    try:
        document = json.loads(text)
        if refusal := recorded.later(int(document["schema"]), str(document["release"])):
            raise AtelierError(refusal.problem, refusal.remedy)
        return _JOURNAL.validate_json(json.dumps(document["journal"]))
    except (ValueError, KeyError, TypeError):
        raise AtelierError(
            f"{JOURNAL} on the host is damaged; it says how far a reprovision came",
            "on the host: rename it, and see with `docker ps -a` whether containers are called *.previous; then run the same command again",
        ) from None


def look(target: Target, ssh: Ssh, wishes: Wishes, narrator: Narrator) -> Survey:
    """Everything about the host and what is to become of it; nothing is changed. Raises AtelierError."""
    record = recorded.parse(recorded.documents(ssh.run(recorded.script(target.settings), check=True).stdout))
    if refusal := record.refusal():
        raise AtelierError(refusal.problem, refusal.remedy)
    begun = read_journal(ssh.run(f"cat {JOURNAL} 2>/dev/null; :", check=True).stdout)
    if begun and (finding := reorganisation.conflict(begun, target.settings)):
        raise AtelierError(finding.problem, finding.remedy)
    narrator.begin("Survey", "Look at what the host is and has")
    previous = previous_stack.look(ssh, target.settings, wishes.root, record.roots)
    if not (begun or previous.containers or wishes.root):
        # Somebody's own way to keep one: nothing is taken from it, or there would always be something to do.
        previous = PreviousStack(aside=previous.aside, notes=previous.notes)
    # For this run alone: the host's job of weights names what the settings say.
    searching = replace(target, settings=previous_stack.with_search(target.settings, previous))
    deployment = lifecycle.prepare(
        searching, ssh, wishes.sources, narrator, choose=lambda facts: _choose(target, ssh, wishes, previous, facts)
    )
    previous = _about_token(target, wishes, previous, deployment.facts)
    # What was begun is no obstacle to what finishes it.
    deployment = replace(deployment, facts=replace(deployment.facts, reorganising=False))
    containers = parse_containers(ssh.run(CONTAINERS, timeout=60).stdout)
    now = reorganisation.begin(record, deployment, containers, previous)
    journal = reorganisation.resumed(begun, now) if begun else now
    before = _as_it_is(ssh, deployment, record, journal)
    # What is taken out of containers lies on the host before weights are fetched.
    before = replace(before, present=before.present | {f"here:{one.bytes}" for one in previous.inside})
    there = remains.parse(ssh.run(remains.script(record, _roots(record, journal)), timeout=600, check=True).stdout)
    diffs, left_alone = _edited(ssh, target, before, record, there)
    relocation = _plan_moves(ssh, deployment.settings, journal)
    copied = [move.source for move in relocation.moves if move.how == "copy"]
    found = Found(
        remains=there,
        containers=containers,
        relocation=relocation,
        previous=previous,
        diffs=diffs,
        left_alone=left_alone,
        repairs=repairs.plan(mending.look(ssh, before, record, copied)),
        fetches=before.bytes_to_fetch(),
    )
    plan = reorganisation.reorganise(record, deployment, found, journal, purge=wishes.purge)
    narrator.end(changed=False)
    return Survey(target, record, deployment, before, journal, begun is not None, found, plan)


def _about_token(target: Target, wishes: Wishes, previous: PreviousStack, facts: HostFacts) -> PreviousStack:
    """With the files of the token where it is taken from them now, and told of where it could be."""
    if facts.instance or store.load(paths.secrets_dir(target.name)) is not None or not previous.token_files:
        return replace(previous, token_files=())
    if wishes.adopt_token:
        return previous
    told = f"ADOPT_TOKEN=1 takes over the token in {previous.token_files[0]}; without it clients need a new one"
    return replace(previous, token_files=(), notes=(*previous.notes, told))


def _choose(target: Target, ssh: Ssh, wishes: Wishes, previous: PreviousStack, facts: HostFacts) -> Credentials:
    imported = None
    if wishes.adopt_token and not facts.instance and store.load(paths.secrets_dir(target.name)) is None:
        imported = previous_stack.credentials(ssh, previous, os.environ).credentials
    return lifecycle.choose_credentials(target, facts, os.environ, imported)


def _roots(record: Recorded, journal: Journal) -> recorded.Roots:
    return journal.after if journal.switching or record.roots is None else record.roots


def _as_it_is(ssh: Ssh, deployment: Deployment, record: Recorded, journal: Journal) -> Deployment:
    """The deployment on data that has not moved yet: what the host has of weights is looked for where it has them."""
    if journal.switching or not (journal.moves or journal.owner):
        return deployment
    settings = reorganisation.interim(deployment.settings, record)
    # Asked about the user of the settings; that of the record is there, and whose it is has been recorded.
    facts = replace(deployment.facts, service_user_uid=str(settings.service_uid))
    before = replace(deployment, settings=settings, facts=facts)
    return replace(before, present=_present(ssh, before))


def _present(ssh: Ssh, deployment: Deployment) -> frozenset[str]:
    script = hostfacts.presence_script(deployment.settings, deployment.weights, deployment.fetcher())
    return frozenset(ssh.run(script).stdout.split())


def _job(settings: Settings, moves: Sequence[Move]) -> File:
    records = f"{settings.state_dir()}/weights"
    return relocation_host.job(moves, records, round(settings.models.reserve_gb * GB))


def _plan_moves(ssh: Ssh, settings: Settings, journal: Journal) -> Relocation:
    if not journal.moves:
        return NOTHING
    job = shlex.quote(_job(settings, journal.moves).content.decode())
    script = (
        'd=$(mktemp -d) && trap \'rm -rf "$d"\' EXIT && mkdir "$d/lib" && tar -xzf - -C "$d/lib" '
        f'&& printf %s {job} >"$d/job" && cd "$d/lib" && /usr/bin/python3 -BEs -m relocation plan "$d/job"'
    )
    result = ssh.run(script, stdin=relocation_host.archive(), timeout=600)
    for line in reversed(result.stdout.splitlines()):
        if line.startswith("{") and (plan := relocation_host.answer(line).plan):
            return plan
    raise AtelierError(
        f"the host does not tell what would have to move: {result.stderr.strip()[-600:]}",
        "mend that, then run the same command again",
    )


def _edited(
    ssh: Ssh, target: Target, deployment: Deployment, record: Recorded, there: remains.Remains
) -> tuple[tuple[drift_diff.Diff, ...], tuple[Kept, ...]]:
    if not record.deployed:
        return (), ()
    hide = Redactor(known_secrets(deployment.credentials, paths.secrets_dir(target.name), target.settings))
    diffs, left_alone = drift_diff.look(ssh, drift_diff.as_recorded(deployment, record.roots), hide)
    return reorganisation.by_hand(diffs, record, there), left_alone


def obstacles(survey: Survey, ssh: Ssh, narrator: Narrator) -> list[Finding]:
    """Everything that would stop it, as if data and containers had changed places."""
    facts, record, settings = survey.deployment.facts, survey.record, survey.deployment.settings
    if record.roots is None or record.place:
        facts = replace(facts, roots=roots_of(settings), state_place=settings.state_dir())
    if survey.plan.user:
        # It gets the number; whether that is free, as a user's and as a group's, is asked as for one that is not there yet.
        facts = replace(facts, service_user_uid="")
    making_room = {port for each in survey.plan.displaced for port in each.ports}
    if record.services.keys() & {"gateway"} and record.services["gateway"].container in facts.containers:
        making_room |= {each.port for each in record.services.values() if each.port}
    listeners = tuple(each for each in facts.listeners if each.port not in making_room)
    there = replace(facts, listeners=listeners)
    then = replace(survey.deployment, facts=there, present=survey.before.present)
    return [*survey.plan.obstacles, *lifecycle.find_obstacles(ssh, then, narrator, waits_for_lock=True)]


def run(target: Target, wishes: Wishes, narrator: Narrator) -> int:
    """All of it; the exit status. Raises AtelierError with what failed and where that leaves the host."""
    ssh = operate.connected(target, narrator)
    consent = Consent(target, wishes, narrator)
    if not lifecycle.with_restart(
        target, ssh, lambda: _carry_out(target, ssh, wishes, narrator, consent), wishes.reboot, narrator
    ):
        return 1
    verified = operate.quick_verify(target, narrator) == 0
    operate.print_access(target, narrator)
    return 0 if verified else 1


def _carry_out(target: Target, ssh: Ssh, wishes: Wishes, narrator: Narrator, consent: "Consent") -> bool:
    """All of it under the host's lock; whether nothing stood in the way. Raises RestartNeededError where it goes on after one."""
    with lifecycle.host_lock(ssh):
        survey = repaired(target, ssh, wishes, narrator, consent)
        brought = old_host.bring(survey.target, wishes.old, ssh, survey.before, narrator) if wishes.old else None
        if brought is not None:
            consent.brought += brought
            survey = look(target, ssh, wishes, narrator)
            consent.tell(survey)
        if found := obstacles(survey, ssh, narrator):
            operate.print_findings(found, narrator, "this reprovision")
            return False
        operate.print_gpu_plan(survey.deployment.gpu, narrator)
        consent.require(survey.plan)
        Work(survey, ssh, narrator, wishes, consent.repaired, consent.brought).carry_out()
    return True


class Consent:
    """What was told, agreed to and done so far: a plan that turns out longer is told, and asked about, again.

    repaired and brought: what was repaired, and the bytes that came from an old host.
    """

    def __init__(self, target: Target, wishes: Wishes, narrator: Narrator) -> None:
        self._target, self._wishes, self._narrator = target, wishes, narrator
        self._told, self._agreed = set[str](), set[tuple[str, str]]()
        self.repaired, self.brought = list[Repair](), 0

    def tell(self, survey: Survey) -> None:
        """Print the plan, unless it holds nothing that was not printed before."""
        lines = {*survey.plan.lines()}
        if not self._told or lines - self._told:
            tell(survey, self._narrator)
        self._told |= lines or {""}

    def require(self, plan: Reorganisation) -> None:
        """Raises AtelierError where the plan needs a yes and does not get it."""
        asked = plan.consequences() - self._agreed
        if asked and not self._wishes.yes and not self._narrator.ask(f"Do this to {self._target.name}?"):
            more = " more" if self.repaired else ""
            raise AtelierError(
                f"nothing{more} was changed", "run the same command again with YES=1, or answer y at a terminal"
            )
        self._agreed |= asked


def repaired(target: Target, ssh: Ssh, wishes: Wishes, narrator: Narrator, consent: Consent) -> Survey:
    """A survey of the host when nothing is left on it that is for us to repair. Raises AtelierError.

    In rounds: what is broken hides what else is, as packages that do not fit hide an expired key, and a dead Docker its containers.
    """
    done = list[Repair]()
    for _ in range(ROUNDS):
        survey = look(target, ssh, wishes, narrator)
        consent.tell(survey)
        mending.require_possible(survey.plan.repairs)
        for repair in (still := mending.require_helped(done, survey.plan.repairs)):
            narrator.say(f"  {repair.problem} still: {repair.remedy}", style="yellow")
        ours = [repair for repair in survey.plan.repairs if repair.what and repair not in still]
        if not ours:
            left = tuple(repair for repair in survey.plan.repairs if repair not in still)
            return replace(survey, plan=replace(survey.plan, repairs=left))
        consent.require(survey.plan)
        consent.repaired += ours
        mending.mend(ssh, ours, narrator)
        done += ours
    raise AtelierError(
        f"{ROUNDS} rounds of repairs, and each found something else: {'; '.join(repair.problem for repair in ours)}",
        f"see {target.command('doctor')}, {repairs.AGAIN}",
    )


def tell(survey: Survey, narrator: Narrator) -> None:
    """Print the plan."""
    stored = store.load(paths.secrets_dir(survey.target.name))
    if known := new_machine.sentence(survey.target.name, survey.deployment.facts, stored):
        narrator.say(f"  {known}")
    if survey.begun:
        narrator.say("  A reprovision was not finished; this finishes it.", style="yellow")
    if survey.plan.is_empty():
        narrator.say("  nothing moves, makes room or goes", style="green")
    for line in survey.plan.lines():
        narrator.say(f"  {line}")


class Watch:
    """How long each service did not answer, seen from this computer: at the address that it has and at the one that it gets.

    A container of a stack that was here before answers when anything comes from its port.
    """

    def __init__(self, survey: Survey, ssh: Ssh) -> None:
        self._survey, self._ssh = survey, ssh
        self._samples: dict[str, list[tuple[float, bool]]] = {}
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._forwards = contextlib.ExitStack()

    def __enter__(self) -> "Watch":
        settings, record = self._survey.target.settings, self._survey.record
        former = self._survey.journal.previous
        watched = bool(record.services or former)
        verify = trust(lifecycle.read_anchor(self._survey.target)) if watched else True
        gets = {name: service.port for name, service in settings.enabled().items()}
        has = {name: each.port for name, each in record.services.items() if each.port and name in gets}
        had = settings.model_copy(update={"bind_address": record.bind_address or settings.bind_address}).own_address()
        urls: dict[str, list[str]] = {name: [] for name in gets}
        for ports, address in ((gets, settings.own_address()), (has, had)):
            local = self._forwards.enter_context(self._ssh.forward(ports, address)) if ports else {}
            for name, port in local.items():
                urls[name].append(f"{settings.scheme()}://127.0.0.1:{port}/healthz")
        for each in former:
            ports = {each.service: each.ports[0]} if each.running and each.ports and each.service in gets else {}
            local = self._forwards.enter_context(self._ssh.forward(ports)) if ports else {}
            for name, port in local.items():
                urls[name].append(f"http://127.0.0.1:{port}/")
        for name in urls if watched else ():
            samples = self._samples.setdefault(name, [])
            self._threads.append(threading.Thread(target=self._ask, args=(urls[name], samples, verify), daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(AtelierError):
            self._forwards.close()

    def away(self) -> dict[str, str]:
        """By service, in words."""
        return {name: reorganisation.away(samples) for name, samples in self._samples.items() if samples}

    def _ask(self, urls: Sequence[str], samples: list[tuple[float, bool]], verify: object) -> None:
        with httpx.Client(verify=verify, timeout=2, trust_env=False) as client:  # type: ignore[arg-type]
            while not self._ended.wait(LOOK):
                samples.append((time.monotonic(), any(self._answers(client, url) for url in urls)))

    @staticmethod
    def _answers(client: httpx.Client, url: str) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            status = client.get(url).status_code
            return status == 200 or not url.endswith("/healthz")
        return False


class Work:
    """Carries one reprovision out."""

    def __init__(
        self,
        survey: Survey,
        ssh: Ssh,
        narrator: Narrator,
        wishes: Wishes,
        repairs_done: Sequence[Repair] = (),
        brought: int = 0,
    ) -> None:
        self.repairs_done, self.brought = repairs_done, brought
        self.survey, self.ssh, self.narrator, self.wishes = survey, ssh, narrator, wishes
        self.target, self.plan = survey.target, survey.plan
        self.settings: Settings = survey.deployment.settings
        self.journal = survey.journal
        self.renamed = self.copied = 0
        self.gateway = ""
        self.stopped: list[str] = []
        self.removed_networks: tuple[str, ...] = ()
        self.watchers_stopped = False
        self.moved = any(move.how == "switched" for move in survey.plan.moves)

    def carry_out(self) -> None:
        """All of it. Raises AtelierError with what failed and where that leaves the host."""
        started = time.monotonic()
        if self.repairs_done:
            told = lifecycle.audit_line([repair.problem for repair in self.repairs_done], "repaired")
            lifecycle.append_audit(self.ssh, self.survey.before.settings, told)
        if self.plan.is_empty() and not self.survey.begun:
            with Watch(self.survey, self.ssh) as watch:
                self._deploy()
            self._say_summary(watch, time.monotonic() - started)
            return
        if not self.journal.switching:
            self._note(replace(self.journal, made=tuple(sorted({*self.journal.made, *self._missing()}))))
        if self.plan.pending():
            self._bring_program()
        lifecycle.keep_credentials(self.target, self.survey.deployment)
        with Watch(self.survey, self.ssh) as watch:
            self._prepare()
            with self._coming_back():
                self._change_places()
                self._deploy()
                self._prove()
        self._clear()
        changed = [f"{move.kind}: {move.source} -> {move.target}" for move in self.journal.moves]
        changed += [f"removed {kind}: {name}" for kind, names in self._removals().items() for name in names]
        lifecycle.append_audit(self.ssh, self.settings, lifecycle.audit_line(changed, "reprovisioned"))
        self._say_summary(watch, time.monotonic() - started)

    def _step(self, stage: str, name: str, script: str, stdin: bytes = b"") -> None:
        takedown.carry_out(self.ssh, Step(stage, name, script, stdin), self.narrator)

    def _note(self, journal: Journal) -> None:
        self.journal, file = journal, journal_file(journal)
        script = f"mkdir -p {recorded.ANCHOR_DIRECTORY} && {file.install_script()} && sync {recorded.ANCHOR_DIRECTORY}"
        self.ssh.run(lifecycle.guard() + script, stdin=file.content, check=True)

    def _missing(self) -> list[str]:
        """The directories that the moves will make: they are ours then, and go with us."""
        targets = {path for move in self.journal.moves for path in (move.target, *map(str, Path(move.target).parents))}
        pairs = [(move.source, move.target) for move in self.journal.moves]
        folders = self.survey.record.created.get("directories", frozenset())
        targets |= {new_place(folder, pairs) for folder in folders} - folders
        script = f'for p in {shlex.join(sorted(targets))}; do [ -e "$p" ] || echo "$p"; done'
        return self.ssh.run(script, check=True).stdout.splitlines() if targets else []

    # What disturbs nobody

    def _prepare(self) -> None:
        from stages import provision

        if self.journal.switching:
            return
        before = self.survey.before
        if self.survey.found.previous.inside:
            provision.declare(self.target, self.ssh, before, self.narrator)
            self._take_out(before.settings, self.survey.found.previous)
        outcome = provision.prepare(self.target, self.ssh, before, self.narrator)
        if outcome.restart:
            raise RestartNeededError(self.target.name, outcome.restart)
        self._adopt(before.settings, self.survey.found.previous)
        if step := self.plan.prepares_data():
            self._relocate("copy", step)

    def _adopt(self, settings: Settings, previous: PreviousStack) -> None:
        """What a previous stack has, while it runs, and once more when nobody writes to it."""
        if previous:
            self.narrator.begin("Data", "Copy and verify what the previous stack has")
            adopted = previous_stack.bring(self.ssh, settings, previous, self.narrator)
            self.copied += adopted.bytes
            self.narrator.end(changed=bool(adopted.files))

    def _adopt_the_rest(self) -> None:
        """What came to lie in containers alone between the first look at them and their stop; after this they may go."""
        if not self.journal.previous:
            return
        last = previous_stack.look(self.ssh, self.settings, self.wishes.root, roots_of(self.settings))
        self._take_out(self.settings, last)
        self._adopt(self.settings, last)
        keeps = {each.id: each.keeps for each in (*last.containers, *last.aside)}
        previous = tuple(replace(each, keeps=keeps.get(each.id, each.keeps)) for each in self.journal.previous)
        if previous != self.journal.previous:
            self._note(replace(self.journal, previous=previous))
            for each in previous:
                if each.keeps:
                    self.narrator.say(f"  {each.aside}: {each.keeps}", style="yellow")

    def _take_out(self, settings: Settings, previous: PreviousStack) -> None:
        if previous.inside:
            self.narrator.begin("Data", "Take out of containers what only they have")
            previous_stack.take_out(self.ssh, settings, previous)
            self.narrator.end(changed=True)

    def _bring_program(self) -> None:
        mounts = {(move.kind, move.source): move.target_mount for move in self.plan.moves}
        moves = [
            replace(move, target_mount=mounts.get((move.kind, move.source)) or move.target_mount)
            for move in self.journal.moves
        ]
        job = _job(self.settings, moves)
        self.ssh.run(lifecycle.guard() + job.install_script(), stdin=job.content, check=True)
        script = lifecycle.guard() + relocation_host.install_script()
        self.ssh.run(script, stdin=relocation_host.archive(), check=True)

    def _relocate(self, verb: str, name: str) -> relocation_host.Answer:
        self.narrator.begin("Data", name)
        answer = relocation_host.ask(self.ssh, lifecycle.guard() + relocation_host.shell(verb), self.narrator.output)
        if answer.error:
            raise AtelierError(
                f"{name}: {answer.error}", "then run the same command again; it continues where this one stopped"
            )
        self._count(answer.done or {})
        self.narrator.end(changed=True)
        return answer

    def _count(self, done: Mapping[str, Done]) -> None:
        for source, one in done.items():
            self.renamed += one.renamed_bytes
            self.copied += one.copied_bytes
            for name, into in one.aside.items():
                self.narrator.say(
                    f"  {source}/{name} is called {into} now: another of its name lay there", style="yellow"
                )
            for name, why in one.left.items():
                self.narrator.say(f"  {source}/{name} stays: {why}", style="yellow")

    # What users notice

    def _change_places(self) -> None:
        from stages import provision

        self.gateway = self._gateway_id()
        # Now, as nobody has to wait for it yet: the driver may have been installed since it was decided.
        deployment = lifecycle.decide_again(self.target, self.ssh, self.survey.deployment)
        lifecycle.keep_credentials(self.target, deployment)
        self._note(replace(self.journal, switching=True))
        self._displace(displacement.aside_script, self._aside(), "Have containers step aside")
        self._stop_writers()
        if self.plan.pending():
            # Of what goes name by name nobody could tell afterwards how far it came.
            self.moved = self.moved or any(move.how == "merge" for move in self.plan.moves)
            self._relocate("switch", "Change the places of directories")
            self.moved = True
        self._settle()
        provision.switch(self.ssh, deployment, self.narrator)

    def _aside(self) -> tuple[Displaced, ...]:
        return (*self.journal.displaced, *self.journal.previous)

    def _gateway_id(self) -> str:
        """The gateway that was there before it was begun."""
        name, before = self.settings.gateway_container, self.journal.ours
        return next((each.id for each in self.survey.found.containers if each.name == name and each.id in before), "")

    def _displace(
        self, script: Callable[[Iterable[Displaced]], str], displaced: Sequence[Displaced], name: str
    ) -> displacement.Outcome:
        if not displaced:
            return displacement.Outcome()
        self.narrator.begin("Containers", name)
        outcome = displacement.parse(self.ssh.run(lifecycle.guard() + script(displaced), timeout=300).stdout)
        if outcome.failed:
            names = {each.id: each.name for each in displaced}
            told = "; ".join(f"{names.get(one, 'Docker')}: {why}" for one, why in outcome.failed.items())
            raise AtelierError(f"{name}: {told}", "mend that, then run the same command again")
        self.narrator.end(changed=bool(outcome.done))
        return outcome

    def _stop_writers(self) -> None:
        if not (self.plan.pending() or self.plan.owner):
            return
        # Disabled: started by a boot, they would make the old places anew, and fetch all weights into them.
        script = (
            f"systemctl disable -q --now {monitoring.TIMER} {weights_unit.UNIT} 2>/dev/null; "
            f"systemctl stop {monitoring.TIMER} {monitoring.SERVICE} {weights_unit.UNIT} 2>/dev/null; :"
        )
        self.watchers_stopped = True
        self._step("Data", "Stop what fetches weights and looks at the host", script)
        names = {each.container for each in self.survey.record.services.values()}
        running = sorted(each.name for each in self.survey.found.containers if each.name in names and each.running)
        if self.plan.stops_services() and running:
            there = f"for c in {shlex.join(running)}; do ! docker inspect $c >/dev/null 2>&1 || docker stop -t {STOP} $c || exit 1; done"
            self.stopped = running
            self._step("Containers", f"Stop {', '.join(running)}", f"{{ {there}; }} >/dev/null")

    def _settle(self) -> None:
        """What the host knows of itself, now that its data lies in other places."""
        if not (self.journal.moves or self.journal.owner):
            return
        path = shlex.quote(f"{self.settings.state_dir()}/manifest.json")
        text = self.ssh.run(f"cat {path} 2>/dev/null; :", check=True).stdout
        files = list(recorded.anchor(self.settings, self.survey.deployment.credentials.instance))
        if text.strip():
            pairs = [(move.source, move.target) for move in self.journal.moves]
            moved = manifest.moved(text, pairs, version("atelier"), self.journal.made)
            files.append(File(f"{self.settings.state_dir()}/manifest.json", moved.encode(), 0o600))
        for file in files:
            content = file.content if isinstance(file, File) else b""
            self.ssh.run(lifecycle.guard() + file.install_script(), stdin=content, check=True)
        if self.journal.owner:
            had, gets = self.journal.owner
            if self.plan.user:
                self._step(
                    "Host",
                    f"Give {self.plan.user} the user id {gets}",
                    reorganisation.user_script(self.plan.user, gets),
                )
            # The containers that were stopped are of the former one.
            self.moved = True
            places = shlex.join([self.settings.outputs_path(), self.settings.users_path(), self.settings.state_dir()])
            # In each directory, not by path: whose these files are may put a link in the place of any directory on the way.
            found = f'find -H "$p" -xdev -uid {had} -execdir chown -h {gets}:{gets} {{}} +'
            script = f'for p in {places}; do [ ! -e "$p" ] || {found} || exit 1; done'
            self._step("Data", f"Give outputs and users' files to user id {gets}", script)

    def _deploy(self) -> None:
        from stages import provision

        deployment = lifecycle.prepare(
            self.target,
            self.ssh,
            self.wishes.sources,
            self.narrator,
            choose=lambda _: self.survey.deployment.credentials,
        )
        outcome = provision.deploy_with_driver(self.target, self.ssh, deployment, self.narrator)
        if outcome.restart:
            raise RestartNeededError(self.target.name, outcome.restart)
        rotation.conclude(self.target, self.ssh, deployment, self.narrator)
        self.narrator.say(
            f"Deployed: {len(outcome.changed)} of {outcome.operations} operations changed something, "
            f"{outcome.commands} SSH commands."
        )

    def _prove(self) -> None:
        groups = {check.group for check in existing(self.settings)} - {*AFTER_REMOVAL}
        if operate.run_verify(self.target, self.narrator, quick=True, groups=tuple(sorted(groups))) != 0:
            raise AtelierError(
                "the services did not pass, so nothing was removed", f"see {self.target.command('doctor')}"
            )

    @contextlib.contextmanager
    def _coming_back(self) -> Iterator[None]:
        """Where what follows fails, the containers that stepped aside come back, as far as that serves anybody."""
        try:
            yield
        except KeyboardInterrupt:
            self.narrator.say("  Interrupted: the same command finishes what was begun.", style="yellow")
            raise
        except RestartNeededError:
            raise
        except AtelierError as error:
            told = ""
            with contextlib.suppress(AtelierError):
                told = self._come_back()
            raise AtelierError(f"{error.message}{told}", error.hint) from None
        except Exception:
            # A fault of ours: it must not cost anybody what ran before.
            with contextlib.suppress(AtelierError):
                self.narrator.say(f"  It failed.{self._come_back()}", style="yellow")
            raise

    def _come_back(self) -> str:
        """Bring back what the data or the gateway have not left behind; in words, where that leaves the host."""
        moved = self.moved or self._has_other_id() or any(self._is_moved(move) for move in self.journal.moves)
        now = parse_containers(self.ssh.run(CONTAINERS, timeout=60).stdout)
        gateway = next((each.id for each in now if each.name == self.settings.gateway_container), "")
        back = list(self.journal.previous)
        back += self.journal.displaced if not moved and gateway == self.gateway else ()
        gone: frozenset[str] = frozenset()
        if back:
            # Those that a run which was killed has made are in the way as well.
            before = {*self.journal.ours, *(each.id for each in back)}
            fresh = [each.name for each in now if each.ours and each.id not in before]
            if fresh:
                self._step("Containers", f"Remove {', '.join(fresh)}", f"docker rm -f {shlex.join(fresh)} >/dev/null")
            gone = self._displace(displacement.back_script, back, "Bring back what stepped aside").gone
        if self.watchers_stopped and not moved:
            self._step("Data", "Let the host look at itself and fetch again", WATCH_AGAIN)
        if self.stopped and not moved:
            self._step("Containers", "Start the services again", f"docker start {shlex.join(self.stopped)} >/dev/null")
        if moved:
            renumbered = f"the data is of user id {self.settings.service_uid} now"
            there = "the data lies in its new place" if self.journal.moves else renumbered
            told = f"{there}: the same command goes on from there"
        else:
            self._note(replace(self.journal, switching=len(back) < len(self._aside())))
            told = (
                ""
                if len(back) == len(self._aside())
                else "what stepped aside stays so: the same command goes on from there"
            )
        names = sorted(each.name for each in back if each.id not in gone)
        again = f"\n    {', '.join(names)} run again as before" if names else ""
        lost = sorted(each.name for each in back if each.id in gone)
        again += f"\n    {', '.join(lost)} cannot come back: somebody removed them" if lost else ""
        return f"{again}\n    {told}" if told else again

    def _has_other_id(self) -> bool:
        """Whether the service user has its new id already, by an earlier run."""
        ask = f'[ "$(getent passwd {shlex.quote(self.plan.user)} | cut -d: -f3)" = {self.settings.service_uid} ]'
        return bool(self.plan.user) and self.ssh.run(ask).status == 0

    def _is_moved(self, move: Move) -> bool:
        """Whether the new place counts: the old one is gone, or what is in it was copied and has been switched from."""
        mark = f"{move.target}/{OURS}/{SWITCHED}"
        return self.ssh.run(f"[ -e {shlex.quote(move.source)} ] && [ ! -e {shlex.quote(mark)} ]").status != 0

    # What goes when all has passed

    def _clear(self) -> None:
        if self.plan.pending():
            answer = self._relocate("finish", "Empty the old places")
            for source, removed in (answer.removed or {}).items():
                for name, why in removed.left.items():
                    self.narrator.say(f"  {source}/{name} stays: {why}", style="yellow")
        self._adopt_the_rest()
        going = reorganisation.going(self.journal, self.survey.found)
        outcome = self._displace(displacement.remove_script, going, "Remove the containers that made room")
        self.removed_networks = outcome.networks
        for step in reorganisation.removal_steps(self.plan, self.settings.service_uid):
            takedown.carry_out(self.ssh, step, self.narrator)
        state = self.settings.state_dir()
        text = self.ssh.run(f"cat {shlex.quote(state)}/manifest.json", check=True).stdout
        declared = {project.container for project in self.survey.deployment.projects()}
        gone = reorganisation.forgotten(self.plan, self.settings.models_path(), declared)
        left = File(f"{state}/manifest.json", manifest.without_names(text, gone, version("atelier")).encode(), 0o600)
        self.ssh.run(lifecycle.guard() + left.install_script(), stdin=left.content, check=True)
        script = f"rm -rf {JOURNAL} {relocation_host.JOB} {RUN} && sync {recorded.ANCHOR_DIRECTORY}"
        self.ssh.run(lifecycle.guard() + script, check=True)

    def _removals(self) -> dict[str, tuple[str, ...]]:
        """What was removed: of the networks of a previous stack, those that nobody else was in."""
        removals = dict(self.plan.removals)
        networks = tuple(sorted({*removals.get("networks", ()), *self.removed_networks}))
        return {**removals, "networks": networks} if networks else removals  # in the plan's order

    def _say_summary(self, watch: Watch, seconds: float) -> None:
        from stages import provision

        done = replace(self.plan, removals=self._removals())
        amounts = Amounts(provision.fetched(), self.brought, self.renamed, self.copied)
        line = reorganisation.summary(done, amounts, watch.away())
        for told in repairs.lines(self.repairs_done):
            self.narrator.say(f"Repaired: {told}")
        self.narrator.say(line)
        self.narrator.say(f"It took {seconds:.0f} s.")
