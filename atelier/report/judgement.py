"""What follows from what the checks saw: the verdict, the one line that matters, what is not the real thing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from atelier.checks import explained
from atelier.report.model import CheckResult, Report, Verdict

RANDOM = "random numbers"
"""What a sandbox has in the place of weights for the real applications."""


def judge(checks: Sequence[CheckResult], required: Collection[str], *, crashed: bool = False) -> Verdict:
    """The verdict: any failure fails; a required check that did not pass or warn leaves it incomplete.

    A run that crashed, or in which no check ran, has failed.
    """
    ran = {check.id for check in checks if check.verdict in ("passed", "warning")}
    if crashed or any(check.verdict == "failed" for check in checks):
        return "failed"
    if set(required) - ran:
        return "incomplete"
    return "passed" if ran else "failed"


def roots(failed: Sequence[CheckResult]) -> list[CheckResult]:
    """Those of the failed checks that no other of them explains: what is to be mended first."""
    consequences = explained(check.id for check in failed)
    return [check for check in failed if check.id not in consequences]


@dataclass(frozen=True)
class Lead:
    """What matters of a run: where a check is named, the first failure to be mended, or the first that is missing."""

    text: str
    check: CheckResult | None = None


def lead(report: Report) -> Lead:
    """The first failure, else what is missing, else how much passed."""
    if failed := [check for check in report.checks if check.verdict == "failed"]:
        cause = roots(failed)[0]
        return Lead(cause.title, cause)
    if report.verdict == "failed":
        return Lead(f"The run broke off: {report.broke_off}; run it again" if report.broke_off else "No check ran")
    if report.verdict == "incomplete":
        missing = not_run(report)
        why = f"{report.broke_off.capitalize()}: " if report.broke_off else ""
        text = f"{why}{counted(len(missing), 'required check')} did not run"
        return Lead(text, missing[0] if missing else None)
    passed = sum(check.verdict == "passed" for check in report.checks)
    warnings = sum(check.verdict == "warning" for check in report.checks)
    return Lead(f"{counted(passed, 'check')} passed" + (f", {counted(warnings, 'warning')}" if warnings else ""))


def headline(report: Report) -> str:
    """What matters in one line, with the remedy."""
    found = lead(report)
    if found.check is None:
        return found.text
    observed = shorten(found.check.observed)
    if found.check.verdict == "skipped":
        return f"{found.text}, first {found.check.id}: {observed}"
    others = sum(check.verdict == "failed" for check in report.checks) - 1
    return f"{found.check.id}{f' (and {others} more)' if others else ''}: {observed} -> {found.check.hint}"


def not_run(report: Report) -> list[CheckResult]:
    """The checks whose absence leaves the run incomplete."""
    return [check for check in report.checks if check.verdict == "skipped" and check.required]


def shorten(text: str, length: int = 240) -> str:
    """The text in one line, cut where it is too long for one."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def counted(number: int, noun: str) -> str:
    """`1 check`, `2 checks`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def caveats(report: Report) -> list[str]:
    """A sentence for each thing to know before a verdict is believed."""
    deploy = f"A deploy was at work on this host meanwhile ({report.deploying}): what is red may be due to it; verify again afterwards."
    return [*stand_ins(report.versions), *([deploy] if report.deploying else [])]


def stand_ins(deployed: Mapping[str, object]) -> list[str]:
    """A sentence for each thing that is not the real one, by what was deployed; empty where all is real."""
    found = {
        "Doubles stand in for ComfyUI and Forge: this proves the deployment, not the applications.": (
            deployed.get("sources") == "double"
        ),
        "The GPU is simulated: this proves how it is given to containers; nothing is computed on it.": (
            deployed.get("profile") == "gpu-simulated"
        ),
        "The weights are random numbers: models load and compute with them, and their images show nothing.": (
            deployed.get("weights") == RANDOM
        ),
    }
    return [sentence for sentence, stands_in in found.items() if stands_in]
