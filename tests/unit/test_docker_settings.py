"""Docker's settings on a host: the first ones are never lost, the last ones come back where Docker does not start."""

import stat
import subprocess
from pathlib import Path

import pytest

from atelier import docker_settings

FIRST, SECOND, MERGED, AGAIN = '{"debug":true}', '{"debug":false}', '{"ours":1}\n', '{"ours":2}\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "docker" / "daemon.json"


def before(place: Path) -> Path:
    return place.with_name("daemon.json.before-atelier")


def last(place: Path) -> Path:
    return place.with_name("daemon.json.last-atelier")


def shell(script: str, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", script], input=text, text=True, capture_output=True, env=variables or None)


def merge(place: Path, text: str, deployed: bool = False) -> None:
    assert shell(docker_settings.merge_script(deployed, str(place)), text).returncode == 0
    assert place.read_text() == text


def written(place: Path, text: str, mode: int = 0o644) -> None:
    place.parent.mkdir(exist_ok=True)
    place.write_text(text)
    place.chmod(mode)


def test_the_first_settings_outlive_every_later_merge(place: Path) -> None:
    written(place, FIRST)
    merge(place, MERGED)
    place.write_text(SECOND)
    merge(place, AGAIN, deployed=True)
    assert before(place).read_text() == FIRST and last(place).read_text() == SECOND


def test_that_there_were_none_is_known_after_every_later_merge(place: Path) -> None:
    merge(place, MERGED)
    merge(place, AGAIN, deployed=True)
    assert before(place).read_text() == "" and last(place).read_text() == MERGED


def test_what_an_earlier_release_merged_is_not_taken_for_the_first(place: Path) -> None:
    written(place, MERGED)
    merge(place, AGAIN, deployed=True)
    assert before(place).read_text() == ""


def test_a_merge_keeps_who_may_read_and_lets_nobody_else_write(place: Path) -> None:
    written(place, FIRST, 0o660)
    merge(place, MERGED)
    assert stat.S_IMODE(place.stat().st_mode) == 0o640
    assert stat.S_IMODE(before(place).stat().st_mode) == 0o660
    place.unlink()
    merge(place, MERGED)
    assert stat.S_IMODE(place.stat().st_mode) == 0o644


def test_of_a_link_the_first_is_the_link(place: Path) -> None:
    place.parent.mkdir()
    (place.parent / "theirs.json").write_text(FIRST)
    place.symlink_to("theirs.json")
    merge(place, MERGED)
    merge(place, AGAIN, deployed=True)
    assert before(place).readlink() == Path("theirs.json") and not place.is_symlink()
    assert (place.parent / "theirs.json").read_text() == FIRST


@pytest.fixture
def systemctl(tmp_path: Path) -> dict[str, str]:
    """Variables with a systemctl whose Docker refuses settings of ours."""
    folder = tmp_path / "bin"
    folder.mkdir()
    settings = tmp_path / "docker" / "daemon.json"
    program = folder / "systemctl"
    refused = f'grep -q "$REFUSES" {settings} 2>/dev/null'
    verbs = f'is-active) [ "$RUNS" ];; show) echo "$RUNS";; restart) [ -z "$REFUSES" ] || ! {refused};;'
    program.write_text(f"#!/bin/sh\ncase $1 in {verbs} esac\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def restart(place: Path, systemctl: dict[str, str], refuses: str = "") -> subprocess.CompletedProcess[str]:
    script = docker_settings.restart_script(str(place)).replace("sleep 1", ":")
    return shell(script, **{**systemctl, "REFUSES": refuses})


def test_a_docker_that_started_needs_no_way_back(place: Path, systemctl: dict[str, str]) -> None:
    written(place, FIRST)
    merge(place, MERGED)
    assert restart(place, systemctl).returncode == 0
    assert place.read_text() == MERGED and not last(place).exists() and before(place).read_text() == FIRST


def test_where_docker_refuses_what_was_merged_it_gets_what_was_there_last_and_not_what_was_first(
    place: Path, systemctl: dict[str, str]
) -> None:
    written(place, FIRST)
    merge(place, MERGED)
    restart(place, systemctl)
    place.write_text(SECOND)
    merge(place, AGAIN, deployed=True)
    answer = restart(place, systemctl, "ours")
    assert answer.returncode == 1 and "the file is as it was" in answer.stderr
    assert place.read_text() == SECOND and before(place).read_text() == FIRST and not last(place).exists()


def test_where_there_were_none_they_go_again(place: Path, systemctl: dict[str, str]) -> None:
    merge(place, MERGED)
    assert restart(place, systemctl, "ours").returncode == 1
    assert not place.exists() and not last(place).exists()


def test_a_docker_that_does_not_start_for_another_reason_keeps_its_settings(
    place: Path, systemctl: dict[str, str]
) -> None:
    written(place, FIRST)
    merge(place, MERGED)
    restart(place, systemctl)
    answer = restart(place, systemctl, "ours")
    assert answer.returncode == 1 and "journalctl -u docker" in answer.stderr
    assert place.read_text() == MERGED


def test_a_docker_that_was_installed_onto_merged_settings_needs_no_restart_and_no_way_back(
    place: Path, systemctl: dict[str, str]
) -> None:
    merge(place, MERGED)
    tomorrow = {**systemctl, "RUNS": "tomorrow", "REFUSES": "ours"}
    assert shell(docker_settings.taken_probe(str(place)), **tomorrow).stdout == ""
    assert restart(place, tomorrow, "ours").returncode == 0
    assert place.read_text() == MERGED and not last(place).exists()
    assert shell(docker_settings.taken_probe(str(place)), **tomorrow).stdout == "yes\n"
    assert shell(docker_settings.taken_probe(str(place)), **{**tomorrow, "RUNS": "yesterday"}).stdout == ""
    assert shell(docker_settings.taken_probe(str(place)), **{**tomorrow, "RUNS": ""}).stdout == ""
