"""Group survival: a restart loses nothing and opens nothing, and then the quick checks are green. What is at work is left alone."""

import contextlib
import shlex
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from stack import COMMAND_SECONDS, Stack, fresh_prefix, fresh_seed
from test_access import REFUSED
from test_generation import Made, comfyui_image

from atelier import reboot, workflows
from atelier.checks import Check, existing, survival_state
from atelier.comfyui import ComfyUIError, prepare
from atelier.errors import AtelierError
from atelier.models import Weight
from atelier.verify import Run

DOWN = (502, 503)
GUARDED = {"comfyui": "/prompt", "forge": "/sdapi/v1/samplers"}
SETTLED_SECONDS = 30
"""Some things take a moment after a restart: time synchronisation, timers, what is asked about twice a second."""
CLEARED = "they lie on the host and no restart touches them: look for a timer or a program there that clears up"
ELSEWHERE = "its container reads another directory than before: compare its mounts with the settings; run `make deploy`"


class Stranger(threading.Thread):
    """Knocks at a service all through a restart and remembers every answer. A closed port is no answer."""

    def __init__(self, stack: Stack, service: str) -> None:
        super().__init__(daemon=True)
        self._client = stack.http(service)
        self._path = GUARDED[service]
        self._done = threading.Event()
        self.answers: Counter[int] = Counter()

    def run(self) -> None:
        while not self._done.wait(0.02):
            try:
                status = self._client.get(self._path, timeout=5).status_code
            except AtelierError:
                continue
            self.answers[status] += 1

    def stop(self) -> Counter[int]:
        self._done.set()
        self.join(10)
        return self.answers


@contextlib.contextmanager
def strangers(stack: Stack, check) -> Iterator[None]:
    """Have strangers knock at every door meanwhile, and record that they never got in."""
    knocking = {service: Stranger(stack, service) for service in stack.applications}
    for stranger in knocking.values():
        stranger.start()
    answers = {}
    try:
        yield
    finally:
        answers = {service: stranger.stop() for service, stranger in knocking.items()}
    for service, statuses in answers.items():
        told = ", ".join(f"{count} times {status}" for status, count in statuses.items())
        refused = bool(statuses) and set(statuses) <= {*REFUSED, *DOWN}
        check(f"{service}: strangers never got in at {GUARDED[service]} meanwhile", told or "no answer", refused)


def is_up(door: httpx.Client) -> bool:
    """Whether the gateway serves the application behind a door."""
    try:
        return door.get("/healthz", timeout=5).status_code == 200
    except AtelierError:
        return False


def leave_alone(stack: Stack, check, services: Collection[str], whole_host: bool) -> None:
    """Skip the check where these services, a deploy, or anything that a restart of the host would disturb, are at work."""
    try:
        busy = stack.at_work(services)
    except AtelierError as error:
        check("the applications say whether they are at work", error.message, False, error.hint)
    lines = stack.output(survival_state.at_work_script()).splitlines()
    busy += survival_state.busy_host(lines, stack.containers.values(), whole_host)
    if busy:
        pytest.skip(f"{'; '.join(busy)}: run again when it is idle")


@dataclass(frozen=True)
class Restart:
    """One way to restart. done: as in "the host restarted". concerned: the services whose generations it would end."""

    done: str
    deed: Callable[[], object]
    concerned: Collection[str]
    whole_host: bool = False


def carry_out(stack: Stack, check, restart: Restart) -> None:
    """Restart and wait until every container is healthy and every service is served. What is at work is left alone."""
    doors = {service: stack.http(service) for service in stack.applications}
    closed = [f"{service} is not served" for service, door in doors.items() if not is_up(door)]
    check.none("served before the restart", closed)
    with strangers(stack, check):
        # At the last moment: somebody may have begun since the check looked first.
        leave_alone(stack, check, restart.concerned, restart.whole_host)
        started = time.monotonic()
        restart.deed()
        wait(stack, check, doors)
        check(restart.done, f"in {time.monotonic() - started:.1f} s", True)


