"""The command line: `make X` runs `atelier X`. Exit 0 done, 1 a failure with one clear reason; plan 2, verify 3 as documented."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from atelier import importing, lifecycle, models_app, operate, rotation
from atelier.aim import Host, Limit, Sources, for_each
from atelier.console import Narrator, fail
from atelier.credentials import Credentials
from atelier.errors import AtelierError
from atelier.gpu.plan import plan_gpu
from atelier.hostfacts import HostFacts
from atelier.reboot import RestartNeededError
from atelier.settings import Settings
from atelier.target import Target, default_settings, resolve

INTERRUPTED = 130
"""The status that typer makes of Ctrl-C."""
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""Wrong words on the command line; typer carries its own copy of click and names no other way to this class."""

app = typer.Typer(
    help="From a bare machine to an authenticated, verified image-generation host.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
sandbox_app = typer.Typer(help="The throw-away machine alone.", no_args_is_help=True)
app.add_typer(sandbox_app, name="sandbox")
app.add_typer(models_app.app, name="models")

Service = Annotated[str, typer.Option("--service", help="comfyui, forge or gateway; default: all.")]

Reboot = Annotated[bool, typer.Option("--reboot", help="Restart the host without asking, where it must be.")]

PURGE_HELP = (
    "Remove outputs, users' files and weights, too, that nothing in the settings asks for any more; else they stay."
)
FROM_HELP = "Folder on the host with a ComfyUI or Forge put together by hand; only where it is not found by itself."


def main() -> None:
    """Run the command; what a user can mend ends in one message and exit 1, Ctrl-C in 130, neither in a traceback."""
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
        if status == INTERRUPTED:
            fail("interrupted; the same command continues where this one stopped")
        sys.exit(status)
    except USAGE_ERROR as error:
        fail(f"{error}\n  -> atelier --help, atelier COMMAND --help")
        sys.exit(1)
    except AtelierError as error:
        fail(str(error))
        sys.exit(1)


@app.command()
def deploy(
    host: Host = "",
    limit: Limit = "",
    service: Service = "",
    sources: Sources = "auto",
    reboot: Reboot = False,
    import_from: Annotated[
        Path | None,
        typer.Option("--import", help="First deploy: token file or .env.generated of before, or their folder."),
    ] = None,
) -> None:
    """Everything: preflight, host, driver, Docker, credentials, weights, images, services, quick verify."""

    imported = importing.import_credentials(import_from, os.environ) if import_from else None

    def choose(target: Target, facts: HostFacts) -> Credentials:
        return lifecycle.choose_credentials(target, facts, os.environ, imported.credentials if imported else None)

    def action(target: Target, narrator: Narrator) -> int:
        from stages import provision

        started = time.monotonic()
        if imported:
            narrator.say(f"  {imported.summary}")
        ssh = operate.connected(target, narrator)
        only = operate.service_name(target, service)

        def attempt() -> provision.Outcome | None:
            with lifecycle.host_lock(ssh):
                if only:
                    rotation.require_none_unfinished(target)
                deployment = lifecycle.prepare(
                    target, ssh, sources, narrator, only, lambda facts: choose(target, facts)
                )
                obstacles = lifecycle.find_obstacles(ssh, deployment, narrator, waits_for_lock=True)
                operate.print_findings(obstacles, narrator)
                operate.print_gpu_plan(deployment.gpu, narrator)
                if obstacles:
                    return None
                outcome = provision.deploy_with_driver(target, ssh, deployment, narrator)
                if outcome.restart:
                    raise RestartNeededError(target.name, outcome.restart)
                rotation.conclude(target, ssh, deployment, narrator)
                return outcome

        outcome = lifecycle.with_restart(target, ssh, attempt, reboot, narrator)
        if outcome is None:
            return 1
        narrator.say(
            f"Deployed: {len(outcome.changed)} of {outcome.operations} operations changed something, "
            f"{outcome.commands} SSH commands, {time.monotonic() - started:.0f} s."
        )
        verified = operate.quick_verify(target, narrator) == 0
        operate.print_access(target, narrator)
        return 0 if verified else 1

    for_each(host, limit, action)


@app.command()
def plan(
    host: Host = "",
    limit: Limit = "",
    sources: Sources = "auto",
    purge: Annotated[bool, typer.Option("--purge", help=PURGE_HELP)] = False,
    previous: Annotated[str, typer.Option("--from", help=FROM_HELP)] = "",
) -> None:
    """What deploy and reprovision would change, move and remove; changes nothing. Exit 0 nothing to do, 2 something to do, 1 error."""

    def action(target: Target, narrator: Narrator) -> int:
        ssh = operate.connected(target, narrator)
        from atelier import reprovision
        from stages import provision

        survey = reprovision.look(target, ssh, reprovision.Wishes(sources, purge=purge, root=previous), narrator)
        # As it is once directories have changed places: weights that move are not fetched.
        deployment = replace(survey.deployment, present=survey.before.present)
        reprovision.tell(survey, narrator)
        operate.print_gpu_plan(deployment.gpu, narrator)
        if deployment.gpu.refusals:
            operate.print_findings(list(deployment.gpu.refusals), narrator)
            return 1
        outcome = provision.plan(ssh, deployment)
        for change in outcome.changed:
            narrator.say(f"  ~ {change}")
        narrator.say(f"{len(outcome.changed)} of {outcome.operations} operations would change something.")
        return 2 if outcome.changed or not survey.plan.is_empty() else 0

    for_each(host, limit, action)


@app.command()
def preflight(host: Host = "", limit: Limit = "", sources: Sources = "auto") -> None:
    """All reasons why a deploy would fail, at once, before anything is changed."""

    def action(target: Target, narrator: Narrator) -> int:
        ssh = operate.connected(target, narrator)
        deployment = lifecycle.prepare(target, ssh, sources, narrator)
        obstacles = lifecycle.find_obstacles(ssh, deployment, narrator)
        operate.print_findings(obstacles, narrator)
        operate.print_gpu_plan(deployment.gpu, narrator)
        return 1 if obstacles else 0

    for_each(host, limit, action)


@app.command("explain-gpu")
def explain_gpu(
    facts: Annotated[
        Path | None, typer.Argument(help="A file of facts (docs/gpu.md), or `-`; none: those of the host.")
    ] = None,
    host: Host = "",
    limit: Limit = "",
    show_facts: Annotated[
        bool, typer.Option("--facts", help="Print the host's facts instead of the decision.")
    ] = False,
) -> None:
    """What a deploy would do about a host's GPU, and why, as JSON. Exit 1 when it would refuse."""
    from atelier.gpu import explain

    given = explain.read_facts(facts) if facts else None

    def tell(found: HostFacts, settings: Settings) -> int:
        print(explain.facts_json(found) if show_facts else explain.explain(found, settings), end="")
        return 0 if show_facts or plan_gpu(found, settings).action != "refuse" else 1

    def action(target: Target, narrator: Narrator) -> int:
        return tell(given or lifecycle.gather(operate.connected(target, narrator), target), target.settings)

    if given and not host and not limit:  # about no host that is known: the settings are those of a GPU host
        raise typer.Exit(tell(given, default_settings()))
    for_each(host, limit, action, Console(stderr=True, highlight=False))


@app.command()
def doctor(
    host: Host = "",
    limit: Limit = "",
    bundle: Annotated[bool, typer.Option("--bundle", help="Write a support bundle in any case.")] = False,
) -> None:
    """Recognises known failures by their signatures and says what to do. Exit 1 when something is wrong."""
    from atelier import doctor as examination

    def action(target: Target, narrator: Narrator) -> int:
        operate.require_up(target, narrator)
        return examination.run(target, narrator, bundle=bundle)

    for_each(host, limit, action)


@app.command()
def verify(
    host: Host = "",
    limit: Limit = "",
    quick: Annotated[bool, typer.Option("--quick", help="Only what takes seconds.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Restart the services, Docker and the host, too.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte of the weights, too.")] = False,
    group: Annotated[str, typer.Option("--group", help="Only these groups, separated by commas.")] = "",
    check: Annotated[str, typer.Option("--check", help="Only these check ids, separated by commas.")] = "",
) -> None:
    """The full proof; writes a report. Exit 0 passed, 1 failed, 3 incomplete."""
    if quick and (full or deep):
        raise typer.BadParameter("--quick is without --full and --deep")

    def action(target: Target, narrator: Narrator) -> int:
        operate.require_up(target, narrator)
        return operate.run_verify(
            target, narrator, quick=quick, full=full, deep=deep, groups=_names(group), checks=_names(check)
        )

    for_each(host, limit, action)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@app.command()
def generate(
    prompt: Annotated[str, typer.Option("--prompt", help="What to draw, or how to change the image.")],
    host: Host = "",
    limit: Limit = "",
    image: Annotated[Path | None, typer.Option("--image", help="A reference image to edit.")] = None,
    service: Service = "comfyui",
) -> None:
    """One image from the command line, saved here."""
    from atelier import generate as generation

    def action(target: Target, narrator: Narrator) -> int:
        operate.require_up(target, narrator)
        saved = generation.generate(target, prompt, image, service, narrator.say)
        narrator.say(f"Saved: {saved}")
        return 0

    for_each(host, limit, action)


@app.command()
def status(host: Host = "", limit: Limit = "", service: Service = "") -> None:
    """What runs, which versions, a transfer of weights, disk, last change and last verify. Exit 1 when a service is not healthy."""
    for_each(host, limit, lambda target, narrator: operate.status(target, narrator, service))


@app.command()
def logs(
    host: Host = "",
    limit: Limit = "",
    service: Annotated[
        str,
        typer.Option("--service", help="comfyui, forge, gateway, or weights: their transfer; default: the services."),
    ] = "",
    lines: Annotated[int, typer.Option("--lines", help="How many lines of each.")] = 100,
) -> None:
    """The services' logs, or the transfer's of the weights."""
    for_each(host, limit, lambda target, narrator: operate.logs(target, narrator, service, lines))


@app.command()
def stop(host: Host = "", limit: Limit = "", service: Service = "") -> None:
    """Stop the services."""
    for_each(host, limit, lambda target, narrator: operate.compose(target, narrator, "stop", service))


@app.command()
def start(host: Host = "", limit: Limit = "", service: Service = "") -> None:
    """Start the services."""
    for_each(host, limit, lambda target, narrator: operate.compose(target, narrator, "start", service))


@app.command()
def restart(host: Host = "", limit: Limit = "", service: Service = "") -> None:
    """Restart the services."""
    for_each(host, limit, lambda target, narrator: operate.compose(target, narrator, "restart", service))


@app.command()
def tunnel(host: Host = "", limit: Limit = "") -> None:
    """The services on this computer's localhost, over SSH, until Ctrl-C."""
    for_each(host, limit, operate.tunnel)


@app.command()
def credentials(host: Host = "", limit: Limit = "") -> None:
    """How to log in, with ready-to-paste examples. Shows the passwords."""
    for_each(host, limit, operate.show_credentials)


@app.command()
def rotate(
    host: Host = "",
    limit: Limit = "",
    service: Annotated[str, typer.Option("--service", help="comfyui or forge; default: both.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do it although generations run, which are lost.")] = False,
) -> None:
    """New credentials in, old ones out, proved through the gateway. Finishes a rotation that was interrupted."""

    def action(target: Target, narrator: Narrator) -> int:
        from stages import provision

        operate.require_up(target, narrator)
        only = operate.service_name(target, service)
        if only == "gateway":
            raise AtelierError("SERVICE=gateway: it has no credentials of its own", "SERVICE=comfyui or forge, or none")
        ssh = target.ssh()
        ssh.connect()
        with lifecycle.host_lock(ssh):
            rotation.rotate(
                target, ssh, only, yes, narrator, lambda changed: provision.rotate(target, ssh, changed, narrator)
            )
        narrator.say(f"Rotated. {target.command('credentials')} shows what is in force now.")
        return 0

    for_each(host, limit, action)


@app.command()
def reprovision(
    host: Host = "",
    limit: Limit = "",
    sources: Sources = "auto",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help=PURGE_HELP)] = False,
    previous: Annotated[str, typer.Option("--from", help=FROM_HELP)] = "",
    adopt_token: Annotated[
        bool,
        typer.Option(
            "--adopt-token", help="First deploy: clients go on with the token of the stack that was here before."
        ),
    ] = False,
    old: Annotated[
        str, typer.Option("--old", help="user@address of the machine that this one replaces: weights come from there.")
    ] = "",
    reboot: Reboot = False,
) -> None:
    """Bring a host to what the settings say after things were moved, renamed or replaced; nothing is lost.

    Shows what it will do, and asks before anything moves or goes. Run again, it finishes what was interrupted.
    """
    from atelier import reprovision as reorganising

    wishes = reorganising.Wishes(sources, yes, purge, adopt_token, previous, old, reboot)
    for_each(host, limit, lambda target, narrator: reorganising.run(target, wishes, narrator))


