"""TEST DOUBLE, never deploy: Forge's samplers and schedulers, and how a wrong name becomes another one."""

from __future__ import annotations

SAMPLERS: dict[str, str | None] = {
    "DPM++ 2M": "karras", "DPM++ SDE": "karras", "DPM++ 2M SDE": "exponential", "DPM++ 2M SDE Heun": "exponential",
    "DPM++ 2S a": "karras", "DPM++ 3M SDE": "exponential", "Euler a": None, "Euler": None, "LMS": None, "Heun": None,
    "DPM2": "karras", "DPM2 a": "karras", "DPM fast": None, "DPM adaptive": None, "Restart": "karras", "HeunPP2": None,
    "IPNDM": None, "IPNDM_V": None, "DEIS": None, "DDIM": None, "DDIM CFG++": None, "PLMS": None, "UniPC": None,
    "LCM": None, "DDPM": None,
}  # fmt: skip
SCHEDULERS = {
    "automatic": "Automatic", "uniform": "Uniform", "karras": "Karras", "exponential": "Exponential",
    "polyexponential": "Polyexponential", "sgm_uniform": "SGM Uniform", "kl_optimal": "KL Optimal",
    "align_your_steps": "Align Your Steps", "simple": "Simple", "normal": "Normal", "ddim": "DDIM", "beta": "Beta",
    "turbo": "Turbo", "align_your_steps_GITS": "Align Your Steps GITS", "align_your_steps_11": "Align Your Steps 11",
    "align_your_steps_32": "Align Your Steps 32",
}  # fmt: skip
DEFAULT_SAMPLER = "DPM++ 2M"


def choose(sampler: str | None, scheduler: str | None) -> tuple[str, str]:
    """WEAKNESS: an unknown sampler silently is the first one, an unknown scheduler the sampler's own."""
    name = sampler or DEFAULT_SAMPLER
    label = SCHEDULERS.get(scheduler or "") or (scheduler if scheduler in SCHEDULERS.values() else None)
    for known in SCHEDULERS.values():
        if name.endswith(" " + known):
            name, label = name.removesuffix(" " + known), known
    if name not in SAMPLERS:
        name = DEFAULT_SAMPLER
    if label in (None, "Automatic"):
        label = SCHEDULERS[SAMPLERS[name] or "automatic"]
    return name, str(label)
