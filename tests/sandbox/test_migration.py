"""A host of an earlier schema, on a real one: nothing of it is made again, and the next deploy writes the present schema."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from following import follow
from harness import UNCHANGED, Sandbox, copy_checkout, edited, told

from atelier import SCHEMA

pytestmark = pytest.mark.sandbox
BACK_TO_1 = r"""
import json, pathlib, shutil
state = pathlib.Path("/srv/atelier/state")
shutil.rmtree("/etc/atelier")
(state / "schema").write_text("1\n")
for name, unknown in {"deployed.json": ["layout"], "manifest.json": ["found", "wrote"]}.items():
    document = json.loads((state / name).read_text())
    document["schema"] = 1
    for key in unknown:
        del document[key]
    for service in document.get("services", {}).values():
        del service["port"]
    for kind in ("groups", "rules"):
        document.get("created", {}).pop(kind, None)
    (state / name).write_text(json.dumps(document, indent=1) + "\n")
"""
CONTAINERS = "docker ps -a --no-trunc --format '{{.ID}} {{.Names}}' | sort"


TOUCHED = """find / -xdev -newer /tmp/mark -type f ! -path '/tmp/*' ! -path '/proc/*' ! -path '/var/log/*' \\
  ! -path '/var/lib/docker/*' ! -path '/var/lib/containerd/*' ! -path '*/state/monitor/*' ! -path '*/users/*'"""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    found = Sandbox(f"sandbox-migration-{os.getpid()}")
    with found.running():
        moved = replace(found, checkout=copy_checkout(tmp_path_factory.mktemp("migration")))
        moved.deploy()
        yield moved


def test_a_host_of_schema_1_is_carried_forward_and_no_container_is_made_again(sandbox: Sandbox) -> None:
    before = sandbox.root(CONTAINERS)
    sandbox.root("python3 -", stdin=BACK_TO_1)
    _, answer = follow("a host of an earlier release", sandbox, expect=(2,))
    assert sandbox.root(CONTAINERS) == before, told(answer)
    assert json.loads(sandbox.root("cat /etc/atelier/host.json"))["data_root"] == "/srv/atelier"
    state = {name: json.loads(sandbox.root(f"cat /srv/atelier/state/{name}.json")) for name in ("deployed", "manifest")}
    assert {each["schema"] for each in state.values()} == {SCHEMA}
    assert state["deployed"]["layout"]["models_dir"] == "/srv/atelier/models"
    assert state["deployed"]["services"]["forge"]["port"] == 7860
    assert state["manifest"]["created"]["groups"] == ["atelier"]
    assert "packages" not in state["manifest"]["found"], "nobody knows what was there before"
    assert sandbox.root("stat -c %a /srv/atelier/state/manifest.json /etc/atelier/host.json").split() == ["600", "644"]
    assert re.search(UNCHANGED, sandbox.deploy())


def test_a_deploy_beside_data_that_lies_elsewhere_changes_nothing_and_says_where_it_lies(sandbox: Sandbox) -> None:
    sandbox.root("touch /tmp/mark")
    settings = sandbox.checkout / "group_data/sandbox.py"
    with edited(settings, f'{settings.read_text()}\nmodels_dir = "/srv/elsewhere"\n'):
        refused, status = sandbox.deploy(expect=1), sandbox.atelier("status")
    sentence = "the weights of this host lie in /srv/atelier/models; the settings say /srv/elsewhere"
    assert sentence in refused and sentence in status and "make reprovision" in refused
    assert sandbox.root(TOUCHED).split() == []
