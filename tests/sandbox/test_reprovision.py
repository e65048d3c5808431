"""After things were moved: a real host is brought to what the settings say by now, and loses nothing on the way.

The tests share one deployed sandbox and run in their order; each leaves it as the settings say.
"""

import json
import os
import random
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from following import follow
from harness import UNCHANGED, Sandbox, copy_checkout, told

pytestmark = pytest.mark.sandbox
KILLS = int(os.environ.get("REPROVISION_KILLS", 4))
"""Of one move of data. Each run takes other points, so that many runs cover what one of thirty kills would."""
SEED = int(os.environ.get("REPROVISION_SEED", random.SystemRandom().randrange(10**6)))
CONTAINERS = "docker ps -a --no-trunc --format '{{.ID}} {{.Names}}' | sort"
TRANSFERS = "journalctl -u atelier-weights.service -o cat | grep -c ' files, ' || :"
"""How often the host told how far a transfer of weights is."""
SPARSE = 40 * 10**9
TOUCHED = """find / -xdev -newer /tmp/mark -type f ! -path '/tmp/*' ! -path '/proc/*' ! -path '/var/log/*' ! -path '/run/*' \\
  ! -path '/var/lib/docker/*' ! -path '/var/lib/containerd/*' ! -path '*/state/monitor/*' ! -path '*/users/*' \\
  ! -path '*/state/audit.log' ! -path '*/outputs/*/verify/*'"""
FILES = """
import hashlib, os, sys
for root in sys.argv[1:]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if ".relocating" in path or os.path.getsize(path) > 10**9 or name == ".lock":
                continue
            with open(path, "rb") as file:
                print(hashlib.sha256(file.read()).hexdigest(), os.path.relpath(path, root))
"""


@dataclass
class Host:
    """The sandbox, and the checkout whose settings the tests change."""

    sandbox: Sandbox
    values: dict[str, object] = field(default_factory=dict)
    base: str = ""

    def declare(self, **values: object) -> None:
        """Other settings, besides those of before."""
        self.values |= values
        file = self.sandbox.checkout / "group_data/sandbox.py"
        self.base = self.base or file.read_text()
        file.write_text(self.base + "".join(f"\n{name} = {value!r}\n" for name, value in self.values.items()))

    def reprovision(self, *arguments: str, expect: int = 0) -> str:
        return self.sandbox.atelier("reprovision", "--sources", "double", *arguments, expect=expect)

    def root(self, script: str, stdin: str = "") -> str:
        return self.sandbox.root(script, stdin)

    def files(self, *roots: str) -> set[str]:
        """sha256 and name of every file below directories; the same file in two of them once."""
        return {*self.root(f"python3 - {' '.join(roots)}", FILES).splitlines()}

    def ids(self) -> dict[str, str]:
        """Container's id by name."""
        rows = (line.split() for line in self.root(CONTAINERS).splitlines())
        return {name: one for one, name in rows}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    found = Sandbox(f"sandbox-rp-{os.getpid()}")
    with found.running():
        moved = replace(found, checkout=copy_checkout(tmp_path_factory.mktemp("reprovision") / "checkout"))
        moved.deploy()
        moved.root(
            "docker network create theirs >/dev/null; docker run -d --name theirs --network theirs --entrypoint sleep "
            "$(docker inspect -f '{{.Config.Image}}' gateway) infinity >/dev/null; mkdir -p /srv/theirs; echo mine >/srv/theirs/file"
        )
        yield Host(moved)


UNITS = {"bytes": 1, "MB": 10**6, "GB": 10**9}
BOTH = {"ComfyUI", "Forge"}


@dataclass(frozen=True)
class Summary:
    """What a reprovision says it came to. fetched, renamed, copied: bytes; away: seconds by service."""

    fetched: float
    renamed: float
    copied: float
    away: dict[str, float]
    removed: str
    kept: str


