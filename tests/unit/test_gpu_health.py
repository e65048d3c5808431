"""What `nvidia-smi -q`, the module's files and the kernel's log say of a host's GPUs, and what follows.

The texts have the form and the values that public reports show of these cards and driver versions, cut to what is read.
"""

import re

import pytest

from atelier.gpu import health
from atelier.gpu.facts import KernelModule
from atelier.gpu.health import Seen

HEAD = """
==============NVSMI LOG==============

Timestamp                                 : Thu Sep 26 14:13:55 2024
Driver Version                            : 580.95.05
CUDA Version                              : 13.0

Attached GPUs                             : 1
"""

H100 = """GPU 00000000:DB:00.0
    Product Name                          : NVIDIA H100 80GB HBM3
    Product Architecture                  : Hopper
    Persistence Mode                      : Enabled
    MIG Mode
        Current                           : Disabled
        Pending                           : Disabled
    GPU UUID                              : GPU-f7b02328
    Platform Info
        Chassis Serial Number             : 
    GPU Reset Status
        Reset Required                    : No
        Drain and Reset Recommended       : No
    PCI
        Bus Id                            : 00000000:DB:00.0
    Clocks Event Reasons
        Idle                              : Active
        HW Slowdown                       : Not Active
            HW Thermal Slowdown           : Not Active
            HW Power Brake Slowdown       : Not Active
        SW Thermal Slowdown               : Not Active
    FB Memory Usage
        Total                             : 81559 MiB
        Reserved                          : 450 MiB
        Used                              : 1 MiB
        Free                              : 81110 MiB
    ECC Mode
        Current                           : Enabled
        Pending                           : Enabled
    ECC Errors
        Volatile
            SRAM Correctable              : 0
            SRAM Uncorrectable Parity     : 0
            SRAM Uncorrectable SEC-DED    : 0
            DRAM Correctable              : 0
            DRAM Uncorrectable            : 0
        Aggregate
            SRAM Correctable              : 0
            SRAM Uncorrectable Parity     : 0
            DRAM Uncorrectable            : 0
            SRAM Threshold Exceeded       : No
    Retired Pages
        Single Bit ECC                    : N/A
        Double Bit ECC                    : N/A
        Pending Page Blacklist            : N/A
    Remapped Rows
        Correctable Error                 : 0
        Uncorrectable Error               : 0
        Pending                           : No
        Remapping Failure Occurred        : No
        Bank Remap Availability Histogram
            Max                           : 2560 bank(s)
            None                          : 0 bank(s)
    Temperature
        GPU Current Temp                  : 34 C
        GPU T.Limit Temp                  : 53 C
        GPU Shutdown T.Limit Temp         : -8 C
        GPU Slowdown T.Limit Temp         : -2 C
        GPU Max Operating T.Limit Temp    : 0 C
        Memory Current Temp               : 40 C
        Memory Max Operating T.Limit Temp : 0 C
    Processes                             : None
"""

RTX_5090 = """GPU 00000000:02:00.0
    Product Name                          : NVIDIA GeForce RTX 5090
    Persistence Mode                      : Enabled
    MIG Mode
        Current                           : N/A
    GPU UUID                              : GPU-ea2294a3
    GPU Reset Status
        Reset Required                    : Requested functionality has been deprecated
        Drain and Reset Recommended       : Requested functionality has been deprecated
    GPU Recovery Action                   : None
    Clocks Event Reasons
        SW Power Cap                      : Active
        HW Slowdown                       : Not Active
            HW Thermal Slowdown           : Not Active
            HW Power Brake Slowdown       : Not Active
    FB Memory Usage
        Total                             : 32607 MiB
        Free                              : 32119 MiB
    ECC Mode
        Current                           : N/A
        Pending                           : N/A
    ECC Errors
        Volatile
            DRAM Uncorrectable            : N/A
        Aggregate
            SRAM Threshold Exceeded       : N/A
    Retired Pages
        Pending Page Blacklist            : N/A
    Remapped Rows                         : N/A
    Temperature
        GPU Current Temp                  : 25 C
        GPU T.Limit Temp                  : 65 C
        GPU Slowdown T.Limit Temp         : -2 C
        GPU Max Operating T.Limit Temp    : 0 C
        Memory Current Temp               : N/A
        Memory Max Operating T.Limit Temp : N/A
"""

