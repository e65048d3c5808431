"""The sandbox as other parts use it: ``up``, ``down``, ``get``."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import base, boot, cgroup, leftovers, sources, tools

Say = Callable[[str], None]
Bind = tuple[str, str, bool]
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?")
ERROR_PREFIX = "error: "  # how __main__ begins the one clear reason
BOOT_SECONDS = 120
REBOOT_SECONDS = 15
OWNER = "ATELIER_SANDBOX_OWNER"  # "uid:gid", from _as_root to the process that it starts
PACKAGE_PARENT = Path(__file__).resolve().parent.parent


class SandboxError(RuntimeError):
    """A sandbox could not be made or removed; the message names what failed and the remedy."""


@dataclass(frozen=True)
class Machine:
    """A running sandbox and how to reach it. ``proxy_url`` and ``namespace`` are the guest's own."""

    name: str
    address: str
    port: int
    user: str
    identity_file: Path
    known_hosts_file: Path
    ssh_config: Path
    state_dir: Path
    proxy_url: str
    namespace: str


def folder() -> Path:
    """Where all sandboxes keep their state: ``~/.cache/atelier/sandbox``, or under ATELIER_CACHE."""
    return Path(os.environ.get("ATELIER_CACHE") or Path.home() / ".cache/atelier").absolute() / "sandbox"


def checked_name(name: str) -> str:
    """The name itself; SandboxError when it cannot be a host name."""
    if not NAME.fullmatch(name):
        raise SandboxError(f"'{name}' cannot be a sandbox's name: lower-case letters, digits and '-', at most 31.")
    return name


def names() -> list[str]:
    """Every sandbox with state on this computer, running or not."""
    return sorted(path.parent.name for path in folder().glob("*/machine.json"))


def _lives(state_dir: Path) -> bool:
    """Whether the supervisor is there: it holds a lock for as long as it runs, whatever ended it."""
    try:
        with (state_dir / "supervisor.pid").open() as pid_file:
            fcntl.flock(pid_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _machine(spec: dict[str, Any], state_dir: Path) -> Machine:
    ssh = state_dir / "ssh"
    return Machine(
        name=spec["name"],
        address=spec["address"],
        port=22,
        user=spec["user"],
        identity_file=ssh / "id_ed25519",
        known_hosts_file=ssh / "known_hosts",
        ssh_config=ssh / "config",
        state_dir=state_dir,
        proxy_url=boot.PROXY_URL,
        namespace=spec["namespace"],
    )


def get(name: str) -> Machine | None:
    """The sandbox if its supervisor runs, else None. Needs no root and touches nothing."""
    state_dir = folder() / checked_name(name)
    if not _lives(state_dir):
        return None
    spec = json.loads((state_dir / "machine.json").read_text())
    return _machine(spec, state_dir) if "address" in spec else None


def answers(machine: Machine, seconds: float = 1) -> bool:
    """Whether the guest's sshd speaks."""
    with contextlib.suppress(OSError), socket.create_connection((machine.address, machine.port), seconds) as connection:
        connection.settimeout(seconds)
        return connection.recv(4) == b"SSH-"
    return False


def _running(name: str, say: Say) -> Machine | None:
    """The sandbox if it answers; one whose supervisor lives may be rebooting and is given time."""
    machine = get(name)
    if machine is None:
        return None
    if not answers(machine):
        say(f"Sandbox {name} does not answer; it may be rebooting. Waiting up to {REBOOT_SECONDS} s ...")
        deadline = time.monotonic() + REBOOT_SECONDS
        while not answers(machine):
            if time.monotonic() > deadline or get(name) is None:
                return None
            time.sleep(0.1)
    if not machine.ssh_config.exists():
        _write_ssh_files(machine)  # An `up` that was killed right after the boot left without them.
    say(f"Sandbox {name} is already running at {machine.address}.")
    return machine


def up(
    name: str,
    say: Say,
    *,
    disk_gb: int = 60,
    binds: Iterable[Bind] = (),
    allowed_hosts: Iterable[str] = (),
) -> Machine:
    """A running sandbox of that name: the one that runs, or a new boot of its disk, or a new machine.

    ``disk_gb``: size of a new machine's disk in GiB (sparse). ``binds``: ``(host path, guest path, read only)``.
    ``allowed_hosts``: hosts for the proxy beside the computer's own archives.
    Raises SandboxError, or tools.UnavailableError where no sandbox can work.
    """
    running = _running(name, say)
    if running is not None:
        return running
    tools.require_linux()
    if os.geteuid() != 0:
        options = [f"--disk-gb={disk_gb}", *(f"--allow-host={host}" for host in allowed_hosts)]
        options += [f"--bind={json.dumps(bind)}" for bind in binds]
        _as_root(["up", name, *options], say)
        made = get(name)
        if made is None:
            raise SandboxError(f"Sandbox {name} does not run although sudo reported no error.")
        return made
    tools.install_missing(say)
    missing = [path for path in (folder(), *folder().parents) if not path.exists()]
    folder().mkdir(parents=True, exist_ok=True)
    _give_to_caller(*missing)
    with _locked(name, say):
        running = _running(name, say)
        if running is not None:
            return running
        leftovers.remove(name, folder())
        return _boot(name, say, disk_gb, list(binds), list(allowed_hosts))


def down(name: str, say: Say) -> None:
    """Removes the sandbox with everything that belongs to it, its disk included. The base image stays.

    Works on what a crash left, too. Raises SandboxError when something resists.
    """
    state_dir = folder() / checked_name(name)
    tools.require_linux()
    if os.geteuid() != 0:
        _as_root(["down", name], say)
        return
    if not folder().is_dir():
        say(f"There is no sandbox {name}.")
        return
    with _locked(name, say):
        was_there = state_dir.exists() or bool(leftovers.find(name, folder()))
        leftovers.remove(name, folder())
        shutil.rmtree(state_dir, ignore_errors=True)
        remaining = leftovers.find(name, folder())
        if remaining:
            raise SandboxError(f"Sandbox {name} was not removed completely: {'; '.join(remaining)}")
        say(f"Sandbox {name} is removed." if was_there else f"There is no sandbox {name}.")


def purge(say: Say) -> None:
    """Removes the base image and the package cache, which ``down`` keeps. Raises SandboxError while a sandbox exists."""
    if names():
        raise SandboxError(
            f"The base image is kept while there are sandboxes: {', '.join(names())}. Take them down first."
        )
    if os.geteuid() != 0:
        _as_root(["purge"], say)
        return
    for path in [*folder().glob("base[-.]*"), folder() / "packages"]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    say("The base image and the package cache are removed.")


@contextlib.contextmanager
def _locked(name: str, say: Say) -> Iterator[None]:
    """One command at a time for each sandbox; the second waits and says so."""
    path = folder() / f"{name}.lock"
    while True:
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"Another command is working on sandbox {name}: waiting for it ...")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                continue  # the one before removed the file that we waited for
            try:
                yield
            finally:
                path.unlink()
            return


