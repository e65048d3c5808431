"""Writes and signs the two apt repositories, laid out as NVIDIA's are (flat)."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import tempfile
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from sandbox import tools
from sandbox.simulated_gpu.packages import Package, everything

KEY = "key.asc"
FINGERPRINT = "fingerprint"


def ensure(folder: Path) -> Path:
    """The folder with both repositories and their key, under a name that is a hash of all inputs; written when missing."""
    made = folder / content_hash()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".") as part:
                _write(Path(part) / "made")
                (Path(part) / "made").rename(made)
    return made


def content_hash() -> str:
    """Of every package and of the code that writes them."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(repr(everything()).encode())
    return digest.hexdigest()[:12]


def _write(root: Path) -> None:
    with tempfile.TemporaryDirectory() as home:  # the secret key goes with it
        try:
            _run(
                "gpg",
                f"--homedir={home}",
                "--batch",
                "--passphrase=",
                "--quick-gen-key",
                "Simulated GPU",
                "ed25519",
                "sign",
            )
            listed = _run("gpg", f"--homedir={home}", "--with-colons", "--list-keys").stdout.splitlines()
            for name, packages in everything().items():
                _write_repository(root / name, packages)
                for way, file in ((["--clearsign"], "InRelease"), (["--armor", "--detach-sign"], "Release.gpg")):
                    _run(
                        "gpg",
                        f"--homedir={home}",
                        "--batch",
                        *way,
                        f"--output={root / name / file}",
                        root / name / "Release",
                    )
            _run("gpg", f"--homedir={home}", "--armor", "--export", f"--output={root / KEY}")
        finally:
            subprocess.run(["gpgconf", f"--homedir={home}", "--kill", "all"], capture_output=True)
    (root / FINGERPRINT).write_text(next(line.split(":")[9] for line in listed if line.startswith("fpr:")))
    for path in [root, *root.rglob("*")]:  # apt reads them as a user of its own
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write_repository(folder: Path, packages: Iterable[Package]) -> None:
    folder.mkdir(parents=True)
    index = ""
    for package in packages:
        deb = _build(folder, package)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        index += f"{package.control()}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n\n"
    (folder / "Packages").write_text(index)
    digest = hashlib.sha256(index.encode()).hexdigest()
    now = datetime.now(timezone.utc).strftime("%a, %d %b %Y %H:%M:%S UTC")
    (folder / "Release").write_text(
        f"Origin: NVIDIA\nLabel: NVIDIA (simulated)\nArchitectures: all amd64 arm64\nDate: {now}\n"
        f"SHA256:\n {digest} {len(index.encode())} Packages\n"
    )


def _build(folder: Path, package: Package) -> Path:
    deb = folder / f"{package.name}_{package.version}_all.deb"
    with tempfile.TemporaryDirectory() as part:
        texts = {
            "DEBIAN/control": package.control(),
            **{f"DEBIAN/{name}": text for name, text in package.scripts.items()},
        }
        for name, content in {**package.files, **{name: text.encode() for name, text in texts.items()}}.items():
            path = Path(part) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            executable = path.parent.name in ("bin", "sbin") or path.name in package.scripts
            path.chmod(0o755 if executable else 0o644)
        for parent in [Path(part), *(path for path in Path(part).rglob("*") if path.is_dir())]:
            parent.chmod(0o755)
        _run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", part, deb)
    return deb


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Raises tools.UnavailableError with what the tool said."""
    try:
        done = subprocess.run(command, env=tools.environment() | {"LC_ALL": "C.UTF-8"}, capture_output=True, text=True)
    except FileNotFoundError:
        raise tools.UnavailableError(
            f"The simulated GPU's packages need {command[0]} on this computer: install it."
        ) from None
    if done.returncode:
        raise tools.UnavailableError(f"{command[0]} could not make the simulated GPU's packages: {done.stderr.strip()}")
    return done
