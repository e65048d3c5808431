"""Tables: what the host, its weights and its storage tell, and what is found wrong with that."""

import json
import os
import subprocess

import pytest

from atelier.checks import host_state, storage_state, weights_state
from atelier.settings import MonitoringSettings, Settings

SETTINGS = Settings(profile="cpu", minimum_memory_gb=16)
NOW = 1_800_000_000.0
DAY = 86400
NAMES = ["comfyui-qwen", "forge-turbo", "gateway"]


def problems(findings) -> str:
    assert all(finding.remedy for finding in findings)
    return "; ".join(finding.problem for finding in findings)


HOST = f"""
::host::clock
{NOW:.0f}
::host::system
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
ID=debian
VERSION_CODENAME=bookworm
ARCHITECTURE=amd64
KERNEL=6.1.0-28-amd64
::host::container
none
::host::modules
6.1.0-28-amd64
::host::kernels
6.1.0-28-amd64
6.1.0-9-amd64
::host::reboot
::host::memory
MemTotal:       32000000 kB
MemAvailable:   20000000 kB
::host::docker
{{"ServerVersion": "28.1", "Driver": "overlay2", "LiveRestoreEnabled": true, "CDISpecDirs": ["/etc/cdi"]}}
::host::docker-unit
enabled
660 root
::host::docker-users
::host::disk
/|100000000000 1000000   900000 /
/var/log|100000000000 1000000   900000 /
/srv/atelier|900000000000       -        - /srv
::host::time
inactive active inactive inactive inactive inactive
NTPSynchronized=yes
::host::upgrades
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Unattended-Upgrade "1";
Unattended-Upgrade::Origins-Pattern "";
Unattended-Upgrade::Origins-Pattern:: "origin=Debian,codename=${{distro_codename}},label=Debian";
Unattended-Upgrade::Origins-Pattern:: "origin=Debian,codename=${{distro_codename}}-security,label=Debian-Security";
Unattended-Upgrade::Automatic-Reboot "false";
::host::timers
apt-daily.timer enabled active
apt-daily-upgrade.timer enabled active
::host::unattended
installed
::host::package-manager
::host::broken
"""


def host(*changes: tuple[str, str]):
    text = HOST
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    return host_state.parse(text)


def whole(told) -> dict[str, str]:
    """Every judgement: what is red."""
    return {
        "system": problems(host_state.system(told)),
        "disk": problems(host_state.disk(told, SETTINGS)[0]),
        "memory": problems(host_state.memory(told, SETTINGS)),
        "time": problems(host_state.time(told, NOW - 0.3, NOW + 0.3)[0]),
        "reboot": problems(host_state.reboot(told, NOW)[0]),
        "upgrades": problems(host_state.upgrades(told)),
        "docker": problems(host_state.docker(told)),
    }


def test_nothing_is_wrong_with_a_good_host():
    assert set(whole(host()).values()) == {""}
    assert (
        host_state.disk(host(), SETTINGS)[1]
        == host_state.time(host(), NOW, NOW)[1]
        == host_state.reboot(host(), NOW)[1]
        == []
    )


@pytest.fixture
def run(tmp_path):
    """Runs a script where some programs are others."""

    def answer(script: str, programs: dict[str, str]) -> str:
        for name, body in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout

    return answer


CONTAINER = ("::host::container\nnone", "::host::container\nsystemd-nspawn")