def _as_root(arguments: list[str], say: Say) -> None:
    """Runs ``python -m sandbox`` through sudo with this user's cache, proxies and package settings."""
    kept = ("http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY", "XDG_CONFIG_HOME")
    environment = {key: value for key, value in os.environ.items() if key in kept or key.startswith("PIP_")}
    environment |= {"ATELIER_CACHE": str(folder().parent), "HOME": str(Path.home())}
    environment |= {OWNER: f"{os.getuid()}:{os.getgid()}"}
    environment |= {"PYTHONPATH": str(PACKAGE_PARENT), "PYTHONDONTWRITEBYTECODE": "1"}
    assignments = [f"{key}={value}" for key, value in environment.items()]
    command = [*tools.sudo_prefix(), "env", *assignments, sys.executable, "-m", "sandbox", *arguments]
    reason: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            if reason or line.startswith(ERROR_PREFIX):
                reason.append(line.removeprefix(ERROR_PREFIX).rstrip())
            else:
                say(line.rstrip())
    if process.returncode:
        raise SandboxError("\n".join(reason) or f"sudo ended with status {process.returncode}")


def _boot(name: str, say: Say, disk_gb: int, binds: list[Bind], allowed_hosts: list[str]) -> Machine:
    started = time.monotonic()
    image = base.ensure(folder(), say)
    state_dir = folder() / name
    state_dir.mkdir(exist_ok=True)
    disk = state_dir / "disk.img"
    if disk.exists():
        say(f"Booting sandbox {name} from its disk ...")
    else:
        say(f"Making sandbox {name}, a Debian 13 machine with a disk of {disk_gb} GiB ...")
        _make_disk(image, disk, disk_gb)
    for host_path, _, _ in binds:
        if not Path(host_path).exists():
            Path(host_path).mkdir(parents=True)
            _give_to_caller(Path(host_path))
    used = image.with_suffix(".sources").read_text()
    archives = sources.hosts_of(
        source.uri for parse in (sources.parse_deb822, sources.parse_one_line) for source in parse(used)
    )
    spec = {
        "name": name,
        "user": base.USER,
        "home": str(Path.home()),
        "binds": binds,
        "allowed_hosts": sorted(archives | set(allowed_hosts)),
        "pip_configuration": boot.pip_configuration(sources.computers_pip_indexes(os.environ, Path.home())),
    }
    (state_dir / "machine.json").write_text(json.dumps(spec))
    _make_keys(state_dir / "ssh")
    with (state_dir / "supervisor.log").open("a") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "sandbox.supervisor", str(state_dir)],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(PACKAGE_PARENT), "PATH": tools.PATH},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_enter_helpers(name),
        )
    try:
        machine = _wait(name, supervisor, state_dir)
    except BaseException:
        leftovers.remove(name, folder())
        raise
    say(f"Sandbox {name} is up at {machine.address} ({time.monotonic() - started:.1f} s).")
    return machine