def summary(output: str) -> Summary:
    """The last one of an output, printed for whoever reads the test's."""
    amounts = ", ".join(f"(?P<{what}>[0-9.]+ [A-Za-z]+) {what}" for what in ("fetched", "renamed", "copied"))
    (*_, found) = re.finditer(
        rf"^Reprovisioned: {amounts}; (?P<away>.*; )?removed: (?P<removed>.*); left over: (?P<kept>.*)\.$", output, re.M
    )
    print(found[0])
    sizes = [
        float(number) * UNITS[unit]
        for number, unit in (found[what].split() for what in ("fetched", "renamed", "copied"))
    ]
    away = {
        title: float(seconds)
        for title, seconds in re.findall(r"(ComfyUI|Forge) away for ([0-9.]+) s", found["away"] or "")
    }
    return Summary(*sizes, away, found["removed"], found["kept"])


def theirs(host: Host) -> str:
    return host.root("docker inspect -f '{{.Id}} {{.State.Status}} {{.State.StartedAt}}' theirs; cat /srv/theirs/file")


# 1. The checkout


def test_from_another_place_of_the_checkout_nothing_changes_on_the_host(host: Host, tmp_path: Path) -> None:
    before = host.ids()
    host.root("touch /tmp/mark")
    moved = tmp_path / "re named"
    host.sandbox.checkout.rename(moved)
    host.sandbox = replace(host.sandbox, checkout=moved)
    host.sandbox.atelier("plan", "--sources", "double")  # 0: there is nothing to be done
    another = replace(host.sandbox, checkout=copy_checkout(tmp_path / "another computer"))
    *_, answer = follow("the checkout lies elsewhere", another, {"/old/checkout": shlex.quote(str(moved))})
    assert "nothing moves, makes room or goes" in answer and re.search(UNCHANGED, answer)
    assert summary(answer) == Summary(0, 0, 0, {"ComfyUI": 0, "Forge": 0}, "nothing", "nothing")
    assert host.ids() == before and host.root(TOUCHED).split() == []


def test_without_the_credentials_it_stops_and_says_how_to_go_on(host: Host, tmp_path: Path) -> None:
    host.root("touch /tmp/mark")
    stranger = replace(host, sandbox=replace(host.sandbox, checkout=copy_checkout(tmp_path / "stranger")))
    answer = stranger.reprovision("--yes", expect=1)
    assert "was deployed before" in answer and f"copy .secrets/{host.sandbox.name}/" in answer
    assert host.root(TOUCHED).split() == []


# 2. The data


def test_a_plan_says_what_moves_and_changes_nothing(host: Host) -> None:
    host.root(
        f"truncate -s {SPARSE} /srv/atelier/models/loras/large.safetensors; chmod 0444 /srv/atelier/models/loras/large.safetensors; "
        "echo image >/srv/atelier/outputs/comfyui/a.png; mkdir -p /srv/atelier/users/comfyui/user/default/workflows; "
        "echo '{}' >/srv/atelier/users/comfyui/user/default/workflows/w.json; chown -R 10001 /srv/atelier/outputs/comfyui/a.png "
        "/srv/atelier/users/comfyui"
    )
    host.declare(data_root="/srv/renamed")
    host.root("touch /tmp/mark")
    answer = host.sandbox.atelier("plan", "--sources", "double", expect=2)
    assert "/srv/atelier/models -> /srv/renamed/models" in answer and "renamed" in answer and "Downtime" in answer
    refused = host.reprovision(expect=1)
    assert "nothing was changed" in refused and "YES=1" in refused
    assert "make reprovision" in host.sandbox.deploy(expect=1)
    assert host.root(TOUCHED).split() == [] and host.root("ls -d /srv/renamed 2>/dev/null || echo none") == "none"


