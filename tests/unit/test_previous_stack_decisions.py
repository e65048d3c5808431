"""A previous stack: which containers are one's, what its directories hold, and what is taken over, from the shell to the decision."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atelier import previous_containers, previous_places, previous_stack
from atelier.console import Narrator
from atelier.displacement import Displaced
from atelier.errors import AtelierError
from atelier.previous_containers import Listing, Mount, Seen, Suspects, parse, reason, service_of, suspects
from atelier.previous_places import Compose, Place, Size, Survey, mounts_of, places
from atelier.previous_stack import (
    Found,
    Inside,
    Source,
    adoptions,
    escaped,
    found,
    staging_script,
    take_out_script,
    with_search,
)
from atelier.recorded import roots_of
from atelier.settings import Settings
from atelier.ssh import Completed
from weights.job import _found as matched
from weights.progress import PROGRESS

SETTINGS = Settings()
ROOTS = roots_of(SETTINGS)
ROOT = "/home/ai/stack"
FOLDER = f"{ROOT}/docker-configurations/services"
WORKING = "com.docker.compose.project.working_dir"
TOKEN = "$2b$12$" + "a" * 53
COMFYUI = Seen(
    "c" * 64,
    "comfyui-qwen",
    "pytorch/pytorch:2.7",
    {WORKING: f"{FOLDER}/comfyui-qwen", "com.docker.compose.project": "comfyui-qwen"},
    restart="unless-stopped",
    published=((8188, 8188),),
    mounts=(Mount(f"{ROOT}/shared/models", "/app/models"), Mount(f"{ROOT}/shared/outputs", "/app/output")),
    gpu=True,
    networks=("comfyui-qwen_default",),
)
FORGE = Seen("f" * 64, "forge-turbo", published=((17861, 7860),), mounts=(Mount(f"{ROOT}/shared/models", "/m"),))


def told(**more: Any) -> dict[str, Any]:
    """A container as `docker inspect` tells it."""
    return {
        "id": "a" * 64,
        "name": "/web",
        "image": "nginx",
        "labels": None,
        "running": True,
        "restart": {"Name": "", "MaximumRetryCount": 0},
        "rm": False,
        "ports": None,
        "mounts": [],
        "requests": None,
        "devices": None,
        "runtime": "runc",
        "networks": None,
        "visible": "",
        **more,
    }


def seen(**more: Any) -> Seen:
    (one,) = parse(f"{previous_containers.MARK}containers\n{json.dumps(told(**more))}\n").containers
    return one


@pytest.mark.parametrize(
    ("more", "name", "expected"),
    [
        ({}, "restart", "no"),
        ({"restart": {"Name": "on-failure", "MaximumRetryCount": 5}}, "restart", "on-failure:5"),
        ({"restart": {"Name": "on-failure", "MaximumRetryCount": 0}}, "restart", "on-failure"),
        ({"restart": {"Name": "unless-stopped", "MaximumRetryCount": 0}}, "restart", "unless-stopped"),
        ({"ports": {"7860/tcp": [{"HostIp": "", "HostPort": "17861"}], "9/udp": None}}, "published", ((17861, 7860),)),
        ({"ports": {"80/tcp": [{"HostIp": "", "HostPort": ""}]}}, "published", ()),
        ({}, "gpu", False),
        ({"requests": [{"Driver": "", "Capabilities": [["gpu"]]}]}, "gpu", True),
        ({"runtime": "nvidia"}, "gpu", True),
        ({"visible": "all"}, "gpu", True),
        ({"visible": "void"}, "gpu", False),
        ({"devices": [{"PathOnHost": "/dev/nvidia0", "PathInContainer": "/dev/nvidia0"}]}, "gpu", True),
        ({"devices": [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse"}]}, "gpu", False),
        ({"networks": {"b": {}, "a": {}}}, "networks", ("a", "b")),
        (
            {
                "mounts": [
                    {"Type": "bind", "Source": "/a", "Destination": "/b/"},
                    {"Type": "tmpfs", "Destination": "/c"},
                ]
            },
            "mounts",
            (Mount("/a", "/b"),),
        ),
        ({"rm": True}, "leaves_nothing", True),
    ],
)
def test_what_docker_tells_is_read(more: dict[str, Any], name: str, expected: object) -> None:
    assert getattr(seen(**more), name) == expected


GPU_WITH_MODELS = replace(FORGE, name="painter", published=(), gpu=True)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (COMFYUI, "ours gets the name comfyui-qwen"),
        (replace(COMFYUI, name="comfyui-qwen.previous"), "ours gets the name comfyui-qwen"),
        (replace(COMFYUI, labels={"atelier.config": "1"}), ""),
        (replace(COMFYUI, name="qwen"), f"it was made in {FOLDER}/comfyui-qwen"),
        (replace(FORGE, name="sd"), "it publishes port 17861"),
        (replace(FORGE, name="sd", published=((7860, 7860),)), "it publishes port 7860"),
        (replace(FORGE, name="shop", published=((17861, 80),)), ""),
        (replace(FORGE, name="shop", published=((8188, 80),)), ""),
        (replace(FORGE, name="shop", published=((7860, 8188),)), ""),
        (GPU_WITH_MODELS, f"it uses a GPU and has {ROOT}/shared/models"),
        (replace(GPU_WITH_MODELS, gpu=False), ""),
        (replace(GPU_WITH_MODELS, mounts=(Mount("/data/shared/models-of-cars", "/m"),)), ""),
        (Seen("1", "web", published=((80, 80),)), ""),
        (Seen("1", "gateway"), ""),
    ],
)
def test_which_containers_are_a_previous_stacks(one: Seen, why: str) -> None:
    assert reason(one, SETTINGS) == why


def test_somebody_elses_gateway_stays_and_its_name_is_asked_for() -> None:
    (finding,) = suspects(Listing((Seen("1", "gateway"),)), SETTINGS).obstacles
    assert "called gateway" in finding.problem and "gateway_container" in finding.remedy
    assert not suspects(Listing((Seen("1", "gateway", labels={"atelier.config": "1"}),)), SETTINGS).obstacles
    assert not suspects(Listing((replace(COMFYUI, name="gateway"),)), SETTINGS).obstacles, "it is the stack's"


def test_a_root_that_is_named_tells_its_containers() -> None:
    one = Seen("1", "painter", mounts=(Mount("/disk/old/models", "/m"),))
    assert reason(one, SETTINGS) == "" and reason(one, SETTINGS, "/disk/old") == "it belongs to /disk/old"
    assert reason(one, SETTINGS, "/disk/ol") == ""


@pytest.mark.parametrize(
    ("one", "service"),
    [
        (COMFYUI, "comfyui"),
        (FORGE, "forge"),
        (Seen("1", "a", labels={WORKING: "/x/forge-turbo"}), "forge"),
        (Seen("1", "a", "someone/comfyui:1"), "comfyui"),
        (Seen("1", "a", published=((9000, 7860),)), "forge"),
        (Seen("1", "a"), ""),
    ],
)
def test_whose_place_a_container_has(one: Seen, service: str) -> None:
    assert service_of(one) == service


def test_roots_come_from_folders_and_mounts_and_a_folder_alone_is_only_named() -> None:
    chosen = suspects(Listing((COMFYUI, FORGE), (ROOT, "/opt/other")), SETTINGS)
    assert chosen.roots == (ROOT,) and len(chosen.containers) == 2
    assert len(chosen.notes) == 1 and "FROM=/opt/other" in chosen.notes[0]
    assert suspects(Listing((), (ROOT,)), SETTINGS, ROOT) == Suspects(roots=(ROOT,))


def test_one_that_would_be_gone_when_it_stops_is_an_obstacle() -> None:
    chosen = suspects(Listing((replace(COMFYUI, leaves_nothing=True),)), SETTINGS)
    assert "--rm" in chosen.obstacles[0].problem and "docker stop comfyui-qwen" in chosen.obstacles[0].remedy


COMPOSE = """
services:
  comfyui:
    volumes:
      - ../../../shared/models:/app/models:ro
      - ${OUTPUTS:-/data/out}:/app/output
      - {type: bind, source: "${WORK}/user", target: /app/user}
      - state:/app/state
      - cache
