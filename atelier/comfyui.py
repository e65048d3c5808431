"""Client of ComfyUI behind the gateway, and the preparation of its workflows.

The traps are in ComfyUI's own protocol (all measured on v0.33.0): an id in the history is no success, an interrupted
generation is an `error`, a repeated prompt is answered from the cache with the old file, and one bad output node
beside a good one is a 200 with `node_errors`. A prompt id must be a UUID in lower case. What was loaded, and what a
weight file lacked, is told in the log alone.
"""

import calendar
import copy
import json
import re
import ssl
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from atelier.errors import AtelierError

Workflow = dict[str, dict[str, Any]]
"""A graph in API form: node id to `class_type` and `inputs`; a link is `[node id, output index]`."""

Progress = Callable[[str, int, int], None]
"""Called with the class of the node at work, its step and its number of steps."""

WEIGHT_INPUTS = ("ckpt_name", "unet_name", "clip_name", "vae_name", "lora_name")
POLL_SECONDS = 0.25
TIMEOUT_HINT = "see `make logs SERVICE=comfyui`, or raise timeouts.generation"
QUEUED = "run again when they are done; if none of them ever ends: `make restart SERVICE=comfyui`"
LOGS = "see `make logs SERVICE=comfyui`"
NOT_SERVED = "the gateway does not serve ComfyUI: it is down, or it does not refuse strangers"
NO_PLACE = "use a workflow in API form that has one"


class ComfyUIError(AtelierError):
    """ComfyUI refused a request, or a generation did not succeed."""


class GenerationError(ComfyUIError):
    """An accepted generation ended without success. `node` names the node that failed, where there is one."""

    def __init__(self, message: str, hint: str = "", node: str = "") -> None:
        super().__init__(message, hint)
        self.node = node


class InterruptedGenerationError(GenerationError):
    """Somebody interrupted the generation."""


class StillQueuedError(GenerationError):
    """The generation did not begin in time: others came first."""


@dataclass(frozen=True)
class OutputImage:
    """Where ComfyUI put an image, as `/view` wants to hear it."""

    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True)
class Generation:
    """A successful generation: its saved images, and the nodes that were answered from the cache.

    began, ended: seconds since 1970 by ComfyUI's clock, the wait in the queue left out.
    """

    prompt_id: str
    images: list[OutputImage]
    cached: list[str]
    began: float = 0.0
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """How long ComfyUI was at work on it."""
        return self.ended - self.began


def _prompt_inputs(workflow: Workflow) -> list[tuple[dict[str, Any], str]]:
    """The text inputs that the samplers' `positive` inputs lead to, through any conditioning nodes in between."""
    found = []
    for node in workflow.values():
        link = node["inputs"].get("positive")
        while isinstance(link, list):
            inputs = workflow[link[0]]["inputs"]
            name = next((name for name in ("text", "prompt") if isinstance(inputs.get(name), str)), None)
            if name:
                found.append((inputs, name))
                break
            link = inputs.get("conditioning")
    return found