RTX_3090 = """GPU 00000000:08:00.0
    Product Name                          : NVIDIA GeForce RTX 3090
    Persistence Mode                      : Disabled
    GPU UUID                              : GPU-9ebb44d4
    Clocks Throttle Reasons
        HW Slowdown                       : Not Active
            HW Thermal Slowdown           : Not Active
            HW Power Brake Slowdown       : Not Active
    FB Memory Usage
        Total                             : 24265 MiB
        Used                              : 1256 MiB
        Free                              : 23009 MiB
    ECC Errors
        Volatile
            SRAM Correctable              : N/A
            DRAM Uncorrectable            : N/A
    Retired Pages
        Pending Page Blacklist            : N/A
    Remapped Rows                         : N/A
    Temperature
        GPU Current Temp                  : 44 C
        GPU Shutdown Temp                 : 98 C
        GPU Slowdown Temp                 : 95 C
        GPU Max Operating Temp            : 93 C
        GPU Target Temperature            : 83 C
        Memory Current Temp               : N/A
        Memory Max Operating Temp         : N/A
"""

P40 = """GPU 00000000:84:00.0
    Product Name                          : Tesla P40
    Persistence Mode                      : Enabled
    GPU UUID                              : GPU-0d9f2a11
    FB Memory Usage
        Total                             : 23040 MiB
        Free                              : 22900 MiB
    ECC Errors
        Volatile
            Single Bit            
                Device Memory             : 0
                Register File             : 0
                L1 Cache                  : N/A
                Total                     : 0
            Double Bit            
                Device Memory             : 0
                Register File             : 0
                L1 Cache                  : N/A
                Total                     : 0
        Aggregate
            Double Bit            
                Device Memory             : 4
                Total                     : 4
    Retired Pages
        Single Bit ECC                    : 0
        Double Bit ECC                    : 1
        Pending Page Blacklist            : No
    Remapped Rows                         : N/A
    Temperature
        GPU Current Temp                  : 38 C
        GPU Shutdown Temp                 : 95 C
        GPU Slowdown Temp                 : 92 C
        GPU Max Operating Temp            : N/A
        Memory Current Temp               : N/A
        Memory Max Operating Temp         : N/A
"""
CARDS = {"H100": H100, "RTX 5090": RTX_5090, "RTX 3090": RTX_3090, "P40": P40}


def one_card(text: str) -> health.Card:
    (card,) = health.parse_cards((HEAD + text).splitlines())
    return card


def changed(text: str, line: str, value: str, nth: int = 0) -> str:
    """The text with another value in the nth line of that name."""
    lines = text.splitlines()
    number = [number for number, each in enumerate(lines) if each.strip().startswith(line)][nth]
    lines[number] = f"{lines[number].partition(' : ')[0]} : {value}"
    return "\n".join(lines)


@pytest.mark.parametrize("text", CARDS.values(), ids=CARDS)
def test_a_well_card_has_no_fault(text: str) -> None:
    assert health.card_faults(one_card(text)) == []
    assert health.card_warnings(one_card(text)) == []


def test_fields_are_found_below_their_headings_whatever_stands_between() -> None:
    card = one_card(H100)
    assert (card.address, card.uuid) == ("0000:db:00.0", "GPU-f7b02328")
    assert card.fields["Clocks Event Reasons/HW Slowdown"] == "Not Active"
    assert card.fields["Clocks Event Reasons/HW Slowdown/HW Thermal Slowdown"] == "Not Active"
    assert card.fields["Remapped Rows/Bank Remap Availability Histogram/Max"] == "2560 bank(s)"
    assert one_card(P40).fields["ECC Errors/Volatile/Double Bit/Total"] == "0"


