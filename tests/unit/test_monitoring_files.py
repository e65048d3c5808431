"""What a deploy puts on a host so that it looks at itself: settings, files, and the stage that places or removes them."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import host_monitor
import pytest
from pyinfra.api.deploy import add_deploy
from test_deployment import CREDENTIALS, FACTS
from test_deployment import deployment as plain_deployment
from test_stages import Told

from atelier import deployment as decide
from atelier import monitoring
from atelier.deployment import Deployment
from atelier.errors import AtelierError
from atelier.gpu.plan import GpuPlan
from atelier.settings import Settings, build_settings
from atelier.tree import File
from stages import monitoring as stage


def settings(**values: object) -> Settings:
    return build_settings([("test", {"profile": "cpu", **values})])


def deployment(**values: object) -> Deployment:
    return replace(plain_deployment(), settings=settings(**values), facts=replace(FACTS, container="systemd-nspawn"))


def config(of: Deployment) -> dict:
    return json.loads(text(of, "config.json"))


def text(of: Deployment, name: str) -> str:
    return next(
        entry.content.decode() for entry in of.monitor() if isinstance(entry, File) and entry.path.endswith(name)
    )


@pytest.mark.parametrize(
    "monitoring,problem",
    [
        ({"command": ["notify"]}, "monitoring.command: 'notify' is no absolute path"),
        ({"command": ["/bin/x"], "command_timeout": 26}, "do not fit into 60 s"),
        ({"command": ["/bin/x"], "interval": 45}, "do not fit into 45 s"),
        ({"command": ["/bin/x\n"]}, "monitoring.command"),
        ({"command": "/bin/x"}, "list"),
        ({"interval": 10}, "monitoring.interval"),
        ({"textfile_dir": "metrics"}, "absolute path"),
        ({"intervall": 60}, "did you mean `interval`"),
    ],
)
def test_impossible_settings_are_refused(monitoring: dict, problem: str) -> None:
    with pytest.raises(AtelierError, match=re.escape(problem)):
        settings(monitoring=monitoring)


def test_a_long_command_fits_into_a_long_interval() -> None:
    assert (
        settings(monitoring={"command": ["/bin/x"], "command_timeout": 120, "interval": 180}).monitoring.interval == 180
    )


def test_the_longest_look_and_its_command_end_within_the_interval() -> None:
    tightest = settings(monitoring={"command": ["/bin/x"], "command_timeout": 25, "interval": 60})
    told = config(Deployment(tightest, FACTS, CREDENTIALS, (), (), "double"))
    look = 2 * host_monitor.ROUND
    assert look + told["command_seconds"] + host_monitor.ENDING <= told["seconds"] < 60


def test_what_the_program_is_told() -> None:
    told = config(deployment(services={"comfyui": {"port": 9000}}))
    assert told["urls"]["comfyui"]["health"] == "http://127.0.0.1:9000/healthz"
    assert told["containers"] == {"comfyui": "comfyui-qwen", "forge": "forge-turbo", "gateway": "gateway"}
    assert told["addresses"] == ["127.0.0.1"] and told["ports"] == [7860, 9000]
    assert told["disks"] == ["/", "/srv/atelier"] and not told["gpu"] and told["time_services"] == []
    assert told["notice_unit"] == "" and "secret" not in json.dumps(told)


def test_what_it_is_told_where_everybody_may_come() -> None:
    told = config(deployment(bind_address="0.0.0.0", tls={"mode": "internal"}))
    assert told["addresses"] == ["0.0.0.0", "::"]
    assert told["urls"]["forge"]["strangers"] == "https://127.0.0.1:7860/sdapi/v1/samplers"


def test_a_real_gpu_host_is_asked_for_its_gpu_and_its_clock() -> None:
    host = Deployment(build_settings([]), FACTS, CREDENTIALS, (), (), "upstream", gpu=GpuPlan("adopt", "cu130"))
    assert config(host)["gpu"] and "chrony" in config(host)["time_services"]
    assert "PrivateDevices" not in text(host, "monitor.service") and "PrivateDevices=yes" in text(
        deployment(), "monitor.service"
    )


def test_only_a_container_is_not_asked_for_its_clock() -> None:
    machine = replace(deployment(), facts=FACTS)
    assert "chrony" in config(machine)["time_services"] and "chrony" in machine.time_services()
    assert config(deployment())["time_services"] == [] and deployment().time_services() == ()


def test_a_disabled_service_is_not_asked() -> None:
    told = config(deployment(services={"forge": {"enabled": False}}))
    assert told["urls"].keys() == {"comfyui"} and told["containers"].keys() == {"comfyui", "gateway"}


def test_every_question_has_what_it_needs_in_the_configuration() -> None:
    told = {**config(deployment()), "gpu": True, "time_services": ["chrony"]}
    asked = host_monitor.questions(told).keys()
    assert {"docker", "sockets", "loopback", "weights", "record", "reboot", "gpu", "time"} <= asked
    assert {"health:comfyui", "strangers:forge", "disk:/srv/atelier"} <= asked
    nothing = host_monitor.judge(told, {}, host_monitor.Memory())
    assert {seen.state for seen in nothing.values()} == {"unknown"}, "what was not answered is neither up nor down"


@pytest.mark.parametrize(
    "words,expected",
    [
        (["/usr/local/bin/tell", "a b"], '"/usr/local/bin/tell" "a b"'),
        (["/bin/sh", "-c", 'echo "$X" \\ 100%'], '"/bin/sh" "-c" "echo \\"$X\\" \\\\ 100%%"'),
        ([], ""),
    ],
)
def test_a_command_reaches_systemd_word_by_word(words: list[str], expected: str) -> None:
    assert monitoring.exec_words(words) == expected


def test_the_commands_unit_is_there_only_with_a_command() -> None:
    assert not any(entry.path.endswith("@.service") for entry in deployment().monitor())
    told = deployment(monitoring={"command": ["/bin/x", "$HOME"], "command_timeout": 7})
    unit = text(told, "atelier-notice@.service")
    assert 'ExecStart=:"/bin/x" "$HOME"\n' in unit and "TimeoutStartSec=7\n" in unit


def test_the_manifest_names_all_of_it_and_nothing_where_it_is_not_wanted() -> None:
    there, gone = decide.declared(deployment()), decide.declared(deployment(monitoring={"enabled": False}))
    for path in (
        "/opt/atelier/monitor/host_monitor.py",
        "/opt/atelier/monitor/config.json",
        "/etc/systemd/system/atelier-monitor.timer",
        "/etc/systemd/system/timers.target.wants/atelier-monitor.timer",
        "/srv/atelier/state/monitor/state.json",
    ):
        assert path in there["files"] and path not in gone["files"]
    assert there["metrics"] == [
        "/var/lib/prometheus/node-exporter/atelier.prom",
        "/srv/atelier/state/monitor/atelier.prom",
    ]
    assert "/srv/atelier/state/monitor" in there["directories"]
    assert "atelier-monitor.timer" in there["units"] and "atelier-monitor" not in json.dumps(gone)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    yield Told(monkeypatch)


def placed(
    told: Told, of: Deployment, *, active: bool = True, further: tuple[str, ...] = (), says: str = ""
) -> list[str]:
    """The commands that a deploy runs where that deployment's own files are present."""
    rows = [f"{entry.signature()} {entry.path}" for entry in of.monitor()]
    rows += [f"l 644 root:root - {monitoring.STARTED_AT_BOOT}"] if active else []
    rows += [f"f 644 root:root x {path}" for path in further]
    told.answers = {
        "sha256sum": rows if of.monitor() or further else [],
        "is-active": [*(["active"] if active else []), *([says] if says else [])],
    }
    return rows


