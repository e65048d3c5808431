"""Weights on a real booted host, from a real server that counts what it sends, through every fault that a transfer meets.

The tests share one deployed sandbox and run in their order; each leaves the weights as declared. The server is on this
computer's end of the guest's link, so that it is there while the guest is not.
"""

import asyncio
import hashlib
import json
import os
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from fault_server import FaultServer
from harness import ROOT, UNCHANGED, Sandbox, copy_checkout

from atelier import credentials
from atelier.comfyui import ComfyUI
from sandbox.doubles.weights import TENSORS
from sandbox.proxy import Proxy, in_background
from weights.store import File, Store
from weights.verify import verify

pytestmark = pytest.mark.sandbox
SANDBOX = Sandbox(f"sandbox-weights-{os.getpid()}")
root = SANDBOX.root
MIB = 1 << 20
ALLOWED = 16 * MIB  # beyond what is needed
STORE, STATE = "/srv/atelier/models", "/srv/atelier/state/weights"
UNIT = "atelier-weights.service"
SDXL = "checkpoints/sd_xl_turbo_1.0_fp16.safetensors"
BIG = "diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors"
TEXT = "text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors"
VAE = "vae/qwen_image_vae.safetensors"
FAST, STEADY, CRAWLING = 200e6, 8e6, 0.4e6  # bytes a second


