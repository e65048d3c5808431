"""What a host goes through when the settings name other directories, containers or services: decided from what it recorded."""

import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from test_deployment import deployment, settings

from atelier import deployment as decide
from atelier import manifest, recorded, reorganisation
from atelier.deployment import Deployment
from atelier.displacement import Displaced
from atelier.drift_diff import Diff
from atelier.manifest import Before
from atelier.previous_stack import Found as PreviousStack
from atelier.previous_stack import Inside
from atelier.recorded import Recorded, Roots, Service
from atelier.remains import Container as Attached
from atelier.remains import Docker, Remains
from atelier.reorganisation import Amounts, Container, Found, Reorganisation
from atelier.repairs import Repair
from atelier.tree import File
from atelier.uninstall_packages import Kept
from relocation.plan import How, Plan, Planned, Space

LEFT_ALONE = ["Leaves alone", "  containers theirs: not ours"]
"""What a plan says of a host on which somebody else has a container."""
BEFORE = settings()
OLD = recorded.roots_of(BEFORE)


def declared(**values: object) -> Deployment:
    return replace(deployment(), settings=settings(**values))


def record(**values: object) -> Recorded:
    """What a host has recorded to which these settings were deployed."""
    was = declared(**values)
    layout = recorded.roots_of(was.settings)
    created = {kind: frozenset(names) for kind, names in decide.declared(was).items()}
    ports = {name: service.port for name, service in was.settings.enabled().items()}
    return Recorded(
        schema=2,
        release="1",
        instance="i",
        roots=layout,
        place=layout.state(),
        service_user=was.settings.service_user,
        service_uid=was.settings.service_uid,
        bind_address="127.0.0.1",
        services={
            each.service: Service(each.container, each.config, ports.get(each.service)) for each in was.projects()
        },
        created=created,
        wrote={path: frozenset({digest}) for path, digest in decide.written(was, Before()).items()},
        deployed={"schema": 2},
    )


def host(known: Recorded, **values: object) -> Found:
    """A host that is as these settings have it, and as was recorded."""
    was = declared(**values)
    kinds = dict.fromkeys(known.created["files"], "f") | dict.fromkeys(known.created["directories"], "d")
    kinds |= {f"{was.settings.models_path()}/{name}": "f" for name in known.created["weights"]}
    digests = {
        entry.path: hashlib.sha256(entry.content).hexdigest() for entry in was.entries() if isinstance(entry, File)
    }
    tags = was.image_tags()
    attached = tuple(Attached(each.container, True, tags[each.service], each.networks) for each in was.projects())
    networks = dict.fromkeys(known.created["networks"], True)
    docker = Docker(True, attached, {**networks, "theirs": False}, frozenset({*known.created["images"], "redis:7"}))
    containers = tuple(Container(f"id-{each.name}", each.name, True, "unless-stopped", True) for each in attached)
    theirs = Container("id-theirs", "theirs", False, "always", True)
    return Found(
        Remains(kinds=kinds, digests=digests, docker=docker, users=known.created["users"]), (*containers, theirs)
    )


def planned(now: Deployment, known: Recorded, found: Found, purge: bool = False) -> Reorganisation:
    journal = reorganisation.begin(known, now, found.containers, found.previous)
    return reorganisation.reorganise(known, now, found, journal, purge=purge)


def also(found: Found, digests: Mapping[str, str] | None = None, **kinds: str) -> Found:
    there = found.remains
    return replace(
        found,
        remains=replace(there, kinds={**there.kinds, **kinds}, digests={**there.digests, **(digests or {})}),
    )


def test_a_host_that_is_as_declared_is_left_alone() -> None:
    plan = planned(declared(), record(), host(record()))
    assert plan.is_empty() and not plan.needs_consent()
    assert plan.lines() == LEFT_ALONE and plan.removals == {} and plan.kept == ()


def test_what_lies_among_our_files_is_named_where_it_is_left_alone_and_nowhere_twice() -> None:
    known = record()
    strange, going = "/opt/atelier/services/forge-turbo/notes", "/opt/atelier/services/forge-turbo/compose.yaml"
    found = also(host(known), **{strange: "f", "/opt/atelier/x": "f"})
    found = replace(found, left_alone=tuple(Kept(path, "not ours") for path in (strange, going, "/opt/atelier/x")))
    plan = planned(declared(**REMOVED), known, found)
    assert [each.what for each in plan.left_alone] == ["/opt/atelier/x", "containers theirs"]
    assert "  /opt/atelier/x: not ours" in plan.lines()