def prepare(
    workflow: Workflow,
    *,
    seed: int,
    prefix: str,
    prompt: str | None = None,
    image: str | None = None,
    size: tuple[int, int] | None = None,
) -> Workflow:
    """A copy of the workflow that cannot be answered from the cache: fresh seed and prefix.

    seed: 0 to 2**63-1, set wherever a node has one (EmptyImage gets its colour from the lowest 24 bits).
    prompt, image, size: positive text; name of an uploaded reference image; width and height of the empty latent.
    Raises AtelierError when the workflow has no place for what is to be set.
    """
    graph = copy.deepcopy(workflow)
    nodes = [(node["class_type"], node["inputs"]) for node in graph.values()]
    seeds = [
        (inputs, name) for _, inputs in nodes for name in ("seed", "noise_seed") if isinstance(inputs.get(name), int)
    ]
    colours = [inputs for kind, inputs in nodes if kind == "EmptyImage"]
    latents = [inputs for kind, inputs in nodes if kind.startswith("Empty") and "width" in inputs]
    if not seeds and not colours:
        raise AtelierError("the workflow has no node with a seed", NO_PLACE)
    for inputs, name in seeds:
        inputs[name] = seed
    for inputs in colours:
        inputs["color"] = seed & 0xFFFFFF
    width, height = size or (None, None)
    wanted: list[tuple[str, list[tuple[dict[str, Any], str]], Any]] = [
        ("SaveImage node", [(inputs, "filename_prefix") for kind, inputs in nodes if kind == "SaveImage"], prefix),
        ("sampler with a positive prompt", _prompt_inputs(graph), prompt),
        ("LoadImage node", [(inputs, "image") for kind, inputs in nodes if kind == "LoadImage"], image),
        ("empty latent or image", [(inputs, "width") for inputs in latents], width),
        ("empty latent or image", [(inputs, "height") for inputs in latents], height),
    ]
    for what, places, value in wanted:
        if value is not None and not places:
            raise AtelierError(f"the workflow has no {what}", NO_PLACE)
        for inputs, name in places if value is not None else []:
            inputs[name] = value
    return graph


def never_cached(workflow: Workflow, classes: Collection[str], mark: str) -> Workflow:
    """A copy of the workflow whose nodes of these classes are executed, whatever ComfyUI remembers.

    mark: a word that was not used before. It becomes an input that no node knows: the cache compares all inputs of a
    node, the node gets those that it declares, so the result is the same.
    """
    graph = copy.deepcopy(workflow)
    for node in graph.values():
        if node["class_type"] in classes:
            node["inputs"]["atelier"] = mark
    return graph


def changed_inputs(asked: Workflow, told: Mapping[str, Any]) -> list[str]:
    """What a workflow that ComfyUI tells of (an image's metadata, the history) has otherwise than the one that was sent.

    Inputs that only the other has are none of ours.
    """
    changed = []
    for number, node in asked.items():
        other = told.get(number) or {}
        if other.get("class_type") != node["class_type"]:
            changed.append(f"node {number} is {other.get('class_type', 'missing')} instead of {node['class_type']}")
            continue
        inputs = other.get("inputs") or {}
        changed += [
            f"node {number} ({node['class_type']}): {name} is {inputs.get(name)!r} instead of {value!r}"
            for name, value in node["inputs"].items()
            if inputs.get(name) != value
        ]
    return changed


def weights_of(workflow: Workflow) -> list[tuple[str, str, str]]:
    """The weight files a workflow names: class of the node, name of the input, file."""
    return [
        (node["class_type"], name, node["inputs"][name])
        for node in workflow.values()
        for name in WEIGHT_INPUTS
        if isinstance(node["inputs"].get(name), str)
    ]


def missing_weights(workflow: Workflow, object_info: Mapping[str, Any]) -> list[str]:
    """The weight files and node classes that a workflow needs and this ComfyUI (its `/object_info`) does not offer."""
    classes = [node["class_type"] for node in workflow.values() if node["class_type"] not in object_info]
    files = [
        file
        for class_type, name, file in weights_of(workflow)
        if class_type in object_info
        and file not in offered_values(object_info[class_type]["input"]["required"].get(name))
    ]
    return sorted({f"node {name}" for name in classes} | set(files))


def offered_values(specification: Any) -> list[str]:
    """The values of a combo input: `[[...], {...}]`, or `["COMBO", {"options": [...]}]` for newer nodes."""
    if not specification:
        return []
    if isinstance(specification[0], list):
        return specification[0]
    return list(specification[1].get("options", [])) if len(specification) > 1 else []