def model(kind: str, size: int, seed: int = 1) -> bytes:
    """What the doubles take for a model, of at least so many bytes, which nothing can compress."""
    dtype, names = TENSORS[kind]
    header = {name: {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]} for name in names}
    header[names[-1]] = {"dtype": dtype, "shape": [size // (1 if dtype == "F8_E4M3" else 2)], "data_offsets": [0, size]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + random.Random(seed).randbytes(size)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


@dataclass
class Host:
    """The sandbox, the checkout that deploys it, the mirror, and what the lock names."""

    sandbox: Sandbox
    mirror: FaultServer
    content: dict[str, bytes]
    settings: str

    def declare(self, *mirrors: str, **models: object) -> None:
        """Write the lock of what is in content, and settings that name it. No mirrors: the one of all tests."""
        self.lock.write_text(yaml.safe_dump({"files": [self.entry(name) for name in self.content]}), encoding="utf-8")
        urls = list(mirrors) or [self.mirror.url("")]
        chosen = {"lock": str(self.lock), "sets": ["test"], "mirrors": urls, **models}
        settings = self.sandbox.checkout / "group_data/sandbox.py"
        settings.write_text(f"{self.settings}\nmodels = {chosen!r}\n", encoding="utf-8")

    @property
    def lock(self) -> Path:
        return self.sandbox.checkout / "locks/of-the-test.yml"

    def entry(self, name: str) -> dict[str, object]:
        directory, _, path = name.partition("/")
        facts = {"bytes": len(self.content[name]), "sha256": sha256(self.content[name]), "directory": directory}
        said = {"sets": ["test"], "used_by": [], "licence": "none: random numbers"}
        return {"repository": "atelier/test", "revision": "main", "path": path, **facts, **said}

    def deploy(self, expect: int = 0) -> str:
        return self.sandbox.deploy(expect=expect)

    def fetch(self, expect: int = 0) -> str:
        """The weights alone."""
        return self.sandbox.atelier("models", "fetch", "--sources", "double", expect=expect)

    def lose(self, *names: str, rate: float = FAST) -> None:
        """These files are not on the host any more; the mirror counts from here, at this rate."""
        if names:
            root(f"cd {STORE}; rm -f " + " ".join(names))
        self.mirror.forget()
        self.mirror.faults.rate = rate

    def wait_until_sent(self, name: str, size: int) -> None:
        until(lambda: self.mirror.sent_of[name] >= size)

    def assert_published(self) -> None:
        """Every file of the lock has its bytes, is root's, and nobody can write it; nothing is half done."""
        names = " ".join(self.content)
        found = dict(reversed(line.split("  ")) for line in root(f"cd {STORE}; sha256sum {names}").splitlines())
        assert found == {name: sha256(body) for name, body in self.content.items()}
        assert set(root(f"cd {STORE}; stat -c '%U:%G %a' {names}").splitlines()) == {"root:root 444"}
        assert root(f"ls {STORE}/.incoming") == ""

    def assert_sent_once(self, *names: str) -> None:
        """These files were asked for, no other, and none of their bytes twice."""
        assert {name for name in self.mirror.content if self.mirror.asked[name]} == set(names)
        for name in names:
            size = len(self.mirror.content[name])
            assert size <= self.mirror.sent_of[name] <= size + ALLOWED


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    checkout = copy_checkout(tmp_path_factory.mktemp("weights") / "checkout")
    content = {
        SDXL: model("sdxl-checkpoint", 12 * MIB),
        BIG: model("qwen-diffusion", 40 * MIB),
        TEXT: model("qwen-text-encoder", 4 * MIB),
        VAE: model("vae", MIB),
    }
    with SANDBOX.running():
        mirror = FaultServer(dict(content), SANDBOX.gate())
        settings = (checkout / "group_data/sandbox.py").read_text()
        host = Host(replace(SANDBOX, checkout=checkout), mirror, content, settings)
        host.declare()
        yield host
        mirror.stop()


def run_of_the_unit() -> str:
    return root(f"systemctl show -P InvocationID {UNIT}")


def over() -> bool:
    return root(f"systemctl show -p ActiveState --value {UNIT}") == "inactive"


def test_a_fresh_machine_is_deployed_from_a_mirror_and_generates(host: Host) -> None:
    host.deploy()
    host.assert_sent_once(*host.content)
    host.assert_published()
    assert "passed" in host.sandbox.atelier("verify", "--group", "generation")
    mounts = root("docker inspect -f '{{range .Mounts}}{{.Source}} {{.RW}}\n{{end}}' comfyui-qwen forge-turbo")
    weights = [line for line in mounts.splitlines() if line.startswith(STORE)]
    assert len(weights) > 1 and all(line.endswith(" false") for line in weights), mounts


def test_a_second_deploy_asks_for_nothing_hashes_nothing_and_changes_nothing(host: Host) -> None:
    host.mirror.forget()
    run = run_of_the_unit()
    root(f"find {STORE} -type f -exec touch -a -d 2000-01-01 {{}} +")
    assert re.search(UNCHANGED, host.deploy())
    assert host.mirror.requests == 0 and run_of_the_unit() == run
    read = f"find {STORE} -type f -newerat 2000-01-02"
    assert root(read) == ""


def test_a_deploy_that_ends_in_the_middle_leaves_a_transfer_that_the_next_one_picks_up(host: Host) -> None:
    host.lose(BIG, rate=STEADY)
    with host.sandbox.started("deploy", "--sources", "double") as process:
        host.wait_until_sent(BIG, 4 * MIB)
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert process.wait() == 130
    host.mirror.faults.rate = CRAWLING
    assert "Traceback" not in said and re.search(r"the transfer goes on|goes on (on the host|without)", said), said
    run = run_of_the_unit()

    killed = host.sandbox.started("deploy", "--sources", "double", start_new_session=True)
    next(line for line in killed.stdout if f"systemctl stop {UNIT}" in line)
    refused = host.deploy(expect=1)
    assert "another deploy" in refused and "since" in refused
    host.mirror.faults.rate = STEADY
    host.wait_until_sent(BIG, 24 * MIB)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    host.sandbox.ssh().close()

    sent = host.mirror.sent_of[BIG]
    host.wait_until_sent(BIG, sent + 4 * MIB)  # nobody watches
    host.mirror.faults.rate = CRAWLING
    with host.sandbox.started("deploy", "--sources", "double") as process:
        next(line for line in process.stdout if f"systemctl stop {UNIT}" in line)
        host.mirror.faults.rate = FAST
        process.stdout.read()
        assert process.wait() == 0
    assert run_of_the_unit() == run
    host.assert_sent_once(BIG)
    host.assert_published()


def test_kill_9_of_program_and_aria2c_is_recovered_from(host: Host) -> None:
    host.lose(BIG, rate=3 * STEADY)
    root(f"systemctl start {UNIT}")
    host.wait_until_sent(BIG, 24 * MIB)
    host.mirror.faults.rate = STEADY / 4
    both = f"systemctl kill --signal=KILL {UNIT}"
    for kill in ("kill -9 $(pidof aria2c)", f"{both} --kill-whom=main", both, "kill -9 $(pidof aria2c)"):
        SANDBOX.wait_for("pidof aria2c")
        time.sleep(random.uniform(0.2, 1))
        root(kill)
    host.mirror.faults.rate = FAST
    until(over)
    host.assert_published()
    host.assert_sent_once(BIG)


def test_after_a_power_cut_the_transfer_goes_on_by_itself(host: Host) -> None:
    host.lose(BIG, rate=3 * STEADY)
    root(f"systemctl start {UNIT}")
    host.wait_until_sent(BIG, 24 * MIB)
    host.mirror.faults.rate = CRAWLING
    SANDBOX.cut_power()
    host.mirror.faults.rate = FAST
    SANDBOX.up()
    SANDBOX.wait_for(f"[ -e {STORE}/{BIG} ]")
    host.assert_published()
    host.assert_sent_once(BIG)
    SANDBOX.wait_for("[ $(docker ps --filter health=healthy -q | wc -l) = 3 ]")


@contextmanager
def second_mirror(host: Host) -> Iterator[FaultServer]:
    mirror = FaultServer(host.mirror.content, SANDBOX.gate())
    try:
        yield mirror
    finally:
        mirror.stop()
        host.declare()


def test_a_mirror_with_one_wrong_byte_is_named_and_nothing_of_it_is_published(host: Host) -> None:
    wrong = bytearray(host.content[SDXL])
    wrong[5 * MIB] ^= 1
    with second_mirror(host) as bad:
        bad.faults.flip = 5 * MIB
        named = (SDXL, bad.url("").rstrip("/"), sha256(bytes(wrong)))
        host.lose(SDXL)
        host.declare(bad.url(""))
        said = host.deploy(expect=1)
        assert all(text in said for text in (*named, sha256(host.content[SDXL]))), said
        assert root(f"[ -d {STORE} ] && [ ! -e {STORE}/{SDXL} ] && echo absent") == "absent"
        host.declare(bad.url(""), host.mirror.url(""))
        said = host.fetch()
        assert all(text in said for text in named), said
    host.assert_sent_once(SDXL)
    host.assert_published()


def test_without_room_no_byte_is_asked_for(host: Host) -> None:
    host.content["loras/large.safetensors"] = model("lora", 40 * MIB)
    host.lose()
    host.declare(reserve_gb=12)
    root("fallocate -l $(($(df --output=avail -B1 / | tail -n 1) - (10 << 30))) /filler")
    try:
        said = host.deploy(expect=1)
    finally:
        root("rm /filler")
        del host.content["loras/large.safetensors"]
    assert re.search(
        r"/ has 10\.\d GB free and this deploy needs [\d.]+ GB there: .*12\.0 GB for models\.reserve_gb", said
    ), said
    assert {name for name in host.mirror.content if host.mirror.asked[name]} == set()
    host.declare()


@contextmanager
def a_small_empty_store(megabytes: int) -> Iterator[None]:
    """A file system of its own in the store's place. Docker's logs on a full one would not be readable again."""
    root(f"mount -t tmpfs -o size={megabytes}m,mode=755 small {STORE}")
    try:
        yield
    finally:
        root(f"umount -l {STORE}")


def test_a_disk_that_fills_up_is_waited_for(host: Host) -> None:
    host.lose(rate=STEADY)
    host.declare(parallel_files=1, reserve_gb=0)
    with a_small_empty_store(64):
        with host.sandbox.started("models", "fetch", "--sources", "double") as process:
            host.wait_until_sent(BIG, 20 * MIB)  # the longest comes first; its room was taken when it began
            root(f"fallocate -l $(df --output=avail -B1 {STORE} | tail -n 1) {STORE}/filler")
            said = next(line for line in process.stdout if "disk is full" in line)
            root(f"rm {STORE}/filler")
            assert SDXL in said and "free" in said
            host.mirror.faults.rate = FAST
            process.stdout.read()
            assert process.wait() == 0
        host.assert_sent_once(*host.content)
        host.assert_published()
    host.declare()


ADOPT = f"""
set -e
cd {STORE}
hub=/root/.cache/huggingface/hub/models--atelier--test; sum=$(sha256sum {BIG} | cut -d' ' -f1)
mkdir -p $hub/blobs $hub/snapshots/0123/split_files /opt/former/models/Stable-diffusion
mv {BIG} $hub/blobs/$sum; ln -s ../../../blobs/$sum $hub/snapshots/0123/split_files/{Path(BIG).name}
mv {SDXL} /opt/former/models/Stable-diffusion/
stat -c %i $hub/blobs/$sum /opt/former/models/Stable-diffusion/*
size=$(stat -c %s {VAE}); rm {VAE}; head -c $size /dev/zero >{VAE}
rm -f {STATE}/*
"""


def test_what_lies_on_the_host_is_linked_and_a_wrong_file_is_set_aside_and_named(host: Host) -> None:
    inodes = root(ADOPT)
    host.lose(rate=FAST)
    said = host.fetch()
    host.assert_sent_once(VAE)
    host.assert_published()
    assert root(f"cd {STORE}; stat -c %i {BIG} {SDXL}") == inodes
    aside = root(f"ls {STORE}/{VAE}.wrong-*")
    assert aside in said
    root(f"rm {aside}; rm -r /root/.cache/huggingface /opt/former")


SMOKE = json.loads((ROOT / "workflows/smoke.json").read_text())


def remembered(host: Host) -> bool:
    """Whether ComfyUI took what it computed before from its memory, which /free empties."""
    known = credentials.load(host.sandbox.checkout / ".secrets" / host.sandbox.name)
    with SANDBOX.ssh().forward({"comfyui": 8188}) as ports:
        url = f"http://127.0.0.1:{ports['comfyui']}"
        with ComfyUI(url, known.comfyui.password_bcrypt) as comfyui:
            ran = comfyui.submit(SMOKE)
            comfyui.wait(ran, 30)
            messages = dict(comfyui.history(ran)["status"]["messages"])
    return bool(messages["execution_cached"]["nodes"])


def test_a_file_that_changed_under_comfyui_makes_it_forget_and_no_other_deploy_does(host: Host) -> None:
    remembered(host)
    assert remembered(host)
    started = root("docker inspect -f '{{.State.StartedAt}}' comfyui-qwen")
    host.content[SDXL] = host.mirror.content[SDXL] = model("sdxl-checkpoint", 12 * MIB, seed=2)
    host.lose(rate=FAST)
    host.declare()
    host.deploy()
    host.assert_sent_once(SDXL)
    host.assert_published()
    assert not remembered(host)
    assert re.search(UNCHANGED, host.deploy())
    assert remembered(host)
    assert root("docker inspect -f '{{.State.StartedAt}}' comfyui-qwen") == started


HUB = "huggingface.co"
CERTIFICATE = f"""
cd $(mktemp -d)
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={HUB} -addext subjectAltName=DNS:{HUB} \\
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,digitalSignature,keyCertSign \\
  -keyout key -out /usr/local/share/ca-certificates/hub.crt 2>/dev/null
update-ca-certificates >/dev/null
cat key /usr/local/share/ca-certificates/hub.crt
"""


class WayToTheHub(Proxy):
    """The host's proxy, where the hub's name leads to another server."""

    def __init__(self, folder: Path, hub: FaultServer) -> None:
        super().__init__(frozenset({HUB}), folder, print)
        self.hub = hub

    async def _connect(
        self, scheme: str, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        return *await asyncio.open_connection(self.hub.address, self.hub.port), False


@contextmanager
def a_hub(host: Host, folder: Path, content: dict[str, bytes]) -> Iterator[FaultServer]:
    """A server that the guest takes for the hub, and that its proxy leads to."""
    (folder / "pem").write_text(root(CERTIFICATE))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "pem")
    hub = FaultServer(content, SANDBOX.gate(), tls)
    listener = socket.create_server((SANDBOX.gate(), 0))
    settings = host.settings
    host.settings += f"\nproxy = 'http://{SANDBOX.gate()}:{listener.getsockname()[1]}'\n"
    try:
        with in_background(WayToTheHub(folder / "cache", hub), listener):
            yield hub
    finally:
        host.settings = settings
        host.declare()
        hub.stop()
        root("rm /usr/local/share/ca-certificates/hub.crt; update-ca-certificates >/dev/null")


def test_a_gated_file_keeps_nothing_else_back_and_its_token_reaches_the_hub_alone(host: Host, tmp_path: Path) -> None:
    gated, token = "loras/gated.safetensors", "hf_" + "s3cr3t" * 6
    (tmp_path / "token").write_text(f"{token}\n")
    (tmp_path / "token").chmod(0o600)
    host.content[gated] = model("lora", 4 * MIB)
    of_the_hub = f"atelier/test/resolve/main/{Path(gated).name}"
    with a_hub(host, tmp_path, {of_the_hub: host.content[gated]}) as hub:
        hub.faults.wanted_token = token
        host.lose(TEXT)
        host.declare(hub=True)
        said = host.fetch(expect=1)
        assert gated in said and f"Accept the licence at https://{HUB}/atelier/test" in said, said
        assert root(f"sha256sum <{STORE}/{TEXT}").split()[0] == sha256(host.content[TEXT])
        host.mirror.forget()

        hub.faults.rate = STEADY / 4
        host.declare(hub=True, token_file=str(tmp_path / "token"))
        seen = ""
        with host.sandbox.started("models", "fetch", "--sources", "double") as process:
            while process.poll() is None:
                seen += root("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '; true")
                time.sleep(0.2)
            said = process.stdout.read()
        assert process.returncode == 0, said
        host.assert_published()
        assert hub.credentials == {f"Bearer {token}"} and host.mirror.credentials == set()
        assert "aria2c" in seen and token not in seen + said
        # grep's status tells of files that went meanwhile; that it finds the one file shows that it looked.
        holders = root(f"grep -rslF {token} /opt /srv /run /etc /var/log; [ $? -le 2 ]").split()
        assert len(holders) == 1 and root(f"stat -c '%U %a' {holders[0]}") == "root 600"
        journal = root("journalctl -o cat --no-pager")
        assert "loras/gated" in journal
        assert token not in journal
        del host.content[gated]
    host.fetch()
    assert root(f"[ -e {holders[0]} ] || echo gone") == "gone"


def test_a_host_without_another_way_is_fed_through_its_ssh_connection(host: Host, tmp_path: Path) -> None:
    store = Store(tmp_path, tmp_path / ".state")
    files = [File(name, len(body), sha256(body)) for name, body in host.content.items()]
    for file in files:
        store.path(file).parent.mkdir(parents=True, exist_ok=True)
        store.path(file).write_bytes(host.content[file.name])
    verify(store, files, deep=True)
    host.lose(BIG, VAE)
    arguments = ("--dest", str(tmp_path), "--lock", str(host.lock), "--port", "0")
    with host.sandbox.started("models", "serve", *arguments, stderr=subprocess.STDOUT) as serving:
        url = next(found[0] for line in serving.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        next(line for line in serving.stdout if "Ctrl-C ends it" in line)
        host.declare(url)
        host.fetch()
        serving.send_signal(signal.SIGINT)
        assert serving.wait() == 0
    assert host.mirror.requests == 0
    host.assert_published()