"""


def test_a_compose_file_tells_what_it_mounts() -> None:
    compose = Compose(f"{FOLDER}/comfyui-qwen", COMPOSE, {"WORK": "/work here"})
    assert mounts_of(compose) == [
        Mount(f"{ROOT}/shared/models", "/app/models"),
        Mount("/data/out", "/app/output"),
        Mount("/work here/user", "/app/user"),
        Mount("/var/lib/docker/volumes/comfyui-qwen_state/_data", "/app/state"),
    ]


@pytest.mark.parametrize(
    "text", ["", "services: [", "services: 3", "[]", "services: {a: null}", "services: {a: {volumes: [3]}}"]
)
def test_a_compose_file_that_says_nothing_mounts_nothing(text: str) -> None:
    assert mounts_of(Compose("/x", text)) == []


def test_compose_files_are_read_on_the_host_and_no_secret_of_env_is(tmp_path: Path) -> None:
    folder = tmp_path / previous_containers.FOLDER / "forge-turbo"
    folder.mkdir(parents=True)
    (folder / "docker-compose.yml").write_text(COMPOSE)
    (folder / ".env").write_text(f'COMFYUI_TOKEN={TOKEN}\nexport WORK="/data"\nPASSWORD=secret\nUP=../x\n')
    output = subprocess.run(
        ["sh"], input=previous_places.compose_script([str(tmp_path)]), capture_output=True, text=True
    )
    assert TOKEN not in output.stdout and "secret" not in output.stdout
    assert previous_places.parse_compose(output.stdout) == [
        Compose(str(folder), COMPOSE, {"WORK": "/data", "UP": "../x"})
    ]


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        (Mount("/a", "/app/models/checkpoints"), [Place("models", "comfyui", "/a")]),
        (Mount("/a", "/app/output"), [Place("outputs", "comfyui", "/a")]),
        (Mount("/a", "/app/outputs"), [Place("outputs", "comfyui", "/a")]),
        (Mount("/a", "/app/user"), [Place("workflows", "comfyui", "/a/default/workflows")]),
        (Mount("/a", "/app/user/default"), [Place("workflows", "comfyui", "/a/workflows")]),
        (Mount("/a", "/app/user/default/workflows"), [Place("workflows", "comfyui", "/a")]),
        (Mount("/", "/host"), []),
        (Mount("/a", "/venv/site-packages/models"), []),
    ],
)
def test_a_mount_says_what_lies_in_it(mount: Mount, expected: list[Place]) -> None:
    chosen = Suspects(((replace(COMFYUI, mounts=(mount,)), "comfyui", ""),))
    assert places(chosen, []) == expected


def test_an_application_that_is_mounted_as_a_whole_is_looked_into() -> None:
    chosen = Suspects(((replace(COMFYUI, mounts=(Mount("/a", "/workspace"),)), "comfyui", ""),))
    found_ = places(chosen, [])
    assert Place("models", "comfyui", "/a/ComfyUI/models") in found_
    assert Place("workflows", "comfyui", "/a/user/default/workflows") in found_


def test_what_is_there_is_measured(tmp_path: Path) -> None:
    models = tmp_path / "root/shared/mo dels"
    (models / "vae").mkdir(parents=True)
    (models / "vae/a.safetensors").write_bytes(bytes(10))
    (tmp_path / "link").symlink_to(models)
    (tmp_path / "root/.secrets").mkdir()
    token = tmp_path / "root/.secrets/qwen-api-user.token"
    token.write_text(TOKEN)
    root = str(tmp_path / "root")
    script = previous_places.survey_script(
        Suspects(roots=(root,)),
        [Place("models", "", str(tmp_path / "link")), Place("outputs", "", "/nonexistent/it's")],
    )
    output = subprocess.run(["sh"], input=script, capture_output=True, text=True)
    assert not output.stderr
    assert previous_places.parse_survey(output.stdout) == Survey(
        {root: Size(root, 0, 0), str(tmp_path / "link"): Size(str(models), 1, 10, ("vae",))}, frozenset({str(token)})
    )


def decided(places_: list[Place], *sizes: Size, chosen: Suspects | None = None, **more: Any) -> Found:
    return found(chosen or Suspects(), places_, Survey({size.path: size for size in sizes}, **more), SETTINGS, ROOTS)


OUT = f"{ROOT}/shared/outputs"


def test_weights_are_looked_for_in_the_outermost_directories_that_are_not_ours() -> None:
    paths = [f"{ROOT}/shared/models", f"{ROOT}/shared/models/vae", "/empty", "/srv/atelier/models"]
    candidates = [Place("models", "", path) for path in paths]
    sizes = [Size(path, int(path != "/empty"), 1) for path in paths]
    assert decided(candidates, *sizes).search == (f"{ROOT}/shared/models",)


def test_outputs_go_to_who_had_them_and_none_twice() -> None:
    candidates = [
        Place("outputs", "comfyui", OUT),
        Place("outputs", "forge", f"{OUT}/forge"),
        Place("outputs", "", OUT),
    ]
    result = decided(candidates, Size(OUT, 10, 100, ("forge", "2025")), Size(f"{OUT}/forge", 4, 40))
    assert result.outputs == (
        Source("comfyui", "/srv/atelier/outputs/comfyui/previous", OUT, without=("forge",), files=6, bytes=60),
        Source("forge", "/srv/atelier/outputs/forge/previous", f"{OUT}/forge", files=4, bytes=40),
    )


def test_outputs_that_no_container_has_go_by_the_names_of_their_directories() -> None:
    result = decided([Place("outputs", "", OUT)], Size(OUT, 10, 100, ("forge-turbo", "2025")))
    assert [(one.service, one.directory, one.without) for one in result.outputs] == [
        ("comfyui", OUT, ("forge-turbo",)),
        ("forge", f"{OUT}/forge-turbo", ()),
    ]


def test_what_others_cover_altogether_is_no_source_of_its_own() -> None:
    result = decided(
        [Place("outputs", "forge", f"{OUT}/forge"), Place("outputs", "", OUT)],
        Size(OUT, 4, 40, ("forge",)),
        Size(f"{OUT}/forge", 4, 40),
    )
    assert [one.directory for one in result.outputs] == [f"{OUT}/forge"]


def test_workflows_are_comfyuis() -> None:
    candidates = [Place("workflows", "comfyui", "/w"), Place("workflows", "forge", "/x")]
    (one,) = decided(candidates, Size("/w", 2, 5), Size("/x", 1, 1)).workflows
    assert (one.directory, one.target, one.pattern) == (
        "/w",
        "/srv/atelier/users/comfyui/default/workflows/previous",
        "*.json",
    )


ALONE = (
    "/app/output",
    "/app/output/a.png",
    "/opt/sd/outputs/txt2img/2025/b.png",
    "/app/user/default/workflows/mine.json",
    "/app/loras/mine.safetensors",
)


def test_what_only_a_container_has_is_taken_out_of_it() -> None:
    mounted = replace(COMFYUI, mounts=(Mount("/x", "/app/output"),))
    chosen = Suspects(((mounted, "comfyui", "why"),))
    result = decided([], chosen=chosen, alone={mounted.id: ALONE}, sizes={(mounted.id, ALONE[-1]): 9})
    assert [(one.inside, one.name, one.files) for one in result.outputs] == [("/opt/sd/outputs", "comfyui-qwen", 1)]
    assert [one.inside for one in result.workflows] == ["/app/user/default/workflows"]
    place = f"/srv/atelier/previous/comfyui-qwen-{mounted.id[:12]}/app/loras/mine.safetensors"
    assert result.inside == (Inside(mounted.id, "/app/loras/mine.safetensors", place, 9),)
    assert result.search == ("/srv/atelier/previous",)


@pytest.fixture
def inside(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Takes all that lies in `tmp_path/c` out into `tmp_path/out`, by a docker that has it in a container."""
    fake = f"""#!/bin/sh
[ ! -e {tmp_path}/dead ] || {{ echo "Cannot connect to the Docker daemon" >&2; exit 1; }}
p=${{3#*:}}; [ -e "{tmp_path}/c$p" ] || {{ echo "Could not find the file $p in container" >&2; exit 1; }}
echo "$p" >>{tmp_path}/asked; tar -C {tmp_path}/c -chf - ".$p"
"""
    (tmp_path / "docker").write_text(fake)
    (tmp_path / "docker").chmod(0o755)
    (tmp_path / "c").mkdir()

    def run(*names: str, reserve: int = 0) -> subprocess.CompletedProcess[str]:
        weights = [Inside("1", f"/{name}", f"{tmp_path}/out/x/{name}") for name in names]
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        script = take_out_script(weights, reserve)
        return subprocess.run(["sh"], input=script, capture_output=True, text=True, env=environment)

    return run


