"""A half-dead host: from what it answers to what is repaired, and what is named and left alone."""

from dataclasses import replace
from typing import Any

import pytest

from atelier import ailments, repairs
from atelier.ailments import Ailments, Container, Docker, FileSystem, Key, Packages
from atelier.apt import Repository
from atelier.repairs import Repair
from atelier.tree import File

OURS = Repository(
    "docker",
    "https://download.docker.com/linux/debian/gpg",
    "A" * 40,
    "/etc/apt/keyrings/docker.asc",
    File("/etc/apt/sources.list.d/docker.sources", b""),
)
UP = Docker(load="loaded", active="active", answers=True)
WELL = Ailments(file_systems=(FileSystem("/", 50 << 30, 1_000_000),), docker=UP)
GB = 1_000_000_000
FULL = replace(WELL, lacking={"/": 5 * GB}, image_mount="/", parts_mount="/")


def loaded(**facts: Any) -> Ailments:
    return replace(WELL, docker=Docker(load="loaded", **facts))


def test_of_a_healthy_host_there_is_nothing_to_say() -> None:
    assert repairs.plan(WELL) == () and repairs.lines(()) == []


def test_a_bare_machine_without_docker_is_healthy() -> None:
    assert repairs.plan(replace(WELL, docker=Docker(load="not-found"))) == ()


REPAIRED: dict[str, tuple[Ailments, str, str, bool]] = {
    "docker failed": (
        loaded(active="failed", result="start-limit-hit", said="boom"),
        "failed (start-limit-hit): boom",
        "start docker",
        False,
    ),
    "docker stopped": (
        loaded(active="inactive", said="an error of before"),
        "Docker does not run: it is inactive: start Docker",
        "reset-failed docker",
        False,
    ),
    "docker hangs, containers stay": (
        loaded(active="active", keeps_containers=True),
        "Docker does not answer: restart Docker",
        "restart docker",
        False,
    ),
    "our daemon.json": (
        loaded(active="failed", invalid="invalid character", our_settings='{"a": 1}\n'),
        "Docker does not take /etc/docker/daemon.json: invalid character: put ours back",
        ".broken-$(date +%s)",
        False,
    ),
    "dpkg was killed": (
        replace(WELL, packages=Packages(unfinished=("jq", "libjq1"))),
        "an installation of packages broke off (jq, libjq1)",
        "dpkg --configure -a",
        False,
    ),
    "a package to install anew": (
        replace(WELL, packages=Packages(reinstall=("jq",), available=frozenset({"jq"}))),
        "(jq)",
        "install --reinstall jq",
        False,
    ),
    "dependencies that can be had": (
        replace(WELL, packages=Packages(broken="foo : Depends: bar")),
        "(foo : Depends: bar)",
        "--no-remove",
        False,
    ),
    "unused images on a full disk": (
        replace(FULL, images={"atelier/comfyui:old": 6 * GB}),
        "/ lacks 5.0 GB: remove images of ours that nothing uses, up to 6.0 GB: atelier/comfyui:old",
        "docker image rm atelier/comfyui:old",
        True,
    ),
    "the build cache on a full disk": (
        replace(FULL, build_cache=7 * GB),
        "/ lacks 5.0 GB: empty Docker's build cache, 7.0 GB",
        "docker builder prune -a -f",
        True,
    ),
    "begun transfers on a full disk": (
        replace(FULL, parts={"/srv/a b.part": 9 * GB}),
        "/ lacks 5.0 GB: remove begun transfers",
        "rm -f -- '/srv/a b.part'",
        True,
    ),
    "ours restarts for ever": (
        replace(WELL, containers=(Container("forge-turbo", True, 14, 1),), declared=frozenset({"forge-turbo"})),
        "the container forge-turbo starts again and again (exit 1): remove forge-turbo; the deploy that follows makes it again",
        "docker rm -f -v forge-turbo",
        False,
    ),
    "ours is half removed": (
        replace(WELL, containers=(Container("gateway", True, 0, 0, dead=True),), declared=frozenset({"gateway"})),
        "the container gateway is half removed",
        "docker rm -f -v gateway",
        False,
    ),
}


