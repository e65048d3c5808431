"""A host as somebody put it together by hand before this project: folders, compose files, secrets, containers that work.

ComfyUI's container installs at its start and answers to the token that compose hands it; Forge's writes an image where nothing is
mounted, and is published as 17861. A third one is somebody else's.
"""

import shutil

import bcrypt
from harness import Sandbox

from atelier import paths
from sandbox import shared

ROOT = "/home/ai/stack"
TOKEN = bcrypt.hashpw(b"the password of before", bcrypt.gensalt(10)).decode()
OUTPUTS = f"{ROOT}/shared/outputs"
CONTAINERS = "docker ps -a --no-trunc --format '{{.Names}} {{.ID}} {{.State}}' | sort"
STACK = rf"""
set -e; export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
apt-get install -q -y --no-install-recommends docker.io docker-cli docker-compose busybox-static iptables >/dev/null
image=$(mktemp -d); mkdir -p "$image/bin" "$image/tmp" "$image/etc"
cp "$(command -v busybox)" "$image/bin/busybox"
for name in $(busybox --list); do [ "$name" = busybox ] || ln -s busybox "$image/bin/$name"; done
tar -C "$image" -c . | docker import - hand-made:1 >/dev/null; rm -rf "$image"
mkdir -p {ROOT}/docker-configurations/services/comfyui-qwen/user/default/workflows {ROOT}/docker-configurations/services/forge-turbo
mkdir -p {ROOT}/.secrets {OUTPUTS}/comfyui {OUTPUTS}/forge {ROOT}/shared/models/loras
cd {ROOT}/docker-configurations/services
cat >comfyui-qwen/docker-compose.yml <<'X'
services:
  comfyui-qwen:
    image: hand-made:1
    container_name: comfyui-qwen
    restart: unless-stopped
    stop_signal: SIGKILL
    environment: ["COMFYUI_TOKEN=${{COMFYUI_TOKEN}}"]
    ports: ["8188:8188"]
    volumes:
      - ../../../shared/models:/app/ComfyUI/models
      - ../../../shared/outputs/comfyui:/app/ComfyUI/output
      - ./user:/app/ComfyUI/user
    command:
      - /bin/sh
      - -c
      - |
        rm -rf /app/venv; sleep 2; mkdir -p /app/venv /app/www; echo torch >/app/venv/installed
        echo "the old ComfyUI" >/app/www/index.html
        exec httpd -f -p 8188 -h /app/www
X
printf 'COMFYUI_TOKEN=%s\nMODELS=../../../shared/models\n' '{TOKEN.replace("$", "$$")}' >comfyui-qwen/.env
cat >forge-turbo/docker-compose.yml <<'X'
services:
  forge-turbo:
    image: hand-made:1
    container_name: forge-turbo
    restart: "on-failure:5"
    stop_signal: SIGKILL
    ports: ["17861:7860"]
    volumes: ["../../../shared/models:/models", "../../../shared/outputs/forge:/opt/forge/output"]
    command:
      - /bin/sh
      - -c
      - |
        mkdir -p /opt/forge/outputs/txt2img /www; echo inside >/opt/forge/outputs/txt2img/inside.png
        echo "the old Forge" >/www/index.html; exec httpd -f -p 7860 -h /www
X
echo workflow >comfyui-qwen/user/default/workflows/mine.json
echo image >{OUTPUTS}/comfyui/ComfyUI_00001_.png; touch -d 2025-01-02T03:04:05Z {OUTPUTS}/comfyui/ComfyUI_00001_.png
echo image >{OUTPUTS}/forge/00001.png
echo lora >{ROOT}/shared/models/loras/mine.safetensors
printf '%s\n' '{TOKEN}' >{ROOT}/.secrets/qwen-api-user.token
printf "COMFYUI_USER=%s\nCOMFYUI_TOKEN='%s'\n" qwen '{TOKEN}' >{ROOT}/.secrets/.env.generated
chmod 600 {ROOT}/.secrets/.env.generated {ROOT}/.secrets/qwen-api-user.token
docker network create shop >/dev/null
docker run -d --name their-shop --network shop --restart always hand-made:1 sleep 1000000 >/dev/null
mkdir -p {ROOT}/shared/models/other
cd {shared.GUEST_FOLDER}/weights/double
find . -name '*.safetensors' ! -path '*/vae/*' | while read -r f; do
  cp "$f" "{ROOT}/shared/models/other/$(echo "$f" | tr -c 'a-z0-9\n' _)"
done
"""


INSIDE = ("/opt/forge/models/VAE/vae.safetensors", "/opt/forge/models/Lora/inside.safetensors")
"""Weights that only Forge's container has: one of ours, and one of somebody's own."""
START = f"""
set -e; cd {ROOT}/docker-configurations/services
for service in comfyui-qwen forge-turbo; do (cd $service && docker compose up -d >/dev/null 2>&1); done
docker exec forge-turbo mkdir -p /opt/forge/models/VAE /opt/forge/models/Lora
docker cp "$(find {shared.GUEST_FOLDER}/weights/double/vae -name '*.safetensors')" forge-turbo:{INSIDE[0]} >/dev/null
lora=$(mktemp); echo inside >"$lora"; docker cp "$lora" forge-turbo:{INSIDE[1]} >/dev/null; rm "$lora"
"""
WITHOUT_OURS = """
docker ps -aq --filter label=atelier.config | xargs -r docker rm -f >/dev/null
docker rm -f comfyui-qwen.previous forge-turbo.previous >/dev/null 2>&1
docker network ls --format '{{.Name}}' | grep ^atelier- | xargs -r docker network rm >/dev/null
systemctl disable -q --now $(cd /etc/systemd/system && ls -d atelier-*.service atelier-*.timer) 2>/dev/null
rm -rf /etc/systemd/system/atelier-* /opt/atelier /srv/atelier /etc/atelier /run/atelier-*; systemctl daemon-reload
"""
"""Run in a guest: nothing is left of us but what a deploy takes long for."""


def put_together(sandbox: Sandbox) -> None:
    """Make it on a fresh sandbox, and wait until both answer."""
    shared.write_weights("double", shared.default_sets("double"))
    sandbox.root(STACK)
    start(sandbox)


def put_together_again(sandbox: Sandbox) -> None:
    """Make it once more where ours took its place."""
    sandbox.root(WITHOUT_OURS)
    shutil.rmtree(paths.secrets_dir(sandbox.name), ignore_errors=True)
    start(sandbox)


def start(sandbox: Sandbox) -> None:
    """Its containers, and wait until both answer."""
    sandbox.root(START)
    sandbox.wait_for(answering("old ComfyUI", 8188))
    sandbox.wait_for(answering("old Forge", 17861))


def answering(text: str, port: int) -> str:
    """Shell that succeeds while that is what a port answers."""
    return f"busybox wget -qO- -T 2 http://127.0.0.1:{port}/ | grep -q '{text}'"


TREE = f"""
import hashlib, json, pathlib
root = pathlib.Path("{ROOT}")
files = [path for path in sorted(root.rglob("*")) if path.is_file()]
print(json.dumps({{str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}}))
"""
"""Run in a guest: every file of the stack by its sha256."""
