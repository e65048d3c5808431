"""The authority of mode `internal`: what it may vouch for, when it issues anew, what is kept, who accepts it."""

import datetime
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from atelier import certificates, lifecycle, paths
from atelier import credentials as store
from atelier.certificates import NONE, Anchor, Certificate, Internal
from atelier.console import Narrator
from atelier.deployment import Deployment
from atelier.errors import AtelierError
from atelier.hostfacts import HostFacts
from atelier.settings import build_settings
from atelier.ssh import Destination, Ssh
from atelier.target import Target
from atelier.verify import trust

NOW = datetime.datetime.now(datetime.timezone.utc)
NAMES = certificates.usable_names(("gpu1.example.org", "10.0.0.5", *certificates.OWN_NAMES))
FIRST = certificates.up_to_date(Internal(NONE, NONE), "gpu1", NAMES, NOW)


def days(number: float) -> datetime.timedelta:
    return datetime.timedelta(days=number)


def parsed(certificate: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.chain.encode())


USABLE = {
    "an alias of ssh": (("my_gpu",), ()),
    "capitals": (("GPU1.Example.Org",), ("gpu1.example.org",)),
    "twice": (("a.b", "a.b"), ("a.b",)),
    "a wildcard is no address": (("0.0.0.0", "::"), ()),
    "IPv6, long": (("2001:0db8::0001",), ("2001:db8::1",)),
    "IPv6 of a link": (("fe80::1%eth0",), ()),
    "digits alone": (("1234",), ()),
    "a name that ends in a hyphen": (("a-",), ()),
    "nothing": (("",), ()),
    "a bare name, under which there may be others' sites": (("dev", "gpu1", "Zip"), ()),
    "the one bare name that is nobody's": (("localhost",), ("localhost",)),
    "too long": ((".".join(["a" * 63] * 4) + ".org",), ()),
}


