"""Ways to spoil the machine below the services."""

from sabotage.sabotage import DAEMON, Sabotage, edited, given_back

GUEST_ADDRESS = '$(ip -4 -o addr show scope global | awk \'{sub("/.*", "", $4); print $4; exit}\')'
FURTHER_SETTINGS = "/etc/apt/apt.conf.d/99-sabotage"
FILLER = '"$DATA/sabotage-filler"'


def covered(path: str, edit: str) -> str:
    """A script that lays a changed copy over a file. edit: shell commands on `$FILE`, the copy; `$REAL` is the original."""
    return f"""
mkdir -p "$KEPT"; path=$(readlink -f {path}); FILE=$KEPT/cover; REAL=$KEPT/real
cp -a "$path" "$FILE"; cp -a "$path" "$REAL"
{edit}
mount --bind "$FILE" "$path"
"""


def uncovered(path: str) -> str:
    """The undo of `covered`."""
    return f'path=$(readlink -f {path}); while mountpoint -q "$path"; do umount "$path"; done; rm -f "$KEPT/cover" "$KEPT/real"\n'


def program(body: str) -> str:
    """An edit that makes a program of `$FILE`: shell in which `$REAL` is the original."""
    return f"""rm -f "$FILE"; {{ echo '#!/bin/sh'; echo "REAL=$REAL"; cat <<'PROGRAM'
{body}
PROGRAM
}} >"$FILE"; chmod 755 "$FILE" """


def listening(unit: str, address: str, port: int, properties: str = "") -> str:
    """A script that starts a web server of nobody's."""
    return (
        f"systemd-run -q --collect --unit={unit} {properties} python3 -m http.server {port} --bind {address}\n"
        f"eventually 10 \"ss -Hltn | grep -q ':{port} '\"; sleep 1\n"
    )


def with_setting(setting: str) -> str:
    """A script that adds a setting of apt, which counts more than ours."""
    return f"echo '{setting}' >{FURTHER_SETTINGS}\n"


WITHOUT_SETTING = f"rm -f {FURTHER_SETTINGS}\n"

