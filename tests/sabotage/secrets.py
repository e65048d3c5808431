"""Ways for secrets to be lost, changed, or seen by others."""

import base64

from atelier import credentials
from sabotage.sabotage import Guest, Sabotage, edited, given_back, restored

PASSWORD = '"$CONFIG/secrets/$COMFYUI/PASSWORD"'
ACCOUNT = '"$CONFIG/secrets/$FORGE/auth.json"'
COOKIE_KEY = '"$CONFIG/secrets/$COMFYUI/.secret-key.txt"'
HASHES = '"$CONFIG/secrets/$GATEWAY/credentials.json"'
TOKEN = "token=$(head -n 1 " + PASSWORD + ")\n"
FORGET_THE_JOURNAL = "journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet\n"
EXPANDED = """hash=$(head -n 1 "$FILE"); user=$(tail -n 1 "$FILE"); eval "cut=\\"$hash\\""; printf '%s\\n%s' "$cut" "$user" >"$FILE" """
"""What a shell makes of a bcrypt hash between double quotes."""


def in_a_process(begun: str) -> str:
    """A script that leaves a process behind and notes its number."""
    return TOKEN + f"mkdir -p $KEPT\n{begun} >/dev/null 2>&1 </dev/null &\necho $! >$KEPT/process\nsleep 0.5\n"


END_THE_PROCESS = (
    'if [ -e "$KEPT/process" ]; then kill "$(cat "$KEPT/process")" 2>/dev/null || true; rm "$KEPT/process"; fi\n'
)


def log_a_password_in_base64(guest: Guest) -> None:
    """As a proxy does that logs headers."""
    known = credentials.load(guest.secrets_dir)
    assert known
    pair = base64.b64encode(f"{known.forge.user}:{known.forge.password}".encode())
    guest.root("cat >/var/log/proxy.log", stdin=b"GET /sdapi/v1/samplers Authorization: Basic " + pair + b"\n")


