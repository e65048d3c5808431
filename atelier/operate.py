"""Everyday commands on a deployed host: status, logs, start and stop, tunnel, credentials, outputs."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from atelier import credentials as store
from atelier import monitoring, paths, recorded, transfer
from atelier.aim import EndedEarlyError
from atelier.certificates import AUTHORITY_FILE
from atelier.console import Narrator
from atelier.errors import AtelierError, Finding
from atelier.gpu.plan import GpuPlan
from atelier.report import stand_ins
from atelier.report.model import REPORT_PAGE
from atelier.report.short import in_short, last_report
from atelier.settings import Settings
from atelier.ssh import Ssh
from atelier.target import Target, sandbox_target
from atelier.weights_unit import UNIT

Say = Callable[[str], None]


def sandbox_up(name: str, say: Say) -> None:
    """Make or boot a sandbox. Raises AtelierError that says what to do where it cannot work."""
    from sandbox import machine, shared, simulated_gpu, tools

    if name != "sandbox" and not name.startswith("sandbox-"):
        raise AtelierError(f"{name!r} would be no target of any command", f"NAME=sandbox-{name}")
    try:
        guest = machine.up(name, say, binds=shared.binds())
        if sandbox_target(name, paths.PROJECT).settings.profile == "gpu-simulated":
            simulated_gpu.insert(guest)
    except (machine.SandboxError, tools.UnavailableError, OSError) as error:
        raise AtelierError(str(error), "or aim at a real machine: HOST=user@address") from None


def sandbox_down(name: str, say: Say) -> None:
    """Remove a sandbox. Raises AtelierError when something of it resists."""
    from sandbox import machine, tools

    try:
        machine.down(name, say)
    except (machine.SandboxError, tools.UnavailableError, OSError) as error:
        raise AtelierError(str(error)) from None


def connected(target: Target, narrator: Narrator) -> Ssh:
    """A connection to the target; a sandbox is booted first, any other host must be there by itself."""
    if target.kind == "sandbox":
        narrator.begin("Sandbox", "Boot the throw-away machine")
        sandbox_up(target.name, lambda line: narrator.say(f"  {line}", style="dim"))
        narrator.end(changed=False)
    ssh = target.ssh()
    ssh.connect()
    return ssh


def require_up(target: Target, narrator: Narrator) -> None:
    """Says what there is not the real thing. Raises AtelierError when the sandbox does not run."""
    from sandbox import machine

    if target.kind != "sandbox":
        return
    if machine.get(target.name) is None:
        raise AtelierError(f"the sandbox `{target.name}` is not running", "make deploy")
    deployed = target.ssh().run(f"cat {target.settings.state_dir()}/deployed.json")
    for sentence in stand_ins(json.loads(deployed.stdout)) if deployed.status == 0 else []:
        narrator.say(sentence, style="yellow")


def print_findings(findings: list[Finding], narrator: Narrator, what: str = "this deploy") -> None:
    """The list of preflight, each with its remedy. what: what would fail."""
    if not findings:
        narrator.say("  nothing stands in the way", style="green")
        return
    narrator.say(f"  {len(findings)} reason(s) why {what} would fail; nothing was changed:", style="red")
    for number, finding in enumerate(findings, 1):
        narrator.say(f"  {number}. {finding.problem}")
        narrator.say(f"     -> {finding.remedy}")


def print_gpu_plan(plan: GpuPlan, narrator: Narrator) -> None:
    """What is to be done about the GPU and why. What stands in the way is preflight's to tell."""
    if plan.action in ("adopt", "install"):
        narrator.say(f"  GPU: {plan.action}: {'; '.join(plan.reasons)}")
        narrator.say(f"  GPU: the images get PyTorch for {plan.torch}")
    if plan.driver:
        packages = (*plan.driver.headers, *plan.driver.pins, *plan.driver.packages)
        narrator.say(f"  GPU: packages to install: {' '.join(packages)}; to hold: {' '.join(plan.holds)}")
        if plan.driver.remove:
            narrator.say(f"  GPU: packages to remove: {' '.join(plan.driver.remove)}")
    for service, uuid in (plan.gpus or {}).items():
        narrator.say(f"  GPU: {service} gets {uuid}")
    for note in plan.notes:
        narrator.say(f"  GPU: {note}")
    if plan.reboot:
        narrator.say(f"  GPU: the host must be restarted: {plan.reboot}", style="yellow")