@pytest.mark.parametrize(
    ("group", "changes", "seen"),
    [
        ("system", [("ID=debian", "ID=fedora")], "Debian GNU/Linux 12 (bookworm) is not supported"),
        ("system", [("=bookworm", "=bullseye")], "not supported"),
        ("system", [("=amd64", "=arm64")], "architecture arm64"),
        ("system", [("6.1.0-28-amd64", "5.10.0-8-amd64")], "kernel 5.10.0-8-amd64 is older than 5.15"),
        ("system", [CONTAINER, ("KERNEL=6.1.0-28-amd64", "KERNEL=")], "kernel  is older"),
        ("disk", [("|900000000000", "|900000000")], "/srv has 0.9 GB free"),
        ("disk", [(" 900000 ", " 9000 ")], "/ has 9000 of 1000000 inodes free"),
        (
            "disk",
            [("900000000000       -        - /srv", "df: /srv/atelier: Stale file handle")],
            "nobody can say how full /srv/atelier is: df: /srv/atelier: Stale file handle",
        ),
        (
            "disk",
            [("900000000000       -        - /srv", "time-out: no answer within 20 s")],
            "full /srv/atelier is: time",
        ),
        ("disk", [("900000000000       -        - /srv", "")], "full /srv/atelier is: no answer"),
        ("memory", [("32000000 kB", "8000000 kB")], "7.6 GB of memory, 16 GB are wanted"),
        ("memory", [("20000000 kB", "200000 kB")], "195 MB of 31 GB of memory are free"),
        ("memory", [("MemTotal:       32000000 kB", "")], "0.0 GB of memory"),
        ("time", [("inactive active inactive", "inactive inactive inactive")], "no time service runs"),
        ("time", [("NTPSynchronized=yes", "NTPSynchronized=no")], "chrony runs, but the clock is not in sync"),
        ("time", [("NTPSynchronized=yes", "time-out: no answer within 20 s")], "not in sync"),
        ("time", [CONTAINER, (f"{NOW:.0f}", f"{NOW - 3600:.0f}")], "3599 s behind this computer's"),
        ("time", [CONTAINER, (f"{NOW:.0f}", f"{NOW + 3600:.0f}")], "3600 s ahead of this computer's"),
        (
            "reboot",
            [("::host::reboot", f"::host::reboot\n{NOW - 8 * DAY:.0f}\nlibc6")],
            "libc6 asked for a restart 8 days",
        ),
        (
            "reboot",
            [("modules\n6.1.0-28", "modules\n6.1.0-29")],
            "modules of the running kernel 6.1.0-28-amd64 are gone",
        ),
        ("upgrades", [("::unattended\ninstalled", "::unattended\ndpkg-query: no packages")], "is not installed"),
        (
            "upgrades",
            [('Unattended-Upgrade "1"', 'Unattended-Upgrade "0"')],
            'APT::Periodic::Unattended-Upgrade is "0"',
        ),
        ("upgrades", [('Package-Lists "1"', 'Package-Lists "0"')], "Update-Package-Lists"),
        (
            "upgrades",
            [("::timers", '::upgrades\nAPT::Periodic::Enable "0";\n::host::timers')],
            "nothing runs by itself",
        ),
        ("upgrades", [('Automatic-Reboot "false"', 'Automatic-Reboot "true"')], "may restart the host"),
        ("upgrades", [("-security,label=Debian-Security", "-updates,label=Debian")], "no security archive"),
        (
            "upgrades",
            [("apt-daily.timer enabled active", "apt-daily.timer masked inactive")],
            "apt-daily.timer is masked",
        ),
        ("upgrades", [("::broken\n", "::broken\ncurl\n")], "curl is half installed"),
        ("docker", [('"LiveRestoreEnabled": true', '"LiveRestoreEnabled": false')], "live-restore is off"),
        ("docker", [('["/etc/cdi"]', "[]")], "CDI is off"),
        ("docker", [("overlay2", "vfs")], "storage driver vfs"),
        ("docker", [("docker-unit\nenabled", "docker-unit\ndisabled")], "docker.service is disabled"),
        ("docker", [("660 root", "666 root")], "socket has mode 666"),
        ("docker", [("660 root", "660 nobody")], "owner nobody"),
        (
            "docker",
            [("660 root", '660 root\nLISTEN 0 4096 0.0.0.0:2375 *:* users:(("dockerd"))')],
            "listens on 0.0.0.0:2375",
        ),
        (
            "docker",
            [('{"ServerVersion": "28.1"', '{"ServerErrors": ["Cannot connect"], "x": "y"')],
            "does not answer: Cannot",
        ),
        ("docker", [('{"ServerVersion": "28.1"', "time-out: no answer within 20 s")], "does not answer: time-out"),
    ],
)
def test_what_is_wrong_with_a_host(group, changes, seen):
    found = whole(host(*changes))
    assert seen in found.pop(group)
    assert not any(found.values())