def test_the_data_directory_is_renamed_in_seconds_without_reading_a_weight(host: Host) -> None:
    own, large = "/srv/renamed", "models/loras/large.safetensors"
    before = host.files("/srv/atelier/models", "/srv/atelier/outputs")
    inodes = host.root("cd /srv/atelier/models && find . -type f ! -name .lock -printf '%i %T@ %A@ %p\\n' | sort")
    other = theirs(host)
    places = {"/data/atelier": own}
    _, answer = follow("other directories for the data", host.sandbox, places, expect=(2,))
    came = summary(answer)
    assert (came.fetched, came.copied) == (0, 0) and 0 < came.renamed < 10**6, "of what is there, holes are none"
    assert {*came.away} == BOTH and 0 < max(came.away.values()) < 10
    assert (came.removed, came.kept) == ("directories /srv/atelier", "nothing")
    assert "+ Bring" not in answer, "not a byte is fetched"
    assert host.root(f"cd {own}/models && find . -type f ! -name .lock -printf '%i %T@ %A@ %p\\n' | sort") == inodes, (
        "the same files, and nobody read them"
    )
    assert host.root(f"stat -c %s {own}/{large}") == str(SPARSE)
    there = host.files(f"{own}/models", f"{own}/outputs")
    assert before <= there and all(" comfyui/verify/" in each for each in there - before), "verify makes images"
    assert host.root("ls -d /srv/atelier 2>/dev/null || echo gone") == "gone"
    assert (
        host.root(f"cat {own}/users/comfyui/user/default/workflows/w.json; stat -c %u {own}/outputs/comfyui/a.png")
        == "{}\n10001"
    )
    assert json.loads(host.root("cat /etc/atelier/host.json"))["data_root"] == own
    assert theirs(host) == other
    leftovers = "/etc/atelier/reprovision.json /etc/atelier/relocation.json /run/atelier-relocation"
    assert host.root(f"ls -d {leftovers} 2>/dev/null || echo none") == "none"
    host.sandbox.atelier("plan", "--sources", "double")  # 0: nothing is left to do


def test_a_full_target_is_refused_before_anything_is_touched(host: Host) -> None:
    host.root(
        "rm /srv/renamed/models/loras/large.safetensors; mkdir -p /mnt/small && mount -t tmpfs -o size=1m none /mnt/small"
    )
    host.root("head -c 5000000 /dev/urandom >/srv/renamed/models/loras/noise.safetensors; touch /tmp/mark")
    host.declare(models_dir="/mnt/small/models")
    answer = host.reprovision("--yes", expect=1)
    assert re.search(r"/mnt/small: .* are to be copied there .*: free .* GB", answer), told(answer)
    assert host.root(TOUCHED).split() == []


def killed(host: Host, chosen: random.Random) -> bool:
    """Kill a reprovision in a step and after a time by chance; whether it was still at it. One that was not has ended well."""
    steps, seconds = chosen.randrange(36), chosen.uniform(0, 2)
    said = host.sandbox.checkout.with_name("said")
    with (
        said.open("w") as log,
        host.sandbox.started("reprovision", "--sources", "double", "--yes", stdout=log) as process,
    ):
        while process.poll() is None and len(after_the_plan(said.read_text())) <= steps:
            time.sleep(0.05)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        running = process.poll() is None
        process.kill()
    last = (after_the_plan(said.read_text()) or ["before the plan"])[-1].strip()
    print(f"{'Killed' if running else 'Ended'}, REPROVISION_SEED={SEED}: {last}")
    assert running or process.returncode == 0, told(said.read_text())
    return running


def after_the_plan(output: str) -> list[str]:
    """The lines that tell of work, a whole verify as one."""
    _, *after = re.split(r"^  (?:Moves|Steps aside|A reprovision).*\n", output, maxsplit=1, flags=re.M)
    return [
        line for line in "".join(after).splitlines() if not line.startswith(("passed", "warning", "   ", "Doubles"))
    ]


