"""Ways to let the wrong ones in, and to keep the owner out."""

import datetime

import bcrypt

from atelier import certificates, credentials
from atelier.render import DIRECT_RULE
from sabotage.sabotage import COMFYUI, FORGE, GATEWAY, Guest, Sabotage, edited, given_back, patched, restored

CONFIG = '"$CONFIG/services/$GATEWAY/config"'
CADDYFILE, GUARD = f"{CONFIG}/Caddyfile", f"{CONFIG}/guard.json"
HASHES = '"$CONFIG/secrets/$GATEWAY/credentials.json"'
PASSWORD = '"$CONFIG/secrets/$COMFYUI/PASSWORD"'
COOKIE_KEY = '"$CONFIG/secrets/$COMFYUI/.secret-key.txt"'
LOGIN = "/opt/comfyui/custom_nodes/ComfyUI-Login"
ENTRYPOINT = "/opt/atelier/entrypoint.py"
POLICY = "/opt/gateway/guard/policy.py"
ADMISSION = "/opt/gateway/guard/admission.py"
BYPASS = r"""sed -i '/forward_auth unix/,/^\t\t}$/d; s/@admitted header X-Atelier-Route application/@admitted path */' "$FILE" """
UNPROVEN_COMFYUI = """sed -i 's/^    hold_ports_until_proven(token)$/    pass/' "$FILE" """
UNPROVEN_FORGE = r"""sed -i 's/^        asyncio.run(prove_logins(app, credentials))$/        pass/' "$FILE" """
OPEN_FORGE = r"""sed -i 's/^        if not credentials.admits(\*basic_auth.*/        if False:/' "$FILE" """
EXPANDED = """hash=$(head -n 1 "$FILE"); user=$(tail -n 1 "$FILE"); eval "cut=\\"$hash\\""; printf '%s\\n%s' "$cut" "$user" >"$FILE" """
"""What a shell makes of a bcrypt hash between double quotes."""
SHOWN = ("access.comfyui.matrix", "access.forge.matrix")
"""The tables show whatever the short checks see."""


def gateway_with(path: str, edit: str) -> str:
    """A script that changes a file of the running gateway's own code."""
    return patched(GATEWAY, path, edit) + "settle\n"


def configured(path: str, edit: str) -> str:
    """A script that changes a rendered file of the gateway and restarts it."""
    return edited(path, edit, GATEWAY) + "settle\n"


def bring_back_an_old_token(guest: Guest) -> None:
    """The hash of before the last rotation, in every place on the host that holds the token."""
    known = credentials.load(guest.secrets_dir)
    assert known and known.comfyui.password
    old = bcrypt.hashpw(known.comfyui.password.encode(), bcrypt.gensalt(10))
    new = 'new=$(head -n 1 "$CONFIG/secrets/$COMFYUI/PASSWORD"); old=$(cat)\n'
    edit = """printf %s "$(sed "s|$new|$old|" "$FILE")" >"$FILE" """
    guest.root(
        f"keep {PASSWORD}\nkeep {HASHES}\n{new}FILE={HASHES}\n{edit}\nFILE={PASSWORD}\n{edit}\n"
        f"docker restart {COMFYUI} {GATEWAY} >/dev/null\nsettle",
        stdin=old,
    )


def bring_an_old_token_file_back(guest: Guest) -> None:
    """On this computer, where one copy of the token drifts apart from the store."""
    known = credentials.load(guest.secrets_dir)
    assert known
    old = known.comfyui.password_bcrypt[:-4] + "old."
    (guest.secrets_dir / credentials.TOKEN_FILE).write_bytes(old.encode())


def write_the_token_file(guest: Guest) -> None:
    """The token of the store."""
    known = credentials.load(guest.secrets_dir)
    assert known
    (guest.secrets_dir / credentials.TOKEN_FILE).write_bytes(known.comfyui.password_bcrypt.encode())


def show_another_certificate(guest: Guest) -> None:
    """One of an authority that nobody here knows."""
    now = datetime.datetime.now(datetime.timezone.utc)
    names = certificates.OWN_NAMES
    show(guest, certificates.issue(certificates.make_authority("stranger", names, now), names, now))


def show_an_ended_certificate(guest: Guest) -> None:
    """One of the host's own authority, that ended."""
    then = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=certificates.LEAF_DAYS + 10)
    kept = certificates.load(guest.secrets_dir)
    show(guest, certificates.issue(kept.authority, certificates.OWN_NAMES, then))


def show(guest: Guest, certificate: certificates.Certificate) -> None:
    """Have the gateway show this certificate."""
    for name, text in (("tls.crt", certificate.chain), ("tls.key", certificate.key)):
        path = f'"$CONFIG/secrets/$GATEWAY/{name}"'
        guest.root(f"keep {path}; cat >{path}", stdin=text.encode())
    guest.root(f"docker restart {GATEWAY} >/dev/null\nsettle")


