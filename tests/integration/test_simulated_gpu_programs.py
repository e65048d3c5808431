"""The simulated GPU's programs and its signed repositories, run on this computer without root."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from atelier.gpu import health
from sandbox.simulated_gpu import packages, repository

UUIDS = ("GPU-5a000000-0000-4000-8000-00000000000a", "GPU-5a000000-0000-4000-8000-00000000000b")
CARDS = (
    f"0000:81:00.0 0x26b9 {UUIDS[0]} 46068 8.9 NVIDIA L40S (simulated)\n",
    f"0000:c2:00.0 0x2684 {UUIDS[1]} 24564 8.9 NVIDIA GeForce RTX 4090 (simulated)\n",
)
ABSENT = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n\n"
)
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.105\n"


class Programs:
    """The guest's programs with their fixed paths moved into a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        moved = {"/usr/lib/simulated-gpu": str(self.state), "/usr/bin/nvidia-smi": str(folder / "nvidia-smi")}
        moved |= {"/etc/cdi": str(folder / "etc-cdi"), "/var/run/cdi": str(folder / "cdi"), "@VERSION@": "580.105.08"}
        for name in ("nvidia-smi", "nvidia-ctk"):
            text = (packages.GUEST / name).read_text()
            for old, new in moved.items():
                text = text.replace(old, new)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def load(self, version: str = "580.105.08", cards: tuple[str, ...] = CARDS) -> None:
        for name in ("gpus", "minors"):
            (self.state / name).mkdir(parents=True)
        (self.state / "version").write_text(f"{version}\n")
        for minor, card in enumerate(cards):
            (self.state / "gpus" / card.split()[2]).write_text(card)
            (self.state / "minors" / card.split()[0]).write_text(f"{minor}\n")

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.folder / command[0], *command[1:]],
            env={"PATH": os.environ["PATH"], **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.returncode, done.stdout


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_nvidia_smi_fails_as_the_real_one_without_a_module(programs: Programs) -> None:
    assert programs.run("nvidia-smi", "-L") == (9, ABSENT)


def test_nvidia_smi_fails_as_the_real_one_when_the_loaded_module_is_another_version(programs: Programs) -> None:
    programs.load(version="580.65.06")
    assert programs.run("nvidia-smi") == (18, MISMATCH)


def test_nvidia_smi_fails_as_the_real_one_without_a_device(programs: Programs) -> None:
    programs.load(cards=())
    assert programs.run("nvidia-smi", "-L") == (6, "No devices were found\n")


def test_nvidia_smi_fails_as_the_real_one_when_a_card_is_lost(programs: Programs) -> None:
    programs.load(cards=(CARDS[0].replace("0x26b9", "lost"),))
    said = "Unable to determine the device handle for GPU0: 0000:81:00.0: Unknown Error\n"
    assert programs.run("nvidia-smi", "-L") == (15, said)


def test_nvidia_smi_fails_as_the_real_one_in_a_container_that_has_lost_its_devices(programs: Programs) -> None:
    programs.load()
    (programs.state / "version").write_text("")
    assert programs.run("nvidia-smi", "-L") == (255, "Failed to initialize NVML: Unknown Error\n")


def test_nvidia_smi_lists_the_cards(programs: Programs) -> None:
    programs.load()
    assert programs.run("nvidia-smi", "-L") == (
        0,
        f"GPU 0: NVIDIA L40S (simulated) (UUID: {UUIDS[0]})\n"
        f"GPU 1: NVIDIA GeForce RTX 4090 (simulated) (UUID: {UUIDS[1]})\n",
    )


@pytest.mark.parametrize(
    ("query", "form", "more", "status", "output"),
    [
        ("uuid,memory.total", "csv,noheader,nounits", [], 0, f"{UUIDS[0]}, 46068\n{UUIDS[1]}, 24564\n"),
        ("index,compute_cap,pci.bus_id", "csv,noheader", ["-i", UUIDS[1]], 0, "1, 8.9, 00000000:C2:00.0\n"),
        ("name,memory.total", "csv", ["-i", "0"], 0, "name, memory.total\nNVIDIA L40S (simulated), 46068 MiB\n"),
        ("driver_version,count", "csv,noheader", ["-i", "0"], 0, "580.105.08, 2\n"),
        ("uuid,colour", "csv", [], 2, 'Field "colour" is not a valid field to query.\n\n'),
        ("uuid", "csv,noheader", ["-i", "7"], 6, "No devices were found\n"),
    ],
)
def test_nvidia_smi_answers_queries(
    programs: Programs, query: str, form: str, more: list[str], status: int, output: str
) -> None:
    programs.load()
    assert programs.run("nvidia-smi", f"--query-gpu={query}", f"--format={form}", *more) == (status, output)


OTHERS = (
    "0000:83:00.0 0x1eb8 GPU-t4 15360 7.5 Tesla T4 (simulated)\n",
    "0000:84:00.0 0x1b38 GPU-p40 23040 6.1 Tesla P40 (simulated)\n",
)
L40S, RTX_4090, T4, P40 = "0000:81:00.0", "0000:c2:00.0", "0000:83:00.0", "0000:84:00.0"


def test_nvidia_smi_describes_well_cards_in_the_form_of_each_generation(programs: Programs) -> None:
    programs.load(cards=(*CARDS, *OTHERS))
    status, text = programs.run("nvidia-smi", "-q")
    cards = {card.address: card for card in health.parse_cards(text.splitlines())}
    assert status == 0 and set(cards) == {L40S, RTX_4090, T4, P40}
    assert all(health.card_faults(card) == [] and health.card_warnings(card) == [] for card in cards.values())
    assert all("(simulated)" in card.fields["Product Name"] for card in cards.values())
    assert cards[L40S].fields["ECC Errors/Volatile/DRAM Uncorrectable"] == "0"
    assert cards[RTX_4090].fields["ECC Errors/Volatile/DRAM Uncorrectable"] == "N/A"
    assert cards[T4].fields["Retired Pages/Pending Page Blacklist"] == "No"
    assert cards[P40].fields["ECC Errors/Volatile/Double Bit/Total"] == "0"
    assert cards[T4].fields["Temperature/GPU Slowdown Temp"] == "93 C"
    assert cards[L40S].fields["Temperature/GPU Slowdown T.Limit Temp"] == "-2 C"


@pytest.mark.parametrize(
    ("address", "planted", "problem"),
    [
        (L40S, "UNCORRECTED=2", "2 uncorrected ECC errors"),
        (P40, "UNCORRECTED=1", "1 uncorrected ECC errors"),
        (L40S, "TEMPERATURE=90", "has reached its temperature limit (90 C)"),
        (T4, "TEMPERATURE=93", "has 93 C and slows itself down from 93 C on"),
        (L40S, "PENDING=Yes", "Remapped Rows/Pending is Yes"),
        (T4, "PENDING=Yes", "Retired Pages/Pending Page Blacklist is Yes"),
        (L40S, "FAILURE=Yes", "Remapped Rows/Remapping Failure Occurred is Yes"),
        (RTX_4090, "RECOVERY=Reboot", "recovery action Reboot"),
    ],
)
def test_nvidia_smi_tells_of_a_card_what_was_planted(
    programs: Programs, address: str, planted: str, problem: str
) -> None:
    programs.load(cards=(*CARDS, *OTHERS))
    (programs.state / "faults").mkdir()
    (programs.state / "faults" / address).write_text(f"{planted}\n")
    cards = health.parse_cards(programs.run("nvidia-smi", "-q")[1].splitlines())
    found = {card.address: [fault.problem for fault in health.card_faults(card)] for card in cards}
    assert [problem in fault for fault in found.pop(address)] == [True]
    assert not any(found.values())


def test_nvidia_ctk_writes_a_specification_with_a_device_for_each_index_each_uuid_and_all(programs: Programs) -> None:
    programs.load()
    output = programs.folder / "cdi/nvidia.yaml"
    assert programs.run("nvidia-ctk", "cdi", "generate", NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=str(output)) == (0, "")
    written = yaml.safe_load(output.read_text())
    assert (written["cdiVersion"], written["kind"]) == ("0.5.0", "nvidia.com/gpu")
    devices = {device["name"]: device["containerEdits"] for device in written["devices"]}
    nodes = {name: [node["path"] for node in edits["deviceNodes"]] for name, edits in devices.items()}
    both = ["/dev/nvidia0", "/dev/nvidia1"]
    assert nodes == {"0": both[:1], "1": both[1:], UUIDS[0]: both[:1], UUIDS[1]: both[1:], "all": both}
    for uuid in UUIDS:
        mounts = [Path(mount["containerPath"]).name for mount in devices[uuid]["mounts"]]
        assert mounts == [uuid]
    assert written["containerEdits"]["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]

    listed = programs.run("nvidia-ctk", "cdi", "list")
    assert listed == (0, "".join(f"nvidia.com/gpu={name}\n" for name in sorted(devices)))


def test_nvidia_ctk_writes_nothing_without_a_driver(programs: Programs) -> None:
    output = programs.folder / "cdi/nvidia.yaml"
    status, _ = programs.run("nvidia-ctk", "cdi", "generate", f"--output={output}")
    assert status == 1 and not output.exists()
    assert programs.run("nvidia-ctk", "cdi", "list") == (0, "")


def test_the_repositories_are_signed_by_the_key_they_name_and_written_once(tmp_path: Path) -> None:
    made = repository.ensure(tmp_path / "nvidia")
    before = (made / repository.KEY).read_bytes()
    assert repository.ensure(tmp_path / "nvidia") == made and (made / repository.KEY).read_bytes() == before

    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    gpg = ["gpg", f"--homedir={home}", "--batch", "--status-fd=1"]
    subprocess.run([*gpg, "--import", made / repository.KEY], check=True, capture_output=True)
    for name in ("driver", "toolkit"):
        done = subprocess.run([*gpg, "--verify", made / name / "InRelease"], capture_output=True, text=True)
        assert f"VALIDSIG {(made / repository.FINGERPRINT).read_text()}" in done.stdout
        index = (made / name / "Packages").read_bytes()
        assert hashlib.sha256(index).hexdigest() in (made / name / "InRelease").read_text()
        for entry in index.decode().strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in entry.splitlines())
            deb = (made / name / fields["Filename"]).read_bytes()
            assert (len(deb), hashlib.sha256(deb).hexdigest()) == (int(fields["Size"]), fields["SHA256"])
    tampered = tmp_path / "InRelease"
    tampered.write_text((made / "driver/InRelease").read_text().replace("Label: NVIDIA", "Label: nvidia"))
    assert subprocess.run([*gpg, "--verify", tampered], capture_output=True).returncode != 0
