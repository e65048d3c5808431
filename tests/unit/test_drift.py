"""Drift: from what a host prints to everything that is not as declared, each with what to do about it."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_deployment import CREDENTIALS, HASH, deployment

from atelier import credentials as store
from atelier import deployment as decide
from atelier import drift, lifecycle, paths, render, sources, tree
from atelier import manifest as manifests
from atelier.deployment import DAEMON_JSON, Deployment
from atelier.drift import CHANGED, EDITED, FOREIGN, UNKNOWN, Seen, Tree
from atelier.errors import AtelierError, Finding
from atelier.gpu.plan import GpuPlan
from atelier.manifest import Before
from atelier.settings import build_settings
from atelier.ssh import Completed, Destination
from atelier.target import Target

PLAIN = deployment()
COMPOSE = "/opt/atelier/services/gateway/compose.yaml"
ROOTS = "/opt/atelier/services/gateway/config/acme-roots.crt"
SECRET = "/opt/atelier/secrets/comfyui-qwen/PASSWORD"
STATE = "/srv/atelier/state"
JOB = "/opt/atelier/weights.json"
BEFORE = decide.deployed_record(
    PLAIN, "1.0", {tag: f"sha256:{tag}" for tag in PLAIN.image_tags().values()}, {"aria2": "1.37"}
)
RECORD = json.loads(BEFORE)


def content(path: str) -> bytes:
    return next(entry.content for entry in PLAIN.entries() if isinstance(entry, tree.File) and entry.path == path)


def there(of: Deployment = PLAIN) -> Tree:
    """What a host prints that is as declared."""
    seen = {}
    for entry in of.entries():
        kind, mode, owner, digest = entry.signature().split(" ")
        seen[entry.path] = Seen(kind, mode, owner, digest.removeprefix("-"))
    seen[DAEMON_JSON] = Seen("f", "644", "root:root")
    root = f"{of.settings.config_root}/"
    settings = {path for path in seen if path.startswith(("/etc/systemd/system/", "/etc/apt/apt.conf.d"))}
    kept = {path for path in settings if seen[path].kind != "d"}
    kept |= {
        "/etc/systemd/system/multi-user.target.wants/atelier-weights.service",
        "/etc/systemd/system/atelier.service",
    }
    return Tree(
        seen,
        {path: each.kind for path, each in seen.items() if path.startswith(root)},
        frozenset(kept),
        decide.merged_daemon_json("", of.settings),
        manifests.updated("", decide.declared(of), Before(), {}, "1.0"),
        "atelier:x:10001:10001:Atelier services:/nonexistent:/usr/sbin/nologin",
    )


def judged(found: Tree, contents: dict[str, bytes] | None = None, record: dict = RECORD) -> list[Finding]:
    return drift.files(PLAIN, found, contents or {}, record)


def test_a_host_as_deployed_has_no_drift() -> None:
    assert judged(there()) == []


def but(path: str, **changed: str) -> Callable[[Tree], Tree]:
    return lambda found: replace(found, seen={**found.seen, path: replace(found.seen[path], **changed)})


def without(path: str) -> Callable[[Tree], Tree]:
    return lambda found: replace(found, seen={name: each for name, each in found.seen.items() if name != path})


def besides(path: str, kind: str = "f") -> Callable[[Tree], Tree]:
    return lambda found: replace(found, below={**found.below, path: kind})


def left(path: str) -> Callable[[Tree], Tree]:
    """What an earlier deploy created, and is still there."""

    def change(found: Tree) -> Tree:
        manifest = json.loads(found.manifest)
        manifest["created"]["files"].append(path)
        return replace(found, manifest=json.dumps(manifest), kept=found.kept | {path})

    return change


def daemon(**changed: object) -> Callable[[Tree], Tree]:
    return lambda found: replace(found, daemon_json=json.dumps({**json.loads(found.daemon_json), **changed}))


def passwd(line: str) -> Callable[[Tree], Tree]:
    return lambda found: replace(found, user=line)


CLEAR = "on the host: remove {} or move it away; then run `make deploy`"
FILES: dict[str, tuple[Callable[[Tree], Tree], str, str]] = {
    "missing": (without(COMPOSE), f"{COMPOSE} is missing", EDITED),
    "a missing directory": (without("/srv/atelier/outputs/forge"), "/srv/atelier/outputs/forge is missing", EDITED),
    "mode": (but(COMPOSE, mode="666"), f"{COMPOSE} has mode 666 and must have 644", EDITED),
    "mode with set-uid": (but(COMPOSE, mode="4644"), f"{COMPOSE} has mode 4644 and must have 644", EDITED),
    "secret open to others": (but(SECRET, mode="444"), f"{SECRET} has mode 444 and must have 400", EDITED),
    "owner": (
        but(SECRET, owner="root:root"),
        f"{SECRET} belongs to root:root and must belong to atelier:atelier",
        EDITED,
    ),
    "owner without a name": (
        but(SECRET, owner="10001:10001"),
        f"{SECRET} belongs to 10001:10001 and must belong to atelier:atelier",
        EDITED,
    ),
    "another's host": (but(STATE + "/instance", digest="00"), f"{STATE}/instance differs", drift.IDENTITY),
    "other credentials": (but(STATE + "/credentials", digest="00"), f"{STATE}/credentials differs", drift.IDENTITY),
    "a link": (but(COMPOSE, kind="l"), f"{COMPOSE} is a symbolic link and must be a file", EDITED),
    "a directory in its place": (
        but(COMPOSE, kind="d"),
        f"{COMPOSE} is a directory and must be a file",
        CLEAR.format(COMPOSE),
    ),
    "a file in a directory's place": (
        but("/opt/atelier/secrets", kind="f"),
        "/opt/atelier/secrets is a file and must be a directory",
        CLEAR.format("/opt/atelier/secrets"),
    ),
    "another secret": (but(SECRET, digest="00"), f"{SECRET} differs", EDITED),
    "another job": (but(JOB, digest="00"), f"{JOB} differs", EDITED),
    "foreign": (besides("/opt/atelier/notes.txt"), "/opt/atelier/notes.txt is not ours", FOREIGN),
    "foreign among secrets": (
        besides("/opt/atelier/secrets/forge-turbo/old.json"),
        "/opt/atelier/secrets/forge-turbo/old.json is not ours",
        "run `make deploy`, which removes it",
    ),
    "a foreign folder with a file": (
        lambda found: besides("/opt/atelier/x", "d")(besides("/opt/atelier/x/y")(found)),
        "/opt/atelier/x is not ours",
        FOREIGN,
    ),
    "half a file": (
        besides(f"{COMPOSE}.atelier-part"),
        f"{COMPOSE}.atelier-part is not ours",
        FOREIGN,
    ),
    "a file of a service that an earlier deploy wrote": (
        left(ROOTS),
        f"{ROOTS} is of an earlier deploy, and nothing asks for it now",
        f"{drift.DEPLOY}, which removes it",
    ),
    "a unit of an earlier deploy": (
        left("/etc/systemd/system/atelier-gpu-containers.service"),
        "/etc/systemd/system/atelier-gpu-containers.service is of an earlier deploy, and nothing asks for it now",
        drift.LEFT,
    ),
    "live-restore off": (
        daemon(**{"live-restore": False}),
        f"{DAEMON_JSON}: live-restore is false and must be true",
        EDITED,
    ),
    "no CDI": (daemon(features={"x": True}), f"{DAEMON_JSON}: features.cdi is not set and must be true", EDITED),
    "Docker's settings gone": (without(DAEMON_JSON), f"{DAEMON_JSON} is missing", EDITED),
    "Docker's settings in pieces": (
        lambda found: replace(found, daemon_json='{"a": '),
        f"{DAEMON_JSON} is not valid JSON: Expecting value: line 1 column 7 (char 6)",
        "mend or remove that file",
    ),
    "Docker's settings open to all": (
        but(DAEMON_JSON, mode="666"),
        f"{DAEMON_JSON}: can be changed by others than root (mode 666, root:root)",
        EDITED,
    ),
    "no service user": (passwd(""), "there is no user atelier", "run `make deploy`"),
    "a service user with a shell": (
        passwd("atelier:x:10001:10001::/nonexistent:/bin/bash"),
        "user atelier may log in: its shell is /bin/bash",
        "on the host: usermod --shell /usr/sbin/nologin atelier",
    ),
    "another's uid": (
        passwd("atelier:x:998:998::/nonexistent:/bin/false"),
        "user atelier has uid and gid 998 and 998 and must have 10001",
        "on the host: usermod --uid 10001 atelier && groupmod --gid 10001 atelier",
    ),
    "manifest in pieces": (
        lambda found: replace(found, manifest="{"),
        "/srv/atelier/state/manifest.json is damaged or missing",
        "move it away; then run `make deploy`, which writes it anew",
    ),
}


@pytest.mark.parametrize("change,problem,remedy", FILES.values(), ids=FILES.keys())
def test_files(change: Callable[[Tree], Tree], problem: str, remedy: str) -> None:
    assert judged(change(there())) == [Finding(problem, remedy)]


def test_a_manifest_that_lacks_something_is_told_by_kind() -> None:
    found = there()
    manifest = json.loads(found.manifest)
    manifest["created"]["files"].remove(COMPOSE)
    manifest["created"]["networks"] = []
    assert [finding.problem for finding in judged(replace(found, manifest=json.dumps(manifest)))] == [
        f"/srv/atelier/state/manifest.json does not name 1 of our files: {COMPOSE}",
        "/srv/atelier/state/manifest.json does not name 3 of our networks: "
        "atelier-comfyui-qwen, atelier-forge-turbo, atelier-gateway",
    ]


def test_what_docker_has_besides_ours_is_the_hosts_own_and_never_told() -> None:
    found = daemon(proxies={"http-proxy": "http://joe:hunter2@proxy"}, **{"live-restore": "hunter2"})(there())
    (finding,) = judged(found)
    assert "joe" not in str(finding) and finding.problem.startswith(f"{DAEMON_JSON}: live-restore is")


def test_what_the_settings_ask_for_no_more_is_told_as_that() -> None:
    alone = replace(
        PLAIN, settings=build_settings([("t", {"profile": "cpu", "services": {"forge": {"enabled": False}}})])
    )
    found = {finding.problem: finding.remedy for finding in drift.files(alone, there(), {}, RECORD)}
    for folder in ("secrets", "services"):
        problem = f"/opt/atelier/{folder}/forge-turbo is of an earlier deploy, and nothing asks for it now"
        assert found[problem] == drift.LEFT


def test_a_build_under_way_is_no_stranger_and_what_is_gone_is_nothing() -> None:
    found = left("/etc/modprobe.d/atelier-nouveau.conf")(there())
    found = replace(found, kept=there().kept)
    found = besides("/opt/atelier/build", "d")(besides("/opt/atelier/build/base/context/x")(found))
    assert judged(found) == []


def test_who_is_to_blame_decides_what_to_do() -> None:
    changed = but(COMPOSE, digest="00")(there())
    (finding,) = judged(changed)
    assert finding.remedy == EDITED
    (finding,) = judged(changed, record={**RECORD, "rendering": {**RECORD["rendering"], "gateway": "0123456789abcdef"}})
    assert finding.remedy == CHANGED and "make deploy" in CHANGED
    for record in ({**RECORD, "rendering": "0123456789abcdef"}, {**RECORD, "rendering": {}}, {}):
        (finding,) = judged(changed, record=record)
        assert finding.remedy == UNKNOWN


def test_settings_changed_without_a_deploy_differ_in_their_files() -> None:
    before = there()
    chosen = replace(PLAIN, settings=build_settings([("t", {"profile": "cpu", "docker": {"log_max_size": "1m"}})]))
    env = "/opt/atelier/services/gateway/.env"
    paths_told = drift.unlike(chosen, before)
    assert env in paths_told
    found = drift.files(chosen, before, {env: content(env)}, RECORD)
    assert {finding.remedy for finding in found} == {CHANGED}
    assert f'{env} line 6 is `LOG_MAX_SIZE="10m"` and must be `LOG_MAX_SIZE="1m"`' in [each.problem for each in found]


LINES = {
    "changed": ("a\nb\nc\n", "a\nx\nc\n", "line 2 is `b` and must be `x`"),
    "added": ("a\nb\nc\n", "a\nb\n", "line 3 is `c` and must be empty"),
    "added after the end": ("a\nb", "a", "goes on at line 2, where it must end: `b`"),
    "cut": ("a\n", "a\nb\n", "line 2 is empty and must be `b`"),
    "cut within": ("a", "a\nb", "ends before line 2, which must be `b`"),
    "emptied": ("", "a\n", "line 1 is empty and must be `a`"),
    "blank line": ("a\n\nb\n", "a\nb\n", "line 2 is empty and must be `b`"),
    "line ends of another system": ("a\r\n", "a\n", r"line 1 is `a\x0d` and must be `a`"),
    "no text": (b"\xff\xfe", "a\n", "differs, and is no text"),
    "long": ("x" * 200, "y", f"line 1 is `{'x' * 90}...` and must be `y`"),
    "indented": ("  a", " a", "line 1 is `  a` and must be ` a`"),
    "far out": ("a" * 200 + "x", "a" * 200 + "y", f"line 1 is `...{'a' * 30}x` and must be `...{'a' * 30}y`"),
    "a hash": (f"TOKEN={HASH}\n", "TOKEN=\n", "line 1 is `TOKEN=[hidden]` and must be `TOKEN=`"),
    "control characters": ("\x1b[31mred\n", "red\n", "line 1 is `\\x1b[31mred` and must be `red`"),
}


@pytest.mark.parametrize("found,wanted,told", LINES.values(), ids=LINES.keys())
def test_the_first_line_that_differs(found: str | bytes, wanted: str, told: str) -> None:
    assert drift.first_difference(found if isinstance(found, bytes) else found.encode(), wanted.encode()) == told


def test_no_byte_of_a_secret_file_is_asked_for_or_told() -> None:
    found = there()
    every = {path: replace(each, digest="00") for path, each in found.seen.items() if each.digest}
    found = replace(found, seen={**found.seen, **every})
    asked = drift.unlike(PLAIN, found)
    secret = [entry.path for entry in PLAIN.entries() if isinstance(entry, tree.File) and entry.mode & 0o077 == 0]
    assert COMPOSE in asked and len(secret) >= 5 and not {*secret} & {*asked}
    told = judged(found, dict.fromkeys(asked, b"other\n"))
    assert {f"{path} differs" for path in secret} <= {finding.problem for finding in told}
    for text in (HASH, CREDENTIALS.comfyui_cookie_key):
        assert text not in str(told)


def test_a_secret_that_was_put_in_the_place_of_another_file_is_not_read() -> None:
    private = replace(there(), seen={**there().seen, COMPOSE: Seen("f", "400", "atelier:atelier", "00")})
    link = but(COMPOSE, kind="l", digest="00")(there())
    assert COMPOSE not in drift.unlike(PLAIN, private) and COMPOSE not in drift.unlike(PLAIN, link)
    assert f"{COMPOSE} differs" in [finding.problem for finding in judged(private)]


@pytest.fixture
def ground(tmp_path: Path) -> Deployment:
    """A deployment whose files lie below a folder of this computer."""
    update = {"config_root": str(tmp_path / "opt"), "data_root": str(tmp_path / "srv")}
    moved = replace(PLAIN, settings=PLAIN.settings.model_copy(update=update))
    for entry in moved.entries():
        path = Path(entry.path)
        if tmp_path in path.parents:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(entry, tree.File):
                path.write_bytes(entry.content)
            else:
                path.mkdir(exist_ok=True)
    return moved


def ask(script: str) -> str:
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout


def test_the_shell_sees_a_tree_as_it_is(ground: Deployment) -> None:
    root = Path(ground.settings.config_root)
    (root / "a stranger\nin two lines").write_text("x")
    compose, lib = root / "services/gateway/compose.yaml", root / "lib/weights"
    compose.write_text("name: other\n")
    (root / "elsewhere").mkdir()
    lib.rename(root / "elsewhere/weights")
    lib.symlink_to(root / "elsewhere/weights")
    models = Path(ground.settings.data_root) / "models"
    models.rename(models.with_name("disk"))
    models.symlink_to(models.with_name("disk"))
    found = drift.parse_tree(ask(drift.tree_script(ground)))
    assert found.below[f"{root}/a stranger\nin two lines"] == "f" and found.below[str(compose)] == "f"
    assert found.seen[str(lib)].kind == "l", "nothing of ours lies somewhere else"
    assert found.seen[str(models)].kind == "d", "data may lie on another disk"
    assert "/opt/atelier" not in found.seen
    assert drift.unlike(ground, found) == [str(compose)]
    contents = drift.parse_contents(ask(drift.contents_script([str(compose)])))
    assert contents == {str(compose): b"name: other\n"}
    problems = [finding.problem for finding in drift.files(ground, found, contents, {})]
    assert f"{lib} is a symbolic link and must be a directory" in problems
    assert f"{compose} line 1 is `name: other` and must be `# Rendered by atelier. Values come from .env" in "".join(
        problems
    )


def test_a_host_without_anything_lacks_everything(tmp_path: Path) -> None:
    update = {"config_root": str(tmp_path / "opt"), "data_root": str(tmp_path / "srv")}
    nowhere = replace(PLAIN, settings=PLAIN.settings.model_copy(update=update))
    found = drift.parse_tree(ask(drift.tree_script(nowhere)))
    missing = [finding.problem for finding in drift.files(nowhere, found, {}, {}) if "is missing" in finding.problem]
    assert len(missing) >= len([entry for entry in nowhere.entries() if entry.path.startswith(str(tmp_path))])


UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "Result": "success",
    "UnitFileState": "enabled",
    "DropInPaths": "",
    "NeedDaemonReload": "no",
}
GUARD, WEIGHTS = "atelier-loopback-guard.service", "atelier-weights.service"
TIMER, LOOK = "atelier-monitor.timer", "atelier-monitor.service"


def systemd(**changed: dict[str, str]) -> str:
    """What units_script prints on a host as declared; changed: other values by the beginning of a unit's name."""
    units = {
        "docker.service": {
            **UNIT,
            "FragmentPath": "/usr/lib/systemd/system/docker.service",
            "DropInPaths": f"/x/http-proxy.conf {render.DOCKER_WAITS}",
        },
        GUARD: UNIT,
        WEIGHTS: {**UNIT, "ActiveState": "inactive"},
        TIMER: UNIT,
        LOOK: {**UNIT, "ActiveState": "inactive", "UnitFileState": "static"},
    }
    blocks = []
    for name, facts in units.items():
        more = changed.get(name.partition(".")[0].replace("-", "_"), {})
        if name == TIMER:
            more = changed.get("timer", {})
        values = {"Id": name, "FragmentPath": f"/etc/systemd/system/{name}", **facts, **more}
        blocks.append("\n".join(f"{key}={value}" for key, value in values.items()))
    host = {"Written": "900", "Entered": "1000", **changed.get("host", {})}
    rules = [f"Rule={table} {rule}" for table, rule in drift.RULES if changed.get("rules") is None]
    return "\n\n".join([*blocks, "\n".join(["Id=host", *(f"{k}={v}" for k, v in host.items()), *rules])])


