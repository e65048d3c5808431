"""Group access: the certificate that clients meet."""

import datetime
import socket
import ssl
from urllib.parse import urlsplit

import pytest
from stack import Stack

from atelier.certificates import lifetime, validity

REMEDIES = {
    "internal": "run `make deploy`; where the clock of this computer is wrong, mend that first",
    "files": "put a valid certificate where tls.certificate and tls.key point, then `make deploy`",
    "acme": "the ACME server gives none: see `make logs SERVICE=gateway`; it must reach ports 80 and 443 by tls.domain",
}


def shown(stack: Stack, service: str) -> str:
    """The certificate that a service shows to a client which accepts what it should (PEM). Raises SSLError."""
    place = urlsplit(stack.urls[service])
    assert isinstance(stack.trust, ssl.SSLContext)
    with (
        socket.create_connection((place.hostname, place.port), timeout=30) as connection,
        stack.trust.wrap_socket(connection, server_hostname=place.hostname) as secured,
    ):
        return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True))


@pytest.mark.check("access.certificate")
def test_the_certificate_is_the_declared_one_and_lasts(stack, check):
    mode, now = stack.settings.tls.mode, datetime.datetime.now(datetime.timezone.utc)
    remedy, kept = REMEDIES[mode], stack.context["certificate"]
    for service in stack.urls:
        try:
            chain = shown(stack, service)
        except ssl.SSLError as error:
            told = getattr(error, "verify_message", "") or error.reason or str(error)
            check(f"{service}: clients accept the certificate", told, False, remedy)
        if kept:
            same = chain.split() == kept["chain"][: kept["chain"].index("-----END") + 25].split()
            check(f"{service}: it is the one kept here", "another one" if not same else "it is", same, remedy)
            chain = kept["chain"]
        begins, ends = lifetime(chain)
        standing = validity(begins, ends, now, renews_itself=mode == "acme")
        days = f"{service}: from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}"
        check(f"{service}: it is valid", f"{days}, {standing}", standing in ("good", "ends soon"), remedy)
        check.warn(f"{service}: it lasts for a while", [days] if standing == "ends soon" else [], remedy)