@pytest.mark.parametrize(("facts", "told", "script", "asks"), REPAIRED.values(), ids=REPAIRED)
def test_what_is_repaired(facts: Ailments, told: str, script: str, asks: bool) -> None:
    (repair,) = repairs.plan(facts)
    assert told in "\n".join(repair.lines()) and script in repair.script
    assert repair.removes is asks and not repair.stops and repair.remedy


def test_a_key_of_ours_is_fetched_anew() -> None:
    (repair,) = repairs.plan(replace(WELL, keys=(Key("https://download.docker.com/linux/debian", "f", OURS),)))
    assert repair.repository is OURS and not repair.script
    assert "has expired: fetch the key anew, and compare it with its fingerprint" in repair.lines()[0]


LEFT: dict[str, tuple[Ailments, str, str, bool]] = {
    "clock": (replace(WELL, clock_off=-800 * 86400.0), "clock is 800 days behind", "timedatectl", True),
    "read-only": (
        replace(WELL, file_systems=(FileSystem("/srv", 1 << 40, None, read_only=True),)),
        "/srv is mounted read-only",
        "fsck",
        True,
    ),
    "no names left": (
        replace(WELL, file_systems=(FileSystem("/", 1 << 40, 3),)),
        "room for 3 more files",
        "du --inodes",
        True,
    ),
    "a disk full of others' files": (
        replace(FULL, largest={"/home/x": 400 * GB}),
        "/ lacks 5.0 GB: not touched: what else is on it is needed, or not ours; the largest there: /home/x 400.0 GB",
        "apt-get clean",
        True,
    ),
    "a full disk that data is about to leave": (
        replace(FULL, largest={"/home/x": 400 * GB}, leaving=frozenset({"/"})),
        "/ lacks 5.0 GB: not touched: what moves away from it makes room",
        "verify says",
        False,
    ),
    "a package that is nowhere": (
        replace(WELL, packages=Packages(reinstall=("rtl8821",))),
        "the installation of rtl8821 broke off",
        "--force-remove-reinstreq rtl8821",
        True,
    ),
    "apt would remove": (
        replace(WELL, packages=Packages(broken="foo : Depends: bar", removals=("foo",))),
        "apt would mend that by removing foo",
        "--fix-broken install",
        True,
    ),
    "another's key": (
        replace(WELL, keys=(Key("https://apt.example/debian", "/etc/apt/sources.list.d/x.list"),)),
        "/etc/apt/sources.list.d/x.list is not ours; apt goes on",
        "/etc/apt/sources.list.d/x.list",
        False,
    ),
    "masked": (replace(WELL, docker=Docker(load="masked")), "Docker is masked", "unmask", True),
    "another's daemon.json": (
        loaded(active="failed", invalid="invalid character", settings_before=True),
        "Docker does not take /etc/docker/daemon.json: invalid character: not touched",
        "/etc/docker/daemon.json.before-atelier",
        True,
    ),
    "docker hangs, containers would end": (loaded(active="active"), "lack live-restore", "when they may stop", True),
    "another's container": (
        replace(WELL, containers=(Container("theirs", False, 99, 137),)),
        "the container theirs starts again and again (exit 137): not touched: it is not ours",
        "docker update --restart no theirs",
        False,
    ),
}


@pytest.mark.parametrize(("facts", "told", "remedy", "stops"), LEFT.values(), ids=LEFT)
def test_what_is_not_touched(facts: Ailments, told: str, remedy: str, stops: bool) -> None:
    (repair,) = repairs.plan(facts)
    assert not repair.what and not repair.script and not repair.removes
    assert told in repair.lines()[0] and remedy in repair.lines()[1] and repair.stops is stops