@pytest.mark.parametrize("given,expected", USABLE.values(), ids=USABLE.keys())
def test_which_names_a_certificate_can_be_for(given: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert certificates.usable_names(given) == expected


def test_the_certificates_say_what_each_may_do() -> None:
    authority, leaf = parsed(FIRST.authority), parsed(FIRST.gateway)

    def of(certificate: x509.Certificate, kind: type) -> tuple[object, bool]:
        extension = certificate.extensions.get_extension_for_class(kind)
        return extension.value, extension.critical

    assert of(authority, x509.BasicConstraints) == (x509.BasicConstraints(True, 0), True)
    assert of(leaf, x509.BasicConstraints) == (x509.BasicConstraints(False, None), True)
    usage, critical = of(authority, x509.KeyUsage)
    assert critical and usage.key_cert_sign and not usage.digital_signature
    usage, critical = of(leaf, x509.KeyUsage)
    assert critical and usage.digital_signature and not usage.key_cert_sign
    constraints, critical = of(authority, x509.NameConstraints)
    assert critical and {str(name.value) for name in constraints.permitted_subtrees} == {
        *("gpu1.example.org", "localhost", "10.0.0.5/32", "127.0.0.1/32", "::1/128", "invalid")
    }
    servers_only = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    assert of(authority, x509.ExtendedKeyUsage)[0] == of(leaf, x509.ExtendedKeyUsage)[0] == servers_only
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 820 < 825
    assert authority.not_valid_after_utc > leaf.not_valid_after_utc


def change(internal: Internal, **parts: Certificate) -> Internal:
    return replace(internal, **parts)


def rewritten(
    certificate: Certificate,
    issuer: Certificate,
    *others: x509.ExtensionType,
    omitted: x509.ObjectIdentifier | None = None,
) -> Certificate:
    """The same with these extensions in place of those of their kinds."""
    given, signer = parsed(certificate), serialization.load_pem_private_key(issuer.key.encode(), None)
    lifetime = given.not_valid_before_utc, given.not_valid_after_utc
    builder = x509.CertificateBuilder(given.issuer, given.subject, given.public_key(), 7, *lifetime)
    for extension in given.extensions:
        value = next((other for other in others if other.oid == extension.oid), extension.value)
        if extension.oid != omitted:
            builder = builder.add_extension(value, extension.critical)
    made = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return replace(certificate, chain=made.decode())


def wide(*others: x509.ExtensionType, omitted: x509.ObjectIdentifier | None = None) -> Internal:
    """FIRST, its authority less constrained."""
    return change(FIRST, authority=rewritten(FIRST.authority, FIRST.authority, *others, omitted=omitted))


def permitting(*names: str) -> x509.NameConstraints:
    return x509.NameConstraints([certificates._constraint(name) for name in names], None)


ANOTHER = certificates.up_to_date(Internal(NONE, NONE), "gpu1", NAMES, NOW)
LATER = (*NAMES, "gpu.example.com")
GIVEN, NEW, SAME_KEY = "as it was", "new", "another, with the same key"
DECISIONS = {
    # what is kept, for which names, in how many days: what becomes of the authority, and of the certificate
    "nothing is kept": (Internal(NONE, NONE), NAMES, 0, NEW, NEW),
    "all in order": (FIRST, NAMES, 0, GIVEN, GIVEN),
    "the names in another order": (FIRST, NAMES[::-1], 0, GIVEN, GIVEN),
    "758 days later": (FIRST, NAMES, 758, GIVEN, GIVEN),
    "760 days later": (FIRST, NAMES, 760, GIVEN, NEW),
    "after the end": (FIRST, NAMES, 2000, GIVEN, NEW),
    "a name more": (FIRST, LATER, 0, SAME_KEY, NEW),
    "a name less": (FIRST, NAMES[1:], 0, GIVEN, NEW),
    "an authority that ends before a certificate would": (FIRST, NAMES, 20 * 365 - 800, SAME_KEY, NEW),
    "no certificate": (change(FIRST, gateway=NONE), NAMES, 0, GIVEN, NEW),
    "another certificate's key": (
        change(FIRST, gateway=replace(FIRST.gateway, key=ANOTHER.gateway.key)),
        NAMES,
        0,
        GIVEN,
        NEW,
    ),
    "a torn key": (change(FIRST, gateway=replace(FIRST.gateway, key=FIRST.gateway.key[:80])), NAMES, 0, GIVEN, NEW),
    "another authority's certificate": (change(FIRST, gateway=ANOTHER.gateway), NAMES, 0, GIVEN, NEW),
    "a key without its certificate": (
        change(FIRST, authority=replace(FIRST.authority, chain="")),
        NAMES,
        0,
        SAME_KEY,
        NEW,
    ),
    "an authority for more than servers": (
        wide(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])),
        NAMES,
        0,
        SAME_KEY,
        NEW,
    ),
    "an authority for everybody's mail": (wide(permitting(*NAMES)), NAMES, 0, SAME_KEY, NEW),
    "an authority for every use and a bare name": (
        wide(permitting("dev", *NAMES), omitted=x509.ExtendedKeyUsage.oid),
        NAMES,
        0,
        SAME_KEY,
        NEW,
    ),
    "no key, none needed": (change(FIRST, authority=replace(FIRST.authority, key="")), NAMES, 0, GIVEN, GIVEN),
}


@pytest.mark.parametrize("kept,names,later,authority,gateway", DECISIONS.values(), ids=DECISIONS.keys())
def test_what_is_issued_anew(kept: Internal, names: tuple[str, ...], later: int, authority: str, gateway: str) -> None:
    now = NOW + days(later)
    chosen = certificates.up_to_date(kept, "gpu1", names, now)
    if authority == GIVEN:
        assert chosen.authority == kept.authority
    else:
        assert chosen.authority.chain != kept.authority.chain
        assert (chosen.authority.key == kept.authority.key) == (authority == SAME_KEY)
    assert (chosen.gateway == kept.gateway) == (gateway == GIVEN)
    assert certificates.up_to_date(chosen, "gpu1", names, now) == chosen, "a second deploy changes nothing"


