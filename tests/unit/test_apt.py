# ruff: noqa: E501 - output is as long as it is
"""What apt's output means: samples as Debian 12 and 13 and Ubuntu print them."""

import subprocess

import pytest

from atelier import apt

HELD_LISTS = """Reading package lists...
E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1272 (unattended-upgr)
E: Unable to lock directory /var/lib/apt/lists/"""
HELD_FRONTEND = """Waiting for cache lock: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1272 (python3)...
E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?"""
HELD_DPKG = """dpkg: error: dpkg frontend lock was locked by /usr/bin/python3.13 process with pid 1272
Note: removing the lock file is always wrong, can damage the locked area"""
HELD_DPKG_12 = "dpkg: error: dpkg frontend lock was locked by another process with pid 1272"
HELD_OURS = """waiting for the host's package manager: apt-get dist-upgrade (process 77) holds its lock
atelier: the lock is held by apt-get dist-upgrade (process 77)"""
REFUSED = """Ign:1 http://127.0.0.1:9/x ./ InRelease
Err:1 http://127.0.0.1:9/x ./ InRelease
  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)
Reading package lists...
W: Failed to fetch http://127.0.0.1:9/x/./InRelease  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)
W: Some index files failed to download. They have been ignored, or old ones used instead.
Building dependency tree...
E: Unable to locate package nvidia-driver-cuda"""
FORBIDDEN = """Err:3 http://127.0.0.1:9/x ./ Packages
  403  Forbidden [IP: 127.0.0.1 3128]
E: Failed to fetch http://127.0.0.1:9/x/./Packages  403  Forbidden [IP: 127.0.0.1 3128]
E: Some index files failed to download. They have been ignored, or old ones used instead.
E: Unable to locate package nvidia-driver-cuda"""
GONE = """Ign:1 file:/srv/mirror ./ InRelease
Err:2 file:/srv/mirror ./ Release
  File not found - /srv/mirror/./Release (2: No such file or directory)
Reading package lists...
E: The repository 'file:/srv/mirror ./ Release' does not have a Release file.
E: Unable to locate package nvidia-driver-cuda"""
GONE_DEB = """E: Failed to fetch http://mirror/pool/libnvidia-container1_1.20.2-1_amd64.deb  404  Not Found [IP: 10.0.0.1 80]
E: Unable to fetch some archives, maybe run apt-get update or try with --fix-missing?"""
PORTAL = """Err:1 http://mirror.example.org/debian trixie InRelease
  Clearsigned file isn't valid, got 'NOSPLIT' (does the network require authentication?)
Reading package lists...
E: Failed to fetch http://mirror.example.org/debian/dists/trixie/InRelease  Clearsigned file isn't valid, got 'NOSPLIT' (does the network require authentication?)
E: The repository 'http://mirror.example.org/debian trixie InRelease' is no longer signed.
E: Unable to locate package mmdebstrap"""
PORTAL_RELEASE = """Err:4 http://mirror/x ./ Release.gpg
  Signed file isn't valid, got 'NODATA' (does the network require authentication?)
E: OpenPGP signature verification failed: http://mirror/x ./ Release: Signed file isn't valid, got 'NODATA' (does the network require authentication?)
E: Unable to locate package mmdebstrap"""
WRONG_KEY = """Err:1 file:/srv/mirror ./ InRelease
  Sub-process /usr/bin/sqv returned an error code (1), error message is: Missing key FB7E70E1C8E3B951A0625C7E2CA71FCA03C3944C, which is needed to verify signature.
Reading package lists...
W: OpenPGP signature verification failed: file:/srv/mirror ./ InRelease: Sub-process /usr/bin/sqv returned an error code (1), error message is: Missing key FB7E70E1C8E3B951A0625C7E2CA71FCA03C3944C, which is needed to verify signature.
E: The repository 'file:/srv/mirror ./ InRelease' is not signed.
E: Unable to locate package nvidia-driver-cuda"""
MANIPULATED = """W: OpenPGP signature verification failed: file:/srv/mirror ./ InRelease: Sub-process /usr/bin/sqv returned an error code (1), error message is: Verifying signature:            Message has been manipulated
E: The repository 'file:/srv/mirror ./ InRelease' is not signed."""
BADSIG_12 = """W: An error occurred during the signature verification. The repository is not updated and the previous index files will be used. GPG error: https://mirror/x ./ InRelease: The following signatures were invalid: BADSIG A4B469963BF863CC cudatools <cudatools@nvidia.com>
W: Failed to fetch https://mirror/x/./InRelease  The following signatures were invalid: BADSIG A4B469963BF863CC cudatools <cudatools@nvidia.com>
E: Version '1.20.2-1' for 'nvidia-container-toolkit' was not found"""
NO_PUBKEY_22 = """W: GPG error: https://mirror/x  InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY A4B469963BF863CC
E: The repository 'https://mirror/x  InRelease' is not signed."""
HASH_SUM = """E: Failed to fetch file:/srv/mirror/./libcuda1_580_all.deb  Hash Sum mismatch
   Hashes of expected file:
    - Filesize:2962 [weak]
E: Unable to fetch some archives, maybe run apt-get update or try with --fix-missing?"""
NOT_AT_VERSION = """Building dependency tree...
E: Version '1.20.2-1' for 'nvidia-container-toolkit' was not found
atelier: available: nvidia-container-toolkit |   1.21.0-1 | file:/srv/mirror ./ Packages
atelier: available: nvidia-container-toolkit |   1.17.7-1 | file:/srv/mirror ./ Packages"""
FOREIGN_BROKEN_TOO = f"{GONE.rpartition(chr(10))[0]}\n{NOT_AT_VERSION}"
NO_CANDIDATE = """Package nvidia-open is not available, but is referred to by another package.
E: Package 'nvidia-open' has no installation candidate"""
FULL_CACHE = "E: You don't have enough free space in /var/cache/apt/archives/."
FULL_UNPACK = """dpkg: error processing archive /tmp/libcuda1_580_all.deb (--unpack):
 cannot copy extracted data for './usr/lib/libcuda.so' to '/usr/lib/libcuda.so.dpkg-new': failed to write (No space left on device)
E: Sub-process /usr/bin/dpkg returned an error code (1)"""
FULL_LISTS = "E: Write error - write (28: No space left on device)"
UNMET = """The following packages have unmet dependencies:
 nvidia-driver-cuda : Depends: libcuda1 (= 580.178.04-1) but 595.58.03-1 is to be installed
E: Unable to correct problems, you have held broken packages."""
KEY_GONE = "cp: cannot stat '/srv/mirror/key.asc': No such file or directory"
HELPER = """Err:1 https://nvidia.github.io/libnvidia-container/gpgkey
  Could not resolve 'nvidia.github.io'
E: Download Failed"""
DKMS = """Failed command:
env NV_VERBOSE=1 make -j2 modules KERNEL_UNAME=6.12.117+deb13-amd64

Error! Bad return status for module build on kernel: 6.12.117+deb13-amd64 (x86_64)
Consult /var/lib/dkms/nvidia-current-open/550.163.01/build/make.log for more information.

Autoinstall on 6.12.117+deb13-amd64 failed for module(s) nvidia-current-open(10)."""

