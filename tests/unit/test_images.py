"""Tags, order, contexts and commands of the images; the operator's pip settings; the entry scripts' refusals."""

import asyncio
import base64
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import bcrypt
import pytest

from atelier import images, paths, pip_settings, sources
from atelier.errors import AtelierError
from atelier.gpu.plan import Torch
from atelier.images import ImageBuild
from atelier.pip_settings import PipSettings
from atelier.settings import Settings, build_settings
from atelier.sources import Placed, Sources

NO_PIP = PipSettings({})
REAL = sources.upstream(sources.read_lock(paths.PROJECT / "locks" / "sources.yml"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the images are made of, to change."""
    copy = tmp_path / "a project"
    for name in ("images", "locks"):
        shutil.copytree(paths.PROJECT / name, copy / name)
    monkeypatch.setattr(images.paths, "PROJECT", copy)
    return copy


def settings(**values: Any) -> Settings:
    return build_settings([("test", {"profile": "cpu", **values})])


def tags(builds: tuple[ImageBuild, ...]) -> dict[str, str]:
    return {build.name: build.tag for build in builds}


def test_parents_come_first_and_tags_are_twelve_digits() -> None:
    builds = images.plan(settings(), REAL, "cpu")
    assert [build.name for build in builds] == ["base", "torch", "comfyui", "forge", "gateway"]
    for place, build in enumerate(builds):
        assert build.parent is None or build.parent in {earlier.tag for earlier in builds[:place]}
        assert re.fullmatch(rf"atelier/{build.name}:[0-9a-f]{{12}}", build.tag)


def append(name: str) -> Callable[[Path], None]:
    def change(project: Path) -> None:
        with (project / name).open("a") as file:
            file.write("\n")

    return change


@pytest.mark.parametrize(
    ("change", "rebuilt"),
    [
        (append("images/base/packages.txt"), {"base", "torch", "comfyui", "forge", "gateway"}),
        (append("images/base/debian-archive.sh"), {"base", "torch", "comfyui", "forge", "gateway"}),
        (append("images/torch/Dockerfile"), {"torch", "comfyui", "forge"}),
        (append("locks/images/torch-cpu.txt"), {"torch", "comfyui", "forge"}),
        (append("locks/images/torch-cu130.txt"), set()),
        (append("locks/images/comfyui-cpu.txt"), {"comfyui"}),
        (append("images/comfyui/entrypoint.py"), {"comfyui"}),
        (append("images/forge/health.py"), {"forge"}),
        (append("images/prove.py"), {"comfyui", "forge"}),
        (append("images/gateway/requirements.txt"), {"gateway"}),
        (append("images/gateway/guard/server.py"), {"gateway"}),
        (append("locks/sources.yml"), set()),
    ],
)
def test_a_changed_input_changes_exactly_the_tags_that_depend_on_it(
    project: Path, change: Callable[[Path], None], rebuilt: set[str]
) -> None:
    before = tags(images.plan(settings(), REAL, "cpu"))
    change(project)
    after = tags(images.plan(settings(), REAL, "cpu"))
    assert {name for name in before if before[name] != after[name]} == rebuilt


def test_another_commit_of_comfyui_leaves_torch_and_forge_alone() -> None:
    moved = Sources("upstream", (Placed("/opt/comfyui", "ComfyUI", "u", "b" * 40), *REAL.comfyui[1:]), REAL.forge)
    before, after = tags(images.plan(settings(), REAL, "cpu")), tags(images.plan(settings(), moved, "cpu"))
    assert {name for name in before if before[name] != after[name]} == {"comfyui"}


def test_a_mirrors_address_and_a_checkouts_path_change_no_tag(project: Path) -> None:
    mirrored = Sources(
        "upstream",
        tuple(Placed(place.path, place.title, "file:///mirror", place.commit) for place in REAL.comfyui),
        REAL.forge,
    )
    (project / "images" / "comfyui" / "__pycache__").mkdir(exist_ok=True)
    (project / "images" / "comfyui" / "__pycache__" / "health.pyc").write_bytes(b"x")
    there = tags(images.plan(settings(), mirrored, "cpu"))
    images.paths.PROJECT = project.rename(project.with_name("moved"))  # the fixture puts it back
    assert tags(images.plan(settings(), REAL, "cpu")) == there


@pytest.mark.parametrize(
    ("values", "rebuilt"),
    [
        ({"service_uid": 20000}, {"base", "torch", "comfyui", "forge", "gateway"}),
        ({"images": {"base": "debian@sha256:" + "0" * 64}}, {"base", "torch", "comfyui", "forge", "gateway"}),
        ({"profile": "gpu-simulated"}, set()),
        ({"bind_address": "127.0.0.2"}, set()),
        ({"proxy": "http://127.0.0.1:3128"}, set()),
    ],
)
def test_a_setting_changes_the_tags_that_depend_on_it(values: dict[str, Any], rebuilt: set[str]) -> None:
    before, after = tags(images.plan(settings(), REAL, "cpu")), tags(images.plan(settings(**values), REAL, "cpu"))
    assert {name for name in before if before[name] != after[name]} == rebuilt


@pytest.mark.parametrize("name", ["torch", "comfyui", "forge"])
def test_each_torch_variant_has_images_and_locks_of_its_own(name: str) -> None:
    variants = get_args(Torch)
    builds = {
        variant: next(b for b in images.plan(settings(), REAL, variant) if b.name == name) for variant in variants
    }
    assert len({build.tag for build in builds.values()}) == len(variants)
    for variant, build in builds.items():
        assert build.lock and build.lock.name == f"{name}-{variant}.txt"


def test_base_and_gateway_are_the_same_under_every_torch_variant() -> None:
    plans = [tags(images.plan(settings(), REAL, variant)) for variant in get_args(Torch)]
    assert len({(plan["base"], plan["gateway"]) for plan in plans}) == 1


def test_a_disabled_service_has_no_image_and_a_missing_double_is_named() -> None:
    only_forge = settings(services={"comfyui": {"enabled": False}})
    assert "comfyui" not in tags(images.plan(only_forge, REAL, "cpu"))
    with pytest.raises(AtelierError, match="no double of forge"):
        images.plan(settings(), Sources("double", REAL.comfyui, ()), "cpu")


def test_doubles_get_no_torch_and_locks_of_their_own() -> None:
    builds = {
        build.name: build for build in images.plan(settings(), Sources("double", REAL.comfyui, REAL.forge), "cu130")
    }
    assert builds["torch"].lock and builds["torch"].lock.name == "torch-none.txt"
    assert not pip_settings.locked(builds["torch"].lock.read_text())
    assert builds["comfyui"].lock and builds["comfyui"].lock.name == "comfyui-double.txt"


class TestSteps:
    """What is left to do, by what the host has."""

    builds = images.plan(settings(), REAL, "cpu")
    tag = tags(builds)

    def names(self, present: set[str], archived: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
        found = images.steps(self.builds, {self.tag[name] for name in present}, {self.tag[name] for name in archived})
        return [f"{step.action} {step.build.name}" for step in found]

    def test_a_bare_host_builds_everything_parents_first(self) -> None:
        assert self.names(set()) == ["build base", "build torch", "build comfyui", "build forge", "build gateway"]

    def test_nothing_is_left_where_the_final_images_are(self) -> None:
        assert self.names({"comfyui", "forge", "gateway"}) == []

    def test_archives_of_final_images_need_no_parents(self) -> None:
        assert self.names(set(), set(self.tag)) == ["load comfyui", "load forge", "load gateway"]

    def test_a_parent_is_loaded_for_the_one_image_that_is_built(self) -> None:
        assert self.names({"forge", "gateway"}, {"base", "torch"}) == ["load torch", "build comfyui"]

    def test_a_parent_that_is_there_is_used(self) -> None:
        assert self.names({"torch", "comfyui", "gateway"}) == ["build forge"]


def test_scripts_quote_what_they_are_given_and_name_the_secrets_by_path_only() -> None:
    pip = PipSettings({"index-url": "https://user:hush@index.invalid/simple"})
    for build in images.plan(settings(), REAL, "cpu"):
        script = images.build_script(build, "/opt/a dir", pip)
        assert "hush" not in script
        assert build.tag in script
        assert "'/opt/a dir/context" in script
        assert subprocess.run(["sh", "-n", "-c", script]).returncode == 0
    gateway = images.build_script(images.plan(settings(), REAL, "cpu")[-1], "/d", pip)
    assert gateway.startswith("sh /d/context/debian-archive.sh /d/secrets && ")
    assert "--secret=id=apt_sources,src=/d/secrets/sources.list" in gateway


def test_an_image_of_a_registry_keeps_its_own_archive() -> None:
    base, *_, gateway = images.plan(settings(images={"base": "debian@sha256:" + "0" * 64}), REAL, "cpu")
    for build in (base, gateway):
        script = images.build_script(build, "/d", NO_PIP)
        assert script.startswith("sh /d/context/debian-archive.sh /d/secrets settings && ")
        assert "--secret=id=apt_conf,src=/d/secrets/apt.conf" in script and "apt_sources" not in script
    assert "make-base.sh" in images.build_script(images.plan(settings(), REAL, "cpu")[0], "/d", NO_PIP)


def test_a_context_holds_sources_lock_and_secrets_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archive.tar").write_bytes(b"tar")
    monkeypatch.setattr(sources, "archive", lambda place: tmp_path / "archive.tar")
    (tmp_path / "ca.pem").write_text("CERTIFICATE")
    pip = PipSettings({"index-url": "https://user:hush@index.invalid/simple", "cert": str(tmp_path / "ca.pem")})
    build = next(build for build in images.plan(settings(), REAL, "cpu") if build.name == "comfyui")
    images.write_context(build, tmp_path / "out", pip, "http://proxy.invalid:3128")
    context, secrets = tmp_path / "out" / "context", tmp_path / "out" / "secrets"
    assert (context / "sources/opt/comfyui.tar").read_bytes() == b"tar"
    assert (context / "sources/opt/comfyui/custom_nodes/ComfyUI-Login.tar").exists()
    assert (context / "requirements.txt").read_text() == (paths.PROJECT / "locks/images/comfyui-cpu.txt").read_text()
    assert {path.name for path in context.iterdir()} >= {"Dockerfile", "entrypoint.py", "health.py", "prove.py"}
    assert not [path for path in context.rglob("*") if path.is_file() and b"hush" in path.read_bytes()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in secrets.iterdir()} == {
        "pip_conf": "0o600",
        "ca": "0o600",
    }
    assert oct(secrets.stat().st_mode & 0o777) == "0o700"


def test_every_file_that_a_dockerfile_takes_is_in_its_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archive.tar").touch()
    monkeypatch.setattr(sources, "archive", lambda place: tmp_path / "archive.tar")
    registry = settings(images={"base": "debian@sha256:" + "0" * 64})
    for build in images.plan(registry, REAL, "cpu"):
        images.write_context(build, tmp_path / build.name, NO_PIP, None)
        context = tmp_path / build.name / "context"
        dockerfile = (context / "Dockerfile").read_text()
        taken = re.findall(r"type=bind,source=([^,\s]+)", dockerfile)
        for line in re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE):
            taken += line.split()[:-1]
        assert taken
        assert [name for name in taken if not (context / name).exists()] == []


@pytest.fixture
def run_with_docker(tmp_path: Path) -> Callable[[str, str], int]:
    """Runs a shell script with a `docker` of our own; returns the exit status."""

    def run(docker: str, script: str) -> int:
        program = tmp_path / "bin" / "docker"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{docker}\n")
        program.chmod(0o755)
        path = f"{program.parent}:{os.environ['PATH']}"
        return subprocess.run(["sh", "-c", script], env={"PATH": path}, capture_output=True).returncode

    return run


def test_an_archive_appears_whole_or_not_at_all(tmp_path: Path, run_with_docker: Callable[[str, str], int]) -> None:
    folder = tmp_path / "x y"
    tag = "atelier/comfyui:0123456789ab"
    script = images.save_script(tag, str(folder))
    assert run_with_docker('echo half >"$3"; exit 1', script) == 1
    assert not (folder / images.archive_name(tag)).exists()
    assert run_with_docker('echo "$@" >"$3"', script) == 0
    assert tag in (folder / images.archive_name(tag)).read_text()
    assert [path.name for path in folder.iterdir()] == [images.archive_name(tag)]
    assert run_with_docker('[ -s "$4" ]', images.load_script(tag, str(folder))) == 0


def test_old_archives_of_the_same_image_go(tmp_path: Path, run_with_docker: Callable[[str, str], int]) -> None:
    names = [images.archive_name(f"atelier/comfyui:{number:012x}") for number in range(9)]
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    other = images.archive_name("atelier/forge:0123456789ab")
    (tmp_path / other).touch()
    new = "atelier/comfyui:ffffffffffff"
    assert run_with_docker('echo x >"$3"', images.save_script(new, str(tmp_path))) == 0
    kept = {images.archive_name(new), *names[: images.KEPT_ARCHIVES - 1], other}
    assert {path.name for path in tmp_path.glob("*.tar*")} == kept


class TestLocks:
    """The locks themselves."""

    folder = paths.PROJECT / "locks" / "images"

    @pytest.mark.parametrize(
        "path", sorted((paths.PROJECT / "locks" / "images").glob("*.txt")), ids=lambda path: path.name
    )
    def test_every_entry_has_hashes_and_no_address(self, path: Path) -> None:
        text = path.read_text()
        assert re.findall(r"^\S+==", text, re.MULTILINE) or path.name == "torch-none.txt"
        assert all(pip_settings.locked(text).values())
        assert "://" not in text and "/" not in text

    @pytest.mark.parametrize("name", ["comfyui", "forge"])
    @pytest.mark.parametrize(("variant", "torch"), [("cpu", "2.13.0+cpu"), ("cu126", "2.7.1"), ("cu130", "2.13.0")])
    def test_the_applications_take_the_torch_of_their_shared_layer(self, name: str, variant: str, torch: str) -> None:
        layer = pip_settings.locked((self.folder / f"torch-{variant}.txt").read_text())
        own = pip_settings.locked((self.folder / f"{name}-{variant}.txt").read_text())
        assert ("torch", torch) in layer and ("torch", torch) in own
        shared = {distribution for distribution, _ in layer} & {distribution for distribution, _ in own}
        assert len(shared) > 5
        assert {key for key in own if key[0] in shared} == {key for key in layer if key[0] in shared}

    @pytest.mark.parametrize(("variant", "cuda"), [("cpu", ""), ("cu126", "-cu12"), ("cu130", "-cu13")])
    def test_a_variant_takes_the_libraries_of_its_own_cuda(self, variant: str, cuda: str) -> None:
        names = {name for name, _ in pip_settings.locked((self.folder / f"torch-{variant}.txt").read_text())}
        assert {name for name in names if name.startswith("nvidia-cudnn")} == (
            {f"nvidia-cudnn{cuda}"} if cuda else set()
        )

    @pytest.mark.parametrize("name", ["torch", "comfyui", "forge"])
    def test_the_triton_that_comfyui_cannot_import_without_a_gpu_is_left_out(self, name: str) -> None:
        names = {name for name, _ in pip_settings.locked((self.folder / f"{name}-cu126.txt").read_text())}
        assert "torch" in names and "triton" not in names


class TestPip:
    """The operator's pip settings, for a build elsewhere."""

    def test_the_environment_wins_over_files_and_later_files_over_earlier_ones(self) -> None:
        files = ["[global]\nindex-url = https://one/\ntimeout = 5\n", "[install]\nindex_url = https://two/\n"]
        found = pip_settings.parse(files, {"PIP_TIMEOUT": "9", "PIP_PROXY": "", "HOME": "/"})
        assert found.values == {"index-url": "https://two/", "timeout": "9"}

    @pytest.mark.parametrize(
        ("values", "lines"),
        [
            ({}, []),
            (
                {"index-url": "https://a/simple", "proxy": "http://p"},
                ["index-url = https://a/simple", "proxy = http://p"],
            ),
            ({"extra-index-url": "file:///x https://b"}, ["extra-index-url = https://b"]),
            ({"index-url": "file:///x"}, ["no-index = true"]),
            (
                {"index-url": "file:///x", "extra-index-url": "https://b https://c"},
                ["index-url = https://b", "extra-index-url = https://c"],
            ),
            ({"find-links": "/wheels https://d"}, ["find-links = https://d"]),
            ({"cert": "/nowhere.pem", "no-index": "1"}, ["no-index = 1"]),
        ],
    )
    def test_only_what_can_be_followed_elsewhere_travels(self, values: dict[str, str], lines: list[str]) -> None:
        assert PipSettings(values).pip_conf(None) == "\n".join(["[global]", *lines, ""])

    def test_the_hosts_proxy_takes_the_place_of_this_computers(self) -> None:
        assert "proxy = http://host" in PipSettings({"proxy": "http://here"}).pip_conf("http://host")

    def test_pip_itself_reads_what_is_written(self, tmp_path: Path) -> None:
        configuration = tmp_path / "pip.conf"
        values = {"index-url": "https://a/simple", "extra-index-url": "https://b https://c/%7Eu", "trusted-host": "b c"}
        configuration.write_text(PipSettings(values).pip_conf(None))
        again = pip_settings.parse([configuration.read_text()], {})
        assert (again.indexes(), again.words("trusted-host")) == (
            ("https://a/simple", "https://b", "https://c/%7Eu"),
            ("b", "c"),
        )

    @pytest.fixture
    def wheels(self, tmp_path: Path) -> Iterator[dict[str, str]]:
        """A find-links folder and a file:// index; yields sha256 by file name."""
        (tmp_path / "links").mkdir()
        (tmp_path / "simple" / "some-lib").mkdir(parents=True)
        names = ["torch-2.0+cpu-cp311-cp311-linux_x86_64.whl", "torch-2.0-cp311-cp311-linux_x86_64.whl"]
        digests = {}
        for name in names:
            (tmp_path / "links" / name).write_text(name)
            digests[name] = hashlib.sha256(name.encode()).hexdigest()
        links = ""
        for name in ("some_lib-1.0-py3-none-any.whl", "some_lib-1.0-cp312-cp312-linux_x86_64.whl"):
            (tmp_path / name).write_text(name)
            digests[name] = hashlib.sha256(name.encode()).hexdigest()
            links += f'<a href="../../{name}#sha256={digests[name]}">{name}</a>\n'
        (tmp_path / "simple" / "some-lib" / "index.html").write_text(links)
        yield digests

    def lock(self, name: str, version: str, *digests: str) -> str:
        return f"{name}=={version}" + "".join(f" \\\n    --hash=sha256:{digest}" for digest in digests) + "\n"

    def test_local_files_travel_by_hash_and_only_those_that_the_lock_names(
        self, tmp_path: Path, wheels: dict[str, str]
    ) -> None:
        pip = PipSettings({"find-links": str(tmp_path / "links"), "extra-index-url": (tmp_path / "simple").as_uri()})
        lock = self.lock("torch", "2.0+cpu", *wheels.values()) + self.lock("some-lib", "1.0", *wheels.values())
        found = pip_settings.local_files(pip, lock)
        assert [path.name for path in found] == [
            "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl",
            "some_lib-1.0-py3-none-any.whl",
        ]
        assert pip_settings.part(lock, found[:1]) == self.lock("torch", "2.0+cpu", *wheels.values())
        assert pip_settings.local_files(pip, lock, already=lock) == []

    def test_a_local_file_with_another_hash_stays_here(self, tmp_path: Path, wheels: dict[str, str]) -> None:
        pip = PipSettings({"find-links": str(tmp_path / "links"), "extra-index-url": (tmp_path / "simple").as_uri()})
        assert (
            pip_settings.local_files(
                pip, self.lock("torch", "2.0+cpu", "0" * 64) + self.lock("some-lib", "1.0", "0" * 64)
            )
            == []
        )

    def test_probes_ask_remote_indexes_only(self) -> None:
        pip = PipSettings({"index-url": "https://a/simple/", "extra-index-url": "file:///x https://b"})
        assert pip.probe_urls() == ["https://a/simple/pip/", "https://b/pip/"]
        assert PipSettings({"no-index": "1", "index-url": "https://a"}).probe_urls() == []


def load(name: str) -> ModuleType:
    """An entry script as a module."""
    path = paths.PROJECT / "images" / name / "entrypoint.py"
    spec = importlib.util.spec_from_file_location(f"entrypoint_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


HASH = bcrypt.hashpw(b'p:a,ss $w"x\xc3\xa9', b"$2b$04$" + b"a" * 21 + b"u").decode()
KEY = base64.urlsafe_b64encode(bytes(32)).decode()


class TestComfyUIEntry:
    """ComfyUI's entry script."""

    @pytest.fixture
    def entry(self, tmp_path: Path) -> ModuleType:
        module = load("comfyui")
        module.LOGIN, module.COOKIE_KEY = tmp_path, tmp_path / "key"  # type: ignore[attr-defined]
        (tmp_path / "PASSWORD").write_text(f"{HASH}\nowner\n")
        (tmp_path / "key").write_text(f"{KEY},2999-01-01T00:00:00")
        return module

    def test_the_token_is_the_first_line(self, entry: ModuleType) -> None:
        assert entry.read_token() == HASH

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("PASSWORD", ""),
            ("PASSWORD", HASH),
            ("PASSWORD", f"{HASH[:-3]}\nowner"),
            ("PASSWORD", f"{HASH}\n \n"),
            ("PASSWORD", f"\n{HASH}\nowner"),
            ("PASSWORD", None),
            ("key", None),
            ("key", KEY),
            ("key", f"{KEY[:-4]},2999-01-01T00:00:00"),
            ("GUEST_MODE", ""),
        ],
    )
    def test_it_refuses_what_would_leave_the_login_open(
        self, entry: ModuleType, tmp_path: Path, name: str, content: str | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_text(content)
        with pytest.raises(SystemExit) as ended:
            entry.read_token()
        assert ended.value.code == 78
        assert HASH not in capsys.readouterr().err

    @pytest.mark.parametrize("broken", ["", "open", "deaf"])
    def test_nothing_listens_before_the_assembled_application_has_proven_its_login(
        self, entry: ModuleType, broken: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        web = entry.web
        started: list[object] = []

        async def answer(request: Any) -> Any:
            right = request.headers.get("Authorization") == f"Bearer {HASH}" and broken != "deaf"
            return web.Response(status=200 if right or broken == "open" else 401)

        async def listen(site: object) -> None:
            started.append(site)

        async def start() -> None:
            application = web.Application()
            application.router.add_get("/{path:.*}", answer)
            runner = web.AppRunner(application)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()

        original, web.TCPSite.start = web.TCPSite.start, listen
        try:
            entry.hold_ports_until_proven(HASH)
            if not broken:
                asyncio.run(start())
                assert len(started) == 1
                return
            with pytest.raises(SystemExit) as ended:
                asyncio.run(start())
        finally:
            web.TCPSite.start = original
        assert (ended.value.code, started) == (78, [])
        error = capsys.readouterr().err
        assert "the login is not in force" in error and HASH not in error

    def test_the_token_is_blanked_in_every_record(self, entry: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
        factory = logging.getLogRecordFactory()
        try:
            entry.keep_out_of_logs(HASH)
            logging.getLogger("anything").warning("use token=%s", HASH)
            logging.getLogger("anything").warning("100% of nothing")
        finally:
            logging.setLogRecordFactory(factory)
        assert caplog.messages == ["use token=[hidden]", "100% of nothing"]


class TestForgeEntry:
    """Forge's entry script."""

    entry = load("forge")

    def test_the_owner_is_admitted_also_from_memory_and_nobody_else(self) -> None:
        known = self.entry.Credentials("owner", HASH)
        for _ in range(2):
            assert known.admits("owner", 'p:a,ss $w"xé')
            assert not known.admits("owner", 'p:a,ss $w"x')
            assert not known.admits("other", 'p:a,ss $w"xé')
            assert not known.admits("", "")
        assert known.admits(*known.health)
        assert not known.admits(known.health[0], "")

    def test_a_stranger_costs_no_bcrypt_check(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self.entry.bcrypt, "checkpw", None)
        assert not self.entry.Credentials("owner", HASH).admits(*self.entry.basic_auth(None))
        assert not self.entry.Credentials("owner", HASH).admits("owner", "")

    def test_a_closed_gate_lets_nothing_but_gradios_own_start_through(self) -> None:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async def status(gate: Any, path: str, kind: str = "http") -> int:
            sent: list[dict[str, Any]] = []

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)

            await gate({"type": kind, "path": path}, None, send)
            return int(sent[0].get("status", sent[0].get("code")))

        gate = self.entry.Gate(application)
        assert asyncio.run(status(gate, "/")) == asyncio.run(status(gate, "/sdapi/v1/options")) == 401
        assert asyncio.run(status(gate, "/queue/join", "websocket")) == 1008
        assert asyncio.run(status(gate, "/startup-events")) == 200
        gate.open = True
        assert asyncio.run(status(gate, "/")) == 200

    @pytest.mark.parametrize("broken", ["", "ui", "login", "api", "api health"])
    def test_it_refuses_to_open_where_a_login_is_not_in_force(
        self, broken: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        known = self.entry.Credentials("owner", HASH)

        async def application(scope: Any, receive: Any, send: Any) -> None:
            header = dict(scope["headers"]).get(b"authorization", b"").decode()
            admitted = known.admits(*self.entry.basic_auth(header))
            if scope["path"] == "/config":
                status = 200 if broken == "ui" else 401
            elif scope["path"] == "/login":
                body = (await receive())["body"]
                status = 200 if known.health[1].encode() in body or broken == "login" else 400
            else:
                status = 200 if (admitted and broken != "api health") or broken == "api" else 401
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        def end(code: int) -> None:
            raise SystemExit(code)

        monkeypatch.setattr(self.entry.os, "_exit", end)
        if not broken:
            asyncio.run(self.entry.prove_logins(application, known))
            return
        with pytest.raises(SystemExit) as ended:
            asyncio.run(self.entry.prove_logins(application, known))
        assert ended.value.code == 78
        assert "the logins are not in force" in capfd.readouterr().err

    def test_a_password_longer_than_bcrypt_takes_is_not_cut(self) -> None:
        known = self.entry.Credentials("owner", bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode())
        assert known.admits("owner", "x" * 72)
        assert not known.admits("owner", "x" * 73)

    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            (None, ("", "")),
            ("Basic", ("", "")),
            ("Bearer b3duZXI6cA==", ("", "")),
            ("Basic !!!", ("", "")),
            ("Basic " + base64.b64encode(b"\xff:\xff").decode(), ("", "")),
            ("Basic " + base64.b64encode(b"nocolon").decode(), ("", "")),
            ("basic " + base64.b64encode("ö:p:ä".encode()).decode(), ("ö", "p:ä")),
        ],
    )
    def test_basic_credentials_are_read_as_utf8(self, header: str | None, expected: tuple[str, str]) -> None:
        assert self.entry.basic_auth(header) == expected

    @pytest.mark.parametrize(
        "document",
        ["", "[]", "{}", json.dumps({"user": "a", "password_bcrypt": "x"}), json.dumps({"user": " ", "password_bcrypt": HASH}),
         json.dumps({"user": "health", "password_bcrypt": HASH}), json.dumps({"user": "a", "password_bcrypt": None})],
    )  # fmt: skip
    def test_it_refuses_a_malformed_secret_file(
        self, document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def end(code: int) -> None:
            raise SystemExit(code)

        monkeypatch.setattr(self.entry.os, "_exit", end)
        (tmp_path / "auth.json").write_text(document)
        with pytest.raises(SystemExit) as ended:
            self.entry.Credentials.read(tmp_path / "auth.json")
        assert ended.value.code == 78
        assert HASH not in capfd.readouterr().err


def test_the_archives_used_last_are_kept(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    docker.write_text('#!/bin/sh\n[ "$1" = save ] && : >"$3"\nexit 0\n')
    docker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    place = tmp_path / "image archives"
    place.mkdir()
    (place / "atelier-forge-0.tar").touch()
    for number in range(6):
        script = images.save_script(f"atelier/comfyui:{number}", str(place))
        if number == 5:
            script = f"{images.load_script('atelier/comfyui:1', str(place))} && {script}"
        subprocess.run(["sh", "-c", script], env=environment, check=True)
        os.utime(place / f"atelier-comfyui-{number}.tar", (number, number))
    kept = {path.name for path in place.iterdir()}
    assert kept == {"atelier-forge-0.tar", *(f"atelier-comfyui-{number}.tar" for number in (1, 3, 4, 5))}


def test_two_hosts_keep_the_same_image_in_one_directory_at_once(tmp_path: Path) -> None:
    """Sandboxes share theirs: one may put its archive in place just before the other does."""
    (tmp_path / "bin").mkdir()
    programs = {
        "docker": f'echo whole >"$3"; [ ! -p "{tmp_path}/gate" ] || cat "{tmp_path}/gate"',
        "uname": 'echo "$HOST_NAME"',
    }
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    command = ["sh", "-c", images.save_script("atelier/comfyui:1", str(tmp_path / "archives"))]
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with (
        subprocess.Popen(command, env={**environment, "HOST_NAME": "first"}) as first,
        gate.open("w"),  # opens when the first has written its archive
    ):
        gate.rename(tmp_path / "passed")
        subprocess.run(command, env={**environment, "HOST_NAME": "second"}, check=True, timeout=30)
    assert first.returncode == 0
    assert [path.read_text() for path in (tmp_path / "archives").iterdir()] == ["whole\n"]
