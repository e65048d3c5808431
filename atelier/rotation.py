"""`make rotate`: new credentials in, old ones out, and the proof of both through the gateway.

This computer comes first: what is replaced into `credentials.previous.yml`, then the new into `credentials.yml`, and only
then the host. So a rotation that is killed anywhere leaves here all that the host may hold, and the file of the former
ones says that there is something to finish. It goes when everything is proved.
"""

import contextlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from atelier import credentials as store
from atelier import lifecycle, paths, preflight
from atelier.comfyui import ComfyUI
from atelier.console import Narrator
from atelier.credentials import Account, Credentials, Former
from atelier.deployment import Deployment
from atelier.errors import AtelierError
from atelier.forge import Forge
from atelier.hostfacts import HostFacts
from atelier.render import Project
from atelier.ssh import Ssh
from atelier.target import Target
from atelier.verify import read_deployed, services, trust

TITLES = {"comfyui": "ComfyUI", "forge": "Forge"}
PROTECTED = {"comfyui": "/prompt", "forge": "/config"}
"""What a session opens and nobody else."""
SERVED_WITHIN = 60.0  # seconds after the deploy of a gateway that was found healthy
CLOSED_WITHIN = 5.0  # seconds for the end of a connection to reach us
LOOK = 0.2  # seconds between two questions while a service is away


def answer(status: int) -> str:
    """What a status on a protected path says; anything but yes and no proves nothing."""
    if status == 200:
        return "admitted"
    return "refused" if status in (302, 400, 401, 403) else f"answered with {status}" if status else "not answered"


@dataclass(frozen=True)
class Proof:
    """One thing that must be so after a rotation, and what was seen."""

    what: str
    expected: str
    seen: str

    def holds(self) -> bool:
        """Whether it is so."""
        return self.seen == self.expected

    def line(self) -> str:
        """For people."""
        return f"{self.what}: {self.seen}" + ("" if self.holds() else f", and must be {self.expected}")


def undeployed(record: Mapping[str, Any], tags: Mapping[str, str], *known: Sequence[Project]) -> list[str]:
    """What a deploy of this checkout would make otherwise than the last one did, credentials apart.

    record: what the host says was deployed. known: its compose projects with each of the credentials that it may have;
    none where they are not known.
    """
    images = {name: image["tag"] for name, image in record["images"].items()}
    wrong = [f"image {name}" for name, tag in tags.items() if images.get(name) != tag]
    configurations: dict[str, set[str]] = {}
    for projects in known:
        for project in projects:
            configurations.setdefault(project.service, set()).add(project.config)
    services = record["services"]
    wrong += [f"settings of {name}" for name in services.keys() - configurations.keys() if known]
    wrong += [
        f"settings of {name}"
        for name, configs in configurations.items()
        if name not in services or services[name]["config"] not in configs
    ]
    return sorted(wrong)


