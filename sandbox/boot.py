"""One boot of the guest: ``python -m sandbox.boot STATE_DIR``, already in mount and time namespaces of its own.

Mounts the disk, gives it its identity on its first boot, and becomes systemd-nspawn. The mount goes away with it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from sandbox import cgroup, network, proxy, sources

PROXY_URL = f"http://127.0.0.1:{proxy.PORT}"
MARK = "etc/atelier-sandbox.json"  # lies in every sandbox, and in nothing else
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def escaped(path: str) -> str:
    """A path as systemd-nspawn's ``--bind=`` wants it."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def nspawn_command(spec: dict[str, Any], root: Path) -> list[str]:
    """The command that boots the guest. Docker in it needs the open capabilities and the three system calls;
    the clock and the kernel's modules stay this computer's."""
    command = [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        f"--directory={root}",
        f"--machine={cgroup.group_name(spec['name'])}",
        f"--hostname={spec['name']}",
        f"--network-namespace-path=/run/netns/{spec['namespace']}",
        "--register=no",
        "--keep-unit",
        "--settings=no",
        "--console=read-only",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--capability=all",
        "--drop-capability=CAP_SYS_TIME,CAP_SYS_MODULE",
        "--system-call-filter=add_key keyctl bpf",
    ]
    for host_path, guest_path, read_only in spec["binds"]:
        command.append(f"--bind{'-ro' if read_only else ''}={escaped(host_path)}:{escaped(guest_path)}")
    return command


def nspawn_environment(environment: dict[str, str]) -> dict[str, str]:
    """The environment for systemd-nspawn: nothing of the operator's own reaches the guest's init.

    ``API_VFS_WRITABLE=network`` lets Docker set the namespace's ``net.*`` and keeps every other kernel setting of this
    computer read-only. There is no image lock to leave behind: the supervisor holds one already.
    """
    return {
        "PATH": environment.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "LC_ALL": "C.UTF-8",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
        "SYSTEMD_NSPAWN_LOCK": "0",
    }


def added_certificates(computer: str, guest: str) -> list[str]:
    """The certificates of the computer's bundle that the guest's lacks, in order (both PEM)."""
    known = set(CERTIFICATE.findall(guest))
    return [certificate for certificate in dict.fromkeys(CERTIFICATE.findall(computer)) if certificate not in known]


def pip_configuration(pip: sources.PipIndexes) -> str:
    """A pip.conf with the computer's indexes; folders of this computer are left out, the guest does not have them."""
    settings = {"index-url": [pip.index], "extra-index-url": pip.extra, "find-links": pip.find_links}
    lines = ["[global]"]
    for key, urls in settings.items():
        reachable = [url for url in urls if sources.hosts_of([url])]
        if reachable:
            lines.append(f"{key} = {' '.join(reachable)}")
    return "\n".join([*lines, ""]) if len(lines) > 1 else ""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes a new file; a link that stood in its place is replaced, not followed out of the guest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def provision(spec: dict[str, Any], root: Path, ssh: Path) -> None:
    """Makes a copy of the base image this one machine: names, keys, certificates, package settings."""
    name = spec["name"]
    write(root / "etc/hostname", f"{name}\n")
    write(root / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n")
    write(root / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    write(root / "etc/resolv.conf", f"nameserver {network.INTERNET_ADDRESS}\n")
    for suffix, mode in (("", 0o600), (".pub", 0o644)):
        write(root / f"etc/ssh/ssh_host_ed25519_key{suffix}", (ssh / f"host_ed25519{suffix}").read_text(), mode)
    home = root / "home" / spec["user"]
    write(home / ".ssh/authorized_keys", (ssh / "id_ed25519.pub").read_text(), 0o600)
    (home / ".ssh").chmod(0o700)
    owner = home.stat()
    for path in (home / ".ssh", home / ".ssh/authorized_keys"):
        os.chown(path, owner.st_uid, owner.st_gid)
    write(
        root / "etc/apt/apt.conf.d/80sandbox-proxy",
        f'Acquire::http::Proxy "{PROXY_URL}";\nAcquire::https::Proxy "{PROXY_URL}";\n',
    )
    if spec["pip_configuration"]:
        write(root / "etc/pip.conf", spec["pip_configuration"])
    local = root / "usr/local/share/ca-certificates"
    certificates = added_certificates(
        BUNDLE.read_text() if BUNDLE.is_file() else "", (root / BUNDLE.relative_to("/")).read_text()
    )
    for number, certificate in enumerate(certificates):
        write(local / f"computer-{number}.crt", certificate + "\n")
    if certificates:
        subprocess.run(["chroot", root, "update-ca-certificates"], check=True, capture_output=True)
    write(root / MARK, json.dumps({"sandbox": True, "name": name, "proxy": PROXY_URL}) + "\n")


def main(state_dir: Path) -> None:
    """Boots the sandbox of the state folder; does not return."""
    spec = json.loads((state_dir / "machine.json").read_text())
    root = state_dir / "root"
    root.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,discard", state_dir / "disk.img", root], check=True)
    if not (root / MARK).exists():
        provision(spec, root, state_dir / "ssh")
    cgroup.enter(Path(spec["group"]) / "machine")
    environment = nspawn_environment(dict(os.environ))
    command = nspawn_command(spec, root)
    os.execvpe(command[0], command, environment)  # noqa: S606


if __name__ == "__main__":
    main(Path(sys.argv[1]))