def of_units(**changed: dict[str, str]) -> list[str]:
    return [finding.problem for finding in drift.units(PLAIN, drift.parse_units(systemd(**changed)))]


DROP_IN = "/run/systemd/system.control/atelier-loopback-guard.service.d/50-x.conf"
UNIT_CASES: dict[str, tuple[dict[str, dict[str, str]], list[str]]] = {
    "well": ({}, []),
    "weights are fetched": ({"atelier_weights": {"ActiveState": "activating"}}, []),
    "a drop-in for every service": (
        {"atelier_weights": {"DropInPaths": "/run/systemd/system/service.d/zzz-lxc-service.conf"}},
        [],
    ),
    "stopped": (
        {"atelier_loopback_guard": {"ActiveState": "inactive"}},
        [f"{GUARD} does not run: it is inactive"],
    ),
    "timer stopped": ({"timer": {"ActiveState": "inactive"}}, [f"{TIMER} does not run: it is inactive"]),
    "failed": (
        {"atelier_weights": {"ActiveState": "failed", "Result": "exit-code"}},
        [f"{WEIGHTS} failed (exit-code)"],
    ),
    "disabled": (
        {"atelier_loopback_guard": {"UnitFileState": "disabled"}},
        [f"{GUARD} is disabled: it does not start at boot"],
    ),
    "masked": ({"atelier_loopback_guard": {"LoadState": "masked"}}, [f"{GUARD} is masked"]),
    "gone": ({"atelier_loopback_guard": {"LoadState": "not-found"}}, [f"{GUARD} is not-found"]),
    "overlaid": (
        {"atelier_weights": {"FragmentPath": f"/run/systemd/system.control/{WEIGHTS}"}},
        [f"{WEIGHTS} comes from /run/systemd/system.control/{WEIGHTS}"],
    ),
    "added to": ({"atelier_loopback_guard": {"DropInPaths": DROP_IN}}, [f"{GUARD} is changed by {DROP_IN}"]),
    "not read": (
        {"atelier_loopback_guard": {"NeedDaemonReload": "yes"}},
        [f"systemd has not read {GUARD} since it changed"],
    ),
    "docker not read": (
        {"docker": {"NeedDaemonReload": "yes"}},
        ["systemd has not read docker.service since it changed"],
    ),
    "docker down": ({"docker": {"ActiveState": "inactive"}}, ["docker.service is inactive"]),
    "docker not at boot": (
        {"docker": {"UnitFileState": "disabled"}},
        ["docker.service is disabled: it does not start at boot"],
    ),
    "docker's settings are younger than it": (
        {"host": {"Written": "1000"}},
        [f"Docker has not read {DAEMON_JSON} since it was written"],
    ),
    "no rules": (
        {"rules": {}},
        [f"the loopback guard's rule is not in force: {table} {rule}" for table, rule in drift.RULES],
    ),
}