class Visitor:
    """Asks one service through the gateway, each question without anything left of the one before."""

    def __init__(self, service: str, url: str, verify: ssl.SSLContext | bool) -> None:
        self.service, self.url, self.verify = service, url, verify
        # One for all questions: to make one takes longer than to ask.
        self._context = verify if isinstance(verify, ssl.SSLContext) else ssl.create_default_context()

    def by_header(self, account: Account | None) -> int:
        """Status for the token or HTTP Basic of an account, or for a stranger; 0 without an answer."""
        path, arguments = PROTECTED[self.service], dict[str, Any]()
        if account and self.service == "comfyui":
            arguments = {"headers": {"Authorization": f"Bearer {account.password_bcrypt}"}}
        elif account:
            path, arguments = "/sdapi/v1/samplers", {"auth": (account.user, account.password or "")}
        return self._status("GET", path, **arguments)

    def by_cookie(self, cookie: str) -> int:
        """Status for a session."""
        return self._status("GET", PROTECTED[self.service], headers={"Cookie": cookie})

    def by_form(self, account: Account) -> tuple[int, str]:
        """Status inside after the login form, or the form's own where it cannot be checked; and the session's cookie."""
        fields = {"username": account.user, "password": account.password}
        with self._client() as client, contextlib.suppress(httpx.TransportError):
            login = client.post("/login", data=fields).status_code
            if login in (429, 500, 502, 503, 504):
                return login, ""
            status = client.get(PROTECTED[self.service]).status_code
            return status, "; ".join(f"{cookie.name}={cookie.value}" for cookie in client.cookies.jar)
        return 0, ""

    def is_served(self) -> bool:
        """Whether the gateway says that the service is up."""
        return self._status("GET", "/healthz") == 200

    def is_there(self) -> bool:
        """Whether a gateway answers at all."""
        return self._status("GET", "/healthz") != 0

    def at_work(self, account: Account) -> int:
        """How many generations run or wait, as that account; 0 where it is not let in."""
        with contextlib.suppress(AtelierError):
            if self.service == "comfyui":
                with ComfyUI(self.url, account.password_bcrypt, verify=self.verify) as comfyui:
                    return sum(len(ids) for ids in comfyui.queue().values())
            with Forge(self.url, account.user, account.password or "", verify=self.verify) as forge:
                return forge.jobs()
        return 0

    def socket(self, account: Account) -> ClientConnection | None:
        """A WebSocket that its caller closes; None where it is refused, and for a service that has none."""
        if self.service != "comfyui":
            return None
        with (
            contextlib.suppress(AtelierError),
            ComfyUI(self.url, account.password_bcrypt, verify=self.verify) as comfyui,
        ):
            return comfyui.socket("rotation")
        return None

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self._context, timeout=30, trust_env=False)

    def _status(self, method: str, path: str, **arguments: Any) -> int:
        with self._client() as client, contextlib.suppress(httpx.TransportError):
            return client.request(method, path, **arguments).status_code
        return 0


def is_closed(socket: ClientConnection) -> bool:
    """Whether the other side has ended it, what it sent before put aside."""
    deadline = time.monotonic() + CLOSED_WITHIN
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.recv(timeout=left)
        except ConnectionClosed:
            return True
        except TimeoutError:
            break
    return False


def proofs(
    visitor: Visitor, account: Account, former: Account | None, cookie: str, socket: ClientConnection | None
) -> Iterator[Proof]:
    """What must be so for one rotated service; the new ones first, so that no lock-out of guesses stands in their way.

    former, cookie, socket: the account, a session and a WebSocket of before, where there are such.
    """
    title, header = TITLES[visitor.service], {"comfyui": "token", "forge": "HTTP Basic"}[visitor.service]
    yield Proof(f"{title}: the new {header}", "admitted", answer(visitor.by_header(account)))
    yield Proof(f"{title}: the new password in the login form", "admitted", answer(visitor.by_form(account)[0]))
    if visitor.service == "comfyui":
        opened = visitor.socket(account)
        yield Proof(f"{title}: a WebSocket with the new token", "admitted", "admitted" if opened else "refused")
        if opened:
            opened.close()
    yield Proof(f"{title}: a stranger", "refused", answer(visitor.by_header(None)))
    if former and (former.password or visitor.service == "comfyui"):
        yield Proof(f"{title}: the old {header}", "refused", answer(visitor.by_header(former)))
    if former and former.password:
        yield Proof(f"{title}: the old password in the login form", "refused", answer(visitor.by_form(former)[0]))
    if cookie:
        yield Proof(f"{title}: a session from before", "refused", answer(visitor.by_cookie(cookie)))
    if socket:
        yield Proof(f"{title}: a WebSocket from before", "closed", "closed" if is_closed(socket) else "open")


def unprovable(service: str, former: Account | None, cookie: str, socket: ClientConnection | None) -> list[str]:
    """What of before nobody can show to be shut out of a rotated service, because it is not known here."""
    title = TITLES[service]
    if former is None:
        return [f"{title}: not shown: the credentials of before are not known here"]
    missing = [] if former.password else ["the password of before is not known here"]
    missing += [] if cookie else ["no session could be opened before"]
    missing += ["no WebSocket was held from before"] if service == "comfyui" and not socket else []
    return [f"{title}: not shown: {reason}" for reason in missing]