def quick_verify(target: Target, narrator: Narrator) -> int:
    """The checks that take seconds, after a deploy; an interrupt of them is one of the deploy."""
    from atelier import verify

    return verify.EXIT_STATUS[verify.verify(target, quick=True, say=narrator.say).verdict]


def run_verify(
    target: Target,
    narrator: Narrator,
    *,
    quick: bool = False,
    full: bool = False,
    deep: bool = False,
    groups: tuple[str, ...] = (),
    checks: tuple[str, ...] = (),
) -> int:
    """Run verify and return its exit status: 0 passed, 1 failed, 3 incomplete. Raises EndedEarlyError on Ctrl-C."""
    from atelier import verify

    try:
        report = verify.verify(
            target, quick=quick, full=full, deep=deep, groups=groups, checks=checks, say=narrator.say
        )
    except verify.InterruptedRun as interrupted:
        raise EndedEarlyError(verify.EXIT_STATUS[interrupted.verdict]) from None
    return verify.EXIT_STATUS[report.verdict]


def host_credentials(target: Target) -> store.Credentials:
    """This computer's credentials for the target. Raises AtelierError when there are none."""
    stored = store.load(paths.secrets_dir(target.name))
    if stored is None:
        raise AtelierError(
            f"no credentials for {target.name} on this computer", "make deploy, or copy .secrets/ from where it was run"
        )
    return stored


def addresses(target: Target, settings: Settings) -> dict[str, str]:
    """The URL of each service as seen on the host; by its public name where a certificate is for that alone."""
    wildcard = settings.bind_address in ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
    address = settings.tls.domain or (target.destination.host if wildcard else settings.own_address())
    return {name: f"{settings.scheme()}://{address}:{service.port}" for name, service in settings.enabled().items()}


def authority_file(target: Target) -> Path | None:
    """The certificate that clients have to trust in mode `internal`."""
    own = target.settings.tls.mode == "internal"
    return paths.secrets_dir(target.name) / AUTHORITY_FILE if own else None


TITLES = {"comfyui": "ComfyUI", "forge": "Stable Diffusion WebUI Forge"}


def print_access(target: Target, narrator: Narrator) -> None:
    """What is running, where, how to reach it and how to log in."""
    settings = target.settings
    narrator.say()
    for name, url in addresses(target, settings).items():
        narrator.say(f"  {TITLES[name]:<30} {url}  (on the host)")
    suffix = f" {target.argument}" if target.argument else ""
    if authority := authority_file(target):
        narrator.say(f"  {'Certificate authority':<30} {authority}  (import it in browsers; curl --cacert)")
    narrator.say()
    narrator.say(f"  Log in:        make credentials{suffix}")
    narrator.say(f"  From here:     make tunnel{suffix}")
    narrator.say(f"  First image:   make generate{suffix} PROMPT='a lighthouse at dusk'")
    narrator.say(f"  Full proof:    make verify{suffix}")


def show_credentials(target: Target, narrator: Narrator) -> int:
    """How to log in, quoted so that it works when pasted: a bcrypt hash holds `$`, which double quotes would expand."""
    known = host_credentials(target)
    urls = addresses(target, target.settings)
    directory = paths.secrets_dir(target.name)
    authority = authority_file(target)
    curl = f"curl --cacert {shlex.quote(str(authority))}" if authority else "curl"
    if store.unfinished(directory):
        narrator.say(
            f"A rotation is not finished ({target.command('rotate')}); until it is, the host may hold those of "
            f"{directory / store.FORMER_FILE}.",
            style="yellow",
        )
    unknown = f"not known here ({target.command('rotate')} makes one that is)"
    if "comfyui" in urls:
        narrator.say("ComfyUI", style="bold")
        password = known.comfyui.password or unknown
        narrator.say(f"  browser    {urls['comfyui']}   user {known.comfyui.user}   password {password}")
        narrator.say(f"  token      {directory / store.TOKEN_FILE}")
        token = shlex.quote(f"Authorization: Bearer {known.comfyui.password_bcrypt}")
        narrator.say(f"  program    {curl} -H {token} {urls['comfyui']}/system_stats")
    if "forge" in urls:
        narrator.say("Forge", style="bold")
        narrator.say(f"  browser    {urls['forge']}   user {known.forge.user}   password {known.forge.password}")
        pair = shlex.quote(f"{known.forge.user}:{known.forge.password}")
        narrator.say(f"  program    {curl} -u {pair} {urls['forge']}/sdapi/v1/samplers")
    narrator.say(f"For shells:  set -a; . {shlex.quote(str(directory / '.env.generated'))}")
    if authority:
        narrator.say(f"Browsers:    import {authority} as a certificate authority")
    narrator.say("The addresses are the host's own; `make tunnel` brings them here.")
    return 0


