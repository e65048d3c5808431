"""Group gpu: the applications see exactly the GPUs that they were given."""

import pytest

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
