"""The program that looks at a host from itself: its decisions, what it remembers and tells, and whole runs of it."""

import http.server
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import exposition
import host_monitor as monitor
import pytest
from host_monitor import Answer, Change, Disk, Memory, Notice, Seen, Subject

IMAGE = "sha256:" + "a" * 64
LATE = Answer(None, "docker did not end within 8 s", late=True)


def container(status: str = "running", health: str | None = "healthy", restarts: int = 0, **more: object) -> dict:
    state = {"Status": status, "ExitCode": 137, **({"Health": {"Status": health}} if health else {})}
    return {"Id": "c1", "Name": "/forge-turbo", "Image": IMAGE, "RestartCount": restarts, "State": state, **more}


def inspected(*containers: dict, errors: str = "", status: int = 0) -> Answer:
    return Answer(status, f"{json.dumps(list(containers))}\n::\n{errors}")


UNREACHABLE = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
DOCKER = {
    "answers": (Answer(0, "active\n"), inspected(container()), "up", ""),
    "one container is missing": (
        Answer(0, "active\n"),
        inspected(errors="error: no such object: forge-turbo\n", status=1),
        "up",
        "",
    ),
    "stopped": (Answer(0, "inactive\n"), monitor.NOT_ASKED, "down", "its unit is inactive"),
    "failed": (Answer(0, "failed\n"), monitor.NOT_ASKED, "down", "failed"),
    "hangs": (Answer(0, "active\n"), LATE, "down", "does not answer"),
    "refuses": (Answer(0, "active\n"), Answer(1, f"[]\n::\n{UNREACHABLE}\n"), "down", "Cannot connect"),
    "garbage": (Answer(0, "active\n"), Answer(0, "what?\n::\n"), "down", "what?"),
    "client is gone": (Answer(0, "active\n"), Answer(None, "docker: No such file or directory"), "unknown", "No such"),
    "systemd hangs": (LATE, monitor.NOT_ASKED, "unknown", "systemd"),
    "systemd refuses": (Answer(1, "Failed to connect to bus"), monitor.NOT_ASKED, "unknown", "bus"),
}


@pytest.mark.parametrize("unit,answer,state,why", DOCKER.values(), ids=DOCKER.keys())
def test_docker(unit: Answer, answer: Answer, state: str, why: str) -> None:
    seen = monitor.docker_seen(unit, answer)
    assert seen.state == state and why in seen.why


BEFORE = {"id": "c1", "restarts": 2}
CONTAINERS = {
    "healthy": (container(), IMAGE, None, "up", ""),
    "healthy, restarted long ago": (container(restarts=2), IMAGE, BEFORE, "up", ""),
    "made anew since": (container(restarts=0), IMAGE, {"id": "c0", "restarts": 5}, "up", ""),
    "gone": (None, IMAGE, None, "down", "no such container"),
    "stopped": (container("exited"), IMAGE, None, "down", "exited (exit status 137)"),
    "paused": (container("paused"), IMAGE, None, "down", "paused"),
    "created": (container("created", None), IMAGE, None, "down", "created"),
    "between two restarts": (container("restarting", "unhealthy", 7), IMAGE, None, "down", "restart loop"),
    "restarted since, and well": (container(restarts=4), IMAGE, BEFORE, "down", "restarted 2 times"),
    "unhealthy": (container(health="unhealthy"), IMAGE, None, "down", "unhealthy"),
    "starting": (container(health="starting"), IMAGE, None, "unknown", "starting"),
    "without a health check": (container(health=None), IMAGE, None, "unknown", "not checked"),
    "another image": (container(Image="sha256:" + "b" * 64), IMAGE, None, "down", "b" * 12),
    "no record of its image": (container(), None, None, "unknown", "not known"),
    "damaged answer": ({"Id": "c1"}, IMAGE, None, "unknown", "nothing"),
    "damaged state": (container() | {"State": None}, IMAGE, None, "unknown", "nothing"),
}


