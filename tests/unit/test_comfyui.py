"""ComfyUI's client against a fake with the real one's traps; each must come out as an error that names its cause."""

import base64
import copy
import hashlib
import json
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from loopback import at_work

from atelier import comfyui, workflows
from atelier.checks import CATALOGUE, existing
from atelier.comfyui import (
    ComfyUI,
    ComfyUIError,
    GenerationError,
    InterruptedGenerationError,
    StillQueuedError,
    missing_weights,
    prepare,
    read_history,
)
from atelier.errors import AtelierError
from atelier.settings import Settings

SUCCESS = {
    "status": {"status_str": "success", "completed": True, "messages": [["execution_cached", {"nodes": ["1"]}]]},
    "outputs": {
        "8": {"images": [{"filename": "preview.png", "subfolder": "", "type": "temp"}]},
        "9": {"images": [{"filename": "a_1.png", "subfolder": "verify", "type": "output"}]},
    },
}
FAILURE = {
    "node_id": "5",
    "node_type": "KSampler",
    "exception_type": "RuntimeError",
    "exception_message": "CUDA out of memory\n",
}


def status(*messages, status_str="error", completed=False) -> dict:
    return {
        "status": {"status_str": status_str, "completed": completed, "messages": list(messages)},
        "outputs": SUCCESS["outputs"],
    }


@pytest.mark.parametrize(
    ("entry", "error", "words"),
    [
        (
            status(["execution_error", FAILURE]),
            GenerationError,
            r"KSampler \(node 5\): RuntimeError: CUDA out of memory$",
        ),
        (status(["execution_interrupted", {"node_id": "5"}]), InterruptedGenerationError, "interrupted"),
        (status(), GenerationError, "'error', completed False"),
        (status(status_str="success"), GenerationError, "completed False"),
        (status(["execution_error", FAILURE], status_str="success", completed=True), GenerationError, "KSampler"),
        ({"outputs": SUCCESS["outputs"]}, GenerationError, "None"),
        ({**SUCCESS, "outputs": {"8": SUCCESS["outputs"]["8"]}}, GenerationError, "no image"),
        ({"status": None, "outputs": {}}, GenerationError, "None"),
    ],
)
def test_an_id_in_the_history_is_no_success(entry, error, words):
    with pytest.raises(error) as caught:
        read_history("id", entry)
    assert type(caught.value) is error
    assert re.search(words, caught.value.message)


def test_a_success_tells_its_saved_images_and_what_was_cached():
    made = read_history("id", SUCCESS)
    assert [image.filename for image in made.images] == ["a_1.png"], "a temporary preview is not an output"
    assert made.cached == ["1"]


def test_prepare_sets_everything_and_leaves_the_original():
    original = workflows.load("qwen-edit-2509")
    before = copy.deepcopy(original)
    graph = prepare(original, seed=7, prefix="p", prompt="snow", image="in.png")
    assert original == before
    assert (graph["11"]["inputs"]["seed"], graph["13"]["inputs"]["filename_prefix"]) == (7, "p")
    assert (graph["6"]["inputs"]["prompt"], graph["7"]["inputs"]["prompt"]) == ("snow", "")
    assert graph["4"]["inputs"]["image"] == "in.png"
    turbo = prepare(workflows.load("sdxl-turbo"), seed=8, prefix="p", prompt="fox", size=(64, 32))
    assert (turbo["7"]["inputs"]["noise_seed"], turbo["2"]["inputs"]["text"], turbo["3"]["inputs"]["text"]) == (
        8,
        "fox",
        "",
    )
    assert (turbo["4"]["inputs"]["width"], turbo["4"]["inputs"]["height"]) == (64, 32)
    smoke = prepare(workflows.load("smoke"), seed=0x1_00AABBCC, prefix="p")
    assert smoke["1"]["inputs"]["color"] == 0xAABBCC