@pytest.mark.parametrize("changed,problems", UNIT_CASES.values(), ids=UNIT_CASES.keys())
def test_units(changed: dict[str, dict[str, str]], problems: list[str]) -> None:
    assert of_units(**changed) == problems


def test_a_systemd_that_tells_nothing_is_no_green_one() -> None:
    problems = [finding.problem for finding in drift.units(PLAIN, drift.parse_units(""))]
    assert f"{GUARD} is unknown to systemd" in problems and "docker.service is not there" in problems
    assert len(problems) >= 5


def test_templates_are_no_units_and_every_unit_is_asked_about() -> None:
    script = drift.units_script(PLAIN)
    for name in (GUARD, WEIGHTS, TIMER, LOOK, "docker.service"):
        assert name in script
    assert "@" not in script


GPU_DROP_IN = "/etc/systemd/system/docker.service.d/atelier-gpu.conf"
DROP_INS = {
    "both": (f"/x/http-proxy.conf {render.DOCKER_WAITS} {GPU_DROP_IN}", set()),
    "that of the data alone": (render.DOCKER_WAITS, {GPU_DROP_IN}),
    "that of the GPU alone": (GPU_DROP_IN, {render.DOCKER_WAITS}),
    "the host's own, which is its own": ("/x/http-proxy.conf", {render.DOCKER_WAITS, GPU_DROP_IN}),
}