def read_history(prompt_id: str, entry: Mapping[str, Any]) -> Generation:
    """The generation that a history entry describes. Raises GenerationError for anything but a completed success."""
    status = entry.get("status") or {}
    messages = dict(status.get("messages") or [])
    if "execution_interrupted" in messages:
        raise InterruptedGenerationError(f"generation {prompt_id} was interrupted", "start it again")
    if "execution_error" in messages:
        error = messages["execution_error"]
        node = f"{error.get('node_type')} (node {error.get('node_id')})"
        reason = f"{error.get('exception_type')}: {str(error.get('exception_message')).strip()}"
        raise GenerationError(f"generation failed in {node}: {reason}", LOGS, node)
    if status.get("status_str") != "success" or status.get("completed") is not True:
        ended = f"{status.get('status_str')!r}, completed {status.get('completed')!r}"
        raise GenerationError(f"generation {prompt_id} ended as {ended}")
    images = [
        OutputImage(image["filename"], image["subfolder"], image["type"])
        for output in entry.get("outputs", {}).values()
        for image in output.get("images", [])
        if image["type"] == "output"
    ]
    if not images:
        raise GenerationError(
            f"generation {prompt_id} succeeded and saved no image", "give the workflow a SaveImage node"
        )
    began, ended = (messages.get(f"execution_{name}", {}).get("timestamp", 0) / 1000 for name in ("start", "success"))
    cached = list(messages.get("execution_cached", {}).get("nodes", []))
    return Generation(prompt_id, images, cached, began, ended)


COLOUR = re.compile(r"\x1b\[[0-9;]*m")
END = "Prompt executed in "
"""What ComfyUI logs after each generation."""


def log_of(log: str, generation: Generation) -> list[str] | None:
    """What ComfyUI logged while at work on a generation; None while the end of it is not there.

    log: of `docker logs --timestamps`, from before the generation on. ComfyUI works on one at a time. Docker's times are
    those of reading, so a line may seem late, and never early.
    """
    lines = []
    for line in log.splitlines():
        stamp, _, text = line.partition(" ")
        at = _seconds(stamp)
        if at is None or at < generation.began:
            continue
        lines.append(COLOUR.sub("", text))
        if END in text and at >= generation.ended:
            return lines
    return None


def _seconds(stamp: str) -> float | None:
    """Seconds since 1970 of `2026-11-22T10:00:00.123456789Z`."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z", stamp)
    if not found:
        return None
    return calendar.timegm(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) + float(f"0{found[2] or ''}")


def weight_types(lines: Iterable[str]) -> list[str]:
    """The numbers that each diffusion model was loaded as, such as `torch.float8_e4m3fn`."""
    return re.findall(r"model weight dtype ([\w.]+)", "\n".join(lines))


def missing_tensors(lines: Iterable[str]) -> list[str]:
    """What diffusion models were loaded without: ComfyUI says so, and goes on. (What it says of text encoders is often
    no fault.)"""
    return re.findall(r"unet missing: .*", "\n".join(lines))


def unused_tensors(lines: Iterable[str]) -> list[str]:
    """What files of diffusion models hold that the model which ComfyUI recognised in them has not."""
    return re.findall(r"unet unexpected: .*", "\n".join(lines))


def _rejection(answer: Mapping[str, Any]) -> ComfyUIError:
    """The error that names every node a workflow was refused for."""
    error = answer.get("error") or {}
    parts = (
        [error]
        if isinstance(error, str)
        else [str(error[key]) for key in ("type", "message", "details") if error.get(key)]
    )
    nodes = [
        f"{node.get('class_type')} (node {number}): {problem.get('message')}: {problem.get('details')}"
        for number, node in (answer.get("node_errors") or {}).items()
        for problem in node.get("errors", [])
    ]
    return ComfyUIError("ComfyUI refused the workflow: " + "; ".join([": ".join(parts), *nodes] if parts else nodes))


def too_late(prompt_id: str, queue: Mapping[str, Collection[str]], timeout: float) -> GenerationError:
    """What is to be said of a generation without a result, from ComfyUI's queue: whether it or those before it took long."""
    state = next((name for name, ids in queue.items() if prompt_id in ids), "unknown to ComfyUI")
    if state == "pending" and queue["running"]:
        others = sum(len(ids) for ids in queue.values()) - 1
        return StillQueuedError(
            f"time-out: not begun within {timeout:.0f} s: {others} others in ComfyUI's queue", QUEUED
        )
    return GenerationError(f"time-out: no result within {timeout:.0f} s ({state})", TIMEOUT_HINT)