class Downtime:
    """How long a service let its owner in neither with the old credentials nor with the new, seen from this computer.

    It asks with the old ones until they fail, and with the new ones when the gateway was made again: earlier they would
    be wrong guesses.
    """

    def __init__(self, visitor: Visitor, former: Account, account: Account) -> None:
        self._visitor, self._former, self._account = visitor, former, account
        self._last = self._first = 0.0
        self._gateway_renewed, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Downtime":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def wait_for_the_new(self) -> None:
        """The gateway has the new credentials now: wait until they open the service, or nothing does."""
        self._gateway_renewed.set()
        self._thread.join(SERVED_WITHIN)

    def seconds(self) -> float | None:
        """From the last success of the old to the first of the new; None where one of them was not seen."""
        return self._first - self._last if self._last and self._first else None

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            now = time.monotonic()
            status = self._visitor.by_header(self._former)
            if status == 200:
                self._last = now
            elif status == 0:
                self._gateway_renewed.set()
            elif answer(status) == "refused":
                break
        while not self._gateway_renewed.is_set() and not self._ended.wait(LOOK):
            if not self._visitor.is_there():
                self._gateway_renewed.set()
        while not self._ended.wait(LOOK):
            if self._visitor.is_served() and self._visitor.by_header(self._account) == 200:
                self._first = time.monotonic()
                return


def rotate(
    target: Target,
    ssh: Ssh,
    only: str,
    consent: bool,
    narrator: Narrator,
    carry_out: Callable[[Deployment], object],
) -> None:
    """Finish a rotation that was begun, then rotate what was wanted and not part of it. Under the host's lock.

    only: one service; empty for all. consent: generations that run may be lost. carry_out: brings a deployment with other
    credentials to this computer's store and then to the host. Raises AtelierError, also where the proof fails.
    """
    wanted = [only] if only else list(target.settings.enabled())
    begun = store.unfinished(paths.secrets_dir(target.name))
    if begun:
        narrator.say(f"  A rotation of {titles(begun.services)} was not finished; this finishes it.", style="yellow")
        Rotation.begun_before(target, ssh, begun, narrator).complete(consent, carry_out)
        wanted = [service for service in wanted if service not in begun.services]
    if wanted:
        Rotation.of(target, ssh, wanted, narrator).complete(consent, carry_out)


def conclude(target: Target, ssh: Ssh, deployment: Deployment, narrator: Narrator) -> None:
    """Prove the rotation that a deploy has just finished, if there was one. Raises AtelierError where that fails."""
    begun = store.unfinished(paths.secrets_dir(target.name))
    if begun:
        narrator.say(f"  A rotation of {titles(begun.services)} was not finished; this deploy did.", style="yellow")
        rotation = Rotation(target, ssh, narrator, begun, deployment)
        with rotation.visits() as visitors:
            rotation.prove(visitors, {})
    else:  # one that ended before it stored anything new
        store.forget_former(paths.secrets_dir(target.name))


def require_none_unfinished(target: Target) -> None:
    """Raises AtelierError before a deploy of one service alone, which would leave the gateway ahead of the other."""
    if begun := store.unfinished(paths.secrets_dir(target.name)):
        raise AtelierError(
            f"a rotation of {titles(begun.services)} was not finished",
            f"{target.command('rotate')} finishes it, and so does a deploy without SERVICE=",
        )


def titles(services: Collection[str]) -> str:
    """The services' names, for people."""
    return " and ".join(TITLES[service] for service in services)


def in_force(target: Target, facts: HostFacts) -> Credentials | None:
    """The credentials that the host holds, or None where it holds others than this computer knows.

    Raises AtelierError where the store of this computer is another host's.
    """
    stored = store.load(paths.secrets_dir(target.name))
    if stored and facts.instance and stored.instance != facts.instance:
        lifecycle.require_known(target, facts, stored)
    return stored if stored and facts.fingerprint in ("", store.fingerprint(stored)) else None


