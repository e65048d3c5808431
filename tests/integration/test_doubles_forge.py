"""The double of Forge behaves as the real one was measured to: statuses, leaks, generation and its silent failures.

The same tests hold against the real application: ATELIER_FORGE_SOURCE (its source with `repositories` in it) and
ATELIER_FORGE_PYTHON (a command that runs Python with what it needs). What only a double can pass is left out then.
"""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from PIL import Image

from sandbox.doubles import local, weights

REAL = "ATELIER_FORGE_SOURCE" in os.environ
pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="the doubles' locks are for Python 3.11 and newer")
double_only = pytest.mark.skipif(REAL, reason="the double's own, or weights that only it takes for a model")

USER, PASSWORD = "alice", "geheim"
RIGHT = (USER, PASSWORD)
WRONG = (USER, "no")
SECONDS_TO_START = 300 if REAL else 60
LAST_ROUTES_ADDED = "Startup time"  # long after the port is open
# One client for all: making one takes longer than most requests here. Its connections are not kept, as a 500 ends them.
HTTP = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


def started(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> local.Running:
    return local.start_forge(folder, "--api", *arguments, env=env)


class Forge:
    """A started Forge and the cookie of its one user."""

    def __init__(self, running: local.Running, folder: Path) -> None:
        self.running, self.url, self.folder = running, running.url, folder
        self.cookie = dict(self.login(PASSWORD).cookies)
        self.cookie_header = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookie.items())}

    def login(self, password: str) -> httpx.Response:
        answer = HTTP.post(f"{self.url}/login", data={"username": USER, "password": password})
        HTTP.cookies.clear()
        return answer

    def ask(self, method: str, path: str, **arguments: Any) -> int:
        """The status alone: some of the answers never end."""
        with HTTP.stream(method, self.url + path, **arguments) as answer:
            return answer.status_code

    def four(self, method: str, path: str) -> tuple[int, int, int, int]:
        """The status for nobody, for a wrong and a right password in HTTP Basic, and for the cookie."""
        callers: tuple[dict[str, Any], ...] = ({}, {"auth": WRONG}, {"auth": RIGHT}, {"headers": self.cookie_header})
        one, two, three, four = (self.ask(method, path, **caller) for caller in callers)
        return one, two, three, four

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return HTTP.post(f"{self.url}/sdapi/v1/{path}", json=body, auth=RIGHT)


@pytest.fixture(scope="module")
def login_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    """--gradio-auth --api, and nothing for the API."""
    folder = tmp_path_factory.mktemp("forge")
    local.lay_out_forge(folder)
    with local.stopping(lambda: started(folder, f"--gradio-auth={USER}:{PASSWORD}"), SECONDS_TO_START) as running:
        running.wait_for(LAST_ROUTES_ADDED, SECONDS_TO_START)
        yield Forge(running, folder)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    """The UI's credentials in a file, the API's among the arguments."""
    folder = tmp_path_factory.mktemp("forge")
    local.lay_out_forge(folder)
    (folder / "auth").write_text(f"{USER}:{PASSWORD}\n")
    if not REAL:
        weights.write(folder / "checkpoints" / "a_sd15.safetensors", "sd15-checkpoint")
        weights.write(folder / "checkpoints" / "b_sdxl.safetensors", "sdxl-checkpoint")
    arguments = ["--gradio-auth-path", str(folder / "auth"), "--api-auth", f"{USER}:{PASSWORD}"]
    with local.stopping(lambda: started(folder, *arguments), SECONDS_TO_START) as running:
        running.wait_for(LAST_ROUTES_ADDED, SECONDS_TO_START)
        yield Forge(running, folder)


