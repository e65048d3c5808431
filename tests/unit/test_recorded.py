"""What a host has recorded of itself: found wherever it lies, read in every schema, and compared with the settings."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from atelier import SCHEMA, recorded
from atelier.errors import AtelierError
from atelier.recorded import Recorded, Roots, Service
from atelier.settings import Settings, build_settings
from atelier.ssh import Completed, Destination
from atelier.verify import read_deployed

SETTINGS = build_settings([])
OURS = Roots("/opt/atelier", "/srv/atelier", "/srv/atelier/models", "/srv/atelier/outputs")
ELSEWHERE = Roots("/opt/house", "/data/house", "/weights", "/data/house/outputs")
UNIT = "RequiresMountsFor={store} {state}/weights\nWorkingDirectory={lib}\n"
DEPLOYED = {
    "schema": 1,
    "instance": "i",
    "release": "0.1.0",
    "services": {
        "comfyui": {"container": "comfyui-qwen", "config": "c1"},
        "forge": {"container": "forge-turbo", "config": "f1"},
        "gateway": {"container": "gateway", "config": "g1"},
    },
    "packages": {"aria2": "1.36"},
    "gpus": {},
}
LAYOUT = {"service_user": "house", "service_uid": 12000, "bind_address": "10.0.0.1"}
MANIFEST = {
    "schema": 1,
    "release": "0.1.0",
    "created": {"packages": ["aria2"], "files": ["/a", "/b"], "users": ["house"]},
}
ENV = 'IMAGE="x"\nSERVICE_UID="10001"\nBIND_ADDRESS="127.0.0.1"\nCOMFYUI_PORT="8188"\nFORGE_PORT="7860"\n'


def of_schema_1(roots: Roots = OURS) -> dict[str, str]:
    state = f"{roots.data_root}/state"
    return {
        recorded.UNIT: UNIT.format(store=roots.models_dir, state=state, lib=f"{roots.config_root}/lib"),
        f"{state}/instance": "i\n",
        f"{state}/credentials": "f\n",
        f"{state}/schema": "1\n",
        f"{state}/deployed.json": json.dumps(DEPLOYED, indent=1) + "\n",
        f"{state}/manifest.json": json.dumps(MANIFEST, indent=1) + "\n",
        f"{roots.config_root}/services/gateway/.env": ENV,
        f"{roots.config_root}/services/forge-turbo/.env": 'SERVICE_UID="10001"\n',
        f"{roots.data_root}/users/comfyui/settings": "",
    }


def of_schema_2(roots: Roots = ELSEWHERE) -> dict[str, str]:
    state = f"{roots.data_root}/state"
    ports: dict[str, dict[str, object]] = {
        "comfyui": {"port": 9001},
        "forge": {"port": 9002},
        "gateway": {"port": None},
    }
    services = {name: {**service, **ports[name]} for name, service in DEPLOYED["services"].items()}  # type: ignore[attr-defined]
    layout = {**vars(roots), **LAYOUT}
    deployed = {**DEPLOYED, "schema": 2, "release": "0.2.0", "services": services, "layout": layout}
    manifest = {
        **MANIFEST,
        "schema": 2,
        "release": "0.2.0",
        "found": {"files": ["/b"], "packages": ["bash=5"]},
        "wrote": {"/a": ["1", "2"]},
    }
    return {
        recorded.ANCHOR: json.dumps({"schema": 2, "instance": "i", **vars(roots)}, indent=1) + "\n",
        f"{state}/instance": "i\n",
        f"{state}/credentials": "f\n",
        f"{state}/schema": "2\n",
        f"{state}/deployed.json": json.dumps(deployed, indent=1) + "\n",
        f"{state}/manifest.json": json.dumps(manifest, indent=1) + "\n",
    }


def asked(root: Path, files: Mapping[str, str], settings: Settings = SETTINGS) -> dict[str, str]:
    """The documents of a host that has these files, as the script finds them."""
    for path, text in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    answer = subprocess.run(
        ["sh", "-u", "-c", recorded.script(settings, str(root))], capture_output=True, text=True, check=True
    )
    assert not answer.stderr
    return recorded.documents("\n::atelier::os\nID=debian\n" + answer.stdout + "\n::atelier::lock\n\n")


def read(root: Path, files: Mapping[str, str], settings: Settings = SETTINGS) -> Recorded:
    return recorded.parse(asked(root, files, settings))


def test_a_bare_host_has_recorded_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, {}) == Recorded()
    assert read(tmp_path, {"/srv/atelier/models/a": ""}) == Recorded()


def test_a_host_of_this_schema_is_found_by_its_anchor(tmp_path: Path) -> None:
    found = read(tmp_path, of_schema_2())
    assert (found.schema, found.release, found.instance, found.fingerprint) == (2, "0.2.0", "i", "f")
    assert (found.roots, found.place) == (ELSEWHERE, "/data/house/state")
    assert (found.service_user, found.service_uid, found.bind_address) == ("house", 12000, "10.0.0.1")
    assert found.services == {
        "comfyui": Service("comfyui-qwen", "c1", 9001),
        "forge": Service("forge-turbo", "f1", 9002),
        "gateway": Service("gateway", "g1"),
    }
    assert found.ours("files") == {"/a"} and found.ours("packages") == {"aria2"} and not found.ours("units")
    assert found.found["packages"] == {"bash=5"} and found.wrote == {"/a": {"1", "2"}}
    assert found.deployed["packages"] == {"aria2": "1.36"} and not found.damaged and not found.refusal()


@pytest.mark.parametrize(
    "roots", [OURS, Roots("/opt/house", "/data/house", "/data/house/models", "/data/house/outputs")]
)
def test_a_host_of_schema_1_is_found_by_its_unit_and_migrated(tmp_path: Path, roots: Roots) -> None:
    found = read(tmp_path, of_schema_1(roots))
    assert (found.schema, found.release, found.instance, found.roots) == (1, "0.1.0", "i", roots)
    assert found.place == f"{roots.data_root}/state"
    assert (found.service_user, found.service_uid) == (tmp_path.owner(), 10001)
    assert found.bind_address == "127.0.0.1"
    assert {name: service.port for name, service in found.services.items()} == {
        "comfyui": 8188,
        "forge": 7860,
        "gateway": None,
    }
    assert found.created["files"] == {"/a", "/b"} and found.found == {} and found.wrote == {}
    assert found.ours("groups") == found.ours("users") == {"house"}


def test_migrated_documents_are_those_of_this_schema(tmp_path: Path) -> None:
    texts = recorded.migrate(asked(tmp_path, of_schema_1()))
    assert json.loads(texts["anchor"]) == {"schema": 2, "instance": "i", **vars(OURS)}
    deployed = json.loads(texts["deployed"])
    assert deployed["layout"] == {
        **vars(OURS),
        "service_user": tmp_path.owner(),
        "service_uid": 10001,
        "bind_address": "127.0.0.1",
    }
    assert {json.loads(texts[name])["schema"] for name in ("anchor", "deployed", "manifest")} == {SCHEMA}
    assert texts["schema"] == str(SCHEMA)
    assert recorded.migrate(texts) == texts


@pytest.mark.parametrize(
    "left",
    [("manifest.json",), ("manifest.json", "anchor"), ("manifest.json", "anchor", "schema")],
    ids=lambda left: " ".join(left),
)
def test_a_migration_that_a_killed_deploy_began_is_read_like_a_whole_one(tmp_path: Path, left: tuple[str, ...]) -> None:
    new, files = of_schema_2(OURS), of_schema_1()
    for name in left:
        path = recorded.ANCHOR if name == "anchor" else f"/srv/atelier/state/{name}"
        files[path] = new[path]
    found = read(tmp_path, files)
    assert (found.schema, found.roots, found.bind_address) == (1, OURS, "127.0.0.1")
    assert found.services["forge"] == Service("forge-turbo", "f1", 7860)
    assert found.found["files"] == {"/b"}


LATER = {
    "the state": ("/data/house/state/schema", "3\n", "0.2.0"),
    "the anchor alone": (
        recorded.ANCHOR,
        json.dumps({"schema": 3, "data_root": "/data/house", "x": 1}, indent=1),
        "0.2.0",
    ),
    "the manifest alone": (
        "/data/house/state/manifest.json",
        json.dumps({"schema": 3, "release": "0.3.0", "things": {}}),
        "0.3.0",
    ),
}


@pytest.mark.parametrize("path,text,release", LATER.values(), ids=LATER.keys())
def test_a_later_schema_is_refused_with_the_release_that_wrote_it(
    tmp_path: Path, path: str, text: str, release: str
) -> None:
    texts = asked(tmp_path, {**of_schema_2(), path: text})
    found = recorded.parse(texts)
    refusal = found.refusal()
    assert found.schema == 3 and refusal
    assert found.release == release and release in refusal.problem
    assert "schema 3" in refusal.problem and "that release" in refusal.remedy
    assert found.instance == "i" and not found.created and not found.services


def test_state_that_a_later_release_has_begun_to_carry_forward_is_left_as_it_is(tmp_path: Path) -> None:
    texts = asked(tmp_path, {**of_schema_1(), "/srv/atelier/state/schema": "3\n"})
    assert recorded.migrate(texts) == texts


DAMAGED = {
    "deployed": ("/data/house/state/deployed.json", "{"),
    "manifest": ("/data/house/state/manifest.json", '{"schema": 2, "created": ["a"]}'),
    "anchor": (recorded.ANCHOR, '{\n "schema": 2,\n "data_root": "/data/house"\n'),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_document_is_named_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    path, text = DAMAGED[name]
    found = read(tmp_path, {**of_schema_2(), path: text})
    assert found.damaged == (name,)
    assert (found.schema, found.instance, found.roots) == (2, "i", ELSEWHERE)
    assert bool(found.services) == (name != "deployed") and bool(found.created) == (name != "manifest")


def test_without_an_anchor_the_roots_are_those_of_the_last_deploy(tmp_path: Path) -> None:
    files = of_schema_2()
    del files[recorded.ANCHOR]
    files[recorded.UNIT] = UNIT.format(store="/weights", state="/data/house/state", lib="/opt/house/lib")
    assert read(tmp_path, files).roots == ELSEWHERE


def test_a_host_whose_first_deploy_was_killed_lies_where_the_settings_say(tmp_path: Path) -> None:
    found = read(tmp_path, {"/srv/atelier/state/manifest.json": json.dumps(MANIFEST)})
    assert (found.schema, found.roots, found.instance) == (1, OURS, "")


def test_state_that_was_moved_before_the_anchor_is_found_where_the_settings_say(tmp_path: Path) -> None:
    moved = {path.replace("/data/house/state", "/srv/atelier/state"): text for path, text in of_schema_2().items()}
    found = read(tmp_path, moved)
    assert (found.roots, found.place, found.instance) == (ELSEWHERE, "/srv/atelier/state", "i")
    assert found.services["forge"].port == 9002


def test_a_host_whose_data_is_not_mounted_is_still_known(tmp_path: Path) -> None:
    found = read(tmp_path, {recorded.ANCHOR: of_schema_2()[recorded.ANCHOR]})
    assert (found.instance, found.roots, found.place) == ("i", ELSEWHERE, "")


def test_so_is_one_of_schema_1_by_its_unit(tmp_path: Path) -> None:
    found = read(tmp_path, {recorded.UNIT: of_schema_1(ELSEWHERE)[recorded.UNIT]})
    assert (found.schema, found.instance, found.place) == (1, "", "")
    assert found.roots == Roots("/opt/house", "/data/house", "/weights", "/data/house/outputs")


SETTINGS_OF = {"config_root": "/opt/house", "data_root": "/data/house", "models_dir": "/weights"}
MOVED = {
    "nothing": (SETTINGS_OF, []),
    "written out": ({**SETTINGS_OF, "outputs_dir": "/data/house/outputs"}, []),
    "the data, and what lies in it": (
        {**SETTINGS_OF, "data_root": "/srv/atelier"},
        [("the data of this host lies in /data/house; the settings say /srv/atelier", "set data_root: /data/house")],
    ),
    "the weights": (
        {**SETTINGS_OF, "models_dir": "/big"},
        [("the weights of this host lie in /weights; the settings say /big", "set models_dir: /weights")],
    ),
    "the weights, into the data": (
        {"config_root": "/opt/house", "data_root": "/data/house"},
        [("the weights of this host lie in /weights; the settings say /data/house/models", "models_dir: /weights")],
    ),
    "the outputs": (
        {**SETTINGS_OF, "outputs_dir": "/nas"},
        [
            (
                "the outputs of this host lie in /data/house/outputs; the settings say /nas",
                "outputs_dir: /data/house/outputs",
            )
        ],
    ),
    "the data without its outputs": (
        {**SETTINGS_OF, "data_root": "/srv/a", "outputs_dir": "/data/house/outputs"},
        [("the data of this host lies in /data/house; the settings say /srv/a", "data_root: /data/house")],
    ),
    "the configuration": (
        {**SETTINGS_OF, "config_root": "/opt/atelier"},
        [
            (
                "the configuration of this host lies in /opt/house; the settings say /opt/atelier",
                "config_root: /opt/house",
            )
        ],
    ),
}


@pytest.mark.parametrize("values,expected", MOVED.values(), ids=MOVED.keys())
def test_each_directory_that_moved_is_named_with_both_ways_out(
    values: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    settings = build_settings([("test", values)])
    found = recorded.elsewhere(ELSEWHERE, "/data/house/state", settings)
    assert [finding.problem for finding in found] == [problem for problem, _ in expected]
    for finding, (_, remedy) in zip(found, expected, strict=True):
        assert "make reprovision" in finding.remedy and remedy in finding.remedy


def test_state_that_is_gone_from_its_place_is_an_obstacle() -> None:
    settings = build_settings([("test", SETTINGS_OF)])
    [found] = recorded.elsewhere(ELSEWHERE, "", settings)
    assert "/data/house/state" in found.problem and "mount" in found.remedy
    assert recorded.ANCHOR in found.remedy and recorded.UNIT in found.remedy, "a way out where it is gone for good"
    assert recorded.elsewhere(None, "", settings) == []


def test_the_anchor_is_what_the_script_reads(tmp_path: Path) -> None:
    settings = build_settings([("test", {"data_root": "/data/a", "outputs_dir": "/images"})])
    directory, file = recorded.anchor(settings, "i")
    assert (directory.path, directory.mode, file.path, file.mode) == ("/etc/atelier", 0o755, recorded.ANCHOR, 0o644)
    assert isinstance(file, recorded.File)
    found = read(tmp_path, {file.path: file.content.decode(), "/data/a/state/instance": "i\n"})
    assert found.roots == recorded.roots_of(settings) == Roots("/opt/atelier", "/data/a", "/data/a/models", "/images")
    assert found.place == "/data/a/state"


def test_only_the_whole_record_asks_for_the_manifest(tmp_path: Path) -> None:
    asked(tmp_path, of_schema_2())
    script = recorded.script(SETTINGS, str(tmp_path), whole=False)
    texts = recorded.documents(subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout)
    assert "manifest" not in texts and recorded.parse(texts).services["forge"].port == 9002


def test_roots_tell_where_they_differ() -> None:
    assert OURS.differing(OURS) == {}
    assert OURS.differing(Roots("/opt/atelier", "/srv/atelier", "/w", "/srv/atelier/outputs")) == {
        "models_dir": ("/srv/atelier/models", "/w")
    }


AS_READ: dict[str, tuple[dict[str, str], str]] = {
    "deployed": ({}, ""),
    "nothing": (dict.fromkeys(of_schema_2(), ""), "nothing is deployed here"),
    "a later schema": ({"/data/house/state/schema": "7"}, "later release"),
    "damaged": ({"/data/house/state/deployed.json": "{"}, "/data/house/state/deployed.json is damaged"),
    "elsewhere": (
        {recorded.ANCHOR: of_schema_2(OURS)[recorded.ANCHOR]},
        "the configuration of this host lies in /opt/atelier",
    ),
}


@pytest.mark.parametrize("change,problem", AS_READ.values(), ids=AS_READ.keys())
def test_what_was_deployed_is_read_where_it_is_recorded_or_the_reason_is_told(
    tmp_path: Path, change: dict[str, str], problem: str
) -> None:
    settings = build_settings([("test", SETTINGS_OF)])
    texts = asked(tmp_path, {**of_schema_2(), **change}, settings)
    sections = "".join(f"{recorded.PREFIX}{name}\n{text}\n" for name, text in texts.items())

    class Host:
        destination = Destination("box", "")

        def run(self, script: str, **_: object) -> Completed:
            assert script == recorded.script(settings, whole=False)
            return Completed(0, sections, "")

    if problem:
        with pytest.raises(AtelierError, match=problem):
            read_deployed(Host(), settings)  # type: ignore[arg-type]
    else:
        assert read_deployed(Host(), settings)["release"] == "0.2.0"  # type: ignore[arg-type]


def _spoilt(document: object) -> Iterator[object]:
    """The document with one value in it, at every place, replaced by something else."""
    yield from (None, 7, "x", [], {}, ["x"], {"x": 1})
    if isinstance(document, dict):
        yield {**document, "more": 1}
        for key, value in document.items():
            yield {other: document[other] for other in document if other != key}
            for other in _spoilt(value):
                yield {**document, key: other}


@pytest.mark.parametrize("name", ["anchor", "deployed", "manifest"])
@pytest.mark.parametrize("files", [of_schema_1(ELSEWHERE), of_schema_2()], ids=["schema 1", "schema 2"])
def test_no_document_however_spoilt_keeps_the_others_from_being_read(
    tmp_path: Path, files: dict[str, str], name: str
) -> None:
    texts = asked(tmp_path, files)
    for spoilt in _spoilt(json.loads(texts.get(name, "{}"))):
        found = recorded.parse({**texts, name: json.dumps(spoilt)})
        assert found.instance == "i" and found.place == "/data/house/state", spoilt
        alone = recorded.parse({name: json.dumps(spoilt)})
        assert alone.roots is None or alone.roots.data_root
