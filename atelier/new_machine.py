"""A machine under a name that this computer knows already: what it is told. Pure."""

from atelier.credentials import Credentials
from atelier.hostfacts import HostFacts


def sentence(name: str, facts: HostFacts, stored: Credentials | None) -> str:
    """What is said of a bare host whose name was deployed before from here; empty of any other.

    facts.instance is empty where nothing of a deploy is recorded on the host.
    """
    if stored is None or facts.instance or facts.roots or facts.deployed:
        return ""
    return (
        f"{name} is a machine that was never deployed; the credentials of this computer for {name} are used, "
        "so clients go on with what they have"
    )
