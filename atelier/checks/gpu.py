"""The GPU, from the driver to PyTorch."""

from atelier.checks.check import REDEPLOY, Check

CHECKS: tuple[Check, ...] = (
    Check(
        "gpu.driver",
        "The driver runs as it is installed, and drives every card that a service uses",
        "no driver is replaced under a running kernel",
        "`make doctor` names the cause",
        profile="gpu",
    ),
    Check(
        "gpu.health",
        "Cards in use: no errors, bad memory or overheating; no driver errors since it was loaded",
        "a failing card is noticed before its images are",
        "`make doctor` says what an error means and what to do",
        profile="gpu",
        depends=("gpu.driver",),
    ),
    Check(
        "gpu.cdi",
        "CDI lists exactly the cards that are there, and files that exist",
        "GPUs by UUID through CDI",
        "systemctl restart nvidia-cdi-refresh on the host, or `make deploy`",
        profile="gpu",
        depends=("gpu.driver",),
    ),
    Check(
        "gpu.containers",
        "Each application sees the GPU it was given, and no other",
        "GPUs by UUID through CDI",
        "see `nvidia-ctk cdi list` and `journalctl -u docker` on the host, and `make doctor`; then `make deploy`",
        profile="gpu",
        depends=("gpu.driver",),
    ),
    Check(
        "gpu.host",
        "The host gives its GPUs to containers after every boot, and no upgrade takes the driver away",
        "containers keep their GPU through upgrades, reboots and daemon-reload",
        REDEPLOY,
        profile="gpu",
    ),
    Check(
        "gpu.torch",
        "PyTorch in each application computes on its GPU",
        "images whose PyTorch fits driver and card",
        "see `make plan` for the PyTorch that fits, and `make doctor`",
        profile="cuda",
        # Where it would take memory from somebody's image. On a full card applications compute, and generation proves it.
        optional=True,
        depends=("gpu.driver", "gpu.containers"),
    ),
    Check(
        "gpu.reload",
        "Applications keep their GPU when systemd reads its units again",
        "a `systemctl daemon-reload`, which every package may cause, takes no GPU away",
        "the container has its GPU in another way than through CDI: run `make deploy`, which makes it anew",
        profile="gpu",
        quick=False,
        depends=("gpu.driver", "gpu.containers"),
    ),
)
