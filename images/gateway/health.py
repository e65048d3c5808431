"""The container's health: exit 0 when Caddy and the guard behind it answer. The applications have their `/healthz`.

Where Caddy fetches its certificate from an ACME server, it must have one as well: until then nobody can be served.
"""

import os
import socket
import ssl
import sys
import urllib.request

PORT = int(os.environ.get("GATEWAY_HEALTH_PORT", "2020"))
TLS_PORT = int(os.environ.get("GATEWAY_HTTPS_PORT", "8443"))
DOMAIN = os.environ.get("GATEWAY_DOMAIN")


def require_certificate(domain: str) -> None:
    """Raises OSError where Caddy has no certificate for its name; clients judge which one it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", TLS_PORT), 4) as plain,
        context.wrap_socket(plain, server_hostname=domain),
    ):
        pass


try:
    if DOMAIN:
        require_certificate(DOMAIN)
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=4) as answer:
        sys.exit(0 if answer.status == 200 else 1)
except OSError as error:  # a refused connection, a time-out, no certificate, and any status of 400 or more
    sys.exit(f"gateway: {error}")
