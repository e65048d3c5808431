"""Group gpu: the applications see exactly the GPUs that they were given."""

import json

import pytest

from atelier.gpu import torch_probe
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
