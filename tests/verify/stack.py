"""The host under test as the checks see it: commands, facts, clients, and the images they make."""

import base64
import contextlib
import dataclasses
import json
import math
import random
import shlex
import ssl
import uuid
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

from atelier import credentials, imagecheck
from atelier.certificates import Anchor, Certificate
from atelier.checks.survival_state import busy_applications
from atelier.comfyui import ComfyUI
from atelier.errors import AtelierError
from atelier.forge import Forge
from atelier.render import secret_files
from atelier.settings import Settings
from atelier.ssh import Destination, Ssh
from atelier.verify import secret_strings, trust

ENDED = "gAAAAABpIXgAAAECAwQFBgcICQoLDA0OD2J5IGEga2V5IHRoYXQgbm9ib2R5IGhhcyBhbnkgbW9yZSwgYXMgYmVmb3JlIGEgcm90YXRpb24"
"""A session cookie under a key that nobody has. As all that is wrong here it is the same in every run: the gateway counts
each wrong credential once, and so verify locks nobody out of a host in use."""
DOUBLES_SECONDS = 40
COMMAND_SECONDS = 120
"""A command on the host that takes longer is a failure named as a time-out."""


class SharedConnection(BaseBackend):
    """testinfra over the project's own connection: as root, multiplexed, sudo with a password included."""

    NAME = "atelier"

    def __init__(self, ssh: Ssh) -> None:
        super().__init__(ssh.destination.host)
        self._ssh = ssh

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        """Run a shell command as root."""
        command = self.quote(command, *args)
        answer = self._ssh.run(command, timeout=COMMAND_SECONDS)
        return self.result(answer.status, self.encode(command), answer.stdout.encode(), answer.stderr.encode())


class Anonymous(httpx.Client):
    """A client whose errors are for people."""

    def request(self, method: str, url: Any, **arguments: Any) -> httpx.Response:
        """As httpx does. Raises AtelierError where no answer comes."""
        try:
            return super().request(method, url, **arguments)
        except httpx.TransportError as error:
            hint = "see `make status`: the gateway, or its port, is down"
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                hint = "the gateway shows no certificate that tls.mode allows, or one that has ended: run `make deploy`"
            raise AtelierError(f"{method} {url}: no answer: {error}", hint) from None