MEANINGS = {
    "lists locked": (HELD_LISTS, "busy: process 1272 (unattended-upgr) holds its lock"),
    "frontend locked": (HELD_FRONTEND, "busy: process 1272 (python3) holds its lock"),
    "dpkg locked, Debian 13": (HELD_DPKG, "busy: /usr/bin/python3.13 process with pid 1272 holds its lock"),
    "dpkg locked, Debian 12": (HELD_DPKG_12, "busy: pid 1272 holds its lock"),
    "locked for longer than we wait": (HELD_OURS, "busy: apt-get dist-upgrade (process 77) holds its lock"),
    "connection refused": (REFUSED, "cannot fetch http://127.0.0.1:9/x/./InRelease: Could not connect to 127.0.0.1:9"),
    "forbidden": (FORBIDDEN, "cannot fetch http://127.0.0.1:9/x/./Packages: 403  Forbidden"),
    "mirror gone": (GONE, "cannot fetch file:/srv/mirror: File not found - /srv/mirror/./Release"),
    "package gone": (
        GONE_DEB,
        "cannot fetch http://mirror/pool/libnvidia-container1_1.20.2-1_amd64.deb: 404  Not Found",
    ),
    "a portal answers": (
        PORTAL,
        "cannot fetch http://mirror.example.org/debian/dists/trixie/InRelease: Clearsigned file",
    ),
    "a portal answers for the signature": (PORTAL_RELEASE, "cannot fetch http://mirror/x: Signed file isn't valid"),
    "signed with another key": (WRONG_KEY, "refuses the repository file:/srv/mirror: Missing key FB7E70E1C8E3B951A06"),
    "changed on the way": (MANIPULATED, "file:/srv/mirror: Verifying signature: Message has been manipulated"),
    "bad signature, Debian 12": (
        BADSIG_12,
        "refuses the repository https://mirror/x: The following signatures were inv",
    ),
    "unknown key, Ubuntu 22.04": (
        NO_PUBKEY_22,
        "refuses the repository https://mirror/x: The following signatures could",
    ),
    "package of other bytes": (
        HASH_SUM,
        "refuses the repository file:/srv/mirror/./libcuda1_580_all.deb: Hash Sum mis",
    ),
    "not at that version": (
        NOT_AT_VERSION,
        "do not have the package nvidia-container-toolkit at version 1.20.2-1; they have 1.21.0-1, 1.17.7-1",
    ),
    "not at that version, and a foreign archive is broken": (FOREIGN_BROKEN_TOO, "they have 1.21.0-1, 1.17.7-1"),
    "not at that version, and a foreign archive is not signed": (
        f"{MANIPULATED}\n{NOT_AT_VERSION}",
        "they have 1.21.0-1",
    ),
    "no such package": ("E: Unable to locate package nvidia-x", "do not have the package nvidia-x"),
    "no candidate": (NO_CANDIDATE, "do not have the package nvidia-open"),
    "cache full": (FULL_CACHE, "disk is full (/var/cache/apt/archives/)"),
    "full while unpacking": (FULL_UNPACK, "disk is full: the packages were not installed"),
    "full while updating": (FULL_LISTS, "disk is full"),
    "a module does not build": (DKMS, "nvidia-current-open 550.163.01 does not build for kernel 6.12.117+deb13-amd64"),
    "unmet dependencies": (UNMET, "nvidia-driver-cuda : Depends: libcuda1 (= 580.178.04-1) but 595.58.03-1"),
    "key gone from a folder": (KEY_GONE, "cannot fetch /srv/mirror/key.asc: No such file or directory"),
    "key's host unknown": (
        HELPER,
        "cannot fetch https://nvidia.github.io/libnvidia-container/gpgkey: Could not resolve",
    ),
}