def carried_out(told: Told, of: Deployment) -> list[str]:
    told.commands.clear()
    told.run(lambda state: add_deploy(state, stage.timer, of))
    return [command for command in told.commands if "for p in" not in command and "is-active" not in command]


def test_a_deploy_with_everything_in_place_changes_nothing(told: Told) -> None:
    placed(told, deployment())
    assert carried_out(told, deployment()) == []


def test_a_first_deploy_places_everything_and_looks_once(told: Told) -> None:
    told.answers = {}
    commands = carried_out(told, deployment())
    assert commands[-1] == monitoring.START_SCRIPT and sum("mv -fT" in command for command in commands) == 4


@pytest.mark.parametrize("link,timer", [(True, False), (False, True)])
def test_a_timer_that_does_not_run_is_started(told: Told, link: bool, timer: bool) -> None:
    placed(told, deployment(), active=link)
    told.answers["is-active"] = ["active"] if timer else []
    assert carried_out(told, deployment()) == [monitoring.START_SCRIPT]


def test_after_a_look_that_failed_another_is_taken(told: Told) -> None:
    placed(told, deployment(), says="failed")
    assert carried_out(told, deployment()) == [monitoring.START_SCRIPT]


def test_changed_settings_are_told_and_the_timer_goes_by_them(told: Told) -> None:
    placed(told, deployment())
    commands = carried_out(told, deployment(monitoring={"interval": 90}))
    assert sum("mv -fT" in command for command in commands) == 3 and commands[-1] == monitoring.START_SCRIPT


