"""Group survival: a restart loses nothing and opens nothing. A service at work is left alone."""

import threading
import time

import pytest
from stack import Stack, fresh_prefix, fresh_seed
from test_access import REFUSED
from test_generation import comfyui_image

from atelier import workflows
from atelier.comfyui import prepare
from atelier.errors import AtelierError

DOWN = (502, 503)
GUARDED = {"comfyui": "/prompt", "forge": "/sdapi/v1/samplers"}


class Stranger(threading.Thread):
    """Knocks at a service all through a restart and remembers every answer. A closed port is no answer."""

    def __init__(self, stack: Stack, service: str) -> None:
        super().__init__(daemon=True)
        self._client = stack.http(service)
        self._path = GUARDED[service]
        self._done = threading.Event()
        self.answers: dict[str, int] = {}

    def run(self) -> None:
        while not self._done.wait(0.02):
            try:
                status = self._client.get(self._path, timeout=5).status_code
            except AtelierError:
                continue
            self.answers[f"answered {status}"] = status

    def stop(self) -> dict[str, int]:
        self._done.set()
        self.join(10)
        return self.answers


def restart(stack: Stack, check, service: str) -> None:
    """Restart a container with strangers at every door, and wait until it is healthy and its doors are served again."""
    container, seconds = stack.containers[service], stack.settings.timeouts.start
    served = {name: is_up(stack, name) for name in stack.applications if service in (name, "gateway")}
    check("served before the restart", served, all(served.values()))
    strangers = {name: Stranger(stack, name) for name in served}
    for stranger in strangers.values():
        stranger.start()
    started = time.monotonic()
    try:
        stack.output(f"docker restart {container} >/dev/null")
        while not (is_healthy(stack, service) and all(is_up(stack, name) for name in served)):
            if time.monotonic() - started > seconds:
                check(f"{container} healthy and served within {seconds} s", "time-out", False)
            time.sleep(0.3)
    finally:
        answers = {name: stranger.stop() for name, stranger in strangers.items()}
    check(f"{container} restarted", f"in {time.monotonic() - started:.1f} s", True)
    for name, statuses in answers.items():
        check.statuses(f"{name}: strangers never got in meanwhile", (*REFUSED, *DOWN), statuses)


def is_healthy(stack: Stack, service: str) -> bool:
    """Whether a container runs and its health check says so."""
    state = stack.inspect()[service]["State"]
    return state["Status"] == "running" and state.get("Health", {}).get("Status") == "healthy"


def is_up(stack: Stack, service: str) -> bool:
    """Whether the gateway serves an application."""
    try:
        return stack.http(service).get("/healthz", timeout=5).status_code == 200
    except AtelierError:
        return False


def owner_gets_in(stack: Stack, check, service: str) -> None:
    """The credentials known here still open the service, over new connections."""
    if service == "comfyui":
        running = stack.comfyui.queue()
        check("ComfyUI takes its token", f"queue: {running}", True)
    else:
        with stack.new_forge() as forge:
            check(
                "Forge takes its password in the form and in the API", "taken", forge.login() and bool(forge.samplers())
            )


@pytest.mark.check("survival.comfyui.restart")
def test_comfyui_survives_a_restart(stack, check):
    busy = stack.comfyui.queue()
    if any(busy.values()):
        pytest.skip(f"ComfyUI is at work ({busy}); run again when its queue is empty")
    workflow = prepare(workflows.load("smoke"), seed=fresh_seed(), prefix=fresh_prefix())
    data, path = comfyui_image(stack, check, workflow)
    restart(stack, check, "comfyui")
    owner_gets_in(stack, check, "comfyui")
    file = stack.file(path)
    kept = file is not None and file.content == data
    check("the image made before is still there", "unchanged" if kept else "lost", kept)


@pytest.mark.check("survival.forge.restart")
def test_forge_survives_a_restart(stack, check):
    try:
        busy = stack.forge.jobs()
    except AtelierError as error:
        check("Forge says whether it is at work", error.message, False)
    if busy:
        pytest.skip(f"Forge is at work ({busy} jobs); run again when it is idle")
    listing = f"find {stack.outputs('forge')} -type f | sort | sha256sum"
    before = stack.output(listing)
    restart(stack, check, "forge")
    owner_gets_in(stack, check, "forge")
    kept = stack.output(listing) == before
    check("the images made before are still there", "unchanged" if kept else "changed", kept)


@pytest.mark.check("survival.gateway.restart")
def test_the_gateway_survives_a_restart(stack, check):
    restart(stack, check, "gateway")
    for service in stack.applications:
        owner_gets_in(stack, check, service)
