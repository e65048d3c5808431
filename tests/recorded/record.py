"""Copies what a deployed host has recorded of itself into a tree here, without what is its own: `python record.py ROOT TREE`.

ROOT: a copy of the host's /etc/systemd/system, /etc/atelier, config_root and data_root/state, such as tar makes. Kept is what
atelier.recorded reads, and of each identity a stand-in. Run it with the last commit of each schema, before the next one begins.
"""

import json
import re
import sys
from pathlib import Path

INSTANCE, FINGERPRINT, DIGEST = "0123456789abcdef", "fedcba9876543210", "0" * 64
KEPT = (
    "etc/systemd/system/atelier-weights.service",
    "etc/atelier/host.json",
    "opt/atelier/services/*/.env",
    "srv/atelier/state/instance",
    "srv/atelier/state/credentials",
    "srv/atelier/state/schema",
    "srv/atelier/state/deployed.json",
    "srv/atelier/state/manifest.json",
)


def neutral(text: str, own: dict[str, str]) -> str:
    """A text without what belongs to one host: its identity, and sums that hang on its secrets."""
    for value, stand_in in own.items():
        text = text.replace(value, stand_in)
    text = re.sub(r'("(?:config|comfyui|forge|gateway|host)": )"[0-9a-f]{16}"', rf'\1"{"0" * 16}"', text)
    text = re.sub(r"(?m)^(CONFIG_FINGERPRINT=).*$", rf'\1"{"0" * 16}"', text)
    return re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{DIGEST}", text)


def record(root: Path, tree: Path) -> None:
    """Copy what is kept from one to the other."""
    state = root / "srv/atelier/state"
    names = {"instance": INSTANCE, "credentials": FINGERPRINT}
    own = {(state / name).read_text().strip(): stand_in for name, stand_in in names.items()}
    for pattern in KEPT:
        for path in sorted(root.glob(pattern)):
            place = tree / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(neutral(path.read_text(), own))
    services = json.loads((state / "deployed.json").read_text())["services"]
    for name in services.keys() - {"gateway"}:
        users = tree / "srv/atelier/users" / name / ".gitkeep"
        users.parent.mkdir(parents=True, exist_ok=True)
        users.touch()


if __name__ == "__main__":
    record(Path(sys.argv[1]), Path(sys.argv[2]))