# The table of the facts. Columns: nobody, wrong Basic, right Basic, cookie.
COOKIE_ONLY = (401, 401, 401, 200)
OPEN = (200, 200, 200, 200)
BASIC_ONLY = (401, 401, 200, 401)
UI = ["/config", "/info", "/login_check", "/queue/status", "/queue/data?session_hash=x", "/monitoring"]
ALWAYS_OPEN = [
    "/", "/docs", "/redoc", "/openapi.json", "/app_id", "/token", "/user", "/theme.css", "/static/img/logo.svg",
    "/startup-events", "/heartbeat/x", "/internal/ping", "/internal/pending-tasks", "/internal/profile-startup",
    "/internal/quicksettings-hint", "/internal/sysinfo", "/sd_extra_networks/metadata", "/sdapi/v1/loras",
    "/controlnet/model_list", "/controlnet/module_list",
]  # fmt: skip
API = ["samplers", "schedulers", "sd-models", "options", "progress", "upscalers", "memory", "embeddings", "scripts"]


@pytest.mark.parametrize("path", UI)
def test_the_ui_wants_the_cookie(login_only: Forge, both: Forge, path: str) -> None:
    assert login_only.four("GET", path) == both.four("GET", path) == COOKIE_ONLY


@pytest.mark.parametrize("path", ["/queue/join", "/run/x", "/api/x", "/call/x"])
def test_the_functions_want_the_cookie(login_only: Forge, both: Forge, path: str) -> None:
    for forge in (login_only, both):
        *refused, reached = forge.four("POST", path)
        assert refused == [401, 401, 401]
        assert reached == 422


def test_uploads_want_the_cookie(login_only: Forge, both: Forge) -> None:
    assert login_only.four("POST", "/upload") == both.four("POST", "/upload") == (401, 401, 401, 400)


def test_a_user_reads_the_whole_data_folder(both: Forge) -> None:
    (both.folder / "data" / "config.json").write_text("{}")
    assert both.four("GET", f"/file={both.folder / 'data' / 'config.json'}") == COOKIE_ONLY
    assert both.four("GET", "/file=/etc/passwd") == (401, 401, 401, 403)
    assert both.four("GET", "/proxy=http://localhost/") == (401, 401, 401, 400)


@pytest.mark.parametrize("path", ALWAYS_OPEN)
def test_weakness_open_whatever_is_asked_for(login_only: Forge, both: Forge, path: str) -> None:
    assert login_only.four("GET", path) == both.four("GET", path) == OPEN


@pytest.mark.parametrize("path", ["/internal/progress", "/controlnet/detect", "/sdapi/v1/refresh-loras"])
def test_weakness_open_to_posts(login_only: Forge, both: Forge, path: str) -> None:
    for forge in (login_only, both):
        answers = set(forge.four("POST", path))
        assert len(answers) == 1 and answers <= {200, 422}


@pytest.mark.parametrize("name", API)
def test_the_api_is_open_unless_it_has_its_own_login(login_only: Forge, both: Forge, name: str) -> None:
    assert login_only.four("GET", f"/sdapi/v1/{name}") == OPEN
    assert both.four("GET", f"/sdapi/v1/{name}") == BASIC_ONLY


def test_generation_is_open_unless_the_api_has_its_own_login(login_only: Forge, both: Forge) -> None:
    for path in ("/sdapi/v1/txt2img", "/sdapi/v1/img2img"):
        assert login_only.four("POST", path) == (422, 422, 422, 422)
        assert both.four("POST", path) == (401, 401, 422, 401)


def test_weakness_a_stranger_changes_settings(login_only: Forge) -> None:
    changed = HTTP.post(f"{login_only.url}/sdapi/v1/options", json={"samples_save": False})
    assert changed.status_code == 200
    assert json.loads((login_only.folder / "data" / "config.json").read_text())["samples_save"] is False


def test_the_login_page_looks_like_a_success(both: Forge) -> None:
    assert '"auth_required":true' in HTTP.get(f"{both.url}/", auth=RIGHT).text
    assert '"auth_required":true' not in HTTP.get(f"{both.url}/", headers=both.cookie_header).text
    assert HTTP.head(f"{both.url}/internal/ping").status_code == 405


def test_the_login_form(both: Forge) -> None:
    wrong, right, again = both.login("no"), both.login(PASSWORD), both.login(PASSWORD)
    assert (wrong.status_code, wrong.json()) == (400, {"detail": "Incorrect credentials."})
    assert (right.status_code, right.json()) == (200, {"success": True})
    assert set(right.cookies) == set(again.cookies)
    assert any(name.startswith("access-token-unsecure-") for name in right.cookies)


