"""What looks at the host from itself by a timer: the program `monitor/`, its configuration, its units, as files of the host."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence

from atelier import paths, render, weights_unit
from atelier.settings import Settings
from atelier.tree import Directory, Entry, File

SERVICE = "atelier-monitor.service"
TIMER = "atelier-monitor.timer"
NOTICE = "atelier-notice@.service"
UNITS = "/etc/systemd/system"
STARTED_AT_BOOT = f"{UNITS}/timers.target.wants/{TIMER}"
"""The link that `systemctl enable` makes."""
METRICS = "atelier.prom"
MARGIN = 5
"""Seconds of the interval that stay free."""
STRANGERS = {"comfyui": "/prompt", "forge": "/sdapi/v1/samplers"}
"""What each application must refuse a stranger."""
LATE_SECONDS = 30
"""What two intervals may be exceeded by before a look counts as late."""
ACTIVE = "active"
FAILED = "failed"
FORMER = "former "


def directory(settings: Settings) -> str:
    """Where program and configuration lie on the host."""
    return f"{settings.config_root}/monitor"


def state_directory(settings: Settings) -> str:
    """Where it keeps what it saw."""
    return f"{settings.state_dir()}/monitor"


def state_file(settings: Settings) -> str:
    """What it saw last, and what it knows."""
    return f"{state_directory(settings)}/state.json"


def configuration(
    settings: Settings, disks: Iterable[str], has_gpu: bool, time_services: Sequence[str]
) -> dict[str, object]:
    """Everything that the program is told. disks: directories whose file systems need room."""
    monitoring = settings.monitoring
    base = f"{settings.scheme()}://{settings.own_address()}"
    wildcard = settings.bind_address in ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
    return {
        "seconds": monitoring.interval - MARGIN,
        "confirmations": monitoring.confirmations,
        "containers": {
            **{name: service.container for name, service in settings.enabled().items()},
            "gateway": settings.gateway_container,
        },
        "urls": {
            name: {"health": f"{base}:{service.port}/healthz", "strangers": f"{base}:{service.port}{STRANGERS[name]}"}
            for name, service in settings.enabled().items()
        },
        "ports": sorted(settings.published_ports()),
        "addresses": ["0.0.0.0", "::"] if wildcard else [settings.bind_address],  # noqa: S104
        "uid": settings.service_uid,
        "rules": [
            ["-t", "raw", "-C", *render.LOOPBACK_RULE.split()],
            ["-t", "mangle", "-C", *render.DIRECT_RULE.split()],
        ],
        "disks": sorted({"/", *settings.data_directories(), *disks}),
        "least_free": round(monitoring.minimum_free_gb * 1e9),
        "weights_unit": weights_unit.UNIT,
        "gpu": has_gpu,
        "time_services": list(time_services),
        "record": f"{settings.state_dir()}/deployed.json",
        "state": state_file(settings),
        "metrics": METRICS,
        "textfile_dir": monitoring.textfile_dir,
        "runtime": "/run/atelier-monitor",
        "notice_unit": NOTICE.replace("@", "@{id}") if monitoring.command else "",
        "command_seconds": monitoring.command_timeout,
    }


def entries(settings: Settings, disks: Iterable[str], has_gpu: bool, time_services: Sequence[str]) -> tuple[Entry, ...]:
    """Everything on the host that is not told by the program itself; nothing where it is not wanted."""
    if not settings.monitoring.enabled:
        return ()
    program = (paths.PROJECT / "monitor" / "host_monitor.py").read_bytes()
    config = json.dumps(configuration(settings, disks, has_gpu, time_services), indent=1) + "\n"
    return (
        Directory(directory(settings)),
        Directory(state_directory(settings)),
        File(f"{directory(settings)}/host_monitor.py", program),
        File(f"{directory(settings)}/config.json", config.encode()),
        *(_unit(name, settings, has_gpu) for name in (SERVICE, TIMER)),
        *([_unit(NOTICE, settings, has_gpu)] if settings.monitoring.command else []),
    )


def _unit(name: str, settings: Settings, has_gpu: bool) -> File:
    text = (
        render.environment()
        .get_template(f"units/{name}.j2")
        .render(
            directory=directory(settings),
            state=state_directory(settings),
            monitoring=settings.monitoring,
            command=exec_words(settings.monitoring.command),
            has_gpu=has_gpu,
        )
    )
    return File(f"{UNITS}/{name}", text.encode())


def exec_words(words: Iterable[str]) -> str:
    """Words for ExecStart= with the prefix `:`, each as it is: in quotes, with `\\`, `"` and `%` escaped."""
    escaped = (word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") for word in words)
    return " ".join(f'"{word}"' for word in escaped)


def written(settings: Settings) -> set[str]:
    """The state that the program writes, and the link that starts it at boot; nothing where it is not wanted."""
    return {STARTED_AT_BOOT, state_file(settings)} if settings.monitoring.enabled else set()


def metrics(settings: Settings) -> list[str]:
    """Where the program writes metrics: to the first that can be; nothing where it is not wanted."""
    places = (settings.monitoring.textfile_dir, state_directory(settings))
    return [f"{place}/{METRICS}" for place in places] if settings.monitoring.enabled else []


def probed(settings: Settings) -> list[str]:
    """All paths that there may be of it, wanted or not."""
    names = (f"{directory(settings)}/host_monitor.py", f"{directory(settings)}/config.json")
    units = (f"{UNITS}/{name}" for name in (SERVICE, TIMER, NOTICE))
    return [directory(settings), state_directory(settings), *names, *units, STARTED_AT_BOOT]


def probe_script(settings: Settings) -> str:
    """Shell that prints `active` where the timer runs, `failed` where the last look did, and metrics that lie where none are wanted."""
    wanted = settings.monitoring.textfile_dir if settings.monitoring.enabled else ""
    config = shlex.quote(f"{directory(settings)}/config.json")
    return (
        f"systemctl is-active -q {TIMER} && echo {ACTIVE}; systemctl is-failed -q {SERVICE} && echo {FAILED}; "
        f'd=$(sed -n \'s/^ "textfile_dir": "\\(.*\\)",$/\\1/p\' {config}); '
        f'[ -z "$d" ] || [ "$d" = {shlex.quote(wanted)} ] || [ ! -e "$d/{METRICS}" ] || echo "{FORMER}$d/{METRICS}"'
    )


def former_metrics(lines: Iterable[str]) -> list[str]:
    """The metrics that lie where none are wanted now, from what that shell printed."""
    return [line[len(FORMER) :] for line in lines if re.fullmatch(rf"{FORMER}/.*/{re.escape(METRICS)}", line)]


START_SCRIPT = (
    f"systemctl daemon-reload && systemctl enable -q {TIMER} && systemctl restart {TIMER} && systemctl start {SERVICE}"
)
"""Has the timer go by its present settings, and one look now, so that there is a state at once."""


def remove_script(settings: Settings) -> str:
    """Shell that leaves nothing of it but metrics elsewhere."""
    places = shlex.join([directory(settings), state_directory(settings)])
    units = shlex.join(f"{UNITS}/{name}" for name in (SERVICE, TIMER, NOTICE))
    return (
        f"systemctl disable -q --now {TIMER} 2>/dev/null; systemctl stop {SERVICE} 2>/dev/null; rm -f {units}; "
        f"systemctl daemon-reload; systemctl reset-failed {TIMER} {SERVICE} 2>/dev/null; rm -rf {places} /run/atelier-monitor"
    )


def in_short(state: str, now: float, interval: int) -> tuple[str, str]:
    """A line on what the host saw last in itself, and `up`, `down` or `unknown`.

    state: the state file, empty where there is none. now: seconds since 1970 by the host's clock. interval: seconds.
    """
    try:
        told = json.loads(state)
        age, verdict = now - float(told["time"]), str(told["state"])
        amiss = [f"{name} {it['state']} ({it['why']})" for name, it in told["subjects"].items() if it["state"] != "up"]
        doing = [f"{name} is {activity}" for name, activity in told["activity"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "no result yet", "unknown"
    late = is_late(age, interval)
    text = f"{verdict}, last result {max(0, round(age))} s old{' (stale)' if late else ''}: {', '.join(amiss + doing)}"
    return text, "unknown" if late else verdict


def is_late(age: float, interval: int) -> bool:
    """Whether the last look is so long ago, in seconds, that one is missing."""
    return age > 2 * interval + LATE_SECONDS
