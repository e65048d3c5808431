"""Groups secrets and storage: each secret where it belongs and nowhere else, each file where it was declared."""

import hashlib
import os
import shlex
import stat
import subprocess

import pytest
from stack import COMMAND_SECONDS

from atelier.checks import storage_state
from atelier.doctor.redact import forms
from atelier.tree import probe_script

LEAKS = r"""
private=$(mktemp -d -p /dev/shm) && trap 'rm -rf "$private"' EXIT && umask 077 && cat >"$private/patterns" || exit 1
search() {
  what=$1; shift
  "$@" >"$private/text" 2>&1 || { echo "$what cannot be read"; return; }
  if grep -aqF -f "$private/patterns" "$private/text"; then echo "$what"; fi
}
files() { xargs -0r grep -aslF -f "$private/patterns" --; }
printf '%s\0' "$CANARY" | files
search 'docker inspect' docker inspect $(docker ps -aq)
for c in $CONTAINERS; do search "docker logs $c" docker logs "$c"; done
# Images that others start from are there only where one was built.
for t in $(docker image ls --filter 'reference=atelier/*' --format '{{.Repository}}:{{.Tag}}'); do
  search "docker history $t" docker history --no-trunc "$t"
  search "docker image inspect $t" docker image inspect "$t"
done
find /proc -maxdepth 2 -path '/proc/[0-9]*' \( -name cmdline -o -name environ \) -print0 2>/dev/null | files
find "$ROOT" -path "$ROOT/secrets" -prune -o -type f -print0 | files
find "$STATE" -type f -print0 | files
find "$USERS" -type f \( -name '*.log' -o -name '*.json' \) -print0 | files
for d in /run /tmp /var/tmp /dev/shm /var/log /var/crash; do
  [ ! -d $d ] || find $d -xdev -path "$private" -prune -o -type f -size -8M -print0 | files
done
search journal journalctl -b -q -n 20000 --no-pager
true
"""
"""Prints every place that holds one of the secrets on standard input, and every place that could not be searched.

The secrets are in no argument and no environment.
"""


@pytest.mark.check("secrets.files")
def test_secret_files_are_private(stack, check):
    declared = stack.secret_files
    entries = {entry.path: entry.signature().rsplit(" ", 1)[0] for files in declared.values() for entry in files}
    found = {line.split(" ", 4)[4]: " ".join(line.split(" ")[:3]) for line in probe(stack, entries)}
    wrong = [
        f"{path} is {found.get(path, 'missing')}, not {want}"
        for path, want in entries.items()
        if found.get(path) != want
    ]
    check.none(f"{len(entries)} files and directories with mode and owner as declared", wrong)
    root = f"{stack.settings.config_root}/secrets"
    extra = set(stack.output(f"find {root} -mindepth 1").splitlines()) - set(entries)
    hint = f"left by an earlier deployment; remove what you do not know from {root} on the host"
    check.warn(f"nothing else lies in {root}", sorted(extra), hint)
    others = stack.output(f"find {root} -mindepth 1 ! -type l -perm /077").splitlines()
    check.none("nothing there is open to others", others)


def probe(stack, paths) -> list[str]:
    """Lines of `type mode owner:group sha256 path`, the first three as one signature."""
    return [line for line in stack.output(probe_script(paths)).splitlines() if line]


@pytest.mark.check("secrets.arrived")
def test_secrets_in_the_containers_are_those_generated(stack, check):
    declared = stack.secret_files
    for service, container in stack.containers.items():
        files = {
            f"/run/secrets/atelier/{entry.path.rpartition('/')[2]}": entry.content for entry in declared[container][1:]
        }
        if service == "comfyui":
            files["/opt/comfyui/login/PASSWORD"] = files["/run/secrets/atelier/PASSWORD"]
        answer = stack.host.run(f"docker exec {container} sha256sum {' '.join(files)}")
        sums = {line.split(maxsplit=1)[1]: line.split()[0] for line in answer.stdout.splitlines()}
        differ = [path for path, content in files.items() if sums.get(path) != hashlib.sha256(content).hexdigest()]
        check.none(f"{container}: sha256 of {len(files)} secrets as generated", [f"{path} differs" for path in differ])


@pytest.mark.check("secrets.leaks")
def test_secrets_appear_nowhere_else(stack, check):
    settings = stack.settings
    canary = stack.secret_files[settings.gateway_container][1].path
    names = {
        "CANARY": canary,
        "CONTAINERS": " ".join(stack.containers.values()),
        "ROOT": settings.config_root,
        "STATE": settings.state_dir(),
        "USERS": settings.users_path(),
    }
    script = "".join(f"{name}={shlex.quote(value)}\n" for name, value in names.items()) + LEAKS
    patterns = {form for secret in stack.secret_strings for form in forms(secret)}
    answer = stack.ssh.run(script, stdin="\n".join(sorted(patterns)).encode(), timeout=120, check=True)
    places = answer.stdout.splitlines()
    told = "found" if canary in places else f"no secret that is known here was found in {canary}"
    check("the search finds the gateway's own secret file", told, canary in places, "run `make deploy`")
    check.none("no other place holds a secret", [place for place in places if place != canary])


@pytest.mark.check("secrets.here")
def test_the_credentials_on_this_computer_are_private(stack, check):
    directory = stack.token_file.parent
    here = [directory, *sorted(directory.rglob("*"))]
    wrong = [
        f"{path.name} has mode {stat.S_IMODE(found.st_mode):o} and owner {found.st_uid}"
        for path in here
        if stat.S_IMODE((found := path.lstat()).st_mode) & 0o077 or found.st_uid != os.getuid()
    ]
    hint = f"on this computer: chmod -R go= {directory}; who else could read them knows them: see `make rotate`"
    check.none(f"{len(here)} files and directories are their owner's alone", wrong, hint)
    listed = subprocess.run(["git", "ls-files", "--", directory], cwd=directory, capture_output=True, text=True)
    hint = "take them out of git (git rm --cached), and `make rotate`: its history is known to others"
    check.none("none of them is in git", listed.stdout.splitlines(), hint)


@pytest.fixture(scope="module")
def stored(stack):
    """The directories by the host's and the containers' words, asked in one round trip."""
    answer = stack.ssh.run(storage_state.script(stack.settings), timeout=COMMAND_SECONDS, check=True)
    return storage_state.parse(answer.stdout)


@pytest.mark.check("storage.outputs")
def test_what_users_make_is_the_service_users_own(stack, check, stored):
    uid = stack.settings.service_uid
    expected = f"outputs and users' files belong to {uid}, nobody else can change them, the applications can"
    check.free_of(expected, storage_state.outputs(stored, stack.settings))


@pytest.mark.check("storage.mounts")
def test_directories_are_mounted_as_declared(stack, check, stored):
    expected = (
        "outputs and users' files writable, weights, secrets and configuration read-only, nothing else of the host; "
    )
    expected += "each the very directory that the host has"
    check.free_of(expected, storage_state.mounts(stored, stack.settings))
