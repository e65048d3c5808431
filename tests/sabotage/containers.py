"""Ways to run the containers as they must not run."""

import shlex

from atelier import render
from sabotage.sabotage import COMFYUI, FORGE, GATEWAY, Guest, Sabotage, edited, given_back, restored

ENV = '"$CONFIG/services/$GATEWAY/.env"'
INTRUDER = """
image=$(docker inspect -f '{{{{.Image}}}}' "$GATEWAY")
docker run -d --name sabotage-intruder --entrypoint sleep {options} "$image" 600 >/dev/null
"""
WITHOUT_INTRUDER = "docker rm -f sabotage-intruder >/dev/null 2>&1 || :\n"
UNSEEN = ("containers.hardened", "containers.egress")
"""Of a container that does not run nobody can say that it is closed."""


def with_keys(container: str, *lines: str, settles: bool = True) -> str:
    """A script that gives a container further keys of compose. settles: it becomes healthy with them."""
    keys = "".join(f"    {line}\n" for line in lines)
    return f"overridden {container} <<X\nservices:\n  {container}:\n{keys}X\n" + ("settle\n" if settles else "")


def network(container: str) -> str:
    """The network of an application."""
    return f'"atelier-{container.strip(chr(34))}"'


def made_anew(options: str) -> str:
    """A script that makes ComfyUI's network anew with other options, and its containers on it."""
    name = network(COMFYUI)
    return (
        f"docker rm -f {COMFYUI} {GATEWAY} >/dev/null 2>&1 || :; docker network rm {name} >/dev/null 2>&1 || :\n"
        f"docker network create --label atelier=1 {options} {name} >/dev/null\n"
        f'for c in {COMFYUI} {GATEWAY}; do (cd "$CONFIG/services/$c" && docker compose up -d 2>&1); done\nsettle\n'
    )


def with_node(code: str) -> str:
    """A script that gives ComfyUI a custom node, and starts it again."""
    return (
        f'node="$(root_of {COMFYUI})/opt/comfyui/custom_nodes/pack.py"; echo {shlex.quote(code)} >"$node"\n'
        f'chmod 0644 "$node"; docker restart {COMFYUI} >/dev/null; settle\n'
    )


def as_declared(guest: Guest) -> None:
    """ComfyUI's network as a deploy makes it."""
    declared = render.networks(guest.settings)[0]
    options = declared.create_command().removeprefix("docker network create --label atelier=1 ")
    guest.root(made_anew(options.removesuffix(declared.name)))


def hardened(
    what: str, does: str, container: str, lines: tuple[str, ...], names: str, also: tuple[str, ...] = ()
) -> Sabotage:
    """A container that may do what it must not. also: what it is unfit for as well."""
    return Sabotage(
        f"containers.{what}",
        does,
        with_keys(container, *lines, settles=not also),
        restored(container) + "settle\n",
        expects=("containers.hardened",),
        names=names,
        also=also,
        slow=True,
    )