@pytest.mark.parametrize("it,image,before,state,why", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_a_container(it: dict | None, image: str | None, before: dict | None, state: str, why: str) -> None:
    seen = monitor.container_seen(it, image, before)
    assert seen.state == state and why in seen.why


@pytest.mark.parametrize(
    "answer,state",
    [
        (Answer(200, "up\n"), "up"),
        (Answer(503, "down\n"), "down"),
        (Answer(200, "hello"), "down"),
        (Answer(401, "up"), "down"),
        (Answer(None, "Connection refused"), "down"),
        (Answer(None, "timed out", late=True), "down"),
    ],
)
def test_a_service_by_its_healthz(answer: Answer, state: str) -> None:
    assert monitor.health_seen(answer).state == state


@pytest.mark.parametrize(
    "answer,state",
    [
        (Answer(401), "up"),
        (Answer(200, "{}"), "down"),
        (Answer(206), "down"),
        (Answer(302), "down"),
        (Answer(403), "down"),
        (Answer(404), "down"),
        (Answer(500), "unknown"),
        (Answer(503), "unknown"),
        (Answer(None, "Connection refused"), "unknown"),
        (Answer(None, "timed out", late=True), "unknown"),
    ],
)
def test_strangers_are_refused_by_401_and_nothing_else(answer: Answer, state: str) -> None:
    assert monitor.strangers_seen(answer).state == state


HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(address: str, state: str = "0A", uid: int = 0) -> str:
    return f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5d}        0 1 1 0 100\n"


LOOPBACK, ANY, OUTSIDE = "0100007F:1FFC", "00000000:1FFC", "0A00000A:1FFC"
SIX_LOOPBACK, SIX_ANY = "00000000000000000000000001000000:1FFC", "00000000000000000000000000000000:1FFC"
MAPPED = "0000000000000000FFFF00000100007F:1FFC"
LISTENING = {
    "where it was declared": ([LOOPBACK], [], ["127.0.0.1"], "up"),
    "nowhere": ([], [], ["127.0.0.1"], "up"),
    "everywhere as well": ([LOOPBACK, ANY], [], ["127.0.0.1"], "down"),
    "on another address": ([LOOPBACK, OUTSIDE], [], ["127.0.0.1"], "down"),
    "on every address of IPv6": ([LOOPBACK], [SIX_ANY], ["127.0.0.1"], "down"),
    "everywhere, as declared": ([ANY], [SIX_ANY], ["0.0.0.0", "::"], "up"),
    "on loopback of IPv6, as declared": ([], [SIX_LOOPBACK], ["::1"], "up"),
    "on loopback through IPv6": ([], [MAPPED], ["127.0.0.1"], "up"),
    "another port": (["00000000:0016"], [], ["127.0.0.1"], "up"),
}


@pytest.mark.parametrize("four,six,allowed,state", LISTENING.values(), ids=LISTENING.keys())
def test_who_listens(four: list[str], six: list[str], allowed: list[str], state: str) -> None:
    tables = [HEADER + "".join(map(row, four)), HEADER + "".join(map(row, six))]
    assert monitor.listening_seen(tables, [8188], allowed, 10001).state == state


def test_a_connection_does_not_listen_and_the_service_user_must_not() -> None:
    established = [HEADER + row(ANY, "01", 10001), HEADER]
    assert monitor.listening_seen(established, [8188], ["127.0.0.1"], 10001).state == "up"
    stray = monitor.listening_seen([HEADER + row("00000000:0050", uid=10001), HEADER], [8188], ["127.0.0.1"], 10001)
    assert stray.state == "down" and "port 80 (the service user's)" in stray.why
    assert monitor.listening_seen([HEADER + row("xyz:1FFC"), HEADER], [8188], [], 1).state == "unknown"


@pytest.mark.parametrize(
    "answers,state",
    [
        ([Answer(0), Answer(0)], "up"),
        ([Answer(0), Answer(1, "Bad rule")], "down"),
        ([Answer(4, "Permission denied"), Answer(1, "Bad rule")], "down"),
        ([Answer(0), Answer(4, "Permission denied")], "unknown"),
        ([LATE, Answer(0)], "unknown"),
        ([Answer(None, "iptables: No such file or directory")] * 2, "unknown"),
    ],
)
def test_the_rules_that_guard_the_addresses(answers: list[Answer], state: str) -> None:
    assert monitor.loopback_seen(answers).state == state


ROOM = Disk(20_000_000_000, 100_000, 200_000)


