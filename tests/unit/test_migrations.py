"""The state of every earlier release is carried forward: read from what a real host of each schema recorded."""

import json
import subprocess
from pathlib import Path

import pytest

from atelier import SCHEMA, recorded
from atelier.recorded import Recorded, Roots
from atelier.settings import Settings, build_settings

TREES = Path(__file__).parents[1] / "recorded"
HOST = Roots("/opt/atelier", "/srv/atelier", "/srv/atelier/models", "/srv/atelier/outputs")
SETTINGS = {
    "those of then": {},
    "others": {"config_root": "/opt/x", "data_root": "/data/x", "models_dir": "/big", "gateway_container": "door"},
}
EARLIER = range(1, SCHEMA)


def documents(schema: int, settings: Settings) -> dict[str, str]:
    tree = TREES / f"schema-{schema}"
    assert tree.is_dir(), (
        f"record a host of schema {schema} with the last commit that wrote it: tests/recorded/record.py"
    )
    script = recorded.script(settings, tree.name)
    done = subprocess.run(["sh", "-u", "-c", script], cwd=TREES, capture_output=True, text=True)
    return recorded.documents(done.stdout)


def test_every_schema_has_a_migration() -> None:
    assert set(recorded.MIGRATIONS) == set(EARLIER)


@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("schema", EARLIER)
def test_a_host_of_each_schema_is_read_whatever_the_settings_say_by_now(schema: int, values: dict[str, str]) -> None:
    found: Recorded = recorded.parse(documents(schema, build_settings([("test", values)])))
    assert (found.schema, found.roots, found.place) == (schema, HOST, "/srv/atelier/state")
    assert (found.instance, found.fingerprint) == ("0123456789abcdef", "fedcba9876543210")
    assert found.service_uid == 10001 and found.service_user and found.bind_address == "127.0.0.1"
    assert {name: (each.container, each.port) for name, each in found.services.items()} == {
        "comfyui": ("comfyui-qwen", 8188),
        "forge": ("forge-turbo", 7860),
        "gateway": ("gateway", None),
    }
    assert {"comfyui-qwen", "forge-turbo", "gateway"} == found.created["containers"]
    assert "/opt/atelier/services/gateway/compose.yaml" in found.created["files"]
    assert found.created["users"] == found.created["groups"] == {"atelier"}
    assert found.release and found.deployed["packages"]["aria2"] and not found.damaged and not found.refusal()


@pytest.mark.parametrize("schema", EARLIER)
def test_what_is_carried_forward_has_the_present_schema_and_stays_so(schema: int) -> None:
    texts = recorded.migrate(documents(schema, Settings()))
    assert {json.loads(texts[name])["schema"] for name in ("anchor", "deployed", "manifest")} == {SCHEMA}
    assert texts["schema"] == str(SCHEMA) and recorded.migrate(texts) == texts
