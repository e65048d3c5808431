"""What a deploy takes a host's weights for, and what it puts there to fetch them."""

import getpass
import json
import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atelier import hostfacts, paths, weights_unit
from atelier.models import Weight
from atelier.settings import Settings, build_settings
from atelier.tree import Directory, Entry
from atelier.tree import File as HostFile
from weights.job import read_job
from weights.store import File, Store

GOOD = b"the right bytes" * 1000
WEIGHT = Weight(
    repository="a/b",
    revision="main",
    path="split/model.safetensors",
    bytes=len(GOOD),
    sha256="0" * 62 + "ab",
    directory="vae",
    sets=["s"],
    used_by=[],
    licence="none",
)
FILE = File(WEIGHT.store_path, WEIGHT.bytes, WEIGHT.sha256)


class Host:
    """A host's store and state in a folder, with a file that was hashed and found right."""

    def __init__(self, root: Path) -> None:
        values = {"profile": "cpu", "models": {"search": [f"{root}/home/*/it's here"]}}
        self.settings = build_settings([("test", values)]).model_copy(update={"data_root": str(root)})
        self.store = Store(Path(weights_unit.store(self.settings)), Path(weights_unit.state(self.settings)))
        self.final = self.store.path(FILE)
        part = self.store.incoming(FILE)
        part.parent.mkdir(parents=True)
        part.write_bytes(GOOD)
        self.store.publish(part, FILE)
        self.record = self.store.state / f"{FILE.sha256}.json"
        self.old_record = self.store.state / FILE.sha256

    def present(self) -> list[str]:
        script = hostfacts.presence_script(self.settings, (WEIGHT,))
        ran = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout.split()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def replaced_by_its_copy(host: Host) -> None:
    before = host.final.stat()
    copy = host.final.with_name("copy")
    copy.write_bytes(GOOD)
    os.utime(copy, ns=(before.st_mtime_ns, before.st_mtime_ns))
    copy.rename(host.final)


def led_elsewhere(host: Host) -> None:
    host.final.rename(host.final.with_name("elsewhere"))
    host.final.symlink_to("elsewhere")


def recorded_by_the_first_release(host: Host, **changed: int) -> None:
    host.record.unlink()
    found = host.final.stat()
    values = {"size": found.st_size, "time": int(found.st_mtime), "inode": found.st_ino, **changed}
    host.old_record.write_text("{size} {time} {inode}\n".format(**values))


def nanoseconds_later(host: Host) -> None:
    time = host.final.stat().st_mtime_ns + 1
    os.utime(host.final, ns=(time, time))


def longer(host: Host) -> None:
    time = host.final.stat().st_mtime_ns
    host.final.chmod(0o644)
    host.final.write_bytes(GOOD + b"!")
    os.utime(host.final, ns=(time, time))


def recorded_longer(host: Host) -> None:
    longer(host)
    host.record.write_text(host.record.read_text().replace(f'"bytes": {len(GOOD)}', f'"bytes": {len(GOOD) + 1}'))


def at(nanoseconds: int) -> Callable[[Host], None]:
    def plant(host: Host) -> None:
        os.utime(host.final, ns=(nanoseconds, nanoseconds))
        found = host.final.stat()
        assert found.st_mtime_ns == nanoseconds
        host.record.write_text(
            json.dumps({"bytes": len(GOOD), "mtime_ns": nanoseconds, "inode": found.st_ino, "sha256": FILE.sha256})
        )

    return plant


