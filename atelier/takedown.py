"""Carries an uninstall out on a host: looks, shows the plan, gets a yes, goes through the steps, looks again."""

import time
from collections import deque
from collections.abc import Iterable, Sequence

from atelier import apt, lifecycle, paths, recorded, remains, uninstall, uninstall_packages
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.recorded import Recorded, Roots
from atelier.remains import Remains
from atelier.ssh import Ssh, connection_error
from atelier.target import Target
from atelier.uninstall import Plan, Step
from atelier.uninstall_packages import Kept, Packages, Simulation

FORGET_LOCK = f"rm -rf {lifecycle.LOCK_DIRECTORY}"
SHOWN_OUTPUT = 15
"""Lines of a failed step that are shown."""


def run(target: Target, ssh: Ssh, narrator: Narrator, *, purge: bool, yes: bool) -> int:
    """All of it; the exit status. Raises AtelierError with what stands in the way, or what failed."""
    started = time.monotonic()
    with lifecycle.host_lock(ssh):
        record = recorded.parse(recorded.documents(ssh.run(recorded.script(target.settings), check=True).stdout))
        roots = record.roots or recorded.roots_of(target.settings)
        there = _look(ssh, record, roots)
        record = uninstall_packages.reconsidered(record, there)
        if finding := uninstall.obstacle(record, there, target.name, target.command("reprovision")):
            raise AtelierError(finding.problem, finding.remedy)
        packages = _packages(ssh, record, there)
        plan = uninstall.decide(record, roots, there, packages, purge)
        if uninstall.is_done(plan, there):
            ssh.run(FORGET_LOCK, check=True)
            narrator.say(f"  nothing of a deploy is left to remove on {target.name}", style="green")
            return _tell_kept(target, plan.keeps, narrator)
        for line in plan.lines():
            narrator.say(f"  {line}")
        _require_consent(target, yes, purge, narrator)
        for step in plan.steps:
            carry_out(ssh, step, narrator)
        now = _look(ssh, record, roots)
        rest = Packages(tuple(now.installed(packages.purge)))
        _require_gone(target, uninstall.decide(record, roots, now, rest, purge))
        audit = lifecycle.audit_line([f"{step.stage}: {step.name}" for step in plan.steps], "uninstalled")
        for step in uninstall.last_steps(record, roots, there, purge, audit):
            carry_out(ssh, step, narrator)
        ssh.run(FORGET_LOCK, check=True)
    narrator.say(f"Uninstalled from {target.name} in {time.monotonic() - started:.0f} s. Removed: {plan.counts()}.")
    return _tell_kept(target, plan.keeps, narrator)


def _look(ssh: Ssh, record: Recorded, roots: Roots) -> Remains:
    return remains.parse(ssh.run(remains.script(record, roots), timeout=600, check=True).stdout)


def _packages(ssh: Ssh, record: Recorded, there: Remains) -> Packages:
    def simulate(names: Sequence[str]) -> Simulation:
        result = ssh.run(uninstall_packages.simulate_script(names), timeout=120)
        if result.status != 0:
            finding = apt.explain(result.stderr.splitlines())
            raise AtelierError(
                finding.problem if finding else f"apt cannot tell what it would remove: {result.stderr.strip()[-600:]}",
                finding.remedy if finding else "mend apt on the host, then run the same command again",
            )
        return uninstall_packages.parse_simulation(result.stdout)

    return uninstall_packages.settle(uninstall_packages.candidates(record, there), record, there, simulate)


def _require_consent(target: Target, yes: bool, purge: bool, narrator: Narrator) -> None:
    data = ", the data for good" if purge else ""
    if not yes and not narrator.ask(f"Remove this from {target.name}{data}?"):
        raise AtelierError("nothing was removed", "run the same command again with YES=1, or answer y at a terminal")


def carry_out(ssh: Ssh, step: Step, narrator: Narrator) -> None:
    """Do one step under the host's lock, and tell of it. Raises AtelierError with what it printed."""
    narrator.begin(step.stage, step.name)
    process = ssh.popen(lifecycle.guard() + step.script)
    assert process.stdin and process.stdout  # noqa: S101 - popen was asked for pipes
    with process:
        process.stdin.write(step.stdin)
        process.stdin.close()
        told: deque[str] = deque(maxlen=200)
        for raw in process.stdout:
            told.append(raw.decode(errors="replace").rstrip())
            narrator.output(told[-1])
    if process.returncode == 255:
        raise connection_error(ssh.destination, "\n".join(told))
    if process.returncode != 0:
        finding = apt.explain(told)
        lines = [line for line in told if line.strip()][-SHOWN_OUTPUT:]
        raise AtelierError(
            finding.problem if finding else "\n    ".join([f"{step.stage}: {step.name}: failed", *lines]),
            finding.remedy
            if finding
            else "mend the cause and run the same command again; it continues where it stopped",
        )
    narrator.end(changed=True)


def _require_gone(target: Target, rest: Plan) -> None:
    if left := uninstall.left(rest):
        raise AtelierError(
            f"not everything could be removed from {target.name}: {left}",
            "run the same command again; it tries the rest",
        )


def _tell_kept(target: Target, keeps: Iterable[Kept], narrator: Narrator) -> int:
    own, archives = paths.secrets_dir(target.name), target.settings.images.archive_dir
    kept = [*keeps]
    if archives:
        kept.append(Kept(archives, "archives of images, if it has any; other hosts may use them"))
    if own.exists():
        kept.append(Kept(str(own), "the credentials, on this computer; a deploy uses them again"))
    for line in uninstall.kept_lines(kept):
        narrator.say(line)
    return 0
