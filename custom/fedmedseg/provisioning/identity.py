"""Whether a kit is of this federation: what cannot be told from the kit alone, and the participant's own name."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from fedmedseg.core.findings import Finding, failed, passed
from fedmedseg.core.flare_names import misread
from fedmedseg.core.kit import Kit
from fedmedseg.core.kit_checks import load_certificate

AGAIN = "take rootCA.pem, certificate and key from the network's administrator again"


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate as `openssl x509 -fingerprint -sha256` writes it."""
    return ":".join(f"{byte:02X}" for byte in certificate.fingerprint(hashes.SHA256()))


def federation_root(kit: Kit, trusted: Path) -> Finding:
    """Whether the kit trusts the root certificate ``trusted``, which came by another way than the kit."""
    check, own, wanted = "root certificate", load_certificate(kit.authority), load_certificate(trusted)
    if own is None or wanted is None:
        return failed(check, f"the {'one to compare with' if own else 'kit'}'s cannot be read", AGAIN)
    if own != wanted:
        return failed(check, "not the federation's: every participant of another would be trusted", AGAIN)
    return passed(check, f"the federation's, SHA-256 {fingerprint(own)[:23]}...")


def server_name(kit: Kit) -> Finding:
    """Whether a server's certificate is of the server its kit names."""
    check, own = "name", load_certificate(kit.certificate)
    if own is None:
        return failed(check, "the certificate cannot be read", AGAIN)
    names = [str(one.value) for one in own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [kit.server]:
        return failed(check, f"the certificate is of {', '.join(names) or 'nobody'}, the kit of {kit.server}", AGAIN)
    return passed(check, kit.server)


def site_name(kit: Kit) -> Finding:
    """Whether FLARE hands on name and organisation of a site as they are when its kit is started."""
    check, own = "name", load_certificate(kit.certificate)
    if own is None:
        return failed(check, "the certificate cannot be read", AGAIN)
    # FLARE writes the way through relays before the name, with dots
    name = kit.name.rpartition(".")[2]
    organisations = [str(one.value) for one in own.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    for what, text in (("site", name), *(("organisation", one) for one in organisations)):
        found = misread(text)
        if found is not None:
            told = f"FLARE's start script hands the {what} {text!r} on as {found}"
            return failed(check, told, "ask the federation's network administrator for a kit under another name")
    return passed(check, name)
