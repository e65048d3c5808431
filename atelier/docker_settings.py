"""Docker's own settings on the host, into which a deploy merges keys: shell that writes them, and has the daemon take them. Pure."""

import shlex

from atelier.deployment import DAEMON_JSON
from atelier.tree import PART

BEFORE = f"{DAEMON_JSON}.before-atelier"
"""The settings as the first deploy found them, empty where there were none; no later merge touches it."""
LAST = f"{DAEMON_JSON}.last-atelier"
"""The settings before the last merge, empty where there were none, until the daemon has started with what was merged."""


def merge_script(deployed: bool, path: str = DAEMON_JSON) -> str:
    """Shell that installs merged settings, its standard input, under the mode and group of those that are there.

    deployed: earlier deploys merged into them already, so without a copy of before there were none.
    """
    place, part, before, last = _places(path)
    first = "false" if deployed else f"[ -e {place} ]"
    return f"""
mkdir -p "$(dirname {place})"
copy() {{ cp -aT {place} "$1{PART}" && {{ [ -L "$1{PART}" ] || sync "$1{PART}"; }} && mv -fT "$1{PART}" "$1"; }}
[ -e {before} ] || [ -L {before} ] || if {first}; then copy {before}; else : >{before}; fi || exit 1
rm -f {last}; if [ -e {place} ]; then copy {last}; else : >{last}; fi || exit 1
umask 077; cat >{part} && chmod 644 {part} || exit 1
[ ! -e {place} ] || {{ chgrp --reference={place} {part} && chmod --reference={place} {part} && chmod go-w {part}; }} || exit 1
sync {part} && mv -fT {part} {place}
"""


def taken_probe(path: str = DAEMON_JSON) -> str:
    """Shell that prints something where the daemon runs, at boot too, with the settings as they are, and needs no way back."""
    _, _, _, last = _places(path)
    return f"{_runs_with_settings(path)} && [ ! -e {last} ] && echo yes"


def _runs_with_settings(path: str) -> str:
    # It reads them at start, so one that was up before the file changed has yet to be restarted.
    return (
        "systemctl is-enabled -q docker && systemctl is-active -q docker "
        f'&& [ "$(stat -c %Y {shlex.quote(path)})" -lt "$(date -d "$(systemctl show docker -p ActiveEnterTimestamp --value)" +%s)" ]'
    )


KEEP = 10
"""Seconds within which a daemon that was told has to keep containers through its restart."""


def restart_script(path: str = DAEMON_JSON) -> str:
    """Shell that restarts the daemon, with the settings of before the last merge where it does not start with these."""
    place, _, _, last = _places(path)
    return f"""
as_before() {{ [ ! -e {last} ] || if [ -s {last} ]; then mv -fT {last} {place}; else rm -f {place} {last}; fi; }}
keeps() {{ [ "$(timeout 20 docker info --format '{{{{.LiveRestoreEnabled}}}}' 2>/dev/null)" = true ]; }}
if {_runs_with_settings(path)}; then rm -f {last}; exit 0; fi
systemctl enable -q docker
# Containers of anybody's outlast the restart once the daemon has read live-restore, which needs none.
if systemctl is-active -q docker && running=$(docker ps --format '{{{{.Names}}}}') && [ -n "$running" ]; then
  n=0; systemctl kill -s HUP --kill-who=main docker
  until keeps; do
    n=$((n + 1)); [ "$n" -le {KEEP} ] || {{
      as_before; systemctl kill -s HUP --kill-who=main docker
      echo "Docker must restart to read {path}, and does not take live-restore: that would end" $running >&2
      echo "stop them when they may stop (a swarm: docker swarm leave), then run this again; {path} is as it was" >&2
      exit 1
    }}
    sleep 1
  done
fi
sleep 1; if systemctl restart docker; then rm -f {last}; exit 0; fi
if [ ! -e {last} ]; then echo "Docker did not start: see journalctl -u docker" >&2; exit 1; fi
as_before; systemctl reset-failed docker; systemctl restart docker
echo "Docker did not start with our settings merged into {path}; the file is as it was: see journalctl -u docker" >&2
exit 1
"""


def _places(path: str) -> tuple[str, str, str, str]:
    names = (path, f"{path}{PART}", path + BEFORE.removeprefix(DAEMON_JSON), path + LAST.removeprefix(DAEMON_JSON))
    place, part, before, last = map(shlex.quote, names)
    return place, part, before, last
