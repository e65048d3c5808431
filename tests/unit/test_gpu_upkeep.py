"""What would take the GPUs away at the next boot or upgrade is found and named."""

import json
import re
import subprocess

import pytest

from atelier.gpu import upkeep

VERSION = "1.20.2-1"
TOOLKIT = (
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
)
PACKAGES = "".join(f"installed {name} {VERSION}\n" for name in TOOLKIT)
MANIFEST = {"created": {"holds": ["nvidia-container-toolkit", "nvidia-driver-cuda", "nvidia-fabricmanager"]}}
WELL = {
    "refresh": "yes\n",
    "order": "yes\n",
    "packages": f"{PACKAGES}installed nvidia-driver-cuda 580.178.04-1\nconfig-files nvidia-fabricmanager 580.178.04-1\n",
    "held": "nvidia-container-toolkit\nnvidia-driver-cuda\n",
    "manifest": json.dumps(MANIFEST, indent=1) + "\n\n",
    "daemon": '{\n "features": {"cdi": true}\n}\n',
}


def printed(**changes: str) -> str:
    return "".join(f"::{name}\n{text}" for name, text in (WELL | changes).items())


def test_a_host_that_stays_one_has_no_fault() -> None:
    assert upkeep.faults(printed()) == []


LOST = {
    "CDI switched off": ({"daemon": '{"features": {"cdi": false}}\n'}, "features.cdi is False"),
    "CDI not mentioned": ({"daemon": "{}\n"}, "features.cdi is None"),
    "no settings at all": ({"daemon": ""}, "features.cdi is None"),
    "settings that cannot be read": ({"daemon": "{,}\n"}, "not valid JSON"),
    "settings of another kind": ({"daemon": "[]\n"}, "not valid JSON"),
    "the list is not made": ({"refresh": ""}, "nvidia-cdi-refresh, which makes the CDI list at every boot"),
    "Docker may come first": ({"order": ""}, "Docker may start before"),
    "an unsafe toolkit": ({"packages": PACKAGES.replace(VERSION, "1.17.7-1")}, "of one version and safe: .*1.17.7-1"),
    "a mixed one": ({"packages": PACKAGES.replace(VERSION, "1.21.0-1", 1)}, "libnvidia-container1 1.21.0-1"),
    "none": ({"packages": ""}, "none of its packages"),
    "a package that is not held": ({"held": "nvidia-container-toolkit\n"}, "apt does not hold nvidia-driver-cuda"),
}


@pytest.mark.parametrize(("changes", "problem"), LOST.values(), ids=LOST)
def test_what_would_take_the_gpus_away_is_named(changes: dict[str, str], problem: str) -> None:
    (fault,) = upkeep.faults(printed(**changes))
    assert re.search(problem, fault.problem), fault
    assert "make deploy" in fault.remedy


def test_the_probe_is_posix_shell() -> None:
    script = upkeep.probe_script("/srv/atelier/state/manifest.json")
    checked = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
