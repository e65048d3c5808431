"""Certificates of the gateway: a certificate authority of a host's own (mode `internal`), and how long a chain lasts.

The authority is made on this computer, once for each host, and its key never leaves it. Its certificate can vouch for the
TLS servers of that host's names and for nothing else, so that users may import it without trusting anybody with their
other connections or mail.
"""

import datetime
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atelier.credentials import write_private
from atelier.errors import AtelierError

AUTHORITY_FILE = "ca.crt"
AUTHORITY_DAYS = 20 * 365
LEAF_DAYS = 820
"""Apple's systems refuse certificates that are valid for more than 825 days."""
RENEWED_DAYS = 60
"""A deploy issues another certificate when fewer days are left."""
WARNED_DAYS = 30
BACKDATED = datetime.timedelta(days=1)
"""For clocks that are behind ours."""
OWN_NAMES = ("localhost", "127.0.0.1", "::1")
"""By which everybody reaches the services through a tunnel."""
DNS_NAME = re.compile(r"localhost|(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
"""With a dot: an authority for a name is one for all below it, and below a bare name there may be a public domain."""
SERVERS_ONLY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
NOBODY = x509.RFC822Name("invalid"), x509.UniformResourceIdentifier("invalid")
"""Of a kind that is not mentioned every name is permitted; so that none is, one that nobody can have (RFC 2606)."""

Time = datetime.datetime


@dataclass(frozen=True)
class Certificate:
    """A certificate chain and its private key, PEM; empty where there is none."""

    chain: str
    key: str = field(repr=False)


NONE = Certificate("", "")


@dataclass(frozen=True)
class Internal:
    """What this computer keeps for a host in mode `internal`."""

    authority: Certificate
    gateway: Certificate


@dataclass(frozen=True)
class Anchor:
    """What a client accepts from the gateway. name: what the certificate must be for; empty: no name is asked."""

    roots: str
    name: str
    system: bool = False
    """Whether what the system trusts is accepted too."""


def usable_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Those that a certificate can be for, each once: DNS names and IP addresses, in their normal form."""
    names: dict[str, None] = {}
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            if DNS_NAME.fullmatch(text.lower()):
                names[text.lower()] = None
        else:
            if not (address.is_unspecified or getattr(address, "scope_id", None)):
                names[str(address)] = None
    return tuple(names)


def up_to_date(kept: Internal, host: str, names: Sequence[str], now: Time) -> Internal:
    """What is kept, with what is missing, outdated or for other names made anew.

    Raises AtelierError where that needs the authority's key and it is not here.
    """
    authority = kept.authority
    reason = authority_outdated(authority, names, now) or certificate_outdated(kept.gateway, authority, names, now)
    if not reason:
        return kept
    if authority.chain and not authority.key:
        raise AtelierError(
            f"the gateway of {host} needs another certificate ({reason}), and ca.key, which signs it, is not here",
            f"restore .secrets/{host}/ca.key; or remove ca.crt beside it: a new one is made, which users import again",
        )
    if authority_outdated(authority, names, now):
        authority = make_authority(host, names, now, authority.key)
    return Internal(authority, issue(authority, names, now))


def is_for(certificate: Certificate, names: Iterable[str]) -> bool:
    """Whether it is for all of these names, and maybe for others, however old it is."""
    try:
        return set(names) <= set(_alternative_names(_first(certificate.chain)))
    except ValueError:
        return False


def authority_outdated(authority: Certificate, names: Iterable[str], now: Time) -> str:
    """Why the authority needs another certificate; empty where it does not."""
    if not authority.chain:
        return "there is no authority yet"
    certificate = _first(authority.chain)
    if not _vouches_for_servers_only(certificate):
        return "the authority is for more than TLS servers"
    permitted = _permitted(certificate)
    beyond = [name for name in names if name not in permitted]
    if beyond:
        return f"the authority is not for {', '.join(beyond)}"
    if certificate.not_valid_after_utc - now < datetime.timedelta(days=LEAF_DAYS):
        return f"the authority ends on {certificate.not_valid_after_utc:%Y-%m-%d}"
    return ""


def certificate_outdated(gateway: Certificate, authority: Certificate, names: Sequence[str], now: Time) -> str:
    """Why the gateway needs another certificate; empty where it does not."""
    try:
        certificate, key = _first(gateway.chain), _private_key(gateway.key)
    except ValueError:
        return "it has none that can be read"
    if certificate.public_key() != key.public_key():
        return "its key is another's"
    try:
        certificate.verify_directly_issued_by(_first(authority.chain))
    except (ValueError, TypeError, InvalidSignature):
        return "another authority issued it"
    if set(_alternative_names(certificate)) != set(names):
        return "it is for other names"
    if certificate.not_valid_after_utc - now < datetime.timedelta(days=RENEWED_DAYS):
        return f"it ends on {certificate.not_valid_after_utc:%Y-%m-%d}"
    return ""


def make_authority(host: str, names: Iterable[str], now: Time, key: str = "") -> Certificate:
    """An authority that can vouch for servers of these names only. key: that of an authority that gets another certificate."""
    private = _private_key(key) if key else ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    # Two authorities for one name, such as before and after a lost key, must not be taken for each other.
    name = _name(f"Atelier {host[:40]} {identifier.digest.hex()[:8]}")
    constraints = x509.NameConstraints([*(_constraint(name) for name in names), *NOBODY], None)
    certificate = (
        _builder(name, name, public, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(SERVERS_ONLY, critical=False)
        .add_extension(constraints, critical=True)
        .add_extension(identifier, critical=False)
        .sign(private, hashes.SHA256())
    )
    return _pem(certificate, private)


def issue(authority: Certificate, names: Sequence[str], now: Time) -> Certificate:
    """A certificate for these names, with a fresh key."""
    issuer, signer = _first(authority.chain), _private_key(authority.key)
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    issuer_key = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(_name(names[0][:64]), issuer.subject, public, now, LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(SERVERS_ONLY, critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    return _pem(certificate, private)


Validity = Literal["good", "ends soon", "has ended", "begins later"]


def validity(begins: Time, ends: Time, now: Time, *, renews_itself: bool) -> Validity:
    """How a certificate stands. One that renews itself (at a third of its time) ends soon when that did not happen."""
    if now < begins:
        return "begins later"
    if now >= ends:
        return "has ended"
    margin = (ends - begins) / 4 if renews_itself else datetime.timedelta(days=WARNED_DAYS)
    return "ends soon" if ends - now < margin else "good"


def lifetime(chain: str) -> tuple[Time, Time]:
    """From when until when every certificate of a chain is valid. Raises ValueError when it cannot be read."""
    certificates = x509.load_pem_x509_certificates(chain.encode())
    return (
        max(certificate.not_valid_before_utc for certificate in certificates),
        min(certificate.not_valid_after_utc for certificate in certificates),
    )


def load(directory: Path) -> Internal:
    """What is kept in a host's folder of secrets. Raises AtelierError when the authority's files are damaged."""
    texts = {name: _text(directory / name) for name in _files(Internal(NONE, NONE))}
    authority = Certificate(texts["ca.crt"], texts["ca.key"])
    try:
        key = _private_key(authority.key) if authority.key else None
        certificate = _first(authority.chain) if authority.chain else None
        damaged = bool(key and certificate and key.public_key() != certificate.public_key())
    except ValueError:
        damaged = True
    if damaged:
        raise AtelierError(
            f"{directory}: ca.crt and ca.key are damaged or not of one authority",
            "restore both from a backup; or remove both: a new authority is made, whose ca.crt users import again",
        )
    return Internal(authority, Certificate(texts["tls.crt"], texts["tls.key"]))


def save(directory: Path, internal: Internal) -> None:
    """Write what differs, in an order that leaves nothing lost when it is cut short: keys before what needs them."""
    for name, text in _files(internal).items():
        if text and text != _text(directory / name):
            write_private(directory / name, text)


def _files(internal: Internal) -> dict[str, str]:
    authority, gateway = internal.authority, internal.gateway
    return {
        "ca.key": authority.key,
        AUTHORITY_FILE: authority.chain,
        "tls.key": gateway.key,
        "tls.crt": gateway.chain,
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace") if path.exists() else ""


def _first(chain: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(chain.encode())


def _private_key(key: str) -> ec.EllipticCurvePrivateKey:
    private = serialization.load_pem_private_key(key.encode(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ValueError("not a key of ours")
    return private


def _pem(certificate: x509.Certificate, private: ec.EllipticCurvePrivateKey) -> Certificate:
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = private.private_bytes(pem, form, serialization.NoEncryption())
    return Certificate(certificate.public_bytes(pem).decode(), key.decode())


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: Time, days: int
) -> x509.CertificateBuilder:
    begins = now.replace(microsecond=0) - BACKDATED
    return (
        x509.CertificateBuilder(issuer, subject, public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + datetime.timedelta(days=days))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _constraint(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_network(name))
    except ValueError:
        return x509.DNSName(name)


def _vouches_for_servers_only(authority: x509.Certificate) -> bool:
    try:
        uses = authority.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return uses == SERVERS_ONLY and set(NOBODY) <= set(_permitted_subtrees(authority))


def _permitted(authority: x509.Certificate) -> set[str]:
    return {str(name.value).removesuffix("/32").removesuffix("/128") for name in _permitted_subtrees(authority)}


def _permitted_subtrees(authority: x509.Certificate) -> list[x509.GeneralName]:
    return authority.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]