def test_what_looks_broken_while_somebody_installs_is_work_in_progress() -> None:
    assert repairs.plan(replace(WELL, packages=Packages("unattended-upgr(process 9)", ("jq",)))) == ()


def test_a_wrong_clock_does_not_condemn_keys() -> None:
    facts = replace(WELL, clock_off=5000 * 86400.0, keys=(Key("https://apt.example/debian"),))
    assert ["clock" in repair.problem for repair in repairs.plan(facts)] == [True]


def test_room_comes_before_packages_before_docker_before_containers() -> None:
    facts = replace(
        FULL,
        parts={"/p": GB},
        packages=Packages(unfinished=("jq",)),
        docker=Docker(load="loaded", active="failed", result="exit-code"),
        containers=(Container("theirs", False, 9, 1),),
    )
    words = ["begun transfers", "Finish", "Start", ""]
    assert all(word in repair.what for word, repair in zip(words, repairs.plan(facts), strict=True))


def test_of_a_dead_docker_on_a_full_disk_it_is_not_said_that_nothing_can_be_freed() -> None:
    facts = replace(FULL, docker=Docker(load="loaded", active="failed", result="exit-code"))
    assert [repair.what for repair in repairs.plan(facts)] == ["Start Docker"]


@pytest.mark.parametrize(("freed", "stops"), [(4 * GB, True), (5 * GB, False)])
def test_what_can_be_freed_is_enough_or_not(freed: int, stops: bool) -> None:
    facts = replace(FULL, images={"atelier/a:1": freed - GB}, parts={"/p": GB})
    assert any(repair.stops for repair in repairs.plan(facts)) is stops


def test_images_on_another_disk_are_left() -> None:
    assert [
        repair.what for repair in repairs.plan(replace(FULL, image_mount="/data", images={"atelier/a:1": 9 * GB}))
    ] == [""]


def test_a_container_of_ours_that_is_declared_no_more_is_the_plans() -> None:
    assert repairs.plan(replace(WELL, containers=(Container("old-name", True, 9, 1),))) == ()


NOW = 1_800_000_000.0
SQV = (
    "Sub-process /usr/bin/sqv returned an error code (1), error message is: Signing key on 618F6E6AAC351CFC68EF718D7C3AB17815518707 "
    "is bad:            The primary key is not live   because: Expired on 2020-01-31T00:00:00Z"
)
ANSWER = f"""
::ailments::clock
1800000002
::ailments::systems
rw 1000 10 20 /
ro 2000 - - /srv
rw 3000 0 0 /var/lib/a b
::ailments::unit
LoadState=loaded
ActiveState=active
Result=success
::ailments::docker
answers
c /gateway ours false false 0 0 2027-01-15T07:00:00.123456789Z
c /loops ours true false 5 1 2027-01-15T07:00:00.123456789Z
c /often - false false 3 137 2027-01-15T07:58:00.123456789Z
c /long-ago - false false 30 137 2027-01-15T07:00:00.123456789Z
c /dead - false true 0 0 0001-01-01T00:00:00Z
::ailments::holder
::ailments::packages
installed ok apt
half-configured ok jq
unpacked reinstreq libx
updates - -
available - libx
::ailments::broken
E: The package cache is broken
 foo : Depends: bar but it is not installed
::ailments::removals
foo
::ailments::sources
/etc/apt/sources.list.d/docker.sources:URIs: https://download.docker.com/linux/debian
/etc/apt/sources.list.d/x.list:deb [signed-by=/k.gpg] file:///srv/theirs s main
::ailments::refused
W: GPG error: https://download.docker.com/linux/debian trixie InRelease: The following signatures were invalid: EXPKEYSIG 7EA0 Docker <d@x>
W: OpenPGP signature verification failed: file:/srv/theirs s InRelease: {SQV}
W: GPG error: https://other.example s InRelease: The following signatures couldn't be verified: NO_PUBKEY 1234
E: The repository 'https://download.docker.com/linux/debian trixie InRelease' is not signed.
"""