@pytest.mark.parametrize(
    "disks,state,why",
    [
        ({"/": ROOM}, "up", ""),
        ({"/": ROOM, "/srv": Disk(4_900_000_000, 9, 0)}, "down", "/srv has 4.9 GB left"),
        ({"/": ROOM, "/srv": Disk(ROOM.free, 12, 200_000)}, "down", "/srv can hold 12 files more"),
        ({"/": ROOM, "/srv": Disk(ROOM.free, 0, 0)}, "up", ""),  # a file system without such a limit
        ({"/": ROOM, "/srv": None}, "unknown", "no answer from /srv"),
        ({"/": Disk(0, 0, 1), "/srv": None}, "down", "/ has 0.0 GB left"),
    ],
)
def test_disks(disks: dict[str, Disk | None], state: str, why: str) -> None:
    seen = monitor.disk_seen(disks, 5e9)
    assert seen.state == state and why in seen.why


@pytest.mark.parametrize(
    "answer,state",
    [
        (Answer(0, "inactive\n"), "up"),
        (Answer(0, "active\n"), "up"),
        (Answer(0, "failed\n"), "down"),
        (Answer(0, "\n"), "unknown"),
        (Answer(1, "Failed to connect to bus"), "unknown"),
        (LATE, "unknown"),
    ],
)
def test_the_unit_of_the_weights(answer: Answer, state: str) -> None:
    assert monitor.weights_seen(answer).state == state


@pytest.mark.parametrize(
    "answer,wanted,state,why",
    [
        (Answer(0, "GPU-a\nGPU-b\n"), ["GPU-a"], "up", ""),
        (Answer(0, "GPU-a\n"), ["GPU-a", "GPU-b"], "down", "no GPU-b"),
        (Answer(0, "GPU-a\n"), None, "unknown", "not known"),
        (Answer(0, "GPU-a\n"), ["all"], "up", ""),
        (Answer(0, ""), ["all"], "down", "no all"),
        (Answer(18, "Failed to initialize NVML: Driver/library version mismatch"), ["GPU-a"], "down", "mismatch"),
        (Answer(None, "nvidia-smi: No such file or directory"), ["GPU-a"], "down", "No such file"),
        (Answer(None, "nvidia-smi did not end", late=True), ["GPU-a"], "down", "does not answer"),
    ],
)
def test_gpus(answer: Answer, wanted: list[str] | None, state: str, why: str) -> None:
    seen = monitor.gpu_seen(answer, wanted)
    assert seen.state == state and why in seen.why


@pytest.mark.parametrize(
    "services,in_sync,uptime,state",
    [
        ("inactive\nactive\n", True, 99999.0, "up"),
        ("inactive\nactive\n", False, 99999.0, "down"),
        ("inactive\nactive\n", False, 30.0, "unknown"),
        ("inactive\nactive\n", None, 99999.0, "unknown"),
        ("inactive\ninactive\n", True, 99999.0, "down"),
    ],
)
def test_the_clock(services: str, in_sync: bool | None, uptime: float, state: str) -> None:
    assert monitor.time_seen(Answer(0, services), in_sync, uptime).state == state


def test_the_clock_when_systemd_does_not_answer() -> None:
    assert monitor.time_seen(LATE, True, 99999.0).state == "unknown"


@pytest.mark.parametrize(
    "record,state",
    [
        ({"images": {"forge": {"id": IMAGE}}}, "up"),
        ({"images": {"forge": {"id": ""}}}, "down"),
        ({"images": {}}, "down"),
        ({"images": []}, "down"),
        ({}, "down"),
        (None, "down"),
    ],
)
def test_the_record_of_the_last_deploy(record: dict | None, state: str) -> None:
    assert monitor.record_seen(record, ["forge"]).state == state


@pytest.mark.parametrize(
    "answer,activity",
    [
        (Answer(0, "busy\n"), "busy"),
        (Answer(0, "idle\n"), "idle"),
        (Answer(0, ""), "unknown"),
        (Answer(0, "Idle"), "unknown"),
        (Answer(1, "urllib.error.HTTPError: HTTP Error 500"), "unknown"),
        (Answer(1, "idle"), "unknown"),
        (LATE, "unknown"),
        (Answer(None, "not asked"), "unknown"),
    ],
)
def test_an_error_is_never_idle(answer: Answer, activity: str) -> None:
    assert monitor.activity_seen(answer) == activity


