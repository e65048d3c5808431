"""When a host may be restarted, how far it is afterwards, and what is red then."""

import subprocess

import pytest

from atelier.checks import Check, survival_state
from atelier.checks.survival_state import read_state
from atelier.report import CheckResult

OURS = ("comfyui-qwen", "forge-turbo", "gateway")

APPLICATIONS = {
    "idle": ({"running": [], "pending": []}, 0, []),
    "ComfyUI runs one": ({"running": ["a"], "pending": ["b", "c"]}, 0, ["ComfyUI is at work (1 running, 2 pending)"]),
    "ComfyUI has one waiting": ({"running": [], "pending": ["a"]}, 0, ["ComfyUI is at work (0 running, 1 pending)"]),
    "Forge": ({}, 2, ["Forge is at work (2 jobs)"]),
}


@pytest.mark.parametrize(("queue", "jobs", "busy"), APPLICATIONS.values(), ids=APPLICATIONS)
def test_an_application_at_work_is_named(queue: dict[str, list[str]], jobs: int, busy: list[str]) -> None:
    assert survival_state.busy_applications(queue, jobs) == busy


LINES = {
    "container: /comfyui-qwen unless-stopped": [],
    "container: /comfyui-qwen no": [],
    "container: /database always": [],
    "container: /database no": ["the container database runs and would not start again by itself"],
    "package manager: apt-get upgrade (process 77)": ["the package manager is at work: apt-get upgrade (process 77)"],
    "deploy: a command of it": ["a deploy is at work"],
    "weights: their transfer": ["weights are being fetched"],
    "inhibitor: backup 0 root 812 borg shutdown nightly block": ["something on the host forbids a restart: backup"],
}


@pytest.mark.parametrize(("line", "busy"), LINES.items(), ids=LINES)
def test_what_a_restart_would_disturb_is_named(line: str, busy: list[str]) -> None:
    assert survival_state.busy_host([line], OURS) == busy


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
    "skipped": ([result("host.closed", "skipped", "no tool"), *GREEN[1:]], False, ["host.closed: no tool"]),
    "optional, not run": (GREEN[:2], False, []),
    "broken off": (GREEN, True, ["ended before their end"]),
}


@pytest.mark.parametrize(("results", "crashed", "problems"), AFTERWARDS.values(), ids=AFTERWARDS)
def test_what_is_red_after_a_restart_is_told(results: list[CheckResult], crashed: bool, problems: list[str]) -> None:
    found = survival_state.red_afterwards(results, WANTED, crashed)
    assert len(found) == len(problems)
    assert all(part in finding.problem for finding, part in zip(found, problems, strict=True)), found
    assert all(finding.remedy for finding in found)


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