def status(target: Target, narrator: Narrator, service: str = "") -> int:
    """What runs, weights on the way, disk, what the host sees, last change and verify. 1 when a declared container is not healthy."""
    require_up(target, narrator)
    settings = target.settings
    seen_last = shlex.quote(monitoring.state_file(settings).removeprefix(f"{settings.state_dir()}/"))
    script = (
        f"{recorded.state_shell(settings)}"
        "docker ps -a --format '{{.Names}}\\t{{.Image}}\\t{{.Status}}' 2>/dev/null; echo ::; "
        f"df -h --output=avail,size,target {shlex.join(settings.data_directories())} 2>/dev/null | tail -n +2 | sort -u; echo ::; "
        f'tail -n 1 "$state"/audit.log 2>/dev/null; echo ::; {recorded.script(settings, whole=False)} echo ::; '
        f'date +%s; cat "$state"/{seen_last} 2>/dev/null; echo ::; {transfer.SCRIPT}'
    )
    containers, disk, audit, documents, seen, told = (
        part.strip() for part in target.ssh().run(script).stdout.split("::\n")
    )
    rows = {row[0]: row for row in (line.split("\t") for line in containers.splitlines()) if len(row) == 3}
    names = _containers(target, service)
    healthy = True
    for name in names:
        _, image, state_text = rows.get(name, (name, "-", "not there"))
        fine = "(healthy)" in state_text
        healthy &= fine
        narrator.say(f"  {name:<16} {state_text:<28} {image}", style="green" if fine else "red")
    known = recorded.parse(recorded.documents(documents))
    if record := known.deployed:
        narrator.say(f"  release          {record['release']}, sources: {record['sources']}")
    for finding in recorded.elsewhere(known.roots, known.place, settings):
        narrator.say(f"  {finding.problem}\n  -> {finding.remedy}", style="yellow")
    _say_transfer(target, narrator, transfer.parse(told))
    narrator.say(
        f"  disk             {'; '.join(' '.join(line.split()) for line in disk.splitlines()) or 'unknown'} (free, size, mount)"
    )
    if settings.monitoring.enabled:
        now, _, state_file = seen.partition("\n")
        text, verdict = monitoring.in_short(state_file, float(now), settings.monitoring.interval)
        narrator.say(f"  monitor          {text}", style={"up": "green", "down": "red"}.get(verdict, "yellow"))
    last = json.loads(audit.splitlines()[-1]) if audit else {}
    if last:
        narrator.say(f"  last change      {last['time']} by {last['who']}, commit {last['commit']}, {last['result']}")
    _say_last_verify(target, narrator, last.get("time", ""))
    return 0 if healthy else 1


def _say_last_verify(target: Target, narrator: Narrator, changed: str) -> None:
    """The last report in short. changed: when the host was last changed."""
    place = paths.reports_dir(target.name)
    if not (place / "latest").exists():
        return
    report = last_report(place)
    if report is None:
        narrator.say(f"  last verify      its report cannot be read: {place / 'latest'}", style="yellow")
        return
    first, *more = in_short(report, datetime.now(timezone.utc), changed)
    narrator.say(
        f"  last verify      {first}", style={"passed": "green", "failed": "red"}.get(report.verdict, "yellow")
    )
    for line in (*more, os.path.relpath((place / "latest").resolve() / REPORT_PAGE)):
        narrator.say(f"                   {line}")


def _say_transfer(target: Target, narrator: Narrator, found: transfer.Transfer) -> None:
    if not found.text():
        return
    narrator.say(f"  weights          {found.text()}", style="red" if found.failed else "yellow")
    fetch = target.command("models-fetch")
    if found.waiting:
        remedy = f"make room on the disk of {target.settings.models_path()}; it goes on by itself"
    elif found.failed:
        remedy = f"mend that, then: {fetch}"
    elif found.stopped:
        remedy = f"{fetch} goes on with it"
    else:
        return
    narrator.say(f"                   -> {remedy}")


