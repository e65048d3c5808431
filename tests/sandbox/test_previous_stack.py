"""From a stack that somebody put together by hand to ours: nothing of it is lost, nothing is fetched, and it comes back where
ours fails.

The tests share one sandbox and run in their order.
"""

import contextlib
import itertools
import json
import os
import random
import re
import subprocess
from collections.abc import Iterator

import pytest
from following import follow
from hand_made import CONTAINERS, INSIDE, OUTPUTS, ROOT, TOKEN, TREE, answering, put_together, put_together_again
from harness import UNCHANGED, Sandbox, told

from atelier import displacement, paths, previous_stack
from atelier.settings import Settings

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-ps-{os.getpid()}")
KILLS = int(os.environ.get("KILLS", "2"))
SEED = int(os.environ.get("SEED", "7"))
LINES = 80
"""About as many as a reprovision says once the plan is told: a kill after one of them is as likely at each step."""
OURS = "/srv/atelier"
TAKEN_OUT = f"{OURS}/previous"
REPROVISION = ("reprovision", "--sources", "double", "--adopt-token", "--yes")
BUSY = """
systemd-run -q --unit=in-the-way sh -c 'until docker ps -a --format "{{.Names}}" | grep -qx forge-turbo.previous
  do sleep 0.1; done; exec python3 -c "import socket, time; taken = socket.create_server((\\"\\", 7860)); time.sleep(900)"'
"""
"""Run in a guest: somebody takes the port of ours in the moment when the old containers have stepped aside."""
STARTED = "docker inspect --format '{{.State.StartedAt}} {{.RestartCount}}' their-shop"
READ = f"find {ROOT}/shared/models -name '*safetensors' -printf '%AY %f\\n'"
"""Run in a guest: of each file of weights the year in which it was read last."""
UNREAD = f"find {ROOT}/shared/models -name '*safetensors' -exec touch -a -d 2020-01-01 {{}} +"


@pytest.fixture(scope="module", autouse=True)
def theirs() -> Iterator[dict[str, str]]:
    with SANDBOX.running():
        put_together(SANDBOX)
        yield tree()


@pytest.fixture(scope="module", autouse=True)
def shop(theirs: dict[str, str]) -> str:
    """Since when somebody else's container runs."""
    return SANDBOX.root(STARTED)


def tree() -> dict[str, str]:
    """Every file of the stack, by its sha256."""
    return dict(json.loads(SANDBOX.root("python3 -", TREE)))


def containers() -> dict[str, list[str]]:
    return {name: rest for name, *rest in (line.split() for line in SANDBOX.root(CONTAINERS).splitlines())}


def policies() -> dict[str, str]:
    form = "{{.Name}} {{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}"
    lines = SANDBOX.root(f"docker inspect --format '{form}' $(docker ps -aq)").splitlines()
    return {name.lstrip("/"): policy for name, policy in map(str.split, lines)}


def test_everything_of_it_is_found_and_nothing_of_somebody_elses() -> None:
    found = previous_stack.look(SANDBOX.ssh(), Settings())
    assert {one.name: (one.service, one.ports) for one in found.containers} == {
        "comfyui-qwen": ("comfyui", (8188,)),
        "forge-turbo": ("forge", (17861,)),
    }
    assert found.roots == (ROOT,) and not found.obstacles
    assert found.search == (f"{ROOT}/shared/models", TAKEN_OUT)
    assert [one.path for one in found.inside] == sorted(INSIDE)
    assert {(one.service, one.directory, one.inside, one.files) for one in found.outputs} == {
        ("comfyui", f"{OUTPUTS}/comfyui", "", 1),
        ("forge", f"{OUTPUTS}/forge", "", 1),
        ("forge", "", "/opt/forge/outputs", 1),
    }
    assert [one.files for one in found.workflows] == [1]
    assert set(found.token_files) == {f"{ROOT}/.secrets/qwen-api-user.token", f"{ROOT}/.secrets/.env.generated"}


def test_containers_step_aside_and_come_back_as_they_were() -> None:
    before, kept = containers(), policies()
    found = previous_stack.look(SANDBOX.ssh(), Settings())
    aside = displacement.parse(SANDBOX.root(displacement.aside_script(found.containers)))
    assert aside.complete(found.containers), aside
    assert {name: state for name, (_, state) in containers().items()} == {
        "comfyui-qwen.previous": "exited",
        "forge-turbo.previous": "exited",
        "their-shop": "running",
    }
    assert previous_stack.look(SANDBOX.ssh(), Settings()).containers == (), (
        "those that are aside are not put aside again"
    )
    back = displacement.parse(SANDBOX.root(displacement.back_script(found.containers)))
    assert back.complete(found.containers), back
    assert containers() == before and policies() == kept
    SANDBOX.wait_for(answering("old ComfyUI", 8188))
    SANDBOX.wait_for(answering("old Forge", 17861))