def _enter_helpers(name: str) -> Callable[[], None]:
    helpers = cgroup.create(name) / "helpers"
    return lambda: cgroup.enter(helpers)


def _make_disk(image: Path, disk: Path, disk_gb: int) -> None:
    part = disk.with_suffix(".part")
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", image, part], check=True)
    with part.open("r+b") as file:
        file.truncate(disk_gb * 2**30)
    done = subprocess.run(["resize2fs", part], env=tools.environment(), capture_output=True, text=True)
    if done.returncode:
        raise SandboxError(f"The disk of {disk_gb} GiB could not be made: {done.stderr.strip()}")
    part.rename(disk)


def _make_keys(ssh: Path) -> None:
    """The operator's key and the guest's host key: made before the guest, so nothing is trusted on first use."""
    ssh.mkdir(mode=0o700, exist_ok=True)
    for key in ("id_ed25519", "host_ed25519"):
        if not (ssh / f"{key}.pub").exists():
            (ssh / key).unlink(missing_ok=True)
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "atelier-sandbox", "-f", ssh / key], check=True
            )


def ssh_config(machine: Machine) -> str:
    """An ssh_config with the sandbox under its name."""
    return (
        f"Host {machine.name}\n"
        f"  HostName {machine.address}\n"
        f"  Port {machine.port}\n"
        f"  User {machine.user}\n"
        f'  IdentityFile "{machine.identity_file}"\n'
        "  IdentitiesOnly yes\n"
        f'  UserKnownHostsFile "{machine.known_hosts_file}"\n'
        "  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n"
        "  ConnectTimeout 10\n"
    )


def _wait(name: str, supervisor: subprocess.Popen[bytes], state_dir: Path) -> Machine:
    """Waits until the guest lets its user in over SSH."""
    deadline = time.monotonic() + BOOT_SECONDS
    machine = None
    while time.monotonic() < deadline and supervisor.poll() is None:
        if machine is None:
            machine = get(name)
            if machine is not None:
                _write_ssh_files(machine)
        elif answers(machine):
            login = ["ssh", "-F", str(machine.ssh_config), "-o", "BatchMode=yes", machine.name, "true"]
            if subprocess.run(login, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0:
                return machine
        time.sleep(0.05)
    what = f"did not come up within {BOOT_SECONDS} s" if supervisor.poll() is None else "ended while it was booting"
    log = (state_dir / "supervisor.log").read_text(errors="replace")[-2000:].strip()
    raise SandboxError(f"Sandbox {name} {what}. The end of its log:\n{log}")


def _write_ssh_files(machine: Machine) -> None:
    ssh = machine.ssh_config.parent
    key = (ssh / "host_ed25519.pub").read_text().split()
    machine.known_hosts_file.write_text(f"{machine.address} {key[0]} {key[1]}\n")
    part = machine.ssh_config.with_suffix(".part")
    part.write_text(ssh_config(machine))
    part.rename(machine.ssh_config)
    _give_to_caller(ssh, *ssh.iterdir())


def _give_to_caller(*paths: Path) -> None:
    """Gives what root made to the user who called through sudo (``_as_root``)."""
    if OWNER in os.environ:
        user, group = map(int, os.environ[OWNER].split(":"))
        for path in paths:
            os.chown(path, user, group)
