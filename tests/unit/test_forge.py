"""Forge's client against a fake that, as the real one, answers 200 and does something else."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from loopback import at_work

from atelier.forge import Forge, ForgeError, checkpoint_name, differences, parse_infotext

INFOTEXT = (
    "a fox, Sampler: not this\nNegative prompt: x\nSteps: 1, Sampler: Euler a, Schedule type: Automatic, CFG scale: 1, Seed: 7, "
    'Size: 64x64, Model hash: abc, Model: turbo, Lora hashes: "a: 1, b: 2", Version: f2.0.1v1.10.1'
)
PNG = base64.b64encode(b"image").decode()
BASIC = "Basic " + base64.b64encode(b"user:p:a,ss").decode()
ASK = {"checkpoint": "turbo.safetensors", "timeout": 5, "seed": 7, "width": 64, "height": 64, "sampler_name": "Euler a"}


def test_infotext():
    used = parse_infotext(INFOTEXT)
    assert (used["Sampler"], used["Model"], used["Seed"], used["Size"]) == ("Euler a", "turbo", "7", "64x64")
    assert used["Lora hashes"] == "a: 1, b: 2" and used["Version"] == "f2.0.1v1.10.1"
    assert parse_infotext("") == {}
    assert differences({"Model": "x"}, {}) == ["Model: asked for 'x', used 'unknown'"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("turbo.safetensors", "turbo"),
        ("sub/turbo.ckpt", "turbo"),
        ("sd_xl_turbo_1.0_fp16.safetensors [e869ac7d69]", "sd_xl_turbo_1.0_fp16"),
    ],
)
def test_checkpoint_name(file, name):
    assert checkpoint_name(file) == name


class Fake(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: tuple[int, object] = (200, {"images": [PNG], "info": json.dumps({"infotexts": [INFOTEXT]})})
        self.bodies: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *_: object) -> None:
        pass

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.bodies.append(body)
        if self.path == "/login":
            right = body == b"username=user&password=p%3Aa%2Css"
            cookie = {"Set-Cookie": "access-token-unsecure-1=x; Path=/; HttpOnly"} if right else {}
            return self.reply(200 if right else 400, {"success": right}, cookie)
        if self.path == "/config":
            return self.reply(200 if "access-token-unsecure-1=x" in self.headers.get("Cookie", "") else 401, {})
        if self.headers.get("Authorization") != BASIC:
            return self.reply(401, {"detail": "Incorrect username or password"})
        return self.reply(*self.server.answer)

    do_GET = do_POST = handle_one  # noqa: N815

    def reply(self, status: int, document: object, headers: dict[str, str] | None = None) -> None:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    with at_work(server):
        yield server


def forge(fake: Fake, password: str = "p:a,ss") -> Forge:  # noqa: S107
    return Forge(f"http://127.0.0.1:{fake.server_address[1]}", "user", password, timeout=2)


def test_what_was_asked_for_was_used(fake):
    with forge(fake) as client:
        images = client.txt2img("a fox", **ASK)
        assert images[0].data == b"image" and images[0].used["Model"] == "turbo"
        body = json.loads(fake.bodies[-1])
        assert body["override_settings"] == {"sd_model_checkpoint": "turbo.safetensors"} and body["seed"] == 7
        client.img2img("a fox", [b"in"], **ASK)
        assert json.loads(fake.bodies[-1])["init_images"] == [base64.b64encode(b"in").decode()]


def answer(**changes) -> tuple[int, object]:
    fields = {"images": [PNG], "infotexts": [INFOTEXT], **changes}
    return 200, {"images": fields["images"], "info": json.dumps({"infotexts": fields["infotexts"]})}


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (answer(infotexts=[INFOTEXT.replace("Euler a", "DPM++ 2M")]), "Sampler: asked for 'Euler a', used 'DPM"),
        (
            answer(infotexts=[INFOTEXT.replace("Model: turbo", "Model: other")]),
            "Model: asked for 'turbo', used 'other'",
        ),
        (answer(infotexts=[INFOTEXT.replace("Seed: 7", "Seed: 1")]), "Seed: asked for '7', used '1'"),
        (answer(infotexts=[INFOTEXT.replace("64x64", "512x512")]), "Size"),
        (answer(infotexts=["a fox"]), "Sampler: asked for 'Euler a', used 'unknown'"),
        (answer(infotexts=[]), "1 images and 0 infotexts"),
        (answer(images=[], infotexts=[]), "0 images"),
        (answer(images=["<html>"]), "not base64"),
        ((500, {"error": "Exception", "errors": "You do not have any model!"}), "500: You do not have any model!"),
        ((422, {"detail": "wrong type"}), "422: wrong type"),
        ((503, b""), "does not serve Forge"),
        ((404, b"plain"), "404: plain"),
        ((200, b"<html>"), "something else than JSON: '<html>'"),
    ],
)
def test_a_200_proves_nothing(fake, reply, words):
    fake.answer = reply
    with forge(fake) as client, pytest.raises(ForgeError) as caught:
        client.txt2img("a fox", **ASK)
    assert words in caught.value.message


def test_the_form_and_basic_are_two_ways_in(fake):
    with forge(fake) as client:
        assert client.status("/config") == 401
        assert client.login() and client.status("/config") == 200
    with forge(fake, "wrong") as client:
        assert not client.login() and client.status("/config") == 401
        with pytest.raises(ForgeError, match="refused the user name or password"):
            client.samplers()


def test_lists_and_jobs(fake):
    with forge(fake) as client:
        fake.answer = (200, [{"filename": "/models/checkpoints/turbo.safetensors", "title": "turbo.safetensors [abc]"}])
        assert client.checkpoints() == ["turbo.safetensors"]
        fake.answer = (200, {"state": {"job_count": 2}})
        assert client.jobs() == 2
