"""Group gpu: the applications see exactly the GPUs that they were given."""

import json

import pytest

from atelier.gpu import toolkit, torch_probe, upkeep
from atelier.gpu.devices import cdi_device

LIST = "nvidia-smi --query-gpu=uuid --format=csv,noheader"


@pytest.mark.check("gpu.containers")
def test_each_application_sees_its_gpu_and_no_other(stack, check):
    for service, container in stack.inspect().items():
        uuid = stack.deployed["gpus"].get(service)
        requests = container["HostConfig"]["DeviceRequests"] or []
        asked = sorted(device for request in requests for device in request["DeviceIDs"] or [])
        expected = [cdi_device(uuid)] if uuid else []
        check(f"{service} asks Docker for {expected or 'no GPU'}", ", ".join(asked) or "none", asked == expected)
        if uuid:
            answer = stack.ssh.run(f"timeout 30 docker exec {stack.containers[service]} {LIST}")
            seen = " ".join((answer.stdout or answer.stderr).split())
            check(f"{service} sees {uuid} and no other", seen or "nothing", seen == uuid and answer.status == 0)


@pytest.mark.check("gpu.torch")
def test_pytorch_computes_on_the_gpu(stack, check):
    for service, container in stack.applications.items():
        answer = stack.ssh.run(
            f"timeout 120 docker exec -i {container} python -", stdin=torch_probe.SCRIPT.encode(), timeout=150
        )
        last = (answer.stdout.strip().splitlines() or [""])[-1]
        check(f"{service}: PyTorch answers", last or answer.stderr[-300:], answer.status == 0 and last.startswith("{"))
        check.none(
            f"{service}: PyTorch sees one GPU, is compiled for it, and multiplies right",
            torch_probe.problems(json.loads(last)),
        )


@pytest.mark.check("gpu.host")
def test_the_host_stays_a_gpu_host(stack, check):
    def lines(script: str) -> list[str]:
        return stack.ssh.run(script, timeout=60).stdout.splitlines()

    def packages(names: list[str]) -> dict[str, str]:
        rows = lines(f"dpkg-query -W -f '${{db:Status-Status}} ${{Package}} ${{Version}}\\n' {' '.join(names)}")
        return {row.split()[1]: row.split()[2] for row in rows if row.startswith("installed ")}

    devices, known = {cdi_device(uuid) for uuid in stack.deployed["gpus"].values()}, set(lines(upkeep.DEVICES))
    check.none("CDI knows the GPU of every service", [f"{name} is missing" for name in sorted(devices - known)])
    daemon = json.loads("\n".join(lines("cat /etc/docker/daemon.json")) or "{}")
    cdi = (daemon.get("features") or {}).get("cdi")
    check("daemon.json switches CDI on", f"features.cdi is {cdi}", cdi is True)
    for what, probe in (
        ("the CDI specification is made at every boot", upkeep.ENABLED),
        ("Docker starts after it", upkeep.BOOT_FILES_KNOWN),
    ):
        check(what, "so" if lines(probe) else "not so", bool(lines(probe)))
    installed = packages(list(toolkit.PACKAGES))
    versions = ", ".join(f"{name} {version}" for name, version in installed.items()) or "none"
    check("the container toolkit is whole, of one version and safe", versions, toolkit.is_safe(installed))
    manifest = json.loads("\n".join(lines(f"cat {stack.settings.state_dir()}/manifest.json")))
    free = set(packages(manifest["created"]["holds"])) - set(lines("apt-mark showhold"))
    check.none("apt holds driver and toolkit", [f"{name} is not held" for name in sorted(free)])
