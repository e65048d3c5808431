"""Ways in which all is well until the next restart."""

from sabotage.sabotage import COMFYUI, DAEMON, FORGE, GATEWAY, Sabotage, changed, edited, given_back, restored

CADDYFILE = '"$CONFIG/services/$GATEWAY/config/Caddyfile"'
ENVIRONMENT = '"$CONFIG/services/$COMFYUI/.env"'
ERASER = "sabotage-eraser"
OPEN_AGAIN = r"""sed -i '/forward_auth unix/,/^\t\t}$/d; s/@admitted header X-Atelier-Route application/@admitted path */' "$FILE" """
DOCKER_AGAIN = (
    "systemctl reset-failed docker.service docker.socket || true\nsystemctl enable -q docker.service docker.socket\n"
)
DOCKER_AGAIN += "systemctl start docker.service\n"

SABOTAGES = (
    Sabotage(
        "survival.images-cleared",
        "something on the host deletes ComfyUI's images when it starts",
        f"""systemd-run --quiet --collect --unit {ERASER} sh -c '
docker events --filter container="$1" --filter event=start --format started | while read -r _; do
  find "$2/comfyui" -type f -delete
done' sh {COMFYUI} "$OUTPUTS"
""",
        f"systemctl stop {ERASER} 2>/dev/null || true",
        ("survival.comfyui.restart",),
        "is lost.* -> .*clears up",
        slow=True,
    ),
    Sabotage(
        "survival.mounted-elsewhere",
        "the next container of ComfyUI saves and looks for its images in another directory",
        edited(ENVIRONMENT, """sed -i "s|^OUTPUTS_DIR=.*|OUTPUTS_DIR=$OUTPUTS/forge|" "$FILE" """),
        given_back(ENVIRONMENT) + restored(COMFYUI) + "settle\n",
        ("survival.comfyui.restart",),
        "GET /view.* with 404.* -> .*compare its mounts",
        slow=True,
    ),
    Sabotage(
        "survival.broken-start",
        "Forge was changed while it ran and cannot start again",
        changed(
            f"$(root_of {FORGE})/opt/atelier/entrypoint.py",
            """{ echo 'raise SystemExit("sabotage")'; cat "$FILE"; } >"$FILE.new" && cat "$FILE.new" >"$FILE" && rm "$FILE.new" """,
        ),
        restored(FORGE),
        ("survival.forge.restart",),
        "ends as soon as it is started.* -> .*make logs",
        slow=True,
    ),
    Sabotage(
        "survival.open-after-restart",
        "the gateway's file was opened by hand and is in force from its next start",
        edited(CADDYFILE, OPEN_AGAIN),
        given_back(CADDYFILE, GATEWAY) + "settle\n",
        ("survival.gateway.restart",),
        "access.comfyui.stranger: .* -> .*make stop",
        slow=True,
    ),
    Sabotage(
        "survival.docker-takes-all-down",
        "Docker's settings let its restart end every container",
        edited(DAEMON, """sed -i 's/"live-restore": true/"live-restore": false/' "$FILE" """),
        f"{given_back(DAEMON)}systemctl restart docker.service\ndocker start {FORGE} {COMFYUI} {GATEWAY} >/dev/null\nsettle\n",
        ("survival.docker",),
        "is exited and Docker does not start it again.* -> .*live-restore",
        slow=True,
    ),
    Sabotage(
        "survival.docker-does-not-start",
        "Docker's settings are damaged, which it finds out at its next start",
        edited(DAEMON, """echo '{' >"$FILE" """),
        f"{given_back(DAEMON)}{DOCKER_AGAIN}settle\n",
        ("survival.docker",),
        "daemon.json.* -> .*journalctl -u docker",
        slow=True,
    ),
    Sabotage(
        "survival.not-at-boot",
        "Docker does not start with the host",
        "systemctl disable -q docker.service docker.socket",
        f"{DOCKER_AGAIN}settle\n",
        ("survival.host",),
        "Docker is inactive and disabled: it does not start with the host.* -> .*systemctl enable",
        slow=True,
    ),
    Sabotage(
        "survival.stays-down",
        "a container lost its restart policy",
        f"docker update --restart=no {COMFYUI} >/dev/null",
        f"docker update --restart=unless-stopped {COMFYUI} >/dev/null\ndocker start {COMFYUI} >/dev/null\nsettle\n",
        ("survival.host",),
        "is exited and its restart policy is no",
        slow=True,
    ),
    Sabotage(
        "survival.door-open-after-boot",
        "the guard of the loopback addresses is not started at boot",
        "systemctl disable -q atelier-loopback-guard.service",
        "systemctl enable -q --now atelier-loopback-guard.service\nsettle\n",
        ("survival.host",),
        r"host\.closed: rule missing",
        slow=True,
    ),
)
