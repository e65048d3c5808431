"""Ways to lose what users make, or to show it to others."""

from sabotage.sabotage import COMFYUI, Sabotage, restored

OUTPUTS = '"$OUTPUTS/comfyui"'
USERS = '"$USERS/comfyui"'


def mounted(*volumes: str) -> str:
    """A script that gives ComfyUI further or other mounts, in the words of compose."""
    text = f'services:\n  "$COMFYUI":\n    volumes: [{", ".join(volumes)}]\n'
    return f'overridden "$COMFYUI" <<X\n{text}X\n'


SABOTAGES = (
    Sabotage(
        "storage.moved",
        "the outputs were moved away and made anew under a running container",
        f'[ -e {OUTPUTS}.sabotage ] || {{ mv {OUTPUTS} {OUTPUTS}.sabotage; install -d -o "$UID_" -g "$UID_" {OUTPUTS}; }}\n',
        f"[ ! -e {OUTPUTS}.sabotage ] || {{ rm -rf {OUTPUTS}; mv -T {OUTPUTS}.sabotage {OUTPUTS}; }}\n",
        expects=("storage.mounts",),
        names="outputs/comfyui is another directory than the one that comfyui-qwen has as /outputs",
    ),
    Sabotage(
        "storage.elsewhere",
        "ComfyUI's images land in a directory that nobody looks into",
        'install -d -o "$UID_" -g "$UID_" "$DATA/elsewhere"\n'
        + mounted('{type: bind, source: "$DATA/elsewhere", target: /outputs}'),
        restored(COMFYUI) + 'rm -rf "$DATA/elsewhere"\n',
        expects=("storage.mounts",),
        names="comfyui-qwen does not have /srv/atelier/outputs/comfyui.*comfyui-qwen has /srv/atelier/elsewhere as /outputs",
        slow=True,
    ),
    Sabotage(
        "storage.in-the-container",
        "ComfyUI's images land in a volume of Docker's own",
        # Compose would take the old container's mount over.
        f"docker rm -f {COMFYUI} >/dev/null\n" + mounted("{type: volume, target: /outputs}"),
        f"docker rm -fv {COMFYUI} >/dev/null 2>&1 || :\n" + restored(COMFYUI),
        expects=("storage.mounts",),
        names="comfyui-qwen does not have /srv/atelier/outputs/comfyui.*comfyui-qwen has /.* as /outputs",
        slow=True,
    ),
    Sabotage(
        "storage.read-only",
        "ComfyUI cannot save images",
        mounted('{type: bind, source: "$OUTPUTS/comfyui", target: /outputs, read_only: true}'),
        restored(COMFYUI),
        expects=("storage.mounts", "storage.outputs"),
        names="comfyui-qwen cannot write to /srv/atelier/outputs/comfyui",
        slow=True,
    ),
    Sabotage(
        "storage.further-mount",
        "ComfyUI is given a directory of the system",
        mounted("{type: bind, source: /etc, target: /host-etc, read_only: true}"),
        restored(COMFYUI),
        expects=("storage.mounts",),
        names="comfyui-qwen has /etc as /host-etc.* -> .*make deploy",
        slow=True,
    ),
    Sabotage(
        "storage.other-owner",
        "the outputs belong to root",
        f"chown root:root {OUTPUTS}\n",
        f'chown "$UID_:$UID_" {OUTPUTS}\n',
        expects=("storage.outputs",),
        names=r"outputs/comfyui belongs to 0:0, not to \d+:\d+.* -> .*make deploy",
    ),
    Sabotage(
        "storage.open-outputs",
        "everybody on the host may change the outputs",
        f"chmod 777 {OUTPUTS}\n",
        f"chmod 755 {OUTPUTS}\n",
        expects=("storage.outputs",),
        names="outputs/comfyui has mode 777: others can change what is in it",
    ),
    Sabotage(
        "storage.open-users",
        "everybody on the host may read users' workflows and uploads",
        f"chmod 755 {USERS}\n",
        f"chmod 700 {USERS}\n",
        expects=("storage.outputs",),
        names="users/comfyui has mode 755: others can read what is in it",
    ),
    Sabotage(
        "storage.foreign-file",
        "root put a file among the outputs",
        f"echo >{OUTPUTS}/by-root.png\n",
        f"rm -f {OUTPUTS}/by-root.png\n",
        expects=("storage.outputs",),
        names="by-root.png does not belong to the service user.* -> .*chown",
    ),
)
