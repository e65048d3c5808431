"""Ways to spoil the weights."""

from sabotage.sabotage import Sabotage, edited, given_back, restored

CHECKPOINT = '"$MODELS/checkpoints/sd_xl_turbo_1.0_fp16.safetensors"'
ASIDE = '"$MODELS/.incoming/sabotage"'
"""On the weights' own file system, so that what is moved there stays the file that was hashed."""
RECORD = '"$DATA/state/weights/$sha256.json"'
SHA256 = """
find='import json, sys; print(next(f["sha256"] for f in json.load(open(sys.argv[1]))["files"] if "checkpoints/" in f["name"]))'
sha256=$(python3 -I -c "$find" "$CONFIG/weights.json")
"""
"""Sets what RECORD needs."""
STAMP = '"$KEPT/stamp"'


def in_place_of(what: str) -> str:
    """A script that moves the checkpoint aside and puts something else in its place. what: shell, in which `$OLD` is it."""
    return f'OLD={ASIDE}\nmkdir -p "$MODELS/.incoming"; [ -e "$OLD" ] || mv {CHECKPOINT} "$OLD"\n{what}\n'


MOVED_BACK = f"[ ! -e {ASIDE} ] || {{ rm -rf {CHECKPOINT}; mv -T {ASIDE} {CHECKPOINT}; }}\n"
BYTE = f"""{SHA256}
mkdir -p "$KEPT"; keep {RECORD}; touch -r {CHECKPOINT} {STAMP}
python3 -I - {CHECKPOINT} <<'X'
import os, sys
with open(sys.argv[1], "r+b", buffering=0) as file:
    file.seek(-5, os.SEEK_END)
    byte = file.read(1)
    file.seek(-5, os.SEEK_END)
    file.write(bytes([byte[0] ^ 1]))
X
touch -r {STAMP} {CHECKPOINT}
"""
"""The same bit turned twice is as it was. What proves wrong is known good no longer, so the record is put back as well."""

MOUNTED = """
services:
  "$COMFYUI":
    volumes: [{{type: bind, source: "{source}", target: /models, read_only: {read_only}}}]
"""


def mounted(source: str, read_only: bool) -> str:
    """A script that gives ComfyUI another mount of weights."""
    text = MOUNTED.format(source=source, read_only=str(read_only).lower())
    return f'mkdir -p "$DATA/sabotage-empty"; overridden "$COMFYUI" <<X\n{text}X\n'


SABOTAGES = (
    Sabotage(
        "weights.missing",
        "a weight is gone",
        in_place_of(":"),
        MOVED_BACK,
        expects=("weights.present",),
        names="sd_xl_turbo_1.0_fp16.safetensors is missing.* -> .*models-fetch",
    ),
    Sabotage(
        "weights.truncated",
        "a weight lost its last byte",
        in_place_of(f'cp -a "$OLD" {CHECKPOINT}; truncate -s -1 {CHECKPOINT}'),
        MOVED_BACK,
        expects=("weights.present",),
        names=r"sd_xl_turbo_1.0_fp16.safetensors has \d+ bytes, not \d+.* -> .*models-fetch",
    ),
    Sabotage(
        "weights.swapped",
        "another file of the same size and time has a weight's name",
        in_place_of(f'cp -a "$OLD" {CHECKPOINT}'),
        MOVED_BACK,
        expects=("weights.present",),
        names=r"its inode \(another file\) changed since it was hashed.* -> .*DEEP=1",
    ),
    Sabotage(
        "weights.written",
        "somebody wrote into a weight",
        f'mkdir -p "$KEPT"; [ -e {STAMP} ] || touch -r {CHECKPOINT} {STAMP}; touch {CHECKPOINT}\n',
        f"[ ! -e {STAMP} ] || touch -r {STAMP} {CHECKPOINT}; rm -f {STAMP}\n",
        expects=("weights.present",),
        names="its time changed since it was hashed",
    ),
    Sabotage(
        "weights.link",
        "a link stands in the place of a weight",
        in_place_of(f'ln -s "$OLD" {CHECKPOINT}'),
        MOVED_BACK,
        expects=("weights.present",),
        names="is a symbolic link, not a file",
    ),
    Sabotage(
        "weights.writable",
        "everybody on the host may change a weight",
        f"chmod 666 {CHECKPOINT}\n",
        f"chmod 444 {CHECKPOINT}\n",
        expects=("weights.present",),
        names="has mode 666 .*not only root can change it.* -> .*chmod 444",
    ),
    Sabotage(
        "weights.never-hashed",
        "nothing tells that a weight was ever hashed",
        f"{SHA256}keep {RECORD}; rm {RECORD}\n",
        f"{SHA256}give_back {RECORD}\n",
        expects=("weights.present",),
        names="nobody has hashed it",
    ),
    Sabotage(
        "weights.one-bit",
        "one bit of a weight is wrong, under the same size, time and inode",
        BYTE,
        f"[ ! -e {STAMP} ] || {{ {BYTE} rm -f {STAMP}; give_back {RECORD}; }}\n",
        expects=("weights.deep",),
        names="sd_xl_turbo_1.0_fp16.safetensors: wrong: sha256 .* -> .*models-fetch",
    ),
    Sabotage(
        "weights.fetch-failed",
        "what fetches the weights has failed",
        edited('"$CONFIG/weights.json"', """echo '{' >"$FILE" """)
        + "systemctl start atelier-weights; eventually 10 systemctl -q is-failed atelier-weights\n",
        given_back('"$CONFIG/weights.json"') + "systemctl reset-failed atelier-weights 2>/dev/null || :\n",
        expects=("weights.present",),
        names="atelier-weights.service has failed.* -> .*journalctl -u atelier-weights",
    ),
    Sabotage(
        "weights.application-may-write",
        "ComfyUI may write to the store",
        mounted("$MODELS", False),
        restored('"$COMFYUI"'),
        expects=("weights.seen",),
        names="comfyui-qwen can write to /models",
        slow=True,
    ),
    Sabotage(
        "weights.other-directory",
        "ComfyUI has an empty directory in the place of the store",
        mounted("$DATA/sabotage-empty", True),
        restored('"$COMFYUI"') + 'rm -rf "$DATA/sabotage-empty"\n',
        expects=("weights.seen",),
        names="comfyui-qwen does not see .* -> .*another directory is mounted",
    ),
    Sabotage(
        "weights.store-replaced",
        "the store was copied and its copy took its name, while the applications hold the old one",
        '[ -e "$MODELS.sabotage" ] || { mv "$MODELS" "$MODELS.sabotage"; cp -a "$MODELS.sabotage" "$MODELS"; }\n',
        '[ ! -e "$MODELS.sabotage" ] || { rm -rf "$MODELS"; mv -T "$MODELS.sabotage" "$MODELS"; }\n',
        expects=("weights.seen", "weights.present"),
        names="comfyui-qwen sees another .* than the host: inode",
    ),
)