@dataclass(frozen=True)
class Rotation:
    """One rotation of one host. `deployment` has the new credentials, `former` says what they replace."""

    target: Target
    ssh: Ssh
    narrator: Narrator
    former: Former
    deployment: Deployment
    resumed: bool = True

    @classmethod
    def begun_before(cls, target: Target, ssh: Ssh, begun: Former, narrator: Narrator) -> "Rotation":
        """The rotation that an earlier run began: its credentials are in the store. Raises AtelierError."""
        deployment = _prepare(
            target, ssh, narrator, begun.services, lambda facts: lifecycle.choose_credentials(target, facts, {})
        )
        rotation = cls(target, ssh, narrator, begun, deployment)
        rotation.require_nothing_else()
        return rotation

    @classmethod
    def of(cls, target: Target, ssh: Ssh, wanted: Sequence[str], narrator: Narrator) -> "Rotation":
        """A rotation of these services; nothing is stored yet. Raises AtelierError."""

        def renewed(facts: HostFacts) -> Credentials:
            known = in_force(target, facts)
            if known:
                return store.renew(known, wanted, os.environ)
            if set(wanted) != set(target.settings.enabled()):
                raise AtelierError(
                    f"this computer does not know the credentials of {target.name}, so none can be kept",
                    "leave SERVICE out",
                )
            return store.generate(os.environ, facts.instance)

        deployment = _prepare(target, ssh, narrator, wanted, renewed)
        former = Former(
            services=tuple(wanted),
            credentials=in_force(target, deployment.facts),
            cookies={},
            successor=store.fingerprint(deployment.credentials),
            replaces=deployment.facts.fingerprint,
        )
        rotation = cls(target, ssh, narrator, former, deployment, resumed=False)
        rotation.require_nothing_else()
        return rotation

    def require_nothing_else(self) -> None:
        """Raises AtelierError when this checkout would change more on the host than credentials, or a reprovision is under way."""
        for found in preflight.contradictions(self.deployment.facts, self.target.settings):
            raise AtelierError(found.problem, found.remedy)
        record = read_deployed(self.ssh, self.target.settings)
        known: list[Sequence[Project]] = []
        if self.former.credentials:
            before = replace(self.deployment, credentials=self.former.credentials)
            known = [before.projects(), self.deployment.projects()]
        if wrong := undeployed(record, self.deployment.image_tags(), *known):
            raise AtelierError(
                f"this checkout would change more than credentials: {', '.join(wrong)}",
                f"{self.target.command('deploy')} first",
            )

    def complete(self, consent: bool, carry_out: Callable[[Deployment], object]) -> None:
        """Bring the new credentials to the store and to the host, and prove them. Raises AtelierError."""
        with self.visits() as visitors, contextlib.ExitStack() as held:
            open_to_the_old = [visitor for visitor in visitors.values() if self._takes_the_old(visitor)]
            self._require_consent(visitors, open_to_the_old, consent)
            rotation = self if self.resumed else self._with_sessions(open_to_the_old)
            sockets = {visitor.service: visitor.socket(self._old(visitor.service)) for visitor in open_to_the_old}
            if not self.resumed:
                store.begin_rotation(paths.secrets_dir(self.target.name), rotation.former, self.deployment.credentials)
            downtimes = {
                visitor.service: held.enter_context(
                    Downtime(visitor, self._old(visitor.service), self._new(visitor.service))
                )
                for visitor in open_to_the_old
            }
            carry_out(self.deployment)
            for downtime in downtimes.values():
                downtime.wait_for_the_new()
            rotation.tell_downtime({service: downtime.seconds() for service, downtime in downtimes.items()})
            rotation.prove(visitors, sockets)

    @contextlib.contextmanager
    def visits(self) -> Iterator[dict[str, Visitor]]:
        """The host's services, through its gateway."""
        with services(self.target, self.ssh) as reach:
            verify = trust(reach.anchor)
            yield {name: Visitor(name, url, verify) for name, url in reach.urls.items()}

    def prove(self, visitors: Mapping[str, Visitor], sockets: Mapping[str, ClientConnection | None]) -> None:
        """Show through the gateway what is let in now and what is not; then nothing is left to finish.

        sockets: those opened before. Raises AtelierError that names what is not as it must be.
        """
        wait_until_served(self.target, visitors)
        wrong = []
        for service in self.former.services:
            if service not in visitors:  # taken out of the settings since
                continue
            former = self._old(service) if self.former.credentials else None
            cookie, socket = self.former.cookies.get(service, ""), sockets.get(service)
            for proof in proofs(visitors[service], self._new(service), former, cookie, socket):
                self.narrator.say(f"  {proof.line()}", style="green" if proof.holds() else "red")
                wrong += [] if proof.holds() else [proof.line()]
            for sentence in unprovable(service, former, cookie, socket):
                self.narrator.say(f"  {sentence}", style="yellow")
        if wrong:
            raise AtelierError(
                f"the rotation is not proved: {'; '.join(wrong)}",
                f"{self.target.command('rotate')} brings the same credentials again and repeats the proof; "
                f"those of before stay in {paths.secrets_dir(self.target.name) / store.FORMER_FILE}",
            )
        store.forget_former(paths.secrets_dir(self.target.name))

    def tell_downtime(self, seconds: Mapping[str, float | None]) -> None:
        """Say how long each rotated service let nobody in."""
        for service in self.former.services:
            if (measured := seconds.get(service)) is None:
                told = "its downtime is not known: the old credentials were out of force when this run began"
            else:
                told = f"{measured:.1f} s between the last answer to the old credentials and the first to the new"
            self.narrator.say(f"  {TITLES[service]}: {told}")

    def _takes_the_old(self, visitor: Visitor) -> bool:
        service = visitor.service
        if service not in self.former.services or self.former.credentials is None:
            return False
        # Where the new are in force, asking with the old would be a wrong guess.
        if self.resumed and answer(visitor.by_header(self._new(service))) == "admitted":
            return False
        return answer(visitor.by_header(self._old(service))) == "admitted"

    def _require_consent(
        self, visitors: Mapping[str, Visitor], open_to_the_old: Sequence[Visitor], consent: bool
    ) -> None:
        at_work = {visitor.service: visitor.at_work(self._old(visitor.service)) for visitor in open_to_the_old}
        if "forge" in visitors.keys() - at_work.keys() and "forge" not in self.former.services:
            # It goes on, but who waits for its answer waits at the gateway, which is made again.
            at_work["forge"] = visitors["forge"].at_work(self._new("forge"))
        busy = {service: count for service, count in at_work.items() if count}
        for service, count in busy.items():
            self.narrator.say(
                f"  {TITLES[service]}: {count} generation(s) at work or waiting would be lost", style="yellow"
            )
        if busy and not consent and not self.narrator.ask("Rotate now?"):
            raise AtelierError(
                f"{titles(busy)} would lose generations", "wait until they are done, or run it again with YES=1"
            )

    def _with_sessions(self, open_to_the_old: Sequence[Visitor]) -> "Rotation":
        """The same, with a session of each service that was opened with the old credentials."""
        accounts = {visitor: self._old(visitor.service) for visitor in open_to_the_old}
        cookies = {visitor.service: visitor.by_form(old)[1] for visitor, old in accounts.items() if old.password}
        return replace(self, former=self.former.model_copy(update={"cookies": cookies}))

    def _old(self, service: str) -> Account:
        if self.former.credentials is None:
            raise ValueError("the credentials of before are not known")
        return self.former.credentials.account(service)

    def _new(self, service: str) -> Account:
        return self.deployment.credentials.account(service)


def wait_until_served(target: Target, visitors: Mapping[str, Visitor]) -> None:
    """Raises AtelierError that names what the gateway does not serve."""
    deadline = time.monotonic() + SERVED_WITHIN
    for service, visitor in visitors.items():
        while not visitor.is_served():
            if time.monotonic() > deadline:
                raise AtelierError(
                    f"the gateway does not serve {TITLES[service]}, so the rotation is not proved",
                    f"see {target.command('status')}; then run the same command again",
                )
            time.sleep(LOOK)


def _prepare(
    target: Target, ssh: Ssh, narrator: Narrator, wanted: Sequence[str], choose: Callable[[HostFacts], Credentials]
) -> Deployment:
    mode = read_deployed(ssh, target.settings)["sources"]
    only = wanted[0] if len(wanted) == 1 else ""
    return lifecycle.prepare(target, ssh, mode, narrator, only, choose)