FREE = Roots("/opt/atelier", "/data/a", "/data/a/models", "/data/a/outputs")


@pytest.mark.parametrize(
    "after,expected",
    [
        (OLD, {}),
        (replace(OLD, config_root="/opt/other"), {}),
        (replace(OLD, models_dir="/big/models"), {"models": ("/srv/atelier/models", "/big/models")}),
        (replace(OLD, outputs_dir="/big/out"), {"outputs": ("/srv/atelier/outputs", "/big/out")}),
        (
            FREE,
            {
                "models": ("/srv/atelier/models", "/data/a/models"),
                "outputs": ("/srv/atelier/outputs", "/data/a/outputs"),
                "users": ("/srv/atelier/users", "/data/a/users"),
                "state": ("/srv/atelier/state", "/data/a/state"),
            },
        ),
        (
            replace(FREE, models_dir="/srv/atelier/models", outputs_dir="/x"),
            {
                "outputs": ("/srv/atelier/outputs", "/x"),
                "users": ("/srv/atelier/users", "/data/a/users"),
                "state": ("/srv/atelier/state", "/data/a/state"),
            },
        ),
    ],
    ids=["nothing", "configuration", "weights", "outputs", "all data", "data without the weights"],
)
def test_which_directories_move(after: Roots, expected: dict[str, tuple[str, str]]) -> None:
    assert {move.kind: (move.source, move.target) for move in reorganisation.moves(OLD, after)} == expected


def test_nothing_moves_on_a_host_without_a_record() -> None:
    assert reorganisation.moves(None, OLD) == ()


RENAMED = {"services": {"comfyui": {"container": "painter"}}}
REMOVED = {"services": {"forge": {"enabled": False}}}


@pytest.mark.parametrize(
    "values,containers,networks,folder",
    [
        (RENAMED, ["comfyui-qwen.previous"], ["atelier-comfyui-qwen"], "comfyui-qwen"),
        (REMOVED, ["forge-turbo.previous"], ["atelier-forge-turbo"], "forge-turbo"),
        ({"gateway_container": "door"}, ["gateway.previous"], ["atelier-gateway"], "gateway"),
    ],
    ids=["renamed", "removed", "gateway renamed"],
)
def test_what_a_name_leaves_steps_aside_and_goes(
    values: dict[str, object], containers: list[str], networks: list[str], folder: str
) -> None:
    known = record()
    plan = planned(declared(**values), known, host(known))
    assert [each.aside for each in plan.displaced] == containers == [*plan.removals["containers"]]
    assert [*plan.removals["networks"]] == networks
    gone = {*plan.removals["files"], *plan.removals["directories"]}
    places = (f"/opt/atelier/services/{folder}", f"/opt/atelier/secrets/{folder}")
    assert gone == {path for path in known.created["files"] | known.created["directories"] if path.startswith(places)}
    assert plan.needs_consent() and not plan.is_empty()
    assert [line for line in plan.lines() if "theirs" in line] == LEFT_ALONE[1:]


def test_a_new_port_moves_nothing_and_displaces_nobody() -> None:
    assert planned(declared(services={"forge": {"port": 17861}}), record(), host(record())).is_empty()


def test_data_of_a_removed_service_is_kept_and_named_until_it_is_purged() -> None:
    folders = {"/srv/atelier/outputs/forge", "/srv/atelier/users/forge"}
    plan = planned(declared(**REMOVED), record(), host(record()))
    assert {kept.what for kept in plan.kept} == folders and all("PURGE=1" in kept.why for kept in plan.kept)
    assert not folders & {*plan.removals["directories"]}
    assert {*planned(declared(**REMOVED), record(), host(record()), purge=True).removals["data"]} == folders


@pytest.mark.parametrize("how,gone", [("rename", True), ("merge", False), ("copy", False)])
def test_what_is_put_where_others_may_have_something_is_not_purged_at_once(how: How, gone: bool) -> None:
    moving = Plan((Planned("outputs", "/srv/atelier/outputs", "/photos", how),), (), ())
    found = replace(host(record()), relocation=moving)
    plan = planned(declared(outputs_dir="/photos", **REMOVED), record(), found, purge=True)
    assert ("/photos/forge" in plan.removals["data"]) is gone and "/srv/atelier/users/forge" in plan.removals["data"]
    assert ("/photos/forge" in {kept.what for kept in plan.kept}) is not gone


