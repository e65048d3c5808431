"""`atelier models ... --host`: what runs on the host, run here by a shell, with the program itself."""

import contextlib
import io
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from atelier import models_host
from atelier.console import Narrator
from atelier.settings import Settings
from atelier.ssh import Completed
from atelier.target import Target
from stages import provision

ROOT = Path(__file__).resolve().parents[2]
ZEROS = "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"  # of 1 MiB


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A host that was deployed: the program in its library, and a job of one file."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "weights").symlink_to(ROOT / "weights")
    write_job(tmp_path, 1 << 20, ZEROS)
    return Settings().model_copy(update={"config_root": str(tmp_path)})


def write_job(root: Path, size: int, sha256: str) -> None:
    job = {"files": [{"name": "vae/a", "bytes": size, "sha256": sha256}]}
    (root / "weights.json").write_text(json.dumps({**job, "store": str(root / "store"), "state": str(root / "state")}))
    (root / "store" / "vae").mkdir(parents=True, exist_ok=True)


def shell(settings: Settings, *words: str) -> "subprocess.Popen[str]":
    script = models_host.attended_script(settings, *words)
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def outcome(settings: Settings, *words: str) -> tuple[int, str]:
    with shell(settings, *words) as process:
        assert process.stdout
        return process.wait(20), process.stdout.read()


def test_lines_and_status_are_those_of_the_program(settings: Settings, tmp_path: Path) -> None:
    status, told = outcome(settings, "verify")
    assert status == 1 and "vae/a: missing" in told and "0 of 1 files are good" in told
    (tmp_path / "store/vae/a").write_bytes(bytes(1 << 20))
    (tmp_path / "store/vae/b").write_bytes(b"b")
    assert outcome(settings, "verify", "--deep")[0] == 0
    status, told = outcome(settings, "prune")
    assert status == 0 and "vae/b: 0.00 GB: no set needs it" in told and "nothing was removed" in told
    status, told = outcome(settings, "prune", "--yes")
    assert status == 0 and not (tmp_path / "store/vae/b").exists() and (tmp_path / "store/vae/a").exists()


def test_the_audit_log_tells_of_a_prune_that_removed_something(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit: list[str] = []
    monkeypatch.setattr(models_host.operate, "require_up", lambda *_: None)
    monkeypatch.setattr(models_host.lifecycle, "host_lock", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(
        models_host.lifecycle, "append_audit", lambda *told: audit.append(json.loads(told[2])["result"])
    )

    def popen(script: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    target = cast(Target, SimpleNamespace(settings=settings, ssh=lambda: SimpleNamespace(popen=popen)))
    (tmp_path / "store/vae/b").write_bytes(b"b")
    assert [models_host.prune(target, Narrator(Console(file=io.StringIO())), yes) for yes in (False, True, True)] == [
        0
    ] * 3
    assert not (tmp_path / "store/vae/b").exists() and audit == ["weights pruned"]
    (tmp_path / "weights.json").write_text("{}")
    assert models_host.prune(target, Narrator(Console(file=io.StringIO())), True) == 1
    assert audit == ["weights pruned", "failed"]


def test_a_host_that_was_never_deployed_says_so(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "weights.json").unlink()
    assert outcome(settings, "verify") == (models_host.NEVER, "")


def running(command: str) -> bool:
    """Whether a process runs whose command line matches."""
    return subprocess.run(["pgrep", "-f", command], stdout=subprocess.DEVNULL).returncode == 0


def until(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within some seconds."""
    for _ in range(300):
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_it_ends_on_the_host_when_nobody_listens_any_more(settings: Settings, tmp_path: Path) -> None:
    size, job = 64 << 30, f"{tmp_path}/weights.json"
    write_job(tmp_path, size, ZEROS)
    with (tmp_path / "store/vae/a").open("wb") as file:
        file.truncate(size)  # minutes to hash
    with shell(settings, "verify", "--deep") as process:
        assert until(lambda: running(f"^/usr/bin/python3 .*{job}")), "it never began"
        assert process.poll() is None and process.stdin
        process.stdin.close()
        assert process.wait(10) == 128 + 15
    assert until(lambda: not running(job)), "it goes on"


class Host:
    """Whoever is asked things over SSH: whether a transfer is under way, and what the audit log gets."""

    def __init__(self, state: str) -> None:
        self.state, self.audit = state, ""

    def run(self, script: str, stdin: bytes = b"", timeout: float = 0) -> Completed:
        if stdin:
            self.audit += stdin.decode()
            return Completed(0, "", "")
        shown = f"systemctl() {{ echo ActiveState={self.state}; }}; {script}"
        done = subprocess.run(["sh", "-c", shown], capture_output=True, text=True)
        return Completed(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("state", "goes_on"), [("activating", True), ("active", True), ("inactive", False), ("failed", False)]
)
@pytest.mark.parametrize("run", [provision.fetch_weights, provision.deploy_with_driver])
def test_ctrl_c_says_that_the_transfer_goes_on_and_is_no_failure(
    run: Callable[..., object], state: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(provision, "apply", interrupted)
    monkeypatch.setattr(provision.lifecycle, "keep_credentials", lambda *_: None)
    monkeypatch.setattr(provision, "replace", lambda deployment, **_: deployment)
    host, told = Host(state), io.StringIO()
    deployment = SimpleNamespace(settings=Settings(), gpu=SimpleNamespace(action="none", load=False, reboot=False))
    with pytest.raises(KeyboardInterrupt):
        run(None, host, deployment, Narrator(Console(file=told, width=300)))
    assert json.loads(host.audit)["result"] == "interrupted"
    assert ("the transfer goes on" in told.getvalue() and "systemctl stop" in told.getvalue()) == goes_on