def test_a_container_is_asked_for_no_time_service_and_no_kernel_of_its_own():
    for container in (CONTAINER, ("::host::container\nnone", "::host::container\nwsl")):
        told = host(
            container, ("inactive active inactive", "inactive inactive inactive"), ("=yes", "=no"), ("-28", "-77")
        )
        assert not whole(told)["time"] and not whole(told)["reboot"]
    assert "outer machine's" in host_state.time_text(told) and "outer machine's" in host_state.system_text(told)
    assert "chrony" in host_state.time_text(host()) and "outer" not in host_state.system_text(host())


def test_who_may_command_docker(run):
    groups = {"stat": "echo docker", "getent": "echo docker:x:999:ann,bob,eve"}
    ids = {"id": "case $2 in ann) echo ann sudo docker ;; bob) echo bob docker ;; eve) echo eve sudoku docker ;; esac"}
    told = host_state.parse(run(host_state.script(SETTINGS), groups | ids))
    assert (
        problems(host_state.docker_users(told)).startswith("bob may command Docker") and len(told["docker-users"]) == 2
    )
    assert host_state.docker_users(host()) == []


def test_what_only_warns_of_a_host():
    low = host(("|900000000000", "|3000000000"))
    assert problems(host_state.disk(low, SETTINGS)[1]) == "/srv has 3.0 GB free"
    assert (
        host_state.disk(low, SETTINGS.model_copy(update={"monitoring": MonitoringSettings(minimum_free_gb=2)}))[1] == []
    )
    assert problems(host_state.disk({"disk": []}, SETTINGS)[0]) == "nobody can say how full / is: df said nothing"
    asked = host(("::host::reboot", f"::host::reboot\n{NOW - 2 * DAY:.0f}\nlibc6\nlibc6"))
    assert problems(host_state.reboot(asked, NOW)[1]) == "libc6 asked for a restart 2 days ago"
    newer = host(("6.1.0-9-amd64", "6.1.0-31-amd64\n6.9.0-1-rt-amd64\n6.9.0-1-cloud-amd64"))
    assert problems(host_state.reboot(newer, NOW)[1]) == "kernel 6.1.0-31-amd64 is installed, 6.1.0-28-amd64 runs"
    # In sync by its own servers, so this computer's clock is the one that is off.
    assert "300 s behind" in problems(host_state.time(host(), NOW + 300.9, NOW + 302)[1])


@pytest.mark.parametrize(
    ("running", "installed", "newest"),
    [
        ("6.8.0-45-generic", ["6.8.0-9-generic", "6.8.0-45-generic"], "6.8.0-45-generic"),
        ("6.8.0-9-generic", ["6.8.0-9-generic", "6.8.0-45-generic", "6.11.0-1-oem"], "6.8.0-45-generic"),
        ("6.1.0-28-cloud-amd64", ["6.1.0-28-cloud-amd64", "6.1.0-30-amd64"], "6.1.0-28-cloud-amd64"),
        ("6.12.9+bpo-amd64", ["6.12.9+bpo-amd64", "6.12.22+bpo-amd64"], "6.12.22+bpo-amd64"),
        ("6.6.1-custom", ["6.1.0-30-amd64"], "6.6.1-custom"),
        ("6.6.1", ["6.6.1", "6.6.2"], "6.6.1"),
    ],
)
def test_the_newest_kernel_of_a_flavour(running, installed, newest):
    assert host_state.newest_kernel(running, installed) == newest


