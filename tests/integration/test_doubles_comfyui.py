"""The double of ComfyUI with ComfyUI-Login behaves as the real ones were measured to: statuses, weaknesses, generation.

The same tests hold against the real applications: ATELIER_COMFYUI_SOURCE (a source folder with the plugin in it) and
ATELIER_COMFYUI_PYTHON (a command that runs Python with what it needs). What only a double can pass is left out then.
"""

from __future__ import annotations

import base64
import fcntl
import http.client
import io
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from sandbox.doubles import local, weights

REAL = "ATELIER_COMFYUI_SOURCE" in os.environ
pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="the doubles' locks are for Python 3.11 and newer")
double_only = pytest.mark.skipif(REAL, reason="the double's own, or closed in the pinned ComfyUI")

PASSWORD = "geheim"
TOKEN = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
OWNER = {"Authorization": f"Bearer {TOKEN}"}
BASIC = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
EMPTY_IMAGE = {"width": 96, "height": 64, "batch_size": 1, "color": 3368601}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comfyui")
    local.lay_out_comfyui(folder, f"{TOKEN}\nalice")
    if REAL:
        return folder
    models = folder / "models"
    weights.write(models / "checkpoints" / "sdxl.safetensors", "sdxl-checkpoint")
    weights.write(models / "checkpoints" / "diffusion_only.safetensors", "qwen-diffusion")
    weights.write(models / "diffusion_models" / "qwen.safetensors", "qwen-diffusion")
    weights.write(models / "text_encoders" / "qwen_te.safetensors", "qwen-text-encoder")
    weights.write(models / "vae" / "vae.safetensors", "vae")
    good = weights.model("sdxl-checkpoint")
    (models / "checkpoints" / "garbage.safetensors").write_bytes(b"\xff" * 5000)
    (models / "checkpoints" / "truncated.safetensors").write_bytes(good[:-3])
    holed = [name for name in weights.TENSORS["qwen-diffusion"][1] if "blocks.1.attn.to_k" not in name]
    (models / "diffusion_models" / "holed.safetensors").write_bytes(weights.safetensors("F8_E4M3", tuple(holed)))
    return folder


@pytest.fixture(scope="module")
def comfyui(root: Path) -> Iterator[local.Running]:
    with local.stopping(lambda: local.start_comfyui(root)) as running:
        yield running


