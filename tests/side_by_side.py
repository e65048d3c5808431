"""Which tests run beside which: whole files, each in one process, handed out in an order that keeps all processes busy."""

from collections.abc import Sequence
from pathlib import PurePath

MOST = 8
"""Processes. The longest file decides from about this many on."""
GIGABYTES_EACH = 4
"""Memory for a process: an end-to-end test boots a machine with Docker in it."""
TOGETHER = {
    "test_authentication_page.py": "planted host",
    "test_secret_search.py": "planted host",
}
"""Files that share what is made once in a process run in one, in the order of their names."""
LONGEST_FIRST = (
    "test_reprovision.py",
    "test_rotate.py",
    "test_previous_stack.py",
    "test_sabotage_run.py",
    "test_uninstall.py",
    "test_half_dead.py",
    "test_new_machine.py",
    "test_deploy.py",
    "test_edited_host.py",
    "test_weights_on_a_host.py",
    "test_gpu.py",
    "test_monitoring.py",
    "test_migration.py",
    "test_tls.py",
)
"""End-to-end tests; the others come after them. `make test` ends with how long each took."""


def processes(asked: Sequence[str], cores: int, gigabytes: int) -> int:
    """How many processes for what was asked for; 0: the one that pytest runs in, as is quickest for a single file."""
    files = {argument.partition("::")[0] for argument in asked}
    if len(files) == 1 and files.pop().endswith(".py"):
        return 0
    number = min(cores, MOST, gigabytes // GIGABYTES_EACH)
    return number if number > 1 else 0


def group(file: str) -> str:
    """What runs in one process, in its order: a file, or some that belong together."""
    return TOGETHER.get(PurePath(file).name, file)


def place(file: PurePath) -> tuple[int, int]:
    """Sorts the files: what is quick tells first, then the long ones, then what fills the gaps that those leave."""
    if file.parent.name == "unit":
        return 0, 0
    if file.parent.name == "sandbox":
        known = file.name in LONGEST_FIRST
        return 1, LONGEST_FIRST.index(file.name) if known else len(LONGEST_FIRST)
    return 2, 0
