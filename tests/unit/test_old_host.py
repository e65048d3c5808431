"""Weights of an old host, offered to a new one through this computer: by parts, by its own record, and only while it answers."""

import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from test_deployment import deployment

from atelier import models_serve, old_host, recorded
from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.models import Weight
from atelier.old_host import Offer
from atelier.settings import Settings
from atelier.ssh import Completed, Destination, Ssh
from stages import provision
from weights import pieces
from weights.store import PIECE, File, Store
from weights.verify import verify

CONTENT = os.urandom(PIECE + 4321)
BIG = File("checkpoints/big.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Local(Ssh):
    """Commands of a host run here, as they are."""

    def root_command(self, script: str) -> tuple[list[str], bytes]:
        code = script.encode()
        return ["sh", "-c", f'eval "$(head -c {len(code)})"'], code

    def run(self, script: str, **_: Any) -> Completed:
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        return Completed(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def offer(tmp_path: Path) -> Offer:
    store = Store(tmp_path / "models dir", tmp_path / "state")
    store.path(BIG).parent.mkdir(parents=True)
    store.path(BIG).write_bytes(CONTENT)
    verify(store, [BIG], deep=True)
    return Offer(Local(Destination("old")), str(store.root), str(store.state), {BIG.name: BIG})


@pytest.fixture
def url(offer: Offer) -> Iterator[str]:
    with models_serve.running(old_host.application(offer), "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False)


def test_a_whole_file(url: str, offer: Offer) -> None:
    answer = get(f"{url}/{BIG.name}")
    assert answer.status_code == 200 and answer.content == CONTENT and offer.served == len(CONTENT)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-1048580", 5, 1048581),
        (f"bytes={PIECE}-", PIECE, len(CONTENT)),
        ("bytes=-7", len(CONTENT) - 7, len(CONTENT)),
        (f"bytes=10-{len(CONTENT) + 99}", 10, len(CONTENT)),
    ],
)
def test_a_part_of_a_file(asked: str, first: int, last: int, url: str) -> None:
    answer = get(f"{url}/{BIG.name}", Range=asked)
    assert answer.status_code == 206 and answer.content == CONTENT[first:last]
    assert answer.headers["Content-Range"] == f"bytes {first}-{last - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("asked", [f"bytes={len(CONTENT)}-", "bytes=9-3", "bytes=1-2,4-5", "lines=1-2"])
def test_a_part_that_is_none(asked: str, url: str) -> None:
    assert get(f"{url}/{BIG.name}", Range=asked).status_code == 416


def test_the_size_alone(url: str, offer: Offer) -> None:
    answer = httpx.head(f"{url}/{BIG.name}", trust_env=False)
    assert answer.headers["Content-Length"] == str(len(CONTENT)) and offer.served == 0


def test_the_pieces_that_the_old_host_recorded(url: str) -> None:
    told = get(f"{url}/{BIG.name}.pieces.json")
    assert pieces.read(told.content, BIG) == (
        hashlib.sha256(CONTENT[:PIECE]).hexdigest(),
        hashlib.sha256(CONTENT[PIECE:]).hexdigest(),
    )


@pytest.mark.parametrize("record", ["", "{}", '{"pieces": ["x"]}', json.dumps([1])])
def test_pieces_that_do_not_fit_are_not_told(record: str, url: str, offer: Offer) -> None:
    Path(offer.state, f"{BIG.sha256}.pieces.json").write_text(record)
    assert get(f"{url}/{BIG.name}.pieces.json").status_code == 404


@pytest.mark.parametrize("path", ["vae/other.safetensors", "checkpoints/..%2f..%2fetc%2fpasswd", "etc/passwd"])
def test_nothing_but_what_is_offered(path: str, url: str) -> None:
    assert get(f"{url}/{path}").status_code == 404


def test_the_list_of_what_is_offered(url: str) -> None:
    assert get(f"{url}/").text == f"{BIG.name}\n"


def test_an_old_host_that_lost_the_file_is_a_bad_gateway(url: str, offer: Offer) -> None:
    Path(offer.store, BIG.name).unlink()
    assert get(f"{url}/{BIG.name}").status_code == 502


def test_an_old_host_that_dies_half_way_cuts_the_answer(url: str, offer: Offer) -> None:
    os.truncate(Path(offer.store, BIG.name), 3_000_000)
    with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
        get(f"{url}/{BIG.name}")


def test_what_ssh_says_is_no_part_of_a_file(offer: Offer) -> None:
    loud = replace(offer, ssh=_Loud(Destination("old")))
    with models_serve.running(old_host.application(loud), "127.0.0.1", 0) as port:
        assert get(f"http://127.0.0.1:{port}/{BIG.name}").content == CONTENT


class _Loud(Local):
    def root_command(self, script: str) -> tuple[list[str], bytes]:
        return super().root_command(f"echo 'Connection to old closed.' >&2; {script}")


WEIGHT = Weight(
    repository="a/b",
    revision="main",
    path="vae/ae.safetensors",
    bytes=7,
    sha256="c" * 64,
    directory="vae",
    sets=["s"],
    used_by=[],
    licence="MIT",
)
MISSING = replace(deployment(), weights=(WEIGHT,))


class Old(Ssh):
    """An old host with answers of its own."""

    def __init__(self, answers: list[str] | AtelierError) -> None:
        super().__init__(Destination("old"))
        self.answers = answers

    def run(self, script: str, **_: Any) -> Completed:
        if isinstance(self.answers, AtelierError):
            raise self.answers
        return Completed(0, self.answers.pop(0), "")


class New(Ssh):
    """A new machine that is led to this computer."""

    def __init__(self) -> None:
        super().__init__(Destination("new"))
        self.ports: list[int] = []

    @contextmanager
    def reverse(self, port: int) -> Iterator[Any]:
        self.ports.append(port)
        yield lambda: True


def record() -> str:
    """What an old host prints of itself."""
    anchor = {"schema": 2, "instance": "i", **RECORDED_ROOTS}
    return f"\n{recorded.PREFIX}anchor\n{json.dumps(anchor)}\n"


RECORDED_ROOTS = {
    "config_root": "/opt/a",
    "data_root": "/data",
    "models_dir": "/big/models",
    "outputs_dir": "/data/outputs",
}


def test_an_old_host_is_asked_where_it_has_its_weights() -> None:
    offer = old_host.look(Old([record(), WEIGHT.sha256]), Settings(), [WEIGHT])
    assert (offer.store, offer.state) == ("/big/models", "/data/state/weights")
    assert [*offer.files] == [WEIGHT.store_path]


def test_a_weight_that_it_does_not_know_to_be_good_is_not_offered() -> None:
    assert old_host.look(Old([record(), f"here:{WEIGHT.bytes}"]), Settings(), [WEIGHT]).files == {}


def test_a_host_of_somebody_elses_offers_nothing() -> None:
    with pytest.raises(AtelierError, match="nothing of a deploy is recorded there"):
        old_host.look(Old([""]), Settings(), [WEIGHT])


def test_the_old_host_is_the_first_mirror_for_as_long_as_it_lasts() -> None:
    new, said = New(), list[str]()
    with old_host.through_here(Old([record(), WEIGHT.sha256]), new, MISSING, said.append) as (changed, offer):
        assert offer and changed.settings.models.mirrors[0] == f"http://127.0.0.1:{new.ports[0]}"
        assert get(f"http://127.0.0.1:{new.ports[0]}/").text == f"{WEIGHT.store_path}\n"
    assert "1 of 1 missing weights" in said[0] and "from the old host old through this computer" in said[0]
    assert MISSING.settings.models.mirrors == []
    with pytest.raises(httpx.ConnectError):
        get(f"http://127.0.0.1:{new.ports[0]}/")


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (AtelierError("old: cannot connect by SSH: timed out"), "do not come from the old host: old: cannot connect"),
        ([""], "nothing of a deploy is recorded there"),
        ([record(), ""], "has none of the weights that are missing"),
    ],
)
def test_without_an_old_host_the_deployment_is_as_it_was(answers: Any, told: str) -> None:
    said = list[str]()
    with old_host.through_here(Old(answers), New(), MISSING, said.append) as (changed, offer):
        assert changed == MISSING and offer is None
    assert told in said[0] and said[0].endswith("they come from huggingface.co")


