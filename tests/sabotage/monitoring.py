"""Ways to keep the host from looking at itself."""

from sabotage.sabotage import Sabotage, edited, given_back

PROGRAM = '"$CONFIG/monitor/host_monitor.py"'
STATE = '"$DATA/state/monitor/state.json"'
LOOK = "systemctl start atelier-monitor.service\n"
"""One look now, so that the timer's next is a whole interval away, however many there were before."""
METRICS = 'for FILE in /var/lib/prometheus/node-exporter/atelier.prom "$DATA/state/monitor/atelier.prom"; do '

SABOTAGES = (
    Sabotage(
        "host.monitor-timer-stopped",
        "the timer by which the host looks at itself is stopped",
        breaks="systemctl stop atelier-monitor.timer\n",
        undoes=f"systemctl enable -q --now atelier-monitor.timer\n{LOOK}",
        expects=("host.monitor",),
        names=r"atelier-monitor\.timer is enabled and inactive.* -> .*systemctl enable --now",
    ),
    Sabotage(
        "host.monitor-timer-disabled",
        "the timer would not come back after a restart of the host",
        breaks="systemctl disable -q atelier-monitor.timer\n",
        undoes="systemctl enable -q atelier-monitor.timer\n",
        expects=("host.monitor",),
        names=r"atelier-monitor\.timer is disabled",
    ),
    Sabotage(
        "host.monitor-program-fails",
        "the program that looks at the host ends with an error",
        breaks=edited(PROGRAM, """sed -i '1i raise SystemExit("broken on purpose")' "$FILE" """)
        + "if systemctl start atelier-monitor.service 2>/dev/null; then exit 1; fi\n",
        undoes=given_back(PROGRAM) + LOOK,
        expects=("host.monitor",),
        names=r"the last look failed: exit-code.* -> .*journalctl -u atelier-monitor",
    ),
    Sabotage(
        "host.monitor-stale",
        "the host looked at itself last an hour ago",
        breaks=LOOK + f"FILE={STATE}\n" + """sed -i 's/^ "time": .*/ "time": '$(($(date +%s) - 3600))',/' "$FILE"\n""",
        undoes=LOOK,
        expects=("host.monitor",),
        names=r"the last look was .*, 36\d\d s ago, every 60 s expected",
    ),
    Sabotage(
        "host.monitor-state-damaged",
        "the state that the monitor keeps is cut",
        breaks=LOOK + f"truncate -s 100 {STATE}\n",
        undoes=LOOK + f'rm -f {STATE[:-1]}.damaged"\n',
        expects=("host.monitor",),
        names=r"state\.json is missing or damaged",
    ),
    Sabotage(
        "host.monitor-no-metrics",
        "the metrics that node_exporter reads are gone",
        breaks=LOOK + METRICS + 'rm -f "$FILE"; done\n',
        undoes=LOOK,
        expects=("host.monitor",),
        names=r"atelier\.prom is missing.* -> .*node_exporter cannot read",
    ),
    Sabotage(
        "host.monitor-metrics-closed",
        "nobody but root can read the metrics",
        breaks=LOOK + METRICS + 'if [ -e "$FILE" ]; then chmod 0600 "$FILE"; fi; done\n',
        undoes=LOOK,
        expects=("host.monitor",),
        names=r"atelier\.prom has mode 600",
    ),
)