FAULTS = {
    "uncorrected errors in memory": (
        changed(H100, "DRAM Uncorrectable", "2"),
        r"H100 80GB HBM3 GPU-f7b02328: 2 uncorrected ECC errors since",
        "replace the card if it recurs",
    ),
    "and in the chip, added": (
        changed(changed(H100, "DRAM Uncorrectable", "2"), "SRAM Uncorrectable SEC-DED", "1"),
        "3 uncorrected",
        "suspect",
    ),
    "double bit errors before Turing": (changed(P40, "Total", "1", nth=2), "1 uncorrected ECC", "suspect"),
    "a page to be retired": (
        changed(P40, "Pending Page Blacklist", "Yes"),
        "Retired Pages/Pending Page Blacklist is Yes",
        "restart the host",
    ),
    "a row to be remapped": (
        changed(H100, "Pending", "Yes", nth=3),
        "Remapped Rows/Pending is Yes",
        "restart the host",
    ),
    "no row left": (
        changed(H100, "Remapping Failure Occurred", "Yes"),
        "Remapped Rows/Remapping Failure Occurred is Yes",
        "have it replaced",
    ),
    "too many errors in the chip": (
        changed(H100, "SRAM Threshold Exceeded", "Yes"),
        "SRAM Threshold Exceeded is Yes",
        "have it replaced",
    ),
    "a reset is due, as older drivers say it": (changed(H100, "Reset Required", "Yes"), "must be reset", "restart"),
    "a reset is due, as newer ones do": (
        changed(RTX_5090, "GPU Recovery Action", "Reboot"),
        "recovery action Reboot",
        "restart",
    ),
    "it slows itself down": (
        changed(RTX_3090, "GPU Current Temp", "96 C"),
        "has 96 C and slows itself down from 95 C on",
        "fans",
    ),
    "a newer one does": (
        changed(changed(H100, "GPU T.Limit Temp", "-2 C"), "GPU Current Temp", "89 C"),
        r"has reached its temperature limit \(89 C\)",
        "fans",
    ),
    "it does not answer": (
        changed(changed(H100, "GPU Current Temp", "Unknown Error"), "Total", "Unknown Error"),
        "no answer to FB Memory Usage/Total, Temperature/GPU Current Temp$",
        "restart the host",
    ),
}


@pytest.mark.parametrize(("text", "problem", "remedy"), FAULTS.values(), ids=FAULTS)
def test_what_makes_a_card_unfit_is_named(text: str, problem: str, remedy: str) -> None:
    (fault,) = health.card_faults(one_card(text))
    assert re.search(problem, fault.problem) and re.search(remedy, fault.remedy), fault
    assert health.card_warnings(one_card(text)) == [], "it is told once"


WARNINGS = {
    "heat": (changed(RTX_3090, "HW Thermal Slowdown", "Active"), "HW Thermal Slowdown"),
    "power": (changed(RTX_5090, "HW Power Brake Slowdown", "Active"), "HW Power Brake Slowdown"),
    "warmer than it is made for": (changed(RTX_3090, "GPU Current Temp", "93 C"), "made for less than 93 C"),
    "warm memory": (
        changed(changed(RTX_3090, "Memory Current Temp", "95 C"), "Memory Max Operating Temp", "95 C"),
        "its memory has 95 C",
    ),
    "a fan that is never told": (
        changed(RTX_3090, "Product Name", "RTX 3090\n    Fan Speed : Unknown Error\n    Power : ERR!"),
        "no answer to Fan Speed, Power",
    ),
    "full memory": (changed(RTX_3090, "Free", "12 MiB"), "12 MiB of its memory are free"),
}


def test_a_card_with_little_memory_free_is_told_before_more_is_taken() -> None:
    full = one_card(changed(RTX_3090, "Free", "2047 MiB"))
    seen = Seen(cards=(full, one_card(H100), one_card(changed(P40, "Free", "N/A"))))
    assert health.too_full(seen, {card.uuid for card in seen.cards}, 2048) == [f"{full.named()} has 2047 MiB free"]
    assert health.too_full(seen, {one_card(H100).uuid}, 2048) == []


@pytest.mark.parametrize(("text", "problem"), WARNINGS.values(), ids=WARNINGS)
def test_what_should_be_known_of_a_card_is_a_warning(text: str, problem: str) -> None:
    card = one_card(text)
    (warning,) = health.card_warnings(card)
    assert problem in warning.problem and warning.remedy
    assert health.card_faults(card) == []


LOADING = "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)"
FALLEN = "NVRM: Xid (PCI:0000:db:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
MMU = "NVRM: Xid (PCI:0000:DB:00): 31, pid=1, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS"
GSP = (
    "NVRM: Xid (PCI:0000:db:00): 119, pid=77, name=python, Timeout after 6s of waiting for RPC response from GPU0 GSP!"
)
CLEANUP = "NVRM: Xid (PCI:0000:db:00): 45, pid=1, name=python3, Ch 00000008"
REBOOT = "NVRM: Xid (PCI:0000:db:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"
MENDED = "NVRM: Xid (PCI:0000:db:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"
ELSEWHERE = "NVRM: Xid (PCI:0000:41:00): 48, pid='<unknown>', name=<unknown>, DBE (double bit error)"
GONE = ELSEWHERE.replace("0000:41", "0000:42")
OTHER_CARD = H100.replace(":DB:", ":41:").replace("GPU-f7b02328", "GPU-other")

