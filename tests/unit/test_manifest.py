"""The manifest: what is ours, what of it was there before, and which bytes we wrote."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from atelier import SCHEMA, manifest, recorded
from atelier.errors import AtelierError
from atelier.manifest import Before

BARE = Before(packages={"bash": "5.2", "curl": "8"}, holds=frozenset({"linux-image"}))
DECLARED = {"files": ["/etc/a/x", "/etc/b"], "directories": ["/data/a"], "holds": ["curl"], "containers": ["web"]}


def created(text: str) -> dict[str, list[str]]:
    return dict(json.loads(text)["created"])


def found(text: str) -> dict[str, list[str]]:
    return dict(json.loads(text)["found"])


def test_what_earlier_deploys_created_stays_ours() -> None:
    first = manifest.updated("", {"containers": ["a"], "packages": ["curl"]}, Before(), {}, "1")
    second = manifest.updated(first, {"containers": ["b"], "packages": []}, Before(), {}, "1")
    assert created(second) == {"containers": ["a", "b"], "packages": ["curl"]}
    assert manifest.updated(second, {"containers": ["b"]}, Before(), {}, "1") == second
    assert (json.loads(second)["schema"], json.loads(second)["release"]) == (SCHEMA, "1")


THERE = {
    "nothing": (Before(), {"packages": []}),
    "a file of somebody else's": (Before(there=frozenset({"/etc/b", "/etc"})), {"files": ["/etc/b"], "packages": []}),
    "a directory": (Before(there=frozenset({"/data/a", "/data"})), {"directories": ["/data/a"], "packages": []}),
    "a hold": (Before(holds=frozenset({"curl", "bash"})), {"holds": ["curl"], "packages": []}),
    "packages": (Before(packages={"curl": "8", "bash": "5"}), {"packages": ["bash=5", "curl=8"]}),
}


@pytest.mark.parametrize("before,expected", THERE.values(), ids=THERE.keys())
def test_what_was_there_before_us_is_told_once(before: Before, expected: dict[str, list[str]]) -> None:
    first = manifest.updated("", DECLARED, before, {}, "1")
    assert {kind: names for kind, names in found(first).items() if names} == {
        kind: names for kind, names in expected.items() if names
    }
    assert "packages" in found(first)
    everything = Before(
        {"curl": "9"}, frozenset({"curl"}), frozenset({"/etc/b", "/etc/a/x", "/data/a", "/etc/a", "/data"})
    )
    assert manifest.updated(first, DECLARED, everything, {}, "1") == first, "what is there by now is ours"


def test_what_an_uninstall_left_is_a_host_before_its_first_deploy() -> None:
    kept = json.dumps({"schema": SCHEMA, "created": {"weights": ["vae/a"], "directories": ["/data/a"]}, "found": {}})
    host = replace(BARE, kernel=frozenset({"iptables ACCEPT"}), groups=frozenset({"docker"}), daemon_json='{"x": 1}')
    text = manifest.updated(
        kept, {**DECLARED, "packages": ["aria2"]}, replace(host, there={"/data/a", "/data"}), {}, "1"
    )
    assert created(text)["weights"] == ["vae/a"] and "directories" not in found(text), "the data is still ours"
    assert found(text)["packages"] == ["bash=5.2", "curl=8"]
    assert (found(text)["groups"], found(text)["kernel"]) == (["docker"], ["iptables ACCEPT"])
    assert found(text)["daemon_json"] == ['{"x": 1}']
    later = manifest.updated(text, {**DECLARED, "packages": []}, Before({"aria2": "1"}, daemon_json="{}"), {}, "1")
    assert found(later) == found(text)


def test_a_deploy_ends_an_uninstall_that_was_begun() -> None:
    begun = json.dumps({"schema": SCHEMA, "created": {"packages": ["aria2"], manifest.PURGING: ["aria2", "libnl"]}})
    assert created(manifest.updated(begun, {"packages": []}, Before(), {}, "1")) == {"packages": ["aria2"]}


def test_something_that_is_declared_later_is_looked_at_then() -> None:
    first = manifest.updated("", {"files": ["/etc/b"]}, Before(), {}, "1")
    second = manifest.updated(first, DECLARED, Before(there=frozenset({"/etc/a/x", "/etc/b", "/etc/a"})), {}, "1")
    assert found(second)["files"] == ["/etc/a/x"]


def test_directories_that_come_into_being_on_the_way_are_ours() -> None:
    declared = {"files": ["/etc/new/x"], "directories": ["/data/deep/a"], "merged": ["/etc/docker/daemon.json"]}
    text = manifest.updated("", declared, Before(there=frozenset({"/etc", "/data"})), {}, "1")
    assert created(text)["directories"] == ["/data/deep", "/data/deep/a", "/etc/docker", "/etc/new"]
    assert "directories" not in found(text)


def test_of_a_host_of_schema_1_nobody_knows_what_was_there() -> None:
    former = json.dumps({"schema": 1, "release": "0", "created": {"files": ["/etc/a/x"], "packages": ["curl"]}})
    text = manifest.updated(former, DECLARED, replace(BARE, there=frozenset({"/etc/a/x", "/etc/b", "/etc/a"})), {}, "1")
    assert found(text) == {"files": ["/etc/b"]}


def test_what_a_manifest_of_schema_1_left_unsaid_is_said_by_the_next_deploy() -> None:
    former = json.dumps({"schema": 1, "release": "0", "created": {"users": ["house"], "packages": []}})
    assert created(manifest.updated(former, {"users": [], "groups": []}, Before(), {}, "1"))["groups"] == ["house"]


def test_units_of_others_that_were_off_when_we_first_started_them_are_remembered_as_such() -> None:
    before = Before(disabled=frozenset({"a.service", "x.service"}), stopped=frozenset({"b.service"}))
    first = manifest.updated("", {"enabled": ["a.service", "b.service"]}, before, {}, "1")
    assert (found(first)["disabled"], found(first)["stopped"]) == (["a.service"], ["b.service"])
    later = Before(disabled=frozenset({"a.service", "b.service", "c.service"}), stopped=frozenset({"a.service"}))
    second = manifest.updated(first, {"enabled": ["a.service", "b.service", "c.service"]}, later, {}, "1")
    assert (found(second)["disabled"], found(second)["stopped"]) == (["a.service", "c.service"], ["b.service"])


def test_what_is_known_only_after_it_was_written_is_told_then() -> None:
    first = manifest.updated("", DECLARED, Before(), {"/etc/b": "1"}, "1")
    second = manifest.having_written(first, {"/etc/key": "k"}, "1")
    assert json.loads(second)["wrote"] == {"/etc/b": ["1"], "/etc/key": ["k"]}
    assert created(second) == created(first) and manifest.having_written(second, {"/etc/key": "k"}, "1") == second
    assert json.loads(manifest.having_written(second, {"/etc/key": "l"}, "1"))["wrote"]["/etc/key"] == ["l", "k"]


def test_what_we_wrote_last_and_before_that_is_known_by_its_sum() -> None:
    text = ""
    for number in ("1", "1", "2", "3", "3"):
        text = manifest.updated(text, DECLARED, Before(), {"/etc/b": number}, "1")
    assert json.loads(text)["wrote"] == {"/etc/b": ["3", "2"]}
    text = manifest.updated(text, DECLARED, Before(), {"/etc/a/x": "9"}, "1")
    assert json.loads(text)["wrote"] == {"/etc/a/x": ["9"], "/etc/b": ["3", "2"]}
    without = json.loads(manifest.without(text, ["/etc/b"], "2"))
    assert (without["created"]["files"], without["wrote"], without["release"]) == (
        ["/etc/a/x"],
        {"/etc/a/x": ["9"]},
        "2",
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"created": 1}', "unreadable"])
def test_a_damaged_manifest_is_named(text: str) -> None:
    with pytest.raises(AtelierError, match="manifest"):
        manifest.updated(text, {}, Before(), {}, "1")


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    text = manifest.updated("", DECLARED, replace(BARE, there=frozenset({"/etc/b"})), {"/etc/a/x": "1"}, "1")
    read = recorded.parse({"manifest": text, "instance": "i", "schema": "2", "place": "/srv/atelier/state"})
    assert read.ours("files") == {"/etc/a/x"} and read.wrote == {"/etc/a/x": {"1"}}
    assert read.found["packages"] == {"bash=5.2", "curl=8"}


def test_the_host_tells_all_that_a_manifest_needs_in_one_answer(tmp_path: Path) -> None:
    status = "Package: {}\nStatus: {} ok {}\nVersion: {}\nArchitecture: all\nMaintainer: x\nDescription: x\n\n"
    rows = [
        ("bash", "install", "installed", "5"),
        ("curl", "hold", "installed", "8"),
        ("gone", "deinstall", "config-files", "1"),
    ]
    (tmp_path / "status").write_text("".join(status.format(*row) for row in rows))
    place, text = tmp_path / "manifest.json", '{\n "created": {}\n}'
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "daemon.json").write_text("{}")
    declared = {
        "files": [str(tmp_path / "link"), str(tmp_path / "new/file")],
        "merged": [str(tmp_path / "daemon.json")],
    }
    units = ("no-such-unit", "on.service", "off.service", "failed.service", "static.service")
    systemctl = """systemctl() {
      case "$*" in
      "is-enabled off.service" | "is-enabled failed.service") echo disabled; false;;
      "is-enabled on.service") echo enabled;;
      "is-enabled static.service") echo static;;
      "is-enabled "*) echo not-found; false;;
      "show "*on.service | "show "*static.service) printf 'loaded\\nactive\\n';;
      "show "*off.service) printf 'loaded\\ninactive\\n';;
      "show "*failed.service) printf 'loaded\\nfailed\\n';;
      "show "*) printf 'not-found\\ninactive\\n';;
      *) case $3 in on.service | static.service) ;; *) false;; esac;;
      esac
    }"""
    script = manifest.before_script(
        str(place), declared, units, str(tmp_path / "daemon.json"), f"--admindir={tmp_path}"
    )

    def answer() -> tuple[str, Before]:
        done = subprocess.run(
            ["sh", "-u", "-c", f"{systemctl}; {{ {script}; }} || true"], capture_output=True, text=True
        )
        assert not done.stderr, done.stderr
        return manifest.parse_before(done.stdout.splitlines())

    assert answer()[0] == ""
    place.write_text(text)
    current, before = answer()
    assert current == text
    assert before.packages == {"bash": "5", "curl": "8"} and before.holds == {"curl"} and before.daemon_json == "{}"
    assert "root" in before.groups
    assert {line.split()[0] for line in before.kernel} >= {"iptables", "ip6tables"}
    assert str(tmp_path / "link") in before.there and str(tmp_path) in before.there
    assert not {path for path in before.there if "new" in path}
    assert before.active == {"on.service", "static.service"}
    assert before.disabled == before.stopped == {"off.service", "failed.service"}


def test_what_moves_into_a_directory_that_was_there_does_not_make_that_ours() -> None:
    """An uninstall with PURGE=1 empties what is ours."""
    first = manifest.updated("", {"directories": ["/a/outputs", "/a/outputs/comfyui", "/a/other"]}, Before(), {}, "1")
    pairs = [("/a/outputs", "/photos")]
    text = manifest.moved(first, pairs, "1", ["/photos/comfyui"])
    assert found(text)["directories"] == ["/photos"] and {"/photos", "/photos/comfyui"} <= {
        *created(text)["directories"]
    }
    assert manifest.moved(text, pairs, "1", ["/photos/comfyui"]) == text
    back = manifest.moved(text, [("/photos", "/a/outputs")], "1", ["/a/outputs", "/a/outputs/comfyui"])
    assert "directories" not in found(back)
