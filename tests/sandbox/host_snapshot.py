"""Everything by which a host could be told from what it was: run in a guest as `python3 -`, prints JSON.

Files by path (type, mode, owner, and of settings and data the bytes), packages, units, users, rules, mounts, kernel.
"""

import hashlib
import json
import os
import re
import stat
import subprocess
from pathlib import Path

ROOTS = ("/etc", "/opt", "/srv", "/usr", "/var", "/root", "/home", "/boot", "/mnt", "/media")
BY_CONTENT = ("/etc", "/opt", "/srv", "/root", "/home")
VOLATILE = re.compile(
    # Logs and caches, what packages left in them included.
    r"/var/(log|cache|tmp|backups)/|/var/lib/apt/lists/|/etc/ld\.so\.cache|/home/[^/]+/\.cache/"
    # dpkg's, apt's and debconf's own journals, and copies that useradd and userdel keep.
    r"|/var/lib/dpkg/|/var/lib/apt/(extended_states|periodic/)|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$"
    # Copies that ucf keeps of its own register.
    r"|/var/lib/ucf/(hashfile|registry)\.[0-9]+$"
    # systemd's: when timers ran last, private directories.
    r"|/var/lib/systemd/(timers|random-seed|timesync|catalog|linger|ephemeral-trees)"
)


def files() -> dict[str, str]:
    found = {}
    for root in ROOTS:
        for folder, folders, names in os.walk(root):
            for name in sorted(folders + names):
                path = f"{folder}/{name}"
                if not VOLATILE.match(path) and not VOLATILE.match(f"{path}/"):
                    found[path] = told(path)
            folders[:] = [name for name in folders if not VOLATILE.match(f"{folder}/{name}/")]
    return found


def told(path: str) -> str:
    status = os.lstat(path)
    words = [stat.filemode(status.st_mode), f"{status.st_uid}:{status.st_gid}"]
    if stat.S_ISLNK(status.st_mode):
        words.append(str(Path(path).readlink()))
    elif stat.S_ISREG(status.st_mode) and path.startswith(BY_CONTENT):
        words.append(hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16])
    return " ".join(words)


def lines(command: str) -> list[str]:
    text = subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout
    return sorted(line for line in text.splitlines() if line and not line.startswith("#"))


print(
    json.dumps(
        {
            "files": files(),
            "packages": lines("dpkg-query -W -f '${Package} ${Version} ${Status}\\n'"),
            "manual": lines("apt-mark showmanual"),
            "holds": lines("apt-mark showhold"),
            "units": lines("systemctl list-unit-files --no-legend --no-pager | awk '{print $1, $2}'"),
            # What runs, listens or waits: what ran once may have done so at the first boot alone. Without what comes and goes
            # by itself: systemd's own, sessions, what a timer started.
            "running": lines(
                "systemctl list-units --type=service,socket,path,timer --plain --no-legend --no-pager "
                "| awk '$4 ~ /^(running|listening|waiting)$/ {print $1}' "
                "| grep -vE '^(systemd-|user|session|run-|ssh(d)?@|getty|console-getty|dbus|apt-|dpkg-|e2scrub)'"
            ),
            "failed": lines("systemctl list-units --failed --plain --no-legend --no-pager"),
            "users": lines("getent passwd; getent group; getent shadow | cut -d: -f1,2"),
            # Without tables that hold nothing: they are there once somebody has looked into them.
            "rules": lines(
                "{ iptables-save; ip6tables-save; } | sed 's/\\[[0-9:]*\\]//' | grep -vE '^(COMMIT|\\*.*|:[A-Z]+ ACCEPT *)$'"
            ),
            "mounts": lines("awk '{print $2, $3}' /proc/self/mounts | grep -v ^/run/user"),
            "links": lines("ip -o link | awk -F': ' '{print $2}' | cut -d@ -f1"),
            "kernel": lines("grep -H . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"),
            "run": lines("ls -d /run/atelier* /run/docker* /run/containerd* 2>/dev/null"),
        }
    )
)