@pytest.mark.parametrize(
    ("statuses", "at_work", "broken"),
    [
        ("ok installed curl\nok config-files old\nok triggers-pending man-db\nok triggers-awaited less", "", []),
        ("ok half-configured less\nok installed curl", "", ["less"]),
        ("ok unpacked less\nok half-installed curl", "", ["less", "curl"]),
        ("reinstreq installed less\nreinstreq half-installed curl", "", ["less", "curl"]),
        ("ok half-configured less", "unattended-upgrade (process 7)", []),
    ],
)
def test_what_a_package_manager_left_half_done(run, monkeypatch, statuses, at_work, broken):
    monkeypatch.setattr(host_state, "HOLDER", f"holder() {{ printf '{at_work}'; }}")
    told = host_state.parse(run(host_state.script(SETTINGS), {"dpkg-query": f"cat <<X\n{statuses}\nX"}))
    assert told["broken"] == broken
    assert ("not judged: unattended" in host_state.upgrades_text(told)) == bool(at_work)


@pytest.fixture
def late(tmp_path):
    """Runs a script where whatever has a limit exceeds it, and no container is there."""
    for name, body in {"timeout": "exit 124", "docker": "exit 1", "systemctl": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return lambda script: (
        subprocess.run(["sh", "-c", script], env={"PATH": path}, capture_output=True, text=True, check=True).stdout
    )


LISTENING = """
LISTEN 0 4096 127.0.0.1:8188 0.0.0.0:* users:(("docker-proxy",pid=1,fd=4)) ino:1 sk:1 cgroup:/system.slice <->
LISTEN 0 4096 127.0.0.1:7860 0.0.0.0:* users:(("docker-proxy",pid=1,fd=4)) ino:1 sk:1 cgroup:/system.slice <->
LISTEN 0 128 [::]:22 [::]:* users:(("sshd",pid=9,fd=4)) ino:1 sk:1 v6only:1 <->
LISTEN 0 128 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=9,fd=4)) uid:991 ino:1 <->
""".strip()
DOOR = LISTENING.splitlines()[0]


@pytest.mark.parametrize(
    ("output", "bind", "seen"),
    [
        (LISTENING, "127.0.0.1", ""),
        (
            LISTENING.replace("127.0.0.1:8188", "0.0.0.0:8188"),
            "127.0.0.1",
            "nothing listens on 127.0.0.1:8188; docker-proxy",
        ),
        (f"{LISTENING}\n{DOOR.replace('127.0.0.1', '10.0.0.7')}", "127.0.0.1", "listens on 10.0.0.7:8188, not only on"),
        (f"{LISTENING}\n{DOOR.replace('127.0.0.1', '[::]')}", "127.0.0.1", "listens on :::8188, not only on 127.0.0.1"),
        (LISTENING.replace(":7860", ":7861"), "127.0.0.1", "nothing listens on 127.0.0.1:7860"),
        (LISTENING.replace("127.0.0.1", "0.0.0.0"), "0.0.0.0", ""),
        (
            LISTENING.replace("uid:991", "uid:10001"),
            "127.0.0.1",
            "systemd-resolve of the service user listens on 127.0.0.53:53",
        ),
        (LISTENING.replace("uid:991", "uid:100011"), "127.0.0.1", ""),
    ],
)
def test_what_listens(output, bind, seen):
    settings = SETTINGS.model_copy(update={"bind_address": bind})
    found = problems(host_state.listening(host_state.listeners(output), settings))
    assert seen in found and bool(found) == bool(seen)


WANTED = [
    weights_state.Wanted("vae/v.safetensors", 100, "a" * 64),
    weights_state.Wanted("checkpoints/c.safetensors", 7, "b" * 64),
]
RECORDS = {
    "a" * 64: '{"bytes": 100, "mtime_ns": 1700000000123456789, "inode": 11, "sha256": "' + "a" * 64 + '"}',
    "b" * 64: '{"bytes": 7, "mtime_ns": 1700000000000000000, "inode": 12, "sha256": "' + "b" * 64 + '"}',
}
WEIGHTS = (
    """
::weights::files
100|1700000000.123456789|11|444|root:root|regular file|vae/v.safetensors
7|1700000000.000000000|12|444|root:root|regular file|checkpoints/c.safetensors
::weights::records
"""
    + "".join(f"{sha256}.json {record}\n" for sha256, record in RECORDS.items())
    + """::weights::unit
inactive
::weights::incoming
::weights::aside
::weights::untold
::weights::in app
100|1700000000.123456789|11|444|root:root|regular file|vae/v.safetensors
7|1700000000.000000000|12|444|root:root|regular file|checkpoints/c.safetensors
123 45 8:1 /srv/atelier/models /models ro,relatime - ext4 /dev/sda1 rw
"""
)


def weights(*changes: tuple[str, str, int]):
    text = WEIGHTS
    for before, after, count in changes:
        assert before in text, before
        text = text.replace(before, after, count)
    return weights_state.parse(text)


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ([], ""),
        (
            [("100|1700000000.123456789|11|444|root:root|regular file|vae/v.safetensors\n", "", 1)],
            "vae/v.safetensors is missing",
        ),
        ([("100|1700000000.1", "99|1700000000.1", 1)], "vae/v.safetensors has 99 bytes, not 100"),
        ([("|11|", "|99|", 1)], "vae/v.safetensors: its inode (another file) changed since"),
        ([("0.123456789|11", "0.123456780|11", 1)], "vae/v.safetensors: its time changed since"),
        ([("regular file|vae", "symbolic link|vae", 1)], "is a symbolic link, not a file"),
        ([("444|root:root|regular file|vae", "644|root:root|regular file|vae", 1)], "has mode 644 and owner root:root"),
        ([("444|root:root|regular file|vae", "444|atelier:atelier|regular file|vae", 1)], "owner atelier:atelier"),
        ([(f"{'a' * 64}.json", f"{'c' * 64}.json", 1)], "nobody has hashed it"),
        ([('{"bytes": 100,', "{", 1)], "the record of its hashing is damaged"),
        ([(f'"sha256": "{"a" * 64}"', '"sha256": "x"', 1)], "the hash changed since"),
        ([("unit\ninactive", "unit\nfailed", 1)], "atelier-weights.service has failed"),
    ],
)
def test_weights_in_place(changes, seen):
    found = problems(weights_state.in_place(WANTED, weights(*changes)))
    assert seen in found and bool(found) == bool(seen)