@pytest.mark.parametrize("known,unknown", DROP_INS.values(), ids=DROP_INS.keys())
def test_drop_ins_of_ours_must_be_known_to_systemd(known: str, unknown: set[str]) -> None:
    gpu = replace(PLAIN, gpu=GpuPlan("adopt", "cpu"))
    found = drift.parse_units(systemd(docker={"DropInPaths": known}))
    problems = [finding.problem for finding in drift.units(gpu, found)]
    told = {problem.removeprefix("systemd does not know ") for problem in problems if "docker.service.d" in problem}
    assert told == unknown


PINNED = ("aria2", "toolkit=1.19.1-1")
INSTALLED = {"aria2": "1.37", "toolkit": "1.19.1-1", "driver": "580.1"}
PACKAGE_CASES: dict[str, tuple[dict[str, object], list[str]]] = {
    "well": ({}, []),
    "newer": ({"installed": {**INSTALLED, "aria2": "1.38"}}, []),
    "older": (
        {"installed": {**INSTALLED, "aria2": "1.36"}, "older": {"aria2"}},
        ["package aria2 is 1.36, older than the 1.37 that was deployed"],
    ),
    "gone": (
        {"installed": {"toolkit": "1.19.1-1", "driver": "580.1"}},
        ["package aria2 is not installed"],
    ),
    "pinned at another": (
        {"installed": {**INSTALLED, "toolkit": "1.20.0-1"}},
        ["package toolkit is 1.20.0-1 and must be 1.19.1-1"],
    ),
    "held, and newer all the same": (
        {"installed": {**INSTALLED, "driver": "581.0"}},
        ["package driver is held at 580.1 and is 581.0 now"],
    ),
    "not held": ({"held": {"toolkit"}}, ["apt does not hold driver: an upgrade may replace it"]),
    "nothing recorded": ({"recorded": {}}, []),
}