def test_the_sizes_of_what_only_a_container_has_are_told(tmp_path: Path) -> None:
    fake = f"""#!/bin/sh
case $1 in
  diff) printf 'A /a b.safetensors\\nA /x.txt\\nC /o/outputs/i.png\\n' ;;
  cp) [ "$3" = "{COMFYUI.id}:/a b.safetensors" ] && tar -C {tmp_path} -c "a b.safetensors" ;;
esac
"""
    (tmp_path / "a b.safetensors").write_bytes(bytes(3_000_000))
    (tmp_path / "docker").write_text(fake)
    (tmp_path / "docker").chmod(0o755)
    script = previous_places.survey_script(Suspects(((COMFYUI, "comfyui", "why"),)), [])
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    output = subprocess.run(["sh"], input=script, capture_output=True, text=True, env=environment)
    survey = previous_places.parse_survey(output.stdout)
    assert survey.alone == {COMFYUI.id: ("/a b.safetensors", "/o/outputs/i.png")}
    assert survey.sizes == {(COMFYUI.id, "/a b.safetensors"): 3_000_000}


def test_weights_are_taken_out_of_a_container_once(
    tmp_path: Path, inside: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    source, out = tmp_path / "c/my own.safetensors", tmp_path / "out/x"
    source.write_bytes(b"x" * 3_000_000)
    (tmp_path / "c/link.ckpt").symlink_to(source.name)
    names = ("my own.safetensors", "link.ckpt", "gone.gguf")
    for reads in (2, 1):
        (tmp_path / "asked").write_text("")
        done = inside(*names)
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(path.name for path in out.iterdir()) == ["link.ckpt", "my own.safetensors"]
        assert all(path.read_bytes() == source.read_bytes() for path in out.iterdir())
        # Measured, looked at, and the first time taken.
        assert (tmp_path / "asked").read_text().count("/link.ckpt") == reads + 1
    source.write_bytes(b"y" * 3_000_001)
    assert inside(*names).returncode == 0 and (out / "link.ckpt").read_bytes() == source.read_bytes()


def test_weights_that_do_not_fit_stay_where_they_are(
    tmp_path: Path, inside: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "c/a.safetensors").write_bytes(b"x" * 3_000_000)
    done = inside("a.safetensors", reserve=10**15)
    assert done.returncode == 1 and "3 MB are needed there" in done.stderr and "make room for" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_docker_that_does_not_answer_is_no_container_without_weights(
    tmp_path: Path, inside: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "dead").touch()
    done = inside("a.safetensors")
    assert done.returncode == 1 and "Cannot connect" in done.stderr


@pytest.mark.parametrize(
    "file,keeps,inside",
    [
        ("?", True, False),
        ("/app/loras/\ufffd.safetensors", True, False),
        ("/opt/webui/embeddings/mine.pt", False, True),
        ("/app/input/portrait.png", False, True),
        ("/app/output/a.png", False, False),
    ],
)
def test_a_container_of_which_docker_does_not_tell_all_stays(file: str, keeps: bool, inside: bool) -> None:
    result = decided([], chosen=Suspects(((COMFYUI, "comfyui", "why"),)), alone={COMFYUI.id: (file,)})
    (one,) = result.containers
    assert ("Docker does not tell" in one.keeps) is keeps is bool(result.notes)
    assert [each.path for each in result.inside] == ([file] if inside else [])


DIFFS = {
    "all is told": (
        "C /app\nA /app/output/a.PNG\nA /venv/site-packages/x.pth\nA /app/input/example.png",
        0,
        ("/app/output/a.PNG",),
    ),
    "a name with a line break": ("A /app/a\nb.ckpt\nA /m/z.ckpt", 0, ("?", "/m/z.ckpt")),
    "Docker broke off": ("A /app/output/a.png", 1, ("/app/output/a.png", "?")),
    "weights after very many images": (
        "\n".join([*(f"A /output/{number}.png" for number in range(20001)), "A /m/z.ckpt"]),
        0,
        (*(f"/output/{number}.png" for number in range(20000)), "/m/z.ckpt"),
    ),
}


@pytest.mark.parametrize("told,status,alone", DIFFS.values(), ids=DIFFS.keys())
def test_what_docker_does_not_tell_of_a_container_is_known_not_to_be_told(
    tmp_path: Path, told: str, status: int, alone: tuple[str, ...]
) -> None:
    (tmp_path / "told").write_text(f"{told}\n")
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\ncat {tmp_path}/told; exit {status}\n")
    docker.chmod(0o755)
    script = previous_places.survey_script(Suspects(((COMFYUI, "comfyui", "why"),)), [])
    path = f"{tmp_path}:{os.environ['PATH']}"
    output = subprocess.run(["sh"], input=script, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert previous_places.parse_survey(output.stdout).alone == {COMFYUI.id: alone}


def test_a_name_with_a_line_break_in_a_container_leads_nowhere_on_the_host() -> None:
    files = ("/../../../../etc/x/loras/a.pt", "/../../root/outputs/a.png", "/app/loras/mine.pt")
    told = decided([], chosen=Suspects(((COMFYUI, "comfyui", "why"),)), alone={COMFYUI.id: files})
    assert [one.path for one in told.inside] == ["/app/loras/mine.pt"] and not told.outputs
    assert "does not tell" in told.containers[0].keeps


def test_containers_step_aside_as_they_were_and_those_that_did_are_told_apart() -> None:
    gone = replace(FORGE, name="forge-turbo.previous", running=False)
    result = decided([], chosen=Suspects(((COMFYUI, "comfyui", "why"), (gone, "forge", "why"))))
    assert result.containers == (
        Displaced(
            COMFYUI.id,
            "comfyui-qwen",
            "unless-stopped",
            why="why",
            service="comfyui",
            ports=(8188,),
            networks=("comfyui-qwen_default",),
        ),
    )
    assert [(one.name, one.aside) for one in result.aside] == [("forge-turbo", "forge-turbo.previous")]


def test_token_files_that_are_there_are_named_and_none_says_so() -> None:
    path = f"{ROOT}/.secrets/.env.generated"
    assert decided([], chosen=Suspects(roots=(ROOT,)), files=frozenset({path})).token_files == (path,)

    class NoHost:
        def run(self, *_: object, **__: object) -> None:
            raise AssertionError("asked")

    with pytest.raises(AtelierError, match=r"no qwen-api-user.token in /home/ai/stack/.secrets"):
        previous_stack.credentials(NoHost(), Found(roots=(ROOT,)), {})  # type: ignore[arg-type]


class Host:
    """Answers with what a shell here says."""

    def run(self, script: str, **_: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["sh"], input=script, capture_output=True, text=True)


def test_the_token_is_read_where_it_lies_and_copies_that_differ_are_refused(tmp_path: Path) -> None:
    token, generated = tmp_path / "qwen-api-user.token", tmp_path / ".env.generated"
    token.write_text(f"{TOKEN}\n")
    generated.write_text(f"COMFYUI_TOKEN='{TOKEN}'\nFORGE_USER=me\nFORGE_PASSWORD=enough-of-a-password\n")
    both = Found(token_files=(str(token), str(generated)))
    imported = previous_stack.credentials(Host(), both, {})  # type: ignore[arg-type]
    assert imported.credentials.comfyui.password_bcrypt == TOKEN
    assert imported.credentials.forge.password == "enough-of-a-password"
    generated.write_text(f"COMFYUI_TOKEN='{TOKEN[:-1]}b'\n")
    with pytest.raises(AtelierError, match="values that differ") as refused:
        previous_stack.credentials(Host(), both, {})  # type: ignore[arg-type]
    assert TOKEN[10:] not in str(refused.value)


def test_the_search_of_one_run_means_these_directories_alone(tmp_path: Path) -> None:
    odd = tmp_path / "mo[d]*ls?"
    odd.mkdir()
    (tmp_path / "modxls1").mkdir()
    settings = with_search(SETTINGS, Found(search=(str(odd), str(odd))))
    assert settings.models.search == [*SETTINGS.models.search, escaped(str(odd))]
    assert matched([escaped(str(odd))]) == (odd,)


def test_what_is_copied_goes_below_directories_of_the_services() -> None:
    sources = [
        Source("forge", "/srv/atelier/outputs/forge/previous", "/a", without=("x",)),
        Source(
            "comfyui",
            "/srv/atelier/users/comfyui/default/workflows/previous",
            container="c" * 64,
            inside="/w it",
            pattern="*.json",
        ),
    ]
    made = adoptions(sources, SETTINGS, "/stage")
    assert [(one.source, one.base, one.into, one.owner, one.without) for one in made] == [
        ("/a", "/srv/atelier/outputs/forge", "previous", 10001, ("x",)),
        ("/stage/cccccccccccc/w it", "/srv/atelier/users/comfyui", "default/workflows/previous", 10001, ()),
    ]
    script = staging_script(sources, "/stage", 7)
    assert (
        f"docker cp -a {'c' * 64}:'/w it/.' '/stage/cccccccccccc/w it'" in script and script.count("docker cp -a") == 1
    )
    assert staging_script(sources[:1], "/stage", 7) == "set -e\nrm -rf /stage"


@pytest.mark.parametrize(("reserve", "fits"), [(0, True), (10**15, False)])
def test_nothing_is_taken_out_of_a_container_where_it_does_not_fit(reserve: int, fits: bool, tmp_path: Path) -> None:
    fake = """#!/bin/sh
if [ "$3" = - ]; then head -c 3000000 /dev/zero; else echo image >"$4/one.png"; fi
"""
    (tmp_path / "docker").write_text(fake)
    (tmp_path / "docker").chmod(0o755)
    sources = [Source("forge", "/x", container="c" * 64, inside="/out")]
    script = staging_script(sources, f"{tmp_path}/stage", reserve)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh"], input=script, capture_output=True, text=True, env=environment)
    assert (done.returncode == 0) is fits
    assert (tmp_path / "stage/cccccccccccc/out/one.png").exists() is fits
    assert fits or (f"{tmp_path}: 6 MB are needed there for a while" in done.stderr and "make room for" in done.stderr)


def test_only_the_directories_that_get_something_are_made(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"data_root": f"{tmp_path}/data", "service_uid": os.getuid() or 10001})
    script = previous_stack.bases_script([Source("forge", settings.outputs_path("forge"), "/a")], settings)
    for _ in range(2):
        done = subprocess.run(["sh"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    made = tmp_path / "data/outputs/forge"
    assert [made] == list((tmp_path / "data").glob("*/*"))
    assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (settings.service_uid, 0o755)


class Answering:
    """A host whose program answers with that."""

    def __init__(self, output: str, status: int = 0) -> None:
        self.output, self.status, self.asked = output, status, list[str]()

    def run(self, script: str, **_: object) -> Completed:
        self.asked.append(script)
        return Completed(0, "", "")

    def popen(self, script: str) -> "subprocess.Popen[bytes]":
        self.asked.append(script)
        told = ["sh", "-c", f"cat >/dev/null; printf %s {shlex.quote(self.output)}; exit {self.status}"]
        return subprocess.Popen(told, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class Listener(Narrator):
    """Keeps what is said, and how far it is."""

    def __init__(self) -> None:
        super().__init__()
        self.said, self.heard = list[str](), list[str]()

    def say(self, line: str = "", style: str = "") -> None:
        self.said.append(line)

    def output(self, line: str) -> None:
        self.heard.append(line)


OUTPUT = Found(outputs=(Source("forge", "/srv/atelier/outputs/forge/previous", "/a"),))


def test_what_was_copied_is_told_and_what_was_not() -> None:
    adopted = {"files": 2, "bytes": 9, "same": 1, "renamed": {"/a/x": "x-2"}, "left": {"/a/l": "it is no file"}}
    host = Answering(f"{PROGRESS}half\n{json.dumps({'verb': 'adopt', 'error': '', 'moves': {}, 'adopted': adopted})}\n")
    narrator = Listener()
    brought = previous_stack.bring(host, SETTINGS, OUTPUT, narrator)  # type: ignore[arg-type]
    assert (brought.files, brought.bytes, brought.same) == (2, 9, 1)
    assert narrator.heard == [f"{PROGRESS}half"]
    assert narrator.said == ["  /a/l: not copied: it is no file", "  /a/x: copied as x-2, as another file has its name"]
    assert host.asked[-1] == "rm -rf /srv/atelier/.previous"


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("the disk is gone", "the disk is gone"),
        ("", "connection was lost"),
        (json.dumps({"verb": "adopt", "error": "make room", "moves": {}}), "make room"),
    ],
)
def test_a_copy_that_failed_says_why(output: str, why: str) -> None:
    with pytest.raises(AtelierError, match=why):
        previous_stack.bring(Answering(output, 1), SETTINGS, OUTPUT, Narrator())  # type: ignore[arg-type]


def test_a_stack_without_files_costs_no_question() -> None:
    host = Answering("")
    assert previous_stack.bring(host, SETTINGS, Found(), Narrator()).files == 0 and not host.asked  # type: ignore[arg-type]


class Here:
    """This computer in the place of a host without Docker."""

    def run(self, script: str, **_: object) -> Completed:
        done = subprocess.run(["sh"], input=f"docker() {{ false; }}\n{script}", capture_output=True, text=True)
        return Completed(done.returncode, done.stdout, done.stderr)


def test_a_directory_that_is_no_stack_is_not_taken_for_one(tmp_path: Path) -> None:
    """Every container that has anything of `/` would have to make room."""
    for wrong in ("/", str(tmp_path)):
        with pytest.raises(AtelierError, match="there is neither docker-configurations"):
            previous_stack.look(Here(), SETTINGS, wrong)
    with pytest.raises(AtelierError, match="no such directory"):
        previous_stack.look(Here(), SETTINGS, str(tmp_path / "none"))
    (tmp_path / "shared/models").mkdir(parents=True)
    assert previous_stack.look(Here(), SETTINGS, f"{tmp_path}/").roots == (str(tmp_path),)
    service = tmp_path / "other" / previous_containers.FOLDER / "forge-turbo"
    service.mkdir(parents=True)
    (service / "compose.yaml").write_text("services: {}")
    assert previous_stack.look(Here(), SETTINGS, str(tmp_path / "other")).roots == (str(tmp_path / "other"),)
