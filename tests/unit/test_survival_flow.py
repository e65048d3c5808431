"""When a survival check carries out what it has to survive, and when it leaves somebody's work alone."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from atelier.checks import survival_state

IDLE: dict[str, list[str]] = {"running": [], "pending": []}
BUSY = {"running": ["theirs"], "pending": []}


@pytest.fixture(scope="module")
def survival(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    """The checks, as a module."""
    pytestconfig.addinivalue_line("markers", "check(id): as for `make verify`")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "verify"))
        import test_survival

        yield test_survival


class Host:
    """A stack whose queue and whose host's work are told one look after the other; `done` is what was done to it."""

    def __init__(self, queues: list[dict[str, list[str]]], works: list[str]) -> None:
        self.queues, self.works, self.done = iter(queues), iter(works), []
        self.containers = {"comfyui": "comfyui-qwen", "gateway": "gateway"}
        self.applications = {"comfyui": "comfyui-qwen"}
        self.settings = SimpleNamespace(config_root="/opt/atelier")

    def output(self, command: str) -> str:
        if command == survival_state.at_work_script():
            return next(self.works)
        self.done.append(command)
        return ""

    def at_work(self, services: list[str]) -> list[str]:
        return survival_state.busy_applications(next(self.queues), 0)

    def http(self, service: str) -> SimpleNamespace:
        return SimpleNamespace(
            get=lambda path, timeout: SimpleNamespace(status_code=200 if path == "/healthz" else 401)
        )


class Check:
    def __call__(self, expected: str, observed: object, holds: bool, hint: str = "") -> None:
        assert holds, (expected, observed)

    def none(self, expected: str, wrong: list[str], hint: str = "") -> None:
        assert not wrong, (expected, wrong)


@pytest.fixture
def survive(survival: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[Host, str], None]:
    """Runs the check of a service up to its restarts; what comes before and after them is left out."""
    for name in ("one_more_image", "images", "wait", "owner_gets_in", "nothing_lost", "still_served", "quick_checks"):
        monkeypatch.setattr(survival, name, lambda *_: None)

    @contextlib.contextmanager
    def nobody(*_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(survival, "strangers", nobody)
    return lambda host, service: survival.survive(host, Check(), service, ["comfyui"])


DEPLOY = "deploy: anna on desk"
LOOKS = {
    "a generation runs": ([BUSY], ["", ""], "ComfyUI is at work"),
    "one began since the first look": ([IDLE, BUSY], ["", ""], "ComfyUI is at work"),
    "a deploy runs": ([IDLE], [DEPLOY], "a deploy is at work: anna"),
    "one began since the first look, too": ([IDLE, IDLE], ["", DEPLOY], "a deploy is at work: anna"),
}


@pytest.mark.parametrize("service", ["comfyui", "gateway"])
@pytest.mark.parametrize(("queues", "works", "words"), LOOKS.values(), ids=LOOKS)
def test_what_is_at_work_is_left_alone(survive, queues, works, words, service) -> None:
    host = Host(queues, works)
    with pytest.raises(pytest.skip.Exception, match=words):
        survive(host, service)
    assert host.done == []


def test_an_application_is_restarted_and_then_made_anew_after_a_look_each(survive) -> None:
    host = Host([IDLE] * 3, ["", "container: /another no", ""])
    survive(host, "comfyui")
    restarted, anew = host.done
    assert "docker restart comfyui-qwen" in restarted
    assert "cd /opt/atelier/services/comfyui-qwen && docker compose up -d --force-recreate" in anew
    assert not any(host.queues) and not any(host.works), "looked at before each, once first"


def test_the_gateway_is_restarted_alone(survive) -> None:
    host = Host([IDLE] * 2, [""] * 2)
    survive(host, "gateway")
    (restarted,) = host.done
    assert "docker restart gateway" in restarted