CASES: dict[str, tuple[Callable[[Host], object], bool]] = {
    "right": (lambda host: None, True),
    "right, in 1970": (at(0), True),
    "right, a fraction of a second later": (at(5), True),
    "right, before 1970": (at(-1_500_000_000), True),
    "right, just before 1970": (at(-500_000_000), True),
    "gone": (lambda host: host.final.unlink(), False),
    "other size": (longer, False),
    "other size than wanted, as recorded": (recorded_longer, False),
    "other time by a nanosecond": (nanoseconds_later, False),
    "other inode": (replaced_by_its_copy, False),
    "a link to the right file": (led_elsewhere, False),
    "a directory": (lambda host: (host.final.unlink(), host.final.mkdir()), False),
    "no record": (lambda host: host.record.unlink(), False),
    "an empty record": (lambda host: host.record.write_text(""), False),
    "a cut record": (lambda host: host.record.write_text(host.record.read_text()[:40]), False),
    "a record of another file": (
        lambda host: host.record.write_text(host.record.read_text().replace(FILE.sha256, "c" * 64)),
        False,
    ),
    "a record that is no text": (lambda host: host.record.write_bytes(b"\xff\xfe" * 20), False),
    "an old record": (recorded_by_the_first_release, True),
    "an old record of another size": (lambda host: recorded_by_the_first_release(host, size=1), False),
    "an old record of another time": (lambda host: recorded_by_the_first_release(host, time=1), False),
    "an old record of another inode": (lambda host: recorded_by_the_first_release(host, inode=1), False),
    "a damaged old record": (
        lambda host: (recorded_by_the_first_release(host), host.old_record.write_text("15000")),
        False,
    ),
    "a right old record beside a damaged one": (
        lambda host: (recorded_by_the_first_release(host), host.record.write_text("{}")),
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_deploy_and_the_program_know_the_same_files_as_good(host: Host, case: str) -> None:
    plant, expected = CASES[case]
    plant(host)
    assert (FILE.sha256 in host.present(), host.store.known_good(FILE)) == (expected, expected)


def test_what_is_begun_and_what_may_lie_there_is_told_of_missing_weights_alone(host: Host) -> None:
    elsewhere = host.store.root.parent / "home" / "a b" / "it's here" / "deeper" / "x.bin"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(b"?" * len(GOOD))
    elsewhere.with_name("y.bin").write_bytes(b"of another size")
    host.store.incoming(FILE).write_bytes(GOOD[:9000])
    assert [word for word in host.present() if ":" in word and "atelier" not in word] == []
    host.final.unlink()
    allocated = host.store.incoming(FILE).stat().st_blocks * 512
    assert {f"begun:{FILE.sha256}:{allocated}", f"here:{len(GOOD)}"} <= set(host.present())
    elsewhere.unlink()
    assert not any(word.startswith("here:") for word in host.present())


def test_a_file_on_another_disk_cannot_be_linked(host: Host, tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"atelier-test-{os.getpid()}"
    if not other.parent.is_dir() or other.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this computer has one file system")
    host.final.unlink()
    host.settings = settings(search=[str(other)]).model_copy(update={"data_root": str(tmp_path)})
    try:
        other.mkdir()
        (other / "x.bin").write_bytes(GOOD)
        assert not any(word.startswith("here:") for word in host.present())
    finally:
        (other / "x.bin").unlink()
        other.rmdir()


def settings(**models: object) -> Settings:
    return build_settings([("test", {"profile": "cpu", "proxy": "http://user:word@proxy:1", "models": models})])


def entry(entries: tuple[Entry, ...], path: str) -> HostFile:
    (found,) = (entry for entry in entries if entry.path == path)
    assert isinstance(found, HostFile)
    return found


def test_the_job_carries_every_setting_to_the_program(tmp_path: Path) -> None:
    chosen = settings(
        mirrors=["http://mirror/x/"], search=[f"{tmp_path}/*"], reserve_gb=1.5, parallel_files=3, connections=5
    )
    (tmp_path / "there").mkdir()
    entries = weights_unit.entries(chosen, (WEIGHT,), "hf_token")
    written = json.loads(entry(entries, "/opt/atelier/weights.json").content)
    token = tmp_path / "token"
    token.write_bytes(entry(entries, written["token_file"]).content)
    path = tmp_path / "job.json"
    path.write_text(json.dumps({**written, "token_file": str(token)}))
    job, result = read_job(path)
    hub = "https://huggingface.co/a/b/resolve/main/split/model.safetensors"
    assert job.files == (replace(FILE, urls=(f"http://mirror/x/{FILE.name}", hub)),)
    assert (job.store, job.state) == (Path("/srv/atelier/models"), Path("/srv/atelier/state/weights"))
    assert (job.search, job.reserve, job.jobs) == ((tmp_path / "there",), 1_500_000_000, 3)
    assert (job.limits.connections, job.limits.proxy, job.token) == (5, "http://user:word@proxy:1", "hf_token")
    assert (job.progress, result) == (
        Path("/run/atelier-weights/progress.json"),
        Path("/run/atelier-weights/result.json"),
    )


def test_the_hub_is_asked_last_or_not_at_all() -> None:
    def sources(**models: object) -> list[str]:
        entries = weights_unit.entries(settings(mirrors=["http://m"], **models), (WEIGHT,), None)
        return json.loads(entry(entries, "/opt/atelier/weights.json").content)["files"][0]["urls"]

    assert [url.partition("/vae")[0] for url in sources(hub=False)] == ["http://m"]
    assert "huggingface.co" in sources()[-1] and len(sources()) == 2


def test_what_may_hold_a_secret_is_root_s_alone_and_the_unit_names_none() -> None:
    entries = weights_unit.entries(settings(), (WEIGHT,), "hf_token")
    holders = {file.path for file in entries if isinstance(file, HostFile) and file.mode & 0o077 == 0}
    assert holders == {"/opt/atelier/weights.json", "/opt/atelier/weights.token"}
    others = [file.content for file in entries if isinstance(file, HostFile) and file.path not in holders]
    assert not any(b"hf_token" in content or b"user:word" in content for content in others)
    assert b"hf_token" not in entry(entries, "/opt/atelier/weights.json").content


@pytest.mark.parametrize("change", ["token", "program", "setting", "weights"])
def test_another_token_program_setting_or_weight_makes_another_job(
    change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def job(chosen: Settings, weights: tuple[Weight, ...], token: str) -> bytes:
        return entry(weights_unit.entries(chosen, weights, token), "/opt/atelier/weights.json").content

    before = job(settings(), (WEIGHT,), "one")
    assert before == job(settings(), (WEIGHT,), "one")
    if change == "program":
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "__main__.py").write_text("pass")
        (tmp_path / "templates").symlink_to(paths.PROJECT / "templates")
        monkeypatch.setattr(paths, "PROJECT", tmp_path)
    after = job(
        settings(reserve_gb=3) if change == "setting" else settings(),
        () if change == "weights" else (WEIGHT,),
        "two" if change == "token" else "one",
    )
    assert after != before


def test_the_program_on_the_host_is_the_whole_package() -> None:
    copied = {Path(entry.path).name for entry in weights_unit.entries(settings(), (), None) if "/lib/" in entry.path}
    assert copied == {path.name for path in (paths.PROJECT / "weights").glob("*.py")} | {"weights"}


def test_the_unit_is_one_that_systemd_takes() -> None:
    unit = weights_unit.unit(settings()).content.decode()
    assert "ExecStart=/usr/bin/python3 -BEs -m weights fetch /opt/atelier/weights.json\n" in unit
    assert "RequiresMountsFor=/srv/atelier/models /srv/atelier/state/weights\n" in unit
    for hinders_adoption in ("ReadWritePaths", "ReadOnlyPaths", "ProtectHome=", "ProtectSystem=strict", "PrivateTmp="):
        assert f"\n{hinders_adoption}" not in unit


def test_the_unit_is_started_again_after_each_kill_and_not_after_an_end_of_its_own() -> None:
    lines = weights_unit.unit(settings()).content.decode().splitlines()
    wanted = ["Restart=on-abnormal", "RestartSec=5", "StartLimitIntervalSec=0", "SuccessExitStatus=143"]
    assert set(wanted) <= set(lines)
    assert lines.index("StartLimitIntervalSec=0") < lines.index("[Service]") < lines.index("Restart=on-abnormal")


@pytest.mark.parametrize("status", [0, 7])
def test_following_ends_as_the_program_on_the_host_does(tmp_path: Path, status: int) -> None:
    program = tmp_path / "lib" / "weights" / "__main__.py"
    program.parent.mkdir(parents=True)
    program.write_text(f"import sys; print(*sys.argv[1:]); sys.exit({status})")
    chosen = settings().model_copy(update={"config_root": str(tmp_path)})
    ran = subprocess.run(["sh", "-c", weights_unit.follow_shell(chosen)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (status, f"follow {tmp_path}/weights.json\n")
    assert ran.stderr == f"{weights_unit.ENDED}\n"


class Place:
    """What the host has of all this, in a folder: a program, a job, and the link that starts the unit at boot."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.link, self.token = root / "wants" / "unit", root / "weights.token"
        monkeypatch.setattr(weights_unit, "STARTED_AT_BOOT", str(self.link))
        monkeypatch.setattr(weights_unit, "token_path", lambda settings: str(self.token))
        monkeypatch.setattr(weights_unit, "BOOT_LINK", f"l 644 {OWNER}:{OWNER} -")
        self.unit = HostFile(str(root / "unit"), b"[Unit]", owner=OWNER)
        self.declared = (Directory(str(root / "wants"), owner=OWNER), self.unit)
        for entry in self.declared:
            content = entry.content if isinstance(entry, HostFile) else b""
            subprocess.run(["sh", "-c", entry.install_script()], input=content, check=True)
        self.link.symlink_to(self.unit.path)

    def in_place(self) -> bool:
        script = weights_unit.in_place_script(settings(), self.declared)
        word = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split()
        assert len(word) == 1
        return word == [weights_unit.in_place(settings(), self.declared)]


OWNER = getpass.getuser()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda place: None, True),
        (lambda place: Path(place.unit.path).write_bytes(b"[unit]"), False),
        (lambda place: Path(place.unit.path).chmod(0o600), False),
        (lambda place: Path(place.unit.path).unlink(), False),
        (lambda place: place.link.unlink(), False),
        (lambda place: place.token.write_text("an old one"), False),
    ],
    ids=["nothing", "content", "mode", "gone", "not started at boot", "a token that is not wanted"],
)
def test_whatever_differs_on_the_host_is_put_in_place(
    spoil: Callable[[Place], object], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, monkeypatch)
    spoil(place)
    assert place.in_place() is expected


class Docker:
    """A docker that knows when ComfyUI started, and writes down what it is asked to run."""

    def __init__(self, root: Path, started: str, fails: bool = False) -> None:
        self.root = root
        self.settings = settings().model_copy(update={"data_root": str(root)})
        self.mark = Path(weights_unit.state(self.settings)) / "changed"
        self.mark.parent.mkdir(parents=True)
        (root / "bin").mkdir()
        program = root / "bin" / "docker"
        program.write_text(
            f'#!/bin/sh\ncase $1 in inspect) echo {started};; *) echo "$@" >>{root}/asked; cat >>{root}/told; exit {int(fails)};; esac\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def forget(self) -> int:
        environment = {**os.environ, "PATH": f"{self.root}/bin:{os.environ['PATH']}"}
        script = weights_unit.forget_script(self.settings)
        return subprocess.run(["sh", "-c", script], env=environment, input=weights_unit.FORGET).returncode

    def asked(self) -> str:
        return (self.root / "asked").read_text() if (self.root / "asked").exists() else ""

    def waits(self) -> bool:
        ran = subprocess.run(["sh", "-c", weights_unit.changed_script(self.settings)], capture_output=True, text=True)
        return ran.stdout.split() == [weights_unit.CHANGED]


def test_comfyui_hears_of_a_weight_that_changed_under_it_once(tmp_path: Path) -> None:
    docker = Docker(tmp_path, "2001-01-01T00:00:00.123456789Z")
    assert not docker.waits() and docker.forget() == 0 and docker.asked() == ""
    docker.mark.touch()
    assert docker.waits() and docker.forget() == 0
    assert docker.asked() == "exec -i comfyui-qwen python -P -\n"
    assert (tmp_path / "told").read_bytes() == weights_unit.FORGET
    assert not docker.waits() and docker.forget() == 0 and docker.asked().count("\n") == 1


def test_a_comfyui_that_started_since_is_not_asked(tmp_path: Path) -> None:
    docker = Docker(tmp_path, "2100-01-01T00:00:00Z")
    docker.mark.touch()
    assert docker.forget() == 0 and docker.asked() == "" and not docker.waits()


def test_what_comfyui_did_not_hear_is_told_again(tmp_path: Path) -> None:
    docker = Docker(tmp_path, "2001-01-01T00:00:00Z", fails=True)
    docker.mark.touch()
    assert docker.forget() == 1 and docker.waits()
    assert docker.forget() == 1 and docker.asked().count("\n") == 2


def test_a_lost_connection_is_no_failed_transfer() -> None:
    lost = str(weights_unit.explain(["client_loop: send disconnect: Broken pipe"]))
    assert "connection was lost" in lost and "Broken pipe" in lost and "the transfer goes on" in lost
    failed = str(weights_unit.explain(["vae/a: http://m/vae/a: sha256 ff, expected aa", "", weights_unit.ENDED]))
    assert failed.splitlines()[:2] == [
        "not all weights are there:",
        "    vae/a: http://m/vae/a: sha256 ff, expected aa",
    ]
    assert weights_unit.ENDED not in failed