def test_without_a_yes_there_is_a_plan_and_nothing_else(theirs: dict[str, str]) -> None:
    before = containers()
    output = SANDBOX.atelier("reprovision", "--sources", "double", "--adopt-token", expect=1)
    shown = (
        f"weights    below {ROOT}/shared/models: what is wanted, told by its sha256",
        *(f"files      {path}, which only a container has -> {TAKEN_OUT}/forge-turbo-" for path in INSIDE),
        f"outputs    {OUTPUTS}/comfyui -> {OURS}/outputs/comfyui/previous: 1 file, 6 bytes, copied",
        f"outputs    {OUTPUTS}/forge -> {OURS}/outputs/forge/previous: 1 file, 6 bytes, copied",
        f"outputs    /opt/forge/outputs in the container forge-turbo -> {OURS}/outputs/forge/previous: 1 file, copied",
        f"workflows -> {OURS}/users/comfyui/default/workflows/previous: 1 file, 9 bytes, copied",
        f"token      in {ROOT}/.secrets/qwen-api-user.token: clients go on working",
        "Steps aside, as NAME.previous until what follows has passed",
        "comfyui-qwen: ours gets the name comfyui-qwen",
        "forge-turbo: ours gets the name forge-turbo",
        "containers   comfyui-qwen.previous, forge-turbo.previous",
        "networks     comfyui-qwen_default (where nobody else is in it), forge-turbo_default",
        "comfyui-qwen, forge-turbo: from the stop until the successor has started",
        "YES=1",
    )
    assert re.search(r"\n  Needs\n    \d+ bytes on /\n", output)
    for text in shown:
        assert text in output, text
    assert TOKEN not in output and "Fetches" not in output
    assert containers() == before and tree() == theirs


def test_where_ours_fail_the_old_ones_come_back_by_themselves(theirs: dict[str, str], shop: str) -> None:
    before, kept = containers(), policies()
    SANDBOX.root(UNREAD)
    SANDBOX.root(BUSY)
    output = SANDBOX.atelier(*REPROVISION, expect=1)
    SANDBOX.root("systemctl stop in-the-way")
    assert "comfyui-qwen, forge-turbo run again as before" in output, told(output)
    assert containers() == before and policies() == kept
    SANDBOX.wait_for(answering("old ComfyUI", 8188))
    SANDBOX.wait_for(answering("old Forge", 17861))
    years = dict(reversed(line.split()) for line in SANDBOX.root(READ).splitlines())
    assert years.pop("mine.safetensors") == "2020", "of no wanted size, so nobody reads it"
    assert len(years) == 3 and "2020" not in years.values(), "those of a wanted size are hashed"
    assert tree() == theirs
    assert SANDBOX.root(STARTED) == shop, "Docker had to restart for its settings, and nobody's container did"


def test_ours_take_their_place_and_nothing_is_fetched(theirs: dict[str, str], shop: str) -> None:
    before = containers()
    _, output = follow("a stack that was here before", SANDBOX, expect=(2,))
    found = re.search(
        r"Reprovisioned: (.*) fetched, (.*) renamed, (.*) copied; ComfyUI away for (.*) s, Forge away for (.*) s; "
        r"removed: (.*); left over: (.*)\.\n",
        output,
    )
    assert found, told(output)
    fetched, renamed, copied, *away, removed, kept = found.groups()
    print(f"fetched {fetched}, renamed {renamed}, copied {copied}, away {away}, removed {removed}, kept {kept}")
    assert (fetched, renamed, copied) == ("0 bytes", "0 bytes", "0 bytes"), "the run that failed had copied all of it"
    assert all(0 < float(seconds) < 120 for seconds in away)
    assert removed == (
        "containers comfyui-qwen.previous, forge-turbo.previous, networks comfyui-qwen_default, forge-turbo_default"
    )
    assert kept == TAKEN_OUT
    assert tree() == theirs, "the originals stay"
    assert_ours_run(before, shop)


def assert_ours_run(before: dict[str, list[str]], shop: str) -> None:
    """Ours are in the place of the old ones, of which no container and no network is left."""
    names = containers()
    assert {name: state for name, (_, state) in names.items()} == dict.fromkeys(
        ("comfyui-qwen", "forge-turbo", "gateway", "their-shop"), "running"
    )
    assert names["their-shop"] == before["their-shop"] and SANDBOX.root(STARTED) == shop
    assert not {names[name][0] for name in names} & {before[name][0] for name in ("comfyui-qwen", "forge-turbo")}
    networks = SANDBOX.root("docker network ls --format '{{.Name}}'").splitlines()
    assert "shop" in networks and not {"comfyui-qwen_default", "forge-turbo_default"} & {*networks}