@pytest.mark.parametrize(("sent", "fetched", "came"), [(14, 7, "7 bytes"), (3, 7, "3 bytes")])
def test_what_came_is_counted_and_not_what_a_client_left_unread(
    sent: int, fetched: int, came: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted, offers = [100, 100 + fetched], list[Offer]()
    look = old_host.look
    monkeypatch.setattr(old_host, "look", lambda *given: offers.append(look(*given)) or offers[0])
    monkeypatch.setattr(old_host, "_ssh", lambda _: Old([record(), WEIGHT.sha256]))
    monkeypatch.setattr(old_host.lifecycle, "find_weights_obstacles", lambda *_: [])
    monkeypatch.setattr(provision, "fetched", lambda: counted.pop(0))
    monkeypatch.setattr(provision, "fetch_weights", lambda *_: setattr(offers[0], "served", sent))
    target = SimpleNamespace(destination=Destination("new"), name="new")
    assert old_host.bring(target, "old", New(), MISSING, Narrator()) == min(sent, fetched)
    assert f"  {came} came from the old host old" in capsys.readouterr().out


def test_with_all_weights_there_the_old_host_is_not_asked() -> None:
    there = replace(MISSING, present=frozenset({WEIGHT.sha256}))
    with old_host.through_here(Old(AtelierError("asked")), New(), there, pytest.fail) as (changed, offer):
        assert changed == there and offer is None


def test_parts_are_read_where_the_name_has_a_space(tmp_path: Path) -> None:
    file = tmp_path / "a b"
    file.write_bytes(b"0123456789")
    done = Local(Destination("old")).run(old_host.read_script(str(file), 3, 4))
    assert done.stdout == "3456" and shlex.quote(str(file)) in old_host.read_script(str(file), 3, 4)