SABOTAGES = (
    Sabotage(
        "containers.stopped",
        "Forge is stopped",
        f"docker stop {FORGE} >/dev/null\n",
        f"docker start {FORGE} >/dev/null; settle\n",
        expects=("containers.running",),
        names=r"forge-turbo is exited \(exit status \d+\).* -> .*make logs",
        also=UNSEEN,
        slow=True,
    ),
    Sabotage(
        "containers.removed",
        "Forge's container is gone",
        f"docker rm -f {FORGE} >/dev/null\n",
        restored(FORGE) + "settle\n",
        expects=("containers.running",),
        names="there is no container forge-turbo.* -> .*make deploy",
        also=UNSEEN,
        slow=True,
    ),
    Sabotage(
        "containers.paused",
        "Forge is frozen",
        f"docker pause {FORGE} >/dev/null\n",
        f"docker unpause {FORGE} >/dev/null 2>&1 || :; settle\n",
        expects=("containers.running",),
        names="forge-turbo is paused.* -> .*docker unpause forge-turbo",
        also=("containers.egress",),
        slow=True,
    ),
    Sabotage(
        "containers.no-health-check",
        "Forge's health check is dropped",
        with_keys(FORGE, "healthcheck: {disable: true}", settles=False),
        restored(FORGE),
        expects=("containers.running",),
        names="forge-turbo has another health check than its image: NONE for",
        slow=True,
    ),
    Sabotage(
        "containers.always-healthy",
        "a health check that says yes to everything",
        with_keys(COMFYUI, 'healthcheck: {test: ["CMD", "true"]}'),
        restored(COMFYUI),
        expects=("containers.running",),
        names="comfyui-qwen has another health check than its image: CMD true for",
        slow=True,
    ),
    Sabotage(
        "containers.unhealthy",
        "ComfyUI runs and serves nothing",
        f"docker exec -u 0 {COMFYUI} true; kill -STOP $(docker top {COMFYUI} -eo pid,args | awk '/python/ {{print $1}}')\n"
        f"eventually 120 \"docker inspect -f '{{{{.State.Health.Status}}}}' {COMFYUI} | grep unhealthy\"\n",
        f"kill -CONT $(docker top {COMFYUI} -eo pid,args | awk '/python/ {{print $1}}'); settle\n",
        expects=("containers.running",),
        names="comfyui-qwen is unhealthy: ",
        slow=True,
    ),
    Sabotage(
        "containers.no-restart",
        "the gateway does not come back after a restart of the host",
        f"docker update --restart=no {GATEWAY} >/dev/null\n",
        f"docker update --restart=unless-stopped {GATEWAY} >/dev/null\n",
        expects=("containers.running",),
        names="gateway has restart policy no: it stays down after a crash",
    ),
    Sabotage(
        "containers.other-image",
        "Forge runs an image that nobody deployed",
        f"docker commit {FORGE} sabotage:forge >/dev/null\n" + with_keys(FORGE, "image: sabotage:forge"),
        restored(FORGE) + "docker image rm -f sabotage:forge >/dev/null 2>&1 || :\n",
        expects=("containers.images",),
        names="forge-turbo runs image [0-9a-f]{12}, deployed was [0-9a-f]{12} \\(atelier/forge:",
        slow=True,
    ),
    Sabotage(
        "containers.older-configuration",
        "ComfyUI was started with another configuration than the last deploy's",
        with_keys(COMFYUI, "labels: {atelier.config: older}"),
        restored(COMFYUI),
        expects=("containers.images",),
        names="comfyui-qwen was started with configuration older, deployed was.* -> .*make deploy",
        slow=True,
    ),
    hardened(
        "privileged",
        "Forge runs privileged",
        FORGE,
        ("privileged: true",),
        "forge-turbo is privileged.* -> .*make deploy",
    ),
    hardened(
        "capability",
        "ComfyUI may change networks",
        COMFYUI,
        ("cap_add: [NET_ADMIN]",),
        "comfyui-qwen was given capabilities: (CAP_)?NET_ADMIN",
    ),
    hardened(
        "usual-capabilities",
        "the gateway keeps the capabilities that Docker gives by default",
        GATEWAY,
        ("cap_drop: !reset []",),
        "gateway keeps Docker's usual capabilities.*CapBnd",
    ),
    hardened(
        "writable-root",
        "Forge's root file system is writable",
        FORGE,
        ("read_only: false",),
        "forge-turbo has a writable root file system",
    ),
    hardened(
        "root",
        "the gateway's container runs as root",
        GATEWAY,
        ('user: "0:0"',),
        r"gateway runs as user 0:0 \(0 0|gateway has no process to look at; it was to run as user 0:0",
        also=("containers.running", "containers.limits", "containers.logs", "containers.egress"),
    ),
    hardened(
        "new-privileges",
        "ComfyUI may gain privileges",
        COMFYUI,
        ("security_opt: !override [no-new-privileges:false]",),
        r"comfyui-qwen may gain privileges \(no-new-privileges is off\)",
    ),
    hardened(
        "every-system-call",
        "Forge may make any system call",
        FORGE,
        ("security_opt: [seccomp:unconfined]",),
        r"forge-turbo has no filter of system calls \(seccomp\)",
    ),
    hardened(
        "kernel-paths",
        "Forge sees and changes what Docker keeps of /proc and /sys from containers",
        FORGE,
        ("security_opt: [systempaths=unconfined]",),
        "forge-turbo sees /proc/kcore, /proc/keys, /sys/firmware of the host; forge-turbo may write to /proc/sys",
    ),
    hardened(
        "host-processes", "ComfyUI sees the host's processes", COMFYUI, ("pid: host",), "comfyui-qwen shares PidMode"
    ),
    hardened(
        "docker-socket",
        "Forge may command Docker",
        FORGE,
        ("volumes: [/run/docker.sock:/run/docker.sock]",),
        "forge-turbo holds /run/docker.sock",
    ),
    hardened(
        "device",
        "Forge is given a device of the host",
        FORGE,
        ("devices: [/dev/zero:/dev/disk]",),
        "forge-turbo has devices of the host: /dev/zero",
    ),
    Sabotage(
        "containers.endless-log",
        "Forge's log is never rotated",
        with_keys(FORGE, "logging: !override {driver: json-file, options: {max-size: 900g}}"),
        restored(FORGE),
        expects=("containers.limits",),
        names="forge-turbo: log rotation is (max-file=3 )?max-size=900g, not max-file=3 max-size=10m.* -> .*make deploy",
        slow=True,
    ),
    Sabotage(
        "containers.no-log",
        "ComfyUI's log is thrown away",
        with_keys(COMFYUI, "logging: !override {driver: none}"),
        restored(COMFYUI),
        expects=("containers.logs", "containers.limits"),
        names="the log of comfyui-qwen cannot be read.* -> .*log driver",
        slow=True,
    ),
    Sabotage(
        "containers.small-shm",
        "ComfyUI has no more shared memory than Docker gives by default",
        with_keys(COMFYUI, "shm_size: 64m"),
        restored(COMFYUI),
        expects=("containers.limits",),
        names="comfyui-qwen: size of /dev/shm is 67108864, not 2147483648",
        slow=True,
    ),
    Sabotage(
        "containers.core-dumps",
        "a crash of the gateway writes its memory, credentials and all, to the disk",
        with_keys(GATEWAY, "ulimits: {core: 1000000000}"),
        restored(GATEWAY),
        expects=("containers.limits",),
        names="gateway: core dumps is 1000000000 1000000000, not 0 0",
        slow=True,
    ),
    Sabotage(
        "containers.few-connections",
        "the gateway may open few files",
        with_keys(GATEWAY, "ulimits: {nofile: 1024}"),
        restored(GATEWAY),
        expects=("containers.limits",),
        names="gateway: open files is 1024, not at least 16384",
        slow=True,
    ),
    Sabotage(
        "containers.published-port",
        "ComfyUI publishes a port of its own",
        with_keys(COMFYUI, 'ports: ["127.0.0.1:18188:8188"]'),
        restored(COMFYUI),
        expects=("containers.ports",),
        names="comfyui-qwen publishes 127.0.0.1:18188, which bypasses the gateway",
        slow=True,
    ),
    Sabotage(
        "containers.bind-everywhere",
        "the gateway publishes its ports on every address",
        edited(ENV, """sed -i 's/^BIND_ADDRESS=.*/BIND_ADDRESS="0.0.0.0"/' "$FILE" """)
        + f"recreate {GATEWAY}; settle\n",
        given_back(ENV) + f"recreate {GATEWAY}; settle\n",
        expects=("containers.ports", "host.listening", "host.closed"),
        names="gateway publishes 0.0.0.0:8188, which the settings do not ask for",
        slow=True,
    ),
    Sabotage(
        "containers.stand-in",
        "another container has taken the gateway's place",
        f"docker stop {GATEWAY} >/dev/null\n" + INTRUDER.format(options="-p 127.0.0.1:8188:8188"),
        WITHOUT_INTRUDER + f"docker start {GATEWAY} >/dev/null; settle\n",
        expects=("containers.ports", "containers.running"),
        names="container sabotage-intruder stands in for the gateway at 127.0.0.1:8188.* -> .*docker rm -f sabotage-intruder",
        also=UNSEEN,
        slow=True,
    ),
    Sabotage(
        "containers.way-out",
        "ComfyUI is connected to a network with a way out",
        f"join bridge {COMFYUI}\n",
        f"leave bridge {COMFYUI}\n",
        expects=("containers.egress", "containers.networks"),
        names="comfyui-qwen reaches 1.1.1.1:443.* -> .*has a way out",
        slow=True,
    ),
    Sabotage(
        "containers.open-network",
        "ComfyUI's own network has a way out",
        made_anew(""),
        as_declared,
        expects=("containers.networks", "containers.egress"),
        names="atelier-comfyui-qwen is not internal: comfyui-qwen has a way out",
        slow=True,
    ),
    Sabotage(
        "containers.host-on-network",
        "the host has an address on ComfyUI's network",
        made_anew("--internal"),
        as_declared,
        expects=("containers.networks", "containers.egress"),
        names="atelier-comfyui-qwen has an address of the host: it reaches comfyui-qwen",
        slow=True,
    ),
    Sabotage(
        "containers.shared-network",
        "Forge is on ComfyUI's network as well",
        f"join {network(COMFYUI)} {FORGE}\n",
        f"leave {network(COMFYUI)} {FORGE}\n",
        expects=("containers.networks", "containers.egress"),
        names="forge-turbo is on atelier-comfyui-qwen.* -> .*docker network disconnect",
        slow=True,
    ),
    Sabotage(
        "containers.intruder",
        "a foreign container is on Forge's network",
        INTRUDER.format(options=f"--network {network(FORGE)}"),
        WITHOUT_INTRUDER,
        expects=("containers.networks",),
        names="sabotage-intruder is on atelier-forge-turbo and reaches forge-turbo, bypassing the gateway.* -> .*disconnect -f",
    ),
    Sabotage(
        "containers.cut-off",
        "the gateway has lost Forge's network",
        f"docker network disconnect {network(FORGE)} {GATEWAY}\n",
        restored(GATEWAY) + "settle\n",
        expects=("containers.networks", "containers.egress"),
        names="gateway is not on atelier-forge-turbo",
        slow=True,
    ),
    Sabotage(
        "containers.import-failed",
        "a custom node cannot be imported",
        with_node("import no_such_module"),
        restored(COMFYUI) + "settle\n",
        expects=("containers.logs",),
        names=r"comfyui-qwen: .*\(IMPORT FAILED\): /opt/comfyui/custom_nodes/pack.* -> .*make deploy",
        slow=True,
    ),
    Sabotage(
        "containers.missing-tensors",
        "a custom node loads a weight without all of its tensors at start",
        with_node("import logging; NODE_CLASS_MAPPINGS = {}; logging.warning(\"unet missing: ['a.weight']\")"),
        restored(COMFYUI) + "settle\n",
        expects=("containers.logs",),
        names="comfyui-qwen: .*unet missing",
        slow=True,
    ),
)