@pytest.mark.parametrize(
    "states,expected",
    [
        (["up", "up"], "up"),
        (["up", "unknown"], "unknown"),
        (["unknown", "down"], "down"),
        (["up", "down"], "down"),
        ([], "unknown"),
    ],
)
def test_the_worst_of_several(states: list, expected: str) -> None:
    assert monitor.worst(states) == expected


def test_a_subject_is_told_by_the_checks_that_make_its_state() -> None:
    checks = {
        "forge.container": Seen("down", "it is exited"),
        "forge.health": Seen("down", "/healthz: refused"),
        "forge.strangers": Seen("unknown", "no word"),
        "disk": Seen("up"),
    }
    assert monitor.subjects(checks) == {
        "forge": Seen("down", "it is exited; /healthz: refused"),
        "disk": Seen("up"),
    }


# What a row of looks makes known, with two confirmations: letters u, d, ? are what was seen, changes are told by number.
ROWS = {
    "well from the beginning": ("uuu", "up", []),
    "down from the beginning": ("dd", "down", [2]),
    "down once only": ("uduuu", "up", []),
    "down": ("uuddd", "down", [4]),
    "down and up": ("udduud", "up", [3, 5]),
    "not known for a while": ("u????", "up", []),
    "unknown does not end a state": ("udd???u", "down", [3]),
    "unknown does not begin the count anew": ("ud?d", "down", [4]),
    "unknown does not count": ("ud??", "up", []),
    "it flaps": ("udududud", "up", []),
    "never known": ("???", None, []),
}


@pytest.mark.parametrize("looks,known,told", ROWS.values(), ids=ROWS.keys())
def test_a_row_of_looks(looks: str, known: str | None, told: list[int]) -> None:
    memory, seen = Memory(), {"u": Seen("up"), "d": Seen("down", "broken"), "?": Seen("unknown", "no answer")}
    changes = []
    for number, letter in enumerate(looks, 1):
        memory = monitor.remembered(memory, {"forge": seen[letter]}, 2, number)
        changes += [number for notice in memory.due]
        memory = monitor.parse_memory(json.dumps({"memory": monitor.asdict(memory)}))  # as the next run has it
        memory = monitor.replace(memory, due=())
    assert memory.subjects["forge"].known == known
    assert changes == told


def test_several_changes_of_one_look_are_one_notice() -> None:
    before = Memory(
        subjects={"forge": Subject("up"), "gateway": Subject("up"), "disk": Subject("down"), "old": Subject()}
    )
    seen = {"forge": Seen("down", "a"), "gateway": Seen("down", "b"), "disk": Seen("down", "c"), "new": Seen("up")}
    after = monitor.remembered(before, seen, 1, 9.0)
    changes = (Change("forge", "up", "down", "a"), Change("gateway", "up", "down", "b"))
    assert after.due == (Notice(1, "down", "down", changes, ("forge", "gateway", "disk")),)
    assert after.subjects.keys() == seen.keys(), "what is looked at no more is forgotten"
    assert after.subjects["forge"] == Subject("down", 9.0)


def test_a_command_that_was_begun_is_never_begun_again() -> None:
    begun, due = Notice(1, "up", "down", (), (), begun=True), Notice(2, "down", "up", (), ())
    memory = monitor.without_interrupted(Memory(due=(begun, due)))
    assert memory.due == (due,) and memory.outcomes == {"interrupted": 1}


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"memory": {}}', '{"memory": {"subjects": {"a": {"x": 1}}}}', "null"]
)
def test_a_damaged_memory_is_known_as_one(text: str) -> None:
    with pytest.raises(ValueError):
        monitor.parse_memory(text)


def test_what_a_command_is_told_fits_into_systemds_file_whatever_it_holds() -> None:
    hostile = 'it said "no"; $(reboot) `x` \\ \n LD_PRELOAD=/tmp/x é'
    notice = Notice(1, "up", "down", (Change("forge", "up", "down", hostile),), ("forge",))
    lines = monitor.environment_file(notice, "gpu\n1").splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "ATELIER_HOST",
        "ATELIER_OLD_STATE",
        "ATELIER_NEW_STATE",
        "ATELIER_CHANGES",
        "ATELIER_DOWN",
    ]
    for line in lines:
        assert re.fullmatch(r'[A-Z_]+="([^"\\$`]|\\["\\$`])*"', line), line
    assert r"\"no\"; \$(reboot) \`x\`" in lines[3]