def _parsed(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        where = f"{response.request.method} {response.request.url.path}"
        raise ComfyUIError(f"ComfyUI answered {where} with something else than JSON: {response.text[:80]!r}") from None


class ComfyUI:
    """ComfyUI at `base_url` with a bearer token. Use as a context manager, or call `close`.

    timeout: seconds for one request. verify: as of httpx. Every failure is a ComfyUIError.
    """

    def __init__(self, base_url: str, token: str, timeout: float = 30.0, verify: ssl.SSLContext | bool = True) -> None:
        self.base_url = base_url.rstrip("/")
        self._tls = verify if isinstance(verify, ssl.SSLContext) else None
        self._headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(
            base_url=self.base_url, headers=self._headers, timeout=timeout, trust_env=False, verify=verify
        )

    def __enter__(self) -> "ComfyUI":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TimeoutException:
            raise ComfyUIError(f"time-out: ComfyUI did not answer {method} {path}", LOGS) from None
        except httpx.HTTPError as error:
            raise ComfyUIError(f"ComfyUI cannot be reached: {error}", "see `make status`") from None
        if response.status_code in (401, 403):
            raise ComfyUIError("ComfyUI refused the token", "see `make credentials`; after a rotation use the new one")
        if response.status_code == 503:
            raise ComfyUIError(NOT_SERVED, "see `make status`")
        return response

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        response = self._request(method, path, **arguments)
        if response.status_code != 200:
            raise ComfyUIError(f"ComfyUI answered {method} {path} with {response.status_code}: {response.text[:300]}")
        return _parsed(response)

    def submit(self, workflow: Workflow, *, client_id: str | None = None, prompt_id: str | None = None) -> str:
        """Queue a workflow and return its prompt id.

        Raises ComfyUIError that names every refused node. One refused output among good ones is an error too (ComfyUI
        answers 200 then); what it had queued is taken back.
        """
        ids = {"client_id": client_id or str(uuid.uuid4()), "prompt_id": prompt_id or str(uuid.uuid4())}
        body = {"prompt": workflow, **ids}
        response = self._request("POST", "/prompt", json=body)
        if response.status_code not in (200, 400):
            raise ComfyUIError(f"ComfyUI answered POST /prompt with {response.status_code}: {response.text[:300]}")
        answer = _parsed(response)
        if response.status_code == 400 or answer.get("node_errors"):
            if answer.get("prompt_id"):
                self.cancel(answer["prompt_id"])
            raise _rejection(answer)
        return str(answer["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The finished generation's record, or None while it is waiting or running."""
        entry = self._json("GET", f"/history/{prompt_id}").get(prompt_id)
        return dict(entry) if entry else None

    def queue(self) -> dict[str, list[str]]:
        """Prompt ids that are `running` and `pending`."""
        answer = self._json("GET", "/queue")
        return {name: [item[1] for item in answer[f"queue_{name}"]] for name in ("running", "pending")}

    def wait(self, prompt_id: str, timeout: float, deadline: float | None = None) -> Generation:
        """Wait for a generation to succeed.

        timeout: seconds from now, or those that end at the deadline (of `time.monotonic`); then the generation is
        cancelled and GenerationError raised, StillQueuedError where it waits for others.
        """
        deadline = time.monotonic() + timeout if deadline is None else deadline
        while (entry := self.history(prompt_id)) is None:
            if time.monotonic() > deadline:
                queue = self.queue()
                self.cancel(prompt_id)
                raise too_late(prompt_id, queue, timeout)
            time.sleep(POLL_SECONDS)
        return read_history(prompt_id, entry)

    def cancel(self, prompt_id: str) -> None:
        """Take this generation, and no other, out of the queue or out of work."""
        self._request("POST", "/queue", json={"delete": [prompt_id]})
        self._request("POST", "/interrupt", json={"prompt_id": prompt_id})

    def socket(self, client_id: str, timeout: float = 30.0) -> ClientConnection:
        """A WebSocket to `/ws`. Raises ComfyUIError when it is refused. timeout: seconds to open it."""
        url = "ws" + self.base_url.removeprefix("http") + f"/ws?clientId={client_id}"
        try:
            return connect(
                url, additional_headers=self._headers, open_timeout=timeout, max_size=None, proxy=None, ssl=self._tls
            )
        except InvalidStatus as error:
            raise ComfyUIError(f"the WebSocket was refused with {error.response.status_code}") from None
        except (OSError, WebSocketException) as error:
            raise ComfyUIError(f"the WebSocket could not be opened: {error}") from None

    def generate(self, workflow: Workflow, timeout: float, progress: Progress | None = None) -> Generation:
        """Submit a workflow, follow its progress and wait for its success.

        timeout: seconds for the work, and as many before it for the wait in the queue. A WebSocket lost on the way costs
        the progress, not the generation; Ctrl-C cancels it.
        """
        client_id = str(uuid.uuid4())
        with self.socket(client_id) as socket:
            prompt_id = self.submit(workflow, client_id=client_id)
            try:
                deadline = self._follow(socket, workflow, prompt_id, timeout, progress)
                return self.wait(prompt_id, timeout, deadline)
            except KeyboardInterrupt:
                self.cancel(prompt_id)
                raise

    def _follow(
        self, socket: ClientConnection, workflow: Workflow, prompt_id: str, timeout: float, progress: Progress | None
    ) -> float:
        """Tell of its progress until its end or the deadline, which begins anew with its work; returns the deadline."""
        node, deadline = "", time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                message = socket.recv(timeout=1)
            except TimeoutError:
                if self.history(prompt_id):
                    return deadline
                continue
            except WebSocketException:
                return deadline
            if isinstance(message, bytes):  # a preview image
                continue
            event = json.loads(message)
            data = event.get("data") or {}
            if data.get("prompt_id") != prompt_id:
                continue
            if event["type"] == "execution_start":
                deadline = time.monotonic() + timeout
            if event["type"] == "executing":
                node = data.get("node") or node
            if event["type"] == "progress" and progress:
                name = workflow.get(str(data.get("node") or node), {}).get("class_type", "")
                progress(name, int(data["value"]), int(data["max"]))
            if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                return deadline
        return deadline

    def view(self, image: OutputImage) -> bytes:
        """The bytes of a saved image."""
        parameters = {"filename": image.filename, "subfolder": image.subfolder, "type": image.type}
        response = self._request("GET", "/view", params=parameters)
        if response.status_code != 200:
            raise ComfyUIError(f"ComfyUI answered GET /view?filename={image.filename} with {response.status_code}")
        return response.content

    def upload_image(self, name: str, data: bytes) -> str:
        """Upload a reference image; returns the name under which a LoadImage node finds it."""
        answer = self._json("POST", "/upload/image", files={"image": (name, data)}, data={"overwrite": "true"})
        return str(answer["subfolder"] + "/" + answer["name"] if answer.get("subfolder") else answer["name"])

    def object_info(self, class_type: str = "") -> dict[str, Any]:
        """The node classes, or one of them, with what each input accepts (weights included)."""
        return dict(self._json("GET", f"/object_info/{class_type}" if class_type else "/object_info"))

    def system_stats(self) -> dict[str, Any]:
        """Versions, memory and devices."""
        return dict(self._json("GET", "/system_stats"))

    def free(self) -> None:
        """Unload the models, so that files replaced on disk are read again."""
        self._request("POST", "/free", json={"unload_models": True, "free_memory": True})
