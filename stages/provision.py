"""Runs deploy.py on one host through pyinfra, and tells a narrator what happens."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import gevent
import pyinfra
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all
from pyinfra.api.deploy import add_deploy
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.operations import run_ops
from pyinfra.api.state import BaseStateCallback, StateStage
from typing_extensions import override

import deploy
from atelier import lifecycle, weights_unit
from atelier.console import Narrator
from atelier.deployment import Deployment
from atelier.errors import AtelierError
from atelier.gpu.plan import GpuPlan
from atelier.settings import Settings
from atelier.ssh import Ssh
from atelier.target import Target
from stages.connector import OpenSSHConnector
from stages.models import Following

Stages = Callable[[Deployment], None]
"""A list of stages: a function of deploy.py."""


@dataclass(frozen=True)
class Outcome:
    """What a run did or, for a plan, would do. `commands`: SSH round trips."""

    operations: int
    changed: tuple[str, ...]
    commands: int
    restart: str = ""
    """Why the host must be restarted before the rest can be done; empty when all is done."""


class _Narration(BaseStateCallback):
    def __init__(self, narrator: Narrator, host: object, changed: list[str]) -> None:
        self.narrator, self.host, self.changed = narrator, host, changed

    @override
    def operation_host_start(self, state: State, host: object, op_hash: str) -> None:
        self.narrator.begin(*_split_name(state, op_hash))

    @override
    def operation_end(self, state: State, op_hash: str) -> None:
        did_change = state.ops[self.host][op_hash].operation_meta.did_change()
        if did_change:
            self.changed.append(": ".join(_split_name(state, op_hash)))
        self.narrator.end(changed=did_change)


def _split_name(state: State, op_hash: str) -> tuple[str, str]:
    stage, _, step = next(iter(state.op_meta[op_hash].names)).partition(" | ")
    return stage, step


@contextmanager
def _state(ssh: Ssh, deployment: Deployment, stages: Stages, check_for_changes: bool) -> Iterator[State]:
    hub = gevent.get_hub()
    # Told by the command line, without a trace: Ctrl-C, and what an operation found that the user can mend.
    hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt, AtelierError)
    logging.getLogger("pyinfra").setLevel(logging.CRITICAL)  # the narrator speaks; failures are read from the results
    pyinfra.is_cli = False
    inventory = Inventory(([("@openssh/target", {"ssh": ssh})], {}))
    state = State(inventory, Config(), check_for_changes=check_for_changes)
    state.print_output, state.print_fact_output = True, False  # what commands print is for people; facts are raw probes
    state.set_stage(StateStage.Connect)
    connect_all(state)
    state.set_stage(StateStage.Prepare)
    add_deploy(state, stages, deployment)
    yield state


def fetched() -> int:
    """Bytes of weights that hosts fetched so far while this process followed."""
    return Following.fetched


def plan(ssh: Ssh, deployment: Deployment) -> Outcome:
    """What a deploy would change; changes nothing. What depends on an earlier change counts as one."""
    before = OpenSSHConnector.commands
    with _failures_named(), _state(ssh, deployment, deploy.deploy, check_for_changes=True) as state:
        host = next(iter(state.inventory))
        order = state.get_op_order()
        changed = [": ".join(_split_name(state, op)) for op in order if state.ops[host][op].operation_meta.will_change]
    return Outcome(len(order), tuple(changed), OpenSSHConnector.commands - before)


def apply(
    ssh: Ssh, deployment: Deployment, narrator: Narrator, changed: list[str], stages: Stages = deploy.deploy
) -> Outcome:
    """Carry the deployment out. Raises AtelierError with the failed step and what it printed.

    changed: what operations change is added as they do, so that it is true whatever ends the run.
    """
    before = OpenSSHConnector.commands
    OpenSSHConnector.watch = narrator.output
    OpenSSHConnector.prelude = lifecycle.guard()
    try:
        with _failures_named(), _state(ssh, deployment, stages, check_for_changes=False) as state:
            host = next(iter(state.inventory))
            state.add_callback_handler(_Narration(narrator, host, changed))
            state.set_stage(StateStage.Execute)
            try:
                run_ops(state)
            except PyinfraError:
                raise _failure(state, host, narrator) from None
            operations = len(state.get_op_order())
    finally:
        OpenSSHConnector.watch, OpenSSHConnector.prelude = None, ""
    return Outcome(operations, tuple(changed), OpenSSHConnector.commands - before)


def deploy_with_driver(
    target: Target,
    ssh: Ssh,
    deployment: Deployment,
    narrator: Narrator,
    stages: Stages = deploy.deploy,
    verdict: str = "deployed",
) -> Outcome:
    """A whole deploy, with its line in the audit log; a driver first, because the rest rests on what it tells.

    stages: others than all; verdict: how they ended, for the audit log.
    Raises AtelierError with what failed, also when a driver was installed and does not work.
    """
    lifecycle.keep_credentials(target, deployment)
    with _audited(ssh, deployment.settings, narrator) as audit:
        # Before a restart too: one after a deploy that was killed must find the blacklist of nouveau written.
        if deployment.gpu.action == "install" or deployment.gpu.load or deployment.gpu.reboot:
            apply(ssh, deployment, narrator, audit.changed, deploy.driver)
            deployment = lifecycle.decide_again(target, ssh, deployment)
            if deployment.gpu.load:  # what was just installed
                apply(ssh, deployment, narrator, audit.changed, deploy.driver)
                deployment = lifecycle.decide_again(target, ssh, deployment)
            _require_driver(target, deployment.gpu)
        if deployment.gpu.reboot:
            audit.verdict = "waits for a restart"
            return Outcome(0, tuple(audit.changed), 0, deployment.gpu.reboot)
        outcome = apply(ssh, deployment, narrator, audit.changed, stages)
        audit.verdict = verdict
        return outcome


def fetch_weights(target: Target, ssh: Ssh, deployment: Deployment, narrator: Narrator) -> Outcome:
    """The weights alone, with their line in the audit log. Raises AtelierError with what failed."""
    # The host gets their instance, and no certificate: what it shows stays the one that is kept here.
    lifecycle.keep_credentials(target, replace(deployment, internal=None))
    with _audited(ssh, deployment.settings, narrator) as audit:
        outcome = apply(ssh, deployment, narrator, audit.changed, deploy.weights)
        audit.verdict = "weights fetched"
        return outcome


def declare(target: Target, ssh: Ssh, deployment: Deployment, narrator: Narrator) -> None:
    """The manifest alone, before something is made that is not a deploy's. Raises AtelierError with what failed."""
    lifecycle.keep_credentials(target, deployment)
    apply(ssh, deployment, narrator, [], deploy.declared)


