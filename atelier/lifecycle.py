"""From a target to a deployment: facts, credentials, sources and preflight, then the deploy under the host's lock."""

import contextlib
import datetime
import getpass
import json
import os
import secrets
import shlex
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from atelier import certificates, hostfacts, images, models_lock, paths, preflight, sources
from atelier import credentials as store
from atelier import reboot as restarting
from atelier.certificates import Anchor, Certificate
from atelier.console import Narrator
from atelier.credentials import Credentials
from atelier.deployment import Deployment, uses_docker_ce
from atelier.errors import AtelierError, Finding
from atelier.gpu.plan import GpuPlan, Torch, plan_gpu
from atelier.hostfacts import HostFacts
from atelier.models import weights_for
from atelier.reboot import RestartNeededError
from atelier.settings import Settings, TlsSettings
from atelier.sources import Sources
from atelier.ssh import Ssh
from atelier.target import Target
from sandbox import shared

Result = TypeVar("Result")

LOCK_DIRECTORY = "/run/atelier"
HOLDER = secrets.token_hex(8)
"""This process, as the host's lock knows it."""
BEAT, SILENCE = 20.0, 90
"""Seconds between the signs of life that keep the lock, and without one after which the host takes it back."""

MOMENT = 1
"""Seconds in which whoever only looks at the host's lock has let go of it."""


def choose_credentials(
    target: Target, facts: HostFacts, environment: Mapping[str, str], imported: Credentials | None = None
) -> Credentials:
    """The credentials of a deploy: those stored on this computer, else fresh or imported ones, which only a deploy stores.

    Raises AtelierError rather than rotate anything silently: when the host carries credentials that this computer does
    not know, or when the environment or an import asks for others than are stored.
    """
    directory = paths.secrets_dir(target.name)
    stored = store.load(directory)
    require_known(target, facts, stored, store.unfinished(directory))
    if stored is None:
        return imported or store.generate(environment)
    names = store.differing(stored, environment)
    if names:
        raise AtelierError(
            f"{', '.join(names)} in the environment differ from the stored credentials of {target.name}",
            f"unset them; {target.command('rotate')} is what changes credentials, and takes them from there",
        )
    if imported and not store.is_same_account(imported.comfyui, stored.comfyui):
        raise AtelierError(
            f"IMPORT: {target.name} has credentials already, in {directory}",
            f"leave IMPORT out; {target.command('rotate')} changes them",
        )
    return stored


def require_known(
    target: Target, facts: HostFacts, stored: Credentials | None, begun: store.Former | None = None
) -> None:
    """Raises AtelierError when the host carries credentials that this computer neither knows nor has begun to replace."""
    directory = paths.secrets_dir(target.name)
    remedy = f"copy .secrets/{target.name}/ from the computer that deployed it to {directory}"
    rotate = f"; where nobody has that any more, {target.command('rotate')} makes new ones"
    sandbox = f"; or throw the sandbox away: make sandbox-down NAME={target.name}" if target.kind == "sandbox" else ""
    deployed_before = f"{target.name} was deployed before (instance {facts.instance}) and this computer"
    if facts.instance and stored is None:
        raise AtelierError(f"{deployed_before} has no credentials for it", remedy + rotate + sandbox)
    if facts.instance and stored and stored.instance != facts.instance:
        raise AtelierError(f"{deployed_before} knows other credentials under that name", remedy + sandbox)
    known = {store.fingerprint(each) for each in (stored, begun and begun.credentials) if each}
    if begun:
        known.add(begun.replaces)
    if facts.fingerprint and facts.fingerprint not in known:
        raise AtelierError(
            f"{target.name} has newer credentials than this computer: they were rotated from another one, "
            f"or {directory} is an old copy",
            remedy + rotate + sandbox,
        )


def keep_credentials(target: Target, deployment: Deployment) -> None:
    """Store the credentials of a deploy on this computer before the host gets them, the derived files included."""
    store.save(paths.secrets_dir(target.name), deployment.credentials)
    if deployment.internal:
        certificates.save(paths.secrets_dir(target.name), deployment.internal)