OLD_CERTIFICATE = "".join(f'give_back "$CONFIG/secrets/$GATEWAY/{name}"\n' for name in ("tls.crt", "tls.key"))
GUESSING = """
docker restart "$GATEWAY" >/dev/null
settle
python3 -I -c '
import concurrent.futures, sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def guess(number):
    headers = {"Authorization": f"Bearer $2b$12$guess.number.{number:03}" + "x" * 37}
    try:
        opener.open(urllib.request.Request(sys.argv[1] + "/queue", headers=headers), timeout=60)
    except urllib.error.HTTPError:
        pass
with concurrent.futures.ThreadPoolExecutor(20) as pool:
    list(pool.map(guess, range(90)))  # behind a loopback address the account counts, which has more room
' "$COMFYUI_URL"
docker logs --tail 400 "$GATEWAY" 2>&1 | grep -q "locked out"
"""

SABOTAGES: tuple[Sabotage, ...] = (
    Sabotage(
        id="access.guard-bypassed",
        does="the Caddyfile sends every request to the applications, past the guard",
        breaks=configured(CADDYFILE, BYPASS),
        undoes=given_back(CADDYFILE, GATEWAY),
        expects=("access.comfyui.stranger", "access.forge.stranger", *SHOWN),
        names=r"application instead of 40\d.* -> .*make stop",
        also=("access.comfyui.wrong", "access.comfyui.query"),
        slow=True,
    ),
    Sabotage(
        id="access.healthz-closed",
        does="the gateway asks for credentials at /healthz",
        breaks=edited(CADDYFILE, """sed -i 's#path /healthz#path /health#' "$FILE" """, GATEWAY)
        + 'eventually 60 healthy "$GATEWAY"; eventually 30 \'[ $(answer "$FORGE_URL/config") = 401 ]\'',
        undoes=given_back(CADDYFILE, GATEWAY),
        expects=("access.comfyui.healthz", "access.forge.healthz"),
        names="401.* -> .*not the one that was deployed",
        slow=True,
    ),
    Sabotage(
        id="access.websocket-cut",
        does="the gateway drops the headers that open a WebSocket",
        breaks=configured(
            CADDYFILE,
            """sed -i 's/request_header @switches Connection Upgrade/request_header @switches -Connection/' "$FILE" """,
        ),
        undoes=given_back(CADDYFILE, GATEWAY),
        expects=("access.comfyui.websocket",),
        names="the WebSocket was refused with 400.* -> .*make logs SERVICE=gateway",
        also=("access.comfyui.matrix",),
        slow=True,
    ),
    Sabotage(
        id="access.query-token",
        does="guard.json accepts tokens in URLs, which the settings forbid",
        breaks=configured(GUARD, """sed -i 's/"allow_query_token": false/"allow_query_token": true/' "$FILE" """),
        undoes=given_back(GUARD, GATEWAY),
        expects=("access.comfyui.query",),
        names="/prompt: 200.* -> .*allow_query_token",
        also=("access.comfyui.matrix",),
        slow=True,
    ),
    Sabotage(
        id="access.path-opened",
        does="the guard serves ComfyUI's /queue as a part of the login page",
        breaks=gateway_with(POLICY, r"""sed -i 's#r"/old_css/style\\.css"#r"/old_css/style\\.css|/queue"#' "$FILE" """),
        undoes=restored(GATEWAY),
        expects=("access.comfyui.stranger",),
        names="GET /queue.*401/application instead of 401.* -> .*make stop",
        also=("access.comfyui.matrix",),
        slow=True,
    ),
    Sabotage(
        id="access.closed-path-opened",
        does="the guard lets Forge's command line, credentials in it, be asked for",
        breaks=gateway_with(POLICY, r"""sed -i 's#r"/sdapi/v1/cmd-flags/?|#r"#' "$FILE" """),
        undoes=restored(GATEWAY),
        expects=("access.forge.stranger",),
        names="cmd-flags.*instead of 403.* -> .*make stop",
        also=("access.forge.matrix",),
        slow=True,
    ),
    Sabotage(
        id="access.any-token",
        does="guard and ComfyUI take any bearer token",
        breaks=patched(COMFYUI, ENTRYPOINT, UNPROVEN_COMFYUI)
        + patched(COMFYUI, f"{LOGIN}/password.py", """sed -i 's/token == account.token:/token:/' "$FILE" """)
        + gateway_with(
            ADMISSION,
            """sed -i 's/return await self._attempts.are_right(("token"/return True or (("token"/' "$FILE" """,
        ),
        undoes=restored(COMFYUI) + restored(GATEWAY),
        expects=("access.comfyui.wrong", "access.comfyui.matrix"),
        names="token.*: 200.* -> .*make stop",
        also=("access.comfyui.websocket",),
        slow=True,
    ),
    Sabotage(
        id="access.any-password",
        does="guard and Forge take any password",
        breaks=patched(
            FORGE,
            ENTRYPOINT,
            UNPROVEN_FORGE + "\n" + """sed -i 's/^        return right$/        return True/' "$FILE" """,
        )
        + gateway_with(ADMISSION, """sed -i 's/^        return right$/        return True/' "$FILE" """),
        undoes=restored(FORGE) + restored(GATEWAY),
        expects=("access.forge.wrong", "access.forge.matrix"),
        names="a wrong password: 200.* -> .*make stop",
        also=("access.forge.login", "access.comfyui.browser", "access.comfyui.matrix"),
        slow=True,
    ),
    Sabotage(
        id="access.comfyui-answers-strangers",
        does="ComfyUI runs without its login plugin and answers 200 to strangers",
        breaks=patched(COMFYUI, ENTRYPOINT, UNPROVEN_COMFYUI)
        + patched(COMFYUI, f"{LOGIN}/__init__.py", """printf 'raise ImportError("broken on purpose")\\n' >"$FILE" """)
        + 'eventually 60 \'[ "$(docker exec "$COMFYUI" python -c "import urllib.request as r; '
        'print(r.urlopen(\\"http://127.0.0.1:8188/prompt\\").status)")" = 200 ]\'',
        undoes=restored(COMFYUI),
        expects=("access.comfyui.healthz", "access.comfyui.stranger"),
        names="answered 200 to a stranger.* -> .*make logs SERVICE=comfyui",
        also=("access.comfyui",),
        slow=True,
    ),
    Sabotage(
        id="access.forge-answers-strangers",
        does="Forge's API answers 200 to strangers",
        breaks=patched(FORGE, ENTRYPOINT, UNPROVEN_FORGE + "\n" + OPEN_FORGE)
        + 'eventually 60 \'[ "$(docker exec "$FORGE" python -c "import urllib.request as r; '
        'print(r.urlopen(\\"http://127.0.0.1:7860/sdapi/v1/samplers\\").status)")" = 200 ]\'',
        undoes=restored(FORGE),
        expects=("access.forge.healthz", "access.forge.stranger"),
        names="answered 200 to a stranger.* -> .*make logs SERVICE=forge",
        also=("access.forge",),
        slow=True,
    ),
    Sabotage(
        id="access.login-plugin",
        does="ComfyUI's login plugin fails to import, so that it does not start",
        breaks=patched(COMFYUI, f"{LOGIN}/__init__.py", """printf 'import no_such_module\\n' >"$FILE" """)
        + 'eventually 90 \'[ "$(docker inspect -f "{{.RestartCount}}" "$COMFYUI")" -ge 2 ]\'',
        undoes=restored(COMFYUI),
        expects=("containers.logs", "containers.running", "access.comfyui.healthz"),
        names="comfyui.*(IMPORT FAILED|ModuleNotFoundError)",
        also=("access.comfyui", "access.direct", "containers.hardened", "containers.egress"),
        slow=True,
    ),
    Sabotage(
        id="access.forge-stopped",
        does="Forge is stopped",
        breaks='docker stop -t 3 "$FORGE" >/dev/null',
        undoes='docker start "$FORGE" >/dev/null',
        expects=("access.forge.healthz",),
        names="Forge is not being served.* -> .*make logs SERVICE=forge",
        also=("access.forge", "access.direct"),
        slow=True,
    ),
    Sabotage(
        id="access.gateway-stopped",
        does="the gateway is stopped",
        breaks='docker stop -t 3 "$GATEWAY" >/dev/null',
        undoes='docker start "$GATEWAY" >/dev/null',
        expects=("access.comfyui.healthz", "access.forge.healthz"),
        names="no answer.* -> .*make status",
        also=("access",),
        slow=True,
    ),
    Sabotage(
        id="access.old-token",
        does="the token of before a rotation is copied back to the host",
        breaks=bring_back_an_old_token,
        undoes=f"give_back {PASSWORD}\ngive_back {HASHES}\ndocker restart {COMFYUI} {GATEWAY} >/dev/null",
        expects=("access.comfyui.token", "secrets.arrived"),
        names="401.* -> .*other credentials",
        also=("access.comfyui",),
        slow=True,
    ),
    Sabotage(
        id="access.token-file",
        does="the token file on this computer is another than the store's",
        breaks=bring_an_old_token_file_back,
        undoes=write_the_token_file,
        expects=("access.comfyui.token",),
        names="401.* -> .*other credentials",
    ),
    Sabotage(
        id="access.forge-hash",
        does="the gateway's hash of Forge's password is another one",
        breaks=configured(
            HASHES,
            """python3 -I - "$FILE" <<'X'
import json, sys
known = json.load(open(sys.argv[1]))
known["forge"]["password_bcrypt"] = known["comfyui"]["password_bcrypt"]
open(sys.argv[1], "w").write(json.dumps(known))
X""",
        ),
        undoes=given_back(HASHES, GATEWAY),
        expects=("access.forge.basic", "access.forge.login"),
        names="refused the user name or password.* -> .*make credentials",
        also=("access.forge",),
        slow=True,
    ),
    Sabotage(
        id="access.comfyui-form",
        does="ComfyUI's login form refuses the right password",
        breaks=patched(
            COMFYUI, f"{LOGIN}/password.py", """sed -i 's/elif not account.hash or/elif True or/' "$FILE" """
        )
        + "settle",
        undoes=restored(COMFYUI),
        expects=("access.comfyui.browser",),
        names="wrong_password=1.* -> .*make logs SERVICE=comfyui",
        slow=True,
    ),
    Sabotage(
        id="access.cookie-key",
        does="ComfyUI's cookie key is replaced",
        breaks=edited(
            COOKIE_KEY,
            """key=$(head -c 32 /dev/urandom | base64 | tr +/ -_); printf '%s,%s' "$key" "$(cut -d, -f2 "$FILE")" >"$FILE" """,
            COMFYUI,
        )
        + "settle",
        undoes=given_back(COOKIE_KEY, COMFYUI),
        expects=("secrets.arrived", "access.comfyui.matrix"),
        names=r"\.secret-key\.txt differs.* -> .*make deploy",
        slow=True,
    ),
    Sabotage(
        id="access.cut-token",
        does="the hash in PASSWORD goes through `$` expansion, and ComfyUI is restarted",
        breaks=edited(PASSWORD, EXPANDED) + 'docker restart "$COMFYUI" >/dev/null',
        undoes=given_back(PASSWORD, COMFYUI),
        expects=("access.comfyui.healthz", "secrets.arrived"),
        names="ComfyUI is not being served.* -> .*make logs SERVICE=comfyui",
        also=("access.comfyui", "access.direct"),
        slow=True,
    ),
    Sabotage(
        id="access.hashes-emptied",
        does="the gateway's file of credentials is emptied, and the gateway restarted",
        breaks=edited(HASHES, ': >"$FILE"', GATEWAY),
        undoes=given_back(HASHES, GATEWAY),
        expects=("secrets.arrived", "access.comfyui.healthz", "access.forge.healthz"),
        names=r"/credentials\.json differs.* -> .*make deploy",
        also=("access", "secrets.leaks"),
        slow=True,
    ),
    Sabotage(
        id="access.locked-out",
        does="somebody guesses tokens until the address is locked out",
        breaks=GUESSING,
        undoes='docker restart "$GATEWAY" >/dev/null',
        expects=("access.comfyui.browser",),
        names="429.*too many.* -> .*somebody guesses",
        also=("access.comfyui.matrix",),
        slow=True,
    ),
    Sabotage(
        id="access.direct-rule",
        does="the firewall rule that keeps others from the gateway's own address is removed",
        breaks=f"iptables -w -t mangle -D {DIRECT_RULE}",
        undoes=f"iptables -w -t mangle -C {DIRECT_RULE} || iptables -w -t mangle -I {DIRECT_RULE}",
        expects=("access.direct",),
        names=" -> .*atelier-loopback-guard",
        slow=True,
    ),
    Sabotage(
        id="access.second-network",
        does="Forge is connected to Docker's default network, beside the gateway",
        breaks='join bridge "$FORGE"',
        undoes='leave bridge "$FORGE"',
        expects=("access.direct",),
        names=r"reaches [0-9.]+:7860.* -> .*network with a way in",
        slow=True,
    ),
    Sabotage(
        id="access.certificate-replaced",
        does="the gateway shows a certificate that nobody here trusts",
        breaks=show_another_certificate,
        undoes=OLD_CERTIFICATE + f"docker restart {GATEWAY} >/dev/null",
        expects=("access.certificate",),
        names="(unable to get local issuer|self.signed).* -> .*make deploy",
        also=("access.comfyui", "access.forge"),
        needs="tls",
        slow=True,
    ),
    Sabotage(
        id="access.certificate-ended",
        does="the gateway shows a certificate that has ended",
        breaks=show_an_ended_certificate,
        undoes=OLD_CERTIFICATE + f"docker restart {GATEWAY} >/dev/null",
        expects=("access.certificate",),
        names="expired.* -> .*make deploy",
        also=("access.comfyui", "access.forge"),
        needs="tls",
        slow=True,
    ),
)