@pytest.mark.parametrize("changed,problems", PACKAGE_CASES.values(), ids=PACKAGE_CASES.keys())
def test_packages(changed: dict[str, object], problems: list[str]) -> None:
    given = {
        "wanted": PINNED,
        "holds": ("driver", "toolkit"),
        "installed": INSTALLED,
        "held": {"driver", "toolkit"},
        "recorded": INSTALLED,
        "older": set(),
        **changed,
    }
    assert [finding.problem for finding in drift.packages(**given)] == problems


def test_what_dpkg_prints_is_read() -> None:
    installed, held = drift.parse_packages(
        "package installed aria2 1.37.0+debian-1\npackage config-files old 1\npackage not-installed docker-ce \nheld driver\n"
    )
    assert installed == {"aria2": "1.37.0+debian-1"} and held == {"driver"}
    script = drift.older_script({"a": "1.0~rc1", "b": "2", "c": "3"}, {"a": "1.0", "b": "2", "gone": "1"})
    assert script == "dpkg --compare-versions '1.0~rc1' lt 1.0 && echo a\n"
    assert drift.older_script({"a": "1"}, {"a": "1"}) == ""


THERE = {tag: f"sha256:{tag}" for tag in PLAIN.image_tags().values()}
LABELS = {project.service: project.config for project in PLAIN.projects()}