def gather(ssh: Ssh, target: Target) -> HostFacts:
    """The host's facts, in one round trip."""
    facts = hostfacts.parse(ssh.run(hostfacts.script(target.settings), timeout=120, check=True).stdout)
    if target.settings.profile == "gpu-simulated":
        # A sandbox is a container, where nobody may install a driver; the simulated machine is none. The headers of its
        # kernel come with the driver's stand-ins, which apt does not know yet; a real host's come from its own archive.
        facts = replace(facts, gpu=replace(facts.gpu, container="", headers=facts.gpu.headers or "available"))
    return facts


def prepare(
    target: Target,
    ssh: Ssh,
    source_mode: Literal["auto", "upstream", "double"],
    narrator: Narrator,
    only: str = "",
    choose: Callable[[HostFacts], Credentials] | None = None,
) -> Deployment:
    """Everything decided: sources fetched into the local cache, images planned, credentials chosen.

    The host is not changed. only: one service, with the gateway, instead of all. choose: what chooses the credentials
    instead of `choose_credentials`. Raises AtelierError.
    """
    if source_mode == "double" and target.kind != "sandbox":
        raise AtelierError("SOURCES=double: doubles are for the sandbox only", "leave SOURCES out, or HOST=sandbox")
    facts = gather(ssh, target)
    credentials = choose(facts) if choose else choose_credentials(target, facts, os.environ)
    narrator.begin("Sources", "Fetch sources at their pinned commits into the local cache")
    chosen = sources.choose(source_mode if target.kind == "sandbox" else "upstream")
    narrator.end(changed=False)
    if chosen.mode == "double":
        narrator.say("  doubles stand in for ComfyUI and Forge", style="yellow")
    internal = choose_internal(target, narrator.say) if target.settings.tls.mode == "internal" else None
    deployment = _decide(target, facts, credentials, chosen, internal)
    _require_valid(deployment.certificate, target.settings.tls)
    script = hostfacts.presence_script(deployment.settings, deployment.weights, deployment.fetcher())
    return replace(deployment, only=only, present=frozenset(ssh.run(script).stdout.split()))


def decide_as_deployed(target: Target, ssh: Ssh, record: Mapping[str, Any]) -> Deployment:
    """What a deploy from here would bring about now, from sources of the kind that were deployed; nothing is fetched.

    For comparison: what the host has already of images and weights is not asked. record: its state/deployed.json.
    Raises AtelierError where this computer lacks what decides: credentials, or a file that the settings name.
    """
    known = store.load(paths.secrets_dir(target.name))
    if known is None:
        raise AtelierError(f"no credentials of {target.name} on this computer", target.command("deploy"))
    internal = internal_as_deployed(target) if target.settings.tls.mode == "internal" else None
    return _decide(target, gather(ssh, target), known, sources.pinned(record["sources"]), internal)


def _decide(
    target: Target,
    facts: HostFacts,
    credentials: Credentials,
    chosen: Sources,
    internal: certificates.Internal | None,
) -> Deployment:
    settings = sandbox_settings(target.settings, chosen.mode) if target.kind == "sandbox" else target.settings
    gpu = plan_gpu(facts, settings)
    return Deployment(
        settings=settings,
        facts=facts,
        credentials=credentials,
        builds=images.plan(settings, chosen, torch_variant(settings, gpu)),
        weights=weights_for(settings, paths.PROJECT),
        sources=chosen.mode,
        certificate=internal.gateway if internal else read_certificate(target),
        gpu=gpu,
        token=models_token(settings),
        internal=internal,
        acme_roots=read_roots(settings.tls),
    )


def models_token(settings: Settings) -> str | None:
    """The token that the settings name, for gated repositories of weights."""
    path = settings.models.token_file
    return models_lock.read_token(paths.PROJECT / Path(path).expanduser()) if path else None


def torch_variant(settings: Settings, plan: GpuPlan) -> Torch:
    """The torch that the images get: a simulated GPU computes nothing."""
    return plan.torch if settings.profile == "gpu" else "cpu"


def decide_again(target: Target, ssh: Ssh, deployment: Deployment) -> Deployment:
    """The same deployment on the host as it is now, for example with a driver that tells the GPUs' UUIDs."""
    facts = gather(ssh, target)
    gpu = plan_gpu(facts, deployment.settings)
    settings = deployment.settings
    builds = images.plan(settings, sources.choose(deployment.sources), torch_variant(settings, gpu))
    return replace(deployment, facts=facts, gpu=gpu, builds=builds)


