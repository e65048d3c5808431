"""Rotation of a deployed host: what it says it proved is so, and killed at any point the next run finishes it.

The tests share one deployed sandbox and run in their order; each leaves the stack as declared.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from harness import Sandbox

from atelier import credentials as store
from atelier import paths
from atelier.credentials import Credentials
from atelier.rotation import Visitor, answer
from atelier.target import sandbox_target
from atelier.verify import services

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-rotate-{os.getpid()}")
DIRECTORY = paths.secrets_dir(SANDBOX.name)
KILLS = 20
SEED = int(os.environ.get("ROTATION_SEED", random.SystemRandom().randrange(10**6)))
LONGEST: dict[str, float] = {}
"""Seconds that a rotation of each service took when nobody killed it."""


@pytest.fixture(scope="module", autouse=True)
def deployed() -> Iterator[None]:
    with SANDBOX.running():
        SANDBOX.deploy()
        yield


@pytest.fixture(scope="module")
def visitors() -> Iterator[dict[str, Visitor]]:
    target = sandbox_target(SANDBOX.name, paths.PROJECT)
    ssh = target.ssh()
    ssh.connect()
    with services(target, ssh) as reach:
        yield {name: Visitor(name, url, True) for name, url in reach.urls.items()}


def stored() -> Credentials:
    known = store.load(DIRECTORY)
    assert known
    return known


def require_let_in(visitors: dict[str, Visitor], known: Credentials) -> None:
    """Both services let in who has these, by the header and by the form."""
    for service, visitor in visitors.items():
        assert answer(visitor.by_header(known.account(service))) == "admitted"
        assert answer(visitor.by_form(known.account(service))[0]) == "admitted"


def require_shut_out(visitors: dict[str, Visitor], former: Credentials, services: tuple[str, ...]) -> None:
    for service in services:
        assert answer(visitors[service].by_header(former.account(service))) == "refused"


HELD = """
for f in comfyui-qwen/PASSWORD forge-turbo/auth.json gateway/credentials.json comfyui-qwen/.secret-key.txt; do
  cat /opt/atelier/secrets/$f; echo; done; cat /srv/atelier/state/credentials"""


def require_nothing_unknown_on_the_host() -> None:
    """Whatever the host holds lies in the store, or in what the store keeps of before."""
    held = SANDBOX.root(HELD)
    former = store.load_former(DIRECTORY)
    known = [stored(), *([former.credentials] if former and former.credentials else [])]
    hashes = {each.account(service).password_bcrypt for each in known for service in ("comfyui", "forge")}
    assert set(re.findall(r"\$2b\$12\$[./A-Za-z0-9]{53}", held)) <= hashes
    assert set(re.findall(r"([\w-]{43}=),2999", held)) <= {each.comfyui_cookie_key for each in known}
    assert held.splitlines()[-1] in {store.fingerprint(each) for each in known}


def test_a_rotation_replaces_everything_and_proves_it(visitors: dict[str, Visitor]) -> None:
    before = stored()
    began = time.monotonic()
    output = SANDBOX.atelier("rotate")
    LONGEST[""] = time.monotonic() - began
    for line in (
        "ComfyUI: the new token: admitted",
        "ComfyUI: a WebSocket with the new token: admitted",
        "ComfyUI: the old token: refused",
        "ComfyUI: the old password in the login form: refused",
        "ComfyUI: a session from before: refused",
        "ComfyUI: a WebSocket from before: closed",
        "Forge: the new HTTP Basic: admitted",
        "Forge: the old HTTP Basic: refused",
        "Forge: the old password in the login form: refused",
        "Forge: a session from before: refused",
    ):
        assert f"  {line}\n" in output
    assert len(re.findall(r"(ComfyUI|Forge): \d+\.\d s between the last answer to the old", output)) == 2
    assert not (DIRECTORY / store.FORMER_FILE).exists()
    after = stored()
    assert after.instance == before.instance and after.comfyui_cookie_key != before.comfyui_cookie_key
    assert (DIRECTORY / store.TOKEN_FILE).read_text() == after.comfyui.password_bcrypt
    assert after.forge.password and after.forge.password in (DIRECTORY / store.ENVIRONMENT_FILE).read_text()
    require_let_in(visitors, after)
    require_shut_out(visitors, before, ("comfyui", "forge"))
    assert json.loads(SANDBOX.root("tail -n 1 /srv/atelier/state/audit.log"))["result"] == "rotated"


@pytest.mark.parametrize("service", ["forge", "comfyui"])
def test_a_rotation_of_one_service_leaves_the_other(service: str, visitors: dict[str, Visitor]) -> None:
    before, other = stored(), {"forge": "comfyui", "comfyui": "forge"}[service]
    container = {"forge": "forge-turbo", "comfyui": "comfyui-qwen"}[other]
    started = SANDBOX.root(f"docker inspect -f '{{{{.State.StartedAt}}}}' {container}")
    began = time.monotonic()
    SANDBOX.atelier("rotate", "--service", service)
    LONGEST[service] = time.monotonic() - began
    after = stored()
    assert after.account(other) == before.account(other) and after.account(service) != before.account(service)
    assert SANDBOX.root(f"docker inspect -f '{{{{.State.StartedAt}}}}' {container}") == started
    require_let_in(visitors, after)
    require_shut_out(visitors, before, (service,))


def test_a_deploy_after_rotations_changes_nothing() -> None:
    assert re.search(r"Deployed: 0 of \d+ operations changed something", SANDBOX.deploy())


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_rotation_is_finished_by_the_next_run(number: int, visitors: dict[str, Visitor]) -> None:
    """SIGKILL to the whole process group at a random point, the points spread over the whole of a rotation."""
    service = ("forge", "comfyui", "forge", "comfyui", "")[number % 5]
    seconds = LONGEST[service] * (number + random.Random(SEED + number).random()) / KILLS
    print(f"kill {number} of seed {SEED}: {service or 'both'} after {seconds:.1f} of {LONGEST[service]:.1f} s")
    arguments = ["rotate", *(["--service", service] if service else [])]
    before = stored()
    process = SANDBOX.started(*arguments, stdout=subprocess.DEVNULL, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    require_nothing_unknown_on_the_host()
    begun = store.unfinished(DIRECTORY)
    promised = stored()
    assert promised == before or begun, "new ones are in the store, and nothing says that they have to be brought"

    SANDBOX.atelier(*arguments)
    after = stored()
    assert after == promised if begun else after != promised, "no third set"
    assert not (DIRECTORY / store.FORMER_FILE).exists()
    require_let_in(visitors, after)
    require_shut_out(visitors, before, (service,) if service else ("comfyui", "forge"))
    assert SANDBOX.root(HELD).splitlines()[-1] == store.fingerprint(after)