LOOK = monitor.Look(
    1795000000.123456,
    1.5,
    {"docker": Seen("up"), "forge.container": Seen("down", "x"), "forge.health": Seen("unknown")},
    {"comfyui": "busy", "forge": "unknown"},
    {"release": '1"\\\n', "profile": "cpu", "sources": "double"},
)
KNOWN = Memory(
    subjects={"docker": Subject("up"), "forge": Subject()},
    containers={"forge-turbo": {"id": "c", "restarts": 3}},
    outcomes={"failed": 2},
    notices=7,
)


def test_metrics_are_strictly_well_formed_and_of_several_states_one_holds() -> None:
    samples = exposition.read(monitor.metrics(LOOK, KNOWN))
    assert samples["atelier_subject_state", (("state", "down"), ("subject", "forge"))] == 1
    assert samples["atelier_subject_known_state", (("state", "unknown"), ("subject", "forge"))] == 1
    assert samples["atelier_service_activity", (("service", "forge"), ("state", "idle"))] == 0
    assert samples["atelier_service_activity", (("service", "forge"), ("state", "unknown"))] == 1
    assert samples["atelier_container_restarts", (("container", "forge-turbo"),)] == 3
    assert samples["atelier_commands_total", (("outcome", "failed"),)] == 2
    assert samples["atelier_commands_total", (("outcome", "interrupted"),)] == 0
    assert samples["atelier_look_timestamp_seconds", ()] == 1795000000.123
    info = dict(next(labels for name, labels in samples if name == "atelier_deployed_info"))
    assert info["release"] == '1"\\\n'
    sums: dict[tuple[str, str], float] = {}
    for (name, labels), value in samples.items():
        if "state" in dict(labels):
            which = next(text for key, text in labels if key != "state")
            sums[name, which] = sums.get((name, which), 0) + value
    assert len(sums) == 2 + 2 + 3 + 2 and set(sums.values()) == {1}


def test_metrics_of_a_first_look_that_could_ask_nothing_are_well_formed() -> None:
    empty = monitor.Look(1.0, 0.0, {}, {}, {})
    assert ("atelier_look_timestamp_seconds", ()) in exposition.read(monitor.metrics(empty, Memory()))


@pytest.mark.parametrize(
    "text",
    [
        "# HELP a x\n# TYPE a gauge\na 1\na 1\n",
        '# HELP a x\n# TYPE a gauge\na{b="1"} 1\na{b="1"} 2\n',
        "# HELP a x\na 1\n",
        "# HELP a x\n# TYPE a gauge\na one\n",
        "# HELP a x\n# TYPE a counter\na 1\n",
        "# HELP a x\n# TYPE a gauge\na 1",
        '# HELP a x\n# TYPE a gauge\na{b="1"x"} 1\n',
        "# HELP a x\n# TYPE a gauge\na 1\n# HELP b x\n# TYPE b gauge\nb 1\na 2\n",
        "# HELP a x\n# TYPE a gauge\n# HELP a y\na 1\n",
    ],
)
def test_the_strict_reader_is_strict(text: str) -> None:
    with pytest.raises(ValueError):
        exposition.read(text)


# --- Whole runs, with commands and a server that stand in for the host's -------------------------------------------------

RECORD = {
    "release": "1",
    "profile": "cpu",
    "sources": "double",
    "images": {"forge": {"id": IMAGE}, "gateway": {"id": IMAGE}},
    "gpus": {},
}


