"""Groups secrets and storage: each secret where it belongs and nowhere else, each file where it was declared."""

import hashlib
import os
import stat
import subprocess

import pytest
from stack import COMMAND_SECONDS

from atelier.checks import leaks_state, storage_state
from atelier.tree import probe_script


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
    canary = stack.secret_files[stack.settings.gateway_container][1].path
    script = leaks_state.script(stack.settings, stack.containers.values(), canary)
    patterns = leaks_state.patterns(stack.secret_strings)
    answer = stack.ssh.run(script, stdin=patterns, timeout=COMMAND_SECONDS, check=True)
    told = leaks_state.parse(answer.stdout)
    seen = "found" if canary in told.found else f"no secret that is known here was found in {canary}"
    check("the search finds the gateway's own secret file", seen, canary in told.found, "run `make deploy`")
    check.free_of("no other place holds a secret", leaks_state.leaks(told, canary), leaks_state.text(told))
    check.warn_of("none in the homes of the host's own users", leaks_state.kept(told))


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