def sandbox_settings(settings: Settings, mode: str) -> Settings:
    """A sandbox's settings with what is made for it on this computer: weights, and the simulated GPU's packages.

    Weights that the operator chose stay as chosen.
    """
    said = settings.models.model_fields_set
    sets = settings.models.sets if "sets" in said else shared.default_sets(mode)
    synthetic = {
        "lock": str(shared.write_weights(mode, sets)),
        "sets": sets,
        "mirrors": [shared.mirror(mode)],
        "hub": False,
    }
    unsaid = {key: value for key, value in synthetic.items() if key not in said}
    update: dict[str, object] = {"models": settings.models.model_copy(update=unsaid)}
    if settings.profile == "gpu-simulated":
        from sandbox import simulated_gpu

        update["gpu"] = settings.gpu.model_copy(update=simulated_gpu.repositories())
    return settings.model_copy(update=update)


def choose_internal(target: Target, say: Callable[..., None]) -> certificates.Internal:
    """Authority and certificate of mode `internal`: those kept on this computer, made anew where a deploy has to.

    Nothing is stored. Raises AtelierError when it cannot be done with what is kept.
    """
    settings = target.settings
    address = target.destination.resolved()
    given = (address, target.destination.host, settings.bind_address, *settings.tls.names)
    names = certificates.usable_names((*given, *certificates.OWN_NAMES))
    kept = certificates.load(paths.secrets_dir(target.name))
    chosen = certificates.up_to_date(kept, target.name, names, datetime.datetime.now(datetime.timezone.utc))
    if chosen.authority != kept.authority:
        file = f".secrets/{target.name}/{certificates.AUTHORITY_FILE}"
        how, import_it = ("made anew", "import it again") if kept.authority.chain else ("made", "import it")
        say(f"  TLS: {file} is {how} for {', '.join(names)}; users {import_it}")
        if not certificates.usable_names((address,)):
            say(
                f"  TLS: it cannot be for `{address}`; users need an address of those above, or a full name in tls.names"
            )
    return chosen


def internal_as_deployed(target: Target) -> certificates.Internal:
    """Authority and certificate of mode `internal` as the last deploy from here left them.

    However old they are, and by whatever address this computer knows the host. Where the settings name what they are not
    for, those that a deploy would make. Nothing is stored. Raises AtelierError when it cannot be done with what is kept.
    """
    settings = target.settings
    names = certificates.usable_names((settings.bind_address, *settings.tls.names, *certificates.OWN_NAMES))
    kept = certificates.load(paths.secrets_dir(target.name))
    return kept if certificates.is_for(kept.gateway, names) else choose_internal(target, lambda _: None)