@app.command()
def uninstall(
    host: Host = "",
    limit: Limit = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove weights, outputs and users' files, too, for good; else they stay.")
    ] = False,
) -> None:
    """Remove everything that deploys brought, so that the host is as it was found.

    Shows what goes and what stays, and asks. Run again, it finishes what was interrupted.
    """
    from atelier import takedown

    def action(target: Target, narrator: Narrator) -> int:
        operate.require_up(target, narrator)
        ssh = target.ssh()
        ssh.connect()
        return takedown.run(target, ssh, narrator, purge=purge, yes=yes)

    for_each(host, limit, action)


@app.command()
def sabotage(
    host: Host = "",
    limit: Limit = "",
    only: Annotated[str, typer.Option("--only", help="Only these, or those that begin so, separated by commas.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Of each group verify only what takes seconds.")] = False,
    sample: Annotated[bool, typer.Option("--sample", help="Of the slow ones only a few, chosen by commit.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Print them and break nothing.")] = False,
) -> None:
    """Break a deployed sandbox in every known way, one at a time: verify must notice each. Exit 1 when it does not."""
    from atelier import sabotage as sabotages

    if show:
        for known in sabotages.load():
            print(f"{known.id:44} {known.does}")
        return
    sabotages.require_sandboxes(resolve(host, limit))

    def action(target: Target, narrator: Narrator) -> int:
        return sabotages.run(target, narrator, _names(only), sample=sample, only_quick=quick)

    for_each(host, limit, action)


@app.command()
def outputs(host: Host = "", limit: Limit = "") -> None:
    """Bring generated images here."""
    for_each(host, limit, operate.fetch_outputs)


SandboxName = Annotated[str, typer.Option("--name", help="`sandbox`, or `sandbox-<anything>`.")]


@sandbox_app.command("up")
def sandbox_up(name: SandboxName = "sandbox") -> None:
    """Make or boot the sandbox."""
    operate.sandbox_up(name, print)


@sandbox_app.command("down")
def sandbox_down(name: SandboxName = "sandbox") -> None:
    """Remove the sandbox with everything in it; its credentials and reports here stay."""
    operate.sandbox_down(name, print)