def test_what_nobody_wants_any_more_is_kept_under_its_name_after_a_move() -> None:
    known = record()
    known = replace(known, created={**known.created, "weights": frozenset({"vae/a.safetensors"})})
    plan = planned(declared(**REMOVED, data_root="/data/a"), known, host(known))
    assert {kept.what for kept in plan.kept} == {
        "/data/a/outputs/forge",
        "/data/a/users/forge",
        "/data/a/models/vae/a.safetensors",
    }


def test_another_place_of_the_configuration_empties_the_old_one() -> None:
    known = record()
    plan = planned(declared(config_root="/opt/other"), known, host(known))
    old = {path for path in known.created["files"] if path.startswith("/opt/atelier/")}
    assert {*plan.removals["files"]} == old
    assert {"/opt/atelier", "/opt/atelier/services"} <= {*plan.removals["directories"]}
    assert not any(path.startswith("/srv") for path in plan.removals["directories"])


def test_what_somebody_edited_or_put_there_stays_with_its_folder_and_is_named() -> None:
    known, compose = record(), "/opt/atelier/services/forge-turbo/compose.yaml"
    notes = "/opt/atelier/services/forge-turbo/notes"
    found = also(host(known), {compose: "edited"}, **{notes: "d", f"{notes}/a": "f"})
    plan = planned(declared(**REMOVED), known, found)
    why = {kept.what: kept.why for kept in plan.kept}
    assert why[compose].startswith("somebody edited it") and why[notes] == "no deploy made it"
    assert compose not in plan.removals["files"] and f"{notes}/a" not in why
    assert "/opt/atelier/services/forge-turbo" not in plan.removals["directories"]


def test_networks_and_images_that_others_use_stay() -> None:
    known = record()
    known = replace(
        known, created={**known.created, "images": known.created["images"] | {"atelier/old:1", "atelier/old:2"}}
    )
    found = host(known)
    docker = found.remains.docker
    guest = Attached("guest", False, "atelier/old:1", frozenset({"atelier-forge-turbo"}))
    found = replace(
        found, remains=replace(found.remains, docker=replace(docker, containers=(*docker.containers, guest)))
    )
    plan = planned(declared(**REMOVED), known, found)
    assert "networks" not in plan.removals and plan.removals["images"] == ("atelier/old:2",)
    assert any(kept.what == "the network atelier-forge-turbo" and "guest" in kept.why for kept in plan.kept)


def test_another_user_gets_the_files_and_the_former_one_goes() -> None:
    known = record()
    known = replace(known, created={**known.created, "users": frozenset({"atelier"})})
    found = replace(host(known), remains=replace(host(known).remains, users=frozenset({"atelier"})))
    plan = planned(declared(service_user="painter", service_uid=10002), known, found)
    assert plan.owner == (10001, 10002) and plan.removals["users"] == ("atelier",)
    assert plan.stops_services() and any("10001 -> 10002" in line for line in plan.lines())


@pytest.mark.parametrize(
    "values,told",
    [
        ({}, ""),
        (RENAMED, "comfyui-qwen: from the stop until the successor has started"),
        (REMOVED, "forge-turbo: for good"),
        (
            {"services": {**RENAMED["services"], **REMOVED["services"]}},
            "comfyui-qwen: from the stop until the successor has started; forge-turbo: for good",
        ),
    ],
    ids=["nothing", "renamed", "removed", "both"],
)
def test_who_is_away_for_how_long_is_told_before(values: dict[str, object], told: str) -> None:
    assert planned(declared(**values), record(), host(record())).downtime == told


@pytest.mark.parametrize(
    "user,there_before,told",
    [("atelier", False, True), ("atelier", True, False), ("painter", False, False)],
    ids=["ours", "somebody else's", "another one"],
)
def test_only_a_user_of_ours_gets_another_number(user: str, there_before: bool, told: bool) -> None:
    users = {"users": frozenset({"atelier"})}
    known = record()
    known = replace(known, created={**known.created, **users}, found=users if there_before else {})
    plan = planned(declared(service_user=user, service_uid=10002), known, host(known))
    assert plan.owner == (10001, 10002) and plan.needs_consent()
    assert ("  user     atelier: id 10001 -> 10002" in plan.lines()) is told is bool(plan.user)