def test_no_weights_are_not_all_weights():
    assert "ask for no weights" in problems(weights_state.in_place([], weights()))


def test_what_a_transfer_left():
    assert weights_state.left_over(weights()) == []
    parts = ("incoming\n", "incoming\nx.part\n", 1)
    assert "1 parts lie in .incoming" in problems(weights_state.left_over(weights(parts)))
    assert weights_state.left_over(weights(parts, ("unit\ninactive", "unit\nactive", 1))) == []
    aside = weights(("aside\n", "aside\nvae/v.wrong-1\n", 1))
    assert problems(weights_state.left_over(aside)) == "set aside: vae/v.wrong-1"
    assert "not told" in problems(weights_state.left_over(weights(("untold\n", "untold\nweights-changed\n", 1))))


INSIDE = "::weights::in app\n100|1700000000.123456789|11|444"


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ([], ""),
        ([("/models ro,", "/models rw,", 1)], "app can write to /models"),
        ([("/models /models ro,", "/models /elsewhere ro,", 1)], "app has no store at /models"),
        (
            [(INSIDE, INSIDE.replace("|11|", "|21|"), 1)],
            "app sees another vae/v.safetensors than the host: inode 21, not 11",
        ),
        (
            [(f"{INSIDE}|root:root|regular file|vae/v.safetensors\n", "::weights::in app\n", 1)],
            "app does not see vae/v",
        ),
        ([("in app", "in other", 1)], "app has no store"),
    ],
)
def test_weights_as_an_application_sees_them(changes, seen):
    found = problems(weights_state.seen(WANTED, weights(*changes), "app"))
    assert seen in found and bool(found) == bool(seen)