LOGS = {
    "nothing": ((LOADING,), [], []),
    "off the bus": ((LOADING, FALLEN), ["Xid 79 of the card at 0000:db:00: GPU has fallen off the bus."], []),
    "several times": ((GSP, LOADING, GSP, GSP), ["Xid 119 of the card at 0000:db:00, 2 times: the GPU's own"], []),
    "before the driver was loaded anew": ((LOADING, FALLEN, LOADING), [], []),
    "without the line of loading, which a long log has lost": ((GSP,), ["Xid 119"], []),
    "a program's own": ((LOADING, MMU), [], ["Xid 31 of the card at 0000:db:00: a program reached"]),
    "clean-up after a program": ((LOADING, CLEANUP), [], []),
    "a restart is due": ((LOADING, REBOOT), ["Xid 154 of the card at 0000:db:00: GPU recovery action changed"], []),
    "no restart is due any more": ((LOADING, MENDED), [], []),
    "a card that nobody uses": ((LOADING, ELSEWHERE), [], ["Xid 48 of the card at 0000:41:00"]),
    "a card that is not there any more": ((LOADING, GONE), ["Xid 48 of the card at 0000:42:00"], []),
}


@pytest.mark.parametrize(("events", "faults", "warnings"), LOGS.values(), ids=LOGS)
def test_errors_of_the_driver_are_told_by_card_and_weight(
    events: tuple[str, ...], faults: list[str], warnings: list[str]
) -> None:
    seen = Seen(health.parse_cards((H100 + OTHER_CARD).splitlines()), events=events)
    found = (health.xid_faults(seen, {"GPU-f7b02328"}), health.xid_warnings(seen, {"GPU-f7b02328"}))
    for said, expected in zip(found, (faults, warnings), strict=True):
        assert len(said) == len(expected)
        assert all(finding.problem.startswith(text) for finding, text in zip(said, expected, strict=True)), said
        assert all(finding.remedy for finding in said)


PRINTED = f"""::smi
{HEAD}{H100}
status 0
::loaded
580.95.05
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)  Tue Sep 23
::installed
580.95.05
Dual MIT/GPL
::pci
0000:db:00.0 0x2330
0000:da:00.0 0x22a3
::persistence
loaded
::kernel
read
{LOADING}
"""
NO_ANSWER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.105"
LOST = "Unable to determine the device handle for GPU0000:DB:00.0: Unknown Error"


def printed(smi: str, status: str | None) -> str:
    ended = "" if status is None else f"status {status}\n"
    return f"::smi\n{smi}\n{ended}" + PRINTED[PRINTED.index("::loaded") :]


def test_a_well_host_is_read_whole_and_has_no_fault() -> None:
    seen, wanted = health.parse(PRINTED), {"GPU-f7b02328"}
    assert seen.loaded == seen.installed == KernelModule("580.95.05", "open")
    assert (seen.error, seen.kernel, seen.events, seen.persistence_unit) == ("", "read", (LOADING,), True)
    assert seen.pci == {"0000:db:00.0": "0x2330", "0000:da:00.0": "0x22a3"}
    for judge in (health.driver_faults, health.driver_warnings, health.health_faults, health.health_warnings):
        assert judge(seen, wanted) == [], judge


DRIVER = {
    "not loaded": (printed(NO_ANSWER + "\n", "9"), "couldn't communicate with the NVIDIA driver", "make deploy"),
    "replaced under the kernel": (printed(MISMATCH, "18"), "Driver/library version mismatch", "restart the host"),
    "no cards": (printed("No devices were found", "6"), "No devices were found", "make doctor"),
    "a card lost": (printed(LOST, "15"), "Unable to determine the device handle", "power"),
    "a card lost after another was described": (
        printed(f"{HEAD}{H100}{LOST}", "15"),
        "nvidia-smi: Unable to determine the device handle",
        "power",
    ),
    "hanging": (printed("", "124"), "time-out: no answer within 20 s", "power"),
    "hanging until it was killed": (printed("", "137"), "time-out: no answer within 20 s", "power"),
    "hanging where nothing can end it": (printed(HEAD, None), "time-out: no answer within 20 s", "power"),
    "not installed": (printed("sh: 1: nvidia-smi: not found", "127"), "nvidia-smi: not found", "make deploy"),
    "another card": (
        PRINTED.replace("GPU-f7b02328", "GPU-another"),
        "GPU-f7b02328 is not there any more",
        "nvidia-smi -L",
    ),
    "another version installed": (
        PRINTED.replace("::installed\n580.95.05", "::installed\n580.105.08"),
        "the kernel runs module 580.95.05 and 580.105.08 is installed",
        "restart the host",
    ),
    "another flavour installed": (
        PRINTED.replace("Dual MIT/GPL", "NVIDIA"),
        "the kernel runs open modules and proprietary ones are installed",
        "make plan",
    ),
    "modules that do not drive the card": (
        PRINTED.replace("0x2330", "0x1b38"),
        "open modules do not drive the card at 0000:db:00.0",
        "REBOOT=1",
    ),
    "no persistence": (
        PRINTED.replace("Persistence Mode                      : Enabled", "Persistence Mode : Disabled"),
        "H100 80GB HBM3 GPU-f7b02328: persistence mode is off",
        "nvidia-persistenced",
    ),
}


