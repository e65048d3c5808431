"""The GPU, from the driver to PyTorch."""

from atelier.checks.check import REDEPLOY, Check

CHECKS: tuple[Check, ...] = (
    Check(
        "gpu.containers",
        "Each application sees the GPU it was given, and no other",
        "GPUs by UUID through CDI, also after a daemon-reload (16, 18)",
        "see `nvidia-ctk cdi list` and `journalctl -u docker` on the host, and `make doctor`; then `make deploy`",
        profile="gpu",
    ),
    Check(
        "gpu.host",
        "The host gives its GPUs to containers after every boot, and no upgrade takes the driver away",
        "containers keep their GPU through upgrades, reboots and daemon-reload (17, 18)",
        REDEPLOY,
        profile="gpu",
    ),
    Check(
        "gpu.torch",
        "PyTorch in each application computes on its GPU",
        "images whose PyTorch fits driver and card (10, 16)",
        "see `make plan` for the PyTorch that fits, and `make doctor`",
        profile="cuda",
    ),
)