def test_the_cookies_name_differs_from_start_to_start(login_only: Forge, both: Forge) -> None:
    assert not set(login_only.cookie) & set(both.cookie)


def test_weakness_no_limit_on_guesses(both: Forge) -> None:
    with httpx.Client(base_url=both.url) as client:
        guesses = {client.post("/login", data={"username": USER, "password": "no"}).status_code for _ in range(60)}
    assert guesses == {400}
    assert both.login(PASSWORD).status_code == 200


@pytest.mark.parametrize(("host", "echoed"), [("forge.example", "https://evil.example"), ("127.0.0.1", None)])
def test_weakness_any_origin_may_use_the_cookie(both: Forge, host: str, echoed: str | None) -> None:
    headers = {"Host": host, "Origin": "https://evil.example"}
    answer = HTTP.get(f"{both.url}/internal/ping", headers=headers)
    preflight = HTTP.options(f"{both.url}/login", headers={**headers, "Access-Control-Request-Method": "POST"})
    for each in (answer, preflight):
        assert (each.status_code, each.headers.get("access-control-allow-origin")) == (200, echoed)
        assert each.headers["access-control-allow-credentials"] == "true"


def test_weakness_cmd_flags_tell_the_credentials(login_only: Forge, both: Forge) -> None:
    """With --port given the answer fails its own check, and the 500 holds everything all the same."""
    answer = HTTP.get(f"{login_only.url}/sdapi/v1/cmd-flags")
    assert (answer.status_code, answer.json()["error"]) == (500, "ResponseValidationError")
    assert answer.json()["body"]["gradio_auth"] == f"{USER}:{PASSWORD}"
    assert both.four("GET", "/sdapi/v1/cmd-flags") == (401, 401, 500, 401)


def test_weakness_where_credentials_leak(login_only: Forge, both: Forge) -> None:
    def leaks(forge: Forge) -> tuple[bool, bool]:
        sysinfo = HTTP.get(f"{forge.url}/internal/sysinfo").text
        return PASSWORD in forge.running.log(), PASSWORD in sysinfo.split('"Config"')[0]

    assert leaks(login_only) == (True, True)  # --gradio-auth=U:P
    assert leaks(both) == (True, False)  # --gradio-auth-path FILE --api-auth U:P


# ---------------------------------------------------------------------------------------------------- bad credentials


def test_weakness_empty_credentials_are_no_login_and_the_environment_leaks(tmp_path: Path) -> None:
    local.lay_out_forge(tmp_path)
    (tmp_path / "auth").write_text("\n")
    arguments = ["--gradio-auth=", f"--gradio-auth-path={tmp_path / 'auth'}"]
    variable = {"COMMANDLINE_ARGS": f"--api-auth={USER}:{PASSWORD}"}
    with local.stopping(lambda: started(tmp_path, *arguments, env=variable), SECONDS_TO_START) as running:
        running.wait_for(LAST_ROUTES_ADDED, SECONDS_TO_START)
        assert HTTP.get(f"{running.url}/config").status_code == 200
        assert '"auth_required"' not in HTTP.get(f"{running.url}/").text
        assert HTTP.get(f"{running.url}/sdapi/v1/options").status_code == 401
        assert PASSWORD in running.log()
        assert PASSWORD in HTTP.get(f"{running.url}/internal/sysinfo").text
        assert running.stop(signal.SIGINT) == 0


def test_weakness_a_comma_in_the_password_and_no_port_opens(tmp_path: Path) -> None:
    local.lay_out_forge(tmp_path)
    running = started(tmp_path, "--gradio-auth=alice:x,y")
    running.wait_for("IndexError", SECONDS_TO_START)
    assert running.process.poll() is None
    with pytest.raises(httpx.ConnectError):
        HTTP.get(running.url)
    assert running.stop(signal.SIGTERM) == -signal.SIGTERM


def test_weakness_a_colon_in_the_api_password_and_the_api_is_gone(tmp_path: Path) -> None:
    local.lay_out_forge(tmp_path)
    arguments = [f"--gradio-auth={USER}:{PASSWORD}", "--api-auth=alice:x:y"]
    with local.stopping(lambda: started(tmp_path, *arguments), SECONDS_TO_START) as running:
        running.wait_for("ValueError", SECONDS_TO_START)
        assert HTTP.get(f"{running.url}/internal/ping").status_code == 200
        assert HTTP.get(f"{running.url}/sdapi/v1/samplers").status_code == 404