def wait(stack: Stack, check, doors: dict[str, httpx.Client]) -> None:
    """Wait until all is up, or until it is certain that it will not be."""
    names, seconds = list(stack.containers.values()), stack.settings.timeouts.start
    started = time.monotonic()
    while True:
        state = survival_state.read_state(stack.ssh.run(survival_state.state_script(names), timeout=60).stdout)
        waiting = state.waiting_for(names)
        if not waiting:
            waiting = [f"{service} is not served" for service, door in doors.items() if not is_up(door)]
        if not waiting:
            return
        waited = time.monotonic() - started
        if never := state.never(names, waited):
            check.free_of("everything comes back by itself", never)
        if waited > seconds:
            check(f"all healthy and served within {seconds} s", f"time-out: {'; '.join(waiting)}", False)
        time.sleep(0.3)


def detached(command: str) -> str:
    """The shell command as a unit of its own, waited for: it is carried out to its end even if this connection ends."""
    return f"systemd-run --quiet --collect --wait --pipe sh -c {shlex.quote(command)}"


def owner_gets_in(stack: Stack, check, service: str) -> None:
    """The credentials known here still open the service, over new connections."""
    if service == "comfyui":
        waiting = sum(len(ids) for ids in stack.comfyui.queue().values())
        check("ComfyUI takes its token", f"taken; {waiting} generations in its queue", True)
    else:
        with stack.new_forge() as forge:
            taken = forge.login() and bool(forge.samplers())
            check("Forge takes its password in the form and in the API", "taken" if taken else "refused", taken)


def images(stack: Stack) -> dict[str, str]:
    """The newest images of every service: sha256 by path."""
    script = survival_state.newest_script(stack.outputs(service) for service in stack.applications)
    return survival_state.read_hashes(stack.output(script))


def nothing_lost(stack: Stack, check, before: dict[str, str]) -> None:
    paths = "\0".join(before).encode()
    answer = stack.ssh.run(survival_state.HASH, stdin=paths, timeout=COMMAND_SECONDS, check=True)
    wrong = survival_state.lost(before, survival_state.read_hashes(answer.stdout))
    check.none(f"the {len(before)} newest images are still there, byte for byte", wrong, CLEARED)


def one_more_image(stack: Stack, check) -> Made:
    """An image of ComfyUI's, proven to lie in the declared directory: what lies elsewhere, a restart might lose."""
    prefix = fresh_prefix()
    return comfyui_image(stack, check, prepare(workflows.load("smoke"), seed=fresh_seed(), prefix=prefix), prefix)


def still_served(stack: Stack, check, made: Made) -> None:
    """ComfyUI hands out an image that it made before."""
    image = made.generation.images[0]
    try:
        now = stack.comfyui.view(image)
    except ComfyUIError as error:
        check("ComfyUI hands out the image made before", error.message, False, ELSEWHERE)
    told = f"{len(now)} bytes" if now == made.data else "other bytes"
    check("ComfyUI hands out the image made before", told, now == made.data, ELSEWHERE)


def quick_checks(stack: Stack, check) -> None:
    """Run the quick checks; their failures become this check's. What only has to settle gets a moment for it."""
    wanted = [each for each in existing(stack.settings, weight_names(stack)) if each.quick and each.run == "always"]
    started = time.monotonic()
    results, crashed = run(stack, wanted)
    first = again = survival_state.unsettled(results.values())
    settled, deadline = time.monotonic(), time.monotonic() + SETTLED_SECONDS
    while again and time.monotonic() < deadline:
        time.sleep(2)
        more, crashed_again = run(stack, [each for each in wanted if each.id in again])
        results, crashed, settled = results | more, crashed or crashed_again, time.monotonic()
        again = survival_state.unsettled(results.values())
    check.free_of(
        f"{len(wanted)} quick checks are green after it",
        survival_state.red_afterwards(results.values(), wanted, crashed),
    )
    if skipped := survival_state.left_out(results.values(), wanted):
        pytest.skip(f"after it, {'; '.join(skipped)}")
    expected, odd = survival_state.held_up(first, settled - started)
    if expected:
        check("the host is itself again within half a minute", "; ".join(expected), True)
    check.warn("green at once", odd, "it mended itself: see `make logs`, and whether `make verify QUICK=1` stays green")