@pytest.mark.parametrize(("text", "problem", "remedy"), DRIVER.values(), ids=DRIVER)
def test_what_is_wrong_with_the_driver_is_named(text: str, problem: str, remedy: str) -> None:
    (fault,) = health.driver_faults(health.parse(text), {"GPU-f7b02328"})
    assert health.driver_warnings(health.parse(text), {"GPU-f7b02328"}) == [], "it is told once"
    assert problem in fault.problem and remedy in fault.remedy, fault


def test_a_unit_that_leaves_persistence_mode_off_counts_as_none() -> None:
    assert health.parse(PRINTED).persistence_unit
    assert not health.parse(PRINTED.replace("\nloaded\n", "\nloaded\n--no-persistence-mode\n")).persistence_unit
    assert not health.parse(PRINTED.replace("\nloaded\n", "\nnot-found\n")).persistence_unit


def test_without_a_unit_for_it_persistence_is_a_warning() -> None:
    text = PRINTED.replace("\nloaded\n", "\nnot-found\n").replace(" : Enabled", " : Disabled")
    (warning,) = health.driver_warnings(health.parse(text), {"GPU-f7b02328"})
    assert "persistence mode is off" in warning.problem and "-pm 1" in warning.remedy
    assert health.driver_faults(health.parse(text), {"GPU-f7b02328"}) == []


def test_a_fault_of_a_card_that_no_service_uses_is_a_warning() -> None:
    text = changed(OTHER_CARD, "Remapping Failure Occurred", "Yes")
    seen = Seen(health.parse_cards((H100 + text).splitlines()))
    assert health.health_faults(seen, {"GPU-f7b02328"}) == []
    (warning,) = health.health_warnings(seen, {"GPU-f7b02328"})
    assert "GPU-other: Remapped Rows/Remapping Failure Occurred" in warning.problem
    assert len(health.health_faults(seen, {"all"})) == 1, "under WSL2 every card is used"


@pytest.mark.parametrize(("kernel", "warned"), [("read", 0), ("container", 0), ("unreadable", 1)])
def test_a_kernel_s_log_that_cannot_be_read_is_told(kernel: str, warned: int) -> None:
    seen = Seen(health.parse_cards(H100.splitlines()), kernel=kernel)
    assert len(health.health_warnings(seen, {"GPU-f7b02328"})) == warned


KNOWN = {f"nvidia.com/gpu={name}" for name in ("0", "GPU-f7b02328", "all")}
SLICED = H100.replace("Current                           : Disabled", "Current                           : Enabled", 1)
CDI = {
    "as it should be": (KNOWN, H100, (), []),
    "empty": (set(), H100, (), ["CDI does not know GPU-f7b02328"]),
    "a card that was changed": (
        {"nvidia.com/gpu=GPU-former", "nvidia.com/gpu=all"},
        H100,
        (),
        ["CDI does not know GPU-f7b02328", "CDI knows GPU-former"],
    ),
    "made for another driver": (
        KNOWN,
        H100,
        ("/usr/lib/libcuda.so.580.65.06",),
        ["the CDI list names /usr/lib/libcuda"],
    ),
    "a card in slices": ({"nvidia.com/gpu=0:0", "nvidia.com/gpu=MIG-77"}, SLICED, (), []),
}


@pytest.mark.parametrize(("known", "card", "missing", "problems"), CDI.values(), ids=CDI)
def test_the_cdi_list_agrees_with_the_cards(
    known: set[str], card: str, missing: tuple[str, ...], problems: list[str]
) -> None:
    found = health.cdi_faults(known, health.parse_cards(card.splitlines()), missing)
    assert len(found) == len(problems)
    assert all(fault.problem.startswith(text) for fault, text in zip(found, problems, strict=True)), found
