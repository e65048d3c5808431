"""What a deploy takes a host's weights for, and what it puts there to fetch them."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from atelier import hostfacts, weights_unit
from atelier.models import Weight
from atelier.settings import build_settings
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
        values = {"profile": "cpu"}
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
