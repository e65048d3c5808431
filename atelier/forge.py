"""Client of Forge behind the gateway: HTTP Basic for `/sdapi`, the login form's cookie for everything else.

Forge answers 200 and silently uses something else for an unknown sampler, scheduler or checkpoint, so what was
really used is read back from the `infotexts` (measured: facts of commit dfdcbab).
"""

import base64
import binascii
import json
import re
import ssl
from dataclasses import dataclass
from typing import Any

import httpx

from atelier.errors import AtelierError

LOGS = "see `make logs SERVICE=forge`"
NOT_SERVED = "the gateway does not serve Forge: it is down, or it does not refuse strangers"
ASKED = {"sampler_name": "Sampler", "seed": "Seed"}
"""Parameters of a request and the name under which an infotext returns them."""


class ForgeError(AtelierError):
    """Forge refused a request, failed, or did something else than it was asked."""


class ForgeTimeoutError(ForgeError):
    """Forge did not answer in time."""


@dataclass(frozen=True)
class ForgeImage:
    """One generated image and Forge's own account of how it was made."""

    data: bytes
    used: dict[str, str]


def parse_infotext(infotext: str) -> dict[str, str]:
    """The parameters in the last line of an infotext: `Steps: 1, Sampler: Euler a, ..., Model: name`."""
    last = infotext.strip().splitlines()[-1] if infotext.strip() else ""
    pairs = re.findall(r'\s*([\w /-]+): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)', last)
    return {name.strip(): value.strip().strip('"') for name, value in pairs}


def differences(asked: dict[str, str], used: dict[str, str]) -> list[str]:
    """What Forge did otherwise than it was asked, or does not say; empty when nothing."""
    wrong = {name: used.get(name, "unknown") for name, value in asked.items() if used.get(name) != value}
    return [f"{name}: asked for {asked[name]!r}, used {value!r}" for name, value in wrong.items()]


def checkpoint_name(file: str) -> str:
    """The name by which an infotext calls a checkpoint: the file's name without hash and extension."""
    return re.sub(r"\.(safetensors|ckpt|gguf)$", "", re.sub(r" \[[0-9a-f]+\]$", "", file)).rpartition("/")[2]


class Forge:
    """Forge at `base_url`. Use as a context manager, or call `close`.

    timeout: seconds for one request that does not generate. verify: as of httpx. Every failure is a ForgeError.
    """

    def __init__(
        self, base_url: str, user: str, password: str, timeout: float = 30.0, verify: ssl.SSLContext | bool = True
    ) -> None:
        self._user, self._password = user, password
        self._http = httpx.Client(base_url=base_url.rstrip("/"), timeout=timeout, trust_env=False, verify=verify)

    def __enter__(self) -> "Forge":
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
            raise ForgeTimeoutError(f"time-out: Forge did not answer {method} {path}", LOGS) from None
        except httpx.HTTPError as error:
            raise ForgeError(f"Forge cannot be reached: {error}", "see `make status`") from None
        if response.status_code == 503:
            raise ForgeError(NOT_SERVED, "see `make status`")
        return response

    def login(self) -> bool:
        """Log in as the page's form does; this client then holds the cookie. False when the password is refused."""
        response = self._request("POST", "/login", data={"username": self._user, "password": self._password})
        if response.status_code not in (200, 400, 401):
            raise ForgeError(f"Forge answered POST /login with {response.status_code}: {response.text[:200]}")
        return response.status_code == 200

    def status(self, path: str) -> int:
        """Status of a GET with the cookie of `login`, without HTTP Basic."""
        return self._request("GET", path).status_code

    def _api(self, method: str, name: str, **arguments: Any) -> Any:
        path = f"/sdapi/v1/{name}"
        response = self._request(method, path, auth=(self._user, self._password), **arguments)
        if response.status_code == 401:
            raise ForgeError("Forge refused the user name or password", "see `make credentials`")
        if response.status_code != 200:
            raise ForgeError(f"Forge answered {method} {path} with {response.status_code}: {_detail(response)}")
        try:
            return response.json()
        except ValueError:
            text = f"{response.text[:80]!r}"
            raise ForgeError(f"Forge answered {method} {path} with something else than JSON: {text}", LOGS) from None

    def samplers(self) -> list[str]:
        """Names of the samplers."""
        return [sampler["name"] for sampler in self._api("GET", "samplers")]

    def checkpoints(self) -> list[str]:
        """Files of the checkpoints, without directory."""
        return [model["filename"].rpartition("/")[2] for model in self._api("GET", "sd-models")]

    def jobs(self) -> int:
        """How many generations Forge is at work on; -1 while it gets ready for one, which includes loading its model."""
        return int(self._api("GET", "progress", params={"skip_current_image": "true"})["state"]["job_count"])

    def txt2img(self, prompt: str, *, checkpoint: str, timeout: float, **parameters: Any) -> list[ForgeImage]:
        """Make images from text.

        checkpoint: a file of `checkpoints`. timeout: seconds. parameters: of POST /sdapi/v1/txt2img, such as `seed`,
        `width`, `height`, `steps`, `cfg_scale`, `sampler_name`, `save_images`.
        Raises ForgeError when sampler, checkpoint, seed or size that were used are not those asked for.
        """
        return self._generate("txt2img", prompt, checkpoint, timeout, parameters)

    def img2img(
        self, prompt: str, images: list[bytes], *, checkpoint: str, timeout: float, **parameters: Any
    ) -> list[ForgeImage]:
        """Make images from text and images; otherwise as `txt2img`."""
        encoded = [base64.b64encode(image).decode() for image in images]
        return self._generate("img2img", prompt, checkpoint, timeout, {"init_images": encoded, **parameters})

    def _generate(
        self, kind: str, prompt: str, checkpoint: str, timeout: float, parameters: dict[str, Any]
    ) -> list[ForgeImage]:
        body = {
            "prompt": prompt,
            "override_settings": {"sd_model_checkpoint": checkpoint},
            # Else everybody's next image would be made with this checkpoint.
            "override_settings_restore_afterwards": True,
            **parameters,
        }
        answer = self._api("POST", kind, json=body, timeout=timeout)
        infotexts = json.loads(answer["info"]).get("infotexts", [])
        asked = {"Model": checkpoint_name(checkpoint)}
        asked |= {name: str(parameters[key]) for key, name in ASKED.items() if key in parameters}
        if {"width", "height"} <= parameters.keys():
            asked["Size"] = f"{parameters['width']}x{parameters['height']}"
        if not answer["images"] or len(infotexts) != len(answer["images"]):
            raise ForgeError(f"Forge answered 200 with {len(answer['images'])} images and {len(infotexts)} infotexts")
        made = []
        for image, infotext in zip(answer["images"], infotexts, strict=True):
            used = parse_infotext(infotext)
            if wrong := differences(asked, used):
                raise ForgeError(f"Forge answered 200 but did something else: {'; '.join(wrong)}", LOGS)
            try:
                made.append(ForgeImage(base64.b64decode(image.rpartition(",")[2], validate=True), used))
            except binascii.Error as error:
                raise ForgeError(f"Forge answered 200 with an image that is not base64: {error}") from None
        return made


def _detail(response: httpx.Response) -> str:
    try:
        answer = response.json()
    except ValueError:
        return response.text[:300]
    if isinstance(answer, dict):
        answer = answer.get("errors") or answer.get("detail") or answer
    return str(answer)[:300]
