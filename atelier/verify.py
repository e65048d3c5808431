"""`make verify`: runs the checks of tests/verify against a host and turns what they saw into a published report.

The checks run under pytest in a process of their own, over the SSH connection that this process holds open. They hand
back one JSON line each through a pipe; a check that hands back nothing, or a pytest that crashes, fails the run.
"""

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from typing_extensions import override

from atelier import credentials, paths, recorded
from atelier.certificates import Anchor, Certificate
from atelier.checks import Check, existing, required, select
from atelier.console import Narrator
from atelier.credentials import Credentials
from atelier.doctor.redact import known_secrets
from atelier.errors import AtelierError
from atelier.forked import Forked
from atelier.history import comparable, measured, past_reports
from atelier.lifecycle import deploy_at_work, read_anchor, read_certificate, sandbox_settings
from atelier.models import Weight, weights_for
from atelier.report import (
    AccessMatrix,
    CheckResult,
    Metric,
    Report,
    ReportImage,
    Verdict,
    caveats,
    headline,
    judge,
    redact,
    stand_ins,
    timestamp,
)
from atelier.report.judgement import RANDOM, counted
from atelier.report.model import NOT_CHOSEN, REPORT_PAGE, Step
from atelier.report.publication import publish
from atelier.report.redaction import printable
from atelier.settings import Settings
from atelier.ssh import Ssh
from atelier.target import Target
from sandbox import shared

Say = Callable[[str, str], object]
"""Prints one line; the second argument is a style of rich."""

EXIT_STATUS: dict[Verdict, int] = {"passed": 0, "failed": 1, "incomplete": 3}

CHECKS = paths.PROJECT / "tests" / "verify"
STYLES = {"passed": "green", "failed": "bold red", "warning": "yellow", "skipped": "dim", "incomplete": "yellow"}
LONGEST = 1500
"""Characters that are kept of what a check saw."""
PATIENCE = 15
"""Seconds that pytest gets to end after an interrupt."""

VERSIONS = (
    '. /etc/os-release; echo "system=$PRETTY_NAME"; echo "kernel=$(uname -r)"; '
    "echo \"docker=$(timeout 20 docker version --format '{{.Server.Version}}')\"; "
    'echo "compose=$(docker compose version --short)"'
)


class InterruptedRun(KeyboardInterrupt):
    """Ctrl-C during a run, after its report was published. verdict: that of the report."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict


def secret_strings(known: Credentials, certificate: Certificate | None) -> list[str]:
    """Everything of a deployment that no log or argument may hold; of a private key each line."""
    accounts = [(account.user, account.password) for account in (known.comfyui, known.forge) if account.password]
    passwords = [text for user, password in accounts for text in (password, f"{user}:{password}")]
    hashes = [known.comfyui.password_bcrypt, known.forge.password_bcrypt]
    lines = [line for line in certificate.key.splitlines() if line and "-----" not in line] if certificate else []
    return [*hashes, *passwords, known.comfyui_cookie_key, *lines]


def read_deployed(ssh: Ssh, settings: Settings) -> dict[str, Any]:
    """What the host says was deployed to it. Raises AtelierError where nothing was, or other settings were."""
    answer = ssh.run(recorded.script(settings, whole=False), check=True)
    known = recorded.parse(recorded.documents(answer.stdout))
    refusal = known.refusal()
    if obstacles := [refusal] if refusal else recorded.elsewhere(known.roots, known.place, settings):
        raise AtelierError(f"{ssh.destination.host}: {obstacles[0].problem}", obstacles[0].remedy)
    if "deployed" in known.damaged:
        raise AtelierError(f"{ssh.destination.host}: {known.place}/deployed.json is damaged", "run `make deploy`")
    if not known.deployed:
        raise AtelierError(f"{ssh.destination.host}: nothing is deployed here", "run `make deploy` first")
    return dict(known.deployed)


@dataclass(frozen=True)
class Reach:
    """How this computer reaches the host's services: base URL by name, and what they must show."""

    urls: dict[str, str]
    anchor: Anchor | None


class _ForOneName(ssl.SSLContext):
    """Asks for one name whatever a URL says: the way to it is a forward on this computer."""

    name = ""

    @override
    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        return super().wrap_socket(
            *arguments, **{**options, "server_hostname": self.name or options.get("server_hostname")}
        )

    @override
    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        return super().wrap_bio(
            *arguments, **{**options, "server_hostname": self.name or options.get("server_hostname")}
        )


