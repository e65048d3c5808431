"""A `docker` for shell that is tested here: containers in a JSON file, and the death of everything at a chosen change.

`FAKE_DOCKER` is the folder of its state; `FAKE_DOCKER_DIES` the number of the change before which whoever runs it is killed.
"""

import fcntl
import json
import os
import re
import signal
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("FAKE_DOCKER", "."))
FIELDS = {
    "{{.Id}}": lambda one: one["id"],
    "{{.Name}}": lambda one: f"/{one['name']}",
    "{{.HostConfig.AutoRemove}}": lambda one: str(one.get("rm", False)).lower(),
    "{{.State.Running}} {{.State.Restarting}}": lambda one: f"{str(one['running']).lower()} false",
}


def end(complaint: str) -> None:
    print(f"Error response from daemon: {complaint}", file=sys.stderr)
    sys.exit(1)


def main(verb: str, *arguments: str) -> None:
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = json.loads((FOLDER / "state.json").read_text())
        if state.get("dead"):
            print("Cannot connect to the Docker daemon", file=sys.stderr)
            sys.exit(1)
        if verb in ("update", "stop", "rename", "start", "rm") or (verb, *arguments[:1]) == ("network", "rm"):
            count = FOLDER / "changes"
            count.write_text(str(number := int(count.read_text() or 0) + 1 if count.exists() else 1))
            if str(number) == os.environ.get("FAKE_DOCKER_DIES"):
                os.killpg(0, signal.SIGKILL)
        act(state, verb, list(arguments))
        (FOLDER / "state.json").write_text(json.dumps(state))


def act(state: dict, verb: str, arguments: list[str]) -> None:
    containers, last = state["containers"], arguments[-1]
    named = [one for one in containers if last in (one["id"], one["name"])]
    if verb == "network":
        network = state["networks"].get(last)
        if network is None:
            end(f"network {last} not found")
        if arguments[0] == "rm":
            if any(last in one["networks"] and one["running"] for one in containers):
                end("network has active endpoints")
            del state["networks"][last]
        else:
            print(network)
        return
    if verb == "ps":
        wanted = last.removeprefix("network=")
        print("\n".join(one["id"] for one in containers if wanted in one["networks"]))
        return
    if verb == "version":
        print("26.1.5")
        return
    if verb == "rename":
        named = [one for one in containers if one["id"] == arguments[0]]
    if not named:
        end(f"No such container: {last}")
    (one,) = named
    if verb == "inspect":
        print(FIELDS[arguments[arguments.index("--format") + 1]](one))
    elif verb == "update":
        assert re.fullmatch("no|always|unless-stopped|on-failure(:[0-9]+)?", arguments[1])
        one["policy"] = arguments[1]
    elif verb == "stop":
        one["running"] = False
    elif verb == "start":
        if one.get("broken"):
            end("could not select device driver")
        one["running"] = True
    elif verb == "rename":
        if any(other["name"] == last for other in containers):
            end(f'Conflict. The container name "/{last}" is already in use')
        one["name"] = last
    elif verb == "rm":
        if one["running"]:
            end("cannot remove a running container")
        containers.remove(one)
    else:
        end(f"{verb}?")


if __name__ == "__main__":
    main(*sys.argv[1:])
