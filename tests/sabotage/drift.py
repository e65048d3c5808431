"""Ways to make a host another than the settings say."""

from atelier.drift import RULES
from sabotage.sabotage import DAEMON, Sabotage, changed, edited, given_back

COMPOSE = '"$CONFIG/services/$GATEWAY/compose.yaml"'
ENV = '"$CONFIG/services/$FORGE/.env"'
GUARD_JSON = '"$CONFIG/services/$GATEWAY/config/guard.json"'
AUTH = '"$CONFIG/secrets/$FORGE/auth.json"'
PROGRAM = '"$CONFIG/lib/weights"'
FORMER = "/etc/apt/apt.conf.d/89atelier"
APT = "/etc/apt/apt.conf.d/90atelier"
MANIFEST, RECORD = '"$DATA/state/manifest.json"', '"$DATA/state/deployed.json"'
GUARD, WEIGHTS = "atelier-loopback-guard", "atelier-weights"
GUARD_FILE = f"/etc/systemd/system/{GUARD}.service"
(RAW, LOOPBACK), (MANGLE, DIRECT) = RULES
FILES, UNITS, PACKAGES, IMAGES, CONTAINERS = (
    f"drift.{what}" for what in ("files", "units", "packages", "images", "containers")
)

PACK = r"""
pack() {
  tree=$(mktemp -d)
  mkdir "$tree/DEBIAN"
  dpkg-query -L "$1" | while read -r path; do
    [ -d "$path" ] && [ ! -L "$path" ] || [ ! -e "$path" ] || cp -a --parents "$path" "$tree"
  done
  dpkg-query -s "$1" | sed "/^Status:/d; /^Conffiles:/,/^[^ ]/{/^Conffiles:/d; /^ /d}; s/^Version:.*/Version: $2/" >"$tree/DEBIAN/control"
  mkdir -p -m 0700 "$KEPT"
  dpkg-deb --root-owner-group -b "$tree" "$KEPT/$1-$2.deb" >/dev/null
  rm -rf "$tree"
}
there() { dpkg-query -W -f '${Version}' "$1"; }
"""
"""`pack NAME VERSION`: an installed package as a file, under another version. `there NAME`: the version that is installed."""


def with_json(file: str, edit: str) -> str:
    """A script that changes a JSON file of the host, `d` in Python."""
    code = f"import json, sys; p = sys.argv[1]; d = json.load(open(p)); {edit}; s = json.dumps(d, indent=1); open(p, 'w').write(s)"
    return edited(file, f'python3 -I -c "{code}" "$FILE"')


def dropped_in(folder: str) -> str:
    """A script that adds to the loopback guard in a folder of systemd's."""
    return f"""
mkdir -p {folder}/{GUARD}.service.d
printf '[Service]\\nExecStartPost=/bin/true\\n' >{folder}/{GUARD}.service.d/more.conf
systemctl daemon-reload
"""


def taken_out(folder: str) -> str:
    """The undo of `dropped_in`."""
    return f"rm -rf {folder}/{GUARD}.service.d; systemctl daemon-reload"