def test_a_command_that_is_no_more_takes_its_unit_along(told: Told) -> None:
    placed(told, deployment(monitoring={"command": ["/bin/x"]}))
    commands = carried_out(told, deployment())
    assert (
        commands[0] == "rm -f /etc/systemd/system/atelier-notice@.service" and commands[-1] == monitoring.START_SCRIPT
    )


def test_where_it_is_disabled_all_of_it_goes(told: Told) -> None:
    off = deployment(monitoring={"enabled": False})
    placed(told, deployment(), says="former /var/lib/prometheus/node-exporter/atelier.prom")
    commands = carried_out(told, off)
    assert commands == ["rm -f /var/lib/prometheus/node-exporter/atelier.prom", monitoring.remove_script(off.settings)]
    told.answers = {}
    assert carried_out(told, off) == []


def test_metrics_that_lie_where_none_are_wanted_are_found_and_no_others(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    default = settings()
    lies_here = default.monitoring.model_copy(update={"textfile_dir": str(here)})
    chosen = default.model_copy(update={"config_root": str(tmp_path / "etc"), "monitoring": lies_here})
    entries = monitoring.entries(chosen, [], False, [])
    for folder in (here, there, tmp_path / "etc" / "monitor"):
        folder.mkdir(parents=True)
    file = next(entry for entry in entries if entry.path.endswith("config.json"))
    Path(file.path).write_bytes(file.content)
    (here / "atelier.prom").write_text("x 1\n")

    def former(of: Settings) -> list[str]:
        script = monitoring.probe_script(of).replace("systemctl", "false")
        lines = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False).stdout.splitlines()
        return monitoring.former_metrics(lines)

    moved = chosen.model_copy(update={"monitoring": chosen.monitoring.model_copy(update={"textfile_dir": str(there)})})
    off = chosen.model_copy(update={"monitoring": chosen.monitoring.model_copy(update={"enabled": False})})
    assert former(chosen) == [] and former(moved) == former(off) == [f"{here}/atelier.prom"]
    (here / "atelier.prom").unlink()
    assert former(moved) == []


def test_nothing_that_the_host_printed_becomes_a_command() -> None:
    lines = ["former /x; reboot", "former relative/atelier.prom", "active", "former /a b/atelier.prom"]
    assert monitoring.former_metrics(lines) == ["/a b/atelier.prom"]
    assert shlex.join(["/a b/atelier.prom"]) == "'/a b/atelier.prom'"


def test_an_unchanged_record_needs_no_other_files() -> None:
    """What was deployed is read at each look, so neither an image nor a rotation makes the monitor another."""
    other = replace(deployment(), credentials=CREDENTIALS.model_copy(update={"instance": "another"}))
    assert other.monitor() == deployment().monitor()


@pytest.mark.parametrize(
    ("state", "line", "verdict"),
    [
        ("", "no result yet", "unknown"),
        ("{", "no result yet", "unknown"),
        ({}, "up, last result 20 s old: comfyui is busy, forge is unknown", "up"),
        ({"time": 1200}, "up, last result 0 s old: comfyui is busy, forge is unknown", "up"),
        ({"time": 849}, "up, last result 151 s old (stale): comfyui is busy, forge is unknown", "unknown"),
        (
            {"state": "down", "subjects": {"forge": {"state": "down", "why": "it is exited"}}},
            "down, last result 20 s old: forge down (it is exited), comfyui is busy, forge is unknown",
            "down",
        ),
    ],
)
def test_what_the_host_saw_in_a_line(state: dict[str, object] | str, line: str, verdict: str) -> None:
    seen = {"time": 980, "state": "up", "subjects": {"forge": {"state": "up", "why": ""}}}
    seen |= {"activity": {"comfyui": "busy", "forge": "unknown"}}
    text = state if isinstance(state, str) else json.dumps(seen | state)
    assert monitoring.in_short(text, 1000, 60) == (line, verdict)
