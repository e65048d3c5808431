"""Group gpu: cards and driver are well, and the applications see exactly the GPUs that they were given."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from atelier.errors import AtelierError, Finding
from atelier.gpu import health, torch_probe, upkeep
from atelier.gpu.assignment import ALL
from atelier.gpu.devices import cdi_device
from atelier.ssh import Completed

LIST = "nvidia-smi --query-gpu=uuid --format=csv,noheader"
MISSING = r"""
for spec in /etc/cdi/*.yaml /var/run/cdi/*.yaml; do
  [ -e "$spec" ] && sed -nE 's/^ *(- )?(hostPath|path): *"?([^"]*)"?$/\3/p' "$spec"
done | sort -u | while read -r path; do [ -e "$path" ] || echo "$path"; done
"""
"""Prints the files and device nodes that CDI's lists name and the host does not have."""


@pytest.fixture(scope="module")
def seen(stack) -> health.Seen:
    """Cards, driver and kernel log, asked for once: nvidia-smi is slow where persistence mode is off."""
    return health.parse(stack.ssh.run(health.SCRIPT, timeout=60, check=True).stdout)


@pytest.fixture
def wanted(stack) -> set[str]:
    """The UUIDs that services were given."""
    return set(stack.deployed["gpus"].values())


@pytest.mark.check("gpu.driver")
def test_the_driver_runs_as_it_is_installed(seen, wanted, check):
    check.free_of(
        "the loaded modules are those installed and drive every card in use", health.driver_faults(seen, wanted)
    )
    running = f"driver {seen.loaded.version or 'of the machine around'}, {seen.loaded.flavour or 'unknown'} modules"
    check("nvidia-smi lists the cards", f"{running}: {', '.join(card.named() for card in seen.cards)}", True)
    check.warn_of("persistence mode is on", health.driver_warnings(seen, wanted))


@pytest.mark.check("gpu.health")
def test_no_card_in_use_reports_errors(seen, wanted, check):
    log = "the log of the kernel is its host's" if seen.kernel == "container" else "no Xid since the driver was loaded"
    check.free_of(f"no errors, bad memory, or heat; {log}", health.health_faults(seen, wanted))
    check.warn_of("nothing else worth a look", health.health_warnings(seen, wanted))


@pytest.mark.check("gpu.cdi")
def test_cdi_lists_the_cards_that_are_there(stack, seen, wanted, check):
    script = f"{upkeep.DEVICES}; echo ::; {MISSING}"
    known, _, missing = stack.output(script).partition("::\n")
    cards = () if ALL in wanted else seen.cards
    devices = known.split()
    needed = [
        Finding(f"CDI does not know {cdi_device(uuid)}, which a service uses", "")
        for uuid in sorted(wanted)
        if cdi_device(uuid) not in devices
    ]
    found = health.cdi_faults(devices, cards, missing.split()) or needed
    check.free_of(f"CDI's {len(devices)} devices are the host's cards, and their files exist", found)


def sees_its_own(stack, check, service: str) -> None:
    """Record that the application of a service sees the GPU it was given and no other."""
    uuid = stack.deployed["gpus"].get(service)
    if uuid:
        # nvidia-smi ends with 255 where a container has lost its devices, and 255 is what ssh says of itself.
        ask = f"timeout 30 docker exec {stack.containers[service]} {LIST}; status=$?; [ $status != 255 ] || status=1; exit $status"
        answer = stack.ssh.run(ask, timeout=60)
        said = " ".join((answer.stdout or answer.stderr).split())
        if answer.status == 124:
            said = "time-out: nvidia-smi did not answer within 30 s"
        told = f"{service} sees {said or 'nothing'}"
        right = said == uuid or (uuid == ALL and said.startswith("GPU-"))
        check(f"{service} sees {uuid} and no other", told, right and answer.status == 0)


@pytest.mark.check("gpu.containers")
def test_each_application_sees_its_gpu_and_no_other(stack, check):
    for service, asked in asked_for(stack).items():
        uuid = stack.deployed["gpus"].get(service)
        expected = [cdi_device(uuid)] if uuid else []
        told = f"{service} asks for {', '.join(asked) or 'no GPU'}"
        check(f"{service} asks Docker for {', '.join(expected) or 'no GPU'}", told, asked == expected)
        sees_its_own(stack, check, service)


def asked_for(stack) -> dict[str, list[str]]:
    """The CDI devices that each container was started with, by service."""
    return {
        service: sorted(
            device
            for request in container["HostConfig"]["DeviceRequests"] or []
            if request["Driver"] == "cdi"
            for device in request["DeviceIDs"] or []
        )
        for service, container in stack.inspect().items()
    }


@pytest.mark.check("gpu.torch")
def test_pytorch_computes_on_the_gpu(stack, seen, wanted, check):
    if others := in_the_way(stack, seen, wanted):
        pytest.skip(f"{'; '.join(others)}: run again when it is idle")
    with ThreadPoolExecutor() as pool:  # each takes seconds to import PyTorch
        answers = list(pool.map(partial(ask_torch, stack), stack.applications.values()))
    for service, answer in zip(stack.applications, answers, strict=True):
        last = (answer.stdout.strip().splitlines() or [""])[-1]
        said = last or answer.stderr.strip()[-300:] or ("time-out" if answer.status == 124 else "nothing")
        check(f"{service}: PyTorch answers", said, answer.status == 0 and last.startswith("{"))
        told = json.loads(last)
        if "full" in told:
            pytest.skip(f"{service}: {told['full']}: run again when the card is idle")
        check.none(
            f"{service}: PyTorch sees one GPU, is compiled for it, and multiplies right", torch_probe.problems(told)
        )


def in_the_way(stack, seen: health.Seen, wanted: set[str]) -> list[str]:
    """Why PyTorch may not be tried now: it takes memory that somebody's image may need."""
    try:
        at_work = stack.at_work(stack.applications)
    except AtelierError as error:
        at_work = [f"whether images are made is unknown ({error.message})"]
    return at_work + health.too_full(seen, wanted, torch_probe.NEEDED_MIB)


def ask_torch(stack, container: str) -> Completed:
    """What the program says in a container."""
    command = f"timeout 120 docker exec -i {container} python -"
    return stack.ssh.run(command, stdin=torch_probe.SCRIPT.encode(), timeout=150)


@pytest.mark.check("gpu.host")
def test_the_host_stays_a_gpu_host(stack, check):
    printed = stack.output(upkeep.probe_script(f"{stack.settings.state_dir()}/manifest.json"))
    check.free_of(
        "CDI is on, its list is made before Docker starts, the container toolkit is safe, apt holds the driver",
        upkeep.faults(printed),
    )


@pytest.mark.check("gpu.reload")
def test_a_daemon_reload_takes_no_gpu_away(stack, check):
    # Asked first: what has its GPU in another way would lose it here, in the middle of somebody's work.
    for service, asked in asked_for(stack).items():
        if service in stack.deployed["gpus"]:
            told = f"{service} asks for {', '.join(asked) or 'no CDI device'}"
            check(f"{service} has its GPU through CDI", told, bool(asked))
    reloaded = stack.ssh.run("systemctl daemon-reload", timeout=90)
    check("systemd reads its units again", reloaded.stderr.strip() or "done", reloaded.status == 0)
    for service in stack.applications:
        sees_its_own(stack, check, service)