SABOTAGES: tuple[Sabotage, ...] = (
    Sabotage(
        id="drift.compose-edited",
        does="a line of the gateway's compose file says otherwise",
        breaks=edited(COMPOSE, """sed -i 's/restart: unless-stopped/restart: "no"/' "$FILE" """),
        undoes=given_back(COMPOSE),
        expects=(FILES,),
        names=r'compose\.yaml line \d+ is `\s+restart: "no"` and must be `\s+restart: unless-stopped`.* -> .*somebody.*make deploy',
    ),
    Sabotage(
        id="drift.line-added",
        does="a line more stands in Forge's .env",
        breaks=edited(ENV, """echo 'SHM_SIZE="64m"' >>"$FILE" """),
        undoes=given_back(ENV),
        expects=(FILES,),
        names=r'forge-turbo/\.env line \d+ is `SHM_SIZE="64m"`',
    ),
    Sabotage(
        id="drift.secret-pasted",
        does="somebody wrote a token into a file that all may read",
        breaks=edited(ENV, """echo 'TOKEN=$2b$12$abcdefghijklmnopqrstuuBCDEFGHIJKLMNOPQRSTUVWXYZ0123456' >>"$FILE" """),
        undoes=given_back(ENV),
        expects=(FILES,),
        names=r"forge-turbo/\.env line \d+ is `TOKEN=\[hidden\]`",
    ),
    Sabotage(
        id="drift.secret-edited",
        does="a secret file has a byte more",
        breaks=edited(AUTH, """printf ' ' >>"$FILE" """),
        undoes=given_back(AUTH),
        expects=(FILES,),
        names=r"forge-turbo/auth\.json differs ->",
    ),
    Sabotage(
        id="drift.file-missing",
        does="apt's settings are gone",
        breaks=f"keep {APT}; rm {APT}",
        undoes=given_back(APT),
        expects=(FILES,),
        names=r"90atelier is missing",
    ),
    Sabotage(
        id="drift.restarts-by-itself",
        does="unattended upgrades may restart the host",
        breaks=edited(APT, """sed -i 's/Automatic-Reboot "false"/Automatic-Reboot "true"/' "$FILE" """),
        undoes=given_back(APT),
        expects=(FILES,),
        names=r'90atelier line \d+ is `Unattended-Upgrade::Automatic-Reboot "true";`',
    ),
    Sabotage(
        id="drift.mode-loosened",
        does="everybody may write a compose file",
        breaks=f"chmod 0666 {COMPOSE}",
        undoes=f"chmod 0644 {COMPOSE}",
        expects=(FILES,),
        names=r"compose\.yaml has mode 666 and must have 644",
    ),
    Sabotage(
        id="drift.owner-changed",
        does="the job of the weights belongs to the service user",
        breaks='chown "$UID_" "$CONFIG/weights.json"',
        undoes='chown root "$CONFIG/weights.json"',
        expects=(FILES,),
        names=r"weights\.json belongs to atelier:root and must belong to root:root",
    ),
    Sabotage(
        id="drift.file-linked",
        does="guard.json is a link to a copy elsewhere",
        breaks=f"keep {GUARD_JSON}; cp {GUARD_JSON} /var/tmp/guard.json; ln -sf /var/tmp/guard.json {GUARD_JSON}",
        undoes=given_back(GUARD_JSON) + "rm -f /var/tmp/guard.json",
        expects=(FILES,),
        names=r"guard\.json is a symbolic link and must be a file",
    ),
    Sabotage(
        id="drift.folder-linked",
        does="the program that fetches weights lies elsewhere, behind a link",
        breaks=f"mv {PROGRAM} /var/tmp/weights-program; ln -s /var/tmp/weights-program {PROGRAM}",
        undoes=f"[ ! -d /var/tmp/weights-program ] || {{ rm -f {PROGRAM}; mv /var/tmp/weights-program {PROGRAM}; }}",
        expects=(FILES,),
        names=r"lib/weights is a symbolic link and must be a directory",
    ),
    Sabotage(
        id="drift.program-edited",
        does="the program that fetches weights was changed",
        breaks=edited(f"{PROGRAM}/fetch.py", """sed -i '1s/^/import os  # me\\n/' "$FILE" """),
        undoes=given_back(f"{PROGRAM}/fetch.py"),
        expects=(FILES,),
        names=r"fetch\.py line 1 is `import os +# me`",
    ),
    Sabotage(
        id="drift.notes-left",
        does="somebody keeps notes among our files",
        breaks='mkdir -p "$CONFIG/notes" && date >"$CONFIG/notes/today"',
        undoes='rm -rf "$CONFIG/notes"',
        expects=(FILES,),
        names=r"/opt/atelier/notes is not ours.* -> .*remove it",
    ),
    Sabotage(
        id="drift.secrets-copied",
        does="a copy of the secrets lies beside them",
        breaks='cp -a "$CONFIG/secrets" "$CONFIG/secrets.old"',
        undoes='rm -rf "$CONFIG/secrets.old"',
        expects=(FILES,),
        names=r"/opt/atelier/secrets\.old is not ours",
    ),
    Sabotage(
        id="drift.secret-left",
        does="a former secret lies beside the one that is in force",
        breaks=f"cp -a {AUTH} {AUTH}.old",
        undoes=f"rm -f {AUTH}.old",
        expects=(FILES,),
        names=r"forge-turbo/auth\.json\.old is not ours -> run `make deploy`, which removes it",
    ),
    Sabotage(
        id="drift.setting-left",
        does="a setting of apt's that an earlier deploy made is still there",
        breaks=f"echo '// former' >{FORMER}\n" + with_json(MANIFEST, f"d['created']['files'].append('{FORMER}')"),
        undoes=f"rm -f {FORMER}\n" + given_back(MANIFEST),
        expects=(FILES,),
        names=r"89atelier is of an earlier deploy, and nothing asks for it now -> remove it",
    ),
    Sabotage(
        id="drift.manifest-shortened",
        does="the list of what is ours lacks the containers",
        breaks=with_json(MANIFEST, "d['created']['containers'] = []"),
        undoes=given_back(MANIFEST),
        expects=(FILES,),
        names=r"manifest\.json does not name 3 of our containers",
    ),
    Sabotage(
        id="drift.instance-forgotten",
        does="the host says that it belongs to another operator",
        breaks=edited('"$DATA/state/instance"', """echo somebody-else >"$FILE" """),
        undoes=given_back('"$DATA/state/instance"'),
        expects=(FILES,),
        names=r"state/instance line 1 is `somebody-else`.* -> .*newer credentials",
    ),
    Sabotage(
        id="drift.live-restore-off",
        does="a restart of Docker would end the containers",
        breaks=with_json(DAEMON, "d['live-restore'] = False"),
        undoes=given_back(DAEMON),
        expects=(FILES, UNITS),
        names=r"daemon\.json: live-restore is false and must be true",
        slow=True,
    ),
    Sabotage(
        id="drift.daemon-json-broken",
        does="Docker's settings are no JSON",
        breaks=edited(DAEMON, """truncate -s 20 "$FILE" """),
        undoes=given_back(DAEMON),
        expects=(FILES, UNITS),
        names=r"daemon\.json is not valid JSON.* -> .*mend",
        slow=True,
    ),
    Sabotage(
        id="drift.settings-changed",
        does="the settings are not those that were deployed",
        breaks=with_json(RECORD, "d['rendering'] = dict.fromkeys(d['rendering'], '0123456789abcdef')")
        + edited(ENV, """sed -i 's/^LOG_MAX_FILE=.*/LOG_MAX_FILE="9"/' "$FILE" """),
        undoes=given_back(ENV) + given_back(RECORD),
        expects=(FILES,),
        names=r'LOG_MAX_FILE="9"` and must be `LOG_MAX_FILE="3"`.* -> .*settings.*changed since the last deploy: run `make deploy`',
    ),
    Sabotage(
        id="drift.user-may-log-in",
        does="the service user has a shell",
        breaks='usermod --shell /bin/bash "$(id -nu "$UID_")"',
        undoes='usermod --shell /usr/sbin/nologin "$(id -nu "$UID_")"',
        expects=(FILES,),
        names=r"user atelier may log in: its shell is /bin/bash.* -> .*usermod --shell",
    ),
    Sabotage(
        id="drift.unit-edited",
        does="the loopback guard's unit drops nothing, and systemd has not read it yet",
        breaks=edited(GUARD_FILE, """sed -i 's/-j DROP/-j ACCEPT/' "$FILE" """),
        undoes=given_back(GUARD_FILE) + "systemctl daemon-reload",
        expects=(UNITS, FILES),
        names=rf"systemd has not read {GUARD}\.service since it changed.* -> .*daemon-reload",
    ),
    Sabotage(
        id="drift.guard-disabled",
        does="the loopback guard does not start at boot",
        breaks=f"systemctl disable -q {GUARD}",
        undoes=f"systemctl enable -q {GUARD}",
        expects=(UNITS,),
        names=rf"{GUARD}\.service is disabled: it does not start at boot",
    ),
    Sabotage(
        id="drift.guard-stopped",
        does="the loopback guard is stopped",
        breaks=f"systemctl stop {GUARD}",
        undoes=f"systemctl start {GUARD}",
        expects=(UNITS,),
        names=rf"{GUARD}\.service does not run: it is inactive",
    ),
    Sabotage(
        id="drift.rule-deleted",
        does="the rule that keeps the gateway's own address closed is gone",
        breaks=f"iptables -w -t {MANGLE} -D {DIRECT}",
        undoes=f"iptables -w -t {MANGLE} -C {DIRECT} 2>/dev/null || iptables -w -t {MANGLE} -I {DIRECT}",
        expects=(UNITS,),
        names=rf"rule is not in force: {MANGLE} FORWARD.* -> .*restart {GUARD}",
    ),
    Sabotage(
        id="drift.guard-added-to",
        does="a drop-in adds to the loopback guard",
        breaks=dropped_in("/etc/systemd/system"),
        undoes=taken_out("/etc/systemd/system"),
        expects=(UNITS,),
        names=rf"{GUARD}\.service is changed by /etc/systemd/system/{GUARD}\.service\.d/more\.conf.* -> .*rm /etc",
    ),
    Sabotage(
        id="drift.guard-added-to-until-boot",
        does="a drop-in in /run adds to the loopback guard",
        breaks=dropped_in("/run/systemd/system"),
        undoes=taken_out("/run/systemd/system"),
        expects=(UNITS,),
        names=rf"{GUARD}\.service is changed by /run/systemd/system/{GUARD}\.service\.d/more\.conf",
    ),
    Sabotage(
        id="drift.unit-overlaid",
        does="another unit stands before the one that fetches weights",
        breaks=f"""
mkdir -p /run/systemd/system.control
printf '[Service]\\nExecStart=/bin/true\\n' >/run/systemd/system.control/{WEIGHTS}.service
systemctl daemon-reload
""",
        undoes=f"rm -f /run/systemd/system.control/{WEIGHTS}.service; systemctl daemon-reload",
        expects=(UNITS,),
        names=rf"{WEIGHTS}\.service comes from /run/systemd/system\.control/{WEIGHTS}\.service",
    ),
    Sabotage(
        id="drift.docker-disabled",
        does="Docker does not start at boot",
        breaks="systemctl disable -q docker.service 2>/dev/null",
        undoes="systemctl enable -q docker.service 2>/dev/null",
        expects=(UNITS,),
        names=r"docker\.service is disabled: it does not start at boot",
    ),
    Sabotage(
        id="drift.timer-stopped",
        does="the host does not look at itself any more",
        breaks="systemctl stop atelier-monitor.timer",
        undoes="systemctl start atelier-monitor.timer",
        expects=(UNITS,),
        names=r"atelier-monitor\.timer does not run",
    ),
    Sabotage(
        id="drift.package-older",
        does="a package was put back to an older version",
        breaks=PACK
        + """
is=$(there aria2); pack aria2 "$is"; pack aria2 0.1-1
echo "$is" >"$KEPT/aria2"
dpkg -i --force-downgrade "$KEPT/aria2-0.1-1.deb" >/dev/null 2>&1
""",
        undoes='[ ! -e "$KEPT/aria2" ] || { dpkg -i "$KEPT/aria2-$(cat "$KEPT/aria2").deb" >/dev/null 2>&1; rm -f "$KEPT"/aria2*; }',
        expects=(PACKAGES,),
        names=r"package aria2 is 0\.1-1, older than the \S+ that was deployed.* -> .*--only-upgrade aria2",
        slow=True,
    ),
    Sabotage(
        id="drift.package-removed",
        does="a package that a deploy needs is gone",
        breaks=PACK
        + """
is=$(there mmdebstrap); pack mmdebstrap "$is"
echo "$is" >"$KEPT/mmdebstrap"
dpkg -r --force-depends mmdebstrap >/dev/null 2>&1
""",
        undoes='[ ! -e "$KEPT/mmdebstrap" ] || '
        '{ dpkg -i "$KEPT/mmdebstrap-$(cat "$KEPT/mmdebstrap").deb" >/dev/null 2>&1; rm -f "$KEPT"/mmdebstrap*; }',
        expects=(PACKAGES,),
        names=r"package mmdebstrap is not installed.* -> .*make deploy",
    ),
    Sabotage(
        id="drift.toolkit-released",
        does="apt may replace the container toolkit",
        breaks="apt-mark -q unhold nvidia-container-toolkit",
        undoes="apt-mark -q hold nvidia-container-toolkit",
        expects=(PACKAGES,),
        names=r"apt does not hold nvidia-container-toolkit: an upgrade may replace it",
        needs="gpu",
    ),
    Sabotage(
        id="drift.toolkit-replaced",
        does="the container toolkit is at another version than the one that it is pinned at",
        breaks=PACK
        + """
name=nvidia-container-toolkit
is=$(there $name); pack $name "$is"; pack $name 1.0.0-1
echo "$is" >"$KEPT/$name"
dpkg -i --force-downgrade --force-depends --force-hold "$KEPT/$name-1.0.0-1.deb" >/dev/null 2>&1
""",
        undoes="""
name=nvidia-container-toolkit
[ ! -e "$KEPT/$name" ] || {
  dpkg -i --force-downgrade --force-depends --force-hold "$KEPT/$name-$(cat "$KEPT/$name").deb" >/dev/null 2>&1
  apt-mark -q hold $name; rm -f "$KEPT/$name"*
}
""",
        expects=(PACKAGES,),
        names=r"package nvidia-container-toolkit is 1\.0\.0-1 and must be",
        needs="gpu",
    ),
    Sabotage(
        id="drift.tag-moved",
        does="the tag of ComfyUI's image names the gateway's",
        breaks='docker tag "$(docker inspect -f {{.Image}} "$GATEWAY")" "$(docker inspect -f {{.Config.Image}} "$COMFYUI")"',
        undoes='docker tag "$(docker inspect -f {{.Image}} "$COMFYUI")" "$(docker inspect -f {{.Config.Image}} "$COMFYUI")"',
        expects=(IMAGES,),
        names=r"the tag atelier/comfyui:\w+ names another image than was deployed.* -> .*docker tag \w+ atelier/comfyui:",
    ),
    Sabotage(
        id="drift.tag-gone",
        does="Forge's image has lost its tag",
        breaks='docker image rm -f "$(docker inspect -f {{.Config.Image}} "$FORGE")" >/dev/null',
        undoes='docker tag "$(docker inspect -f {{.Image}} "$FORGE")" "$(docker inspect -f {{.Config.Image}} "$FORGE")"',
        expects=(IMAGES,),
        names=r"image atelier/forge:\w+ is gone from the host",
    ),
    Sabotage(
        id="drift.sources-moved",
        does="the sources of Forge are others than those that were deployed",
        breaks=with_json(RECORD, "d['images']['forge']['tag'] = 'atelier/forge:000000000000'"),
        undoes=given_back(RECORD),
        expects=(IMAGES,),
        names=r"image forge would be atelier/forge:\w+ now, deployed is atelier/forge:0+.* -> .*make deploy",
    ),
    Sabotage(
        id="drift.container-labelled",
        does="the gateway's container was made from another configuration",
        breaks='overridden "$GATEWAY" <<X\nservices: {"$GATEWAY": {labels: {atelier.config: other}}}\nX\nsettle\n',
        undoes='recreate "$GATEWAY"; settle',
        expects=(IMAGES,),
        names=r"gateway runs with configuration other",
        slow=True,
    ),
    Sabotage(
        id="drift.stays-down",
        does="Forge's container does not come back by itself",
        breaks='docker update --restart=no "$FORGE" >/dev/null',
        undoes='docker update --restart=unless-stopped "$FORGE" >/dev/null',
        expects=(CONTAINERS,),
        names=r"forge-turbo: its restart policy is no and must be unless-stopped.* -> .*--force-recreate",
    ),
    Sabotage(
        id="drift.network-joined",
        does="Forge's container hangs on Docker's own bridge as well",
        breaks='join bridge "$FORGE"',
        undoes='leave bridge "$FORGE"',
        expects=(CONTAINERS,),
        names=r"forge-turbo: its network bridge is not declared",
    ),
    Sabotage(
        id="drift.file-inside",
        does="a file of ComfyUI's was changed in its container's own layer",
        breaks=changed('$(root_of "$COMFYUI")/opt/comfyui/server.py', """echo '# me' >>"$FILE" """),
        undoes='recreate "$COMFYUI"; settle',
        expects=(CONTAINERS,),
        names=r"comfyui-qwen: /opt/comfyui/server\.py was added or changed inside it",
        slow=True,
    ),
    Sabotage(
        id="drift.mount-and-variable",
        does="Forge's container sees the host's /etc and has a token in its environment",
        breaks='overridden "$FORGE" <<X\n'
        'services: {"$FORGE": {volumes: ["/etc:/host:ro"], environment: {TOKEN: hunter2}}}\nX\nsettle\n',
        undoes='recreate "$FORGE"; settle',
        expects=(CONTAINERS,),
        names=r"forge-turbo: its mount /etc at /host \(read-only\) is not declared; "
        r"forge-turbo: its variable TOKEN is not declared",
        slow=True,
    ),
)