@pytest.mark.parametrize(("output", "problem"), MEANINGS.values(), ids=MEANINGS)
def test_apt_s_trouble_becomes_one_message_with_a_remedy(output: str, problem: str) -> None:
    finding = apt.explain(output.splitlines())
    assert finding is not None and problem in finding.problem
    assert "\n" not in finding.problem and "run the same command again" in finding.remedy


def test_other_output_is_not_explained_away() -> None:
    assert apt.explain(["Setting up nvidia-kernel-open-dkms ...", "Error! Something else"]) is None


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        (["curl"], []),
        (["curl=8"], []),
        (["curl=9"], ["curl=9"]),
        (["wget", "curl"], ["wget"]),
        (["wget=1"], ["wget=1"]),
        ([], []),
    ],
)
def test_a_package_is_missing_that_is_not_there_as_wanted(wanted: list[str], missing: list[str]) -> None:
    assert apt.missing(wanted, {"curl": "8"}) == missing


SCRIPTS = {
    "install": apt.install_script(["a=1:2~3", "b"]),
    "remove": apt.remove_script(["a", "b"]),
    "hold": apt.hold_script(["a"]),
    "finish": apt.finish_script(),
    "fetch": apt.fetch_script("https://example.invalid/a key", "/run/x"),
    "fetch a file": apt.fetch_script("file:///a key", "/run/x"),
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_every_script_is_shell(script: str) -> None:
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)


def test_only_packages_at_a_version_may_be_downgraded() -> None:
    assert "--allow-downgrades" in apt.install_script(["a=1"])
    assert "--allow-downgrades" not in apt.install_script(["a"])
