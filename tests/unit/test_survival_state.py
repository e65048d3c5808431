"""When a host may be restarted, how far it is afterwards, and what is red then."""

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from atelier import lifecycle
from atelier.checks import Check, survival_state
from atelier.checks.survival_state import read_state
from atelier.report import CheckResult

OURS = ("comfyui-qwen", "forge-turbo", "gateway")

APPLICATIONS = {
    "idle": ({"running": [], "pending": []}, 0, []),
    "ComfyUI runs one": ({"running": ["a"], "pending": ["b", "c"]}, 0, ["ComfyUI is at work (1 running, 2 pending)"]),
    "ComfyUI has one waiting": ({"running": [], "pending": ["a"]}, 0, ["ComfyUI is at work (0 running, 1 pending)"]),
    "Forge": ({}, 2, ["Forge is at work"]),
    "Forge loads a model": ({}, -1, ["Forge is at work"]),
}


@pytest.mark.parametrize(("queue", "jobs", "busy"), APPLICATIONS.values(), ids=APPLICATIONS)
def test_an_application_at_work_is_named(queue: dict[str, list[str]], jobs: int, busy: list[str]) -> None:
    assert survival_state.busy_applications(queue, jobs) == busy


DEPLOY = "deploy: anna on desk since 2026-11-22 10:00 UTC"
LINES = {
    "container: /comfyui-qwen unless-stopped": [],
    "container: /comfyui-qwen no": [],
    "container: /database always": [],
    "container: /database no": ["the container database runs and would not start again by itself"],
    "package manager: apt-get upgrade (process 77)": ["the package manager is at work: apt-get upgrade (process 77)"],
    DEPLOY: ["a deploy is at work: anna on desk since 2026-11-22 10:00 UTC"],
    "weights: their transfer": ["weights are being fetched"],
    "inhibitor: backup 0 root 812 borg shutdown nightly block": ["something on the host forbids a restart: backup"],
}


@pytest.mark.parametrize(("line", "busy"), LINES.items(), ids=LINES)
def test_what_a_restart_would_disturb_is_named(line: str, busy: list[str]) -> None:
    assert survival_state.busy_host([line], OURS, whole_host=True) == busy


def test_a_restart_of_a_container_disturbs_deploys_alone() -> None:
    assert survival_state.busy_host(LINES, OURS, whole_host=False) == LINES[DEPLOY]