def test_prepare_finds_the_prompt_through_conditioning_nodes():
    graph = workflows.load("sdxl-turbo")
    graph["10"] = {"class_type": "ReferenceLatent", "inputs": {"conditioning": ["2", 0], "latent": ["4", 0]}}
    graph["7"]["inputs"]["positive"] = ["10", 0]
    assert prepare(graph, seed=1, prefix="p", prompt="fox")["2"]["inputs"]["text"] == "fox"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "x"}, "positive prompt"),
        ({"image": "x.png"}, "LoadImage"),
        ({"prefix": "p"}, "SaveImage"),
        ({}, "seed"),
    ],
)
def test_prepare_refuses_what_a_workflow_has_no_place_for(change, words):
    graph = {"1": {"class_type": "EmptyImage", "inputs": {"color": 1}}} if words != "seed" else {}
    if words not in ("SaveImage", "seed"):
        graph["2"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
    with pytest.raises(AtelierError, match=words):
        prepare(graph, seed=1, **{"prefix": "p", **change})


def test_weights_and_nodes_that_a_host_lacks():
    info = {
        "UNETLoader": {"input": {"required": {"unet_name": [["qwen_image_edit_2509_fp8_e4m3fn.safetensors"], {}]}}},
        "CLIPLoader": {
            "input": {"required": {"clip_name": ["COMBO", {"options": ["qwen_2.5_vl_7b_fp8_scaled.safetensors"]}]}}
        },
        "VAELoader": {"input": {"required": {"vae_name": [[]]}}},
    }
    graph = {number: node for number, node in workflows.load("qwen-edit-2509").items() if int(number) <= 4}
    assert missing_weights(graph, info) == ["node LoadImage", "qwen_image_vae.safetensors"]
    info["VAELoader"]["input"]["required"]["vae_name"] = [["qwen_image_vae.safetensors"]]
    assert missing_weights(graph, {**info, "LoadImage": {}}) == []


def test_the_checkpoint_is_one_that_the_host_has():
    def offer(*files):
        nodes = {node["class_type"]: {"input": {"required": {}}} for node in workflows.load("sdxl-turbo").values()}
        nodes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"] = [list(files)]
        return nodes

    assert workflows.text_to_image(offer("b", "a"))["1"]["inputs"]["ckpt_name"] == "a"
    turbo = "sd_xl_turbo_1.0_fp16.safetensors"
    assert workflows.text_to_image(offer("a", turbo))["1"]["inputs"]["ckpt_name"] == turbo
    for info, words in ((offer(), "no checkpoint"), ({**offer("a"), "SDTurboScheduler": None}, None)):
        if words is None:
            del info["SDTurboScheduler"]
            words = "node SDTurboScheduler"
        with pytest.raises(AtelierError, match=words):
            workflows.text_to_image(info)


class Fake(ThreadingHTTPServer):
    """Answers as told: `answers[(method, path)]` is (status, JSON or bytes); `events` go out over the WebSocket."""

    daemon_threads = True
    token = "the-token"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[tuple[str, str], tuple[int, object]] = {}
        self.events: list[dict | bytes | None] = []
        self.seen: list[tuple[str, str, bytes]] = []
        self.history: dict[str, dict] = {}
        self.prompt_id = ""


class Handler(BaseHTTPRequestHandler):
    server: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_one(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, body))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.answer(401, {"error": "no"})
        if path == "/ws":
            return self.websocket()
        if (self.command, path) in self.server.answers:
            return self.answer(*self.server.answers[self.command, path])
        if path == "/prompt":
            self.server.prompt_id = json.loads(body)["prompt_id"]
            return self.answer(200, {"prompt_id": self.server.prompt_id, "node_errors": {}})
        if path.startswith("/history/"):
            return self.answer(200, self.server.history)
        return self.answer(
            200, {"queue_running": [], "queue_pending": [[0, self.server.prompt_id]]} if path == "/queue" else {}
        )

    do_GET = do_POST = handle_one  # noqa: N815

    def answer(self, status: int, document: object) -> None:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def websocket(self) -> None:
        digest = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode())  # noqa: S324
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade")):
            self.send_header(name, value)
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest.digest()).decode())
        self.end_headers()
        while not self.server.prompt_id:
            time.sleep(0.01)
        for event in self.server.events:
            if event is None:  # the connection is lost, the generation goes on
                break
            if isinstance(event, dict):
                event["data"].setdefault("prompt_id", self.server.prompt_id)
            data = event if isinstance(event, bytes) else json.dumps(event).encode()
            self.wfile.write(
                bytes([0x82 if isinstance(event, bytes) else 0x81, 126]) + len(data).to_bytes(2, "big") + data
            )
        self.server.history = {self.server.prompt_id: SUCCESS}
        self.close_connection = True


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    with at_work(server):
        yield server