def of_images(there: dict[str, str] = THERE, labels: dict[str, str] = LABELS, **record: object) -> list[Finding]:
    return drift.images(PLAIN, {**RECORD, **record}, there, labels)


def test_images_as_deployed() -> None:
    assert of_images() == []
    unneeded = {tag: id for tag, id in THERE.items() if "base" not in tag and "torch" not in tag}
    assert of_images(unneeded) == [], "what images start from is there only where one was built"


def test_an_image_that_the_settings_want_otherwise_was_not_deployed() -> None:
    images = {**RECORD["images"], "forge": {"tag": "atelier/forge:0", "id": "sha256:0"}}
    assert of_images(images=images) == [
        Finding("image forge would be atelier/forge:1 now, deployed is atelier/forge:0", CHANGED)
    ]


def test_a_tag_that_names_another_image() -> None:
    (finding,) = of_images({**THERE, "atelier/forge:1": "sha256:fedcba9876543210"})
    assert "the tag atelier/forge:1 names another image than was deployed: fedcba987654" in finding.problem
    assert "docker tag atelier/forg atelier/forge:1" in finding.remedy


def test_an_image_that_is_gone() -> None:
    (finding,) = of_images({tag: id for tag, id in THERE.items() if tag != "atelier/forge:1"})
    assert finding == Finding("image atelier/forge:1 is gone from the host", "run `make deploy`")


