"""Secrets are planted, deployed with everything shown, used and rotated; then they are looked for everywhere."""

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from planting import CHOSEN, CHOSEN_LATER, DECOY, PlantedHost
from secret_forms import SEARCH, Forms, forms, places

from atelier import paths

pytestmark = pytest.mark.sandbox
OWN = {
    "/opt/atelier/secrets/gateway/credentials.json": {"later comfyui hash", "later forge hash"},
    "/opt/atelier/secrets/gateway/tls.key": {"tls.key"},
    "/opt/atelier/secrets/comfyui-qwen/PASSWORD": {"later comfyui hash"},
    "/opt/atelier/secrets/comfyui-qwen/.secret-key.txt": {"later cookie key"},
    "/opt/atelier/secrets/forge-turbo/auth.json": {"later forge hash"},
    "/opt/atelier/weights.token": {"hub token"},
}
"""Where on the host a secret belongs."""
PLANT = r"""
set -eu; read -r decoy; mkdir /var/lib/decoys; cd /var/lib/decoys
n=0; while read -r form; do n=$((n + 1)); printf 'x%sx' "$form" >"form-$n"; done
printf %s "$decoy" >/run/decoy; printf %s "$decoy" >/tmp/decoy; printf %s "$decoy" >/dev/shm/decoy
touch "named-Xe8rT4yUk1oPa"; logger -- "$decoy"
sh -c 'sleep 1000; :' "$decoy" >/dev/null 2>&1 & SOMETHING="$decoy" sleep 1000 >/dev/null 2>&1 &
image=$(docker inspect -f '{{.Config.Image}}' gateway)
docker run -d --name decoy --network none --tmpfs /scratch --user 0 -e SOMETHING="$decoy" --entrypoint sh "$image" -c \
    'printf %s "$SOMETHING" >/layer; printf %s "$SOMETHING" >/scratch/decoy; echo "$SOMETHING"; sleep 1000' >/dev/null
until docker logs decoy 2>&1 | grep -q .; do sleep 0.1; done
docker commit -m "$decoy" -c "ENV ANOTHER=$(printf %s "$decoy" | base64 -w0)" decoy atelier/decoy:1 >/dev/null
"""
PLANTED = {
    "/run/decoy",
    "/tmp/decoy",
    "/dev/shm/decoy",
    "/proc/#/cmdline",
    "/proc/#/environ",
    "decoy:/scratch/decoy",
    "history",
    "images",
    "inspect decoy",
    "journal",
    "logs decoy",
    "names of files",
}


@pytest.fixture(scope="module")
def host(planted_host: PlantedHost) -> PlantedHost:
    """The host after a day's work: an image from each service, what an operator looks at, a rotation."""
    name = planted_host.sandbox.name
    for service in ("comfyui", "forge"):
        planted_host.sandbox.atelier("generate", "--prompt", "a lighthouse", "--service", service)
    planted_host.sandbox.atelier("doctor", "--bundle")
    planted_host.make(f"rotate HOST={name}", CHOSEN_LATER)
    planted_host.learn("later")
    return planted_host


@pytest.fixture(scope="module")
def known(host: PlantedHost) -> Forms:
    return host.forms()


def test_every_form_of_a_secret_is_recognised() -> None:
    decoy = Forms({"decoy": [DECOY]})
    assert all(decoy.seen_in(f"x{form}x".encode()) == {"decoy"} for form in forms(DECOY))
    assert decoy.seen_in(b"nothing of the kind") == set()


def test_the_terminal_shows_no_secret(host: PlantedHost, known: Forms) -> None:
    for watch, end in zip(host.watches, (b"Verdict: passed", b"Rotated."), strict=True):
        assert b"sha256sum" in watch.terminal and end in watch.terminal
        assert known.seen_in(watch.terminal) == set()


def test_no_program_on_the_host_was_given_a_secret(host: PlantedHost, known: Forms) -> None:
    for watch in host.watches:
        given = [
            (program["arguments"][:3], words)
            for program in watch.programs("host")
            for words in ("arguments", "environment")
            if known.seen_in("\0".join(program[words]).encode("latin-1"))
        ]
        assert [words for program, words in given if "true" in program[0]] == ["arguments", "environment"], (
            "the decoy's"
        )
        assert [program for program, _ in given if "true" not in program[0]] == []