@pytest.fixture
def client(fake) -> Iterator[ComfyUI]:
    with ComfyUI(f"http://127.0.0.1:{fake.server_address[1]}", fake.token, timeout=2) as client:
        yield client


GRAPH = {"5": {"class_type": "KSampler", "inputs": {}}}


def test_progress_of_this_generation_only(fake, client):
    fake.events = [
        {"type": "status", "data": {}},
        {"type": "progress", "data": {"prompt_id": "another", "value": 9, "max": 9, "node": "5"}},
        {"type": "executing", "data": {"node": "5"}},
        b"\0\0\0\1preview",
        {"type": "progress", "data": {"value": 1, "max": 2, "node": "5"}},
        {"type": "progress", "data": {"value": 2, "max": 2}},
        {"type": "execution_success", "data": {}},
    ]
    steps = []
    made = client.generate(GRAPH, 10, lambda *step: steps.append(step))
    assert steps == [("KSampler", 1, 2), ("KSampler", 2, 2)]
    assert made.images[0].filename == "a_1.png"
    posted = json.loads(next(body for method, path, body in fake.seen if (method, path) == ("POST", "/prompt")))
    assert f"/ws?clientId={posted['client_id']}" in [path for _, path, _ in fake.seen], (
        "the progress is the submitter's own"
    )


def test_a_lost_websocket_costs_the_progress_only(fake, client):
    fake.events = [None]
    assert client.generate(GRAPH, 10).images


NODE_ERRORS = {
    "7": {"class_type": "SaveImage", "errors": [{"message": "Required input is missing", "details": "images"}]}
}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (400, {"error": {"type": "prompt_no_outputs", "message": "no outputs", "details": ""}, "node_errors": {}}),
            "prompt_no_outputs",
        ),
        (
            (400, {"error": {"type": "x", "message": "y"}, "node_errors": NODE_ERRORS}),
            r"SaveImage \(node 7\): Required input is missing",
        ),
        ((200, {"prompt_id": "half", "node_errors": NODE_ERRORS}), r"SaveImage \(node 7\)"),
        ((500, b"Traceback"), "with 500: Traceback"),
        ((200, b"<html>"), "something else than JSON: '<html>'"),
        ((401, {}), "refused the token"),
        ((503, {}), "does not serve ComfyUI"),
    ],
)
def test_refused_workflows(fake, client, answer, words):
    fake.answers["POST", "/prompt"] = answer
    with pytest.raises(ComfyUIError, match=words):
        client.submit(GRAPH)
    taken_back = ("POST", "/queue", b'{"delete":["half"]}') in fake.seen
    assert taken_back == ("half" in str(answer)), "what was accepted of a half refused workflow is taken back"


def test_a_time_out_is_named_and_takes_the_generation_back(fake, client, monkeypatch):
    monkeypatch.setattr(comfyui, "POLL_SECONDS", 0.01)
    prompt_id = client.submit(GRAPH)
    with pytest.raises(GenerationError, match=r"time-out: no result within 0 s \(pending\)"):
        client.wait(prompt_id, 0.05)
    assert {path for _, path, body in fake.seen if prompt_id.encode() in body} == {"/prompt", "/queue", "/interrupt"}


QUEUES = {
    "at work": ({"running": ["own"], "pending": ["b"]}, GenerationError, r"no result within 9 s \(running\)"),
    "before others, and none is at work": ({"running": [], "pending": ["own", "b"]}, GenerationError, r"\(pending\)"),
    "alone, and not begun": ({"running": [], "pending": ["own"]}, GenerationError, r"within 9 s \(pending\)"),
    "behind others": ({"running": ["a"], "pending": ["b", "own"]}, StillQueuedError, "not begun within 9 s: 2 others"),
    "lost": ({"running": ["a"], "pending": []}, GenerationError, r"\(unknown to ComfyUI\)"),
}