@pytest.fixture(scope="module")
def stranger(comfyui: local.Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=comfyui.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def owner(comfyui: local.Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=comfyui.url, headers=OWNER, timeout=60) as client:
        yield client


def ask(url: str, method: str, path: str, headers: dict[str, str] | None = None) -> int:
    """The status for a path that is sent as it is written: no client here tidies it."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


# Columns of the table in the facts: what a caller brings along.
REFUSED: list[tuple[str, dict[str, str]]] = [
    ("", {}),
    ("", {"Authorization": "Bearer wrong"}),
    ("", {"Authorization": f"Basic {BASIC}"}),
    ("", {"Authorization": f"bearer {TOKEN}"}),
    ("?token=", {}),
    ("?token=wrong", {}),
]
BROWSER = {"Accept": "text/html,application/xhtml+xml"}
MALFORMED = [{"Authorization": "Bearer"}, {"Authorization": f"Bearer {TOKEN} more"}]
PROTECTED = [
    "/", "/system_stats", "/prompt", "/queue", "/history", "/object_info/SaveImage", "/internal/logs", "/settings",
    "/users", "/models", "/api/prompt", "/api/system_stats", "/api/queue", "/%70rompt",
]  # fmt: skip


@pytest.mark.parametrize("path", [*PROTECTED, "/ws", "/view", "//prompt", "/./prompt", "/prompt/", "/login/../prompt"])
def test_a_protected_path_refuses_every_kind_of_stranger(comfyui: local.Running, path: str) -> None:
    assert [ask(comfyui.url, "GET", path + query, headers) for query, headers in REFUSED] == [401] * len(REFUSED)
    assert ask(comfyui.url, "GET", path, BROWSER) == 302
    assert [ask(comfyui.url, "GET", path, headers) for headers in MALFORMED] == [500, 500]


@pytest.mark.parametrize("path", ["/upload/image", "/interrupt", "/free", "/prompt", "/settings/x", "/userdata/x.json"])
def test_nothing_can_be_posted_by_a_stranger(comfyui: local.Running, path: str) -> None:
    assert [ask(comfyui.url, "POST", path + query, headers) for query, headers in REFUSED] == [401] * len(REFUSED)


@pytest.mark.parametrize("path", PROTECTED)
def test_the_owner_comes_in_by_header_and_by_query(comfyui: local.Running, path: str) -> None:
    assert ask(comfyui.url, "GET", path, OWNER) == 200
    assert ask(comfyui.url, "GET", f"{path}?token={TOKEN}") == 200


@pytest.mark.parametrize("path", ["//prompt", "/./prompt", "/prompt/", "/login/../prompt"])
def test_a_crooked_path_leads_the_owner_nowhere(comfyui: local.Running, path: str) -> None:
    assert ask(comfyui.url, "GET", path, OWNER) == 404


@pytest.mark.parametrize("headers", [{}, BROWSER, OWNER, *MALFORMED])
def test_the_login_page_and_options_are_open(comfyui: local.Running, headers: dict[str, str]) -> None:
    assert ask(comfyui.url, "GET", "/login", headers) == 200
    assert ask(comfyui.url, "OPTIONS", "/prompt", headers) == 200


def test_a_browser_logs_in_and_stays_in(comfyui: local.Running) -> None:
    with httpx.Client(base_url=comfyui.url) as browser:
        wrong = browser.post("/login", data={"password": "no"})
        assert (wrong.status_code, wrong.headers["location"]) == (302, "/login?wrong_password=1")
        assert browser.get("/prompt").status_code == 401
        right = browser.post("/login", data={"password": PASSWORD})
        assert (right.status_code, right.headers["location"]) == (302, "/")
        assert browser.get("/prompt").status_code == 200
        assert browser.get("/logout").headers["location"] == "/login"
        assert browser.get("/prompt").status_code == 401


def test_weakness_malformed_logins_are_500(stranger: httpx.Client) -> None:
    assert stranger.post("/login", data={"username": "alice"}).status_code == 500
    assert stranger.post("/login", data={"password": "x" * 73}).status_code == 500


def test_weakness_a_suffix_opens_handlers_to_strangers(stranger: httpx.Client, owner: httpx.Client) -> None:
    assert stranger.post("/userdata/x.js", content=b"planted").status_code == 200
    assert stranger.get("/userdata/x.js").content == b"planted"
    assert stranger.delete("/userdata/x.js").status_code == 204
    assert stranger.post("/settings/x.css", json=1).status_code == 200
    assert owner.get("/settings").json()["x.css"] == 1

    assert owner.post("/userdata/workflows%2Fprivate.json", content=b"secret").status_code == 200
    assert stranger.get("/userdata/workflows%2Fprivate.json").status_code == 401
    assert stranger.post("/userdata/workflows%2Fprivate.json/move/stolen.js").status_code == 200
    assert stranger.get("/api/userdata/stolen.js").content == b"secret"
    assert stranger.get("/nothing.ico").status_code == 404


@double_only
@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("suffix", [".js", ".css"])
def test_weakness_any_image_can_be_read_by_strangers(
    comfyui: local.Running, root: Path, prefix: str, suffix: str
) -> None:
    """Closed from ComfyUI v0.28 on; the double keeps it, since the gateway must close it for any version."""
    Image.new("RGB", (8, 8), "red").save(root / "elsewhere.png")
    path = f"{prefix}/experiment/models/preview/checkpoints/0/{root / 'elsewhere'}{suffix}"
    with httpx.Client(base_url=comfyui.url) as client:
        answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")


def test_weakness_the_token_is_logged_at_start_and_served(comfyui: local.Running, owner: httpx.Client) -> None:
    assert f"For direct API calls, use token={TOKEN}" in comfyui.log()
    assert TOKEN in owner.get("/internal/logs").json()


# Which start leaves the login off although the plugin is there: arguments, and what is done to the folder before.
def crypto_is_missing(folder: Path) -> None:
    (folder / "broken" / "Crypto").mkdir(parents=True)
    (folder / "broken" / "Crypto" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'Crypto'\")")


def password_is_a_directory(folder: Path) -> None:
    (folder / "ComfyUI" / "login" / "PASSWORD").mkdir()


def key_of(content: str) -> Callable[[Path], None]:
    return lambda folder: _key(folder).write_text(content) and None


def _key(folder: Path) -> Path:
    return folder / "ComfyUI" / "custom_nodes" / "ComfyUI-Login" / ".secret-key.txt"


OLD_KEY = "A" * 43 + "=,2020-01-01T00:00:00"


def old_key_that_stays(folder: Path) -> None:
    """Root writes where it likes, so the key is a memory file that is sealed against every writer."""
    memory = os.memfd_create("key", os.MFD_ALLOW_SEALING)
    os.write(memory, OLD_KEY.encode())
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    _key(folder).unlink()
    _key(folder).symlink_to(f"/proc/{os.getpid()}/fd/{memory}")


FAILS_OPEN: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "Crypto is missing": (crypto_is_missing, []),
    "PASSWORD is a directory": (password_is_a_directory, []),
    "the key is malformed": (key_of("nonsense"), []),
    "the key is old and cannot be replaced": (old_key_that_stays, []),
    "custom nodes are off": (lambda folder: None, ["--disable-all-custom-nodes"]),
}


@pytest.mark.parametrize("case", FAILS_OPEN)
def test_weakness_without_the_plugin_everybody_is_served(tmp_path: Path, case: str) -> None:
    prepare, arguments = FAILS_OPEN[case]
    local.lay_out_comfyui(tmp_path, None if "directory" in case else f"{TOKEN}\nalice")
    prepare(tmp_path)
    env = {"PYTHONPATH": f"{tmp_path / 'broken'}:{os.environ.get('PYTHONPATH', '')}"}
    with local.stopping(lambda: local.start_comfyui(tmp_path, *arguments, env=env)) as running:
        assert httpx.get(f"{running.url}/prompt").status_code == 200
        if not arguments:
            assert "(IMPORT FAILED)" in running.log()


def test_an_old_key_is_replaced_and_a_young_one_kept(tmp_path: Path, comfyui: local.Running, root: Path) -> None:
    assert comfyui and _key(root).read_text() == local.COOKIE_KEY
    source = local.lay_out_comfyui(tmp_path, f"{TOKEN}\nalice")
    _key(tmp_path).write_text(OLD_KEY)
    (source / "custom_nodes" / "broken.py").write_text("import no_such_module")
    assert local.start_comfyui(tmp_path, "--quick-test-for-ci").process.wait(60) == 0
    assert _key(tmp_path).read_text() != OLD_KEY
    assert "(IMPORT FAILED)" in (tmp_path / "log").read_text()


def cookie_of(url: str) -> dict[str, str]:
    return dict(httpx.post(f"{url}/login", data={"password": PASSWORD}).cookies)


def test_weakness_without_a_password_file_the_first_visitor_owns_it(tmp_path: Path, comfyui: local.Running) -> None:
    local.lay_out_comfyui(tmp_path, None)
    _key(tmp_path).write_text("B" * 43 + "=,2999-01-01T00:00:00")
    with local.stopping(lambda: local.start_comfyui(tmp_path)) as running, httpx.Client(base_url=running.url) as guest:
        # Another cookie key is what ends a session of before.
        assert guest.get("/prompt", headers=as_header(cookie_of(comfyui.url))).status_code == 401
        assert guest.get("/prompt?token=").status_code == 200
        assert guest.post("/login", data={"username": "mallory", "password": "mine"}).headers["location"] == "/"
        stored = (tmp_path / "ComfyUI" / "login" / "PASSWORD").read_text().splitlines()
        assert stored[1] == "mallory"
        assert guest.get("/prompt", headers={"Authorization": f"Bearer {stored[0]}"}).status_code == 200


def as_header(cookies: dict[str, str]) -> dict[str, str]:
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}


def test_weakness_guest_mode_and_cookies_that_nothing_ends(tmp_path: Path, comfyui: local.Running) -> None:
    cookie = cookie_of(comfyui.url)
    assert httpx.get(f"{comfyui.url}/logout", headers=as_header(cookie)).status_code == 302
    local.lay_out_comfyui(tmp_path, bcrypt.hashpw(b"another", bcrypt.gensalt(4)).decode())
    switch = tmp_path / "ComfyUI" / "login" / "GUEST_MODE"
    switch.touch()
    with local.stopping(lambda: local.start_comfyui(tmp_path)) as running, httpx.Client(base_url=running.url) as guest:
        # After log-out, a restart and a new password a cookie that was kept still counts.
        assert httpx.get(f"{running.url}/prompt", headers=as_header(cookie)).status_code == 200
        guest.post("/login", data={"guest_mode": "1", "password": ""})
        switch.unlink()
        assert guest.get("/system_stats").status_code == 200
        assert guest.post("/prompt", json={}).json()["error"]["type"] == "no_prompt"
        assert guest.post("/free", json={}).json() == {}


# ---------------------------------------------------------------------------------------------------- generation


def small_graph(prefix: str, **changes: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {**EMPTY_IMAGE, **changes}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def checkpoint_graph(checkpoint: str = "sdxl.safetensors", prefix: str = "t/sd", **sampler: Any) -> dict[str, Any]:
    settings = {"seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    size = {"width": 64, "height": 64, "batch_size": 1}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red square"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": size},
        "5": {"class_type": "KSampler", "inputs": {**settings, **links, **sampler}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": prefix}},
    }


def edit_graph(image: str, prompt: str = "make it blue", unet: str = "qwen.safetensors") -> dict[str, Any]:
    text = {"clip": ["2", 0], "vae": ["3", 0], "image1": ["4", 0]}
    settings = {"seed": 1, "steps": 2, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["8", 0], "positive": ["5", 0], "negative": ["6", 0], "latent_image": ["9", 0]}
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": unet, "weight_dtype": "fp8_e4m3fn"}},
        "2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "qwen_te.safetensors", "type": "qwen_image"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "vae.safetensors"}},
        "4": {"class_type": "LoadImage", "inputs": {"image": image}},
        "5": {"class_type": "TextEncodeQwenImageEditPlus", "inputs": {**text, "prompt": prompt}},
        "6": {"class_type": "TextEncodeQwenImageEditPlus", "inputs": {**text, "prompt": ""}},
        "7": {"class_type": "ModelSamplingAuraFlow", "inputs": {"model": ["1", 0], "shift": 3.0}},
        "8": {"class_type": "CFGNorm", "inputs": {"model": ["7", 0], "strength": 1.0}},
        "9": {"class_type": "VAEEncode", "inputs": {"pixels": ["4", 0], "vae": ["3", 0]}},
        "10": {"class_type": "KSampler", "inputs": {**settings, **links}},
        "11": {"class_type": "VAEDecode", "inputs": {"samples": ["10", 0], "vae": ["3", 0]}},
        "12": {"class_type": "SaveImage", "inputs": {"images": ["11", 0], "filename_prefix": "t/edit"}},
    }


def finished(client: httpx.Client, graph: dict[str, Any], prompt_id: str | None = None) -> dict[str, Any]:
    """Queues the graph and waits for its entry in the history."""
    body = {"prompt": graph, **({"prompt_id": prompt_id} if prompt_id else {})}
    answer = client.post("/prompt", json=body)
    assert answer.status_code == 200, answer.text
    queued = answer.json()["prompt_id"]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if entry := client.get(f"/history/{queued}").json():
            return dict(entry[queued])
        time.sleep(0.02)
    raise AssertionError("not finished within 60 s")


def pixels(client: httpx.Client, entry: dict[str, Any]) -> tuple[tuple[int, int], bytes]:
    (image,) = next(iter(entry["outputs"].values()))["images"]
    with Image.open(io.BytesIO(client.get("/view", params=image).content)) as picture:
        return picture.size, picture.convert("RGB").tobytes()


def test_the_weight_free_workflow_and_its_repetition(owner: httpx.Client, root: Path) -> None:
    chosen = str(uuid.uuid4())
    first = finished(owner, small_graph("smoke/x"), chosen)
    assert first["prompt"][1] == chosen
    assert first["status"]["status_str"] == "success" and first["status"]["completed"] is True
    assert [kind for kind, _ in first["status"]["messages"]] == [
        "execution_start", "execution_cached", "execution_success",
    ]  # fmt: skip
    image = first["outputs"]["2"]["images"][0]
    assert image == {"filename": "x_00001_.png", "subfolder": "smoke", "type": "output"}
    assert pixels(owner, first) == ((96, 64), bytes((0x33, 0x66, 0x99)) * 96 * 64)
    with Image.open(root / "output" / "smoke" / "x_00001_.png") as picture:
        assert json.loads(picture.text["prompt"]) == small_graph("smoke/x")  # type: ignore[attr-defined]

    again = finished(owner, small_graph("smoke/x"))
    assert again["outputs"] == first["outputs"]
    assert sorted(again["status"]["messages"][1][1]["nodes"]) == ["1", "2"]
    assert len(list((root / "output" / "smoke").iterdir())) == 1


SMALL = small_graph("bad/x")
ERRORS: list[tuple[dict[str, Any], str]] = [
    ({}, "no_prompt"),
    ({"prompt": {"1": SMALL["1"]}}, "prompt_no_outputs"),
    ({"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}, "missing_node_type"),
    ({"prompt": {**SMALL, "2": {"class_type": "SaveImage", "inputs": {}}}}, "prompt_outputs_failed_validation"),
    ({"prompt": small_graph("bad/x", width=0)}, "prompt_outputs_failed_validation"),
    ({"prompt": SMALL, "prompt_id": "mine"}, "invalid_prompt_id"),
]


@pytest.mark.parametrize(("body", "kind"), ERRORS)
def test_a_bad_prompt_is_a_400_of_a_known_type(owner: httpx.Client, body: dict[str, Any], kind: str) -> None:
    answer = owner.post("/prompt", json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, kind)


def test_malformed_json_is_a_500(owner: httpx.Client) -> None:
    assert owner.post("/prompt", content=b"{").status_code == 500


def test_a_missing_model_is_a_value_not_in_list(owner: httpx.Client) -> None:
    answer = owner.post("/prompt", json={"prompt": checkpoint_graph("absent.safetensors")})
    (error,) = answer.json()["node_errors"]["1"]["errors"]
    assert (answer.status_code, error["type"]) == (400, "value_not_in_list")
    assert error["details"].startswith("ckpt_name: 'absent.safetensors' not in [")


def test_one_good_output_hides_a_bad_one(owner: httpx.Client) -> None:
    graph = small_graph("half/x")
    graph["3"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "half/y"}}
    answer = owner.post("/prompt", json={"prompt": graph})
    assert answer.status_code == 200
    assert answer.json()["node_errors"]["3"]["errors"][0]["type"] == "required_input_missing"


def collect(socket: ClientConnection, last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    while not messages or not last(messages[-1]):
        messages.append(json.loads(socket.recv(timeout=60)))
    return messages


def ended(message: dict[str, Any]) -> bool:
    return message["type"] == "executing" and message["data"]["node"] is None


def test_progress_comes_over_the_websocket(comfyui: local.Running, owner: httpx.Client) -> None:
    client = uuid.uuid4().hex
    with connect(f"ws://127.0.0.1:{comfyui.port}/ws?clientId={client}", additional_headers=OWNER) as socket:
        owner.post("/prompt", json={"prompt": small_graph(f"ws/{client}", color=7), "client_id": client})
        messages = [message for message in collect(socket, ended) if message["type"] != "progress_state"]
    assert messages[0]["data"]["sid"] == client
    assert [message["type"] for message in messages if message["type"] != "status"] == [
        "execution_start", "execution_cached", "executing", "executing", "executed", "execution_success", "executing",
    ]  # fmt: skip
    executed = next(message["data"] for message in messages if message["type"] == "executed")
    assert executed["node"] == "2" and executed["output"]["images"][0]["subfolder"] == "ws"
    remaining = [m["data"]["status"]["exec_info"]["queue_remaining"] for m in messages if m["type"] == "status"]
    assert remaining == [0, 1, 1, 0]


@double_only
def test_sampling_reports_steps_and_depends_on_the_seed_alone(comfyui: local.Running, owner: httpx.Client) -> None:
    client = uuid.uuid4().hex
    with connect(f"ws://127.0.0.1:{comfyui.port}/ws?clientId={client}", additional_headers=OWNER) as socket:
        owner.post("/prompt", json={"prompt": checkpoint_graph(prefix="t/ws", seed=9), "client_id": client})
        messages = collect(socket, ended)
    steps = [message["data"] for message in messages if message["type"] == "progress"]
    assert [(step["value"], step["max"], step["node"]) for step in steps] == [(1, 2, "5"), (2, 2, "5")]

    same = [pixels(owner, finished(owner, checkpoint_graph(prefix=f"t/same{n}"))) for n in range(2)]
    other = pixels(owner, finished(owner, checkpoint_graph(prefix="t/other", seed=2)))
    assert same[0] == same[1] != other
    assert same[0][0] == (64, 64)


@double_only
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("garbage.safetensors", "safetensors._safetensors_rust.SafetensorError", "header too large"),
        ("truncated.safetensors", "safetensors._safetensors_rust.SafetensorError", "file not fully covered"),
        ("diffusion_only.safetensors", "RuntimeError", "clip input is invalid: None"),
    ],
)
def test_bad_weights_are_an_execution_error(owner: httpx.Client, name: str, kind: str, message: str) -> None:
    entry = finished(owner, checkpoint_graph(name))
    assert entry["status"]["status_str"] == "error" and entry["outputs"] == {}
    last, data = entry["status"]["messages"][-1]
    assert (last, data["exception_type"]) == ("execution_error", kind)
    assert message in data["exception_message"]


@double_only
def test_an_edit_uses_the_uploaded_image_and_says_fp8(owner: httpx.Client, comfyui: local.Running) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 48), "green").save(buffer, format="PNG")
    name = owner.post("/upload/image", files={"image": ("in.png", buffer.getvalue(), "image/png")}).json()["name"]
    again = owner.post("/upload/image", files={"image": ("in.png", buffer.getvalue(), "image/png")}).json()["name"]
    other = owner.post("/upload/image", files={"image": ("in.png", buffer.getvalue() + b"x", "image/png")}).json()
    assert (name, again, other["name"]) == ("in.png", "in.png", "in (1).png")
    size, blue = pixels(owner, finished(owner, edit_graph(name)))
    _, red = pixels(owner, finished(owner, edit_graph(name, "make it red")))
    assert size == (80, 48) and blue != red
    assert "model weight dtype torch.float8_e4m3fn, manual cast: torch.float32" in comfyui.log()

    assert finished(owner, edit_graph(name, unet="holed.safetensors"))["status"]["status_str"] == "success"
    assert "unet missing: ['transformer_blocks.1.attn.to_k.weight']" in comfyui.log()
    answer = owner.post("/prompt", json={"prompt": edit_graph("absent.png")})
    assert answer.json()["node_errors"]["4"]["errors"][0]["type"] == "custom_validation_failed"


@double_only
def test_replaced_weights_count_only_after_free(owner: httpx.Client, root: Path) -> None:
    path = root / "models" / "checkpoints" / "replaced.safetensors"
    weights.write(path, "sd15-checkpoint")
    assert finished(owner, checkpoint_graph(path.name, seed=20))["status"]["completed"] is True
    path.write_bytes(b"\xff" * 100)
    assert finished(owner, checkpoint_graph(path.name, seed=21))["status"]["completed"] is True
    assert owner.post("/free", json={"unload_models": True, "free_memory": True}).status_code == 200
    # What was queued before the worker saw the wish may still be answered from the cache.
    entries = [finished(owner, checkpoint_graph(path.name, seed=seed)) for seed in (22, 23)]
    assert entries[-1]["status"]["completed"] is False


@double_only
def test_an_interruption_is_an_error_that_says_so(owner: httpx.Client) -> None:
    queued = owner.post("/prompt", json={"prompt": checkpoint_graph(steps=10000)}).json()["prompt_id"]
    deadline = time.monotonic() + 60
    while not owner.get("/queue").json()["queue_running"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert owner.post("/interrupt", json={"prompt_id": str(uuid.uuid4())}).status_code == 200
    assert owner.get(f"/history/{queued}").json() == {}
    owner.post("/interrupt", json={"prompt_id": queued})
    while not (entry := owner.get(f"/history/{queued}").json()) and time.monotonic() < deadline:
        time.sleep(0.02)
    status = entry[queued]["status"]
    assert (status["status_str"], status["completed"]) == ("error", False)
    assert status["messages"][-1][0] == "execution_interrupted"


def test_the_view_stays_inside_its_directory(owner: httpx.Client) -> None:
    for query, status in (
        ({}, 404),
        ({"filename": "absent.png"}, 404),
        ({"filename": "../x.png"}, 400),
        ({"filename": "/etc/passwd"}, 400),
        ({"filename": "x.png", "subfolder": "../.."}, 403),
    ):
        assert owner.get("/view", params=query).status_code == status


# ---------------------------------------------------------------------------------------------------- start and end


@double_only
def test_the_double_says_that_it_is_one(owner: httpx.Client, comfyui: local.Running) -> None:
    system = owner.get("/system_stats").json()["system"]
    assert system["atelier_double"] is True and system["comfyui_version"].endswith("+double")
    assert "ATELIER TEST DOUBLE of ComfyUI" in comfyui.log()
    assert (local.HERE / "ComfyUI" / "ATELIER_DOUBLE").exists()
    assert (local.HERE / "ComfyUI-Login" / "ATELIER_DOUBLE").exists()


def test_unknown_flags_and_signals(tmp_path: Path) -> None:
    local.lay_out_comfyui(tmp_path, f"{TOKEN}\nalice")
    assert local.start_comfyui(tmp_path, "--enable-auth").process.wait(60) == 2
    assert "unrecognized arguments: --enable-auth" in (tmp_path / "log").read_text()
    for number, status in ((signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)):
        running = local.start_comfyui(tmp_path)
        running.wait_until_it_listens()
        assert running.stop(number) == status
