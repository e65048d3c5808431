"""What is wrong with what the host's own monitor left."""

import json
import subprocess
from pathlib import Path

import pytest

from atelier.checks import monitor_state
from atelier.settings import Settings, build_settings

NOW = 1795000000


def settings(**values: object) -> Settings:
    return build_settings([("test", {"profile": "cpu", "monitoring": values})])


def state(age: float = 20) -> str:
    seen = {"docker": {"state": "up", "why": ""}, "forge": {"state": "unknown", "why": "no answer"}}
    return json.dumps({"time": NOW - age, "state": "up", "subjects": seen, "activity": {"forge": "idle"}})


GOOD = {
    "enabled": "enabled",
    "active": "active",
    "result": "success",
    "clock": str(NOW),
    "uptime": "99999",
    "metrics": "/srv/atelier/state/monitor/atelier.prom",
    "metrics_mode": "644",
    "metrics_time": str(NOW - 20),
    "command": "executable",
    "state": state(),
}
COMMAND = {"command": ["/usr/local/bin/tell"]}
CASES = {
    "well": ({}, {}, None),
    "one look was missed": ({"state": state(149), "metrics_time": str(NOW - 149)}, {}, None),
    "the host has just come up": ({"state": state(9999), "metrics_time": str(NOW - 9999), "uptime": "40"}, {}, None),
    "long ago": (
        {"state": state(151)},
        {},
        "the last look was 2026-11-18 11:04:09 UTC, 151 s ago, every 60 s expected",
    ),
    "stopped": ({"active": "inactive"}, {}, "atelier-monitor.timer is enabled and inactive"),
    "disabled": ({"enabled": "disabled"}, {}, "atelier-monitor.timer is disabled and active"),
    "never installed": ({"enabled": "", "active": ""}, {}, "atelier-monitor.timer is not installed and not running"),
    "failed": ({"result": "exit-code"}, {}, "the last look failed: exit-code"),
    "too long": ({"result": "timeout"}, {}, "the last look failed: timeout"),
    "no state": ({"state": ""}, {}, "state.json is missing or damaged"),
    "half a state": ({"state": state()[:30]}, {}, "state.json is missing or damaged"),
    "a state without a time": ({"state": "{}"}, {}, "state.json is missing or damaged"),
    "no metrics": ({"metrics_mode": ""}, {}, "atelier.prom is missing"),
    "metrics for root alone": ({"metrics_mode": "600"}, {}, "atelier.prom has mode 600"),
    "metrics of before": ({"metrics_time": str(NOW - 3600)}, {}, "atelier.prom is of 2026-11-18"),
    "empty metrics": ({"metrics_time": ""}, {}, "atelier.prom has no timestamp"),
    "its command": ({}, COMMAND, None),
    "no such command": (
        {"command": "missing"},
        COMMAND,
        "/usr/local/bin/tell, the command for a change, is no program",
    ),
    "not wanted and gone": ({"enabled": "", "active": "inactive", "state": ""}, {"enabled": False}, None),
    "not wanted and there": ({}, {"enabled": False}, "the monitor runs although"),
}


@pytest.mark.parametrize("told,monitoring,problem", CASES.values(), ids=CASES.keys())
def test_what_is_wrong(told: dict[str, str], monitoring: dict, problem: str | None) -> None:
    found = monitor_state.wrong({**GOOD, **told}, settings(**monitoring))
    assert len(found) == bool(problem), found
    for finding in found:
        assert (problem or "") in finding.problem and finding.remedy


def test_the_script_says_all_that_is_judged(tmp_path: Path) -> None:
    chosen = settings().model_copy(update={"data_root": str(tmp_path)})
    (tmp_path / "state" / "monitor").mkdir(parents=True)
    (tmp_path / "state" / "monitor" / "state.json").write_text(json.dumps(json.loads(state()), indent=1) + "\n")
    metrics = tmp_path / "state" / "monitor" / "atelier.prom"
    metrics.write_text("# TYPE atelier_look_timestamp_seconds gauge\natelier_look_timestamp_seconds 1795000000.5\n")
    metrics.chmod(0o644)
    script = "systemctl() { echo answer; }\n" + monitor_state.script(chosen)
    told = monitor_state.parse(subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout)
    assert told.keys() == GOOD.keys()
    assert told["metrics_mode"] == "644" and told["metrics_time"] == "1795000000" and told["enabled"] == "answer"
    assert json.loads(told["state"]) == json.loads(state()) and told["command"] == "executable"


def test_what_the_monitor_said_last_is_told() -> None:
    assert monitor_state.text(GOOD, settings()) == "up, last result 20 s old: forge unknown (no answer), forge is idle"
    assert monitor_state.text({**GOOD, "state": ""}, settings()) == "no result yet"