@pytest.mark.parametrize(
    "had,changes",
    [
        ("10001 10001", ["usermod -u 10002 atelier", "groupmod -g 10002 atelier"]),
        ("10002 10001", ["groupmod -g 10002 atelier"]),
        ("10002 10002", []),
    ],
)
def test_a_user_s_number_is_changed_as_far_as_it_is_another(had: str, changes: list[str]) -> None:
    user, group = had.split()
    host = f"getent() {{ case $1 in passwd) echo a:x:{user}:;; group) echo a:x:{group}:;; esac; }}\n"
    host += 'usermod() { echo "usermod $*"; }; groupmod() { echo "groupmod $*"; }\n'
    script = reorganisation.user_script("atelier", 10002)
    done = subprocess.run(["sh", "-ec", host + script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == changes


def test_a_unit_that_nothing_asks_for_goes_with_its_file() -> None:
    known, file = record(), "/etc/systemd/system/atelier-former.service"
    known = replace(
        known,
        created={
            **known.created,
            "units": known.created["units"] | {"atelier-former.service", "docker.service"},
            "files": known.created["files"] | {file, "/etc/apt/sources.list.d/atelier-x.sources"},
        },
    )
    plan = planned(declared(), known, host(known))
    assert plan.removals == {"units": ("atelier-former.service",), "files": (file,)}


def move(how: str, **further: object) -> Planned:
    return Planned("models", "/srv/atelier/models", "/big/models", how, **{"files": 3, "bytes": 40 * 10**9, **further})


@pytest.mark.parametrize(
    "how,stops,told",
    [
        ("rename", False, "40.0 GB in 3 files, renamed"),
        ("merge", True, "file by file"),
        ("copy", True, "copied (7.0 GB to go) and verified"),
        ("switched", False, "what is left of the old place goes"),
    ],
)
def test_services_stop_only_where_they_could_write_to_the_old_place(how: str, stops: bool, told: str) -> None:
    found = replace(
        host(record()),
        relocation=Plan((move(how, copy_bytes=7 * 10**9),), (Space("/big", 7 * 10**9, 9 * 10**9, 0),), ()),
    )
    plan = planned(declared(models_dir="/big/models"), record(), found)
    text = "\n".join(plan.lines())
    assert plan.stops_services() is stops and told in text and "7.0 GB on /big" in text
    assert ("all services" in plan.downtime) is stops and plan.needs_consent()


@pytest.mark.parametrize(
    "how,step",
    [
        (["rename"], ""),
        (["rename", "switched"], ""),
        (["merge", "rename"], "Compare what has the same name in both places"),
        (["merge", "copy"], "Copy and verify what crosses file systems"),
    ],
)
def test_only_what_is_copied_or_merged_takes_time_before_the_services_stop(how: list[str], step: str) -> None:
    found = replace(host(record()), relocation=Plan(tuple(move(one) for one in how), (), ()))
    assert planned(declared(models_dir="/big/models"), record(), found).prepares_data() == step


def test_what_the_moves_cannot_do_is_an_obstacle() -> None:
    found = replace(host(record()), relocation=Plan((), (), ("/srv/atelier/models/x is a mount point",)))
    plan = planned(declared(models_dir="/big/models"), record(), found)
    assert [each.problem for each in plan.obstacles] == ["/srv/atelier/models/x is a mount point"]


def test_a_name_that_is_taken_by_another_is_an_obstacle() -> None:
    found = host(record())
    other = Container("id-other", "forge-turbo.previous", False, "no", False)
    plan = planned(declared(**REMOVED), record(), replace(found, containers=(*found.containers, other)))
    assert "forge-turbo.previous" in plan.obstacles[0].problem


def test_a_journal_outlives_a_kill_after_the_names_changed() -> None:
    known, now = record(), declared(**RENAMED)
    first = reorganisation.begin(known, now, host(known).containers, PreviousStack())
    assert [each.id for each in first.displaced] == ["id-comfyui-qwen"]
    renamed = tuple(
        replace(each, name="comfyui-qwen.previous", running=False) if each.id == "id-comfyui-qwen" else each
        for each in host(known).containers
    )
    fresh = (*renamed, Container("id-painter", "painter", True, "unless-stopped", True))
    begun = replace(first, switching=True)
    again = reorganisation.resumed(begun, reorganisation.begin(known, now, fresh, PreviousStack()))
    assert again.displaced == first.displaced
    assert [each.name for each in reorganisation.going(again, Found(containers=fresh))] == ["comfyui-qwen"]
    found = replace(host(known), containers=fresh)
    plan = reorganisation.reorganise(known, now, found, again)
    assert plan.removals["containers"] == ("comfyui-qwen.previous",) and not plan.obstacles


def test_what_stepped_aside_goes_also_where_the_journal_is_gone() -> None:
    found = host(record())
    left = Container("id-left", "forge-turbo.previous", True, "no", False)
    found = replace(found, containers=(*found.containers, left))
    plan = planned(declared(), record(), found)
    assert plan.removals == {"containers": ("forge-turbo.previous",)} and not plan.displaced


def test_a_container_that_somebody_else_called_previous_is_named_and_stays() -> None:
    theirs = Displaced("9", "comfyui-qwen", running=False, why="ours gets the name comfyui-qwen")
    there = Container("9", theirs.aside, False, "no", False)
    known = host(record())
    found = replace(known, containers=(*known.containers, there), previous=PreviousStack(aside=(theirs,)))
    plan = planned(declared(), record(), found)
    assert plan.is_empty() and "docker rm comfyui-qwen.previous" in "".join(plan.lines())
    journal = replace(reorganisation.begin(record(), declared(), (), PreviousStack()), previous=(theirs,))
    assert reorganisation.reorganise(record(), declared(), found, journal).removals["containers"] == (theirs.aside,)


def test_before_anything_changed_places_other_settings_may_take_over() -> None:
    known = record()
    begun = reorganisation.begin(known, declared(data_root="/data/a"), (), PreviousStack())
    now = reorganisation.begin(known, declared(data_root="/data/b"), (), PreviousStack())
    assert reorganisation.conflict(begun, settings(data_root="/data/b")) is None
    assert {move.target for move in reorganisation.resumed(begun, now).moves} == {
        f"/data/b/{name}" for name in ("models", "outputs", "users", "state")
    }
    moving = replace(begun, switching=True)
    finding = reorganisation.conflict(moving, settings(data_root="/data/b"))
    assert finding and "data_root: /data/a" in finding.remedy
    assert reorganisation.conflict(moving, settings(data_root="/data/a")) is None


def test_what_is_prepared_goes_where_data_and_owner_still_are() -> None:
    now = settings(data_root="/data/a", service_uid=10002, service_user="painter", config_root="/opt/other")
    interim = reorganisation.interim(now, record())
    assert recorded.roots_of(interim) == replace(OLD, config_root="/opt/other")
    assert (interim.service_user, interim.service_uid) == ("atelier", 10001)
    assert reorganisation.interim(now, Recorded()) is now


@pytest.mark.parametrize(
    "samples,words",
    [
        ([], "was not seen to answer"),
        ([(0, False), (1, False)], "was not seen to answer"),
        ([(0, True), (0.2, True)], "away for 0.0 s"),
        ([(0, True), (1, False), (2, False), (3.5, True), (4, True)], "away for 3.5 s"),
        ([(0, True), (1, False), (2, True), (3, False), (5, True)], "away for 5.0 s"),
        ([(0, True), (1, False)], "does not answer"),
        ([(0, False), (1, True), (2, True)], "was not there before, then away for 0.0 s"),
    ],
)
def test_how_long_a_service_was_away(samples: list[tuple[float, bool]], words: str) -> None:
    assert reorganisation.away(samples) == words


@pytest.mark.parametrize(
    "problem,lines,shown",
    [
        ("/opt/atelier/services/gateway/compose.yaml differs", ("-a", "+b"), True),
        ("/opt/atelier/services/gateway/.env differs", ("-a", "+b"), False),
        ("/opt/atelier/services/gateway is missing", (), True),
        ("/opt/atelier/services/of-now is missing", (), False),
        ("/srv/atelier/state has mode 777 and must have 755", (), True),
        ("/srv/atelier/state/manifest.json does not name 3 of our files: a", (), False),
        ("there is no user painter", (), False),
    ],
)
def test_only_what_somebody_did_by_hand_is_shown(problem: str, lines: tuple[str, ...], shown: bool) -> None:
    there = also(host(record()), {"/opt/atelier/services/gateway/compose.yaml": "edited"}).remains
    assert bool(reorganisation.by_hand([Diff(problem, lines)], record(), there)) is shown


def test_the_removals_do_what_they_say(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/file").touch()
    plan = Reorganisation(
        removals={"files": (f"{folder}/inner/file",), "directories": (str(folder), f"{folder}/inner"), "data": ()}
    )
    for step in reorganisation.removal_steps(plan, 10001):
        subprocess.run(["sh", "-ec", step.script], input=step.stdin, check=True)
        subprocess.run(["sh", "-ec", step.script], input=step.stdin, check=True)
    assert not folder.exists()


@pytest.mark.parametrize("own", [True, False], ids=["the service user's", "somebody else's"])
@pytest.mark.parametrize("linked", [False, True])
def test_of_data_only_what_is_the_service_user_s_is_purged(own: bool, linked: bool, tmp_path: Path) -> None:
    folder, weight, outside = tmp_path / "out puts", tmp_path / "weight", tmp_path / "outside"
    (folder / "inner dir").mkdir(parents=True)
    (folder / "where Docker mounts").mkdir()
    outside.mkdir()
    kept = [folder / "inner dir/im age.png", folder / "of $HOME `it`.png", outside / "file"]
    for file in (*kept, weight):
        file.touch()
    (folder / "link").symlink_to(outside)
    given = folder
    if linked:
        given = tmp_path / "link"
        given.symlink_to(folder)
    uid = os.getuid() + (0 if own else 1)
    plan = Reorganisation(removals={"data": (str(given), str(weight), f"{tmp_path}/gone")})
    for _ in range(2):
        for step in reorganisation.removal_steps(plan, uid):
            subprocess.run(["sh", "-ec", step.script], input=step.stdin, check=True)
    assert not weight.exists() and (outside / "file").exists() and not (folder / "where Docker mounts").exists()
    if own:
        assert folder.exists() is linked and not any(file.exists() for file in kept[:2])
        assert not linked or list(folder.iterdir()) == []
    else:
        assert all(file.exists() for file in kept)


def test_what_others_have_in_the_folder_of_a_service_is_named_before_it_is_purged() -> None:
    mine, mount = "/srv/atelier/outputs/forge/mine.txt", "/srv/atelier/outputs/forge/disk"
    found = host(record())
    there = replace(
        found.remains, foreign=frozenset({mine, "/srv/atelier/outputs/comfyui/other"}), mounts=frozenset({mount})
    )
    plan = planned(declared(**REMOVED), record(), replace(found, remains=there), purge=True)
    assert {kept.what: kept.why for kept in plan.kept} == {
        mine: "it is not the service user's",
        mount: "it is mounted there",
    }
    assert "/srv/atelier/outputs/forge" in plan.removals["data"]
    kept = planned(declared(**REMOVED), record(), replace(found, remains=there))
    assert {each.what for each in kept.kept} == {"/srv/atelier/outputs/forge", "/srv/atelier/users/forge"}


@pytest.mark.parametrize("purge", [False, True])
def test_data_is_named_with_its_size_in_plan_and_summary(purge: bool) -> None:
    known = record()
    known = replace(known, created={**known.created, "weights": frozenset({"vae/a.safetensors"})})
    found, weight = host(known), "/srv/atelier/models/vae/a.safetensors"
    sizes = {"/srv/atelier/outputs/forge": 1_234_000_000, "/srv/atelier/users/forge": 4096, weight: 5_600_000}
    found = replace(found, remains=replace(found.remains, sizes=sizes))
    plan = planned(declared(**REMOVED, outputs_dir="/big/out"), known, found, purge=purge)
    told = ["/big/out/forge (1.2 GB)", "/srv/atelier/users/forge (4096 bytes)", f"{weight} (5.6 MB)"]
    text, line = "\n".join(plan.lines()), reorganisation.summary(plan, Amounts(), {})
    assert all(each in text and each in line for each in told), (text, line)


def test_the_manifest_follows_the_directories_and_forgets_what_went() -> None:
    now = declared(**REMOVED)
    text = manifest.updated("", decide.declared(declared()), Before(), decide.written(declared(), Before()), "1")
    text = manifest.moved(text, [("/srv/atelier/outputs", "/x"), ("/srv/atelier/state", "/y/state")], "1")
    created = manifest.created(text)
    assert "/x/forge" in created["directories"] and "/srv/atelier/outputs/forge" not in created["directories"]
    assert "/y/state/manifest.json" in created["files"] and "comfyui-qwen" in created["containers"]
    assert manifest.moved(text, [("/srv/atelier/outputs", "/x")], "1") == text
    assert "/new" in manifest.created(manifest.moved(text, [], "1", ["/new"]))["directories"]
    plan = planned(now, record(), host(record()))
    left = manifest.created(
        manifest.without_names(text, reorganisation.forgotten(plan, "/srv/atelier/models", ()), "1")
    )
    assert "forge-turbo" not in left["containers"] and "comfyui-qwen" in left["containers"]
    assert not [path for path in left["files"] if "services/forge-turbo" in path]


@pytest.mark.parametrize(
    "mirrors,hub,told",
    [
        ([], True, "huggingface.co"),
        (["http://m:8000", "file:///mnt"], True, "http://m:8000, else file:///mnt, else huggingface.co"),
        (["http://m:8000"], False, "http://m:8000"),
        ([], False, "nowhere"),
    ],
)
def test_the_plan_says_where_weights_come_from(mirrors: list[str], hub: bool, told: str) -> None:
    plan = planned(
        declared(models={"mirrors": mirrors, "hub": hub}), record(), replace(host(record()), fetches=7_000_000)
    )
    assert f"  7.0 MB of weights from {told}" in plan.lines()


@pytest.mark.parametrize(
    ("size", "told"), [(99_999, "99999 bytes"), (125_165_568, "125.2 MB"), (1_000_000_000, "1.0 GB")]
)
def test_what_was_copied_is_told_to_a_few_hundredths(size: int, told: str) -> None:
    assert reorganisation.amount(size) == told


def test_the_summary_says_what_it_came_to() -> None:
    plan = planned(declared(**REMOVED), record(), host(record()))
    line = reorganisation.summary(plan, Amounts(renamed=12_300_000_000), {"comfyui": "away for 4.2 s"})
    assert line.startswith("Reprovisioned: 0 bytes fetched, 12.3 GB renamed, 0 bytes copied; ComfyUI away for 4.2 s")
    assert "containers forge-turbo.previous" in line and "left over: /srv/atelier/outputs/forge" in line
    bare = Reorganisation()
    line = reorganisation.summary(bare, Amounts(fetched=7_000_000, brought=5_000_000), {})
    assert line == (
        "Reprovisioned: 7.0 MB fetched (5.0 MB of it from the old host), 0 bytes renamed, 0 bytes copied; "
        "no service was there before; removed: nothing; left over: nothing."
    )


def test_a_file_that_a_repair_puts_back_is_told_once() -> None:
    diffs = tuple(Diff(f"{path} is not valid JSON", ()) for path in ("/etc/docker/daemon.json", "/etc/docker"))
    broken = Repair("Docker does not take /etc/docker/daemon.json: no JSON", "Put ours back")
    for repair, told in ((broken, diffs[1:]), (replace(broken, what="", why="the host had its own"), diffs)):
        found = replace(host(record()), diffs=diffs, repairs=(repair,))
        assert planned(declared(), record(), found).diffs == told


def test_previous_containers_step_aside_and_what_only_one_has_is_kept() -> None:
    old = Displaced("1", "comfyui-qwen", networks=("comfyui-qwen_default", "bridge"))
    own = Inside("1", "/app/a.ckpt", "/srv/atelier/previous/a.ckpt", 7_000_000)
    stack = PreviousStack(containers=(old,), search=("/m", "/srv/atelier/previous"), inside=(own,))
    found = replace(host(Recorded(created=record().created)), previous=stack)
    found = replace(found, containers=(Container("1", "comfyui-qwen", False, "always", True),), remains=Remains())
    plan = planned(declared(), Recorded(), found)
    assert plan.displaced == (old,) and plan.removals["containers"] == ("comfyui-qwen.previous",)
    assert [kept.what for kept in plan.kept] == ["/srv/atelier/previous"]
    text = "\n".join(plan.lines())
    assert "networks     comfyui-qwen_default (where nobody else is in it)" in text and "bridge" not in text
    assert sum(plan.needs.values()) == 7_000_000 and "Needs\n  7.0 MB on " in text


def test_our_container_is_known_by_the_name_that_an_old_one_had() -> None:
    old = Displaced("1", "comfyui-qwen")
    containers = (Container("1", "comfyui-qwen", False, "always", True),)
    found = Found(containers=containers, previous=PreviousStack(containers=(old,)))
    plan = planned(declared(), Recorded(), found)
    assert reorganisation.forgotten(plan, "/m", {"comfyui-qwen"})["containers"] == ()
    assert reorganisation.forgotten(plan, "/m", {"art"})["containers"] == ("comfyui-qwen",)
