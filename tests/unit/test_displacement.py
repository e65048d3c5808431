"""Stepping aside and coming back, by the real shell and a docker that keeps its state in a file, killed before each change."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from atelier.displacement import Displaced, Outcome, aside_script, back_script, parse, remove_script, taken

FAKE = Path(__file__).with_name("fake_docker.py")
OLD = Displaced("a" * 64, "comfyui-qwen", "unless-stopped", networks=("comfyui-qwen_default",))
ENDED = Displaced("b" * 64, "forge-turbo", "on-failure:5", running=False, networks=("web",))
BOTH = (OLD, ENDED)


class Host:
    """What its Docker has, and scripts that run on it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        fake = shlex.join([sys.executable, "-SE", str(FAKE)])
        (folder / "docker").write_text(f'#!/bin/sh\nexec {fake} "$@"\n')
        (folder / "docker").chmod(0o755)
        (folder / "sleep").write_text("#!/bin/sh\n")
        (folder / "sleep").chmod(0o755)
        monkeypatch.setenv("FAKE_DOCKER", str(folder))
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        self.write(
            [self.container(one) for one in BOTH],
            {"comfyui-qwen_default": "com.docker.compose.project ", "web": "com.docker.compose.project "},
        )

    @staticmethod
    def container(one: Displaced, **more: object) -> dict:
        told = {"id": one.id, "name": one.name, "policy": one.restart, "running": one.running}
        return {**told, "networks": list(one.networks), **more}

    def write(self, containers: list[dict], networks: dict[str, str], **more: object) -> None:
        self.state = {"containers": containers, "networks": networks, **more}

    @property
    def state(self) -> dict:
        return json.loads((self.folder / "state.json").read_text())

    @state.setter
    def state(self, state: dict) -> None:
        (self.folder / "state.json").write_text(json.dumps(state))

    def run(self, script: str, dies: int = 0) -> Outcome | None:
        """What it printed; None: it was killed."""
        (self.folder / "changes").unlink(missing_ok=True)
        environment = {**os.environ, "FAKE_DOCKER_DIES": str(dies)}
        done = subprocess.run(
            ["sh"], input=script, capture_output=True, text=True, env=environment, start_new_session=True
        )
        assert not done.stderr
        return None if done.returncode < 0 else parse(done.stdout)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def names(host: Host) -> dict[str, tuple[str, bool]]:
    return {one["name"]: (one["policy"], one["running"]) for one in host.state["containers"]}


def test_they_stop_and_cannot_start_by_themselves_and_all_of_it_is_undone(host: Host) -> None:
    before = host.state
    assert host.run(aside_script(BOTH)).complete(BOTH)
    assert names(host) == {"comfyui-qwen.previous": ("no", False), "forge-turbo.previous": ("no", False)}
    assert host.run(back_script(BOTH)).complete(BOTH)
    assert host.state == before


@pytest.mark.parametrize("script", [aside_script, back_script])
def test_killed_before_any_change_it_goes_on_or_goes_back(
    host: Host, script: Callable[[Iterable[Displaced]], str]
) -> None:
    host.write([host.container(OLD)], {})
    before = host.state
    host.run(aside_script([OLD]))
    aside, deaths = host.state, 0
    for dies in range(1, 20):
        for then, expected in ((aside_script, aside), (back_script, before)):
            host.state = before if script is aside_script else aside
            if host.run(script([OLD]), dies) is not None:
                assert deaths == 6
                return
            deaths += 1
            assert host.run(then([OLD])).complete([OLD])
            assert host.state == expected
    raise AssertionError("it never ended")


def test_a_name_that_another_has_is_left_to_it(host: Host) -> None:
    other = replace(OLD, id="c" * 64, name=OLD.aside, running=False)
    host.write([*host.state["containers"], host.container(other)], {})
    assert [
        finding.problem for finding in taken(BOTH, {one["name"]: one["id"] for one in host.state["containers"]})
    ] == ["comfyui-qwen is to step aside as comfyui-qwen.previous, and there is another container of that name already"]
    outcome = host.run(aside_script([OLD]))
    assert "another container" in outcome.failed[OLD.id] and not outcome.complete([OLD])
    assert names(host)["comfyui-qwen"] == ("unless-stopped", True), "nothing of it was changed"
    assert taken(BOTH, {OLD.name: OLD.id, OLD.aside: OLD.id}) == [], "it may be aside already"


def test_one_that_would_be_gone_when_it_stops_is_not_stopped(host: Host) -> None:
    host.write([host.container(OLD, rm=True)], {})
    assert "--rm" in host.run(aside_script([OLD])).failed[OLD.id]
    assert names(host) == {"comfyui-qwen": ("unless-stopped", True)}


def test_one_that_is_gone_is_told_and_the_others_go_on(host: Host) -> None:
    lost = replace(OLD, id="d" * 64, name="lost")
    outcome = host.run(aside_script([lost, *BOTH]))
    assert outcome.gone == {lost.id} and outcome.done == {OLD.id, ENDED.id}


def test_one_that_does_not_start_says_so_and_has_its_name_again(host: Host) -> None:
    host.run(aside_script(BOTH))
    state = host.state
    state["containers"][0]["broken"] = True
    host.state = state
    outcome = host.run(back_script(BOTH))
    assert outcome.failed == {OLD.id: "Error response from daemon: could not select device driver"}
    assert outcome.done == {ENDED.id} and names(host)["comfyui-qwen"] == ("no", False)


def test_removed_is_what_is_aside_with_its_network_and_nothing_that_others_use(host: Host) -> None:
    neighbour = Displaced("e" * 64, "their-web", running=False, networks=("web",))
    host.write([*host.state["containers"], host.container(neighbour)], host.state["networks"])
    host.run(aside_script(BOTH))
    outcome = host.run(remove_script(BOTH))
    assert outcome.complete(BOTH) and outcome.networks == ("comfyui-qwen_default",)
    assert set(names(host)) == {"their-web"} and set(host.state["networks"]) == {"web"}
    assert host.run(remove_script(BOTH)).gone == {OLD.id, ENDED.id}


def test_a_network_that_nobodys_compose_made_stays(host: Host) -> None:
    host.write([host.container(OLD)], {"comfyui-qwen_default": ""})
    host.run(aside_script([OLD]))
    assert host.run(remove_script([OLD])).networks == () and host.state["networks"]


def test_what_runs_again_or_has_another_name_is_not_removed(host: Host) -> None:
    host.run(aside_script(BOTH))
    state = host.state
    state["containers"][0]["running"] = True
    host.state = state
    outcome = host.run(remove_script([OLD]))
    assert "running container" in outcome.failed[OLD.id]
    assert set(names(host)) == {"comfyui-qwen.previous", "forge-turbo.previous"}
    outcome = host.run(remove_script([replace(OLD, name="comfyui")]))
    assert "not called comfyui.previous" in outcome.failed[OLD.id]


def test_without_a_daemon_nothing_counts_as_gone(host: Host) -> None:
    host.write([], {}, dead=True)
    for script in (aside_script, back_script, remove_script):
        outcome = host.run(script(BOTH))
        assert outcome == Outcome(failed={"-": "Cannot connect to the Docker daemon"})