def test_a_configuration_that_was_not_deployed_or_does_not_run() -> None:
    services = {**RECORD["services"], "gateway": {"container": "gateway", "config": "0"}}
    (finding,) = of_images(services=services)
    assert "gateway would be configured otherwise now" in finding.problem and finding.remedy == CHANGED
    (finding,) = of_images(labels={**LABELS, "forge": ""})
    assert "forge-turbo runs with configuration none" in finding.problem and finding.remedy == EDITED


def test_a_record_of_before_tells_no_versions_and_no_rendering() -> None:
    old = {key: value for key, value in RECORD.items() if key not in ("packages", "rendering")}
    assert set(drift.remedies(PLAIN, old).values()) == {UNKNOWN}
    assert drift.files(PLAIN, there(), {}, old) == [] and drift.images(PLAIN, old, THERE, LABELS) == []


def test_a_deploy_of_one_service_leaves_the_others_as_they_were_rendered() -> None:
    other = replace(PLAIN, credentials=CREDENTIALS.model_copy(update={"comfyui_cookie_key": "x" * 44}))
    document = json.loads(decide.deployed_record(replace(other, only="forge"), "1.0", {}, {"b": "2", "a": "1"}, BEFORE))
    assert list(document["packages"]) == ["a", "b"]
    assert document["rendering"] == {**other.rendering(), "comfyui": PLAIN.rendering()["comfyui"]}
    assert document["services"]["comfyui"] == RECORD["services"]["comfyui"]
    assert (
        document["services"]["comfyui"]["config"] != {each.service: each.config for each in other.projects()}["comfyui"]
    )
    assert drift.remedies(other, document) == {
        "comfyui": CHANGED,
        "forge": EDITED,
        "gateway": EDITED,
        "host": EDITED,
    }
    same = decide.deployed_record(replace(PLAIN, only="forge"), "1.0", {}, {}, BEFORE)
    assert json.loads(same)["rendering"] == PLAIN.rendering()


