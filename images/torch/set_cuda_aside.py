"""Make torchvision and torchaudio importable beside a torch without CUDA (variant cpu only).

The package index offers both only as builds whose compiled operators are linked against CUDA libraries. Those libraries
are set aside, which both packages allow, and the operators whose shapes torchvision registers at import are declared.
Everything written in Python works; a compiled operator (nms, roi_align, ...) raises instead of loading the wrong library.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

DECLARATIONS = """

_declared = torch.library.Library("torchvision", "DEF")
_declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

site_packages = Path(sysconfig.get_path("purelib"))
for library in [*site_packages.glob("torchvision/*.so"), *site_packages.glob("torchaudio/lib/*.so")]:
    library.unlink()
with (site_packages / "torchvision" / "extension.py").open("a") as extension:
    extension.write(DECLARATIONS)