def test_what_the_host_answers() -> None:
    facts = ailments.parse(ANSWER, NOW, [OURS])
    assert facts.clock_off == 2
    assert facts.file_systems == (
        FileSystem("/", 1000, 10),
        FileSystem("/srv", 2000, None, True),
        FileSystem("/var/lib/a b", 3000),
    )
    assert facts.docker == Docker("loaded", "active", "success", answers=True)
    assert facts.containers == (
        Container("loops", True, 5, 1),
        Container("often", False, 3, 137),
        Container("dead", False, 0, 0, True),
    )
    assert facts.packages == Packages(
        "",
        ("jq", "libx"),
        ("libx",),
        frozenset({"libx"}),
        "The package cache is broken; foo : Depends: bar but it is not installed",
        ("foo",),
    )
    assert facts.keys == (
        Key("https://download.docker.com/linux/debian", "/etc/apt/sources.list.d/docker.sources", OURS),
        Key("file:/srv/theirs", "/etc/apt/sources.list.d/x.list"),
    )


def test_a_dead_docker_says_why() -> None:
    told = "::ailments::docker\ninvalid unable to configure: x\nsaid failed to start\nkeeps\nbefore\n"
    facts = ailments.parse(told, NOW).docker
    assert (facts.answers, facts.invalid, facts.said) == (False, "unable to configure: x", "failed to start")
    assert facts.keeps_containers and facts.settings_before


SPACE = f"""
::ailments::mounts
/
/srv
::ailments::parts
2048 /srv/atelier/models/.incoming/{"a" * 64}.part
4096 /srv/atelier/models/.incoming/{"b" * 64}.part
8 /srv/atelier/models/.incoming/notes.txt
::ailments::used
sha256:1
::ailments::images
sha256:1 10 atelier/gateway:run
sha256:2 20 atelier/comfyui:wanted
sha256:3 30 atelier/comfyui:old
::ailments::cache
1.25GB
::ailments::largest
9000	/
8000	/home
7900	/home/x
500	/var
"""


OUR_IMAGES = ["atelier/gateway:run", "atelier/comfyui:wanted", "atelier/comfyui:old"]


def test_what_could_be_freed() -> None:
    facts = ailments.with_space(WELL, SPACE, ["atelier/comfyui:wanted"], ["a" * 64], OUR_IMAGES)
    assert facts.images == {"atelier/comfyui:old": 30} and facts.image_mount == "/"
    assert facts.parts == {f"/srv/atelier/models/.incoming/{'b' * 64}.part": 4096 * 512} and facts.parts_mount == "/srv"
    assert facts.build_cache == 1_250_000_000
    assert facts.largest == {"/home/x": 7900, "/var": 500}


def test_a_build_cache_that_may_be_anothers_is_not_emptied() -> None:
    # Somebody else may call theirs as we do.
    assert not ailments.with_space(WELL, SPACE, [], [], ["atelier/gateway:run"]).images
    theirs = SPACE.replace("atelier/comfyui:old", "theirs:1")
    facts = ailments.with_space(WELL, theirs, ["atelier/comfyui:wanted"], [], OUR_IMAGES)
    assert facts.build_cache == 0 and facts.images == {}


@pytest.mark.parametrize(("told", "size"), [("0B", 0), ("5.5kB", 5500), ("12MB", 12_000_000), ("", 0)])
def test_sizes_in_dockers_words(told: str, size: int) -> None:
    assert ailments.with_space(WELL, f"::ailments::cache\n{told}\n", [], [], []).build_cache == size


def test_a_repair_is_told_in_one_line_and_what_is_left_in_two() -> None:
    assert repairs.lines([Repair("a", "Do b", "c"), Repair("d", why="e", remedy="f")]) == [
        "a: do b",
        "d: not touched: e",
        "  -> f",
    ]