def test_no_program_on_this_computer_was_given_a_secret(host: PlantedHost, known: Forms) -> None:
    """In the environment the two stand that the operator put there; make, ssh and all others pass an environment on."""
    for watch in host.watches:
        programs = watch.programs("here")
        assert any("ssh" in program["arguments"][0] for program in programs)
        for program in programs:
            handed_on = [word for word in program["environment"] if word.partition("=")[0] not in CHOSEN]
            said = "\0".join([*program["arguments"], *handed_on]).encode("latin-1")
            assert known.seen_in(said) == set(), program["arguments"][:3]


def test_no_file_that_held_a_secret_was_open_to_others_for_a_moment(host: PlantedHost, known: Forms) -> None:
    for watch in host.watches:
        files = watch.files_open_to_others()
        assert {file["path"] for file in files} > {"/opt/passing"}
        holding = {file["path"] for file in files if known.seen_in(file["content"].encode("latin-1"))}
        assert holding == {"/opt/passing"}, "the decoy's, and no other"


def test_secrets_lie_on_the_host_where_they_belong_and_nowhere_else(host: PlantedHost, known: Forms) -> None:
    host.sandbox.root(PLANT, stdin="\n".join([DECOY, *forms(DECOY)]) + "\n")
    answer = host.sandbox.ssh().run(SEARCH, stdin=b"\n".join(known.patterns) + b"\n", timeout=300)
    assert answer.status == 0 and answer.stderr == ""
    found = places(answer.stdout.encode(errors="surrogateescape"), known)
    others = {place: names - {"decoy"} for place, names in found.items()}
    assert {place: names for place, names in others.items() if names} == OWN
    decoys = {place for place, names in found.items() if "decoy" in names}
    assert PLANTED | {f"/var/lib/decoys/form-{n}" for n in range(1, len(forms(DECOY)) + 1)} <= decoys
    assert any(place.startswith("/var/lib/docker/overlay2/") for place in decoys)


def test_no_core_of_a_service_is_ever_written(host: PlantedHost) -> None:
    limits = host.sandbox.root(
        "for c in comfyui-qwen forge-turbo gateway; do "
        "for p in $(docker top $c -eo pid | tail -n +2); do grep 'core file' /proc/$p/limits; done; done"
    ).splitlines()
    assert len(limits) >= 8
    assert {" ".join(line.split()[:6]) for line in limits} == {"Max core file size 0 0"}


def test_this_computer_keeps_them_in_one_folder(host: PlantedHost, known: Forms) -> None:
    kept = {path for path in host.store.rglob("*") if path.is_file() and known.seen_in(path.read_bytes())}
    assert {path.name for path in kept} >= {"credentials.yml", "qwen-api-user.token", ".env.generated", "tls.key"}
    for path in [host.store.parent, host.store, *host.store.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0 or path.name == "ca.crt", path
    elsewhere = [path for path in written_here(host) if known.seen_in(content(path))]
    assert elsewhere == []


def test_of_what_was_rotated_nothing_is_kept(host: PlantedHost) -> None:
    former = Forms({name: texts for name, texts in host.secrets.items() if name.startswith("first ")})
    assert [path.name for path in host.store.rglob("*") if path.is_file() and former.seen_in(path.read_bytes())] == []


def written_here(host: PlantedHost) -> list[Path]:
    """Files that may have come from the work: in the checkout, in folders for temporary files, in our cache."""
    began = (host.folder / "hub-token").stat().st_mtime
    own = [path for path in host.checkout.rglob("*") if host.store not in path.parents and ".venv" not in path.parts]
    cache = [path for path in paths.cache_dir().glob("*") if path.name != "sandbox"]
    cache += [paths.cache_dir() / "sandbox" / host.sandbox.name, host.temporary]
    found = [*own, *(path for folder in cache for path in files_below(folder) if path.name != "disk.img")]
    return [path for path in found if stat.S_ISREG((info := path.lstat()).st_mode) and info.st_mtime >= began]


def files_below(folder: Path) -> Iterator[Path]:
    """Without those that go while we look: other tests use the cache meanwhile."""
    for place, _, names in os.walk(folder):
        yield from (path for name in names if (path := Path(place, name)).is_symlink() or path.exists())


def content(path: Path) -> bytes:
    """A file's content; of an archive, that of all files in it."""
    if not tarfile.is_tarfile(path):
        return path.read_bytes()
    with tarfile.open(path) as archive:
        members = [archive.extractfile(member) for member in archive.getmembers() if member.isfile()]
        return b"\n".join(member.read() for member in members if member)
