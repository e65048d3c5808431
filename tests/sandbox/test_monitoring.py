"""A deployed host that looks at itself: what it sees, what it writes, and the command that is run once for a change.

The tests share one deployed sandbox and run in their order; each leaves the services as declared.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import exposition
import pytest
from harness import ROOT, UNCHANGED, Sandbox, changes, copy_checkout

from atelier import credentials
from atelier.errors import AtelierError

pytestmark = pytest.mark.sandbox
STATE, METRICS = "/srv/atelier/state/monitor/state.json", "/srv/atelier/state/monitor/atelier.prom"
TEXTFILES = "/var/lib/prometheus/node-exporter"
TELL = r"""#!/bin/sh
echo "$ATELIER_OLD_STATE|$ATELIER_NEW_STATE|$ATELIER_CHANGES|$ATELIER_DOWN|$*" >>/var/tmp/told
echo "this is for the journal"
! [ -e /var/tmp/slow ] || sleep 4
echo ended >>/var/tmp/ended
"""
ODD = 'a "b" $HOME %n \\ ;'
MONITORING = {"command": ["/usr/local/bin/tell", ODD], "command_timeout": 10, "interval": 45}
STEP = "Start the host monitor (systemd timer)"
DEFAULTS = (ROOT / "group_data" / "sandbox.py").read_text()


def configure(sandbox: Sandbox, monitoring: dict[str, object]) -> None:
    (sandbox.checkout / "group_data" / "sandbox.py").write_text(f"{DEFAULTS}monitoring = {monitoring!r}\n")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    found = Sandbox(f"sandbox-monitor-{os.getpid()}")
    with found.running():
        made = replace(found, checkout=copy_checkout(tmp_path_factory.mktemp("monitor")))
        made.root("cat >/usr/local/bin/tell && chmod 0755 /usr/local/bin/tell", stdin=TELL)
        configure(made, MONITORING)
        yield made


def state(host: Sandbox) -> dict:
    return json.loads(host.root(f"cat {STATE}"))


def look(host: Sandbox, times: int = 2) -> dict:
    """Some looks now; two are needed to confirm a change."""
    host.root("systemctl start atelier-monitor.service\n" * times)
    return state(host)


def told(host: Sandbox) -> list[list[str]]:
    return [line.split("|") for line in host.root("[ ! -e /var/tmp/told ] || cat /var/tmp/told").splitlines()]


def states(seen: dict) -> dict[str, str]:
    return {name: subject["state"] for name, subject in seen["subjects"].items()}


def healthy(host: Sandbox, container: str) -> None:
    host.wait_for(f"[ $(docker inspect -f '{{{{.State.Health.Status}}}}' {container}) = healthy ]")


def test_a_deployed_host_has_looked_at_itself_and_all_is_well(host: Sandbox) -> None:
    assert STEP in changes(host.deploy())
    seen = state(host)
    assert set(states(seen).values()) == {"up"}, seen["checks"]
    assert {"docker", "comfyui", "forge", "gateway", "listening", "loopback", "disk", "weights", "record"} <= states(
        seen
    ).keys()
    assert seen["activity"] == {"comfyui": "idle", "forge": "idle"} and seen["seconds"] < 10
    assert told(host) == [], "that it is well at first is no change"


def test_the_timer_looks_by_itself_and_says_nothing_where_nothing_changes(host: Sandbox) -> None:
    before = state(host)["time"]
    host.wait_for(f"[ $(sed -n 's/^ \"time\": \\([0-9]*\\).*/\\1/p' {STATE}) -gt {int(before) + 1} ]", 60)
    journal = host.root("journalctl -u atelier-monitor -o cat --no-pager")
    assert journal.count("\n") < 4, journal


def test_metrics_are_well_formed_and_node_exporter_takes_them(host: Sandbox) -> None:
    samples = exposition.read(host.root(f"cat {METRICS}") + "\n")
    assert samples["atelier_subject_state", (("state", "up"), ("subject", "forge"))] == 1
    assert samples["atelier_service_activity", (("service", "comfyui"), ("state", "idle"))] == 1
    host.root("DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends prometheus-node-exporter")
    look(host, 1)
    assert (
        host.root(f"stat -c '%a %U' {TEXTFILES}/atelier.prom; ls {METRICS} 2>&1 | grep -c 'No such'") == "644 root\n1"
    )
    host.wait_for("curl -sf http://127.0.0.1:9100/metrics | grep -q ^atelier_")
    served = host.root("curl -s http://127.0.0.1:9100/metrics").splitlines()
    assert "node_textfile_scrape_error 0" in served
    assert 'atelier_subject_state{state="up",subject="forge"} 1' in served


def test_a_second_deploy_changes_nothing(host: Sandbox) -> None:
    assert re.search(UNCHANGED, host.deploy())


def test_a_stopped_service_runs_the_command_once_and_its_return_once_more(host: Sandbox) -> None:
    host.root("docker stop forge-turbo")
    seen = look(host, 4)
    assert (
        states(seen)["forge"] == "down" and states(seen)["comfyui"] == "up" and seen["activity"]["forge"] == "unknown"
    )
    ((old, new, what, down, words),) = told(host)
    assert (old, new, down, words) == ("up", "down", "forge", ODD)
    assert what.startswith("forge: up -> down (it is exited")
    assert "this is for the journal" in host.root("journalctl -o cat --no-pager -u 'atelier-notice@*'")
    host.root("docker start forge-turbo")
    healthy(host, "forge-turbo")
    assert states(look(host, 4))["forge"] == "up"
    assert [line[:4] for line in told(host)[1:]] == [["down", "up", "forge: down -> up", ""]]


def test_an_application_at_work_is_busy_and_one_that_cannot_be_asked_is_unknown(host: Sandbox) -> None:
    known = credentials.load(host.checkout / ".secrets" / host.name)
    assert known
    wish = {"prompt": "a lighthouse", "steps": 150, "n_iter": 8}
    host.root("umask 077; cat >/var/tmp/wish", stdin=json.dumps(wish))
    host.root(
        "umask 077; cat >/var/tmp/curl; curl -s -K /var/tmp/curl -H 'Content-Type: application/json' -d @/var/tmp/wish "
        "http://127.0.0.1:7860/sdapi/v1/txt2img >/dev/null 2>&1 & sleep 1",
        stdin=f'user = "{known.forge.user}:{known.forge.password}"\n',
    )
    assert look(host, 1)["activity"] == {"comfyui": "idle", "forge": "busy"}
    interrupt = "curl -sf -K /var/tmp/curl -X POST http://127.0.0.1:7860/sdapi/v1/interrupt"
    host.root(f"{interrupt}; while pgrep curl; do sleep 0.2; done; rm /var/tmp/curl /var/tmp/wish")
    assert look(host, 1)["activity"]["forge"] == "idle"
    host.root("docker pause comfyui-qwen")
    assert look(host, 1)["activity"]["comfyui"] == "unknown"
    host.root("docker unpause comfyui-qwen")
    healthy(host, "comfyui-qwen")
    assert look(host)["activity"]["comfyui"] == "idle"
    assert len(told(host)) == 2, "one look is no change"


def test_killed_while_the_command_runs_it_is_not_run_twice_and_comes_to_its_end(host: Sandbox) -> None:
    look(host, 1)  # so that the timer's next is far away
    host.root("rm -f /var/tmp/told /var/tmp/ended; touch /var/tmp/slow; docker stop forge-turbo")
    look(host, 1)
    host.root("systemctl start --no-block atelier-monitor.service")
    host.wait_for("[ -s /var/tmp/told ]", 20)
    host.root("systemctl kill -s KILL atelier-monitor.service")
    host.wait_for("[ -s /var/tmp/ended ]", 20)
    host.root("rm /var/tmp/slow; systemctl reset-failed atelier-monitor.service")
    memory = look(host, 3)["memory"]
    assert len(told(host)) == 1 and memory["outcomes"]["interrupted"] == 1 and memory["due"] == []


def test_a_restart_of_the_host_neither_repeats_nor_loses_a_change(host: Sandbox) -> None:
    booted = host.root("cat /proc/sys/kernel/random/boot_id")
    host.root("docker start forge-turbo")
    healthy(host, "forge-turbo")
    look(host, 1)  # seen once, to be confirmed after the restart
    with suppress(AtelierError):  # the connection may end first
        host.ssh().run("systemctl reboot", timeout=20)
    host.wait_for(f"[ $(cat /proc/sys/kernel/random/boot_id) != {booted} ]")
    for container in ("comfyui-qwen", "forge-turbo", "gateway"):
        healthy(host, container)
    host.wait_for("systemctl is-active -q atelier-monitor.timer")
    assert set(states(look(host, 3)).values()) == {"up"}
    assert [line[2] for line in told(host)[1:]] == ["forge: down -> up"]


def test_a_docker_that_is_stopped_is_down_stays_stopped_and_leaves_containers_unknown(host: Sandbox) -> None:
    host.root("rm -f /var/tmp/told; systemctl stop docker.service")
    seen = look(host)
    assert states(seen)["docker"] == "down" and seen["checks"]["forge.container"]["state"] == "unknown"
    assert seen["activity"] == {"comfyui": "unknown", "forge": "unknown"}
    assert host.root("systemctl is-active docker.service || true") in ("inactive", "failed"), (
        "its socket did not start it"
    )
    assert any("docker: up -> down" in line[2] for line in told(host))
    host.root("systemctl start docker.service")
    for container in ("comfyui-qwen", "forge-turbo", "gateway"):
        healthy(host, container)
    assert set(states(look(host, 3)).values()) == {"up"}


def test_a_docker_that_hangs_is_down_in_time(host: Sandbox) -> None:
    host.root("kill -STOP $(pidof dockerd)")
    begun = time.monotonic()
    try:
        seen = look(host, 1)
    finally:
        host.root("kill -CONT $(pidof dockerd)")
    assert time.monotonic() - begun < 30 and seen["seconds"] < 21
    assert seen["checks"]["docker"] == {"state": "down", "why": "it does not answer"}
    assert seen["checks"]["gateway.container"]["state"] == "unknown" and seen["checks"]["forge.health"]["state"] == "up"
    assert states(look(host))["docker"] == "up"


def test_verify_says_that_it_looks(host: Sandbox) -> None:
    host.atelier("verify", "--check", "host.monitor")
    folder = host.checkout / "reports" / host.name / "latest"
    checks = json.loads((folder / "report.json").read_text())["checks"]
    (check,) = (check for check in checks if check["id"] == "host.monitor")
    assert check["verdict"] == "passed"
    assert re.fullmatch(r"up, last result \d+ s old: comfyui is idle, forge is idle", check["observed"])


def test_disabled_it_leaves_nothing_behind(host: Sandbox) -> None:
    configure(host, {"enabled": False})
    assert changes(host.deploy()) == ["Record what runs", "Remove the host monitor"]
    left = host.root(
        f"ls -d /etc/systemd/system/*/atelier-monitor* /etc/systemd/system/atelier-[mn]o* /opt/atelier/monitor {STATE} "
        f"{TEXTFILES}/atelier.prom /run/atelier-monitor 2>/dev/null || true; systemctl list-units --all -q 'atelier-mon*'"
    )
    assert left == ""
    assert re.search(UNCHANGED, host.deploy())