def test_without_the_authoritys_key_the_deploy_says_what_to_do() -> None:
    kept = change(FIRST, authority=replace(FIRST.authority, key=""))
    with pytest.raises(AtelierError, match=r"it is for other names.*ca\.key") as raised:
        certificates.up_to_date(kept, "gpu1", NAMES[1:], NOW)
    assert ".secrets/gpu1/ca.key" in str(raised.value)


def accepts(name: str, gateway: Certificate, roots: str) -> str:
    """What the rules of the public web say of a certificate for a name; empty: it is accepted."""
    verifier = PolicyBuilder().store(Store([x509.load_pem_x509_certificate(roots.encode())])).time(NOW)
    try:
        verifier.build_server_verifier(certificates._general_name(name)).verify(parsed(gateway), [])
    except VerificationError as error:
        return str(error)
    return ""


def test_the_rules_of_the_public_web_accept_it_for_its_names_only() -> None:
    assert {name: accepts(name, FIRST.gateway, FIRST.authority.chain) for name in NAMES} == dict.fromkeys(NAMES, "")
    assert accepts("other.example.org", FIRST.gateway, FIRST.authority.chain)
    assert accepts("10.0.0.6", FIRST.gateway, FIRST.authority.chain)
    assert accepts("localhost", FIRST.gateway, ANOTHER.authority.chain), "two authorities of one host are two"


def verified(folder: Path, gateway: Certificate, *options: str, purpose: str = "sslserver") -> str:
    """What openssl says of a certificate by FIRST's authority."""
    (folder / "ca.crt").write_text(FIRST.authority.chain)
    (folder / "tls.crt").write_text(gateway.chain)
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.crt", *options, "tls.crt"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return answer.stdout + answer.stderr


def test_openssl_accepts_it_for_its_names_only(tmp_path: Path) -> None:
    for option in ("-verify_hostname=gpu1.example.org", "-verify_ip=10.0.0.5", "-verify_ip=::1"):
        assert verified(tmp_path, FIRST.gateway, *option.split("=")) == "tls.crt: OK\n"
    assert "hostname mismatch" in verified(tmp_path, FIRST.gateway, "-verify_hostname", "example.org")


def test_nobody_can_use_the_authority_for_another_name(tmp_path: Path) -> None:
    for names in (("bank.example", *NAMES), (*NAMES, "8.8.8.8")):
        forged = certificates.issue(FIRST.authority, names, NOW)
        assert "permitted subtree violation" in verified(tmp_path, forged)
        assert accepts(names[0], forged, FIRST.authority.chain)


MAIL, PROGRAM = x509.RFC822Name("ceo@bank.example"), x509.UniformResourceIdentifier("spiffe://bank.example/pay")
MISUSES = {
    # what a thief of ca.key writes a certificate for, and what openssl is asked: why it refuses
    "a client": (
        x509.DNSName("localhost"),
        ExtendedKeyUsageOID.CLIENT_AUTH,
        "sslclient",
        "unsuitable certificate purpose",
    ),
    "signed mail": (MAIL, ExtendedKeyUsageOID.EMAIL_PROTECTION, "smimesign", "unsuitable certificate purpose"),
    "mail, purpose unasked": (MAIL, ExtendedKeyUsageOID.EMAIL_PROTECTION, "any", "permitted subtree violation"),
    "a program's identity": (PROGRAM, ExtendedKeyUsageOID.SERVER_AUTH, "any", "permitted subtree violation"),
}


@pytest.mark.parametrize("name,use,purpose,refusal", MISUSES.values(), ids=MISUSES.keys())
def test_nobody_can_use_the_authority_for_anything_but_servers(
    tmp_path: Path, name: x509.GeneralName, use: x509.ObjectIdentifier, purpose: str, refusal: str
) -> None:
    others = x509.ExtendedKeyUsage([use]), x509.SubjectAlternativeName([name])
    forged = rewritten(FIRST.gateway, FIRST.authority, *others)
    assert refusal in verified(tmp_path, forged, purpose=purpose)


