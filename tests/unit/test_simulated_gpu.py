"""The stand-in packages of the simulated GPU, held to what a deploy relies on."""

from __future__ import annotations

import struct
from fnmatch import fnmatch

import pytest
import yaml

from atelier import paths
from sandbox import simulated_gpu
from sandbox.simulated_gpu import packages

DRIVER_PACKAGES = {
    "nvidia-driver-cuda",
    "libcuda1",
    "nvidia-persistenced",
    "nvidia-fabricmanager",
    "nvidia-kernel-open-dkms",
    "nvidia-kernel-dkms",
}
TOOLKIT_PACKAGES = {
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
}


def versions(found: list[packages.Package]) -> dict[str, set[str]]:
    by_name: dict[str, set[str]] = {}
    for package in found:
        assert package.version not in by_name.setdefault(package.name, set()), package.name
        by_name[package.name].add(package.version)
    return by_name


def modinfo(module: bytes) -> dict[str, str]:
    """The .modinfo section, found as kmod finds it: by its name in the section headers."""
    assert module[:6] == b"\x7fELF\x02\x01"
    (table,) = struct.unpack_from("<Q", module, 40)
    size, count, names = struct.unpack_from("<HHH", module, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", module, table + size * index) for index in range(count)]
    for header in headers:
        start = headers[names][4] + header[0]
        if module[start : module.index(b"\0", start)] == b".modinfo":
            text = module[header[4] : header[4] + header[5]].decode()
            return dict(line.split("=", 1) for line in text.split("\0") if line)
    raise AssertionError("no .modinfo")


def test_every_driver_package_is_there_in_every_branch_so_that_a_missing_pin_takes_the_wrong_one() -> None:
    found = versions(list(packages.driver()))
    assert {name for name, versions in found.items() if versions == set(packages.DRIVERS)} == DRIVER_PACKAGES
    assert {version.split(".")[0] for version in packages.DRIVERS} == {"580", "595", "610"}
    assert len([version for version in packages.DRIVERS if version.startswith("580.")]) > 1  # one to upgrade to


@pytest.mark.parametrize("branch", ["580", "595", "610"])
def test_the_pinning_package_pins_every_driver_package_to_its_branch_and_excludes_the_other_pinning_packages(
    branch: str,
) -> None:
    (package,) = (package for package in packages.driver() if package.name == f"nvidia-driver-pinning-{branch}")
    assert package.fields["Conflicts"] == package.fields["Provides"] == "nvidia-driver-pinning"
    (path, preferences), *others = package.files.items()
    pin = dict(line.split(": ") for line in preferences.decode().splitlines())
    assert path.startswith("etc/apt/preferences.d/") and not others
    assert all(any(fnmatch(name, glob) for glob in pin["Package"].split()) for name in DRIVER_PACKAGES)
    pinned = {version for version in packages.DRIVERS if fnmatch(f"version {version}", pin["Pin"])}
    assert pinned == {version for version in packages.DRIVERS if version.startswith(f"{branch}.")}
    assert int(pin["Pin-Priority"]) > 990


def test_the_two_flavours_exclude_each_other_and_say_which_they_are() -> None:
    for package in packages.driver():
        if package.name.startswith("nvidia-kernel"):
            open_flavour = package.name == "nvidia-kernel-open-dkms"
            other = "nvidia-kernel-dkms" if open_flavour else "nvidia-kernel-open-dkms"
            assert package.fields["Conflicts"] == other
            (module,) = package.files.values()
            told = modinfo(module)
            assert told["license"] == ("Dual MIT/GPL" if open_flavour else "NVIDIA")
            assert f"{told['version']}-1" == package.version


def test_the_toolkit_has_the_locked_version_one_above_it_and_one_that_is_not_safe() -> None:
    locked = yaml.safe_load((paths.PROJECT / "locks/sources.yml").read_text())["nvidia"]["container_toolkit"]
    found = versions(list(packages.toolkit()))
    assert set(found) == TOOLKIT_PACKAGES
    for name, there in found.items():
        assert sorted(there)[1] == locked and len(there) == 3, name
    assert min(packages.TOOLKITS) < "1.17.8"


def test_the_toolkit_refreshes_the_cdi_specification_from_version_1_18_on() -> None:
    for package in packages.toolkit():
        if package.name == "nvidia-container-toolkit-base":
            units = {path.rpartition("/")[2] for path in package.files if path.startswith("usr/lib/systemd/system/")}
            expected = {"nvidia-cdi-refresh.service", "nvidia-cdi-refresh.path"} if package.version >= "1.18" else set()
            assert units == expected
            assert all(unit in package.scripts["postinst"] for unit in units)


def test_no_placeholder_is_left_and_every_package_says_that_it_is_simulated() -> None:
    for package in [package for found in packages.everything().values() for package in found]:
        assert "simulated" in package.control()
        for path, content in package.files.items():
            assert b"@VERSION@" not in content, path
        for script in package.scripts.values():
            assert "{version}" not in script and "{units}" not in script


def test_cards_differ_in_everything_that_names_them() -> None:
    cards = simulated_gpu.CARDS.values()
    for name in ("address", "device", "uuid", "name"):
        assert len({getattr(card, name) for card in cards}) == len(cards)
    assert simulated_gpu.hardware([simulated_gpu.CARDS["t4"]]) == (
        "0000:83:00.0 0x1eb8 GPU-5a000000-0000-4000-8000-000000000003 15360 7.5 Tesla T4\n"
    )