@pytest.mark.parametrize(("queue", "kind", "words"), QUEUES.values(), ids=QUEUES)
def test_a_generation_behind_others_is_told_from_a_slow_one(queue, kind, words):
    error = comfyui.too_late("own", queue, 9)
    assert type(error) is kind and re.search(words, error.message) and error.hint


def test_the_wait_in_the_queue_is_no_part_of_the_work(fake, client, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(comfyui.time, "monotonic", lambda: now[0])

    def events():
        yield {"type": "status", "data": {}}
        now[0] = 9.0  # of 10 s have others worked
        yield {"type": "execution_start", "data": {"prompt_id": "own"}}
        now[0] = 18.0
        yield {"type": "progress", "data": {"prompt_id": "own", "value": 1, "max": 2, "node": "5"}}
        yield {"type": "execution_success", "data": {"prompt_id": "own"}}

    told, steps = events(), []
    socket = SimpleNamespace(recv=lambda timeout: json.dumps(next(told)))
    assert client._follow(socket, GRAPH, "own", 10, lambda *step: steps.append(step)) == 19.0
    assert steps == [("KSampler", 1, 2)]


def test_errors_name_what_happened(fake, client):
    fake.answers["GET", "/view"] = (404, b"")
    with pytest.raises(ComfyUIError, match=r"a_1\.png with 404"):
        client.view(read_history("id", SUCCESS).images[0])
    with (
        ComfyUI(client.base_url, "wrong") as stranger,
        pytest.raises(ComfyUIError, match="WebSocket was refused with 401"),
    ):
        stranger.socket("x")
    with ComfyUI("http://127.0.0.1:9", "x") as nobody, pytest.raises(ComfyUIError, match="cannot be reached"):
        nobody.queue()


def test_upload_returns_the_name_for_a_node(fake, client):
    fake.answers["POST", "/upload/image"] = (200, {"name": "x (1).png", "subfolder": "s", "type": "input"})
    assert client.upload_image("x.png", b"data") == "s/x (1).png"
    assert b'filename="x.png"' in fake.seen[-1][2]


LOG = """\
2026-11-22T09:59:58.5Z [INFO] model weight dtype torch.float16, manual cast: None
2026-11-22T09:59:59.999999999Z [INFO] Prompt executed in 3.10 seconds
2026-11-22T10:00:00.25Z \x1b[32m[INFO]\x1b[0m model weight dtype torch.float8_e4m3fn, manual cast: torch.bfloat16
2026-11-22T10:00:00.3Z [WARNING] unet missing: ['transformer_blocks.1.attn.to_v.weight']
2026-11-22T10:00:02Z [INFO] Prompt executed in 2.00 seconds
2026-11-22T10:00:03.1Z [INFO] model weight dtype torch.bfloat16, manual cast: None
2026-11-22T10:00:04.1Z [INFO] Prompt executed in 1.00 seconds
"""
NOON = 1795341600.0
"""2026-11-22T10:00:00Z."""


@pytest.mark.parametrize(
    ("began", "ended", "types", "missing"),
    [
        (NOON, NOON + 1.9, ["torch.float8_e4m3fn"], ["unet missing: ['transformer_blocks.1.attn.to_v.weight']"]),
        (NOON - 2, NOON - 0.1, ["torch.float16"], []),
        (NOON + 3, NOON + 4, ["torch.bfloat16"], []),
        (NOON + 3.5, NOON + 4, [], []),
        (NOON + 2, NOON + 9, None, None),
    ],
)
def test_the_log_of_one_generation(began, ended, types, missing):
    lines = comfyui.log_of(LOG, comfyui.Generation("id", [], [], began, ended))
    if types is None:
        assert lines is None, "its last line is not there yet"
    else:
        assert (comfyui.weight_types(lines), comfyui.missing_tensors(lines)) == (types, missing)
        assert not any("\x1b" in line for line in lines)


def test_a_file_of_another_model_is_told_by_what_has_no_use() -> None:
    lines = ["model weight dtype torch.float16", "unet unexpected: ['middle_block.1.weight']"]
    assert comfyui.unused_tensors(lines) == ["unet unexpected: ['middle_block.1.weight']"]
    assert comfyui.unused_tensors(lines[:1]) == []


def test_the_log_of_a_generation_is_not_cut_off_by_a_late_line_of_the_one_before():
    late = LOG.replace("09:59:59.999999999Z", "10:00:00.1Z")
    lines = comfyui.log_of(late, comfyui.Generation("id", [], [], NOON, NOON + 1.9))
    assert comfyui.weight_types(lines) == ["torch.float8_e4m3fn"]


def test_lines_that_are_no_log_lines_are_left_out():
    assert (
        comfyui.log_of("\nError: no such container\n2026-11-22 Prompt executed in\n", comfyui.Generation("i", [], []))
        is None
    )


def test_a_generation_tells_when_it_was_at_work():
    entry = status(
        ["execution_start", {"timestamp": 1795341600250}],
        ["execution_success", {"timestamp": 1795341602250}],
        status_str="success",
        completed=True,
    )
    made = read_history("id", {**entry, "outputs": SUCCESS["outputs"]})
    assert (made.began, made.seconds) == (NOON + 0.25, 2.0)


def test_a_mark_keeps_nodes_out_of_the_cache_and_the_rest_as_it_is():
    original = workflows.load("qwen-edit-2509")
    marked = comfyui.never_cached(original, ("KSampler", "UNETLoader"), "x")
    assert [number for number, node in marked.items() if node["inputs"].pop("atelier", "") == "x"] == ["1", "11"]
    assert marked == original


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graph: graph["11"]["inputs"].update(atelier="x"), None),
        (lambda graph: graph["11"]["inputs"].update(cfg=2.50), None),
        (lambda graph: graph["11"]["inputs"].update(seed=8), r"node 11 \(KSampler\): seed is 8 instead of 7"),
        (lambda graph: graph["11"]["inputs"].pop("seed"), "seed is None instead of 7"),
        (lambda graph: graph.pop("13"), "node 13 is missing instead of SaveImage"),
        (lambda graph: graph["1"].update(class_type="Other"), "node 1 is Other instead of UNETLoader"),
    ],
)
def test_inputs_that_another_workflow_has_otherwise(change, words):
    asked = prepare(workflows.load("qwen-edit-2509"), seed=7, prefix="p")
    told = copy.deepcopy(asked)
    change(told)
    found = "; ".join(comfyui.changed_inputs(asked, told))
    assert not found if words is None else re.search(words, found)


