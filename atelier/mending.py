"""Looks what is wrong with a host, and carries out the repairs that were decided. The thin shell of `ailments` and `repairs`."""

import base64
import shlex
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from atelier import ailments, apt, lifecycle, openpgp, paths, preflight, sources
from atelier import deployment as decide
from atelier.ailments import Ailments
from atelier.apt import Repository
from atelier.checks.host_state import FULL
from atelier.console import Narrator
from atelier.deployment import DAEMON_JSON, Deployment
from atelier.errors import AtelierError
from atelier.gpu import routes, toolkit
from atelier.preflight import DOCKER_ROOT, image_directory
from atelier.recorded import Recorded
from atelier.repairs import Repair
from atelier.ssh import Ssh, connection_error
from atelier.tree import File

DOWNLOADED = "/run/atelier/repaired.key"
SHOWN_OUTPUT = 15


def look(ssh: Ssh, deployment: Deployment, record: Recorded, leaving: Iterable[str] = ()) -> Ailments:
    """What is wrong with the host, in one round trip; another one where it lacks space. leaving: directories that are to be copied
    to other file systems."""
    settings = deployment.settings
    store, images = settings.models_path(), image_directory(deployment.facts)
    places = {*settings.data_directories(), settings.config_root, "/", "/etc", "/var/lib/dpkg", DOCKER_ROOT, images}
    if record.roots:
        places |= {record.roots.config_root, record.roots.data_root, record.roots.models_dir, record.roots.outputs_dir}
    told = ssh.run(ailments.script(places), timeout=600, check=True).stdout
    facts = ailments.parse(told, time.time(), _repositories(deployment, record))
    full = {
        # What verify asks for afterwards.
        each.mount: FULL - each.free
        for each in facts.file_systems
        if each.free < FULL and not each.read_only
    }
    wanted = preflight.lacking(_with_free_space(deployment, facts))
    lacking = full | {mount: max(short, full.get(mount, 0)) for mount, short in wanted.items()}
    facts = replace(
        facts,
        lacking=lacking,
        leaving=frozenset(_mount(directory, facts) for directory in leaving),
        declared=frozenset(project.container for project in deployment.projects()),
        docker=replace(facts.docker, our_settings=_our_daemon_json(deployment, record)),
    )
    if not lacking:
        return facts
    told = ssh.run(ailments.space_script(store, lacking, images), timeout=600, check=True).stdout
    weights = {weight.sha256 for weight in deployment.weights}
    ours = record.created.get("images", frozenset())
    return ailments.with_space(facts, told, deployment.image_tags().values(), weights, ours)


def _mount(directory: str, facts: Ailments) -> str:
    mounts = [each.mount for each in facts.file_systems if PurePosixPath(directory).is_relative_to(each.mount)]
    return max(mounts, key=len, default="")


def _with_free_space(deployment: Deployment, facts: Ailments) -> Deployment:
    """The same on a host that has as much space as it has now."""
    known, free = deployment.facts, {each.mount: each.free for each in facts.file_systems}
    now = {path: free.get(known.mounts.get(path, ""), before) for path, before in known.disk_free.items()}
    return replace(deployment, facts=replace(known, disk_free=now))


def _repositories(deployment: Deployment, record: Recorded) -> list[Repository]:
    """Those that deploys added to the host, whether the next one would have to add them or not."""
    facts, settings = deployment.facts, deployment.settings
    fingerprint = sources.read_lock(paths.PROJECT / sources.LOCK).nvidia.docker_key
    found = [decide.docker_repository(facts, fingerprint)]
    if deployment.gpu.action != "none":
        bare = replace(facts, gpu=replace(facts.gpu, sources=frozenset(), packages={}))
        of_driver = routes.debian_repository(bare, settings) if facts.os_codename in routes.DEBIAN else None
        found += [each for each in (of_driver, toolkit.toolkit_repository(bare, settings)) if each]
    return [each for each in found if each.source.path in record.created.get("files", ())]


def _our_daemon_json(deployment: Deployment, record: Recorded) -> str:
    """Docker's settings where all of them are ours: there were none when we declared them first."""
    return decide.merged_daemon_json("", deployment.settings) if DAEMON_JSON in record.ours("merged") else ""


def require_possible(planned: Iterable[Repair]) -> None:
    """Raises AtelierError where something stops everything."""
    for repair in planned:
        if repair.stops:
            raise AtelierError(f"{repair.problem}: {repair.why}", repair.remedy)


def mend(ssh: Ssh, ours: Iterable[Repair], narrator: Narrator) -> None:
    """Carry out these repairs. Whoever goes on looks at the host again: a Docker that was dead told nothing of its containers."""
    for repair in ours:
        _carry_out(ssh, repair, narrator)


def require_helped(done: Collection[Repair], left: Iterable[Repair]) -> list[Repair]:
    """What is wrong still although its repair was tried, and stops nobody: less room than before may be enough, and a key's owner
    may have no other. Raises AtelierError where a repair had to help and did not."""
    tried = {repair.deed() for repair in done}
    again = [repair for repair in left if repair.what and repair.deed() in tried]
    for repair in again:
        if not repair.may_fail():
            raise AtelierError(f"{repair.problem}: the repair did not help ({repair.what})", repair.remedy)
    return again


def _carry_out(ssh: Ssh, repair: Repair, narrator: Narrator) -> None:
    narrator.begin("Repairs", repair.what)
    if repair.repository:
        _renew_key(ssh, repair.repository, narrator)
    else:
        _run(ssh, repair.script, repair, narrator, repair.stdin)
    narrator.end(changed=True)


def _renew_key(ssh: Ssh, repository: Repository, narrator: Narrator) -> None:
    """Fetch a repository's key; the host trusts it only when its fingerprint is the one that is pinned here."""
    place = shlex.quote(str(PurePosixPath(DOWNLOADED).parent))
    fetching = Repair(
        f"the key of {repository.name} cannot be fetched", remedy="see the host's network and proxy settings"
    )
    _run(ssh, f"install -d -m 0700 {place}\n{apt.fetch_script(repository.key_url, DOWNLOADED)}", fetching, narrator)
    told = ssh.run(f"base64 {DOWNLOADED}; rm -f {DOWNLOADED}", timeout=60, check=True).stdout
    key = base64.b64decode(told)
    openpgp.require(key, repository.fingerprint, repository.key_url)
    keyring = File(repository.keyring, openpgp.for_keyring(key, repository.keyring))
    ssh.run(lifecycle.guard() + keyring.install_script(), stdin=keyring.content, timeout=60, check=True)


def _run(ssh: Ssh, script: str, repair: Repair, narrator: Narrator, stdin: bytes = b"") -> None:
    """A script of a repair. Raises AtelierError with what it printed."""
    process = ssh.popen(lifecycle.guard() + script)
    assert process.stdin and process.stdout  # noqa: S101 - popen was asked for pipes
    told: deque[str] = deque(maxlen=200)
    with process:
        process.stdin.write(stdin)
        process.stdin.close()
        for raw in process.stdout:
            told.append(raw.decode(errors="replace").rstrip())
            narrator.output(told[-1])
    if process.returncode == 255:
        raise connection_error(ssh.destination, "\n".join(told))
    if process.returncode != 0:
        finding = apt.explain(told)
        lines = [line for line in told if line.strip()][-SHOWN_OUTPUT:]
        raise AtelierError(
            finding.problem if finding else "\n    ".join([f"{repair.problem}: the repair failed", *lines]),
            finding.remedy if finding else repair.remedy,
        )
