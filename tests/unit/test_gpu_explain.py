"""Files of facts: the documented example, every field in the documentation, and messages that name file and field."""

import json
import re
from dataclasses import fields

import pytest

from atelier import paths
from atelier.errors import AtelierError
from atelier.gpu.devices import Gpu
from atelier.gpu.explain import explain, facts_json, read_facts
from atelier.gpu.facts import GpuFacts, KernelModule, Package, PciGpu
from atelier.hostfacts import HostFacts
from atelier.settings import Settings

PAGE = (paths.PROJECT / "docs" / "gpu.md").read_text()


def example(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])
    return path


def test_the_documented_example_is_explained_as_its_text_says(tmp_path):
    explained = json.loads(explain(read_facts(example(tmp_path)), Settings()))
    assert explained["action"] == "install"
    assert explained["driver"]["flavour"] == "open"
    assert explained["driver"]["remove"] == ["nvidia-headless-no-dkms-580-server"]
    assert "stays loaded until a restart" in explained["reboot"]
    assert {"path", "content", "mode"} <= set(explained["files"][0])
    assert explained["files"][0]["content"] == ["blacklist nouveau", "options nouveau modeset=0"]


@pytest.mark.parametrize(
    "kind", [HostFacts, GpuFacts, PciGpu, KernelModule, Package, Gpu], ids=lambda kind: kind.__name__
)
def test_every_field_is_documented(kind):
    table = PAGE.partition("| field |")[2]
    prefix = "gpu." if kind is GpuFacts else ""
    missing = [each.name for each in fields(kind) if f"`{prefix}{each.name}`" not in table]
    assert missing in ([], ["gpu"]), "docs/gpu.md: add a row, or the name to the row of those that only preflight reads"


def test_facts_that_are_as_by_default_are_left_out():
    assert json.loads(facts_json(HostFacts("debian", gpu=GpuFacts(sources=frozenset({"b", "a"}))))) == {
        "os_id": "debian",
        "gpu": {"sources": ["a", "b"]},
    }


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ('{"gpu": {"secureboot": true}, "osid": "x"}', ["gpu.secureboot: unknown field", "osid: unknown field"]),
        ('{"gpu": {"pci": [{"adress": "0000:01:00.0", "device": "0x2684"}]}}', ["gpu.pci.0.adress: unknown field"]),
        ('{"gpu": {"pci": [{"address": "0000:01:00.0"}]}}', ["gpu.pci.0.device: Field required"]),
        ('{"gpu": {"pci": [{"address": "0000:01:00.0", "device": "RTX 4090"}]}}', ["gpu.pci.0.device", "0x"]),
        ('{"gpu": {"installed": {"flavour": "closed"}}}', ["gpu.installed.flavour", "'proprietary'"]),
        ('{"memory": "much"}', ["memory", "integer"]),
        ('["gpu"]', ["object"]),
        ('{"gpu": ', ["JSON"]),
        ("", ["JSON"]),
    ],
)
def test_a_wrong_file_is_refused_with_file_and_field(tmp_path, text, fragments):
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(AtelierError) as error:
        read_facts(path)
    assert all(fragment in error.value.message for fragment in [str(path), *fragments])
    assert "docs/gpu.md" in error.value.hint


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AtelierError, match=r"nowhere\.json: No such file"):
        read_facts(tmp_path / "nowhere.json")