class Gateway(http.server.BaseHTTPRequestHandler):
    health = (200, b"up\n")
    stranger = 401

    def do_GET(self) -> None:
        status, body = self.health if self.path == "/healthz" else (self.stranger, b"")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests need no log."""


class Host:
    """A host made of stand-ins below a directory; `run` is one run of the program, as its unit makes it."""

    def __init__(self, place: Path, port: int) -> None:
        self.place, self.told = place, place / "told"
        self.state = place / "state" / "state.json"
        self.textfiles = place / "node-exporter"
        for name in ("bin", "state", "run"):
            (place / name).mkdir()
        self.containers = {"forge-turbo": container(), "gateway": container(Name="/gateway", Id="c2")}
        self.say("systemctl", self.systemctl())
        self.say("iptables", "exit 0")
        self.record(RECORD)
        self.docker()
        base = f"http://127.0.0.1:{port}"
        self.config = {
            "seconds": 55,
            "confirmations": 1,
            "containers": {"forge": "forge-turbo", "gateway": "gateway"},
            "urls": {"forge": {"health": f"{base}/healthz", "strangers": f"{base}/sdapi/v1/samplers"}},
            "ports": [1],
            "addresses": ["127.0.0.1"],
            "uid": 4000000,
            "rules": [["-t", "raw"], ["-t", "mangle"]],
            "disks": [str(place), "/not-there"],
            "least_free": 1,
            "weights_unit": "atelier-weights.service",
            "gpu": False,
            "time_services": [],
            "record": str(place / "deployed.json"),
            "state": str(self.state),
            "metrics": "atelier.prom",
            "textfile_dir": str(self.textfiles),
            "runtime": str(place / "run"),
            "notice_unit": "atelier-notice@{id}.service",
            "command_seconds": 20,
        }

    def say(self, command: str, script: str) -> None:
        file = self.place / "bin" / command
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def systemctl(self, start: str = "exit 0") -> str:
        return (
            f'case $1 in show) case "$*" in *docker*) echo active;; *) echo inactive;; esac;; '
            f"start) id=${{2#*@}}; cat {self.place}/run/${{id%.service}}.env >>{self.told}; {start};; esac"
        )

    def docker(self, exec: str = "echo idle") -> None:
        (self.place / "inspected").write_text(json.dumps(list(self.containers.values())))
        self.say("docker", f"case $1 in inspect) cat {self.place}/inspected;; exec) {exec};; esac")

    def record(self, record: dict) -> None:
        (self.place / "deployed.json").write_text(json.dumps(record))

    def run(self, expect: int = 0) -> dict:
        path = self.place / "config.json"
        path.write_text(json.dumps(self.config))
        environment = {"PATH": f"{self.place}/bin:/usr/bin:/bin"}
        command = [sys.executable, "-BEs", monitor.__file__, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == expect and "Traceback" not in done.stderr, done.stderr
        self.printed = done.stdout
        return json.loads(self.state.read_text())

    def notices(self) -> list[str]:
        return re.findall(r'ATELIER_CHANGES="(.*)"', self.told.read_text()) if self.told.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Gateway,), {}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    made = Host(tmp_path, server.server_address[1])
    made.gateway = server.RequestHandlerClass
    yield made
    server.shutdown()
    server.server_close()


def stop_forge(host: Host) -> None:
    host.containers["forge-turbo"] = container("exited")
    host.docker()
    host.gateway.health = (503, b"down\n")


def start_forge(host: Host) -> None:
    host.containers["forge-turbo"] = container()
    host.docker()
    host.gateway.health = (200, b"up\n")


def test_a_host_that_is_well_is_up_everywhere_and_no_command_runs(host: Host) -> None:
    seen = host.run()
    states = {name: check["state"] for name, check in seen["checks"].items() if name != "reboot"}
    assert set(states.values()) == {"up"} and len(states) == 10, states
    assert seen["activity"] == {"forge": "idle"} and host.notices() == []
    assert time.time() - seen["time"] < 30


def test_each_change_runs_the_command_once_and_tells_old_and_new(host: Host) -> None:
    host.run()
    stop_forge(host)
    for _ in range(3):
        assert host.run()["subjects"]["forge"]["known"] == "down"
    assert host.notices() == ["forge: up -> down (it is exited (exit status 137); /healthz answers 503 down)"]
    start_forge(host)
    for _ in range(2):
        host.run()
    assert len(host.notices()) == 2 and host.notices()[1] == "forge: down -> up"
    told = host.told.read_text()
    assert 'ATELIER_OLD_STATE="up"\nATELIER_NEW_STATE="down"' in told
    assert 'ATELIER_OLD_STATE="down"\nATELIER_NEW_STATE="up"' in told
    assert list((host.place / "run").iterdir()) == []


def test_a_service_that_answers_strangers_is_down(host: Host) -> None:
    host.run()
    host.gateway.stranger = 200
    assert "stranger was answered 200" in host.run()["subjects"]["forge"]["why"]
    assert len(host.notices()) == 1


def test_a_gateway_that_cannot_be_reached_leaves_strangers_unknown(host: Host) -> None:
    host.config["urls"]["forge"] = dict.fromkeys(("health", "strangers"), "http://127.0.0.1:1/x")
    seen = host.run()["checks"]
    assert (seen["forge.health"]["state"], seen["forge.strangers"]["state"]) == ("down", "unknown")


def test_a_docker_that_is_stopped_is_not_asked_and_its_containers_are_unknown(host: Host) -> None:
    host.run()
    host.say("systemctl", host.systemctl().replace("echo active", "echo inactive"))
    host.say("docker", f"touch {host.place}/asked")
    seen = host.run()
    assert seen["checks"]["docker"]["state"] == "down" and seen["checks"]["gateway.container"]["state"] == "unknown"
    assert seen["subjects"]["gateway"] == {
        "state": "unknown",
        "known": "up",
        "since": seen["memory"]["subjects"]["gateway"]["since"],
        "why": "Docker cannot be asked",
    }
    assert seen["activity"] == {"forge": "unknown"}
    assert not (host.place / "asked").exists(), "its socket would have started it"
    assert len(host.notices()) == 1 and host.notices()[0].startswith("docker: up -> down")


def test_a_docker_that_hangs_is_down_within_the_time_limits(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "QUESTION", 0.3)
    monkeypatch.setattr(monitor, "ROUND", 0.6)
    monkeypatch.setenv("PATH", f"{host.place}/bin:/usr/bin:/bin")
    host.say("docker", "sleep 30")
    (host.place / "config.json").write_text(json.dumps(host.config))
    begun = time.monotonic()
    assert monitor.main(str(host.place / "config.json")) == 0
    assert time.monotonic() - begun < 3
    checks = json.loads(host.state.read_text())["checks"]
    assert checks["docker"] == {"state": "down", "why": "it does not answer"}
    assert checks["forge.container"]["state"] == "unknown" and checks["forge.health"]["state"] == "up"


def test_a_question_that_never_ends_is_left_behind_and_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    begun = time.monotonic()
    answers = monitor.together({"hung": never.wait, "good": lambda: 1, "broken": lambda: 1 / 0}, 0.2)
    assert answers == {"good": 1} and time.monotonic() - begun < 2
    never.set()


def test_a_busy_application_is_busy_and_one_that_fails_is_unknown(host: Host) -> None:
    host.docker(exec="echo busy")
    assert host.run()["activity"] == {"forge": "busy"}
    host.docker(exec="echo 'HTTP Error 500' >&2; exit 1")
    assert host.run()["activity"] == {"forge": "unknown"}


def test_a_container_that_restarts_between_two_looks_is_down(host: Host) -> None:
    host.run()
    host.containers["forge-turbo"] = container(restarts=3)
    host.docker()
    assert host.run()["checks"]["forge.container"]["state"] == "down"
    assert host.run()["checks"]["forge.container"]["state"] == "up"


def test_metrics_go_where_node_exporter_reads_them_and_beside_the_state_where_there_is_no_such_place(
    host: Host,
) -> None:
    host.run()
    beside = host.state.with_name("atelier.prom")
    assert exposition.read(beside.read_text())
    host.textfiles.mkdir()
    host.run()
    file = host.textfiles / "atelier.prom"
    assert exposition.read(file.read_text()) and not beside.exists()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644 and stat.S_IMODE(host.state.stat().st_mode) == 0o644
    assert [entry.name for entry in host.textfiles.iterdir()] == ["atelier.prom"]
    before = file.stat().st_ino
    host.run()
    assert file.stat().st_ino != before, "it is replaced, never written over while somebody reads it"


KILL = "kill -9 $PPID; sleep 0.05"


def test_killed_while_the_command_runs_it_is_not_run_again(host: Host) -> None:
    host.run()
    stop_forge(host)
    host.say("systemctl", host.systemctl(start=KILL))
    host.run(expect=-signal.SIGKILL)
    assert len(host.notices()) == 1
    host.say("systemctl", host.systemctl())
    for _ in range(2):
        memory = host.run()["memory"]
    assert len(host.notices()) == 1, "at most once"
    assert memory["outcomes"] == {"interrupted": 1} and memory["due"] == []


def test_killed_between_the_change_and_its_command_it_is_run_by_the_next(host: Host) -> None:
    """The point is reached where no time is left for a command; being killed there leaves the same behind."""
    host.run()
    stop_forge(host)
    host.config["seconds"] = 1
    assert len(host.run()["memory"]["due"]) == 1 and host.notices() == []
    start_forge(host)
    assert len(host.run()["memory"]["due"]) == 2 and host.notices() == []
    host.config["seconds"] = 55
    host.run()
    host.run()
    assert [line.split(" (")[0] for line in host.notices()] == ["forge: up -> down", "forge: down -> up"]


def test_a_command_that_fails_is_counted_and_not_repeated(host: Host) -> None:
    host.run()
    stop_forge(host)
    host.say("systemctl", host.systemctl(start="echo 'Job failed' >&2; exit 1"))
    host.run()
    assert "the command failed" in host.printed and "Job failed" in host.printed
    assert host.run()["memory"]["outcomes"] == {"failed": 1} and len(host.notices()) == 1


def test_without_a_command_changes_are_known_and_nothing_is_due(host: Host) -> None:
    host.config["notice_unit"] = ""
    host.run()
    stop_forge(host)
    memory = host.run()["memory"]
    assert memory["due"] == [] and memory["notices"] == 1 and memory["outcomes"].get("succeeded", 0) == 0
    host.config["notice_unit"] = "atelier-notice@{id}.service"
    host.run()
    assert host.notices() == [], "a command that is configured later hears of later changes"


def test_two_runs_at_once_are_one(host: Host) -> None:
    import fcntl

    first = host.run()["time"]
    with (host.state.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert host.run()["time"] == first and "another run" in host.printed


def test_a_damaged_state_is_set_aside_and_said(host: Host) -> None:
    host.state.write_text('{"memory": ')
    host.run()
    assert "damaged" in host.printed and host.state.with_name("state.json.damaged").exists()


def test_a_state_that_cannot_be_written_runs_no_command(host: Host) -> None:
    """Else it would be run again and again."""
    host.run()
    stop_forge(host)
    (host.state.with_name(".state.json.part")).mkdir()
    host.run(expect=1)
    assert "cannot be written, so no command runs" in host.printed and host.notices() == []
    samples = exposition.read(host.state.with_name("atelier.prom").read_text())
    assert samples["atelier_subject_state", (("state", "down"), ("subject", "forge"))] == 1


def test_no_credential_is_read_or_told(host: Host) -> None:
    """What knows whether an application generates runs in its container; on the host there is only the script."""
    host.docker(exec=f'echo "$@" >>{host.place}/argv; echo idle')
    host.run()
    argv = (host.place / "argv").read_text()
    assert "exec forge-turbo python -P -c" in argv and "Basic " in argv and "/run/atelier/health" in argv
    source = Path(monitor.__file__).read_text()
    assert "/secrets/" not in source.replace("/run/secrets/atelier", ""), "nothing of the host's secrets is read"


def test_a_gpu_is_looked_for_where_there_should_be_one(host: Host) -> None:
    host.config["gpu"] = True
    host.record({**RECORD, "gpus": {"forge": "GPU-a"}})
    host.say("nvidia-smi", "echo GPU-a")
    assert host.run()["checks"]["gpu"]["state"] == "up"
    host.say("nvidia-smi", "echo GPU-b")
    assert host.run()["checks"]["gpu"] == {"state": "down", "why": "no GPU-a"}


def test_the_clock_is_looked_at_where_the_host_keeps_it(host: Host) -> None:
    host.config["time_services"] = ["chrony"]
    assert host.run()["checks"]["time"] == {"state": "down", "why": "no time service runs"}
    assert monitor._in_sync() in (True, False)


def test_it_runs_on_the_oldest_python_of_a_host() -> None:
    """Ubuntu 22.04 has 3.10: ruff and mypy check the syntax for it; here that nothing but the standard library is used."""
    found = set(re.findall(r"^(?:import|from) (\w+)", Path(monitor.__file__).read_text(), re.M))
    assert found <= sys.stdlib_module_names
    assert os.access(monitor.__file__, os.R_OK)