def read_certificate(target: Target) -> Certificate | None:
    """What the gateway has from this computer: in mode `internal` what is kept, in mode `files` what the operator names.

    Raises AtelierError when it cannot be read, or certificate and key do not belong together.
    """
    tls = target.settings.tls
    if tls.mode == "internal":
        return certificates.load(paths.secrets_dir(target.name)).gateway
    if tls.mode != "files":
        return None
    chain, key = (paths.PROJECT / Path(str(name)).expanduser() for name in (tls.certificate, tls.key))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key, password=lambda: b"")
        return Certificate(chain.read_text(encoding="ascii"), key.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise AtelierError(
            f"tls: {chain} and {key} are not a certificate and its key: {error}",
            "name a PEM chain and its private key without a passphrase",
        ) from None


def _require_valid(certificate: Certificate | None, tls: TlsSettings) -> None:
    if certificate is None:
        return
    begins, ends = certificates.lifetime(certificate.chain)
    standing = certificates.validity(begins, ends, datetime.datetime.now(datetime.timezone.utc), renews_itself=False)
    if standing in ("has ended", "begins later"):
        raise AtelierError(
            f"tls: {tls.certificate} is valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d} only",
            "name one that is valid now",
        )


def read_anchor(target: Target) -> Anchor | None:
    """What clients have to accept from the gateway; None where it speaks no TLS. Raises AtelierError."""
    tls = target.settings.tls
    if tls.mode == "off":
        return None
    if tls.mode == "internal":
        roots = certificates.load(paths.secrets_dir(target.name)).authority.chain
        return Anchor(roots, certificates.OWN_NAMES[0])
    if tls.mode == "acme":
        return Anchor(read_roots(tls), str(tls.domain), system=True)
    certificate = read_certificate(target)
    # The name in the operator's own is not asked: the way to it may be a forward on this computer.
    return Anchor(certificate.chain if certificate else "", "")


def read_roots(tls: TlsSettings) -> str:
    """The root certificates of an ACME server that the system does not know; empty where it does. Raises AtelierError."""
    if not tls.acme_root:
        return ""
    path = paths.PROJECT / Path(tls.acme_root).expanduser()
    try:
        text = path.read_text(encoding="ascii")
        certificates.lifetime(text)
    except (OSError, ValueError) as error:
        raise AtelierError(f"tls.acme_root: {path}: {error}", "name a file with certificates in PEM") from None
    return text


def find_obstacles(
    ssh: Ssh, deployment: Deployment, narrator: Narrator, *, waits_for_lock: bool = False
) -> list[Finding]:
    """Everything that would stop this deploy, the reachability of the sources it will use included.

    waits_for_lock: a package manager at work is no obstacle; the steps that need it wait for it and name it.
    """
    narrator.begin("Preflight", "Look for everything that would stop this deploy")
    apt_urls = [*docker_urls(deployment.facts), *preflight.repository_urls(deployment.gpu)]
    archive = not deployment.facts.deployed or deployment.gpu.action == "install"
    unreachable = _unreachable(ssh, deployment.settings, needed_urls(deployment), apt_urls, archive)
    found = preflight.findings(unlocked(deployment) if waits_for_lock else deployment, time.time(), unreachable)
    narrator.end(changed=False)
    return found


def find_weights_obstacles(ssh: Ssh, deployment: Deployment, narrator: Narrator) -> list[Finding]:
    """Everything that would stop bringing the weights alone; a package manager at work is waited for."""
    narrator.begin("Preflight", "Look for everything that would keep the weights from coming")
    archive = not deployment.facts.deployed
    unreachable = _unreachable(ssh, deployment.settings, weights_urls(deployment), [], archive)
    found = preflight.weights_findings(unlocked(deployment), time.time(), unreachable)
    narrator.end(changed=False)
    return found


def _unreachable(
    ssh: Ssh, settings: Settings, urls: Sequence[str], apt_urls: Sequence[str], archive: bool
) -> dict[str, str]:
    script = hostfacts.reachability_script(settings.proxy, urls, apt_urls, archive)
    return hostfacts.parse_reachability(ssh.run(script, timeout=180).stdout)


def unlocked(deployment: Deployment) -> Deployment:
    """The same deployment as if no package manager were at work on its host."""
    facts = deployment.facts
    if not facts.lock_holder:
        return deployment
    # What one unpacks at this moment looks like what an interrupted one left.
    return replace(deployment, facts=replace(facts, lock_holder="", unrepairable=""))


def needed_urls(deployment: Deployment) -> list[str]:
    """Small documents at each source that this deploy will fetch from by itself, the archives of apt apart."""
    urls = images.index_probe_urls([step.build for step in deployment.image_steps() if step.action == "build"])
    return list(dict.fromkeys([*urls, *weights_urls(deployment)]))


def weights_urls(deployment: Deployment) -> list[str]:
    """Small documents at each source of the weights that are missing."""
    models = deployment.settings.models
    urls = [url for weight in deployment.missing_weights() for url in weight.probe_urls(models.mirrors, models.hub)]
    return list(dict.fromkeys(urls))


def docker_urls(facts: HostFacts) -> list[str]:
    """Docker's own repository where the engine has yet to come from it."""
    if not uses_docker_ce(facts) or "docker-ce" in facts.packages:
        return []
    return [f"https://download.docker.com/linux/{facts.os_id}/dists/{facts.os_codename}/InRelease"]


@contextlib.contextmanager
def host_lock(ssh: Ssh, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold the host's lock for as long as this process lives; a second deploy learns who holds it.

    The lock is a flock of a shell whose standard input is ours, so it ends with us however we end. What a killed deploy
    left running on the host holds a second one, and is waited for.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    who = f"{getpass.getuser()} on {socket.gethostname()} since {now:%Y-%m-%d %H:%M} UTC"
    script = (
        f"mkdir -p -m 0700 {LOCK_DIRECTORY} && cd {LOCK_DIRECTORY} && exec 9<>lock 8<>busy; "
        f"flock -w {MOMENT} 9 || {{ echo \"held by $(head -n 1 owner)\"; exit 1; }}; printf '%s\\n' {shlex.quote(who)} {HOLDER} >owner; "
        "flock -n 8 || { echo waiting; flock 8; }; flock -u 8; echo locked; "
        # A closed laptop leaves a connection that the host takes for alive, for a quarter of an hour or longer.
        f'while [ -n "$(timeout {SILENCE} head -c 1)" ]; do :; done'
    )
    process, ended = ssh.popen(script), threading.Event()
    assert process.stdin and process.stdout  # noqa: S101 - popen was asked for pipes
    try:
        answer = process.stdout.readline().decode(errors="replace").strip()
        if answer == "waiting":
            say("  waiting for what an interrupted deploy left running on the host ...")
            answer = process.stdout.readline().decode(errors="replace").strip()
        if answer != "locked":
            raise AtelierError(
                f"another deploy of {ssh.destination.host} is running: {answer or 'no answer from the lock'}",
                f"wait until it is done; its lock ends with it, and {SILENCE} s after its network went away",
            )
        threading.Thread(target=_beat, args=(process.stdin, ended), daemon=True).start()
        yield
    finally:
        ended.set()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def with_restart(target: Target, ssh: Ssh, attempt: Callable[[], Result], yes: bool, narrator: Narrator) -> Result:
    """What an attempt brings; where it needs a restart of the host, that after a yes, and the attempt once more.

    The attempt holds the host's lock itself. yes: given beforehand. Raises AtelierError without one.
    """
    try:
        return attempt()
    except RestartNeededError as needed:
        asked_in = restarting.boot_id(ssh)
        restarting.require_consent(target.name, needed.reason, yes, narrator)
    with host_lock(ssh):  # nobody else is at work, and nobody restarted it while the question stood
        if restarting.boot_id(ssh) == asked_in:
            restarting.reboot(ssh, target.settings.timeouts.reboot, narrator)
    try:
        return attempt()
    except RestartNeededError as needed:
        raise AtelierError(
            f"{target.name} was restarted and must be again: {needed.reason}",
            f"{target.command('doctor')} looks for the cause",
        ) from None


def deploy_at_work(ssh: Ssh) -> str:
    """Who else holds the host's lock, a sabotage included; empty where nobody does.

    The lock is tried, for a moment that `host_lock` waits: inside a PID namespace the kernel lists none whose taker ended.
    """
    free = f"[ ! -e lock ] || flock -ns lock true || grep -qx {HOLDER} owner"
    return ssh.run(f"cd {LOCK_DIRECTORY} && {{ {free} || head -n 1 owner; }}", timeout=30).stdout.strip()


def _beat(lock: IO[bytes], ended: threading.Event) -> None:
    with contextlib.suppress(OSError, ValueError):  # the lock is gone: the next command on the host says so
        while not ended.wait(BEAT):
            lock.write(b".")
            lock.flush()


def guard() -> str:
    """Shell before each command of a deploy: others wait for what outlives us, and we do nothing without the lock."""
    return (
        f"exec 8<>{LOCK_DIRECTORY}/busy && flock -s 8; grep -qx {HOLDER} {LOCK_DIRECTORY}/owner "
        "|| { echo 'another deploy has begun on this host while this one was out of reach' >&2; exit 1; }; "
    )


def audit_line(changed: Sequence[str], verdict: str) -> str:
    """One line of the audit log on the host: when, who, which commit, what changed."""
    return json.dumps(
        {
            "time": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "who": f"{getpass.getuser()}@{socket.gethostname()}",
            "commit": _commit(paths.PROJECT),
            "result": verdict,
            "changed": list(changed),
        }
    )


def append_audit(ssh: Ssh, settings: Settings, line: str) -> None:
    """Append to the audit log; a host that cannot be reached any more must not hide why."""
    directory = shlex.quote(settings.state_dir())
    with contextlib.suppress(AtelierError):
        ssh.run(f"[ -d {directory} ] && cat >>{directory}/audit.log", stdin=(line + "\n").encode())


def _commit(project: Path) -> str:
    result = subprocess.run(
        ["git", "-C", str(project), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return result.stdout.strip() or "unknown"