def test_a_checkpoint_is_found_in_the_form_of_newer_nodes():
    nodes = {node["class_type"]: {"input": {"required": {}}} for node in workflows.load("sdxl-turbo").values()}
    nodes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"] = ["COMBO", {"options": ["a"]}]
    assert workflows.text_to_image(nodes)["1"]["inputs"]["ckpt_name"] == "a"


def test_the_small_graph_is_the_same_without_the_scaling():
    whole, little = workflows.load(workflows.EDIT), workflows.small(workflows.load(workflows.EDIT))
    assert set(whole) - set(little) == {"5"}
    links = [
        (number, name, link)
        for number, node in little.items()
        for name, link in node["inputs"].items()
        if link == ["4", 0]
    ]
    assert [(number, name) for number, name, _ in links] == [("6", "image1"), ("7", "image1"), ("10", "pixels")]
    assert (little["11"]["inputs"]["steps"], whole["11"]["inputs"]["steps"]) == (2, 20)
    assert workflows.small(workflows.load("sdxl-turbo")) == workflows.load("sdxl-turbo")


def test_the_edit_check_exists_where_all_its_weights_are_asked_for():
    files = {file for _, _, file in comfyui.weights_of(workflows.load(workflows.EDIT))}
    (check,) = [check for check in CATALOGUE if check.id == "generation.comfyui.edit"]
    assert set(check.weights) == files

    def exists(weights):
        return check in existing(Settings(profile="cpu"), weights)

    assert exists(files) and exists({*files, "another"}) and exists(None)
    assert not exists(files - {"qwen_image_vae.safetensors"}) and not exists(())


def test_what_has_to_be_fp8():
    assert workflows.fp8_files(workflows.load(workflows.EDIT)) == [
        "diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors",
        "text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
    ]