@dataclasses.dataclass
class Stack:
    """One deployed host. `context` is what atelier.verify wrote."""

    context: dict[str, Any]

    def __post_init__(self) -> None:
        target = self.context["target"]
        config = Path(target["config"]) if target["config"] else None
        self.destination = Destination(target["host"], target["user"], target["port"], config)
        self.ssh = Ssh(self.destination, _sudo=target["sudo"], _sudo_password=target["sudo_password"])
        self.settings = Settings.model_validate(self.context["settings"])
        self.urls: dict[str, str] = self.context["urls"]
        given = self.context["certificate"]
        certificate = Certificate(**given) if given else None
        anchor = self.context["anchor"]
        self.trust = trust(Anchor(**anchor) if anchor else None)
        self.deployed: dict[str, Any] = self.context["deployed"]
        secrets_dir = Path(self.context["secrets_dir"])
        known = credentials.load(secrets_dir)
        assert known is not None
        self.credentials = known
        self.secret_files = secret_files(self.settings, known, certificate)
        self.secret_strings = secret_strings(known, certificate)
        self.token_file = secrets_dir / credentials.TOKEN_FILE
        self._open: list[ComfyUI | Forge | httpx.Client] = []
        self._forwards = contextlib.ExitStack()

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._open:
            client.close()
        self._forwards.close()

    def reconnect(self) -> None:
        """Forward the services anew, under the URLs of before: a restart of the host ended the connection."""
        self._forwards.close()
        services = self.settings.enabled()
        ports = {name: service.port for name, service in services.items()}
        local = {name: int(httpx.URL(self.urls[name]).port or 0) for name in services}
        self._forwards.enter_context(self.ssh.forward(ports, self.settings.own_address(), local_ports=local))

    @cached_property
    def host(self) -> Host:
        """The host, for testinfra."""
        return Host(SharedConnection(self.ssh))

    def output(self, command: str) -> str:
        """Standard output of a command that must succeed, as root on the host."""
        return self.ssh.run(command, timeout=COMMAND_SECONDS, check=True).stdout

    @property
    def containers(self) -> dict[str, str]:
        """Container names by service, the gateway included."""
        services = {name: service.container for name, service in self.settings.enabled().items()}
        return {**services, "gateway": self.settings.gateway_container}

    @property
    def applications(self) -> dict[str, str]:
        """Container names of the applications by service."""
        return {name: container for name, container in self.containers.items() if name != "gateway"}

    def inspect(self) -> dict[str, dict[str, Any]]:
        """`docker inspect` by service, as it is now. Raises AtelierError naming a container that does not exist."""
        answer = self.ssh.run(
            f"docker inspect --type container {' '.join(self.containers.values())}", timeout=COMMAND_SECONDS
        )
        found = {item["Name"].lstrip("/"): item for item in json.loads(answer.stdout or "[]")}
        missing = [container for container in self.containers.values() if container not in found]
        if missing:
            raise AtelierError(f"no container {', '.join(missing)}", "run `make deploy`")
        return {name: found[container] for name, container in self.containers.items()}

    @cached_property
    def comfyui(self) -> ComfyUI:
        """ComfyUI's owner."""
        client = ComfyUI(self.urls["comfyui"], self.credentials.comfyui.password_bcrypt, verify=self.trust)
        self._open.append(client)
        return client

    @cached_property
    def forge(self) -> Forge:
        """Forge's owner."""
        client = self.new_forge()
        self._open.append(client)
        return client

    def new_forge(self) -> Forge:
        """Forge's owner, over connections and without cookies of before."""
        account = self.credentials.forge
        return Forge(self.urls["forge"], account.user, account.password, verify=self.trust)

    def http(self, service: str) -> httpx.Client:
        """A client of a service that knows no credential. Proxies of the environment are not for this computer's ports."""
        client = Anonymous(base_url=self.urls[service], timeout=30, trust_env=False, verify=self.trust)
        self._open.append(client)
        return client

    @property
    def websocket_trust(self) -> ssl.SSLContext | None:
        """As `trust`, in the words of websockets."""
        return self.trust if isinstance(self.trust, ssl.SSLContext) else None

    @property
    def doubles(self) -> bool:
        """Whether test doubles stand in for the applications."""
        return bool(self.deployed["sources"] == "double")

    @property
    def trained(self) -> bool:
        """Whether images must be pictures: those of trained weights, and the doubles'. Random weights make anything."""
        return self.doubles or (self.computes_on_gpu and self.context["target"]["kind"] == "host")

    @property
    def computes_on_gpu(self) -> bool:
        """Whether images are made by a GPU, and not by a processor, which takes minutes for a megapixel."""
        return self.settings.profile == "gpu"

    def at_work(self, services: Collection[str]) -> list[str]:
        """Which of these applications make images now. Raises AtelierError where one does not say."""
        queue = self.comfyui.queue() if "comfyui" in services else {}
        jobs = self.forge.jobs() if "forge" in services else 0
        return busy_applications(queue, jobs)

    @property
    def in_use(self) -> bool:
        """Whether somebody may work with this host, so that nothing of theirs may be touched."""
        return bool(self.context["target"]["kind"] == "host")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images to ask for."""
        return (512, 512) if self.computes_on_gpu or self.doubles else (64, 64)

    @property
    def generation_seconds(self) -> float:
        """How long one generation may take; doubles answer at once, so that one that does not is found out sooner."""
        return min(self.settings.timeouts.generation, DOUBLES_SECONDS if self.doubles else math.inf)

    def outputs(self, service: str) -> str:
        """The declared directory of a service's images on the host."""
        return self.settings.outputs_path(service)

    def clock(self) -> float:
        """The host's own time: its files are compared with nothing else."""
        return float(self.output("date +%s.%N"))

    def file(self, path: str) -> "HostFile | None":
        """A file on the host, read whole."""
        quoted = shlex.quote(path)
        answer = self.ssh.run(f"stat -c '%.9Y %u' {quoted} && base64 -w0 {quoted}", timeout=COMMAND_SECONDS)
        if answer.status != 0:
            return None
        status, _, content = answer.stdout.partition("\n")
        changed, owner = status.split()
        return HostFile(path, float(changed), int(owner), base64.b64decode(content))

    def keep(self, check_id: str, name: str, data: bytes) -> dict[str, Any]:
        """Put an image where the report will find it; returns what the report says of it."""
        image, file = imagecheck.decode(data), f"{name}.png"
        (Path(self.context["work"]) / file).write_bytes(data)
        record = {"check": check_id, "file": file, "width": image.width, "height": image.height}
        return {**record, "sha256": imagecheck.pixel_hash(data)}


@dataclasses.dataclass(frozen=True)
class HostFile:
    """A file on the host. `changed`: seconds since 1970 by the host's clock. `owner`: user id."""

    path: str
    changed: float
    owner: int
    content: bytes


def one_off(text: str) -> str:
    """The same text with another last character."""
    return text[:-1] + ("A" if text[-1] != "A" else "B")


def fresh_seed() -> int:
    """A seed that nobody has used, within what both applications take."""
    return random.SystemRandom().randrange(1, 2**32)


def fresh_prefix() -> str:
    """A file name prefix that nobody has used."""
    return f"verify/{uuid.uuid4().hex}"