def test_the_ports_are_those_that_the_gateway_publishes_by_now() -> None:
    former = json.loads(BEFORE)
    for service in former["services"].values():
        del service["port"]
    record = decide.deployed_record(replace(PLAIN, only="forge"), "1.0", {}, {}, json.dumps(former))
    ports = {name: service["port"] for name, service in json.loads(record)["services"].items()}
    assert ports == {"comfyui": 8188, "forge": 7860, "gateway": None}


@pytest.mark.parametrize(
    "before", ["", "{", "[]", '{"rendering": "5f2c", "services": {"comfyui": 1}}', '{"schema": 1}']
)
def test_one_service_deployed_on_a_record_that_tells_nothing_tells_of_that_service_alone(before: str) -> None:
    document = json.loads(decide.deployed_record(replace(PLAIN, only="forge"), "1.0", {}, {}, before))
    assert set(document["rendering"]) == {"host", "forge", "gateway"}


def test_the_rendering_is_another_for_any_change_and_the_same_for_none() -> None:
    assert PLAIN.rendering() == deployment().rendering() == RECORD["rendering"]
    other = CREDENTIALS.model_copy(update={"comfyui_cookie_key": "x" * 44})
    changed = replace(PLAIN, credentials=other).rendering()
    assert {part for part, mark in changed.items() if mark != PLAIN.rendering()[part]} == {"comfyui", "host"}


class Answers:
    """A connection that answers every script alike."""

    def __init__(self, output: str) -> None:
        self.output, self.asked = output, []

    def run(self, script: str, **_: object) -> Completed:
        self.asked.append(script)
        return Completed(0, self.output, "")


def test_what_a_deploy_would_do_is_decided_without_fetching_and_with_one_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Path:
        raise AssertionError("a source was to be fetched")

    monkeypatch.setattr(sources, "archive", never)
    monkeypatch.setattr(paths, "secrets_dir", lambda name: tmp_path / name)
    target = Target("gpu1", "host", Destination("gpu1"), build_settings([("t", {"profile": "cpu"})]))
    ssh = Answers("::atelier::os\nID=debian\nVERSION_CODENAME=trixie\n")
    with pytest.raises(AtelierError, match="no credentials of gpu1"):
        lifecycle.decide_as_deployed(target, ssh, {"sources": "upstream"})
    store.save(tmp_path / "gpu1", CREDENTIALS)
    decided = lifecycle.decide_as_deployed(target, ssh, {"sources": "upstream"})
    assert len(ssh.asked) == 1 and decided.facts.os_codename == "trixie" and decided.credentials == CREDENTIALS
    assert {build.name for build in decided.builds} == {"base", "torch", "comfyui", "forge", "gateway"}
    assert decided.weights and decided.sources == "upstream"