@pytest.mark.parametrize(
    ("owner", "held", "told"),
    [
        ("anna on desk\nanother", "lock", "deploy: anna on desk\n"),
        ("anna on desk\nanother", None, ""),
        (f"anna on desk\n{lifecycle.HOLDER}", "lock", ""),
        (None, None, ""),
        (None, "busy", "deploy: a command of an interrupted one\n"),
    ],
    ids=["another's", "one that has ended", "this process's own", "never one", "what a killed one left running"],
)
def test_a_deploy_at_work_is_told(tmp_path: Path, owner: str | None, held: str | None, told: str) -> None:
    if owner:
        (tmp_path / "lock").touch()
        (tmp_path / "owner").write_text(f"{owner}\n")
    script = survival_state.at_work_script(str(tmp_path))
    script = script.partition("held=$(holder)")[2].partition("\n")[2].partition('\n[ "$(systemctl')[0]
    with (tmp_path / (held or "nothing")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        printed = subprocess.run(["sh", "-c", script], text=True, capture_output=True)
    assert (printed.stdout, printed.stderr) == (told, "")


WELL = """host running
docker active enabled
container /comfyui-qwen running healthy 0 unless-stopped
container /forge-turbo running healthy 0 unless-stopped
container /gateway running healthy 0 unless-stopped
"""
STATES = {
    "all up": (WELL, [], []),
    "still starting": (
        WELL.replace("turbo running healthy", "turbo running starting"),
        ["forge-turbo is running, starting"],
        [],
    ),
    "unhealthy may become healthy": (
        WELL.replace("turbo running healthy", "turbo running unhealthy"),
        ["unhealthy"],
        [],
    ),
    "no health check any more": (WELL.replace("turbo running healthy", "turbo running none"), ["running, none"], []),
    "not started yet": (WELL.replace("turbo running healthy", "turbo exited none"), ["forge-turbo is exited"], []),
    "never": (
        WELL.replace("turbo running healthy 0 unless-stopped", "turbo exited none 0 no"),
        ["forge-turbo is exited"],
        ["forge-turbo is exited and its restart policy is no"],
    ),
    "ending again and again": (
        WELL.replace("turbo running healthy 0", "turbo restarting starting 4"),
        ["forge-turbo is restarting"],
        ["forge-turbo ends as soon as it is started: 4 times"],
    ),
    "started again once": (WELL.replace("turbo running healthy 0", "turbo running starting 1"), ["starting"], []),
    "removed": (
        WELL.replace("container /forge-turbo running healthy 0 unless-stopped\n", ""),
        ["there is no forge-turbo"],
        [],
    ),
    "Docker starts": ("host starting\ndocker activating enabled\n", ["Docker is activating"], []),
    "Docker has its turn yet to come": ("host starting\ndocker inactive enabled\n", ["Docker is inactive"], []),
    "Docker does not start with the host": (
        "host running\ndocker inactive disabled\n",
        ["Docker is inactive"],
        ["Docker is inactive and disabled: it does not start with the host"],
    ),
    "the same beside another failed unit": (
        "host degraded\ndocker inactive disabled\n",
        ["Docker is inactive"],
        ["Docker is inactive and disabled"],
    ),
    "Docker fails": ("host degraded\ndocker failed enabled\n", ["Docker is failed"], ["Docker does not start"]),
    "no answer": ("", ["Docker is unknown"], []),
}


@pytest.mark.parametrize(("text", "waiting", "never"), STATES.values(), ids=STATES)
def test_what_is_waited_for_and_what_is_in_vain(text: str, waiting: list[str], never: list[str]) -> None:
    state = read_state(text)
    told = (state.waiting_for(OURS), [finding.problem for finding in state.never(OURS, 5)])
    for found, expected in zip(told, (waiting, never), strict=True):
        assert len(found) == len(expected), found
        assert all(part in line for line, part in zip(found, expected, strict=True)), found


def test_what_docker_did_not_start_again_is_waited_for_a_while_and_no_longer() -> None:
    text = WELL.replace("turbo running healthy", "turbo exited starting")
    (finding,) = read_state(text).never(OURS, 21)
    assert finding.problem == "forge-turbo is exited and Docker does not start it again"
    assert "live-restore" in finding.remedy
    assert read_state(text).never(OURS, 19) == []
    assert read_state(text.replace("host running", "host starting")).never(OURS, 21) == []


def result(id: str, verdict: str, observed: str = "", hint: str = "") -> CheckResult:
    return CheckResult.model_validate(
        {
            "id": id,
            "group": id.partition(".")[0],
            "title": "",
            "verdict": verdict,
            "seconds": 0,
            "expected": "",
            "observed": observed,
            "hint": hint,
            "requirement": "",
        }
    )


WANTED = [Check("host.closed", "", "", ""), Check("access.a", "", "", ""), Check("host.b", "", "", "", optional=True)]
GREEN = [result("host.closed", "passed"), result("access.a", "passed"), result("host.b", "passed")]
AFTERWARDS = {
    "green": (GREEN, False, []),
    "a warning": ([result("host.closed", "warning"), *GREEN[1:]], False, []),
    "red": ([result("host.closed", "failed", "192.0.2.1:80 answers", "close it"), *GREEN[1:]], False, ["192.0.2.1:80"]),
    "not run": (GREEN[1:], False, ["host.closed: it did not run"]),
    "skipped": ([result("host.closed", "skipped", "others are at work"), *GREEN[1:]], False, []),
    "optional, not run": (GREEN[:2], False, []),
    "broken off": (GREEN, True, ["ended before their end"]),
}


@pytest.mark.parametrize(("results", "crashed", "problems"), AFTERWARDS.values(), ids=AFTERWARDS)
def test_what_is_red_after_a_restart_is_told(results: list[CheckResult], crashed: bool, problems: list[str]) -> None:
    found = survival_state.red_afterwards(results, WANTED, crashed)
    assert len(found) == len(problems)
    assert all(part in finding.problem for finding, part in zip(found, problems, strict=True)), found
    assert all(finding.remedy for finding in found)


def test_what_was_skipped_after_a_restart_is_told() -> None:
    results = [result("host.closed", "skipped", "others are at work"), *GREEN[1:2], result("host.b", "skipped", "full")]
    assert survival_state.left_out(results, WANTED) == ["host.closed: others are at work"]
    assert survival_state.left_out(GREEN, WANTED) == []


SETTLING = {
    "nothing red": (GREEN, []),
    "a timer that has not run": ([result("host.time", "failed"), *GREEN], ["host.time"]),
    "an open door": ([result("access.comfyui.stranger", "failed"), *GREEN], []),
    "a secret in the open, beside a timer": ([result("host.time", "failed"), result("secrets.leaks", "failed")], []),
}


@pytest.mark.parametrize(("results", "again"), SETTLING.values(), ids=SETTLING)
def test_only_what_can_settle_gets_a_moment_for_it(results: list[CheckResult], again: list[str]) -> None:
    assert survival_state.unsettled(results) == again


@pytest.mark.parametrize("script", [survival_state.at_work_script(), survival_state.state_script(OURS)])
def test_the_scripts_are_posix(script: str) -> None:
    checked = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_images_are_remembered_by_their_bytes(tmp_path: Path) -> None:
    def told(script: str, stdin: str = "") -> dict[str, str]:
        printed = subprocess.run(["sh", "-c", script], input=stdin, text=True, capture_output=True, check=True)
        return survival_state.read_hashes(printed.stdout)

    names = ["kept.png", "with a space\nand a line.png", "changed.png", "lost.png"]
    for number, name in enumerate(names):
        (tmp_path / name).write_text(f"image {number}")
    os.truncate(tmp_path / "kept.png", 0)
    with (tmp_path / "film.mp4").open("wb") as film:
        film.truncate(survival_state.LARGEST_MIB << 20)
    before = told(survival_state.newest_script([str(tmp_path)]))
    assert set(before) == {str(tmp_path / name) for name in names}
    (tmp_path / "changed.png").write_text("image 9")
    (tmp_path / "lost.png").unlink()
    after = told(survival_state.HASH, "\0".join(before))
    expected = [f"{tmp_path}/changed.png has other bytes", f"{tmp_path}/lost.png is lost"]
    assert survival_state.lost(before, after) == expected
    assert told(survival_state.newest_script([str(tmp_path / "none")])) == {} == told(survival_state.HASH)


def test_many_lost_images_are_counted() -> None:
    before = {f"/outputs/{number}.png": "a" for number in range(5)}
    assert survival_state.lost(before, {})[-2:] == ["/outputs/2.png is lost", "5 in all"]
    assert survival_state.lost(before, before) == []


def test_what_was_red_first_is_told_and_what_had_to_be_is_no_warning() -> None:
    expected, odd = survival_state.held_up(["host.time", "containers.logs"], 12.4)
    assert (expected, odd) == (["host.time was red for up to 12 s"], ["containers.logs was red for up to 12 s"])