def handshake(tmp_path: Path, gateway: Certificate, anchor: Anchor, url_host: str = "127.0.0.1") -> str:
    """A handshake in memory as the project's clients do it; empty, or why the client ends it."""
    (tmp_path / "pem").write_text(gateway.key + gateway.chain)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "pem")
    client = trust(anchor)
    assert isinstance(client, ssl.SSLContext)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, there, server_hostname=url_host),
        server.wrap_bio(there, back, server_side=True),
    ]
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
    return "" if ends[0].version() else "no handshake"


def test_clients_accept_what_the_mode_says_and_nothing_else(tmp_path: Path) -> None:
    internal = Anchor(FIRST.authority.chain, "localhost")
    assert handshake(tmp_path, FIRST.gateway, internal) == ""
    assert "unable to get local issuer" in handshake(tmp_path, ANOTHER.gateway, internal)
    elsewhere = certificates.issue(FIRST.authority, NAMES[:1], NOW)
    assert "Hostname mismatch" in handshake(tmp_path, elsewhere, internal), "the name asked is the anchor's"
    files = Anchor(FIRST.gateway.chain, "")
    assert handshake(tmp_path, FIRST.gateway, files) == ""
    assert "unable to get local issuer" in handshake(tmp_path, elsewhere, files)
    acme = Anchor(FIRST.authority.chain, "gpu1.example.org", system=True)
    assert handshake(tmp_path, FIRST.gateway, acme) == ""
    assert "Hostname mismatch" in handshake(tmp_path, certificates.issue(FIRST.authority, NAMES[1:], NOW), acme)
    ended = certificates.issue(FIRST.authority, NAMES, NOW - days(900))
    assert "expired" in handshake(tmp_path, ended, internal)


def test_what_is_kept_is_this_users_alone_and_comes_back(tmp_path: Path) -> None:
    assert certificates.load(tmp_path) == Internal(NONE, NONE)
    certificates.save(tmp_path, FIRST)
    assert certificates.load(tmp_path) == FIRST
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        ("ca.crt", "ca.key", "tls.crt", "tls.key"), 0o600
    )
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    certificates.save(tmp_path, FIRST)
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before, "nothing to write"


@pytest.mark.parametrize("written", range(4))
def test_killed_while_storing_the_next_deploy_goes_on(tmp_path: Path, written: int) -> None:
    certificates.save(tmp_path, FIRST)
    wider = certificates.up_to_date(FIRST, "gpu1", LATER, NOW)
    changed = [name for name, text in certificates._files(wider).items() if text != certificates._files(FIRST)[name]]
    assert changed == ["ca.crt", "tls.key", "tls.crt"]
    for name in changed[:written]:
        (tmp_path / name).write_text(certificates._files(wider)[name])
    chosen = certificates.up_to_date(certificates.load(tmp_path), "gpu1", LATER, NOW)
    assert chosen.authority.key == FIRST.authority.key
    assert accepts("gpu.example.com", chosen.gateway, chosen.authority.chain) == ""
    assert (chosen == wider) == (written == 3)


@pytest.mark.parametrize("written", range(4))
def test_killed_while_storing_the_first_the_next_deploy_goes_on(tmp_path: Path, written: int) -> None:
    for name, text in list(certificates._files(FIRST).items())[:written]:
        (tmp_path / name).write_text(text)
    chosen = certificates.up_to_date(certificates.load(tmp_path), "gpu1", NAMES, NOW)
    assert accepts("localhost", chosen.gateway, chosen.authority.chain) == ""
    assert (chosen.authority.key == FIRST.authority.key) == (written > 0)


@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
def test_a_damaged_authority_is_named_and_never_replaced(tmp_path: Path, name: str) -> None:
    certificates.save(tmp_path, FIRST)
    for text in ("rubbish", certificates._files(ANOTHER)[name]):
        (tmp_path / name).write_text(text)
        with pytest.raises(AtelierError, match=r"ca\.crt and ca\.key are damaged"):
            certificates.load(tmp_path)