def prepare(target: Target, ssh: Ssh, deployment: Deployment, narrator: Narrator) -> Outcome:
    """What disturbs nobody, before what runs makes room. Raises AtelierError with what failed."""
    return deploy_with_driver(target, ssh, deployment, narrator, deploy.prepared, "prepared")


def switch(ssh: Ssh, deployment: Deployment, narrator: Narrator) -> Outcome:
    """The services in their places, with their line in the audit log. Raises AtelierError with what failed."""
    with _audited(ssh, deployment.settings, narrator) as audit:
        outcome = apply(ssh, deployment, narrator, audit.changed, deploy.switched)
        audit.verdict = "switched, proof follows"
        return outcome


def rotate(target: Target, ssh: Ssh, deployment: Deployment, narrator: Narrator) -> Outcome:
    """Other credentials for what runs, with their line in the audit log. Raises AtelierError with what failed."""
    lifecycle.keep_credentials(target, deployment)
    with _audited(ssh, deployment.settings, narrator) as audit:
        outcome = apply(ssh, deployment, narrator, audit.changed, deploy.rotate)
        audit.verdict = "rotated, proof follows"
        return outcome


@dataclass
class _Audit:
    verdict: str = "failed"
    changed: list[str] = field(default_factory=list)


@contextmanager
def _audited(ssh: Ssh, settings: Settings, narrator: Narrator) -> Iterator[_Audit]:
    """A run's line in the host's audit log, however it ends; on Ctrl-C, that a transfer of weights goes on without us."""
    audit = _Audit()
    try:
        yield audit
    except KeyboardInterrupt:
        audit.verdict = "interrupted"
        with suppress(AtelierError):
            if ssh.run(weights_unit.RUNNING_SCRIPT, timeout=10).status == 0:
                narrator.say(f"  {weights_unit.GOES_ON}", style="yellow")
        raise
    finally:
        lifecycle.append_audit(ssh, settings, lifecycle.audit_line(audit.changed, audit.verdict))


def _require_driver(target: Target, plan: GpuPlan) -> None:
    if plan.refusals:
        problems = "; ".join(finding.problem for finding in plan.refusals)
        raise AtelierError(f"the driver is installed, and yet: {problems}", plan.refusals[0].remedy)
    if plan.gpus is None and not plan.reboot:
        raise AtelierError(
            f"the driver is installed on {target.name} and does not answer: {'; '.join(plan.reasons)}",
            f"{target.command('doctor')} looks for the cause",
        )


@contextmanager
def _failures_named() -> Iterator[None]:
    try:
        yield
    except PyinfraError as error:
        raise AtelierError(str(error)) from None


def _failure(state: State, host: object, narrator: Narrator) -> AtelierError:
    for op_hash in state.get_op_order():
        meta = state.ops[host][op_hash].operation_meta
        if meta.is_complete() and not meta.did_succeed():
            stage, step = _split_name(state, op_hash)
            lines = [line for line in (*meta.stdout_lines, *meta.stderr_lines) if line.strip()][-15:]
            return AtelierError(
                f"{stage}: {step}: failed\n" + "\n".join(f"    {line}" for line in lines),
                "mend the cause and run the same command again; it continues where it stopped",
            )
    return AtelierError(
        "the deploy stopped before it could say why",
        "run the same command again; if it stops again, see the host's journal",
    )
