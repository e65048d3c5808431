"""What the host's own monitor left, asked in one round trip, and what is wrong with that. Pure.

What the monitor saw is no part of it: the other checks look for themselves.
"""

import json
import shlex
import time
from collections.abc import Mapping

from atelier import monitoring
from atelier.checks.check import REDEPLOY
from atelier.errors import Finding
from atelier.settings import Settings

JOURNAL = f"see `journalctl -u {monitoring.SERVICE}` on the host"


def script(settings: Settings) -> str:
    """A POSIX shell script that prints lines of key, tab and value; it changes nothing."""
    state, folder = shlex.quote(monitoring.state_file(settings)), shlex.quote(settings.monitoring.textfile_dir)
    beside = shlex.quote(f"{monitoring.state_directory(settings)}/{monitoring.METRICS}")
    program = shlex.quote((settings.monitoring.command or ["/bin/true"])[0])
    return f"""
t() {{ printf '%s\\t%s\\n' "$1" "$2"; }}
t enabled "$(systemctl is-enabled {monitoring.TIMER} 2>&1 | head -n 1)"
t active "$(systemctl is-active {monitoring.TIMER})"
t result "$(systemctl show -p Result --value {monitoring.SERVICE})"
t clock "$(date +%s)"
t uptime "$(cut -d. -f1 /proc/uptime)"
m={beside}; if [ -d {folder} ]; then m={folder}/{monitoring.METRICS}; fi
t metrics "$m"
t metrics_mode "$(stat -c %a "$m" 2>/dev/null)"
t metrics_time "$(sed -n 's/^atelier_look_timestamp_seconds \\([0-9]*\\).*/\\1/p' "$m" 2>/dev/null)"
if [ -x {program} ]; then t command executable; else t command missing; fi
t state "$(tr -d '\\n' <{state} 2>/dev/null)"
"""


def parse(output: str) -> dict[str, str]:
    """Values by key, from what the script printed."""
    return {key: value for key, _, value in (line.partition("\t") for line in output.splitlines())}


def wrong(told: Mapping[str, str], settings: Settings) -> list[Finding]:
    """What keeps the host from looking at itself as the settings say."""
    if not settings.monitoring.enabled:
        there = told.get("active") == "active" or bool(told.get("state"))
        return [Finding("the monitor runs although monitoring.enabled is false", REDEPLOY)] if there else []
    return [*_timer(told), *_look(told, settings), *_metrics(told, settings), *_command(told, settings)]


def _timer(told: Mapping[str, str]) -> list[Finding]:
    states = (told.get("enabled"), told.get("active"))
    if states == ("enabled", "active"):
        return []
    problem = f"{monitoring.TIMER} is {states[0] or 'not installed'} and {states[1] or 'not running'}"
    return [
        Finding(problem, f"somebody stopped the timer: `systemctl enable --now {monitoring.TIMER}`, or `make deploy`")
    ]


def _look(told: Mapping[str, str], settings: Settings) -> list[Finding]:
    if told.get("result") != "success":
        return [Finding(f"the last look failed: {told.get('result') or 'no word of it'}", JOURNAL)]
    try:
        looked = float(json.loads(told["state"])["time"])
    except (KeyError, TypeError, ValueError):
        return [Finding(f"{monitoring.state_file(settings)} is missing or damaged", JOURNAL)]
    return _late("the last look was", looked, told, settings)


def _metrics(told: Mapping[str, str], settings: Settings) -> list[Finding]:
    path = told.get("metrics") or monitoring.METRICS
    if told.get("metrics_mode") != "644":
        problem = f"{path} has mode {told['metrics_mode']}" if told.get("metrics_mode") else f"{path} is missing"
        return [Finding(problem, f"node_exporter cannot read the metrics; {JOURNAL}")]
    try:
        written = float(told["metrics_time"])
    except (KeyError, ValueError):
        return [Finding(f"{path} has no timestamp", JOURNAL)]
    return _late(f"{path} is of", written, told, settings)


def _late(what: str, moment: float, told: Mapping[str, str], settings: Settings) -> list[Finding]:
    clock, interval = float(told["clock"]), settings.monitoring.interval
    # A timer that has just come up has yet to run.
    if (
        not monitoring.is_late(clock - moment, interval)
        or float(told["uptime"]) <= interval + 2 * monitoring.LATE_SECONDS
    ):
        return []
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment))
    return [Finding(f"{what} {when} UTC, {clock - moment:.0f} s ago, every {interval} s expected", JOURNAL)]


def _command(told: Mapping[str, str], settings: Settings) -> list[Finding]:
    if not settings.monitoring.command or told.get("command") == "executable":
        return []
    problem = f"{settings.monitoring.command[0]}, the command for a change, is no program on the host"
    return [Finding(problem, "put it there, or set monitoring.command to one that is there and run `make deploy`")]


def text(told: Mapping[str, str], settings: Settings) -> str:
    """What the monitor last said, for people."""
    return monitoring.in_short(told.get("state", ""), float(told["clock"]), settings.monitoring.interval)[0]