def trust(anchor: Anchor | None) -> ssl.SSLContext | bool:
    """What a client verifies: these roots and this name and nothing else, or as usual where there is no TLS."""
    if anchor is None:
        return True
    context = _ForOneName(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.name = bool(anchor.name), anchor.name
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # A WebSocket reads and writes in two threads. With TLS 1.3 a ticket comes after the handshake, and where one thread reads it
    # while the other sends the request, about 3 requests in 1000 never leave.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if anchor.roots:
        context.load_verify_locations(cadata=anchor.roots)
    if anchor.system:
        context.load_default_certs()
    return context


@contextmanager
def services(target: Target, ssh: Ssh) -> Iterator[Reach]:
    """The host's services, forwarded over SSH to this computer."""
    settings = target.settings
    ports = {name: service.port for name, service in settings.enabled().items()}
    with ssh.forward(ports, settings.own_address()) as local:
        urls = {name: f"{settings.scheme()}://127.0.0.1:{port}" for name, port in local.items()}
        yield Reach(urls, read_anchor(target))


def verify(
    target: Target,
    *,
    quick: bool = False,
    full: bool = False,
    deep: bool = False,
    groups: Collection[str] = (),
    checks: Collection[str] = (),
    say: Say | None = None,
    publishes: bool = True,
    forks: bool = False,
) -> Report:
    """Prove that a host does what it should, and publish the report; its verdict is the answer.

    quick: only the quick checks. full: those that restart services and the host, too. deep: every byte of the weights,
    too. groups, checks: only these (see `atelier.checks.select`). say: prints a line.
    An interrupt publishes what was seen so far, at best as incomplete, and raises InterruptedRun. publishes: False for a
    look that is not one of the host's runs; an interrupt of it raises KeyboardInterrupt. forks: see `atelier.forked`.
    Raises AtelierError before the first check when there is nothing to verify: unknown names, no connection, nothing
    deployed, no credentials here.
    """
    say = say or Narrator().say
    # A name that fits nothing is told before anything is contacted.
    select(existing(target.settings), quick=quick, full=full, deep=deep, groups=groups, ids=checks)
    known = credentials.load(paths.secrets_dir(target.name))
    if known is None:
        raise AtelierError(
            f"no credentials of {target.name} on this computer",
            "run `make deploy`, or copy `.secrets/` from where it ran",
        )
    ssh = target.ssh()
    ssh.connect()
    deployed = read_deployed(ssh, target.settings)
    weights = _wanted_weights(target, deployed)
    deploying = deploy_at_work(ssh) if publishes else ""
    if deploying:
        say(f"A deploy is at work on this host: {deploying}.", "yellow")
    declared = existing(target.settings, {weight.name for weight in weights})
    selected = select(declared, quick=quick, full=full, deep=deep, groups=groups, ids=checks)
    asked = {"QUICK": quick, "FULL": full, "DEEP": deep}
    started = datetime.now(timezone.utc)
    if deployed["sources"] == "upstream" and shared.REPOSITORY in {weight.repository for weight in weights}:
        deployed["weights"] = RANDOM
    unreal = stand_ins(deployed)
    for sentence in unreal:
        say(sentence, "yellow")
    past = comparable(past_reports(paths.reports_dir(target.name)), bool(unreal), deployed)
    with tempfile.TemporaryDirectory(prefix="atelier-verify-") as folder, services(target, ssh) as reach:
        work = Path(folder)
        certificate = read_certificate(target)
        secrets = [
            *secret_strings(known, certificate),
            *known_secrets(known, paths.secrets_dir(target.name), target.settings),
            ssh._sudo_password,
        ]
        context = {
            "target": {
                "name": target.name,
                "kind": target.kind,
                "host": target.destination.host,
                "user": target.destination.user,
                "port": target.destination.port,
                "config": str(target.destination.config) if target.destination.config else None,
                "sudo": ssh._sudo,
                "sudo_password": ssh._sudo_password,
            },
            # A sandbox is given some of what nobody said.
            "settings": target.settings.model_dump(exclude_unset=True),
            "secrets_dir": str(paths.secrets_dir(target.name)),
            "deployed": deployed,
            "weights": [weight.model_dump() for weight in weights],
            "urls": reach.urls,
            "certificate": asdict(certificate) if certificate else None,
            "anchor": asdict(reach.anchor) if reach.anchor else None,
            "work": str(work),
            "selected": [check.id for check in selected],
            "history": measured(past),
        }
        run = Run(work, selected, secrets, say, forks)
        run.execute(context)
        results = [run.result(check) for check in declared]
        verdict = judge(results, required(selected), crashed=run.crashed)
        report = Report(
            host=target.name,
            started=timestamp(started),
            finished=timestamp(datetime.now(timezone.utc)),
            verdict="incomplete" if run.interrupted and verdict == "passed" else verdict,
            doubles=bool(unreal),
            checks=results,
            versions=(_versions(ssh, deployed) if publishes else {}) | run.versions,
            images=run.images,
            matrices=run.matrices,
            metrics=run.metrics,
            command=" ".join([target.command("verify"), *(f"{name}=1" for name, on in asked.items() if on)]),
            broke_off=run.broke_off,
            deploying=deploying or (_deploying_now(ssh) if publishes else ""),
        )
        if not publishes:
            if run.interrupted:
                raise KeyboardInterrupt
            return report
        place = publish(report, paths.reports_dir(target.name), secrets, work, past)
    _conclude(report, place, say)
    if run.interrupted:
        raise InterruptedRun(report.verdict)
    return report


def _wanted_weights(target: Target, deployed: dict[str, Any]) -> tuple[Weight, ...]:
    """The weights that the settings ask for now; a sandbox's are those made for what it was deployed from."""
    settings = sandbox_settings(target.settings, deployed["sources"]) if target.kind == "sandbox" else target.settings
    return weights_for(settings, paths.PROJECT)


def _versions(ssh: Ssh, deployed: dict[str, Any]) -> dict[str, str]:
    lines: list[str] = []
    with contextlib.suppress(AtelierError):  # an interrupted restart of the host leaves a report, too
        lines = ssh.run(VERSIONS, timeout=30).stdout.splitlines()
    release = {"atelier": str(deployed.get("release")), "sources": str(deployed.get("sources"))}
    release |= {name: str(deployed[name]) for name in ("profile", "weights") if name in deployed}
    images = {f"image {name}": image["tag"] for name, image in deployed.get("images", {}).items()}
    return {name: value for name, _, value in (line.partition("=") for line in lines) if value} | release | images


def _deploying_now(ssh: Ssh) -> str:
    with contextlib.suppress(AtelierError):  # as above
        return deploy_at_work(ssh)
    return ""


def _conclude(report: Report, place: Path, say: Say) -> None:
    unselected = sum(check.observed == NOT_CHOSEN for check in report.checks)
    if unselected:
        say(f"{counted(unselected, 'further check')} not part of this run.", "dim")
    for sentence in caveats(report):
        say(sentence, "yellow")
    say(f"Report: {os.path.relpath(place / REPORT_PAGE)}", "")
    say(f"Verdict: {report.verdict}. {headline(report)}", STYLES[report.verdict])


class Run:
    """One run of pytest: collects and prints what each check hands back."""

    def __init__(self, work: Path, selected: list[Check], secrets: list[str], say: Say, forks: bool = False) -> None:
        self.work, self.selected, self.secrets, self.say, self.forks = work, selected, secrets, say, forks
        self.records: dict[str, CheckResult] = {}
        self.versions: dict[str, str] = {}
        self.images: list[ReportImage] = []
        self.matrices: list[AccessMatrix] = []
        self.metrics: list[Metric] = []
        self.broke_off = ""
        self.crashed = False
        self.interrupted = False
        self._finished = False

    def execute(self, context: dict[str, Any]) -> None:
        """Run the selected checks; an interrupt ends them early."""
        reader, writer = os.pipe()
        path = self.work / "context.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({**context, "results": writer}), encoding="utf-8")
        flags = ["-q", "-p", "no:cacheprovider", f"--rootdir={CHECKS}", f"--confcutdir={CHECKS}", f"--context={path}"]
        # Nobody's options and plugins decide about a verdict.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        log = self.work / "pytest.log"
        with log.open("wb") as output:
            process = self._start([*flags, str(CHECKS)], environment, output, writer)
        os.close(writer)
        with self._interruptible(process), os.fdopen(reader, encoding="utf-8") as records:
            for line in records:
                if line.endswith("\n"):  # else pytest was killed in the middle of it
                    self._take(json.loads(line))
            status = process.wait()
        if self.interrupted:
            self.broke_off = "interrupted"
            return
        failed = any(record.verdict == "failed" for record in self.records.values())
        if status not in (0, 1) or not self._finished or (status == 1 and not failed) or not self.records:
            self.crashed = True
            self.broke_off = f"pytest ended with {status} and {len(self.records)} results"
            tail = redact(log.read_text(encoding="utf-8", errors="replace"), self.secrets).splitlines()[-20:]
            self.say(f"{self.broke_off}:", STYLES["failed"])
            for line in tail:
                self.say(f"    {line}", "")

    def _start(
        self, arguments: list[str], environment: dict[str, str], output: IO[bytes], writer: int
    ) -> "subprocess.Popen[bytes] | Forked":
        # A session of its own: Ctrl-C reaches it once, through `_interruptible`, and it can end what it began.
        if self.forks:
            return Forked(arguments, cwd=paths.PROJECT, environment=environment, output=output)
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=paths.PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            start_new_session=True,
        )

    @contextmanager
    def _interruptible(self, process: "subprocess.Popen[bytes] | Forked") -> Iterator[None]:
        """Pass Ctrl-C on to pytest, which then undoes what the check at work began; a second one, or PATIENCE, kills it."""

        def interrupt(*_: object) -> None:
            if self.interrupted:
                process.kill()
                return
            self.interrupted = True
            self.say("Interrupted: ending the checks ...", "yellow")
            process.send_signal(signal.SIGINT)
            killer = threading.Timer(PATIENCE, process.kill)
            killer.daemon = True
            killer.start()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            if process.poll() is None:  # we are leaving because something failed here
                process.kill()
                process.wait()

    def _take(self, record: dict[str, Any]) -> None:
        record = redact(record, self.secrets)
        if "finished" in record:
            self._finished = True
        elif "versions" in record:
            self.versions |= record["versions"]
        elif "image" in record:
            self.images.append(ReportImage.model_validate(record["image"]))
        elif "matrix" in record:
            self.matrices.append(AccessMatrix.model_validate(record["matrix"]))
        elif "metric" in record:
            self.metrics.append(Metric.model_validate(record["metric"]))
        else:
            check = next(check for check in self.selected if check.id == record["id"])
            if check.id in self.records:
                record |= {"verdict": "failed", "observed": "two tests in tests/verify claim this check"}
            self._add(check, record)

    def _add(self, check: Check, record: dict[str, Any]) -> None:
        red = record["verdict"] in ("failed", "warning")
        result = CheckResult(
            id=check.id,
            group=check.group,
            title=check.title,
            verdict=record["verdict"],
            seconds=round(record["seconds"], 3),
            expected=_tidy(record["expected"]),
            observed=_tidy(record["observed"]),
            hint=_tidy(record["hint"] or (check.hint if red else "")),
            requirement=check.requirement,
            required=not check.optional,
            steps=[Step(expected=_tidy(wanted), observed=_tidy(seen)) for wanted, seen in record.get("steps", [])],
        )
        self.records[check.id] = result
        style = STYLES[result.verdict]
        self.say(f"{result.verdict:8} {result.id:32} {result.title} ({result.seconds:.1f} s)", style)
        if result.verdict != "passed":
            for name in ("expected", "observed", "hint"):
                if value := getattr(result, name):
                    self.say(f"         {name}: {value}", "")

    def result(self, check: Check) -> CheckResult:
        """What a declared check saw, or why it saw nothing."""
        if check.id in self.records:
            return self.records[check.id]
        if check not in self.selected:
            reason = NOT_CHOSEN
        else:
            reason = "interrupted before its turn" if self.interrupted else "declared, but it did not run"
        return CheckResult(
            id=check.id,
            group=check.group,
            title=check.title,
            verdict="skipped",
            seconds=0,
            expected="",
            observed=reason,
            hint="",
            requirement=check.requirement,
            required=check in self.selected and not check.optional,
        )


def _tidy(text: str) -> str:
    """What a host or an application said, as one line that can be shown anywhere."""
    return printable(" ".join(text.split()))[:LONGEST]
