"""Rotation of a deployed host: what it says it proved is so, and killed at any point the next run finishes it.

The tests share one deployed sandbox and run in their order; each leaves the stack as declared.
"""

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import bcrypt
import pytest
from harness import Sandbox

from atelier import credentials as store
from atelier import paths
from atelier.credentials import Credentials, Former
from atelier.rotation import Visitor, answer
from atelier.target import sandbox_target
from atelier.verify import services

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-rotate-{os.getpid()}")
DIRECTORY = paths.secrets_dir(SANDBOX.name)
KILLS = int(os.environ.get("ROTATION_KILLS", 6))
"""Each run takes other points, so that many runs cover what one of twenty kills, which takes ten minutes, would."""
SEED = int(os.environ.get("ROTATION_SEED", random.SystemRandom().randrange(10**6)))
TIMES: dict[str, list[float]] = {}
"""By service: when a rotation that nobody killed said each of its lines."""


PASSWORD = "the password of before"


@pytest.fixture(scope="module", autouse=True)
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A host whose token comes from the previous stack, written as that wrote it; nobody gave its password."""
    token = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(rounds=10, prefix=b"2b")).decode()
    folder = tmp_path_factory.mktemp("before")
    (folder / ".env.generated").write_bytes(
        f"export QWEN_TOKEN=QWEN_TOKEN='{token}'\r\nFORGE_PASSWORD=anvil+fire\r\n".encode()
    )
    with SANDBOX.running():
        output = SANDBOX.deploy("--import", str(folder))
        assert "Imported: QWEN_TOKEN in" in output and "FORGE_PASSWORD in" in output and token not in output
        assert re.search(r"^warning  access.comfyui.browser ", output, re.M) and "Verdict: passed" in output
        yield


def test_an_imported_token_is_in_force_and_its_password_said_to_be_unknown(visitors: dict[str, Visitor]) -> None:
    known = stored()
    assert (known.comfyui.password, known.forge.password) == (None, "anvil+fire")
    told = SANDBOX.atelier("credentials")
    assert f"password not known here (make rotate HOST={SANDBOX.name} makes one that is)" in told
    let_in = known.comfyui.model_copy(update={"password": PASSWORD})
    require_let_in(visitors, known.model_copy(update={"comfyui": let_in}))
    assert "COMFYUI_PASSWORD" not in (DIRECTORY / store.ENVIRONMENT_FILE).read_text()
    output = SANDBOX.deploy("--import", str(DIRECTORY))
    assert re.search(r"Deployed: 0 of \d+ operations changed something", output), "the same import again"


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


@contextmanager
def strangers(visitors: dict[str, Visitor]) -> Iterator[list[int]]:
    """Somebody without credentials who asks both services all the while; what they are answered."""
    answers: list[int] = []
    ended = threading.Event()

    def ask(visitor: Visitor) -> None:
        while not ended.wait(0.05):
            answers.append(visitor.by_header(None))

    threads = [threading.Thread(target=ask, args=[visitor]) for visitor in visitors.values()]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_rotation_replaces_everything_and_proves_it(visitors: dict[str, Visitor]) -> None:
    before = stored()
    with strangers(visitors) as answers:
        output = SANDBOX.atelier("rotate")
    assert 200 not in answers and answers.count(401) > 20, "never open, not for a moment"
    for line in (
        "ComfyUI: the new token: admitted",
        "ComfyUI: a WebSocket with the new token: admitted",
        "ComfyUI: the old token: refused",
        "ComfyUI: not shown: the password of before is not known here",
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
    assert json.loads(SANDBOX.root("tail -n 1 /srv/atelier/state/audit.log"))["result"] == "rotated, proof follows"


@pytest.mark.parametrize("service", ["forge", "comfyui"])
def test_a_rotation_of_one_service_leaves_the_other(service: str, visitors: dict[str, Visitor]) -> None:
    before, other = stored(), {"forge": "comfyui", "comfyui": "forge"}[service]
    container = {"forge": "forge-turbo", "comfyui": "comfyui-qwen"}[other]
    started = SANDBOX.root(f"docker inspect -f '{{{{.State.StartedAt}}}}' {container}")
    output = SANDBOX.atelier("rotate", "--service", service)
    if service == "comfyui":
        assert "  ComfyUI: the old password in the login form: refused\n" in output
        assert "  ComfyUI: a session from before: refused\n" in output
    after = stored()
    assert after.account(other) == before.account(other) and after.account(service) != before.account(service)
    assert SANDBOX.root(f"docker inspect -f '{{{{.State.StartedAt}}}}' {container}") == started
    require_let_in(visitors, after)
    require_shut_out(visitors, before, (service,))


def test_a_deploy_after_rotations_changes_nothing() -> None:
    assert re.search(r"Deployed: 0 of \d+ operations changed something", SANDBOX.deploy())


def test_a_deploy_finishes_a_rotation_that_only_reached_the_store(visitors: dict[str, Visitor]) -> None:
    before = stored()
    promised = store.renew(before, ["forge"], {})
    former = Former(services=("forge",), credentials=before, cookies={}, successor=store.fingerprint(promised))
    store.begin_rotation(DIRECTORY, former, promised)
    assert "a rotation of Forge was not finished" in SANDBOX.deploy("--service", "comfyui", expect=1)
    assert "A rotation is not finished" in SANDBOX.atelier("credentials")
    require_let_in(visitors, before)
    output = SANDBOX.deploy()
    assert "A rotation of Forge was not finished; this deploy did." in output
    assert "  Forge: the old HTTP Basic: refused\n" in output
    assert stored() == promised and store.unfinished(DIRECTORY) is None
    require_let_in(visitors, promised)


def test_an_old_copy_of_the_store_stops_a_deploy_and_a_rotation_replaces_what_it_does_not_know(
    visitors: dict[str, Visitor],
) -> None:
    current = stored()
    store.save(DIRECTORY, store.renew(current, ["forge"], {}))
    assert "has newer credentials than this computer" in SANDBOX.deploy(expect=1)
    assert "leave SERVICE out" in SANDBOX.atelier("rotate", "--service", "forge", expect=1)
    output = SANDBOX.atelier("rotate")
    assert "Forge: not shown: the credentials of before are not known here" in output
    require_let_in(visitors, stored())
    require_shut_out(visitors, current, ("comfyui", "forge"))


def test_a_rotation_from_a_lost_store_that_is_killed_is_finished_by_the_next_run(visitors: dict[str, Visitor]) -> None:
    lost = stored()
    (DIRECTORY / store.STORE_FILE).unlink()
    process = SANDBOX.started("rotate", start_new_session=True)
    while not store.unfinished(DIRECTORY):
        assert process.poll() is None, "it ended before it stored anything"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    promised = stored()
    assert SANDBOX.root(HELD).splitlines()[-1] == store.fingerprint(lost), "killed before the host knew of it"
    SANDBOX.atelier("rotate")
    assert stored() == promised and not (DIRECTORY / store.FORMER_FILE).exists()
    require_let_in(visitors, promised)
    require_shut_out(visitors, lost, ("comfyui", "forge"))


def told(service: str) -> list[str]:
    return ["rotate", *(["--service", service] if service else [])]


def timed(service: str) -> list[float]:
    """When a rotation that nobody kills begins, says each of its lines, and ends."""
    began = time.monotonic()
    with SANDBOX.started(*told(service)) as process:
        times = [0.0, *(time.monotonic() - began for _ in process.stdout)]
        assert process.wait() == 0
    return [*times, time.monotonic() - began]


def kill_at(seconds: float, times: list[float], service: str) -> None:
    """SIGKILL to a rotation's whole process group, as many lines into it as `seconds` were when it was timed."""
    lines = max(number for number, at in enumerate(times) if at <= seconds)
    process = SANDBOX.started(*told(service), start_new_session=True)
    for _ in range(lines):
        process.stdout.readline()
    time.sleep(seconds - times[lines])
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_rotation_is_finished_by_the_next_run(number: int, visitors: dict[str, Visitor]) -> None:
    """At random points, spread over the whole of a rotation."""
    service = ("forge", "comfyui", "forge", "comfyui", "forge", "comfyui", "")[number % 7]
    times = TIMES[service] = TIMES.get(service) or timed(service)
    seconds = times[-1] * (number + random.Random(SEED + number).random()) / KILLS
    print(f"kill {number} of seed {SEED}: {service or 'both'} after {seconds:.1f} of {times[-1]:.1f} s")
    before, rotated = stored(), (service,) if service else ("comfyui", "forge")
    kill_at(seconds, times, service)
    require_nothing_unknown_on_the_host()
    begun, promised = store.unfinished(DIRECTORY), stored()
    if promised != before and not begun:  # killed after its proof
        require_let_in(visitors, promised)
        require_shut_out(visitors, before, rotated)

    SANDBOX.atelier(*told(service))
    after = stored()
    assert after == promised if begun else after != promised, "no third set"
    assert not (DIRECTORY / store.FORMER_FILE).exists()
    require_let_in(visitors, after)
    require_shut_out(visitors, before, rotated)
    assert SANDBOX.root(HELD).splitlines()[-1] == store.fingerprint(after)