def test_weights_by_every_byte():
    good = "vae/v.safetensors: good\ncheckpoints/c.safetensors: good\n2 of 2 files are good, by every byte"
    assert weights_state.by_every_byte(WANTED, good) == []
    found = problems(weights_state.by_every_byte(WANTED, "vae/v.safetensors: wrong: sha256 0, expected a\n"))
    assert found == "vae/v.safetensors: wrong: sha256 0, expected a; checkpoints/c.safetensors: not looked at"


def test_what_an_application_says_of_a_missing_weight_does_not_get_into_the_line_of_another(run):
    row = "100|1700000000.123456789|11|444|root:root|regular file|vae/v.safetensors"
    interleaved = f"printf 'stat: ' >&2; echo '{row}'; echo 'cannot statx checkpoints/c.safetensors' >&2"
    told = weights_state.parse(run(weights_state.script(SETTINGS, WANTED), {"docker": interleaved}))
    assert {name: list(files) for name, files in told.seen.items()} == {
        service.container: ["vae/v.safetensors"] for service in SETTINGS.enabled().values()
    }


def stored(settings=SETTINGS) -> storage_state.Told:
    """As the script tells it of a good host."""
    places, mounts, inside, writable = {}, {}, {}, {}
    for container, wanted in storage_state.declared(settings).items():
        for number, (path, may_write) in enumerate(wanted.items()):
            identity = f"8:{abs(hash(path))}"
            mode = "700" if "/users/" in path else "755"
            places[path] = storage_state.Place(identity, "10001:10001", mode)
            mounts.setdefault(container, []).append(
                {"Type": "bind", "Source": path, "Destination": f"/m{number}", "RW": may_write}
            )
            inside.setdefault(container, {})[f"/m{number}"] = storage_state.Place(identity)
            if may_write:
                writable[container] = writable.get(container, frozenset()) | {f"/m{number}"}
    return storage_state.Told(places, mounts, inside, writable)


def test_nothing_is_wrong_with_good_storage():
    for settings in (SETTINGS, Settings(tls={"mode": "acme", "domain": "a.example"}, bind_address="0.0.0.0")):
        assert (
            storage_state.outputs(stored(settings), settings) == storage_state.mounts(stored(settings), settings) == []
        )


OUTPUTS, USERS = "/srv/atelier/outputs/comfyui", "/srv/atelier/users/comfyui"


@pytest.mark.parametrize(
    ("path", "place", "seen"),
    [
        (OUTPUTS, None, f"{OUTPUTS} is missing"),
        (OUTPUTS, storage_state.Place("1", "10001:10001", "777", "symbolic link"), "is a symbolic link"),
        (OUTPUTS, storage_state.Place("1", "0:0", "755"), f"{OUTPUTS} belongs to 0:0, not to 10001:10001"),
        (OUTPUTS, storage_state.Place("1", "10001:10001", "777"), "has mode 777: others can change"),
        (USERS, storage_state.Place("1", "10001:10001", "755"), "has mode 755: others can read"),
    ],
)
def test_directories_of_users(path, place, seen):
    told = stored()
    del told.places[path]
    if place:
        told.places[path] = place
    assert seen in problems(storage_state.outputs(told, SETTINGS))


