"""Restarting a host: only with a yes, and done when the host has come back from it."""

import time

from atelier.console import Narrator
from atelier.errors import AtelierError
from atelier.ssh import Ssh


class RestartNeededError(AtelierError):
    """A host has to be restarted before the rest can be done. reason: why."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target} must be restarted: {reason}", "restart it, then run the same command again")
        self.reason = reason


INTERVAL = 2  # seconds between two looks at whether it is back


def require_consent(target: str, reason: str, given: bool, narrator: Narrator) -> None:
    """A yes at the prompt, or one given on the command line. Raises AtelierError without."""
    narrator.say(f"  The host must be restarted: {reason}", style="yellow")
    if not given and not narrator.ask(f"Restart {target} now?"):
        raise AtelierError(
            f"{target} must be restarted before this can go on",
            "run the same command again with REBOOT=1, or restart the host yourself and run it again",
        )


def boot_id(ssh: Ssh) -> str:
    """What the kernel calls this boot of the host; another after every start."""
    return ssh.run("cat /proc/sys/kernel/random/boot_id", check=True, timeout=20).stdout.strip()


def reboot(ssh: Ssh, timeout: float, narrator: Narrator) -> None:
    """Restart the host and wait until it answers from another boot, telling about it. See `restart`."""
    narrator.begin("Restart", f"Restart {ssh.destination.host} and wait for it")
    restart(ssh, timeout)
    narrator.end(changed=True)


def restart(ssh: Ssh, timeout: float) -> None:
    """Restart the host and wait until it answers from another boot.

    From then on it restarts by itself, whatever becomes of this process.
    timeout: seconds. Raises AtelierError that says whether it stayed up or did not come back.
    """
    host = ssh.destination.host
    before = boot_id(ssh)
    # Later by a moment, so that the answer gets through; the connection then ends with the host.
    # systemd otherwise takes up to a minute more for a timer.
    ssh.run(
        "systemd-run --quiet --collect --timer-property=AccuracySec=100ms --on-active=1 systemctl reboot", check=True
    )
    ssh.close()
    deadline, seen = time.monotonic() + timeout, ""
    while time.monotonic() < deadline:
        time.sleep(INTERVAL)
        try:
            ssh.connect()
            seen = boot_id(ssh)
        except AtelierError:
            seen = ""
            ssh.close()
            continue
        if seen and seen != before:
            return
    if seen:
        raise AtelierError(
            f"{host} was told to restart and still runs after {timeout} s",
            "restart it yourself (`systemctl reboot`), then run the same command again",
        )
    raise AtelierError(
        f"{host} did not come back within {timeout} s after its restart",
        "look at its console; once it answers, run the same command again: it continues where it stopped "
        "(slow machine: raise timeouts.reboot)",
    )