SABOTAGES = (
    Sabotage(
        "host.unknown-system",
        "the system says that it is another one",
        covered(
            "/etc/os-release", """sed -i 's/^ID=.*/ID=fedora/; s/^PRETTY_NAME=.*/PRETTY_NAME="Fedora 42"/' "$FILE" """
        ),
        uncovered("/etc/os-release"),
        expects=("host.system",),
        names="Fedora 42 is not supported.* -> .*Debian 13",
    ),
    Sabotage(
        "host.old-kernel",
        "a kernel older than any supported system's runs",
        covered("/usr/bin/uname", program('[ "$1" != -r ] && exec "$REAL" "$@"; echo 4.19.0-27-amd64')),
        uncovered("/usr/bin/uname"),
        expects=("host.system",),
        names="kernel 4.19.0-27-amd64 is older than",
    ),
    Sabotage(
        "host.full-disk",
        "the guest's disk is filled up to the last 300 MB",
        f'fallocate -l $(($(df -B1 --output=avail "$DATA" | tail -n 1) - 300000000)) {FILLER}\n',
        f"rm -f {FILLER}\n",
        expects=("host.disk",),
        names=r"/ has 0\.\d GB free.* -> .*du -xh",
        also=("host.monitor",),
    ),
    Sabotage(
        "host.no-free-memory",
        "something takes all of the memory",
        covered("/proc/meminfo", """sed -i 's/^MemAvailable:.*/MemAvailable:     150000 kB/' "$FILE" """),
        uncovered("/proc/meminfo"),
        expects=("host.memory",),
        names=r"146 MB of \d+ GB of memory are free.* -> .*ps -eo",
        also=("host.monitor",),
    ),
    Sabotage(
        "host.too-small",
        "the machine has less memory than the models need",
        covered("/proc/meminfo", """sed -i 's/^MemTotal:.*/MemTotal:     2000000 kB/' "$FILE" """),
        uncovered("/proc/meminfo"),
        expects=("host.memory",),
        names=r"1\.9 GB of memory, \d+ GB are wanted",
        also=("host.monitor",),
    ),
    Sabotage(
        "host.clock-behind",
        "the clock's source is false: it tells the time of two hours ago",
        covered("/usr/bin/date", program('exec "$REAL" -d "@$(($("$REAL" +%s) - 7200))" "$@"')),
        uncovered("/usr/bin/date"),
        expects=("host.time",),
        names=r"clock is 7[12]\d\d s behind.* -> .*clock",
        also=("host.monitor",),
    ),
    Sabotage(
        "host.no-time-service",
        "the machine has a clock of its own, and nothing keeps it",
        covered("/usr/bin/systemd-detect-virt", program('[ "$1" != -c ] && exec "$REAL" "$@"; echo none; exit 1')),
        uncovered("/usr/bin/systemd-detect-virt"),
        expects=("host.time",),
        names="no time service runs.* -> .*systemd-timesyncd",
    ),
    Sabotage(
        "host.restart-overdue",
        "an update asked for a restart a month ago",
        "echo libc6 >/run/reboot-required.pkgs; touch -d '30 days ago' /run/reboot-required\n",
        "rm -f /run/reboot-required /run/reboot-required.pkgs\n",
        expects=("host.reboot",),
        names="libc6 asked for a restart 30 days ago.* -> .*restart the host",
        also=("host.monitor",),
    ),
    Sabotage(
        "host.upgrades-off",
        "a further setting of apt switches security updates off",
        with_setting('APT::Periodic::Unattended-Upgrade "0";'),
        WITHOUT_SETTING,
        expects=("host.upgrades",),
        names='Unattended-Upgrade is "0".* -> .*/etc/apt/apt.conf.d',
    ),
    Sabotage(
        "host.upgrades-restart",
        "a further setting of apt lets upgrades restart the host",
        with_setting('Unattended-Upgrade::Automatic-Reboot "true";'),
        WITHOUT_SETTING,
        expects=("host.upgrades",),
        names="may restart the host by itself",
    ),
    Sabotage(
        "host.upgrades-without-security",
        "the security archive is no origin of upgrades any more",
        edited("/etc/apt/apt.conf.d/50unattended-upgrades", """sed -i '/[Ss]ecurity/d' "$FILE" """),
        given_back("/etc/apt/apt.conf.d/50unattended-upgrades"),
        expects=("host.upgrades",),
        names="no security archive",
    ),
    Sabotage(
        "host.upgrades-masked",
        "the timer of upgrades is masked",
        "systemctl -q mask --now apt-daily-upgrade.timer\n",
        "systemctl -q unmask apt-daily-upgrade.timer; systemctl -q enable --now apt-daily-upgrade.timer\n",
        expects=("host.upgrades",),
        names="apt-daily-upgrade.timer is masked and (inactive|failed).* -> .*unmask",
    ),
    Sabotage(
        "host.half-installed",
        "a package was left half configured",
        edited(
            "/var/lib/dpkg/status",
            """sed -i '/^Package: less$/,/^Status:/ s/^Status:.*/Status: install ok half-configured/' "$FILE" """,
        ),
        given_back("/var/lib/dpkg/status"),
        expects=("host.upgrades",),
        names="less is half installed.* -> .*dpkg --configure",
    ),
    Sabotage(
        "host.docker-stopped",
        "Docker is stopped; the containers run on",
        "systemctl stop docker.socket docker.service\n",
        "systemctl start docker.socket docker.service\n",
        expects=("host.docker",),
        names="Docker does not answer.* -> .*systemctl restart docker",
        also=(
            "host.monitor",
            "host.listening",
            "host.closed",
            *(f"containers.{what}" for what in ("hardened", "ports", "networks", "egress")),
        ),
        groups=("containers",),
        slow=True,
    ),
    Sabotage(
        "host.docker-hangs",
        "Docker takes requests and answers none",
        "kill -STOP $(pidof dockerd)\n",
        "kill -CONT $(pidof dockerd)\n",
        expects=("host.docker",),
        names="Docker does not answer: time-out",
        also=("host.monitor",),
        slow=True,
    ),
    Sabotage(
        "host.no-live-restore",
        "a restart of Docker would end the services",
        edited(DAEMON, """sed -i 's/"live-restore": true/"live-restore": false/' "$FILE" """)
        + "systemctl reload docker; eventually 10 \"docker info -f '{{.LiveRestoreEnabled}}' | grep false\"\n",
        given_back(DAEMON) + "systemctl reload docker\n",
        expects=("host.docker",),
        names="live-restore is off: a restart of Docker ends the services",
    ),
    Sabotage(
        "host.docker-not-at-boot",
        "Docker is not started at boot any more",
        "systemctl -q disable docker.service\n",
        "systemctl -q enable docker.service\n",
        expects=("host.docker",),
        names="docker.service is disabled",
    ),
    Sabotage(
        "host.docker-socket-open",
        "everybody on the host may command Docker",
        "chmod 666 /run/docker.sock\n",
        "chmod 660 /run/docker.sock\n",
        expects=("host.docker",),
        names="socket has mode 666.*is root.* -> .*chmod 660",
    ),
    Sabotage(
        "host.second-door",
        "another program listens on a service's port, on the address of the network",
        listening("sabotage-door", GUEST_ADDRESS, 8188),
        "systemctl stop sabotage-door 2>/dev/null || :\n",
        expects=("host.listening", "host.closed"),
        names=r"python3 listens on \d+\.\d+\.\d+\.\d+:8188, not only on 127.0.0.1.* -> .*ss -ltnp",
    ),
    Sabotage(
        "host.service-user-listens",
        "a program of the service user listens on the host itself",
        listening("sabotage-stray", "127.0.0.1", 9999, '--uid="$UID_"'),
        "systemctl stop sabotage-stray 2>/dev/null || :\n",
        expects=("host.listening",),
        names="python3 of the service user listens on 127.0.0.1:9999",
    ),
    Sabotage(
        "host.unguarded-loopback",
        "packets for 127.0.0.0/8 from outside are not dropped any more",
        "iptables -w -t raw -D PREROUTING ! -i lo -d 127.0.0.0/8 -j DROP\n",
        "systemctl restart atelier-loopback-guard\n",
        expects=("host.closed",),
        names="rule missing.* -> .*guard for loopback addresses is gone",
        also=("host.monitor",),
    ),
)