def test_outputs_that_cannot_be_written_or_belong_to_others():
    told = stored()
    told.writable["comfyui-qwen"] = frozenset()
    assert problems(storage_state.outputs(told, SETTINGS)) == "comfyui-qwen cannot write to its outputs (/m0)"
    strange = storage_state.Told(**{**vars(stored()), "strangers": (f"{OUTPUTS}/x.png",)})
    assert "x.png does not belong to the service user" in problems(storage_state.outputs(strange, SETTINGS))
    told = storage_state.Told(**{**vars(stored()), "strangers": (f"{USERS}/m0", f"{USERS}/m0/x")})
    told.mounts["comfyui-qwen"][1]["Destination"] = "/users"
    told.mounts["comfyui-qwen"][0]["Destination"] = "/users/m0"
    told.writable["comfyui-qwen"] = frozenset({"/users", "/users/m0"})
    found = problems(storage_state.outputs(told, SETTINGS))
    assert found.startswith(f"{USERS}/m0/x does not belong") and f"{USERS}/m0 " not in found


def test_mounts_that_are_not_as_declared():
    def changed(**what) -> str:
        told = stored()
        told.mounts["comfyui-qwen"][0] |= what
        return problems(storage_state.mounts(told, SETTINGS))

    assert changed(RW=False) == f"comfyui-qwen cannot write to {OUTPUTS}"
    assert "comfyui-qwen does not have" in changed(Source="/etc") and "has /etc as /m0" in changed(Source="/etc")
    assert "has volume as /m0" in changed(Type="volume", Source="")
    told = stored()
    told.mounts["comfyui-qwen"][2]["RW"] = True
    assert problems(storage_state.mounts(told, SETTINGS)) == "comfyui-qwen can write to /srv/atelier/models"
    told = stored()
    told.places[OUTPUTS] = storage_state.Place("8:other")
    assert f"{OUTPUTS} is another directory than the one that comfyui-qwen has" in problems(
        storage_state.mounts(told, SETTINGS)
    )
    del told.places[OUTPUTS]
    assert f"{OUTPUTS} is missing on the host" in problems(storage_state.mounts(told, SETTINGS))
    told = stored()
    told.inside["comfyui-qwen"] = {}
    assert "comfyui-qwen does not show /m0" in problems(storage_state.mounts(told, SETTINGS))


def test_the_storage_script_is_read_back():
    output = f"""
::storage::places
2049:7|10001:10001|755|directory|{OUTPUTS}
::storage::strangers
{OUTPUTS}/a b.png
::storage::mounts a
{json.dumps([{"Type": "bind", "Source": OUTPUTS, "Destination": "/outputs", "RW": True}])}
::storage::inside a
2049:7|/outputs
writable|/outputs
::storage::mounts b
::storage::inside b
"""
    told = storage_state.parse(output)
    assert told.places[OUTPUTS] == storage_state.Place("2049:7", "10001:10001", "755", "directory")
    assert told.inside["a"] == {"/outputs": storage_state.Place("2049:7")} and told.writable["a"] == {"/outputs"}
    assert told.mounts["b"] == [] and told.strangers == (f"{OUTPUTS}/a b.png",)


def test_a_time_out_is_named_as_one(run, tmp_path):
    nothing_answers = {"timeout": "exit 124", "docker": "exit 1", "systemctl": "exit 1"}
    settings = SETTINGS.model_copy(update={"data_root": str(tmp_path)})
    told = storage_state.parse(run(storage_state.script(settings), nothing_answers))
    assert told.late == {"strangers", "comfyui-qwen", "forge-turbo", "gateway"}
    late_alone = storage_state.Told(**{**vars(stored()), "late": told.late, "inside": {}, "writable": {}})
    found = problems(storage_state.outputs(late_alone, SETTINGS)).split("; ")
    assert len(found) == 3 and all("time-out: " in problem for problem in found)
    found = problems(storage_state.mounts(late_alone, SETTINGS)).split("; ")
    assert found == [f"time-out: {name} did not show its directories within 30 s" for name in NAMES]
    told = weights_state.parse(run(weights_state.script(settings, WANTED), nothing_answers))
    assert problems(weights_state.seen(WANTED, told, "comfyui-qwen")).startswith("time-out: comfyui-qwen did not show")