# ---------------------------------------------------------------------------------------------------- generation

SMALL = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1, "cfg_scale": 1, "sampler_name": "Euler a", "seed": 7}


def test_without_a_checkpoint_generation_says_so(login_only: Forge) -> None:
    assert HTTP.get(f"{login_only.url}/sdapi/v1/sd-models").json() == []
    answer = login_only.post("txt2img", SMALL)
    assert (answer.status_code, answer.json()["error"]) == (500, "ValueError")
    assert answer.json()["message"].startswith("You do not have any model!")


@pytest.mark.parametrize("body", [{"width": "wide"}, {"send_images": 7}, {"script_name": "nope"}])
def test_wrong_types_are_a_422(login_only: Forge, body: dict[str, Any]) -> None:
    assert login_only.post("txt2img", {**SMALL, **body}).status_code == 422
    assert HTTP.post(f"{login_only.url}/sdapi/v1/txt2img", content=b"{").status_code == 422


def test_null_is_no_wrong_type(login_only: Forge) -> None:
    assert (
        login_only.post("txt2img", {**SMALL, "seed": None}).json()["message"].startswith("You do not have any model!")
    )


def test_settings_of_unknown_names_are_a_500(login_only: Forge) -> None:
    for body, error in (({"nokey": 1}, "KeyError"), ({"sd_model_checkpoint": "nope"}, "RuntimeError")):
        answer = login_only.post("options", body)
        assert (answer.status_code, answer.json()["error"]) == (500, error)


def described(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(json.loads(answer.json()["info"])["infotexts"][0])


@double_only
def test_the_same_seed_gives_the_same_bytes(both: Forge) -> None:
    first, same, other = (both.post("txt2img", {**SMALL, "seed": seed}) for seed in (7, 7, 8))
    assert first.json()["images"] == same.json()["images"] != other.json()["images"]
    picture = Image.open(io.BytesIO(base64.b64decode(first.json()["images"][0])))
    assert (picture.size, picture.format) == ((64, 64), "PNG")
    assert picture.info["parameters"] == described(first)
    assert described(first).startswith("a cat\nSteps: 1, Sampler: Euler a, Schedule type: Automatic, CFG scale: 1.0,")
    assert "Model: a_sd15," in described(first)
    assert not (both.folder / "data" / "outputs").exists()


@double_only
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"sampler_name": "nonsense"}, "Sampler: DPM++ 2M, Schedule type: Karras,"),
        ({"scheduler": "nonsense"}, "Sampler: Euler a, Schedule type: Automatic,"),
        ({"sampler_name": "Euler a Karras"}, "Sampler: Euler a, Schedule type: Karras,"),
        ({"override_settings": {"sd_model_checkpoint": "nope"}}, "Model: a_sd15,"),
    ],
)
def test_weakness_a_wrong_wish_is_silently_another_one(both: Forge, body: dict[str, Any], expected: str) -> None:
    assert expected in described(both.post("txt2img", {**SMALL, **body}))


@double_only
def test_bad_checkpoints_and_settings_are_a_500_and_the_next_request_works(both: Forge) -> None:
    (both.folder / "checkpoints" / "c_garbage.safetensors").write_bytes(b"\xff" * 5000)
    assert both.post("refresh-checkpoints", {}).status_code == 200
    for override, error, message in (
        ({"sd_model_checkpoint": "c_garbage"}, "ValueError", "Failed to recognize model type!"),
        ({"nokey": 1}, "KeyError", "'nokey'"),
    ):
        answer = both.post("txt2img", {**SMALL, "override_settings": override})
        assert (answer.status_code, answer.json()["error"], answer.json()["message"]) == (500, error, message)
    assert both.post("txt2img", SMALL).status_code == 200