def test_weights_are_linked_and_what_users_made_is_there() -> None:
    assert_adopted()


def assert_adopted() -> None:
    """Weights by a second name, what users made by a copy, and what only a container had out of it."""
    places = f"{OURS}/models {ROOT}/shared/models {TAKEN_OUT}"
    unwanted = "! -name mine.safetensors ! -name inside.safetensors"
    rows = SANDBOX.root(
        f"find {places} -name '*safetensors' {unwanted} -printf '%i %n\\n' | sort | uniq -c"
    ).splitlines()
    assert len(rows) == 4 and all((row.split()[0], row.split()[2]) == ("2", "2") for row in rows), rows
    out = SANDBOX.root(f"cd {TAKEN_OUT} && find . -type f | sort").splitlines()
    assert [re.sub(r"^\./forge-turbo-[0-9a-f]{12}", "", path) for path in out] == sorted(INSIDE)
    assert SANDBOX.root(f"cat {TAKEN_OUT}/*/{INSIDE[1]}") == "inside"
    outputs = SANDBOX.root(f"cd {OURS}/outputs && find . -type f -printf '%p %U %TY-%Tm\\n' | sort").splitlines()
    assert {line.rpartition(" ")[0] for line in outputs} >= {
        "./comfyui/previous/ComfyUI_00001_.png 10001",
        "./forge/previous/00001.png 10001",
        "./forge/previous/txt2img/inside.png 10001",
    }
    assert "./comfyui/previous/ComfyUI_00001_.png 10001 2025-01" in outputs
    workflow = f"{OURS}/users/comfyui/default/workflows/previous/mine.json"
    assert SANDBOX.root(f"cat {workflow}; stat -c %u {workflow}").split() == ["workflow", "10001"]


def test_the_old_token_goes_on_working() -> None:
    ask = "curl -s -m 5 -w ' %{http_code}' -H @- http://127.0.0.1:8188/prompt"
    answer = SANDBOX.root(ask, f"Authorization: Bearer {TOKEN}\n")
    assert "queue_remaining" in answer and answer.endswith(" 200")
    assert SANDBOX.root(ask, f"Authorization: Bearer {TOKEN}x\n").endswith(" 401")
    assert TOKEN in (paths.secrets_dir(SANDBOX.name) / "qwen-api-user.token").read_text()


def test_nothing_of_it_is_left_to_do() -> None:
    before = containers()
    output = SANDBOX.atelier("reprovision", "--sources", "double")
    assert "nothing moves, makes room or goes" in output and re.search(UNCHANGED, output), told(output)
    assert containers() == before


def killed(lines: int, seconds: float) -> bool:
    """Kill a reprovision some seconds after so many lines that follow the plan; whether it was still at it."""
    with SANDBOX.started(*REPROVISION) as process:
        output = process.stdout or ()
        plan = list(itertools.takewhile(lambda line: line != "Preflight\n", output))
        said = [*plan, *itertools.islice(output, lines)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        running = process.poll() is None
        process.kill()
        print(f"killed after {said[-1:]} and {seconds:.1f} s" if running else "done before")
    assert running or process.returncode == 0, told("".join(said))
    return running


def test_killed_anywhere_nothing_is_lost(theirs: dict[str, str], shop: str) -> None:
    """After each kill every file of the stack is whole, and what only a container has is in it or was taken out."""
    put_together_again(SANDBOX)
    before, chance = containers(), random.Random(SEED)
    for number in range(KILLS):
        was_running = killed(chance.randint(0, LINES), chance.uniform(0, 2))
        print(f"kill {number} of seed {SEED}: {sorted(containers())}")
        there = tree()
        assert there == theirs, {path for path in theirs if there.get(path) != theirs[path]}
        names = containers()
        assert names["their-shop"] == before["their-shop"]
        old = {name for name, (container, _) in names.items() if container in {before[each][0] for each in before}}
        if "forge-turbo" not in {name.removesuffix(".previous") for name in old}:
            assert_adopted()
        if not was_running:
            assert_ours_run(before, shop)
            assert_adopted()
            put_together_again(SANDBOX)
            before = containers()
    assert re.search(r"Reprovisioned: 0 bytes fetched", SANDBOX.atelier(*REPROVISION))
    assert tree() == theirs
    assert_ours_run(before, shop)
    assert_adopted()
