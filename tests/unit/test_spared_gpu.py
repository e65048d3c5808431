"""When PyTorch is tried on a GPU, and when somebody's image needs its memory."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from atelier.errors import AtelierError
from atelier.gpu.health import Card, Seen

UUID = "GPU-1"
GOOD = {"torch": "2.7", "available": True, "devices": 1, "capability": [9, 0], "architectures": ["sm_90"], "error": 0.0}
FULL = {"torch": "2.7", "available": True, "devices": 1, "full": "CUDA out of memory."}


@pytest.fixture(scope="module")
def gpu(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    """The checks, as a module of another name: the end-to-end tests have a `test_gpu` as well."""
    pytestconfig.addinivalue_line("markers", "check(id): as for `make verify`")
    folder = Path(__file__).parents[1] / "verify"
    spec = importlib.util.spec_from_file_location("gpu_checks", folder / "test_gpu.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        spec.loader.exec_module(module)
        yield module


class Host:
    """A stack with two applications on one GPU."""

    def __init__(self, at_work: list[str] | AtelierError, answer: dict[str, object]) -> None:
        self.applications = {"comfyui": "comfyui-qwen", "forge": "forge-turbo"}
        self.work, self.answer, self.tried = at_work, answer, []
        self.ssh = SimpleNamespace(run=self.run)

    def at_work(self, services: object) -> list[str]:
        if isinstance(self.work, AtelierError):
            raise self.work
        return self.work

    def run(self, command: str, **_: object) -> SimpleNamespace:
        self.tried.append(command)
        return SimpleNamespace(stdout=f"a warning\n{json.dumps(self.answer)}\n", stderr="", status=0)


class Check:
    def __call__(self, expected: str, observed: object, holds: bool, hint: str = "") -> None:
        assert holds, (expected, observed)

    def none(self, expected: str, wrong: list[str], hint: str = "") -> None:
        assert not wrong, (expected, wrong)


def seen(free: str) -> Seen:
    return Seen(cards=(Card("0000:01:00.0", {"GPU UUID": UUID, "FB Memory Usage/Free": free}),))


SPARED = {
    "an image is made": (["ComfyUI is at work"], "81110 MiB", GOOD, "ComfyUI is at work: run again", 0),
    "nobody can say": (AtelierError("no answer"), "81110 MiB", GOOD, r"unknown \(no answer\)", 0),
    "the card is nearly full": ([], "2047 MiB", GOOD, "has 2047 MiB free", 0),
    "somebody was faster": ([], "81110 MiB", FULL, "comfyui: CUDA out of memory", 2),
}


@pytest.mark.parametrize(("work", "free", "answer", "words", "tried"), SPARED.values(), ids=SPARED)
def test_a_gpu_in_use_is_spared(gpu, work, free, answer, words, tried) -> None:
    host = Host(work, answer)
    with pytest.raises(pytest.skip.Exception, match=words):
        gpu.test_pytorch_computes_on_the_gpu(host, seen(free), {UUID}, Check())
    assert len(host.tried) == tried


@pytest.mark.parametrize("free", ["2048 MiB", "N/A"])
def test_an_idle_gpu_is_tried_in_every_application(gpu, free: str) -> None:
    host = Host([], GOOD)
    gpu.test_pytorch_computes_on_the_gpu(host, seen(free), {UUID}, Check())
    assert sorted(host.tried) == [f"timeout 120 docker exec -i {name} python -" for name in host.applications.values()]