def test_across_file_systems_killed_anywhere_no_file_is_in_neither_place(host: Host) -> None:
    old, new = "/srv/renamed", "/mnt/big"
    host.root(f"mkdir -p {new} && mount -t tmpfs -o size=3g none {new}")
    host.root(
        f"for i in $(seq 30); do head -c 4000000 /dev/urandom >{old}/outputs/comfyui/$i.png; done; "
        f"chown 10001:10001 {old}/outputs/comfyui/*.png"
    )
    before = host.files(f"{old}/models", f"{old}/outputs")
    places = [
        {"models_dir": None, "outputs_dir": None},
        {"models_dir": f"{new}/models", "outputs_dir": f"{new}/outputs"},
    ]
    host.declare(**places[1])
    chosen, moves, transfers = random.Random(SEED), 1, host.root(TRANSFERS)
    for _ in range(KILLS):
        if not killed(host, chosen):
            moves += 1
            host.declare(**places[moves % 2])
        there = host.files(f"{old}/models", f"{old}/outputs", f"{new}/models", f"{new}/outputs")
        assert before <= there, f"REPROVISION_SEED={SEED}"
    assert moves <= KILLS, "no kill came before the end"
    if moves % 2 == 0:
        host.reprovision("--yes")
        host.declare(**places[1])
    came = summary(host.reprovision("--yes"))
    assert came.fetched == 0 and host.root(TRANSFERS) == transfers, "nothing is fetched in any run"
    assert host.files(f"{new}/models", f"{new}/outputs") >= before
    assert host.root(f"ls -d {old}/models {old}/outputs 2>/dev/null || echo gone") == "gone"
    records = host.root(
        f"cd {old}/state/weights && for r in *.json; do case $r in *pieces*) ;; *) cat $r; echo;; esac; done"
    )
    inodes = {*host.root(f"find {new}/models -type f -printf '%i\\n'").split()}
    wanted = [json.loads(row) for row in records.splitlines() if row]
    assert wanted and {str(each["inode"]) for each in wanted} <= inodes, "what was copied is known good"


def test_copied_once_and_verified_with_the_bytes_told(host: Host) -> None:
    """Back, in one go: what is copied is what was there, no more."""
    size = int(
        host.root(
            "find /mnt/big/models /mnt/big/outputs -type f ! -name .lock -printf '%b\\n' | awk '{s += $1 * 512} END {print s}'"
        )
    )
    host.declare(models_dir=None, outputs_dir=None)
    came = summary(host.reprovision("--yes"))
    assert came.fetched == 0 and abs(came.copied - size) < 0.05 * size, f"{size} bytes were there"
    assert {*came.away} == BOTH and max(came.away.values()) < 60
    assert (came.removed, came.kept) == ("nothing", "nothing")
    host.root("umount /mnt/big /mnt/small")


# 3. Names, ports, services


def test_other_names_and_ports_leave_nothing_of_ours_and_all_of_others(host: Host) -> None:
    notes = "/opt/atelier/services/comfyui-qwen/notes.txt"
    host.root(f"echo mine >{notes}")
    before, other = host.ids(), theirs(host)
    host.declare(services={"comfyui": {"container": "painter"}, "forge": {"port": 17861}})
    # 1: the proof at the end is red of what somebody put among our files, and that is left alone.
    _, answer = follow("other names, ports, services", host.sandbox, expect=(2, 1))
    assert re.findall(r"^failed   (\S+)", answer, re.M) == ["drift.files"]
    assert f"{notes.rpartition('/')[0]} is of an earlier deploy" in answer
    came = summary(answer)
    assert (came.fetched, came.renamed, came.copied) == (0, 0, 0)
    assert {*came.away} == BOTH and max(came.away.values()) < 60
    assert "containers comfyui-qwen.previous" in came.removed and "networks atelier-comfyui-qwen" in came.removed
    assert came.kept == notes
    now = host.ids()
    assert {*now} == {"painter", "forge-turbo", "gateway", "theirs"} and now["forge-turbo"] == before["forge-turbo"]
    networks = host.root("docker network ls --filter type=custom --format '{{.Name}}' | sort").split()
    assert networks == ["atelier-forge-turbo", "atelier-gateway", "atelier-painter", "theirs"]
    assert host.root("find /opt/atelier -path '*comfyui-qwen*' -type f") == notes
    assert theirs(host) == other and host.root(f"cat {notes}") == "mine"
    assert host.root("ss -Hltn | awk '{print $4}' | grep -E ':(7860|17861)$'") == "127.0.0.1:17861"
    host.root(f"rm -r {notes.rpartition('/')[0]}")
    host.sandbox.atelier("verify", "--quick")