def _by_name(target: Target) -> dict[str, str]:
    known = {name: service.container for name, service in target.settings.enabled().items()}
    return known | {"gateway": target.settings.gateway_container}


def service_name(target: Target, service: str) -> str:
    """A service's own name, given that or its container's; empty stays empty. Raises AtelierError for an unknown one."""
    for name, container in _by_name(target).items():
        if service in (name, container):
            return name
    if service:
        raise AtelierError(f"SERVICE={service}: no such service", f"known here: {', '.join(_by_name(target))}")
    return ""


def _containers(target: Target, service: str) -> list[str]:
    """The container of a service, or all in the order in which they start."""
    name = service_name(target, service)
    return [_by_name(target)[name]] if name else list(_by_name(target).values())


def logs(target: Target, narrator: Narrator, service: str, lines: int) -> int:
    """The last lines of each container's log, or those of the unit that fetches the weights."""
    require_up(target, narrator)
    journal = f"journalctl -u {UNIT} -n {lines} -o short-iso --no-pager"
    if service == "weights":
        commands = {service: journal}
    else:
        commands = {name: f"docker logs --tail {lines} {name}" for name in _containers(target, service)}
    for name, command in commands.items():
        narrator.say(f"--- {name}", style="bold")
        result = target.ssh().run(f"{command} 2>&1")
        narrator.say(result.stdout.rstrip())
        if result.status != 0:
            return 1
    return 0


def compose(target: Target, narrator: Narrator, verb: str, service: str) -> int:
    """Start, stop or restart services; start and restart wait until they are healthy."""
    require_up(target, narrator)
    ssh = target.ssh()
    containers = _containers(target, service)
    if verb == "stop":
        containers.reverse()  # the gateway first, so that nobody meets a half-stopped stack
    for container in containers:
        directory = shlex.quote(f"{target.settings.config_root}/services/{container}")
        wait = f"docker compose up -d --no-recreate --wait --wait-timeout {target.settings.timeouts.start}"
        steps = {"stop": "docker compose stop", "start": wait, "restart": f"docker compose restart && {wait}"}
        narrator.begin(verb.capitalize(), container)
        result = ssh.run(f"cd {directory} && {steps[verb]}")
        if result.status != 0:
            raise AtelierError(
                f"{container}: {verb} failed: {result.stderr.strip()[-400:]}", f"make logs SERVICE={container}"
            )
        narrator.end(changed=True)
    return 0


def tunnel(target: Target, narrator: Narrator) -> int:
    """Forward the published ports to this computer until Ctrl-C."""
    require_up(target, narrator)
    ports = {name: service.port for name, service in target.settings.enabled().items()}
    with target.ssh().forward(ports, target.settings.own_address(), same_ports=True) as local:
        for name, port in local.items():
            narrator.say(f"  {TITLES[name]:<30} {target.settings.scheme()}://localhost:{port}")
        narrator.say("Ctrl-C ends it.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


def fetch_outputs(target: Target, narrator: Narrator) -> int:
    """Copy images that are not here yet into outputs/<host>/; nothing is deleted on either side."""
    require_up(target, narrator)
    destination = paths.outputs_dir(target.name)
    destination.mkdir(parents=True, exist_ok=True)
    root = target.settings.outputs_path()
    listing = target.ssh().run(f"cd {root} && find . -type f -printf '%s %P\\n'", check=True).stdout.splitlines()
    remote = {path: int(size) for size, _, path in (line.partition(" ") for line in listing)}
    missing = [path for path, size in remote.items() if not _same_size(destination / path, size)]
    if missing:
        _copy(target, root, missing, destination)
    narrator.say(f"{len(missing)} of {len(remote)} files brought to {destination}")
    return 0


def _same_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _copy(target: Target, root: str, names: list[str], destination: Path) -> None:
    arguments, prefix = target.ssh().root_command(f"tar -C {shlex.quote(root)} --null -T - -cf -")
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sender:
        assert sender.stdin and sender.stdout  # noqa: S101 - pipes were asked for
        with subprocess.Popen(["tar", "-C", str(destination), "-xf", "-"], stdin=sender.stdout) as receiver:
            sender.stdin.write(prefix + "\0".join(names).encode())
            sender.stdin.close()
    if sender.returncode or receiver.returncode:
        raise AtelierError("copying the images broke off", "run it again; what is here already is not copied twice")