@double_only
def test_sdxl_needs_its_preview_decoder(both: Forge) -> None:
    wish = {**SMALL, "override_settings": {"sd_model_checkpoint": "b_sdxl"}}
    answer = both.post("txt2img", wish)
    assert (answer.status_code, answer.json()["error"]) == (500, "URLError")
    decoder = both.folder / "data" / "models" / "VAE-approx" / "vaeapprox-sdxl.pt"
    decoder.parent.mkdir()
    decoder.touch()
    assert "Model: b_sdxl," in described(both.post("txt2img", wish))
    decoder.unlink()
    assert both.post("options", {"show_progress_type": "Approx cheap"}).status_code == 200
    assert both.post("txt2img", wish).status_code == 200


@double_only
def test_a_batch_is_kept_when_asked_for(both: Forge) -> None:
    answer = both.post("txt2img", {**SMALL, "batch_size": 2, "save_images": True, "send_images": True})
    assert len(answer.json()["images"]) == 3  # a grid comes first
    folder = both.folder / "data" / "outputs" / "txt2img-images" / time.strftime("%Y-%m-%d")
    assert sorted(path.name for path in folder.iterdir()) == ["00000-7.png", "00001-8.png"]
    assert both.post("txt2img", {**SMALL, "send_images": False}).json()["images"] == []


@double_only
def test_an_image_is_changed_as_far_as_asked(both: Forge) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "green").save(buffer, format="PNG")
    wish = {**SMALL, "init_images": [base64.b64encode(buffer.getvalue()).decode()], "denoising_strength": 0.0}
    picture = Image.open(io.BytesIO(base64.b64decode(both.post("img2img", wish).json()["images"][0])))
    assert picture.getpixel((5, 5)) == (0, 128, 0)
    assert both.post("img2img", SMALL).status_code == 404
    assert both.post("img2img", {**wish, "init_images": ["bm9wZQ=="]}).status_code == 500


@double_only
def test_the_page_generates_through_its_queue(both: Forge) -> None:
    with httpx.Client(base_url=both.url, cookies=both.cookie, timeout=20) as client:
        joined = client.post("/queue/join", json={"data": ["a dog", 5], "fn_index": 0, "session_hash": "s"})
        assert "event_id" in joined.json()
        lines = client.get("/queue/data?session_hash=s").text.split("\n\n")
        messages = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        assert [message["msg"] for message in messages] == [
            "estimation", "process_starts", "process_completed", "close_stream",
        ]  # fmt: skip
        path = messages[2]["output"]["data"][0][0]["path"]
        assert Image.open(io.BytesIO(client.get(f"/file={path}").content)).size == (64, 64)


@double_only
def test_it_answers_while_it_generates_and_can_be_interrupted(both: Forge) -> None:
    working = Thread(target=both.post, args=("txt2img", {**SMALL, "steps": 3000}))
    working.start()
    progress: dict[str, Any] = {"progress": 0}
    while not progress["progress"] or not progress["state"]["sampling_step"]:
        progress = HTTP.get(f"{both.url}/sdapi/v1/progress", auth=RIGHT).json()
    assert HTTP.get(f"{both.url}/internal/ping").json() == {}
    assert working.is_alive() and 0 < progress["progress"] < 1 and progress["state"]["sampling_steps"] == 3000
    assert both.post("interrupt", {}).status_code == 200
    working.join(20)
    assert not working.is_alive()


@double_only
def test_the_double_says_that_it_is_one(both: Forge) -> None:
    sysinfo = HTTP.get(f"{both.url}/internal/sysinfo").json()
    assert sysinfo["Atelier double"] is True and sysinfo["Version"].endswith("-double")
    assert "ATELIER TEST DOUBLE of Forge" in both.running.log()
    repositories = ("stable-diffusion-webui-forge", "stable-diffusion-webui-assets", "huggingface_guess", "BLIP")
    assert all((local.HERE / name / "ATELIER_DOUBLE").exists() for name in repositories)


def test_an_unknown_flag_ends_the_start(tmp_path: Path) -> None:
    local.lay_out_forge(tmp_path)
    assert started(tmp_path, "--enable-auth").process.wait(SECONDS_TO_START) == 2
    assert "unrecognized arguments: --enable-auth" in (tmp_path / "log").read_text()