def test_where_the_successor_fails_the_former_comes_back_by_itself(host: Host) -> None:
    before = host.ids()
    host.declare(services={"comfyui": {"container": "artist"}, "forge": {"port": 17861}}, timeouts={"start": 30})
    host.root("systemd-run -q --unit=killer sh -c 'while :; do docker kill artist; sleep 0.2; done'")
    try:
        answer = host.reprovision("--yes", expect=1)
    finally:
        host.root("systemctl stop killer")
    assert "painter run again as before" in answer
    assert host.ids() == before
    host.sandbox.wait_for("docker inspect -f '{{.State.Health.Status}}' painter | grep -qx healthy")
    assert host.root("docker inspect -f '{{.HostConfig.RestartPolicy.Name}}' painter") == "unless-stopped"
    del host.values["timeouts"]
    host.declare()
    assert "containers painter.previous" in summary(host.reprovision("--yes")).removed
    assert {*host.ids()} == {"artist", "forge-turbo", "gateway", "theirs"}


def test_killed_while_names_change_the_next_run_finishes(host: Host) -> None:
    host.declare(services={"comfyui": {"container": "painter"}, "forge": {"port": 7860}})
    chosen, other = random.Random(SEED + 1), theirs(host)
    for _ in range(2):
        killed(host, chosen)
    host.reprovision("--yes")
    assert {*host.ids()} == {"painter", "forge-turbo", "gateway", "theirs"}, f"REPROVISION_SEED={SEED}"
    assert theirs(host) == other
    assert host.root("find /opt/atelier -path '*artist*'") == ""


def test_a_removed_service_leaves_its_data_until_it_is_purged(host: Host) -> None:
    images = "/srv/renamed/outputs/forge"
    host.root(f"echo image >{images}/a.png; chown 10001:10001 {images}/a.png; echo mine >{images}/notes.txt")
    host.declare(services={"comfyui": {"container": "painter"}, "forge": {"enabled": False}})
    came = summary(host.reprovision("--yes"))
    assert (came.fetched, came.copied) == (0, 0) and "containers forge-turbo.previous" in came.removed
    assert re.search(rf"{images} \([0-9.]+ \w+\)", came.kept), came.kept
    assert {*host.ids()} == {"painter", "gateway", "theirs"} and host.root(f"cat {images}/a.png") == "image"
    assert "nothing was changed" in host.reprovision("--purge", expect=1)
    assert host.root(f"cat {images}/a.png") == "image"
    purged = summary(host.reprovision("--purge", "--yes"))
    assert f"data {images}" in purged.removed and purged.kept == f"{images}/notes.txt"
    assert host.root(f"find {images} -type f; cat {images}/notes.txt") == f"{images}/notes.txt\nmine"
    assert host.root(f"rm -r {images}; ls -d /srv/renamed/users/forge 2>/dev/null || echo gone") == "gone"
    manifest = json.loads(host.root("cat /srv/renamed/state/manifest.json"))
    assert not [path for path in manifest["created"]["directories"] if path.endswith("/forge")]


def test_another_place_of_the_configuration_leaves_the_old_one_empty(host: Host) -> None:
    host.declare(config_root="/opt/elsewhere")
    came = summary(host.reprovision("--yes"))
    assert (came.fetched, came.copied) == (0, 0) and "/opt/atelier" in came.removed
    assert host.root("ls -d /opt/atelier 2>/dev/null || echo gone") == "gone"
    assert host.root("systemctl cat atelier-weights | grep WorkingDirectory") == "WorkingDirectory=/opt/elsewhere/lib"
    host.sandbox.atelier("plan", "--sources", "double")  # 0: nothing is left to do
