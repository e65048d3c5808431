"""From a stack that somebody put together by hand to ours: nothing of it is lost, nothing is fetched, and it comes back where
ours fails.

The tests share one sandbox and run in their order.
"""

import json
import os
import random
import re
import time
from collections.abc import Iterator

import pytest
from hand_made import CONTAINERS, OUTPUTS, ROOT, TOKEN, TREE, answering, put_together
from harness import UNCHANGED, Sandbox, told

from atelier import displacement, paths, previous_stack
from atelier.settings import Settings

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-ps-{os.getpid()}")
KILLS = int(os.environ.get("KILLS", "4"))
OURS = "/srv/atelier"
BUSY = """
systemd-run -q --unit=in-the-way sh -c 'until docker ps -a --format "{{.Names}}" | grep -qx forge-turbo.previous
  do sleep 0.1; done; exec python3 -c "import socket, time; taken = socket.create_server((\\"\\", 7860)); time.sleep(900)"'
"""
"""Run in a guest: somebody takes the port of ours in the moment when the old containers have stepped aside."""


@pytest.fixture(scope="module", autouse=True)
def theirs() -> Iterator[dict[str, str]]:
    with SANDBOX.running():
        put_together(SANDBOX)
        yield json.loads(SANDBOX.root("python3 -", TREE))


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
    assert found.roots == (ROOT,) and found.search == (f"{ROOT}/shared/models",) and not found.obstacles
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
    for text in ("YES=1", "comfyui-qwen.previous", "forge-turbo.previous", f"{ROOT}/shared/models", f"{OUTPUTS}/forge"):
        assert text in output, text
    assert TOKEN not in output
    assert containers() == before and json.loads(SANDBOX.root("python3 -", TREE)) == theirs


def test_where_ours_fail_the_old_ones_come_back_by_themselves(theirs: dict[str, str]) -> None:
    before, kept = containers(), policies()
    SANDBOX.root(BUSY)
    output = SANDBOX.atelier("reprovision", "--sources", "double", "--adopt-token", "--yes", expect=1)
    SANDBOX.root("systemctl stop in-the-way")
    assert "comfyui-qwen, forge-turbo run again as before" in output, told(output)
    assert containers() == before and policies() == kept
    SANDBOX.wait_for(answering("old ComfyUI", 8188))
    SANDBOX.wait_for(answering("old Forge", 17861))
    assert json.loads(SANDBOX.root("python3 -", TREE)) == theirs


def killed(seconds: float) -> bool:
    """Kill a reprovision after some seconds; whether it was still at it."""
    with SANDBOX.started("reprovision", "--sources", "double", "--adopt-token", "--yes") as process:
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        running = process.poll() is None
        process.kill()
    return running


def test_killed_anywhere_nothing_is_lost(theirs: dict[str, str]) -> None:
    seed = int(os.environ.get("SEED", "7"))
    chance = random.Random(seed)
    for number in range(KILLS):
        was_running = killed(chance.uniform(1, 90))
        print(f"kill {number} of seed {seed}: {'at work' if was_running else 'done before'}: {containers()}")
        there = json.loads(SANDBOX.root("python3 -", TREE))
        assert there == theirs, {path for path in theirs if there.get(path) != theirs[path]}
        old = {name.removesuffix(".previous") for name in containers()}
        assert {"comfyui-qwen", "forge-turbo", "their-shop"} <= old
        if not was_running:
            return


def test_ours_take_their_place_and_nothing_is_fetched(theirs: dict[str, str]) -> None:
    output = SANDBOX.atelier("reprovision", "--sources", "double", "--adopt-token", "--yes")
    summary = re.search(r"Reprovisioned: .*", output)
    assert summary and "0 bytes fetched" in summary[0], told(output)
    assert json.loads(SANDBOX.root("python3 -", TREE)) == theirs, "the originals stay"
    names = containers()
    assert {name for name, (_, state) in names.items() if state == "running"} == {
        "comfyui-qwen",
        "forge-turbo",
        "gateway",
        "their-shop",
    }
    assert not [name for name in names if name.endswith(".previous")]
    networks = SANDBOX.root("docker network ls --format '{{.Name}}'").splitlines()
    assert "shop" in networks and not {"comfyui-qwen_default", "forge-turbo_default"} & set(networks)
    SANDBOX.atelier("verify", "--quick")


def test_weights_are_linked_and_what_users_made_is_there() -> None:
    linked = f"find {OURS}/models {ROOT}/shared/models -name '*safetensors' ! -name mine.safetensors -printf '%i %n\\n' | sort | uniq -c"
    rows = [line.split() for line in SANDBOX.root(linked).splitlines()]
    assert len(rows) == 4 and all(count == links == "2" for count, _, links in rows), rows
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
    ask = 'wget -qO- -T 5 --header "Authorization: Bearer $(cat)" http://127.0.0.1:8188/prompt'
    assert "queue_remaining" in SANDBOX.root(ask, TOKEN)
    assert TOKEN in (paths.secrets_dir(SANDBOX.name) / "qwen-api-user.token").read_text()


def test_nothing_of_it_is_left_to_do() -> None:
    assert re.search(UNCHANGED, SANDBOX.deploy())