VALIDITY = {
    # valid for, seen after, in days; renewed by the server itself
    "fresh": (820, 1, False, "good"),
    "31 days left": (100, 69, False, "good"),
    "29 days left": (100, 71, False, "ends soon"),
    "at its end": (100, 100, False, "has ended"),
    "before its beginning": (100, -1, False, "begins later"),
    "three months, about to be renewed": (90, 61, True, "good"),
    "three months, not renewed in time": (90, 70, True, "ends soon"),
    "six days, about to be renewed": (6, 4.2, True, "good"),
    "six days, not renewed in time": (6, 4.6, True, "ends soon"),
    "six days, ended": (6, 6.1, True, "has ended"),
}


@pytest.mark.parametrize("lasts,after,renews,expected", VALIDITY.values(), ids=VALIDITY.keys())
def test_how_a_certificate_stands(lasts: float, after: float, renews: bool, expected: str) -> None:
    assert certificates.validity(NOW, NOW + days(lasts), NOW + days(after), renews_itself=renews) == expected


def test_a_chain_lasts_as_long_as_its_shortest_part() -> None:
    younger = certificates.make_authority("gpu1", NAMES, NOW - days(20 * 365 - 10))
    begins, ends = certificates.lifetime(FIRST.gateway.chain + younger.chain)
    assert (begins, ends) == (parsed(FIRST.gateway).not_valid_before_utc, parsed(younger).not_valid_after_utc)
    with pytest.raises(ValueError, match="PEM"):
        certificates.lifetime("rubbish")


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.setattr(store, "BCRYPT_COST", 4)
    settings = build_settings(
        [("test", {"profile": "cpu", "tls": {"mode": "internal", "names": ["gpu.example.com", "10.9.8.7"]}})]
    )
    config = tmp_path / "ssh_config"
    config.write_text("Host alias_of_it\n  HostName 192.0.2.7\n")
    return Target("gpu1", "host", Destination("alias_of_it", config=config), settings)


def test_a_deploy_issues_for_every_name_and_stores_nothing_before_it_acts(target: Target) -> None:
    said: list[str] = []
    chosen = lifecycle.choose_internal(target, said.append)
    assert certificates._alternative_names(parsed(chosen.gateway)) == [
        *("192.0.2.7", "127.0.0.1", "gpu.example.com", "10.9.8.7", "localhost", "::1")
    ]
    assert not paths.secrets_dir("gpu1").exists()
    assert len(said) == 1 and ".secrets/gpu1/ca.crt is made for 192.0.2.7" in said.pop()
    paths.secrets_dir("gpu1").mkdir(parents=True)
    certificates.save(paths.secrets_dir("gpu1"), chosen)
    assert lifecycle.choose_internal(target, said.append) == chosen and said == []
    anchor = lifecycle.read_anchor(target)
    assert anchor == Anchor(chosen.authority.chain, "localhost")
    assert lifecycle.read_certificate(target) == chosen.gateway
    wider = replace(target, settings=build_settings([("t", {"tls": {"mode": "internal", "names": ["b.org"]}})]))
    lifecycle.choose_internal(wider, said.append)
    assert len(said) == 1 and "users import it again" in said[0]


def unlike_what_is_kept(target: Target, kept: Internal) -> bool:
    directory = paths.secrets_dir("gpu1")
    directory.mkdir(parents=True, exist_ok=True)
    for file in directory.iterdir():
        file.unlink()
    certificates.save(directory, kept)
    return lifecycle.internal_as_deployed(target) != kept


