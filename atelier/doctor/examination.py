"""`make doctor`: ask the host, recognise, say what to do, and pack a support bundle where that does not suffice."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from atelier import credentials, lifecycle, paths
from atelier.console import Narrator
from atelier.doctor import bundle as bundles
from atelier.doctor.collect import SKIPPED, Source, collect
from atelier.doctor.diagnosis import Diagnosis, Evidence, Recognised, diagnose
from atelier.doctor.redact import Redactor, known_secrets
from atelier.doctor.signatures import aimed
from atelier.errors import AtelierError
from atelier.gpu.plan import GpuPlan, plan_gpu
from atelier.hostfacts import HostFacts
from atelier.ssh import Ssh
from atelier.target import Target

QUOTED = 3  # sources whose evidence is quoted


@dataclass(frozen=True)
class Judgement:
    """What a host with a GPU is, and what a deploy would decide about it; or why that is not known."""

    facts: HostFacts | None = None
    plan: GpuPlan | None = None
    problem: str = ""

    @property
    def well(self) -> bool:
        """Known, and a deploy would not refuse."""
        return not self.problem and not (self.plan and self.plan.refusals)


def run(target: Target, narrator: Narrator, *, bundle: bool = False) -> int:
    """Examine a host. 0 when nothing is wrong, 1 when something is, known or not. Raises AtelierError.

    bundle: write a support bundle in any case, not only for trouble that nothing explains.
    """
    settings = target.settings
    redact = Redactor(
        known_secrets(_stored(target), paths.secrets_dir(target.name), settings)  # also for the evidence that is shown
    )
    narrator.begin("Doctor", "Read logs and states of the host")
    ssh = target.ssh()
    ssh.connect()
    asked = time.time()
    sources = collect(ssh, settings)
    judgement = _judge(ssh, target)
    narrator.end(changed=False)
    diagnosis = diagnose(sources, settings, asked, judgement.facts)
    well = diagnosis.well and judgement.well
    said: Lines = [("  nothing is wrong", "green")] if well else []
    report = [*said, *_report(diagnosis, target, redact), *_report_plan(judgement, target), *_looked_at(sources)]
    for text, style in report:
        narrator.say(text, style=style)
    if bundle or diagnosis.unknown:
        _bundle(target, sources, judgement, [text for text, _ in report], redact, narrator)
    elif not well:
        narrator.say(f"  More for somebody who helps:  {target.command('doctor')} BUNDLE=1")
    return 0 if well else 1


def _stored(target: Target) -> credentials.Credentials | None:
    return credentials.load(paths.secrets_dir(target.name))


def _judge(ssh: Ssh, target: Target) -> Judgement:
    if target.settings.profile == "cpu":
        return Judgement()
    try:
        facts = lifecycle.gather(ssh, target)
        return Judgement(facts, plan_gpu(facts, target.settings))
    except AtelierError as error:
        return Judgement(problem=str(error))


Lines = list[tuple[str, str]]
"""What is said, each with its style."""


def _report(diagnosis: Diagnosis, target: Target, redact: Redactor) -> Lines:
    said: Lines = []
    for number, found in enumerate(diagnosis.present, 1):
        said += _say_finding(number, found, target, redact)
    if diagnosis.unhealthy:
        said.append(
            (
                "  Not as it should be:" if diagnosis.present else "  Something is wrong, and no known failure shows:",
                "red",
            )
        )
        said += [(f"    {redact(line)}", "") for line in diagnosis.unhealthy]
    if diagnosis.unreadable:
        said.append(("  Could not be read, so nothing is known of it:", "yellow"))
        said += [(f"    {redact(line)}", "") for line in diagnosis.unreadable]
    if diagnosis.over:
        said.append(("  Seen earlier and over by now:", "dim"))
        said += [(f"    {found.signature.title}  ({_when(found.evidence)})", "dim") for found in diagnosis.over]
    return said


def _looked_at(sources: Iterable[Source]) -> Lines:
    """What the answer rests on: old trouble is not told, so it must be known how far back was looked."""
    groups: dict[str, list[str]] = {}
    for source in sources:
        if source.text.startswith(SKIPPED):
            groups.setdefault(source.text.strip(), []).append(source.name)
        elif not source.problem:
            groups.setdefault(source.looked_at, []).append(source.name)
    return [("  Looked at:", "dim"), *((f"    {', '.join(names)}: {how}", "dim") for how, names in groups.items())]


def _say_finding(number: int, found: Recognised, target: Target, redact: Redactor) -> Lines:
    signature = found.signature
    said: Lines = [(f"  {number}. {signature.title}  [{signature.id}]", "bold red"), (f"     {signature.why}", "")]
    for step in signature.steps:
        where = "on the host:" if step.where == "host" else "here:"
        said.append((f"     -> {where:<12} {step.typed(target.argument, target.settings)}", ""))
    said += [(f"     seen: {_quote(evidence, redact)}", "dim") for evidence in found.evidence[:QUOTED]]
    more = [evidence.source for evidence in found.evidence[QUOTED:]]
    return said + ([(f"     also in: {', '.join(more)}", "dim")] if more else [])


def _quote(evidence: Evidence, redact: Redactor) -> str:
    times = "once" if evidence.count == 1 else f"{evidence.count} times"
    return f"{evidence.source}, {_instant(evidence.when)}{times}: {redact(evidence.line)}"


def _instant(when: float | None) -> str:
    return f"last {datetime.fromtimestamp(when, timezone.utc):%Y-%m-%d %H:%M:%S} UTC, " if when else ""


def _when(evidence: Iterable[Evidence]) -> str:
    last = max((item.when for item in evidence if item.when), default=None)
    return f"{_instant(last).rstrip(', ')}, {next(iter(evidence)).source}"


def _report_plan(judgement: Judgement, target: Target) -> Lines:
    plan = judgement.plan
    if plan is None:
        unknown = f"  What a deploy would decide about the GPU could not be found out: {judgement.problem}"
        return [(unknown, "yellow")] if judgement.problem else []
    said: Lines = []
    if plan.refusals:
        said.append(("  A deploy would refuse this host's GPU:", "red"))
        for refusal in plan.refusals:
            said += [(f"    {refusal.problem}", ""), (f"      -> {aimed(refusal.remedy, target.argument)}", "")]
    if plan.reboot:
        said.append((f"  A deploy would restart the host: {plan.reboot}", "yellow"))
    return said + [(f"  Note: {note}", "dim") for note in plan.notes]


def _bundle(
    target: Target,
    sources: Iterable[Source],
    judgement: Judgement,
    report: list[str],
    redact: Redactor,
    narrator: Narrator,
) -> None:
    instant = bundles.now()
    extra = {
        "report.txt": "\n".join([target.headline(), *report]) + "\n",
        "settings.json": target.settings.model_dump_json(indent=1) + "\n",
    }
    if judgement.facts:
        extra["facts.json"] = json.dumps(asdict(judgement.facts), indent=1, default=sorted) + "\n"
    if judgement.plan:
        extra["gpu-plan.json"] = json.dumps(asdict(judgement.plan), indent=1, default=str) + "\n"
    files = bundles.contents(target.name, instant, sources, extra)
    written = bundles.write(paths.reports_dir(target.name), target.name, instant, files, redact)
    narrator.say()
    narrator.say(f"  Support bundle: {written.path}", style="bold")
    for name, size in written.files:
        narrator.say(f"    {name:<32} {size:>9} bytes")
    narrator.say("  Secrets were removed from it. Look at it before you send it:")
    narrator.say(f"    tar -xzf {written.path} -C /tmp")