def run(stack: Stack, wanted: list[Check]) -> tuple[dict, bool]:
    """The results of these checks, by id, and whether their run broke off."""
    with tempfile.TemporaryDirectory(prefix="again-", dir=stack.context["work"]) as folder:
        inner = Run(Path(folder), wanted, stack.secret_strings, lambda line, style: None)
        inner.execute({**stack.context, "work": folder, "selected": [each.id for each in wanted]})
    if inner.interrupted:
        raise KeyboardInterrupt
    return inner.records, inner.crashed


def weight_names(stack: Stack) -> set[str]:
    return {Weight.model_validate(weight).name for weight in stack.context["weights"]}


def survive(stack: Stack, check, service: str, concerned: Collection[str]) -> None:
    """Restart one container, and an application's also as a new one; see that nothing is lost, nothing opens, and the
    owner gets in."""
    leave_alone(stack, check, concerned, whole_host=False)
    made = one_more_image(stack, check) if service == "comfyui" else None
    before = images(stack)
    container = stack.containers[service]
    deeds = {f"{container} restarted": f"docker restart {container} >/dev/null"}
    if service in stack.applications:
        deeds[f"{container} made anew"] = recreate_script(stack, container)
    for done, script in deeds.items():
        carry_out(stack, check, Restart(done, lambda script=script: stack.output(detached(script)), concerned))
        for each in concerned:
            owner_gets_in(stack, check, each)
        nothing_lost(stack, check, before)
        if made:
            still_served(stack, check, made)
    quick_checks(stack, check)


def recreate_script(stack: Stack, container: str) -> str:
    """The container anew from its compose file, as a deploy makes it."""
    folder = shlex.quote(f"{stack.settings.config_root}/services/{container}")
    return f"cd {folder} && docker compose up -d --force-recreate"


@pytest.mark.check("survival.comfyui.restart")
def test_comfyui_survives_a_restart(stack, check):
    survive(stack, check, "comfyui", ["comfyui"])


@pytest.mark.check("survival.forge.restart")
def test_forge_survives_a_restart(stack, check):
    survive(stack, check, "forge", ["forge"])


@pytest.mark.check("survival.gateway.restart")
def test_the_gateway_survives_a_restart(stack, check):
    survive(stack, check, "gateway", list(stack.applications))


@pytest.mark.check("survival.docker")
def test_all_survives_a_restart_of_docker(stack, check):
    leave_alone(stack, check, stack.applications, whole_host=True)
    before, started = images(stack), started_at(stack)

    def deed() -> None:
        done = stack.ssh.run(detached("systemctl restart docker"), timeout=180)
        # By the daemon itself: systemd's own lines say only that it failed.
        words = "journalctl _SYSTEMD_UNIT=docker.service -b -n 2 -o cat --no-pager"
        said = stack.ssh.run(words, timeout=60).stdout if done.status else "done"
        check("systemd restarts Docker", said, done.status == 0)

    carry_out(stack, check, Restart("Docker restarted", deed, stack.applications, whole_host=True))
    ended = [name for name, moment in started_at(stack).items() if moment != started[name]]
    check.none(
        "every container kept running",
        [f"{name} was started anew" for name in ended],
        "daemon.json must have live-restore: `make deploy`",
    )
    for service in stack.applications:
        owner_gets_in(stack, check, service)
    nothing_lost(stack, check, before)
    quick_checks(stack, check)


def started_at(stack: Stack) -> dict[str, str]:
    """When each container was started."""
    return {stack.containers[service]: found["State"]["StartedAt"] for service, found in stack.inspect().items()}


@pytest.mark.check("survival.host")
def test_all_survives_a_restart_of_the_host(stack, check):
    leave_alone(stack, check, stack.applications, whole_host=True)
    if not stack.ssh.logs_in_alone():
        pytest.skip("ssh asks for a password or a touch, so this run could not come back to the host after its restart")
    before = images(stack)

    def deed() -> None:
        reboot.restart(stack.ssh, stack.settings.timeouts.reboot)
        stack.reconnect()

    carry_out(stack, check, Restart("the host restarted", deed, stack.applications, whole_host=True))
    for service in stack.applications:
        owner_gets_in(stack, check, service)
    nothing_lost(stack, check, before)
    quick_checks(stack, check)