def test_drift_compares_with_the_certificate_that_is_kept(target: Target) -> None:
    asked = ("gpu.example.com", "10.9.8.7", *certificates.OWN_NAMES)
    for why, names, age in (
        ("it is as a deploy from here left it", ("192.0.2.7", *asked), 0),
        ("a deploy would issue another soon, and whether it ends soon is access.certificate's to say", asked, 770),
        ("it has ended", asked, 830),
        ("another computer knows the host by another address", ("198.51.100.9", *asked), 0),
    ):
        kept = certificates.up_to_date(Internal(NONE, NONE), "gpu1", names, NOW - days(age))
        assert not unlike_what_is_kept(target, kept), why
        keyless = change(kept, authority=replace(kept.authority, key=""))
        assert not unlike_what_is_kept(target, keyless), f"{why}, without the authority's key"
    fewer = certificates.up_to_date(Internal(NONE, NONE), "gpu1", asked[1:], NOW)
    assert unlike_what_is_kept(target, fewer), "the settings name one that it is not for"
    assert unlike_what_is_kept(target, Internal(NONE, NONE))
    assert unlike_what_is_kept(target, change(FIRST, gateway=Certificate("rubbish", "rubbish")))


@pytest.mark.parametrize("address,said_of", [("dev", True), ("dev.lab.example", False)])
def test_a_bare_address_is_said_to_be_in_no_certificate(target: Target, address: str, said_of: bool) -> None:
    config = target.destination.config
    assert config is not None
    config.write_text(f"Host alias_of_it\n  HostName {address}\n")
    said: list[str] = []
    chosen = lifecycle.choose_internal(target, said.append)
    assert (address in certificates._alternative_names(parsed(chosen.gateway))) != said_of
    assert [f"`{address}`" in line and "tls.names" in line for line in said[1:]] == [True] * said_of


def test_what_brings_no_certificate_to_the_host_keeps_none(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages import provision

    monkeypatch.setattr(provision, "apply", lambda *_: provision.Outcome(1, (), 1))
    monkeypatch.setattr(lifecycle, "append_audit", lambda *_: None)
    deployment = Deployment(target.settings, HostFacts(), store.generate({}), (), (), "double", internal=FIRST)
    ssh, narrator = Ssh(target.destination), Narrator()
    provision.fetch_weights(target, ssh, deployment, narrator)
    assert certificates.load(paths.secrets_dir("gpu1")) == Internal(NONE, NONE)
    provision.rotate(target, ssh, deployment, narrator)
    assert certificates.load(paths.secrets_dir("gpu1")) == FIRST


def test_an_operators_certificate_that_has_ended_is_refused_by_name(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = certificates.issue(FIRST.authority, NAMES, NOW - days(900))
    (tmp_path / "own.crt").write_text(ended.chain)
    (tmp_path / "own.key").write_text(ended.key)
    monkeypatch.setenv("HOME", str(tmp_path))
    tls = {"mode": "files", "certificate": "own.crt", "key": "~/own.key"}
    own = replace(target, settings=build_settings([("test", {"profile": "cpu", "tls": tls})]))
    certificate = lifecycle.read_certificate(own)
    assert certificate == ended, "verify reads it all the same"
    with pytest.raises(AtelierError, match=r"own\.crt is valid from .* only"):
        lifecycle._require_valid(certificate, own.settings.tls)
    lifecycle._require_valid(FIRST.gateway, own.settings.tls)


def test_the_roots_of_an_acme_server_are_read_or_named(target: Target, tmp_path: Path) -> None:
    tls = {"mode": "acme", "domain": "gpu.example.com", "acme_root": "roots.pem"}
    acme = replace(target, settings=build_settings([("test", {"tls": tls, "bind_address": "0.0.0.0"})]))
    for content in (None, "rubbish"):
        if content:
            (tmp_path / "roots.pem").write_text(content)
        with pytest.raises(AtelierError, match=r"tls\.acme_root: .*roots\.pem"):
            lifecycle.read_anchor(acme)
    (tmp_path / "roots.pem").write_text(FIRST.authority.chain)
    assert lifecycle.read_anchor(acme) == Anchor(FIRST.authority.chain, "gpu.example.com", system=True)
