"""The whole line in a real booted machine: deploy, verify, change, kill, move, break.

The tests share one deployed sandbox and run in their order; each leaves the stack as declared.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from harness import BREAK_LOGIN, ROOT, UNCHANGED, Sandbox, changes, copy_checkout, edited

from atelier import paths, render

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-e2e-{os.getpid()}")
KILLED = Sandbox(f"sandbox-kill-{os.getpid()}")
NAME, atelier, deploy, ssh = SANDBOX.name, SANDBOX.atelier, SANDBOX.deploy, SANDBOX.root


def plan(sandbox: Sandbox = SANDBOX, expect: int = 0) -> str:
    return sandbox.atelier("plan", "--sources", "double", expect=expect)


def report() -> dict:
    return json.loads((paths.reports_dir(NAME) / "latest" / "report.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def sandboxes() -> Iterator[None]:
    with SANDBOX.running():
        yield
    KILLED.forget()


def test_a_fresh_machine_is_deployed_and_quick_verified() -> None:
    output = deploy()
    assert output.startswith(f"Target: {NAME}")
    assert report()["verdict"] == "passed" and report()["doubles"] is True
    assert "double" in output.lower()
    for hint in ("make credentials", "make tunnel", "make generate", "make verify"):
        assert hint in output


def test_a_second_deploy_changes_nothing_and_says_so() -> None:
    match = re.search(UNCHANGED, deploy())
    assert match and int(match[1]) > 15


def test_plan_on_a_deployed_host_exits_0() -> None:
    assert "0 of" in plan()


def test_verify_passes_with_no_skipped_required_check() -> None:
    output = atelier("verify", "--full", "--deep")
    seen = report()
    assert seen["verdict"] == "passed" and seen["doubles"] is True and "double" in output.lower()
    assert [check["id"] for check in seen["checks"] if check["verdict"] == "skipped"] == []
    groups = {check["group"] for check in seen["checks"]}
    assert {"host", "containers", "access", "secrets", "storage", "generation", "survival"} <= groups


def test_every_deploy_leaves_a_line_in_the_audit_log() -> None:
    lines = [json.loads(line) for line in ssh("cat /srv/atelier/state/audit.log").splitlines()]
    assert len(lines) >= 2
    assert lines[0]["changed"] and lines[1]["changed"] == [] and lines[1]["result"] == "deployed"
    assert lines[0]["who"] and lines[0]["commit"]


def test_the_manifest_names_what_is_ours_on_the_host() -> None:
    created = json.loads(ssh("cat /srv/atelier/state/manifest.json"))["created"]
    assert set(created["containers"]) == {"comfyui-qwen", "forge-turbo", "gateway"}
    assert "docker.io" in created["packages"] and "atelier" in created["users"]
    missing = ssh("for p in " + " ".join(created["files"] + created["directories"]) + "; do [ -e $p ] || echo $p; done")
    assert missing == ""


def test_a_second_deploy_at_once_says_who_holds_the_lock() -> None:
    from atelier.lifecycle import host_lock

    with host_lock(SANDBOX.ssh()):
        output = deploy(expect=1)
    assert "another deploy" in output and "since" in output
    deploy()


def test_ctrl_c_ends_with_one_message_and_the_next_deploy_finishes() -> None:
    with SANDBOX.started("deploy", "--sources", "double") as process:
        next(line for line in process.stdout if line.startswith("Preflight"))
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        assert process.wait(timeout=30) == 130
    assert "interrupted" in output and "Traceback" not in output
    deploy()


def test_generate_saves_an_image() -> None:
    for service in ("comfyui", "forge"):
        output = atelier("generate", "--prompt", 'a lighthouse, it\'s $5 "at dusk"', "--service", service)
        saved = Path(re.search(r"Saved: (.+)", output)[1].strip())
        assert saved.is_file() and saved.stat().st_size > 500


def test_everyday_commands() -> None:
    assert "(healthy)" in atelier("status")
    logs = atelier(
        "logs", "--service", "comfyui", "--lines", "2"
    )  # further back are its answers to verify's odd requests
    assert "comfyui-qwen" in logs
    assert "Prompt executed" in logs
    token = (paths.secrets_dir(NAME) / "qwen-api-user.token").read_text()
    assert f"'Authorization: Bearer {token}'" in atelier("credentials")
    assert "brought to" in atelier("outputs")
    assert any(paths.outputs_dir(NAME).rglob("*.png"))
    atelier("stop", "--service", "forge")
    assert "Exited" in atelier("status", expect=1)
    atelier("start")
    atelier("restart", "--service", "gateway")
    assert "no such service" in atelier("stop", "--service", "nonsense", expect=1)


def test_the_weights_of_a_host_are_checked_mended_and_pruned_from_here() -> None:
    assert "4 of 4 files are good, by every byte" in atelier("models", "verify", "--deep")
    weight = "/srv/atelier/models/vae/qwen_image_vae.safetensors"
    ssh(
        f't=$(stat -c %y {weight}); printf x | dd of={weight} bs=1 seek=99 conv=notrunc status=none; touch -d "$t" {weight}'
    )
    assert "4 of 4 files are good, by their records" in atelier("models", "verify"), "nobody looked at the bytes"
    output = atelier("models", "verify", "--deep", expect=1)
    assert re.search(r"vae/\S+: wrong: sha256 [0-9a-f]{64}, expected [0-9a-f]{64}\n", output)
    assert f"make models-fetch HOST={NAME}" in output
    atelier("models", "fetch", "--sources", "double")
    assert "4 of 4 files are good" in atelier("models", "verify")
    assert f"{weight}.wrong-" in atelier("models", "prune") and ssh(f"ls {weight}.wrong-*")
    atelier("models", "prune", "--yes")
    assert "not needed: nothing" in atelier("models", "prune")
    assert "weights pruned" in atelier("status") and "atelier-weights" in atelier("logs", "--service", "weights")
    assert "Have ComfyUI read the weights that changed anew" in changes(deploy())


def test_tunnel_brings_the_services_here_until_interrupted() -> None:
    with SANDBOX.started("tunnel") as process:
        lines = iter(process.stdout.readline, "")
        url = next(
            re.search(r"http://localhost:\d+", line)[0] for line in lines if "8188" in line or "ComfyUI  " in line
        )
        health = httpx.get(f"{url}/healthz")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    assert health.text.strip() == "up"


RANDOM = random.Random(20261121)
PIECES = [
    "$",
    "${X}",
    "\\",
    '"',
    "'",
    "{",
    "}",
    "#",
    " ",
    "é",
    "ü",
    "漢",
    "a",
    "$$",
    "\\n",
    "%",
    "=",
    ":",
    "`",
    "{{",
    "}}",
]


def test_env_values_arrive_byte_for_byte_in_a_real_container() -> None:
    values = {f"V{i}": "".join(RANDOM.choices(PIECES, k=RANDOM.randint(1, 12))) for i in range(120)}
    env = render.environment().get_template("services/env.j2").render(variables=values)
    compose = {
        "services": {
            "probe": {
                "image": ssh("docker inspect -f '{{.Config.Image}}' gateway"),
                "network_mode": "none",
                "environment": {name: f"${{{name}}}" for name in values},
                "entrypoint": ["python3", "-c", "import json, os; print(json.dumps(dict(os.environ)))"],
            }
        }
    }
    script = (
        "set -e; d=$(mktemp -d); trap 'rm -rf $d' EXIT; cd $d; "
        f"base64 -d >.env <<'X'\n{_base64(env)}\nX\nbase64 -d >compose.yaml <<'X'\n{_base64(json.dumps(compose))}\nX\n"
        "docker compose -p probe run --rm -T probe 2>/dev/null; docker compose -p probe down >/dev/null 2>&1"
    )
    seen = json.loads(ssh(script))
    assert {name: seen[name] for name in values} == values


def _base64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """The sandbox as seen from this checkout as it stands, with its secrets, in another place whose path holds a space."""
    copy = copy_checkout(tmp_path_factory.mktemp("elsewhere") / "a moved checkout")
    shutil.copytree(paths.secrets_dir(NAME), copy / ".secrets" / NAME)
    shutil.copytree(ROOT / ".venv", copy / ".venv", symlinks=True)
    return replace(SANDBOX, checkout=copy)


def test_a_moved_checkout_changes_nothing(moved: Sandbox) -> None:
    make = ["make", "-C", str(moved.checkout), "plan", f"HOST={NAME}", "SOURCES=double"]
    done = subprocess.run(make, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Preparing .venv" in done.stderr


def test_a_changed_setting_is_exactly_that_change(moved: Sandbox) -> None:
    settings = moved.checkout / "group_data" / "sandbox.py"
    started = ssh("docker inspect -f '{{.State.StartedAt}}' forge-turbo gateway")
    with edited(settings, settings.read_text() + 'services = {"comfyui": {"shm_size": "3g"}}\n'):
        assert "comfyui-qwen" in plan(moved, expect=2)
        output = moved.deploy()
    assert changes(output) == [
        "Record what will be created",  # the sums of the files as well
        "Render the files of comfyui-qwen",
        "Start comfyui-qwen and wait until it is healthy",
        "Record what runs",
    ]
    assert ssh("docker inspect -f '{{.HostConfig.ShmSize}}' comfyui-qwen") == str(3 << 30)
    assert ssh("docker inspect -f '{{.State.StartedAt}}' forge-turbo gateway") == started
    moved.deploy()


def test_a_checkout_without_the_secrets_stops_and_says_how_to_go_on(moved: Sandbox) -> None:
    hidden = moved.checkout / "hidden"
    shutil.move(moved.checkout / ".secrets", hidden)
    assert "copy .secrets/" in moved.deploy(expect=1)
    assert not (moved.checkout / ".secrets").exists()
    shutil.move(hidden, moved.checkout / ".secrets")


def test_bad_settings_touch_nothing(moved: Sandbox) -> None:
    settings = moved.checkout / "group_data" / "sandbox.py"
    audit = ssh("wc -l </srv/atelier/state/audit.log")
    with edited(settings, settings.read_text() + 'services = {"comfyui": {"prot": 1}}\n'):
        output = moved.deploy(expect=1)
    assert "group_data/sandbox.py: services.comfyui.prot: unknown key; did you mean `port`?" in output
    assert ssh("wc -l </srv/atelier/state/audit.log") == audit


def test_without_the_login_plugin_nothing_is_served_and_verify_is_red() -> None:
    ssh(BREAK_LOGIN)
    served = set()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        served.add(ssh("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8188/system_stats || true"))
        if "atelier: ComfyUI was not started" in ssh("docker logs comfyui-qwen 2>&1 | tail -n 50"):
            break
        time.sleep(1)
    else:
        pytest.fail("the container did not refuse to start: " + ssh("docker logs --tail 30 comfyui-qwen 2>&1"))
    # Through standard input: sudo writes every command line into the journal.
    header = f"Authorization: Bearer {(paths.secrets_dir(NAME) / 'qwen-api-user.token').read_text()}"
    owner = "curl -s -o /dev/null -w '%{http_code}' -H @- http://127.0.0.1:8188/prompt"
    assert ssh(owner, stdin=header) == "503"
    assert served <= {"401", "503"}
    assert ssh("docker inspect -f '{{.State.Health.Status}}' comfyui-qwen") != "healthy"
    output = atelier("verify", "--quick", expect=1)
    assert report()["verdict"] == "failed", output
    assert "comfyui" in " ".join(check["id"] for check in report()["checks"] if check["verdict"] == "failed")
    ssh(
        "cd /opt/atelier/services/comfyui-qwen && docker compose up -d --force-recreate >/dev/null 2>&1; rm /tmp/broken.*"
    )
    deploy()


@pytest.mark.parametrize("seconds", [2, 6, 11, 17, 30])
def test_a_killed_deploy_is_continued_by_the_next(seconds: int) -> None:
    """SIGKILL to the whole process group, at a later point each time, on a machine that was never deployed before."""
    process = KILLED.started("deploy", "--sources", "double", stdout=subprocess.DEVNULL, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_after_the_kills_a_deploy_converges() -> None:
    KILLED.deploy()
    assert re.search(UNCHANGED, KILLED.deploy())
