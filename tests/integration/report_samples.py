"""Reports as a person may get them: every check of the catalogue, long texts, images, earlier runs."""

import math
from pathlib import Path

from PIL import Image

from atelier.checks import CATALOGUE
from atelier.history import PastReport
from atelier.report import AccessMatrix, AccessRow, CheckResult, Metric, Report, ReportImage, Step, Verdict, judge
from atelier.report.model import NOT_CHOSEN

LONG = (
    "one image, as success in the finished history; no node that matters came from the cache; a file in the declared "
    "directory; newer than the request, by the host's clock; equal to what the service handed over; owned by the "
    "service user"
)
PLACE = "/srv/atelier/outputs/comfyui/verify/eb5b99b7b3af4832b0ba51d691a19191_00001_.png"
STEPS = [
    Step(expected="one image, as success in the finished history", observed="1 images"),
    Step(expected="no node that matters came from the cache", observed="nothing wrong found"),
    Step(expected="a file in the declared directory", observed=PLACE),
    Step(expected="newer than the request, by the host's clock", observed="+13.4 s"),
    Step(expected="equal to what the service handed over", observed="11236 and 11236 bytes"),
]
RED = {
    "containers.running": (
        "forge-turbo running, healthy, restarted with the host",
        "exited with 137 since 2026-11-22T08:41:10Z, killed for memory: limit 24 GiB",
    ),
    "storage.outputs": ("forge: outputs writable, weights read-only", "no container forge-turbo to look from"),
    "secrets.leaks": (
        "no other place holds a secret",
        "/var/lib/docker/containers/0f3a9c5be1d27c7f3a8e0b4d6f9a1c2e5b8d7f6a4c3e2d1b0a9f8e7d6c5b4a39/config.v2.json "
        "holds forge's password; /home/operator/.bash_history holds the token of ComfyUI",
    ),
}
VERSIONS = {
    "system": "Debian GNU/Linux 13 (trixie)",
    "kernel": "6.12.57+deb13-amd64",
    "docker": "26.1.5+dfsg1",
    "compose": "2.26.1-4",
    "driver": "580.105.08, open kernel modules",
    "atelier": "0.1.0",
    "image comfyui": "atelier/comfyui:02055ebe9831",
    "image forge": "atelier/forge:fa7ca855b403",
    "checkpoint": "sd_xl_turbo_1.0_fp16.safetensors",
    "ComfyUI": "0.33.0",
}
MEASURES = {
    "generation.comfyui.checkpoint": ("comfyui.checkpoint.seconds", 16.62, "s"),
    "generation.forge.txt2img": ("forge.txt2img.seconds", 5.13, "s"),
    "generation.comfyui.smoke": ("comfyui.checkpoint.memory", 12844.0, "MB"),
}


def _check(number: int, verdict: str) -> CheckResult:
    check = CATALOGUE[number]
    steps = STEPS if check.group in ("generation", "survival") and verdict == "passed" else []
    expected, observed = (
        ("; ".join(text) for text in zip(*((s.expected, s.observed) for s in steps), strict=True))
        if (steps)
        else ("nothing that the settings do not name", "nothing wrong found")
    )
    if verdict in ("failed", "warning"):
        expected, observed = RED.get(check.id, (LONG, f"{PLACE} is 0.4 s older than the request; {LONG}"))
    if verdict == "skipped":
        expected, observed = "", "a generation is at work; it would have been lost"
    hint = check.hint if verdict != "passed" else ""
    return CheckResult(
        id=check.id,
        group=check.group,
        title=check.title,
        verdict=verdict,
        seconds=0.05 + number * 0.31,
        expected=expected,
        observed=observed,
        hint=hint,
        requirement=check.requirement,
        required=True,
        steps=steps,
    )


def report(kind: Verdict, folder: Path) -> Report:
    """A report that ended so; its images lie in `folder`."""
    red = {
        "failed": dict.fromkeys(RED, "failed") | {"access.comfyui.browser": "warning"},
        "incomplete": {},
        "passed": {},
    }
    skipped = {"survival.comfyui.restart", "survival.forge.restart"} if kind == "incomplete" else set()
    checks = [
        _check(number, "skipped" if check.id in skipped else red[kind].get(check.id, "passed"))
        for number, check in enumerate(CATALOGUE)
    ]
    if kind == "incomplete":
        checks = [check if check.group != "access" else _not_chosen(check) for check in checks]
    sources, profile = ("double", "gpu-simulated") if kind != "failed" else ("upstream", "gpu")
    return Report(
        host="gpu1.studio.example",
        started="2026-11-22T08:55:14Z",
        finished="2026-11-22T08:57:10Z",
        verdict=judge(checks, {check.id for check in checks if check.required}),
        doubles=sources == "double",
        checks=checks,
        versions={**VERSIONS, "sources": sources, "profile": profile},
        images=[_image(number, folder) for number in range(5)],
        matrices=[AccessMatrix(check="access.forge.matrix", columns=["stranger"], rows=[_row()])],
        metrics=[Metric(check=id, name=name, value=value, unit=unit) for id, (name, value, unit) in MEASURES.items()],
        command="make verify HOST=operator@gpu1.studio.example",
    )


def _row() -> AccessRow:
    return AccessRow(request="GET /config", cells="401 401/gateway")


def _not_chosen(check: CheckResult) -> CheckResult:
    return check.model_copy(update={"verdict": "skipped", "observed": NOT_CHOSEN, "required": False, "steps": []})


def _image(number: int, folder: Path) -> ReportImage:
    """The first is as small as the smoke test's, the others are as models make them."""
    side = 64 if number == 0 else 1024
    ramp = Image.linear_gradient("L").resize((side, side))
    turned = ramp.rotate(90 * number).resize((side, side))
    picture = Image.merge("RGB", (ramp, turned, Image.radial_gradient("L").resize((side, side))))
    name = f"sample-{number}.png"
    picture.save(folder / name)
    check = "generation.comfyui.checkpoint" if number % 2 else "generation.forge.txt2img"
    return ReportImage(check=check, file=name, width=side, height=side, sha256="0" * 64)


def earlier(now: Report) -> list[PastReport]:
    """Runs of the same kind before it: something was red, something had another version, a check is gone."""
    runs = []
    for number in range(8):
        document = now.model_dump(by_alias=True)
        document["name"] = f"2026111{number}T080000Z"
        document["finished"] = f"2026-11-1{number}T08:00:00Z"
        document["verdict"] = "passed"
        for check in document["checks"]:
            check["verdict"] = "passed"
            if check["id"] == "secrets.leaks" and number > 5:
                check["verdict"] = "failed"
            if check["id"] == "host.closed" and number == 7:
                check["verdict"] = "failed"
        document["checks"].append({"id": "host.old", "title": "An old check that nobody needs", "verdict": "passed"})
        document["versions"]["kernel"] = "6.12.48+deb13-amd64"
        for metric in document["metrics"]:
            metric["value"] *= 0.6 + 0.08 * math.sin(number * 2)
        runs.append(PastReport.model_validate(document))
    return runs