SABOTAGES: tuple[Sabotage, ...] = (
    Sabotage(
        id="secrets.mode",
        does="everybody on the host may read ComfyUI's token",
        breaks=f"chmod 0444 {PASSWORD}",
        undoes=f"chmod 0400 {PASSWORD}",
        expects=("secrets.files",),
        names="PASSWORD.*444.* -> .*make deploy",
    ),
    Sabotage(
        id="secrets.owner",
        does="Forge's credentials belong to root, so that Forge cannot read them",
        breaks=f"chown 0:0 {ACCOUNT}",
        undoes=f'chown "$UID_:$UID_" {ACCOUNT}',
        expects=("secrets.files", "secrets.arrived"),
        names=r"auth\.json.*root",
    ),
    Sabotage(
        id="secrets.directory",
        does="the folder of the gateway's secrets is open to all",
        breaks='chmod 0755 "$CONFIG/secrets/$GATEWAY"',
        undoes='chmod 0500 "$CONFIG/secrets/$GATEWAY"',
        expects=("secrets.files",),
        names="secrets/gateway.*755",
    ),
    Sabotage(
        id="secrets.copy-beside",
        does="an open copy of the hashes lies beside them",
        breaks=f'install -m 0644 {HASHES} "$CONFIG/secrets/$GATEWAY/credentials.json.bak"',
        undoes='rm -f "$CONFIG/secrets/$GATEWAY/credentials.json.bak"',
        expects=("secrets.files",),
        names=r"credentials\.json\.bak",
    ),
    Sabotage(
        id="secrets.gone",
        does="ComfyUI's cookie key is removed",
        breaks=f"keep {COOKIE_KEY}; rm {COOKIE_KEY}",
        undoes=given_back(COOKIE_KEY),
        expects=("secrets.files", "secrets.arrived"),
        names=r"\.secret-key\.txt is missing",
    ),
    Sabotage(
        id="secrets.emptied",
        does="Forge's credentials are emptied; Forge goes on with what it read",
        breaks=edited(ACCOUNT, ': >"$FILE"'),
        undoes=given_back(ACCOUNT),
        expects=("secrets.arrived",),
        names=r"auth\.json differs",
    ),
    Sabotage(
        id="secrets.dollar-expansion",
        does="the hash in PASSWORD goes through `$` expansion; ComfyUI goes on with what it read",
        breaks=edited(PASSWORD, EXPANDED),
        undoes=given_back(PASSWORD),
        expects=("secrets.arrived",),
        names="PASSWORD differs.* -> .*make deploy",
    ),
    Sabotage(
        id="secrets.in-tmp",
        does="a copy of the hashes lies in /tmp",
        breaks=f"install -m 0600 {HASHES} /tmp/credentials.json",
        undoes="rm -f /tmp/credentials.json",
        expects=("secrets.leaks",),
        names="/tmp/credentials.json.* -> .*make rotate",
    ),
    Sabotage(
        id="secrets.in-journal",
        does="the token is in the journal",
        breaks=TOKEN + 'printf "using %s" "$token" | systemd-cat -t sabotage; journalctl --sync; sleep 1',
        undoes=FORGET_THE_JOURNAL,
        expects=("secrets.leaks",),
        names="journal(?! cannot be read)",
        slow=True,
    ),
    Sabotage(
        id="secrets.in-rotated-log",
        does="the token is in a large log of last week",
        breaks=TOKEN
        + 'head -c 9000000 /dev/zero >/var/log/sabotage.log.1; printf "using %s" "$token" >>/var/log/sabotage.log.1\n'
        + "touch -d '7 days ago' /var/log/sabotage.log.1",
        undoes="rm -f /var/log/sabotage.log.1",
        expects=("secrets.leaks",),
        names=r"/var/log/sabotage\.log\.1",
    ),
    Sabotage(
        id="secrets.in-etc",
        does="the token is in a file that every login shell reads",
        breaks=TOKEN + 'printf "# %s\\n" "$token" >/etc/profile.d/sabotage.sh; chmod 0644 /etc/profile.d/sabotage.sh',
        undoes="rm -f /etc/profile.d/sabotage.sh",
        expects=("secrets.leaks",),
        names=r"/etc/profile\.d/sabotage\.sh.*make rotate",
    ),
    Sabotage(
        id="secrets.in-argv",
        does="the token is in the arguments of a process",
        breaks=in_a_process("sh -c 'sleep 600; :' \"$token\""),
        undoes=END_THE_PROCESS,
        expects=("secrets.leaks",),
        names=r"/proc/\d+/cmdline",
    ),
    Sabotage(
        id="secrets.in-environ",
        does="the token is in the environment of a process",
        breaks=in_a_process('env COMFYUI_TOKEN="$token" sleep 600'),
        undoes=END_THE_PROCESS,
        expects=("secrets.leaks",),
        names=r"/proc/\d+/environ",
    ),
    Sabotage(
        id="secrets.in-container-environment",
        does="Forge's container is given its hash in its environment",
        breaks="""hash=$(grep -o '\\$2b[^"]*' "$CONFIG/secrets/$FORGE/auth.json" | sed 's/\\$/$$/g')
overridden "$FORGE" <<X
services: {$FORGE: {environment: {FORGE_HASH: '$hash'}}}
X
settle""",
        undoes=restored('"$FORGE"'),
        expects=("secrets.leaks",),
        names="docker inspect(?! cannot be read)",
        slow=True,
    ),
    Sabotage(
        id="secrets.in-container-log",
        does="ComfyUI's container logs its token",
        breaks='docker exec "$COMFYUI" sh -c "cat /run/secrets/atelier/PASSWORD >/proc/1/fd/1"; sleep 0.5',
        undoes=restored('"$COMFYUI"'),
        expects=("secrets.leaks",),
        names="docker logs comfyui-qwen(?! cannot be read)",
        slow=True,
    ),
    Sabotage(
        id="secrets.in-image",
        does="an image carries the token in its environment",
        breaks=TOKEN
        + """tar -c --files-from /dev/null | docker import -c "ENV TOKEN='$token'" - atelier/leaky:1 >/dev/null""",
        undoes="! docker image inspect atelier/leaky:1 >/dev/null 2>&1 || docker image rm atelier/leaky:1 >/dev/null",
        expects=("secrets.leaks",),
        names="docker image inspect atelier/leaky:1(?! cannot be read)",
    ),
    Sabotage(
        id="secrets.in-env-file",
        does="the token stands in a rendered .env",
        breaks=TOKEN
        + 'keep "$CONFIG/services/$COMFYUI/.env"; printf "TOKEN=%s\\n" "$token" >>"$CONFIG/services/$COMFYUI/.env"',
        undoes=given_back('"$CONFIG/services/$COMFYUI/.env"'),
        expects=("secrets.leaks",),
        names=r"services/comfyui-qwen/\.env",
    ),
    Sabotage(
        id="secrets.in-user-log",
        does="the token is in a log among the users' files",
        breaks=TOKEN + 'printf %s "$token" >"$USERS/comfyui/leaky.log"',
        undoes='rm -f "$USERS/comfyui/leaky.log"',
        expects=("secrets.leaks",),
        names=r"users/comfyui/leaky\.log",
    ),
    Sabotage(
        id="secrets.in-base64",
        does="Forge's user and password, as HTTP Basic sends them, are in a log",
        breaks=log_a_password_in_base64,
        undoes="rm -f /var/log/proxy.log",
        expects=("secrets.leaks",),
        names="/var/log/proxy.log",
    ),
    Sabotage(
        id="secrets.readable-here",
        does="everybody on this computer may read the store of credentials",
        breaks=lambda guest: (guest.secrets_dir / credentials.STORE_FILE).chmod(0o644),
        undoes=lambda guest: (guest.secrets_dir / credentials.STORE_FILE).chmod(0o600),
        expects=("secrets.here",),
        names=r"credentials\.yml.* -> .*chmod",
    ),
)
